"""Rounds, ratios, verdicts. Pure: figures in, judgements out; no clock, no I/O.

The sides of a row run in turn within each round, so that a machine that drifts drifts for all of them. A figure is the median over the
rounds; a ratio is the median of the rounds' ratios, with the least and the greatest beside it, because absolute figures belong to a machine
and an hour, and ratios travel.

>>> rounds = {"ours/op_per_s": [90.0, 100.0, 120.0], "theirs/op_per_s": [100.0, 100.0, 100.0]}
>>> judge(Claim("ours/op_per_s", 1.0, "theirs/op_per_s"), rounds).verdict.value
'met'
>>> judge(Claim("ours/op_per_s", 150.0), rounds).verdict.value
'half'
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Rounds = Mapping[str, Sequence[float]]
"""`side/metric` → its figure in each round. A metric ends in its unit: `op_per_s`, `p50_us`, `drain_s`, `key_bytes`."""


class Verdict(enum.Enum):
    """What became of a claim, worst first."""

    MISSING = "not measured"
    BELOW = "below half"
    HALF = "half"
    VOID = "void"
    """The bare limit misses the bound in the same run: the machine, not the store, stands in the way."""
    MET = "met"
    TOLD = ""
    """Nothing was promised."""


_WORST_FIRST: Final = tuple(Verdict)


@dataclass(frozen=True, slots=True)
class Claim:
    """What is promised of a figure.

    Attributes:
        ours: `side/metric`.
        bound: of ours ÷ base, or of ours where there is no base. None: told beside, promised nothing.
        base: `side/metric`; "" for none.
        at_most: less is better; else more is.
        limit: `side/metric` of the bare limit: where it misses the same bound, the claim is void.
    """

    ours: str
    bound: float | None = None
    base: str = ""
    at_most: bool = False
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim and what was found: median, least and greatest over the rounds of the ratio (or figure), and of the sides' figures."""

    claim: Claim
    value: float | None
    low: float | None
    high: float | None
    figure: float | None
    base_figure: float | None
    verdict: Verdict


def judge(claim: Claim, rounds: Rounds) -> Judged:
    """Hold a claim against what was measured. A side that is missing leaves the claim `MISSING`, never met."""
    ours, base = rounds.get(claim.ours), rounds.get(claim.base) if claim.base else None
    if not ours or (claim.base and not base):
        return Judged(claim, None, None, None, statistics.median(ours) if ours else None, None, Verdict.MISSING)
    values = ratios(ours, base) if base else list(ours)
    value = statistics.median(values)
    return Judged(
        claim,
        value,
        min(values),
        max(values),
        statistics.median(ours),
        statistics.median(base) if base else None,
        _verdict(claim, value, rounds, base),
    )


def _verdict(claim: Claim, value: float, rounds: Rounds, base: Sequence[float] | None) -> Verdict:
    if claim.bound is None:
        return Verdict.TOLD
    reached = share_reached(value, claim.bound, at_most=claim.at_most)
    if reached >= 1:
        return Verdict.MET
    limit = rounds.get(claim.limit) if claim.limit else None
    if limit:
        bare = statistics.median(ratios(limit, base) if base else limit)
        if share_reached(bare, claim.bound, at_most=claim.at_most) < 1:
            return Verdict.VOID
    return Verdict.HALF if reached >= 0.5 else Verdict.BELOW


def share_reached(value: float, bound: float, *, at_most: bool) -> float:
    """How much of a goal is reached: 1 is met, 0.5 is half of it.

    >>> share_reached(60.0, 80.0, at_most=False), share_reached(10.0, 5.0, at_most=True)
    (0.75, 0.5)
    """
    if at_most:
        return bound / value if value > 0 else 1.0
    return value / bound


def ratios(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round; both sides ran in each."""
    assert len(ours) == len(base), "sides of one ratio run in the same rounds"
    return [a / b for a, b in zip(ours, base, strict=True)]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a row: that of its worst claim; what is merely told does not count.

    >>> worst([Verdict.MET, Verdict.HALF, Verdict.TOLD]).value
    'half'
    """
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.TOLD)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]


def human(figure: float) -> str:
    """Three significant digits, k and M for thousands and millions.

    >>> human(1234567.0), human(0.01234), human(640.0)
    ('1.23 M', '0.0123', '640')
    """
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if abs(figure) >= size * 0.9995:
            return f"{figure / size:.3g}{suffix}"
    return f"{figure:.3g}"


_UNITS: Final = (("_per_s", "/s"), ("_us", " µs"), ("_ms", " ms"), ("_bytes", " B"), ("_mb", " MB"), ("_share", " ×"), ("_s", " s"))


def unit(metric: str) -> str:
    """The unit that a metric's name ends in.

    >>> unit("put/p50_us"), unit("a/op_per_s"), unit("a/frames")
    (' µs', '/s', '')
    """
    return next((text for ending, text in _UNITS if metric.endswith(ending)), "")


_LARGER: Final = {" µs": " ms", " ms": " s", " MB": " GB"}


def amount(figure: float, metric: str) -> str:
    """A figure with its unit, or the next larger one.

    >>> amount(640.0, "put/p50_us"), amount(2280.0, "put/p50_us"), amount(2.5e6, "a/op_per_s")
    ('640 µs', '2.28 ms', '2.5 M/s')
    >>> amount(47.9, "a/resident_mb"), amount(1074.0, "a/resident_mb"), amount(0.331, "a/disk_share")
    ('47.9 MB', '1.07 GB', '0.331 ×')
    """
    suffix = unit(metric)
    while abs(figure) >= 1000 and suffix in _LARGER:
        figure, suffix = figure / 1000, _LARGER[suffix]
    return f"{human(figure)}{suffix}"
