"""Mending a replica whose records were changed behind its back: taking over what another replica holds, and counting anew.

A record may be taken over from a donor state at vector `d` by a replica that has applied all of `d` and more, if none of the commits that
it has beyond `d` touches the slot: then what the donor holds is what the replica must hold. `Touches` says which slots those commits
touch; a slot among them waits for a later state of the donor.

What stands beside a slot (heads, the index of expiries) is made anew from the slots. The digest is a sum that each commit adjusts by
what it finds, so damage leaves it off by a constant: `State.correct_digest` adds what a scan of a snapshot finds missing in that
snapshot's digest, whatever has been committed since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from crdtkv.core.apply import Applier, Touched, update_of
from crdtkv.core.codec import SlotType, key_range, slot_of, split_slot
from crdtkv.core.expiries import expiry_key
from crdtkv.core.frame import DeltaKind, Frame
from crdtkv.core.heads import Head
from crdtkv.core.journal import RULE_REPAIR, Update
from crdtkv.core.replica import Replica
from crdtkv.core.types.base import Entry, decode_entries, winner
from crdtkv.core.types.counter import decode_run, list_dead, run_name
from crdtkv.errors import CorruptionError

_BROKEN = (ValueError, IndexError, KeyError, CorruptionError, msgspec.DecodeError)


class Touches:
    """The slots that some frames touch."""

    def __init__(self, replica: Replica, frames: Iterable[Frame]) -> None:
        self._slots: set[bytes] = set()
        self._collections: set[bytes] = set()  # those that are cleared, by their first slot
        for frame in frames:
            self._slots.update(replica.touches((frame,)))
            for _, _, _, deltas in frame.commits():
                for delta in deltas:
                    if delta[0] == DeltaKind.SET_CLEAR:
                        self._collections.add(slot_of(delta[1].encode(), SlotType.SET))
                    elif delta[0] == DeltaKind.MAP_CLEAR:
                        self._collections.add(slot_of(delta[1].encode(), SlotType.MAP))

    def __contains__(self, slot: bytes) -> bool:
        if slot in self._slots:
            return True
        try:
            key, type_code, _ = split_slot(slot)
            return slot_of(key, type_code) in self._collections
        except _BROKEN:
            return False  # what is no slot is touched by nothing


def adopt(replica: Replica, slot: bytes, record: bytes | None, donor: str) -> Touched | None:
    """Put a donor's record (None: none) where the replica has another, and journal that. The caller makes sure that it may be.

    Heads are `recount`ed by the caller, once for each key.

    Args:
        donor: its region, for the journal.
    Returns:
        What changed, None if the record was the same already.
    """
    before = replica.state.get(slot)
    if before == record:
        return None
    replica.state.put(slot, record)
    try:
        key, type_code, subkey = split_slot(slot)
        slot_of(key, type_code)
        text = key.decode()
    except _BROKEN:
        return Touched("", 0, b"", "repair", replica.origin, 0, 0)  # no slot at all, and now gone
    if type_code == SlotType.COUNTER:
        list_dead(replica.state, slot, None if record is None or decode_run(record).live else replica.vv())
    entries = [] if record is None or type_code == SlotType.COUNTER else decode_entries(record)
    for entry in entries:
        if entry.expiry is not None:
            replica.expiries.add(expiry_key(entry.expiry, slot))
    shown = b"" if type_code == SlotType.COUNTER else subkey
    kind = "increment" if type_code == SlotType.COUNTER else Applier.change_kind(type_code, bool(entries))
    now = Update(replica.origin, 0, replica.clock.mark, kind, None)
    if entries:
        now = update_of(winner(entries), type_code)
    rule = f"{RULE_REPAIR} {donor}"
    replica.journal.record(key, type_code, shown, rule, now, [_damaged(replica, type_code, before)], replica.clock.mark, installed=True)
    return Touched(text, type_code, shown, kind, now.origin, now.seq, now.hlc)


def _damaged(replica: Replica, type_code: int, before: bytes | None) -> Update:
    """What was there, as far as it can be told."""
    nothing = Update(replica.origin, 0, replica.clock.mark, "missing" if before is None else "damaged", None)
    if before is None or type_code == SlotType.COUNTER:
        return nothing
    try:
        found: list[Entry] = decode_entries(before)
        update = update_of(winner(found), type_code)
        if update.value is not None:
            msgspec.msgpack.decode(update.value)
        return update
    except _BROKEN:
        return nothing


def recount(replica: Replica, key: bytes) -> None:
    """Make the head of a key anew from its slots. O(slots of the key)."""
    head = Head()
    start, end = key_range(key)
    for slot, record in replica.state.scan(start, end):
        _count(head, slot, record)
    replica.heads.replace(key, head)


def _count(head: Head, slot: bytes, record: bytes) -> list[int]:
    """Count a slot in its key's head; the expiries of its entries."""
    _, type_code, subkey = split_slot(slot)
    try:
        if type_code == SlotType.COUNTER:
            head.runs = [*head.runs, run_name(subkey)]
            return []
        expiries = [e.expiry for e in decode_entries(record) if e.expiry is not None]
    except _BROKEN:
        expiries = []
    if type_code == SlotType.SET:
        head.set_slots += 1
        head.set_expires = head.set_expires or bool(expiries)
    elif type_code == SlotType.MAP:
        head.map_slots += 1
        head.map_expires = head.map_expires or bool(expiries)
    return expiries


@dataclass(slots=True)
class Beside:
    """What records amount to, gathered slot by slot in order: the heads, and the places in the index of expiries."""

    key: bytes = b""
    head: Head | None = None

    def take(self, slot: bytes, record: bytes) -> tuple[tuple[bytes, Head] | None, list[bytes]]:
        """The head of the key before, if this slot is another key's; and where this slot must be listed."""
        try:
            key, _, _ = split_slot(slot)
        except _BROKEN:
            return None, []
        done = None
        if key != self.key:
            done = self.finish()
            self.key, self.head = key, Head()
        assert self.head is not None
        return done, [expiry_key(expiry, slot) for expiry in _count(self.head, slot, record)]

    def finish(self) -> tuple[bytes, Head] | None:
        """The head of the last key."""
        return None if self.head is None else (self.key, self.head)
