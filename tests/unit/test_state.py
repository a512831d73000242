"""The overlay over an engine, and the digest of both."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

import crdtkv
from crdtkv.core.codec import SlotType, encode_value, register_slot, register_slot_of, slot_of
from crdtkv.core.replica import enters_digest
from crdtkv.core.state import DictBase, State
from crdtkv.core.types.base import encode_entries
from crdtkv.core.types.counter import Run, encode_run
from crdtkv.errors import CrdtkvError, DiskFullError
from crdtkv.storage.engine import MemoryEngine
from crdtkv.store.statistics import statistics


class Base(DictBase):
    """A base whose next write has no room, if a test says so."""

    is_full = False

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        if self.is_full:
            self.is_full = False
            raise DiskFullError("no room")
        super().write(batch)


def change(dice: random.Random) -> tuple[bytes, bytes | None]:
    """A slot, and a record for it: of a register, of a counter's run that counts or does not, or none."""
    number = dice.randrange(20)
    if dice.random() < 0.3:
        run = Run(dice.randrange(3), 1 + dice.randrange(2), 0, dice.randrange(3))
        return slot_of(b"c", SlotType.COUNTER, bytes([number])), encode_run(run)
    record = None if dice.random() < 0.2 else encode_entries((("us@1-00000000", 1 + dice.randrange(3), 1, b"\x01", None),))
    return register_slot(b"k%d" % number), record


@pytest.mark.parametrize("seed", range(30))
def test_a_digest_that_is_counted_when_somebody_asks_is_the_one_that_would_have_been_kept(seed: int) -> None:
    """Whenever that is: much or nothing may wait, and what was set aside may be half done, or could not be written for want of room."""
    dice = random.Random(seed)
    late, kept = State(late_base := Base(), enters_digest, None), State(Base(), enters_digest)
    asked_at = dice.randrange(60)
    for step in range(120):
        slot, record = change(dice)
        for state in (late, kept):
            state.put(slot, record)
        if dice.random() < 0.2 and not kept.is_folding:
            kept.begin_fold(lambda digest: {})
            late.begin_fold(lambda digest: {})
        if dice.random() < 0.5 and kept.is_folding:
            at_once = 1 + dice.randrange(8)
            kept.fold_some(at_once)
            late_base.is_full = dice.random() < 0.5
            try:
                late.fold_some(at_once)
            except DiskFullError:
                assert late.is_folding
            late_base.is_full = False
            if not kept.is_folding:
                late.end_fold()
            elif not late.is_folding:
                kept.end_fold()
        assert late.has_digest is (step > asked_at)
        if step >= asked_at:
            assert late.digest() == kept.digest() != 0
    late.end_fold(), kept.end_fold()
    assert late.digest() == kept.digest()


def test_a_store_in_memory_counts_its_digest_when_it_is_asked_and_keeps_it_from_then_on() -> None:
    with crdtkv.open(region="us") as late, crdtkv.open(region="eu") as asked:
        state = late._replica.state
        asked.digest()
        for number in range(10_000):
            late.put(f"k{number % 6000}", number)
        late.set("s").add(1, 2, 3)
        late.counter("c").increment(5)
        late.counter("c").reset()
        asked.merge(late.delta_since(asked.vv()))
        assert not state.has_digest and statistics(late).digest is None
        assert late.digest() == asked.digest()
        assert state.has_digest
        late.put("k1", "again")
        asked.merge(late.delta_since(asked.vv()))
        assert late.digest() == asked.digest()


def test_who_is_compared_with_peers_keeps_a_digest_from_the_start() -> None:
    with crdtkv.open(region="us") as store:
        store.put("k", 1)
        assert store.port is not None and store._replica.state.has_digest


def test_records_are_copied_without_room_at_their_end_where_the_base_keeps_what_it_is_given() -> None:
    record = encode_entries((("us@1-00000000", 1, 1, b"\x01", None),))
    for trims in (False, True):
        state = State(DictBase(), enters_digest, trims=trims)
        state.put(b"da", record)
        state.put_all([b"db"], [record])
        state.put_all([b"dc"], [record], are_trimmed=True)
        state.put(b"dd", None)
        state.side_put(b"x", record)
        found = [state.get(b"da"), state.get(b"db"), state.side_get(b"x")]
        assert found == [record] * 3 and state.get(b"dc") is record and state.get(b"dd") is None
        assert all((one is not record) is trims for one in found)
    with crdtkv.open() as store:
        assert store._replica.state._trims


