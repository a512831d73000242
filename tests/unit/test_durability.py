"""Levels of durability: what is fsynced when, and the bound of `async`."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv.core.causality import make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import DeltaKind
from crdtkv.errors import StorageError
from crdtkv.simulation.disk import SimulatedEngine, SimulatedLog
from crdtkv.storage.log import FileLog
from crdtkv.store import Settings, Store
from crdtkv.store.durability import BackgroundSync
from crdtkv.store.machine import Machine
from tests.frames import FrameMaker
from tests.waiting import until


class Time:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def test_vectors_of_a_machine_are_made_anew_only_when_something_has_changed() -> None:
    log = SimulatedLog()
    machine = Machine(log, SimulatedEngine(), origin=make_origin("us", 1, 0), cluster="c", clock=HybridClock(lambda: 1_000))
    assert machine.vv() is machine.vv() and machine.durable_vv() is machine.durable_vv()
    for seq in (1, 2):
        machine.transact([[DeltaKind.REGISTER_PUT, "k", encode_value(seq)]])
        machine.seal()
        assert machine.vv() is machine.vv() and dict(machine.vv()) == {machine.origin: seq}
        assert machine.durable_vv() is machine.durable_vv() and machine.durable_vv().seq(machine.origin) == seq - 1
        log.sync()
        assert dict(machine.durable_vv()) == {machine.origin: seq}


@pytest.mark.parametrize("remembered", [1000, 3, 0])
def test_what_is_fsynced_is_known_without_reading_the_log_unless_it_is_much(remembered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times a second a store notes what is fsynced: reading the log for it cost a writer of single commits a fifth of its speed."""
    monkeypatch.setattr("crdtkv.store.machine.UNSYNCED_MAX", remembered)
    us, eu = (
        Machine(SimulatedLog(), SimulatedEngine(), origin=make_origin(region, 1, 0), cluster="c", clock=HybridClock(lambda: 1_000))
        for region in ("us", "eu")
    )
    reads = 0
    read = us.log.read

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*args, **options)

    def write(machine: Machine, commits: int = 1) -> None:
        for n in range(commits):
            machine.transact([[DeltaKind.REGISTER_PUT, f"k{n}", encode_value(n)]])
        machine.seal()

    monkeypatch.setattr(us.log, "read", counted)
    for round in range(1, 9):
        write(us)
        write(us, 3)
        write(eu)
        us.apply(eu.log.read(round - 1, bytes_max=1 << 20)[0])
        us.log.sync()
        write(us)  # not fsynced when it is asked
        if round % 3:
            assert dict(us.durable_vv()) == {us.origin: 5 * round - 1, eu.origin: round}
            assert us.commits_durable() == 6 * round - 1
    assert bool(reads) == (remembered < 1000)


def test_what_is_admitted_is_fsynced_within_the_bound_or_writers_wait(tmp_path: Path) -> None:
    log, now, frames = FileLog(tmp_path / "log"), Time(), FrameMaker()
    background = BackgroundSync(log, 0.1, failed=lambda e: None, now=now)
    background.round()
    assert background.admit(log.append([frames.make()]))
    now.s += 0.05
    background.round()
    assert log.synced() == 1
    now.s += 0.1
    assert background.admit(log.append([frames.make()]))  # the last round began a bound ago
    now.s += 0.001
    assert not background.admit(log.append([frames.make()]))  # the round is late: this one must not be acknowledged before an fsync
    background.round()
    assert log.synced() == 3 and background.admit(log.append([frames.make()]))


def test_a_round_counts_from_its_beginning_not_from_its_end(tmp_path: Path) -> None:
    """What came while an fsync ran is not covered by it."""
    log, now, frames = FileLog(tmp_path / "log"), Time(), FrameMaker()
    background = BackgroundSync(log, 0.1, failed=lambda e: None, now=now)
    log.append([frames.make()])
    background.admit(1)
    sync = log.sync

    def slow() -> int:
        done = sync()
        now.s += 0.3
        return done

    log.sync = slow  # type: ignore[method-assign]
    background.round()
    assert not background.admit(log.append([frames.make()]))


