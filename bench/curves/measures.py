"""The curves: for each a function from x to figures. Each point is measured in a process of its own, so that no heap is inherited."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import crdtkv
from bench.goals.replicated import equal_after, load_all, loaders
from bench.goals.row import VALUE, Bench, key, scratch
from bench.processes import nodes

REPEATS: Final = 5
OPERATIONS: Final = 2_000
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """One thing that grows.

    Attributes:
        x: what grows, with its unit.
        points: smallest first.
        measure: x → metric → figure; a metric's name ends in its unit.
    """

    name: str
    title: str
    x: str
    points: tuple[int, ...]
    measure: Callable[[int], Figures]


def per_call_us(call: Callable[[int], object], operations: int = OPERATIONS) -> float:
    """µs a call: the median of `REPEATS` stretches, after one that does not count. `call` gets numbers that do not repeat."""
    taken = []
    for stretch in range(REPEATS + 1):
        first = stretch * operations
        began = time.perf_counter()
        for number in range(first, first + operations):
            call(number)
        taken.append((time.perf_counter() - began) / operations * 1e6)
    return statistics.median(taken[1:])


def set_size(size: int) -> Figures:
    """A set of so many elements, in memory."""
    with crdtkv.open() as store:
        elements = store.set("s")
        for start in range(0, size, 10_000):
            elements.add(*range(start, min(start + 10_000, size)))
        figures = {
            "add_us": per_call_us(lambda n: elements.add(f"fresh/{n:09d}")),
            "contains_us": per_call_us(lambda n: elements.contains(f"fresh/{n:09d}")),
            "remove_us": per_call_us(lambda n: elements.discard(f"fresh/{n:09d}")),
        }
        before = store.vv()
        elements.add("fresh/one-more")
        return {**figures, "delta_bytes": float(len(store.delta_since(before)))}


def _fill(store: crdtkv.Store, count: int) -> None:
    for number in range(count):
        store.put(key(number), VALUE)


def _put_and_get(store: crdtkv.Store, count: int) -> dict[str, float]:
    def spread(number: int) -> str:
        return key(number * 2654435761 % count)

    return {
        "put_us": per_call_us(lambda n: store.put(spread(n), VALUE)),
        "get_us": per_call_us(lambda n: store.get(spread(n))),
    }


def keys_in_memory(count: int) -> Figures:
    """So many keys, in memory: overwrites and reads all over them."""
    with crdtkv.open() as store:
        _fill(store, count)
        return _put_and_get(store, count)


def keys_on_disk(count: int) -> Figures:
    """The same on RocksDB, `async`."""
    with scratch() as directory, crdtkv.open(directory / "store", durability="async") as store:
        _fill(store, count)
        return _put_and_get(store, count)


def history(commits: int) -> Figures:
    """So many commits that overwrote the same thousand keys, on disk; then a put, and opening it again."""
    with scratch() as directory:
        path: Path = directory / "store"
        with crdtkv.open(path, durability="async") as store:
            for number in range(commits):
                store.put(key(number % 1000), VALUE)
            figures = {
                "put_us": per_call_us(lambda n: store.put(key(n % 1000), VALUE)),
                "get_us": per_call_us(lambda n: store.get(key(n % 1000))),
            }
        began = time.perf_counter()
        with crdtkv.open(path, durability="async"):
            return {**figures, "open_ms": (time.perf_counter() - began) * 1e3}


def regions(count: int) -> Figures:
    """So many nodes on this machine; one of them is written to, until all are equal."""
    writes = 20_000
    with scratch() as directory, ExitStack() as stack:
        started = stack.enter_context(nodes([f"r{number}" for number in range(count)], directory))
        addresses = [node.address for node in started.values()]
        bench = Bench(False, directory)
        workers = loaders(bench, stack, "crdtkv", addresses[:1])
        taken, cpu = [], []
        for _ in range(4):
            before, began = started["r0"].cpu_s(), time.monotonic()
            load_all(workers, ("k/",), writes, keys=20_000)
            elapsed = asyncio.run(equal_after(addresses, began)) if count > 1 else time.monotonic() - began
            taken.append(elapsed / writes * 1e6)
            cpu.append((started["r0"].cpu_s() - before) / writes * 1e6)
        return {"applied_everywhere_us": statistics.median(taken[1:]), "origin_cpu_us": statistics.median(cpu[1:])}


def batch_size(size: int) -> Figures:
    """Commits of so many puts, in memory: per put."""
    total = max(size, 20_000)
    names = [key(number) for number in range(10_000)]
    with crdtkv.open() as store:
        taken = []
        before = store.vv()
        for _ in range(REPEATS + 1):
            before = store.vv()
            began = time.perf_counter()
            for start in range(0, total, size):
                with store.batch() as batch:
                    for number in range(start, start + size):
                        batch.put(names[number % 10_000], VALUE)
            taken.append((time.perf_counter() - began) / (-(-total // size) * size) * 1e6)
        written = -(-total // size) * size if size <= 10_000 else 10_000
        return {"put_us": statistics.median(taken[1:]), "wire_bytes": len(store.delta_since(before)) / written}


def value_size(size: int) -> Figures:
    """Values of so many bytes, in memory."""
    content: Any = b"x" * size
    operations = max(20, min(OPERATIONS, (16 << 20) // size))
    with crdtkv.open() as store:
        return {
            "put_us": per_call_us(lambda n: store.put(key(n % 100), content), operations),
            "get_us": per_call_us(lambda n: store.get(key(n % 100)), operations),
        }


def backlog(commits: int) -> Figures:
    """A replica that lacks so many commits: per commit, what encoding them and applying them takes."""
    with crdtkv.open(region="us") as ahead, crdtkv.open(region="eu") as behind:
        known = ahead.vv()
        for number in range(commits):
            ahead.put(key(number % 100_000), VALUE)
        began = time.perf_counter()
        delta = ahead.delta_since(known)
        encoded = time.perf_counter()
        behind.merge(delta)
        merged = time.perf_counter()
        assert behind.digest() == ahead.digest()
        return {"encode_us": (encoded - began) / commits * 1e6, "apply_us": (merged - encoded) / commits * 1e6}


def _decades(first: int, last: int) -> tuple[int, ...]:
    out = [first]
    while out[-1] * 10 <= last:
        out.append(out[-1] * 10)
    return tuple(out)


CURVES: Final = {
    curve.name: curve
    for curve in (
        Curve("set-size", "An OR-set's size", "elements in the set", _decades(1, 10_000_000), set_size),
        Curve("keys", "Keys in memory", "keys", _decades(1000, 10_000_000), keys_in_memory),
        Curve("keys-rocksdb", "Keys on RocksDB, async", "keys", _decades(1000, 1_000_000), keys_on_disk),
        Curve("history", "History: commits before", "commits", _decades(1000, 1_000_000), history),
        Curve("regions", "Regions on this machine", "regions", (1, 2, 3, 4, 5, 6, 7), regions),
        Curve("batch-size", "Puts in a commit", "puts", _decades(1, 10_000), batch_size),
        Curve("value-size", "Bytes of a value", "bytes", (10, 100, 1000, 10_000, 100_000, 1_000_000), value_size),
        Curve("backlog", "Backlog of a replica", "commits", _decades(1000, 1_000_000), backlog),
    )
}
