"""Closing origins while everybody writes: vectors without them say exactly what vectors with them do, and no write is lost by it.

Three replicas write, change their incarnations, exchange frames in pieces, join whole states, restart. Ended incarnations are closed as
the protocol does it: everybody freezes, F is the greatest, who has it commits the closing.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.causality import Dot, Origin, VersionVector, generation_of, make_origin, region_of
from crdtkv.core.clock import HybridClock
from crdtkv.core.control import Control, close_delta
from crdtkv.core.frame import Frame
from crdtkv.core.install import install
from crdtkv.core.join import Snapshot, join, snapshot_of
from crdtkv.core.replica import Replica
from crdtkv.simulation.specification import Commit
from tests.property.fleet import CLUSTER, SETTINGS, Fleet, settled

REGIONS = 3
who = st.integers(0, REGIONS - 1)
steps = st.one_of(
    st.tuples(st.just("commit"), who, st.integers(1, 2)),
    st.tuples(st.just("commit"), who, st.integers(1, 2)),
    st.tuples(st.just("deliver"), st.tuples(who, who), st.integers(1, 4)),
    st.tuples(st.just("deliver"), st.tuples(who, who), st.integers(1, 4)),
    st.tuples(st.just("renew"), who, st.just(0)),
    st.tuples(st.just("close"), who, st.integers(0, 7)),
    st.tuples(st.just("close"), who, st.integers(0, 7)),
    st.tuples(st.just("install"), st.tuples(who, who), st.just(0)),
    st.tuples(st.just("restart"), who, st.just(0)),
)
schedules = st.lists(steps, min_size=10, max_size=60)
seeds = st.integers(0, 2**32)


class Closers(Fleet):
    """A fleet whose origins end and are closed. Frames are delivered from a common pool, in an order that is legal for nobody."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.pool: list[Frame] = []
        self.ends: dict[Origin, int] = {}
        """Ended incarnations that are being closed, with their F."""

    def step(self, what: str, where: object, count: int) -> None:
        self.tell_ends()
        match what, where:
            case "renew", int(one):
                self.renew(one)
            case "close", int(one):
                self.close(one, count)
            case "restart", int(one):
                self.restart(one)
            case "install", (int(giver), int(taker)):
                if giver != taker:
                    install(self.replicas[taker], settled_snapshot(self.replicas[giver]))
            case _:
                super().step(what, where, count)
        self.check()

    def tell_ends(self) -> None:
        """Limits begin again with each control frame, and members go on telling where they froze."""
        for replica in self.replicas:
            for origin, end in self.ends.items():
                replica.raise_limit(origin, end)

    def commit(self, who: int, count: int) -> None:
        before = len(self.logs[who])
        super().commit(who, count)
        self.pool += self.logs[who][before:]

    def deliver(self, sender: int, receiver: int, count: int) -> None:
        """Frames that the sender has applied, and the receiver, as far as frames know, has not: relayed ones too."""
        giver, taker = self.replicas[sender], self.replicas[receiver]
        lacking = [f for f in self.pool if giver.seq(f.origin) >= f.last_seq > taker.seq(f.origin)]
        for frame in lacking[:count]:
            self.logs[receiver] += taker.receive(Frame.decode(frame.data))[1]

    def renew(self, one: int) -> None:
        """The replica goes on as another incarnation."""
        replica = self.replicas[one]
        replica.origin = make_origin(region_of(replica.origin), generation_of(replica.origin) + 1, 0)
        replica._context = replica._template = None

    def close(self, one: int, which: int) -> None:
        """Freeze the next ended origin everywhere; or, where one is frozen, have it closed by this replica if it has come to the end."""
        living = {r.origin for r in self.replicas}
        open_ = [o for o in sorted({o for r in self.replicas for o in r.vv()}) if o not in living and o not in self.ends]
        if open_ and which % 2:
            origin = open_[which % len(open_)]
            for replica in self.replicas:
                replica.control.freeze(origin, replica.seq(origin))
            self.ends[origin] = max(replica.seq(origin) for replica in self.replicas)
            return
        replica = self.replicas[one]
        ready = [o for o, end in self.ends.items() if replica.seq(o) == end and o not in replica.control.closed]
        if ready:
            origin = ready[which % len(ready)]
            past = replica.vv()
            seq, hlc = replica.commit_control([close_delta(origin, self.ends[origin])])
            self.history.record(Commit(Dot(replica.origin, seq), hlc, past, ()))
            frame = replica.close_frame()
            assert frame is not None
            self.logs[one].append(frame)
            self.pool.append(frame)

    def restart(self, one: int) -> None:
        """All that the replica knows, it reads from what it folded."""
        old = self.replicas[one]
        old.fold()
        base = old.state._base
        replica = Replica(base, origin=old.origin, cluster=CLUSTER, clock=HybridClock(lambda: 1_000, max_skew_ms=0), settings=SETTINGS)
        replica.origin = old.origin
        assert replica.vv() == old.vv() and replica.control.agreed() == old.control.agreed()
        for origin in replica.vv():
            assert replica.last_hash(origin) == old.last_hash(origin)
        assert replica.control.frozen == {origin: replica.seq(origin) for origin in old.control.frozen}
        self.replicas[one] = replica

    def check(self) -> None:
        for replica in self.replicas:
            full = replica.vv()
            shown = replica.control.show(full)
            assert replica.control.complete(shown) == full, "a replica reads its own vector as it is"
            for origin, end in self.ends.items():
                assert full.seq(origin) <= end, "an origin goes beyond its end"
                if origin in replica.control.closed:
                    assert origin not in shown and origin not in replica.context()
            for other in self.replicas:
                theirs = other.vv()
                assert replica.control.complete(other.control.show(theirs)) <= theirs, "it is never read as more than it is"
                if other.control.show(theirs) == shown:
                    assert theirs == full, "one vector, two meanings"

    def finish(self) -> None:
        """Everybody hears everything, and what has ended is closed."""
        for _ in range(50):
            before = [r.vv() for r in self.replicas]
            self.tell_ends()
            for sender in range(REGIONS):
                for receiver in range(REGIONS):
                    self.deliver(sender, receiver, len(self.pool))
            for one in range(REGIONS):
                for which in range(8):
                    self.close(one, which)
            if [r.vv() for r in self.replicas] == before:
                break
        self.check()


