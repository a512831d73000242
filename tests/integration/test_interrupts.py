"""Ctrl-C at any moment of a command: its exit status, no traceback, nothing left running, no temporary directory left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc")


pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0
REGIONS = ("--regions", "us,eu", "--latency", "none")
SHORT = ("--duration", "500ms", "--warmup", "100ms", "--out", "out")
COMMANDS = {
    "lag": ("bench", "lag", *REGIONS, *SHORT, "--engine", "memory"),
    "load": ("bench", "load", "a", "--target", "embedded", "--engine", "rocksdb", "--records", "200", *SHORT),
    "demo": ("demo", "--airports", "100", "--out", "out"),
    "up": ("cluster", "up", *REGIONS, "--dir", "cluster", "--engine", "memory"),
    "detach": ("cluster", "up", "--detach", *REGIONS, "--dir", "cluster", "--engine", "memory"),
    "node": ("node", "--region", "us", "--listen", "127.0.0.1:0", "--data", "data", "--instance-dir", "instance"),
    "simulate": ("simulate", "--seeds", "3"),
}
ORDERLY = ("node", "detach")
"""These end with 0 too: a node when it has stopped, a cluster that was ready first."""


def running(mark: Path) -> list[str]:
    """The processes that have a path in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(mark) in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended, or is another's
            continue
    return found


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ("lag", "20000"),  # imports
        ("lag", "_execute_child"),  # the supervisor is started, and nobody knows yet
        ("lag", "_built_whole+"),  # a loop that is half built, and then again and again, through the end of the cluster
        ("lag", "rmtree+"),
        ("load", "run_embedded+"),
        ("load", "_too_late"),  # all is done, and the interpreter ends
        ("demo", "_execute_child+"),
        ("up", "_built_whole"),
        ("up", "_stop_everything+"),
        ("detach", "wait_readable+"),
        ("detach", "_print_ready"),
        ("node", "20000"),
        ("node", "_run+"),
        ("simulate", "run_case"),
    ],
)
def test_it_ends_as_documented_and_leaves_nothing(tmp_path: Path, command: str, moment: str) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "NO_COLOR": "1"}
    run = [sys.executable, str(ROOT / "tests" / "interrupting.py"), str(tmp_path / "notes"), moment, *COMMANDS[command]]
    ran = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if command == "detach" and ran.returncode == 0:
        down = [sys.executable, "-m", "crdtkv", "cluster", "down", "--dir", "cluster"]
        subprocess.run(down, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, timeout=DEADLINE_S, check=True)
    assert (tmp_path / "notes").read_text().startswith("pressed"), ran.stderr
    assert ran.returncode == 130 or (ran.returncode == 0 and command in ORDERLY), ran.stderr
    assert "Traceback" not in ran.stderr and "Exception ignored" not in ran.stderr
    assert not running(tmp_path)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("command", "moment", "name"),
    [
        ("lag", "wait_readable", "SIGTERM"),
        ("load", "mkdtemp", "SIGHUP"),
        ("load", "mkdtemp+", "SIGTERM"),  # and again, after all that was to be cleaned up
        ("demo", "wait_readable", "SIGTERM"),
    ],
)
def test_what_a_service_manager_or_a_closed_terminal_ends_leaves_nothing_either(
    tmp_path: Path, command: str, moment: str, name: str
) -> None:
    """SIGTERM killed a benchmark and the demo on the spot: their temporary directories stayed."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "NO_COLOR": "1", "CRDTKV_PRESS": name}
    run = [sys.executable, str(ROOT / "tests" / "interrupting.py"), str(tmp_path / "notes"), moment, *COMMANDS[command]]
    ran = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    number = signal.Signals[name]
    assert ran.returncode == 128 + number or (moment.endswith("+") and ran.returncode == -number), ran.stderr
    assert "Traceback" not in ran.stderr
    assert not running(tmp_path)
    assert not list(temporary.iterdir())
