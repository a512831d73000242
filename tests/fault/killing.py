"""What `test_kill_steps.py` runs and kills: a child that writes, says so on a pipe, and dies of SIGKILL at a named step.

A *step* is a call on the way to the disk, with a side: `fsync before` is the instant at which everything is written and
nothing synced. The child counts its calls and kills itself at the k-th. Steps are found from outside, by wrapping the methods of
the `FileLayer` under the log and of the log, engine, machine and instance record above it: the product has no hook for this.

Starting an interpreter costs a hundred times as much as one life, so the lives are forks of one process that has everything
imported and nothing opened.

Every operation is one commit. What operation `n` of writer `w` does is drawn from `(w, n)`, and it puts `n` in `w/n`: so from a
store alone one knows how many of each writer's operations it has, and the model says what the rest of it must look like.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import crdtkv
import crdtkv.storage.lmdb
import crdtkv.storage.log
import crdtkv.storage.rocksdb
import crdtkv.store.identity
import crdtkv.store.machine
import crdtkv.store.store
from crdtkv import Settings
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import encode_value
from crdtkv.core.join import snapshot_of
from crdtkv.storage.engine import MemoryEngine
from crdtkv.storage.files import OsFile, OsFiles
from crdtkv.store.machine import Machine

SETTINGS = Settings(
    fold_records_max=24, clear_at_once_max=4, purge_slots=2, async_sync_ms=4,
    log_segment_bytes=3_000, log_keep_bytes=12_000, log_bytes_max=1 << 20,
)  # fmt: skip
"""Small, so that a short life rolls segments, folds, clears in slices and drops what it need not keep."""

CALLS: dict[str, tuple[tuple[type, str], ...]] = {
    "write": ((OsFile, "write"),),
    "room": ((OsFile, "reserve"),),
    "room given back": ((crdtkv.storage.log.FileLog, "_give_room_back"),),
    "fsync": ((OsFile, "sync"),),
    "create": ((OsFiles, "create"),),
    "rename": ((OsFiles, "rename"),),
    "remove": ((OsFiles, "remove"),),
    "directory fsync": ((OsFiles, "sync_directory"),),
    "append": ((crdtkv.storage.log.FileLog, "append"),),
    "segment roll": ((crdtkv.storage.log.FileLog, "_roll"),),
    "truncation": ((crdtkv.storage.log.FileLog, "truncate"),),
    "fold": ((Machine, "fold"),),
    "engine write": ((crdtkv.storage.rocksdb.RocksDbEngine, "write"), (crdtkv.storage.lmdb.LmdbEngine, "write")),
    "engine flush": ((crdtkv.storage.rocksdb.RocksDbEngine, "flush"), (crdtkv.storage.lmdb.LmdbEngine, "flush")),
    "instance record": ((crdtkv.store.identity.Instance, "_renew"),),
}
"""What the named calls are, wherever they are made from."""
INSTALLS: dict[str, tuple[tuple[type, str], ...]] = {
    "install": ((Machine, "installed"),),
    "floor record": ((crdtkv.storage.log.FileLog, "reset_floor"),),
}
"""Calls that are made only when a snapshot comes: a life that is to die there merges some."""
TORN = "write torn"
RECOVERY_CUT = "torn tail cut"
STEPS = (
    *(f"{name} {side}" for name in CALLS | INSTALLS for side in ("before", "after")),
    TORN,
    *(f"{RECOVERY_CUT} {side}" for side in ("before", "after")),
)
"""Every step at which a process may be killed."""


@dataclass(frozen=True, slots=True)
class Order:
    """One life: where, at which step to die (None: after `operations`, closing properly), and who writes."""

    path: str
    engine: str
    durability: str
    step: str | None
    at: int
    writers: int
    operations: int
    early: bool = False
    """Wrong on purpose: what is not written yet is reported as done."""


# -- the model --------------------------------------------------------------------------------------------------------


class Model:
    """What one writer's operations amount to. Advances, never goes back."""

    def __init__(self, writer: int) -> None:
        self.writer = writer
        self.last = -1
        self.state: dict[str, Any] = {}

    def advance(self, last: int) -> dict[str, Any]:
        """The writer's keys and values after operation `last`."""
        while self.last < last:
            self.last += 1
            for call in calls(self.writer, self.last):
                self._do(*call)
        return {
            key: sorted(value, key=encode_value) if isinstance(value, set) else value for key, value in self.state.items() if value != set()
        }

    def _do(self, name: str, key: str, *args: Any) -> None:
        state = self.state
        match name:
            case "put":
                state[key] = args[0]
            case "add":
                state.setdefault(key, set()).update(args)
            case "discard":
                state.get(key, set()).difference_update(args)
            case "increment":
                state[key] = state.get(key, 0) + args[0]
            case _:
                state.pop(key, None)


def calls(writer: int, n: int) -> list[tuple[Any, ...]]:
    """What operation `n` of a writer does: one to three calls, and its mark."""
    dice = Random(f"{writer} {n}")
    found: list[tuple[Any, ...]] = [("put", f"{writer}/n", n)]
    for _ in range(dice.choice((1, 1, 3))):
        kind = dice.random()
        if kind < 0.4:
            found.append(("put", f"{writer}/r{dice.randrange(9)}", f"{n}" + "x" * dice.randrange(80)))
        elif kind < 0.65:
            found.append(("add", f"{writer}/s", *(f"e{dice.randrange(40)}" for _ in range(dice.choice((1, 5))))))
        elif kind < 0.75:
            found.append(("discard", f"{writer}/s", f"e{dice.randrange(40)}"))
        elif kind < 0.9:
            found.append(("increment", f"{writer}/c", dice.randrange(1, 5)))
        else:
            found.append(("delete", f"{writer}/{dice.choice(('s', 'c', 'r1', 'r2'))}"))
    return found


