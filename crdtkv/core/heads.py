"""Heads: one bookkeeping record per key that holds a collection, so that nothing needs to scan to be known.

A head counts the slots of the key's set and map, names the runs of its counter, and remembers whether an element or
field with an expiry was ever among them. It is local (outside state and digest) and follows each change of a slot.
A key without a head has no collection: one missing record answers the type check of a register's put.
"""

from __future__ import annotations

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.codec import NUL, SlotType, escape
from crdtkv.core.state import State
from crdtkv.errors import CorruptionError

HEAD_SPACE = b"h"


class Head(msgspec.Struct, array_like=True, gc=False):
    """Counts of slots in the set and the map, whether any may expire, and the counter's runs."""

    set_slots: int = 0
    set_expires: bool = False
    map_slots: int = 0
    map_expires: bool = False
    runs: list[tuple[str, int]] = []

    @property
    def is_empty(self) -> bool:
        return not self.set_slots and not self.map_slots and not self.runs

    def slots(self, type_code: int) -> int:
        return self.set_slots if type_code == SlotType.SET else self.map_slots

    def expires(self, type_code: int) -> bool:
        return self.set_expires if type_code == SlotType.SET else self.map_expires


_decode = msgspec.msgpack.Decoder(Head).decode
encode_head = msgspec.msgpack.Encoder().encode


def decode_head(record: bytes) -> Head:
    """A head's record, checked: `CorruptionError` for anything else."""
    try:
        return _decode(record)
    except (msgspec.DecodeError, ValueError) as e:
        raise CorruptionError(f"a head does not decode: {e}") from e


def head_key(key: bytes) -> bytes:
    """The side record of a key's head."""
    return HEAD_SPACE + key if NUL not in key else HEAD_SPACE + escape(key)


class Heads:
    """Reads and keeps the heads of one state.

    Heads that changed wait here, decoded, until the state is folded: adding to one set over and over counts in place.
    """

    __slots__ = ("_changed", "_state", "exist")

    def __init__(self, state: State) -> None:
        self._state = state
        self._changed: dict[bytes, Head] = {}
        self.exist = next(state.scan(HEAD_SPACE, bytes([HEAD_SPACE[0] + 1])), None) is not None
        """Whether there is any head, or was since the start: a store of registers alone never looks one up."""

    def get(self, key: bytes) -> Head | None:
        """The head of a key, None if it has no collection. Not to be changed."""
        where = head_key(key)
        head = self._changed.get(where)
        if head is not None:
            return None if head.is_empty else head
        record = self._state.side_get(where)
        return None if record is None else _decode(record)

    def counting(self, where: bytes) -> Head | None:
        """The head at `head_key(key)` if it has changed since the last fold: then whoever adds a slot may count it there."""
        return self._changed.get(where)

    def count(self, key: bytes, type_code: int, change: int, expires: bool = False) -> None:
        """Note that `change` slots of a collection came (or, negative, went)."""
        head = self._to_change(key)
        if type_code == SlotType.SET:
            head.set_slots += change
            head.set_expires = (head.set_expires or expires) and head.set_slots > 0
            assert head.set_slots >= 0, "a set's head counts less than nothing"
        else:
            head.map_slots += change
            head.map_expires = (head.map_expires or expires) and head.map_slots > 0
            assert head.map_slots >= 0, "a map's head counts less than nothing"

    def runs(self, key: bytes) -> list[tuple[Origin, int]]:
        """The runs of a key's counter, dead ones included."""
        head = self.get(key)
        return [] if head is None else [(Origin(o), n) for o, n in head.runs]

    def add_run(self, key: bytes, origin: Origin, run: int) -> None:
        """Note a new run."""
        head = self._to_change(key)
        head.runs = [*head.runs, (origin, run)]

    def drop_run(self, key: bytes, origin: Origin, run: int) -> None:
        """Note that a run's record is gone."""
        head = self._to_change(key)
        assert (origin, run) in head.runs, "a run that its head does not name"
        head.runs = [r for r in head.runs if r != (origin, run)]

    def replace(self, key: bytes, head: Head) -> None:
        """Put a head that was counted anew."""
        self._changed[head_key(key)] = head
        self.exist = True

    def fold(self) -> None:
        """Put the heads that changed into the state's side records. O(changed)."""
        for where, head in self._changed.items():
            self._state.side_put(where, None if head.is_empty else encode_head(head))
        self._changed = {}

    def _to_change(self, key: bytes) -> Head:
        where = head_key(key)
        head = self._changed.get(where)
        if head is None:
            record = self._state.side_get(where)
            head = self._changed[where] = Head() if record is None else _decode(record)
            self.exist = True
        return head
