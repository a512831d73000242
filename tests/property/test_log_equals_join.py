"""By log, by snapshot, in any mix: the same commits make the same state, digest and bookkeeping."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.frame import Frame
from crdtkv.core.heads import HEAD_SPACE
from crdtkv.core.install import install
from crdtkv.core.join import join, snapshot_of
from crdtkv.core.replica import Outcome, Replica
from crdtkv.core.state import DictBase
from tests.property.fleet import Fleet, Schedule, new_replica, schedules, settled

seeds = st.integers(0, 2**32)
sources = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


def heads(replica: Replica) -> dict[bytes, tuple[object, ...]]:
    """What is kept beside collections, whatever order the runs came in."""
    replica.heads.fold()
    keys = [where for where, _ in replica.state.scan(HEAD_SPACE, bytes([HEAD_SPACE[0] + 1]))]
    found = {}
    for where in keys:
        head = replica.heads.get(where[1:])
        assert head is not None
        found[where] = (head.set_slots, head.map_slots, sorted(head.runs))
    return found


def by_log(replica: Replica, fleet: Fleet, source: int) -> None:
    for frame in fleet.logs[source]:
        assert replica.receive(Frame.decode(frame.data))[0] is not Outcome.HELD


@given(seeds, schedules)
def test_frames_of_the_other_give_the_join(seed: int, schedule: Schedule) -> None:
    fleet = Fleet.run(seed, schedule)
    a, b, _ = fleet.snapshots()
    by_log(fleet.replicas[0], fleet, 1)
    assert snapshot_of(fleet.replicas[0]) == join(a, b)


@given(seeds, schedules, sources)
def test_any_mix_of_logs_and_snapshots(seed: int, schedule: Schedule, mix: list[tuple[int, bool]]) -> None:
    fleet = Fleet.run(seed, schedule)
    mixed, plain = new_replica("zz"), new_replica("zz")
    for source, as_snapshot in mix:
        if as_snapshot:
            before = mixed.vv()
            installed = install(mixed, snapshot_of(fleet.replicas[source]))
            assert installed.applied == mixed.vv().missing_from(before)
        else:
            by_log(mixed, fleet, source)
        by_log(plain, fleet, source)
    settled(mixed), settled(plain)
    assert mixed.vv() == plain.vv()
    assert snapshot_of(mixed).canonical() == snapshot_of(plain).canonical()
    assert mixed.digest() == plain.digest() == snapshot_of(mixed).digest()
    assert heads(mixed) == heads(plain)
    assert fleet.is_as_specified(snapshot_of(mixed))


@given(seeds, schedules, st.integers(0, 2))
def test_installing_twice_changes_nothing(seed: int, schedule: Schedule, source: int) -> None:
    fleet = Fleet.run(seed, schedule)
    replica = fleet.replicas[0]
    snapshot = snapshot_of(fleet.replicas[source])
    install(replica, snapshot)
    once = snapshot_of(replica)
    again = install(replica, snapshot)
    assert (again.applied, again.added + again.changed + again.removed) == (0, 0) and snapshot_of(replica) == once


@given(seeds, schedules, st.data())
def test_a_replica_recovers_from_any_fold(seed: int, schedule: Schedule, data: st.DataObject) -> None:
    """The engine stands at some earlier frame, the log has the rest: replay gives the same state, digest and bookkeeping."""
    fleet = Fleet.run(seed, schedule)
    log, source = fleet.logs[0], fleet.replicas[0]
    at = data.draw(st.integers(0, len(log)))
    base = DictBase()
    first = Replica(base, origin=source.origin, cluster="fleet", clock=new_replica("zz").clock, settings=source.settings)
    for frame in log[:at]:
        first.apply(frame)
        first.purge_slice(1)
    first.fold()
    second = Replica(base, origin=source.origin, cluster="fleet", clock=new_replica("zz").clock, settings=source.settings)
    assert second.position == at
    for frame in log[at:]:
        second.apply(frame)
    settled(second), settled(source)
    assert (second.vv(), second.digest(), heads(second)) == (source.vv(), source.digest(), heads(source))
    assert second.last_hashes() == source.last_hashes()
