"""Rows of durability and recovery: what an fsync costs through the store, how fast it opens, and what a large one takes.

The bare sides are the store's own log without a store (`FileLog`, whose callers share fsyncs as the store's do), and a file.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Final

import crdtkv
from bench.goals.row import VALUE, Bench, Figures, Row, Side, key, scattered
from bench.judging import Claim
from crdtkv.core.causality import EMPTY_VV, make_origin
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import NO_HASH, DeltaKind, Frame
from crdtkv.storage.log import FileLog
from crdtkv.store import Settings

OURS: Final = "crdtkv"
THREADS: Final = 64
US: Final = make_origin("us", 1, 1)


def _frames() -> Iterator[Frame]:
    """One put each, encoded as the store would."""
    hash_ = NO_HASH
    for seq in count(1):
        delta = [DeltaKind.REGISTER_PUT, key(seq), encode_value(VALUE)]
        frame = Frame.build("bench", 0, US, seq, seq << 16, EMPTY_VV, hash_, [[0, None, delta]])
        hash_ = frame.hash
        yield frame


def _together(work: Callable[[int], object], each: int) -> Figures:
    """64 threads, each doing `work` so often."""
    ready = threading.Barrier(THREADS + 1)

    def run(number: int) -> None:
        ready.wait()
        for at in range(each):
            work(number * each + at)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return {"op_per_s": THREADS * each / (time.perf_counter() - began)}


def group_commit(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """64 threads put a record each and wait until it is fsynced; beside, they append a ready frame to the log and wait."""
    each = bench.scaled(100, 20)
    log = FileLog(bench.folder("log") / "log")
    stack.callback(log.close)
    lock, frames = threading.Lock(), _frames()

    def append(_: int) -> None:
        with lock:
            position = log.append([next(frames)])
        while log.synced() < position:
            log.sync()

    store = stack.enter_context(crdtkv.open(bench.directory / "store", durability="sync"))
    numbers = count()
    return {
        "group commit alone": lambda: _together(append, each),
        OURS: lambda: _together(lambda _: store.put(scattered(next(numbers)), VALUE), each),
    }


def one_writer(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """One thread; beside, one that appends as many bytes to a file and waits for `fdatasync`."""
    amount = bench.scaled(1_000, 100)
    block = b"x" * next(_frames()).size
    descriptor = os.open(bench.directory / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    stack.callback(os.close, descriptor)
    store = stack.enter_context(crdtkv.open(bench.directory / "store", durability="sync"))
    numbers = count()

    def append() -> None:
        os.write(descriptor, block)
        os.fdatasync(descriptor)

    def timed(work: Callable[[], object]) -> Figures:
        taken = []
        for _ in range(amount):
            began = time.perf_counter()
            work()
            taken.append((time.perf_counter() - began) * 1e6)
        return {"p50_us": statistics.median(taken)}

    return {
        "append + fdatasync": lambda: timed(append),
        OURS: lambda: timed(lambda: store.put(scattered(next(numbers)), VALUE)),
    }


def recovery(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Opening a directory whose state engine is gone: the whole log is replayed into RocksDB."""
    amount = bench.scaled(200_000, 1_000)

    def made(name: str, batch: int) -> Path:
        path = bench.directory / name
        with crdtkv.open(path, durability="async") as store:
            for start in range(0, amount, batch):
                if batch == 1:
                    store.put(scattered(start), VALUE)
                else:
                    store.execute([[n, "put", [scattered(start + n), encode_value(VALUE)], None] for n in range(batch)])
        return path

    def replay(path: Path) -> Figures:
        shutil.rmtree(path / "state")
        began = time.perf_counter()
        store = crdtkv.open(path, durability="async")
        taken = time.perf_counter() - began
        assert store._machine.replayed and store.vv().seq(store.origin) == amount
        store.close()
        return {"op_per_s": amount / taken}

    single, grouped = made("single", 1), made("grouped", 100)
    return {"frames of 100 commits": lambda: replay(grouped), "frames of one commit": lambda: replay(single)}


_LARGE: Final = """
import json, resource, sys, time
import crdtkv
from bench.goals.row import scattered
path, amount = sys.argv[1], int(sys.argv[2])
began = time.perf_counter()
store = crdtkv.open(path, durability="async")
opened_s = time.perf_counter() - began
reads = range(0, amount, max(1, amount // 100_000))
for number in reads:
    assert store.get(scattered(number)) is not None
with open("/proc/self/statm") as f:
    resident = int(f.read().split()[1]) * resource.getpagesize()
store.close()
print(json.dumps({"open_s": opened_s, "resident_mb": resident / 1e6}))
"""


def large(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Five million keys in RocksDB: a clean open, memory after 100 k reads in a process of its own, disk once the log is truncated."""
    amount = bench.scaled(5_000_000, 10_000)
    path, value = bench.directory / "store", encode_value(VALUE)
    with crdtkv.open(path, durability="async") as store:
        for start in range(0, amount, 1_000):
            store.execute([[number, "put", [scattered(start + number), value], None] for number in range(1_000)])
        writing_mb = _resident_mb()
    settings = Settings(log_keep_bytes=64 << 20, log_bytes_max=64 << 20)
    with crdtkv.open(path, durability="async", settings=settings) as store:
        while store.status().log_bytes > settings.log_keep_bytes:
            time.sleep(0.1)
    disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def measure() -> Figures:
        done = subprocess.run([sys.executable, "-c", _LARGE, str(path), str(amount)], capture_output=True, text=True, check=True)
        raw = amount * (len(key(0)) + len(VALUE))
        return {**json.loads(done.stdout), "disk_share": disk / raw, "writing_mb": writing_mb}

    return {OURS: measure}


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


_DURABLE: Final = {OURS: "machine crash (sync)"}
ROWS: Final = (
    Row(
        "sync-64",
        "sync put, 64 threads",
        "the same group commit without a store",
        "≥ 0.6 ×",
        (Claim("crdtkv/op_per_s", 0.6, "group commit alone/op_per_s"),),
        group_commit,
        _DURABLE,
    ),
    Row(
        "sync-1",
        "sync put, one thread: median latency",
        "one append + fdatasync",
        "≤ 1.5 ×",
        (Claim("crdtkv/p50_us", 1.5, "append + fdatasync/p50_us", at_most=True),),
        one_writer,
        _DURABLE,
    ),
    Row(
        "recovery",
        "recovery: the log replayed into RocksDB, commits a second",
        "a bound",
        "≥ 100 k/s",
        (Claim("frames of 100 commits/op_per_s", 100_000.0), Claim("frames of one commit/op_per_s", None)),
        recovery,
        rounds=3,
    ),
    Row(
        "large",
        "5 M keys of 16/100 B in RocksDB: clean open; memory; disk ÷ raw once the log is truncated",
        "bounds",
        "< 2 s; < 1,074 MB; ≤ 2.5 ×",
        (
            Claim("crdtkv/open_s", 2.0, at_most=True),
            Claim("crdtkv/resident_mb", 1074.0, at_most=True),
            Claim("crdtkv/writing_mb", 1074.0, at_most=True),
            Claim("crdtkv/disk_share", 2.5, at_most=True),
        ),
        large,
        rounds=3,
        warm_up=False,
    ),
)
