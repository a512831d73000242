"""SIGKILL at random moments: what was acknowledged is there afterwards, the origin stays, and the digest is that of a replay.

A child process writes and reports each acknowledged write on a pipe; the parent kills it after so many reports, opens the
directory, and compares: every reported write, and the whole state with that of the log replayed into an empty memory engine.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import crdtkv
from crdtkv import Settings
from crdtkv.core.clock import HybridClock
from crdtkv.storage.engine import MemoryEngine
from crdtkv.store.machine import Machine

KILLS = 10  # per engine and durability: 20 for each engine
SETTINGS = Settings(fold_records_max=16, clear_at_once_max=8, purge_slots=4, async_sync_ms=5, log_segment_bytes=1 << 16)

CHILD = """
import sys
import crdtkv
from tests.fault.test_kill import SETTINGS
path, engine, durability, number = sys.argv[1:]
out = sys.stdout
with crdtkv.open(path, region="us", engine=engine, durability=durability, settings=SETTINGS) as store:
    for i in range(10**9):
        mark = f"{number}.{i}"
        store.put(f"k/{i % 50}", mark)
        store.put(f"log/{mark}", i)
        store.set("s").add(mark)
        store.counter("c").increment()
        if i % 30 == 29:
            store.set("s").clear()
            store.counter("c").reset()
        out.write(f"{i} {store.origin} {store.vv().seq(store.origin)}\\n")
        out.flush()
"""


def run_and_kill(path: Path, engine: str, durability: str, number: int, after: int) -> list[str]:
    """The reports of a child that is killed once it has made `after` of them (it goes on meanwhile)."""
    command = [sys.executable, "-c", CHILD, str(path), engine, durability, str(number)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as child:
        assert child.stdout is not None and child.stderr is not None
        reports = []
        try:
            for line in child.stdout:
                reports.append(line)
                if len(reports) == after:
                    break
        finally:
            child.send_signal(signal.SIGKILL)
        reports += child.stdout.readlines()
        assert child.wait() == -signal.SIGKILL, child.stderr.read()
    return [line for line in reports if line.endswith("\n")]


def replayed_digest(store: crdtkv.Store) -> str:
    """The digest of a fresh memory engine that the store's whole log was replayed into."""
    machine = store._machine
    clock = HybridClock(lambda: 0)
    twin = Machine(machine.log, MemoryEngine(), origin=store.origin, cluster=store.cluster, clock=clock, settings=SETTINGS)
    assert twin.replayed == machine.log.end() and twin.vv() == store.vv()
    while twin.purge_slice(1000):
        pass
    found = twin.digest()
    assert found is not None
    return found[1]


@pytest.mark.parametrize("durability", ["async", "sync"])
@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_everything_acknowledged_survives_sigkill(tmp_path: Path, engine: str, durability: str) -> None:
    path = tmp_path / "data"
    dice = random.Random(f"{engine} {durability}")
    origin = None
    acknowledged: list[str] = []
    for number in range(KILLS):
        reports = run_and_kill(path, engine, durability, number, dice.randint(1, 60))
        last, wrote_as, seq = reports[-1].split()
        origin = origin or wrote_as
        acknowledged += [f"log/{number}.{i}" for i in range(int(last) + 1)]
        with crdtkv.open(path, region="us", engine=engine, durability=durability, settings=SETTINGS) as store:
            assert store.origin == origin == wrote_as
            assert store.vv().seq(store.origin) >= int(seq)
            there = {key for key, _ in store.scan("log/")}
            assert not set(acknowledged) - there
            since_clear = int(last) % 30 + 1 if int(last) % 30 != 29 else 0
            tail = [f"{number}.{i}" for i in range(int(last) - since_clear + 1, int(last) + 1)]
            beyond = f"log/{number}.{int(last) + 1}" in there  # a write in flight when the signal came may have cleared
            assert beyond or set(tail) <= set(store.set("s").members())
            assert store.digest() == replayed_digest(store)
            assert isinstance(store["k/0"], str)
    assert len(acknowledged) >= KILLS


def test_a_killed_store_opens_alike_with_every_engine_that_replays_the_log(tmp_path: Path) -> None:
    """The log alone is the truth: the identity changed to another engine, the state thrown away, the same digest."""
    path = tmp_path / "data"
    run_and_kill(path, "rocksdb", "async", 0, 20)
    with crdtkv.open(path, region="us", engine="rocksdb", settings=SETTINGS) as store:
        digest, values = store.digest(), dict(store.scan("k/"))
    for part in sorted((path / "state").rglob("*"), reverse=True):
        part.unlink() if part.is_file() else part.rmdir()
    (path / "state").rmdir()
    identity = json.loads((path / "replica.json").read_text())
    (path / "replica.json").write_text(json.dumps({**identity, "engine": "memory"}))
    with crdtkv.open(path, region="us", engine="memory", settings=SETTINGS) as store:
        assert store.digest() == digest and dict(store.scan("k/")) == values


OPENING = """
import sys
from tests.fault.test_kill import SETTINGS
import crdtkv, crdtkv.store
print("opening", flush=True)
with crdtkv.open(sys.argv[1], region="us", engine="memory", durability="async", settings=SETTINGS) as store:
    print(store.origin, flush=True)
    for i in range(10**9):
        store.put("k", i)
"""


@pytest.mark.parametrize("kills", [pytest.param(12), pytest.param(1000, marks=pytest.mark.soak)])
def test_no_kill_costs_an_incarnation_whether_it_strikes_while_opening_or_later(tmp_path: Path, kills: int) -> None:
    """Real processes; `test_identity` has a thousand in one, and each write of an opening in turn."""
    dice = random.Random(kills)
    with crdtkv.open(tmp_path / "data", region="us", engine="memory", durability="async", settings=SETTINGS) as store:
        origin = store.origin
    while_opening = 0
    for _ in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", OPENING, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "opening\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(dice.choice((0.0, 0.002, 0.01, 0.02, 0.03, 0.1)))
            child.kill()
            said = child.stdout.readlines()
            assert child.wait() == -signal.SIGKILL
        while_opening += not said
        assert said in ([], [f"{origin}\n"])
    assert kills // 6 <= while_opening < kills, f"{while_opening} of {kills} struck while it was opened"
    with crdtkv.open(tmp_path / "data", region="us", engine="memory", durability="async", settings=SETTINGS) as store:
        assert store.origin == origin and not store.warnings
