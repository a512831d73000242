"""The replica's records between the engine and the rules: an overlay of what changed, and the digest.

Records live in an engine (`Base`). What a transaction changes gathers here, in memory, and goes to the engine in
one atomic batch at a frame's boundary (`fold`), together with the replica's own bookkeeping (version vector, hashes,
log position, journal …): so after a crash the engine holds some prefix of the log's effects, and replaying the rest
gives the same state.

A fold takes two steps. `begin_fold` sets the overlay aside as it is, with an empty one in its place: O(1). `fold_some` then works
through what was set aside, a bounded number of records a call, and writes all of it at its end. In between reads look in the overlay,
in what was set aside, in the engine, in this order; and the work may be done by a thread of its own while others write.

Records that come many at once to a base in memory without a digest go straight there: it has no crash to survive, nothing is to be worked
out of them, and the overlay would only store them twice.

Two kinds of record: *slots* are the replicated state; *side* records are local bookkeeping. Only slots enter the
digest: the sum modulo 2^128 of one hash per record, so that it follows each change at a cost that does not grow with
the state, and does not depend on the order of changes. It is brought up to date when the overlay is folded, so a
slot that is overwritten many times is hashed once. Where nobody may ever ask for it, it is not kept before somebody does.

After: Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing" (EUROCRYPT '97), for sums of hashes; here
they find faults, not forgers, so the hash is XXH3 (128 bits), five times as fast as BLAKE2b on records of this size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import compress
from operator import add, itemgetter
from types import TracebackType
from typing import Protocol, Self

from xxhash import xxh3_128_intdigest

from crdtkv.core.codec import REGISTER_TEXT, SLOT_SPACE, SLOT_TEXT, register_slot_of, successor

FOLD_AT_ONCE = 1024
FOLD_AT_ONCE_BYTES = 4 << 20
"""Records that are looked up and hashed at a time, and what they may hold: few enough for memory and for who waits, enough for a thread
that, beside a busy one, may wait for the interpreter before and after each lookup."""
_MASK = (1 << 128) - 1
_AFTER_SLOTS = successor(SLOT_SPACE)
_join = b"".join
_ARRAY_OF_FOUR = 0x94
_first_byte = itemgetter(0)


class Base(Protocol):
    """What the overlay needs of a state engine."""

    def get(self, key: bytes) -> bytes | None: ...
    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def write(self, batch: Mapping[bytes, bytes | None]) -> None: ...
    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]: ...


class View(Protocol):
    """A view of a base of one moment."""

    def get(self, key: bytes, /) -> bytes | None: ...
    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]: ...
    def close(self) -> None: ...


def hash_record(slot: bytes, record: bytes) -> int:
    """One record's share of the digest. The record is self-delimiting, so the pair is unambiguous."""
    return xxh3_128_intdigest(record + slot)


class _Fold:
    """An overlay that was set aside: what it holds does not change any more. `change` and `done` tell how far it has been worked through,
    `at_once` how many records are taken next.

    `meta` gives, for the new digest, the replica's own records as of when it was set aside. `known` is what the base holds of some slots.
    """

    __slots__ = ("at_once", "change", "done", "keys", "known", "meta", "side", "slots")

    def __init__(
        self,
        slots: dict[bytes, bytes | None],
        side: dict[bytes, bytes | None],
        known: dict[bytes, bytes | None],
        meta: Callable[[int | None], Mapping[bytes, bytes | None]],
    ) -> None:
        self.slots = slots
        self.side = side
        self.known = known
        self.meta = meta
        self.keys = list(slots)
        self.done = 0
        self.change = 0
        self.at_once = FOLD_AT_ONCE // 4


_NOTHING: Mapping[bytes, bytes | None] = {}


