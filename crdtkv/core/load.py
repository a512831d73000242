"""Loading a whole state into an empty replica, streaming: records come in slot order and leave as engine batches.

What `install` does for two states in memory, this does for one that need not fit there. Beside each slot go the records that a
replica keeps beside it (heads, the index of expiries), which are functions of the slots; so nothing but slots must be kept or sent.
Every record is checked to be one that a replica at the state's vector would have written.
"""

from __future__ import annotations

from itertools import islice

from crdtkv.core.causality import VersionVector
from crdtkv.core.compare import digest_share
from crdtkv.core.heads import Head, encode_head, head_key
from crdtkv.core.join import check_slot
from crdtkv.core.mend import Beside
from crdtkv.core.replica import enters_digest
from crdtkv.core.types.counter import dead_key
from crdtkv.errors import CorruptionError

_MASK = (1 << 128) - 1
_RUN = 0x94  # an array of four: a counter's run, or a record of four entries


class Loader:
    """Turns pages of a state's records into batches for an engine that holds nothing yet.

    Args:
        vv: the state's vector.
    """

    def __init__(self, vv: VersionVector) -> None:
        self._vv = vv
        self._by = vv.to_bytes()
        self._last = b""
        self._beside = Beside()
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
            done, listed = self._beside.take(slot, record)
            _put_head(done, batch)
            batch.update(dict.fromkeys(listed, b""))
            if record[0] == _RUN and not enters_digest(slot, record):
                batch[dead_key(slot)] = self._by  # killed by something that the state covers: more is not known
        return batch

    def finish(self) -> dict[bytes, bytes | None]:
        """The last batch, after all pages."""
        batch: dict[bytes, bytes | None] = {}
        _put_head(self._beside.finish(), batch)
        return batch


def _put_head(done: tuple[bytes, Head] | None, batch: dict[bytes, bytes | None]) -> None:
    if done is not None and not done[1].is_empty:
        batch[head_key(done[0])] = encode_head(done[1])
