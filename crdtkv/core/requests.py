"""The window of request ids: what lets a retried request make no second commit.

A commit that a request made carries its id, so every replica that applies the commit knows the id too: a retry is
recognised wherever the commit has arrived. The window is bounded by count and age. It is kept in side records, one
per fold of the state, not one per request; and most requests come in frames of hundreds, whose ids share one object (`_Together`).

Ids are found by their first bytes: those that a client gives out together begin alike, with the time. So what one frame brought of
them is one entry, looked up, remembered and forgotten in one step, until another id comes that begins so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, repeat
from operator import itemgetter

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


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Made]).decode


def _where(number: int) -> bytes:
    return REQUEST_SPACE + number.to_bytes(8, "big")


_NONE: Mapping[bytes, Made | _Together] = {}
_Known = Made | _Together | dict[bytes, Made | _Together]
"""What is remembered of ids that begin alike: one request, requests of one frame, or whatever it is of each id."""
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
            chunk = _decode(record)
            self._chunks.append((self._number, list(chunk)))
            self._count += len(chunk)
            for made in chunk:
                self._remember(made.request_id[:BEGINNING], made)

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
            known = self._known[beginning] = dict.fromkeys(_ids_of(known), known)  # type: ignore[arg-type]  # one of two types
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
        beginning = _common_beginning(request_ids)
        if beginning is not None:
            together = _Together(request_ids, origin, seqs, hlcs)
            self._remember(beginning, together)
            self._new.append(together)
            return
        start = 0
        for beginning, some in groupby(map(_beginning, request_ids)):
            end = start + len(list(some))
            together = _Together(request_ids[start:end], origin, seqs[start:end], hlcs[start:end])
            self._remember(beginning, together)
            self._new.append(together)
            start = end

    def _remember(self, beginning: bytes, one: Made | _Together) -> None:
        """Find ids that begin so in `one` from now on."""
        known = self._known.get(beginning)
        if known is None:
            self._known[beginning] = one
        elif type(known) is dict:
            known.update(dict.fromkeys(_ids_of(one), one))
        else:
            self._known[beginning] = dict.fromkeys(_ids_of(known), known) | dict.fromkeys(_ids_of(one), one)  # type: ignore[arg-type, assignment]

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
        return lambda: {_where(number): _encode(list(_rows(new)))}

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
                elif type(known) is dict:
                    for request_id in ids:
                        if known.get(request_id) is one:  # it may have been made again since
                            del known[request_id]
                    if not known:
                        del remembered[beginning]


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
