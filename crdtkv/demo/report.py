"""Writes what the demo found: `report.json` with every number, and `index.html`, one page that needs no network.

`docs/demo.md` describes the JSON. The page is `crdtkv.instruments`'s frame with the same JSON inside; `report.js` arranges
its sections. What is unknown is null, never zero.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crdtkv.core.clock import ms_of
from crdtkv.demo.findings import Clash, Findings, Phase
from crdtkv.demo.records import Kind, Write
from crdtkv.demo.verifier import Check, short
from crdtkv.instruments.lag import LagSummary, Pair
from crdtkv.instruments.page import compose

FORMAT = 1
"""Raised when a field changes its meaning or goes away; new fields do not raise it."""
TIMELINE_STEP_S = 0.1
TIMELINE_TAIL_S = 0.3
"""How far the timeline goes on after the last write."""
PAGE_CONFLICTS_MAX = 400
"""How many conflicts the page carries; `report.json` has all."""


def build_report(findings: Findings, version: str) -> dict[str, Any]:
    """Everything as plain JSON types. Pure but for the names of the machine's platform."""
    verdict = findings.verdict
    checks = findings.all_checks()
    return {
        "format": FORMAT,
        "crdtkv": version,
        "ok": findings.ok,
        "started_at": findings.started_at,
        "duration_s": _round(findings.duration_s),
        "seed": findings.seed,
        "environment": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
        },
        "dataset": dict(findings.dataset),
        "cluster": {
            "regions": [{"name": p.name, "city": p.city, "address": p.address} for p in findings.geography.places],
            "one_way_ms": [{"between": list(pair), "ms": ms} for pair, ms in sorted(findings.geography.delays_ms.items())],
            "source": findings.geography.source,
        },
        "phases": [{"name": p.name, "title": p.title, "start_s": _round(p.start_s), "end_s": _round(p.end_s)} for p in findings.phases],
        "writes": _writes(findings.writes),
        "lag": _lag(findings),
        "timeline": _timeline(findings),
        "cut": _cut(findings),
        "convergence": {
            "settled_s": _round(findings.settled_s),
            "digests": {o.region: o.digest for o in findings.observations},
            "version_vectors": {o.region: dict(o.vv) for o in findings.observations},
        },
        "checks": [_check(c) for c in checks],
        "classification": {
            "acknowledged": verdict.acknowledged if verdict else 0,
            "regions": {r: {str(f): n for f, n in fates.items()} for r, fates in verdict.fates.items()} if verdict else {},
            "by_type": {
                r: {t: {str(f): n for f, n in fates.items()} for t, fates in sorted(types.items())}
                for r, types in verdict.fates_by_type.items()
            }
            if verdict
            else {},
        },
        "counters": {
            "count": len(verdict.counters) if verdict else 0,
            "sum": sum(verdict.counters.values()) if verdict else 0,
            "values": {
                key: {"acknowledged": n, "read": {o.region: o.counters.get(key, 0) for o in findings.observations}}
                for key, n in sorted(verdict.counters.items())
            }
            if verdict
            else {},
        },
        "staged": [{"title": s.title, "key": s.key, "outcome": s.outcome, "explanation": s.explanation} for s in findings.stories],
        "conflicts": {
            "total": len(findings.clashes),
            "journal_entries": {o.region: len(o.journal) for o in findings.observations},
            "by_rule": dict(Counter(c.entry.rule for c in findings.clashes).most_common()),
            "by_type": dict(Counter(c.entry.slot.type for c in findings.clashes).most_common()),
            "adds_that_beat_removes": sum(1 for c in findings.clashes if is_add_win(c)),
            "list": [_clash(c) for c in findings.clashes],
        },
    }


