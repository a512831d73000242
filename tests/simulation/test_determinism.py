"""One seed, one trace: without that, no failure could be repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from crdtkv.simulation import SCENARIOS, simulate
from crdtkv.simulation.dice import Dice


def test_dice_fall_the_same_on_every_version_of_python() -> None:
    dice = Dice(7)
    assert [dice.below(1000) for _ in range(8)] == [323, 150, 650, 72, 535, 365, 57, 507]
    assert [dice.weighted((("a", 1), ("b", 5), ("c", 2))) for _ in range(6)] == ["a", "b", "a", "a", "b", "c"]
    assert dice.pick("xyz") in "xyz" and 2 <= dice.between(2, 3) < 3


def test_certain_outcomes_cost_no_randomness() -> None:
    one, two = Dice(1), Dice(1)
    assert not one.chance(0.0) and one.chance(1.0)
    assert one.random() == two.random()


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
