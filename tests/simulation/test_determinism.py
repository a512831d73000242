"""One seed, one trace: without that, no failure could be repeated."""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys

from crdtkv.simulation import SCENARIOS, simulate
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.network import Network
from crdtkv.simulation.world import World


def test_dice_fall_the_same_on_every_version_of_python() -> None:
    dice = Dice(7)
    assert [dice.below(1000) for _ in range(8)] == [323, 150, 650, 72, 535, 365, 57, 507]
    assert [dice.weighted((("a", 1), ("b", 5), ("c", 2))) for _ in range(6)] == ["a", "b", "a", "a", "b", "c"]
    assert dice.pick("xyz") in "xyz" and 2 <= dice.between(2, 3) < 3


def test_certain_outcomes_cost_no_randomness() -> None:
    one, two = Dice(1), Dice(1)
    assert not one.chance(0.0) and one.chance(1.0)
    assert one.random() == two.random()


class _End:
    """A host that notes what comes."""

    def __init__(self, index: int) -> None:
        self.index, self.is_up, self.link = index, True, -1
        self.came: list[int] = []

    def connected(self, link: int, peer: int, dialed: bool) -> None:
        self.link = link

    def received(self, link: int, data: bytes) -> None:
        self.came.append(int.from_bytes(data))

    def disconnected(self, link: int) -> None: ...
    def writable(self, link: int, is_writable: bool) -> None: ...
    def dial_failed(self, peer: int) -> None: ...


def test_a_stream_keeps_its_order_whatever_the_delays_round_to() -> None:
    """An instant was turned into a delay in ms and back. Of messages that arrive together the later one could come a microsecond before."""
    world, ends = World(1), (_End(0), _End(1))
    network = Network(world, Dice(1), delay_ms=1.0, jitter=2.0)
    network.dial(*ends)
    for number in range(2_000):
        world.after(100 + number * 0.137, lambda n: network.send(ends[0], ends[0].link, n.to_bytes(2)), number)
    while world._instants:
        world.now_us = heapq.heappop(world._instants)
        for _, what, args in world._due.pop(world.now_us):
            what(*args)
    assert ends[1].came == list(range(2_000))


def test_a_seed_gives_one_trace_in_one_process() -> None:
    for seed, scenario in enumerate(SCENARIOS):
        first, again = simulate(seed, scenario), simulate(seed, scenario)
        assert first == again and first.events > 50


def test_a_seed_gives_one_trace_whatever_the_hash_seed_is() -> None:
    traces = set()
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-m", "crdtkv.simulation", "--seed", "3", "--seeds", "4"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["seed"] for line in lines] == [3, 4, 5, 6] and done.stderr.startswith("seed 3 ")
        traces.add(tuple(line["trace_sha256"] for line in lines))
    assert len(traces) == 1


def test_another_seed_gives_another_trace() -> None:
    assert len({simulate(seed).trace_sha256 for seed in range(5)}) == 5
