"""A store on disk: what was there is there again, byte for byte, on either engine and at every durability."""

from __future__ import annotations

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv import Settings, Store
from crdtkv.core.codec import encode_value
from crdtkv.core.meta import META_KEY
from crdtkv.storage.log import FileLog
from tests.stores import Clock, store_at

SMALL = Settings(fold_records_max=16, clear_at_once_max=8, purge_slots=8, log_segment_bytes=8192, journal_age_s=10**9)


def scribble(store: Store, dice: random.Random, times: int) -> None:
    """Random writes of every type on few keys."""
    for n in range(times):
        key = f"{dice.randrange(4)}"
        match dice.randrange(9):
            case 0 | 1:
                store.put("r" + key, n)
            case 2:
                store.delete("r" + key)
            case 3:
                store.set("s" + key).add(*range(dice.randrange(12)))
            case 4:
                store.set("s" + key).discard(dice.randrange(12))
            case 5:
                store.counter("c" + key).increment(n)
            case 6:
                store.counter("c" + key).reset()
            case 7:
                store.map("m" + key).put(f"f{dice.randrange(20)}", n)
            case _:
                store.set("s" + key).clear()


def view(store: Store) -> tuple[Any, ...]:
    return store.digest(), store.vv(), list(store.scan()), store.origin, [str(c) for c in store.conflicts()]


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb", "memory"])
@pytest.mark.parametrize("durability", ["async", "sync", "memory"])
def test_reopened_again_and_again(tmp_path: Path, engine: str, durability: str) -> None:
    dice = random.Random(engine + durability)
    arguments: dict[str, Any] = {"engine": engine, "durability": durability, "settings": SMALL}
    with store_at(Clock(), "eu") as other:
        expected = None
        for _ in range(4):
            with crdtkv.open(tmp_path / "d", **arguments) as store:
                assert expected is None or view(store) == expected
                scribble(store, dice, 40)
                scribble(other, dice, 10)
                store.merge(other.delta_since(store.vv()))
                other.merge(store.delta_since(other.vv()))
                expected = view(store)
                assert other.digest() == expected[0]
                assert store.status().durable_vv == store.vv() or durability != "sync"


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_a_request_id_is_known_after_a_restart(tmp_path: Path, engine: str) -> None:
    row = [1, "cincr", ["c", 1], {"rid": b"once"}]
    for _ in range(3):
        with crdtkv.open(tmp_path / "d", engine=engine, settings=SMALL) as store:
            store.execute([row])
            assert store.counter("c").value == 1


def test_stamps_go_on_after_a_restart_whatever_the_wall_clock_says(tmp_path: Path) -> None:
    clock = Clock()
    from crdtkv.store.opening import open_machine

    stamps = []
    for back in (0, 5_000, 5_000):
        clock.ms -= back
        opened = open_machine(tmp_path / "d", region="us", engine="lmdb", durability="async", settings=SMALL, wall_ms=clock)
        with Store(opened, "async", SMALL, clock) as store:
            stamps += [store.put("k", n).hlc for n in range(3)]
    assert stamps == sorted(set(stamps))


def test_a_snapshot_that_knows_more_of_this_replica_than_itself_is_an_alarm_and_changes_nothing(tmp_path: Path) -> None:
    # The store took over the number and went on, and nobody heard that it had lost what it had acknowledged.
    with crdtkv.open(tmp_path / "us", region="us") as us:
        us.put("k", 1)
    shutil.copytree(tmp_path / "us", tmp_path / "copy")
    with crdtkv.open(tmp_path / "us", region="us") as us, crdtkv.open(region="eu", settings=Settings(memory_log_bytes=1000)) as eu:
        us.put("lost", 1)
        eu.merge(us.delta_since())
        for i in range(100):
            eu.put(f"fill/{i}", "x" * 100)
        snapshot = eu.delta_since()
    shutil.rmtree(tmp_path / "us")
    (tmp_path / "copy").rename(tmp_path / "us")
    trusting = Settings(instance_dir="trust")
    with crdtkv.open(tmp_path / "us", region="us", settings=trusting) as restored:
        before = restored.origin
        restored.merge(snapshot)
        assert restored.origin != before and restored["lost"] == 1 and restored["fill/1"]
        assert "knows" in restored.warnings[0]
        assert restored.put("k", 2).origin == restored.origin


def test_what_is_quick_takes_no_lock_that_another_holds_and_never_writes_the_engine(tmp_path: Path) -> None:
    """A node's event loop executes small groups itself: nothing in it may wait for a thread or for the engine's disk."""
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(fold_records_max=8)) as store:
        port = store.port
        position = store._replica.state._base.get(META_KEY)
        with store._machine.fold_guard:  # so that nobody else writes it either
            for number in range(16):
                while not store.begin_quick():  # the housekeeper has the lock for a moment
                    pass
                store.execute([(number, "put", [f"k{number}", encode_value(number)], None)])
                assert port.digest() is None, "a digest folds"
                store.end_quick()
            assert not store.begin_quick(), "the overlay is at its bound, and the one before it waits"
            assert store._replica.state._base.get(META_KEY) == position, "the engine was written"
        store.put("k8", 8)  # at leisure, it is: here, or by the housekeeper if that is just at it
        deadline = time.monotonic() + 60
        while store._replica.state._base.get(META_KEY) == position:
            assert time.monotonic() < deadline, "the engine was never written"
        with store._lock:
            assert port.digest() is not None
        with ThreadPoolExecutor(1) as other:
            with store._lock:
                assert not other.submit(store.begin_quick).result()
            while not other.submit(lambda: store.begin_quick() and not store.end_quick()).result():
                pass


def test_opening_after_a_clean_close_reads_no_log(tmp_path: Path) -> None:
    """It read the last segment through: ten seconds for 64 MiB of small commits."""
    with crdtkv.open(tmp_path / "data", durability="async") as store:
        for n in range(30):
            store.put("k", [n, "x" * 50_000])
        before = store.digest(), store.vv()
    with crdtkv.open(tmp_path / "data") as again:
        log = again._machine.log
        assert isinstance(log, FileLog) and log.recovery.frames == 0 and again._machine.replayed == 0
        assert log.end() == 30 and len(list((tmp_path / "data" / "log").glob("*.log"))) == 2
        assert (again.digest(), again.vv()) == before
        assert next(iter(again.watch(since=again._watches.token(3), timeout=0.1))).key == "k"  # older ones are read when asked for
        again.put("k", 1)
    with crdtkv.open(tmp_path / "data") as again:  # little was added: the file goes on
        assert again["k"] == 1 and len(list((tmp_path / "data" / "log").glob("*.log"))) == 2
