"""`transport.loop.precise_event_loop`: the timers are asyncio's in all but their resolution, whichever loop has them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from crdtkv.transport.loop import _PreciseSelector, precise_event_loop

precise_uvloop = pytest.importorskip("crdtkv.transport.precise_uvloop") if os.name == "posix" else None


def _on_selector() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(_PreciseSelector())


@pytest.fixture(params=[precise_event_loop, _on_selector], ids=["precise", "selector"])
def loop(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


def test_it_is_uvloop_where_that_is_installed() -> None:
    loop = precise_event_loop()
    assert precise_uvloop is not None and isinstance(loop, precise_uvloop.PreciseLoop)
    loop.close()
    loop.close()  # as of any loop, again does nothing
    assert loop.is_closed()


def test_its_clock_is_the_monotonic_one_and_goes_on_within_a_millisecond(loop: Any) -> None:
    before = time.monotonic()
    assert before <= loop.time() <= time.monotonic()
    times = set()
    while len(times) < 50:  # a clock of whole milliseconds would need 50 of them, and not give fractions of one
        times.add(loop.time())
    assert any(round(at * 1000) / 1000 != at for at in times)


def test_timers_end_in_order_and_never_early(loop: Any) -> None:
    ended: list[tuple[float, float]] = []

    async def run() -> None:
        began = loop.time()
        dues = [began + after for after in (0.004, 0.0005, 0.002, 0.0005, -1.0, 0.003)]
        for due in dues:
            loop.call_at(due, lambda due=due: ended.append((due, loop.time())))
        await asyncio.sleep(0.006)
        assert [due for due, _ in ended] == sorted(dues)

    loop.run_until_complete(run())
    assert all(at >= due - 1e-6 for due, at in ended)


def test_timers_that_are_cancelled_do_nothing_and_do_not_pile_up(loop: Any) -> None:
    async def run() -> None:
        failed: list[int] = []
        for number in range(1_000):
            loop.call_later(60.0, failed.append, number).cancel()
        soon = loop.call_later(0.001, failed.append, -1)
        kept = loop.create_future()
        loop.call_later(0.002, kept.set_result, None)
        soon.cancel()
        soon.cancel()
        assert soon.cancelled()
        await kept
        assert not failed

    loop.run_until_complete(run())
    if precise_uvloop is not None and isinstance(loop, precise_uvloop.PreciseLoop):
        assert len(loop._heap) < 300


def test_timers_set_by_timers_and_by_threads_end(loop: Any) -> None:
    async def run() -> None:
        done = loop.create_future()

        def again(left: int) -> None:
            if left:
                loop.call_later(0.0002, again, left - 1)
            else:
                done.set_result(None)

        await loop.run_in_executor(None, loop.call_soon_threadsafe, again, 20)
        await done
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await loop.create_future()
        async with asyncio.timeout(60):
            await asyncio.gather(*(asyncio.sleep(0.001 * (n % 3)) for n in range(50)))

    loop.run_until_complete(run())


def test_a_timer_that_raises_is_reported_and_ends_no_other(loop: Any) -> None:
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(type(context["exception"]).__name__))

    async def run() -> None:
        done = loop.create_future()
        fail: Callable[[], object] = {}.popitem
        loop.call_later(0.001, fail)
        loop.call_later(0.001, done.set_result, None)
        await done

    loop.run_until_complete(run())
    assert told == ["KeyError"]
