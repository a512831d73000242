"""The engine is written beside the writers: what is set aside is read, counted, survives a crash before and after, and stays bounded."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

import crdtkv
from crdtkv.core.causality import make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import encode_value, register_slot
from crdtkv.core.frame import DeltaKind
from crdtkv.core.meta import META_KEY
from crdtkv.core.settings import CoreSettings
from crdtkv.errors import DiskFullError, StorageError
from crdtkv.simulation.disk import SimulatedEngine, SimulatedLog, position_of
from crdtkv.storage.engine import EngineSnapshot
from crdtkv.store import Settings, folding
from crdtkv.store import machine as machine_module
from crdtkv.store.folding import EVERY_S, SMALL_MAX, SMALL_MIN, STEP, Folder
from crdtkv.store.machine import QUICK_FOLD_MAX, Machine
from crdtkv.store.port import StorePort
from crdtkv.store.reading import Reader
from crdtkv.store.transaction import Transaction
from tests.stores import Clock

FOLD_MAX = 8


@dataclass
class Replica:
    """A machine on disks in memory; `beside`: what is due is set aside, and only folded when a test says so."""

    beside: bool
    log: SimulatedLog = field(default_factory=SimulatedLog)
    engine: SimulatedEngine = field(default_factory=SimulatedEngine)
    clock: Clock = field(default_factory=Clock)
    settings: CoreSettings = field(default_factory=CoreSettings)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        clock = HybridClock(self.clock, max_skew_ms=1000, refuse_ms=1000)
        origin = make_origin("us", 1, 1)
        self.machine = Machine(
            self.log, self.engine, origin=origin, cluster="c", clock=clock, settings=self.settings, fold_records_max=FOLD_MAX
        )
        self.reader = Reader(self.machine.replica)
        if self.beside:
            self.machine.when_folding = lambda: None

    def do(self, build: Callable[[Transaction], object]) -> None:
        transaction = Transaction(self.machine.replica, self.reader)
        build(transaction)
        if deltas := transaction.deltas():
            self.machine.transact(deltas)
            self.machine.seal()

    def put(self, key: str, value: object) -> None:
        self.do(lambda t: t.put(key, encode_value(value)))

    def contents(self) -> dict[bytes, bytes]:
        """All records that a scan shows."""
        self.machine.replica.heads.fold()
        return dict(self.machine.replica.state.scan(b"", None))


def change(dice: random.Random) -> Callable[[Transaction], object]:
    key, number = f"k{dice.randrange(6)}", dice.randrange(4)
    return dice.choice(
        (
            lambda t: t.put(key, encode_value(number)),
            lambda t: t.delete(key),
            lambda t: t.add("s" + key, encode_value(number)),
            lambda t: t.discard("s" + key, encode_value(number)),
            lambda t: t.clear_set("s" + key),
            lambda t: t.put_field("m" + key, str(number), encode_value(number)),
            lambda t: t.increment("c" + key, number - 1),
            lambda t: t.reset("c" + key),
        )
    )


@pytest.mark.parametrize("seed", range(40))
def test_it_makes_no_difference_when_the_engine_is_written(seed: int) -> None:
    """The naive twin folds at once. The same records are read, and the same digest kept, at every step, and after crashes anywhere."""
    dice = random.Random(seed)
    mine, naive = Replica(beside=True), Replica(beside=False)
    overlapped = crashed = 0
    for _ in range(200):
        step = change(dice)
        for replica in (mine, naive):
            replica.clock.ms += 1
            replica.do(step)
        overlapped += mine.machine.replica.state.is_folding and mine.machine.replica.state.changed > 0
        shown, expected = mine.contents(), naive.contents()
        shown.pop(META_KEY, None), expected.pop(META_KEY, None)
        assert shown == expected
        assert mine.machine.replica.digest() == naive.machine.replica.digest()
        if dice.random() < 0.5:
            mine.machine.fold_some(1 + dice.randrange(3))
        if dice.random() < 0.05:
            crashed += mine.machine.replica.state.is_folding
            mine.engine.wake(dice.randrange(len(mine.engine.folds)))
            mine.open()
            assert mine.machine.replica.digest() == naive.machine.replica.digest()
    assert overlapped > 20
    mine.machine.fold(), naive.machine.fold()
    assert {k: v for k, v in mine.engine.records.items()} == {k: v for k, v in naive.engine.records.items()}
    assert position_of(mine.engine.records) == mine.log.end()


def test_what_is_set_aside_is_read_until_the_engine_has_it_and_written_once() -> None:
    replica = Replica(beside=True)
    for number in range(FOLD_MAX):
        replica.put(f"k{number}", "old")
    state = replica.machine.replica.state
    assert state.is_folding and not state.changed and not replica.engine.records
    replica.put("k3", "new")
    with replica.machine.engine.snapshot() as bare:
        assert state.overlaid(bare).get(register_slot(b"k3")) == state.get(register_slot(b"k3")) is not None
    assert replica.reader.register(b"k3").value == encode_value("new")  # type: ignore[union-attr]
    assert replica.reader.register(b"k4").value == encode_value("old")  # type: ignore[union-attr]
    while not replica.machine.fold_some(1):
        pass
    assert len(replica.engine.folds) == 2, "one batch"
    assert position_of(replica.engine.records) == FOLD_MAX, "the position is that of the batch, not of now"
    assert replica.reader.register(b"k3").value == encode_value("new")  # type: ignore[union-attr]


def test_writers_that_outrun_the_fold_do_it_themselves_so_memory_is_bounded() -> None:
    replica = Replica(beside=True)  # nobody ever folds beside
    most = 0
    for number in range(50 * FOLD_MAX):
        replica.put(f"k{number}", number)
        most = max(most, replica.machine.replica.state.pending)
    assert most <= 3 * FOLD_MAX
    assert position_of(replica.engine.records) >= 47 * FOLD_MAX


def test_a_full_disk_under_the_log_gives_up_the_fold_that_was_begun() -> None:
    """The replica goes back to what log and engine hold: written afterwards, what was set aside would be of another replica."""
    replica = Replica(beside=True)
    for number in range(FOLD_MAX + 3):
        replica.put(f"k{number}", number)
    replica.machine.fold_some(2)
    digest = replica.machine.replica.digest()
    replica.log.is_full = True
    with pytest.raises(DiskFullError):
        replica.put("refused", 1)
    assert not replica.machine.replica.state.is_folding
    assert replica.machine.replica.digest() == digest and replica.reader.register(b"refused") is None
    assert replica.machine.fold_some(1 << 20), "nothing is left to do"
    assert not replica.engine.records
    replica.log.is_full = False
    replica.machine.retry()
    replica.put("taken", 1)
    replica.machine.fold()
    again = Replica(beside=False, log=replica.log, engine=replica.engine, clock=replica.clock)
    assert again.machine.replica.digest() == replica.machine.replica.digest() and again.machine.replayed == 0


def test_an_engine_without_room_is_late_and_goes_on_where_it_was() -> None:
    replica = Replica(beside=True)
    replica.engine.is_full = True
    for number in range(FOLD_MAX):
        replica.put(f"k{number}", number)
    with pytest.raises(DiskFullError):
        replica.machine.fold_some(1 << 20)
    assert replica.machine.full is not None
    with replica.machine.snapshot() as view:  # what waits is laid over the engine's view
        assert view.get(register_slot(b"k1")) == replica.machine.replica.state.get(register_slot(b"k1")) is not None
    replica.machine.retry()
    assert replica.machine.full is not None
    replica.engine.is_full = False
    replica.machine.retry()
    assert replica.machine.full is None and position_of(replica.engine.records) == FOLD_MAX


def test_an_engine_that_breaks_beside_the_writers_fails_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(fold_records_max=FOLD_MAX)) as store:

        def broken(batch: object) -> None:
            raise StorageError("the engine broke")

        monkeypatch.setattr(store._machine.engine, "write", broken)
        with pytest.raises(StorageError, match="the engine broke"):
            for number in range(100_000):
                store.put(f"k{number}", number)


def test_a_writer_waits_for_no_fold(tmp_path: Path) -> None:
    """It stopped for as long as thousands of records took to be read, hashed and written."""
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(fold_records_max=FOLD_MAX)) as store:
        machine = store._machine
        with machine.fold_guard:  # who folds beside stands still
            for number in range(2 * FOLD_MAX - 1):
                while not store.begin_quick():
                    pass  # the housekeeper has the lock for a moment
                store.execute([[number, "put", [f"k{number}", encode_value(number)], None]])
                store.end_quick()
            assert machine.replica.state.is_folding
            assert store.get("k0") == 0 and store.get(f"k{FOLD_MAX}") == FOLD_MAX
        deadline = time.monotonic() + 30
        while machine.replica.state.is_folding:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert store.get("k0") == 0 and store.count("k") == 2 * FOLD_MAX - 1


def test_what_gets_into_the_engine_as_a_view_is_taken_is_in_the_view() -> None:
    replica = Replica(beside=True)
    for number in range(FOLD_MAX + 1):
        replica.put(f"k{number}", number)
    state = replica.machine.replica.state

    def take() -> EngineSnapshot:
        view = replica.engine.snapshot()
        state.end_fold()  # another thread ends it at this moment
        return view

    seen = dict(state.snapshot(take).scan(register_slot(b"k0"), register_slot(b"k9")))
    assert len(seen) == FOLD_MAX + 1


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_a_scan_waits_for_no_fold_and_sees_one_moment(tmp_path: Path, engine: str) -> None:
    """It folded all that waited, with the store's lock held."""
    with crdtkv.open(tmp_path / "d", engine=engine, durability="async", settings=Settings(fold_records_max=500)) as store:
        with store._machine.fold_guard:  # who folds beside stands still, so that what is set aside and the overlay are both there
            for number in range(450):
                store.put(f"k{number % 400:03d}", number)
                store.set("s").add(number)
            store.delete("k399")
            scan = store.scan()
            first = next(scan)
        members = iter(store.set("s"))
        store.put("k000", "later")
        store.digest()  # folds all
        found = dict([first, *scan])
        assert len(found) == 400 and found["k000"] == 400 and found["k398"] == 398 and "k399" not in found
        assert len(found["s"]) == 450 == len(list(members))
        assert [key for key, _ in store.scan("k", reverse=True)][:2] == ["k398", "k397"]


