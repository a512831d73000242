"""The simulated disk under the real log, and what its twin expects of it."""

from __future__ import annotations

import pytest

from crdtkv.errors import DiskFullError, StorageError
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.filed_log import FiledLog, LogBroke
from tests.frames import FrameMaker


def full_log() -> tuple[FiledLog, FrameMaker]:
    """A synced frame, and no room for more than a part of another."""
    maker = FrameMaker()
    log = FiledLog()
    log.append(maker.many(1, value_bytes=5))
    log.sync()
    log.is_full = True
    return log, maker


def test_what_could_not_be_taken_back_may_be_found_or_not() -> None:
    """A group found no room for all of it, and the disk failed the sync that was to undo its first frame for good: the twin called that
    frame, which a loss of power kept, one that nobody had appended. Its writer had been told that nobody knows."""
    found = set()
    for seed in range(60):
        log, maker = full_log()
        tried = maker.many(2, value_bytes=5)  # in the same segment
        log.files.room = 40 + tried[0].size  # and its header and checksum, and a piece of the next
        log.fail_next("sync")
        with pytest.raises(StorageError) as failed:
            log.append(tried)
        assert not isinstance(failed.value, DiskFullError) and log.is_broken
        log.stop(Dice(seed), 1, power=True)
        extra = log.end() - 1
        assert log.frames[1:] == tried[:extra] and log.is_full
        found.add(extra)
    assert found == {0, 1}


def test_what_was_taken_back_is_never_found() -> None:
    for seed in range(60):
        log, maker = full_log()
        tried = maker.many(2, value_bytes=5)  # in the same segment
        log.files.room = 40 + tried[0].size
        with pytest.raises(DiskFullError):
            log.append(tried)
        log.stop(Dice(seed), 1, power=True)
        assert log.end() == 1


def test_a_frame_out_of_nowhere_is_a_violation() -> None:
    log, maker = full_log()
    log.is_full = False
    log.real.append(maker.many(1, value_bytes=5))  # past the twin
    log.real.sync()
    with pytest.raises(LogBroke, match="found with 2 frames; 1 were synced, 1 appended"):
        log.stop(Dice(1), 1, power=True)
