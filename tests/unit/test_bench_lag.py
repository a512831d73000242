"""The lag laboratory without nodes: schedule, workload, what counts to which phase, results, comparison, page, command line."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from collections.abc import Generator as Awaiting
from pathlib import Path
from typing import Any

import pytest

from crdtkv.bench.compare import BLOCKS_MAX, RULE, blocks, compare, load
from crdtkv.bench.histogram import Histogram
from crdtkv.bench.laboratory import Clock, CutMade, Generator, Laboratory, LagSettings, Measured, _first_sightings
from crdtkv.bench.page import render_page, write_results
from crdtkv.bench.results import AFTER, BEFORE, CUT, DRAIN, build, figures, phase_of, slice_s
from crdtkv.bench.schedule import CutPlan, Schedule, parse_cut, parse_seconds
from crdtkv.bench.workload import Workload
from crdtkv.cli.main import main
from crdtkv.errors import ConfigError
from crdtkv.instruments.lag import LagMeter, Pair
from crdtkv.results import Change, Commit
from crdtkv.transport.loop import precise_event_loop
from tests.unit.documents import ROOT

REGIONS = ("us", "eu")
RATE = 200.0
HOSTILE = "</script><script>alert(1)</script>"

# -- schedule -----------------------------------------------------------------------------------------------------------


def test_no_error_adds_up_and_every_write_before_the_end_is_counted() -> None:
    schedule = Schedule(-1.0, 1000 / 3)
    count = schedule.count_before(20.0)
    assert count == 7000
    assert schedule.due_s(count - 1) < 20.0 <= schedule.due_s(count)
    assert schedule.due_s(3_000_000) == -1.0 + 9000.0


def test_what_is_overdue_comes_at_once_with_the_time_at_which_it_was_due() -> None:
    now = [0.0]

    async def stalled() -> list[tuple[int, float]]:
        out = []
        async for number, due in Schedule(0.0, 1000.0).until(0.005, lambda: now[0]):
            out.append((number, due))
            now[0] = 10.0  # the first one took ten seconds
        return out

    assert asyncio.run(stalled()) == [(n, n / 1000) for n in range(5)]


def test_the_precise_loop_is_one_that_runs() -> None:
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        assert runner.run(asyncio.sleep(0.0001, "slept")) == "slept"


def test_cuts_and_durations_as_typed() -> None:
    assert parse_cut("eu@5+3", REGIONS, 20.0) == CutPlan("eu", None, 5.0, 3.0)
    plan = parse_cut("us-eu@500ms+1.5s", REGIONS, 20.0)
    assert (plan.target, plan.start_s, plan.end_s) == ("us-eu", 0.5, 2.0)
    assert parse_seconds("250ms", "x") == 0.25
    three = CutPlan("us", None, 0, 1)
    assert (
        three.separates("us", "ap") and three.separates("ap", "us") and not three.separates("eu", "ap") and not three.separates("us", "us")
    )
    assert not plan.separates("us", "ap")


@pytest.mark.parametrize("text", ["eu", "eu@5", "eu@5+", "eu@x+1", "moon@1+1", "eu@19+1", "eu@1+0", "@1+1"])
def test_a_cut_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_cut(text, REGIONS, 20.0)


# -- workload -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 100, 70_000, 200_000])
def test_payloads_have_the_size_and_are_all_different(size: int) -> None:
    made = [Workload("p/", "set", size, 1).payload(n) for n in range(100)]
    assert {len(p) for p in made} == {size} and len(set(made)) == 100


# -- joining ------------------------------------------------------------------------------------------------------------


def test_a_sighting_stands_for_all_commits_before_it() -> None:
    assert _first_sightings([3, 4, 9, 12], [(4, 1.0), (8, 2.0), (10, 3.0)]) == [(0, 1.0), (1, 1.0), (2, 3.0)]
    assert _first_sightings([3], []) == [] and _first_sightings([], [(1, 1.0)]) == []


def test_a_write_belongs_to_the_phase_that_shaped_its_lag() -> None:
    cut = CutMade(CutPlan("eu", None, 5.0, 3.0), ordered_s=5.0, start_s=5.1, end_s=8.0)
    across = [
        (4.9, 4.95, BEFORE),
        (4.9, 8.4, CUT),  # on its way as the cut came
        (6.0, 8.4, CUT),
        (4.9, None, CUT),
        (8.1, 8.6, DRAIN),
        (8.7, 8.8, AFTER),
    ]
    assert [phase_of(due, seen, cut, True, 8.5) for due, seen, _ in across] == [phase for _, _, phase in across]
    beside = [(4.9, 8.4, BEFORE), (6.0, 6.1, CUT), (8.1, 8.2, DRAIN), (8.7, 8.8, AFTER)]
    assert [phase_of(due, seen, cut, False, 8.5) for due, seen, _ in beside] == [phase for _, _, phase in beside]
    assert phase_of(9.0, None, cut, True, None) == DRAIN, "what never drained has no after"
    assert phase_of(6.0, None, None, False, None) == BEFORE


# -- a run --------------------------------------------------------------------------------------------------------------


class Everywhere:
    """A client of a region whose writes are at once readable in all, which notes whose writes its watches were sent."""

    def __init__(self, region: str, world: list[Everywhere]) -> None:
        self.region, self.world = region, world
        self.seq = 0
        self.watches: list[Watch] = []
        self.sent: list[str] = []
        world.append(self)

    def __await__(self) -> Awaiting[None, None, None]:
        return asyncio.sleep(0).__await__()

    async def put(self, key: str, value: Any) -> Commit:
        self.seq += 1
        commit = Commit(f"{self.region}.0", self.seq, 0, "token")
        for client in self.world:
            for watch in client.watches:
                if key.startswith(watch.prefix):
                    client.sent.append(self.region)
                    watch.changes.put_nowait(Change(key, "register", None, "put", value, commit, "token"))
        return commit

    def watch(self, prefix: str, since: str | None) -> Watch:
        self.watches.append(Watch(prefix))
        return self.watches[-1]


class Watch:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.changes: asyncio.Queue[Change] = asyncio.Queue()

    def __await__(self) -> Awaiting[None, None, None]:
        return asyncio.sleep(0).__await__()

    async def __aiter__(self) -> AsyncIterator[Change]:
        while True:
            yield await self.changes.get()


@pytest.mark.parametrize("clock", list(Clock))
def test_all_pairs_are_measured_and_no_node_is_asked_for_what_was_written_there(clock: Clock) -> None:
    """A region's own writes make no pair; to send them back would cost node and instrument as many pages again, which shows as lag."""
    world: list[Everywhere] = []
    writers, watchers = ({r: Everywhere(r, world) for r in ("us", "eu", "ap")} for _ in range(2))
    settings = LagSettings(rate=1000.0, duration_s=0.05, warmup_s=0.0, clock=clock)

    async def run() -> Measured:
        return await Laboratory(writers, watchers, {}, None, settings, "run").run()  # type: ignore[arg-type]

    found = asyncio.run(run())
    assert all(
        len(found.acked[pair[0]]) == 50 == sum(seen is not None for _, seen in found.meter.samples(pair)) for pair in found.meter.pairs()
    )
    assert {region: set(client.sent) for region, client in watchers.items()} == {r: {"us", "eu", "ap"} - {r} for r in watchers}


