"""A real cluster under real faults, judged from outside: by the histories that several client processes record.

Nodes are killed (SIGKILL), stopped (SIGSTOP), cut apart by the WAN emulator one way, both ways and half-open, and one finds its disk
full, a tmpfs of its own; clients go on meanwhile. Work comes in episodes, each on keys of its own. After an episode
everything is healed, and then: all regions have the same vector and digest; every acknowledged write is in each; increments
count once if they were answered, and at most once if not; and the history is causally consistent, keeps the session
guarantees, and shows batches whole. Sessions stay in their region: tokens that carry one to another are not there yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

import crdtkv
from crdtkv import CrdtkvError
from crdtkv.cluster import LocalCluster
from crdtkv.simulation.checkers import (
    Anomaly,
    History,
    Read,
    Transaction,
    Write,
    atomic_visibility,
    causal_convergence,
    counted_once,
    session_guarantees,
)
from tests.integration.history_client import KEYS
from tests.waiting import until

REGIONS = ("us", "eu", "ap")
CLIENTS = (("a", "us"), ("b", "us"), ("c", "eu"), ("d", "eu"), ("e", "ap"))
ROOT = Path(__file__).parents[2]
DISK_BYTES = 160 << 20


class ClientProcess:
    def __init__(self, name: str, address: str, errors: Path) -> None:
        command = [sys.executable, "-m", "tests.integration.history_client", name, address]
        self._errors = errors
        with errors.open("w") as sink:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True, bufsize=1
            )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def events(self) -> Iterator[list[Any]]:
        """What it has seen in this episode."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if event[1] == "end":
                return
            yield event
        raise AssertionError(f"a client died: {self._errors.read_text()[-3000:]}")

    def close(self) -> None:
        with suppress(OSError):
            self._process.stdin and self._process.stdin.close()
        self._process.kill()
        self._process.stdout and self._process.stdout.close()
        self._process.wait()


class Faults:
    """What is done to a cluster, and how often it was."""

    def __init__(self, cluster: LocalCluster, dice: Random, disk: Path | None) -> None:
        self.cluster, self.dice, self.disk = cluster, dice, disk
        self.done: Counter[str] = Counter()

    def strike(self, kind: str) -> None:
        """One fault, for a while, during which everybody goes on; undone at the end."""
        self.done[kind] += 1
        cluster, region = self.cluster, self.dice.choice(REGIONS)
        other = self.dice.choice([r for r in REGIONS if r != region])
        match kind:
            case "kill":
                cluster.kill(region)
                self.wait()
                cluster.restart(region)
            case "pause":
                cluster.pause(region)
                self.wait()
                cluster.resume(region)
            case "partition":
                how = self.dice.choice(("pair", "island", "one way", "half-open"))
                cluster.partition(region, None if how == "island" else other, one_way=how == "one way", half_open=how == "half-open")
                self.wait()
                cluster.heal()
            case "kill in a partition":
                self.done["partition"] += 1
                self.done["kill"] += 1
                cluster.partition(region)
                self.wait()
                cluster.kill(other)
                cluster.restart(other)
                cluster.heal()
            case _:
                assert self.disk is not None
                with (self.disk / "filler").open("wb") as filler, suppress(OSError):
                    os.posix_fallocate(filler.fileno(), 0, room(self.disk))
                self.wait(1.0)
                (self.disk / "filler").unlink()

    def wait(self, at_least_s: float = 0.1) -> None:
        """Give the clients time to meet the fault. Nothing is asserted on it."""
        time.sleep(at_least_s + self.dice.random() * 0.5)


