"""What the tests of this folder share: run seeds, and say of a failure how to repeat it."""

from __future__ import annotations

from collections import Counter

from crdtkv.simulation import simulate


def run_seeds(first: int, count: int, scenario: str) -> Counter[str]:
    """Run some seeds of a scenario; how often each rare state was met. The seed that runs is printed first."""
    met: Counter[str] = Counter()
    for seed in range(first, first + count):
        print(f"seed {seed} scenario {scenario}", flush=True)
        outcome = simulate(seed, scenario)
        repeat = f"python -m crdtkv.simulation --seed {seed} --scenario {scenario}"
        assert not outcome.violations, f"{outcome.violations[0]}\nafter {outcome.events} events; again: {repeat}"
        met.update({name: 1 for name in outcome.rare})
    return met
