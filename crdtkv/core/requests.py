"""The window of request ids: what lets a retried request make no second commit.

A commit that a request made carries its id, so every replica that applies the commit knows the id too: a retry is
recognised wherever the commit has arrived. The window is bounded by count and age. It is kept in side records, one
per fold of the state, not one per request; and most requests come in frames of hundreds, whose ids share one object (`_Together`).

Ids are found by their first bytes: those that a client gives out together begin alike, with the time. So what one frame brought of
them is one entry, looked up, remembered and forgotten in one step, until somebody asks for one that begins so.

A side record holds a chunk, `[2, ids, runs]`: the ids one after another, and for each run of commits of one origin whose seqs and
stamps follow each other without a gap `[origin, first seq, first stamp, count]`. (Before, it was a list of `Made`, three times as long;
that is read as well.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import Any

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.clock import ms_of
from crdtkv.core.state import State

REQUEST_SPACE = b"q"
BEGINNING = 8
"""Bytes of an id that it is found by."""


class Made(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The commit that a request made."""

    request_id: bytes
    origin: Origin
    seq: int
    hlc: int


class _Together(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Requests whose commits one frame brought, in columns: remembered and forgotten together."""

    request_ids: Sequence[bytes]
    origin: Origin
    seqs: Sequence[int]
    hlcs: Sequence[int]

    def made(self, request_id: bytes) -> Made:
        """The commit that one of them made; the last, if somebody gave an id twice. O(requests)."""
        at = len(self.request_ids) - 1 - self.request_ids[::-1].index(request_id)
        return Made(request_id, self.origin, self.seqs[at], self.hlcs[at])

    def rows(self) -> Iterable[tuple[bytes, Origin, int, int]]:
        """Of each what a `Made` holds."""
        return zip(self.request_ids, repeat(self.origin), self.seqs, self.hlcs)


_Run = tuple[Origin, int, int, int]
"""Commits whose seqs and stamps follow each other: origin, the first seq, the first stamp, how many they are."""
_FORMAT = 2
_START = b"\x93\x02"
"""What a chunk begins with. The older form begins with an array in an array."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, list[bytes], list[_Run]]).decode
_decode_rows = msgspec.msgpack.Decoder(list[Made]).decode


def _where(number: int) -> bytes:
    return REQUEST_SPACE + number.to_bytes(8, "big")


_NONE: Mapping[bytes, Made | _Together] = {}
_Known = Made | _Together | deque[Made | _Together] | dict[bytes, Made | _Together]
"""What is remembered of ids that begin alike: one request, requests of one frame, several such, the oldest first; or, once somebody asked,
whatever it is of each id."""
_beginning = itemgetter(slice(0, BEGINNING))


def _common_beginning(request_ids: Sequence[bytes]) -> bytes | None:
    """What ids, at least one, begin with, if it is the same for all: what lies between two that begin alike does so, too."""
    least, greatest = min(request_ids)[:BEGINNING], max(request_ids)[:BEGINNING]
    return least if least == greatest else None


class RequestWindow:
    """Request id → the commit that it made, oldest forgotten first, a chunk (what one fold wrote) at a time."""

    __slots__ = ("_age_ms", "_chunks", "_count", "_count_max", "_known", "_new", "_number", "_state", "unfolded")

    def __init__(self, state: State, *, count_max: int, age_ms: int) -> None:
        self._state = state
        self._count_max = count_max
        self._age_ms = age_ms
        self._known: dict[bytes, _Known] = {}  # by what ids begin with
        self._chunks: deque[tuple[int, list[Made | _Together]]] = deque()
        self._new: list[Made | _Together] = []
        self._count = 0
        self.unfolded = 0
        """How many were remembered since the last fold."""
        self._number = 0
        for where, record in state.scan(REQUEST_SPACE, bytes([REQUEST_SPACE[0] + 1])):
            self._number = int.from_bytes(where[1:], "big")
            chunk: list[Made | _Together] = []
            for beginning, one in _chunk_of(record):
                self._remember(beginning, one)
                chunk.append(one)
                self._count += len(_ids_of(one))
            self._chunks.append((self._number, chunk))

    def __len__(self) -> int:
        """How many requests are remembered; one that made two commits, in two regions, counts twice."""
        return self._count

    def get(self, request_id: bytes) -> Made | None:
        """The commit that a request made, if it is remembered. O(1), or O(requests of its frame) if it came with one."""
        found = self._by_id(request_id[:BEGINNING]).get(request_id)
        return found.made(request_id) if type(found) is _Together else found  # type: ignore[return-value]  # one of two types, or None

    def has_any(self, request_ids: Sequence[bytes]) -> bool:
        """Whether one of these requests, at least one, made a commit that is remembered. O(ids), and once O(requests of a frame) for each
        frame whose ids begin like one of them."""
        beginning = _common_beginning(request_ids)
        if beginning is not None:
            return not self._by_id(beginning).keys().isdisjoint(request_ids)
        return any(request_id in self._by_id(request_id[:BEGINNING]) for request_id in request_ids)

    def _by_id(self, beginning: bytes) -> Mapping[bytes, Made | _Together]:
        """What is remembered of ids that begin so, by id. Kept: of what a frame brought together, somebody who asks for one id will ask for
        more, as the messages of one pipeline do, whose ids are of the same millisecond."""
        known = self._known.get(beginning)
        if known is None:
            return _NONE
        if type(known) is not dict:
            found: dict[bytes, Made | _Together] = {}
            for one in known if type(known) is deque else (known,):
                found.update(dict.fromkeys(_ids_of(one), one))  # type: ignore[arg-type]  # one of two types
            known = self._known[beginning] = found
        return known

    def all(self) -> list[Made]:
        """Everything remembered, oldest first."""
        found: dict[bytes, Made] = {}
        for _, chunk in [*self._chunks, (0, self._new)]:
            for one in chunk:
                found.update((row[0], Made(*row)) for row in _rows((one,)))
        return list(found.values())

    def note(self, request_id: bytes, origin: Origin, seq: int, hlc: int) -> None:
        """Remember a request. O(1)."""
        made = Made(request_id, origin, seq, hlc)
        self._remember(request_id[:BEGINNING], made)
        self._new.append(made)
        self._count += 1
        self.unfolded += 1

    def note_all(self, request_ids: Sequence[bytes], origin: Origin, seqs: Sequence[int], hlcs: Sequence[int]) -> None:
        """Remember requests of one frame, at least one, in columns that do not change any more. O(requests)."""
        self._count += len(request_ids)
        self.unfolded += len(request_ids)
        for beginning, together in _by_beginning(request_ids, origin, seqs, hlcs):
            self._remember(beginning, together)
            self._new.append(together)

    def _remember(self, beginning: bytes, one: Made | _Together) -> None:
        """Find ids that begin so in `one` from now on."""
        known = self._known.get(beginning)
        if known is None:
            self._known[beginning] = one
        elif type(known) is dict:
            known.update(dict.fromkeys(_ids_of(one), one))
        elif type(known) is deque:
            known.append(one)
        else:
            self._known[beginning] = deque((known, one))  # type: ignore[arg-type]  # one of two types

    def fold(self) -> Callable[[], Mapping[bytes, bytes]]:
        """Have what is new written with the state's next batch, and forget chunks that are too old or too many.

        Returns:
            What gives the records to be written: for whoever writes the batch, perhaps another thread. O(requests).
        """
        number, new = self._number + 1, self._new
        if new:
            self._number = number
            self._chunks.append((number, new))
            self._new = []
            self.unfolded = 0
        if self._chunks:
            self._forget(ms_of(_last_hlc(self._chunks[-1][1])) - self._age_ms, keep=1)
        if not new:
            return dict  # not looked at when the batch is written: what is noted by then belongs to the next one
        return lambda: {_where(number): _encode((_FORMAT, list(chain.from_iterable(map(_ids_of, new))), _runs(new)))}

    def trim(self, now_ms: int) -> None:
        """Forget what is older than the window by `now_ms`, although nothing newer has come."""
        self._forget(now_ms - self._age_ms, keep=0)

    def _forget(self, oldest_ms: int, keep: int) -> None:
        chunks, remembered = self._chunks, self._known
        while len(chunks) > keep and ((keep and self._count > self._count_max) or ms_of(_last_hlc(chunks[0][1])) < oldest_ms):
            number, chunk = chunks.popleft()
            self._state.side_put(_where(number), None)
            for one in chunk:
                ids = _ids_of(one)
                self._count -= len(ids)
                beginning = ids[0][:BEGINNING]
                known = remembered.get(beginning)
                if known is one:
                    del remembered[beginning]
                elif type(known) is deque:
                    assert known[0] is one, "they are forgotten in the order in which they came"
                    known.popleft()
                    if not known:
                        del remembered[beginning]
                elif type(known) is dict:
                    for request_id in ids:
                        if known.get(request_id) is one:  # it may have been made again since
                            del known[request_id]
                    if not known:
                        del remembered[beginning]


def _by_beginning(
    request_ids: Sequence[bytes], origin: Origin, seqs: Sequence[int], hlcs: Sequence[int]
) -> Iterator[tuple[bytes, _Together]]:
    """Requests of one frame, those together that begin alike, with how they begin; in their order."""
    beginning = _common_beginning(request_ids)
    if beginning is not None:
        yield beginning, _Together(request_ids, origin, seqs, hlcs)
        return
    start = 0
    for beginning, some in groupby(map(_beginning, request_ids)):
        end = start + len(list(some))
        yield beginning, _Together(request_ids[start:end], origin, seqs[start:end], hlcs[start:end])
        start = end


def _chunk_of(record: bytes) -> Iterator[tuple[bytes, Made | _Together]]:
    """What a side record holds, oldest first, with how the ids begin."""
    if not record.startswith(_START):
        for made in _decode_rows(record):
            yield made.request_id[:BEGINNING], made
        return
    _, request_ids, runs = _decode(record)
    start = 0
    for origin, seq, hlc, count in runs:
        yield from _by_beginning(request_ids[start : start + count], origin, range(seq, seq + count), range(hlc, hlc + count))
        start += count


def _runs(chunk: Iterable[Made | _Together]) -> list[list[Origin | int]]:
    """The commits of requests as runs, the longest that there are. O(requests) at most; those with ranges for columns are one step."""
    runs: list[list[Any]] = []
    expected: tuple[Origin, int, int] | None = None
    for one in chunk:
        parts: Iterable[tuple[int, int, int]]
        if type(one) is not _Together:
            parts = ((one.seq, one.hlc, 1),)  # type: ignore[union-attr]  # one of two types
        elif type(one.seqs) is range and type(one.hlcs) is range and one.seqs.step == one.hlcs.step == 1:
            parts = ((one.seqs[0], one.hlcs[0], len(one.seqs)),)
        else:
            parts = zip(one.seqs, one.hlcs, repeat(1))
        origin = one.origin
        for seq, hlc, count in parts:
            if (origin, seq, hlc) == expected:
                runs[-1][3] += count
            else:
                runs.append([origin, seq, hlc, count])
            expected = origin, seq + count, hlc + count
    return runs


def _ids_of(one: Made | _Together) -> Sequence[bytes]:
    return one.request_ids if type(one) is _Together else (one.request_id,)  # type: ignore[union-attr]  # one of two types


def _rows(chunk: Iterable[Made | _Together]) -> Iterable[tuple[bytes, Origin, int, int]]:
    """Of each request what a `Made` holds, oldest first."""
    for one in chunk:
        if type(one) is _Together:
            yield from one.rows()
        else:
            yield one.request_id, one.origin, one.seq, one.hlc  # type: ignore[union-attr]  # one of two types


def _last_hlc(chunk: Sequence[Made | _Together]) -> int:
    last = chunk[-1]
    return last.hlcs[-1] if type(last) is _Together else last.hlc  # type: ignore[union-attr]  # one of two types
