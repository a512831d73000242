"""Handles on the collections of an embedded store: a key and its type, nothing more; they hold no state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from crdtkv.core.codec import SlotType, check_size, decode_value, encode_key, encode_value, slot_of
from crdtkv.core.heads import head_key
from crdtkv.errors import InvalidValueError, missing_element, missing_field
from crdtkv.results import Commit
from crdtkv.store import direct
from crdtkv.store.scanning import open_collection
from crdtkv.store.transaction import whole

if TYPE_CHECKING:
    from crdtkv.store.store import Store


def encode_field(name: object) -> bytes:
    """A field's canonical bytes; raises `InvalidValueError` unless it is text."""
    if not isinstance(name, str):
        raise InvalidValueError(f"field: must be a str, got {type(name).__name__}", field="field")
    return encode_value(name)


class _Handle:
    """`raw`: the key's bytes."""

    __slots__ = ("key", "raw", "store")

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.raw = encode_key(key)
        self.key = key

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r})"

    def _encode(self, value: Any, what: str) -> bytes:
        data = encode_value(value)
        check_size(data, self.store.settings.value_bytes_max, what)
        return data


class SetHandle(_Handle):
    """An OR-set (add wins). An element is any value; identity is its canonical encoding, so 1, 1.0 and True differ.

    `first` is what the slots of all its elements begin with, `head` the key of its head.
    """

    __slots__ = ("first", "head")

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(store, key)
        self.first = slot_of(self.raw, SlotType.SET)
        self.head = head_key(self.raw)

    def add(self, *elements: Any, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Add elements in one commit. O(elements), whatever the size of the set. None if none are given."""
        if len(elements) == 1 and ttl is None and durability is None and self.store._gathers:
            return direct.add(self, self._encode(elements[0], "element"))
        encoded = [self._encode(e, "element") for e in elements]
        return self.store._add(self.key, self.raw, encoded, ttl, durability)

    def discard(self, *elements: Any, durability: str | None = None) -> Commit | None:
        """Remove what is there of these; None if nothing was."""
        if len(elements) == 1:
            return direct.discard(self, encode_value(elements[0]), durability)
        encoded = [encode_value(e) for e in elements]
        return self.store._transact(lambda t: any([t.discard(self.key, e) for e in encoded]), durability)

    def remove(self, element: Any, *, durability: str | None = None) -> Commit:
        """Remove an element; raises `KeyNotFoundError` if it is not there."""
        commit = self.discard(element, durability=durability)
        if commit is None:
            raise missing_element(self.key, element)
        return commit

    def contains(self, element: Any) -> bool:
        """Whether an element is there. O(1)."""
        data = encode_value(element)
        if self.store._reader.entry(slot_of(self.raw, SlotType.SET, data)) is not None and not self.store.closed:
            return True
        self.store._check()
        self.store._not_another_type(self.key, SlotType.SET)
        return False

    def members(self) -> list[Any]:
        """All elements of one moment, in canonical order. O(n)."""
        return list(self)

    def __contains__(self, element: Any) -> bool:
        return self.contains(element)

    def __iter__(self) -> Iterator[Any]:
        return (decode_value(e) for e, _ in open_collection(self.store, self.key, SlotType.SET))

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many elements there are. O(1), unless some may have expired or a clear is in progress."""
        return _size(self.store, self.key, self.raw, SlotType.SET)

    def clear(self, *, durability: str | None = None) -> Commit | None:
        """Remove every element that is seen here; concurrent adds survive. O(1) for large sets, then in slices."""
        return _cleared(self.store, self.store._transact(lambda t: t.clear_set(self.key), durability))


class CounterHandle(_Handle):
    """A counter of whole numbers: concurrent increments add up, a reset cancels what it has seen."""

    __slots__ = ()

    def increment(self, n: int = 1, *, durability: str | None = None) -> Commit | None:
        """Add `n`, which may be negative; None for 0."""
        return direct.increment(self, n, durability)

    def decrement(self, n: int = 1, *, durability: str | None = None) -> Commit | None:
        """Subtract `n`."""
        return self.increment(-whole(n, "decrement"), durability=durability)

    def get(self) -> int:
        """The value, 0 if the counter does not exist. O(runs): one per region that has counted since the last reset."""
        with self.store._lock:
            self.store._check()
            value = self.store._reader.counter(self.raw)
        if value is None:
            self.store._not_another_type(self.key, SlotType.COUNTER)
        return value or 0

    @property
    def value(self) -> int:
        """The value, 0 if the counter does not exist."""
        return self.get()

    def reset(self, *, durability: str | None = None) -> Commit | None:
        """Cancel every increment that is seen here; unseen ones survive. None if there is nothing to cancel."""
        return self.store._transact(lambda t: t.reset(self.key), durability)


class MapHandle(_Handle):
    """A map: fields are text, each a register of its own."""

    __slots__ = ()

    def get(self, name: str, default: Any = None) -> Any:
        """A field's value, or `default`. O(1)."""
        entry = self.store._reader.entry(slot_of(self.raw, SlotType.MAP, encode_field(name)))
        if entry is not None and not self.store.closed:
            return decode_value(entry.value)
        self.store._check()
        self.store._not_another_type(self.key, SlotType.MAP)
        return default

    def put(self, name: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Commit:
        """Write a field. O(1), whatever the size of the map."""
        check_size(encode_field(name), self.store.settings.value_bytes_max, "field")
        data = self._encode(value, "value")
        return direct.put_field(self, name, data, ttl, durability)

    def delete(self, name: str, *, durability: str | None = None) -> Commit | None:
        """Remove a field; None if it is not there."""
        return direct.delete_field(self, name, encode_field(name), durability)

    def contains(self, name: str) -> bool:
        """Whether a field is there. O(1)."""
        missing = object()
        return self.get(name, missing) is not missing

    def items(self) -> list[tuple[str, Any]]:
        """All fields and values of one moment, in canonical order of the fields. O(n)."""
        found = open_collection(self.store, self.key, SlotType.MAP)
        return [(decode_value(name), decode_value(entry.value)) for name, entry in found]

    def __getitem__(self, name: str) -> Any:
        missing = object()
        value = self.get(name, missing)
        if value is missing:
            raise missing_field(self.key, name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        if self.delete(name) is None:
            raise missing_field(self.key, name)

    def __contains__(self, name: str) -> bool:
        return self.contains(name)

    def __iter__(self) -> Iterator[str]:
        return (decode_value(name) for name, _ in open_collection(self.store, self.key, SlotType.MAP))

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many fields there are. O(1), unless some may have expired or a clear is in progress."""
        return _size(self.store, self.key, self.raw, SlotType.MAP)

    def clear(self, *, durability: str | None = None) -> Commit | None:
        """Remove every field that is seen here; concurrent puts survive."""
        return _cleared(self.store, self.store._transact(lambda t: t.clear_map(self.key), durability))


def _size(store: Store, key: str, raw: bytes, type_code: int) -> int:
    with store._lock:
        store._check()
        size = store._reader.size(raw, type_code)
    if not size:
        store._not_another_type(key, type_code)
    return size


def _cleared(store: Store, commit: Commit | None) -> Commit | None:
    """After a clear: see that what is left of it gets done."""
    if store._replica.purges:
        store._upkeep.start()
    return commit
