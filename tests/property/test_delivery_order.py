"""Whatever order frames come in, however often: the same state, and every bit of it as specified."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.frame import Frame
from crdtkv.core.join import snapshot_of
from crdtkv.core.replica import Outcome
from crdtkv.core.settings import CoreSettings
from tests.property.fleet import Fleet, Schedule, new_replica, schedules, settled

seeds = st.integers(0, 2**32)


@given(seeds, schedules, st.randoms(use_true_random=False), st.booleans())
def test_any_order_with_duplicates(seed: int, schedule: Schedule, random: Random, twice: bool) -> None:
    fleet = Fleet.run(seed, schedule)
    frames = fleet.frames() * (2 if twice else 1)
    random.shuffle(frames)
    replica = new_replica("zz")
    applied = [f for frame in frames for f in replica.receive(Frame.decode(frame.data))[1]]
    assert sorted(f.data for f in applied) == sorted({f.data for f in frames}), "each frame is applied exactly once"
    assert replica.held == (0, 0)
    assert fleet.is_as_specified(snapshot_of(settled(replica)))


@given(seeds, schedules, st.randoms(use_true_random=False))
def test_two_orders_one_digest(seed: int, schedule: Schedule, random: Random) -> None:
    frames = Fleet.run(seed, schedule).frames()
    digests = set()
    for _ in range(2):
        random.shuffle(frames)
        replica = new_replica("zz")
        for frame in frames:
            replica.receive(Frame.decode(frame.data))
        digests.add((settled(replica).vv(), replica.digest()))
    assert len(digests) == 1


@given(seeds, schedules, st.randoms(use_true_random=False))
def test_planned_order_is_legal_and_complete(seed: int, schedule: Schedule, random: Random) -> None:
    frames = Fleet.run(seed, schedule).frames()
    random.shuffle(frames)
    kept = frames[: len(frames) // 2 + 1]
    replica = new_replica("zz")
    order, needs = replica.plan(kept)
    for frame in order:
        assert replica.receive(frame)[0] is Outcome.APPLIED
    waiting = [f for f in kept if f not in order]
    assert bool(needs) == bool(waiting), "what cannot be applied says what it needs"
    assert all(replica.ready(f) is Outcome.HELD for f in waiting)


@given(seeds, schedules, st.integers(0, 3), st.randoms(use_true_random=False))
def test_frames_without_room_are_dropped_and_may_come_again(seed: int, schedule: Schedule, room: int, random: Random) -> None:
    fleet = Fleet.run(seed, schedule)
    frames = fleet.frames()
    replica = new_replica("zz", CoreSettings(held_frames_max=room))
    for _ in range(len(frames) + 1):
        random.shuffle(frames)
        for frame in frames:
            replica.receive(frame)
            assert replica.held[0] <= room
    assert all(replica.seq(f.origin) >= f.last_seq for f in frames)
    assert fleet.is_as_specified(snapshot_of(settled(replica)))
