"""Regions that come and go while clients write: real processes, the commands that an operator types."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv.cli.main import main
from crdtkv.errors import CrdtkvError
from tests.waiting import DEADLINE_S, until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """`crdtkv node` of one region, on a port that stays its own."""

    def __init__(self, root: Path, region: str, port: int) -> None:
        self.root, self.region, self.address = root, region, f"127.0.0.1:{port}"
        self.popen: subprocess.Popen[str] | None = None

    def start(self, peers: Sequence[Process], data: str = "") -> None:
        command = [sys.executable, "-m", "crdtkv", "node", "--region", self.region, "--listen", self.address]
        config = self.root / "node.toml"
        config.write_text('replication = "loopback"\n')
        command += [
            "--config",
            str(config),
            "--data",
            str(self.root / (data or self.region)),
            "--durability",
            "async",
            "--ready-format",
            "json",
        ]
        for peer in peers:
            command += ["--peer", f"{peer.region}={peer.address}"]
        self.log = self.root / f"{self.region}.log"
        with self.log.open("a") as log:
            self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.popen.stdout is not None
        assert select.select([self.popen.stdout], [], [], DEADLINE_S)[0] and self.popen.stdout.readline(), self.log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.popen is not None:
            self.popen.send_signal(number)
            self.popen.wait(DEADLINE_S)
            assert self.popen.stdout is not None
            self.popen.stdout.close()
            self.popen = None


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, Process]]:
    with ExitStack() as stack:
        made = {region: Process(tmp_path, region, free_port()) for region in ("us", "eu", "ap", "sa")}
        for node in made.values():
            stack.callback(node.end, signal.SIGKILL)
        first = [made[region] for region in ("us", "eu", "ap")]
        for node in first:
            node.start([other for other in first if other is not node])
        yield made


def region(capsys: pytest.CaptureFixture[str], at: Process, *arguments: str) -> dict[str, Any]:
    assert main(["region", *arguments, "--at", at.address, "-o", "json"]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def row(capsys: pytest.CaptureFixture[str], at: Process, name: str) -> dict[str, Any]:
    return next(r for r in region(capsys, at, "list")["regions"] if r["region"] == name)


@contextmanager
def under_load(nodes: Sequence[Process]) -> Iterator[dict[str, list[str]]]:
    """A client per region writes without a pause, until its region takes no more; the keys that were acknowledged, per region."""
    stop = threading.Event()
    acknowledged: dict[str, list[str]] = {node.region: [] for node in nodes}

    def write(node: Process) -> None:
        with crdtkv.connect(node.address) as client:
            while not stop.wait(0.002):
                key = f"{node.region}/{len(acknowledged[node.region])}"
                try:
                    client.put(key, node.region)
                except CrdtkvError:
                    return
                acknowledged[node.region].append(key)

    threads = [threading.Thread(target=write, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(len(keys) > 50 for keys in acknowledged.values()))
        yield acknowledged
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def holds(node: Process, keys: Sequence[str]) -> bool:
    with crdtkv.connect(node.address) as client:
        return {key for key, _ in client.scan()} >= set(keys)


def digests(nodes: Sequence[Process]) -> set[str]:
    found = set()
    for node in nodes:
        with crdtkv.connect(node.address) as client:
            found.add(f"{client.vv()} {client.digest()}")
    return found


def test_a_fourth_region_comes_and_the_first_goes_while_clients_write(
    nodes: dict[str, Process], capsys: pytest.CaptureFixture[str]
) -> None:
    us, eu, ap, sa = nodes.values()
    with under_load([us, eu, ap]) as acknowledged:
        region(capsys, eu, "add", "sa", sa.address)
        sa.start([eu])
        until(lambda: row(capsys, ap, "sa")["connected"] and row(capsys, us, "sa")["connected"], "the others dial the newcomer")
        assert main(["region", "remove", "us", "--at", eu.address]) == 1
        assert "crdtkv region drain us" in capsys.readouterr().err
        assert next(r for r in region(capsys, eu, "drain", "us")["regions"] if r["region"] == "us")["drained"]
        with crdtkv.connect(us.address) as client, pytest.raises(crdtkv.RegionUnavailableError, match="being drained"):
            client.put("late", 1)
        with crdtkv.connect(us.address) as client:
            assert "being drained" in client.status().read_only and not client.status().ready
        region(capsys, eu, "remove", "us")
        us.end()
    rest = [eu, ap, sa]
    everything = [key for keys in acknowledged.values() for key in keys]
    until(lambda: all(holds(node, everything) for node in rest), "what was acknowledged is in every region that stays")
    until(lambda: row(capsys, sa, "us")["closed"] and not row(capsys, sa, "us")["applied"], "the removed region's origin is closed")
    until(lambda: len(digests(rest)) == 1)
    assert main(["verify", "--at", ",".join(node.address for node in rest)]) == 0, capsys.readouterr()
    assert "eu, ap, sa agree" in capsys.readouterr().out
    with crdtkv.connect(sa.address) as client:
        assert len(client.vv()) == 2 and not any("us@" in origin for origin in client.vv()), "sa has written nothing, us has left"


def test_a_dead_region_is_removed_by_force_and_refused_when_it_returns(
    nodes: dict[str, Process], capsys: pytest.CaptureFixture[str]
) -> None:
    us, eu, ap, _ = nodes.values()
    with under_load([eu, ap]), crdtkv.connect(us.address) as client:
        client.put("from us", 1)
        until(lambda: holds(eu, ["from us"]) and holds(ap, ["from us"]))
        us.end(signal.SIGKILL)
        told = region(capsys, eu, "remove", "us", "--force")
        assert told["may_be_lost"] == {"us": []}
        until(lambda: row(capsys, eu, "us")["closed"] and row(capsys, ap, "us")["closed"])
        us.start([eu, ap])
        with crdtkv.connect(us.address) as back:
            until(lambda: any("was removed from the cluster" in w for w in back.status().warnings))
            with pytest.raises(crdtkv.RegionRemovedError, match="crdtkv recover export"):
                back.put("late", 1)
            assert back.get("from us") == 1
            status = back.status()
            assert "start the region again with an empty directory" in status.read_only and not status.ready
            assert len([warning for warning in status.warnings if "was removed" in warning]) == 1, "told once"
        assert main(["status", "--at", us.address]) == 0
        told = capsys.readouterr().out.splitlines()
        assert any(line.split() == ["ready", "no"] for line in told) and any(line.split() == ["writes", "refused"] for line in told)
        assert main(["put", "late", "1", "--at", us.address]) == 1
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "start the region again with an empty directory" in line
        assert main(["verify", "--at", f"{eu.address},{us.address}", "--wait", "600"]) == 1
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and line.startswith("crdtkv: us lacks ") and "gets none any more; leave it out. us@" in line
        assert not row(capsys, eu, "us")["connected"]
        us.end()
        region(capsys, eu, "add", "us", us.address)
        us.start([eu, ap], data="us-again")
        until(lambda: row(capsys, ap, "us")["connected"] and holds(us, ["from us"]))
        with crdtkv.connect(us.address) as again:
            again.put("from us again", 1)
        until(lambda: holds(ap, ["from us again"]))
    until(lambda: len(digests([us, eu, ap])) == 1)
    assert row(capsys, eu, "us")["state"] == "active"


def test_a_region_that_begins_anew_leaves_the_vectors(
    nodes: dict[str, Process], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    us, eu, ap, _ = nodes.values()
    for life in range(3):
        with crdtkv.connect(us.address) as client:
            client.put(f"life {life}", life)
        until(lambda life=life: holds(eu, [f"life {life}"]) and holds(ap, [f"life {life}"]))
        us.end()
        us.start([eu, ap], data=f"us-{life}")  # its disk was lost
        until(lambda life=life: holds(us, [f"life {life}"]))
    with crdtkv.connect(us.address) as client:
        client.put("life 3", 3)
    until(lambda: len(row(capsys, ap, "us")["closed"]) == 3, "each former incarnation is closed")
    until(lambda: len(digests([us, eu, ap])) == 1)
    with crdtkv.connect(ap.address) as client:
        assert list(client.vv()) == [o for o in client.vv() if o.startswith("us@")] and len(client.vv()) == 1
