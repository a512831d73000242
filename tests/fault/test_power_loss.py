"""The commit log and the machine on it, on a disk whose power fails, or that refuses, at each call in turn.

A history of commits, syncs, folds and truncations runs on `FaultyFiles`. It is stopped at every call it makes, the disk is
found as a loss of power may leave it, and the machine opens again on that. Then: it opens; what it recovered is a prefix of what was
committed; whatever a sync had returned for is there; state and digest are those of that prefix. Then it goes on, and is stopped again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from crdtkv.core.causality import make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import encode_value
from crdtkv.core.join import snapshot_of
from crdtkv.core.settings import CoreSettings
from crdtkv.errors import CorruptionError, DiskFullError, StorageError
from crdtkv.simulation.disk import SimulatedEngine
from crdtkv.simulation.files import FaultyFiles, PowerLost
from crdtkv.storage.log import FileLog
from crdtkv.store.machine import Machine
from crdtkv.store.reading import Reader
from crdtkv.store.transaction import Transaction

US = make_origin("us", 1, 7)
SEGMENT_BYTES = 700
"""Small, so that a short history rolls through several segments."""
State = dict[str, object]


class Driver:
    """One history on one disk, over its crashes; the model beside it: the state after each commit."""

    def __init__(self, directory: Path, seed: int, *, sync_lies: bool = False) -> None:
        self.directory = directory
        self.dice = Random(seed)
        self.files = FaultyFiles(sync_lies=sync_lies)
        self.engine = SimulatedEngine()
        self.states: list[State] = [{}]
        """`states[n]`: what is visible after n commits."""
        self.promised = 0
        """Commits that a sync has returned for."""
        self.time_ms = 1_700_000_000_000

    def open(self) -> None:
        self.log = FileLog(self.directory, segment_bytes=SEGMENT_BYTES, tail_cache_bytes=512, files=self.files)
        clock = HybridClock(self._now, max_skew_ms=60_000, refuse_ms=600_000)
        self.machine = Machine(self.log, self.engine, origin=US, cluster="test", clock=clock, settings=CoreSettings())
        self.reader = Reader(self.machine.replica)

    def _now(self) -> int:
        self.time_ms += 1
        return self.time_ms

    # -- what happens -----------------------------------------------------------------------------------------------

    def step(self, number: int) -> None:
        """One step of the history."""
        if number % 7 == 3:
            self.log.sync()
            self.promised = self.machine.vv().seq(US)
            self.machine.note_synced()
        elif number % 7 == 5:
            self.machine.fold()
        elif number % 11 == 9:
            self.log.sync()
            self.promised = self.machine.vv().seq(US)
            self.machine.fold()
            self.engine.flush()
            self.log.truncate(self.machine.replica.position - 2)
        else:
            for _ in range(1 + number % 3):
                self._commit(number)
            self.machine.seal()

    def _commit(self, number: int) -> None:
        transaction = Transaction(self.machine.replica, self.reader)
        key = f"r{self.dice.randrange(3)}"
        transaction.put(key, encode_value([number, "x" * self.dice.randrange(300)]), None)
        transaction.increment("c", number + 1)
        transaction.add("s", encode_value(number), None)
        seq, _ = self.machine.transact(transaction.deltas())
        assert seq == len(self.states)
        self.states.append(self.visible())

    def visible(self) -> State:
        found: State = {}
        for key in ("r0", "r1", "r2"):
            entry = self.reader.register(key.encode())
            found[key] = None if entry is None else entry.value
        found["c"] = self.reader.counter(b"c") or 0
        found["s"] = self.reader.size(b"s", 2)
        return found

    # -- what is lost, and what must not be -------------------------------------------------------------------------

    def lose_power(self) -> None:
        """The machine stops: the disk is what it may be, the engine wakes up at some batch that the log reaches."""
        self.files = self.files.lose_power(self.dice.random)

    def recover(self) -> None:
        log = FileLog(self.directory, segment_bytes=SEGMENT_BYTES, files=self.files)
        reach = range(log.start(), log.end() + 1)
        log.close()
        fits = [i for i, p in enumerate(self.engine.positions()) if p in reach]
        assert fits, f"no state of the engine is reached by the log: {self.engine.positions()}, log {reach}"
        self.engine.wake(self.dice.choice(fits))
        self.open()
        self.log._check()
        recovered = self.machine.vv().seq(US)
        assert recovered >= self.promised, f"lost: {self.promised} commits were promised, {recovered} are there"
        assert recovered < len(self.states), "more than was committed"
        assert self.visible() == (self.states[recovered] if recovered else {"r0": None, "r1": None, "r2": None, "c": 0, "s": 0})
        digest = self.machine.digest()
        assert digest is not None and digest[1] == f"{snapshot_of(self.machine.replica).digest():032x}"
        del self.states[recovered + 1 :]
        self.promised = recovered  # opening has synced it


STEPS = 24


def calls_of(directory: Path, seed: int) -> int:
    """How many calls the history makes when nothing fails."""
    driver = Driver(directory, seed)
    driver.open()
    for number in range(STEPS):
        driver.step(number)
    return driver.files.calls


def stop_at(driver: Driver, call: int) -> Iterator[None]:
    """Run the history; the power fails at the given call."""

    def lose(number: int, name: str) -> None:
        if number == call:
            raise PowerLost(name)

    driver.files.at_call = lose
    try:
        driver.open()
        for number in range(STEPS):
            driver.step(number)
        yield
    except PowerLost:
        yield


@pytest.mark.parametrize("seed", range(4))
def test_at_whatever_call_the_power_fails_what_was_synced_is_there_and_nothing_else_is_wrong(tmp_path: Path, seed: int) -> None:
    total = calls_of(tmp_path, seed)
    assert total > 60
    for call in range(1, total + 1):
        driver = Driver(tmp_path, seed)
        next(stop_at(driver, call))
        for again in range(3):
            driver.lose_power()
            driver.recover()
            # It goes on where it was, and the power fails again: now at any later call.
            stop = driver.files.calls + driver.dice.randrange(1, 40)

            def lose(number: int, name: str, stop: int = stop) -> None:
                if number == stop:
                    raise PowerLost(name)

            driver.files.at_call = lose
            try:
                for number in range(again * 7, again * 7 + 12):
                    driver.step(number)
            except PowerLost:
                pass


def test_a_sync_that_does_nothing_is_noticed(tmp_path: Path) -> None:
    """The checker can fail: on a disk whose fdatasync is a lie, promised commits are found to be lost."""
    noticed = 0
    for call in range(10, 80, 3):
        driver = Driver(tmp_path, 1, sync_lies=True)
        next(stop_at(driver, call))
        driver.lose_power()
        try:
            driver.recover()
        except AssertionError as e:
            noticed += "promised" in str(e) or "no state of the engine" in str(e)
        except CorruptionError:
            noticed += 1  # a file that was given its name before its content was there
    assert noticed > 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_call_that_the_disk_refuses_is_an_error_and_opening_again_finds_what_was_promised(tmp_path: Path, number: int) -> None:
    seed = 2
    for call in range(1, calls_of(tmp_path, seed) + 1):
        driver = Driver(tmp_path, seed)
        is_needed = True

        def refuse(at: int, name: str, call: int = call) -> None:
            nonlocal is_needed
            if at == call:
                is_needed = name != "reserve" or number != errno.ENOSPC  # a log does without room ahead
                raise OSError(number, os.strerror(number))

        driver.files.at_call = refuse
        refused = False
        try:
            driver.open()
            for step in range(STEPS):
                driver.step(step)
        except StorageError as e:
            refused = True
            assert os.strerror(number) in str(e)
            _check_failed(driver)
        assert refused == is_needed, f"call {call} was refused and nobody said so"
        driver.files.at_call = lambda at, name: None
        driver.lose_power()
        driver.recover()


def _check_failed(driver: Driver) -> None:
    """After a failed sync the log promises nothing more, whatever the disk says now."""
    log = getattr(driver, "log", None)
    if log is None:
        return
    before = log.synced()
    attempt: Callable[[], object] = log.sync
    try:
        attempt()
    except StorageError:
        assert log.synced() == before


def test_a_full_disk_at_any_call_is_survived_without_opening_again(tmp_path: Path) -> None:
    """ENOSPC at each call in turn, but fsyncs: what it refuses is undone, the history goes on, and nothing that was promised is lost."""
    seed, survived = 3, 0
    for call in range(1, calls_of(tmp_path, seed) + 1):
        driver = Driver(tmp_path, seed)
        refused: list[str] = []

        def refuse(at: int, name: str, call: int = call, refused: list[str] = refused) -> None:
            if at == call:
                refused.append(name)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        driver.files.at_call = refuse
        try:
            driver.open()
        except StorageError:
            continue  # opening is tried again by whoever wanted it
        try:
            for number in range(STEPS):
                try:
                    driver.step(number)
                except DiskFullError as e:
                    truncating = refused[0] in ("remove", "sync_directory")  # the log's own affair, and tried again
                    assert (driver.machine.full is not None or truncating) and not e.maybe_applied and e.retryable
                    done = driver.machine.vv().seq(US)
                    del driver.states[done + 1 :]
                    assert not done or driver.visible() == driver.states[done]
                    driver.machine.retry()
                    assert driver.machine.full is None
                    survived += 1
        except StorageError as e:
            assert not isinstance(e, DiskFullError) and refused[0] in ("sync", "sync_directory", "read_at", "open", "remove", "truncate"), (
                refused
            )
        else:
            assert driver.machine.vv().seq(US) == len(driver.states) - 1
            assert driver.visible() == driver.states[-1]
        driver.files.at_call = lambda at, name: None
        driver.lose_power()
        driver.recover()
    assert survived > 20
