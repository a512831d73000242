"""What a batch decides: writes are collected, and reads inside see them over what the node holds.

The decisions are written once, as generators that yield the calls and streams they need answered: `Batch` runs them
blocking, `AsyncBatch` awaits (sans-IO, as httpcore and h11 do it). The overlay keeps, for each key, what its pending writes
leave of the node's state: nothing of it after a delete, and per register, element, field and counter the last word.

Two clients' batches are not isolated from each other: that is what conflict resolution is for.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, TypeVar

from crdtkv.client import wire
from crdtkv.client.wire import Call, Stream
from crdtkv.core.codec import decode_value, encode_value
from crdtkv.errors import InvalidValueError, missing_element, missing_field, missing_key

T = TypeVar("T")
Reads = Generator[Call | Stream, Any, T]
"""Yields what to ask of the node (a stream is answered with the list of all its items) and returns the result."""

_UNTOUCHED: Final[Any] = object()
MISSING: Final[Any] = object()


class _Pending:
    """What the batch's writes leave at one key. `hidden`: nothing of the node's state shows any more."""

    __slots__ = ("by", "counter_hidden", "elements", "fields", "hidden", "map_hidden", "register", "set_hidden")

    def __init__(self) -> None:
        self.delete()
        self.hidden = self.set_hidden = self.map_hidden = self.counter_hidden = False

    def delete(self) -> None:
        self.hidden = self.set_hidden = self.map_hidden = self.counter_hidden = True
        self.register: Any = _UNTOUCHED
        self.elements: dict[bytes, bool] = {}
        self.fields: dict[str, bytes | None] = {}
        self.by = 0


class Overlay:
    """Writes in order, and the overlay that reads look through."""

    def __init__(self) -> None:
        self.writes: list[Call] = []
        self.open = True
        self._keys: dict[str, _Pending] = {}

    def _record(self, call: Call) -> _Pending:
        """Note a write; the overlay of its key."""
        if not self.open:
            raise InvalidValueError("the batch is over: open a new one")
        self.writes.append(call)
        return self._keys.setdefault(call.args[0], _Pending())

    def _at(self, key: str) -> _Pending:
        if not self.open:
            raise InvalidValueError("the batch is over: open a new one")
        return self._keys.get(key) or _Pending()

    # -- writes ---------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, ttl: float | None) -> None:
        call = wire.put(key, value, ttl)
        self._record(call).register = call.args[1]

    def delete(self, key: str) -> None:
        self._record(wire.delete(key)).delete()

    def delete_prefix(self, prefix: str) -> Reads[None]:
        keys = [key for key, _value in (yield wire.scan(prefix, None, None, None, False, None))]
        for key in dict.fromkeys([*keys, *(key for key in self._keys if key.startswith(prefix))]):
            self.delete(key)

    def expire(self, key: str, seconds: float | None) -> None:
        self._record(wire.expire(key, seconds))

    def set_add(self, key: str, elements: tuple[Any, ...], ttl: float | None) -> None:
        call = wire.set_add(key, elements, ttl)
        self._record(call).elements.update(dict.fromkeys(call.args[1], True))

    def set_discard(self, key: str, elements: tuple[Any, ...]) -> None:
        call = wire.set_discard(key, elements)
        self._record(call).elements.update(dict.fromkeys(call.args[1], False))

    def set_remove(self, key: str, element: Any) -> Reads[None]:
        if not (yield from self.set_contains(key, element)):
            raise missing_element(key, element)
        self.set_discard(key, (element,))

    def set_clear(self, key: str) -> None:
        pending = self._record(wire.set_clear(key))
        pending.set_hidden = True
        pending.elements.clear()

    def increment(self, key: str, n: int) -> None:
        self._record(wire.increment(key, n)).by += n

    def counter_reset(self, key: str) -> None:
        pending = self._record(wire.counter_reset(key))
        pending.counter_hidden = True
        pending.by = 0

    def map_put(self, key: str, field: str, value: Any, ttl: float | None) -> None:
        call = wire.map_put(key, field, value, ttl)
        self._record(call).fields[field] = call.args[2]

    def map_delete(self, key: str, field: str) -> None:
        self._record(wire.map_delete(key, field)).fields[field] = None

    def map_clear(self, key: str) -> None:
        pending = self._record(wire.map_clear(key))
        pending.map_hidden = True
        pending.fields.clear()

    # -- reads ----------------------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any) -> Reads[Any]:
        call, pending = wire.get(key, default), self._at(key)
        if pending.register is not _UNTOUCHED:
            return decode_value(pending.register)
        return default if pending.hidden else (yield call)

    def get_item(self, key: str) -> Reads[Any]:
        value = yield from self.get(key, MISSING)
        if value is MISSING:
            raise missing_key(key)
        return value

    def exists(self, key: str) -> Reads[bool]:
        call, pending = wire.exists(key), self._at(key)
        if pending.register is not _UNTOUCHED or pending.by or any(pending.elements.values()):
            return True
        if any(value is not None for value in pending.fields.values()):
            return True
        if pending.hidden:
            return False
        if not (pending.elements or pending.fields or pending.set_hidden or pending.map_hidden or pending.counter_hidden):
            return bool((yield call))
        # Parts of what the node holds are removed here: ask for what is left of each type.
        if (yield wire.get(key, MISSING)) is not MISSING:
            return True
        left = yield from self.set_length(key)
        left = left or (yield from self.map_length(key))
        return bool(left or (yield from self.counter_value(key)))

    def set_contains(self, key: str, element: Any) -> Reads[bool]:
        call, pending = wire.set_contains(key, element), self._at(key)
        known = pending.elements.get(call.args[1])
        if known is not None:
            return known
        return False if pending.set_hidden else bool((yield call))

    def members(self, key: str) -> Reads[list[Any]]:
        stream, pending = wire.members(key), self._at(key)
        held = [] if pending.set_hidden else (yield stream)
        encoded = {encode_value(element) for element in held}
        for element, present in pending.elements.items():
            (encoded.add if present else encoded.discard)(element)
        return [decode_value(element) for element in sorted(encoded)]

    def set_length(self, key: str) -> Reads[int]:
        pending = self._at(key)
        if not pending.elements:
            return 0 if pending.set_hidden else (yield wire.set_length(key))
        return len((yield from self.members(key)))

    def counter_value(self, key: str) -> Reads[int]:
        call, pending = wire.counter_value(key), self._at(key)
        held = 0 if pending.counter_hidden else (yield call)
        return int(held) + pending.by

    def map_get(self, key: str, field: str, default: Any) -> Reads[Any]:
        call, pending = wire.map_get(key, field, default), self._at(key)
        if field in pending.fields:
            data = pending.fields[field]
            return default if data is None else decode_value(data)
        return default if pending.map_hidden else (yield call)

    def map_get_item(self, key: str, field: str) -> Reads[Any]:
        value = yield from self.map_get(key, field, MISSING)
        if value is MISSING:
            raise missing_field(key, field)
        return value

    def map_contains(self, key: str, field: str) -> Reads[bool]:
        return (yield from self.map_get(key, field, MISSING)) is not MISSING

    def items(self, key: str) -> Reads[list[tuple[str, Any]]]:
        stream, pending = wire.items(key), self._at(key)
        held = {} if pending.map_hidden else dict((yield stream))
        for field, data in pending.fields.items():
            if data is None:
                held.pop(field, None)
            else:
                held[field] = decode_value(data)
        return sorted(held.items(), key=lambda item: encode_value(item[0]))

    def map_length(self, key: str) -> Reads[int]:
        pending = self._at(key)
        if not pending.fields:
            return 0 if pending.map_hidden else (yield wire.map_length(key))
        return len((yield from self.items(key)))