def test_a_store_in_memory_keeps_no_room_at_the_end_of_records() -> None:
    """msgspec's encoder gives bytes that have up to a third more memory than length, and a store would keep that for each of its keys."""
    engine = MemoryEngine()
    state = State(engine, enters_digest, None, trims=True)
    slots = [register_slot(b"%d" % n) for n in range(1000)]
    tracemalloc.start()
    try:
        for n, slot in enumerate(slots):
            state.put(slot, msgspec.msgpack.encode([n, b"v" * 100, "text"]))
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*state.py")])
    finally:
        tracemalloc.stop()
    state.begin_fold(lambda digest: {})
    state.end_fold()
    values = sum(map(sys.getsizeof, engine.multi_get(slots)))
    assert values <= sum(trace.size for trace in kept.traces if trace.size < 1000) <= values + 50 * 1000 // 20
    engine.close()


def outcome(call: Callable[[Any], bytes | None], argument: Any) -> bytes | tuple[type[Exception], str] | None:
    try:
        return call(argument)
    except CrdtkvError as e:
        return type(e), str(e)


def test_a_registers_record_is_found_by_its_key_as_it_is_by_its_slot_wherever_it_lies() -> None:
    """Nothing else is: a key with NUL spells, unescaped, the slot of an element in a set; and a number has a text too."""
    state = State(DictBase(), enters_digest)
    texts = ["k", "é", "n\0", "x" * 1024, "7", "\x01"]
    spelling = "k\0\0" + chr(SlotType.SET) + "e"
    records = {register_slot_of(text): encode_value(text) for text in texts}
    records[slot_of(b"k", SlotType.SET, b"e\0\0\x01")] = b"an element"
    asked = [*texts, spelling, "absent", 7, b"k", None, "", "\ud800", "x" * 1025, "é" * 513]

    def check(held: int) -> None:
        for key in asked:
            assert outcome(state.register, key) == outcome(lambda key: state.get(register_slot_of(key)), key)
        assert [state.register(key) for key in texts].count(None) == len(texts) - held
        assert state.register(spelling) is None

    check(0)
    for slot, record in records.items():
        state.put(slot, record)
    check(len(texts))  # in the overlay
    state.begin_fold(lambda digest: {})
    check(len(texts))  # set aside
    state.end_fold()
    check(len(texts))  # in the base
    state.load([*records, register_slot(b"absent")])
    check(len(texts))  # read ahead
    state.put(register_slot(b"k"), None)
    check(len(texts) - 1)  # dropped, and not yet in the base


@pytest.mark.parametrize("seed", range(20))
def test_many_records_at_once_are_what_they_would_be_one_by_one_whatever_waits(seed: int) -> None:
    """They may go straight to an engine in memory: never past something older that waits, and unseen by who looks at an earlier moment."""
    dice = random.Random(seed)
    engine = MemoryEngine()
    state = State(engine, enters_digest, None, trims=True)
    expected: dict[bytes, bytes] = {}
    straight = 0
    for number in range(200):
        what = dice.choice(
            ["together", "together", "together", "one", "drop", "load", "begin", "fold", "fold", "digest" if number > 150 else "end"]
        )
        slots = [register_slot(b"k%d" % n) for n in dice.sample(range(10), 3)]
        records = [encode_entries((("us@1-00000000", 1 + dice.randrange(50), 1, b"\x01", None),)) for _ in slots]
        if what == "together":
            before, waiting = dict(expected), state.pending
            with engine.snapshot() as earlier:
                was = dict(earlier.scan(b"", None))
                state.put_all(slots, records, are_trimmed=dice.random() < 0.5)
                assert dict(earlier.scan(b"", None)) == was
            expected.update(zip(slots, records, strict=True))
            straight += not waiting and not state.pending and before != expected
        elif what == "one":
            state.put(slots[0], records[0])
            expected[slots[0]] = records[0]
        elif what == "drop":
            state.put(slots[0], None)
            expected.pop(slots[0], None)
        elif what == "load":
            state.load(slots)
        elif what == "fold":
            state.end_fold()
            state.begin_fold(lambda digest: {})
            state.end_fold()
            state.forget()
        elif what == "begin" and not state.is_folding:
            state.begin_fold(lambda digest: {})
        elif what == "end":
            state.end_fold()
        elif what == "digest":
            state.digest()
        assert [state.get(register_slot(b"k%d" % n)) for n in range(10)] == [expected.get(register_slot(b"k%d" % n)) for n in range(10)]
        assert dict(state.scan(b"", None)) == expected
    assert straight
    state.end_fold()
    plain = State(DictBase(), enters_digest)
    for slot, record in expected.items():
        plain.put(slot, record)
    assert state.digest() == plain.digest()
