"""`crdtkv simulate`: what it prints, what it refuses, and that a broken rule becomes a short story with a command line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from crdtkv.cli import simulate as command
from crdtkv.cli.main import main
from crdtkv.core.apply import Applier
from crdtkv.core.causality import VersionVector
from crdtkv.core.clock import HybridClock, stamp
from crdtkv.simulation import SCENARIOS, invariants, losses, rules, simulate, words
from crdtkv.simulation.case import FAULTS, MODES, OPS_MAX, REGIONS_MAX, REGIONS_MIN, Case, CaseWorld, run_case
from crdtkv.simulation.clocks import EPOCH_MS
from crdtkv.simulation.recap import recap
from crdtkv.simulation.rules import broken_rule
from crdtkv.simulation.shrinking import shrink
from crdtkv.simulation.story import Story, gist, tell
from crdtkv.simulation.world import World
from crdtkv.store.reading import Reader
from tests.simulation import counter_example


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(["simulate", *args])
    out, err = capsys.readouterr()
    return status, out, err


def test_help_tells_what_there_is_without_loading_it() -> None:
    assert list(SCENARIOS) == list(command.SCENARIOS) and FAULTS == command.FAULTS and MODES == command.MODES
    bounds = (command.REGIONS_MIN, command.REGIONS_MAX, command.OPS_MAX)
    assert bounds == (REGIONS_MIN, REGIONS_MAX, OPS_MAX)
    loaded = "import sys; from crdtkv.cli import simulate; print([m for m in sys.modules if m.startswith('crdtkv.simulation')])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_says_the_seed_first_and_that_all_held(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--seed", "7", "--regions", "5", "--ops", "12", "--faults", "all")
    assert status == 0
    assert out.startswith("seed 7 scenario ") and "every invariant held" in out.splitlines()[0]
    assert "  Who: 5 regions (ap, br, ca, eu, us), each with " in out and out.splitlines()[-1].endswith(" events a second.")
    assert re.search(r"events; [1-9]\d* ms of one core, ", out), "it read 0.0 s"
    assert max(map(len, out.splitlines())) <= 80


def test_json_has_the_fields_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--seed", "3", "--seeds", "2", "-o", "json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and err.startswith("seed 3 ")
    assert [line["seed"] for line in lines] == [3, 4]
    assert {"seed", "trace_sha256", "events", "virtual_s", "rare", "violations"} <= lines[0].keys()
    assert lines[0]["violations"] == lines[0]["rules"] == []
    assert lines[0]["trace_sha256"] == simulate(3, lines[0]["scenario"]).trace_sha256


@pytest.mark.parametrize(
    "args",
    [("--regions", "1"), ("--regions", "10"), ("--ops", "0"), ("--seeds", "0"), ("--faults", "gremlins"), ("--scenario", "none"), ("x",)],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    status, out, err = run(capsys, *args)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1


def test_many_seeds_end_with_a_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two hundred seeds that failed, only the last screen was seen."""
    few = ("--scenario", "counters", "--regions", "2", "--ops", "12", "--no-shrink")
    assert run(capsys, *few, "--seeds", "3")[1].splitlines()[-2] == "3 seeds held."
    monkeypatch.setattr(Reader, "counter", wrong_counter)
    status, out, _ = run(capsys, *few, "--seeds", "6")
    broken = [line.split()[1] for line in out.splitlines() if line.startswith("seed ") and "VIOLATION" in line]
    assert status == 1 and 1 < len(broken) < 6
    assert out.splitlines()[-2] == f"{len(broken)} of 6 seeds broke a rule: {', '.join(broken)}."
    monkeypatch.setattr(command, "NAMED_MAX", 1)
    assert f" broke a rule: {broken[0]} and {len(broken) - 1} more.\n" in run(capsys, *few, "--seeds", "6")[1]


