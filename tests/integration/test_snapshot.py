"""Regions that the others' logs no longer reach: an empty one that joins, one that was away and wrote on its own, restarts in between."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv.replication.snapshot import Transfers
from crdtkv.store import Settings, Store
from crdtkv.store.machine import Machine
from crdtkv.store.snapshots import Source


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where snapshots were taken."""
    found: list[str] = []
    make = Source.__init__

    def counting(self: Source, machine: object) -> None:
        make(self, machine)  # type: ignore[arg-type]
        found.append(machine.origin)  # type: ignore[attr-defined]

    monkeypatch.setattr(Source, "__init__", counting)
    return found


def wait_for(condition: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {within_s} s"
        time.sleep(0.02)


def open_region(stack: ExitStack, path: Path, region: str) -> Store:
    return stack.enter_context(crdtkv.open(path / region, region=region, durability="async"))


def start_node(stack: ExitStack, store: Store, peers: dict[str, str]) -> crdtkv.Node:
    return stack.enter_context(crdtkv.Node(store, listen="127.0.0.1:0", peers=peers, replication="loopback"))


def truncate(store: Store) -> None:
    """Drop all of the log that may be dropped, whoever lacks it: the segment in use is ended first."""
    machine = store._machine
    with store._lock:
        machine.fold()
        position = machine.replica.position
        machine.log.roll()
    machine.flush(position)
    machine.log.truncate(position)
    assert machine.log.floor() == machine.vv()


def is_equal(*stores: Store) -> bool:
    return len({(s.digest(), s.vv()) for s in stores}) == 1


def fill(store: Store, count: int, name: str) -> None:
    for at in range(count):
        store.put(f"{name}/{at:04}", {"n": at})
    for at in range(20):
        store.set(f"tags/{name}").add(f"{name}{at}")
        store.counter("hits").increment(at)
        store.map("profile").put(f"{name}{at}", at)


def test_an_empty_region_joins_when_no_log_reaches_back(tmp_path: Path, stack: ExitStack, begun: list[str]) -> None:
    us, eu = open_region(stack, tmp_path, "us"), open_region(stack, tmp_path, "eu")
    first = start_node(stack, us, {})
    second = start_node(stack, eu, {"us": first.address})
    fill(us, 300, "us")
    fill(eu, 300, "eu")
    wait_for(lambda: is_equal(us, eu), "us and eu are equal")
    us.delete("us/0007")
    wait_for(lambda: is_equal(us, eu), "us and eu are equal")
    second.close()  # nodes keep their newest own frames in memory, whatever the log has
    first.close()
    truncate(us)
    truncate(eu)
    first = start_node(stack, us, {})
    second = start_node(stack, eu, {"us": first.address})
    ap = open_region(stack, tmp_path, "ap")
    node = start_node(stack, ap, {"us": first.address, "eu": second.address})
    for at in range(50):  # every region writes meanwhile
        us.put(f"live/us{at}", at)
        eu.put(f"live/eu{at}", at)
        ap.put(f"live/ap{at}", at)
    wait_for(lambda: is_equal(us, eu, ap), "all are equal")
    assert ap.get("us/0007") is None and ap.get("us/0008") == {"n": 8}
    assert ap.counter("hits").value == 2 * sum(range(20))
    assert len(begun) == 1, f"one bootstrap costs one snapshot, these were taken: {begun}"
    assert "commits" in ap.last_install
    ap.put("after", 1)
    wait_for(lambda: us.get("after") == 1 and eu.get("after") == 1, "what the new region writes arrives")
    # What was installed survives a restart.
    node.close()
    ap.close()
    with crdtkv.open(tmp_path / "ap", region="ap") as again:
        assert again.digest() == us.digest()


def test_a_region_that_was_away_comes_back_with_what_it_wrote(tmp_path: Path, stack: ExitStack, begun: list[str]) -> None:
    us, eu = open_region(stack, tmp_path, "us"), open_region(stack, tmp_path, "eu")
    first = start_node(stack, us, {})
    away = start_node(stack, eu, {"us": first.address})
    fill(us, 100, "us")
    eu.set("seats").add("b1")
    wait_for(lambda: is_equal(us, eu), "us and eu are equal")
    away.close()
    us.delete("us/0001")
    us.put("us/0002", "changed")
    us.set("seats").remove("b1")
    fill(us, 100, "more")
    eu.put("alone", "kept")
    eu.put("us/0002", "written at the same time")
    eu.set("seats").add("b2")
    first.close()
    truncate(us)
    first = start_node(stack, us, {})
    start_node(stack, eu, {"us": first.address})
    wait_for(lambda: is_equal(us, eu), "us and eu are equal")
    for store in (us, eu):
        assert "us/0001" not in store, "deleted keys do not come back"
        assert store.get("alone") == "kept", "unseen writes flow out"
        assert store.set("seats").members() == ["b2"]
        assert len(store.siblings("us/0002")) == 2
        assert [c for c in store.conflicts() if c.key == "us/0002"], (store.region, store.conflicts()[:3])
    assert len(begun) == 1
    assert "own commits were unseen there" in eu.last_install


def test_a_transfer_goes_on_after_the_receiver_was_restarted(
    tmp_path: Path, stack: ExitStack, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    us = open_region(stack, tmp_path, "us")
    for at in range(60):
        us.put(f"big/{at:03}", bytes([at]) * 60_000)
    truncate(us)
    first = start_node(stack, us, {})
    staged, original = [0], Transfers._stage_next

    def stage_some(self: Transfers) -> None:
        if staged[0] < 6:
            staged[0] += bool(self._chunks and not self._staging)
            original(self)

    monkeypatch.setattr(Transfers, "_stage_next", stage_some)
    eu = crdtkv.open(tmp_path / "eu", region="eu", durability="async")
    node = crdtkv.Node(eu, listen="127.0.0.1:0", peers={"us": first.address}, replication="loopback")
    wait_for(lambda: eu._machine.snapshots is not None and eu._machine.snapshots.staged.chunks == 6, "six chunks are staged")
    node.close()
    eu.close()
    monkeypatch.setattr(Transfers, "_stage_next", original)
    eu = open_region(stack, tmp_path, "eu")
    assert eu._machine.snapshots is not None and eu._machine.snapshots.staged.chunks == 6
    start_node(stack, eu, {"us": first.address})
    wait_for(lambda: is_equal(us, eu), "us and eu are equal")
    assert len(begun) == 1, "the same snapshot is gone on with"
    assert not list((tmp_path / "eu" / "snapshot").iterdir())


def test_while_a_snapshot_is_installed_calls_wait_and_links_live(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    us = open_region(stack, tmp_path, "us")
    fill(us, 50, "us")
    truncate(us)
    first = start_node(stack, us, {})
    entered, go_on, install = threading.Event(), threading.Event(), Machine.install

    def slow(self: Machine, *args: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return install(self, *args)

    monkeypatch.setattr(Machine, "install", slow)
    stack.callback(go_on.set)
    eu = open_region(stack, tmp_path, "eu")
    node = stack.enter_context(
        crdtkv.Node(eu, listen="127.0.0.1:0", peers={"us": first.address}, replication="loopback", metrics="127.0.0.1:0")
    )
    assert entered.wait(30)
    with crdtkv.connect(node.address, timeout=60) as client, crdtkv.connect(node.address, timeout=60) as other:
        answers: list[object] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.put("waited", 1))),
            threading.Thread(target=lambda: answers.append(other.get("us/0007"))),
        ]
        for thread in threads:
            thread.start()
        heard, last = 0, 0

        def is_alive() -> bool:
            nonlocal heard, last
            peer = next(peer for peer in first.peers() if peer.region == "eu")
            assert peer.connected, "the link lives"
            now = peer.last_heard_ms or 0
            heard, last = heard + (now < last), now
            return heard >= 3

        wait_for(is_alive, "heartbeats go on")
        with urllib.request.urlopen(f"http://{node.metrics_address}/metrics", timeout=10) as page:
            text = page.read().decode()
        assert "crdtkv_installing 1.0" in text and "crdtkv_complete 0.0" in text and "crdtkv_ready 1.0" in text
        assert not answers, "nobody is told half of it, nor an error"
        go_on.set()
        for thread in threads:
            thread.join(30)
        assert len(answers) == 2 and {"n": 7} in answers
        wait_for(lambda: us.get("waited") == 1, "what waited is written, and flows out")
        assert not client.status().warnings


@contextmanager
def node_process(path: Path, region: str, peers: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A region as `crdtkv node` runs it; with it its address."""
    command = [sys.executable, "-m", "crdtkv", "node", "--region", region, "--data", str(path / region), "--listen", "127.0.0.1:0"]
    for name, address in peers.items():
        command += ["--peer", f"{name}={address}"]
    environment = {**os.environ, "CRDTKV_INSTANCE_DIR": str(path / "instances"), "CRDTKV_READY_FORMAT": "json"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found is not None, f"the node of {region} did not start: {line!r}"
        try:
            yield process, found.group()
        finally:
            process.kill()
            process.wait()


def test_processes_killed_while_a_region_is_brought_up(tmp_path: Path) -> None:
    """An empty region is killed again and again while it is brought up by one whose log is truncated; so is, once, the donor."""
    settings = Settings(instance_dir=str(tmp_path / "instances"))
    with crdtkv.open(tmp_path / "us", region="us", settings=settings) as us:
        for at in range(0, 30_000, 1_000):
            with us.batch() as batch:
                for number in range(at, at + 1_000):
                    batch.put(f"key/{number:06}", "x" * 200)
        us.delete("key/000007")
        truncate(us)
        digest = us.digest()
    peers = {"us": ""}
    killed = 0
    for donor_life in (0.6, 60.0):
        with node_process(tmp_path, "us", {}) as (_, peers["us"]):
            until = time.monotonic() + donor_life
            lives = iter((0.2, 0.35, 0.5, 0.8))
            while time.monotonic() < until:
                with node_process(tmp_path, "eu", peers) as (_, address), crdtkv.connect(address) as client:
                    end = time.monotonic() + next(lives, 20.0)
                    while (found := client.status()).digest != digest and time.monotonic() < min(end, until):
                        time.sleep(0.02)
                    killed += 1
                if found.digest == digest:
                    break
    with crdtkv.open(tmp_path / "eu", region="eu", settings=settings) as eu:
        assert eu.digest() == digest and "key/000007" not in eu
        assert eu.get("key/029999") == "x" * 200
    assert killed >= 2
