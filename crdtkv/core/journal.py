"""The conflict journal: every update that met a concurrent one, and what became of both.

Whenever a write meets a write, or a write a removal, that had not seen it, the replica records the slot, the dots,
stamps and values on both sides, the rule and the winner. So no acknowledged write loses in silence. The journal is
local bookkeeping, outside state and digest: which replica records a conflict, and in which order, depends on what
arrived where first. It is bounded by count, bytes and age; counts per rule survive the trimming.

A record's age counts from when it was made here, by the *time of the log*: the greatest stamp of what is applied. That is the same
when the log is replayed; and what a region wrote weeks ago, away, is new when it comes back and meets something.

By far the most conflicts are puts of one received frame that each met one other put. They are kept together as they were found
(`PutsMet`), in one side record under the first one's number, and become `Record`s when somebody reads: a merge of many concurrent
writes makes them by the hundred thousand, and few are ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.clock import ms_of
from crdtkv.core.codec import SlotType
from crdtkv.core.state import State
from crdtkv.core.types.base import decode_entries

JOURNAL_SPACE = b"j"
_END = bytes([JOURNAL_SPACE[0] + 1])
TOGETHER_MAX = 256
TOGETHER_BYTES_MAX = 256 << 10
"""Conflicts that are kept together at most, and their bytes, if they are more than one: what goes at once when there are too many."""

RULE_LWW = "greatest (hlc, origin) of concurrent writes"
RULE_ADD_WINS = "add wins over a concurrent remove"
RULE_WRITE_SURVIVES = "a write survives a concurrent removal that had not seen it"
RULE_INCREMENT_SURVIVES = "increments survive a concurrent reset that had not seen them"
RULE_REPAIR = "repaired: the record here was damaged, and was taken over from"
"""Followed by the donor's region."""
RULE_ELEMENT = "greatest (hlc, origin) of concurrent adds with different expiry"