def test_only_what_asks_for_it_is_fsynced_unless_everything_is_wanted(tmp_path: Path) -> None:
    log, now, frames = FileLog(tmp_path / "log"), Time(), FrameMaker()
    log.sync()
    log.append([frames.make()])
    BackgroundSync(log, 0.1, failed=lambda e: None, now=now).round()
    assert log.synced() == 0
    BackgroundSync(log, 0.1, everything=True, failed=lambda e: None, now=now).round()
    assert log.synced() == 1


QUIET = Settings(async_sync_ms=3_600_000)


@pytest.mark.parametrize(
    ("level", "asked", "waits"),
    [
        ("sync", None, True),
        ("async", None, False),
        ("memory", None, False),
        ("sync", "async", False),
        ("sync", "memory", False),
        ("async", "sync", True),
        ("memory", "sync", True),
    ],
)
def test_an_answer_waits_for_the_fsync_only_at_level_sync(tmp_path: Path, level: str, asked: str | None, waits: bool) -> None:
    with crdtkv.open(tmp_path / "d", durability=level, settings=QUIET) as store:
        store.put("k", 1, durability=asked)
        assert (store._machine.log.synced() == store._machine.log.end()) == waits


@pytest.mark.parametrize(("level", "asked"), [("async", None), ("memory", "async")])
def test_async_is_fsynced_by_itself_and_alone_of_what_is_at_level_memory(tmp_path: Path, level: str, asked: str | None) -> None:
    with crdtkv.open(tmp_path / "d", durability=level, settings=Settings(async_sync_ms=20)) as store:
        log = store._machine.log
        store.put("k", 1, durability=asked)
        until(lambda: log.synced() == 1)
        store.execute([[1, "put", ["k", encode_value(2)], {"durability": asked} if asked else None]])
        until(lambda: log.synced() == 2)


def test_writers_of_a_stalled_disk_are_held_up_and_go_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(async_sync_ms=20)) as store:
        stalled = threading.Event()
        go_on = threading.Event()
        file = store._machine.log._file  # type: ignore[attr-defined]

        class Stalling:
            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def sync(self) -> None:
                stalled.set()
                assert go_on.wait(20)
                file.sync()

        monkeypatch.setattr(store._machine.log, "_file", Stalling())
        acknowledged = 0
        held = threading.Event()

        def write() -> None:
            nonlocal acknowledged
            for n in range(10**9):
                store.put("k", n)
                acknowledged += 1
                if held.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        assert stalled.wait(20)
        background = store._durable._background
        assert background is not None
        until(lambda: not background.admit(0) and store._machine.log.end() == acknowledged + 1)
        at_risk = acknowledged
        assert store._machine.log.end() == at_risk + 1  # one is written and waits to be acknowledged
        held.set()
        go_on.set()
        writer.join(20)
        assert not writer.is_alive() and store._machine.log.synced() >= at_risk


def test_a_failed_background_fsync_stops_the_store(tmp_path: Path) -> None:
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(async_sync_ms=20)) as store:

        def failing() -> int:
            raise StorageError("the disk failed")

        store._machine.log.sync = failing  # type: ignore[method-assign]
        with contextlib.suppress(StorageError):  # the bound has passed on a slow machine: then it waits for the fsync itself
            store.put("k", 1)
        until(lambda: store._machine.failed)
        with pytest.raises(StorageError, match="opened again"):
            store.put("k", 2)


def test_a_store_that_nobody_holds_ends_its_threads(tmp_path: Path) -> None:
    def names() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "crdtkv-fsync"]

    before = len(names())
    store: Store | None = crdtkv.open(tmp_path / "d", durability="async", settings=Settings(async_sync_ms=20))
    assert store is not None and len(names()) == before + 1
    store.close()
    until(lambda: len(names()) == before)


@pytest.mark.parametrize("durability", ["memory", "sync"])
def test_whether_a_position_is_durable_at_the_level_of_the_store(tmp_path: Path, durability: str) -> None:
    with crdtkv.open(tmp_path / "store", durability=durability) as store:
        store.put("k", 1)
        before = store.execute([[1, "get", ["k"], None]])
        assert store.is_durable(before.position)
        after = store.execute([[1, "put", ["k", encode_value(2)], None]])
        assert store.is_durable(after.position) is (durability == "memory")
        store.wait_durable(after.position)
        assert store.is_durable(after.position)
