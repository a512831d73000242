"""The conflict journal: every update that met a concurrent one, and what became of both.

Whenever a write meets a write, or a write a removal, that had not seen it, the replica records the slot, the dots,
stamps and values on both sides, the rule and the winner. So no acknowledged write loses in silence. The journal is
local bookkeeping, outside state and digest: which replica records a conflict, and in which order, depends on what
arrived where first. It is bounded by count, bytes and age; counts per rule survive the trimming.

A record's age counts from when it was made here, by the *time of the log*: the greatest stamp of what is applied. That is the same
when the log is replayed; and what a region wrote weeks ago, away, is new when it comes back and meets something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.clock import ms_of
from crdtkv.core.state import State

JOURNAL_SPACE = b"j"
_END = bytes([JOURNAL_SPACE[0] + 1])

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


class JournalCounts(msgspec.Struct, array_like=True, gc=False):
    """What survives trimming: the next number, the first one kept, the bytes kept, the totals per rule."""

    following: int = 0
    first: int = 0
    size_bytes: int = 0
    by_rule: dict[str, int] = {}


Met = tuple[bytes, tuple[Any, ...], tuple[Any, ...], int]
"""A write of a key that met another: the key's bytes, both as `Update`s are encoded, the winner first, and the stamp of what is applied."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def _where(number: int) -> bytes:
    return JOURNAL_SPACE + number.to_bytes(8, "big")


class Journal:
    """The journal of one replica, in side records of its state.

    Args:
        log_time: the greatest stamp of what is applied, the commit being applied perhaps not among it.
    """

    __slots__ = ("_count_max", "_log_time", "_size_max", "_state", "counts")

    def __init__(self, state: State, counts: JournalCounts, *, log_time: Callable[[], int], count_max: int, bytes_max: int) -> None:
        self._log_time = log_time
        self._state = state
        self.counts = counts
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

    def record_all(self, type_code: int, rule: str, met: Sequence[Met]) -> None:
        """`record` conflicts of keys as a whole that were met while one frame was applied."""
        if not met:
            return
        counts, log_time = self.counts, self._log_time()
        first, size = counts.following, 0
        records: dict[bytes, bytes] = {}
        for number, (key, won, lost, hlc) in enumerate(met, first):
            data = _encode((number, key, type_code, b"", rule, won, (lost,), hlc if hlc > log_time else log_time, False))  # a `Record`
            size += len(data)
            records[_where(number)] = data
        self._state.side_put_all(records)
        counts.following += len(met)
        counts.size_bytes += size
        counts.by_rule[rule] = counts.by_rule.get(rule, 0) + len(met)
        self._keep_to_limits()

    def _keep_to_limits(self) -> None:
        counts = self.counts
        while counts.first < counts.following - 1 and (
            counts.following - counts.first > self._count_max or counts.size_bytes > self._size_max
        ):
            self._drop_first()

    def trim(self, age_ms: int, wall_ms: int) -> int:
        """Drop the records that are older than `age_ms`, oldest first; how many that were.

        By the time of the log, or by the wall clock if that is behind it: a stamp from the future makes nothing old.
        """
        before_ms = min(ms_of(self._log_time()), wall_ms) - age_ms
        dropped = 0
        while len(self):
            data = self._state.side_get(_where(self.counts.first))
            if data is not None and ms_of(_decode(data).hlc) >= before_ms:
                break
            self._drop_first()
            dropped += 1
        return dropped

    def _drop_first(self) -> None:
        where = _where(self.counts.first)
        data = self._state.side_get(where)
        if data is not None:
            self.counts.size_bytes -= len(data)
            self._state.side_put(where, None)
        self.counts.first += 1

    def records(self, since: int = 0) -> Iterator[Record]:
        """The records kept with `number >= since`, oldest first."""
        for _, data in self._state.scan(_where(max(since, self.counts.first)), _END):
            yield _decode(data)
