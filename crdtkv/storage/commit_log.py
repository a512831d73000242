"""What the rest of crdtkv may ask of a commit log, and who may only read it; see `log.py` and `memory_log.py` for the logs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.storage.retention import LogPart


class LogReader(Protocol):
    """What replication may ask of a log. Cheap, except that `read` and `find` may go to the disk for what is old."""

    def end(self) -> int:
        """The position after the newest frame: how many were ever appended."""

    def start(self) -> int:
        """The first position that is kept."""

    def at_hand(self) -> int:
        """The first position whose frames are in memory: from there on `read` does not go to the disk."""

    def floor(self) -> VersionVector:
        """Per origin: from after this seq on, its frames are all here. An origin that is absent: all of its frames."""

    def position_after(self, vv: VersionVector) -> int:
        """A position >= `start` before which every frame kept is covered by `vv`: the best that is cheap to know."""

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int]:
        """Frames from `position` on in log order, up to `until`, and the position after them.

        At least one frame if there is any, and no more than fit in `bytes_max`.

        Raises:
            TokenExpiredError: `position` is before `start`.
            CorruptionError: the log is damaged there.
        """

    def find(self, origin: Origin, seq: int) -> Frame | None:
        """The frame that holds a commit, if it is kept."""


class CommitLog(LogReader, Protocol):
    """A log that can be written."""

    def append(self, frames: Sequence[Frame], /) -> int:
        """Add frames at the end, all or none; returns the new end. What is appended survives the process, not power loss.

        Raises:
            DiskFullError: nothing was appended; try again when there is room.
            StorageError: nothing was appended.
        """

    def sync(self) -> int:
        """Make what was appended before the call survive the loss of power; returns the position up to which all does.

        Raises:
            StorageError: it may not survive; the log takes no more.
        """

    def synced(self) -> int:
        """The position up to which all survives the loss of power."""

    def note_synced(self) -> None:
        """Have the log say of its last frames that they were fsynced, if they were and it does not yet: what damages them later is
        then told from a write that a crash tore. Cheap; for when the log is at rest. Of the appender's thread.

        Raises:
            StorageError: it was not noted.
        """

    def truncate(self, position: int, /) -> None:
        """Drop frames before `position`, as many as is cheap, and raise the floor accordingly. One thread at a time, any one."""

    def parts(self) -> Sequence[LogPart]:
        """What `truncate` can drop, oldest first: all but what is written to. None of a log that bounds itself."""

    def begun_ms(self) -> int | None:
        """When the part that is written to was begun, by the wall clock; None while there is nothing in it."""

    def roll(self, bytes_min: int = 0) -> None:
        """End the part that is written to, if it holds anything and so many bytes: it can then be dropped one day, and opening
        need not read it. Of the appender's thread."""

    def reset_floor(self, origins: VersionVector) -> None:
        """Raise the floor of these origins: their commits up to there came by a snapshot. Survives the loss of power."""

    def vv(self) -> VersionVector:
        """What all frames ever appended amount to, those dropped since included. O(origins)."""

    def retained_bytes(self) -> int:
        """Bytes that the log takes."""

    def close(self) -> None:
        """Idempotent."""
