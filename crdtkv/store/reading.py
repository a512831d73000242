"""Reads of one key: what is visible there now, decided from records.

Every read goes slot → record → live entries → winner → expired or not. Nothing here writes or locks; single-record
reads are safe from any thread, because a record changes as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crdtkv.core.causality import Origin
from crdtkv.core.codec import TYPE_NAMES, SlotType, register_slot, slot_of, split_slot, type_range
from crdtkv.core.heads import Head
from crdtkv.core.replica import Replica
from crdtkv.core.state import State
from crdtkv.core.types.base import Entry, decode_entries, visible
from crdtkv.core.types.counter import Run, decode_run, run_slot
from crdtkv.errors import WrongTypeError


class Reader:
    """Reads one replica's records."""

    __slots__ = ("_purges", "_replica", "_state")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._purges = replica.purges
        self._state: State = replica.state

    # -- one slot -------------------------------------------------------------------------------------------------

    def entry(self, slot: bytes) -> Entry | None:
        """The visible entry of a slot, None if there is none or it has expired."""
        record = self._state.get(slot)
        if record is None:
            return None
        entries = self._replica.entries(slot, record) if self._purges.active else decode_entries(record)
        if len(entries) == 1 and entries[0].expiry is None:
            return entries[0]
        return visible(entries, self._replica.now_ms()) if entries else None

    def values(self, slots: Sequence[bytes]) -> list[bytes | None]:
        """What `entry` says of each slot, of which the value alone."""
        if self._purges.active:
            return [None if (entry := self.entry(slot)) is None else entry.value for slot in slots]
        values: list[bytes | None] = []
        for record in self._state.get_all(slots):
            if record is None:
                values.append(None)
                continue
            entries = decode_entries(record)
            if len(entries) == 1 and entries[0].expiry is None:
                values.append(entries[0].value)
            else:
                entry = visible(entries, self._replica.now_ms())
                values.append(None if entry is None else entry.value)
        return values

    def register(self, key: bytes) -> Entry | None:
        """The visible entry of a key's register."""
        return self.entry(register_slot(key))

    def entries(self, slot: bytes) -> list[Entry]:
        """All live entries of a slot, expired ones included."""
        record = self._state.get(slot)
        return [] if record is None else self._replica.entries(slot, record)

    # -- a key ----------------------------------------------------------------------------------------------------

    def head(self, key: bytes) -> Head | None:
        return self._replica.heads.get(key)

    def runs(self, key: bytes) -> list[tuple[Origin, int, Run]]:
        """The runs of a key's counter, dead ones included, as `(origin, run, Run)` in order."""
        found = []
        for origin, number in sorted(self._replica.heads.runs(key)):
            record = self._state.get(run_slot(key, origin, number))
            if record is not None:
                found.append((origin, number, decode_run(record)))
        return found

    def counter(self, key: bytes) -> int | None:
        """A counter's value, None if no run of it is live."""
        live = [run.amount for _, _, run in self.runs(key) if run.live]
        return sum(live) if live else None

    def visible_types(self, key: bytes) -> list[int]:
        """The types that are visible at a key, in type order. O(1) unless elements may have expired."""
        types = []
        if self.register(key) is not None:
            types.append(SlotType.REGISTER)
        head = self.head(key)
        if head is not None:
            if head.set_slots and self.has_elements(key, SlotType.SET, head):
                types.append(SlotType.SET)
            if head.runs and self.counter(key) is not None:
                types.append(SlotType.COUNTER)
            if head.map_slots and self.has_elements(key, SlotType.MAP, head):
                types.append(SlotType.MAP)
        return types

    def exact(self, key: bytes, type_code: int, head: Head) -> bool:
        """Whether the head's count is the number of visible elements: nothing expires, no clear is in progress."""
        return not head.expires(type_code) and not (self._purges.active and self._purges.cleared(slot_of(key, type_code)))

    def has_elements(self, key: bytes, type_code: int, head: Head) -> bool:
        """Whether a collection has a visible element."""
        if not head.slots(type_code):
            return False
        return self.exact(key, type_code, head) or next(self.elements(key, type_code), None) is not None

    def size(self, key: bytes, type_code: int) -> int:
        """How many visible elements or fields a collection has."""
        head = self.head(key)
        if head is None or not head.slots(type_code):
            return 0
        if self.exact(key, type_code, head):
            return head.slots(type_code)
        return sum(1 for _ in self.elements(key, type_code))

    def elements(self, key: bytes, type_code: int) -> Iterator[tuple[bytes, Entry]]:
        """The visible elements or fields of a collection as `(subkey, entry)` in canonical order.

        The state must not change meanwhile, except by what was already yielded.
        """
        now = self._replica.now_ms()
        for slot, record in self._state.scan(*type_range(key, type_code)):
            entries = self._replica.entries(slot, record)
            entry = visible(entries, now) if entries else None
            if entry is not None:
                yield split_slot(slot)[2], entry

    # -- checks ---------------------------------------------------------------------------------------------------

    def require(self, key: bytes, type_code: int) -> None:
        """Raise `WrongTypeError` if something visible is at the key, and not of this type."""
        head = self._replica.heads.get(key)
        if head is None:
            # No collection: a register may be written; a collection only where no register is visible.
            if type_code == SlotType.REGISTER or self.register(key) is None:
                return
        elif type_code in (SlotType.SET, SlotType.MAP) and head.slots(type_code) and self.exact(key, type_code, head):
            return
        types = self.visible_types(key)
        if types and type_code not in types:
            raise wrong_type(key, types, type_code)


def wrong_type(key: bytes, types: list[int], wanted: int) -> WrongTypeError:
    """The error of a call for another type than what is at the key."""
    held = " and a ".join(TYPE_NAMES[t] for t in types)
    return WrongTypeError(
        f"key {key.decode()!r} holds a {held}, the call is for a {TYPE_NAMES[wanted]}: use another key, or delete it first",
        key=key.decode(),
        types=[TYPE_NAMES[t] for t in types],
        wanted=TYPE_NAMES[wanted],
    )
