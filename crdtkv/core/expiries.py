"""The index of expiries: under each instant at which an entry of a slot expires the slot is listed, in a side record of its own.

A place stays when its entry goes before its time; whoever finds it due looks at the slot, and drops it.
"""

from __future__ import annotations

from itertools import islice

from crdtkv.core.codec import successor
from crdtkv.core.state import State

EXPIRY_SPACE = b"t"
_AFTER = successor(EXPIRY_SPACE)


def expiry_key(expiry_ms: int, slot: bytes) -> bytes:
    """The place in the index of a slot of which an entry expires at an instant: the key of a side record."""
    return EXPIRY_SPACE + expiry_ms.to_bytes(8, "big") + slot


class Expiries:
    """See the module's docstring. To ask whether anything is due costs nothing before the first instant that is listed."""

    __slots__ = ("_first", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._first = EXPIRY_SPACE
        """No place comes before this one."""

    def add(self, place: bytes) -> None:
        """List a slot, at its `expiry_key`."""
        self._state.side_put(place, b"")
        if place < self._first:
            self._first = place

    def drop(self, place: bytes) -> None:
        """Take a slot off the list."""
        self._state.side_put(place, None)

    def until(self, now_ms: int, limit: int, start: bytes = EXPIRY_SPACE) -> list[bytes]:
        """The places of the instants up to now, in order, from one on, so many at most."""
        end = EXPIRY_SPACE + (now_ms + 1).to_bytes(8, "big")
        if end <= self._first:
            return []
        found = [place for place, _ in islice(self._state.scan(start, end), limit)]
        if not found and start == EXPIRY_SPACE:
            self._first = next((place for place, _ in self._state.scan(end, _AFTER)), _AFTER)
        return found
