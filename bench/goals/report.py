"""The report of the goals: a line a claim in the terminal, Markdown for documents, one HTML page. Pure: JSON in, text out."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.judging import amount

MARKS: Final = {"met": "✓", "half": "half", "below half": "below half", "void": "void", "not measured": "–", "": ""}


def bound(claim: Mapping[str, Any]) -> str:
    """A claim's goal, short."""
    if claim["bound"] is None:
        return ""
    sign = "≤" if claim["at_most"] else "≥"
    return f"{sign} {claim['bound']:g} ×" if claim["base"] else f"{sign} {amount(claim['bound'], claim['ours'])}"


def found(claim: Mapping[str, Any]) -> str:
    """What was found: the ratio, or the figure, with low and high."""
    if claim["value"] is None:
        return "not measured"
    if claim["base"]:
        return f"{claim['value']:.2f} × ({claim['low']:.2f} … {claim['high']:.2f})"
    value, low, high = (amount(claim[name], claim["ours"]) for name in ("value", "low", "high"))
    return f"{value} ({low} … {high})"


def sides(claim: Mapping[str, Any]) -> str:
    """The figures behind a ratio."""
    name, metric = claim["ours"].rsplit("/", 1)
    measure = metric.rsplit("_", 1)[0].replace("_", " ").removesuffix(" per")
    measure = "" if measure == "op" else f" {measure}"
    ours = "" if claim["figure"] is None else f"{name}{measure} {amount(claim['figure'], metric)}"
    if not claim["base"]:
        return f"{name}{measure}"
    base_name, base_metric = claim["base"].rsplit("/", 1)
    base = "not measured" if claim["base_figure"] is None else amount(claim["base_figure"], base_metric)
    return f"{ours} : {base_name} {base}"


def text(row: Mapping[str, Any]) -> str:
    """A row for a terminal."""
    lines = [f"{row['name']}: {row['path']}  [{row['verdict'] or 'told'}]"]
    if row["error"]:
        return f"{lines[0]}\n  failed: {row['error']}; alone: {row['rerun']}"
    for claim in row["claims"]:
        lines.append(f"  {found(claim):<28} {bound(claim):<12} {claim['verdict'] or '':<12} {sides(claim)}")
    lines += [f"  {name}: {why}" for name, why in row["missing"].items()]
    return "\n".join(lines)


def markdown(document: Mapping[str, Any]) -> str:
    """All rows as one table, a line a claim."""
    out = [f"Measured {machine.line(document['machine'])}. Medians of ratios over interleaved rounds, with the least and the greatest.", ""]
    out += ["| path | goal | found | | figures | alone |", "|---|---|---|---|---|---|"]
    out += [f"| {' | '.join(cells)} |" for cells in _lines(document)]
    return "\n".join([*out, ""])


def _lines(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in document["rows"]:
        alone = f"`--row {row['name']}`"
        if row["error"]:
            yield (row["path"], row["goal"], f"failed: {row['error']}", MARKS["not measured"], "", alone)
            continue
        for number, claim in enumerate(row["claims"]):
            first = number == 0
            yield (row["path"] if first else "", bound(claim), found(claim), MARKS[claim["verdict"]], sides(claim), alone if first else "")


def summary(document: Mapping[str, Any]) -> str:
    """How many goals hold, in a line."""
    judged = [claim for row in document["rows"] for claim in row["claims"] if claim["bound"] is not None]
    counts = {
        verdict: sum(claim["verdict"] == verdict for claim in judged) for verdict in ("met", "half", "below half", "void", "not measured")
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{len(judged)} goals in {len(document['rows'])} rows: {told}"


def page(document: Mapping[str, Any]) -> str:
    """One page that needs no network."""
    lead = (
        f"Measured {machine.line(document['machine'])}. A ratio is the median of the rounds' ratios, the sides in turn within each round; "
        "least and greatest stand beside it. Void: the bare limit misses the bound in the same run."
    )
    parts = [f"<h1>{_e(summary(document))}</h1>", f"<p>{_e(lead)}</p>", *(_section(row) for row in document["rows"])]
    versions = ", ".join(f"{name} {version}" for name, version in document["machine"]["versions"].items())
    parts.append(f"<p><small>{_e(versions)}</small></p>")
    template = Path(__file__).with_name("report.html.template").read_text(encoding="utf-8")
    return template.replace("/*BODY*/", "\n".join(parts))


def _section(row: Mapping[str, Any]) -> str:
    about = f"against {row['against']}; goal: {row['goal']}."
    parts = [f"<section><h2>{_e(row['path'])}</h2>", f"<p>{_e(about)} <code>{_e(row['rerun'])}</code></p>"]
    if row["error"]:
        parts.append(f"<p class=below>failed: {_e(row['error'])}</p>")
    lines = []
    for claim in row["claims"]:
        tone = (claim["verdict"] or "told").split()[0]
        lines.append(
            f"<tr><td>{_e(found(claim))}</td><td>{_e(bound(claim))}</td>"
            f"<td><b class={_e(tone)}>{_e(claim['verdict'])}</b></td><td>{_e(sides(claim))}</td></tr>"
        )
    parts.append(f"<table><tr><th>found<th>goal<th><th>figures (medians)</tr>{''.join(lines)}</table>")
    notes = [f"{name}: {why}" for name, why in row["missing"].items()]
    notes += [f"what {name} has answered survives: {what}" for name, what in row["durability"].items()]
    parts += [f"<small>{_e(note)}</small><br>" for note in notes]
    return "\n".join([*parts, "</section>"])


_e = html.escape
