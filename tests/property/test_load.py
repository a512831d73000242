"""A state loaded record by record is the state it was taken from, in itself, beside itself, and in what it does with later commits."""

from __future__ import annotations

from itertools import chain, islice

from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.clock import HybridClock
from crdtkv.core.expiries import EXPIRY_SPACE
from crdtkv.core.heads import HEAD_SPACE
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.load import Loader
from crdtkv.core.replica import Replica
from crdtkv.core.state import DictBase
from tests.property.fleet import CLUSTER, SETTINGS, Fleet, Schedule, new_replica, schedules, settled


def loaded(snapshot: Snapshot, mark: int, page: int) -> Replica:
    """A new replica of another origin that was given a state in pages."""
    base = DictBase()
    loader = Loader(snapshot.vv)
    items = iter(chain.from_iterable(snapshot.slots.items()))
    while flat := list(islice(items, 2 * page)):
        base.write(loader.take(flat))
    base.write(loader.finish())
    assert loader.digest == snapshot.digest() and loader.slots == len(snapshot.slots)
    origin = new_replica("sa").origin
    replica = Replica(base, origin=origin, cluster=CLUSTER, clock=HybridClock(lambda: 1_000, max_skew_ms=0), settings=SETTINGS)
    replica.loaded(snapshot.vv, snapshot.hashes, snapshot.agreed, loader.digest, mark)
    replica.fold()
    return replica


def beside(replica: Replica, space: bytes) -> dict[bytes, bytes]:
    replica.fold()
    return dict(replica.state.scan(space, bytes([space[0] + 1])))


@given(st.integers(0, 2**32), schedules, schedules, st.integers(1, 5))
def test_a_loaded_state_takes_later_frames_as_the_state_does(seed: int, before: Schedule, after: Schedule, page: int) -> None:
    fleet = Fleet.run(seed, before)
    source = settled(fleet.replicas[0])
    snapshot = snapshot_of(source)
    replica = loaded(snapshot, source.clock.mark, page)
    assert (replica.vv(), replica.digest(), replica.last_hashes()) == (source.vv(), source.digest(), source.last_hashes())
    assert beside(replica, HEAD_SPACE).keys() == beside(source, HEAD_SPACE).keys()
    assert beside(replica, EXPIRY_SPACE).keys() <= beside(source, EXPIRY_SPACE).keys()
    known = len(fleet.logs[0])
    for step in after:
        fleet.step(*step)
    for frame in fleet.logs[0][known:]:
        replica.receive(frame)
    settled(replica), settled(source)
    assert snapshot_of(replica) == snapshot_of(source)
    assert (replica.digest(), beside(replica, HEAD_SPACE).keys()) == (source.digest(), beside(source, HEAD_SPACE).keys())
