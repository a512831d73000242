"""How long something took, counted in a few buckets: what a metrics page shows of fsyncs and folds."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds; one more bucket takes what is above the last."""


class Durations:
    """One thread at a time notes; any thread may read, and then sees a count that may lack the latest.

    Attributes:
        counts: per bucket, not cumulative. total_s: the sum of all.
    """

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def note(self, seconds: float) -> None:
        """Count one. O(1)."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        """How many were noted."""
        return sum(self.counts)
