"""What a load found, as plain JSON: `results.json` of `crdtkv bench load`, described in docs/benchmarks.md. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from crdtkv.bench.histogram import BEYOND_MIN, Histogram
from crdtkv.bench.load import Loaded, LoadSettings, Recorder
from crdtkv.bench.results import cdf, figures
from crdtkv.bench.ycsb import Kind
from crdtkv.version import VERSION

FORMAT: Final = 1
"""Raised when a field changes its meaning or goes away; new fields do not raise it."""
KIND: Final = "crdtkv bench load"
TIMELINE_POINTS: Final = (10, 60)
"""At least and at most so many; in between as many as leave each enough operations for a 99th percentile."""


def build(
    loaded: Loaded,
    settings: LoadSettings,
    *,
    started_at: str,
    target: str,
    options: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything as plain JSON types.

    Args:
        target: embedded, node or cluster.
        options: of the store or cluster, told along with the settings.
    """
    everyone = [recorder for recorders in loaded.recorders.values() for recorder in recorders]
    whole = _histogram(_took(everyone))
    failed = sum(sum(recorder.failed.values()) for recorder in everyone)
    return {
        "format": FORMAT,
        "kind": KIND,
        "crdtkv": VERSION,
        "started_at": started_at,
        "environment": dict(environment),
        "configuration": {
            "workload": settings.workload.name,
            "about": settings.workload.about,
            "shares": {kind.value: share for kind, share in settings.workload.shares.items()},
            "distribution": settings.workload.distribution,
            "target": target,
            "loop": "closed" if settings.rate is None else "open",
            "callers": settings.callers if settings.rate is None or target == "embedded" else None,
            "rate": settings.rate,
            "records": settings.records,
            "size": settings.size,
            "duration_s": settings.duration_s,
            "warmup_s": settings.warmup_s,
            "seed": settings.seed,
            **options,
        },
        "percentiles_need_beyond": BEYOND_MIN,
        "preload": None if loaded.preload_s is None else _preload(settings.records, loaded.preload_s),
        "total": {
            "operations": whole.count,
            "failed": failed,
            "first_error": next((recorder.first_error for recorder in everyone if recorder.first_error), None),
            "measured_s": round(loaded.measured_s, 3),
            "per_s": _per_s(whole.count, loaded.measured_s),
            "in_calls_share": _share_in_calls(whole, settings, loaded) if target == "embedded" and settings.rate is None else None,
            **figures(whole),
        },
        "operations": [_kind(kind, everyone, loaded.measured_s) for kind in settings.workload.shares],
        "regions": [_region(region, recorders, loaded) for region, recorders in loaded.recorders.items()],
        "converged_s": None if loaded.converged_s is None else round(loaded.converged_s, 3),
        "timeline": _timeline(everyone, settings),
    }


def _preload(records: int, seconds: float) -> dict[str, Any]:
    return {"records": records, "seconds": round(seconds, 3), "per_s": _per_s(records, seconds)}


def _kind(kind: Kind, recorders: Iterable[Recorder], measured_s: float) -> dict[str, Any]:
    everyone = list(recorders)
    histogram = _histogram(_took(everyone, kind))
    return {
        "operation": kind.value,
        "operations": histogram.count,
        "failed": sum(recorder.failed.get(kind, 0) for recorder in everyone),
        "per_s": _per_s(histogram.count, measured_s),
        **figures(histogram),
        "cdf": cdf(histogram),
        "histogram": histogram.to_json(),
    }


def _region(region: str, recorders: Iterable[Recorder], loaded: Loaded) -> dict[str, Any]:
    histogram = _histogram(_took(recorders))
    return {
        "region": region,
        "operations": histogram.count,
        "per_s": _per_s(histogram.count, loaded.measured_s),
        "conflicts": loaded.conflicts.get(region),
        **figures(histogram),
    }


def _timeline(recorders: Iterable[Recorder], settings: LoadSettings) -> dict[str, Any]:
    """Operations a second and their percentiles by when they began or were due."""
    recorders = list(recorders)
    least, most = TIMELINE_POINTS
    count = sum(len(began) for recorder in recorders for began in recorder.at_ns.values())
    points = min(most, max(least, count // (120 * BEYOND_MIN)))
    step = settings.duration_s / points
    slices = [Histogram() for _ in range(points)]
    for recorder in recorders:
        for kind, began in recorder.at_ns.items():
            for at, took in zip(began, recorder.took_ns[kind], strict=True):
                slices[min(points - 1, int(at / 1e9 / step))].record(max(0, took))
    return {
        "step_s": round(step, 4),
        "t_s": [round((i + 0.5) * step, 3) for i in range(points)],
        "per_s": [round(part.count / step) for part in slices],
        "p50_ms": [_ms(part.quantile(0.5)) for part in slices],
        "p99_ms": [_ms(part.supported_quantile(0.99)) for part in slices],
    }


def _took(recorders: Iterable[Recorder], kind: Kind | None = None) -> Iterator[int]:
    for recorder in recorders:
        chosen = recorder.took_ns.values() if kind is None else [recorder.took_ns.get(kind, ())]
        yield from itertools.chain.from_iterable(chosen)


def _histogram(values: Iterable[int]) -> Histogram:
    return Histogram(max(0, value) for value in values)


def _share_in_calls(whole: Histogram, settings: LoadSettings, loaded: Loaded) -> float:
    """How much of the callers' time was in the store; the rest is the instrument's own."""
    return round(min(1.0, whole.sum / 1e9 / (loaded.measured_s * settings.callers)), 3)


def _per_s(count: int, seconds: float) -> int:
    return round(count / seconds) if seconds > 0 else 0


def _ms(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 4)
