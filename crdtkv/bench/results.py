"""What a run of the laboratory found, as plain JSON: `results.json`, described in docs/benchmarks.md.

Across a cut there is no lag to tell: it is unknown while the cut lasts, and what arrives after the heal has waited for that, not for
replication. So writes of a pair fall into phases, and only those that no cut has touched count as the pair's lag. What is unknown, or
has too few samples, is null; never zero. Pure but for `environment`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from crdtkv.bench.histogram import BEYOND_MIN, Histogram
from crdtkv.bench.laboratory import Clock, CutMade, Generator, LagSettings, Measured
from crdtkv.instruments.lag import CDF_POINTS_MAX, Pair
from crdtkv.version import VERSION

FORMAT: Final = 1
"""Raised when a field changes its meaning or goes away; new fields do not raise it."""
KIND: Final = "crdtkv bench lag"
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "p99_99": 0.9999}
BEFORE, CUT, DRAIN, AFTER = "before", "cut", "drain", "after"
SLICES: Final = (20, 120)
"""At least and at most so many slices of time, of a second each in between."""
TIMELINE_POINTS_MAX: Final = 400
TIMELINE_STEP_S: Final = 0.1

_CLOCKS: Final = {
    Clock.MONOTONIC: "The monotonic clock of one process stamped both ends: when a write was due, and when a watcher had it.",
    Clock.ECHO: "Round trips on the clock of the writing side, halved: out as a write, back as an echo; both ways are taken to be alike.",
}


def build(
    measured: Measured,
    settings: LagSettings,
    *,
    started_at: str,
    addresses: Mapping[str, str],
    cities: Mapping[str, str],
    delays_ms: Mapping[tuple[str, str], float] | None,
    delay_source: str,
    options: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything as plain JSON types.

    Args:
        delays_ms: emulated one-way delays; None: nothing is emulated, and the real ones are not known.
        options: of the cluster, told along with the settings.
    """
    meter, cut = measured.meter, measured.cut
    drained = {pair: meter.caught_up_s(pair, cut.end_s) for pair in meter.pairs() if cut.plan.separates(*pair)} if cut else {}
    return {
        "format": FORMAT,
        "kind": KIND,
        "crdtkv": VERSION,
        "started_at": started_at,
        "environment": dict(environment),
        "configuration": {
            "regions": list(meter.regions),
            "type": settings.type,
            "size": None if settings.type == "counter" else settings.size,
            "rate": settings.rate,
            "batch": settings.batch,
            "load": settings.load,
            "duration_s": settings.duration_s,
            "warmup_s": settings.warmup_s,
            "cut": None if cut is None else f"{cut.plan.target}@{cut.plan.start_s:g}s+{cut.plan.duration_s:g}s",
            **options,
        },
        "clock": {"method": settings.clock.value, "meaning": _CLOCKS[settings.clock], "echo_elsewhere": settings.echo_elsewhere},
        "cluster": {
            "regions": [{"name": r, "city": cities.get(r, ""), "address": addresses.get(r, "")} for r in meter.regions],
            "one_way_ms": [{"between": [a, b], "ms": ms} for (a, b), ms in (delays_ms or {}).items() if _in_order(meter.regions, a, b)],
            "source": delay_source,
        },
        "percentiles_need_beyond": BEYOND_MIN,
        "lag": [_pair(measured, pair, settings, delays_ms, drained) for pair in meter.pairs()],
        "local": [_local(measured, r) for r in meter.regions],
        "generators": {r: _generator(g) for r, g in measured.generators.items()},
        "watch_restarts": measured.watch_restarts,
        "phases": _phases(settings, cut, drained, measured.end_s),
        "cut": None if cut is None else _cut(measured, cut, drained, settings),
        "timeline": _timeline(measured, settings),
        "comparison": None,
    }


