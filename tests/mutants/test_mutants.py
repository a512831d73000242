"""Proof of the proof: every planted bug, an example of a trap that others fell into, is found by the simulations or tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.planting import MUTANTS, Mutant
from tests.mutants.table import PAGE

SEEDS_MAX = 60
"""Within so many seeds of its scenario each bug must show."""


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.scenario], ids=lambda mutant: mutant.name)
def test_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    outcomes = mutant.hunt(tmp_path, seed=mutant.seed, seeds=SEEDS_MAX)
    assert outcomes[-1]["violations"], f"{mutant.name} survived {len(outcomes)} seeds: {mutant.trap}"


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.test], ids=lambda mutant: mutant.name)
def test_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    done = mutant.try_test(tmp_path)
    assert done.returncode == 1 and "\nFAILED " in done.stdout, (
        f"{mutant.name} survived {mutant.test}: {mutant.trap}\n{done.stdout[-3000:]}"
    )


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 40 and all(mutant.trap for mutant in MUTANTS)
    near_the_disk_and_the_wire = ("crdtkv/storage/", "crdtkv/replication/", "crdtkv/store/")
    assert sum(mutant.file.startswith(near_the_disk_and_the_wire) for mutant in MUTANTS) >= 15


def test_each_is_in_the_table() -> None:
    page = PAGE.read_text()
    missing = [m.name for m in MUTANTS if f"| `{m.name}` | {m.trap} |" not in page]
    assert not missing, f"run `python -m tests.mutants.table`: {missing} are not in {PAGE.name}"
