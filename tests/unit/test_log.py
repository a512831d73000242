"""The contract of commit logs, run against both, and what is particular to each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crdtkv.core.causality import EMPTY_VV, VersionVector, make_origin
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, IncompatibleFormatError, StorageError, StoreClosedError, TokenExpiredError
from crdtkv.storage.files import File, OsFile, OsFiles
from crdtkv.storage.log import CommitLog, FileLog, LogReader, MemoryLog
from tests.frames import AP, EU, US, FrameMaker, vv_of

LOGS: dict[str, Callable[[Path], CommitLog]] = {
    "memory": lambda path: MemoryLog(),
    "file": FileLog,
    "cached": lambda path: FileLog(path, segment_bytes=4096),  # the window holds more than the log keeps
    "small": lambda path: FileLog(path, segment_bytes=4096, tail_cache_bytes=1024),  # most reads go to the disk
}


@pytest.fixture(params=LOGS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommitLog]:
    log = LOGS[request.param](tmp_path / "log")
    yield log
    check(log)
    log.close()


def check(log: CommitLog) -> None:
    match log:
        case FileLog():
            log._check()
        case MemoryLog():
            log._window._check()


def read_all(log: LogReader, position: int = 0, *, bytes_max: int = 1000, until: int | None = None) -> list[Frame]:
    frames: list[Frame] = []
    while True:
        some, following = log.read(position, bytes_max=bytes_max, until=until)
        assert following == position + len(some)
        if not some:
            return frames
        frames += some
        position = following


def check_position_after(log: LogReader, frames: list[Frame], vv: VersionVector) -> None:
    """`frames` are all that were ever appended: what is before the answer and kept must be covered."""
    position = log.position_after(vv)
    assert log.start() <= position <= log.end()
    assert vv_of(frames[log.start() : position]) <= vv


def test_empty_log(log: CommitLog) -> None:
    assert (log.start(), log.end(), log.synced(), log.sync()) == (0, 0, 0, 0)
    assert log.floor() == EMPTY_VV
    assert log.read(0, bytes_max=1000) == ([], 0)
    assert log.find(US, 1) is None
    assert log.position_after(VersionVector({US: 3})) == 0
    assert log.append([]) == 0


def test_frames_come_back_in_order(log: CommitLog) -> None:
    frames = FrameMaker().many(300)
    assert log.append(frames[:1]) == 1
    assert log.append(frames[1:7]) == 7
    for at in range(7, 300, 20):
        log.append(frames[at : at + 20])
    assert log.end() == 300
    for bytes_max in (1, 500, 100_000):
        assert read_all(log, bytes_max=bytes_max) == frames
    for position in (0, 1, 6, 133, 299, 300):
        assert read_all(log, position) == frames[position:]
    assert log.read(2, bytes_max=1) == ([frames[2]], 3)
    some, following = log.read(290, bytes_max=1 << 20, until=295)
    assert some == frames[290:295][: len(some)] and following <= 295
    assert read_all(log, 250, until=295) == frames[250:295]
    assert log.read(300, bytes_max=1) == ([], 300)
    assert log.read(297, bytes_max=1000, until=290) == ([], 297)


def test_find(log: CommitLog) -> None:
    frames = FrameMaker().many(400)
    for at in range(0, 400, 9):
        log.append(frames[at : at + 9])
    for frame in frames[::7]:
        for seq in {frame.first_seq, frame.last_seq}:
            assert log.find(frame.origin, seq) == frame
    vv = vv_of(frames)
    assert all(log.find(origin, vv.seq(origin) + 1) is None for origin in (US, EU, AP))
    assert log.find(make_origin("sa", 1, 1), 1) is None


def test_find_skips_the_gap_that_a_snapshot_leaves(log: CommitLog) -> None:
    maker = FrameMaker()
    frames = maker.many(60)
    seen = maker.vv.seq(US)
    maker.skip(US, seen + 1000)
    log.append(frames)
    log.reset_floor(VersionVector({US: seen + 1000}))
    later = maker.many(200, (US,))
    log.append(later)
    assert log.find(US, seen + 500) is None
    assert log.find(US, seen + 1001) == later[0]
    assert log.find(US, seen) == next(frame for frame in reversed(frames) if frame.origin == US)
    assert log.floor().seq(US) == seen + 1000
    assert log.floor().seq(EU) == 0


def test_position_after_is_safe_and_close(log: CommitLog) -> None:
    frames = FrameMaker().many(500)
    for at in range(0, 500, 10):
        log.append(frames[at : at + 10])
    for at in (0, 1, 50, 333, 499, 500):
        check_position_after(log, frames, vv_of(frames[:at]))
    assert log.position_after(vv_of(frames)) == 500
    assert log.position_after(EMPTY_VV) == 0
    assert log.position_after(vv_of(frames[:498])) == 498
    only_us = VersionVector({US: 10**6})
    check_position_after(log, frames, only_us)
    check_position_after(log, frames, vv_of(frames).without(AP))


def test_truncate_raises_the_floor_to_what_is_gone(log: CommitLog) -> None:
    frames = FrameMaker().many(3000)
    for at in range(0, 3000, 50):
        log.append(frames[at : at + 50])
    before = log.retained_bytes()
    log.truncate(2000)
    start = log.start()
    assert start <= 2000
    assert log.floor() == vv_of(frames[:start])
    assert read_all(log, start) == frames[start:]
    if not (isinstance(log, FileLog) and log._segment_bytes > 1 << 20):
        assert start > 1000
        assert log.retained_bytes() < before
        with pytest.raises(TokenExpiredError, match=str(start)):
            log.read(start - 1, bytes_max=1000)
        assert log.find(frames[0].origin, 1) is None
        assert log.position_after(EMPTY_VV) == start
    for at in (100, *range(max(0, start - 600), start, 40)):
        check_position_after(log, frames, vv_of(frames[:at]))
    check_position_after(log, frames, vv_of(frames[:2500]))
    log.truncate(10**9)
    assert read_all(log, log.start()) == frames[log.start() :]
    log.append([])
    assert log.end() == 3000


def test_readers_run_beside_the_appender(log: CommitLog) -> None:
    frames = FrameMaker().many(1500)
    failures: list[object] = []

    def follow() -> None:
        position = 0
        try:
            while position < len(frames):
                some, following = log.read(position, bytes_max=2000)
                if some != frames[position:following]:
                    failures.append((position, following))
                    return
                position = following
                log.position_after(vv_of(frames[:5]))
                log.find(US, 1)
        except Exception as e:
            failures.append(e)

    def sync() -> None:
        try:
            while log.sync() < len(frames):
                pass
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=follow) for _ in range(2)] + [threading.Thread(target=sync) for _ in range(2)]
    for thread in threads:
        thread.start()
    for at in range(0, len(frames), 25):
        log.append(frames[at : at + 25])
    for thread in threads:
        thread.join(60)
    assert not failures
    assert log.synced() == len(frames)


# -- the log in memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_max", [1, 1000, 50_000])
def test_memory_log_drops_its_oldest(bytes_max: int) -> None:
    log = MemoryLog(bytes_max)
    frames = FrameMaker().many(3000)
    for frame in frames:
        log.append((frame,))
        check(log) if frame.first_seq % 500 == 0 else None
    largest = max(frame.size for frame in frames)
    assert frames[-1].size <= log.retained_bytes() <= bytes_max + largest
    start = log.start()
    assert start > 0
    assert log.floor() == vv_of(frames[:start])
    assert read_all(log, start) == frames[start:]
    with pytest.raises(TokenExpiredError):
        log.read(start - 1, bytes_max=1)
    check(log)


def test_memory_log_with_frames_of_every_size() -> None:
    log = MemoryLog(8 << 20)
    maker = FrameMaker()
    frames = [maker.make(US if i % 3 else EU, value_bytes=(10, 1000, 300_000)[i % 7 % 3]) for i in range(120)]
    for at in range(0, 120, 4):
        log.append(frames[at : at + 4])
        check(log)
    assert log.retained_bytes() <= (8 << 20) + 300_000 * 4
    assert read_all(log, log.start(), bytes_max=1 << 20) == frames[log.start() :]


# -- the log of files -----------------------------------------------------------------------------------------


def test_reopened_log_is_the_same(tmp_path: Path) -> None:
    maker = FrameMaker()
    frames = maker.many(400)
    log = FileLog(tmp_path / "log", segment_bytes=4096)
    for at in range(0, 400, 10):
        log.append(frames[at : at + 10])
    log.truncate(100)
    log.reset_floor(VersionVector({make_origin("sa", 1, 1): 7}))
    start, floor = log.start(), log.floor()
    log.close()
    for _ in range(2):
        log = FileLog(tmp_path / "log", segment_bytes=4096)
        assert log.recovery.cut_bytes == 0
        assert (log.start(), log.end(), log.floor()) == (start, len(frames), floor)
        assert read_all(log, start) == frames[start:]
        assert log.find(frames[150].origin, frames[150].last_seq) == frames[150]
        for at in (start, 200, 399, 400):
            check_position_after(log, frames, vv_of(frames[:at]))
        more = maker.many(3)
        assert log.append(more) == len(frames) + 3
        frames += more
        log._check()
        log.close()


def test_synced_is_only_what_this_process_synced(tmp_path: Path) -> None:
    frames = FrameMaker().many(10)
    log = FileLog(tmp_path / "log")
    log.append(frames)
    assert log.synced() == 0
    assert log.sync() == 10
    log.close()
    log = FileLog(tmp_path / "log")
    assert log.synced() == 0
    assert log.sync() == log.synced() == 10
    log.close()


class CountingFile(OsFile):
    syncs = 0
    entered = threading.Event()
    go_on = threading.Event()

    def sync(self) -> None:
        type(self).syncs += 1
        self.entered.set()
        assert self.go_on.wait(30)
        super().sync()


class CountingFiles(OsFiles):
    def create(self, path: Path) -> File:
        file = super().create(path)
        assert isinstance(file, OsFile)
        counting = CountingFile(file._fd)
        return counting


def test_concurrent_syncs_share_one_fsync(tmp_path: Path) -> None:
    CountingFile.go_on.set()
    log = FileLog(tmp_path / "log", files=CountingFiles())
    frames = FrameMaker().many(3)
    log.append(frames[:1])
    CountingFile.syncs = 0
    CountingFile.entered.clear()
    CountingFile.go_on.clear()
    results: list[int] = []
    leader = threading.Thread(target=lambda: results.append(log.sync()))
    leader.start()
    assert CountingFile.entered.wait(30)
    log.append(frames[1:])  # an append does not wait for a sync under way
    followers = [threading.Thread(target=lambda: results.append(log.sync())) for _ in range(16)]
    for thread in followers:
        thread.start()
    CountingFile.go_on.set()
    for thread in [leader, *followers]:
        thread.join(30)
    # The leader covers one frame; of those that came later one leads for all, or two when one came late.
    assert results[0] >= 1 and len(results) == 17
    assert sorted(results)[1:] == [3] * 16
    assert 2 <= CountingFile.syncs <= 3
    log.close()


def test_use_after_close(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    frames = FrameMaker().many(2)
    log.append(frames[:1])
    log.close()
    log.close()
    calls: list[Callable[[], object]] = [
        lambda: log.append(frames[1:]),
        log.sync,
        lambda: log.truncate(1),
        lambda: log.reset_floor(EMPTY_VV),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError):
            call()


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot open the commit log"):
        FileLog(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot open the commit log"):
        FileLog(tmp_path / "absent" / "log")


def test_segment_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    log.close()
    (path,) = (tmp_path / "log").glob("*.log")
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(IncompatibleFormatError, match="version 2"):
        FileLog(tmp_path / "log")
    path.write_bytes(b"something else")
    with pytest.raises(CorruptionError, match="not a segment"):
        FileLog(tmp_path / "log")
