"""`crdtkv.transport.loop`: Ctrl-C while an event loop is being built."""

from __future__ import annotations

import asyncio
import selectors
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from crdtkv.transport import loop as loops


@pytest.mark.parametrize("factory", [loops.precise_event_loop, loops.new_event_loop])
def test_an_interrupt_waits_until_the_loop_is_whole(
    factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once struck in the middle, and then the garbage collector closed half a loop: "Exception ignored in __del__"."""
    reached: list[str] = []

    def interrupted_selector(*_: object) -> selectors.BaseSelector:
        signal.raise_signal(signal.SIGINT)
        reached.append("after")
        return selectors.DefaultSelector()

    monkeypatch.setattr(loops, "_PreciseSelector", interrupted_selector)
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: asyncio.SelectorEventLoop(interrupted_selector()))
    for module in ("uvloop", "crdtkv.transport.precise_uvloop"):  # so that asyncio's own is built
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KeyboardInterrupt):
        factory()
    assert reached == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loop_is_built_in_another_thread_as_well() -> None:
    built: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: built.append(loops.new_event_loop()))
    thread.start()
    thread.join()
    assert len(built) == 1
    built[0].close()
