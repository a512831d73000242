"""Batches: several changes as one atomic commit; reads inside see the batch's own writes.

The batch holds no lock: it gathers the calls, and each read or check runs against the store as it is then. At exit
the calls are run again, as one transaction, so the commit's net effect is of one moment.

Most batches are puts for good, of keys that nothing in the store forbids. Those are kept as what they come to, a value a key, until
another call comes: a batch of a thousand of them is a dict, and its commit needs no transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from crdtkv.core.codec import KEY_BYTES_MAX, TYPE_NAMES, SlotType, check_size, decode_value, encode_key, encode_text, encode_value
from crdtkv.core.frame import Delta, DeltaKind
from crdtkv.errors import CrdtkvError, StoreClosedError, missing_element, missing_field, missing_key
from crdtkv.results import Commit
from crdtkv.store.handles import encode_field
from crdtkv.store.reading import wrong_type
from crdtkv.store.transaction import PUT_BYTES, Transaction, check_commit_size, delete_all, utf8_size, whole

if TYPE_CHECKING:
    from crdtkv.store.store import Store

T = TypeVar("T")
Call = Delta | Callable[[Transaction], bool]
"""A call that was gathered. A register's put for good, the commonest, is kept as the delta that it comes to."""


def _repeat(calls: Sequence[Call], transaction: Transaction) -> bool:
    """Run calls again, on another transaction; whether they change anything."""
    changed = False
    for call in calls:
        changed = (transaction.put(call[1], call[2]) if isinstance(call, list) else call(transaction)) or changed
    return changed


def _deltas(puts: Mapping[str, bytes]) -> list[Call]:
    return [[DeltaKind.REGISTER_PUT, key, value] for key, value in puts.items()]


