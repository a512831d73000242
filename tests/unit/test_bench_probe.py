"""What probes make of arrivals, with times made up: overtaken, missing, wrapped; and how a writer keeps its schedule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from bench import probe

COMMAND = {"round": 1, "rate": 1000.0, "start_ns": 0, "count": 4, "skip": 0, "windows": 1}
MS = 1_000_000


def test_lag_counts_from_when_a_write_was_due() -> None:
    found = probe.figures({0: 2 * MS, 1: 3 * MS, 2: 4 * MS, 3: 9 * MS}, COMMAND, now_ns=100 * MS)
    assert (found["p50_us"], found["max_us"], found["unseen"]) == (2000.0, 6000.0, 0)


def test_what_a_later_write_overtook_was_there_when_that_arrived() -> None:
    found = probe.figures({0: 2 * MS, 3: 5 * MS}, COMMAND, now_ns=100 * MS)
    assert found["max_us"] == 4000.0, "number 1 was due at 1 ms and covered at 5"
    assert found["unseen"] == 0


def test_what_never_arrived_has_waited_until_now_and_is_told() -> None:
    found = probe.figures({0: 2 * MS}, COMMAND, now_ns=100 * MS)
    assert (found["max_us"], found["unseen"]) == (99_000.0, 3)


def test_the_worst_window_shows_what_the_whole_hides() -> None:
    times = {n: n * MS + (50 * MS if n >= 90 else MS) for n in range(100)}
    found = probe.figures(times, {**COMMAND, "count": 100, "windows": 10}, now_ns=10**9)
    assert (found["p50_us"], found["worst_p50_us"]) == (1000.0, 50_000.0)


def test_the_first_part_does_not_count() -> None:
    found = probe.figures({0: 90 * MS, 1: 91 * MS, 2: 91 * MS, 3: 91 * MS}, {**COMMAND, "skip": 2}, now_ns=100 * MS)
    assert found["max_us"] == 89_000.0


async def _keyed(places: Sequence[tuple[int, int]]) -> list[probe.Arrival]:
    async def keys() -> AsyncIterator[str]:
        yield ""
        for round_, number in places:
            yield probe.name(round_, number)

    return [arrival async for arrival in probe.keyed_arrivals(keys())]


def test_a_number_is_told_from_its_key_and_the_order_across_the_wrap_and_when_overtaken() -> None:
    numbers = [0, 2, 1, *range(3, probe.KEYS - 1), probe.KEYS, probe.KEYS - 1, probe.KEYS + 1]
    arrivals = asyncio.run(_keyed([(1, n) for n in numbers] + [(2, 0), (2, 1)]))
    assert arrivals == [probe.LISTENING, *((1, n) for n in numbers), (2, 0), (2, 1)]


def test_keys_and_values_have_the_sizes_that_the_goals_name() -> None:
    assert len(probe.name(7, 123)) == 16
    assert len(probe.value(123)) == 100 and int(probe.value(123)[: probe.NUMBER_DIGITS]) == 123


def test_a_writer_sends_every_number_once_also_those_that_are_overdue_and_counts_what_fails() -> None:
    sent: list[int] = []

    async def send(round_: int, numbers: Sequence[int]) -> None:
        if 7 in numbers:
            raise ConnectionError("gone")
        sent.extend(numbers)

    began = time.monotonic_ns() - 20 * MS  # as if a stall had just ended
    found = asyncio.run(probe.scheduled(send, 1, 1000.0, began, 40))
    assert found["failed"] + len(sent) == 40 and 7 not in sent
    assert sorted(sent) == sent, "in order"
    assert found["late_p99_us"] >= 15_000, "a stall is told, not hidden"


@pytest.mark.parametrize("kind", sorted(probe.WRITERS))
def test_every_kind_has_both_ends(kind: str) -> None:
    assert kind in probe.WATCHERS
