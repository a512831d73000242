"""Ctrl-C and its kin: when a signal takes effect.

Python's own handler raises `KeyboardInterrupt` between any two instructions: in a half-built event loop, between a directory's making
and the `try` that removes it, in a lock that is never given back, in a finalizer, where it is printed and lost. Nothing can be written
that is safe against that. So where there is something to clean up, signals are *noted* and act at places of our choosing; and where
there is nothing, the process ends at once:

- `end_at_once_on_ctrl_c`: what a command line does first. Ctrl-C is exit status 130 and no more, during imports, in a client's call, in a
  simulated run, while the interpreter ends.
- `held`: a block that has something to clean up. In it Ctrl-C is noted, and so are its kin that would kill the process on the spot
  (`ENDED_BY`); `check`, `wait_readable` and `transport.loop.run` raise `KeyboardInterrupt` for it, and so does the end of the block. A
  second one cannot disturb the cleaning up.
- `noted`: a block that reacts to signals itself, as a server does.

Programs that use the library have handlers of their own: only what Python or the above have set up is replaced, and only within a block.
Signal handlers run in the main thread; in others, all of this does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

_POLL_MS: Final = 100
ENDED_BY: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end: someone at the keyboard, a service manager or `timeout`, a terminal that is closed."""


class Signals:
    """What a block of `noted` has received, in order."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._untold: list[int] = []
        self._callback: Callable[[int], object] | None = None

    @contextlib.contextmanager
    def told(self, callback: Callable[[int], object]) -> Iterator[None]:
        """Call back for every signal, those included that came before; between any two instructions of the main thread, and so only with
        what stands that, such as `call_soon_threadsafe`."""
        self._callback = callback
        self._tell()
        try:
            yield
        finally:
            self._callback = None

    def check(self) -> None:
        """Raise `KeyboardInterrupt`, with the signal's number, if one of `ENDED_BY` was received."""
        for number in self.received:
            if number in ENDED_BY:
                raise KeyboardInterrupt(number)

    def _note(self, number: int, _: Any) -> None:
        self.received.append(number)
        self._untold.append(number)
        self._tell()

    def _tell(self) -> None:
        while self._callback is not None and self._untold:
            self._callback(self._untold.pop(0))


_current: Signals | None = None


@contextlib.contextmanager
def noted(*numbers: int) -> Iterator[Signals]:
    """Note these signals for the length of the block. Within another such block, that one goes on and its notes are given.

    A signal that is ignored, as under `nohup`, or that the program handles itself, is left alone.
    """
    global _current
    if not _is_main_thread():
        yield Signals()
        return
    if _current is not None:
        yield _current
        return
    signals = Signals()
    before: dict[int, Any] = {}
    try:
        for number in sorted(numbers, key=lambda n: n != signal.SIGINT):  # it first, as from then on nothing is raised here
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _end_at_once):
                before[number] = signal.signal(number, signals._note)
        _current = signals
        yield signals
    finally:
        _current = None
        for number, handler in reversed(before.items()):
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Ctrl-C and its kin are noted in this block. At its end, if it is not within another, one that came is raised.

    Raises:
        KeyboardInterrupt: one came, and no other error is under way.
    """
    outermost = _current is None
    with noted(*ENDED_BY) as signals:
        yield
    if outermost:
        signals.check()


def check() -> None:
    """Raise the Ctrl-C, or its like, that a block around has noted: for long work in between."""
    if _current is not None and _current.received and _is_main_thread():
        _current.check()


def wait_readable(descriptor: int) -> None:
    """Wait until there is something to be read, or its end, at a pipe or socket.

    Raises:
        KeyboardInterrupt: a block around has noted Ctrl-C.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    check()
    while not poll.poll(_POLL_MS):
        check()


def end_at_once_on_ctrl_c() -> None:
    """Have Ctrl-C end this process with status 130, wherever it is, unless a block says otherwise. For command lines, first of all."""
    if _is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
        atexit.register(_too_late)  # the first to register is the last to be called


def _end_at_once(number: int, _: Any) -> None:
    os._exit(128 + number)


def _too_late() -> None:
    """The interpreter takes itself apart, with handlers that are Python's no more: the status is what it is."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
