"""Disks in memory that forget: a log that loses its unsynced tail, an engine that wakes up at an earlier batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from sortedcontainers import SortedDict

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.core.meta import META_KEY, Meta
from crdtkv.errors import DiskFullError
from crdtkv.storage.engine import EngineSnapshot
from crdtkv.storage.memory_log import expired
from crdtkv.storage.retention import LogPart

FOLDS_KEPT = 4
"""States of an engine, newest last, that a crash may leave behind."""


class SimulatedLog:
    """A `CommitLog` as a plain list: the naive twin of the real ones, truncated frame by frame.

    `vv_at[p]` is what the frames before position p amount to; it outlives truncation, for whoever judges.

    Args:
        at_hand_max: how many of the newest frames count as being in memory; None: all.
    """

    def __init__(self, at_hand_max: int | None = None) -> None:
        self._at_hand_max = at_hand_max
        self.frames: list[Frame] = []
        self.vv_at: list[VersionVector] = [EMPTY_VV]
        self.jumps: list[tuple[int, VersionVector]] = []
        """Where in the log snapshots were installed, and how far origins jumped by that."""
        self._start = 0
        self._synced = 0
        self.is_full = False
        self.is_broken = False

    def end(self) -> int:
        return len(self.frames)

    def start(self) -> int:
        return self._start

    def at_hand(self) -> int:
        return self._start if self._at_hand_max is None else max(self._start, self.end() - self._at_hand_max)

    def floor(self) -> VersionVector:
        floor = self.vv_at[self._start]
        for _, origins in self.jumps:
            floor = floor.join(origins)
        return floor

    def position_after(self, vv: VersionVector) -> int:
        return next((p for p in range(self._start, self.end()) if not vv.covers(_last(self.frames[p]))), self.end())

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int]:
        if position < self._start:
            raise expired(position, self._start)
        found: list[Frame] = []
        size = 0
        for frame in self.frames[position:until]:
            size += frame.size
            if found and size > bytes_max:
                break
            found.append(frame)
        return found, position + len(found)

    def find(self, origin: Origin, seq: int) -> Frame | None:
        kept = self.frames[self._start :]
        return next((f for f in kept if f.origin == origin and f.first_seq <= seq <= f.last_seq), None)

    def append(self, frames: Sequence[Frame], /) -> int:
        if self.is_full:
            raise DiskFullError("the simulated log has no room")
        for frame in frames:
            self.frames.append(frame)
            self.vv_at.append(self.vv_at[-1].advance(*_last(frame)))
        return self.end()

    def sync(self) -> int:
        self._synced = self.end()
        return self._synced

    def synced(self) -> int:
        return self._synced

    def truncate(self, position: int, /) -> None:
        self._start = max(self._start, position)

    def parts(self) -> Sequence[LogPart]:
        """Each frame, as if it had been written long ago."""
        return [LogPart(p + 1, self.vv_at[p + 1], self.frames[p].size, 0) for p in range(self._start, self.end())]

    def begun_ms(self) -> None:
        return None

    def roll(self, bytes_min: int = 0) -> None:
        pass

    def note_synced(self) -> None:
        pass

    def vv(self) -> VersionVector:
        return self.vv_at[-1]

    def reset_floor(self, origins: VersionVector) -> None:
        """A snapshot is installed: what comes from here on follows it."""
        self.jumps.append((self.end(), origins))
        self.vv_at[-1] = self.vv_at[-1].join(origins)

    def close(self) -> None:
        pass

    def retained_bytes(self) -> int:
        return sum(frame.size for frame in self.frames[self._start :])

    def copy(self) -> SimulatedLog:
        """What a copy of the directory holds."""
        twin = SimulatedLog(self._at_hand_max)
        twin.frames, twin.vv_at, twin.jumps = self.frames[:], self.vv_at[:], self.jumps[:]
        twin._start, twin._synced = self._start, self.end()
        return twin

    def lose(self, position: int) -> list[Frame]:
        """The power fails: what comes from `position` on, none of it synced, was never written. Returns it."""
        assert position >= self._synced
        lost = self.frames[position:]
        del self.frames[position:], self.vv_at[position + 1 :]
        # Damage may take even what was synced before an install: that is in the engine, and the floor, kept elsewhere, says so.
        for _, origins in [jump for jump in self.jumps if jump[0] > position]:
            self.vv_at[-1] = self.vv_at[-1].join(origins)
        self.jumps = [(min(at, position), origins) for at, origins in self.jumps]
        return lost


def _last(frame: Frame) -> tuple[Origin, int]:
    return frame.origin, frame.last_seq


class SimulatedEngine:
    """A `StateEngine` that remembers how it was after its last few batches."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.get = self.records.get
        self._keys: list[bytes] = []
        self._is_in_order = True
        """Else what came lately is at the end of the keys. Cheaper, for so few, than to keep them in order at each write."""
        self.folds: list[dict[bytes, bytes | None]] = [{}]
        """For each remembered state, the last of which `records` is: what gives back the one before it, if that is remembered."""
        self.is_full = False
        self._touched: set[bytes] = set()

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self.get, keys))

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        if self.is_full:
            raise DiskFullError("the simulated engine has no room")
        records = self.records
        former = dict(zip(batch, map(self.get, batch), strict=True))
        self.folds.append(former)
        del self.folds[:-FOLDS_KEPT]
        before = len(records)
        records.update(batch)  # type: ignore[arg-type]  # what is None goes at once
        if len(records) != before:
            self._keys += [key for key, record in former.items() if record is None]
            self._is_in_order = False
        for key in [key for key, record in batch.items() if record is None]:
            del records[key]
            self._keys.remove(key)
        self._touched.update(batch)

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if not self._is_in_order:
            self._keys.sort()
            self._is_in_order = True
        first, after = bisect_left(self._keys, start), len(self._keys) if end is None else bisect_left(self._keys, end)
        if first >= after:
            return iter(())
        keys = self._keys[first:after]
        if reverse:
            keys.reverse()
        return iter(list(zip(keys, map(self.records.__getitem__, keys), strict=True)))

    def take_touched(self) -> Set[bytes]:
        """The keys written since this was last asked, for whoever follows what changes."""
        touched, self._touched = self._touched, set()
        return touched

    def positions(self) -> list[int]:
        """The log positions that the remembered states stand at."""
        found, meta = [], self.records.get(META_KEY)
        for former in reversed(self.folds):
            found.append(_position_in(meta))
            meta = former.get(META_KEY, meta)
        return found[::-1]

    def wake(self, fold: int) -> None:
        """The process died: what is found is the state after one of the remembered batches."""
        while len(self.folds) > fold + 1:
            for key, record in self.folds.pop().items():
                if record is None:
                    self.records.pop(key, None)
                else:
                    self.records[key] = record
        self._keys, self._is_in_order = list(self.records), False

    def copy(self) -> SimulatedEngine:
        """What a copy of the directory holds: the last batch."""
        twin = SimulatedEngine()
        twin.records.update(self.records)
        twin._keys, twin._is_in_order = list(twin.records), False
        return twin

    def snapshot(self) -> EngineSnapshot:
        return SimulatedView(self.records)

    def checkpoint(self, directory: Path) -> None:
        raise AssertionError("there is no directory")

    def flush(self) -> None:
        """The present state is on the disk: no crash goes back behind it."""
        del self.folds[:-1]

    def size_bytes(self) -> int:
        return sum(len(key) + len(record) for key, record in self.records.items())

    def close(self) -> None:
        pass


class SimulatedView:
    """An `EngineSnapshot`: a copy."""

    def __init__(self, records: Mapping[bytes, bytes]) -> None:
        self._records = SortedDict(records)
        self._is_open = True

    def get(self, key: bytes, /) -> bytes | None:
        found: bytes | None = self._records.get(key)
        return found

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._records.get(key) for key in keys]

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Generator[tuple[bytes, bytes], None, None]:
        assert self._is_open, "read after it was closed"
        for key in list(self._records.irange(start, end, (True, False), reverse)):
            yield key, self._records[key]

    def close(self) -> None:
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def position_of(records: Mapping[bytes, bytes]) -> int:
    """The log position up to which the state of an engine goes."""
    return _position_in(records.get(META_KEY))


def _position_in(meta: bytes | None) -> int:
    return 0 if meta is None else msgspec.msgpack.decode(meta, type=Meta).position
