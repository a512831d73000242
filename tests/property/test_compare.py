"""Comparing states at different vectors: healthy ones never disagree, damaged ones do once nothing is open between them."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.causality import VersionVector
from crdtkv.core.compare import disagreement
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.replica import enters_digest
from crdtkv.core.types.base import decode_entries, encode_entries
from tests.property.fleet import Fleet, Schedule, schedules

seeds = st.integers(0, 2**32)


def disagreements(lower: Snapshot, upper: Snapshot) -> list[bytes]:
    """The slots that two states cannot both be right about."""
    return [
        slot
        for slot in sorted(lower.slots.keys() | upper.slots.keys())
        if disagreement(slot, lower.slots.get(slot), lower.vv, upper.slots.get(slot), upper.vv) is not None
    ]


@given(seeds, schedules)
def test_states_that_commits_led_to_never_disagree_however_far_apart_they_are(seed: int, schedule: Schedule) -> None:
    fleet = Fleet(seed)
    seen: list[Snapshot] = []
    for step in schedule:
        fleet.step(*step)
        seen += (snapshot_of(replica) for replica in fleet.replicas if not replica.purges)
    for lower in seen:
        for upper in seen:
            if lower.vv <= upper.vv:
                assert not disagreements(lower, upper)


@given(seeds, schedules, st.data())
def test_a_damaged_slot_is_found_between_equal_vectors_and_by_a_chain_of_three_around_later_commits(
    seed: int, schedule: Schedule, data: st.DataObject
) -> None:
    fleet = Fleet(seed)
    for step in schedule:
        fleet.step(*step)
    healthy = fleet.replicas[0]
    while healthy.purge_slice(100):
        pass
    before = snapshot_of(healthy)
    live = sorted(before.canonical())
    if not live:
        return
    slot = data.draw(st.sampled_from(live))
    record = before.slots[slot]
    damaged = dataclasses.replace(before, slots={s: r for s, r in before.slots.items() if s != slot})
    if enters_digest(slot, record) and record[:1] != b"\x94" and len(entries := decode_entries(record)) > 1 and data.draw(st.booleans()):
        damaged.slots[slot] = encode_entries(entries[1:])  # type: ignore[index]  # a dict, ours
    assert slot in disagreements(before, damaged) + disagreements(damaged, before)
    fleet.commit(0, 2)  # what comes later, and does not touch the slot, hides nothing
    after = snapshot_of(healthy)
    if after.slots.get(slot) == record and not healthy.purges:
        middle = dataclasses.replace(damaged, vv=VersionVector(before.vv))
        assert slot in disagreements(before, middle) + disagreements(middle, after)