class State:
    """Overlay over a `Base`. One writer at a time; readers on other threads see each record before or after.

    One thread at a time folds, which may be another than the writer's, as long as nobody asks for the digest meanwhile.

    Args:
        counts: says whether a slot's record enters the digest (a counter run that is not live does not).
        trims: the base keeps records as the objects that it is given. An encoder gives bytes with room at their end, up to a third of them;
            so they are copied without it, which costs least while they are new.
        digest: of what the base holds; None: it is counted when somebody first asks for it, and kept from then on.
    """

    __slots__ = ("_base", "_counts", "_digest", "_folding", "_known", "_side", "_slots", "_trims")

    def __init__(self, base: Base, counts: Callable[[bytes, bytes], bool], digest: int | None = 0, *, trims: bool = False) -> None:
        self._base = base
        self._counts = counts
        self._trims = trims
        self._digest = digest
        self._slots: dict[bytes, bytes | None] = {}
        self._side: dict[bytes, bytes | None] = {}
        self._folding: _Fold | None = None
        self._known: dict[bytes, bytes | None] = {}  # read ahead for the group being applied; never what the overlays hold

    def get(self, slot: bytes) -> bytes | None:
        """A slot's record. O(1) plus the engine's read if nothing newer is here."""
        slots = self._slots
        if slot in slots:
            return slots[slot]
        if (folding := self._folding) is not None and slot in folding.slots:
            return folding.slots[slot]
        known = self._known
        return known[slot] if slot in known else self._base.get(slot)

    def register(self, key: str) -> bytes | None:
        """`get(register_slot_of(key))`, its errors included: the path of every read of a register.

        What is found where text without NUL leads is a valid key's record. Anything else takes the longer way.
        """
        if type(key) is str and "\x00" not in key:
            try:
                slot = f"{SLOT_TEXT}{key}{REGISTER_TEXT}".encode()
            except UnicodeEncodeError:
                pass  # `register_slot_of` says so
            else:
                slots = self._slots
                if slot in slots:
                    return slots[slot]
                if self._folding is None and not self._known and (record := self._base.get(slot)) is not None:
                    return record
        return self.get(register_slot_of(key))

    def get_all(self, slots: Sequence[bytes]) -> list[bytes | None]:
        """The records of slots; see `get`."""
        folding = self._folding
        layers = [self._slots, self._known] if folding is None else [self._slots, folding.slots, self._known]
        layers = [layer for layer in layers if layer and not layer.keys().isdisjoint(slots)]
        if not layers:
            return self._base.multi_get(slots)
        first = layers[0]
        if len(layers) == 1:
            with contextlib.suppress(KeyError):  # it has them all, as what was read ahead for a group does
                return list(map(first.__getitem__, slots))
        return [self.get(slot) for slot in slots]

    def put(self, slot: bytes, record: bytes | None) -> None:
        """Replace or (None) drop a slot's record."""
        self._slots[slot] = _join((record, b"")) if self._trims and record is not None else record

    def put_all(self, slots: Sequence[bytes], records: Sequence[bytes], *, are_trimmed: bool = False) -> None:
        """Replace the records of slots, at once in the base if that comes to the same. `are_trimmed`: they have no room at their end."""
        if self._trims and not are_trimmed:
            records = [_join((record, b"")) for record in records]
        changed = zip(slots, records, strict=True)
        if self._trims and self._digest is None and not self._slots and self._folding is None and not self._known:
            self._base.write(dict(changed))
        else:
            self._slots.update(changed)

    def side_get(self, key: bytes) -> bytes | None:
        """A bookkeeping record."""
        side = self._side
        if key in side:
            return side[key]
        if (folding := self._folding) is not None and key in folding.side:
            return folding.side[key]
        known = self._known
        return known[key] if key in known else self._base.get(key)

    def side_put(self, key: bytes, record: bytes | None) -> None:
        """Replace or (None) drop a bookkeeping record."""
        self._side[key] = _join((record, b"")) if self._trims and record is not None else record

    def load(self, keys: Sequence[bytes]) -> None:
        """Read ahead in one multi-get what a group of frames will touch; `forget` ends it."""
        folding, known = self._folding, self._known
        wanted = list(dict.fromkeys(keys))
        for layer in (self._slots, self._side, known) if folding is None else (self._slots, self._side, known, folding.slots, folding.side):
            if layer and not layer.keys().isdisjoint(wanted):  # in C; of most layers it is so
                wanted = [k for k in wanted if k not in layer]
        if wanted:
            known.update(zip(wanted, self._base.multi_get(wanted), strict=True))

    def forget(self, kept_max: int = 0) -> None:
        """Drop what was read ahead, unless it is no more than so many records."""
        if len(self._known) > kept_max:
            self._known = {}

    @property
    def changed(self) -> int:
        """How many changed records wait for a fold to begin."""
        return len(self._slots) + len(self._side)

    @property
    def is_folding(self) -> bool:
        """Whether a fold was begun and has not ended."""
        return self._folding is not None

    @property
    def pending(self) -> int:
        """How many changed records are not in the base yet."""
        folding = self._folding
        return self.changed + (0 if folding is None else len(folding.slots) + len(folding.side))

    def _overlay(self) -> dict[bytes, bytes | None]:
        """All that changed and is not, or perhaps not, in the base."""
        folding = self._folding
        if folding is None:
            return {**self._slots, **self._side}
        return {**folding.slots, **folding.side, **self._slots, **self._side}

    def waiting(self) -> dict[bytes, bytes | None]:
        """The slots that changed and are not, or perhaps not, in the base, with their records: a copy."""
        folding = self._folding
        return self._slots.copy() if folding is None else {**folding.slots, **self._slots}

    def scan(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Slots and side records in `[start, end)` in order, overlay included. O(overlay) to begin.

        The caller may change what was already yielded, nothing else, while it iterates.
        """
        folding = self._folding
        parts = [self._slots, self._side] if folding is None else [folding.slots, folding.side, self._slots, self._side]
        if start >= _AFTER_SLOTS or (end is not None and end <= SLOT_SPACE):
            parts = parts[1::2]  # side records alone
        over = {k: v for part in parts if part for k, v in part.items() if start <= k and (end is None or k < end)}
        base = self._base.scan(start, end)
        return _merged(base, over) if over else base

    def overlaid(self, view: View) -> Overlaid:
        """A view of the base of this moment with the overlay of this moment over it: what a view would be after a fold. O(overlay)."""
        return Overlaid(view, self._overlay())

    def snapshot(self, take: Callable[[], View]) -> Overlaid:
        """`overlaid` of a view that is taken now, while another thread may be folding. O(overlay).

        The overlay is copied first: what gets into the base after that is then in both, and is the same.
        """
        over = self._overlay()
        return Overlaid(take(), over)

    def adopt(self, other: State) -> None:
        """Take over the overlay of another state on the same base. Readers see each record before or after. Nobody folds meanwhile."""
        self._known = {}
        self._digest = other._digest
        self._slots = other._slots
        self._side = other._side
        self._folding = other._folding

    def digest(self) -> int:
        """The digest with everything in the overlay counted. O(changed slots), the first time O(state) if it is not kept yet.

        Not while another thread folds.
        """
        folding = self._folding
        if self._digest is None:
            self._digest = self._count()
            if folding is not None:
                folding.done = folding.change = 0  # it may have been worked through without a digest, and not be written for want of room
        total = self._digest
        if folding is not None:
            total += self._change(folding.keys, folding.slots, _NOTHING, folding.known)[0]
        under = _NOTHING if folding is None else folding.slots
        return (total + self._change(list(self._slots), self._slots, under, self._known)[0]) & _MASK

    @property
    def has_digest(self) -> bool:
        """Whether the digest is kept; else whoever asks for it first has it counted."""
        return self._digest is not None

    def correct_digest(self, by: int) -> None:
        """Add to the digest: what the base holds was changed, or found to be other than it counts. The next fold keeps it."""
        if self._digest is not None:
            self._digest = (self._digest + by) & _MASK

    def _count(self) -> int:
        """The digest of all that the base holds. O(state)."""
        counts, total = self._counts, 0
        for slot, record in self._base.scan(SLOT_SPACE, successor(SLOT_SPACE)):
            if record[0] != _ARRAY_OF_FOUR or counts(slot, record):
                total += hash_record(slot, record)
        return total & _MASK

    def _change(
        self,
        keys: Sequence[bytes],
        slots: Mapping[bytes, bytes | None],
        under: Mapping[bytes, bytes | None],
        known: Mapping[bytes, bytes | None],
    ) -> tuple[int, int]:
        """What the records of `slots` at `keys` change in the digest of `under` over the base, of which `known` is known.

        With it the bytes of records that were hashed.
        """
        if not keys:
            return 0, 0
        # `hash_record` is written out, a step for all records at a time.
        unread = [slot for slot in keys if slot not in known] if known else keys
        if under:
            unread = [slot for slot in unread if slot not in under]
        read = self._base.multi_get(unread) if unread else []
        if len(unread) == len(keys):
            olds = read
        elif not unread and not under:
            olds = list(map(known.__getitem__, keys))
        else:
            of_base = dict(zip(unread, read, strict=True))
            olds = [of_base[slot] if slot in of_base else under[slot] if slot in under else known[slot] for slot in keys]
        come, gone = self._counted(keys, list(map(slots.__getitem__, keys))), self._counted(keys, olds)
        change = sum(map(xxh3_128_intdigest, come)) - sum(map(xxh3_128_intdigest, gone))
        return change, sum(map(len, come)) + sum(map(len, gone))

    def _counted(self, slots: Sequence[bytes], records: Sequence[bytes | None]) -> list[bytes]:
        """Of records that are there and enter the digest what `hash_record` hashes."""
        if not all(records):
            slots, records = list(compress(slots, records)), list(filter(None, records))
        there: Sequence[bytes] = records  # type: ignore[assignment]  # none is None
        # Only a counter's run is an array of four whose first item is no array; everything else counts.
        if _ARRAY_OF_FOUR not in set(map(_first_byte, there)):
            return list(map(add, there, slots))
        counts = self._counts
        return [record + slot for slot, record in zip(slots, there, strict=True) if record[0] != _ARRAY_OF_FOUR or counts(slot, record)]

    def begin_fold(self, meta: Callable[[int | None], Mapping[bytes, bytes | None]]) -> None:
        """Set the overlay aside, to be worked through by `fold_some`. O(1) but for a list of its slots.

        Args:
            meta: given the new digest (None: it is not kept), the replica's own records as of now: they change in the same batch. Called
                when that is written, perhaps by another thread.
        """
        assert self._folding is None, "a fold is under way"
        # Readers on other threads look in the overlay, then in what was set aside: so it is there before the overlay is emptied.
        # Of what was read ahead, that may now be set aside, they read the base's again.
        known, self._known = self._known, {}
        self._folding = _Fold(self._slots, self._side, known, meta)
        self._slots = {}
        self._side = {}

    def fold_some(self, records_max: int) -> bool:
        """Work through some of what was set aside; at its end write all of it to the base in one batch. True: nothing is left to do.

        What raises may be called again: it goes on where it was.
        """
        folding = self._folding
        if folding is None:
            return True
        keys = folding.keys
        if self._digest is None:
            folding.done = len(keys)  # nothing of it is worked through for the digest
        stop = min(len(keys), folding.done + records_max)
        while folding.done < stop:
            some = keys[folding.done : min(stop, folding.done + folding.at_once)]
            change, size = self._change(some, folding.slots, _NOTHING, folding.known)
            folding.change += change
            folding.done += len(some)
            # The next ones are taken to be as large: the base's records are not known before they are read.
            folding.at_once = max(1, min(FOLD_AT_ONCE, 2 * folding.at_once, FOLD_AT_ONCE_BYTES * len(some) // (size + 1)))
        if folding.done < len(keys):
            return False
        digest = None if self._digest is None else (self._digest + folding.change) & _MASK
        self._base.write({**folding.slots, **folding.side, **folding.meta(digest)})
        # What was set aside goes only now that the base has everything.
        self._digest = digest
        self._folding = None
        return True

    def end_fold(self) -> None:
        """Do the rest of what `fold_some` has left. O(what was set aside)."""
        while not self.fold_some(1 << 30):
            pass


def _merged(base: Iterator[tuple[bytes, bytes]], over: Mapping[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    """Records of a base in order, with what changed laid over them."""
    waiting = sorted(over, reverse=True)
    for key, record in base:
        while waiting and waiting[-1] < key:
            newer = over[waiting[-1]]
            if newer is not None:
                yield waiting[-1], newer
            waiting.pop()
        if waiting and waiting[-1] == key:
            newer = over[waiting.pop()]
            if newer is not None:
                yield key, newer
        else:
            yield key, record
    while waiting:
        key = waiting.pop()
        newer = over[key]
        if newer is not None:
            yield key, newer


class Overlaid:
    """A view of a base with what had changed and was not folded laid over it: see `State.overlaid`."""

    __slots__ = ("_base", "_over")

    def __init__(self, base: View, over: dict[bytes, bytes | None]) -> None:
        self._base = base
        self._over = over

    def get(self, key: bytes, /) -> bytes | None:
        return self._over[key] if key in self._over else self._base.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        over = self._over
        changed = sorted((k for k in over if start <= k and (end is None or k < end)), reverse=reverse)
        newer = ((key, record) for key in changed if (record := over[key]) is not None)
        older = (item for item in self._base.scan(start, end, reverse=reverse) if item[0] not in over)
        return merge(newer, older, key=itemgetter(0), reverse=reverse)

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class DictBase:
    """A base in a plain dict, for tests and for joining snapshots."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.records.get(k) for k in keys]

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        for key, record in batch.items():
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted((k for k in self.records if start <= k and (end is None or k < end)), reverse=reverse)
        return iter([(k, self.records[k]) for k in keys])