@pytest.mark.parametrize(
    ("args", "at", "told"),
    [
        (("--until-failure", "--seed", "4"), 7, "3 seeds held; go on with --seed 7"),
        (("--seeds", "5", "-o", "json"), 1, "1 seed held; go on with --seed 1 --seeds 4"),
        (("--seeds", "5"), 0, ""),
    ],
    ids=["without end", "so many", "the first"],
)
def test_ctrl_c_says_how_many_held_and_how_to_go_on(args: tuple[str, ...], at: int, told: str) -> None:
    program = f"""
import os, signal, sys
from crdtkv import interrupts
interrupts.end_at_once_on_ctrl_c()
from crdtkv.cli.main import main
from crdtkv.simulation import case
run_case = case.run_case
case.run_case = lambda c: run_case(c) if c.seed != {at} else os.kill(os.getpid(), signal.SIGINT)
sys.exit(main(["simulate", "--ops", "1", "--faults", "none", *{args}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert [line for line in done.stderr.splitlines() if not line.startswith("seed ")] == ([f"crdtkv: {told}"] if told else [])


def test_all_or_none_in_a_list_of_faults_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'all' stands alone, not in a list" in run(capsys, "--faults", "all,none")[2]
    assert "'gremlins' is no kind of fault; there are " in run(capsys, "--faults", "cuts,gremlins")[2]


def test_of_a_run_that_removed_a_region_the_members_became_equal() -> None:
    outcome = simulate(0, "members")
    for rare, who in (({}, "all regions"), ({"region_removed": 1}, "all members")):
        assert recap(replace(outcome, rare=rare))[-1].startswith(f"End: the faults stopped, and {who} became equal")


def test_stamps_are_told_in_ms_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are stored, they have eighteen digits."""
    assert words.moment(stamp(EPOCH_MS + 250, 3)) == "250 ms + 3"
    assert (words.moment(stamp(EPOCH_MS - 7)), words.moment(0)) == ("-7 ms", "nothing")
    monkeypatch.setattr(HybridClock, "absorb", lambda clock, mark: None)
    said = next(text for seed in range(20) for text in simulate(seed).violations)
    assert re.search(r": the clock's mark is (nothing|-?\d{1,5} ms).*, behind what is applied, -?\d{1,5} ms", said)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_telling_and_fixing_nothing_change_no_trace(scenario: str) -> None:
    assert tell(Case(seed=11, scenario=scenario)).outcome == simulate(11, scenario)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fixing_what_was_drawn_is_the_same_run(scenario: str) -> None:
    """Shrinking begins with that. Where more than forty requests are drawn it was another run, and a story was told that held."""
    case = Case(seed=4, scenario=scenario)
    drawn = CaseWorld(case).options
    fixed = replace(case, regions=drawn.regions, ops=drawn.transactions)
    assert run_case(fixed).trace_sha256 == run_case(case).trace_sha256


def test_switched_off_faults_do_not_happen() -> None:
    outcome = run_case(Case(seed=2, scenario="relay", regions=4, ops=15, faults=frozenset()))
    assert not outcome.violations
    assert not {name for name in outcome.rare if name.startswith(("cut_", "crash", "clock_j", "connection", "log_"))}


def test_a_story_names_what_happened() -> None:
    text = "\n".join(tell(Case(seed=6, scenario="crashes", ops=10)).events)
    for phrase in ("commits ap:1, having seen nothing: ", "is killed", "starts again", "applies ", "no more faults, and clients stop; "):
        assert phrase in text


def test_a_story_tells_what_came_how_and_what_clients_do() -> None:
    """The recap counted snapshots, relays, replays and retries that no line of the story had."""
    told = tell(Case(seed=7, scenario="bridge", regions=5))
    rare = told.outcome.rare
    for name, words_of_it in {
        "relayed_frames": " relays ",
        "session_hopped": "  a client goes on at ",
        "session_waited": "  a client waits for ",
        "request_tried_again": ", where it was not done yet",
        "retry_was_answered": ", and is told that it is done",
        "replayed": " of its log",
        "held": " keeps commits back ",
    }.items():
        assert sum(words_of_it in line for line in told.events) == rare[name] > 0, name
    installs = [line for line in told.events if line.endswith(", by a snapshot")]
    assert 1 < len(installs) <= rare["snapshot_installed"], "one that brings nothing new is not told"
    assert all(" applies " in line for line in installs)
    assert sum(" a snapshot" in line and " begins to send " in line for line in told.events) >= len(installs)
    pairs = [(line, after) for line, after in zip(told.events, told.events[1:], strict=False) if line.endswith(" not done yet")]
    assert any(after.startswith(f"{line[:14]}ap commits ") for line, after in pairs), "what it leads to comes after it"


def test_a_long_story_is_told_by_what_concerns_the_wrong_place() -> None:
    """A removal that wins against a concurrent write was told in 45 lines, of which 4 mattered."""
    events = (
        *(f"   {at}.0 ms  us commits us:{at}, having seen nothing: sets register r to {at}" for at in range(1, 14)),
        "  20.0 ms  us commits us:14, having seen us:13: sets field 'f' of map m to 1; sets register r to 2",
        "  21.0 ms  eu applies us:1-13",
        "  22.0 ms  eu is killed",
        "  22.0 ms  ap is killed",
        "  22.5 ms  ap applies us:14",
        "  23.0 ms  eu applies us:12-14",
        "  23.0 ms  us relays br:1 to eu",
        "  23.5 ms  a client goes on at us",
        "  23.5 ms  us commits us:15, having seen us:14: sets register r to 3",
        "  24.0 ms  eu commits eu:1, having seen us:14: clears map m",
        "  25.0 ms  every cut heals",
        "  25.0 ms  ap relays eu:1 to br",
        "  25.0 ms  ap relays eu:1 to us",
        "  26.0 ms  us applies eu:1",
    )
    wrong = "    field 'f' of map m holds 1 of us:14; it should hold nothing"
    outcome = replace(simulate(1), regions=("ap", "br", "eu", "us"))
    states = ("ap has applied us:14; its state is what these say.", "us has applied eu:1, us:14, but", wrong)
    story = Story(outcome, events, ("Broken: invariant 5.",), states)
    *told, last = gist(story)
    assert told == [
        "  20.0 ms  us commits us:14, having seen us:13: sets field 'f' of map m to 1; …",
        *(events[at] for at in (15, 18, 22, 23, 25, 26)),
    ]
    assert "20 events that do not concern field 'f' of map m" in last
    assert gist(replace(story, states=())) == events, "no place is known to be wrong"
    found = "Found: the join of us and eu: field 'f' of map m holds 1 of us:14; it should hold nothing"
    assert gist(replace(story, states=(), broken=("Broken: invariant 6.", found))) == (*told, last), "the check itself names the place"