class Update(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One side of a conflict. `value` is None for a removal; `kind` as in `Change.kind`."""

    origin: Origin
    seq: int
    hlc: int
    kind: str
    value: bytes | None
    expiry: int | None = None


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One conflict. `hlc` is the time of the log when it was recorded; `number` its place in this journal."""

    number: int
    key: bytes
    type_code: int
    subkey: bytes
    rule: str
    winner: Update
    losers: list[Update]
    hlc: int
    installed: bool = False


PutMet = tuple[str, bytes, int, int, bytes]
"""A put and what it met: key, value, seq and stamp of the put, and the slot's record before it, which holds one entry."""


class PutsMet(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Conflicts of puts of one origin, numbered from `first` on. `log_time`: the time of the log before them."""

    first: int
    count: int
    origin: Origin
    log_time: int
    puts: Sequence[PutMet]

    def records(self) -> list[Record]:
        """One record of each, as `Journal.record` would have made it."""
        made = []
        for number, (key, value, seq, hlc, met) in enumerate(self.puts, self.first):
            (other,) = decode_entries(met)
            mine = Update(self.origin, seq, hlc, "put", value)
            theirs = Update(other.origin, other.seq, other.hlc, "put", other.value)
            won, lost = (mine, theirs) if (hlc, self.origin) > (other.hlc, other.origin) else (theirs, mine)
            made.append(Record(number, key.encode(), SlotType.REGISTER, b"", RULE_LWW, won, [lost], max(hlc, self.log_time)))
        return made


class JournalCounts(msgspec.Struct, array_like=True, gc=False):
    """What survives trimming: the next number, the first one kept, the bytes kept, the totals per rule.

    `oldest`: the number under which the oldest side record stands; below `first` if that holds some that are kept no longer.
    """

    following: int = 0
    first: int = 0
    size_bytes: int = 0
    by_rule: dict[str, int] = {}
    oldest: int = -1  # added later; -1: `first`


class _Span(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A `PutsMet` as far as it says which numbers it holds."""

    first: int
    count: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_decode_puts = msgspec.msgpack.Decoder(PutsMet).decode
_decode_span = msgspec.msgpack.Decoder(_Span).decode
_ARRAY_OF_FIVE = 0x95
"""The first byte of a `PutsMet`; a `Record` is an array of nine."""


def _where(number: int) -> bytes:
    return JOURNAL_SPACE + number.to_bytes(8, "big")


def _read(data: bytes) -> list[Record]:
    """The conflicts of one side record."""
    return _decode_puts(data).records() if data[0] == _ARRAY_OF_FIVE else [_decode(data)]


class Journal:
    """The journal of one replica, in side records of its state.

    Args:
        log_time: the greatest stamp of what is applied, the commit being applied perhaps not among it.
    """

    __slots__ = ("_after_oldest", "_count_max", "_log_time", "_size_max", "_state", "counts")

    def __init__(self, state: State, counts: JournalCounts, *, log_time: Callable[[], int], count_max: int, bytes_max: int) -> None:
        self._log_time = log_time
        self._state = state
        self.counts = counts
        if counts.oldest < 0:
            counts.oldest = counts.first
        self._after_oldest = counts.oldest
        """The number that follows the oldest side record; `counts.oldest` if that was not looked at yet."""
        self._count_max = count_max
        self._size_max = bytes_max

    def __len__(self) -> int:
        """How many records are kept."""
        return self.counts.following - self.counts.first

    @property
    def total(self) -> int:
        """How many conflicts were ever recorded."""
        return self.counts.following

    def record(
        self,
        key: bytes,
        type_code: int,
        subkey: bytes,
        rule: str,
        winner: Update,
        losers: list[Update],
        hlc: int,
        installed: bool = False,
    ) -> None:
        """Append one conflict, found while applying a commit with the stamp `hlc`; the oldest go while there are too many."""
        counts = self.counts
        made_at = max(hlc, self._log_time())
        data = _encode(Record(counts.following, key, type_code, subkey, rule, winner, losers, made_at, installed))
        self._state.side_put(_where(counts.following), data)
        counts.following += 1
        counts.size_bytes += len(data)
        counts.by_rule[rule] = counts.by_rule.get(rule, 0) + 1
        self._keep_to_limits()

    def record_puts(self, origin: Origin, met: Sequence[PutMet]) -> None:
        """`record` what puts of one frame met, in their order."""
        if len(met) > TOGETHER_MAX:
            for start in range(0, len(met), TOGETHER_MAX):
                self.record_puts(origin, met[start : start + TOGETHER_MAX])
            return
        if not met:
            return
        counts, count = self.counts, len(met)
        data = _encode(PutsMet(counts.following, count, origin, self._log_time(), met))
        if len(data) > TOGETHER_BYTES_MAX and count > 1:
            self.record_puts(origin, met[: count // 2])
            self.record_puts(origin, met[count // 2 :])
            return
        self._state.side_put(_where(counts.following), data)
        counts.following += count
        counts.size_bytes += len(data)
        counts.by_rule[RULE_LWW] = counts.by_rule.get(RULE_LWW, 0) + count
        self._keep_to_limits()

    def _keep_to_limits(self) -> None:
        counts = self.counts
        if len(self) > self._count_max:
            counts.first = counts.following - self._count_max
            while self._find_after_oldest() <= counts.first:
                self._drop_oldest()
        while counts.size_bytes > self._size_max and self._find_after_oldest() < counts.following:
            self._drop_oldest()

    def trim(self, age_ms: int, wall_ms: int) -> int:
        """Drop the records that are older than `age_ms`, oldest first; how many that were.

        By the time of the log, or by the wall clock if that is behind it: a stamp from the future makes nothing old.
        """
        counts = self.counts
        before_ms, first = min(ms_of(self._log_time()), wall_ms) - age_ms, counts.first
        while len(self):
            data = self._state.side_get(_where(counts.oldest))
            found = [] if data is None else _read(data)
            young = next((r.number for r in found if r.number >= counts.first and ms_of(r.hlc) >= before_ms), None)
            if young is not None:
                counts.first = young
                break
            self._drop_oldest()
        return counts.first - first

    def _find_after_oldest(self) -> int:
        """The number that follows the oldest side record. That is looked up once."""
        if self._after_oldest == self.counts.oldest:
            data = self._state.side_get(_where(self.counts.oldest))
            self._after_oldest += _decode_span(data).count if data is not None and data[0] == _ARRAY_OF_FIVE else 1
        return self._after_oldest

    def _drop_oldest(self) -> None:
        counts, after, where = self.counts, self._find_after_oldest(), _where(self.counts.oldest)
        data = self._state.side_get(where)
        if data is not None:
            counts.size_bytes -= len(data)
            self._state.side_put(where, None)
        counts.oldest = after
        counts.first = max(counts.first, after)

    def records(self, since: int = 0) -> Iterator[Record]:
        """The records kept with `number >= since`, oldest first."""
        since = max(since, self.counts.first)
        for _, data in self._state.scan(_where(max(since - TOGETHER_MAX + 1, self.counts.oldest)), _END):
            for record in _read(data):
                if record.number >= since:
                    yield record
