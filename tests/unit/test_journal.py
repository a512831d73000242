"""Conflicts that are kept together read as if each had been recorded by itself, whatever is trimmed and whenever it is opened again."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.causality import Origin
from crdtkv.core.clock import stamp
from crdtkv.core.codec import SlotType
from crdtkv.core.journal import RULE_LWW, TOGETHER_BYTES_MAX, TOGETHER_MAX, Journal, JournalCounts, PutMet, Update
from crdtkv.core.state import DictBase, State
from crdtkv.core.types.base import Entry, encode_entries

US, EU = Origin("us-1-00000001"), Origin("eu-1-00000001")
BYTES_MAX = 1 << 40


def met(number: int, size: int = 10) -> PutMet:
    """A put of EU's that met one of US's; every third one wins."""
    theirs = Entry(US, number, stamp(number, number % 3), b"\xc4\x01u", None)
    return f"key/{number}", b"e" * size, number, stamp(number, 1), encode_entries([theirs])


class One:
    """A journal in a state of its own."""

    def __init__(self, count_max: int = 10**6, bytes_max: int = BYTES_MAX) -> None:
        self.limits = count_max, bytes_max
        self.state = State(DictBase(), lambda *_: True)
        self.now = 0
        self.open(JournalCounts())

    def open(self, counts: JournalCounts) -> None:
        count_max, bytes_max = self.limits
        self.journal = Journal(self.state, counts, log_time=lambda: self.now, count_max=count_max, bytes_max=bytes_max)

    def restart(self) -> None:
        self.state.begin_fold(lambda digest: {})
        self.state.end_fold()
        self.open(msgspec.msgpack.decode(msgspec.msgpack.encode(self.journal.counts), type=JournalCounts))

    def by_itself(self, put: PutMet) -> None:
        """Record what a put met as the obvious way does."""
        key, value, seq, hlc, _ = put
        mine, theirs = Update(EU, seq, hlc, "put", value), Update(US, seq, stamp(seq, seq % 3), "put", b"\xc4\x01u")
        won, lost = (mine, theirs) if mine.hlc > theirs.hlc else (theirs, mine)
        if mine.hlc == theirs.hlc:
            won, lost = theirs, mine  # "us" is greater
        self.journal.record(key.encode(), SlotType.REGISTER, b"", RULE_LWW, won, [lost], hlc)

    def shown(self) -> object:
        counts = self.journal.counts
        return list(self.journal.records()), counts.following, counts.first, counts.by_rule, len(self.journal), self.journal.total

    def kept_bytes(self) -> int:
        return sum(len(data) for _, data in self.state.scan(b"j", b"k"))


steps = st.one_of(
    st.tuples(st.just("together"), st.integers(1, 9)),
    st.tuples(st.just("together"), st.integers(TOGETHER_MAX - 1, TOGETHER_MAX + 2)),
    st.tuples(st.just("single"), st.just(1)),
    st.tuples(st.just("trim"), st.integers(0, 400)),
    st.tuples(st.just("restart"), st.just(0)),
)


@given(st.lists(steps, max_size=12), st.sampled_from([1, 3, 7, 300, 10**6]))
def test_what_is_kept_together_reads_and_is_trimmed_as_if_kept_one_by_one(made: list[tuple[str, int]], count_max: int) -> None:
    together, plain = One(count_max), One(count_max)
    number = 0
    for kind, amount in made:
        if kind == "together":
            puts = [met(number + n) for n in range(amount)]
            number += amount
            together.journal.record_puts(EU, puts)
            for put in puts:
                plain.by_itself(put)
        elif kind == "single":
            together.by_itself(met(number))
            plain.by_itself(met(number))
            number += 1
        elif kind == "trim":
            together.now = plain.now = stamp(number)
            assert together.journal.trim(amount, 10**9) == plain.journal.trim(amount, 10**9)
        else:
            together.restart()
            plain.restart()
        assert together.shown() == plain.shown()
        assert together.journal.counts.size_bytes == together.kept_bytes()
        for since in (0, number // 2, number - 1, number):
            assert list(together.journal.records(since)) == list(plain.journal.records(since))


def test_nothing_is_kept_of_what_was_trimmed() -> None:
    one = One(count_max=10)
    for start in range(0, 100, 20):
        one.journal.record_puts(EU, [met(start + n) for n in range(20)])
    assert [r.number for r in one.journal.records()] == list(range(90, 100)) and len(list(one.state.scan(b"j", b"k"))) == 1
    one.now = stamp(1000)
    assert one.journal.trim(0, 10**9) == 10 and one.kept_bytes() == one.journal.counts.size_bytes == 0
    one.by_itself(met(100))
    assert [r.number for r in one.journal.records()] == [100]


def test_large_ones_are_not_kept_together_so_the_bound_of_bytes_drops_few_at_once() -> None:
    one = One(bytes_max=4 * TOGETHER_BYTES_MAX)
    one.journal.record_puts(EU, [met(n, TOGETHER_BYTES_MAX // 3) for n in range(40)])
    assert one.journal.counts.size_bytes <= 4 * TOGETHER_BYTES_MAX
    assert 40 - len(one.journal) in range(28, 32) and one.journal.total == 40
    one.journal.record_puts(EU, [met(40, 5 * TOGETHER_BYTES_MAX)])
    assert [r.number for r in one.journal.records()] == [40], "the newest is kept, however large"


def test_a_journal_of_before_conflicts_were_kept_together() -> None:
    """Its counts have four fields, each side record is one conflict."""
    one = One()
    for n in range(6):
        one.by_itself(met(n))
    counts = one.journal.counts
    for n in range(2):
        one.state.side_put(b"j" + n.to_bytes(8, "big"), None)
    size = one.kept_bytes()
    one.open(msgspec.msgpack.decode(msgspec.msgpack.encode([counts.following, 2, size, counts.by_rule]), type=JournalCounts))
    one.journal.record_puts(EU, [met(6), met(7)])
    assert [r.number for r in one.journal.records()] == [2, 3, 4, 5, 6, 7]
    one.now = stamp(1000)
    assert one.journal.trim(0, 10**9) == 6 and one.kept_bytes() == 0 == one.journal.counts.size_bytes
