"""`crdtkv bench load` as typed, on real nodes: a cluster that it starts, and nodes that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc")

import json

from click.testing import CliRunner

from crdtkv.cli.main import cli
from crdtkv.cluster import LocalCluster

pytestmark = pytest.mark.slow


def load(directory: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(cli, ["bench", "load", *arguments, "--warmup", "100ms", "--records", "200", "--out", str(directory)])
    assert done.exit_code == 0, done.output
    results: dict[str, Any] = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    return results, done.output


def test_conflicts_in_a_cluster_are_counted_and_the_regions_end_equal(tmp_path: Path) -> None:
    options = ("--target", "cluster", "--regions", "us,eu", "--latency", "us-eu=10ms", "--engine", "memory")
    results, said = load(tmp_path, "conflict", *options, "--callers", "8", "--duration", "500ms")
    assert results["total"]["operations"] > 0 and results["total"]["failed"] == 0
    assert all(region["operations"] > 0 and region["conflicts"] > 0 for region in results["regions"])
    assert results["converged_s"] is not None and "all regions equal" in said


def test_nodes_that_are_there_take_an_open_loop_of_every_kind_of_call(tmp_path: Path) -> None:
    with LocalCluster(("us", "eu"), latency_ms=0.0, engine="memory") as cluster:
        at = ",".join(f"{region}={address}" for region, address in cluster.addresses().items())
        for workload in ("e", "f", "set", "map", "counter"):
            results, _ = load(tmp_path, workload, "--at", at, "--rate", "200", "--duration", "500ms")
            assert results["total"]["operations"] == 100, "each that was due"
            assert {o["operation"] for o in results["operations"] if o["operations"]} == set(results["configuration"]["shares"])
        single, _ = load(tmp_path, "a", "--at", cluster.address("us"), "--duration", "300ms")
    assert single["configuration"]["target"] == "node" and single["converged_s"] is None
