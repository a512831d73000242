"""`crdtkv simulate`: whole clusters in virtual time under seeded faults; what breaks is shrunk and told in words."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from crdtkv.cli.errors import DONE, FAILED, is_debugging
from crdtkv.cli.output import JSON, emit, emit_json, output_option
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
)
FAULTS: Final = ("absences", "clocks", "connections", "crashes", "cuts", "disks", "slow", "truncations")
MODES: Final = ("safety", "liveness")
ALL: Final = "all"
REGIONS_MIN, REGIONS_MAX, OPS_MAX = 2, 9, 1_000


def _faults(_: click.Context, __: click.Parameter, text: str) -> frozenset[str]:
    from crdtkv.simulation.programme import parse_faults

    try:
        return parse_faults(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e


@click.command()
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--seeds", type=Integer(min=1), help="How many seeds, from the first one on. [default: 1]")
@click.option("--scenario", type=click.Choice([*SCENARIOS, ALL]), default=ALL, help="What to be biased to; all: one after another.")
@click.option("--regions", type=Integer(REGIONS_MIN, REGIONS_MAX), help="How many regions. [default: as the seed draws]")
@click.option("--ops", type=Integer(1, OPS_MAX), help="How many client requests. [default: as the seed draws]")
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
    failures = runs = events = 0
    spent_s = 0.0
    for case in cases(scenario, None if until_failure and seeds is None else seeds or 1, first):
        _begin(case, output)
        began_s = time.process_time()
        outcome = run_case(case)
        cpu_s = time.process_time() - began_s
        runs, events, spent_s = runs + 1, events + outcome.events, spent_s + cpu_s
        told = list(tell(case).events) if story else []
        cause = outcome.violations and not failures and _explained(case, outcome, shrinks=not no_shrink)
        failures += bool(outcome.violations)
        if output == JSON:
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
            if cause:
                _show_cause(cause)
        sys.stdout.flush()
        if outcome.traceback and is_debugging():
            sys.stderr.write(outcome.traceback)
        if failures and until_failure:
            break
    if output != JSON:
        seeds_run = f"{runs:,} seeds, {events // runs:,} events a seed" if runs > 1 else f"{events:,} events"
        emit(f"{seeds_run}; {spent_s:.1f} s of one core, {events / max(spent_s, 1e-3):,.0f} events a second.")
    return FAILED if failures else DONE


def _begin(case: Case, output: str) -> None:
    """The seed comes first of all: whatever happens then can be repeated."""
    stream = sys.stderr if output == JSON else sys.stdout
    stream.write(f"seed {case.seed} scenario {case.scenario}" + ("\n" if output == JSON else ""))
    stream.flush()


def _show(outcome: Outcome, told: list[str], *, in_detail: bool) -> None:
    from crdtkv.simulation.recap import recap
    from crdtkv.simulation.rules import broken_rule

    found = f"VIOLATION: {broken_rule(outcome.violations[0])}" if outcome.violations else "every invariant held"
    emit(f": {outcome.events:,} events in {outcome.virtual_s:.1f} virtual s; {found}")
    for line in (*told, *outcome.violations):
        emit(f"  {line}")
    if in_detail or outcome.violations:
        for line in recap(outcome):
            emit(f"  {line}")
        emit(f"  Trace: {outcome.trace_sha256}")
    if in_detail and not told and not outcome.violations:
        emit("  --story tells it event by event, -o json counts everything that was met; the same command runs it again, to the byte.")


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
            emit(f"  {line}")
    emit(f"Again: {cause['command']}")
    emit("")
