"""Ctrl-C in the benchmarks: one line that says how to go on, status 130, nothing left running, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.curves.measures import CURVES
from tests.integration.test_interrupts import DEADLINE_S, ROOT, running

pytestmark = pytest.mark.slow


def press(tmp_path: Path, once: Callable[[], bool], *arguments: str) -> tuple[int, list[str]]:
    """Run `python -m bench …` as a terminal's foreground, and press Ctrl-C once this is so; its status and the lines it wrote."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "bench", *arguments]
    with (tmp_path / "said").open("w+") as said:
        bench = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            end = time.monotonic() + DEADLINE_S
            while not once():
                assert bench.poll() is None and time.monotonic() < end, (tmp_path / "said").read_text()
                time.sleep(0.02)
            os.killpg(bench.pid, signal.SIGINT)
            bench.wait(DEADLINE_S)
        finally:
            bench.kill()
            bench.wait()
    assert not running(tmp_path)
    assert not list(temporary.iterdir())
    return bench.returncode, (tmp_path / "said").read_text().splitlines()


def test_curves_keep_their_points_and_go_on_from_there(tmp_path: Path) -> None:
    """A traceback of thirty lines was all that `make bench-curves` said when it was stopped, and nothing of how to go on."""
    points = tmp_path / "curves.json"
    status, said = press(tmp_path, points.exists, "curves", "--curve", "set-size", "--points", str(points))
    assert status == 130
    measured = len(json.loads(points.read_text())["curves"]["set-size"]["points"])
    assert (
        said[-1] == f"stopped: {measured} of {len(CURVES['set-size'].points)} points are in {points}; the same command goes on from there"
    )
    assert all("] set-size" in line for line in said[:-1])


def test_goals_end_a_row_with_all_that_it_started(tmp_path: Path) -> None:
    """Whatever a row had started heard Ctrl-C as well, and said so in tracebacks of its own."""

    def is_started() -> bool:
        return any("crdtkv node --config" in command for command in running(tmp_path))

    status, said = press(tmp_path, is_started, "goals", "--row", "lag-1k", "--out", str(tmp_path / "out"))
    assert status == 130
    assert said[-1] == "stopped in row lag-1k: nothing was measured"
    assert len(said) <= 2, "what is measured, and that it was stopped"
