"""Curves go on where they were cut off; the README's figures are those of the committed results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench import machine, readme_table
from bench.curves import runner
from bench.curves.measures import CURVES
from bench.goals import report
from bench.goals.registry import ROWS
from tests.unit.documents import ROOT

TWO = ("regions", "batch-size")


def counted() -> tuple[list[tuple[str, int]], runner.Measure]:
    done: list[tuple[str, int]] = []

    def measure(name: str, x: int) -> Mapping[str, float]:
        done.append((name, x))
        return {"put_us": x / 3}

    return done, measure


def test_a_run_that_is_cut_off_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    done, measure = counted()

    def cut_off(name: str, x: int) -> Mapping[str, float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        return measure(name, x)

    with pytest.raises(KeyboardInterrupt):
        runner.run(path, TWO, measure=cut_off)
    assert len(done) == 3
    assert runner.run(path, TWO, measure=measure) == []
    assert sorted(done) == sorted((name, x) for name in TWO for x in CURVES[name].points), "each once"
    assert runner.run(path, TWO, measure=measure) == [] and len(done) == sum(len(CURVES[name].points) for name in TWO)


def test_points_lie_in_order_whatever_the_order_in_which_they_came(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    document = runner.load(path, machine.describe())
    for x in (7, 1, 3):
        runner.add(document, "regions", x, {"put_us": 1.23456}, 0.1)
    assert [point["x"] for point in document["curves"]["regions"]["points"]] == [1, 3, 7]
    assert document["curves"]["regions"]["points"][0]["figures"] == {"put_us": 1.235}


def test_the_small_points_of_all_curves_come_first() -> None:
    todo = runner.pending({"curves": {}}, TWO)
    assert todo[:4] == [("regions", 1), ("batch-size", 1), ("regions", 2), ("batch-size", 10)]


def test_a_spent_budget_begins_nothing(tmp_path: Path) -> None:
    done, measure = counted()
    assert len(runner.run(tmp_path / "curves.json", TWO, budget_s=0.0, measure=measure)) == sum(len(CURVES[n].points) for n in TWO)
    assert not done


def test_a_point_that_fails_is_told_and_left_for_the_next_time(tmp_path: Path) -> None:
    said: list[str] = []

    def failing(name: str, x: int) -> Mapping[str, float]:
        if x == 3:
            raise RuntimeError("no memory left")
        return {"put_us": 1.0}

    assert runner.run(tmp_path / "curves.json", ("regions",), measure=failing, told=said.append) == [("regions", 3)]
    assert any("no memory left" in line for line in said)


def test_points_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    _, measure = counted()
    runner.run(path, ("regions",), measure=measure)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["machine"]["cpu"] = "another"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(runner.OtherMachineError, match="cpu was another"):
        runner.run(path, ("regions",), measure=measure)


def test_a_small_point_of_the_quick_curves_is_measured() -> None:
    for name in ("set-size", "batch-size", "value-size", "backlog"):
        curve = CURVES[name]
        figures = curve.measure(curve.points[1] if name != "value-size" else 1000)
        assert figures and all(value > 0 for value in figures.values())


def test_the_readme_holds_what_the_script_makes_of_the_committed_results() -> None:
    goals, curves = (json.loads((ROOT / path).read_text(encoding="utf-8")) for path in (readme_table.GOALS, readme_table.CURVES))
    readme = (ROOT / readme_table.README).read_text(encoding="utf-8")
    assert readme_table.within(readme, readme_table.table(goals, curves)) == readme, "run python -m bench table"


def test_the_report_beside_the_committed_results_is_made_of_them() -> None:
    goals = json.loads((ROOT / readme_table.GOALS).read_text(encoding="utf-8"))
    assert report.markdown(goals) == (ROOT / readme_table.GOALS).with_suffix(".md").read_text(encoding="utf-8")


def test_figures_have_units_and_a_single_round_is_one() -> None:
    goals, curves = (json.loads((ROOT / path).read_text(encoding="utf-8")) for path in (readme_table.GOALS, readme_table.CURVES))
    made = next(row for row in goals["rows"] if row["name"] == "large")
    row = {**made, "rounds": {name: figures[:1] for name, figures in made["rounds"].items()}}
    lines = readme_table.table({**goals, "rows": [row]}, curves).splitlines()[4:8]
    assert "(1 round) |" in lines[0] and " s | ≤ 2 s |" in lines[0]
    assert " MB | ≤ 1.07 GB |" in lines[1] and " MB | ≤ 1.07 GB |" in lines[2] and " × | ≤ 2.5 × |" in lines[3]


def test_committed_results_name_the_machine_by_its_kind_and_every_row_by_its_command() -> None:
    goals, curves = (json.loads((ROOT / path).read_text(encoding="utf-8")) for path in (readme_table.GOALS, readme_table.CURVES))
    for document in (goals, curves):
        assert {"date", "cores", "cpu", "python", "system"} <= document["machine"].keys()
        assert "host" not in json.dumps(document["machine"]).lower()
    for row in goals["rows"]:
        assert row["name"] in ROWS and row["rerun"].endswith(f"--row {row['name']}")


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        readme_table.within("no marks here", "text")
