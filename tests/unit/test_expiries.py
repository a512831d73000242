"""The index of expiries: what is due is found, whatever was looked for before."""

from __future__ import annotations

import random

from crdtkv.core.expiries import EXPIRY_SPACE, Expiries, expiry_key
from crdtkv.core.replica import enters_digest
from crdtkv.core.state import DictBase, State


def fold(state: State) -> None:
    state.begin_fold(lambda digest: {})
    state.end_fold()


def test_what_is_due_is_what_a_scan_of_all_finds() -> None:
    rng = random.Random(7)
    for _ in range(50):
        state = State(DictBase(), enters_digest)
        expiries, listed, now = Expiries(state), set[bytes](), 100
        for _ in range(200):
            step = rng.randrange(6)
            if step == 0:
                place = expiry_key(now + rng.randrange(-20, 60), b"slot%d" % rng.randrange(3))
                expiries.add(place)
                listed.add(place)
            elif step == 1 and listed:
                place = rng.choice(sorted(listed))
                expiries.drop(place)
                listed.discard(place)
            elif step == 2:
                fold(state)
            else:
                now += rng.randrange(-5, 12)
                due = sorted(place for place in listed if place < expiry_key(now + 1, b""))
                assert expiries.until(now, 1000) == due
                assert expiries.until(now, 2) == due[:2]
                if due:
                    assert expiries.until(now, 1000, due[0] + b"\x00") == due[1:]


def test_before_the_first_instant_nothing_is_read() -> None:
    base = DictBase()
    state = State(base, enters_digest)
    expiries = Expiries(state)
    place = expiry_key(1000, b"slot")
    expiries.add(place)
    fold(state)
    assert expiries.until(10, 5) == []
    base.scan = None  # type: ignore[assignment,method-assign]  # to be called no more
    assert expiries.until(999, 5) == []
    del base.scan
    assert expiries.until(1000, 5) == [place]
    assert place.startswith(EXPIRY_SPACE)
