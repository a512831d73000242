"""Flame graphs of the write, apply and read paths, embedded and at a node, by py-spy; into bench-results/profile/.

A sampling profiler from outside: what it shows has run at full speed. Wide is slow; the bottom frame is the loop of this file.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import crdtkv
from bench import apart
from bench.goals.row import VALUE, Bench, key, scratch

SAMPLES_PER_S: Final = 500
KEYS: Final = 10_000
IMPORTS_S: Final = 0.7
"""They are no part of what is looked at."""
RECORD_LIMIT_S: Final = 60.0
"""How much longer than it samples py-spy may take."""
NODE: Final = "node-write"


def write_memory(until: float) -> None:
    """One put a commit, in memory."""
    with crdtkv.open() as store:
        while time.monotonic() < until:
            for number in range(KEYS):
                store.put(key(number), VALUE)


def write_batched(until: float) -> None:
    """Commits of a thousand, in memory."""
    with crdtkv.open() as store:
        while time.monotonic() < until:
            with store.batch() as batch:
                for number in range(1000):
                    batch.put(key(number), VALUE)


def write_rocksdb(until: float) -> None:
    """One put a commit, on RocksDB, async."""
    with scratch() as directory, crdtkv.open(directory / "store", durability="async") as store:
        while time.monotonic() < until:
            for number in range(KEYS):
                store.put(key(number), VALUE)


def read(until: float) -> None:
    """Gets, in memory."""
    with crdtkv.open() as store:
        for number in range(KEYS):
            store.put(key(number), VALUE)
        while time.monotonic() < until:
            for number in range(KEYS):
                store.get(key(number))


def apply(until: float) -> None:
    """Merges of what another replica wrote, a tenth of it concurrent with writes here."""
    with crdtkv.open(region="us") as a, crdtkv.open(region="eu") as b:
        while time.monotonic() < until:
            known = b.vv()
            for number in range(KEYS):
                a.put(key(number), VALUE)
            for number in range(0, KEYS, 10):
                b.put(key(number), VALUE)
            b.merge(a.delta_since(known))


PATHS: Final[dict[str, Callable[[float], None]]] = {
    "write": write_memory,
    "write-batched": write_batched,
    "write-rocksdb": write_rocksdb,
    "read": read,
    "apply": apply,
}


@contextlib.contextmanager
def _loaded_node() -> Iterator[int]:
    """Two nodes, of which one is written to as fast as it answers; yields the pid of that."""
    from bench.goals.replicated import loaders
    from bench.processes import nodes

    with scratch() as directory, ExitStack() as stack:
        pair = stack.enter_context(nodes(["us", "eu"], directory))
        (worker,) = loaders(Bench(False, directory), stack, "crdtkv", [pair["us"].address])
        worker.ask(prefix="k/", first=0, count=100_000_000, batch=1000, keys=KEYS)
        yield pair["us"].pid


@contextlib.contextmanager
def _stopped(left: list[str]) -> Iterator[None]:
    """Say, after Ctrl-C, what is left to be done."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; the rest: make profile ARGS='{' '.join(f'--only {name}' for name in left)}'", file=sys.stderr)
        raise


def main(out: Path, seconds: float, names: list[str]) -> int:
    """Record each path; returns the exit status."""
    if subprocess.run([*_py_spy(), "--version"], capture_output=True, check=False).returncode:
        print("py-spy is not installed: pip install crdtkv[bench]", file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    wanted = names or [*PATHS, NODE]
    for number, name in enumerate(wanted):
        target = out / f"{name}.svg"
        with _stopped(wanted[number:]), ExitStack() as stack:
            if name == NODE:
                pid = stack.enter_context(_loaded_node())
            else:
                command = apart.bench("profile", "--path", name, str(seconds + IMPORTS_S + 5))
                pid = stack.enter_context(apart.started(command)).pid
                time.sleep(IMPORTS_S)
            options = ["--pid", str(pid), "--duration", str(int(seconds)), "--rate", str(SAMPLES_PER_S), "--output", str(target)]
            try:
                done = apart.run([*_py_spy(), "record", *options], limit_s=seconds + RECORD_LIMIT_S)
            except apart.TooLongError as e:
                done = subprocess.CompletedProcess((), 1, "", str(e))
        if done.returncode:
            failed = True
            print(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
        else:
            print(f"{name}: {target}", flush=True)
    return int(failed)


def _py_spy() -> list[str]:
    return [str(Path(sys.executable).with_name("py-spy"))]


def run_path(name: str, seconds: float) -> None:
    """What the recorded child does."""
    PATHS[name](time.monotonic() + seconds)
