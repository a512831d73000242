"""The index of recent removals: what lets the side that removed see a conflict too.

A removal leaves nothing in the state, so when a write that had not seen it arrives later, only this index knows that
the two met. It is outside state and digest, and bounded: the oldest go first, and those that every member has seen
(causally stable) go with the log's prefix that holds them, because no write concurrent with them can still arrive: only a
region that lost its disk may write without having seen them once more, and what it beats then is not told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec

from crdtkv.core.causality import Dot, Origin, VersionVector
from crdtkv.core.codec import SLOT_SPACE
from crdtkv.core.state import State

REMOVAL_SPACE = b"x"
REMOVALS_MAX = 65_536
"""How many removals are remembered by default (`Settings.removals_max`)."""


class Removal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The dot, stamp and kind of one removal of a slot (or of a whole collection)."""

    origin: Origin
    seq: int
    hlc: int
    kind: str

    @property
    def dot(self) -> Dot:
        return Dot(self.origin, self.seq)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Removal, ...]).decode


class Removals:
    """Slot (or a collection's first slot) → its last removals, none of which had seen another; oldest slot first.

    Concurrent removals stand side by side: a write may have seen the one that came later here, and not the other.
    """

    __slots__ = ("_index", "_limit", "_state", "evicted")

    def __init__(self, state: State, limit: int = REMOVALS_MAX) -> None:
        self._state = state
        self._limit = limit
        self.evicted = 0
        """Slots that went for want of room, since the start."""
        loaded = [(k, _decode(v)) for k, v in state.scan(REMOVAL_SPACE, bytes([REMOVAL_SPACE[0] + 1]))]
        loaded.sort(key=lambda item: (item[1][-1].hlc, item[0]))
        # Ordered: taking the oldest of a plain dict costs a walk over all that were taken before.
        self._index: OrderedDict[bytes, tuple[Removal, ...]] = OrderedDict((SLOT_SPACE + k[1:], r) for k, r in loaded)

    def __len__(self) -> int:
        return len(self._index)

    def __bool__(self) -> bool:
        return bool(self._index)

    def get(self, slot: bytes) -> tuple[Removal, ...]:
        """The last removals of a slot that are still remembered."""
        return self._index.get(slot, ())

    def has_any(self, slots: Sequence[bytes]) -> bool:
        """Whether a removal of any of these slots is still remembered."""
        return bool(self._index) and not self._index.keys().isdisjoint(slots)

    def note(self, slot: bytes, removal: Removal, seen: Mapping[Origin, int]) -> None:
        """Remember a removal instead of those that it had seen; the oldest slot goes if there are too many."""
        before = self._index.pop(slot, ())
        kept: tuple[Removal, ...] = (removal,)
        if before:
            kept = (*(r for r in before if seen.get(r.origin, 0) < r.seq and r.dot != removal.dot), removal)
        self._index[slot] = kept
        self._state.side_put(REMOVAL_SPACE + slot[1:], _encode(kept))
        if len(self._index) > self._limit:
            oldest = next(iter(self._index))
            self._drop(oldest)
            self.evicted += 1

    def drop_stable(self, stable: VersionVector) -> int:
        """Forget removals that every member has applied; of how many slots that was. O(index)."""
        changed = 0
        for slot, found in list(self._index.items()):
            kept = tuple(r for r in found if not stable.covers((r.origin, r.seq)))
            if not kept:
                self._drop(slot)
            elif len(kept) < len(found):
                self._index[slot] = kept
                self._state.side_put(REMOVAL_SPACE + slot[1:], _encode(kept))
            changed += len(kept) < len(found)
        return changed

    def _drop(self, slot: bytes) -> None:
        del self._index[slot]
        self._state.side_put(REMOVAL_SPACE + slot[1:], None)
