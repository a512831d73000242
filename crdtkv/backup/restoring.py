"""Restoring: a directory of its own from a backup, as of the backup or of an earlier point; or the join into a running replica.

**Points in time.** The frames of incremental backups can be applied as far as one likes. A point is a stamp T (or a time, which is the
last stamp of its millisecond): the state then holds the full backup, and of the frames after it every one whose *last* commit is stamped T
or earlier and whose predecessor and context are held too. That is the greatest causally closed state made of whole frames up to T. A
frame is what was committed and logged in one group, within a few milliseconds. Stamps follow causality as far as the clock's bound on skew
allows; a frame that rests on one beyond T is left out whatever its own stamp. Or a point is a version vector that frames lead to exactly.

A past state is an older, causally closed state of the *same* data: joined to its cluster it catches up again, and undoes nothing. To go
back, restore to a directory under a *new cluster name*, which the cluster refuses to talk to, and use that, or read from it what was lost.

**Order on disk.** The log and the state engine are written and fsynced first, the identity last: a directory without one is refused by
whoever opens it, so half a restore is never taken for a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from crdtkv.backup.manifest import FULL, INCREMENTAL, Manifest, chain, chosen, manifests
from crdtkv.backup.reading import read_chunks, read_frames
from crdtkv.backup.target import Target
from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, check_region, next_generation
from crdtkv.core.clock import time_text
from crdtkv.core.control import NOTHING_AGREED, Control
from crdtkv.core.frame import Frame
from crdtkv.core.install import Incoming
from crdtkv.core.join import Snapshot
from crdtkv.core.load import Loader
from crdtkv.core.replica import enters_digest
from crdtkv.core.state import DictBase, State
from crdtkv.core.transfer import NO_LINK, encode_slots, header_of, next_link
from crdtkv.errors import ConfigError, CorruptionError
from crdtkv.results import MergeResult
from crdtkv.store.exchange import encode_frames
from crdtkv.store.machine import Machine
from crdtkv.store.opening import Opened, create_directory, new_origin
from crdtkv.store.settings import Settings

GROUP_FRAMES: Final = 256
MERGE_BYTES: Final = 4 << 20
"""Frames merged into a running replica at a time."""
STATE_CHUNK_BYTES: Final = 1 << 20
"""About how much of a state travels to a node at a time."""


@dataclass(frozen=True, slots=True)
class Point:
    """Up to where to restore: a stamp, or a vector."""

    hlc: int | None = None
    vv: VersionVector | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore made. `left_out`: frames up to the stamp asked for that rest on later ones."""

    path: Path
    origin: Origin
    cluster: str
    vv: VersionVector
    digest: str
    records: int
    frames: int
    left_out: int
    backups: tuple[Manifest, ...]


def restore(
    target: Target,
    path: Path | str,
    *,
    region: str,
    id: str | None = None,
    point: Point | None = None,
    cluster: str | None = None,
    engine: str = "rocksdb",
) -> Restored:
    """Make a directory that holds what was backed up, for a new replica of a region. O(backup).

    Args:
        path: must not exist, or be empty.
        region: whose replica it is to be: the one that was lost, or a new one. It gets a new incarnation either way.
        id: which backup; default: the newest, or the newest that reaches the point.
        cluster: another name for the cluster; see the module's docstring. None: the same, and the replica joins it and catches up.
        engine: "rocksdb" or "lmdb".
    Raises:
        ConfigError: the path is in use, or there is no such backup or point; nothing was made.
        CorruptionError: the backup is damaged.
    """
    check_region(region)
    if engine not in ("rocksdb", "lmdb"):
        raise ConfigError(f"engine: a restore needs rocksdb or lmdb, got {engine!r}: 'memory' keeps its state in the log", setting="engine")
    directory = Path(path)
    found = manifests(target)
    line = _line(found, id, point, target)
    last = line[-1]
    if point is not None and point.vv is not None:
        point = Point(vv=_full(point.vv, last))
    settings = Settings(cluster=last.cluster, shard=last.shard)
    generation = next_generation(region, last.vv)
    with create_directory(directory, new_origin(region, generation), engine, settings, cluster) as opened:
        machine = opened.machine
        records = _load(machine, target, line[0])
        frames, left_out = _apply(machine, _frames(target, line[1:]), point, keep_log=cluster is None)
        _finish(opened, settings)
        digest = machine.replica.digest()
        vv = machine.replica.vv()
        _check(line, point, vv, digest)
    return Restored(directory, machine.origin, cluster or last.cluster, vv, f"{digest:032x}", records, frames, left_out, tuple(line))


