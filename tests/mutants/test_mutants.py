"""Proof of the proof: every planted bug, an example of a trap that others fell into, is found by the simulations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.planting import MUTANTS, Mutant

SEEDS_MAX = 60
"""Within so many seeds of its scenario each bug must show."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    outcomes = mutant.hunt(tmp_path, seed=1, seeds=SEEDS_MAX)
    assert outcomes[-1]["violations"], f"{mutant.name} survived {len(outcomes)} seeds: {mutant.trap}"


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 12 and all(mutant.trap for mutant in MUTANTS)
