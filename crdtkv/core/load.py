"""Loading a whole state into an empty replica, streaming: records come in slot order and leave as engine batches.

What `install` does for two states in memory, this does for one that need not fit there. Beside each slot go the records that a
replica keeps beside it (heads, the index of expiries), which are functions of the slots; so nothing but slots must be kept or sent.
Every record is checked to be one that a replica at the state's vector would have written.
"""

from __future__ import annotations

from itertools import islice

from crdtkv.core.apply import expiry_key
from crdtkv.core.causality import VersionVector
from crdtkv.core.codec import SlotType, split_slot
from crdtkv.core.compare import digest_share
from crdtkv.core.heads import Head, encode_head, head_key
from crdtkv.core.join import check_slot
from crdtkv.core.types.base import decode_entries
from crdtkv.core.types.counter import run_name
from crdtkv.errors import CorruptionError

_MASK = (1 << 128) - 1


class Loader:
    """Turns pages of a state's records into batches for an engine that holds nothing yet.

    Args:
        vv: the state's vector.
    """

    def __init__(self, vv: VersionVector) -> None:
        self._vv = vv
        self._last = b""
        self._key = b""
        self._head = Head()
        self.slots = 0
        self._digest = 0

    @property
    def digest(self) -> int:
        """Of what was taken so far."""
        return self._digest & _MASK

    def take(self, flat: list[bytes]) -> dict[bytes, bytes | None]:
        """The batch for a page `[slot, record, …]` that follows the last one. O(page).

        Raises:
            CorruptionError: the page is out of order, or holds what no replica at this vector would.
        """
        batch: dict[bytes, bytes | None] = {}
        if len(flat) % 2:
            raise CorruptionError("state: a slot without its record")
        for slot, record in zip(islice(flat, 0, None, 2), islice(flat, 1, None, 2), strict=True):
            if slot <= self._last:
                raise CorruptionError("state: slots are repeated or out of order")
            check_slot(slot, record, self._vv)
            self._last = slot
            self.slots += 1
            self._digest += digest_share(slot, record)
            batch[slot] = record
            self._beside(slot, record, batch)
        return batch

    def finish(self) -> dict[bytes, bytes | None]:
        """The last batch, after all pages."""
        batch: dict[bytes, bytes | None] = {}
        self._close_head(batch)
        return batch

    def _beside(self, slot: bytes, record: bytes, batch: dict[bytes, bytes | None]) -> None:
        key, type_code, subkey = split_slot(slot)
        if key != self._key:
            self._close_head(batch)
            self._key, self._head = key, Head()
        head = self._head
        if type_code == SlotType.COUNTER:
            head.runs = [*head.runs, run_name(subkey)]
            return
        expiries = [e.expiry for e in decode_entries(record) if e.expiry is not None]
        for expiry in expiries:
            batch[expiry_key(expiry, slot)] = b""
        if type_code == SlotType.SET:
            head.set_slots += 1
            head.set_expires = head.set_expires or bool(expiries)
        elif type_code == SlotType.MAP:
            head.map_slots += 1
            head.map_expires = head.map_expires or bool(expiries)

    def _close_head(self, batch: dict[bytes, bytes | None]) -> None:
        if self._key and not self._head.is_empty:
            batch[head_key(self._key)] = encode_head(self._head)
