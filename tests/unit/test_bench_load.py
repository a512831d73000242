"""The load instrument: draws against their formulas, mixes, both loops, what the results say. No test asserts how long anything took."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import crdtkv
from crdtkv.bench import page
from crdtkv.bench.histogram import Histogram
from crdtkv.bench.load import LoadSettings, Recorder, run_embedded, run_nodes
from crdtkv.bench.load_results import build
from crdtkv.bench.target import ClientTarget, EmbeddedTarget, Names
from crdtkv.bench.ycsb import WORKLOADS, Kind, Operations, Workload, Zipfian, fnv64, record_key
from crdtkv.cli.main import cli
from crdtkv.errors import OverloadedError
from tests.unit.documents import ROOT

DRAWS = 200_000


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
def test_the_zipfian_draws_ranks_as_its_formula_says(count: int) -> None:
    """Gray's method is exact for the first two ranks and approximate beyond; by decades of ranks it must fit everywhere."""
    zipfian = Zipfian(count, random.Random(1))
    drawn = Counter(zipfian.draw() for _ in range(DRAWS))
    assert set(drawn) <= set(range(count))
    assert sum(zipfian.probability(rank) for rank in range(count)) == pytest.approx(1)
    for rank in range(min(2, count)):
        assert drawn[rank] / DRAWS == pytest.approx(zipfian.probability(rank), abs=0.005)
    for first in (2, 10, 100):
        ranks = range(first, min(first * 10 if first > 2 else 10, count))
        if ranks:
            expected = sum(zipfian.probability(rank) for rank in ranks)
            assert sum(drawn[rank] for rank in ranks) / DRAWS == pytest.approx(expected, abs=0.015)


def test_a_zipfian_that_has_grown_is_as_if_it_had_begun_so() -> None:
    grown = Zipfian(100, random.Random(5))
    grown.grow(1000)
    fresh = Zipfian(1000, random.Random(5))
    assert grown.probability(500) == pytest.approx(fresh.probability(500))
    assert [grown.draw() for _ in range(100)] == [fresh.draw() for _ in range(100)]


def test_fnv_is_the_published_hash() -> None:
    def plain(data: bytes) -> int:
        value = 0xCBF29CE484222325
        for byte in data:
            value = (value ^ byte) * 0x100000001B3 % 2**64
        return value

    assert plain(b"a") == 0xAF63DC4C8601EC8C, "the test vector of its authors"
    assert fnv64(0x0102) == plain((0x0102).to_bytes(8, "little"))


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_workload_has_the_shares_it_names(name: str) -> None:
    workload = WORKLOADS[name]
    operations = Operations(workload, 1000, random.Random(2))
    kinds = Counter(operations.next().kind for _ in range(20_000))
    assert sum(workload.shares.values()) == pytest.approx(1)
    for kind, share in workload.shares.items():
        assert kinds[kind] / 20_000 == pytest.approx(share, abs=0.012)


def test_one_seed_is_one_sequence_and_another_is_not() -> None:
    def drawn(seed: int) -> list[object]:
        return list(itertools.islice(Operations(WORKLOADS["e"], 100, random.Random(seed)), 50))

    assert drawn(1) == drawn(1) != drawn(2)


def test_scrambling_spreads_the_popular_over_the_keys() -> None:
    keys = Counter(op.key for op in itertools.islice(Operations(WORKLOADS["c"], 1000, random.Random(3)), 20_000))
    popular = [key for key, _ in keys.most_common(10)]
    numbers = [next(n for n in range(1000) if record_key(n) == key) for key in popular]
    assert keys[popular[0]] > 20 * 20_000 / 1000, "one key is far more popular than the average"
    assert max(numbers) - min(numbers) > 300, "and the popular ones are not neighbours"


def test_latest_reads_mostly_what_was_inserted_last_and_follows_as_it_grows() -> None:
    operations = Operations(WORKLOADS["d"], 1000, random.Random(4))
    number = {record_key(n): n for n in range(3000)}
    inserted, ages = 1000, []
    for _ in range(10_000):
        operation = operations.next()
        if operation.kind is Kind.INSERT:
            assert number[operation.key] == inserted, "inserts go on where the records ended"
            inserted += 1
        else:
            ages.append(inserted - 1 - number[operation.key])
    assert min(ages) == 0, "what is not there is not read"
    assert sum(age < 10 for age in ages) / len(ages) > 0.3


def test_callers_who_insert_together_never_insert_the_same() -> None:
    inserts = itertools.count(100)
    callers = [Operations(WORKLOADS["d"], 100, random.Random(n), inserts) for n in range(3)]
    keys = [op.key for caller in callers for op in itertools.islice(caller, 2000) if op.kind is Kind.INSERT]
    assert len(keys) == len(set(keys)) > 100


def test_a_conflict_workload_keeps_to_its_ten_keys() -> None:
    keys = {op.key for op in itertools.islice(Operations(WORKLOADS["conflict"], 10_000, random.Random(1)), 1000)}
    assert keys == {record_key(n) for n in range(10)}