def fold_ended(machine: Machine) -> None:
    deadline = time.monotonic() + 60
    while machine.replica.state.is_folding:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_heartbeat_waits_for_no_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest was folded for in the node's turn, whatever waited. Now it goes without, and a later one has it."""
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(fold_records_max=500)) as store:
        port, machine = StorePort(store), store._machine
        for number in range(QUICK_FOLD_MAX + 1):
            store.put(f"k{number}", number)
        with monkeypatch.context() as patched, machine.fold_guard:  # who folds beside stands still
            patched.setattr(Machine, "fold", lambda self: pytest.fail("it folded in the turn"))
            assert port.digest() is None and machine.replica.state.is_folding
            assert port.digest() is None
        fold_ended(machine)
        assert port.digest() == (store.vv(), store.digest())


def test_scans_have_what_waits_folded_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lays what waits over the engine's view, so many changed records would cost every one of them."""
    monkeypatch.setattr(machine_module, "VIEW_FOLD_MAX", 200)
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(fold_records_max=500)) as store:
        machine = store._machine
        for number in range(200):
            store.put(f"k{number:03d}", number)
        assert len(list(store.scan())) == 200 and machine.replica.state.changed == 200  # no more than a few
        store.put("k200", 200)
        with machine.fold_guard:
            scan = store.scan()
            assert next(scan) == ("k000", 0) and machine.replica.state.is_folding
            store.put("k000", "later")
        assert len(list(scan)) == 200
        fold_ended(machine)
        assert machine.replica.state.changed == 1 and dict(store.scan())["k000"] == "later"


