"""One change of one collection, without a transaction around it: what most calls on handles are.

A transaction gathers changes and answers reads in between. One change by itself needs the type check, a look at its slot, and its
delta; each function here comes to what a transaction of the same call would, and leaves to one what takes more than a look at the head
(an element may have expired, a clear is in progress, no slot of the type is there yet).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crdtkv.core.codec import SlotType, slot_of
from crdtkv.core.frame import Delta, DeltaKind
from crdtkv.results import Commit
from crdtkv.store.transaction import check_commit_size, check_total, utf8_size, whole

if TYPE_CHECKING:
    from crdtkv.store.handles import CounterHandle, MapHandle, SetHandle
    from crdtkv.store.store import Store


def add(handle: SetHandle, element: bytes) -> Commit:
    """Add an element for good, in a store whose commits gather: the commonest change of a set."""
    store = handle.store
    delta: Delta = [DeltaKind.SET_ADD, handle.key, element]
    with store._lock:
        store._begin()
        context = store._replica.context()
        head = store._heads.counting(handle.head)
        if head is not None and head.set_slots and not head.set_expires and not store._purges.active:
            seq, hlc = store._machine.transact_add(handle.first + element, head, delta)  # a set is visible there
        else:
            store._reader.require(handle.raw, SlotType.SET)
            seq, hlc = store._machine.transact([delta])
        if store._gathers:
            return Commit(store.origin, seq, hlc, (store.shard, store._machine.gather(len(element)), context, True))
        commit = store._sealed(seq, hlc, context, None)  # somebody has come to follow the log since
    return store._settle(commit, None)


def discard(handle: SetHandle, element: bytes, durability: str | None) -> Commit | None:
    """Remove an element; None if it is not there."""
    store = handle.store
    with store._lock:
        store._begin(durability)
        if _is_counted(store, handle.raw, SlotType.SET):
            if store._replica.state.get(handle.first + element) is None:
                return None
            commit = _finish(store, [DeltaKind.SET_REMOVE, handle.key, element], len(element), durability)
        else:
            found = store._change(lambda t: t.discard(handle.key, element), durability)
            if found is None:
                return None
            commit = found
    return store._settle(commit, durability)


def put_field(handle: MapHandle, name: str, value: bytes, ttl: float | None, durability: str | None) -> Commit:
    """Write a field."""
    store = handle.store
    with store._lock:
        store._begin(durability)
        expiry = None if ttl is None else store._expiry(ttl)
        if expiry is None and _is_counted(store, handle.raw, SlotType.MAP):
            commit = _finish(store, [DeltaKind.MAP_PUT, handle.key, name, value], utf8_size(name) + len(value), durability)
        else:
            found = store._change(lambda t: t.put_field(handle.key, name, value, expiry), durability)
            assert found is not None, "a put always changes something"
            commit = found
    return store._settle(commit, durability)


def delete_field(handle: MapHandle, name: str, encoded: bytes, durability: str | None) -> Commit | None:
    """Remove a field, whose name's canonical bytes are `encoded`; None if it is not there."""
    store = handle.store
    with store._lock:
        store._begin(durability)
        if _is_counted(store, handle.raw, SlotType.MAP):
            if store._replica.state.get(slot_of(handle.raw, SlotType.MAP, encoded)) is None:
                return None
            commit = _finish(store, [DeltaKind.MAP_DELETE, handle.key, name], utf8_size(name), durability)
        else:
            found = store._change(lambda t: t.delete_field(handle.key, name), durability)
            if found is None:
                return None
            commit = found
    return store._settle(commit, durability)


def increment(handle: CounterHandle, amount: int, durability: str | None) -> Commit | None:
    """Add to a counter; None for 0."""
    whole(amount, "increment")
    store = handle.store
    with store._lock:
        store._begin(durability)
        live = [(origin, number, run.total) for origin, number, run in store._reader.runs(handle.raw) if run.live]
        if not live:
            store._reader.require(handle.raw, SlotType.COUNTER)
        if not amount:
            return None
        number, total = max(((n, total) for origin, n, total in live if origin == store.origin), default=(0, 0))
        check_total(total, amount)
        run = number or store._replica.seq(store.origin) + 1  # a new run is named by the next seq
        commit = _finish(store, [DeltaKind.COUNTER_ADD, handle.key, run, total + amount], 0, durability)
    return store._settle(commit, durability)


def _is_counted(store: Store, raw: bytes, type_code: int) -> bool:
    """Whether the head says all: a collection of the type is visible at the key, and whatever has a record there is."""
    head = store._heads.get(raw)
    return head is not None and head.slots(type_code) > 0 and store._reader.exact(raw, type_code, head)


def _finish(store: Store, delta: Delta, size: int, durability: str | None) -> Commit:
    size += utf8_size(delta[1]) + 16
    check_commit_size(size, store.settings.commit_bytes_max)
    return store._finish([delta], size, durability)
