"""How far behind each region is, measured from outside: from the time a write was *due* in A until a watcher in B saw it.

Each region writes numbered pulses to one key of its own at a steady rate; watchers in every region see them. Both ends are
in one process, so both times come from one monotonic clock, and no clock offset enters. Counting from the time a write
was due, not from when it was sent, charges a stalled writer for the writes that it held up.

Whoever sees pulse n has seen all before it (one origin's commits arrive in order), so a pulse that a watcher skipped, because
several arrived at once, was seen at the same moment. What has not been seen has no lag: it is unknown, never zero.
Nothing here reads a clock; times are seconds since the run began.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

CDF_POINTS_MAX = 160


class Pair(tuple[str, str]):
    """`(written in, seen in)`."""

    __slots__ = ()

    def __new__(cls, source: str, observer: str) -> Pair:
        return super().__new__(cls, (source, observer))

    def __str__(self) -> str:
        return f"{self[0]}→{self[1]}"


@dataclass(slots=True)
class _Source:
    """One region's pulses, by number: when each was due, and the commit it became."""

    due_s: list[float] = field(default_factory=list)
    seq: list[int] = field(default_factory=list)
    """0 until acknowledged."""


@dataclass(frozen=True, slots=True)
class LagSummary:
    """Lag of the pulses due in one stretch of time; `unseen` of them never arrived. Milliseconds."""

    samples: int
    unseen: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    cdf: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Timeline:
    """One pair over time.

    Attributes:
        behind_ms: the age of the oldest pulse due but not yet seen, at least what the last one seen took; None: none was due yet.
        backlog: acknowledged commits not yet there.
    """

    t_s: Sequence[float]
    behind_ms: Sequence[float | None]
    backlog: Sequence[int]


class LagMeter:
    """Collects pulses and sightings, and summarises them."""

    def __init__(self, regions: Sequence[str]) -> None:
        self.regions = tuple(regions)
        self._sources = {r: _Source() for r in regions}
        self._seen: dict[Pair, list[float]] = {Pair(a, b): [] for a in regions for b in regions}

    def pairs(self) -> list[Pair]:
        """All pairs of different regions."""
        return [p for p in self._seen if p[0] != p[1]]

    def due(self, region: str, due_s: float) -> int:
        """Register the next pulse of a region, and return its number (0, 1, 2 …)."""
        source = self._sources[region]
        source.due_s.append(due_s)
        source.seq.append(0)
        return len(source.due_s) - 1

    def acknowledged(self, region: str, number: int, seq: int) -> None:
        """A pulse became the commit `seq` of its region."""
        self._sources[region].seq[number] = seq

    def seen(self, region: str, observer: str, number: int, now_s: float) -> None:
        """A watcher in `observer` saw the pulse `number` of `region`, and so all before it."""
        sightings = self._seen[Pair(region, observer)]
        sightings.extend([now_s] * (number + 1 - len(sightings)))

    def due_s(self, region: str, number: int) -> float:
        """When a pulse was due."""
        return self._sources[region].due_s[number]

    def samples(self, pair: Pair) -> Iterator[tuple[float, float | None]]:
        """`(due, seen)` of every pulse, in order; seen is None if it never was."""
        return itertools.zip_longest(self._sources[pair[0]].due_s, self._seen[pair])

    def last_due_s(self, region: str) -> float:
        """When the latest pulse of `region` was due; 0 if none was."""
        due = self._sources[region].due_s
        return due[-1] if due else 0.0

    def caught_up_s(self, pair: Pair, before_s: float) -> float | None:
        """When the observer had seen every pulse due before `before_s`; None if it has not."""
        number = bisect.bisect_left(self._sources[pair[0]].due_s, before_s)
        sightings = self._seen[pair]
        if number > len(sightings):
            return None
        return sightings[number - 1] if number else before_s

    def summary(self, pair: Pair, from_s: float, to_s: float) -> LagSummary:
        """Lag of the pulses due in `from_s <= due < to_s`."""
        due = self._sources[pair[0]].due_s
        first, last = bisect.bisect_left(due, from_s), bisect.bisect_left(due, to_s)
        sightings = self._seen[pair]
        lags = sorted((sightings[n] - due[n]) * 1000 for n in range(first, min(last, len(sightings))))
        unseen = last - first - len(lags)
        if not lags:
            return LagSummary(0, unseen, None, None, None, ())
        return LagSummary(len(lags), unseen, quantile(lags, 0.5), quantile(lags, 0.99), lags[-1], cdf(lags))

    def timeline(self, pair: Pair, end_s: float, step_s: float, acked: Sequence[tuple[float, int]]) -> Timeline:
        """The pair sampled every `step_s`.

        Args:
            acked: `(acknowledged at, seq)` of every commit of the source, in seq order.
        """
        source, sightings = self._sources[pair[0]], self._seen[pair]
        acked_at = sorted(t for t, _ in acked)
        seqs = [seq for _, seq in acked]
        times, behind, backlog = [], [], []
        for i in range(1, int(end_s / step_s) + 1):
            t = i * step_s
            seen = bisect.bisect_right(sightings, t)
            due = bisect.bisect_right(source.due_s, t)
            waited = t - source.due_s[seen] if seen < due else 0.0
            took = sightings[seen - 1] - source.due_s[seen - 1] if seen else 0.0
            behind.append(max(waited, took) * 1000 or None)
            known = max((source.seq[n] for n in range(max(0, seen - 8), seen)), default=0)
            backlog.append(max(0, bisect.bisect_right(acked_at, t) - bisect.bisect_right(seqs, known)))
            times.append(t)
        return Timeline(times, behind, backlog)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The nearest-rank quantile of sorted values: one of them, never an interpolation.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5), quantile([1.0, 2.0], 0.99)
    (2.0, 2.0)
    """
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def cdf(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """`(value, share of values at most that)`, thinned to `CDF_POINTS_MAX` points, the first and last kept."""
    n = len(ordered)
    count = min(n, CDF_POINTS_MAX)
    ranks = sorted({round(i * (n - 1) / max(1, count - 1)) for i in range(count)})
    return [(ordered[r], (r + 1) / n) for r in ranks]
