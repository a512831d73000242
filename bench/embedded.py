"""The embedded store against what a program would use instead, one thread.

pycrdt's map is a CRDT in compiled code, without durability; raw rocksdict is the engine under the store, without
a log, replication or conflict rules, its own write-ahead log off as the store has it. Each store also writes its commit log.
`async` leaves fsync to the background, `sync` waits for it at each commit.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pycrdt
import rocksdict

import crdtkv

from common import Report, Row, Target, compare, rate

VALUE = "x" * 100
BIG_SET = 1_000_000


@contextmanager
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="crdtkv-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put_in_memory(report: Report) -> list[Row]:
    """One operation a transaction: 10 k keys, written over and over as a cache or session store would."""
    operations = report.scaled(50_000)
    keys = [f"key/{n:06d}" for n in range(10_000)]
    document = pycrdt.Doc()
    document["map"] = pycrdt.Map()
    shared = document["map"]

    def pycrdt_set() -> None:
        for n in range(operations):
            shared[keys[n % 10_000]] = VALUE

    with crdtkv.open() as store:

        def put() -> None:
            for n in range(operations):
                store.put(keys[n % 10_000], VALUE)

        return compare(
            {"pycrdt Map set": lambda: rate(pycrdt_set, operations), "Store.put": lambda: rate(put, operations)},
            unit="op/s",
            targets={"Store.put": Target(0.7, "pycrdt Map set")},
            rounds=report.arguments.rounds,
        )


def read_in_memory(report: Report) -> list[Row]:
    operations = report.scaled(200_000)
    keys = [f"key/{n:06d}" for n in range(10_000)]
    document = pycrdt.Doc()
    document["map"] = pycrdt.Map({key: VALUE for key in keys})
    shared = document["map"]

    def pycrdt_get() -> None:
        for n in range(operations // 4):
            shared[keys[n % 10_000]]

    with crdtkv.open() as store:
        for key in keys:
            store.put(key, VALUE)

        def get() -> None:
            for n in range(operations):
                store.get(keys[n % 10_000])

        return compare(
            {"pycrdt Map get": lambda: rate(pycrdt_get, operations // 4), "Store.get": lambda: rate(get, operations)},
            unit="op/s",
            targets={"Store.get": Target(1_000_000)},
            rounds=report.arguments.rounds,
        )


def set_adds(report: Report) -> tuple[list[Row], list[Row]]:
    """Adds to a set that is empty at the start of each round, and to one of a million; then the size of one add's delta."""
    operations = report.scaled(10_000)
    size = report.scaled(BIG_SET)
    numbers = count()
    with crdtkv.open() as store:
        big = store.set("big")
        for start in range(0, size, 10_000):
            big.add(*(f"element/{n:09d}" for n in range(start, min(start + 10_000, size))))

        def adds(key: str) -> float:
            handle = store.set(key)
            elements = [f"fresh/{next(numbers):09d}" for _ in range(operations)]

            def run() -> None:
                for element in elements:
                    handle.add(element)

            return rate(run, operations)

        empty, full = "add, empty set", f"add, set of {size:,}"
        speed = compare(
            {empty: lambda: adds(f"small/{next(numbers)}"), full: lambda: adds("big")},
            unit="op/s",
            targets={empty: Target(200_000), full: Target(1 / 1.5, empty)},
            rounds=report.arguments.rounds,
        )

        def delta_overhead() -> float:
            before = store.vv()
            element = f"fresh/{next(numbers):09d}"
            big.add(element)
            return len(store.delta_since(before)) - len(element)

        name = "delta of one add, beyond the element"
        delta = compare({name: delta_overhead}, unit="bytes", targets={name: Target(100, at_most=True)}, rounds=report.arguments.rounds)
        return speed, delta


def put_on_disk(report: Report) -> list[Row]:
    """Distinct keys, in no order."""
    operations = report.scaled(20_000)
    synced = report.scaled(1_000)
    value = VALUE.encode()
    numbers = count()

    def keys(amount: int) -> list[str]:
        return [f"key/{next(numbers) * 2654435761 % 2**32:010d}" for _ in range(amount)]

    with directory() as parent:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        raw = rocksdict.Rdict(str(parent / "raw"), options)
        unlogged = rocksdict.WriteOptions()
        unlogged.disable_wal = True
        logged = rocksdict.WriteOptions()
        synchronous = rocksdict.WriteOptions()
        synchronous.sync = True

        def raw_put(amount: int, how: rocksdict.WriteOptions) -> float:
            fresh = [key.encode() for key in keys(amount)]

            def run() -> None:
                for key in fresh:
                    raw.put(key, value, write_opt=how)

            return rate(run, amount)

        def put(store: crdtkv.Store, amount: int) -> float:
            fresh = keys(amount)

            def run() -> None:
                for key in fresh:
                    store.put(key, VALUE)

            return rate(run, amount)

        with (
            crdtkv.open(parent / "async", durability="async") as quick,
            crdtkv.open(parent / "sync", durability="sync") as safe,
        ):
            made = compare(
                {
                    "rocksdict put, WAL off": lambda: raw_put(operations, unlogged),
                    "rocksdict put, WAL": lambda: raw_put(operations, logged),
                    "Store.put async": lambda: put(quick, operations),
                    "rocksdict put, WAL fsynced": lambda: raw_put(synced, synchronous),
                    "Store.put sync": lambda: put(safe, synced),
                },
                unit="op/s",
                targets={
                    "Store.put async": Target(0.2, "rocksdict put, WAL"),
                    "Store.put sync": Target(0.2, "rocksdict put, WAL fsynced"),
                },
                rounds=report.arguments.rounds,
            )
        raw.close()
        return made


def main() -> None:
    report = Report(__doc__)
    began = time.perf_counter()
    report.add("put of a 100-byte value, memory, one operation a transaction", put_in_memory(report))
    report.add("get of a 100-byte value, memory", read_in_memory(report))
    speed, delta = set_adds(report)
    report.add("OR-set add, memory", speed)
    report.add("OR-set delta", delta)
    report.add("put of distinct keys, RocksDB", put_on_disk(report))
    report.finish()
    if not report.arguments.json:
        print(f"embedded: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
