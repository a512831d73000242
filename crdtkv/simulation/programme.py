"""What `crdtkv simulate` and `python -m crdtkv.simulation` have in common: which cases are run, and what is told of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from crdtkv.simulation.case import FAULTS, Case
from crdtkv.simulation.options import SCENARIOS
from crdtkv.simulation.rules import broken_rule
from crdtkv.simulation.shrinking import shrink
from crdtkv.simulation.story import Story, tell
from crdtkv.simulation.world import Outcome

ALL: Final = "all"
NONE: Final = "none"
_FIELDS: Final = ("seed", "scenario", "trace_sha256", "events", "virtual_s", "rare", "violations")


def parse_faults(text: str) -> frozenset[str]:
    """The kinds of faults that `all`, `none` or a list with commas names.

    Raises:
        ValueError: an unknown kind; says which there are.
    """
    if text in (ALL, NONE):
        return frozenset(FAULTS if text == ALL else ())
    named = [name.strip() for name in text.split(",")]
    for name in named:
        if name in (ALL, NONE):
            raise ValueError(f"{name!r} stands alone, not in a list")
        if name not in FAULTS:
            raise ValueError(f"{name!r} is no kind of fault; there are {', '.join(FAULTS)}, or {ALL}, or {NONE}")
    return frozenset(named)


def cases(scenario: str, seeds: int | None, first: Case) -> Iterator[Case]:
    """The cases from a first one on: one for each of so many seeds (None: without end). `all` takes scenarios by turns."""
    names = list(SCENARIOS) if scenario == ALL else [scenario]
    for seed in itertools.count(first.seed) if seeds is None else range(first.seed, first.seed + seeds):
        yield replace(first, seed=seed, scenario=names[seed % len(names)])


def fields(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON types; `rules` are those that its violations broke, in their order."""
    rules = [broken_rule(violation)._asdict() for violation in outcome.violations]
    return {**{name: getattr(outcome, name) for name in _FIELDS}, "rules": rules}


def explain(case: Case, outcome: Outcome, *, shrinks: bool) -> tuple[Case, Story, int]:
    """The shortest story of a violation that is found: its case, the story, and how many runs were made to shrink it."""
    found, runs = case, 0
    if shrinks:
        shrunk = shrink(case, outcome.violations[0])
        found, runs = shrunk.case, shrunk.runs
    return found, tell(found), runs
