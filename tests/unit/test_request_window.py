"""The window of request ids: requests that one frame brought together are remembered and forgotten like single ones."""

from __future__ import annotations

import random

import pytest

from crdtkv.core.causality import Origin
from crdtkv.core.requests import RequestWindow
from crdtkv.core.state import DictBase, State

US, EU = Origin("us@1-00000001"), Origin("eu@1-00000002")


def window(base: DictBase, count_max: int, age_ms: int = 1000) -> tuple[RequestWindow, State]:
    state = State(base, lambda slot, record: True)
    return RequestWindow(state, count_max=count_max, age_ms=age_ms), state


def fold(made: RequestWindow, state: State) -> None:
    records = made.fold()
    state.begin_fold(lambda digest: records())
    state.end_fold()


@pytest.mark.parametrize("seed", range(20))
def test_together_is_as_one_by_one(seed: int) -> None:
    """The same commits, some ids used again, by frame and singly: the same answers, in the same order, and the same bytes in the engine."""
    dice = random.Random(seed)
    together, apart = DictBase(), DictBase()
    a, a_state = window(together, 40)
    b, b_state = window(apart, 40)
    hlc = seq = 0
    # Some begin alike, as those of one millisecond do; all have more bytes than an id is found by.
    ids = [bytes([number % 7]) * 8 + bytes([number]) for number in range(60)]
    for _ in range(60):
        origin = dice.choice((US, EU))
        some = [dice.choice(ids) for _ in range(dice.randint(1, 8))]
        seqs = range(seq + 1, seq + 1 + len(some))
        hlcs = [hlc + (dice.randint(1, 90) << 16) + place for place in range(len(some))]
        seq, hlc = seqs[-1], max(hlcs)
        hlcs.sort()
        if dice.random() < 0.3:
            for row in zip(some, seqs, hlcs, strict=True):
                a.note(row[0], origin, row[1], row[2])
        else:
            a.note_all(some, origin, seqs, hlcs)
        for request_id, at, stamp in zip(some, seqs, hlcs, strict=True):
            b.note(request_id, origin, at, stamp)
        if dice.random() < 0.4:
            fold(a, a_state)
            fold(b, b_state)
        if dice.random() < 0.1:
            a.trim((hlc >> 16) + 500)
            b.trim((hlc >> 16) + 500)
        assert a.all() == b.all() and len(a) == len(b)
        assert [a.get(request_id) for request_id in ids] == [b.get(request_id) for request_id in ids]
        assert a.has_any(ids[:5]) == b.has_any(ids[:5])
    fold(a, a_state)
    fold(b, b_state)
    assert together.records == apart.records
    assert {one.request_id: one for one in window(together, 40)[0].all()} == {one.request_id: one for one in a.all()}


class Counted(bytes):
    """An id that counts how often one is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


def test_messages_of_one_millisecond_are_not_compared_id_by_id() -> None:
    """A pipeline of a thousand puts is four messages, whose ids begin with the same millisecond. Each id of the second was searched for in
    the list of the first's, and so on: half a millisecond a message, a fifth of what a node did."""
    made, _ = window(DictBase(), 10_000)
    Counted.compared = 0
    for message in range(4):
        ids = [Counted(bytes(8) + number.to_bytes(8, "big")) for number in range(256 * message, 256 * message + 256)]
        assert not made.has_any(ids)
        made.note_all(ids, US, range(256 * message + 1, 256 * message + 257), [1 << 16] * 256)
    assert made.has_any([Counted(bytes(8) + (700).to_bytes(8, "big"))])
    assert Counted.compared < 10 * 1024


def test_a_fold_without_requests_wrote_those_that_came_before_it_was_written() -> None:
    """What is set aside is written later, perhaps beside the writers. A request that came in between was written with a batch that did not
    hold its commit, under the number of the next chunk: a crash left it there, replay counted it twice, and another was forgotten."""
    base = DictBase()
    made, state = window(base, 40)
    records = made.fold()
    state.begin_fold(lambda digest: records())
    made.note(b"late", US, 1, 1 << 16)
    state.end_fold()
    again, _ = window(base, 40)
    assert not again.all() and len(again) == 0
    fold(made, state)
    again, _ = window(base, 40)
    assert [one.request_id for one in again.all()] == [b"late"] and len(again) == 1