class Batch:
    """The mutators of a store, gathered. `commit` is what the exit made: a `Commit`, or None if nothing changed."""

    def __init__(self, store: Store, durability: str | None) -> None:
        self._store = store
        self._durability = durability
        self._machine = store._machine
        self._heads = store._heads
        self._value_max = store.settings.value_bytes_max
        self._puts: dict[str, bytes] = {}
        """What was put since the last look at it: neither among the calls nor in the preview yet."""
        self._room = store.settings.commit_bytes_max
        """Bytes that may still be put so; less than 0 once the batch did something else, or has ended."""
        self._calls: list[Call] = []
        self._preview: Transaction | None = Transaction(store._replica, store._reader)
        self.commit: Commit | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._calls:
            self._look_at_puts()
        store, puts, calls, tried, room = self._store, self._puts, self._calls, self._preview, self._room
        self._puts, self._calls, self._preview, self._room = {}, [], None, -1
        if kind is not None:
            return
        if puts:
            self.commit = store._put_all(puts, store.settings.commit_bytes_max - room, self._durability)
            if self.commit is None:
                calls, tried = _deltas(puts), None
        if calls:
            self.commit = store._transact(partial(_repeat, calls), self._durability, tried)
            if store._replica.purges:
                store._upkeep.start()

    def _look_at_puts(self) -> None:
        """Make the preview show what was only put so far, and have it among the calls."""
        if self._puts and self._preview is not None:
            puts, self._puts = self._puts, {}
            self._calls += _deltas(puts)
            for key, value in puts.items():
                self._preview.put_blind(key, value, is_allowed=True)  # it was, when it was put
            self._room = self._store.settings.commit_bytes_max - self._preview.size

    def _write(self, call: Callable[[Transaction], bool]) -> bool:
        """Check a call against the batch so far and keep it; whether it changes anything."""
        self._look_at_puts()
        self._room = -1
        try:
            changed = self._read(call)
        except CrdtkvError:
            if self._preview is not None:  # the call may have got half-way: begin again without it
                self._preview = Transaction(self._store._replica, self._store._reader)
                self._read(partial(_repeat, self._calls))
            raise
        self._calls.append(call)
        return changed

    def _read(self, call: Callable[[Transaction], T]) -> T:
        if self._preview is None:
            raise StoreClosedError("the batch has ended: begin another with store.batch()")
        with self._store._lock:
            self._store._check()
            self._look_at_puts()
            return call(self._preview)

    def _encode(self, value: Any, what: str = "value") -> bytes:
        data = encode_value(value)
        check_size(data, self._store.settings.value_bytes_max, what)
        return data

    def _expiry(self, ttl: float | None) -> int | None:
        return None if ttl is None else self._store._expiry(ttl)

    # -- registers and keys ---------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        data = encode_text(value) if type(value) is str and value.isascii() else encode_value(value)
        if ttl is None and type(key) is str and key.isascii() and not self._machine.blocked and not self._heads.exist:
            room = self._room - len(key) - len(data) - PUT_BYTES
            if room >= 0 and 0 < len(key) <= KEY_BYTES_MAX and len(data) <= self._value_max:
                self._room = room
                self._puts[key] = data
                return
        self._put(key, data, ttl)

    def _put(self, key: str, data: bytes, ttl: float | None) -> None:
        """Put a register after a look at what forbids it. (Not in `put` itself: its variables would be cells, and it a fifth slower.)"""
        if len(data) > self._value_max:
            check_size(data, self._value_max)
        expiry = self._expiry(ttl)
        if expiry is not None:
            self._write(lambda t: t.put(key, data, expiry))
            return
        self._look_at_puts()
        if self._preview is not None and self._store._closed is None and self._machine.failed is None:
            delta = self._preview.put_blind(key, data)
            if delta is None:
                with self._store._lock:
                    delta = self._preview.put_alone(key, data)
            if delta is not None:
                self._calls.append(delta)
                if self._room >= 0:
                    self._room = self._store.settings.commit_bytes_max - self._preview.size
                return
        self._write(lambda t: t.put(key, data))

    def get(self, key: str, default: Any = None) -> Any:
        encode_key(key)
        data = self._read(lambda t: t.register(key))
        if data is not None:
            return decode_value(data)
        self._only(key, SlotType.REGISTER)
        return default

    def delete(self, key: str) -> bool:
        """Remove a key of any type; whether anything was there."""
        encode_key(key)
        return self._write(lambda t: t.delete(key))

    def delete_prefix(self, prefix: str) -> bool:
        """Remove every key with a prefix, as the batch sees them now; whether there was any.

        Unlike the store's, it is atomic, and so bounded by what one commit may hold.
        """
        self._look_at_puts()
        preview = self._preview
        keys: list[str] = []
        size = 0
        for key in chain(() if preview is None else preview.changed_keys(prefix), self._store._scan_keys(prefix)):
            size += utf8_size(key) + 16
            check_commit_size(size, self._store.settings.commit_bytes_max)
            keys.append(key)
        return self._write(partial(delete_all, keys))

    def expire(self, key: str, seconds: float | None) -> bool:
        """Give a register another expiry (None: it stays); whether that changes anything."""
        encode_key(key)
        expiry = self._expiry(seconds)
        return self._write(lambda t: t.expire(key, expiry))

    def exists(self, key: str) -> bool:
        return bool(self._read(lambda t: t.visible_types(key)))

    def types(self, key: str) -> list[str]:
        return [TYPE_NAMES[code] for code in self._read(lambda t: t.visible_types(key))]

    def __getitem__(self, key: str) -> Any:
        missing = object()
        value = self.get(key, missing)
        if value is missing:
            raise missing_key(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise missing_key(key)

    def __contains__(self, key: str) -> bool:
        return self.exists(key)

    def _only(self, key: str, type_code: int) -> None:
        types = self._read(lambda t: t.visible_types(key))
        if types and type_code not in types:
            raise wrong_type(encode_key(key), types, type_code)

    # -- collections ----------------------------------------------------------------------------------------------

    def set(self, key: str) -> BatchSet:
        return BatchSet(self, key)

    def counter(self, key: str) -> BatchCounter:
        return BatchCounter(self, key)

    def map(self, key: str) -> BatchMap:
        return BatchMap(self, key)


class _BatchHandle:
    def __init__(self, batch: Batch, key: str) -> None:
        encode_key(key)
        self._batch = batch
        self.key = key


class BatchSet(_BatchHandle):
    """The set at a key, inside a batch."""

    def add(self, *elements: Any, ttl: float | None = None) -> None:
        expiry = self._batch._expiry(ttl)
        encoded = [self._batch._encode(e, "element") for e in elements]
        if encoded:  # one call: all of them, or none
            self._batch._write(lambda t: any([t.add(self.key, data, expiry) for data in encoded]))

    def discard(self, *elements: Any) -> bool:
        encoded = [encode_value(e) for e in elements]
        return bool(encoded) and self._batch._write(lambda t: any([t.discard(self.key, data) for data in encoded]))

    def remove(self, element: Any) -> None:
        if not self.discard(element):
            raise missing_element(self.key, element)

    def clear(self) -> bool:
        return self._batch._write(lambda t: t.clear_set(self.key))

    def contains(self, element: Any) -> bool:
        data = encode_value(element)
        if self._batch._read(lambda t: t.contains(self.key, data)):
            return True
        self._batch._only(self.key, SlotType.SET)
        return False

    def members(self) -> list[Any]:
        self._batch._only(self.key, SlotType.SET)
        return [decode_value(e) for e in self._batch._read(lambda t: t.members(self.key))]

    def size(self) -> int:
        self._batch._only(self.key, SlotType.SET)
        return self._batch._read(lambda t: t.set_size(self.key))

    def __contains__(self, element: Any) -> bool:
        return self.contains(element)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members())

    def __len__(self) -> int:
        return self.size()


