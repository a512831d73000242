"""SIGKILL at every step on the way to the disk: what was acknowledged is there, and the state is exactly what was written.

Lives follow one another in one directory. After each kill the next life says what it found, and that must be, for each writer,
what the model says of its first m operations, with every acknowledged one among them and none that was not begun; under the same
incarnation; with the digest that the entries amount to, and, while the whole log is there, that of its replay. A step that was not
hit often enough fails the run: a kill that never happened proves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

import pytest

from tests.fault.killing import RECOVERY_CUT, STEPS, TORN, Model, Order, encode

OPERATIONS = 400
"""A life writes so many per writer if its step does not come."""
OFTEN = ("write", "fsync", "append")
"""Steps of nearly every operation: the call to die at is drawn from more of them than for the others."""
ROOT = Path(__file__).parents[2]


class Lives:
    """One directory, its model, and the process whose forks live and die in it."""

    def __init__(self, path: Path, engine: str, durability: str, writers: int) -> None:
        self.path, self.engine, self.durability, self.writers = path / "data", engine, durability, writers
        self.dice = Random(f"{engine} {durability} {writers}")
        self.models = [Model(w) for w in range(writers)]
        self.acknowledged = [-1] * writers
        self.begun = [-1] * writers
        self.seq = 0
        self.merging: set[str] = set()
        self.merged: set[str] = set()
        self.origin: str | None = None
        self.hits: Counter[str] = Counter()
        self.kills = self.in_flight = self.truncated = 0
        self._errors = path / "stderr"
        self._parent: subprocess.Popen[str]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.fault.killing"]
        with self._errors.open("w") as errors:
            self._parent = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._parent.kill()
        self._parent.__exit__(kind, error, trace)

    def live(self, step: str | None, at: int = 1, *, operations: int = OPERATIONS, after: int | None = None, early: bool = False) -> bool:
        """One life, up to a step's k-th call, or to a kill from outside `after` so many acknowledgements; whether it was reached."""
        order = Order(str(self.path), self.engine, self.durability, step, at, self.writers, operations, early)
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(encode(order))
        pid, hit, reports = 0, False, 0
        done = list(self.acknowledged)
        for line in self._parent.stdout:
            match line.split():
                case ["pid", number]:
                    pid = int(number)
                case ["begin", w, n]:
                    self.begun[int(w)] = int(n)
                case ["done", w, n, seq]:
                    done[int(w)] = int(n)
                    self.seq = max(self.seq, int(seq))
                    reports += 1
                    if reports == after:
                        os.kill(pid, signal.SIGKILL)
                case ["merging", tag]:
                    self.merging.add(tag)
                case ["merged", tag]:
                    self.merged.add(tag)
                case ["at", *_]:
                    hit = True
                case ["end", code]:
                    break
                case ["unreached"] | ["closed"]:
                    pass
                case _:
                    self._judge(json.loads(line))
        else:
            raise AssertionError(f"the process that forks died: {self._errors.read_text()[-3000:]}")
        assert int(code) in (0, -signal.SIGKILL), self._errors.read_text()[-3000:]
        if int(code) == -signal.SIGKILL:
            self.kills += 1
            halfway = any(tag.startswith(f"x/{pid}.") for tag in self.merging - self.merged)
            self.in_flight += halfway or any(b > a for a, b in zip(done, self.begun, strict=True))
            if after is not None:
                hit = True
        self.acknowledged = done
        if step is not None and hit:
            self.hits[step] += 1
        return hit

    def _judge(self, found: dict[str, object]) -> None:
        """What a life finds is what the ones before it were told that they had written."""
        self.origin = self.origin or str(found["origin"])
        assert found["origin"] == self.origin, f"a killed process has cost an incarnation: {found['reason']}"
        assert isinstance(found["seq"], int) and found["seq"] >= self.seq, f"{self.seq} was acknowledged, {found['seq']} is there"
        assert found["digest"] == found["computed"]
        assert found["replayed"] in (None, found["digest"])
        self.truncated += bool(found["start"])
        merged = found["merged"]
        assert isinstance(merged, dict)
        assert self.merged <= merged.keys() <= self.merging and set(merged.values()) <= {20}, "a snapshot is lost, or a part of it is there"
        states = found["state"]
        assert isinstance(states, dict)
        for w, model in enumerate(self.models):
            state = states[str(w)]
            last = state.get(f"{w}/n", -1)
            assert self.acknowledged[w] <= last <= self.begun[w], (
                f"writer {w}: {self.acknowledged[w]} was acknowledged, {self.begun[w]} begun, {last} is the last one there"
            )
            wanted = model.advance(last)
            assert state == wanted, {
                k: (state.get(k), wanted.get(k)) for k in state.keys() | wanted.keys() if state.get(k) != wanted.get(k)
            }


def run(lives: Lives, each: int) -> None:
    """Die `each` times at every step, and once for each step at a random moment."""
    for _ in range(each):
        for step in lives.dice.sample(STEPS, len(STEPS)):
            deep = 60 if step.startswith(OFTEN) else 4
            for attempt in range(10):
                if step.startswith(RECOVERY_CUT) and not lives.live(TORN, lives.dice.randrange(1, 20)):
                    continue  # there is a tail to cut only after a torn write
                if lives.live(step, lives.dice.randrange(1, deep + 1) if attempt < 5 and not step.startswith(RECOVERY_CUT) else 1):
                    break
        lives.live("at random", operations=10**6, after=lives.dice.randrange(1, 200))
    lives.live(None, operations=3)
    lives.live(None, operations=0)
    short = {step: lives.hits[step] for step in STEPS if lives.hits[step] < each}
    assert not short, f"steps that were hit less than {each} times: {short}"
    assert lives.in_flight >= 0.3 * lives.kills, f"of {lives.kills} kills only {lives.in_flight} came while a write was in flight"
    assert lives.truncated, "the log was never truncated"
    print(f"{lives.kills} kills, {lives.in_flight} with a write in flight; {dict(sorted(lives.hits.items()))}")


@pytest.mark.parametrize(("engine", "durability", "writers"), [("rocksdb", "sync", 3), ("lmdb", "async", 1)])
def test_killed_once_at_every_step(tmp_path: Path, engine: str, durability: str, writers: int) -> None:
    with Lives(tmp_path, engine, durability, writers) as lives:
        run(lives, 1)
        assert lives.kills >= len(STEPS)


@pytest.mark.soak
@pytest.mark.parametrize("writers", [1, 4])
@pytest.mark.parametrize("durability", ["sync", "async"])
@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_killed_ten_times_at_every_step(tmp_path: Path, engine: str, durability: str, writers: int) -> None:
    with Lives(tmp_path, engine, durability, writers) as lives:
        run(lives, 10)
        assert lives.kills >= 250


def test_an_acknowledgement_before_the_write_is_noticed(tmp_path: Path) -> None:
    """The judge can fail: here a child says that it has written what it is about to write."""
    with Lives(tmp_path, "rocksdb", "sync", 1) as lives, pytest.raises(AssertionError, match="was acknowledged"):
        for _ in range(5):
            lives.live("append before", 10, early=True)
