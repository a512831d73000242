"""`crdtkv backup` as a user types it, with nodes that serve and are written to."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv.backup import FolderTarget, create
from crdtkv.backup.restoring import _chunks
from crdtkv.cli.main import main
from crdtkv.client.views import NodeSide
from crdtkv.errors import CrdtkvError, RegionUnavailableError
from tests.integration.test_audit import settled, under_load
from tests.integration.test_node import Regions
from tests.waiting import until


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


def test_a_large_backup_is_joined_into_a_running_region(regions: Regions, shell: Shell, tmp_path: Path) -> None:
    """Larger than any message: it is staged in chunks, and installed in one step while everybody else goes on."""
    target = str(tmp_path / "backups")
    with crdtkv.open(region="us") as us:
        for at in range(36):
            us.put(f"large/{at:02}", bytes([at]) * 1_000_000)
        us.counter("hits").increment(5)
        create(us, FolderTarget(target))
        digest = us.digest()
    with crdtkv.open(region="sa") as sa, crdtkv.Node(sa) as node:
        done = shell.json("backup", "restore", target, "--at", node.address)
        assert done["applied"] == 37 and done["changed_keys"] == 37
        assert sa.digest() == digest and sa.get("large/35") == bytes([35]) * 1_000_000
        with crdtkv.connect(node.address) as client:
            client.counter("hits").increment()
            assert client.counter("hits").value == 6
            assert shell.json("backup", "restore", target, "--at", node.address)["applied"] == 0
            assert client.counter("hits").value == 6
        path = next(Path(target).rglob("state-000001"))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
    with crdtkv.open(region="ap") as ap, crdtkv.Node(ap) as node:
        assert "state-000001" in shell("backup", "restore", target, "--at", node.address, status=1)
        snapshots = ap._machine.snapshots
        assert snapshots is not None and not snapshots.staged.chunks and ap.count() == 0
        ap.put("still", "written")
        path.write_bytes(whole)
        assert shell.json("backup", "restore", target, "--at", node.address)["applied"] == 37, "and the next may come"


def test_a_node_lets_go_of_a_state_whose_sender_is_gone(tmp_path: Path) -> None:
    target = FolderTarget(tmp_path / "backups")
    with crdtkv.open(region="us") as us:
        us.put("k", 1)
        full = create(us, target)
    go_on = threading.Event()

    def some() -> Iterator[tuple[bytes, bytes]]:
        yield next(_chunks(target, full))
        go_on.wait(30)

    with crdtkv.open(region="sa") as sa, crdtkv.Node(sa) as node:
        transfers, snapshots = node._server.peers.transfers, sa._machine.snapshots
        assert transfers is not None and snapshots is not None
        side = NodeSide(node.address)

        def send() -> None:
            with contextlib.suppress(CrdtkvError):
                side.merge_state(some())

        sending = threading.Thread(target=send)
        sending.start()
        until(lambda: snapshots.staged.chunks == 1)
        with NodeSide(node.address) as other, pytest.raises(RegionUnavailableError, match="try again"):
            other.merge_state(_chunks(target, full))
        assert transfers.is_active
        side.close()
        until(lambda: not transfers.is_active and not snapshots.staged.chunks)
        go_on.set()
        sending.join(30)
        with NodeSide(node.address) as other:
            assert other.merge_state(_chunks(target, full)) == (1, 1)
        assert sa.get("k") == 1


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
