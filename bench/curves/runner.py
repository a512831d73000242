"""Which points are still to be measured, one after the other, within a budget; written down after each, so that it can be cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bench import apart, machine
from bench.curves.measures import CURVES

FORMAT: Final = 1
KIND: Final = "crdtkv bench curves"
POINT_LIMIT_S: Final = 300.0
_SAME: Final = ("cores", "cpu", "python", "system")
"""What two machines must share for their points to lie on one curve."""

Measure = Callable[[str, int], Mapping[str, float]]


class OtherMachineError(Exception):
    """The points that are there are of another machine."""


def load(path: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    """The document so far, or an empty one.

    Raises:
        OtherMachineError: it is of another machine or interpreter.
    """
    if not path.exists():
        return {"format": FORMAT, "kind": KIND, "machine": dict(here), "curves": {}}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in _SAME if document["machine"].get(name) != here.get(name)]
    if differing:
        told = ", ".join(f"{name} was {document['machine'].get(name)}, is {here.get(name)}" for name in differing)
        raise OtherMachineError(f"{path}: its points are of another machine ({told}): name another file with --points, or remove it")
    return document


def pending(document: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Points that are not there yet: the small ones of all curves first, since they are quick."""
    missing = []
    for name in names:
        there = {point["x"] for point in document["curves"].get(name, {}).get("points", ())}
        missing += [(place, name, x) for place, x in enumerate(CURVES[name].points) if x not in there]
    return [(name, x) for _, name, x in sorted(missing, key=lambda found: found[0])]


def add(document: dict[str, Any], name: str, x: int, figures: Mapping[str, float], seconds: float) -> None:
    """Put a point in its place on its curve."""
    curve = document["curves"].setdefault(name, {"title": CURVES[name].title, "x": CURVES[name].x, "points": []})
    point = {"x": x, "seconds": round(seconds, 1), "figures": {metric: float(f"{figure:.4g}") for metric, figure in figures.items()}}
    curve["points"] = sorted([*curve["points"], point], key=lambda found: int(found["x"]))


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write it as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def run(
    path: Path,
    names: tuple[str, ...],
    *,
    budget_s: float | None = None,
    measure: Measure | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> list[tuple[str, int]]:
    """Measure what is missing; returns what still is when the budget is spent.

    Args:
        budget_s: no point is begun after that. A point that fails or takes longer than `POINT_LIMIT_S` is told, and tried again next time.
    """
    document = load(path, machine.describe())
    began = time.monotonic()
    todo = pending(document, names)
    for number, (name, x) in enumerate(todo, start=1):
        if budget_s is not None and time.monotonic() - began >= budget_s:
            break
        at = time.monotonic()
        try:
            figures = (measure or measure_apart)(name, x)
        except RuntimeError as e:
            told(f"[{number}/{len(todo)}] {name} {x:,}: {e}")
            continue
        seconds = time.monotonic() - at
        add(document, name, x, figures, seconds)
        save(document, path)
        told(f"[{number}/{len(todo)}] {name} {x:,}: {', '.join(f'{m} {v:.4g}' for m, v in figures.items())} ({seconds:.1f} s)")
    return pending(document, names)


def measure_apart(name: str, x: int) -> Mapping[str, float]:
    """A point in a process of its own.

    Raises:
        RuntimeError: it failed or took too long.
        KeyboardInterrupt: a block around has noted Ctrl-C; of the point nothing is left.
    """
    try:
        done = apart.run(apart.bench("curves", "--one", name, str(x)), limit_s=POINT_LIMIT_S)
    except apart.TooLongError as e:
        raise RuntimeError(str(e)) from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1])
    figures: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
