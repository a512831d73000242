"""Replication by hand: what one replica lacks of another, as bytes, and taking them in.

`delta_since` gives frames from the log where the log still has them all, else a snapshot of the state. `merge` takes
either: all or nothing. Frames travel as they are in the log, byte for byte:

    0xC1 0x44 version  checksum  [[frame, …], …]

The checksum (8 bytes) finds damage on the way; each frame names its cluster, and its hash chain finds everything else. It is XXH3 (64 bits)
in version 2, a twelfth of the cost of the BLAKE2b of version 1, which is read as well: it was a sixteenth of a merge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import lt
from typing import Final

import msgspec
from xxhash import xxh3_64_digest

from crdtkv.core.apply import Changes, Touched
from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.control import removed_text
from crdtkv.core.frame import Frame
from crdtkv.core.install import install
from crdtkv.core.join import Snapshot, is_snapshot, snapshot_of
from crdtkv.core.replica import Outcome
from crdtkv.errors import (
    CorruptionError,
    IncompatibleFormatError,
    MissingHistoryError,
    RegionRemovedError,
    RegionUnavailableError,
    StorageError,
)
from crdtkv.results import MergeResult
from crdtkv.store.machine import Machine
from crdtkv.store.watching import Watches

MAGIC: Final = b"\xc1\x44"
FORMAT_VERSION: Final = 2
_CHECKSUM_BYTES: Final = 8
_HEADER_BYTES: Final = len(MAGIC) + 1 + _CHECKSUM_BYTES
READ_BYTES: Final = 1 << 20


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    frames: list[bytes]


_decode = msgspec.msgpack.Decoder(_Wire).decode
_encode = msgspec.msgpack.Encoder().encode


def delta_since(machine: Machine, vv: VersionVector) -> bytes:
    """The frames that `vv` lacks, or a snapshot if the log no longer has them all. O(what is given)."""
    log, vv = machine.log, machine.control.complete(vv)
    if not log.floor() <= vv:
        return snapshot_of(machine.replica).to_bytes()
    frames: list[bytes] = []
    position, end = log.position_after(vv), log.end()
    while position < end:
        found, position = log.read(position, bytes_max=READ_BYTES, until=end)
        frames += [f.data for f in found if not vv.covers((f.origin, f.last_seq))]
    return _wrap(frames)


def encode_frames(frames: Sequence[Frame]) -> bytes:
    """Frames as bytes for `merge`, as `delta_since` gives them."""
    return _wrap([frame.data for frame in frames])


def _wrap(frames: list[bytes]) -> bytes:
    body = _encode(_Wire(frames))
    return MAGIC + bytes([FORMAT_VERSION]) + _checksum(body) + body


def _checksum(body: bytes | memoryview, version: int = FORMAT_VERSION) -> bytes:
    return xxh3_64_digest(body) if version > 1 else hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def decode_frames(data: bytes) -> list[Frame]:
    """The frames of bytes from `delta_since`, each checked.

    Raises:
        CorruptionError: not such bytes. IncompatibleFormatError: of a later format.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < _HEADER_BYTES:
        raise CorruptionError("merge: the bytes are not what delta_since gives: ask for them again")
    if not 1 <= data[2] <= FORMAT_VERSION:
        raise IncompatibleFormatError(f"merge: format version {data[2]}, this version of crdtkv knows {FORMAT_VERSION}: upgrade it")
    body = memoryview(data)[_HEADER_BYTES:]
    if data[3:_HEADER_BYTES] != _checksum(body, data[2]):
        raise CorruptionError("merge: the checksum does not fit: the bytes were cut or changed on their way")
    try:
        wire = _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise CorruptionError(f"merge: {e}") from e
    frames = [Frame.decode(f) for f in wire.frames]
    for frame in frames:
        frame.puts()  # checked now, all of them
    return frames


def decode(data: bytes) -> Snapshot | list[Frame]:
    """What bytes from `delta_since` hold; raises like `decode_frames`."""
    return Snapshot.from_bytes(data) if is_snapshot(data) else decode_frames(data)