def settled_snapshot(replica: Replica) -> Snapshot:
    return Snapshot.from_bytes(snapshot_of(settled(replica)).to_bytes())


@given(seeds, schedules)
def test_closing_changes_no_state_and_every_vector(seed: int, schedule: list[tuple[str, object, int]]) -> None:
    fleet = Closers(seed)
    for step in schedule:
        fleet.step(*step)
    for replica in fleet.replicas:
        assert fleet.is_as_specified(settled_snapshot(replica)), "a state is not what its full vector says"
    fleet.finish()
    assert len({(r.vv(), settled(r).digest()) for r in fleet.replicas}) == 1
    for replica in fleet.replicas:
        assert fleet.is_as_specified(settled_snapshot(replica))


@given(seeds, schedules)
def test_states_that_closed_different_origins_join(seed: int, schedule: list[tuple[str, object, int]]) -> None:
    fleet = Closers(seed)
    for step in schedule:
        fleet.step(*step)
    a, b, c = (settled_snapshot(r) for r in fleet.replicas)
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    assert fleet.is_as_specified(join(join(a, b), c))


@given(seeds, st.integers(4, 12))
def test_vectors_do_not_grow_with_incarnations(seed: int, lives: int) -> None:
    """The bound: one origin per region, plus those that ended and are not closed yet."""
    fleet = Closers(seed)
    for life in range(lives):
        one = (seed + life) % REGIONS
        fleet.commit(one, 2)
        fleet.renew(one)
        fleet.commit(one, 1)
        fleet.finish()
    ended = {o for r in fleet.replicas for o in r.vv()} - {r.origin for r in fleet.replicas}
    assert len(ended) >= lives - 1
    for replica in fleet.replicas:
        assert len(replica.control.show(replica.vv())) <= REGIONS
        assert len(replica.context()) <= REGIONS - 1


def test_two_closings_of_one_origin_join_by_the_greater() -> None:
    """Not reached by the protocol while everybody answers; after a forced removal on both sides of a split it would be."""
    x, a, b = (make_origin(region, 1, 0) for region in ("xx", "aa", "bb"))
    control = _control()
    control.apply(close_delta(x, 5), a, 3, 1, b"")
    full = VersionVector({x: 5, a: 3})
    assert control.show(full) == VersionVector({a: 3}) and control.complete(control.show(full)) == full
    beyond = VersionVector({x: 6, a: 3})
    assert control.show(beyond) == beyond, "it has gone beyond its end: it is named again"
    control.apply(close_delta(x, 7), b, 2, 1, b"")
    assert control.last(x) == 7
    both = VersionVector({x: 7, a: 3, b: 2})
    assert control.show(both) == VersionVector({a: 3, b: 2}) and control.complete(control.show(both)) == both
    one = VersionVector({a: 3})
    assert control.complete(one) == VersionVector({x: 5, a: 3}), "who has only the first closing has x only up to there"


def _control() -> Control:
    return Replica(
        Fleet(0).replicas[0].state._base, origin=make_origin("aa", 1, 0), cluster=CLUSTER, clock=HybridClock(lambda: 1, max_skew_ms=0)
    ).control