def test_a_short_story_still_says_who_takes_part_and_why_probe_is_written() -> None:
    """`--regions 2` told of three, and `--ops 1` of three writes to `probe` that nothing explained."""
    told = tell(Case(seed=169, scenario="members", regions=2, ops=1, faults=frozenset()))
    assert len(told.events) > 6
    wrong = "    register probe holds nothing; it should hold 3 of ca:1"
    *lines, last = gist(replace(told, states=("ca has applied ca:1, but", wrong)))
    who, stop, *probes = [line.partition(" ms  ")[2] for line in lines]
    assert who == "br adds a region, ca, which begins with nothing"
    assert stop == "no more faults, and clients stop; a second later each region must take a write, to register probe"
    assert [line.split()[0] for line in probes if "sets register probe to " in line] == ["ap", "br", "ca"]
    assert last.endswith("events that do not concern register probe are left out; --story tells all)")
    *_, last = gist(replace(told, events=(*lines, "     2600.0 ms  ap applies eu:9"), states=("ca has applied ca:1, but", wrong)))
    assert last.strip() == "(1 event that does not concern register probe is left out; --story tells all)"


def test_a_commit_of_a_later_incarnation_is_told_from_one_of_the_first() -> None:
    """Both were told as `us:1`, and a story of lost disks could not be followed."""
    vv = VersionVector({"us@1-00000004": 7, "us@2-34711ded": 1, "us@1-fc90714f": 2})
    assert words.seen(vv) == "us:7, us@1-fc90714f:2, us@2-34711ded:1"
    assert words.named("us@1-00000004 is 1 at eu") == "us is 1 at eu"
    commit = "  10.0 ms  us commits us@1-fc90714f:2, having seen nothing: sets register r to 1"
    event = "  20.0 ms  us applies us@1-fc90714f:1-3, eu:4"
    story = Story(simulate(1), (commit, event, *["  x"] * 9), (), ("    register r holds nothing; it should hold 1 of us@1-fc90714f:2",))
    assert event in gist(story)


def test_regions_that_are_not_equal_are_told_by_what_differs() -> None:
    """The whole vectors of all regions were: of a run with many incarnations, six thousand characters."""
    world = World(3, "relay")
    assert not world.run().violations
    assert [*world.differences()] == []
    first, *others = world.members
    at = first.machine.own_seq()
    assert world.clients.probe(first)
    wanted = f"{first.origin} is {at + 1} at {first.region} and {at} at {', '.join(m.region for m in others)}"
    assert wanted in [*world.differences()]
    others[0].stop_for_good()
    assert f"{others[0].region} is down" in [*world.differences()]


def test_every_check_of_the_auditor_has_its_rule() -> None:
    """A message that a new check brings must be given a rule, or shrinking could take one defect for another."""
    trees = [ast.parse(Path(module.__file__).read_text(encoding="utf-8")) for module in (invariants, losses)]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [call for call in calls if getattr(call.func, "id", "") in ("must", "Violation")]
    messages = [call.args[-1] for call in calls if not isinstance(call.args[-1], ast.Name)]
    assert len(messages) > 35
    for message in messages:
        parts = message.values if isinstance(message, ast.JoinedStr) else [message]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
        assert broken_rule(text).number is not None, text


def refuse_what_is_not_local(step: Applier, key: str, type_code: int, subkey: bytes) -> None:
    """A core that cannot apply what another replica removed."""
    if not step.local:
        raise KeyError("no such place")
    right_remove(step, key, type_code, subkey)


right_remove = Applier.remove
RAISED = r"KeyError: 'no such place', raised at crdtkv/core/types/(orset|map|register)\.py:\d+ in \w+"


