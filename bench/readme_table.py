"""The README's figures, drawn from the committed results: what was measured stands there, and nothing else. Pure but for `main`.

`python -m bench table` writes them between the two marks; `--check` says whether they are there already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.goals import report
from bench.goals.runner import ROUNDS
from bench.judging import amount, human

GOALS: Final = Path("bench/results/goals.json")
CURVES: Final = Path("bench/results/curves.json")
README: Final = Path("README.md")
BEGIN: Final = "<!-- figures: written by `python -m bench table` -->"
END: Final = "<!-- figures: end -->"

GROWS: Final = (
    ("set-size", ("add_us", "contains_us", "delta_bytes")),
    ("keys", ("put_us", "get_us")),
    ("keys-rocksdb", ("put_us", "get_us")),
    ("history", ("put_us", "open_ms")),
    ("regions", ("origin_cpu_us", "applied_everywhere_us")),
    ("batch-size", ("put_us", "wire_bytes")),
    ("value-size", ("put_us", "get_us")),
    ("backlog", ("encode_us", "apply_us")),
)


def table(goals: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Markdown: the goals beside what they are held against, then what grows and what that costs."""
    note = f" {goals['note']}" if goals.get("note") else ""
    lines = [f"Goals, measured {machine.line(goals['machine'])}: {report.summary(goals)}.{note}", ""]
    lines += ["| path | beside | found | goal | | alone: `python -m bench goals …` |", "|---|---|---|---|---|---|"]
    for row in goals["rows"]:
        rounds = max((len(figures) for figures in row["rounds"].values()), default=0)
        few = "" if rounds >= ROUNDS else f" ({rounds} round{'' if rounds == 1 else 's'})"
        for number, claim in enumerate(claim for claim in row["claims"] if claim["bound"] is not None):
            first = number == 0
            cells = (
                f"{row['path']}{few}" if first else "",
                _beside(claim),
                _found(claim),
                report.bound(claim),
                report.MARKS[claim["verdict"]],
                f"`--row {row['name']}`" if first else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    if goals["not_measured"]:
        lines += ["", f"Rows that were not measured in that run: {', '.join(goals['not_measured'])}."]
    lines += [
        "",
        f"As things grow, measured {machine.line(curves['machine'])} ([all points](bench/results/curves.svg), `make bench-curves`):",
        "",
    ]
    lines += ["| what grows | from → to | what an operation costs |", "|---|---|---|"]
    for name, metrics in GROWS:
        if name in curves["curves"]:
            lines.append(_grown(curves["curves"][name], metrics))
    return "\n".join(lines)


def _beside(claim: Mapping[str, Any]) -> str:
    name, metric = claim["ours"].rsplit("/", 1)
    what = metric.rsplit("_", 1)[0].replace("_", " ").removesuffix(" per")
    side = name if what == "op" else f"{name} {what}"
    if not claim["base"]:
        return side
    base, base_metric = claim["base"].rsplit("/", 1)
    figure = "not measured" if claim["base_figure"] is None else amount(claim["base_figure"], base_metric)
    ours = "not measured" if claim["figure"] is None else amount(claim["figure"], metric)
    return f"{side} {ours} : {base} {figure}"


def _found(claim: Mapping[str, Any]) -> str:
    if claim["value"] is None:
        return "not measured"
    return f"{claim['value']:.2f} ×" if claim["base"] else amount(claim["value"], claim["ours"])


def _grown(curve: Mapping[str, Any], metrics: tuple[str, ...]) -> str:
    first, last = curve["points"][0], curve["points"][-1]
    costs = []
    for metric in metrics:
        name = metric.rsplit("_", 1)[0].replace("_", " ")
        begins, ends = amount(first["figures"][metric], metric), amount(last["figures"][metric], metric)
        unit = ends.rpartition(" ")[2]
        costs.append(f"{name} {begins.removesuffix(f' {unit}')} → {ends}")
    return f"| {curve['title']} | {human(first['x'])} → {human(last['x'])} | {'; '.join(costs)} |"


def within(readme: str, text: str) -> str:
    """The README with these figures between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: the marks {BEGIN!r} and {END!r} are not there")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(*, check: bool) -> int:
    """Write the figures, or say whether they are there; returns the exit status."""
    goals, curves = (json.loads(path.read_text(encoding="utf-8")) for path in (GOALS, CURVES))
    readme = README.read_text(encoding="utf-8")
    fresh = within(readme, table(goals, curves))
    if check:
        if fresh != readme:
            print("README.md: its figures are not those of bench/results: run python -m bench table")
        return int(fresh != readme)
    README.write_text(fresh, encoding="utf-8")
    return 0
