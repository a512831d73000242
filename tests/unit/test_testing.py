"""`crdtkv.testing`: what applications test with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import crdtkv
from crdtkv import ConfigError
from crdtkv.store import Store
from crdtkv.testing import Operation, Regions, Step, operations, schedules, three_regions, values
from tests.unit.documents import ROOT, blocks


def perform(store: Store, operation: Operation) -> None:
    operation(store)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedules(operations()))
def test_whatever_is_played_converges(schedule: list[Step]) -> None:
    with three_regions(seed=5) as regions:
        regions.play(schedule, perform)
        regions.heal()
        regions.sync()
        regions.assert_converged()


@settings(deadline=None)
@given(values())
def test_values_read_back_as_they_are(value: Any) -> None:
    with three_regions() as regions:
        regions["us"].put("k", value)
        regions.sync()
        assert regions["ap"].get("k") == value


def test_a_run_is_the_same_every_time() -> None:
    digests = set()
    for _ in range(2):
        with three_regions(seed=3) as regions:
            for number, store in enumerate(regions.values()):
                store.put("k", number)
                store.set("s").add(number)
            regions.gossip(6)
            digests.add(tuple((str(store.vv()), store.digest()) for store in regions.values()))
    assert len(digests) == 1


def test_a_region_that_is_not_there_is_told_with_those_that_are() -> None:
    with three_regions() as regions:
        with pytest.raises(KeyError, match="no region 'xx'; there are us, eu, ap"):
            regions["xx"]
        assert "xx" not in regions and regions.get("xx") is None and "us" in regions


def test_a_partition_holds_until_it_heals() -> None:
    with three_regions() as regions:
        regions.partition(["us"], ["eu", "ap"])
        regions["us"].put("k", "mine")
        regions["eu"].put("k", "theirs")
        regions.gossip(60)
        regions.sync()
        assert [store["k"] for store in regions.values()] == ["mine", "theirs", "theirs"]
        with pytest.raises(AssertionError, match="k: 'mine' in us, 'theirs' in eu"):
            regions.assert_converged()
        regions.heal()
        regions.sync()
        regions.assert_converged()
        assert len(regions["ap"].conflicts()) == 1


def test_a_cut_is_one_way() -> None:
    with Regions(("a", "b")) as regions:
        regions.cut("a", "b")
        regions["a"].put("x", 1)
        regions["b"].put("y", 1)
        regions.sync()
        assert "y" in regions["a"] and "x" not in regions["b"]
        assert not regions.exchange("a", "b") and regions.reaches("b", "a")


def test_a_region_in_no_group_is_alone() -> None:
    with three_regions() as regions:
        regions.partition(["us", "eu"])
        assert regions.reaches("us", "eu") and not regions.reaches("ap", "us") and not regions.reaches("us", "ap")


def test_time_passes_when_told() -> None:
    with three_regions() as regions:
        regions["us"].put("k", 1, ttl=10)
        regions.sync()
        regions.advance(9.5)
        assert regions["eu"]["k"] == 1
        regions.advance(0.6)
        assert "k" not in regions["eu"]
        regions.sync()
        regions.assert_converged()


def test_misuse_is_told() -> None:
    with pytest.raises(ConfigError):
        Regions(("us", "us"))
    with three_regions() as regions:
        for wrong in (lambda: regions.partition(["mars"]), lambda: regions.cut("us", "mars"), lambda: regions.exchange("mars", "us")):
            with pytest.raises(ConfigError, match="mars"):
                wrong()
    with pytest.raises(crdtkv.StoreClosedError):
        regions["us"].get("k")


def test_what_the_page_shows_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks(ROOT / "docs" / "testing.md", "python")
    for block in examples:
        block.run({"__name__": "__main__"})
    assert len(examples) == 3
    assert capsys.readouterr().out.splitlines() == ["missed write", "writes follow reads"]
