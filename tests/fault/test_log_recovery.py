"""What the commit log does when it is killed, cut, damaged, or its disk fails."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, DiskFullError, StorageError
from crdtkv.storage.files import File, FileLayer, OsFiles
from crdtkv.storage.log import FileLog
from crdtkv.storage.segments import RECORD_OVERHEAD
from tests.frames import US, FrameMaker, vv_of


class FaultyDisk:
    """A file layer whose operations fail on demand. `fail[op]` is an errno; `write_at_most` bytes pass before a write fails."""

    def __init__(self) -> None:
        self.files: FileLayer = OsFiles()
        self.fail: dict[str, int] = {}
        self.write_at_most: int | None = None
        self.slice = 1 << 30

    def check(self, op: str) -> None:
        if op in self.fail:
            raise OSError(self.fail[op], os.strerror(self.fail[op]))

    def create(self, path: Path) -> File:
        self.check("create")
        return FaultyFile(self, self.files.create(path))

    def open(self, path: Path, *, writable: bool = False) -> File:
        self.check("open")
        return FaultyFile(self, self.files.open(path, writable=writable))

    def list(self, directory: Path) -> list[str]:
        self.check("list")
        return self.files.list(directory)

    def rename(self, source: Path, target: Path) -> None:
        self.check("rename")
        self.files.rename(source, target)

    def remove(self, path: Path) -> None:
        self.check("remove")
        self.files.remove(path)

    def sync_directory(self, directory: Path) -> None:
        self.check("sync_directory")
        self.files.sync_directory(directory)


class FaultyFile:
    def __init__(self, disk: FaultyDisk, file: File) -> None:
        self.disk = disk
        self.file = file

    def write(self, data: bytes) -> int:
        if self.disk.write_at_most is not None:
            part = data[: self.disk.write_at_most]
            self.disk.write_at_most -= len(part)
            if not part:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(part)
        return self.file.write(data[: self.disk.slice])

    def reserve(self, size: int) -> None:
        self.disk.check("reserve")
        if self.disk.write_at_most is not None:
            self.file.reserve(min(size, self.disk.write_at_most))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.reserve(size)

    def read_at(self, offset: int, size: int) -> bytes:
        self.disk.check("read")
        return self.file.read_at(offset, size)

    def size(self) -> int:
        return self.file.size()

    def truncate(self, size: int) -> None:
        self.disk.check("truncate")
        self.file.truncate(size)

    def sync(self) -> None:
        self.disk.check("sync")
        self.file.sync()

    def close(self) -> None:
        self.file.close()


def read_all(log: FileLog) -> list[Frame]:
    frames: list[Frame] = []
    position = log.start()
    while position < log.end():
        some, position = log.read(position, bytes_max=5000)
        frames += some
    return frames


def written(directory: Path, frames: list[Frame], *, segment_bytes: int = 1 << 20, group: int = 7, sync: bool = False) -> list[Path]:
    """Write a log, fsynced after each group if `sync`, and close it; returns its segments."""
    log = FileLog(directory, segment_bytes=segment_bytes)
    for at in range(0, len(frames), group):
        log.append(frames[at : at + group])
        if sync:
            log.sync()
    log.close()
    return sorted(directory.glob("*.log"))


def record_ends(path: Path, frames: list[Frame]) -> list[int]:
    """Where each record of the only segment ends, the header first."""
    at = path.stat().st_size - sum(frame.size + RECORD_OVERHEAD for frame in frames)
    ends = [at]
    for frame in frames:
        at += frame.size + RECORD_OVERHEAD
        ends.append(at)
    return ends


def test_log_cut_at_every_byte_keeps_every_whole_frame(tmp_path: Path) -> None:
    maker = FrameMaker()
    frames = maker.many(3, value_bytes=5)
    (path,) = written(tmp_path / "log", frames)
    whole, ends = path.read_bytes(), record_ends(path, frames)
    extra = maker.make()
    for cut in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = FileLog(tmp_path / "log")
        count = sum(end <= cut for end in ends) - 1
        assert log.end() == log.recovery.frames == count
        torn = whole[ends[count] : cut].rstrip(b"\0")  # zeros at the end are room
        assert (log.recovery.cut_bytes, log.recovery.cut_offset) == ((len(torn), ends[count]) if torn else (0, None))
        assert read_all(log) == frames[:count]
        if count == len(frames):
            log.append([extra])
        log.close()


TAILS = {
    "ones": b"\xff" * 50,
    "a byte": b"\1",
    "bad checksum": b"\5\0\0\0\0\0\0\0hello",
    "a byte, and room": b"\1" + bytes(5000),
    "half a record": b"P\0\0\0\1\2\3\4\xc1\1",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_garbage_at_the_end_is_torn_and_what_is_appended_next_survives(tmp_path: Path, tail: bytes) -> None:
    maker = FrameMaker()
    frames = maker.many(10)
    (path,) = written(tmp_path / "log", frames)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(tail)
    log = FileLog(tmp_path / "log")
    torn = len(tail.rstrip(b"\0"))
    assert (log.end(), log.recovery.cut_bytes, log.recovery.cut_offset, log.recovery.cut_file) == (10, torn, size, str(path))
    frames += maker.many(5)
    log.append(frames[10:])
    log.close()
    log = FileLog(tmp_path / "log")
    assert log.recovery.cut_bytes == 0
    assert read_all(log) == frames
    log.close()


def test_room_for_what_comes_is_neither_lost_nor_damage(tmp_path: Path) -> None:
    """What is fsynced in small parts goes over zeros written ahead. A crash leaves them; an orderly end, and the next segment, do not."""
    disk, maker = FaultyDisk(), FrameMaker()
    frames = maker.many(40)
    log = FileLog(tmp_path / "log", files=disk)
    for frame in frames[:10]:
        log.append([frame])
        log.sync()
    (path,) = (tmp_path / "log").glob("*.log")
    assert path.stat().st_size == log.retained_bytes() + len(path.read_bytes()) - len(path.read_bytes().rstrip(b"\0"))
    assert path.stat().st_size > log.retained_bytes() + 1000
    assert read_all(log) == frames[:10]
    crashed = path.read_bytes()
    log.close()
    whole = path.read_bytes()
    assert crashed.startswith(whole) and len(whole) < len(crashed) and not crashed[len(whole) :].strip(b"\0")
    assert log.recovery.cut_bytes == 0

    path.write_bytes(crashed)
    log = FileLog(tmp_path / "log", files=disk)
    assert (log.end(), log.recovery.cut_bytes, path.stat().st_size) == (10, 0, len(whole))
    for at in range(10, 30):  # an append that fails takes the room with it, and room that cannot be had is done without
        disk.fail = {"reserve": errno.ENOSPC} if at % 3 else {}
        disk.write_at_most = 5 if at % 4 == 1 else None
        if disk.write_at_most is not None:
            with pytest.raises(DiskFullError):
                log.append(frames[at : at + 1])
            disk.write_at_most = None
        log.append(frames[at : at + 1])
        log.sync()
    disk.fail = {"reserve": errno.EIO}
    log.roll()
    with pytest.raises(StorageError, match="cannot append"):
        log.append(frames[30:31])
    disk.fail = {}
    log.append(frames[30:])
    assert len(read_all(log)) == 40
    log._check()
    log.close()
    first, second = sorted((tmp_path / "log").glob("*.log"))
    for path in (first, second):
        assert path.read_bytes().endswith((frames[29] if path == first else frames[39]).data)
    with closing(FileLog(tmp_path / "log")) as log:
        assert read_all(log) == frames and log.recovery.cut_bytes == 0


def test_large_fsyncs_and_large_appends_make_no_room(tmp_path: Path) -> None:
    """Where each fsync is of much, zeros ahead would only be written twice."""
    maker = FrameMaker()
    with closing(FileLog(tmp_path / "log")) as log:
        log.append(maker.many(500, value_bytes=400))
        log.sync()
        log.append(maker.many(1))
        (path,) = (tmp_path / "log").glob("*.log")
        assert path.stat().st_size == log.retained_bytes()
        log.sync()
        log.append(maker.many(500, value_bytes=400))
        assert path.stat().st_size == log.retained_bytes()


@pytest.mark.parametrize("where", ["length", "checksum", "frame"])
def test_damage_in_what_was_synced_is_corruption_and_changes_nothing(tmp_path: Path, where: str) -> None:
    frames = FrameMaker().many(10)
    (path,) = written(tmp_path / "log", frames, sync=True)
    data = bytearray(path.read_bytes())
    offset = record_ends(path, frames)[4]
    data[offset + {"length": 1, "checksum": 5, "frame": 30}[where]] ^= 0x41
    path.write_bytes(data)
    with pytest.raises(CorruptionError) as found:
        FileLog(tmp_path / "log")
    assert found.value.details == {"path": str(path), "offset": offset}
    assert str(path) in str(found.value) and str(offset) in str(found.value)
    assert path.read_bytes() == data


@pytest.mark.parametrize("where", ["length", "longer", "checksum", "frame", "end"])
def test_damage_in_the_last_frame_is_corruption_once_it_was_noted_that_it_was_synced(tmp_path: Path, where: str) -> None:
    """No record behind it could say that it was synced: a flipped byte was taken for a torn write, and an acknowledged one cut off."""
    frames = FrameMaker().many(10)
    with closing(FileLog(tmp_path / "log")) as log:
        for frame in frames:
            log.append([frame])
            log.sync()
        log.note_synced()
    (path,) = (tmp_path / "log").glob("*.log")
    data = bytearray(path.read_bytes())
    end = len(data) - RECORD_OVERHEAD
    offset = end - RECORD_OVERHEAD - frames[-1].size
    at = {"length": offset, "longer": offset + 2, "checksum": offset + 5, "frame": offset + 30, "end": end - 1}[where]
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=f"damaged at offset {offset}: .*synced up to {end}"):
        FileLog(tmp_path / "log")
    assert path.read_bytes() == data


def test_notes_of_what_was_synced_are_no_frames_and_may_be_torn_themselves(tmp_path: Path) -> None:
    maker = FrameMaker()
    frames: list[Frame] = []
    for _ in range(3):
        with closing(FileLog(tmp_path / "log")) as log:
            assert log.recovery.cut_bytes == 0 and log.recovery.frames == log.end() == len(frames)
            log.note_synced()  # not synced yet, or noted before
            size = log.retained_bytes()
            log.append(more := maker.many(3))
            log.note_synced()
            assert log.retained_bytes() == size + sum(frame.size + RECORD_OVERHEAD for frame in more)
            log.sync()
            for _ in range(2):
                log.note_synced()
            assert log.retained_bytes() == size + sum(frame.size + RECORD_OVERHEAD for frame in more) + RECORD_OVERHEAD
            frames += more
            assert read_all(log) == frames and log.find(more[-1].origin, more[-1].last_seq) == more[-1]
            log._check()
    (path,) = (tmp_path / "log").glob("*.log")
    whole = path.read_bytes()
    for cut in range(1, RECORD_OVERHEAD + 1):
        path.write_bytes(whole[:-cut])
        with closing(FileLog(tmp_path / "log")) as log:
            torn = whole[-RECORD_OVERHEAD:-cut].rstrip(b"\0")
            assert log.recovery.cut_bytes == len(torn) and read_all(log) == frames
    path.write_bytes(whole + bytes(RECORD_OVERHEAD))  # room is no note
    with closing(FileLog(tmp_path / "log")) as log:
        assert log.retained_bytes() == len(whole) and log.recovery.cut_bytes == 0 and read_all(log) == frames


def test_a_note_that_finds_no_room_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    disk, frames = FaultyDisk(), FrameMaker().many(3)
    with closing(FileLog(tmp_path / "log", files=disk)) as log:
        log.append(frames[:2])
        log.sync()
        disk.write_at_most = 5
        with pytest.raises(DiskFullError):
            log.note_synced()
        disk.write_at_most = None
        log.append(frames[2:])
    with closing(FileLog(tmp_path / "log")) as log:
        assert read_all(log) == frames and log.recovery.cut_bytes == 0


def test_a_hole_in_what_was_not_synced_is_a_loss_of_power_and_is_cut_off_with_all_behind_it(tmp_path: Path) -> None:
    """The disk may have the later of two writes and not the earlier; a log that took that for corruption would not open again."""
    maker = FrameMaker()
    frames = maker.many(14)
    (path,) = written(tmp_path / "log", frames, group=7)
    ends = record_ends(path, frames)
    log = FileLog(tmp_path / "log")
    log.sync()
    log.append(more := maker.many(6))
    log.close()
    data = bytearray(path.read_bytes())
    at = ends[-1] + RECORD_OVERHEAD + more[0].size
    data[at : at + RECORD_OVERHEAD + more[1].size] = bytes(RECORD_OVERHEAD + more[1].size)
    path.write_bytes(data)
    log = FileLog(tmp_path / "log")
    assert (log.end(), log.recovery.cut_offset) == (15, at)
    assert read_all(log) == [*frames, more[0]]
    log.close()
    data[ends[3] + RECORD_OVERHEAD] ^= 1  # but what was synced before them is not to be missed
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=f"damaged at offset {ends[3]}: .*synced up to {ends[-1]}"):
        FileLog(tmp_path / "log")


def test_damage_in_an_earlier_segment_is_found_when_it_is_read(tmp_path: Path) -> None:
    frames = FrameMaker().many(100)
    paths = written(tmp_path / "log", frames, segment_bytes=4096)
    assert len(paths) > 3
    data = bytearray(paths[1].read_bytes())
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), data + b"\0"):
        paths[1].write_bytes(damaged)
        log = FileLog(tmp_path / "log", segment_bytes=4096)
        assert log.end() == 100
        with pytest.raises(CorruptionError) as found:
            read_all(log)
        assert found.value.details["path"] == str(paths[1])
        log.close()


def test_missing_segment_in_the_middle_is_corruption(tmp_path: Path) -> None:
    paths = written(tmp_path / "log", FrameMaker().many(100), segment_bytes=4096)
    paths[1].unlink()
    log = FileLog(tmp_path / "log")
    with pytest.raises(CorruptionError):
        read_all(log)
    log.close()


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """A log with one damaged byte gives the frames before the damage or a `CorruptionError`, never other frames."""
    frames = FrameMaker().many(60)
    paths = written(tmp_path / "log", frames, segment_bytes=4096)
    rng = random.Random(1)
    for _ in range(150):
        path = rng.choice(paths)
        data = bytearray(path.read_bytes())
        original = bytes(data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            log = FileLog(tmp_path / "log", segment_bytes=4096)
        except CorruptionError:
            pass
        except Exception as e:
            assert type(e).__name__ == "IncompatibleFormatError"  # the version's own bits
        else:
            try:
                got = read_all(log)
            except CorruptionError:
                got = []
            assert got == frames[: len(got)]
            log.close()
        path.write_bytes(original)


def test_killed_appender_loses_nothing_it_had_reported(tmp_path: Path) -> None:
    program = """
