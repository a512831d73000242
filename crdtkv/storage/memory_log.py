"""A bounded window of the newest frames in memory: the log of a store without a directory, and the tail of one with.

The append is on the path of every embedded put, so it only extends a list and counts bytes. Frames are Python objects that
the garbage collector must walk; a hundred thousand of them would make each full collection a pause. So only the newest
frames, which live replication is reading, stay objects (*hot*). Older ones are *sealed* in blocks, as their bytes only, which
the collector passes over in one step; a frame read from a block is decoded again. Each block knows the version vector of all
frames before it; that makes the floor, the search for a position and the search for a commit a bisection over blocks. Whole
blocks are dropped from the front when the window exceeds its bytes.

Version vectors here say what the *log* holds: origin → last seq of its newest frame before a position. Seqs of an origin
only increase along the log, with a jump where a snapshot was installed.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import attrgetter

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import TokenExpiredError
from crdtkv.storage.retention import LogPart

HOT_FRAMES_MAX = 1024
HOT_BYTES_MAX = 4 << 20
MEMORY_LOG_BYTES_MAX = 64 << 20

_data_of = attrgetter("data")
_dot_of = attrgetter("origin", "last_seq")


class _Block:
    """Sealed frames: the bytes of each, and the version vector of the log before them."""

    __slots__ = ("before", "datas", "first", "size")

    def __init__(self, first: int, before: VersionVector, datas: list[bytes]) -> None:
        self.first = first
        self.before = before
        self.datas = datas
        self.size = sum(map(len, datas))


class _Hot:
    """The newest frames, as objects: the appender extends `frames` in place; sealing puts another `_Hot` in its place."""

    __slots__ = ("before", "first", "frames")

    def __init__(self, first: int, before: VersionVector, frames: list[Frame]) -> None:
        self.first = first
        self.before = before
        self.frames = frames


class FrameWindow:
    """The newest frames of a log, up to `bytes_max` (and always the hot ones). One appender at a time; readers of any thread.

    Args:
        bytes_max: what is kept, in bytes of frames.
        start: the position of the first frame to be appended.
        before: the version vector of the log before it.
    """

    def __init__(self, bytes_max: int, *, start: int = 0, before: VersionVector = EMPTY_VV) -> None:
        self._lock = threading.Lock()  # guards `_blocks`, and that they end where `_hot` begins
        self._bytes_max = bytes_max
        self._hot_bytes_max = max(1, min(HOT_BYTES_MAX, bytes_max // 4))
        self._blocks: list[_Block] = []  # in log order, without a gap
        self._block_bytes = 0
        self._hot = _Hot(start, before, [])
        self._hot_bytes = 0  # the appender's own

    def append(self, frames: Sequence[Frame], /) -> int:
        """Add frames at the end and drop old ones beyond the bound; returns the end. Amortised O(1) per frame.

        Takes no lock: extending a list is atomic, and whoever reads takes a slice of what is there.
        """
        hot = self._hot
        kept = hot.frames
        kept.extend(frames)
        size = self._hot_bytes
        for frame in frames:
            size += frame.size
        self._hot_bytes = size
        count = len(kept)
        if count >= HOT_FRAMES_MAX or size >= self._hot_bytes_max:
            self._seal()
        return hot.first + count

    def _seal(self) -> None:
        """Turn the older hot frames into blocks until at most half of what is allowed is hot, then drop blocks."""
        hot = self._hot
        first, before, frames = hot.first, hot.before, hot.frames
        sealed = []
        while len(frames) > 1 and (len(frames) > HOT_FRAMES_MAX // 2 or self._hot_bytes > self._hot_bytes_max // 2):
            count = min(len(frames) - 1, HOT_FRAMES_MAX // 2)
            if self._hot_bytes > self._hot_bytes_max // 2:  # large frames make small blocks
                sizes = accumulate(frame.size for frame in frames[:count])
                count = next((n for n, size in enumerate(sizes, 1) if size >= self._hot_bytes_max // 2), count)
            old, frames = frames[:count], frames[count:]
            block = _Block(first, before, list(map(_data_of, old)))
            sealed.append(block)
            first += count
            before = before.join(VersionVector.adopt(dict(map(_dot_of, old))))  # of each origin's dots the last stays
            self._hot_bytes -= block.size
        with self._lock:
            self._blocks += sealed
            self._block_bytes += sum(block.size for block in sealed)
            self._hot = _Hot(first, before, frames)
            while self._blocks and self._block_bytes + self._hot_bytes > self._bytes_max:
                self._block_bytes -= self._blocks.pop(0).size

    def drop_before(self, position: int, /) -> None:
        """Drop the blocks that lie wholly before `position`."""
        with self._lock:
            while self._blocks and self._blocks[0].first + len(self._blocks[0].datas) <= position:
                self._block_bytes -= self._blocks.pop(0).size

    def start(self) -> int:
        """The first position in the window."""
        with self._lock:
            return (self._blocks[0] if self._blocks else self._hot).first

    def end(self) -> int:
        """The position after the newest frame."""
        hot = self._hot
        return hot.first + len(hot.frames)

    def before(self) -> VersionVector:
        """The version vector of the log before `start()`."""
        with self._lock:
            return (self._blocks[0] if self._blocks else self._hot).before

    def vv(self) -> VersionVector:
        """The version vector of the log after its newest frame. O(hot frames)."""
        hot = self._hot
        return hot.before.join(VersionVector.adopt(dict(map(_dot_of, hot.frames[:]))))

    def size_bytes(self) -> int:
        """Bytes of the frames in the window."""
        return self._block_bytes + self._hot_bytes

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int] | None:
        """Frames from `position` on and the position after them; None if the window starts later than `position`."""
        frames: list[Frame] = []
        datas: list[bytes] = []
        size = 0
        with self._lock:
            hot = self._hot
            stop = hot.first + len(hot.frames) if until is None else min(until, hot.first + len(hot.frames))
            if position >= stop:
                return [], position
            if position < hot.first:
                index = bisect_right(self._blocks, position, key=lambda block: block.first) - 1
                if index < 0:
                    return None
                block = self._blocks[index]
                datas = block.datas[position - block.first : stop - block.first]
        if datas:
            for data in datas:
                if frames and size + len(data) > bytes_max:
                    break
                frames.append(Frame.decode(data))
                size += len(data)
        else:
            for frame in hot.frames[position - hot.first : stop - hot.first]:
                if frames and size + frame.size > bytes_max:
                    break
                frames.append(frame)
                size += frame.size
        return frames, position + len(frames)

    def position_after(self, vv: VersionVector) -> int | None:
        """A position in the window before which `vv` covers all: exact among the hot frames, else the beginning of a block.

        None if it does not cover what was before the window. O(log blocks + hot frames).
        """
        with self._lock:
            hot = self._hot
            if not hot.before <= vv:
                # `before` grows from block to block, so those whose `before` is covered come first.
                index = bisect_right(self._blocks, False, key=lambda block: not block.before <= vv) - 1
                return self._blocks[index].first if index >= 0 else None
        position = hot.first
        for frame in hot.frames[:]:
            if frame.last_seq > vv.seq(frame.origin):
                break
            position += 1
        return position

    def find(self, origin: Origin, seq: int) -> Frame | None:
        """The frame in the window that holds the commit. O(log blocks + frames of one block)."""
        candidates: Iterable[Frame]
        with self._lock:
            hot = self._hot
            if hot.before.seq(origin) < seq:
                candidates = hot.frames[:]
            else:
                index = bisect_right(self._blocks, False, key=lambda block: block.before.seq(origin) >= seq) - 1
                candidates = map(Frame.decode, self._blocks[index].datas) if index >= 0 else ()
        for frame in candidates:
            if frame.origin == origin and frame.last_seq >= seq:
                return frame if frame.first_seq <= seq else None
        return None

    def _check(self) -> None:
        """Assert every invariant, while nobody appends."""
        with self._lock:
            hot = self._hot
            position, seqs = (self._blocks[0] if self._blocks else hot).first, dict[Origin, int]()
            for block in self._blocks:
                assert block.first == position and block.datas and block.size == sum(map(len, block.datas))
                assert VersionVector(seqs) <= block.before
                seqs.update((frame.origin, frame.last_seq) for frame in map(Frame.decode, block.datas))
                position += len(block.datas)
            assert position == hot.first and VersionVector(seqs) <= hot.before
            assert self._block_bytes == sum(block.size for block in self._blocks)
            assert self._hot_bytes == sum(frame.size for frame in hot.frames)


class MemoryLog:
    """A `CommitLog` without a disk: what falls out of `bytes_max` is gone, and the floor says so. Thread-safe."""

    def __init__(self, bytes_max: int = MEMORY_LOG_BYTES_MAX) -> None:
        self._window = window = FrameWindow(bytes_max)
        self._installed = EMPTY_VV
        # The log of an embedded store in memory adds nothing to these; bound here, a put saves a call.
        self.append = window.append
        self.end = self.sync = self.synced = window.end
        self.start = self.at_hand = window.start
        self.find = window.find
        self.vv = window.vv
        self.truncate = window.drop_before
        self.retained_bytes = window.size_bytes

    def floor(self) -> VersionVector:
        """Per origin: from after this seq on its frames are all here."""
        return self._window.before().join(self._installed)

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int]:
        """Frames from `position` on; see `LogReader.read`."""
        got = self._window.read(position, bytes_max=bytes_max, until=until)
        if got is None:
            raise expired(position, self._window.start())
        return got

    def position_after(self, vv: VersionVector) -> int:
        """See `LogReader.position_after`."""
        position = self._window.position_after(vv)
        return self._window.start() if position is None else position

    def reset_floor(self, origins: VersionVector) -> None:
        """Raise the floor of these origins: their commits up to there came by a snapshot."""
        self._installed = self._installed.join(origins)

    def parts(self) -> Sequence[LogPart]:
        """None: it drops by itself what exceeds its bytes."""
        return ()

    def begun_ms(self) -> None:
        """Nothing has to be ended."""

    def roll(self, bytes_min: int = 0) -> None:
        """Nothing to do."""

    def note_synced(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to let go of."""


def expired(position: int, start: int) -> TokenExpiredError:
    """The error for reading below a log's start."""
    return TokenExpiredError(
        f"log position {position} is no longer kept: the log starts at {start}; catch up from a snapshot of the present state",
        position=position,
        start=start,
    )
