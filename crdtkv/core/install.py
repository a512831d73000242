"""Installing a snapshot into a replica: the join of both states, slot by slot, with everything kept beside them.

What the join changes goes through the same overlay as any commit, so heads, expiries, digest and journal follow.
Conflicts that the join finds are journaled, marked as installed, for in which order they would have arrived is not known: concurrent
entries of one slot, some of them new here, and new ones that meet a removal in the index here which the snapshot had not seen.

One pass over both states in slot order, in bounded memory: the caller may fold between the batches of `Installer.run`. Until
`finish` the replica's vector is the old one, while some slots are joined already; nobody may be served then. The pass may begin
anew with the same snapshot after a crash at any point of it: what was joined already stays as it is, for both sides have it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from crdtkv.core.apply import Applier, Touched, update_of
from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.codec import SLOT_SPACE, SlotType, slot_of, split_slot, successor
from crdtkv.core.control import NOTHING_AGREED, Agreed, removed_text
from crdtkv.core.expiries import expiry_key
from crdtkv.core.heads import Heads
from crdtkv.core.join import Snapshot, join_records
from crdtkv.core.journal import RULE_ADD_WINS, RULE_ELEMENT, RULE_INCREMENT_SURVIVES, RULE_LWW, RULE_WRITE_SURVIVES, Update
from crdtkv.core.replica import Replica
from crdtkv.core.requests import Made
from crdtkv.core.types.base import Entry, decode_entries, rank, uncovered, winner
from crdtkv.core.types.counter import decode_run, list_dead, run_name
from crdtkv.errors import CorruptionError, RegionRemovedError, StorageError, WrongClusterError

BATCH_BYTES: Final = 8 << 20
"""About so many bytes of the snapshot are in one batch of an install."""
SAMPLES_MAX: Final = 16


class Installed(NamedTuple):
    """What an install did.

    Attributes:
        applied: commits that were new here.
        jumped: origins of which there were such, and up to where.
        added, changed, removed: slots that came, were joined or replaced, went.
        added_keys, removed_keys: some of their keys.
        conflicts: entries in the journal that the install made.
        unseen: own commits that the snapshot had not seen: they flow out now.
    """

    applied: int
    jumped: VersionVector
    added: int = 0
    changed: int = 0
    removed: int = 0
    added_keys: tuple[str, ...] = ()
    removed_keys: tuple[str, ...] = ()
    conflicts: int = 0
    unseen: int = 0


class Incoming(NamedTuple):
    """What a snapshot carries beside its slots; see `Snapshot`. `stamps` and `requests` may be empty."""

    cluster: str
    shard: int
    vv: VersionVector
    hashes: Mapping[Origin, bytes]
    agreed: Agreed = NOTHING_AGREED
    stamps: Mapping[Origin, int] = {}
    requests: Sequence[Made] = ()
    mark: int = 0


class Installer:
    """One install of one snapshot into one replica, whose clears are done.

    Args:
        begun: it had begun before the process died. It was allowed then; what ended an origin since (a closing that had waited for it,
            applied behind it) must not keep it from being finished: the state is half of each until it is.
    Raises:
        CorruptionError: a fork. WrongClusterError: another cluster's. StorageError: it holds commits of this replica's own that
            this replica has lost. RegionRemovedError: it holds what an origin wrote after it was closed, or after it was frozen here and
            is not closed there. Nothing changed.
    """

    def __init__(
        self, replica: Replica, theirs: Incoming, changed: Callable[[Touched], None] | None = None, *, begun: bool = False
    ) -> None:
        _check(replica, theirs, begun=begun)
        assert not replica.purges, "clears are done before an install"
        self._replica = replica
        self._theirs = theirs
        self._tell = changed
        self._vv = replica.vv()
        self._added = self._changed = self._removed = 0
        self._added_keys: dict[str, None] = {}
        self._removed_keys: dict[str, None] = {}
        self._conflicts = replica.journal.total
        self._hlc = 0

    def run(self, slots: Iterable[tuple[bytes, bytes]], records_max: int = 16_384) -> Iterator[None]:
        """Join the snapshot's slots, in their order, into the replica's; yields whenever a batch is full. O(both states).

        Args:
            records_max: so many changed records, or `BATCH_BYTES` of the snapshot, make a batch.
        """
        state = self._replica.state
        mine = state.scan(SLOT_SPACE, successor(SLOT_SPACE))
        my_slot, my_record = next(mine, (b"", b""))
        size = 0
        for slot, record in slots:
            while my_slot and my_slot < slot:
                self._one(my_slot, my_record, None)
                my_slot, my_record = next(mine, (b"", b""))
            if my_slot == slot:
                self._one(slot, my_record, record)
                my_slot, my_record = next(mine, (b"", b""))
            elif not self._is_new_register(slot, record):
                self._one(slot, None, record)
            size += len(slot) + len(record)
            if state.pending >= records_max or size >= BATCH_BYTES:
                size = 0
                yield
        while my_slot:
            self._one(my_slot, my_record, None)
            my_slot, my_record = next(mine, (b"", b""))
            if state.pending >= records_max:
                yield

    def finish(self) -> Installed:
        """Take over the snapshot's vector and what belongs to it. The caller folds at once: the log does not hold what came."""
        replica, theirs, before = self._replica, self._theirs, self._vv
        jumped = VersionVector({o: n for o, n in theirs.vv.items() if n > before.seq(o)})
        for made in theirs.requests:
            if not before.covers((made.origin, made.seq)):
                replica.note_request(made)
        replica.clock.absorb(max(theirs.mark, self._hlc))
        replica.jump(theirs.vv, theirs.hashes, theirs.stamps)
        replica.agree(theirs.agreed, theirs.hashes)
        return Installed(
            theirs.vv.missing_from(before),
            jumped,
            self._added,
            self._changed,
            self._removed,
            tuple(self._added_keys),
            tuple(self._removed_keys),
            replica.journal.total - self._conflicts,
            max(0, before.seq(replica.origin) - theirs.vv.seq(replica.origin)),
        )

    def _is_new_register(self, slot: bytes, record: bytes) -> bool:
        """The commonest case of `_one`, written out: one write for good that this replica has never seen, and nobody watches."""
        if self._tell is not None or slot[slot.index(b"\x00\x00") + 2] != SlotType.REGISTER:
            return False
        entries = decode_entries(record)
        entry = entries[0]
        if len(entries) != 1 or entry.expiry is not None or entry.seq <= self._vv.seq(entry.origin) or self._replica.removals(slot):
            return False
        self._replica.state.put(slot, record)
        self._hlc = max(self._hlc, entry.hlc)
        self._added += 1
        if len(self._added_keys) < SAMPLES_MAX:
            self._added_keys[split_slot(slot)[0].decode()] = None
        return True

    def _one(self, slot: bytes, mine: bytes | None, theirs: bytes | None) -> None:
        if mine == theirs:
            return
        record = join_records(slot, mine, self._vv, theirs, self._theirs.vv)
        if record == mine:
            return
        touched = self._replace(slot, mine, record)
        if mine is None:
            self._added += 1
            if len(self._added_keys) < SAMPLES_MAX:
                self._added_keys[touched.key] = None
        elif record is None:
            self._removed += 1
            if len(self._removed_keys) < SAMPLES_MAX:
                self._removed_keys[touched.key] = None
        else:
            self._changed += 1
        if self._tell is not None:
            self._tell(touched)

    def _replace(self, slot: bytes, before: bytes | None, record: bytes | None) -> Touched:
        replica, theirs = self._replica, self._theirs
        key, type_code, subkey = split_slot(slot)
        heads: Heads = replica.heads
        replica.state.put(slot, record)
        if type_code == SlotType.COUNTER:
            origin, run = run_name(subkey)
            if before is None:
                heads.add_run(key, origin, run)
            elif record is None:
                heads.drop_run(key, origin, run)
            list_dead(replica.state, slot, None if record is None or decode_run(record).live else theirs.vv.join(self._vv))
            if record is not None and (now := decode_run(record)).live and now.seq > self._vv.seq(origin):
                self._meet_removals(key, type_code, b"", RULE_INCREMENT_SURVIVES, Update(origin, now.seq, 0, "increment", None))
            return Touched(key.decode(), type_code, b"", "increment", origin, theirs.vv.seq(origin), 0)
        entries = [] if record is None else decode_entries(record)
        expires = False
        for entry in entries:
            replica.clock.absorb(entry.hlc)  # as for a frame: what is written next is stamped above what is here
            if entry.expiry is not None:
                expires = True
                replica.expiries.add(expiry_key(entry.expiry, slot))
        if type_code != SlotType.REGISTER:
            heads.count(key, type_code, (record is not None) - (before is not None), expires)
        if len(entries) > 1:
            _journal(replica, key, type_code, subkey, entries, self._vv)
        if came := uncovered(entries, self._vv):
            rule = RULE_ADD_WINS if type_code == SlotType.SET else RULE_WRITE_SURVIVES
            self._meet_removals(key, type_code, subkey, rule, update_of(winner(came), type_code))
        kind = Applier.change_kind(type_code, bool(entries))
        by = winner(entries) if entries else next(_removed(before), None)
        if by is None:
            return Touched(key.decode(), type_code, subkey, kind, replica.origin, 0, 0)
        return Touched(key.decode(), type_code, subkey, kind, by.origin, by.seq, by.hlc)

    def _meet_removals(self, key: bytes, type_code: int, subkey: bytes, rule: str, won: Update) -> None:
        """Journal the removals of what came, or of its whole collection, that the snapshot, and so its writer, had not seen."""
        replica = self._replica
        found = replica.removals(slot_of(key, type_code, subkey))
        if subkey:
            found += replica.removals(slot_of(key, type_code))
        for removal in found:
            if not self._theirs.vv.covers(removal.dot):
                lost = Update(removal.origin, removal.seq, removal.hlc, removal.kind, None)
                replica.journal.record(key, type_code, subkey, rule, won, [lost], replica.clock.mark, installed=True)


