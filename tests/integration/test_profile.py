"""`crdtkv profile`, with a stand-in for py-spy, which not every machine lets look into processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import crdtkv
from crdtkv.cli import profile
from crdtkv.errors import ConfigError, CrdtkvError

STAND_IN = f"""#!{sys.executable}
import os, sys
options = dict(zip(sys.argv[2::1], sys.argv[3::1]))
os.kill(int(options["--pid"]), 0)  # it is there to be looked at
if options["--duration"] == "3":
    sys.exit("Error: Permission Denied")
open(options["--output"], "w").write(options["--pid"])
"""


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    spy = tmp_path / "py-spy"
    spy.write_text(STAND_IN)
    spy.chmod(0o755)
    monkeypatch.setattr(profile, "_py_spy", lambda: str(spy))
    return tmp_path / "graph.svg"


def test_a_workload_is_started_looked_at_and_stopped(graph: Path) -> None:
    done = CliRunner().invoke(profile.profile, ["c", "--duration", "1s", "--out", str(graph), "-o", "json"], standalone_mode=False)
    assert done.exception is None, done.output
    told = json.loads(done.output)
    assert told["graph"] == str(graph) and int(graph.read_text()) == told["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(told["pid"], 0)


def test_a_node_is_looked_at(graph: Path) -> None:
    with crdtkv.open(region="us") as store, crdtkv.Node(store) as node:
        arguments = ["--at", node.address, "--out", str(graph), "--timeout", "30"]
        done = CliRunner().invoke(profile.profile, arguments, standalone_mode=False)
        assert done.exception is None and int(graph.read_text()) == os.getpid()
        refused = CliRunner().invoke(profile.profile, [*arguments, "--duration", "3s"], standalone_mode=False)
        # What was written before is still there, and is not taken for the new one.
        assert isinstance(refused.exception, CrdtkvError) and "Permission Denied" in str(refused.exception)
    short = CliRunner().invoke(profile.profile, ["--duration", "0"], standalone_mode=False)
    assert isinstance(short.exception, ConfigError)
