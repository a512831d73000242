"""A replica's slots as its auditor knows them, and what follows from them, brought up to date change by change.

To look at a whole state after each step would cost more than the step. So only records are looked at that may have changed: those where
the overlay is not what it was at the last look, and those that the engine was written since. Every so many looks, at the end of a run, and
whenever a replica was rebuilt, everything is looked at anew, and must be what the changes had added up to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.codec import SLOT_SPACE, TYPE_CODES, TYPE_NAMES, SlotType, slot_of, split_slot, successor
from crdtkv.core.state import hash_record
from crdtkv.core.types.base import decode_entries
from crdtkv.core.types.counter import Run, decode_run, run_name
from crdtkv.simulation.specification import Live, Slot

if TYPE_CHECKING:
    from crdtkv.core.replica import Replica
    from crdtkv.simulation.member import Member

COUNTER: Final = TYPE_CODES["counter"]
DIGEST_MASK: Final = (1 << 128) - 1
WHOLE_EVERY: Final = 32
"""After so many looks at what may have changed, everything is looked at; where a quarter of the number of slots is more, after so many."""

parts_of = lru_cache(maxsize=1 << 14)(split_slot)
"""Key, type and subkey of a slot."""


@lru_cache(maxsize=1 << 14)
def name_of(slot: bytes) -> Slot:
    """A slot's record key in the words of the specification."""
    key, kind, subkey = parts_of(slot)
    return key.decode(), TYPE_NAMES[kind], subkey


@lru_cache(maxsize=1 << 14)
def collection_of(slot: bytes) -> bytes:
    """What the slots of its collection begin with."""
    key, kind, _ = parts_of(slot)
    return slot_of(key, kind)


@lru_cache(maxsize=1 << 14)
def live_in(record: bytes) -> tuple[Live, ...]:
    """The writes in a slot's record, of any type but a counter's."""
    return tuple([Live(e.dot, e.hlc, e.value, e.expiry) for e in decode_entries(record)])


run_in = lru_cache(maxsize=1 << 14)(decode_run)
"""The run in a counter slot's record."""
share_of = lru_cache(maxsize=1 << 14)(hash_record)
"""A slot's share of the digest."""


def counts(run: Run) -> bool:
    """Whether a run counts: nothing that came after its last increment has reset it."""
    return run.seq > run.base_seq


class Head:
    """What the bookkeeping of one key must say: slots per kind of collection, and the names of runs."""

    __slots__ = ("runs", "slots")

    def __init__(self) -> None:
        self.slots = [0, 0]
        self.runs: set[tuple[Origin, int]] = set()