def _line(found: list[Manifest], id: str | None, point: Point | None, target: Target) -> list[Manifest]:
    """The backups to load, in order.

    For a point that is the newest full one before it, and *all* that continues it: a commit that is stamped before the point may have
    arrived long after it.
    """
    if point is None or id is not None:
        line = chain(found, chosen(found, id, target), target)
        if point is None or _reaches(line, point):
            return line
        return _no_point(line, point, target)
    chosen(found, None, target)  # there is one at all
    for full in reversed([m for m in found if m.kind == FULL]):
        line = max((chain(found, m, target) for m in _of(found, full, target)), key=lambda c: c[-1].id)
        if _reaches(line, point):
            return line
    return _no_point(found, point, target)


def _of(found: list[Manifest], full: Manifest, target: Target) -> list[Manifest]:
    """A full backup and all that continue it."""
    return [m for m in found if m is full or (m.kind == INCREMENTAL and chain(found, m, target)[0] is full)]


def _reaches(line: list[Manifest], point: Point) -> bool:
    """Whether a point lies between a full backup and the end of what continues it."""
    if point.vv is not None:
        return line[0].vv <= _full(point.vv, line[-1]) <= line[-1].vv
    assert point.hlc is not None
    return line[0].hlc <= point.hlc <= line[-1].until


def _no_point(found: list[Manifest], point: Point, target: Target) -> list[Manifest]:
    wanted = str(point.vv) if point.vv is not None else time_text(point.hlc or 0)
    spans = []
    for full in (m for m in found if m.kind == FULL):
        end = max(m.until for m in _of(found, full, target))
        spans.append(f"{full.time} to {time_text(end)}")
    raise ConfigError(f"{target} cannot restore {wanted}: it reaches {', '.join(spans)}; take incremental backups for points between")


def _load(machine: Machine, target: Target, full: Manifest) -> int:
    """Write the records of a full backup to an empty replica; how many."""
    loader = Loader(full.vv)
    for flat in read_chunks(target, full):
        for at in range(0, len(flat), 16_384):
            machine.engine.write(loader.take(flat[at : at + 16_384]))
    machine.engine.write(loader.finish())
    if f"{loader.digest:032x}" != full.digest:
        raise CorruptionError(f"{target}/{full.id}: its records give digest {loader.digest:032x}, not {full.digest}: use another backup")
    machine.replica.loaded(full.vv, full.hashes, full.agreed, loader.digest, full.hlc)
    machine.installed(full.vv)
    return loader.slots


def _frames(target: Target, line: list[Manifest]) -> Iterator[Frame]:
    for manifest in line:
        yield from read_frames(target, manifest)


def _apply(machine: Machine, frames: Iterator[Frame], point: Point | None, *, keep_log: bool) -> tuple[int, int]:
    """Apply frames up to a point; how many were, and how many up to it were left out."""
    replica = machine.replica
    group: list[Frame] = []
    taken: dict[Origin, int] = dict(replica.vv().items())
    applied = left_out = 0

    def flush() -> None:
        nonlocal applied
        if keep_log:
            applied += machine.apply(group).applied
        else:  # the frames name their cluster: under another name they have no place in the log
            for frame in group:
                replica.apply(frame)
            applied += len(group)
            replica.position = 0
            if replica.state.pending >= machine.fold_records_max:
                replica.fold()
        group.clear()

    for frame in frames:
        if not _within(frame, point):
            continue
        past = replica.control.complete(frame.context.advance(frame.origin, frame.first_seq - 1))
        if taken.get(frame.origin, 0) != frame.first_seq - 1 or any(taken.get(o, 0) < n for o, n in past.items()):
            left_out += 1
            continue
        taken[frame.origin] = frame.last_seq
        group.append(frame)
        if len(group) >= GROUP_FRAMES or frame.is_control:  # what it closes, later contexts leave out
            flush()
    flush()
    left_out += replica.held[0]  # beyond where its origin was closed by then: it rests on a closing that comes after the point
    replica.drop_held()
    return applied, left_out


def _within(frame: Frame, point: Point | None) -> bool:
    if point is None:
        return True
    if point.vv is not None:
        return point.vv.covers((frame.origin, frame.last_seq))
    assert point.hlc is not None
    return frame.hlc + int(frame.rows()[-1][0]) <= point.hlc