class FoldedBeside:
    """A machine with its folding thread, whose rests are counted and whose clock a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fold_records_max: int) -> None:
        self.now_s, self.rests = 1_000.0, 0
        monkeypatch.setattr(folding, "time", SimpleNamespace(monotonic=lambda: self.now_s, sleep=self._rest))
        replica = Replica(beside=False)
        replica.machine.fold_records_max = fold_records_max
        self.machine = replica.machine
        self._put, self._written = replica.put, 0
        self._folder = Folder(self.machine)

    def _rest(self, seconds: float) -> None:
        self.rests += threading.current_thread() is self._folder._thread  # and not one that another test left behind

    def put(self, count: int) -> None:
        """So many records more."""
        for _ in range(count):
            self._put(f"k{self._written}", 0)
            self._written += 1


def test_of_few_writes_small_folds_are_made_and_of_many_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node at 10,000 puts a second stood still for 30 ms at each fold of 16,384 records: p99 of the lag to other regions was 26 ms."""
    beside = FoldedBeside(monkeypatch, fold_records_max=4 * SMALL_MAX)
    state = beside.machine.replica.state
    with beside.machine.fold_guard:  # the thread stands still
        beside.put(SMALL_MIN - 1)
        assert not state.is_folding
        beside.put(1)
        assert state.is_folding and state.changed == 0
        beside.put(SMALL_MIN)
        assert state.changed == SMALL_MIN, "one at a time"
    fold_ended(beside.machine)
    beside.put(1)
    assert state.changed == SMALL_MIN + 1, "too soon after the last"
    beside.now_s += 2 * EVERY_S
    with beside.machine.fold_guard:
        beside.put(1)
        assert state.changed == 0
    fold_ended(beside.machine)
    beside.put(SMALL_MAX + 1)
    beside.now_s += 2 * EVERY_S
    beside.put(3 * SMALL_MAX - 2)
    assert not state.is_folding and state.changed == 4 * SMALL_MAX - 1, "what comes so fast is folded at once"
    beside.put(1)
    fold_ended(beside.machine)
    assert state.changed == 0