# -- results ------------------------------------------------------------------------------------------------------------


def measured(lag_s: float = 0.05, duration_s: float = 10.0, *, cut: CutMade | None = None, lost: int = 0) -> Measured:
    """A made-up run: every write takes `lag_s`, each tenth twice that; across a cut they arrive half a second after the heal."""
    meter = LagMeter(REGIONS)
    for number in range(int(duration_s * RATE)):
        for source in REGIONS:
            due = number / RATE
            assert meter.due(source, due) == number
            meter.acknowledged(source, number, number + 1)
            for observer in REGIONS:
                took = 0.001 if observer == source else lag_s * (2 if number % 10 == 0 else 1)
                seen = due + took
                if cut is not None and observer != source and due < cut.end_s and seen > cut.ordered_s:
                    seen = cut.end_s + 0.5
                elif cut is not None and observer != source and due >= cut.end_s:
                    seen = max(seen, cut.end_s + 0.5)
                if number < duration_s * RATE - lost:
                    meter.seen(source, observer, number, seen)
    generators = {r: Generator(sent=1, acknowledged=1, late=Histogram([1000]), answered=Histogram([2000])) for r in REGIONS}
    acked = {r: [(n / RATE, n + 1) for n in range(int(duration_s * RATE))] for r in REGIONS}
    return Measured(meter, generators, acked, cut, duration_s + 0.1, 0)


def results(found: Measured, delays: dict[tuple[str, str], float] | None = None, **settings: Any) -> dict[str, Any]:
    made = build(
        found,
        LagSettings(rate=RATE, duration_s=10.0, **settings),
        started_at="2026-11-23T21:00:00+00:00",
        addresses={"us": "127.0.0.1:1", "eu": "127.0.0.1:2"},
        cities={},
        delays_ms=delays,
        delay_source=HOSTILE,
        options={"latency": "none"},
        environment={"python": "3", "system": "s", "cores": 2, "load_1min_before": 0.0, "versions": {}},
    )
    document: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return document


DELAYS = {("us", "eu"): 46.0, ("eu", "us"): 46.0}


