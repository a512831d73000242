"""Whole clusters in virtual time: the real replicas and sessions, on a network, disks and clocks that fail by a seed.

`simulate(seed, scenario)` runs one; `python -m crdtkv.simulation --seeds N` runs many and prints one JSON line each.
"""

from __future__ import annotations

from crdtkv.simulation.options import SCENARIOS, Options, draw
from crdtkv.simulation.world import Outcome, World, simulate

__all__ = ["SCENARIOS", "Options", "Outcome", "World", "draw", "simulate"]