def write_report(report: dict[str, Any], directory: Path) -> Path:
    """Write `report.json` and `index.html` into a directory, made if it is not there; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = directory / "index.html"
    page.write_text(render_page(report), encoding="utf-8")
    return page


def render_page(report: dict[str, Any]) -> str:
    """The page: the template with the report inside, its long lists cut."""
    conflicts = {**report["conflicts"], "list": report["conflicts"]["list"][:PAGE_CONFLICTS_MAX]}
    counters = {**report["counters"], "values": {}}
    inside = {**report, "conflicts": conflicts, "counters": counters}
    return compose("crdtkv demo report", inside, "report.json", "crdtkv.demo", "report.js")


def is_add_win(clash: Clash) -> bool:
    """Whether an add to a set beat a removal."""
    return clash.entry.slot.type == "set" and clash.entry.winner is not None


def _round(x: float | None, digits: int = 3) -> float | None:
    return None if x is None or not math.isfinite(x) else round(x, digits)


def _check(check: Check) -> dict[str, Any]:
    return {"name": check.name, "ok": check.ok, "detail": check.detail, "violations": check.count, "first": list(check.violations)}


def _writes(writes: Sequence[Write]) -> dict[str, Any]:
    return {
        "acknowledged": len(writes),
        "commits": len({w.dot for w in writes}),
        "by_region": dict(Counter(w.region for w in writes)),
        "by_phase": dict(Counter(w.phase for w in writes)),
        "by_kind": dict(Counter(_kind(w) for w in writes)),
    }


def _kind(write: Write) -> str:
    match write.slot.type, write.op.kind:
        case "counter", _:
            return "counter increment"
        case "set", Kind.SET:
            return "set add"
        case "set", _:
            return "set remove"
        case type_, Kind.SET:
            return f"{type_} put"
        case type_, _:
            return f"{type_} delete"


def _summary(lag: LagSummary) -> dict[str, Any]:
    return {
        "samples": lag.samples,
        "unseen": lag.unseen,
        "p50_ms": _round(lag.p50_ms),
        "p99_ms": _round(lag.p99_ms),
        "max_ms": _round(lag.max_ms),
    }


def _lag(findings: Findings) -> list[dict[str, Any]]:
    """Per pair: the phase of edits in full, and each phase's summary; across the cut `known` is false."""
    out = []
    meter, cut = findings.meter, findings.cut
    for pair in meter.pairs():
        phases = {}
        for p in findings.phases:
            if p.name not in ("load", "edits", "cut", "heal"):
                continue
            across = p.name == "cut" and cut is not None and cut.region in pair
            phases[p.name] = {"known": not across, **_summary(meter.summary(pair, *_span(findings, p)))}
        edits = meter.summary(pair, *_span(findings, findings.phase("edits")))
        caught_up = cut.caught_up_s.get(pair) if cut else None
        out.append(
            {
                "from": pair[0],
                "to": pair[1],
                "emulated_ms": findings.geography.delay_ms(*pair),
                **_summary(edits),
                "cdf": [[_round(x, 2), _round(share, 5)] for x, share in edits.cdf],
                "phases": phases,
                "caught_up_after_heal_ms": None if caught_up is None else _round(caught_up * 1000, 1),
            }
        )
    return out


def _span(findings: Findings, phase: Phase) -> tuple[float, float]:
    """A phase's time; that of the cut is the time it was in effect."""
    if phase.name == "cut" and findings.cut is not None:
        return findings.cut.start_s, findings.cut.end_s
    if phase.name == "heal" and findings.cut is not None:
        return findings.cut.end_s, phase.end_s
    return phase.start_s, phase.end_s


def _timeline(findings: Findings) -> dict[str, Any]:
    last = max((findings.meter.last_due_s(r) for r in findings.meter.regions), default=0.0)
    end = min(findings.duration_s, last + TIMELINE_TAIL_S)
    acked: dict[str, dict[int, float]] = {r: {} for r in findings.meter.regions}
    for w in findings.writes:
        acked[w.region].setdefault(w.dot.seq, w.acked_s)
    pairs: dict[str, Any] = {}
    times: list[float] = []
    for pair in findings.meter.pairs():
        line = findings.meter.timeline(pair, end, TIMELINE_STEP_S, [(t, seq) for seq, t in sorted(acked[pair[0]].items())])
        times = [round(t, 2) for t in line.t_s]
        pairs[f"{pair[0]}>{pair[1]}"] = {"behind_ms": [_round(x, 1) for x in line.behind_ms], "backlog": list(line.backlog)}
    return {"step_s": TIMELINE_STEP_S, "t_s": times, "pairs": pairs}


def _cut(findings: Findings) -> dict[str, Any] | None:
    cut = findings.cut
    if cut is None:
        return None
    proof = cut.proof
    return {
        "region": cut.region,
        "start_s": _round(cut.start_s),
        "end_s": _round(cut.end_s),
        "proved": proof.check.ok,
        "digests": dict(cut.digests),
        "version_vectors": dict(cut.vvs),
        "missing_commits": [{"in": lacks, "of": of, "commits": n} for (lacks, of), n in sorted(proof.missing.items())],
        "reads": [{"key": key, "in": dict(row)} for key, row in proof.differing.items()],
        "lag_reported_by_nodes": [{"at": at, "of": of, "lag_ms": _round(ms)} for (at, of), ms in sorted(cut.reported_lag_ms.items())],
        "caught_up_after_heal_ms": {_name(pair): None if s is None else _round(s * 1000, 1) for pair, s in cut.caught_up_s.items()},
    }


def _name(pair: Pair) -> str:
    return f"{pair[0]}>{pair[1]}"


def _party(write: Write | None, dot: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"origin": dot.origin, "seq": dot.seq}
    if write is not None:
        out |= {
            "region": write.region,
            "kind": _kind(write),
            "value": _value(write),
            "unix_ms": ms_of(write.hlc),
            "hlc": write.hlc,
            "at_s": _round(write.acked_s),
        }
    return out


def _value(write: Write) -> str | None:
    """What was written, in short."""
    value = write.op.value
    if write.slot.type == "set" or write.op.kind is Kind.REMOVE:
        return None
    return short(value, 120)


def _clash(clash: Clash) -> dict[str, Any]:
    slot = clash.entry.slot
    return {
        "key": slot.key,
        "type": slot.type,
        "subkey": slot.subkey,
        "rule": clash.entry.rule,
        "winner": None if clash.entry.winner is None else _party(clash.winner, clash.entry.winner),
        "losers": [_party(write, dot) for dot, write in clash.losers],
        "in_journals_of": list(clash.regions),
        "staged": clash.staged,
    }