def known_of_own(given: Snapshot | list[Frame], machine: Machine) -> int:
    """The last own commit of a replica that what is given, if it is of its cluster, holds or rests on."""
    origin = machine.origin
    if isinstance(given, Snapshot):
        return given.vv.seq(origin) if (given.cluster, given.shard) == (machine.cluster, machine.shard) else 0
    ours = [f for f in given if (f.cluster, f.shard) == (machine.cluster, machine.shard)]
    return max((max(f.context.seq(origin), f.last_seq if f.origin == origin else 0) for f in ours), default=0)


def merge(machine: Machine, given: Snapshot | list[Frame], watches: Watches) -> tuple[MergeResult, int]:
    """Take in what `decode` gave; what was done, and the log's end. See `Store.merge`."""
    machine.check_writable()
    conflicts = machine.replica.journal.total
    with watches.gathering(unlogged=isinstance(given, Snapshot)) as touched:
        if isinstance(given, Snapshot):
            applied, duplicates = _merge_snapshot(machine, given, touched)
        else:
            applied, duplicates = _merge_frames(machine, given)
    keys = _in_order(chain.from_iterable((t.key,) if isinstance(t, Touched) else t.keys for t in touched))
    return MergeResult(applied, duplicates, machine.replica.journal.total - conflicts, keys), machine.log.end()


def _in_order(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys by their code points, so by their bytes, each once. Those of many commits often come so, which costs a look at each."""
    ordered = sorted(keys)
    return tuple(ordered if all(map(lt, ordered, islice(ordered, 1, None))) else dict.fromkeys(ordered))


def _merge_frames(machine: Machine, frames: list[Frame]) -> tuple[int, int]:
    replica = machine.replica
    duplicates = sum(f.count for f in frames if replica.ready(f) is Outcome.DUPLICATE)
    _refuse_beyond(machine, {f.origin: f.last_seq for f in frames if replica.ready(f) is not Outcome.DUPLICATE})
    order, needs = replica.plan(frames)
    if needs:
        raise MissingHistoryError(
            "merge: the bytes rest on commits that are not here: ask the other replica for delta_since(vv) with this "
            f"replica's vv; needs {needs}",
            needs=str(needs),
        )
    _check_chain(machine, order)
    machine.apply(order)
    return sum(f.count for f in order), duplicates


def _refuse_beyond(machine: Machine, seqs: Mapping[Origin, int]) -> None:
    """What a removed region, or an ended incarnation, wrote after it was closed enters by no door."""
    for origin, seq in seqs.items():
        limit = machine.control.limit(origin)
        if limit is not None and seq > limit:
            if machine.control.last(origin) is None:
                raise RegionUnavailableError(
                    f"merge: {origin} is being closed, and until that is done its commits after {limit} are not taken: try again later",
                    origin=origin,
                )
            raise RegionRemovedError(removed_text(origin, limit), origin=origin, seq=seq, limit=limit)


def _check_chain(machine: Machine, order: list[Frame]) -> None:
    """All or nothing: the hash of each predecessor is checked before the first frame is applied."""
    last = {o: h for o, (_, h) in machine.replica.last_hashes().items()}
    for frame in order:
        if frame.previous != last.get(frame.origin, b""):
            raise CorruptionError(
                f"fork: frame {frame.origin}:{frame.first_seq} follows another history than the one applied here", origin=frame.origin
            )
        last[frame.origin] = frame.hash


def _merge_snapshot(machine: Machine, snapshot: Snapshot, touched: Changes) -> tuple[int, int]:
    if machine.engine_is_rebuilt:
        raise StorageError(
            "merge: the bytes hold a snapshot, and a directory with engine 'memory' keeps commits only: use rocksdb or lmdb, or ask the "
            "other replica earlier, while its log has them"
        )
    installed = install(machine.replica, snapshot, touched.append)
    machine.installed(installed.jumped)
    return installed.applied, sum(snapshot.vv.values()) - installed.applied