class BatchCounter(_BatchHandle):
    """The counter at a key, inside a batch."""

    def increment(self, n: int = 1) -> None:
        self._batch._write(lambda t: t.increment(self.key, n))

    def decrement(self, n: int = 1) -> None:
        self.increment(-whole(n, "decrement"))

    def reset(self) -> bool:
        return self._batch._write(lambda t: t.reset(self.key))

    def get(self) -> int:
        value = self._batch._read(lambda t: t.counter(self.key))
        if value is None:
            self._batch._only(self.key, SlotType.COUNTER)
        return value or 0

    @property
    def value(self) -> int:
        return self.get()


class BatchMap(_BatchHandle):
    """The map at a key, inside a batch."""

    def put(self, name: str, value: Any, *, ttl: float | None = None) -> None:
        check_size(encode_field(name), self._batch._store.settings.value_bytes_max, "field")
        data, expiry = self._batch._encode(value), self._batch._expiry(ttl)
        self._batch._write(lambda t: t.put_field(self.key, name, data, expiry))

    def delete(self, name: str) -> bool:
        encode_field(name)
        return self._batch._write(lambda t: t.delete_field(self.key, name))

    def clear(self) -> bool:
        return self._batch._write(lambda t: t.clear_map(self.key))

    def get(self, name: str, default: Any = None) -> Any:
        encode_field(name)
        data = self._batch._read(lambda t: t.field(self.key, name))
        if data is not None:
            return decode_value(data)
        self._batch._only(self.key, SlotType.MAP)
        return default

    def contains(self, name: str) -> bool:
        missing = object()
        return self.get(name, missing) is not missing

    def items(self) -> list[tuple[str, Any]]:
        self._batch._only(self.key, SlotType.MAP)
        return [(decode_value(n), decode_value(v)) for n, v in self._batch._read(lambda t: t.fields(self.key))]

    def size(self) -> int:
        self._batch._only(self.key, SlotType.MAP)
        return self._batch._read(lambda t: t.map_size(self.key))

    def __getitem__(self, name: str) -> Any:
        missing = object()
        value = self.get(name, missing)
        if value is missing:
            raise missing_field(self.key, name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        if not self.delete(name):
            raise missing_field(self.key, name)

    def __contains__(self, name: str) -> bool:
        return self.contains(name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.items()])

    def __len__(self) -> int:
        return self.size()