def test_results_are_plain_json_with_figures_beside_the_delay() -> None:
    document = results(measured(), DELAYS)
    pair = document["lag"][0]
    assert (pair["from"], pair["to"], pair["emulated_ms"], pair["samples"], pair["unseen"]) == ("us", "eu", 46.0, 2000, 0)
    assert pair["p50_ms"] == pytest.approx(50.0, rel=1e-3) and pair["p50_overhead_ms"] == pytest.approx(4.0, abs=0.1)
    assert pair["p99_ms"] == pytest.approx(100.0, rel=1e-3) and pair["max_ms"] == pytest.approx(100.0)
    assert pair["p99_9_ms"] is None and pair["unsupported"] == ["p99_9", "p99_99"]
    assert Histogram.from_json(pair["histogram"]) == Histogram.merged(Histogram.from_json(part["histogram"]) for part in pair["slices"])
    assert pair["cdf"][-1][1] == 1.0 and pair["cdf"] == sorted(pair["cdf"])
    assert document["cluster"]["one_way_ms"] == [{"between": ["us", "eu"], "ms": 46.0}]
    assert document["clock"]["method"] == "monotonic" and document["cut"] is None and pair["phases"] == {}
    assert results(measured(), clock=Clock.ECHO)["clock"]["method"] == "echo"


def test_a_delay_that_is_not_emulated_is_unknown_not_zero() -> None:
    pair = results(measured())["lag"][0]
    assert pair["emulated_ms"] is None and pair["p50_overhead_ms"] is None


def test_across_a_cut_lag_is_unknown_and_what_was_held_back_does_not_count() -> None:
    cut = CutMade(CutPlan("eu", None, 4.0, 2.0), ordered_s=4.0, start_s=4.01, end_s=6.0)
    document = results(measured(cut=cut), DELAYS)
    for pair in document["lag"]:
        assert pair["across_cut"] and pair["phases"]["cut"]["known"] is False and pair["phases"]["before"]["known"] is True
        assert pair["max_ms"] < 110, "no wait for the heal among the lags"
        assert sum(phase["samples"] for phase in pair["phases"].values()) == 2000
        series = document["timeline"]["pairs"][f"{pair['from']}>{pair['to']}"]
        within = [x for t, x in zip(document["timeline"]["t_s"], series["p50_ms"], strict=True) if 4.15 < t < 5.95]
        assert within and all(x is None for x in within)
        assert all(x is None or x > 0 for x in series["behind_ms"])
    drained = document["cut"]["pairs"][0]
    assert drained["drain_ms"] == pytest.approx(500.0) and drained["held_back"] == pytest.approx(2 * RATE, abs=25)
    assert [p["name"] for p in document["phases"]] == [BEFORE, CUT, DRAIN, AFTER]


def test_what_never_arrived_is_unseen_and_its_drain_never_ends() -> None:
    cut = CutMade(CutPlan("eu", None, 4.0, 2.0), ordered_s=4.0, start_s=4.0, end_s=6.0)
    document = results(measured(cut=cut, lost=1200), DELAYS)
    assert all(p["drain_ms"] is None and p["held_back"] > 0 for p in document["cut"]["pairs"])
    assert sum(phase["unseen"] for phase in document["lag"][0]["phases"].values()) == 1200
    assert results(measured(lost=7), DELAYS)["lag"][0]["unseen"] == 7


def test_no_samples_give_no_figures() -> None:
    found = figures(Histogram())
    assert {found[name] for name in ("min_ms", "mean_ms", "p50_ms", "p99_99_ms", "max_ms")} == {None}


@pytest.mark.parametrize(("duration_s", "expected"), [(2.0, 0.1), (20.0, 1.0), (60.0, 1.0), (600.0, 5.0)])
def test_slices_are_neither_too_few_nor_too_many(duration_s: float, expected: float) -> None:
    assert slice_s(duration_s) == pytest.approx(expected)