def environment() -> dict[str, Any]:
    """The machine and the versions; how busy it was before."""
    versions = {}
    for package in ("grpcio", "protobuf", "msgpack", "msgspec", "rocksdict", "lmdb", "uvloop"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_1min_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def figures(histogram: Histogram, unseen: int = 0) -> dict[str, Any]:
    """Percentiles in ms; one that too few samples lie beyond is null, and named in `unsupported`."""
    return {
        "samples": histogram.count,
        "unseen": unseen,
        "min_ms": _ms(histogram.min),
        "mean_ms": _ms(histogram.mean),
        **{f"{name}_ms": _ms(histogram.supported_quantile(q)) for name, q in QUANTILES.items()},
        "max_ms": _ms(histogram.max),
        "unsupported": [name for name, q in QUANTILES.items() if not histogram.supports(q)],
    }


def slice_s(duration_s: float) -> float:
    """The length of a slice of time: a second, unless that makes too few slices or too many."""
    return max(min(1.0, duration_s / SLICES[0]), duration_s / SLICES[1])


def phase_of(due_s: float, seen_s: float | None, cut: CutMade | None, across: bool, drained_s: float | None) -> str:
    """The phase that a write counts to.

    Args:
        across: the cut lies between the pair.
        drained_s: when all that the cut had held back had arrived; None: never.
    """
    if cut is None or (across and seen_s is not None and seen_s <= cut.ordered_s):
        return BEFORE
    if due_s < cut.end_s and across:
        return CUT  # also what was on its way as the cut came
    if due_s < cut.ordered_s:
        return BEFORE
    if due_s < cut.end_s:
        return CUT
    return DRAIN if drained_s is None or due_s < drained_s else AFTER


def _pair(
    measured: Measured,
    pair: Pair,
    settings: LagSettings,
    delays_ms: Mapping[tuple[str, str], float] | None,
    drained: Mapping[Pair, float | None],
) -> dict[str, Any]:
    cut = measured.cut
    across = cut is not None and cut.plan.separates(*pair)
    drained_s = drained[pair] if across else _latest(drained.values())
    step = slice_s(settings.duration_s)
    phases = {name: Histogram() for name in (BEFORE, CUT, DRAIN, AFTER)}
    unseen = dict.fromkeys(phases, 0)
    slices: dict[int, Histogram] = {}
    for due, seen in measured.meter.samples(pair):
        phase = phase_of(due, seen, cut, across, drained_s)
        if seen is None:
            unseen[phase] += 1
            continue
        ns = round((seen - due) * 1e9)
        phases[phase].record(ns)
        if phase in (BEFORE, AFTER):
            slices.setdefault(int(due / step), Histogram()).record(ns)
    steady = Histogram.merged([phases[BEFORE], phases[AFTER]])
    emulated = None if delays_ms is None else delays_ms[pair[0], pair[1]]
    p50 = steady.supported_quantile(0.5)
    return {
        "from": pair[0],
        "to": pair[1],
        "emulated_ms": emulated,
        **figures(steady, unseen[BEFORE] + unseen[AFTER]),
        "p50_overhead_ms": None if emulated is None or p50 is None else round(p50 / 1e6 - emulated, 4),
        "across_cut": across,
        "phases": {
            name: {"known": not (across and name == CUT), **figures(h, unseen[name])} for name, h in phases.items() if cut is not None
        },
        "cdf": cdf(steady),
        "histogram": steady.to_json(),
        "slices": [{"start_s": round(n * step, 3), "histogram": h.to_json()} for n, h in sorted(slices.items())],
    }


def _local(measured: Measured, region: str) -> dict[str, Any]:
    histogram = Histogram(round((seen - due) * 1e9) for due, seen in measured.meter.samples(Pair(region, region)) if seen is not None)
    return {"region": region, **figures(histogram), "histogram": histogram.to_json()}


def _generator(g: Generator) -> dict[str, Any]:
    return {
        "sent": g.sent,
        "acknowledged": g.acknowledged,
        "failed": g.failed,
        "first_error": g.first_error or None,
        "late": figures(g.late),
        "answered": figures(g.answered),
        "load_sent": g.load_sent,
        "load_failed": g.load_failed,
    }


def _phases(settings: LagSettings, cut: CutMade | None, drained: Mapping[Pair, float | None], end_s: float) -> list[dict[str, Any]]:
    if cut is None:
        return [{"name": BEFORE, "title": "connected", "start_s": 0.0, "end_s": settings.duration_s}]
    until = _latest(drained.values())
    drain_end = end_s if until is None else min(max(until, cut.end_s), end_s)
    bounds = [(BEFORE, "connected", 0.0, cut.start_s), (CUT, f"{cut.plan.target} cut", cut.start_s, cut.end_s)]
    bounds += [(DRAIN, "what was held back arrives", cut.end_s, drain_end), (AFTER, "connected again", drain_end, settings.duration_s)]
    return [{"name": n, "title": t, "start_s": round(a, 3), "end_s": round(max(a, b), 3)} for n, t, a, b in bounds]


def _cut(measured: Measured, cut: CutMade, drained: Mapping[Pair, float | None], settings: LagSettings) -> dict[str, Any]:
    pairs = []
    for pair, at in drained.items():
        held = sum(due < cut.end_s and (seen is None or seen > cut.end_s) for due, seen in measured.meter.samples(pair))
        took = None if at is None or not held else at - cut.end_s
        rate = None if not took else round(held * settings.batch / took)
        pairs.append({"from": pair[0], "to": pair[1], "held_back": held, "drain_ms": _round_ms(took), "writes_per_s": rate})
    return {"region": cut.plan.target, "start_s": round(cut.start_s, 3), "end_s": round(cut.end_s, 3), "pairs": pairs}


def _timeline(measured: Measured, settings: LagSettings) -> dict[str, Any]:
    step = max(TIMELINE_STEP_S, settings.duration_s / TIMELINE_POINTS_MAX)
    cut, meter = measured.cut, measured.meter
    end_s = settings.duration_s
    if cut is not None:
        end_s = min(max(end_s, measured.end_s), end_s * 2)
    pairs, times = {}, []
    for pair in meter.pairs():
        line = meter.timeline(pair, end_s, step, measured.acked[pair[0]])
        times = [round(t, 3) for t in line.t_s]
        lags: dict[int, list[float]] = {}
        for due, seen in meter.samples(pair):
            unknown = cut is not None and cut.plan.separates(*pair) and phase_of(due, seen, cut, True, None) == CUT
            if seen is not None and not unknown:
                lags.setdefault(int(due / step), []).append(seen - due)
        middle = [sorted(lags[i])[len(lags[i]) // 2] if i in lags else None for i in range(len(times))]
        pairs[f"{pair[0]}>{pair[1]}"] = {
            "behind_ms": [None if x is None else round(x, 2) for x in line.behind_ms],
            "backlog": list(line.backlog),
            "p50_ms": [_round_ms(x) for x in middle],
        }
    return {"step_s": round(step, 4), "t_s": times, "pairs": pairs}


def cdf(histogram: Histogram) -> list[list[float]]:
    """`[ms, share]`, at most `CDF_POINTS_MAX`, the first and the last kept."""
    points = histogram.points()
    if len(points) > CDF_POINTS_MAX:
        points = [points[round(i * (len(points) - 1) / (CDF_POINTS_MAX - 1))] for i in range(CDF_POINTS_MAX)]
    return [[round(ns / 1e6, 4), round(share, 6)] for ns, share in points]


def _latest(times: Any) -> float | None:
    """The greatest; None if there is none, or one of them is None."""
    known = list(times)
    return None if not known or None in known else max(known)


def _in_order(regions: Sequence[str], a: str, b: str) -> bool:
    return regions.index(a) < regions.index(b)


def _ms(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 4)


def _round_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