def _finish(opened: Opened, settings: Settings) -> None:
    """Do what clears left to do, and write everything down."""
    machine = opened.machine
    while machine.purge_slice(settings.purge_slots):
        pass
    machine.installed(machine.replica.vv() if machine.log.end() == 0 else EMPTY_VV)


def _check(line: list[Manifest], point: Point | None, vv: VersionVector, digest: int) -> None:
    last = line[-1]
    if point is not None and point.vv is not None and vv != point.vv:
        raise ConfigError(f"no frames end exactly at {point.vv}; the nearest point before it is {vv}")
    for known in line:
        if vv == known.vv and f"{digest:032x}" != known.digest:
            raise CorruptionError(f"what was restored has digest {digest:032x}, backup {known.id} says {known.digest}: use another backup")
    if point is None and vv != last.vv:
        raise CorruptionError(f"what was restored stands at {vv}, the backup {last.id} says {last.vv}: use another backup")


def _full(shown: VersionVector, manifest: Manifest) -> VersionVector:
    """A vector as people and clients see it, with the origins that are closed in it, as far as a backup knows."""
    if manifest.agreed == NOTHING_AGREED:
        return shown
    control = Control(State(DictBase(), enters_digest))
    control.absorb(manifest.agreed, manifest.hashes)
    return control.complete(shown)


# -- into a running replica ---------------------------------------------------------------------------------------------


class Mergeable(Protocol):
    """A store, or a client of a node."""

    def vv(self) -> VersionVector: ...

    def merge(self, delta: bytes, /) -> MergeResult: ...


@dataclass(frozen=True, slots=True)
class Merged:
    """What a join added: commits, keys that changed visibly (of a state that a node staged: slots); zero where it had seen it all."""

    applied: int
    changed_keys: int
    backups: tuple[Manifest, ...]


class TakesStates(Protocol):
    """A node that takes a whole state, in chunks: `crdtkv.client.views.NodeSide`."""

    def merge_state(self, chunks: Iterator[tuple[bytes, bytes]], /) -> tuple[int, int]: ...


def merge(target: Target, into: Mergeable, *, id: str | None = None, node: TakesStates | None = None) -> Merged:
    """Join a backup into a replica that runs: it gets what it had not seen, and keeps what it has. O(backup).

    The commits are the same ones, under the same dots: what the replica has seen is not applied again, so a counter does not count
    twice, and what was deleted since stays deleted. So it brings back commits that no replica has any more, and undoes nothing.

    Args:
        node: of a client: the node itself, which stages a state of any size and installs it in one step. None: the state is
            merged in one piece, in memory.
    """
    found = manifests(target)
    line = chain(found, chosen(found, id, target), target)
    full, applied, changed = line[0], 0, 0
    if not full.vv <= _full(into.vv(), full):
        if node is not None:
            applied, changed = node.merge_state(_chunks(target, full))
        else:
            slots: dict[bytes, bytes] = {}
            for flat in read_chunks(target, full):
                slots.update(zip(flat[::2], flat[1::2], strict=True))
            done = into.merge(Snapshot(full.cluster, full.shard, full.vv, full.hashes, slots, full.agreed).to_bytes())
            applied, changed = done.applied, len(done.changed_keys)
    vv = _full(into.vv(), line[-1])
    group: list[Frame] = []
    size = 0
    for frame in _frames(target, line[1:]):
        if not vv.covers((frame.origin, frame.last_seq)):
            group.append(frame)
            size += frame.size
            if size >= MERGE_BYTES:
                done = into.merge(encode_frames(group))
                applied, changed, group, size = applied + done.applied, changed + len(done.changed_keys), [], 0
    if group:
        done = into.merge(encode_frames(group))
        applied, changed = applied + done.applied, changed + len(done.changed_keys)
    return Merged(applied, changed, tuple(line))


def _chunks(target: Target, full: Manifest) -> Iterator[tuple[bytes, bytes]]:
    """A full backup as the chunks of a snapshot, each with its link."""
    data = header_of(
        Incoming(full.cluster, full.shard, full.vv, full.hashes, full.agreed, mark=full.hlc), full.origin, int(full.digest, 16)
    )
    link = next_link(NO_LINK, data)
    yield data, link
    for flat in read_chunks(target, full):
        while flat:
            size = at = 0
            while at < len(flat) and size < STATE_CHUNK_BYTES:
                size += len(flat[at]) + len(flat[at + 1])
                at += 2
            data, flat = encode_slots(flat[:at]), flat[at:]
            link = next_link(link, data)
            yield data, link
