"""The hybrid clock: stamps increase whatever the wall clock does, and no peer can drag them away."""

from __future__ import annotations

import pytest

from crdtkv.core.clock import MS_MAX, HybridClock, ms_of, stamp, time_text
from crdtkv.errors import ClockSkewError
from tests.stores import Clock


def test_stamps_strictly_increase_while_the_wall_stands_or_goes_back() -> None:
    wall = Clock()
    clock = HybridClock(wall)
    made = [clock.issue() for _ in range(3)]
    assert made == [stamp(wall.ms), stamp(wall.ms, 1), stamp(wall.ms, 2)]
    wall.ms -= 5_000
    made += [clock.issue() for _ in range(3)]
    wall.ms += 5_001
    made.append(clock.issue())
    assert made == sorted(set(made)) and made[-1] == stamp(wall.ms)


def test_a_counter_that_overflows_carries_into_the_milliseconds() -> None:
    wall = Clock()
    clock = HybridClock(wall, mark=stamp(wall.ms, 0xFFFF))
    assert clock.issue() == stamp(wall.ms + 1)


def test_a_run_of_stamps_is_what_so_many_calls_would_give_while_the_wall_stands() -> None:
    wall = Clock()
    one, run = HybridClock(wall), HybridClock(wall)
    assert [run.issue_run(3), run.mark] == [one.issue(), one.issue() and one.issue()]
    wall.ms -= 5_000
    assert run.issue_run(1) == run.mark == one.issue()
    wall.ms -= 10**6
    with pytest.raises(ClockSkewError):
        run.issue_run(2)
    assert run.mark == one.mark


def test_what_is_seen_is_stamped_above_as_far_as_the_cap() -> None:
    wall = Clock()
    clock = HybridClock(wall, max_skew_ms=1000)
    clock.absorb(stamp(wall.ms + 500, 7))
    assert clock.issue() == stamp(wall.ms + 500, 8)
    clock.absorb(stamp(wall.ms + 10**9))
    assert clock.mark == stamp(wall.ms + 1000), "a peer far ahead pulls no further than the cap"
    assert clock.issue() == stamp(wall.ms + 1000, 1)
    before = clock.mark
    clock.absorb(stamp(wall.ms))
    clock.absorb(0)
    assert clock.mark == before, "absorbing never goes back"
    wall.ms -= 10**6
    clock.absorb(stamp(wall.ms + 10**9))
    assert clock.mark == before, "nor does a cap below the mark"


def test_only_its_own_mark_far_ahead_refuses_and_time_cures_it() -> None:
    wall = Clock()
    clock = HybridClock(wall, refuse_ms=600_000)
    clock.restore(stamp(wall.ms + 600_000) - 1)
    assert clock.issue() == stamp(wall.ms + 600_000), "exactly at the limit is allowed"
    mark = clock.mark
    with pytest.raises(ClockSkewError, match="600 s ahead") as refused:
        clock.issue()
    assert clock.mark == mark and refused.value.retryable and "\n" not in str(refused.value)
    wall.ms += 1
    assert clock.issue() == mark + 1


def test_restore_is_not_capped_and_never_goes_back() -> None:
    wall = Clock()
    clock = HybridClock(wall, max_skew_ms=0)
    clock.restore(stamp(wall.ms + 5000))
    clock.restore(3)
    assert clock.mark == stamp(wall.ms + 5000) and ms_of(clock.issue()) == wall.ms + 5000


def test_text_of_times() -> None:
    assert time_text(stamp(1_750_000_000_123, 9)) == "2025-06-15 15:06:40.123Z"
    assert time_text(0) == "1970-01-01 00:00:00.000Z"
    assert time_text(stamp(MS_MAX)) == "6429-10-17 02:45:55.327Z"
    assert time_text(stamp(10**16)) == "10000000000000000 ms after 1970"
