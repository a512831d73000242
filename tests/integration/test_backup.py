"""`crdtkv backup` as a user types it, with nodes that serve and are written to."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv.cli.main import main
from tests.integration.test_audit import settled, under_load
from tests.integration.test_node import Regions, until


@pytest.fixture
def regions() -> Iterator[Regions]:
    with ExitStack() as stack:
        made = Regions(stack)
        made.ready()
        yield made


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: str, status: int = 0) -> str:
        self._capsys.readouterr()
        found = main([*args])
        out, err = self._capsys.readouterr()
        assert found == status, f"{args}: {found}\n{out}{err}"
        assert not status or (not out and err.count("\n") == 1), err
        return err if status else out

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "-o", "json"))


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_lost_region_comes_back_from_a_backup_and_catches_up(regions: Regions, shell: Shell, tmp_path: Path) -> None:
    target, at = str(tmp_path / "backups"), regions.nodes["us"].address
    with under_load(regions):
        first = shell.json("backup", "create", target, "--at", at)
        second = shell.json("backup", "create", target, "--at", regions.nodes["eu"].address)
    assert (first["kind"], second["kind"], second["parent"]) == ("full", "incremental", first["id"])
    listed = shell("backup", "list", target).splitlines()
    assert len(listed) == 3 and first["id"] in listed[1] and second["id"] in listed[2]
    assert f"{second['id']} is sound" in shell("backup", "verify", target, "--replay")
    regions.nodes["ap"].close()
    regions.stores["us"].put("after the backup", 1)
    data = tmp_path / "ap"
    made = shell.json("backup", "restore", target, "--data", str(data), "--as", "ap")
    assert made["digest"] == second["digest"] and made["origin"].startswith("ap@2-")
    peers = {region: regions.nodes[region].address for region in ("us", "eu")}
    with crdtkv.open(data, region="ap") as ap, crdtkv.Node(ap, peers=peers, replication="loopback") as node:
        for region in ("us", "eu"):
            regions.nodes[region].set_peer("ap", node.address)
        node.wait_ready(20)
        ap.put("from the restored", 2)
        until(lambda: regions.stores["us"].exists("from the restored") and ap.exists("after the backup"))
        three = [regions.stores["us"], regions.stores["eu"], ap]
        until(lambda: len({s.vv() for s in three}) == 1)
        assert len({s.digest() for s in three}) == 1
        assert "agree" in shell("verify", "--at", ",".join([*peers.values(), node.address]))


def test_a_backup_joined_into_a_running_region_counts_nothing_twice(regions: Regions, shell: Shell, tmp_path: Path) -> None:
    target, at = str(tmp_path / "backups"), regions.nodes["us"].address
    regions.stores["us"].counter("hits").increment(5)
    settled(regions)
    shell("backup", "create", target, "--at", at)
    for _ in range(2):
        assert shell.json("backup", "restore", target, "--at", at)["applied"] == 0
    with crdtkv.open(region="sa") as sa, crdtkv.Node(sa) as node:
        sa.counter("hits").increment()
        for applied in (1, 0):
            assert shell.json("backup", "restore", target, "--at", node.address)["applied"] == applied
        assert sa.counter("hits").value == 6


def test_an_earlier_state_is_restored_beside_the_cluster(regions: Regions, shell: Shell, tmp_path: Path) -> None:
    target, at = str(tmp_path / "backups"), regions.nodes["us"].address
    us = regions.stores["us"]
    us.put("k", 1)
    shell("backup", "create", target, "--at", at)
    us.put("k", 2)
    vv, now = str(us.vv()), datetime.datetime.now(datetime.UTC)
    until(lambda: datetime.datetime.now(datetime.UTC) > now + datetime.timedelta(milliseconds=5))
    us.delete("k")
    shell("backup", "create", target, "--at", at)
    for number, point in enumerate((("--vv", vv), ("--time", now.isoformat()))):
        data = tmp_path / f"past{number}"
        text = shell("backup", "restore", target, "--data", str(data), "--as", "us", "--cluster", "past", *point)
        assert vv in text and "of cluster past" in text
        with crdtkv.open(data, region="us", settings=crdtkv.Settings(cluster="past")) as past:
            assert past["k"] == 2


def test_what_cannot_be_done_is_refused_in_one_line(regions: Regions, shell: Shell, tmp_path: Path) -> None:
    target, at = str(tmp_path / "backups"), regions.nodes["us"].address
    assert "holds no backup" in shell("backup", "restore", target, "--data", str(tmp_path / "d"), "--as", "us", status=2)
    regions.stores["us"].put("k", 1)
    shell("backup", "create", target, "--at", at)
    assert "say where to" in shell("backup", "restore", target, status=2)
    assert "undoes nothing" in shell("backup", "restore", target, "--at", at, "--hlc", "5", status=2)
    assert "give one" in shell("backup", "restore", target, "--data", "d", "--as", "us", "--hlc", "5", "--vv", "{}", status=2)
    assert "no version vector" in shell("backup", "restore", target, "--data", "d", "--as", "us", "--vv", "us:1", status=2)
    assert "cannot restore" in shell("backup", "restore", target, "--data", "d", "--as", "us", "--time", "2001-01-01", status=2)
    path = next((tmp_path / "backups").rglob("state-*"))
    path.write_bytes(path.read_bytes()[1:])
    assert "state-000000" in shell("backup", "verify", target, status=1)
