"""Heads: one bookkeeping record per key that holds a collection, so that nothing needs to scan to be known.

A head counts the slots of the key's set and map, names the runs of its counter, and remembers whether an element or
field with an expiry was ever among them. It is local (outside state and digest) and follows each change of a slot.
A key without a head has no collection: one missing record answers the type check of a register's put.
"""

from __future__ import annotations

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.codec import SlotType, escape
from crdtkv.core.state import State

HEAD_SPACE = b"h"


class Head(msgspec.Struct, array_like=True, gc=False):
    """Counts of slots in the set and the map, whether any may expire, and the counter's runs."""

    set_slots: int = 0
    set_expires: bool = False
    map_slots: int = 0
    map_expires: bool = False
    runs: list[tuple[str, int]] = []

    def slots(self, type_code: int) -> int:
        return self.set_slots if type_code == SlotType.SET else self.map_slots

    def expires(self, type_code: int) -> bool:
        return self.set_expires if type_code == SlotType.SET else self.map_expires


decode_head = msgspec.msgpack.Decoder(Head).decode
_encode = msgspec.msgpack.Encoder().encode


def head_key(key: bytes) -> bytes:
    """The side record of a key's head."""
    return HEAD_SPACE + key if b"\x00" not in key else HEAD_SPACE + escape(key)


class Heads:
    """Reads and keeps the heads of one state."""

    __slots__ = ("_state", "exist")

    def __init__(self, state: State) -> None:
        self._state = state
        self.exist = next(state.scan(HEAD_SPACE, bytes([HEAD_SPACE[0] + 1])), None) is not None
        """Whether there is any head, or was since the start: a store of registers alone never looks one up."""

    def get(self, key: bytes) -> Head | None:
        """The head of a key, None if it has no collection."""
        record = self._state.side_get(head_key(key))
        return None if record is None else decode_head(record)

    def count(self, key: bytes, type_code: int, change: int, expires: bool = False) -> None:
        """Note that `change` slots of a collection came (or, negative, went)."""
        where = head_key(key)
        record = self._state.side_get(where)
        head = Head() if record is None else decode_head(record)
        if type_code == SlotType.SET:
            head.set_slots += change
            head.set_expires = (head.set_expires or expires) and head.set_slots > 0
            assert head.set_slots >= 0, "a set's head counts less than nothing"
        else:
            head.map_slots += change
            head.map_expires = (head.map_expires or expires) and head.map_slots > 0
            assert head.map_slots >= 0, "a map's head counts less than nothing"
        self._save(where, head)

    def runs(self, key: bytes) -> list[tuple[Origin, int]]:
        """The runs of a key's counter, dead ones included."""
        head = self.get(key)
        return [] if head is None else [(Origin(o), n) for o, n in head.runs]

    def add_run(self, key: bytes, origin: Origin, run: int) -> None:
        """Note a new run."""
        head = self.get(key) or Head()
        head.runs = [*head.runs, (origin, run)]
        self._save(head_key(key), head)

    def drop_run(self, key: bytes, origin: Origin, run: int) -> None:
        """Note that a run's record is gone."""
        head = self.get(key)
        assert head is not None, "a run without a head"
        head.runs = [r for r in head.runs if r != (origin, run)]
        self._save(head_key(key), head)

    def _save(self, where: bytes, head: Head) -> None:
        self.exist = True
        empty = not head.set_slots and not head.map_slots and not head.runs
        self._state.side_put(where, None if empty else _encode(head))
