"""Installing a snapshot into a replica: the join of both states, in one step, with everything kept beside them.

What the join changes goes through the same overlay as any commit, so heads, expiries, digest and journal follow.
Conflicts that the join finds (entries of one slot from both sides, neither seen by the other) are journaled, marked
as installed: in which order they would have arrived is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from crdtkv.core.apply import Applier, Touched, expiry_key, update_of
from crdtkv.core.causality import VersionVector
from crdtkv.core.codec import SlotType, split_slot
from crdtkv.core.heads import Heads
from crdtkv.core.join import Snapshot, difference, join, snapshot_of
from crdtkv.core.journal import RULE_ELEMENT, RULE_LWW
from crdtkv.core.replica import Replica
from crdtkv.core.types.base import Entry, decode_entries, rank, uncovered, winner
from crdtkv.core.types.counter import decode_run, list_dead, run_name
from crdtkv.errors import StorageError


class Installed(NamedTuple):
    """What an install did: commits that were new, the origins that jumped, and what changed visibly."""

    applied: int
    jumped: VersionVector
    touched: list[Touched]


def install(replica: Replica, theirs: Snapshot) -> Installed:
    """Join a snapshot into a replica. O(both states). The caller folds at once: the log does not hold what came.

    Raises:
        CorruptionError: a fork. WrongClusterError: another cluster's. StorageError: it holds commits of this replica's own that
            this replica has lost. Nothing changed.
    """
    own, known = theirs.vv.seq(replica.origin), replica.seq(replica.origin)
    if own > known:
        # To take over their number would hide that they are gone, and to write on would give their dots a second content.
        raise StorageError(
            f"snapshot: it holds commits of this replica, {replica.origin}, up to {own}, and here they end at {known}: the directory has "
            "lost commits of its own; move it away and start again with an empty one, so that the data comes back from the others",
            origin=replica.origin,
            seq=known,
            their_seq=own,
        )
    while replica.purge_slice(10_000):
        pass
    mine = snapshot_of(replica)
    joined = join(mine, theirs)
    touched: list[Touched] = []
    for slot, record in difference(mine, joined).items():
        touched.append(_replace(replica, slot, mine, theirs, record))
    jumped = VersionVector({o: n for o, n in theirs.vv.items() if n > mine.vv.seq(o)})
    applied = theirs.vv.missing_from(mine.vv)
    replica.jump(joined.vv, joined.hashes)
    replica.agree(joined.agreed, joined.hashes)
    return Installed(applied, jumped, touched)


def _replace(replica: Replica, slot: bytes, mine: Snapshot, theirs: Snapshot, record: bytes | None) -> Touched:
    key, type_code, subkey = split_slot(slot)
    before = mine.slots.get(slot)
    heads: Heads = replica.heads
    replica.state.put(slot, record)
    if type_code == SlotType.COUNTER:
        origin, run = run_name(subkey)
        if before is None:
            heads.add_run(key, origin, run)
        elif record is None:
            heads.drop_run(key, origin, run)
        list_dead(replica.state, slot, None if record is None or decode_run(record).live else theirs.vv.join(mine.vv))
        return Touched(key.decode(), type_code, b"", "increment", origin, theirs.vv.seq(origin), 0)
    entries = [] if record is None else decode_entries(record)
    for entry in entries:
        replica.clock.absorb(entry.hlc)  # as for a frame: what is written next is stamped above what is here
        if entry.expiry is not None:
            replica.state.side_put(expiry_key(entry.expiry, slot), b"")
    if type_code != SlotType.REGISTER:
        change = (record is not None) - (before is not None)
        heads.count(key, type_code, change, any(e.expiry is not None for e in entries))
    _journal(replica, key, type_code, subkey, entries, mine, theirs)
    kind = Applier.change_kind(type_code, bool(entries))
    by = winner(entries) if entries else next(_removed(before), None)
    if by is None:
        return Touched(key.decode(), type_code, subkey, kind, replica.origin, 0, 0)
    return Touched(key.decode(), type_code, subkey, kind, by.origin, by.seq, by.hlc)


def _removed(before: bytes | None) -> Iterator[Entry]:
    if before is not None:
        yield winner(decode_entries(before))


def _journal(replica: Replica, key: bytes, type_code: int, subkey: bytes, entries: list[Entry], mine: Snapshot, theirs: Snapshot) -> None:
    """Entries of one slot that either side had and the other had not seen."""
    if len(entries) < 2 or not uncovered(entries, mine.vv) or not uncovered(entries, theirs.vv):
        return
    if type_code == SlotType.SET and len({e.expiry for e in entries}) == 1:
        return
    ordered = sorted(entries, key=rank, reverse=True)
    rule = RULE_ELEMENT if type_code == SlotType.SET else RULE_LWW
    updates = [update_of(e, type_code) for e in ordered]
    replica.journal.record(key, type_code, subkey, rule, updates[0], updates[1:], replica.clock.mark, installed=True)