def test_an_exception_of_the_core_is_told_with_its_place_and_the_step_that_raised_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither was told, but what the half-done step left of the state, as if that were the finding."""
    monkeypatch.setattr(Applier, "remove", refuse_what_is_not_local)
    case = next(c for seed in range(50) if run_case(c := Case(seed=seed, regions=2, ops=20, faults=frozenset())).violations)
    told = tell(case)
    assert re.fullmatch(RAISED, told.outcome.violations[0])
    assert re.search(r"(ap|br) applies (ap|br):\d+.*, and an exception is raised: KeyError: ", told.events[-1])
    assert re.fullmatch(r"Broken: no step raises an exception \(KeyError in \w+\)\.", told.broken[0])
    assert told.broken[1:] == (f"Found: {told.outcome.violations[0]}",) and not told.states
    assert told.outcome == run_case(case), "and telling it changes nothing"

    monkeypatch.setenv("CRDTKV_DEBUG", "1")
    status, out, err = run(capsys, *case.command().split()[2:], "--no-shrink")
    assert status == 1
    assert re.search(r"; VIOLATION Broken: no step raises an exception \(KeyError in \w+\)\. Found: " + RAISED, " ".join(out.split()))
    assert err.startswith("Traceback (most recent call last):\n") and "in refuse_what_is_not_local" in err
    monkeypatch.delenv("CRDTKV_DEBUG")
    assert run(capsys, *case.command().split()[2:], "--no-shrink")[1:] == (ANY, "")


def test_what_is_no_invariant_has_a_rule_that_stays_from_run_to_run() -> None:
    wanted = "no step raises an exception (AssertionError in unpack)"
    for said in ("it was acknowledged by us", "two\nlines"):  # as other violations say
        assert str(broken_rule(f"AssertionError: {said}, raised at crdtkv/core/codec.py:7 in unpack")) == wanted
    assert str(broken_rule("us: divergence: of eu: 7")) == str(broken_rule("br: divergence: x")) != str(broken_rule("br: fork: x"))
    link = "a message that came over a link that lives on was forgotten"
    assert broken_rule(f"us: {link}") == broken_rule(f"br: {link}")


def test_what_a_rule_says_stands_in_the_design_under_its_number() -> None:
    """`invariant 10` was printed of a journal, and in the design 10 was about something else."""
    page = (Path(__file__).parents[2] / "docs" / "design.md").read_text(encoding="utf-8")
    rows = {int(number): said.casefold() for number, said in re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)}
    numbered = [rule for rule in rules.all_rules() if rule.number is not None]
    assert {rule.number for rule in numbered} == rows.keys() == set(range(1, 12))
    for rule in numbered:
        assert rule.number is not None and rule.text.casefold() in rows[rule.number], rule


right_counter = Reader.counter


def wrong_counter(self: Reader, key: bytes) -> int | None:
    """A reader that loses sight of everything above three."""
    value = right_counter(self, key)
    return None if value is None else min(3, value)


def test_a_violation_shrinks_to_a_smaller_case_that_breaks_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "counter", wrong_counter)
    case = next(c for seed in range(50) if run_case(c := Case(seed=seed, scenario="counters", regions=4, ops=30)).violations)
    violation = run_case(case).violations[0]
    small = shrink(case, violation, runs_max=60)
    assert small == shrink(case, violation, runs_max=60), "shrinking is not deterministic"
    assert small.rule == broken_rule(violation) and small.rule.number == 9 and small.runs <= 60
    assert small.case.regions == 2 and small.case.ops is not None and small.case.ops <= 5 and small.case.faults < frozenset(FAULTS)
    assert [broken_rule(text) for text in run_case(small.case).violations] == [small.rule]


def test_its_command_line_runs_the_small_case_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Reader, "counter", wrong_counter)
    status, out, _ = run(capsys, "--scenario", "counters", "--until-failure", "-o", "json", "--no-shrink", "--ops", "12")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    again, told, _ = run(capsys, *found["explanation"]["command"].split()[2:], "--no-shrink")
    assert status == again == 1
    assert found["rules"] == [{"number": 9, "text": "readers are shown the winner by stored stamp and origin"}]
    assert found["trace_sha256"] in told and words.named(found["violations"][0]) in " ".join(told.split())
    assert told.count("Broken: invariant 9: readers are shown the winner by stored stamp and origin.") == 2 and "counter counter/0" in told
    assert max(len(line) for line in told.splitlines() if not line.startswith("Again: ")) <= 80


def test_a_stranger_breaks_a_rule_of_the_core_and_gets_the_story_that_the_docs_show(tmp_path: Path) -> None:
    """Of two concurrent writes an editor lets the core keep one; one command later there is a short counter-example. That of the docs had
    a command line which by then found nothing."""
    story = counter_example.told(tmp_path)
    assert story == counter_example.shown(), "renew it: python -m tests.simulation.counter_example"
    assert len(story.splitlines()) <= 25 and "; it should hold " in story