def room(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@contextmanager
def tmpfs(directory: Path) -> Iterator[Path | None]:
    """A small disk of its own at a directory; None where this user may mount nothing."""
    directory.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield directory if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


class Programme:
    """Episodes on one cluster."""

    def __init__(self, stack: ExitStack, directory: Path, seed: int) -> None:
        disk = stack.enter_context(tmpfs(directory / "cluster" / "data" / REGIONS[0]))
        self.cluster = stack.enter_context(LocalCluster(REGIONS, latency_ms=3, directory=directory / "cluster"))
        self.faults = Faults(self.cluster, Random(seed), disk)
        self.clients = []
        for name, region in CLIENTS:
            client = ClientProcess(name, self.cluster.address(region), directory / f"client-{name}")
            stack.callback(client.close)
            self.clients.append(client)
        self.reads = {r: stack.enter_context(crdtkv.connect(self.cluster.address(r), timeout=5)) for r in REGIONS}
        self.transactions = self.answered = self.uncertain = 0

    def episode(self, number: int, faults: list[str]) -> None:
        prefix = f"e{number}"
        for client in self.clients:
            client.tell(prefix)
        self.faults.wait(0.3)
        for fault in faults:
            self.faults.strike(fault)
            self.faults.wait(0.1)
        for client in self.clients:
            client.tell("")
        events = [event for client in self.clients for event in client.events()]
        until(self._are_equal, f"all regions are equal, in episode {number} after {faults}", every_s=0.02)
        self._judge(prefix, events)

    def _are_equal(self) -> bool:
        try:
            vvs = [client.vv() for client in self.reads.values()]
            return all(vv == vvs[0] for vv in vvs) and len({client.digest() for client in self.reads.values()}) == 1
        except CrdtkvError:
            return False

    def _judge(self, prefix: str, events: list[list[Any]]) -> None:
        transactions = [transaction(session, rest[0]) for session, kind, *rest in events if kind == "tx"]
        counted: dict[bool, list[int]] = {True: [], False: []}
        logged: dict[bool, set[str]] = {True: set(), False: set()}
        for _, kind, *rest in events:
            if kind == "count":
                counted[rest[1]].append(rest[0])
            elif kind == "log":
                logged[rest[1]].add(rest[0])
        self.answered += len(logged[True]) + len(counted[True])
        self.uncertain += len(logged[False]) + len(counted[False])
        found: list[Anomaly] = []
        for region, client in self.reads.items():
            there = {key for key, _ in client.scan(f"{prefix}/log/")}
            assert logged[True] <= there, f"{region} lacks what was acknowledged: {sorted(logged[True] - there)[:5]}"
            assert there <= logged[True] | logged[False], (
                f"{region} has what was refused: {sorted(there - logged[True] - logged[False])[:5]}"
            )
            values = dict(client.scan(f"{prefix}/k"))
            keys = [f"{prefix}/k{k}" for k in range(KEYS)]
            transactions.append(transaction(f"final {region}", [[key, values.get(key), False] for key in keys]))
            found += counted_once(client.counter(f"{prefix}/count").value, counted[True], counted[False])
        history = History(transactions)
        self.transactions += len(transactions)
        found += [*causal_convergence(history), *session_guarantees(history), *atomic_visibility(history)]
        assert not found, "\n".join(str(anomaly)[:2_000] for anomaly in found[:3])


def transaction(session: str, operations: list[tuple[str, Hashable, bool]]) -> Transaction:
    return Transaction(session, tuple(Write(key, value) if is_write else Read(key, value) for key, value, is_write in operations))


def test_histories_under_kills_stops_and_partitions(tmp_path: Path) -> None:
    with ExitStack() as stack:
        programme = Programme(stack, tmp_path, 1)
        programme.episode(0, ["kill", "partition", "pause"])
        programme.episode(1, ["kill in a partition", *(["full disk"] if programme.faults.disk else [])])
        assert programme.transactions > 50 and programme.answered > 10, (programme.transactions, programme.answered)


@pytest.mark.soak
def test_histories_under_a_hundred_kills_and_fifty_partitions(tmp_path: Path) -> None:
    with ExitStack() as stack:
        programme = Programme(stack, tmp_path, 2)
        done, number = programme.faults.done, 0
        while done["kill"] < 100 or done["partition"] < 50:
            kinds = ["kill", "kill", "partition", "pause", "kill in a partition", *(["full disk"] if programme.faults.disk else [])]
            programme.episode(number, programme.faults.dice.sample(kinds, 3))
            number += 1
            print(
                f"episode {number}: {dict(done)}; {programme.transactions} transactions judged, {programme.answered} single writes "
                f"answered, {programme.uncertain} of unknown outcome",
                flush=True,
            )


BAD: dict[str, tuple[list[list[Any]], str]] = {
    "an acknowledged write is not there": ([["a.0", "log", "e0/log/gone", True]], "lacks what was acknowledged"),
    "a refused write is there": ([], "has what was refused"),
    "an increment counted twice": ([["a.0", "log", "e0/log/x", False], ["a.0", "count", 1, True]], "miscounted"),
    "a read of what was overwritten": (
        [
            ["a.0", "log", "e0/log/x", False],
            ["a.0", "count", 2, True],
            ["a.0", "tx", [["e0/k0", "1", True]]],
            ["a.0", "tx", [["e0/k0", "2", True]]],
            ["a.0", "tx", [["e0/k0", "1", False]]],
        ],
        "stale read",
    ),
}


@pytest.mark.parametrize("story", BAD)
def test_the_judge_notices(story: str) -> None:
    """A history that no correct cluster gives, held against a store that has two increments, one log key and the later value."""
    events, name = BAD[story]
    with crdtkv.open() as store:
        store.put("e0/log/x", 1)
        store.put("e0/k0", "2")
        store.counter("e0/count").increment(2)
        programme = object.__new__(Programme)
        programme.reads = {"us": store}  # type: ignore[dict-item]
        programme.transactions = programme.answered = programme.uncertain = 0
        with pytest.raises(AssertionError, match=name):
            programme._judge("e0", events)