def perform(store: crdtkv.Store, writer: int, n: int) -> int:
    """Do one operation in one commit; its seq."""
    with store.batch() as batch:
        for name, key, *args in calls(writer, n):
            match name:
                case "put":
                    batch.put(key, args[0])
                case "add":
                    batch.set(key).add(*args)
                case "discard":
                    batch.set(key).discard(*args)
                case "increment":
                    batch.counter(key).increment(args[0])
                case _:
                    batch.delete(key)
    assert batch.commit is not None
    return batch.commit.seq


# -- dying ------------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """One line to whoever runs this. Unbuffered: what was said before the kill arrives."""
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


class Death:
    """Counts the calls of one step and kills this process at the k-th."""

    def __init__(self, step: str, at: int) -> None:
        self.step, self.left = step, at
        self.lock = threading.Lock()

    def reach(self, step: str) -> None:
        if step == self.step and self._is_last():
            self.die()

    def _is_last(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left == 0

    def die(self) -> None:
        say(f"at {self.step}")
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(self, file: OsFile, data: bytes, write: Callable[[OsFile, bytes], int]) -> int:
        """The write of which only a part arrives."""
        if self.step == TORN and self._is_last():
            write(file, data[: len(data) // 2])
            self.die()
        return write(file, data)


def plant(death: Death) -> None:
    """Wrap everything that is a step."""
    for name, methods in (CALLS | INSTALLS).items():
        for owner, method in methods:
            setattr(owner, method, _wrapped(getattr(owner, method), name, death))
    write = OsFile.write
    OsFile.write = lambda self, data: death.write_half(self, data, write)  # type: ignore[method-assign]
    OsFile.truncate = _wrapped(OsFile.truncate, RECOVERY_CUT, death)  # type: ignore[method-assign]


def _wrapped(method: Callable[..., Any], name: str, death: Death) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        death.reach(f"{name} before")
        result = method(*args, **kwargs)
        death.reach(f"{name} after")
        return result

    return call


# -- one life ---------------------------------------------------------------------------------------------------------


def live(order: Order) -> None:
    """Open, say what is there, write until the end."""
    if order.step is not None:
        plant(Death(order.step, order.at))
    crdtkv.store.upkeep.RETENTION_MS = 5  # type: ignore[misc]
    path = Path(order.path)
    with crdtkv.open(path, region="us", engine=order.engine, durability=order.durability, settings=SETTINGS) as store:
        say(json.dumps(found(store, order.writers)))
        if order.step is not None and order.step.startswith(tuple(INSTALLS)):
            install(store)
        threads = [threading.Thread(target=write, args=(store, order, w)) for w in range(order.writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if order.step is not None:
            say("unreached")  # and now to the next life: without closing, as a kill would
            os.kill(os.getpid(), signal.SIGKILL)
    say("closed")


def found(store: crdtkv.Store, writers: int) -> dict[str, Any]:
    """Everything that a parent can judge an opened store by."""
    digest = store.digest()
    machine = store._machine
    replayed = None
    if machine.log.start() == 0 and not machine.log.floor():
        clock = HybridClock(lambda: 0)
        twin = Machine(machine.log, MemoryEngine(), origin=store.origin, cluster=store.cluster, clock=clock, settings=SETTINGS)
        while twin.purge_slice(1000):
            pass
        told = twin.digest()
        replayed = told and told[1]
    return {
        "origin": store.origin,
        "reason": store.incarnation_reason,
        "seq": store.vv().seq(store.origin),
        "digest": digest,
        "computed": f"{snapshot_of(machine.replica).digest():032x}",
        "replayed": replayed,
        "start": machine.log.start(),
        "merged": Counter(key.rpartition("/")[0] for key, _ in store.scan("x/")),
        "state": {w: dict(store.scan(f"{w}/")) for w in range(writers)},
    }


def install(store: crdtkv.Store) -> None:
    """Merge snapshots of replicas that nobody has heard of, until the end."""
    for n in range(8):
        with crdtkv.open(region="eu", settings=replace(SETTINGS, memory_log_bytes=1, gather_commits_max=1)) as other:
            tag = f"x/{os.getpid()}.{n}"
            for i in range(20):
                other.put(f"{tag}/{i}", i)
            snapshot = other.delta_since()
        say(f"merging {tag}")
        store.merge(snapshot)
        say(f"merged {tag}")


def write(store: crdtkv.Store, order: Order, writer: int) -> None:
    first = store.get(f"{writer}/n", -1) + 1
    for n in range(first, first + order.operations):
        say(f"begin {writer} {n}")
        if order.early:
            say(f"done {writer} {n} 0")
        seq = perform(store, writer, n)
        if not order.early:
            say(f"done {writer} {n} {seq}")


def main() -> None:
    """Orders on stdin, one a line; each is lived in a fork, and its end told."""
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            try:
                say(f"pid {os.getpid()}")
                live(order)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)
        _, status = os.waitpid(pid, 0)
        say(f"end {os.waitstatus_to_exitcode(status)}")


def encode(order: Order) -> str:
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    main()