def settings(name: str, **changes: Any) -> LoadSettings:
    return LoadSettings(**{"workload": WORKLOADS[name], "records": 50, "duration_s": 0.1, "warmup_s": 0.02, **changes})


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_every_workload_runs_on_an_embedded_store(name: str) -> None:
    with crdtkv.open() as store:
        loaded = run_embedded(EmbeddedTarget(store, Names("test", 20)), settings(name))
    (recorder,) = loaded.recorders[""]
    assert set(recorder.took_ns) <= set(WORKLOADS[name].shares) and recorder.took_ns
    assert not recorder.failed
    assert (loaded.preload_s is None) == (not WORKLOADS[name].preload)


def test_the_records_are_there_before_the_first_operation() -> None:
    reads = Workload("x", "", {Kind.READ: 1.0})
    with crdtkv.open() as store:
        target = EmbeddedTarget(store, Names("test", 20))
        run_embedded(target, settings("c", workload=reads))
        assert store.count(target.names.records) == 50


def test_an_open_loop_does_each_operation_that_was_due_by_several_threads() -> None:
    with crdtkv.open() as store:
        loaded = run_embedded(EmbeddedTarget(store, Names("test", 20)), settings("a", rate=500.0, duration_s=0.2, callers=3))
    done = [at for recorder in loaded.recorders[""] for kind in recorder.at_ns.values() for at in kind]
    assert sorted(done) == [pytest.approx(n * 2_000_000, abs=2) for n in range(100)], "due times, whatever the machine was doing"


class FakeClient:
    """A node that answers at once; every third put fails."""

    def __init__(self, *, failing: bool = False) -> None:
        self.kept: dict[str, Any] = {}
        self._failing = failing
        self._puts = 0

    async def get(self, key: str) -> Any:
        await asyncio.sleep(0)
        return self.kept.get(key)

    async def put(self, key: str, value: Any) -> None:
        await asyncio.sleep(0)
        self._puts += 1
        if self._failing and self._puts % 3 == 0:
            raise OverloadedError("too much")
        self.kept[key] = value

    async def vv(self) -> int:
        return 1

    async def digest(self) -> str:
        return "same"

    async def status(self) -> Any:
        class Status:
            conflicts = 7

        return Status


def on_nodes(make: Callable[[], FakeClient], how: LoadSettings) -> Any:
    fakes: dict[str, Any] = {region: make() for region in ("us", "eu")}
    targets = {region: ClientTarget(fake, Names("test", 20)) for region, fake in fakes.items()}
    return fakes, asyncio.run(run_nodes(targets, how))


@pytest.mark.parametrize("changes", [{"callers": 4}, {"rate": 1000.0}])
def test_nodes_share_the_load_and_end_equal(changes: dict[str, Any]) -> None:
    fakes, loaded = on_nodes(FakeClient, settings("conflict", **changes))
    assert all(fake.kept for fake in fakes.values()), "every region is written to"
    assert fakes["us"].kept.keys() & fakes["eu"].kept.keys(), "the same keys"
    assert loaded.converged_s is not None
    assert loaded.conflicts == {"us": 0, "eu": 0}, "what was there before the run does not count"


def test_failures_are_counted_told_and_not_timed() -> None:
    _, loaded = on_nodes(lambda: FakeClient(failing=True), settings("conflict", callers=2))
    results = build(loaded, settings("conflict", callers=2), started_at="", target="cluster", options={}, environment={})
    total = results["total"]
    assert total["failed"] > 0 and total["first_error"] == "OverloadedError: too much"
    assert total["operations"] == total["samples"] == sum(o["operations"] for o in results["operations"])


def test_what_belongs_to_the_warm_up_does_not_count() -> None:
    recorder = Recorder()
    recorder.note(Kind.READ, -1, 5)
    recorder.note(Kind.READ, 0, 5)
    assert list(recorder.at_ns[Kind.READ]) == [0]


def test_results_have_the_documented_form_and_the_page_holds_them(tmp_path: Path) -> None:
    with crdtkv.open() as store:
        loaded = run_embedded(EmbeddedTarget(store, Names("test", 20)), settings("a", callers=2))
    options, machine = {"engine": "memory"}, {"python": "3", "cores": 2, "system": "x", "load_1min_before": 0, "versions": {}}
    results = build(loaded, settings("a", callers=2), started_at="now", target="embedded", options=options, environment=machine)
    documented = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("configuration", "preload", "total", "operations", "regions", "converged_s", "timeline"):
        assert f"| `{name}" in documented and name in results
    for name in results["configuration"]:
        assert f"`{name}`" in documented, name
    assert Histogram.from_json(results["operations"][0]["histogram"]).count == results["operations"][0]["operations"]
    assert sum(round(p * results["timeline"]["step_s"]) for p in results["timeline"]["per_s"]) == pytest.approx(
        results["total"]["operations"], rel=0.2
    )
    page.write_results(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "crdtkv bench load" in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_command_runs_tells_and_writes(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["bench", "load", "f", "--records", "100", "--duration", "200ms", "--warmup", "0", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "operations a second" in done.output and "read-modify-write" in done.output
    assert (tmp_path / "results.json").exists() and (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--at", "127.0.0.1:1", "--engine", "memory"],
        ["--regions", "us,eu"],
        ["--target", "node", "--latency", "us-eu=4ms"],
        ["--tls-ca", "x.pem"],
        ["--duration", "0"],
        ["--size", "7"],
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", "load", "a", "--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()
