"""What a store keeps, for whom, and what it did, in numbers: what metrics are made of.

Beside `Store.status`, which is for people: that one settles the digest, and for it writes the engine. Reading these changes nothing
and takes no longer however much is stored; so it may be done as often as somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from crdtkv.core.causality import Origin, VersionVector, region_of
from crdtkv.core.types.counter import DEAD_SPACE
from crdtkv.storage.durations import Durations

if TYPE_CHECKING:
    from crdtkv.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """One moment of a store. What counts events counts them since the store was opened, unless it says otherwise.

    Attributes:
        applied, floor: seqs by origin, closed ones among them: what is applied; from after where the log has it.
        open_origins: how many the vectors show that go to peers and clients.
        own_seq: the last own commit of the present incarnation.
        digest: if it is at hand: nothing waits for the engine, and no clear is in progress. None: not at hand.
        conflicts: ever recorded here, by rule. journal_records, journal_bytes, journal_trimmed: kept of them, and no longer.
        held_frames, held_bytes: received, waiting for what they rest on.
        removals, removals_evicted, requests: slots in the index of removals; that went for want of room; ids in the window of requests.
        clears: collections whose elements are being removed.
        log_segments, log_bytes, log_start, log_end, log_synced: of the log; the last three are positions.
        kept_for: other regions → whether the log is kept for them beyond age and size.
        overlay_records, overlay_bytes: what waits to be written to the engine.
        watchers, watchers_cut: there are; were too slow.
        staged_chunks, staged_slots: of a snapshot that is being received.
        full: takes nothing, because there is no room on the disk. refuses: takes no writes, for that or because the region was removed.
        fsyncs, fold_steps: of the log, and of writing the engine. None: a store without a disk has no fsyncs.
    """

    origin: Origin
    applied: Mapping[Origin, int]
    floor: Mapping[Origin, int]
    open_origins: int
    own_seq: int
    digest: int | None
    conflicts: Mapping[str, int]
    journal_records: int
    journal_bytes: int
    journal_trimmed: int
    held_frames: int
    held_bytes: int
    removals: int
    removals_evicted: int
    requests: int
    clears: int
    log_segments: int
    log_bytes: int
    log_start: int
    log_end: int
    log_synced: int
    kept_for: Mapping[str, bool]
    engine_bytes: int
    overlay_records: int
    overlay_bytes: int
    watchers: int
    watchers_cut: int
    staged_chunks: int
    staged_slots: int
    full: bool
    refuses: bool
    fsyncs: Durations | None
    fold_steps: Durations

    def by_region(self, seqs: Mapping[Origin, int]) -> dict[str, int]:
        """Seqs summed over the incarnations of each region: such a sum never goes back."""
        found: dict[str, int] = {}
        for origin, seq in seqs.items():
            found[region_of(origin)] = found.get(region_of(origin), 0) + seq
        return found


def statistics(store: Store) -> StoreStatistics:
    """The numbers of this moment. O(origins + segments of the log); waits for the store's lock."""
    with store._lock:
        store._check()
        machine, replica = store._machine, store._replica
        log, journal, retention = machine.log, replica.journal, store._retention
        applied: VersionVector = machine.vv()
        state = replica.state
        at_hand = state.has_digest and not replica.purges and not state.pending and not state.is_folding and not replica.making
        staged = None if machine.snapshots is None else machine.snapshots.staged
        removals, evicted, requests = replica.remembered
        held_frames, held_bytes = replica.held
        return StoreStatistics(
            origin=machine.origin,
            applied=dict(applied.items()),
            floor=dict(log.floor().items()),
            open_origins=len(machine.control.show(applied)),
            own_seq=machine.own_seq(),
            digest=replica.digest() if at_hand else None,
            conflicts=dict(journal.counts.by_rule),
            journal_records=len(journal),
            journal_bytes=journal.counts.size_bytes,
            journal_trimmed=journal.counts.first,
            held_frames=held_frames,
            held_bytes=held_bytes,
            removals=removals,
            removals_evicted=evicted,
            requests=requests,
            clears=len(replica.purges.active),
            log_segments=len(log.parts()) + 1,
            log_bytes=log.retained_bytes(),
            log_start=log.start(),
            log_end=log.end(),
            log_synced=log.synced(),
            kept_for={region: region in retention.last.held_by for region in retention.members},
            engine_bytes=machine.engine.size_bytes(),
            overlay_records=replica.state.pending,
            overlay_bytes=machine.unfolded_bytes,
            watchers=store._watches.count,
            watchers_cut=store._watches.cut,
            staged_chunks=0 if staged is None else staged.chunks,
            staged_slots=0 if staged is None else staged.slots,
            full=machine.full is not None,
            refuses=machine.full is not None or replica.refusal is not None,
            fsyncs=getattr(log, "fsyncs", None),
            fold_steps=machine.fold_steps,
        )


def spent_runs(store: Store, at_most: int) -> int:
    """How many counter runs are listed that were reset and count for nothing any more, as of the last write of the engine.

    O(what is found). The store's lock is held for a moment only; not for a thread that must not wait for a disk.
    """
    with store._lock:
        store._check()
        view = store._machine.engine.snapshot()
    try:
        with closing(view.scan(DEAD_SPACE, bytes([DEAD_SPACE[0] + 1]))) as found:  # type: ignore[type-var]
            return sum(1 for _ in islice(found, at_most))
    finally:
        view.close()
