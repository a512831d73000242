"""What the benchmarks share: interleaved rounds, medians, a table with ratios, JSON.

A contender is a function that does a fixed amount of work and returns its figure (operations per second, or
microseconds). Contenders of one comparison run in turn within each round, so that a machine that drifts drifts for
all; the figure is the median over the rounds, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        figure: median over the rounds, in `unit`.
        low, high: least and greatest round.
        base: name of the row that `ratio` is relative to; "" if there is none.
        ratio: median over the rounds of figure / base's figure.
        target: what the ratio or figure should be, as text; "" if nothing was promised.
        met: whether it is; None if nothing was promised.
    """

    name: str
    figure: float
    unit: str
    low: float
    high: float
    base: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Target:
    """A promise about a contender: its ratio to `base` (or, without one, its figure) is at least or at most `bound`."""

    bound: float
    base: str = ""
    at_most: bool = False

    def __str__(self) -> str:
        bound = f"{self.bound:g} ×" if self.base else human(self.bound)
        return f"{'≤' if self.at_most else '≥'} {bound}"

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def compare(
    contenders: Mapping[str, Callable[[], float]], *, unit: str, targets: Mapping[str, Target] | None = None, rounds: int = ROUNDS
) -> list[Row]:
    """Run all contenders in turn, `rounds` times, after one unmeasured round."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            gc.collect()
            figure = run()
            if number:
                figures[name].append(figure)
    return rows(figures, unit=unit, targets=targets)


def rows(figures: Mapping[str, Sequence[float]], *, unit: str, targets: Mapping[str, Target] | None = None) -> list[Row]:
    """The rows of figures that were measured round by round."""
    made = []
    for name, values in figures.items():
        target = (targets or {}).get(name)
        figure = statistics.median(values)
        ratio = None
        if target is not None and target.base:
            ratio = statistics.median(a / b for a, b in zip(values, figures[target.base], strict=True))
        judged = figure if ratio is None else ratio
        made.append(
            Row(
                name,
                figure,
                unit,
                min(values),
                max(values),
                base="" if target is None else target.base,
                ratio=ratio,
                target="" if target is None else str(target),
                met=None if target is None else target.met_by(judged),
            )
        )
    return made


def rate(work: Callable[[], object], operations: int) -> float:
    """Operations per second of one run of `work`."""
    began = time.perf_counter()
    work()
    return operations / (time.perf_counter() - began)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


def human(figure: float) -> str:
    """Three significant digits, k and M for thousands and millions."""
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if figure >= size:
            return f"{figure / size:.3g}{suffix}"
    return f"{figure:.3g}"


def table(title: str, made: Sequence[Row]) -> str:
    """The rows as text."""
    head = ("", "median", "unit", "low … high", "ratio", "to", "target", "")
    body = [
        (
            row.name,
            human(row.figure),
            row.unit,
            f"{human(row.low)} … {human(row.high)}",
            "" if row.ratio is None else f"{row.ratio:.2f} ×",
            row.base,
            row.target,
            "" if row.met is None else "met" if row.met else "MISSED",
        )
        for row in made
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, *body]]
    return "\n".join([title, *lines, ""])


class Report:
    """Prints each table when it is there, or everything as one JSON document at the end."""

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
        parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds (default %(default)s)")
        parser.add_argument("--scale", type=float, default=1.0, help="amount of work, as a factor (default %(default)s)")
        self.arguments = parser.parse_args()
        self._sections: dict[str, list[Row]] = {}

    def scaled(self, amount: int) -> int:
        """An amount of work, at the scale asked for."""
        return max(1, int(amount * self.arguments.scale))

    def add(self, title: str, made: Sequence[Row]) -> None:
        self._sections[title] = list(made)
        if not self.arguments.json:
            print(table(title, made), flush=True)

    def finish(self) -> None:
        if self.arguments.json:
            machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(), "argv": sys.argv}
            sections = {title: [asdict(row) for row in made] for title, made in self._sections.items()}
            print(json.dumps({"machine": machine, "sections": sections}, indent=2))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
