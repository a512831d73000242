"""What an install of a snapshot does beside the state: the journal, the index of removals, the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import crdtkv
from crdtkv.store import Settings, Store
from tests.stores import install


@pytest.fixture
def us() -> Iterator[Store]:
    with crdtkv.open(region="us") as store:
        yield store


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    opened: list[Store] = []

    def make(region: str) -> Store:
        opened.append(crdtkv.open(tmp_path / region, region=region, settings=Settings(instance_dir="trust", fold_records_max=2)))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def on_record(store: Store) -> set[tuple[object, ...]]:
    """What the journal says, with this replica's own dots as seqs: without what its name and the way of arrival decide."""

    def name(dot: crdtkv.Dot) -> object:
        return dot.seq if dot.origin == store.origin else dot

    return {(c.key, c.subkey, c.rule, c.winner and name(c.winner.dot), *(name(loser.dot) for loser in c.losers)) for c in store.conflicts()}


def test_a_write_that_met_a_removal_here_was_silent_when_it_came_by_a_snapshot(us: Store, regions: Callable[[str], Store]) -> None:
    """Who removed sees the conflict in the journal, by whichever way the write comes that had not seen the removal."""
    by_snapshot, by_frames = regions("eu"), regions("ap")

    def write(number: int) -> None:
        us.put("k", number)
        us.set("s").add("x")
        us.set("t").add("x")
        us.map("m").put("f", number)
        us.counter("c").increment(number)

    write(1)
    us.put("gone", 1)
    for store in (by_snapshot, by_frames):
        store.merge(us.delta_since(store.vv()))
        store.delete("k")
        store.set("s").discard("x")
        store.set("t").clear()
        store.map("m").delete("f")
        store.counter("c").reset()
        store.delete("gone")
    write(2)
    us.put("new", 1)
    install(us, by_snapshot)
    by_frames.merge(us.delta_since(by_frames.vv()))
    assert on_record(by_snapshot) == on_record(by_frames)
    assert {row[0] for row in on_record(by_snapshot)} == {"k", "s", "t", "m", "c"}
    assert all(conflict.installed for conflict in by_snapshot.conflicts())
    assert dict(by_snapshot.scan()) == dict(by_frames.scan())


def test_a_removal_that_the_snapshot_had_seen_is_no_conflict(us: Store, regions: Callable[[str], Store]) -> None:
    eu = regions("eu")
    us.put("k", 1)
    eu.merge(us.delta_since(eu.vv()))
    eu.delete("k")
    us.merge(eu.delta_since(us.vv()))
    us.put("k", 2)
    install(us, eu)
    assert eu.get("k") == 2 and not eu.conflicts()


def test_an_install_that_is_done_again_journals_nothing_twice(us: Store, regions: Callable[[str], Store]) -> None:
    eu = regions("eu")
    us.put("k", 1)
    eu.merge(us.delta_since(eu.vv()))
    eu.delete("k")
    us.put("k", 2)
    install(us, eu)
    install(us, eu)
    assert len(eu.conflicts()) == 1
