"""Hybrid logical clock: stamps that follow wall time, never repeat, and never run away.

A stamp is one int: 48 bits of Unix milliseconds, then 16 bits of counter. Stamps of one incarnation strictly
increase. Remote stamps are absorbed, so that what a replica writes next is stamped above what it has seen, but
only up to `wall + max_skew_ms`: a peer whose clock is years ahead cannot drag this one along. Causality decides
before stamps do, so the cap costs nothing but fairness among truly concurrent writes.

After: Kulkarni, Demirbas et al., "Logical Physical Clocks" (2014); the cap is CockroachDB's lesson.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from crdtkv.errors import ClockSkewError

COUNTER_BITS = 16
STAMP_MAX = 2**63 - 1
MS_MAX = STAMP_MAX >> COUNTER_BITS


def stamp(ms: int, counter: int = 0) -> int:
    """The stamp of a Unix time in ms."""
    return ms << COUNTER_BITS | counter


def ms_of(stamp: int) -> int:
    """The Unix time in ms inside a stamp."""
    return stamp >> COUNTER_BITS


def time_text(stamp_or_zero: int) -> str:
    """A stamp's time as text, in UTC to the millisecond."""
    ms = ms_of(stamp_or_zero)
    try:
        when = datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms after 1970"
    return f"{when:%Y-%m-%d %H:%M:%S}.{ms % 1000:03d}Z"


class HybridClock:
    """Issues the stamps of one replica.

    Args:
        wall_ms: the wall clock, Unix ms; may jump both ways.
        mark: the greatest stamp issued or absorbed before (persisted); the next is greater.
        max_skew_ms: how far ahead of the wall a remote stamp may pull this clock.
        refuse_ms: how far ahead of the wall this clock's own mark may be before writes are refused.
    """

    __slots__ = ("_mark", "max_skew_ms", "refuse_ms", "wall_ms")

    def __init__(self, wall_ms: Callable[[], int], mark: int = 0, *, max_skew_ms: int = 60_000, refuse_ms: int = 600_000) -> None:
        self.wall_ms = wall_ms
        self._mark = mark
        self.max_skew_ms = max_skew_ms
        self.refuse_ms = refuse_ms

    @property
    def mark(self) -> int:
        """The greatest stamp issued or absorbed."""
        return self._mark

    def issue(self) -> int:
        """The next stamp: greater than any issued or absorbed before.

        Raises:
            ClockSkewError: the mark is more than `refuse_ms` ahead of the wall clock.
        """
        now = self.wall_ms() << COUNTER_BITS
        if now > self._mark:
            self._mark = now
            return now
        following = self._mark + 1
        if following > now + (self.refuse_ms << COUNTER_BITS):
            ahead_s = (following - now >> COUNTER_BITS) / 1000
            raise ClockSkewError(
                f"the clock of this replica is marked {ahead_s:.0f} s ahead of the wall clock (limit {self.refuse_ms // 1000} s): "
                "correct the clock, or start a new incarnation",
                ahead_s=ahead_s,
            )
        self._mark = following
        return following

    def issue_run(self, count: int) -> int:
        """The first of `count` stamps that follow each other without a gap; raises as `issue`."""
        first = self.issue()
        self._mark = first + count - 1
        return first

    def absorb(self, remote: int) -> None:
        """Raise the mark to a stamp seen elsewhere, as far as `wall + max_skew_ms`."""
        if remote > self._mark:
            bound = self.wall_ms() + self.max_skew_ms << COUNTER_BITS
            reach = min(remote, bound)
            if reach > self._mark:
                self._mark = reach

    def begin_incarnation(self) -> None:
        """Go on above everything seen, as far as `wall + max_skew_ms`: a new id need not keep to what a wrong clock issued."""
        self._mark = min(self._mark, self.wall_ms() + self.max_skew_ms << COUNTER_BITS)

    def restore(self, mark: int) -> None:
        """Raise the mark to what this replica itself had issued or absorbed before; not capped."""
        if mark > self._mark:
            self._mark = mark
