"""The window of request ids: what lets a retried request make no second commit.

A commit that a request made carries its id, so every replica that applies the commit knows the id too: a retry is
recognised wherever the commit has arrived. The window is bounded by count and age. It is kept in side records, one
per fold of the state, not one per request; and most requests come in frames of hundreds, whose ids share one object (`_Together`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.clock import ms_of
from crdtkv.core.state import State

REQUEST_SPACE = b"q"


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


class RequestWindow:
    """Request id → the commit that it made, oldest forgotten first, a chunk (what one fold wrote) at a time."""

    __slots__ = ("_age_ms", "_chunks", "_count_max", "_made", "_new", "_number", "_state")

    def __init__(self, state: State, *, count_max: int, age_ms: int) -> None:
        self._state = state
        self._count_max = count_max
        self._age_ms = age_ms
        self._made: dict[bytes, Made | _Together] = {}
        self._chunks: deque[tuple[int, list[Made | _Together]]] = deque()
        self._new: list[Made | _Together] = []
        self._number = 0
        for where, record in state.scan(REQUEST_SPACE, bytes([REQUEST_SPACE[0] + 1])):
            self._number = int.from_bytes(where[1:], "big")
            chunk = _decode(record)
            self._chunks.append((self._number, list(chunk)))
            self._made.update((made.request_id, made) for made in chunk)

    def __len__(self) -> int:
        return len(self._made)

    def get(self, request_id: bytes) -> Made | None:
        """The commit that a request made, if it is remembered. O(1), or O(requests of its frame) if it came with one."""
        found = self._made.get(request_id)
        return found.made(request_id) if type(found) is _Together else found  # type: ignore[return-value]  # one of two types, or None

    def has_any(self, request_ids: Iterable[bytes]) -> bool:
        """Whether one of these requests made a commit that is remembered. O(ids)."""
        return not self._made.keys().isdisjoint(request_ids)

    def all(self) -> list[Made]:
        """Everything remembered, oldest first."""
        return [one.made(request_id) if type(one) is _Together else one for request_id, one in self._made.items()]  # type: ignore[misc]

    def note(self, request_id: bytes, origin: Origin, seq: int, hlc: int) -> None:
        """Remember a request. O(1)."""
        made = Made(request_id, origin, seq, hlc)
        self._made[request_id] = made
        self._new.append(made)

    def note_all(self, request_ids: Sequence[bytes], origin: Origin, seqs: Sequence[int], hlcs: Sequence[int]) -> None:
        """Remember requests of one frame, in columns that do not change any more. O(requests)."""
        together = _Together(request_ids, origin, seqs, hlcs)
        self._made.update(dict.fromkeys(request_ids, together))
        self._new.append(together)

    def fold(self) -> None:
        """Write what is new to the state's side records, and forget chunks that are too old or too many."""
        self._write_new()
        if self._chunks:
            self._forget(ms_of(_last_hlc(self._chunks[-1][1])) - self._age_ms, keep=1)

    def trim(self, now_ms: int) -> None:
        """Forget what is older than the window by `now_ms`, although nothing newer has come."""
        self._forget(now_ms - self._age_ms, keep=0)

    def _write_new(self) -> None:
        if self._new:
            self._number += 1
            rows: list[Made | tuple[bytes, Origin, int, int]] = []
            for one in self._new:
                if type(one) is _Together:
                    rows += one.rows()
                else:
                    rows.append(one)  # type: ignore[arg-type]  # one of two types
            self._state.side_put(_where(self._number), _encode(rows))
            self._chunks.append((self._number, self._new))
            self._new = []

    def _forget(self, oldest_ms: int, keep: int) -> None:
        chunks, remembered = self._chunks, self._made
        while len(chunks) > keep and ((keep and len(remembered) > self._count_max) or ms_of(_last_hlc(chunks[0][1])) < oldest_ms):
            number, chunk = chunks.popleft()
            self._state.side_put(_where(number), None)
            for one in chunk:
                ids = one.request_ids if type(one) is _Together else (one.request_id,)  # type: ignore[union-attr]  # one of two types
                if list(map(remembered.get, ids)).count(one) < len(ids):  # some were made again since, and those stay
                    ids = [request_id for request_id in ids if remembered.get(request_id) is one]
                for request_id in ids:
                    remembered.pop(request_id, None)


def _last_hlc(chunk: Sequence[Made | _Together]) -> int:
    last = chunk[-1]
    return last.hlcs[-1] if type(last) is _Together else last.hlc  # type: ignore[union-attr]  # one of two types
