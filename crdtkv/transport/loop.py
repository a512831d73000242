"""Event loops: which kind, and the one in the background that everything in a process shares.

`new_event_loop` is uvloop's where that is installed (its round trip of one message over gRPC is a third shorter), else
asyncio's own. `precise_event_loop`, for whoever measures or emulates time, is uvloop with timers of its own
(`precise_uvloop`), else asyncio's own with a selector that counts microseconds.

Ctrl-C while a loop is being built waits until it is built (`_built_whole`): half a loop cannot be closed.

grpc.aio has one completion queue and one poller thread per process; each further event loop costs a hop through another
loop per event, and closing one leaves events behind for it. So embedded nodes and synchronous clients run in one
daemon thread that lives as long as the process. After a fork the child starts a thread of its own; what belonged to the
parent's loop is lost to it, as gRPC itself is.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner_pid = 0


def _built_whole(build: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """What `build` returns; SIGINT meanwhile takes effect afterwards.

    Python handles signals in the main thread only, so elsewhere there is nothing to hold. A mask of the main thread alone would
    not do: another thread (gRPC has some) then takes the signal, and the main one handles it all the same.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        return build()  # None: not Python handles it but who embeds Python
    held: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        loop = build()
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):
        try:
            before(*held[0])
        except BaseException:
            loop.close()
            raise
    return loop


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of the fastest kind that is installed; for `asyncio.Runner(loop_factory=…)`."""
    try:
        import uvloop
    except ImportError:
        return _built_whole(asyncio.new_event_loop)
    return _built_whole(uvloop.new_event_loop)


if sys.platform == "linux":

    class _PreciseSelector(selectors.EpollSelector):
        """`epoll` counts whole milliseconds, `select` microseconds, and an epoll instance can itself be waited for."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select((self.fileno(),), (), (), timeout)
                timeout = 0
            return super().select(timeout)

else:
    _PreciseSelector = selectors.DefaultSelector


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose sleeps end within some 0.1 ms. Those on epoll, uvloop's too, round to whole
    milliseconds, which would count as lag."""
    if sys.platform == "linux":
        try:
            from crdtkv.transport.precise_uvloop import PreciseLoop
        except ImportError:
            pass
        else:
            return _built_whole(PreciseLoop)
    return _built_whole(lambda: asyncio.SelectorEventLoop(_PreciseSelector()))


def background_loop() -> asyncio.AbstractEventLoop:
    """The shared loop, running; started at the first call."""
    global _loop, _owner_pid
    with _lock:
        if _loop is None or _owner_pid != os.getpid():
            _owner_pid = os.getpid()
            _loop = new_event_loop()
            started = threading.Event()
            _loop.call_soon(started.set)
            threading.Thread(target=_loop.run_forever, name="crdtkv-loop", daemon=True).start()
            started.wait()
        return _loop