import sys
from crdtkv.storage.log import FileLog
from tests.frames import FrameMaker
log, maker = FileLog(sys.argv[1], segment_bytes=100_000), FrameMaker()
while True:
    print(log.append(maker.many(5)), flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 1500:
        pass
    child.send_signal(signal.SIGKILL)
    reported = int((child.stdout.read().split("\n")[-2:] or ["0"])[0] or 0)
    child.wait(30)
    child.stdout.close()
    log = FileLog(tmp_path / "log", segment_bytes=100_000)
    assert log.end() >= max(reported, 1500)
    maker = FrameMaker()
    assert read_all(log) == [frame for _ in range(log.end() // 5 + 1) for frame in maker.many(5)][: log.end()]
    log.close()


def test_full_disk_refuses_the_append_and_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = FileLog(tmp_path / "log", files=disk)
    frames = FrameMaker().many(20)
    log.append(frames[:5])
    for room in (0, 1, 8, 200, 500):
        disk.write_at_most = room
        with pytest.raises(StorageError, match="No space left"):
            log.append(frames[5:10])
        assert (log.end(), read_all(log)) == (5, frames[:5])
        log._check()
    disk.write_at_most = None
    disk.slice = 3  # and a file that takes three bytes at a time is only slow
    log.append(frames[5:])
    log.sync()
    log.close()
    log = FileLog(tmp_path / "log")
    assert log.recovery.cut_bytes == 0
    assert read_all(log) == frames
    log.close()


def test_append_that_cannot_be_undone_fails_the_log(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = FileLog(tmp_path / "log", files=disk)
    frames = FrameMaker().many(10)
    log.append(frames[:5])
    disk.write_at_most, disk.fail = 7, {"truncate": errno.EIO}
    with pytest.raises(StorageError):
        log.append(frames[5:6])
    disk.write_at_most, disk.fail = None, {}
    with pytest.raises(StorageError, match="takes no more"):
        log.append(frames[5:6])
    log.close()
    log = FileLog(tmp_path / "log")
    assert read_all(log) == frames[:5]
    assert log.recovery.cut_bytes == 7
    log.close()


def test_failed_fsync_is_never_tried_again(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = FileLog(tmp_path / "log", files=disk)
    frames = FrameMaker().many(3)
    log.append(frames[:1])
    log.sync()
    log.append(frames[1:2])
    disk.fail = {"sync": errno.EIO}
    with pytest.raises(StorageError, match="cannot sync"):
        log.sync()
    disk.fail = {}
    calls: list[Callable[[], object]] = [
        log.sync,
        lambda: log.append(frames[2:]),
        lambda: log.truncate(1),
        lambda: log.reset_floor(EMPTY_VV),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="takes no more"):
            call()
    assert log.synced() == 1
    log.close()


@pytest.mark.parametrize("op", ["create", "sync", "rename", "sync_directory"])
def test_segment_that_cannot_be_begun(tmp_path: Path, op: str) -> None:
    disk = FaultyDisk()
    log = FileLog(tmp_path / "log", segment_bytes=2000, files=disk)
    maker = FrameMaker()
    frames: list[Frame] = []
    disk.fail = {op: errno.ENOSPC}
    with pytest.raises(StorageError, match="No space left"):
        while True:
            frame = maker.make()
            log.append([frame])
            frames.append(frame)
    disk.fail = {}
    assert log.end() == len(frames)
    log.close()
    log = FileLog(tmp_path / "log", segment_bytes=2000)
    assert read_all(log) == frames
    log.append([frame])
    log.close()


def test_crash_while_a_segment_is_begun_leaves_a_log_that_opens(tmp_path: Path) -> None:
    frames = FrameMaker().many(10)
    (path,) = written(tmp_path / "log", frames)
    (tmp_path / "log" / "00000000000000000010.log.tmp").write_bytes(path.read_bytes()[:20])
    log = FileLog(tmp_path / "log")
    assert read_all(log) == frames
    assert not list((tmp_path / "log").glob("*.tmp"))
    log.close()


def test_crash_between_the_removals_of_a_truncation(tmp_path: Path) -> None:
    frames = FrameMaker().many(200)
    written(tmp_path / "log", frames, segment_bytes=4096)
    disk = FaultyDisk()
    log = FileLog(tmp_path / "log", segment_bytes=4096, files=disk)
    removed = 0

    def remove(path: Path) -> None:
        nonlocal removed
        removed += 1
        if removed == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        disk.files.remove(path)

    disk.remove = remove  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="cannot truncate"):
        log.truncate(150)
    log.close()
    log = FileLog(tmp_path / "log", segment_bytes=4096)
    assert 0 < log.start() < 150
    assert log.floor() == vv_of(frames[: log.start()])
    assert read_all(log) == frames[log.start() :]
    log.close()


def test_floor_survives_and_its_damage_is_noticed(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    log.reset_floor(VersionVector({US: 5}))
    log.reset_floor(VersionVector({US: 3}))
    log.close()
    log = FileLog(tmp_path / "log")
    assert log.floor() == VersionVector({US: 5})
    log.close()
    path = tmp_path / "log" / "FLOOR"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(CorruptionError, match="FLOOR"):
        FileLog(tmp_path / "log")


def test_unreadable_disk_is_a_storage_error(tmp_path: Path) -> None:
    frames = FrameMaker().many(100)
    written(tmp_path / "log", frames, segment_bytes=4096)
    disk = FaultyDisk()
    log = FileLog(tmp_path / "log", segment_bytes=4096, files=disk)
    disk.fail = {"read": errno.EIO}
    with pytest.raises(StorageError, match="cannot read"):
        log.read(0, bytes_max=1000)
    disk.fail = {"open": errno.EMFILE}
    with pytest.raises(StorageError, match="cannot read"):
        log.find(frames[0].origin, 1)
    disk.fail = {}
    assert read_all(log) == frames
    log.close()
