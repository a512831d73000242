"""Mending a store's state: taking over records from a sound replica, and recounting what is kept beside them; see `core.mend`.

Neither is in the log: it tells what was committed, and that has not changed. So both are on the engine's disk before they are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from crdtkv.core.causality import VersionVector
from crdtkv.core.codec import split_slot
from crdtkv.core.compare import digest_share
from crdtkv.core.frame import Frame
from crdtkv.core.heads import HEAD_SPACE, Head, decode_head, head_key
from crdtkv.core.join import check_slot
from crdtkv.core.mend import Beside, Touches, adopt, recount
from crdtkv.errors import CorruptionError, MissingHistoryError
from crdtkv.store.view import PAGE_BYTES, StateView

if TYPE_CHECKING:
    from crdtkv.store.store import Store

SLOTS_MAX: Final = 1024
"""Records that one call takes over: the store's lock is held meanwhile."""
_MASK: Final = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Adopted:
    """What became of the records offered: taken over; or `touched` by commits since the donor's state, so that a later one is needed."""

    adopted: tuple[bytes, ...]
    touched: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """What a recount found: the digest that was kept and the one that the records give; records beside the slots that it put right."""

    kept: str
    scanned: str
    beside: int

    @property
    def changed(self) -> bool:
        return self.kept != self.scanned or self.beside > 0


def adopt_records(store: Store, offered: Mapping[bytes, bytes | None], vv: VersionVector, donor: str) -> Adopted:
    """Take over records (None: that there is none) from a state at `vv` of another region. Durable when it returns.

    Raises:
        MissingHistoryError: this replica has not applied all of `vv`.
        CorruptionError: a record is not one that a state at `vv` may hold; nothing changed.
    """
    for slot, record in offered.items():
        if record is not None:
            check_slot(slot, record, vv)
    done: Adopted | None = None
    while done is None:
        with store._lock:
            store._settled()
            if not store._replica.purges:
                done = _adopt(store, offered, vv, donor)
            else:
                store._machine.purge_slice(store.settings.purge_slots)
    store._machine.engine.flush()
    return done


def _adopt(store: Store, offered: Mapping[bytes, bytes | None], vv: VersionVector, donor: str) -> Adopted:
    machine, replica = store._machine, store._replica
    if not vv <= machine.vv():
        raise MissingHistoryError(f"{store.region} has not applied all that the records of {donor} rest on: try again later")
    since = _frames_since(store, vv)
    if since is None:
        return Adopted((), tuple(offered))  # the log no longer tells
    touches = Touches(replica, since)
    adopted: list[bytes] = []
    touched: list[bytes] = []
    keys = set()
    with store._watches.gathering(unlogged=True) as changes:
        for slot, record in offered.items():
            if slot in touches:
                touched.append(slot)
                continue
            change = adopt(replica, slot, record, donor)
            if change is not None:
                adopted.append(slot)
                if change.key:
                    keys.add(split_slot(slot)[0])
                    changes.append(change)
        for key in keys:
            recount(replica, key)
    if keys:
        machine.note_unlogged()
    machine.fold()
    return Adopted(tuple(adopted), tuple(touched))


def _frames_since(store: Store, vv: VersionVector) -> list[Frame] | None:
    log = store._machine.log
    if not log.floor() <= vv:
        return None
    position, end = log.position_after(vv), log.end()
    found: list[Frame] = []
    while position < end:
        frames, position = log.read(position, bytes_max=PAGE_BYTES, until=end)
        found += (f for f in frames if not vv.covers((f.origin, f.last_seq)))
    return found


def settle(store: Store, pace: float = 1.0) -> Settled:
    """Recount what is kept beside the slots from a scan of them: heads, the index of expiries, the digest. O(state); writers go on.

    To be called when the slots are right: else the digest of what is wrong becomes the one that is kept.
    """
    with StateView(store, pace) as view:
        kept = view.moment.digest
        scanned, keys, listed = _recount(view)
    with store._lock:
        store._settled()
        store._machine.fold()  # nobody folds from here on
        replica = store._replica
        for key in keys:
            recount(replica, key)
        for place in listed:
            replica.expiries.add(place)
        replica.state.correct_digest(scanned - kept)
        replica.fold()
    store._machine.engine.flush()
    return Settled(f"{kept:032x}", f"{scanned:032x}", len(keys) + len(listed))


def _recount(view: StateView) -> tuple[int, list[bytes], list[bytes]]:
    """The digest of a view's records; the keys whose heads are not what their slots say; places missing in the index of expiries."""
    total = 0
    beside = Beside()
    wrong: list[bytes] = []
    missing: list[bytes] = []
    snapshot = view._snapshot
    with closing(_Heads(view)) as heads:
        for slot, record in chain(view.records(), [(b"", b"")]):
            if slot:
                total += digest_share(slot, record)
                done, places = beside.take(slot, record)
            else:
                done, places = beside.finish(), []
            if done is not None:
                wrong += heads.wrong_up_to(*done)
            missing += (place for place in places if snapshot.get(place) is None)
        wrong += heads.rest()
    return total & _MASK, wrong, missing


class _Heads:
    """The heads that are kept, in key order, against those that the slots give."""

    def __init__(self, view: StateView) -> None:
        self._kept = view._snapshot.scan(HEAD_SPACE, bytes([HEAD_SPACE[0] + 1]))
        self._next = next(self._kept, None)

    def wrong_up_to(self, key: bytes, head: Head) -> list[bytes]:
        """The keys up to `key` whose heads are wrong: heads of keys without slots, and this key's if it differs."""
        wrong: list[bytes] = []
        where = head_key(key)
        while self._next is not None and self._next[0] < where:
            wrong.append(_key_of(self._next[0]))
            self._next = next(self._kept, None)
        kept = None
        if self._next is not None and self._next[0] == where:
            kept = self._next[1]
            self._next = next(self._kept, None)
        if not _same(kept, head):
            wrong.append(key)
        return wrong

    def rest(self) -> list[bytes]:
        """The keys of heads after the last slot."""
        found = [] if self._next is None else [_key_of(self._next[0])]
        return found + [_key_of(where) for where, _ in self._kept]

    def close(self) -> None:
        self._kept = iter(())


def _key_of(where: bytes) -> bytes:
    return where[1:].replace(b"\x00\xff", b"\x00")


def _same(kept: bytes | None, head: Head) -> bool:
    """Whether a kept head says what the slots say. That elements may expire is remembered when they are gone, and runs have no order."""
    if kept is None:
        return head.is_empty
    try:
        found = decode_head(kept)
    except CorruptionError:
        return False
    return (
        (found.set_slots, found.map_slots, sorted(found.runs)) == (head.set_slots, head.map_slots, sorted(head.runs))
        and found.set_expires >= head.set_expires
        and found.map_expires >= head.map_expires
    )
