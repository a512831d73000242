"""`crdtkv bench lag` as typed, on real nodes: measures, cuts, drains, compares, echoes; and how it ends when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc")

from crdtkv.cluster import LocalCluster

pytestmark = pytest.mark.slow

CRDTKV = (sys.executable, "-m", "crdtkv")
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
DELAY_MS = 20.0


def environment(temporary: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRDTKV_")}
    return {**kept, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TMPDIR": str(temporary)}


def measure(directory: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    command = [*CRDTKV, "bench", "lag", "--rate", "100", "--warmup", "300ms", "--out", str(directory / "out"), *arguments]
    ran = subprocess.run(
        command, cwd=directory, env=environment(directory), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results: dict[str, Any] = json.loads((directory / "out" / "results.json").read_text(encoding="utf-8"))
    return results, ran.stdout


def test_a_run_with_a_cut_measures_no_less_than_the_delay_and_drains(tmp_path: Path) -> None:
    cluster = ("--regions", "us,eu", "--latency", f"us-eu={DELAY_MS:g}ms", "--engine", "memory")
    results, said = measure(tmp_path, *cluster, "--type", "map", "--batch", "2", "--duration", "2500ms", "--cut", "eu@800ms+500ms")
    assert [(p["from"], p["to"]) for p in results["lag"]] == [("us", "eu"), ("eu", "us")]
    for pair in results["lag"]:
        assert pair["samples"] > 20 and pair["unseen"] == 0 and pair["min_ms"] >= DELAY_MS
        assert pair["phases"]["cut"]["known"] is False and pair["phases"]["cut"]["samples"] > 10
    assert all(p["held_back"] > 10 and p["drain_ms"] > 0 for p in results["cut"]["pairs"])
    assert all(g["failed"] == 0 and g["acknowledged"] == g["sent"] == 125 for g in results["generators"].values())
    assert "us → eu" in said and "drained in" in said and (tmp_path / "out" / "index.html").stat().st_size > 30_000
    assert not list(tmp_path.glob("crdtkv-*")), "the cluster's directory is gone"


def test_nodes_that_are_there_are_measured_by_either_clock(tmp_path: Path) -> None:
    with LocalCluster(("us", "eu"), latency_ms=DELAY_MS, engine="memory") as cluster:
        at = ",".join(f"{region}={address}" for region, address in cluster.addresses().items())
        options = ("--at", at, "--duration", "1s", "--load", "50")
        direct, _ = measure(tmp_path, *options, "--type", "set", "--batch", "5")
        echoed, said = measure(
            tmp_path, *options, "--type", "counter", "--clock", "echo", "--compare", str(tmp_path / "out" / "results.json")
        )
    for results, method in ((direct, "monotonic"), (echoed, "echo")):
        assert results["clock"]["method"] == method
        assert all(p["unseen"] == 0 and p["min_ms"] >= DELAY_MS and p["emulated_ms"] is None for p in results["lag"])
        assert all(g["load_sent"] > 0 for g in results["generators"].values())
    assert len(echoed["comparison"]["pairs"]) == 2 and "verdict" in said


def test_no_node_there_is_status_3_in_one_line(tmp_path: Path) -> None:
    command = [*CRDTKV, "bench", "lag", "--at", "us=127.0.0.1:1,eu=127.0.0.1:2", "--duration", "1s", "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr.startswith("crdtkv: ") and ran.stderr.count("\n") == 1


def test_interrupted_it_exits_130_and_leaves_nothing_running(tmp_path: Path) -> None:
    command = [*CRDTKV, "bench", "lag", "--regions", "us,eu", "--duration", "60s", "--out", str(tmp_path / "out")]
    pipe = subprocess.PIPE
    bench = subprocess.Popen(command, env=environment(tmp_path), stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        pids: list[int] = []
        deadline = time.monotonic() + DEADLINE_S
        while not pids:
            assert bench.poll() is None and time.monotonic() < deadline, "the cluster did not come up"
            for file in tmp_path.glob("crdtkv-*/cluster.json"):
                document = json.loads(file.read_text(encoding="utf-8"))
                pids = [document["supervisor_pid"], *(r["pid"] for r in document["regions"].values())]
        bench.send_signal(signal.SIGINT)
        _, err = bench.communicate(timeout=DEADLINE_S)
    finally:
        if bench.poll() is None:
            bench.kill()
            bench.wait()
    assert bench.returncode == 130, err
    assert "Traceback" not in err
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.glob("crdtkv-*"))
