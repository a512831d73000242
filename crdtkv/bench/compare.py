"""What changed between two runs of the laboratory, and whether it is noise. Pure: the randomness is seeded; equal input, equal output.

The samples of a run are not independent: a stall makes thousands of them slow at once. So whole blocks of time are resampled, not samples
(block bootstrap: H. R. Künsch, Ann. Statist. 17 (1989) 1217). `RULE` is what the verdicts go by, and is printed with them. It sees how a
run varies within itself; two runs of the same code may differ by more, so a verdict that matters is one that a second pair of runs repeats.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from crdtkv.bench.histogram import Histogram
from crdtkv.bench.results import FORMAT, KIND, QUANTILES
from crdtkv.errors import ConfigError

RESAMPLES: Final = 400
BLOCKS_MAX: Final = 20
BLOCKS_MIN: Final = 8
CONFIDENCE: Final = 0.99
LEAST_MS: Final = 0.05
LEAST_SHARE: Final = 0.02
COMPARED: Final = ("p50", "p99")

RULE: Final = (
    f"Slower or faster: the {CONFIDENCE:.0%} interval of the difference, by {RESAMPLES} bootstrap resamples of blocks of time (at most "
    f"{BLOCKS_MAX} a run, at least {BLOCKS_MIN}), excludes zero, and the difference is at least {LEAST_MS:g} ms and {LEAST_SHARE:.0%} of "
    "the old figure. Else noise. Runs are compared by how they vary within themselves: repeat both before relying on it."
)


def load(path: Path) -> dict[str, Any]:
    """Read an earlier `results.json`.

    Raises:
        ConfigError: it is not there, or not one that this version reads.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"compare: {path} cannot be read: {e}", setting="compare") from e
    if not isinstance(document, dict) or document.get("kind") != KIND or document.get("format") != FORMAT:
        raise ConfigError(f"compare: {path} is not results.json of {KIND!r}, format {FORMAT}", setting="compare")
    return document


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What changed, per pair that both have.

    Raises:
        ConfigError: the old document contradicts itself.
    """
    olds = {(lag["from"], lag["to"]): lag for lag in old["lag"]}
    pairs = []
    for lag in new["lag"]:
        before = olds.get((lag["from"], lag["to"]))
        if before is not None:
            try:
                changes = _changes(_slices(before), _slices(lag))
            except (KeyError, TypeError, ValueError) as e:
                raise ConfigError(f"compare: {lag['from']}→{lag['to']}: {e}", setting="compare") from e
            pairs.append({"from": lag["from"], "to": lag["to"], **changes})
    settings = sorted(old["configuration"].keys() | new["configuration"].keys())
    differing = [(name, old["configuration"].get(name), new["configuration"].get(name)) for name in settings]
    machines = [(name, old["environment"].get(name), new["environment"].get(name)) for name in ("python", "system", "cores")]
    return {
        "against": {"started_at": old["started_at"], "crdtkv": old["crdtkv"]},
        "rule": RULE,
        "configuration": [{"name": name, "old": a, "new": b} for name, a, b in [*differing, *machines] if a != b],
        "pairs": pairs,
    }


def _slices(lag: Mapping[str, Any]) -> list[Histogram]:
    return [Histogram.from_json(part["histogram"]) for part in lag["slices"]]


def blocks(slices: Sequence[Histogram]) -> list[Histogram]:
    """Neighbouring slices joined to at most `BLOCKS_MAX` blocks, as equal in length as can be."""
    count = min(BLOCKS_MAX, len(slices))
    bounds = [i * len(slices) // count for i in range(count + 1)] if count else []
    return [Histogram.merged(slices[a:b]) for a, b in itertools.pairwise(bounds)]


def _changes(old: Sequence[Histogram], new: Sequence[Histogram]) -> dict[str, Any]:
    wholes = [Histogram.merged(old), Histogram.merged(new)]
    parts = [blocks(old), blocks(new)]
    enough = all(len(part) >= BLOCKS_MIN for part in parts)
    rng = random.Random(1)
    drawn = [[_resampled(part, rng) for _ in range(RESAMPLES)] for part in parts] if enough else []
    out = {}
    for name in COMPARED:
        q = QUANTILES[name]
        a, b = (whole.supported_quantile(q) for whole in wholes)
        if a is None or b is None or not enough:
            out[name] = {"old_ms": _ms(a), "new_ms": _ms(b), "difference_ms": None, "low_ms": None, "high_ms": None, "verdict": "unknown"}
            continue
        differences = sorted((y[name] - x[name]) for x, y in zip(*drawn, strict=True))
        tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
        low, high = differences[tail], differences[-1 - tail]
        large = abs(b - a) >= max(LEAST_MS * 1e6, LEAST_SHARE * a)
        verdict = "noise" if not large or low <= 0 <= high else "slower" if b > a else "faster"
        out[name] = {
            "old_ms": _ms(a),
            "new_ms": _ms(b),
            "difference_ms": _ms(b - a),
            "low_ms": _ms(low),
            "high_ms": _ms(high),
            "verdict": verdict,
        }
    return out


def _resampled(parts: Sequence[Histogram], rng: random.Random) -> dict[str, int]:
    """The compared percentiles of as many blocks, drawn with replacement."""
    drawn = Histogram.merged(rng.choices(parts, k=len(parts)))
    found = {}
    for name in COMPARED:
        value = drawn.quantile(QUANTILES[name])
        assert value is not None, "a slice is not empty"
        found[name] = value
    return found


def _ms(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 4)
