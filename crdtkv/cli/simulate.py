"""`crdtkv simulate`: whole clusters in virtual time under seeded faults; what breaks is shrunk and told in words."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from crdtkv import interrupts
from crdtkv.cli.errors import DONE, FAILED, is_debugging
from crdtkv.cli.output import JSON, counted, emit, emit_json, output_option
from crdtkv.cli.usage import Integer

if TYPE_CHECKING:
    from crdtkv.simulation.case import Case
    from crdtkv.simulation.world import Outcome

# The names and bounds that help tells; a test compares them with crdtkv.simulation, whose import takes longer than help may.
SCENARIOS: Final = (
    "members",
    "mixed",
    "crowd",
    "ties",
    "counters",
    "clears",
    "relay",
    "bridge",
    "crashes",
    "expiry",
    "holding",
    "full",
    "snapshot",
    "removals",
    "losses",
    "churn",
    "disks",
    "regrets",
)
FAULTS: Final = ("absences", "clocks", "connections", "crashes", "cuts", "disks", "slow", "truncations")
MODES: Final = ("safety", "liveness")
ALL: Final = "all"
REGIONS_MIN, REGIONS_MAX, OPS_MAX = 2, 9, 1_000
WIDTH: Final = 80
NAMED_MAX: Final = 20
"""So many of the seeds that broke a rule are named at the end."""


def _faults(_: click.Context, __: click.Parameter, text: str) -> frozenset[str]:
    from crdtkv.simulation.programme import parse_faults

    try:
        return parse_faults(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e


@click.command()
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--seeds", type=Integer(min=1), help="How many seeds, from the first one on. [default: 1]")
@click.option(
    "--scenario",
    type=click.Choice([*SCENARIOS, ALL]),
    default=ALL,
    show_default=True,
    metavar="NAME",
    help=f"What to be biased to: {', '.join(SCENARIOS)}; {ALL}: one after another, by the seed.",
)
@click.option("--regions", type=Integer(REGIONS_MIN, REGIONS_MAX), help="How many regions, to begin with. [default: as the seed draws]")
@click.option(
    "--ops", type=Integer(1, OPS_MAX), help="How many client requests, besides some while a region is away. [default: as the seed draws]"
)
@click.option("--faults", default=ALL, callback=_faults, metavar="all|none|LIST", help=f"What may go wrong: {', '.join(FAULTS)}.")
@click.option(
    "--mode", type=click.Choice(MODES), help="safety: faults never stop. liveness: they do, and all becomes equal. [default: as drawn]"
)
@click.option("--until-failure", is_flag=True, help="Go on from seed to seed until one fails; with --seeds, for so many at most.")
@click.option("--story", is_flag=True, help="Tell what happened in each run, event by event.")
@click.option("--no-shrink", is_flag=True, help="Tell the first violation as it was found.")
@output_option
def simulate(
    seed: int,
    seeds: int | None,
    scenario: str,
    regions: int | None,
    ops: int | None,
    faults: frozenset[str],
    mode: str | None,
    until_failure: bool,
    story: bool,
    no_shrink: bool,
    output: str,
) -> int:
    """Run the real replication in virtual time, under faults that a seed decides; check every invariant after every step.

    One seed is one run, on every machine. The first violation is shrunk to a small case that breaks the same rule, and told: who
    wrote what, what was cut, which rule broke, where states differ. Status 1 if there was any.
    """
    from crdtkv.simulation.case import Case, run_case
    from crdtkv.simulation.programme import cases, fields
    from crdtkv.simulation.story import tell

    first = Case(seed=seed, regions=regions, ops=ops, faults=faults, mode=mode)
    so_far = _SoFar(seed, None if until_failure and seeds is None else seeds or 1)
    with _told_if_interrupted(so_far, output):
        for case in cases(scenario, so_far.seeds, first):
            _begin(case, output)
            began_s = time.process_time()
            outcome = run_case(case)
            cpu_s = time.process_time() - began_s
            told = list(tell(case).events) if story else []
            is_first = bool(outcome.violations) and not so_far.broken
            so_far.count(case, outcome, cpu_s)
            if output == JSON:
                cause = _explained(case, outcome, shrinks=not no_shrink) if is_first else None
                emit_json(
                    {
                        **fields(outcome),
                        "cpu_s": round(cpu_s, 3),
                        **({"story": told} if story else {}),
                        **({"explanation": cause} if cause else {}),
                    }
                )
            else:
                _show(outcome, told, in_detail=story or not (seeds or until_failure))
                sys.stdout.flush()  # the rest takes seconds
                if is_first:
                    _show_cause(_explained(case, outcome, shrinks=not no_shrink))
            sys.stdout.flush()
            if outcome.traceback and is_debugging():
                sys.stderr.write(outcome.traceback)
            if so_far.broken and until_failure:
                break
    if output != JSON:
        if so_far.runs > 1:
            emit(f"{so_far.verdict()}.")
        emit(so_far.effort())
    return FAILED if so_far.broken else DONE


class _SoFar:
    """What came of the seeds that were run so far, of so many (None: without end)."""

    def __init__(self, first: int, seeds: int | None) -> None:
        self.first = first
        self.seeds = seeds
        self.runs = self.events = 0
        self.spent_s = 0.0
        self.broken: list[int] = []

    def count(self, case: Case, outcome: Outcome, cpu_s: float) -> None:
        """A run is done."""
        self.runs, self.events, self.spent_s = self.runs + 1, self.events + outcome.events, self.spent_s + cpu_s
        if outcome.violations:
            self.broken.append(case.seed)

    def effort(self) -> str:
        """What was run, and how fast."""
        seeds = f"{self.runs:,} seeds, {self.events // self.runs:,} events a seed" if self.runs > 1 else f"{self.events:,} events"
        spent = f"{self.spent_s:,.1f} s" if self.spent_s >= 1 else f"{self.spent_s * 1000:.0f} ms"
        return f"{seeds}; {spent} of one core, {self.events / max(self.spent_s, 1e-3):,.0f} events a second."

    def verdict(self) -> str:
        """How many seeds held; which did not, the first of them by number."""
        if not self.broken:
            return f"{counted(self.runs, 'seed')} held"
        named, more = self.broken[:NAMED_MAX], len(self.broken) - NAMED_MAX
        seeds = ", ".join(map(str, named)) + (f" and {more:,} more" if more > 0 else "")
        return f"{len(self.broken):,} of {counted(self.runs, 'seed')} broke a rule: {seeds}"

    def left(self) -> str:
        """The options with which the same command does the rest; empty if there is none."""
        if self.runs == self.seeds:
            return ""
        return f"--seed {self.first + self.runs}" + ("" if self.seeds is None else f" --seeds {self.seeds - self.runs}")


@contextlib.contextmanager
def _told_if_interrupted(so_far: _SoFar, output: str) -> Iterator[None]:
    """Ctrl-C and its kin end the process at once, as ever; but of many seeds it is told first how they did, and how to go on."""

    def end(number: int) -> None:
        if so_far.runs:
            begun = "\n" if output != JSON and sys.stdout.isatty() else ""  # the line of the seed that is being run
            left = f"; go on with {left}" if (left := so_far.left()) else ""
            # Not through `sys.stderr`: this may be called in the midst of anything, a write to that included.
            os.write(2, f"{begun}crdtkv: {so_far.verdict()}{left}\n".encode())
        os._exit(128 + number)

    with interrupts.noted(*interrupts.ENDED_BY) as signals, signals.told(end):
        yield
    signals.check()


def _begin(case: Case, output: str) -> None:
    """The seed comes first of all: whatever happens then can be repeated."""
    stream = sys.stderr if output == JSON else sys.stdout
    stream.write(f"seed {case.seed} scenario {case.scenario}" + ("\n" if output == JSON else ""))
    stream.flush()


def _show(outcome: Outcome, told: list[str], *, in_detail: bool) -> None:
    from crdtkv.simulation.recap import recap
    from crdtkv.simulation.rules import broken_rule
    from crdtkv.simulation.words import named

    found = "VIOLATION" if outcome.violations else "every invariant held"
    emit(f": {outcome.events:,} events in {outcome.virtual_s:.1f} virtual s; {found}")
    for line in told:
        _emit_wrapped(line)
    for violation in outcome.violations:
        _emit_wrapped(f"Broken: {broken_rule(violation)}.")
        _emit_wrapped(f"Found: {named(violation)}")
    if in_detail or outcome.violations:
        for paragraph in recap(outcome):
            _emit_wrapped(paragraph)
        _emit_wrapped(f"Trace: {outcome.trace_sha256}")
    if in_detail and not told and not outcome.violations:
        _emit_wrapped("--story tells it event by event, -o json counts all that was met. The same command runs it again, to the byte.")


def _emit_wrapped(line: str) -> None:
    """A line of what is told of a run, indented; what does not fit is put below where it begins, an event's below its text."""
    begin = re.match(r" *(\d+\.\d ms  |\()?", line)
    assert begin is not None
    hanging = " " * (2 + (begin.end() if begin[1] else begin.end() + 4))
    for part in textwrap.wrap(f"  {line}", WIDTH, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False):
        emit(part)


def _explained(case: Case, outcome: Outcome, *, shrinks: bool) -> dict[str, object]:
    from crdtkv.simulation.programme import explain
    from crdtkv.simulation.story import gist

    found, story, runs = explain(case, outcome, shrinks=shrinks)
    return {"command": found.command(), "runs": runs, "story": gist(story), "broken": story.broken, "states": story.states}


def _show_cause(cause: dict[str, object]) -> None:
    emit("")
    emit(f"The smallest case found in {cause['runs']} runs:" if cause["runs"] else "What happened:")
    for part in ("story", "broken", "states"):
        lines = cause[part]
        assert isinstance(lines, tuple)
        for line in lines:
            _emit_wrapped(line)
    emit(f"Again: {cause['command']}")
    emit("")
