"""Repair of a directory whose commit log is damaged in the middle; nobody has it open.

The missing frames come from a peer, byte for byte. Where the peer's log no longer has them, or there is no peer, the log's beginning may
go, if the state engine has all that was in it: then only other regions miss it, and they get it from each other. What can be mended
neither way is left alone, and the error says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, check_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.frame import Frame
from crdtkv.core.replica import Replica
from crdtkv.errors import ConfigError, CorruptionError
from crdtkv.storage.engine import HOW_TO_REPLACE
from crdtkv.storage.lock import DirectoryLock
from crdtkv.storage.salvage import Segment, examine, fill, give_up_before, hole_texts, reach, rewrite, wanted
from crdtkv.store.opening import IDENTITY_NAME, open_engine

Fetch = Callable[[VersionVector], tuple[VersionVector, Iterable[Frame]] | None]
"""What a peer has applied, and the frames beyond a vector in its log order; None: its log no longer has them all."""


@dataclass(frozen=True, slots=True)
class LogRepair:
    """What was done. `damage`: where; `refilled`: frames that came from the peer; `given_up`: the log begins behind the damage now;
    `kept`: the damaged files."""

    damage: tuple[str, ...]
    refilled: int
    given_up: bool
    kept: tuple[Path, ...]


def repair_log(directory: Path | str, fetch: Fetch | None = None) -> LogRepair:
    """Mend the commit log of a data directory; see the module's docstring. O(log).

    Raises:
        ConfigError: not a data directory. StoreLockedError: somebody has it open.
        CorruptionError: it cannot be mended with what there is; nothing was changed.
    """
    home = Path(directory)
    try:
        identity = json.loads((home / IDENTITY_NAME).read_bytes())
        own, cluster, engine_name = check_origin(identity["origin"]), identity["cluster"], identity["engine"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{home} is no data directory: it has no readable {IDENTITY_NAME}") from e
    with DirectoryLock(home):
        segments = examine(home / "log")
        damaged = [segment for segment in segments if segment.holes]
        damage = tuple(hole_texts(damaged))
        if not damaged:
            return LogRepair((), 0, False, ())
        engine = _engine_stands(home, engine_name, own, cluster)
        try:
            filled, refilled = _fill(segments, damaged, own, engine, fetch)
        except CorruptionError:
            if engine is None:
                raise
            first, aside = give_up_before(segments, engine)
            return LogRepair(damage, 0, first > segments[0].first, tuple(aside))
        kept = [rewrite(segment, frames) for segment, frames in zip(damaged, filled, strict=True)]
        return LogRepair(damage, refilled, False, tuple(kept))


def _engine_stands(home: Path, name: str, own: Origin, cluster: str) -> tuple[int, VersionVector] | None:
    """At which log position and vector the state engine stands; None: it has no state of its own."""
    if name == "memory":
        return None
    with closing(open_engine(home, name)) as engine:
        clock = HybridClock(lambda: time.time_ns() // 1_000_000)
        replica = Replica(engine, origin=own, cluster=cluster, clock=clock)
        return replica.position, replica.vv()


def _fill(
    segments: list[Segment], damaged: list[Segment], own: Origin, engine: tuple[int, VersionVector] | None, fetch: Fetch | None
) -> tuple[list[list[Frame]], int]:
    """The frames of each damaged segment with its holes filled, and how many came from the peer. Nothing is written yet."""
    headless = next((segment for segment in damaged if segment.is_headless), None)
    if headless is not None:
        raise CorruptionError(
            f"{headless.path} is damaged at offset 0, and nothing before it tells what the log had there; {HOW_TO_REPLACE}",
            path=str(headless.path),
            offset=0,
        )
    if fetch is None:
        raise CorruptionError(f"{damaged[0].path} is damaged, and no peer was named: name one that has its frames with --from")
    got = fetch(damaged[0].before)
    if got is None:
        raise CorruptionError(f"{damaged[0].path} is damaged, and the peer's log no longer has the frames: name another peer with --from")
    theirs, frames = got
    # The last segment ends nowhere else: what the engine has was in the log, and so was what the peer has of this replica's own.
    known = (EMPTY_VV if engine is None else engine[1]).advance(own, theirs.seq(own))
    lacks = [(segment.before, reach(segment, known), wanted(segment, known)) for segment in damaged]
    offered = [
        f
        for f in frames
        if any(f.origin in lack and before.seq(f.origin) < f.first_seq and f.last_seq <= end.seq(f.origin) for before, end, lack in lacks)
    ]
    filled = [fill(segment, offered, known, engine) for segment in damaged]
    refilled = sum(len(frames) for frames in filled) - sum(len(segment.frames) for segment in damaged)
    if engine is not None:
        _check_position(segments, damaged, filled, engine)
    return filled, refilled


def _check_position(segments: list[Segment], damaged: list[Segment], filled: list[list[Frame]], engine: tuple[int, VersionVector]) -> None:
    """The engine stands at a position: what it has must be before it, and nothing else."""
    position, vv = engine
    at = segments[0].first
    mended = {id(segment): frames for segment, frames in zip(damaged, filled, strict=True)}
    for segment in segments:
        for frame in mended.get(id(segment), segment.frames):
            if (at < position) != vv.covers((frame.origin, frame.last_seq)):
                raise CorruptionError(
                    f"{segment.path}: with what was found elsewhere the log does not lead to where the state engine stands ({position}); "
                    "move the directory aside and start with an empty one, or with one restored from a backup"
                )
            at += 1