def test_the_documented_fields_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = page.split("### results.json", 1)[1].split("\n## ", 1)[0].splitlines()
    documented = {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)(?:\[\])?`", row.split("|")[1])}
    assert documented == results(measured()).keys()


# -- comparison ---------------------------------------------------------------------------------------------------------


def verdicts(document: dict[str, Any], name: str = "p50") -> set[str]:
    return {pair[name]["verdict"] for pair in document["pairs"]}


def test_the_same_again_is_noise_and_a_shift_is_named_by_its_direction() -> None:
    old, slow = results(measured(0.050), DELAYS), results(measured(0.060), DELAYS)
    assert verdicts(compare(old, old)) == verdicts(compare(old, old), "p99") == {"noise"}
    worse = compare(old, slow)
    assert verdicts(worse) == verdicts(worse, "p99") == {"slower"} and verdicts(compare(slow, old)) == {"faster"}
    change = worse["pairs"][0]["p50"]
    assert change["low_ms"] <= change["difference_ms"] <= change["high_ms"] and change["difference_ms"] == pytest.approx(10.0, abs=0.2)
    assert worse["rule"] == RULE and compare(old, slow) == worse, "equal input, equal output"


def test_a_difference_that_users_cannot_feel_is_noise() -> None:
    assert verdicts(compare(results(measured(0.0500)), results(measured(0.0504)))) == {"noise"}


def wobbling(medians_ms: Sequence[float]) -> dict[str, Any]:
    document = results(measured())
    for pair in document["lag"]:
        parts = [Histogram([round(m * 1e6)] * 100) for m in medians_ms]
        pair["slices"] = [{"start_s": n, "histogram": part.to_json()} for n, part in enumerate(parts)]
    return document


def test_a_difference_within_what_a_run_varies_by_itself_is_noise() -> None:
    assert verdicts(compare(wobbling([10, 30] * 10), wobbling([30, 10] * 9 + [30, 30]))) == {"noise"}
    assert verdicts(compare(wobbling([10, 11] * 10), wobbling([30, 31] * 10))) == {"slower"}


def test_too_short_a_run_and_too_few_samples_leave_it_unknown() -> None:
    assert verdicts(compare(wobbling([10] * 7), wobbling([30] * 20))) == {"unknown"}
    assert verdicts(compare(wobbling([]), wobbling([30] * 20))) == {"unknown"}


def test_a_comparison_tells_what_else_was_different() -> None:
    old, new = results(measured()), results(measured(), size=1000)
    new["lag"] = new["lag"][:1]
    found = compare(old, new)
    assert found["configuration"] == [{"name": "size", "old": 100, "new": 1000}]
    assert [(p["from"], p["to"]) for p in found["pairs"]] == [("us", "eu")]


def test_blocks_hold_all_slices() -> None:
    parts = [Histogram([n]) for n in range(47)]
    made = blocks(parts)
    assert len(made) == BLOCKS_MAX and Histogram.merged(made) == Histogram(range(47)) and blocks([]) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "crdtkv bench lag", "format": 99}'])
def test_what_is_no_earlier_run_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(ConfigError):
        load(tmp_path / "old.json")
    with pytest.raises(ConfigError):
        load(tmp_path / "missing.json")


def test_an_earlier_run_that_contradicts_itself_is_refused() -> None:
    old = results(measured())
    old["lag"][0]["slices"][0]["histogram"]["count"] += 1
    with pytest.raises(ConfigError, match="us→eu"):
        compare(old, results(measured()))


# -- page ---------------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_without_network_and_text_stays_text(tmp_path: Path) -> None:
    page = write_results(results(measured(), DELAYS), tmp_path / "new" / "dir")
    text = page.read_text(encoding="utf-8")
    assert load(page.parent / "results.json")["lag"][0]["samples"] == 2000
    assert HOSTILE not in text and text.count("</script>") == 2
    assert not re.search(r"""(src|href)\s*=\s*["']|@import|url\(|fetch\(|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "innerHTML" not in text and "prefers-color-scheme: dark" in text
    inside = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.S)
    assert inside and json.loads(inside[1])["cluster"]["source"] == HOSTILE
    assert '"buckets"' not in render_page(results(measured()))


# -- command line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--regions", "us"],
        ["--regions", "us,us"],
        ["--latency", "moon"],
        ["--cut", "eu@30s+1s"],
        ["--duration", "0s"],
        ["--duration", "soon"],
        ["--type", "counter", "--size", "100"],
        ["--rate", "0"],
        ["--clock", "echo"],
        ["--respond"],
        ["--tls-ca", "x"],
        ["--at", "us=127.0.0.1:1"],
        ["--at", "127.0.0.1:1,127.0.0.1:2"],
        ["--at", "us=127.0.0.1:1,us=127.0.0.1:2"],
        ["--at", "us=127.0.0.1:1,eu=127.0.0.1:2", "--cut", "eu@1s+1s"],
        ["--at", "us=127.0.0.1:1,eu=127.0.0.1:2", "--engine", "memory"],
        ["--compare", "missing.json"],
    ],
)
def test_bad_usage_is_status_2_one_line_and_starts_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main(["bench", "lag", *arguments, "--out", str(tmp_path / "out")])
    err = capfd.readouterr().err
    assert status == 2 and err.startswith("crdtkv: ") and err.count("\n") == 1, err


def test_a_pair_with_no_samples_has_no_figures_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from crdtkv.cli.bench import tell

    document = results(measured(lost=2000))
    document["comparison"] = compare(document, document)
    tell(document)
    said = capsys.readouterr().out
    assert re.search(r"us → eu +unknown( +unknown){6} +unknown +0 +2,000", said), said
    assert Pair("us", "eu") in [Pair(p["from"], p["to"]) for p in document["lag"]]