@pytest.mark.parametrize("gathered", [0, 8 * STEP])
def test_who_folds_beside_rests_after_each_step_unless_the_next_fold_gathers_fast(monkeypatch: pytest.MonkeyPatch, gathered: int) -> None:
    beside = FoldedBeside(monkeypatch, fold_records_max=16 * STEP)
    beside.machine.replica.digest()  # it is kept from now on: there is something to work through
    monkeypatch.setattr(beside.machine, "is_fold_due", lambda: False)
    with beside.machine.fold_guard:
        beside.put(16 * STEP)
        assert beside.machine.replica.state.is_folding
        beside.put(gathered)
    fold_ended(beside.machine)
    assert beside.rests == (0 if gathered else 15)


@pytest.mark.parametrize(("requests_max", "waiting"), [(16, 0), (400, 90)])
def test_request_ids_begin_a_fold_at_a_quarter_of_their_window(requests_max: int, waiting: int) -> None:
    """Of one key put over and over only they gather. Never more often than records do."""
    replica = Replica(beside=True, settings=CoreSettings(requests_max=requests_max))
    for number in range(90):
        replica.machine.transact([[DeltaKind.REGISTER_PUT, "k", encode_value(number)]], b"%d" % number)
        replica.machine.seal()
        replica.machine.fold_some()
    assert replica.machine.replica.requests.unfolded == (waiting or 90 % FOLD_MAX)


def test_readers_without_a_lock_see_every_write_while_the_engine_is_written(tmp_path: Path) -> None:
    with crdtkv.open(tmp_path / "d", durability="async", settings=Settings(fold_records_max=64)) as store:
        keys = [f"k{number}" for number in range(200)]
        for key in keys:
            store.put(key, 0)
        wrong: list[object] = []
        done = threading.Event()
        written = [0]

        def read() -> None:
            dice = random.Random(1)
            while not done.is_set():
                least, key = written[0], dice.choice(keys)
                found = store.get(key)
                if found is None or found < least:
                    wrong.append((key, found, least))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 40):
            for key in keys:
                store.put(key, number)
            written[0] = number
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