def install(replica: Replica, theirs: Snapshot, changed: Callable[[Touched], None] | None = None) -> Installed:
    """Join a snapshot in memory into a replica, all at once. O(both states). Raises like `Installer`. The caller folds at once."""
    _check(replica, incoming := Incoming(theirs.cluster, theirs.shard, theirs.vv, theirs.hashes, theirs.agreed))
    while replica.purge_slice(10_000):
        pass
    installer = Installer(replica, incoming, changed)
    for _ in installer.run(theirs.slots.items()):
        pass
    return installer.finish()


def _check(replica: Replica, theirs: Incoming, *, begun: bool = False) -> None:
    if (theirs.cluster, theirs.shard) != (replica.cluster, replica.shard):
        raise WrongClusterError(
            f"a snapshot of cluster {theirs.cluster!r} shard {theirs.shard} came to cluster {replica.cluster!r} shard {replica.shard}: "
            "only replicas of one cluster exchange state",
            cluster=theirs.cluster,
            shard=theirs.shard,
        )
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
    for origin, seq in theirs.vv.items():
        limit, closes = replica.control.limit(origin), theirs.agreed.closed.get(origin)
        if limit is not None and closes:
            limit = max(limit, closes[-1].seq)  # what all members agreed on comes with it, as with a frame (see `Replica.follow`)
        if limit is not None and seq > limit and not begun:
            raise RegionRemovedError(removed_text(origin, limit), origin=origin, seq=seq, limit=limit)
        last, ours = replica.last_hash(origin)
        if 0 < seq == last and theirs.hashes[origin] != ours:
            raise CorruptionError(f"fork: two histories of {origin} end at {seq}", origin=origin, seq=seq, fork=True)
        if seq < last and (kept := replica.hash_at(origin, seq)) is not None and kept != theirs.hashes[origin]:
            raise CorruptionError(f"fork: two contents of {origin}:{seq}", origin=origin, seq=seq, fork=True)


def _removed(before: bytes | None) -> Iterator[Entry]:
    if before is not None:
        yield winner(decode_entries(before))


def _journal(replica: Replica, key: bytes, type_code: int, subkey: bytes, entries: list[Entry], mine: VersionVector) -> None:
    """Entries of one slot, concurrent as all siblings are, of which some are new here. What was known here is in the journal already."""
    if not uncovered(entries, mine):
        return
    if type_code == SlotType.SET and len({e.expiry for e in entries}) == 1:
        return
    ordered = sorted(entries, key=rank, reverse=True)
    rule = RULE_ELEMENT if type_code == SlotType.SET else RULE_LWW
    updates = [update_of(e, type_code) for e in ordered]
    replica.journal.record(key, type_code, subkey, rule, updates[0], updates[1:], replica.clock.mark, installed=True)
