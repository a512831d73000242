"""Rows of what keeps data: backups of a store that is written to, and their restore."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from typing import Final

import crdtkv
from bench.goals.row import VALUE, Bench, Figures, Row, Side, key
from bench.judging import Claim
from crdtkv.backup import FolderTarget, create, restore

BATCH: Final = 1000
ALONE, BESIDE, RESTORED = "writes alone", "writes beside a backup", "restore"


def backup(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Full backups to a folder of a RocksDB store whose one thread writes as fast as it can."""
    keys = bench.scaled(400_000, BATCH)
    directory = bench.folder("backup")
    store = stack.enter_context(crdtkv.open(directory / "store", region="us", durability="async"))
    for start in range(0, keys, BATCH):
        with store.batch() as batch:
            for number in range(start, start + BATCH):
                batch.put(key(number), VALUE)
    target = FolderTarget(directory / "backups")
    numbers = count()
    seconds = bench.seconds(3.0)

    def writes(stop: threading.Event, told: dict[str, float]) -> None:
        began, done = time.perf_counter(), 0
        while not stop.is_set():
            store.put(key(done * 7919 % keys), VALUE)
            done += 1
        told["op_per_s"] = done / (time.perf_counter() - began)

    def alone() -> Figures:
        told: dict[str, float] = {}
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        writes(stop, told)
        return told

    def beside() -> Figures:
        told: dict[str, float] = {}
        stop = threading.Event()
        writer = threading.Thread(target=writes, args=(stop, told))
        writer.start()
        began = time.perf_counter()
        made = create(store, target, full=True)
        told["entries_per_s"] = made.records / (time.perf_counter() - began)
        stop.set()
        writer.join()
        return told

    def restored() -> Figures:
        began = time.perf_counter()
        made = restore(target, directory / f"restored{next(numbers)}", region="eu")
        return {"entries_per_s": made.records / (time.perf_counter() - began)}

    return {ALONE: alone, BESIDE: beside, RESTORED: restored}


ROWS: Final = (
    Row(
        "backup",
        "full backup of a RocksDB store whose one thread writes as fast as it can; the writes beside it; restore",
        "the same writes alone",
        "≥ 100 k entries/s; writes ≥ 0.75 ×",
        (
            Claim(f"{BESIDE}/entries_per_s", 100_000.0),
            Claim(f"{BESIDE}/op_per_s", 0.75, f"{ALONE}/op_per_s"),
            Claim(f"{RESTORED}/entries_per_s", None),
        ),
        backup,
        {ALONE: "process crash (async)", BESIDE: "process crash (async)"},
        rounds=5,
    ),
)
