"""The real commit log on a disk in memory that fails, beside its naive twin, which says what it should hold.

What a replica reads comes from `FileLog`; what whoever judges looks at (`frames`, `vv_at`, `jumps`) is the twin's. After
each loss of power the real one must have recovered a prefix of the twin that holds all that was synced: writes that were not may be
there, missing, torn sector by sector, in any order; and so may what an append could neither write nor take back. A damaged bit may be
refused at any later moment, never read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, DiskFullError, IncompatibleFormatError, StorageError
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.disk import SimulatedLog
from crdtkv.simulation.files import FaultyFiles
from crdtkv.storage.log import FileLog
from crdtkv.storage.retention import LogPart

P = ParamSpec("P")
T = TypeVar("T")

SEGMENT_BYTES: Final = 500
"""Small, so that a short run rolls through several segments."""
_DIRECTORY: Final = Path("/")  # it is there: nothing is made on the real disk
_ALL: Final = 1 << 40


class LogBroke(AssertionError):
    """The log is not what its twin says."""


class FiledLog(SimulatedLog):
    """See the module's docstring.

    Attributes:
        is_broken: a call of this process failed for good: with EIO, or on damage that was planted.
        has_rot: damage was planted, and no reader has met it.
    """

    def __init__(self) -> None:
        self.files = FaultyFiles()
        self.is_broken = self.has_rot = False
        self._fails: str | None = None
        self._is_full = False
        self._tried: Sequence[Frame] = ()
        """What the last append could not write, if nobody knows how much of it the disk has."""
        super().__init__()
        self._open()

    def _open(self) -> None:
        self.files.at_call = self._at_call
        self.real = FileLog(_DIRECTORY, segment_bytes=SEGMENT_BYTES, tail_cache_bytes=512, files=self.files)

    # -- faults ---------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """No room on the disk, but for the first part of a record."""
        return self._is_full

    @is_full.setter
    def is_full(self, value: bool) -> None:
        self._is_full = value
        self.files.room = 100 if value else None

    def fail_next(self, call: str | None) -> None:
        """The next call of this kind (`write`, `sync`) fails with EIO; None: it does not."""
        self._fails = call

    def _at_call(self, number: int, name: str) -> None:
        if name == self._fails:
            self._fails = None
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def rot(self, dice: Dice) -> bool:
        """One bit of a file turns over; False if there is nothing yet."""
        self.has_rot = self.files.rot(dice.random)
        return self.has_rot

    def stop(self, dice: Dice, least: int, *, power: bool) -> list[Frame]:
        """The process ends, perhaps with the machine's power; what is not there any more: at most what came after `least`.

        Raises:
            CorruptionError, IncompatibleFormatError: damage was planted, and is found.
        """
        files, wanted = self.files, self.end()
        self._fails = None
        for _ in range(8 if power else 0):
            self.files = files.lose_power(dice.random)
            self._open()
            if self.real.end() >= least:
                break
        else:
            self.files = files
            self._open()
        self.is_broken = False
        found = self.real.end()
        # A last record whose bit has turned over looks as one that was torn: nothing behind it says that it was synced.
        synced = self._synced if not self.has_rot else 0
        self._synced = min(self._synced, found)
        tried, self._tried = self._tried, ()
        if found > wanted:  # what failed was not taken back for good either: its writer was told that nobody knows
            self._keep(tried[: found - wanted])
            wanted = self.end()
        if not synced <= found <= wanted:
            raise LogBroke(f"the log was found with {found} frames; {synced} were synced, {wanted} appended")
        if not self.has_rot:
            kept = self._ask(self.real.read, self.real.start(), bytes_max=_ALL)[0]
            self._compare(kept, self.real.start())
        return self.lose(found)

    def copy(self) -> FiledLog:
        twin = FiledLog()
        twin.files = self.files.copy()
        twin.frames, twin.vv_at, twin.jumps = self.frames[:], self.vv_at[:], self.jumps[:]
        twin._open()
        twin._start, twin._synced = twin.real.start(), twin.real.end()
        return twin

    def _ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Note it if the disk is at fault."""
        try:
            return call(*args, **kwargs)
        except (StorageError, CorruptionError, IncompatibleFormatError) as e:
            self.is_broken = not isinstance(e, DiskFullError)
            raise

    # -- the log --------------------------------------------------------------------------------------------------

    def _compare(self, frames: Sequence[Frame], position: int) -> None:
        wanted = self.frames[position : position + len(frames)]
        if [frame.data for frame in frames] != [frame.data for frame in wanted]:
            raise LogBroke(f"the log gives other frames from position {position} than were appended there")

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int]:
        found = self._ask(self.real.read, position, bytes_max=bytes_max, until=until)
        self._compare(found[0], position)
        return found

    def find(self, origin: Origin, seq: int) -> Frame | None:
        found, wanted = self._ask(self.real.find, origin, seq), super().find(origin, seq)
        if (found and found.data) != (wanted and wanted.data):
            raise LogBroke(f"the log finds {found} for {origin}:{seq}, it should find {wanted}")
        return found

    def position_after(self, vv: VersionVector) -> int:
        found, wanted = self._ask(self.real.position_after, vv), super().position_after(vv)
        if not self.start() <= found <= wanted:
            raise LogBroke(f"what {vv} lacks begins at {wanted}, the log says {found}")
        return found

    def at_hand(self) -> int:
        return self.real.at_hand()

    def floor(self) -> VersionVector:
        found, wanted = self.real.floor(), super().floor()
        if found != wanted:
            raise LogBroke(f"the log's floor is {found}, it should be {wanted}")
        return found

    def append(self, frames: Sequence[Frame], /) -> int:
        try:
            end = self._ask(self.real.append, frames)
        except DiskFullError:
            raise  # nothing of it is there
        except StorageError:
            self._tried = frames
            raise
        if self._keep(frames) != end:
            raise LogBroke(f"the log ends at {end}, its twin at {len(self.frames)}")
        return end

    def _keep(self, frames: Sequence[Frame]) -> int:
        """Have the twin append what the real one has, whether or not there is room for more."""
        self._is_full, full = False, self._is_full
        try:
            return super().append(frames)
        finally:
            self._is_full = full

    def sync(self) -> int:
        self._ask(self.real.sync)
        return super().sync()

    def truncate(self, position: int, /) -> None:
        self._ask(self.real.truncate, position)
        if not self._start <= self.real.start() <= max(position, self._start):
            raise LogBroke(f"cut at {position}, the log begins at {self.real.start()}")
        super().truncate(self.real.start())

    def parts(self) -> Sequence[LogPart]:
        return self._ask(self.real.parts)

    def roll(self, bytes_min: int = 0) -> None:
        self._ask(self.real.roll, bytes_min)
        self._synced = max(self._synced, self.real.synced())

    def reset_floor(self, origins: VersionVector) -> None:
        self._ask(self.real.reset_floor, origins)
        super().reset_floor(origins)

    def retained_bytes(self) -> int:
        return self.real.retained_bytes()

    def close(self) -> None:
        self.real.close()
