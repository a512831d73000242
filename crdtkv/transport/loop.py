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
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from crdtkv import interrupts

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner_pid = 0


def _built_whole(build: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """What `build` returns; Ctrl-C meanwhile takes effect afterwards."""
    loop: asyncio.AbstractEventLoop | None = None
    try:
        with interrupts.held():
            loop = build()
    except BaseException:
        if loop is not None:
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


async def give_way() -> None:
    """Let what is ready, and what that makes ready, go first.

    For a reader that has handed on a message: to ask gRPC for the next costs some 50 µs, in which the answer, or the next request, would
    wait. Asked for a moment later, the next message has waited in gRPC, and nobody else has.
    """
    await asyncio.sleep(0)
    await asyncio.sleep(0)


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


def run(main: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop) -> T:
    """Run a coroutine in a loop of its own, as `asyncio.run` does. Ctrl-C or its like cancels it, once, and strikes nowhere else.

    Raises:
        KeyboardInterrupt: one came, be it before or after; the coroutine has ended and the loop is closed.
    """

    async def cancellable() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancelled = False

        def cancel(_: int) -> None:
            nonlocal cancelled
            if not cancelled:  # who presses twice must not break off what the first one began
                cancelled = True
                loop.call_soon_threadsafe(task.cancel)

        with signals.told(cancel):
            return await main

    try:
        with interrupts.noted(*interrupts.ENDED_BY) as signals, asyncio.Runner(loop_factory=loop_factory) as runner:
            try:
                result = runner.run(cancellable())
            except asyncio.CancelledError:
                signals.check()
                raise
    finally:
        main.close()  # never awaited, if there was no loop to be had
    signals.check()
    return result


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
