"""The laws of `join`, over states that a cluster can really reach; and what it must refuse."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import DeltaKind
from crdtkv.core.join import Snapshot, difference, join, snapshot_of
from crdtkv.core.types.counter import Run, encode_run, run_slot
from crdtkv.errors import CorruptionError, WrongClusterError
from tests.property.fleet import Fleet, Schedule, contents, forked, new_replica, schedules

EMPTY = Snapshot("fleet", 0, EMPTY_VV, {}, {})


@given(st.integers(0, 2**32), schedules)
def test_commutative_associative_idempotent(seed: int, schedule: Schedule) -> None:
    a, b, c = Fleet.run(seed, schedule).snapshots()
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    assert join(a, EMPTY) == a


@given(st.integers(0, 2**32), schedules)
def test_least_upper_bound(seed: int, schedule: Schedule) -> None:
    fleet = Fleet.run(seed, schedule)
    a, b, _ = fleet.snapshots()
    both = join(a, b)
    assert both.vv == a.vv.join(b.vv)
    assert join(both, a) == both == join(b, both), "joining again what it has changed nothing"
    assert fleet.is_as_specified(a) and fleet.is_as_specified(both)


@given(st.integers(0, 2**32), schedules, schedules)
def test_with_an_older_state_of_the_same_history(seed: int, earlier: Schedule, later: Schedule) -> None:
    fleet = Fleet.run(seed, earlier)
    old = fleet.snapshots()
    for step in later:
        fleet.step(*step)
    for before, now in zip(old, fleet.snapshots(), strict=True):
        assert contents(join(before, now)) == contents(now) and join(before, now).vv == now.vv
        assert fleet.is_as_specified(join(now, old[0]))


@given(st.integers(0, 2**32), schedules)
def test_difference_leads_from_one_state_to_the_other(seed: int, schedule: Schedule) -> None:
    a, b, _ = Fleet.run(seed, schedule).snapshots()
    both = join(a, b)
    slots = dict(a.slots)
    for slot, record in difference(a, both).items():
        assert slots.get(slot) != record, "nothing is written that is there already"
        if record is None:
            del slots[slot]
        else:
            slots[slot] = record
    assert slots == both.slots


@given(st.integers(0, 2**32), schedules)
def test_bytes_and_digest(seed: int, schedule: Schedule) -> None:
    fleet = Fleet.run(seed, schedule)
    for replica in fleet.replicas:
        snapshot = snapshot_of(replica)
        assert Snapshot.from_bytes(snapshot.to_bytes()) == snapshot
        assert Snapshot.from_bytes(snapshot.to_bytes()).to_bytes() == snapshot.to_bytes()
        if not replica.purges:
            assert snapshot.digest() == replica.digest()


def test_forks_and_other_clusters_are_refused() -> None:
    replica = new_replica("us")
    replica.commit([[DeltaKind.REGISTER_PUT, "k", encode_value(1)]])
    replica.close_frame()
    state = snapshot_of(replica)
    with pytest.raises(CorruptionError, match="fork"):
        join(state, forked(state))
    with pytest.raises(WrongClusterError):
        join(state, dataclasses.replace(state, cluster="another"))
    with pytest.raises(WrongClusterError):
        join(state, dataclasses.replace(state, shard=1))


def test_absence_rule_for_runs() -> None:
    """A run that one side dropped as stable is not brought back by a side that still holds it, however they are joined."""
    origin = Origin("us@1-00000000")
    slot = run_slot(b"c", origin, 1)
    vv, hashes = VersionVector({origin: 4}), {origin: bytes(16)}
    holds = Snapshot("fleet", 0, vv, hashes, {slot: encode_run(Run(5, 3, 5, 3))})
    dropped = Snapshot("fleet", 0, vv, hashes, {})
    never_saw = Snapshot("fleet", 0, EMPTY_VV, {}, {})
    assert join(holds, dropped).slots == join(dropped, holds).slots == {}
    assert join(holds, never_saw).slots == holds.slots
    assert holds.canonical() == dropped.canonical() == {}, "a run that is not live is no state"


def test_runs_join_by_seq_and_not_by_total() -> None:
    """After +7 and -4 the total is 3: the greater total is the older one."""
    origin = Origin("us@1-00000000")
    slot = run_slot(b"c", origin, 1)
    old = Snapshot("fleet", 0, VersionVector({origin: 1}), {origin: bytes(16)}, {slot: encode_run(Run(7, 1, 0, 0))})
    new = Snapshot("fleet", 0, VersionVector({origin: 2}), {origin: b"2" * 16}, {slot: encode_run(Run(3, 2, 0, 0))})
    assert contents(join(old, new)) == contents(join(new, old)) == ({}, {"c": 3})
