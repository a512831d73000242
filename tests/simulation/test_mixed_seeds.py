"""Clusters under every kind of fault at once; the seed draws which."""

from __future__ import annotations

import pytest

from tests.simulation.runs import run_seeds

CHUNK = 35


@pytest.mark.parametrize("first", range(10_000, 10_000 + 15 * CHUNK, CHUNK))
def test_every_invariant_holds(first: int) -> None:
    assert run_seeds(first, CHUNK, "mixed")["crashed"] > 0, "no crash in so many seeds: the faults are off"
