"""The obvious way of what the store writes out for speed: every delta of every commit applied by its type's own function.

A store opened here is the slow twin of another. The two must hold the same records (journal, heads, removals among them), log the same
frames byte for byte and answer the same, whatever is asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from unittest.mock import patch

import msgspec

from crdtkv.core.causality import Origin, make_origin
from crdtkv.core.frame import Delta, DeltaKind, Frame
from crdtkv.core.heads import Head
from crdtkv.core.journal import JOURNAL_SPACE, Record
from crdtkv.core.meta import META_KEY, Meta
from crdtkv.core.replica import Replica, enters_digest
from crdtkv.core.state import hash_record
from crdtkv.core.types.registry import APPLY
from crdtkv.errors import CrdtkvError
from crdtkv.results import Commit
from crdtkv.store import Settings, Store
from crdtkv.store.batch import Batch
from crdtkv.store.handles import CounterHandle, MapHandle, SetHandle
from crdtkv.store.opening import open_machine
from crdtkv.store.transaction import Transaction, _Written
from tests.stores import Clock

T = TypeVar("T")


class PlainReplica(Replica):
    """Applies each delta by itself."""

    def commit(self, deltas: list[Delta], request_id: bytes | None = None) -> tuple[int, int]:
        if self.refusal is not None:
            raise self.refusal
        hlc, seq = self.clock.issue(), self._vv.get(self.origin, 0) + 1
        if not self._rows:
            self._first_hlc = hlc
        self._applier.begin(self.origin, seq, hlc, self._vv, True)
        for delta in deltas:
            APPLY[delta[0]](self._applier, delta)
        self._vv[self.origin] = seq
        if request_id is not None:
            self._requests.note(request_id, self.origin, seq, hlc)
        self._rows.append([hlc - self._first_hlc, None if request_id is None else {"r": request_id}, *deltas])
        return seq, hlc

    def commit_put(self, slot: bytes, delta: Delta, request_id: bytes | None = None) -> tuple[int, int]:
        return self.commit([delta], request_id)

    def commit_together(self, puts: Mapping[str, bytes]) -> tuple[int, int]:
        return self.commit([[DeltaKind.REGISTER_PUT, key, value] for key, value in puts.items()])

    def commit_puts(
        self, slots: Sequence[bytes], keys: Sequence[str], values: Sequence[bytes], request_ids: Sequence[bytes | None]
    ) -> tuple[int, int]:
        puts = zip(keys, values, request_ids, strict=True)
        commits = [self.commit([[DeltaKind.REGISTER_PUT, key, value]], request_id) for key, value, request_id in puts]
        return commits[0]

    def commit_add(self, slot: bytes, head: Head, delta: Delta) -> tuple[int, int]:
        return self.commit([delta])

    def apply(self, frame: Frame) -> None:
        with patch.object(Frame, "puts", lambda self: None):
            super().apply(frame)

    def touches(self, frames: Iterable[Frame]) -> list[bytes]:
        with patch.object(Frame, "puts", lambda self: None):
            return super().touches(frames)


class PlainTransaction(Transaction):
    """Keeps the changes of every key in full."""

    def put(self, key: str, value: bytes, expiry: int | None = None) -> bool:
        self._require(key, 1)
        self._account(key, value)
        self._changes(key).register = _Written(value, expiry)
        return True

    def put_blind(self, key: str, value: bytes, is_allowed: bool = False) -> Delta | None:
        return None

    def put_alone(self, key: str, value: bytes) -> Delta | None:
        return None


class PlainBatch(Batch):
    """Each put is a call of the transaction."""

    def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        data = self._encode(value)
        expiry = self._expiry(ttl)
        self._write(lambda t: t.put(key, data, expiry))


class PlainCalls:
    """Each change of a collection in a transaction of its own, in place of `crdtkv.store.direct`."""

    @staticmethod
    def add(handle: SetHandle, element: bytes) -> Commit | None:
        return handle.store._transact(lambda t: t.add(handle.key, element), None)

    @staticmethod
    def discard(handle: SetHandle, element: bytes, durability: str | None) -> Commit | None:
        return handle.store._transact(lambda t: t.discard(handle.key, element), durability)

    @staticmethod
    def put_field(handle: MapHandle, name: str, value: bytes, ttl: float | None, durability: str | None) -> Commit | None:
        store = handle.store
        return store._transact(lambda t: t.put_field(handle.key, name, value, None if ttl is None else store._expiry(ttl)), durability)

    @staticmethod
    def delete_field(handle: MapHandle, name: str, encoded: bytes, durability: str | None) -> Commit | None:
        return handle.store._transact(lambda t: t.delete_field(handle.key, name), durability)

    @staticmethod
    def increment(handle: CounterHandle, amount: int, durability: str | None) -> Commit | None:
        return handle.store._transact(lambda t: t.increment(handle.key, amount), durability)


@contextmanager
def plainly(is_plain: bool = True) -> Iterator[None]:
    """Within it, stores are opened, and batches are made, in the obvious way."""
    if not is_plain:
        yield
        return
    with (
        patch("crdtkv.store.machine.Replica", PlainReplica),
        patch("crdtkv.store.store.Transaction", PlainTransaction),
        patch("crdtkv.store.batch.Transaction", PlainTransaction),
        patch("crdtkv.store.store.Batch", PlainBatch),
        patch("crdtkv.store.requests.Transaction", PlainTransaction),
        patch("crdtkv.store.handles.direct", PlainCalls),
    ):
        yield


class Twins:
    """One region's store twice, written out and plain: `both` asks the same of each and wants the same answer."""

    def __init__(self, clock: Clock, region: str, settings: Settings) -> None:
        self.stores: list[Store] = []
        chosen = replace(settings, async_sync_ms=3_600_000)
        for is_plain in (False, True):
            with plainly(is_plain), patch("crdtkv.store.opening.new_origin", lambda region: make_origin(region, 1, 1)):
                opened = open_machine(None, region=region, engine=None, durability="memory", settings=chosen, wall_ms=clock)
                self.stores.append(Store(opened, "memory", chosen, clock))

    def both(self, ask: Callable[[Store], T]) -> T | str:
        """What `ask` answers of both; if it raises, the error's text."""
        answers: list[T | str] = []
        for is_plain, store in zip((False, True), self.stores, strict=True):
            with plainly(is_plain):
                try:
                    answers.append(ask(store))
                except CrdtkvError as e:
                    answers.append(f"{type(e).__name__}: {e}")
        assert answers[0] == answers[1]
        return answers[0]

    def check(self) -> None:
        """Both hold the same, and the digest is that of what they hold."""
        shown = [_inside(store) for store in self.stores]
        assert shown[0] == shown[1]

    def close(self) -> None:
        for store in self.stores:
            store.close()


def _inside(store: Store) -> tuple[list[bytes], dict[bytes, bytes], list[Record], dict[Origin, int], int]:
    machine = store._machine
    machine.seal()
    machine.fold()
    frames, _ = machine.log.read(machine.log.start(), bytes_max=1 << 30)
    records = dict(machine.engine.scan(b"", None))
    journal = list(machine.replica.journal.records())  # what it keeps together, the plain one keeps one by one
    records = {key: record for key, record in records.items() if key[:1] != JOURNAL_SPACE}
    if META_KEY in records:
        meta = msgspec.msgpack.decode(records[META_KEY], type=Meta)
        meta.journal.size_bytes = meta.journal.oldest = 0
        records[META_KEY] = msgspec.msgpack.encode(meta)
    digest = sum(hash_record(slot, r) for slot, r in records.items() if slot[:1] == b"d" and enters_digest(slot, r)) % (1 << 128)
    assert machine.replica.digest() == digest
    return [frame.data for frame in frames], records, journal, dict(machine.vv()), digest
