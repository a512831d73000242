"""The histogram beside its naive twin: a sorted list of all values."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtkv.bench.histogram import BEYOND_MIN, Histogram, bucket_of, bucket_range

values = st.lists(st.integers(0, 1 << 50) | st.integers(0, 5000), max_size=200)
quantiles = st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0])


class Twin:
    """Every value kept."""

    def __init__(self, given: list[int]) -> None:
        self.ordered = sorted(given)

    def quantile(self, q: float) -> int | None:
        return self.ordered[max(1, math.ceil(q * len(self.ordered) - 1e-9)) - 1] if self.ordered else None


@given(values, quantiles)
def test_a_quantile_is_that_of_the_values_to_three_digits(given_values: list[int], q: float) -> None:
    found, exact = Histogram(given_values).quantile(q), Twin(given_values).quantile(q)
    assert (found is None) == (exact is None)
    if found is not None and exact is not None:
        assert exact <= found <= exact * (1 + 1 / 1024)
        assert found <= max(given_values)


@given(values)
def test_least_greatest_sum_and_count_are_exact(given_values: list[int]) -> None:
    h = Histogram(given_values)
    h._check()
    assert (h.count, h.sum) == (len(given_values), sum(given_values))
    assert (h.min, h.max) == ((min(given_values), max(given_values)) if given_values else (None, None))


@given(values, values, values)
def test_merging_is_counting_together_in_any_order(a: list[int], b: list[int], c: list[int]) -> None:
    whole = Histogram(a + b + c)
    assert Histogram.merged([Histogram(a), Histogram(b), Histogram(c)]) == whole
    assert Histogram.merged([Histogram(c), Histogram.merged([Histogram(b), Histogram(a)])]) == whole


@given(values)
def test_json_brings_back_the_same(given_values: list[int]) -> None:
    h = Histogram(given_values)
    assert Histogram.from_json(json.loads(json.dumps(h.to_json()))) == h


@given(st.integers(0, 1 << 60))
def test_a_value_lies_in_its_bucket_and_buckets_join_without_gap(value: int) -> None:
    bucket = bucket_of(value)
    low, high = bucket_range(bucket)
    assert low <= value <= high
    assert bucket_of(low) == bucket_of(high) == bucket
    assert bucket_range(bucket + 1)[0] == high + 1
    assert (high - low) * 1024 <= max(low, 1)


@pytest.mark.parametrize("value", [0, 1, 2047, 2048, 2049, 4095, 4096, (1 << 20) - 1, 1 << 20])
def test_edges_of_the_layout(value: int) -> None:
    assert bucket_of(value) < bucket_of(value + 2 + (value >> 10))
    assert bucket_of(bucket_range(bucket_of(value))[0]) == bucket_of(value)


def test_a_percentile_needs_values_beyond_it() -> None:
    h = Histogram(range(1, 1000))
    assert h.supported_quantile(0.99) is None
    h.record(1000)
    assert h.supported_quantile(0.99) == 990
    assert h.supported_quantile(0.999) is None and h.supports(0.5)
    assert h.quantile(0.999) == 999, "what is not told is still there to compute with"
    assert sum(v > 990 for v in range(1, 1001)) == BEYOND_MIN


def test_a_negative_value_is_refused() -> None:
    h = Histogram()
    with pytest.raises(ValueError, match="-1"):
        h.record(-1)
    assert h.count == 0 and h.quantile(0.5) is None and h.mean is None and h.points() == []


def test_points_rise_to_one() -> None:
    points = Histogram([5, 5, 7, 10_000_000]).points()
    assert points == [(5, 0.5), (7, 0.75), (10_000_000, 1.0)]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"count": 1, "sum": 1, "min": 1, "max": 1, "buckets": []},
        {"count": 2, "sum": 1, "min": 1, "max": 1, "buckets": [[1, 1]]},
        {"count": 1, "sum": 1, "min": 0, "max": 1, "buckets": [[1, 1]]},
        {"count": 0, "sum": 0, "min": None, "max": None, "buckets": [[1, 0]]},
        {"count": "1", "sum": 1, "min": 1, "max": 1, "buckets": [[1, 1]]},
        {"count": 1, "sum": 1, "min": 1, "max": 1, "buckets": 7},
    ],
)
def test_what_is_not_a_histogram_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"histogram|invalid"):
        Histogram.from_json(document)
