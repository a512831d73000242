"""Frames that came before what they rest on: kept within a bound, each looked at once for each origin that it waits for.

A held frame stands under the first thing that it waits for, in a heap per origin; when that is applied it is looked at again, and
stands under the next, or is ready. So waking costs nothing for what still waits, however much is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.frame import Frame


class Held:
    """The held frames of one replica, by their place `(origin, first_seq)`.

    Args:
        applied: what is applied of each origin; followed, never changed.
        is_beyond: whether a frame goes beyond what is taken of its origin: then it waits for nothing that is applied.
        frames_max, bytes_max: what may be held.
    """

    __slots__ = ("_applied", "_bytes_max", "_frames", "_frames_max", "_is_beyond", "_surfaced", "_waiting", "count", "size_bytes")

    def __init__(self, applied: Mapping[Origin, int], is_beyond: Callable[[Frame], bool], frames_max: int, bytes_max: int) -> None:
        self._applied = applied
        self._is_beyond = is_beyond
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self.clear()

    def clear(self) -> None:
        """Hold nothing any more."""
        self.count = 0
        self.size_bytes = 0
        self._frames: dict[Origin, dict[int, Frame]] = {}
        self._waiting: dict[Origin, list[tuple[int, Origin, int]]] = {}
        """Per origin a heap of `(seq, *place)`: the held frame there waits for that seq. One that is gone by then is passed over."""
        self._surfaced: list[tuple[Origin, int]] = []
        """A heap of the places of held frames that wait for nothing any more."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        for frames in list(self._frames.values()):
            yield from list(frames.values())

    def add(self, frame: Frame) -> bool:
        """Hold a frame, if it is not held already; False: the bound is reached."""
        frames = self._frames.get(frame.origin, {})
        if frame.first_seq in frames:
            return True
        if self.count >= self._frames_max or self.size_bytes + frame.size > self._bytes_max:
            return False
        frames[frame.first_seq] = frame
        self._frames[frame.origin] = frames
        self.count += 1
        self.size_bytes += frame.size
        self._list(frame)
        return True

    @property
    def has_ready(self) -> bool:
        """Whether one may be ready. (It may be gone by now.)"""
        return bool(self._surfaced)

    def look_at(self, origin: Origin) -> None:
        """More is taken of an origin than before: what is held of it may be ready."""
        for frame in self._frames.get(origin, {}).values():
            self._list(frame)

    def wake(self, origin: Origin) -> None:
        """Look at the held frames that waited for what is applied of an origin by now."""
        waiting, done = self._waiting.get(origin), self._applied.get(origin, 0)
        while waiting and waiting[0][0] <= done:
            _, waiter, first = heappop(waiting)
            frame = self._frames.get(waiter, {}).get(first)
            if frame is not None:
                self._list(frame)
        if waiting is not None and not waiting:
            del self._waiting[origin]

    def ready(self) -> Iterator[Frame]:
        """The frames that are ready now, the least origin's first, none of them held any more. Each must be applied before the next."""
        for origin in list(self._waiting):
            self.wake(origin)
        while self._surfaced:
            origin, first = heappop(self._surfaced)
            frame = self._frames.get(origin, {}).get(first)
            if frame is not None and not self._is_beyond(frame):  # a limit may have gone down since it was listed
                self._release(origin, first)
                yield frame
                self.wake(origin)

    def drop(self, origin: Origin) -> None:
        """Hold nothing of an origin any more."""
        for first in list(self._frames.get(origin, ())):
            self._release(origin, first)

    def drop_covered(self, origin: Origin, first_seq: int, last_seq: int) -> None:
        """Hold no longer what begins within commits that were applied by another way. O(the lesser of those and the held)."""
        frames = self._frames.get(origin)
        if frames:
            within = range(first_seq, last_seq + 1)
            for first in [n for n in within if n in frames] if len(within) < len(frames) else [n for n in frames if n in within]:
                self._release(origin, first)

    def needs(self) -> VersionVector:
        """What the held frames wait for and is not applied."""
        needs: dict[Origin, int] = {}
        for frame in self:
            wanted = dict(frame.context.items())
            wanted[frame.origin] = frame.first_seq - 1
            for origin, seq in wanted.items():
                if seq > self._applied.get(origin, 0):
                    needs[origin] = max(seq, needs.get(origin, 0))
        return VersionVector.adopt(needs)

    def _list(self, frame: Frame) -> None:
        """List a held frame under the first thing that it waits for, or as ready; nowhere while it is beyond a limit."""
        applied = self._applied
        if self._is_beyond(frame):
            return
        if frame.first_seq > applied.get(frame.origin, 0) + 1:
            self._list_under(frame.origin, frame.first_seq - 1, frame)
            return
        for origin, seq in frame.context.items():
            if applied.get(origin, 0) < seq:
                self._list_under(origin, seq, frame)
                return
        heappush(self._surfaced, (frame.origin, frame.first_seq))

    def _list_under(self, origin: Origin, seq: int, frame: Frame) -> None:
        heappush(self._waiting.setdefault(origin, []), (seq, frame.origin, frame.first_seq))

    def _release(self, origin: Origin, first_seq: int) -> Frame | None:
        """Hold a frame no longer; None if it is not held."""
        frames = self._frames.get(origin)
        frame = None if frames is None else frames.pop(first_seq, None)
        if frames is None or frame is None:
            return None
        self.count -= 1
        self.size_bytes -= frame.size
        if not frames:
            del self._frames[origin]
        return frame
