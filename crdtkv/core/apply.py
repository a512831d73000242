"""One commit's effect on the state: what every type's deltas are made of.

An `Applier` holds what a commit has seen (`seen`: its context, with its own origin up to the seq before it) and
applies writes, removals and clears to slots, keeps the bookkeeping beside them (heads, removals, journal, expiries)
and gathers the visible changes. Local and received commits take the same steps; a local commit has seen everything,
so it meets no conflict.

Clearing a large collection must not stop the store, so it is *sliced*: the commit leaves a purge record that names
what is cleared (as a version vector), every read and write of the collection filters by it, and `purge_slice` drops
the cleared entries some at a time. The digest is not settled until the purge is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import compress, repeat
from operator import gt, itemgetter

import msgspec
from msgspec import ValidationError

from crdtkv.core.causality import EMPTY_VV, SEQ_MAX, Dot, Origin, VersionVector
from crdtkv.core.codec import SlotType, slot_of, split_slot, successor, type_range
from crdtkv.core.expiries import Expiries, expiry_key
from crdtkv.core.frame import Delta, Puts
from crdtkv.core.heads import Heads
from crdtkv.core.journal import (
    RULE_ADD_WINS,
    RULE_ELEMENT,
    RULE_INCREMENT_SURVIVES,
    RULE_LWW,
    RULE_WRITE_SURVIVES,
    Journal,
    PutMet,
    Update,
)
from crdtkv.core.removals import Removal, Removals
from crdtkv.core.state import State
from crdtkv.core.types.base import (
    ONE_ENTRY,
    TWO_ENTRIES,
    Entry,
    PlainEntry,
    decode_entries,
    decode_only_entry,
    encode_entries,
    rank,
    uncovered,
    winner,
)

PURGE_SPACE = b"p"
CLEAR_AT_ONCE_MAX = 1000
"""A clear of at most this many slots is done within its commit (`Settings.clear_at_once_max`)."""

_join = b"".join
_origin_of, _stamp_of = itemgetter(0), itemgetter(2)
"""Of a `PlainEntry`."""
_without_count = itemgetter(slice(1, None))
"""Of a record of up to 15 entries, what follows its first byte: the entries."""
_WRITE_KINDS = {SlotType.REGISTER: "put", SlotType.SET: "add", SlotType.MAP: "put"}
_REMOVE_KINDS = {SlotType.REGISTER: "delete", SlotType.SET: "remove", SlotType.MAP: "delete", SlotType.COUNTER: "reset"}


class Touched(msgspec.Struct, frozen=True, gc=False):
    """A slot whose visible value may have changed. `subkey` is b"" for registers, counters and whole collections.

    `value`: what became visible there, where that is at hand: of a put to a register that does not expire.
    """

    key: str
    type_code: int
    subkey: bytes
    kind: str
    origin: Origin
    seq: int
    hlc: int
    value: bytes | None = None


class TouchedPuts(msgspec.Struct, frozen=True):
    """`Touched` of registers that one received frame put for good, in columns: it may be one of many, and seldom is each looked at.

    Of those that were gathered for their keys only there are no other columns.
    """

    origin: Origin
    keys: Sequence[str]
    seqs: Sequence[int]
    hlcs: Sequence[int]
    values: Sequence[bytes]

    def each(self) -> Iterator[Touched]:
        for key, seq, hlc, value in zip(self.keys, self.seqs, self.hlcs, self.values, strict=True):
            yield Touched(key, SlotType.REGISTER, b"", "put", self.origin, seq, hlc, value)


Changes = list[Touched | TouchedPuts]
"""What changes visibly, in order, as it is gathered."""


class Clear(msgspec.Struct, array_like=True, frozen=True):
    """One clear in progress: entries covered by `cleared` are gone; slots before `cursor` are done.

    `present` is what the replica had applied when the clear came: an entry that it covers and `cleared` does not
    met the clear here. (A later entry has seen the clear, or meets it through the index of removals.)
    """

    cleared: list[str | int]
    present: list[str | int]
    cursor: bytes
    origin: Origin
    seq: int
    hlc: int


class Purge(msgspec.Struct, array_like=True, frozen=True):
    """The clears in progress of one collection, in the order in which they came."""

    clears: list[Clear]

    def vv(self) -> VersionVector:
        """What is cleared: an entry is gone if any of the clears covers it."""
        joined = EMPTY_VV
        for clear in self.clears:
            joined = joined.join(VersionVector.from_flat(clear.cleared))
        return joined


Clearing = tuple[Clear, VersionVector, VersionVector]
"""A clear in progress, what it cleared, and what was present."""

_decode_purge = msgspec.msgpack.Decoder(Purge).decode
_encode = msgspec.msgpack.Encoder().encode


class Purges:
    """The clears in progress, by the first slot of their collection; normally none."""

    __slots__ = ("_state", "active", "vvs")

    def __init__(self, state: State) -> None:
        self._state = state
        self.active: dict[bytes, Purge] = {k[1:]: _decode_purge(v) for k, v in state.scan(PURGE_SPACE, bytes([PURGE_SPACE[0] + 1]))}
        self.vvs: dict[bytes, VersionVector] = {start: p.vv() for start, p in self.active.items()}

    def __bool__(self) -> bool:
        return bool(self.active)

    def clears(self, start: bytes) -> list[Clearing]:
        """The clears in progress of the collection whose first slot is `start`, in the order in which they came."""
        return [(c, VersionVector.from_flat(c.cleared), VersionVector.from_flat(c.present)) for c in self.active[start].clears]

    def cleared(self, start: bytes) -> VersionVector | None:
        """What is cleared of the collection whose first slot is `start`."""
        return self.vvs.get(start)

    def save(self, start: bytes, purge: Purge) -> None:
        self.active = {**self.active, start: purge}
        self.vvs = {**self.vvs, start: purge.vv()}
        self._state.side_put(PURGE_SPACE + start, _encode(purge))

    def drop(self, start: bytes) -> None:
        self.active = {s: p for s, p in self.active.items() if s != start}
        self.vvs = {s: v for s, v in self.vvs.items() if s != start}
        self._state.side_put(PURGE_SPACE + start, None)


def _met_by(origin: Origin, seen: Mapping[Origin, int], found: Sequence[bytes | None]) -> tuple[Sequence[PlainEntry | None], list[int]]:
    """The one entry that a put to a register meets in each record that was found, None if none; and where it takes a closer look.

    That is where a record holds siblings, or what it meets expires. The puts are of one origin and have seen `seen` of the others.
    """
    if not any(found):
        return found, []  # type: ignore[return-value]  # nothing but None
    others: list[PlainEntry | None] = []
    rare: list[int] = []
    add, decode = others.append, decode_only_entry
    last, known = origin, SEQ_MAX  # whose entry came last, and how much of it is seen: entries of one origin come in runs
    for record in found:
        if record is None:
            add(None)
            continue
        try:
            (other,) = decode(record)
        except ValidationError:
            rare.append(len(others))
            add(None)
            continue
        by, seq, _, _, expiry = other
        if by != last:
            last, known = by, SEQ_MAX if by == origin else seen.get(by, 0)
        if seq <= known:
            add(None)
        else:
            if expiry is not None:
                rare.append(len(others))
            add(other)
    return others, rare


class Applier:
    """Applies the deltas of one commit after another. Reused; `begin` starts a commit."""

    __slots__ = (
        "applied",
        "clear_at_once_max",
        "expiries",
        "heads",
        "hlc",
        "journal",
        "keys_only",
        "local",
        "origin",
        "purges",
        "removals",
        "seen",
        "seq",
        "state",
        "touched",
    )

    def __init__(
        self,
        state: State,
        applied: Mapping[Origin, int],
        heads: Heads,
        removals: Removals,
        journal: Journal,
        purges: Purges,
        expiries: Expiries,
        clear_at_once_max: int = CLEAR_AT_ONCE_MAX,
    ) -> None:
        self.state = state
        self.applied = applied
        self.heads = heads
        self.removals = removals
        self.journal = journal
        self.purges = purges
        self.expiries = expiries
        self.clear_at_once_max = clear_at_once_max
        self.touched: Changes | None = None
        self.keys_only = False
        """Nobody is to be told more of `touched` than keys: then values go with the frames that brought them."""
        self.origin = Origin("")
        self.seq = 0
        self.hlc = 0
        self.seen: Mapping[Origin, int] = {}
        self.local = False

    def begin(self, origin: Origin, seq: int, hlc: int, seen: Mapping[Origin, int], local: bool) -> None:
        """Start a commit. `seen` covers its own origin up to `seq - 1`."""
        self.origin = origin
        self.seq = seq
        self.hlc = hlc
        self.seen = seen
        self.local = local

    # -- steps that the types are made of -----------------------------------------------------------------------

    def entries(self, slot: bytes, record: bytes | None) -> list[Entry]:
        """A record's live entries: those that a clear in progress has not covered."""
        if record is None:
            return []
        entries = decode_entries(record)
        if self.purges.active:
            entries = self._after_purge(slot, entries)
        return entries

    def _after_purge(self, slot: bytes, entries: list[Entry]) -> list[Entry]:
        key, type_code, _ = split_slot(slot)
        cleared = self.purges.cleared(slot_of(key, type_code))
        return entries if cleared is None else [e for e in entries if not cleared.covers((e.origin, e.seq))]

    def write(self, key_text: str, type_code: int, subkey: bytes, value: bytes, expiry: int | None) -> None:
        """Drop the entries that the commit has seen, add its own. Reads and writes one slot."""
        key = key_text.encode()
        slot = slot_of(key, type_code, subkey)
        mine = Entry(self.origin, self.seq, self.hlc, value, expiry)
        entries = [mine]
        # A local write has seen whatever is there: a register's record need not be read, a collection's only be counted.
        if not (self.local and type_code == SlotType.REGISTER):
            record = self.state.get(slot)
            if type_code != SlotType.REGISTER and (record is None or expiry is not None):
                self.heads.count(key, type_code, 1 if record is None else 0, expiry is not None)
            if record is not None:
                siblings = [] if self.local else uncovered(self.entries(slot, record), self.seen)
                self._meet_clears(key, type_code, slot, record, siblings)
                if siblings:
                    entries = sorted([*siblings, mine], key=lambda e: (e.origin, e.seq))
                    self._journal_siblings(key, type_code, subkey, entries)
        self.state.put(slot, encode_entries(entries))
        self._list_expiries(slot, entries)
        if self.removals and not self.local:
            self.meet_removal(key, type_code, subkey, mine)
        if self.touched is not None and (len(entries) == 1 or winner(entries) is mine):
            at_hand = value if type_code == SlotType.REGISTER and expiry is None else None
            self.changed(key_text, type_code, subkey, _WRITE_KINDS[type_code], at_hand)

    def put_all(self, origin: Origin, seen: dict[Origin, int], puts: Puts) -> None:
        """`write` each put of a received frame that has seen `seen` and, of its own origin, what is before it.

        That is most of what comes from elsewhere, and the commonest conflict, a write that meets one other, so both are done column by
        column. Each put is held against the record as it was before the frame: of two to one slot the later has seen the earlier, and
        both the same of the others. What takes a closer look is written by itself, in its place.
        """
        found = self.state.get_all(puts.slots)
        others, rare = _met_by(origin, seen, found)
        if self.removals and self.removals.has_any(puts.slots):
            removed = (at for at, slot in enumerate(puts.slots) if self.removals.get(slot))
            rare = sorted({*rare, *removed})
        start = 0
        for at in rare:
            self._put_columns(origin, puts, found, others, start, at)
            seen[origin] = puts.seqs[at] - 1
            self.begin(origin, puts.seqs[at], puts.hlcs[at], seen, False)
            self.write(puts.keys[at], SlotType.REGISTER, b"", puts.values[at], None)
            start = at + 1
        self._put_columns(origin, puts, found, others, start, len(found))

    def _put_columns(
        self, origin: Origin, puts: Puts, found: Sequence[bytes | None], others: Sequence[PlainEntry | None], start: int, end: int
    ) -> None:
        """The puts from `start` to `end`: each replaces the record that was found, or meets the one entry of it that it has not seen."""
        if start == end:
            return
        slots, keys, values, seqs, hlcs = puts.columns
        if end - start < len(found):
            slots, keys, values, seqs, hlcs = (column[start:end] for column in puts.columns)  # type: ignore[assignment]
            found, others = found[start:end], others[start:end]
        mine = zip(repeat(origin), seqs, hlcs, values, repeat(None), strict=False)  # each an `Entry`, as it is encoded
        # Step by step for all of them in C, where they are alike. What is met stays as it is in its record.
        records: list[bytes]
        met: Sequence[PutMet] = ()
        if not any(others):
            records = list(map(_join, zip(repeat(ONE_ENTRY), map(encode_entries, mine))))
        elif all(others) and len(meets_first := set(map(origin.__gt__, map(_origin_of, others)))) == 1:  # type: ignore[arg-type]  # no None
            both = map(_without_count, found), map(encode_entries, mine)  # type: ignore[arg-type]
            records = list(map(_join, zip(repeat(TWO_ENTRIES), *(both if True in meets_first else both[::-1]))))
            met = list(zip(keys, values, seqs, hlcs, found, strict=True))  # type: ignore[arg-type]
        else:
            encode, join = encode_entries, _join
            records = [
                join((ONE_ENTRY, encode(put)))
                if other is None or old is None
                else join((TWO_ENTRIES, old[1:], encode(put)) if other[0] < origin else (TWO_ENTRIES, encode(put), old[1:]))
                for put, other, old in zip(mine, others, found, strict=False)
            ]
            met = [
                (key, value, seq, hlc, old)
                for key, value, seq, hlc, old, other in zip(keys, values, seqs, hlcs, found, others, strict=True)
                if other is not None and old is not None
            ]
        self.state.put_all(slots, records, are_trimmed=True)
        self.journal.record_puts(origin, met)
        if self.touched is not None:
            columns = (keys, (), (), ()) if self.keys_only else (keys, seqs, hlcs, values)
            if met and not (len(met) == len(hlcs) and all(map(gt, hlcs, map(_stamp_of, others)))):  # type: ignore[arg-type]
                shown = [
                    other is None or hlc > other[2] or (hlc == other[2] and origin > other[0])
                    for hlc, other in zip(hlcs, others, strict=True)
                ]
                columns = tuple(list(compress(column, shown)) for column in columns)  # type: ignore[assignment]
            if columns[0]:
                self.touched.append(TouchedPuts(origin, *columns))

    def remove(self, key_text: str, type_code: int, subkey: bytes) -> None:
        """Drop the entries that the commit has seen; concurrent ones survive. Reads and writes one slot."""
        key = key_text.encode()
        slot = slot_of(key, type_code, subkey)
        record = self.state.get(slot)
        self.removals.note(slot, Removal(self.origin, self.seq, self.hlc, _REMOVE_KINDS[type_code]), self.seen)
        if record is None:
            return
        if self.local and not self.purges.active:  # it has seen whatever is there
            self._replace(key, type_code, slot, [])
            self.changed(key_text, type_code, subkey, _REMOVE_KINDS[type_code])
            return
        before = self.entries(slot, record)
        survivors = uncovered(before, self.seen)
        self._meet_clears(key, type_code, slot, record, survivors)
        self._replace(key, type_code, slot, survivors)
        if survivors:
            self._journal_survivors(key, type_code, subkey, survivors)
        if self.touched is not None and before and (not survivors or winner(survivors) != winner(before)):
            self.changed(key_text, type_code, subkey, _WRITE_KINDS[type_code] if survivors else _REMOVE_KINDS[type_code])

    def clear(self, key_text: str, type_code: int) -> None:
        """Drop every entry of a collection that the commit has seen: at once if small, else in slices."""
        key = key_text.encode()
        start, _ = type_range(key, type_code)
        self.note_removal(key, type_code)
        head = self.heads.get(key)
        slots = 0 if head is None else head.slots(type_code)
        if slots:
            before = self.purges.active.get(start)
            cleared, present = VersionVector(self.seen), VersionVector(self.applied)
            mine = Clear(cleared.flat(), present.flat(), start, self.origin, self.seq, self.hlc)
            self.purges.save(start, Purge([*(before.clears if before is not None else ()), mine]))
            if slots <= self.clear_at_once_max:
                self._slice(start, slots + 1)
            self.changed(key_text, type_code, b"", "clear")

    def expire(self, delta: Delta) -> None:
        """`[kind, key, type, subkey, dots]`: drop exactly the dots that are named, where they still are."""
        key_text, type_code, subkey = delta[1], delta[2], delta[3]
        key = key_text.encode()
        slot = slot_of(key, type_code, subkey)
        record = self.state.get(slot)
        if record is None:
            return
        named = {(origin, seq) for origin, seq in delta[4]}
        before = self.entries(slot, record)
        survivors = [e for e in before if (e.origin, e.seq) not in named]
        if len(survivors) != len(before):
            self._meet_clears(key, type_code, slot, record, survivors)
            self._replace(key, type_code, slot, survivors)
            self.changed(key_text, type_code, subkey, _WRITE_KINDS[type_code] if survivors else "expire")

    def _replace(self, key: bytes, type_code: int, slot: bytes, survivors: list[Entry]) -> None:
        """Put what is left of a slot whose record exists."""
        self.state.put(slot, encode_entries(survivors) if survivors else None)
        self._list_expiries(slot, survivors)
        if not survivors and type_code != SlotType.REGISTER:
            self.heads.count(key, type_code, -1)

    def _list_expiries(self, slot: bytes, entries: list[Entry]) -> None:
        """List a slot under each expiry of its entries: a sibling's was taken off the list if it came due while beaten."""
        for entry in entries:
            if entry.expiry is not None:
                self.expiries.add(expiry_key(entry.expiry, slot))

    # -- clears in slices -----------------------------------------------------------------------------------------

    def purge_slice(self, slots_max: int) -> bool:
        """Do some of the clearing that is due; True if more is left. O(slots_max)."""
        if self.purges:
            self._slice(next(iter(self.purges.active)), slots_max)
        return bool(self.purges)

    def _slice(self, start: bytes, slots_max: int) -> None:
        key, type_code, _ = split_slot(start)
        clears = self.purges.clears(start)
        position = min(clear.cursor for clear, _, _ in clears)
        gone = 0
        for done, (slot, record) in enumerate(self.state.scan(position, successor(start))):
            if done == slots_max:
                rest = [Clear(c.cleared, c.present, max(c.cursor, position), c.origin, c.seq, c.hlc) for c, _, _ in clears]
                self.purges.save(start, Purge(rest))
                break
            position = slot + b"\x00"
            entries = decode_entries(record)
            survivors = self._run_clears(key, type_code, slot, entries, clears)
            if len(survivors) != len(entries):
                self.state.put(slot, encode_entries(survivors) if survivors else None)
                self._list_expiries(slot, survivors)
                gone += not survivors
        else:
            self.purges.drop(start)
        if gone:
            self.heads.count(key, type_code, -gone)

    def _run_clears(
        self, key: bytes, type_code: int, slot: bytes, entries: list[Entry], clears: Iterable[Clearing], kept: Collection[Entry] = ()
    ) -> list[Entry]:
        """What clears in progress leave of a slot's entries. They are journaled to have lost against those, but for `kept`."""
        for clear, cleared, present in clears:
            if slot < clear.cursor:
                continue  # this clear has been here
            entries = [e for e in entries if not cleared.covers((e.origin, e.seq))]
            met = [e for e in entries if present.covers((e.origin, e.seq)) and e not in kept]
            if met:
                lost = Update(clear.origin, clear.seq, clear.hlc, "clear", None)
                self._journal(key, type_code, split_slot(slot)[2], met, lost, clear.hlc)
        return entries

    def _meet_clears(self, key: bytes, type_code: int, slot: bytes, record: bytes, kept: Collection[Entry]) -> None:
        """Journal what clears in progress lose against entries that the commit takes away: no slice will find those here any more."""
        if self.purges.active and (start := slot_of(key, type_code)) in self.purges.active:
            self._run_clears(key, type_code, slot, decode_entries(record), self.purges.clears(start), kept)

    @staticmethod
    def change_kind(type_code: int, present: bool) -> str:
        """How a slot's change is called after which something (or nothing) is there."""
        return _WRITE_KINDS[type_code] if present else _REMOVE_KINDS[type_code]

    # -- what is written beside the state -------------------------------------------------------------------------

    def changed(self, key: str, type_code: int, subkey: bytes, kind: str, value: bytes | None = None) -> None:
        """Note a slot whose visible value may have changed."""
        if self.touched is not None:
            self.touched.append(Touched(key, type_code, subkey, kind, self.origin, self.seq, self.hlc, value))

    def note_removal(self, key: bytes, type_code: int) -> None:
        """Remember a clear or a reset, so that a concurrent write that arrives later is seen to have met it."""
        kind = _REMOVE_KINDS[type_code] if type_code == SlotType.COUNTER else "clear"
        self.removals.note(slot_of(key, type_code), Removal(self.origin, self.seq, self.hlc, kind), self.seen)

    def meet_removal(self, key: bytes, type_code: int, subkey: bytes, mine: Entry | None) -> None:
        """Journal the removals of this slot, or of its whole collection, that the commit had not seen."""
        if self.local or not self.removals:
            return
        found = self.removals.get(slot_of(key, type_code, subkey))
        if subkey:
            found += self.removals.get(slot_of(key, type_code))
        for removal in found:
            if self.seen.get(removal.origin, 0) >= removal.seq or removal.dot == Dot(self.origin, self.seq):
                continue
            lost = Update(removal.origin, removal.seq, removal.hlc, removal.kind, None)
            if mine is not None:
                self._journal(key, type_code, subkey, [mine], lost, self.hlc)
            else:
                won = Update(self.origin, self.seq, self.hlc, "increment", None)
                self.journal.record(key, type_code, subkey, RULE_INCREMENT_SURVIVES, won, [lost], self.hlc)

    def _journal_siblings(self, key: bytes, type_code: int, subkey: bytes, entries: list[Entry]) -> None:
        ordered = sorted(entries, key=rank, reverse=True)
        if type_code == SlotType.SET:
            if len({e.expiry for e in entries}) == 1:
                return  # adding the same element twice loses nothing
            rule = RULE_ELEMENT
        else:
            rule = RULE_LWW
        updates = [update_of(e, type_code) for e in ordered]
        self.journal.record(key, type_code, subkey, rule, updates[0], updates[1:], self.hlc)

    def _journal_survivors(self, key: bytes, type_code: int, subkey: bytes, survivors: list[Entry]) -> None:
        lost = Update(self.origin, self.seq, self.hlc, _REMOVE_KINDS[type_code], None)
        self._journal(key, type_code, subkey, survivors, lost, self.hlc)

    def _journal(self, key: bytes, type_code: int, subkey: bytes, winners: list[Entry], lost: Update, hlc: int) -> None:
        """A removal that lost against writes which it had not seen."""
        rule = RULE_ADD_WINS if type_code == SlotType.SET else RULE_WRITE_SURVIVES
        self.journal.record(key, type_code, subkey, rule, update_of(winner(winners), type_code), [lost], hlc)

    def journal_reset_lost(self, key: bytes, origin: Origin, seq: int) -> None:
        """A reset that had not seen a run's increments."""
        lost = Update(self.origin, self.seq, self.hlc, "reset", None)
        won = Update(origin, seq, 0, "increment", None)
        self.journal.record(key, SlotType.COUNTER, b"", RULE_INCREMENT_SURVIVES, won, [lost], self.hlc)


def update_of(entry: Entry, type_code: int) -> Update:
    """An entry as one side of a conflict."""
    value = entry.value if type_code != SlotType.SET else None
    return Update(entry.origin, entry.seq, entry.hlc, _WRITE_KINDS[type_code], value, entry.expiry)
