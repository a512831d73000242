"""The demo's report and measurements: what is unknown is null, the page holds all it needs, hostile text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from crdtkv.core.causality import Dot, Origin, VersionVector
from crdtkv.demo.findings import Clash, Cut, Findings, Geography, Phase, Place, Story
from crdtkv.demo.records import Entry, JournalEntry, Kind, Observation, Op, Slot, Write
from crdtkv.demo.report import build_report, render_page, write_report
from crdtkv.demo.verifier import Check, CutProof, verify
from crdtkv.instruments.lag import LagMeter, Pair, cdf, quantile

US, EU = Origin("us@1-00000000"), Origin("eu@1-00000000")
HOSTILE = "</script><script>alert(1)</script><!--"


def findings() -> Findings:
    """A small run of two regions: one conflict, a cut, pulses of which those across the cut came late."""
    slot = Slot("airport/X", "register")
    ours = Write("us", "cut", Op(Kind.SET, slot, {"name": HOSTILE}), Dot(US, 1), 1 << 16, VersionVector({US: 1}), 3.1)
    theirs = Write("eu", "cut", Op(Kind.SET, slot, {"name": "b"}), Dot(EU, 1), 2 << 16, VersionVector({EU: 1}), 3.2)
    entries = [Entry(theirs.dot, theirs.hlc, {"name": "b"}), Entry(ours.dot, ours.hlc, {"name": HOSTILE})]
    entry = JournalEntry(slot, "greatest (hlc, origin)", theirs.dot, (ours.dot,))
    seen = [
        Observation(r, VersionVector({US: 1, EU: 1}), "d" * 32, {slot.key: entries}, {slot.key: {"name": "b"}}, journal=[entry])
        for r in ("us", "eu")
    ]
    meter = LagMeter(["us", "eu"])
    for n in range(60):
        for source, other in (("us", "eu"), ("eu", "us")):
            number = meter.due(source, n * 0.1)
            cut = 3.0 <= n * 0.1 < 5.0
            meter.seen(source, source, number, n * 0.1 + 0.001)
            meter.seen(source, other, number, 5.2 if cut else n * 0.1 + 0.05)
            meter.acknowledged(source, number, n + 1)
    proof = CutProof(Check("the regions differed before the heal"), {("us", "eu"): 1}, {slot.key: {"us": HOSTILE, "eu": "b"}})
    out = Findings(
        "2026-11-23T21:00:00+00:00",
        1,
        Geography([Place("us", "w", "h:1"), Place("eu", "f", "h:2")], {("us", "eu"): 46.0}, "made up"),
        {},
        meter,
    )
    out.writes = [ours, theirs]
    out.phases = [
        Phase("load", "l", 0, 1),
        Phase("edits", "e", 1, 2.9),
        Phase("cut", "c", 2.9, 5),
        Phase("heal", "h", 5, 6),
        Phase("verify", "v", 6, 7),
    ]
    out.cut = Cut("eu", 3.0, 5.0, {"us": "a", "eu": "b"}, {}, proof, {("us", "eu"): None}, {Pair("us", "eu"): 0.2, Pair("eu", "us"): None})
    out.settled_s, out.duration_s = 0.1, 7.0
    out.observations, out.verdict = seen, verify(out.writes, seen)
    out.stories = [Story("a conflict", slot.key, "reads b", "the story")]
    out.clashes = [Clash(entry, ["us", "eu"], theirs, [(ours.dot, ours)], staged=True)]
    return out


def test_the_report_is_plain_json_with_every_number() -> None:
    report = json.loads(json.dumps(build_report(findings(), "1.2.3"), allow_nan=False))
    assert report["ok"] is True and report["crdtkv"] == "1.2.3" and report["format"] == 1
    assert report["classification"]["regions"]["us"] == {"visible": 1, "superseded": 0, "journal": 1, "lost": 0}
    assert sum(report["classification"]["regions"]["eu"].values()) == report["writes"]["acknowledged"] == 2
    assert report["conflicts"]["list"][0]["winner"]["region"] == "eu" and report["conflicts"]["list"][0]["losers"][0]["region"] == "us"
    pair = next(p for p in report["lag"] if (p["from"], p["to"]) == ("us", "eu"))
    assert (pair["emulated_ms"], pair["p50_ms"], pair["max_ms"], pair["samples"]) == (46.0, 50.0, 50.0, 19)
    assert pair["cdf"][-1][1] == 1.0


def test_lag_across_the_cut_is_unknown_never_zero() -> None:
    report = build_report(findings(), "1")
    for pair in report["lag"]:
        assert pair["phases"]["cut"]["known"] is False
    assert report["cut"]["lag_reported_by_nodes"] == [{"at": "us", "of": "eu", "lag_ms": None}]
    assert report["cut"]["caught_up_after_heal_ms"] == {"us>eu": 200.0, "eu>us": None}
    behind = report["timeline"]["pairs"]["us>eu"]["behind_ms"]
    assert all(x is None or x > 0 for x in behind)
    assert max(x for x in behind if x is not None) > 1900


def test_a_failed_check_makes_the_report_fail() -> None:
    found = findings()
    found.checks.append(Check("the regions became equal in time", count=1, violations=["no"]))
    report = build_report(found, "1")
    assert report["ok"] is False and [c["name"] for c in report["checks"] if not c["ok"]] == ["the regions became equal in time"]
    found = findings()
    found.verdict = None
    assert build_report(found, "1")["ok"] is False


def test_the_page_is_one_file_and_hostile_text_cannot_leave_its_place(tmp_path: Path) -> None:
    page = write_report(build_report(findings(), "1"), tmp_path / "new" / "dir")
    text = page.read_text(encoding="utf-8")
    assert json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["ok"] is True
    assert HOSTILE not in text and text.count("</script>") == 2
    inside = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.S)
    assert inside and json.loads(inside[1])["conflicts"]["list"][0]["losers"][0]["value"] == f"name: {HOSTILE}"
    assert not re.search(r"""(src|href)\s*=\s*["']|@import|url\(|fetch\(|https?://(?!www\.w3\.org/2000/svg)""", text), (
        "the page must need no network"
    )
    assert "innerHTML" not in text and "prefers-color-scheme: dark" in text


