"""What a replica lets go of in time: entries that expired, and what only mattered to commits that can no longer come.

Expiry is a write: removals for `Replica.commit`, issued by one region and, should it be gone, by the next. Forgetting is local: neither
value nor digest change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from crdtkv.core.causality import Origin, VersionVector, region_of
from crdtkv.core.codec import SLOT_SPACE, split_slot
from crdtkv.core.expiries import EXPIRY_SPACE
from crdtkv.core.frame import Delta, DeltaKind
from crdtkv.core.removals import Removals
from crdtkv.core.types.base import rank, winner
from crdtkv.core.types.counter import DEAD_SPACE, list_dead, run_name

if TYPE_CHECKING:
    from crdtkv.core.replica import Replica

EXPIRIES_LOOKED_AT_MAX = 4096
"""Records of the index of expiries that one call of `due` looks at."""


class Retirement:
    """See the module's docstring. Of one replica."""

    __slots__ = ("_from", "_removals", "_replica", "seen_by")

    def __init__(self, replica: Replica, removals: Removals) -> None:
        self._replica = replica
        self._removals = removals
        self._from = EXPIRY_SPACE  # where the next call of `due` looks on
        self.seen_by: dict[Origin, VersionVector] = {}
        """What each other origin had applied when it made its last frame that was applied here, since the start."""

    def adopt(self, other: Retirement) -> None:
        """Know what another replica's knows, and begin anew."""
        self._from = EXPIRY_SPACE
        self.seen_by = other.seen_by

    def due(self, limit: int) -> Iterator[Delta]:
        """Removals of expired entries that this replica should issue now, of a size that one commit may have.

        The region that wrote the winner issues the removal; the others, in the order of their origins, wait one
        grace more each, so that an expiry is removed even if its writer is gone. The removal names the dots of the
        winner and of the siblings that it beat: a refreshed or concurrent entry survives, and a second removal of
        the same does nothing.
        """
        replica, state = self._replica, self._replica.state
        now = replica.now_ms()
        issued = size = 0
        # So many at a time, from where the last call stopped: the records of other regions' expiries may be many.
        found = replica.expiries.until(now, EXPIRIES_LOOKED_AT_MAX, self._from)
        self._from = EXPIRY_SPACE if len(found) < EXPIRIES_LOOKED_AT_MAX else found[-1] + b"\x00"
        members = sorted({*replica.control.show(replica.vv()), replica.origin}) if found else []
        for where in found:
            if issued == limit or size >= replica.settings.commit_bytes_max // 2:
                self._from = where
                return
            expiry, slot = int.from_bytes(where[1:9], "big"), where[9:]
            record = state.get(slot)
            entries = [] if record is None else replica.entries(slot, record)
            chosen = winner(entries) if entries else None
            if chosen is None or chosen.expiry != expiry:
                replica.expiries.drop(where)  # superseded or removed since
                continue
            mine = region_of(chosen.origin) == region_of(replica.origin)
            grace = 0 if mine else (1 + members.index(replica.origin)) * replica.settings.expiry_grace_ms
            if now < expiry + grace:
                continue
            key, type_code, subkey = split_slot(slot)
            dots = [[e.origin, e.seq] for e in sorted(entries, key=rank)]
            issued += 1
            size += len(slot) + 64 * len(dots)
            yield [DeltaKind.EXPIRE, key.decode(), type_code, subkey, dots]

    def forget_stable(
        self, stable: VersionVector, acknowledged: Mapping[Origin, VersionVector], runs_max: int, cursor: bytes = b""
    ) -> bytes:
        """Forget what only mattered to commits that can no longer come: removals, and counter runs that are not live.

        Local in its effect: neither value nor digest change, and replicas may do it at different times. Of a crash that
        goes back behind it nothing is left but that it is due again.

        Args:
            stable: what every member has applied.
            acknowledged: what origins say they have applied; an origin's own seq in it says when.
            runs_max: how many dead runs to look at; go on with the cursor that is returned, until it is empty.
        Returns:
            Where to go on.
        """
        state, heads = self._replica.state, self._replica.heads
        if not cursor:
            self._removals.drop_stable(stable)
        found = list(islice(state.scan(cursor or DEAD_SPACE, bytes([DEAD_SPACE[0] + 1])), runs_max))
        for where, record in found:
            by, slot = VersionVector.from_bytes(record), SLOT_SPACE + where[1:]
            key, _, subkey = split_slot(slot)
            origin, run = run_name(subkey)
            # Who has opened a newer run had seen that this one is spent.
            has_newer = any(o == origin and n > run for o, n in heads.runs(key))
            if by <= stable and (has_newer or self._has_seen(origin, by, acknowledged.get(origin))):
                state.put(slot, None)
                list_dead(state, slot, None)
                heads.drop_run(key, origin, run)
        return found[-1][0] + b"\x00" if len(found) == runs_max else b""

    def _has_seen(self, origin: Origin, what: VersionVector, acknowledged: VersionVector | None) -> bool:
        """Whether an origin is known to have applied something, and all that it made before is applied here.

        That it is closed proves neither: a member that nobody had counted may have more of it, and may bring that yet.
        """
        replica = self._replica
        if origin == replica.origin or not what.without(origin):
            return what <= replica.vv()
        if acknowledged is not None and what <= acknowledged and acknowledged.seq(origin) <= replica.seq(origin):
            return True
        seen = self.seen_by.get(origin)
        return seen is not None and what.without(origin) <= replica.control.complete(seen)
