"""Clears of large collections go in slices: reads are right all along, memory stays bounded, a crash changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import crdtkv
from crdtkv import Settings, Store
from crdtkv.core.clock import HybridClock
from crdtkv.core.journal import RULE_ADD_WINS
from crdtkv.store.machine import Machine
from tests.stores import Clock, store_at, sync

SLOTS = 600
SLICED = Settings(async_sync_ms=3_600_000, clear_at_once_max=10, purge_slots=50, fold_records_max=64)
AT_ONCE = Settings(async_sync_ms=3_600_000)


def filled(region: str = "us", settings: Settings = SLICED) -> Store:
    store = store_at(Clock(), region, settings)
    store.set("s").add(*range(SLOTS))
    store.put("sa", 1)
    store.set("s\x00").add("neighbour")
    return store


def purge(store: Store) -> int:
    """Finish the clears slice by slice; the most records that ever waited in memory."""
    waiting = 0
    while store._replica.purges:
        store.maintain()
        waiting = max(waiting, store._replica.state.pending)
    return waiting


def test_reads_are_right_from_the_commit_on() -> None:
    with filled() as store:
        store.set("s").clear()
        assert store._replica.purges, "the clear was not sliced: the test proves nothing"
        while store._replica.purges:
            handle = store.set("s")
            assert "s" not in store and len(handle) == 0 and handle.members() == [] and 5 not in handle
            assert handle.clear() is None and handle.discard(5) is None and store.delete("s") is None
            assert [key for key, _ in store.scan()] == ["s\x00", "sa"] and store.count("s") == 2
            store.maintain()
        assert [key for key, _ in store.scan()] == ["s\x00", "sa"]
        assert store._reader.head(b"s") is None


def test_memory_is_bounded_while_a_large_clear_goes_on() -> None:
    with filled() as store:
        store.set("s").clear()
        assert purge(store) <= SLICED.fold_records_max + SLICED.purge_slots + 16


def test_what_is_added_meanwhile_stays_and_counts() -> None:
    with filled() as store:
        store.set("s").clear()
        added = []
        for n in range(0, SLOTS, 70):
            store.set("s").add(n, f"new {n}")  # elements that the purge has passed, and that are ahead of it
            added += [n, f"new {n}"]
            assert len(store.set("s")) == len(added)
            store.maintain()
        purge(store)
        assert sorted(store.set("s").members(), key=str) == sorted(added, key=str) and len(store.set("s")) == len(added)
        store.set("s").discard(*added)
        assert "s" not in store and store._reader.head(b"s") is None


@pytest.mark.parametrize("slices", [0, 3, 100])
def test_a_register_may_come_where_a_clear_goes_on_and_a_second_clear_too(slices: int) -> None:
    with filled() as store:
        store.set("s").clear()
        store.set("s").add("again", *range(300))
        for _ in range(slices):
            store.maintain()
        store.set("s").clear()
        store.put("s", "a register")
        purge(store)
        assert store["s"] == "a register" and store.types("s") == ["register"] and store._reader.head(b"s") is None


def test_a_sliced_clear_comes_to_what_one_at_once_does() -> None:
    """Concurrent adds on the other side, before and after it hears of the clear; the digests agree at the end."""
    with filled() as us, store_at(Clock(), "eu", SLICED) as eu, store_at(Clock(), "ap", AT_ONCE) as ap:
        sync(us, eu, ap)
        us.set("s").clear()
        eu.set("s").add(1, "concurrent")
        ap.set("s").discard(2)
        ap.set("s").add(3)
        us.maintain()
        us.merge(eu.delta_since(us.vv()))
        us.maintain()
        eu.merge(us.delta_since(eu.vv()))
        ap.merge(us.delta_since(ap.vv()))
        assert not ap._replica.purges and us._replica.purges
        us.merge(ap.delta_since(us.vv()))
        sync(us, eu, ap)
        for store in (us, eu, ap):
            purge(store)
            assert sorted(store.set("s").members(), key=str) == [1, 3, "concurrent"] and len(store.set("s")) == 3
            assert {c.rule for c in store.conflicts("s")} == {RULE_ADD_WINS}
        sync(us, eu, ap)


@pytest.mark.parametrize("slices", [0, 100])
@pytest.mark.parametrize("then", ["discarded", "added again", "expired", "discarded here"])
def test_a_clear_is_told_to_have_lost_also_against_what_goes_before_a_slice_comes_there(slices: int, then: str) -> None:
    """Slices told of it, and found nothing where a later commit had taken the element away: the clear had lost in silence."""
    clock = Clock()
    with filled() as us, store_at(clock, "eu", SLICED) as eu, store_at(Clock(), "ap", SLICED) as ap:
        sync(us, eu, ap)
        eu.set("s").add("zz", ttl=1 if then == "expired" else None)
        ap.merge(eu.delta_since(ap.vv()))
        us.set("s").clear()
        ap.merge(us.delta_since(ap.vv()))
        for _ in range(slices):
            ap.maintain()
        if then == "added again":
            eu.set("s").add("zz")
        elif then == "expired":
            clock.ms += 2_000
            eu.maintain()
        else:
            (ap if then == "discarded here" else eu).set("s").discard("zz")
        ap.merge(eu.delta_since(ap.vv()))
        purge(ap)
        told = [c for c in ap.conflicts("s") if c.winner.origin == eu.origin and [lost.kind for lost in c.losers] == ["clear"]]
        assert [(c.subkey, c.losers[0].origin) for c in told if c.winner.seq == 1] == [("zz", us.origin)]
        assert ("zz" in ap.set("s")) == (then == "added again")


def test_the_digest_settles_and_a_port_gives_none_before() -> None:
    with filled() as store, store_at(Clock(), "eu", AT_ONCE) as other:
        store.set("s").clear()
        assert store.port.digest() is None and store.status().digest is None
        settled = store.digest()
        assert not store._replica.purges
        other.merge(store.delta_since())
        assert other.digest() == settled == store.status().digest


def test_a_snapshot_taken_during_a_purge_holds_nothing_that_is_cleared() -> None:
    settings = Settings(async_sync_ms=3_600_000, clear_at_once_max=10, purge_slots=50, memory_log_bytes=1000)
    with filled(settings=settings) as us, store_at(Clock(), "eu", AT_ONCE) as eu:
        for i in range(50):
            us.put("filler", i)
        us.set("s").clear()
        us.set("s").add("new")
        us.maintain()
        assert us._replica.purges
        eu.merge(us.delta_since())
        assert eu.set("s").members() == ["new"] and len(eu.set("s")) == 1
        assert eu.digest() == us.digest()


@pytest.mark.parametrize("slices", [0, 1, 5])
def test_a_crash_in_the_middle_goes_on_afterwards(slices: int) -> None:
    """A machine that is opened on the same engine and log, in the middle of a purge, ends where the first one does."""
    with filled() as store:
        store.set("s").clear()
        store.set("s").add("new")
        for _ in range(slices):
            store.maintain()
        store._machine.fold()
        machine = store._machine
        store.set("s").add("after the fold")  # only in the log
        clock = HybridClock(Clock())
        twin = Machine(machine.log, machine.engine, origin=store.origin, cluster=store.cluster, clock=clock, settings=SLICED)
        assert twin.replayed == 1 and twin.replica.purges
        while twin.purge_slice(50):
            pass
        found = twin.digest()
    with store_at(Clock(), "eu", AT_ONCE) as other:
        other.merge(store_delta := frames_of(machine))
        assert store_delta and found is not None and other.digest() == found[1]
        assert other.set("s").members() == sorted(["new", "after the fold"], key=lambda e: (len(e), e))


def frames_of(machine: Machine) -> bytes:
    from crdtkv.core.causality import EMPTY_VV
    from crdtkv.store.exchange import delta_since

    return delta_since(machine, EMPTY_VV)


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_a_purge_on_disk_goes_on_after_the_store_is_closed(tmp_path: Path, engine: str) -> None:
    slow = Settings(async_sync_ms=3_600_000, clear_at_once_max=10, purge_slots=50, fold_records_max=64)
    with crdtkv.open(tmp_path / "d", engine=engine, settings=slow, durability="async") as store:
        store.map("m").clear()
        for i in range(300):
            store.map("m")[f"f{i}"] = i
        store.map("m").clear()
        store.map("m")["f7"] = "new"
    with crdtkv.open(tmp_path / "d", engine=engine, settings=slow, durability="async") as store:
        assert store.map("m").items() == [("f7", "new")]
        store.digest()
        assert store.map("m").items() == [("f7", "new")] and len(store.map("m")) == 1


def test_a_clear_that_comes_during_another_hides_no_conflict() -> None:
    """The second clear took over the first one's purge: what the first had not reached yet never met it in the journal."""
    with filled() as us, store_at(Clock(), "eu", SLICED) as eu, store_at(Clock(), "ap", SLICED) as ap:
        sync(us, eu, ap)
        names = [f"new {n:03}" for n in range(100)]
        us.set("s").add(*names)
        for remover in (eu, ap):
            remover.set("s").clear()
        us.merge(eu.delta_since(us.vv()))
        us.maintain()
        us.merge(ap.delta_since(us.vv()))
        assert us._replica.purges
        purge(us)
        met = {(c.subkey, loser.origin) for c in us.conflicts("s") for loser in c.losers}
        assert met >= {(name, remover.origin) for name in names for remover in (eu, ap)}
        assert us.set("s").members() == names and us.conflicts("s")[0].rule == RULE_ADD_WINS
        purge(eu)
        purge(ap)
        sync(us, eu, ap)
