"""A client process of the walk: it writes until its stdin ends, and notes every outcome in a file, a JSON line each.

    [time, "put", key, value, answered]      a key that nobody else writes, once
    [time, "del", key, answered]             one of those, some seconds later
    [time, "shared", key, value, answered, origin, seq, hlc, token]
    [time, "step", began]                    writes were under way from then until now
    [time, "refused", error]                 nothing was done, and the region said so
    [time, "lost", error]                    the answer did not come: unknown outcomes before it are of now

`answered` false: it may have been done. What was refused is not noted singly: if it shows all the same, it was a stranger's.

    python -m tests.acceptance.client NAME FILE own|shared HOST:PORT[,HOST:PORT…]
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import crdtkv
from crdtkv import CrdtkvError

BURST = 12
PACE_S = 0.1
SHARED_KEYS = 6
ROUND_S = 5
"""Shared keys are others every few seconds, so that an unknown outcome leaves the later ones alone."""
DELETE_AFTER = 1_000
"""Puts between a key's put and its delete: some ten seconds."""


class Client:
    def __init__(self, name: str, file: Path, kind: str, endpoints: list[str]) -> None:
        self.name, self.kind = name, kind
        self.out = file.open("a", buffering=1 << 16)
        self.client = crdtkv.connect(endpoints, timeout=3.0)
        self.dice = Random(name)
        self.number = 0
        self.put: list[str] = []

    def note(self, *event: Any) -> None:
        self.out.write(json.dumps([time.time(), *event]) + "\n")

    def failed(self, error: CrdtkvError) -> None:
        self.note("lost" if error.maybe_applied else "refused", f"{type(error).__name__}: {error}")
        self.out.flush()
        time.sleep(0.05)

    def own(self) -> None:
        """A burst of puts of keys of its own, and a few deletes of earlier ones, all in flight at once."""
        pairs, deletes = [], []
        for _ in range(BURST):
            self.number += 1
            pairs.append((f"own/{self.name}/{self.number:07}", f"{self.number}:{self.dice.randbytes(200).hex()}"))
        if len(self.put) > DELETE_AFTER:
            deletes, self.put = self.put[: BURST // 4], self.put[BURST // 2 :]  # every other quarter is kept for good
        with self.client.pipeline() as pipeline:
            put = [pipeline.put(key, value) for key, value in pairs]
            gone = [pipeline.delete(key) for key in deletes]
        worst: CrdtkvError | None = None
        for (key, value), result in zip(pairs, put, strict=True):
            error = outcome(result)
            worst = worse(worst, error)
            if error is None or error.maybe_applied:
                self.note("put", key, value, error is None)
            if error is None:
                self.put.append(key)
        for key, result in zip(deletes, gone, strict=True):
            error = outcome(result)
            worst = worse(worst, error)
            if (error is None and result.value is not None) or (error is not None and error.maybe_applied):
                self.note("del", key, error is None)  # None: nothing was there (yet, in a region that catches up), so nothing was deleted
        if worst is not None:
            self.failed(worst)

    def shared(self) -> None:
        """One write of a register that all write."""
        self.number += 1
        key, value = f"shared/{int(time.time()) // ROUND_S}/{self.dice.randrange(SHARED_KEYS)}", f"{self.name}.{self.number}"
        try:
            done = self.client.put(key, value)
        except CrdtkvError as e:
            if e.maybe_applied:
                self.note("shared", key, value, False, "", 0, 0, "")
            self.failed(e)
        else:
            self.note("shared", key, value, True, done.origin, done.seq, done.hlc, done.token)

    def run(self) -> None:
        step, pace = (self.own, PACE_S) if self.kind == "own" else (self.shared, PACE_S / 5)
        due = time.monotonic()
        while True:
            due = max(due + pace, time.monotonic() - 1.0)
            if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0] and not sys.stdin.readline():
                break
            began = time.time()
            step()
            self.note("step", began)
            self.out.flush()
        self.out.close()
        self.client.close()


def outcome(result: Any) -> CrdtkvError | None:
    """The error of a call of a pipeline, if it has one."""
    error = result.error
    assert error is None or isinstance(error, CrdtkvError)
    return error


def worse(one: CrdtkvError | None, other: CrdtkvError | None) -> CrdtkvError | None:
    """The one that says less."""
    return other if one is None or (other is not None and other.maybe_applied and not one.maybe_applied) else one


if __name__ == "__main__":
    Client(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")).run()
