"""Claims and verdicts of the goals: what counts as met, half, below half, void, not measured."""

from __future__ import annotations

import pytest

from bench.goals import report, runner
from bench.goals.registry import ROWS
from bench.judging import Claim, Verdict, human, judge, percentile, worst

ROUNDS = {
    "ours/op_per_s": [80.0, 100.0, 300.0],
    "theirs/op_per_s": [100.0, 100.0, 100.0],
    "bare/op_per_s": [90.0, 90.0, 90.0],
    "ours/p50_us": [30.0, 20.0, 25.0],
}


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (Claim("ours/op_per_s", 1.0, "theirs/op_per_s"), Verdict.MET),
        (Claim("ours/op_per_s", 2.0, "theirs/op_per_s"), Verdict.HALF),
        (Claim("ours/op_per_s", 2.1, "theirs/op_per_s"), Verdict.BELOW),
        (Claim("ours/op_per_s", 101.0), Verdict.HALF),
        (Claim("ours/p50_us", 25.0, at_most=True), Verdict.MET),
        (Claim("ours/p50_us", 24.9, at_most=True), Verdict.HALF),
        (Claim("ours/p50_us", 12.0, at_most=True), Verdict.BELOW),
        (Claim("ours/op_per_s", None, "theirs/op_per_s"), Verdict.TOLD),
        (Claim("ours/op_per_s", 1.0, "absent/op_per_s"), Verdict.MISSING),
        (Claim("absent/op_per_s", 1.0), Verdict.MISSING),
    ],
)
def test_verdicts(claim: Claim, verdict: Verdict) -> None:
    assert judge(claim, ROUNDS).verdict is verdict


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    judged = judge(Claim("a/op_per_s", 1.0, "b/op_per_s"), {"a/op_per_s": [1.0, 10.0, 100.0], "b/op_per_s": [10.0, 5.0, 200.0]})
    assert (judged.value, judged.low, judged.high) == (0.5, 0.1, 2.0)
    assert (judged.figure, judged.base_figure) == (10.0, 10.0)


def test_a_bound_that_the_bare_limit_misses_in_the_same_run_is_void_and_one_that_it_holds_is_not() -> None:
    assert judge(Claim("ours/op_per_s", 150.0, limit="bare/op_per_s"), ROUNDS).verdict is Verdict.VOID
    assert judge(Claim("ours/op_per_s", 150.0, limit="ours/op_per_s"), ROUNDS).verdict is Verdict.VOID
    assert judge(Claim("bare/op_per_s", 95.0, limit="ours/op_per_s"), ROUNDS).verdict is Verdict.HALF
    assert judge(Claim("ours/op_per_s", 90.0, limit="bare/op_per_s"), ROUNDS).verdict is Verdict.MET, "met is met, whatever the limit"


def test_a_row_is_as_good_as_its_worst_claim() -> None:
    assert worst([Verdict.MET, Verdict.BELOW, Verdict.HALF]) is Verdict.BELOW
    assert worst([Verdict.MET, Verdict.TOLD]) is Verdict.MET
    assert worst([Verdict.MET, Verdict.MISSING]) is Verdict.MISSING
    assert worst([]) is Verdict.TOLD


def test_percentile_is_a_value_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile([3.0], 99) == 3.0


def test_rounding_does_not_read_one_thousand_k() -> None:
    assert [human(x) for x in (999.0, 999.9, 1000.0, 999_900.0)] == ["999", "1 k", "1 k", "1 M"]


def test_further_rounds_are_added_only_to_the_same_measurement() -> None:
    def run(quick: bool, **rounds: list[float]) -> dict[str, object]:
        return {"name": "x", "seconds": 1.0, "quick": quick, "rounds": rounds, "missing": {}, "error": None}

    old, new = run(False, a=[1.0]), run(False, a=[2.0])
    assert runner.merged(old, new)["rounds"] == {"a": [1.0, 2.0]}
    assert runner.merged(old, new)["seconds"] == 2.0
    assert runner.merged(old, run(True, a=[2.0]))["rounds"] == {"a": [2.0]}
    assert runner.merged(old, run(False, a=[2.0], b=[2.0]))["rounds"] == {"a": [2.0], "b": [2.0]}
    assert runner.merged(None, new) == new


def test_every_row_has_a_name_of_its_own_a_goal_and_a_command_that_runs_it_alone() -> None:
    for name, row in ROWS.items():
        assert row.name == name and row.path and row.against and row.goal
        assert row.rerun.endswith(f"--row {name}")
        assert any(claim.bound is not None for claim in row.claims)


def test_a_report_tells_every_row_measured_failed_or_missing() -> None:
    names = list(ROWS)
    good = ROWS[names[0]]
    rounds = {side: [2.0] for claim in good.claims for side in (claim.ours, claim.base) if side}
    measured = {
        good.name: {"name": good.name, "seconds": 1.0, "quick": True, "rounds": rounds, "missing": {}, "error": None},
        names[1]: {"name": names[1], "seconds": 1.0, "quick": True, "rounds": {}, "missing": {"loro": "not installed"}, "error": None},
        names[2]: {"name": names[2], "seconds": 1.0, "quick": True, "rounds": {}, "missing": {}, "error": "exit status 1"},
    }
    document = runner.document(list(ROWS.values()), measured)
    assert (document["format"], document["kind"]) == (1, "crdtkv bench goals")
    assert [row["verdict"] for row in document["rows"]] == ["met", "not measured", "not measured"]
    for text in (report.markdown(document), report.page(document), "\n".join(map(report.text, document["rows"]))):
        assert good.path in text and "exit status 1" in text and "not measured" in text
    assert "not installed" in report.page(document)
