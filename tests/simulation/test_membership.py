"""Regions that end and go on, over a long time: what is shown of it stays as short as the cluster is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crdtkv.core.causality import region_of
from crdtkv.simulation.world import World


@pytest.mark.parametrize("seed", range(40_000, 40_004))
def test_vectors_stay_as_short_as_the_cluster_however_often_regions_begin_anew(seed: int) -> None:
    world = World(seed, "members")
    world.options = replace(
        world.options, removals=0, additions=0, crashes=3.0, lives=1.0, absences=0, busy_s=4.0, cuts=0.1, jumps=0.0, skew_ms=0
    )
    outcome = world.run()
    assert not outcome.violations
    machines = [member.machine for member in world.members]
    ended = [origin for origin in machines[0].vv() if origin not in {machine.origin for machine in machines}]
    assert len(ended) >= 4, "too few incarnations ended for this to say anything"
    for machine in machines:
        shown = machine.control.show(machine.vv())
        assert len(shown) <= len(machines) and set(machine.control.closed) == set(ended)
        assert len(machine.replica.context()) < len(machines)


def test_what_a_drained_region_acknowledged_is_all_there_and_what_a_removed_one_wrote_later_is_not() -> None:
    met = 0
    for seed in range(41_000, 41_030):
        world = World(seed, "members")
        world.options = replace(world.options, additions=0)
        outcome = world.run()
        assert not outcome.violations, (seed, outcome.violations)
        gone = {world.members[index].region for index in world.removed}
        if outcome.rare.get("drained_and_removed"):
            met += 1
            survivor = world.survivors[0].machine
            drained = [dot for dot in world.acknowledged if region_of(dot.origin) in gone]
            assert all(survivor.vv().covers(dot) for dot in drained)
            assert all(region_of(origin) not in gone for origin in survivor.control.show(survivor.vv()))
    assert met >= 3
