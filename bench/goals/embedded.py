"""Rows of the embedded store, one thread: memory against CRDT libraries, RocksDB against the engine alone."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from typing import Any, Final

import crdtkv
from bench.goals.row import VALUE, VALUE_BYTES, Bench, Figures, Row, Side, key, rate, scattered
from bench.judging import Claim
from bench.peers.base import Store
from bench.peers.crdts import Loro, LoroMap, Pycrdt, PycrdtMap, Replicated
from bench.peers.files import Diskcache, Rocksdict, RocksdictSync, RocksStore

LIVE_KEYS: Final = 10_000
BATCH: Final = 1000
OURS: Final = "crdtkv"


def _keys(amount: int) -> list[str]:
    return [key(number) for number in range(amount)]


def _put_side(put: Callable[[str, str], object], keys: list[str], operations: int) -> Side:
    def run() -> None:
        for number in range(operations):
            put(keys[number % len(keys)], VALUE)

    return lambda: rate(run, operations)


def put(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """10 k keys written over and over, as a cache or session store would; one operation a transaction."""
    operations, keys = bench.scaled(50_000), _keys(LIVE_KEYS)
    sides: dict[str, Side] = {}
    for peer in (Pycrdt, Loro):
        if bench.has(peer):
            sides[peer.name] = _put_side(stack.enter_context(peer.open(bench.directory)).put, keys, operations)
    store = stack.enter_context(crdtkv.open())
    sides[OURS] = _put_side(store.put, keys, operations)
    return sides


def put_batched(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """The same keys in commits of a thousand."""
    operations, keys = bench.scaled(100_000, BATCH), _keys(LIVE_KEYS)
    sides: dict[str, Side] = {}

    def theirs(store: Store) -> Side:
        def run() -> None:
            for start in range(0, operations, BATCH):
                store.put_many([(keys[number % LIVE_KEYS], VALUE) for number in range(start, start + BATCH)])

        return lambda: rate(run, operations)

    for peer in (Pycrdt, Loro):
        if bench.has(peer):
            sides[peer.name] = theirs(stack.enter_context(peer.open(bench.directory)))
    store = stack.enter_context(crdtkv.open())

    def ours() -> None:
        for start in range(0, operations, BATCH):
            with store.batch() as batch:
                for number in range(start, start + BATCH):
                    batch.put(keys[number % LIVE_KEYS], VALUE)

    sides[OURS] = lambda: rate(ours, operations)
    return sides


def get(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Reads of 10 k keys, each to a Python str."""
    operations, keys = bench.scaled(200_000), _keys(LIVE_KEYS)
    sides: dict[str, Side] = {}

    def reading(read: Callable[[str], object], amount: int) -> Side:
        def run() -> None:
            for number in range(amount):
                read(keys[number % LIVE_KEYS])

        return lambda: rate(run, amount)

    for peer in (Pycrdt, Loro, Diskcache):
        if bench.has(peer):
            theirs = stack.enter_context(peer.open(bench.folder(peer.name)))
            theirs.put_many([(name, VALUE) for name in keys])
            sides[peer.name] = reading(theirs.get, operations // 4)
    store = stack.enter_context(crdtkv.open())
    for name in keys:
        store.put(name, VALUE)
    sides[OURS] = reading(store.get, operations)
    return sides


def merge(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """100 k keys, written on both sides, neither having seen the other; then one merges the other's update. Fresh replicas each round."""
    amount = bench.scaled(100_000)
    keys = _keys(amount)

    def theirs(make: Callable[[], Replicated]) -> Side:
        def run() -> Figures:
            a, b = make(), make()
            for replica, value in ((a, VALUE), (b, VALUE[::-1] + "y")):
                for start in range(0, amount, BATCH):
                    replica.put_many([(name, value) for name in keys[start : start + BATCH]])
            update = b.update_since(a.version())
            return rate(lambda: a.merge(update), amount)

        return run

    def ours() -> Figures:
        with crdtkv.open(region="us") as a, crdtkv.open(region="eu") as b:
            for store, value in ((a, VALUE), (b, VALUE + "y")):
                for name in keys:
                    store.put(name, value)
            update = b.delta_since(a.vv())
            began = time.perf_counter()
            result = a.merge(update)
            taken = time.perf_counter() - began
            assert (result.applied, result.conflicts) == (amount, amount), "each of b's writes meets one of a's"
            return {"op_per_s": amount / taken}

    sides: dict[str, Side] = {}
    if bench.has(Pycrdt):
        sides[Pycrdt.name] = theirs(PycrdtMap)
    if bench.has(Loro):
        sides[Loro.name] = theirs(LoroMap)
    sides[OURS] = ours
    return sides


def text_like(number: int) -> str:
    """100 bytes as records in JSON look: names recur, values differ."""
    record = json.dumps(
        {"id": number, "name": f"user {number % 977}", "city": ("London", "Paris", "Tokyo")[number % 3], "score": number % 101}
    )
    return f"{record:<100.100}".replace("  ", " x")


def wire_bytes(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """What travels to a peer per operation: distinct keys of 16 bytes, values of 100.

    Commits of a thousand: what a replica that lacks them is sent. Commits of one, from a pipelining client: all bytes between two nodes
    with their default settings, 10 ms apart as regions are, counted outside them, with whatever they compress, frame and acknowledge.
    """
    from crdtkv.cluster import LocalCluster

    amount = bench.scaled(50_000, BATCH)
    keys = _keys(amount)
    cluster = stack.enter_context(LocalCluster(("us", "eu"), latency_ms=10.0, engine="memory"))
    prefixes = count()

    def batched() -> Figures:
        with crdtkv.open() as store:
            before = store.vv()
            for start in range(0, amount, BATCH):
                with store.batch() as group:
                    for number in range(start, start + BATCH):
                        group.put(keys[number], noise(number))
            return {"op_bytes": len(store.delta_since(before)) / amount}

    def delivered() -> int:
        return next(int(link["bytes_delivered"]) for link in cluster.status()["links"] if link["source"] == "us")

    def between_nodes(value: Callable[[int], str]) -> Figures:
        prefix = f"{next(prefixes):04d}"
        with crdtkv.connect(cluster.address("us"), timeout=60.0) as us, crdtkv.connect(cluster.address("eu"), timeout=60.0) as eu:
            before = delivered()
            for start in range(0, amount, BATCH):
                with us.pipeline() as group:
                    for number in range(start, start + BATCH):
                        group.put(prefix + keys[number][4:], value(number))
            while eu.vv() != us.vv():
                time.sleep(0.02)
        return {"op_bytes": (delivered() - before) / amount}

    def theirs(replica: Replicated) -> Figures:
        for start in range(0, amount, BATCH):
            replica.put_many([(name, VALUE) for name in keys[start : start + BATCH]])
        return {"op_bytes": len(replica.update_since(None)) / amount}

    sides: dict[str, Side] = {}
    if bench.has(Pycrdt):
        sides[Pycrdt.name] = lambda: theirs(PycrdtMap())
    if bench.has(Loro):
        sides[Loro.name] = lambda: theirs(LoroMap())
    sides["commits of 1000"] = batched
    sides["commits of 1"] = lambda: between_nodes(noise)
    sides["commits of 1, text-like"] = lambda: between_nodes(text_like)
    return sides


def noise(number: int) -> str:
    """100 characters that hardly anything shortens: drawn from 64, which leaves a compressor three quarters."""
    return base64.b64encode(random.Random(number).randbytes(VALUE_BYTES * 3 // 4), b"-_").decode()


_MEMORY: Final = """
import gc, json, resource, sys
def resident():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()
from bench.goals.row import key
kind, amount = sys.argv[1], int(sys.argv[2])
if kind == "crdtkv":
    import crdtkv
    store = crdtkv.open()
    put = store.put
else:
    from bench.peers.crdts import LoroMap, PycrdtMap
    store = {"loro": LoroMap, "pycrdt": PycrdtMap}[kind]()
    put = store.put
before = resident()
for number in range(amount):
    put(key(number), "%016d" % number + "x" * 84)
print(json.dumps(resident() - before))
"""


def memory(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Resident memory that distinct keys add, in a process of its own each."""
    amount = bench.scaled(300_000)

    def run(kind: str) -> Figures:
        done = subprocess.run([sys.executable, "-c", _MEMORY, kind, str(amount)], capture_output=True, text=True, check=True)
        return {"key_bytes": json.loads(done.stdout) / amount}

    sides: dict[str, Side] = {}
    for peer in (Pycrdt, Loro):
        if bench.has(peer):
            sides[peer.name] = lambda name=peer.name: run(name)  # type: ignore[misc]
    sides[OURS] = lambda: run("crdtkv")
    return sides


def _rocks(bench: Bench, stack: ExitStack, peer: type[Rocksdict]) -> RocksStore:
    return stack.enter_context(peer.open(bench.folder(peer.name)))


def rocksdb_put(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Distinct keys in no order; then overwrites of keys that lie beyond the store's cache; then batches of a thousand.

    A raw rocksdict has its write-ahead log on, as who uses it alone would; `sync` stands beside.
    """
    distinct, over, batched, synced = bench.scaled(20_000), bench.scaled(20_000), bench.scaled(50_000, BATCH), bench.scaled(500, 50)
    beyond = bench.scaled(300_000, BATCH)
    numbers = count()
    raw = _rocks(bench, stack, Rocksdict)
    raw_sync = _rocks(bench, stack, RocksdictSync)
    quick = stack.enter_context(crdtkv.open(bench.directory / "async", durability="async"))
    safe = stack.enter_context(crdtkv.open(bench.directory / "sync", durability="sync"))
    for start in range(0, beyond, BATCH):
        pairs = [(f"old/{number:012d}", VALUE) for number in range(start, start + BATCH)]
        raw.put_many(pairs)
        with quick.batch() as batch:
            for name, value in pairs:
                batch.put(name, value)

    def fresh(put_one: Callable[[str, str], object], amount: int) -> float:
        keys = [scattered(next(numbers)) for _ in range(amount)]
        return rate(lambda: [put_one(name, VALUE) for name in keys], amount)["op_per_s"]

    def again(put_one: Callable[[str, str], object]) -> float:
        keys = [f"old/{next(numbers) * 2654435761 % beyond:012d}" for _ in range(over)]
        return rate(lambda: [put_one(name, VALUE) for name in keys], over)["op_per_s"]

    def many(put_many: Callable[[list[tuple[str, str]]], object]) -> float:
        pairs = [(scattered(next(numbers)), VALUE) for _ in range(batched)]
        return rate(lambda: [put_many(pairs[start : start + BATCH]) for start in range(0, batched, BATCH)], batched)["op_per_s"]

    def in_one_commit(pairs: list[tuple[str, str]]) -> None:
        with quick.batch() as batch:
            for name, value in pairs:
                batch.put(name, value)

    def both(put_one: Callable[[str, str], object], put_many: Callable[[list[tuple[str, str]]], object]) -> Figures:
        return {"distinct_per_s": fresh(put_one, distinct), "overwrite_per_s": again(put_one), "batched_per_s": many(put_many)}

    return {
        Rocksdict.name: lambda: both(raw.put, raw.put_many),
        RocksdictSync.name: lambda: {"distinct_per_s": fresh(raw_sync.put, synced)},
        OURS: lambda: both(quick.put, in_one_commit),
        f"{OURS} sync": lambda: {"distinct_per_s": fresh(safe.put, synced)},
    }


def orset(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Adds, tests and removals on a set that begins empty, and on one of ten million (one of a hundred thousand, if quick)."""
    size = 100_000 if bench.quick else 10_000_000
    operations = bench.scaled(10_000)
    numbers = count()
    store = stack.enter_context(crdtkv.open())
    big = store.set("big")
    for start in range(0, size, 10_000):
        big.add(*range(start, start + 10_000))

    def work(name: str) -> Figures:
        handle: Any = store.set(name)
        elements = [f"fresh/{next(numbers):09d}" for _ in range(operations)]
        figures = {}
        for metric, method in (("add_us", handle.add), ("contains_us", handle.contains), ("remove_us", handle.discard)):
            taken = rate(lambda method=method: [method(element) for element in elements], operations)["op_per_s"]  # type: ignore[misc]
            figures[metric] = 1e6 / taken
        return figures

    def delta() -> float:
        before, element = store.vv(), f"fresh/{next(numbers):09d}"
        big.add(element)
        return len(store.delta_since(before)) - len(element)

    return {
        "empty set": lambda: work(f"small/{next(numbers)}"),
        "big set": lambda: {**work("big"), "delta_bytes": delta()},
    }


ROWS: Final = (
    Row(
        "put",
        "embedded in-memory put, one operation a commit",
        "pycrdt map, one operation a transaction",
        "≥ 1 ×",
        (Claim("crdtkv/op_per_s", 1.0, "pycrdt/op_per_s"), Claim("crdtkv/op_per_s", None, "loro/op_per_s")),
        put,
        {"pycrdt": Pycrdt.durability, "loro": Loro.durability, "crdtkv": "none (memory), with a log that peers are served from"},
    ),
    Row(
        "put-batched",
        "embedded in-memory put, commits of 1000",
        "pycrdt, loro: one transaction of 1000",
        "≥ 1 ×",
        (Claim("crdtkv/op_per_s", 1.0, "pycrdt/op_per_s"), Claim("crdtkv/op_per_s", 1.0, "loro/op_per_s")),
        put_batched,
        {"pycrdt": Pycrdt.durability, "loro": Loro.durability, "crdtkv": "none (memory)"},
    ),
    Row(
        "get",
        "embedded get",
        "loro map get to a Python str; diskcache",
        "≥ 0.5 × loro and ≥ 1 M/s; ≥ 5 × diskcache",
        (
            Claim("crdtkv/op_per_s", 0.5, "loro/op_per_s"),
            Claim("crdtkv/op_per_s", 1_000_000.0),
            Claim("crdtkv/op_per_s", 5.0, "diskcache/op_per_s"),
            Claim("crdtkv/op_per_s", None, "pycrdt/op_per_s"),
        ),
        get,
    ),
    Row(
        "merge",
        "merge of 100 k concurrent writes to the same keys, journal on",
        "pycrdt; loro",
        "≥ 0.5 ×; ≥ 1.5 ×",
        (Claim("crdtkv/op_per_s", 0.5, "pycrdt/op_per_s"), Claim("crdtkv/op_per_s", 1.5, "loro/op_per_s")),
        merge,
    ),
    Row(
        "bytes",
        "bytes per operation (16-byte key, 100-byte value): commits of 1000; of 1, batched on the wire",
        "pycrdt, loro",
        "≤ 125; ≤ 160; ≤ 0.6 × of it compressed, on text-like values",
        (
            Claim("commits of 1000/op_bytes", 125.0, at_most=True),
            Claim("commits of 1/op_bytes", 160.0, at_most=True),
            Claim("commits of 1, text-like/op_bytes", 0.6, "commits of 1/op_bytes", at_most=True),
            Claim("commits of 1000/op_bytes", None, "pycrdt/op_bytes", at_most=True),
            Claim("commits of 1000/op_bytes", None, "loro/op_bytes", at_most=True),
        ),
        wire_bytes,
        rounds=3,
    ),
    Row(
        "memory",
        "memory per key (16/100 B, in-memory store, log on)",
        "loro",
        "≤ 450 B",
        (Claim("crdtkv/key_bytes", 450.0, at_most=True), Claim("crdtkv/key_bytes", None, "loro/key_bytes", at_most=True)),
        memory,
        rounds=5,
    ),
    Row(
        "rocksdb-put",
        "RocksDB put: distinct keys; overwrites beyond the cache; batches of 1000",
        "raw rocksdict put; batch",
        "≥ 0.3 ×; ≥ 0.15 ×; ≥ 0.3 ×",
        (
            Claim("crdtkv/distinct_per_s", 0.3, "rocksdict/distinct_per_s"),
            Claim("crdtkv/overwrite_per_s", 0.15, "rocksdict/overwrite_per_s"),
            Claim("crdtkv/batched_per_s", 0.3, "rocksdict/batched_per_s"),
            Claim("crdtkv sync/distinct_per_s", None, "rocksdict sync/distinct_per_s"),
        ),
        rocksdb_put,
        {
            "rocksdict": Rocksdict.durability,
            "rocksdict sync": RocksdictSync.durability,
            "crdtkv": "process crash (async)",
            "crdtkv sync": "machine crash (sync)",
        },
    ),
    Row(
        "orset",
        "OR-set of 10 M elements: add, remove, contains; delta of one add",
        "an empty set",
        "≤ 1.5 ×; delta < 100 B + element",
        (
            Claim("big set/add_us", 1.5, "empty set/add_us", at_most=True),
            Claim("big set/remove_us", 1.5, "empty set/remove_us", at_most=True),
            Claim("big set/contains_us", 1.5, "empty set/contains_us", at_most=True),
            Claim("big set/delta_bytes", 100.0, at_most=True),
        ),
        orset,
    ),
)
