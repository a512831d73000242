"""Runs rows: each in a process of its own, its sides in turn within each round, with a line of progress a round."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import apart, machine
from bench.goals.row import Bench, Row, scratch
from bench.judging import Claim, Judged, judge, worst

FORMAT: Final = 1
KIND: Final = "crdtkv bench goals"
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 1
ROW_LIMIT_S: Final = 600.0


def measure(row: Row, *, rounds: int, quick: bool, told: Callable[[str], None]) -> dict[str, Any]:
    """Run one row here and now; returns it as plain JSON types.

    One round more is run first and not counted (but when quick): what it warms is warm for all sides.
    """
    began = time.perf_counter()
    figures: dict[str, list[float]] = {}
    with scratch() as directory, ExitStack() as stack:
        bench = Bench(quick, directory)
        sides = row.open(bench, stack)
        for number in range(0 if row.warm_up and not quick else 1, min(rounds, row.rounds or rounds) + 1):
            for name, side in sides.items():
                gc.collect()
                measured = side()
                if number:
                    for metric, figure in measured.items():
                        figures.setdefault(f"{name}/{metric}", []).append(figure)
            told(f"{row.name}: {f'round {number}' if number else 'warm-up'}, {time.perf_counter() - began:.0f} s")
    return {
        "name": row.name,
        "seconds": round(time.perf_counter() - began, 1),
        "quick": quick,
        "rounds": {name: [_short(figure) for figure in values] for name, values in figures.items()},
        "missing": bench.missing,
        "error": None,
    }


def merged(old: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Further rounds of a row beside those of an earlier run of it; both must have measured the same sides, or the new one stands alone."""
    if old is None or old.get("error") or old.get("quick") != new["quick"] or old["rounds"].keys() != new["rounds"].keys():
        return new
    rounds = {name: [*old["rounds"][name], *values] for name, values in new["rounds"].items()}
    return {**new, "rounds": rounds, "seconds": round(old["seconds"] + new["seconds"], 1)}


def judged(row: Row, measured: Mapping[str, Any]) -> list[Judged]:
    """Each claim of a row against what was measured."""
    return [judge(claim, measured["rounds"]) for claim in row.claims]


def document(rows: Sequence[Row], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`results.json` of the goals: every figure of every round, the claims and their verdicts, and the machine."""
    return {
        "format": FORMAT,
        "kind": KIND,
        "machine": machine.describe(),
        "rows": [_row(row, measured[row.name]) for row in rows if row.name in measured],
        "not_measured": [row.name for row in rows if row.name not in measured],
    }


def _row(row: Row, measured: Mapping[str, Any]) -> dict[str, Any]:
    found = judged(row, measured)
    return {
        **measured,
        "path": row.path,
        "against": row.against,
        "goal": row.goal,
        "rerun": row.rerun,
        "durability": dict(row.durability),
        "claims": [{**_claim(j.claim), **_found(j)} for j in found],
        "verdict": worst(j.verdict for j in found).value,
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return asdict(claim)


def _found(j: Judged) -> dict[str, Any]:
    values = {name: None if value is None else _short(value) for name, value in (("value", j.value), ("low", j.low), ("high", j.high))}
    figures = {"figure": _none_or_short(j.figure), "base_figure": _none_or_short(j.base_figure)}
    return {**values, **figures, "verdict": j.verdict.value}


def _none_or_short(value: float | None) -> float | None:
    return None if value is None else _short(value)


def _short(figure: float) -> float:
    """Five digits say all there is."""
    return float(f"{figure:.5g}")


def run_apart(row: Row, *, rounds: int, quick: bool, out: Path) -> dict[str, Any]:
    """Run a row in a process of its own, so that none inherits another's heap, threads or loaded gRPC.

    Raises:
        KeyboardInterrupt: a block around has noted Ctrl-C; of the row nothing is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{row.name}.row.json"
    target.unlink(missing_ok=True)
    command = apart.bench("goals", "--row", row.name, "--rounds", str(rounds), "--raw", target, *(["--quick"] if quick else []))
    began = time.perf_counter()
    error = ""
    try:
        done = apart.run(command, limit_s=ROW_LIMIT_S, is_shown=True)
        if done.returncode:
            error = f"exit status {done.returncode}"
    except apart.TooLongError as e:
        error = str(e)
    if error or not target.exists():
        seconds = round(time.perf_counter() - began, 1)
        return {"name": row.name, "seconds": seconds, "quick": quick, "rounds": {}, "missing": {}, "error": error or "no result"}
    measured: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    target.unlink()
    return measured
