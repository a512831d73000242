"""The commit log: own and received frames, byte for byte, in the order in which this replica applied them.

It is write-ahead log, replication stream and change feed in one, and the only thing that is fsynced per write. A *position*
is the index of a frame since the log's beginning.

**Files.** Segments (`segments.py`) named by their first position. Only the last is written to; the next is begun, the last
one synced before, when it is full. So every segment but the last is whole on the disk, and a record that is not valid means:
beyond what the last segment's records know to be synced, a write torn by a crash or lost with the power, which is cut off and
reported in `recovery`; anywhere else, corruption, which is never repaired by guessing. `FLOOR` holds what snapshots raised
the floor to.

**Room.** To append makes a file longer, and a file system that is to make that durable writes its own journal beside the data.
Where fsyncs are small, the last segment therefore ends in zeros over which the next records are written: that halves an fsync. They go
when the segment is full or the log is closed; after a crash they are cut off like what was torn, but nothing was lost with them.

**Reading.** The newest frames stay in a `FrameWindow`, so live replication never touches the disk. For the rest a sparse
index (each segment's beginning, and in segments read so far each 64 KiB) leads close to a position, and a reader that goes
on where it stopped seeks nothing. The same index, with its version vectors, answers `position_after` and `find`. Segments
other than the last are verified when they are read, not on opening.

**Failing.** An append that fails is cut back, so the log is what it was; for want of room (`DiskFullError`) it may be tried again. A failed
sync fails the log for ever: what the kernel had not written it may have forgotten, and the next sync would succeed without it.

Appends and `roll` come from one thread at a time, `truncate` from one at a time that may be another; everything else from any.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.frame import Frame, peek
from crdtkv.errors import CorruptionError, DiskFullError, StorageError, StoreClosedError
from crdtkv.storage.commit_log import CommitLog, LogReader
from crdtkv.storage.durations import Durations
from crdtkv.storage.files import FileLayer, OsFiles, is_full, write_all, write_atomically
from crdtkv.storage.memory_log import FrameWindow, MemoryLog, expired
from crdtkv.storage.retention import LogPart
from crdtkv.storage.segment_index import INDEX_INTERVAL_BYTES, Indexer, Segment
from crdtkv.storage.segments import (
    HOW_TO_REPAIR,
    RECORD_OVERHEAD,
    SUFFIX,
    Damage,
    encode_header,
    encode_note,
    encode_records,
    read_header,
    room_from,
    scan_records,
    segment_name,
    synced_beyond,
)

__all__ = ["CommitLog", "FileLog", "LogReader", "MemoryLog", "Recovery"]

SEGMENT_BYTES = 64 << 20
TAIL_CACHE_BYTES = 16 << 20
RECOVERED_BYTES = 1 << 20
"""About how much of the newest frames opening takes into memory."""
ROOM_BYTES_MIN = 16 << 10
ROOM_BYTES_MAX = 256 << 10
"""How much room is made at a time: as much as the segment holds, within these bounds. It is part of the next fsync."""
SMALL_SYNC_BYTES = 64 << 10
"""Room pays where fsyncs are of at most so much: several share it."""
_HINTS_MAX = 64
_FLOOR_NAME = "FLOOR"
_FLOOR_MAGIC = b"CRDTKVF1"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a log found. `cut_bytes`, room behind them not counted, were torn off the end of `cut_file` at `cut_offset`; `reason`
    says what they were."""

    frames: int = 0
    cut_bytes: int = 0
    cut_file: str | None = None
    cut_offset: int | None = None
    reason: str | None = None


