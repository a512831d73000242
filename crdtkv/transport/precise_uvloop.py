"""uvloop with timers of microseconds: they are kept here and served by one `timerfd`, which the loop watches like a socket.

libuv's own timers, and its clock, count whole milliseconds. For who measures or emulates time that is too coarse, and asyncio's own loop,
whose timers can be made precise, takes half as much CPU again for each message: a load generator on the same cores would show as lag.

Linux only; importing it without uvloop is an ImportError.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable
from contextvars import Context
from typing import Final, TypeVarTuple, Unpack

import uvloop

Ts = TypeVarTuple("Ts")
_CLOCK_MONOTONIC: Final = 1
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE: Final = 1
_DROP_MIN: Final = 100
"""Timers that were cancelled are dropped when they are so many, and more than half."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """`struct itimerspec`: an interval, which stays 0, and when to end."""

    _fields_ = (("every_s", ctypes.c_long), ("every_ns", ctypes.c_long), ("at_s", ctypes.c_long), ("at_ns", ctypes.c_long))


class PreciseLoop(uvloop.Loop):
    """A uvloop whose `call_later`, `call_at` and `time`, and so `asyncio.sleep`, have the resolution of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._armed_at = float("inf")
        self._spec = _Spec(0, 0, 0, 0)
        self._timer_fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._timer_fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self.add_reader(self._timer_fd, self._fire)

    def time(self) -> float:
        return time.monotonic()

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(time.monotonic() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._heap, (when, next(self._numbers), handle))
        if when < self._armed_at:
            self._arm(when)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A handle says so when it is cancelled."""
        self._cancelled += 1
        if self._cancelled > _DROP_MIN and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled()]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _arm(self, when: float) -> None:
        self._armed_at = when
        spec = self._spec
        spec.at_s, spec.at_ns = divmod(max(1, int(when * 1e9)), 1_000_000_000)  # all zeros would disarm it
        if _libc.timerfd_settime(self._timer_fd, _ABSOLUTE, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _fire(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was armed anew meanwhile
            os.read(self._timer_fd, 8)
        self._armed_at = float("inf")
        now, due = time.monotonic(), []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for handle in due:
            if handle.cancelled():
                self._cancelled = max(0, self._cancelled - 1)
            else:
                handle._run()
        if self._heap and self._heap[0][0] < self._armed_at:
            self._arm(self._heap[0][0])

    def close(self) -> None:
        if self._timer_fd >= 0 and not self.is_closed():
            self.remove_reader(self._timer_fd)
            os.close(self._timer_fd)
            self._timer_fd = -1
        super().close()
