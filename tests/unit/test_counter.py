"""Counters at their edges: runs, resets, limits, and several regions."""

from __future__ import annotations

import pytest

from crdtkv import InvalidValueError
from tests.stores import Clock, store_at, stores, sync

LIMIT = 2**63 - 1


def test_a_reset_sees_the_run_and_not_what_comes_after() -> None:
    with stores("us", "eu") as (us, eu):
        us.counter("c").increment(5)
        sync(us, eu)
        eu.counter("c").reset()
        us.counter("c").increment(1)  # eu had not seen this increment of the same run: its total counts from the base
        sync(us, eu)
        assert us.counter("c").value == eu.counter("c").value == 1
        us.counter("c").increment(1)
        eu.counter("c").reset()
        sync(us, eu)
        assert us.counter("c").value == 1


def test_an_origin_whose_run_was_reset_opens_a_new_one() -> None:
    with store_at(Clock()) as store:
        for n in range(1, 4):
            store.counter("c").increment(n)
            store.counter("c").reset()
        store.counter("c").increment(9)
        runs = store._reader.runs(b"c")
        assert [run.live for _, _, run in runs] == [False, False, False, True] and len({n for _, n, _ in runs}) == 4
        assert store.counter("c").value == 9


def test_dead_runs_do_not_enter_the_digest_and_a_counter_at_zero_exists() -> None:
    with stores("us", "eu") as (us, eu):
        empty = us.digest()
        us.counter("c").increment(5)
        us.counter("c").reset()
        assert us.digest() == empty and "c" not in us and list(us.scan()) == []
        us.counter("c").increment(5)
        us.counter("c").decrement(5)
        assert "c" in us and list(us.scan()) == [("c", 0)] and us.counter("c").reset() is not None
        sync(us, eu)
        assert "c" not in eu


def test_the_total_of_an_origin_has_64_bits() -> None:
    with stores("us", "eu") as (us, eu):
        us.counter("c").increment(LIMIT)
        before = us.digest()
        for refused in (lambda: us.counter("c").increment(), lambda: us.counter("c").increment(LIMIT)):
            with pytest.raises(InvalidValueError, match="would leave"):
                refused()
        with pytest.raises(InvalidValueError), us.batch() as batch:
            batch.counter("c").decrement(1)
            batch.counter("c").increment(2)
        assert us.digest() == before
        eu.counter("c").increment(LIMIT)
        sync(us, eu)
        assert us.counter("c").value == eu.counter("c").value == 2 * LIMIT
        us.counter("c").decrement(LIMIT)
        us.counter("c").decrement(LIMIT)
        sync(us, eu)
        assert eu.counter("c").value == 0
        us.counter("c").reset()
        us.counter("c").increment(LIMIT)
        assert us.counter("c").value == LIMIT


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_concurrent_resets_and_increments_of_three_regions(order: tuple[int, ...]) -> None:
    with stores("us", "eu", "ap") as regions:
        for n, store in enumerate(regions):
            store.counter("c").increment(10 * (n + 1))
        sync(*regions)
        us, eu, ap = regions
        us.counter("c").reset()
        eu.counter("c").increment(3)
        ap.counter("c").reset()
        ap.counter("c").increment(4)
        sync(*(regions[n] for n in order))
        assert [s.counter("c").value for s in regions] == [7, 7, 7]