class FileLog:
    """The `CommitLog` of a directory that this process owns.

    Args:
        directory: made if it is not there; its parent must be.
        segment_bytes: about how large a file gets.
        tail_cache_bytes: about how much of the newest frames stays in memory.
        files: the file operations; tests put a failing disk here.
        wall_ms: dates the segments, for whoever decides how long they are kept; None: they are not dated.

    Raises:
        StorageError: the directory cannot be used.
        CorruptionError: a file is damaged; `details` has `path` and `offset`.
        IncompatibleFormatError: a later version of crdtkv wrote it.
    """

    recovery: Recovery

    def __init__(
        self,
        directory: Path | str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        tail_cache_bytes: int = TAIL_CACHE_BYTES,
        files: FileLayer | None = None,
        wall_ms: Callable[[], int] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._files: FileLayer = OsFiles() if files is None else files
        self._segment_bytes = segment_bytes
        self._tail_cache_bytes = tail_cache_bytes
        self._wall_ms = wall_ms if wall_ms is not None else lambda: 0
        self._lock = threading.Lock()  # guards what follows; never held over a write or sync
        self._sync_done = threading.Condition(self._lock)
        self._is_syncing = False  # someone leads: it alone syncs, and may replace `_file`
        self._noted = -1  # the end of which it was last noted that all before it is synced
        self._syncs_are_small = False
        self._room_end: int | None = None  # up to where room was asked for in the last segment; None: not since it was begun or cut
        self._failure: str | None = None
        self._is_closed = False
        self.fsyncs = Durations()
        """Of the segment that is written to, since the log was opened."""
        self._hints: OrderedDict[int, tuple[Segment, int]] = OrderedDict()  # position → where a reader stopped
        self._segments: list[Segment] = []
        try:
            self.directory.mkdir(exist_ok=True)
            self._installed = self._load_floor()
            self._recover()
        except OSError as e:
            raise self._error("open", e) from e
        # A killed process leaves frames that only the kernel has: they count as synced after the next sync.
        self._synced = self._segments[-1].first

    # -- opening ----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        names = self._files.list(self.directory)
        for name in names:
            if name.endswith(".tmp"):
                self._files.remove(self.directory / name)
        for name in sorted(name for name in names if name.endswith(SUFFIX)):
            path = self.directory / name
            file = self._files.open(path)
            try:
                header = read_header(file, path)
                size = file.size()
            finally:
                file.close()
            if self._segments:
                last = self._segments[-1]
                last.end = header.first
                if not last.before <= header.before or header.first <= last.first:
                    raise CorruptionError(f"{path} does not continue {last.path.name}", path=str(path), offset=0)
            index = [(header.first, header.records_at, header.before)]
            self._segments.append(Segment(path, header.first, header.first, size, header.begun_ms, index))
        if self._segments:
            self._recover_last(self._segments[-1])
        else:
            self.recovery = Recovery()
            self._end = 0
            self._window = FrameWindow(self._tail_cache_bytes)
            self._begin_segment(0, EMPTY_VV)

    def _recover_last(self, segment: Segment) -> None:
        """Read the last segment through, cut off what a crash tore, and fill the index from it; of each frame only what that takes is
        decoded, for there may be hundreds of thousands."""
        indexer = Indexer(segment.index)
        position, records_end = segment.first, segment.index[0][1]
        torn: Damage | None = None
        file = self._files.open(segment.path, writable=True)
        try:
            for item in scan_records(file, segment.index[0][1], segment.size):
                if isinstance(item, Damage):
                    torn = item
                    continue
                offset, data = item
                try:
                    origin, last_seq = peek(data)
                except CorruptionError as e:
                    raise self._corruption(segment, offset, e.message) from e
                indexer.add(position, offset, origin, last_seq)
                position += 1
                records_end = offset + RECORD_OVERHEAD + len(data)
            self.recovery = Recovery(frames=position - segment.first)
            if torn is not None:
                synced = synced_beyond(file, torn.offset, segment.size)
                if synced > torn.offset:
                    raise self._corruption(segment, torn.offset, f"{torn.reason}; the file was synced up to {synced}")
                cut = room_from(file, torn.offset, segment.size) - torn.offset
                if cut:
                    self.recovery = Recovery(position - segment.first, cut, str(segment.path), torn.offset, torn.reason)
                file.truncate(torn.offset)
                file.sync()  # else the torn bytes might come back, behind records that are written next
                segment.size = torn.offset
        except BaseException:
            file.close()
            raise
        if segment.size > records_end:
            self._noted = position
        segment.end = position
        segment.is_indexed = True
        self._file = file
        self._indexer = indexer
        self._end = position
        # The newest frames, which peers and watchers are about to read, wait in memory again; what is older is read when asked for.
        first, at, before = next(
            entry for entry in segment.index if segment.size - entry[1] <= RECOVERED_BYTES or entry is segment.index[-1]
        )
        self._window = FrameWindow(self._tail_cache_bytes, start=first, before=before)
        for _, offset, data in self._records(segment, first, at):
            self._window.append((self._decode(segment, offset, data),))

    def _begin_segment(self, first: int, before: VersionVector) -> None:
        """Make the next segment, complete with its header and on the disk before it gets its name, the active one."""
        path = self.directory / segment_name(first)
        temporary = path.with_name(path.name + ".tmp")
        begun_ms = self._wall_ms()
        header = encode_header(first, before, begun_ms)
        file = self._files.create(temporary)
        try:
            write_all(file, header)
            file.sync()
            try:
                self._files.rename(temporary, path)
            except OSError as e:
                if not is_full(e):  # then it was not done
                    self._failure = "beginning a segment failed half-way"
                raise
            try:
                self._files.sync_directory(self.directory)
            except BaseException:
                # The segment may be there after a crash: the one before it must not grow any more.
                self._failure = "beginning a segment failed half-way"
                raise
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                self._files.remove(temporary)
            raise
        index = [(first, len(header), before)]
        segment = Segment(path, first, first, len(header), begun_ms, index, is_indexed=True, synced=len(header))
        with self._lock:
            self._file = file
            self._indexer = Indexer(segment.index)
            self._segments.append(segment)
            self._room_end = None

    # -- errors -----------------------------------------------------------------------------------------------

    def _error(self, verb: str, error: OSError) -> StorageError:
        # Of a failed sync nothing is known, whatever the reason given.
        kind = DiskFullError if is_full(error) and self._failure is None else StorageError
        return kind(f"cannot {verb} the commit log in {self.directory}: {error.strerror or error}", path=str(self.directory))

    def _corruption(self, segment: Segment, offset: int, reason: str) -> CorruptionError:
        return CorruptionError(
            f"{segment.path} is damaged at offset {offset}: {reason}. {HOW_TO_REPAIR}",
            path=str(segment.path),
            offset=offset,
        )

    def _decode(self, segment: Segment, offset: int, data: bytes) -> Frame:
        try:
            return Frame.decode(data)
        except CorruptionError as e:
            raise self._corruption(segment, offset, e.message) from e

    def _check_usable(self) -> None:
        if self._is_closed:
            raise StoreClosedError(f"the commit log in {self.directory} is closed")
        if self._failure is not None:
            raise StorageError(
                f"the commit log in {self.directory} failed ({self._failure}) and takes no more: open the store anew",
                path=str(self.directory),
            )

    # -- writing ----------------------------------------------------------------------------------------------

    def append(self, frames: Sequence[Frame], /) -> int:
        self._check_usable()
        if not frames:
            return self._end
        segment = self._segments[-1]
        size = sum([RECORD_OVERHEAD + len(frame.data) for frame in frames])
        if segment.size + size > self._segment_bytes and segment.end > segment.first:
            self._roll()
            segment = self._segments[-1]
        data = encode_records([frame.data for frame in frames], segment.synced)
        try:
            if self._syncs_are_small:
                self._make_room(segment, len(data))
            write_all(self._file, data)
        except BaseException as e:  # a KeyboardInterrupt too leaves bytes that are no record
            self._cut_back(segment)
            if isinstance(e, OSError):
                raise self._error("append to", e) from e
            raise
        with self._lock:
            try:
                position, offset = self._end, segment.size
                for frame in frames:
                    self._indexer.add(position, offset, frame.origin, frame.last_seq)
                    position += 1
                    offset += RECORD_OVERHEAD + len(frame.data)
                self._window.append(frames)
                segment.size = offset
                segment.end = self._end = position
            except BaseException:
                self._failure = "an append was interrupted"
                raise
        return position

    def _make_room(self, segment: Segment, size: int) -> None:
        """Before so many bytes are appended: see to it that there is room for them and more."""
        if size > SMALL_SYNC_BYTES or (self._room_end is not None and segment.size + size <= self._room_end):
            return
        room = max(size, min(max(segment.size, ROOM_BYTES_MIN), ROOM_BYTES_MAX, self._segment_bytes - segment.size))
        self._room_end = segment.size + room
        try:
            self._file.reserve(room)
        except OSError as e:
            if not is_full(e):  # else the records themselves may still find a place
                raise

    def _give_room_back(self) -> None:
        if self._room_end is not None:
            self._file.truncate(self._segments[-1].size)
            self._room_end = None

    def _cut_back(self, segment: Segment) -> None:
        """Undo an append that failed half-way, for good: unsynced, a loss of power could bring back whole records of it."""
        self._room_end = None
        try:
            self._file.truncate(segment.size)
            self._file.sync()
        except OSError as e:
            self._failure = f"a failed append could not be undone: {e.strerror or e}"

    def note_synced(self) -> None:
        """See `CommitLog.note_synced`. The note itself is not synced: a loss of power takes it, or leaves it where it says the truth."""
        self._check_usable()
        segment = self._segments[-1]
        with self._lock:
            if self._noted == self._end or segment.synced < segment.size or segment.end == segment.first:
                return
        try:
            write_all(self._file, encode_note(segment.size))
        except BaseException as e:
            self._cut_back(segment)
            if isinstance(e, OSError):
                raise self._error("append to", e) from e
            raise
        with self._lock:
            self._noted = self._end
            segment.size += RECORD_OVERHEAD

    def roll(self, bytes_min: int = 0) -> None:
        """See `CommitLog.roll`."""
        self._check_usable()
        last = self._segments[-1]
        if last.end > last.first and last.size >= bytes_min:
            self._roll()

    def _roll(self) -> None:
        """Sync the full segment and begin the next. The sync first: only the last segment may end in a torn record, or in room."""
        with self._lock:
            self._lead()
        try:
            try:
                self._give_room_back()
            except OSError as e:
                raise self._error("end a segment of", e) from e
            self._sync_as_leader()
            old = self._file
            try:
                self._begin_segment(self._end, self._indexer.vv())
            except OSError as e:
                raise self._error("begin a segment of", e) from e
            old.close()
        finally:
            self._lead_no_more()

    def sync(self) -> int:
        """See `CommitLog.sync`. Concurrent callers share one fdatasync: one leads, and it covers all that was there when it began.

        The leader is a caller, in its own thread: one writer that waits for each of its writes pays for no hand-over.
        """
        with self._lock:
            if not self._lead(self._end):
                return self._synced
        try:
            self._sync_as_leader()
            return self._synced
        finally:
            self._lead_no_more()

    def _lead(self, unless_synced: int | None = None) -> bool:
        """Wait to be the leader, or until `unless_synced` is synced (then False). The caller holds the lock."""
        while True:
            self._check_usable()
            if unless_synced is not None and self._synced >= unless_synced:
                return False
            if not self._is_syncing:
                self._is_syncing = True
                return True
            self._sync_done.wait()

    def _lead_no_more(self) -> None:
        with self._lock:
            self._is_syncing = False
            self._sync_done.notify_all()

    def _sync_as_leader(self) -> None:
        with self._lock:
            target, segment = self._end, self._segments[-1]
            size = segment.size
        began = time.perf_counter()
        try:
            self._file.sync()
        except OSError as e:
            with self._lock:
                self._failure = f"fsync: {e.strerror or e}"
            raise self._error("sync", e) from e
        self.fsyncs.note(time.perf_counter() - began)
        with self._lock:
            self._synced = max(self._synced, target)
            self._syncs_are_small = size - segment.synced <= SMALL_SYNC_BYTES
            segment.synced = max(segment.synced, size)

    def synced(self) -> int:
        return self._synced

    def truncate(self, position: int, /) -> None:
        """Drop the segments that lie wholly before `position`; the last always stays."""
        with self._lock:
            self._check_usable()
            count = bisect_right(self._segments[:-1], position, key=lambda s: s.end)
            dropped = self._segments[:count]
            start = self._segments[count].first
            del self._segments[:count]
        if dropped:
            self._window.drop_before(start)
            try:
                for segment in dropped:  # oldest first: a crash in between leaves no gap
                    self._files.remove(segment.path)
                self._files.sync_directory(self.directory)
            except OSError as e:
                raise self._error("truncate", e) from e

    def reset_floor(self, origins: VersionVector) -> None:
        with self._lock:
            self._check_usable()
            installed = self._installed.join(origins)
        data = installed.to_bytes()
        try:
            write_atomically(self._files, self.directory / _FLOOR_NAME, _FLOOR_MAGIC + crc32(data).to_bytes(4, "little") + data)
        except OSError as e:
            raise self._error("raise the floor of", e) from e
        with self._lock:
            self._installed = installed

    def _load_floor(self) -> VersionVector:
        if _FLOOR_NAME not in self._files.list(self.directory):
            return EMPTY_VV
        path = self.directory / _FLOOR_NAME
        file = self._files.open(path)
        try:
            data = file.read_at(0, file.size())
        finally:
            file.close()
        head, body = data[: len(_FLOOR_MAGIC) + 4], data[len(_FLOOR_MAGIC) + 4 :]
        if head != _FLOOR_MAGIC + crc32(body).to_bytes(4, "little"):
            raise CorruptionError(f"{path} is damaged at offset 0: checksum mismatch", path=str(path), offset=0)
        return VersionVector.from_bytes(body)

    def close(self) -> None:
        """Wait for a sync that is under way, then close. What was not synced is not synced by this."""
        with self._lock:
            while self._is_syncing:
                self._sync_done.wait()
            if self._is_closed:
                return
            self._is_closed = True
            self._sync_done.notify_all()
        if self._failure is None:
            with contextlib.suppress(OSError):  # whoever opens it next cuts it
                self._give_room_back()
        self._file.close()

    # -- reading ----------------------------------------------------------------------------------------------

    def end(self) -> int:
        return self._end

    def at_hand(self) -> int:
        return max(self.start(), self._window.start())

    def start(self) -> int:
        return self._segments[0].first

    def floor(self) -> VersionVector:
        return self._segments[0].before.join(self._installed)

    def vv(self) -> VersionVector:
        with self._lock:
            return self._indexer.vv()

    def retained_bytes(self) -> int:
        with self._lock:
            return sum(segment.size for segment in self._segments)

    def parts(self) -> Sequence[LogPart]:
        with self._lock:
            following = zip(self._segments, self._segments[1:], strict=False)
            return [LogPart(segment.end, after.before, segment.size, after.begun_ms) for segment, after in following]

    def begun_ms(self) -> int | None:
        with self._lock:
            last = self._segments[-1]
            return last.begun_ms if last.end > last.first else None

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int]:
        got = self._window.read(position, bytes_max=bytes_max, until=until)
        if got is not None and position >= self.start():
            return got
        frames: list[Frame] = []
        size = 0
        with self._lock:
            self._check_usable()
            segment = self._segment_of(position)
            stop = min(segment.end, self._end if until is None else until)
            hint = self._hints.pop(position, None)
            known, known_at, _ = self._entry(segment, key=lambda entry: entry[0] > position)
        if hint is not None and hint[0] is segment:
            known, known_at = position, hint[1]
        next_at = known_at
        for at, offset, data in self._records(segment, known, known_at, read_bytes=max(4096, bytes_max + RECORD_OVERHEAD)):
            if at >= position:
                if at >= stop or (frames and size + len(data) > bytes_max):
                    break
                frames.append(self._decode(segment, offset, data))
                size += len(data)
            next_at = offset + RECORD_OVERHEAD + len(data)
        position += len(frames)
        with self._lock:
            self._hints[position] = (segment, next_at)
            while len(self._hints) > _HINTS_MAX:
                self._hints.popitem(last=False)
        return frames, position

    def position_after(self, vv: VersionVector) -> int:
        position = self._window.position_after(vv)
        with self._lock:
            if position is not None:  # a block of the window may begin before the log does
                return max(position, self._segments[0].first)
            at = bisect_right(self._segments, False, key=lambda s: not s.before <= vv)
            if at == 0:
                return self._segments[0].first
            segment = self._segments[at - 1]
            return self._entry(segment, key=lambda entry: not entry[2] <= vv)[0]

    def find(self, origin: Origin, seq: int) -> Frame | None:
        window = self._window
        if self._segments[0].before.seq(origin) >= seq:
            return None
        if window.before().seq(origin) < seq:
            return window.find(origin, seq)
        with self._lock:
            self._check_usable()
            at = bisect_right(self._segments, False, key=lambda s: s.before.seq(origin) >= seq)
            if at == 0:
                return None
            segment = self._segments[at - 1]
        self._index(segment)
        known, known_at, _ = self._entry(segment, key=lambda entry: entry[2].seq(origin) >= seq)
        for _, offset, data in self._records(segment, known, known_at, read_bytes=INDEX_INTERVAL_BYTES):
            frame = self._decode(segment, offset, data)
            if frame.origin == origin and frame.last_seq >= seq:
                return frame if frame.first_seq <= seq else None
        return None

    def _segment_of(self, position: int) -> Segment:
        """The segment that holds a position before the end."""
        at = bisect_right(self._segments, position, key=lambda s: s.first)
        if at == 0:
            raise expired(position, self._segments[0].first)
        return self._segments[at - 1]

    @staticmethod
    def _entry(segment: Segment, key: Callable[[tuple[int, int, VersionVector]], bool]) -> tuple[int, int, VersionVector]:
        """The last index entry for which `key` is false (it is for a prefix of them, the first at least)."""
        index = segment.index
        return index[max(0, bisect_right(index, False, key=key) - 1)]

    def _index(self, segment: Segment) -> None:
        """Read a segment through once to index and verify it."""
        with segment.lock:
            if segment.is_indexed:
                return
            index = [segment.index[0]]
            indexer = Indexer(index)
            for position, offset, data in self._records(segment, segment.first, index[0][1]):
                frame = self._decode(segment, offset, data)
                indexer.add(position, offset, frame.origin, frame.last_seq)
            segment.index = index
            segment.is_indexed = True

    def _records(self, segment: Segment, position: int, offset: int, *, read_bytes: int = 1 << 20) -> Iterator[tuple[int, int, bytes]]:
        """The records of a segment from one of known position and offset on, verified; each as position, offset, frame's bytes."""
        with self._lock:
            size, end = segment.size, segment.end
        try:
            file = self._files.open(segment.path)
        except FileNotFoundError as e:
            if segment not in self._segments:
                raise expired(position, self.start()) from e
            raise self._error("read", e) from e
        except OSError as e:
            raise self._error("read", e) from e
        try:
            for item in scan_records(file, offset, size, read_bytes=read_bytes):
                if isinstance(item, Damage):
                    raise self._corruption(segment, item.offset, item.reason)
                yield position, *item
                position += 1
        except OSError as e:
            raise self._error("read", e) from e
        finally:
            file.close()
        if position != end:
            raise self._corruption(segment, size, f"it ends at position {position}, not {end}")

    def _check(self) -> None:
        """Assert every invariant."""
        self._window._check()
        with self._lock:
            assert self._segments and self._synced <= self._end == self._segments[-1].end == self._window.end()
            for left, right in zip(self._segments, self._segments[1:], strict=False):
                assert left.end == right.first and left.before <= right.before
            for segment in self._segments:
                assert segment.index == sorted(segment.index, key=lambda e: e[:2])
                assert all(a[2] <= b[2] for a, b in zip(segment.index, segment.index[1:], strict=False))
