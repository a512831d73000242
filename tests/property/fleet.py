"""A few pure replicas that commit and exchange frames as they are told: what the properties here are made of.

What is committed comes from a seed, the schedule from Hypothesis, so that a failure shrinks to a short schedule.
"""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from crdtkv.core.causality import Dot, make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import TYPE_CODES, slot_of, split_slot
from crdtkv.core.frame import Frame
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.replica import Replica
from crdtkv.core.settings import CoreSettings
from crdtkv.core.state import DictBase
from crdtkv.core.types.base import decode_entries
from crdtkv.core.types.counter import decode_run
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.specification import Commit, History, Live
from crdtkv.simulation.workload import Workload
from crdtkv.store.reading import Reader
from crdtkv.store.transaction import Transaction

CLUSTER = "fleet"
REGIONS = ("ap", "eu", "us")
SETTINGS = CoreSettings(clear_at_once_max=2, held_frames_max=4096)

Schedule = list[tuple[str, object, int]]
commits = st.tuples(st.just("commit"), st.integers(0, 2), st.integers(1, 2))
deliveries = st.tuples(st.just("deliver"), st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(1, 4))
slices = st.tuples(st.just("slice"), st.integers(0, 2), st.integers(1, 2))
schedules = st.lists(commits | commits | deliveries | slices, min_size=6, max_size=40)


def new_replica(region: str, settings: CoreSettings = SETTINGS) -> Replica:
    """An empty replica whose clock stands still, so that equal stamps are met."""
    clock = HybridClock(lambda: 1_000, max_skew_ms=0)
    return Replica(DictBase(), origin=make_origin(region, 1, 0), cluster=CLUSTER, clock=clock, settings=settings)


class Fleet:
    """Three replicas, every frame that each applied in its order, and the history of what was meant."""

    def __init__(self, seed: int) -> None:
        dice = Dice(seed)
        self.replicas = [new_replica(region) for region in REGIONS]
        self.logs: list[list[Frame]] = [[] for _ in REGIONS]
        self.history = History()
        self._workload = Workload(dice, keys=1, weights={})

    @classmethod
    def run(cls, seed: int, schedule: Schedule) -> Fleet:
        """A fleet after a whole schedule."""
        fleet = cls(seed)
        for step in schedule:
            fleet.step(*step)
        return fleet

    def step(self, what: str, where: object, count: int) -> None:
        match what, where:
            case "commit", int(who):
                self.commit(who, count)
            case "deliver", (int(sender), int(receiver)):
                self.deliver(sender, receiver, count)
            case _, int(who):
                self.replicas[who].purge_slice(count)

    def commit(self, who: int, count: int) -> None:
        """Make one frame of up to `count` commits."""
        replica = self.replicas[who]
        for _ in range(count):
            past = replica.vv()
            deltas, operations = self._workload.fill(Transaction(replica, Reader(replica)), 1_000)
            if deltas:
                seq, hlc = replica.commit(deltas)
                self.history.record(Commit(Dot(replica.origin, seq), hlc, past, operations))
        frame = replica.close_frame()
        if frame is not None:
            self.logs[who].append(frame)

    def deliver(self, sender: int, receiver: int, count: int) -> None:
        """Hand over up to `count` frames that the receiver lacks, in the sender's order."""
        replica = self.replicas[receiver]
        lacking = [f for f in self.logs[sender] if f.last_seq > replica.seq(f.origin)]
        for frame in lacking[:count]:
            self.logs[receiver] += replica.receive(Frame.decode(frame.data))[1]

    def frames(self) -> list[Frame]:
        """Every frame, once, in the order of origins."""
        return [frame for replica, log in zip(self.replicas, self.logs, strict=True) for frame in log if frame.origin == replica.origin]

    def snapshots(self) -> list[Snapshot]:
        return [snapshot_of(replica) for replica in self.replicas]

    def is_as_specified(self, snapshot: Snapshot) -> bool:
        """Whether a state is what the specification says of its version vector."""
        slots, counters, _ = self.history.state(snapshot.vv)
        wanted = {slot_of(key.encode(), TYPE_CODES[kind], subkey): live for (key, kind, subkey), live in slots.items()}
        return (wanted, counters) == contents(snapshot)


def contents(snapshot: Snapshot) -> tuple[dict[bytes, tuple[Live, ...]], dict[str, int]]:
    """Live writes per slot, value per counter that has a live run."""
    slots: dict[bytes, tuple[Live, ...]] = {}
    counters: dict[str, int] = {}
    for slot, record in snapshot.slots.items():
        key, type_code, _ = split_slot(slot)
        if type_code == TYPE_CODES["counter"]:
            run = decode_run(record)
            if run.live:
                counters[key.decode()] = counters.get(key.decode(), 0) + run.amount
        else:
            slots[slot] = tuple(Live(e.dot, e.hlc, e.value, e.expiry) for e in decode_entries(record))
    return slots, counters


def settled(replica: Replica) -> Replica:
    """The replica, with every clear in progress done."""
    while replica.purge_slice(100):
        pass
    return replica


def forked(snapshot: Snapshot) -> Snapshot:
    """The same state, reached by another history of its first origin."""
    first = next(iter(snapshot.vv))
    return dataclasses.replace(snapshot, hashes={**snapshot.hashes, first: bytes(16)})


__all__ = ["CLUSTER", "Fleet", "Schedule", "contents", "forked", "new_replica", "schedules", "settled"]
