"""A client process of `test_histories_of_processes.py`: it works in one region and says on stdout what it saw, a line each.

Lines in: the prefix of an episode's keys starts work on them, an empty line ends it. Lines out, as JSON:

    [session, "tx", [[key, value, is_write], …]]   a batch that was answered or may have taken effect, or a snapshot read
    [session, "count", amount, answered]           an increment of PREFIX/count
    [session, "log", key, answered]                a key that nobody else writes
    ["", "end"]                                    it rests

What was refused for certain is not part of the history: if it shows all the same, somebody reads a value that nobody wrote. What may have
taken effect ends the session: it is its last transaction, and a new session goes on.
"""

from __future__ import annotations

import json
import select
import sys
import time
from random import Random
from typing import Any

import crdtkv
from crdtkv import CrdtkvError

KEYS = 5
PACE_S = 0.012


def say(*event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Worker:
    def __init__(self, client: crdtkv.Client, name: str) -> None:
        self.client, self.name = client, name
        self.dice = Random(name)
        self.number = self.sessions = 0

    @property
    def session(self) -> str:
        return f"{self.name}.{self.sessions}"

    def step(self, prefix: str) -> None:
        self.number += 1
        kind = self.dice.random()
        if kind < 0.4:
            chosen = self.dice.sample(range(KEYS), self.dice.choice((1, 2, 3)))
            self.batch({f"{prefix}/k{k}": f"{self.name}.{self.number}" for k in chosen})
        elif kind < 0.8:
            self.read(prefix)
        elif kind < 0.9:
            answered = self.attempt(lambda: self.client.counter(f"{prefix}/count").increment())
            if answered is not None:
                say(self.session, "count", 1, answered)
        else:
            key = f"{prefix}/log/{self.name}.{self.number}"
            answered = self.attempt(lambda: self.client.put(key, self.number))
            if answered is not None:
                say(self.session, "log", key, answered)

    def batch(self, values: dict[str, str]) -> None:
        def write() -> None:
            with self.client.batch() as batch:
                for key, value in values.items():
                    batch.put(key, value)

        session = self.session
        if self.attempt(write) is not None:
            say(session, "tx", [[key, value, True] for key, value in values.items()])

    def read(self, prefix: str) -> None:
        found: dict[str, Any] = {}

        def scan() -> None:
            found.update(self.client.scan(f"{prefix}/k"))

        if self.attempt(scan):
            say(self.session, "tx", [[f"{prefix}/k{k}", found.get(f"{prefix}/k{k}"), False] for k in range(KEYS)])

    def attempt(self, call: Any) -> bool | None:
        """True: answered. False: it may have taken effect, and this session is over. None: it did not."""
        try:
            call()
        except CrdtkvError as e:
            time.sleep(0.05)
            if not e.maybe_applied:
                return None
            self.sessions += 1
            return False
        return True


def main(name: str, address: str) -> None:
    prefix = ""
    with crdtkv.connect(address, timeout=1.5) as client:
        worker = Worker(client, name)
        while True:
            if not prefix or select.select([sys.stdin], [], [], PACE_S * 2 * worker.dice.random())[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                prefix = line.strip()
                if not prefix:
                    say("", "end")
                    continue
            worker.step(prefix)


if __name__ == "__main__":
    main(*sys.argv[1:])