class FollowedSlots:
    """See the module's docstring.

    Attributes:
        records: every slot's record.
        live: the writes of each slot that is no counter's, without those that a clear in progress has covered.
        runs: of each counter slot.
        counters: the value of each counter that has a live run.
        total: the digest that the records add up to; says nothing while a clear is in progress.
        heads: per key.
        expiries: of live writes that expire, the instants by slot.
    """

    def __init__(self) -> None:
        self._overlay: dict[bytes, bytes | None] = {}
        self._cleared: Mapping[bytes, VersionVector] = {}
        self._looks = 0
        self._is_rebuilt = True
        self.records: dict[bytes, bytes] = {}
        self.live: dict[Slot, tuple[Live, ...]] = {}
        self.runs: dict[bytes, Run] = {}
        self.counters: dict[str, int] = {}
        self._amounts: dict[str, dict[bytes, int]] = {}
        """What each live run of a counter amounts to."""
        self.total = 0
        self.heads: dict[bytes, Head] = {}
        self.expiries: dict[bytes, list[int]] = {}
        self._instants: list[int] | None = None
        """All of them, in order; None: to be made anew."""

    def rebuilt(self) -> None:
        """The replica was rebuilt: look at everything next time."""
        self._is_rebuilt = True

    def follow(self, member: Member, *, wholly: bool = False) -> list[bytes]:
        """Look; returns the slots that have changed since the last look. `wholly`: at everything, whatever may have changed."""
        replica = member.machine.replica
        overlay, touched = replica.state.waiting(), member.engine.take_touched()
        self._looks += 1
        if self._is_rebuilt or wholly or self._looks > max(WHOLE_EVERY, len(self.records) // 4):
            self._looks, self._is_rebuilt = 0, False
            changed = self._look_at_everything(replica)
        elif touched or overlay != self._overlay:
            before = self._overlay
            put = [slot for slot, record in overlay.items() if slot not in before or before[slot] is not record]
            changed = self._look_at({*put, *(before.keys() - overlay.keys()), *touched}, replica)
        else:
            changed = []
        self._overlay = overlay
        if self._cleared or replica.purges.vvs:
            self._follow_clears(replica, changed)
        return changed

    def _look_at(self, slots: set[bytes], replica: Replica) -> list[bytes]:
        """Slots that may have changed; among them, what is none. Returns those that have."""
        get, known = replica.state.get, self.records.get
        found = [(slot, record) for slot in slots if slot.startswith(SLOT_SPACE) and (record := get(slot)) != known(slot)]
        found.sort()
        for slot, record in found:
            self._put(slot, record)
        return [slot for slot, _ in found]

    def _look_at_everything(self, replica: Replica) -> list[bytes]:
        before, found = self.records, dict(replica.state.scan(SLOT_SPACE, successor(SLOT_SPACE)))
        changed = [slot for slot in {**before, **found} if before.get(slot) != found.get(slot)]
        for slot in changed:
            self._put(slot, found.get(slot))
        assert self._adds_up(found), "what was followed is not what is there"
        return changed

    def _follow_clears(self, replica: Replica, changed: list[bytes]) -> None:
        """While a clear is in progress, what is shown of its collection is less than what is there."""
        before, self._cleared = self._cleared, replica.purges.vvs
        concerned = changed
        if before != self._cleared:
            collections = before.keys() | self._cleared.keys()
            concerned = [slot for slot in self.records if collection_of(slot) in collections]
            concerned += [slot for slot in changed if slot not in self.records]
        for slot in concerned:
            if parts_of(slot)[1] != COUNTER:
                record, cleared = self.records.get(slot), self._cleared.get(collection_of(slot))
                live = () if record is None else live_in(record)
                self._show(slot, live if cleared is None else tuple([write for write in live if not cleared.covers(write.dot)]))

    def _adds_up(self, found: dict[bytes, bytes]) -> bool:
        return self.records == found and self.total == sum(
            share_of(slot, record) for slot, record in found.items() if parts_of(slot)[1] != COUNTER or counts(run_in(record))
        )  # fmt: skip

    def _put(self, slot: bytes, record: bytes | None) -> None:
        key, kind, subkey = parts_of(slot)
        before = self.records.pop(slot, None)
        if record is not None:
            self.records[slot] = record
        if kind == COUNTER:
            self._put_run(slot, key, run_name(subkey), before, record)
            return
        if before is not None:
            self.total -= share_of(slot, before)
        if record is not None:
            self.total += share_of(slot, record)
        self._show(slot, () if record is None else live_in(record))
        if kind != SlotType.REGISTER and (before is None) != (record is None):
            self._head(key).slots[kind == SlotType.MAP] += 1 if before is None else -1

    def _put_run(self, slot: bytes, key: bytes, name: tuple[Origin, int], before: bytes | None, record: bytes | None) -> None:
        counter = key.decode()
        amounts = self._amounts.setdefault(counter, {})
        if before is not None and counts(run_in(before)):
            self.total -= share_of(slot, before)
        amounts.pop(slot, None)
        self.runs.pop(slot, None)
        if record is None:
            self._head(key).runs.discard(name)
        else:
            run = self.runs[slot] = run_in(record)
            self._head(key).runs.add(name)
            if counts(run):
                self.total += share_of(slot, record)
                amounts[slot] = run.total - run.base
        if amounts:
            self.counters[counter] = sum(amounts.values())
        else:
            del self._amounts[counter]
            self.counters.pop(counter, None)

    def _show(self, slot: bytes, live: tuple[Live, ...]) -> None:
        if live:
            self.live[name_of(slot)] = live
        else:
            self.live.pop(name_of(slot), None)
        expiries = [write.expiry for write in live if write.expiry is not None]
        if expiries:
            self.expiries[slot] = expiries
        elif self.expiries.pop(slot, None) is None:
            return
        self._instants = None

    def _head(self, key: bytes) -> Head:
        head = self.heads.get(key)
        if head is None:
            head = self.heads[key] = Head()
        return head

    def expired_by(self, now_ms: int) -> int:
        """How many of the writes shown have expired: reads change when this does, though nothing is written."""
        if self._instants is None:
            self._instants = sorted([instant for instants in self.expiries.values() for instant in instants])
        return bisect_right(self._instants, now_ms)
