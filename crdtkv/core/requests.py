"""The window of request ids: what lets a retried request make no second commit.

A commit that a request made carries its id, so every replica that applies the commit knows the id too: a retry is
recognised wherever the commit has arrived. The window is bounded by count and age. It is kept in side records, one
per fold of the state, not one per request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

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
        self._made: dict[bytes, Made] = {}
        self._chunks: deque[tuple[int, list[Made]]] = deque()
        self._new: list[Made] = []
        self._number = 0
        for where, record in state.scan(REQUEST_SPACE, bytes([REQUEST_SPACE[0] + 1])):
            self._number = int.from_bytes(where[1:], "big")
            chunk = _decode(record)
            self._chunks.append((self._number, chunk))
            self._made.update((made.request_id, made) for made in chunk)

    def __len__(self) -> int:
        return len(self._made)

    def get(self, request_id: bytes) -> Made | None:
        """The commit that a request made, if it is remembered. O(1)."""
        return self._made.get(request_id)

    def has_any(self, request_ids: Iterable[bytes]) -> bool:
        """Whether one of these requests made a commit that is remembered. O(ids)."""
        return not self._made.keys().isdisjoint(request_ids)

    def all(self) -> list[Made]:
        """Everything remembered, oldest first."""
        return list(self._made.values())

    def note(self, request_id: bytes, origin: Origin, seq: int, hlc: int) -> None:
        """Remember a request. O(1)."""
        made = Made(request_id, origin, seq, hlc)
        self._made[request_id] = made
        self._new.append(made)

    def note_all(self, made: list[Made]) -> None:
        """Remember requests. O(requests)."""
        self._made.update([(one.request_id, one) for one in made])
        self._new += made

    def fold(self) -> None:
        """Write what is new to the state's side records, and forget chunks that are too old or too many."""
        self._write_new()
        if self._chunks:
            self._forget(ms_of(self._chunks[-1][1][-1].hlc) - self._age_ms, keep=1)

    def trim(self, now_ms: int) -> None:
        """Forget what is older than the window by `now_ms`, although nothing newer has come."""
        self._forget(now_ms - self._age_ms, keep=0)

    def _write_new(self) -> None:
        if self._new:
            self._number += 1
            self._state.side_put(_where(self._number), _encode(self._new))
            self._chunks.append((self._number, self._new))
            self._new = []

    def _forget(self, oldest_ms: int, keep: int) -> None:
        chunks = self._chunks
        while len(chunks) > keep and ((keep and len(self._made) > self._count_max) or ms_of(chunks[0][1][-1].hlc) < oldest_ms):
            number, chunk = chunks.popleft()
            self._state.side_put(_where(number), None)
            for made in chunk:
                if self._made.get(made.request_id) is made:
                    del self._made[made.request_id]
