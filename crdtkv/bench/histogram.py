"""A mergeable histogram of whole numbers from 0 up, exact to three significant digits, whatever their magnitude.

Buckets are log-linear: values below 2048 have a bucket each; above, each power of two is split into 1024 buckets of equal width. So a
bucket is never wider than 1/1024 of its values: less than one in the third digit. Only buckets that hold something take memory.
Merging adds counts, and is associative and commutative: slices of time, phases and runs merge into what one histogram of all would be.

A percentile is told only if enough values lie beyond it: `BEYOND_MIN`. The 99.9th of a hundred values would be their maximum under
another name. Pure: no clock, no I/O.

After: G. Tene, HdrHistogram (the layout of buckets, and "highest equivalent value").

>>> h = Histogram([1_000_000, 2_000_000, 3_000_000])
>>> h.quantile(0.5), h.max
(2000895, 3000000)
>>> h.supported_quantile(0.999) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

_HALF_BITS: Final = 10
_HALF: Final = 1 << _HALF_BITS
_FULL_BITS: Final = _HALF_BITS + 1
_FULL: Final = 1 << _FULL_BITS

BEYOND_MIN: Final = 10
"""How many values must lie beyond a percentile for it to be told: below that, it is a matter of luck."""


def bucket_of(value: int) -> int:
    """The number of the bucket that holds a value."""
    shift = value.bit_length() - _FULL_BITS
    return value if shift <= 0 else (shift << _HALF_BITS) + (value >> shift)


def bucket_range(bucket: int) -> tuple[int, int]:
    """The least and the greatest value of a bucket."""
    if bucket < _FULL:
        return bucket, bucket
    shift = (bucket >> _HALF_BITS) - 1
    low = (bucket - (shift << _HALF_BITS)) << shift
    return low, low + (1 << shift) - 1


class Histogram:
    """Counts per bucket, with the exact least, greatest and sum. Not for use by several threads at once."""

    __slots__ = ("_counts", "count", "max", "min", "sum")

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.sum = 0
        self.min: int | None = None
        """Exact, like `max`; None while empty."""
        self.max: int | None = None
        for value in values:
            self.record(value)

    def record(self, value: int, times: int = 1) -> None:
        """Count a value; O(1).

        Raises:
            ValueError: it is negative: a duration that ends before it begins is a defect of the instrument.
        """
        if value < 0:
            raise ValueError(f"{value} is negative")
        bucket = bucket_of(value)
        self._counts[bucket] = self._counts.get(bucket, 0) + times
        self.count += times
        self.sum += value * times
        self.min = value if self.min is None else min(self.min, value)
        self.max = value if self.max is None else max(self.max, value)

    def merge(self, other: Histogram) -> None:
        """Add what another has counted; O(buckets of the other)."""
        for bucket, n in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + n
        self.count += other.count
        self.sum += other.sum
        if other.min is not None and other.max is not None:
            self.min = other.min if self.min is None else min(self.min, other.min)
            self.max = other.max if self.max is None else max(self.max, other.max)

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Self:
        """What all of them have counted."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole

    def quantile(self, q: float) -> int | None:
        """The greatest value of the bucket that holds the nearest-rank quantile, but no more than the maximum; None if empty."""
        if self.max is None:
            return None
        rank = max(1, math.ceil(q * self.count - 1e-9))  # 0.999 × 1000 is 999.0000000000001 or less, by the digits of floats
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(bucket_range(bucket)[1], self.max)
        raise AssertionError("the counts do not add up")

    def supports(self, q: float) -> bool:
        """Whether enough values lie beyond the quantile for it to mean something."""
        return self.count * (1 - q) >= BEYOND_MIN - 1e-6

    def supported_quantile(self, q: float) -> int | None:
        """The quantile, or None if too few values lie beyond it."""
        return self.quantile(q) if self.supports(q) else None

    @property
    def mean(self) -> float | None:
        """Exact; None if empty."""
        return self.sum / self.count if self.count else None

    def points(self) -> list[tuple[int, float]]:
        """`(value, share of values at most that)` for each bucket that holds something, ascending: the distribution function."""
        out: list[tuple[int, float]] = []
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            assert self.max is not None
            out.append((min(bucket_range(bucket)[1], self.max), seen / self.count))
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: count, sum, min, max, and `buckets`, pairs of a bucket's number and its count, ascending."""
        return {
            "count": self.count,
            "sum": self.sum,
            "min": self.min,
            "max": self.max,
            "buckets": [[bucket, self._counts[bucket]] for bucket in sorted(self._counts)],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: it is not one, or contradicts itself.
        """
        made = cls()
        try:
            made._counts = {int(bucket): int(n) for bucket, n in document["buckets"]}
            made.count, made.sum, made.min, made.max = (document[name] for name in ("count", "sum", "min", "max"))
            made._check()
        except (KeyError, TypeError, AssertionError) as e:
            raise ValueError(f"not a histogram: {type(e).__name__}: {e}") from e
        return made

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Histogram) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}, {self.min} to {self.max}>"

    def _check(self) -> None:
        """Assert the invariants."""
        assert type(self.count) is type(self.sum) is int, "count and sum are whole numbers"
        assert all(n > 0 and bucket >= 0 for bucket, n in self._counts.items()), "a bucket that is there holds something"
        assert self.count == sum(self._counts.values()), f"{self.count} is not the sum of the counts"
        if not self._counts:
            assert self.min is None and self.max is None and self.sum == 0, "empty, but not without values"
            return
        assert isinstance(self.min, int) and isinstance(self.max, int), "least and greatest are missing"
        assert bucket_of(self.min) == min(self._counts), "the least value is not in the first bucket"
        assert bucket_of(self.max) == max(self._counts), "the greatest value is not in the last bucket"
