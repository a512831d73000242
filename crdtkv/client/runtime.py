"""The event loop behind sync clients: one background thread for all clients of a process, while there are any.

gRPC's asyncio machinery wants one loop per process, and a thread per client would only add hand-overs of the GIL. The
thread starts with the first client and ends with the last. A child process made by fork has no such thread: everything that
belonged to the parent refuses there.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

from crdtkv.errors import StoreClosedError
from crdtkv.transport.loop import new_event_loop

T = TypeVar("T")
END_S: Final = 0.8
"""How long the tasks of clients that were not closed may take when the interpreter ends."""


class _Runtime:
    """The shared loop. `generation` counts forks, so that what a parent made is told apart from what the child makes."""

    def __init__(self) -> None:
        self.generation = 0
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> asyncio.AbstractEventLoop:
        """The loop, running; give it back with `release`."""
        with self._lock:
            if self._loop is None:
                self._loop, self._runs = new_event_loop(), threading.Event()
                self._loop.call_soon(self._runs.set)
                self._thread = threading.Thread(target=self._main, args=(self._loop,), name="crdtkv-client", daemon=True)
                self._thread.start()
            self._users += 1
            loop, runs = self._loop, self._runs
        try:
            runs.wait()  # a thread has begun before its loop has
        except BaseException:
            self.release()
            raise
        return loop

    def release(self) -> None:
        """One user fewer; the last one stops the thread."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    @staticmethod
    def _main(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            with contextlib.suppress(Exception):
                loop.run_until_complete(_end(asyncio.all_tasks(loop)))
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def stop_at_exit(self) -> None:
        """A loop that still runs when the interpreter ends would meet torn-down modules."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            self._users = 0
        if loop is not None and thread is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(loop.stop)
            thread.join(1.0)

    def forget(self) -> None:
        """In the child of a fork: the thread is not there, and the lock may be held by one that is not."""
        self.generation += 1
        self._lock = threading.Lock()
        self._users = 0
        self._loop = self._thread = None


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and give it the time to close its channel: a client that nobody closed ends silently."""
    until = time.monotonic() + END_S
    while tasks and time.monotonic() < until:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=0.1)


runtime = _Runtime()
os.register_at_fork(after_in_child=runtime.forget)
atexit.register(runtime.stop_at_exit)


def run(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background loop and wait for it; an interrupt here cancels it there."""
    if not loop.is_running():
        coroutine.close()
        raise StoreClosedError("the client is closed: connect again with crdtkv.connect(…)")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except CancelledError:
        raise StoreClosedError("the client was closed while the call was under way") from None
    except BaseException:
        future.cancel()
        raise
