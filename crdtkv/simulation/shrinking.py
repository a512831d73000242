"""A failing case made small: fewer kinds of faults, fewer regions, fewer requests, while the same rule still breaks.

One stream of chance decides everything in a run, so a smaller case is another run altogether. Each step therefore asks for
a smaller configuration and tries a few neighbouring seeds with it; what fails by the same rule is taken, and is again a
case with a command line of its own. The work is bounded by the number of runs, not by a clock: the same failure shrinks to
the same case on every machine.

After: Hughes, "QuickCheck testing for fun and profit" (2007), for shrinking by regeneration; MacIver and Donaldson,
"Test-case reduction via test-case generation" (ECOOP 2020).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from crdtkv.simulation.case import FAULTS, REGIONS_MIN, Case, CaseWorld, run_case
from crdtkv.simulation.rules import Rule, broken_rule

RUNS_MAX: Final = 240
COST_MAX: Final = 10_000_000
"""Bound on events times requests over all runs, some fifteen seconds: checks look at the whole history after each event."""
SEEDS_EACH: Final = 10
"""With how many seeds each smaller configuration is tried."""
_OPS_AT_FIRST: Final = 20


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A small case that breaks the same rule, and how many runs it took to find."""

    case: Case
    rule: Rule
    runs: int


def shrink(case: Case, violation: str, *, runs_max: int = RUNS_MAX) -> Shrunk:
    """The smallest case found within so many runs; at worst the same one, spelt out."""
    options = CaseWorld(case).options
    search = _Search(replace(case, regions=options.regions, ops=options.transactions), broken_rule(violation), runs_max)
    search.accepts(search.best, [case.seed])  # with what was drawn fixed it is the same run: what others are measured by
    while any(search.accepts(smaller, _seeds(search.best.seed)) for smaller in _smaller(search.best)):
        pass  # each step starts again from the smaller case
    while search.accepts(search.best, range(search.best.seed + 1, search.best.seed + runs_max), shorter=True):
        pass
    return Shrunk(search.best, search.rule, search.runs)


class _Search:
    """The best case so far, and what may still be spent on a better one."""

    def __init__(self, case: Case, rule: Rule, runs_max: int) -> None:
        self.best = case
        self.rule = rule
        self.runs = 0
        self._events = sys.maxsize
        self._runs_max = runs_max
        self._cost = 0

    def accepts(self, smaller: Case, seeds: Iterable[int], *, shorter: bool = False) -> bool:
        """Whether a case breaks the rule with one of these seeds (in a run with fewer events, if `shorter`); it is the best then."""
        for seed in seeds:
            if self.runs == self._runs_max or self._cost > COST_MAX:
                return False
            case = replace(smaller, seed=seed)
            outcome = run_case(case)
            self.runs += 1
            self._cost += outcome.events * (case.ops or 1)
            breaks = any(broken_rule(text) == self.rule for text in outcome.violations)
            if breaks and (not shorter or outcome.events < self._events):
                self.best, self._events = case, outcome.events
                return True
        return False


def _seeds(first: int) -> range:
    return range(first, first + SEEDS_EACH)


def _smaller(case: Case) -> Iterator[Case]:
    """Configurations with less in them, the boldest first."""
    assert case.regions is not None and case.ops is not None
    if case.ops > 2 * _OPS_AT_FIRST:  # long runs are costly: get out of them first
        yield replace(case, ops=_OPS_AT_FIRST)
    if case.faults:
        yield replace(case, faults=frozenset())
    for regions in range(REGIONS_MIN, case.regions):
        yield replace(case, regions=regions)
    for ops in sorted({max(1, case.ops // 4), max(1, case.ops // 2), max(1, case.ops * 3 // 4), max(1, case.ops - 1)} - {case.ops}):
        yield replace(case, ops=ops)
    if len(case.faults) > 1:
        for fault in FAULTS:
            if fault in case.faults:
                yield replace(case, faults=case.faults - {fault})