def test_the_page_cuts_long_lists_but_says_how_many_there_are() -> None:
    found = findings()
    found.clashes = found.clashes * 1000
    report = build_report(found, "1")
    assert len(report["conflicts"]["list"]) == 1000
    inside = re.search(r'id="report">(.*?)</script>', render_page(report), re.S)
    assert inside is not None
    carried = json.loads(inside[1])["conflicts"]
    assert len(carried["list"]) == 400 and carried["total"] == 1000


# -- lag ------------------------------------------------------------------------------------------------------


def test_quantiles_are_samples() -> None:
    values = [float(x) for x in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert quantile([7.0], 0.5) == 7.0


def test_a_cdf_keeps_its_ends_and_never_falls() -> None:
    points = cdf([float(x) for x in range(10_000)])
    assert len(points) <= 160 and points[0] == (0.0, 1 / 10_000) and points[-1] == (9999.0, 1.0)
    assert points == sorted(points)


def test_a_pulse_that_was_skipped_was_seen_with_the_next() -> None:
    meter = LagMeter(["us", "eu"])
    for n in range(3):
        meter.due("us", n * 1.0)
    meter.seen("us", "eu", 2, 5.0)
    summary = meter.summary(Pair("us", "eu"), 0.0, 10.0)
    assert (summary.samples, summary.max_ms, summary.p50_ms, summary.unseen) == (3, 5000.0, 4000.0, 0)


def test_what_was_not_seen_has_no_lag() -> None:
    meter = LagMeter(["us", "eu"])
    meter.due("us", 1.0)
    summary = meter.summary(Pair("us", "eu"), 0.0, 10.0)
    assert (summary.samples, summary.unseen) == (0, 1)
    assert summary.p50_ms is None and summary.p99_ms is None and summary.max_ms is None
    assert meter.caught_up_s(Pair("us", "eu"), 2.0) is None
    assert meter.caught_up_s(Pair("us", "eu"), 0.5) == 0.5
    line = meter.timeline(Pair("us", "eu"), 3.0, 1.0, [(1.0, 1)])
    assert list(line.behind_ms) == [None, 1000.0, 2000.0]
    assert list(line.backlog) == [1, 1, 1]


@pytest.mark.parametrize("region", ["us", "eu"])
def test_pairs_are_those_of_different_regions(region: str) -> None:
    assert [p for p in LagMeter(["us", "eu"]).pairs() if p[0] == region] == [Pair(region, "eu" if region == "us" else "us")]


def test_findings_name_their_phases() -> None:
    found = findings()
    assert found.phase("cut").start_s == 2.9
    assert dataclasses.replace(found.phases[0], name="x").title == "l"
