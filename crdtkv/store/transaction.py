"""A local transaction: gathers the net effect of its calls, per slot, and turns it into the deltas of one commit.

Each call is checked and folded into what earlier calls of the same transaction left, so that several changes of one
slot become one delta and reads inside see the transaction's own writes. Nothing reaches the replica before `deltas`:
an exception leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from crdtkv.core.codec import KEY_BYTES_MAX, SlotType, encode_key, encode_value, slot_of
from crdtkv.core.frame import Delta, DeltaKind
from crdtkv.core.replica import Replica
from crdtkv.errors import InvalidValueError, ValueTooLargeError
from crdtkv.store.reading import Reader, wrong_type

PUT_BYTES: Final = 16
"""What a change is taken to need beside its key and value."""
TOTAL_MAX: Final = 2**63 - 1
"""Counters are whole numbers of 64 bits with sign, per run."""


def whole(n: object, call: str) -> int:
    """A counter's argument; raises `InvalidValueError` unless it is a whole number."""
    if type(n) is not int:
        raise InvalidValueError(f"{call}: must be a whole number, got {n!r}", field="n")
    return n


def check_total(total: int, amount: int) -> None:
    """Raise `InvalidValueError` if a run's total would leave its range by adding an amount."""
    if abs(total + amount) > TOTAL_MAX:
        raise InvalidValueError(f"increment: the counter's total at this replica would leave -2^63 .. 2^63-1 by adding {amount}", field="n")


K = TypeVar("K")


@dataclass(slots=True)
class _Written:
    """A pending write of one slot; `value` None removes it."""

    value: bytes | None
    expiry: int | None = None


class _Pending(dict[K, _Written]):
    """The pending writes of a collection's slots, and how many of them write and remove."""

    written = 0
    removed = 0

    def __setitem__(self, name: K, new: _Written) -> None:
        if name in self:
            del self[name]
        super().__setitem__(name, new)
        self.written += new.value is not None
        self.removed += new.value is None

    def __delitem__(self, name: K) -> None:
        old = self[name]
        super().__delitem__(name)
        self.written -= old.value is not None
        self.removed -= old.value is None

    def clear(self) -> None:
        super().clear()
        self.written = self.removed = 0


@dataclass(slots=True)
class _KeyChanges:
    """What the transaction does to one key."""

    register: _Written | None = None
    set_cleared: bool = False
    elements: _Pending[bytes] = field(default_factory=_Pending)
    map_cleared: bool = False
    fields: _Pending[str] = field(default_factory=_Pending)
    counter_reset: bool = False
    counter_add: int = 0


class Transaction:
    """One transaction on a replica. Keys are given as text, values and elements as canonical bytes.

    Mutators say whether they change anything. `expiry` is Unix ms.

    A key that was only put, for good, is kept as the delta that it comes to: a batch of a thousand such puts costs a dict entry each.
    Whatever else looks at such a key, or changes it, turns the delta into `_KeyChanges` (`_known`).
    """

    __slots__ = ("_bytes", "_bytes_max", "_heads", "_keys", "_moment", "_reader", "_replica")

    def __init__(self, replica: Replica, reader: Reader) -> None:
        self._replica = replica
        self._bytes_max = replica.settings.commit_bytes_max
        self._moment = replica.moment()
        self._reader = reader
        self._heads = replica.heads
        self._keys: dict[str, Delta | _KeyChanges] = {}  # in the order in which they were first changed
        self._bytes = 0

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return self._bytes

    def changed_keys(self, prefix: str) -> list[str]:
        """The keys with a prefix that it has changed."""
        return [key for key in self._keys if key.startswith(prefix)]

    def still_holds(self, replica: Replica) -> bool:
        """Whether nothing was committed or applied since it began: it would come to the same now."""
        return replica is self._replica and replica.moment() == self._moment

    # -- mutators -------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes, expiry: int | None = None) -> bool:
        if expiry is not None or self.put_blind(key, value) is None:
            self._require(key, SlotType.REGISTER)
            self._account(key, value)
            if expiry is None and key not in self._keys:
                self._keys[key] = [DeltaKind.REGISTER_PUT, key, value]
            else:
                self._changes(key).register = _Written(value, expiry)
        return True

    def put_blind(self, key: str, value: bytes, is_allowed: bool = False) -> Delta | None:
        """`put` without an expiry, if nothing in the store could forbid it: the delta that it comes to. None: use `put`.

        It looks at nothing but the transaction. Most puts of most batches are this.

        Args:
            is_allowed: what the store has at the key was looked at, and does not forbid it.
        """
        if type(key) is str and key.isascii() and 0 < len(key) <= KEY_BYTES_MAX:
            size = self._bytes + len(key) + len(value) + PUT_BYTES
        else:
            size = self._bytes + len(encode_key(key)) + len(value) + PUT_BYTES
        before = self._keys.get(key)
        if type(before) is not list and (before is not None or (self._heads.exist and not is_allowed)):
            return None  # (A register put here before is visible. And where no key has a head, there are registers only.)
        if size > self._bytes_max:
            check_commit_size(size, self._bytes_max)
        self._bytes = size
        delta: Delta = [DeltaKind.REGISTER_PUT, key, value]
        self._keys[key] = delta
        return delta

    def put_alone(self, key: str, value: bytes) -> Delta | None:
        """`put_blind` after a look at what the store has at the key. None: the transaction does something else there, use `put`."""
        if key in self._keys:
            return None
        self._reader.require(encode_key(key), SlotType.REGISTER)
        return self.put_blind(key, value, is_allowed=True)

    def expire(self, key: str, expiry: int | None) -> bool:
        """Give the register at a key another expiry, None to keep it for good."""
        self._require(key, SlotType.REGISTER)
        changes = self._known(key)
        if changes is not None and changes.register is not None:
            value, before = self._shown(changes.register), changes.register.expiry
        else:
            entry = self._reader.register(encode_key(key))
            value, before = (None, None) if entry is None else (entry.value, entry.expiry)
        return value is not None and not (expiry is None and before is None) and self.put(key, value, expiry)

    def delete(self, key: str) -> bool:
        """Remove whatever is visible at a key, of every type."""
        data = encode_key(key)
        types = self.visible_types(key)
        if not types:
            return False
        self._account(key)
        changes = self._changes(key)
        if SlotType.REGISTER in types:
            stored = self._replica.state.get(slot_of(data, SlotType.REGISTER)) is not None
            changes.register = _Written(None) if stored else None
        if SlotType.SET in types:
            self._clear_set(data, changes)
        if SlotType.MAP in types:
            self._clear_map(data, changes)
        if SlotType.COUNTER in types:
            changes.counter_reset, changes.counter_add = True, 0
        return True

    def add(self, key: str, element: bytes, expiry: int | None = None) -> bool:
        self._require(key, SlotType.SET)
        self._account(key, element)
        self._changes(key).elements[element] = _Written(b"", expiry)
        return True

    def discard(self, key: str, element: bytes) -> bool:
        self._require(key, SlotType.SET)
        if not self.contains(key, element):
            return False
        self._account(key, element)
        changes = self._changes(key)
        stored = not changes.set_cleared and self._replica.state.get(slot_of(key.encode(), SlotType.SET, element)) is not None
        if stored:
            changes.elements[element] = _Written(None)
        else:
            del changes.elements[element]
        return True

    def clear_set(self, key: str) -> bool:
        self._require(key, SlotType.SET)
        if not self.set_size(key):
            return False
        self._account(key)
        self._clear_set(key.encode(), self._changes(key))
        return True

    def put_field(self, key: str, name: str, value: bytes, expiry: int | None = None) -> bool:
        self._require(key, SlotType.MAP)
        self._account(key, value, name)
        self._changes(key).fields[name] = _Written(value, expiry)
        return True

    def delete_field(self, key: str, name: str) -> bool:
        self._require(key, SlotType.MAP)
        if self.field(key, name) is None:
            return False
        self._account(key, b"", name)
        changes = self._changes(key)
        stored = not changes.map_cleared and self._replica.state.get(slot_of(key.encode(), SlotType.MAP, encode_value(name))) is not None
        if stored:
            changes.fields[name] = _Written(None)
        else:
            del changes.fields[name]
        return True

    def clear_map(self, key: str) -> bool:
        self._require(key, SlotType.MAP)
        if not self.map_size(key):
            return False
        self._account(key)
        self._clear_map(key.encode(), self._changes(key))
        return True

    def increment(self, key: str, amount: int) -> bool:
        whole(amount, "increment")
        self._require(key, SlotType.COUNTER)
        if not amount:
            return False
        changes = self._known(key)
        pending = changes.counter_add if changes else 0
        reset = changes is not None and changes.counter_reset
        before = 0 if reset else self._own_run(key.encode())[1]
        check_total(before + pending, amount)
        self._account(key)
        self._changes(key).counter_add += amount
        return True

    def reset(self, key: str) -> bool:
        self._require(key, SlotType.COUNTER)
        if self.counter(key) is None:
            return False
        self._account(key)
        changes = self._changes(key)
        changes.counter_reset, changes.counter_add = True, 0
        return True

    # -- reads ----------------------------------------------------------------------------------------------------

    def register(self, key: str) -> bytes | None:
        """The canonical bytes of the register at a key, None if none is visible."""
        changes = self._known(key)
        if changes is not None and changes.register is not None:
            return self._shown(changes.register)
        entry = self._reader.register(encode_key(key))
        return None if entry is None else entry.value

    def contains(self, key: str, element: bytes) -> bool:
        changes = self._known(key)
        if changes is not None:
            written = changes.elements.get(element)
            if written is not None:
                return self._shown(written) is not None
            if changes.set_cleared:
                return False
        return self._reader.entry(slot_of(encode_key(key), SlotType.SET, element)) is not None

    def members(self, key: str) -> list[bytes]:
        """The elements of a set in canonical order."""
        changes = self._known(key) or _KeyChanges()
        stored = {} if changes.set_cleared else dict.fromkeys(e for e, _ in self._reader.elements(encode_key(key), SlotType.SET))
        for element, written in changes.elements.items():
            if self._shown(written) is None:
                stored.pop(element, None)
            else:
                stored[element] = None
        return sorted(stored)

    def set_size(self, key: str) -> int:
        changes = self._known(key)
        if changes is None or not (changes.elements or changes.set_cleared):
            return self._reader.size(encode_key(key), SlotType.SET)
        return len(self.members(key))

    def field(self, key: str, name: str) -> bytes | None:
        """The canonical bytes of a field, None if it is not visible."""
        changes = self._known(key)
        if changes is not None:
            written = changes.fields.get(name)
            if written is not None:
                return self._shown(written)
            if changes.map_cleared:
                return None
        entry = self._reader.entry(slot_of(encode_key(key), SlotType.MAP, encode_value(name)))
        return None if entry is None else entry.value

    def fields(self, key: str) -> list[tuple[bytes, bytes]]:
        """The fields of a map as `(canonical name, canonical value)`, in canonical order."""
        changes = self._known(key) or _KeyChanges()
        stored = {} if changes.map_cleared else {f: e.value for f, e in self._reader.elements(encode_key(key), SlotType.MAP)}
        for name, written in changes.fields.items():
            value = self._shown(written)
            if value is None:
                stored.pop(encode_value(name), None)
            else:
                stored[encode_value(name)] = value
        return sorted(stored.items())

    def map_size(self, key: str) -> int:
        changes = self._known(key)
        if changes is None or not (changes.fields or changes.map_cleared):
            return self._reader.size(encode_key(key), SlotType.MAP)
        return len(self.fields(key))

    def counter(self, key: str) -> int | None:
        """A counter's value, None if it does not exist."""
        changes = self._known(key)
        stored = self._reader.counter(encode_key(key))
        if changes is None or not (changes.counter_reset or changes.counter_add):
            return stored
        if changes.counter_reset:
            stored = None
        return (stored or 0) + changes.counter_add if stored is not None or changes.counter_add else None

    def visible_types(self, key: str) -> list[int]:
        """The types visible at a key, the transaction's own changes included."""
        raw = encode_key(key)
        changes = self._known(key)
        if changes is None:
            return self._reader.visible_types(raw)
        types = []
        if self.register(key) is not None:
            types.append(SlotType.REGISTER)
        if self._has_elements(raw, SlotType.SET, changes.elements, changes.set_cleared):
            types.append(SlotType.SET)
        if self.counter(key) is not None:
            types.append(SlotType.COUNTER)
        if self._has_elements(raw, SlotType.MAP, changes.fields, changes.map_cleared):
            types.append(SlotType.MAP)
        return types

    def _has_elements(self, raw: bytes, type_code: int, pending: _Pending[Any], cleared: bool) -> bool:
        """Whether a collection has anything visible. O(1): what is removed here was visible in the store."""
        if pending.written:
            return True
        return not cleared and self._reader.size(raw, type_code) > pending.removed

    # -- the commit -----------------------------------------------------------------------------------------------

    def deltas(self) -> list[Delta]:
        """The net effect: at most one delta per slot, clears and resets before what is added."""
        out: list[Delta] = []
        for key, changes in self._keys.items():
            if isinstance(changes, list):
                out.append(changes)
                continue
            if changes.register is not None:
                out.append(_delta(DeltaKind.REGISTER_PUT, DeltaKind.REGISTER_DELETE, [key], changes.register, [changes.register.value]))
            if changes.set_cleared:
                out.append([DeltaKind.SET_CLEAR, key])
            for element, written in changes.elements.items():
                out.append(_delta(DeltaKind.SET_ADD, DeltaKind.SET_REMOVE, [key, element], written, []))
            if changes.map_cleared:
                out.append([DeltaKind.MAP_CLEAR, key])
            for name, written in changes.fields.items():
                out.append(_delta(DeltaKind.MAP_PUT, DeltaKind.MAP_DELETE, [key, name], written, [written.value]))
            if changes.counter_reset or changes.counter_add:
                out.extend(self._counter_deltas(key, changes))
        return out

    def _counter_deltas(self, key: str, changes: _KeyChanges) -> Iterator[Delta]:
        data = key.encode()
        if changes.counter_reset:
            live = [[origin, number, run.total, run.seq] for origin, number, run in self._reader.runs(data) if run.live]
            if live:
                yield [DeltaKind.COUNTER_RESET, key, live]
        if changes.counter_add:
            following = self._replica.seq(self._replica.origin) + 1
            run, total = (following, 0) if changes.counter_reset else self._own_run(data)
            yield [DeltaKind.COUNTER_ADD, key, run, total + changes.counter_add]

    def _own_run(self, key: bytes) -> tuple[int, int]:
        """This replica's live run and its total; a new run, named by the next seq, if none is live."""
        mine = [(n, run.total) for origin, n, run in self._reader.runs(key) if origin == self._replica.origin and run.live]
        return max(mine) if mine else (self._replica.seq(self._replica.origin) + 1, 0)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _known(self, key: str) -> _KeyChanges | None:
        """What the transaction does to a key so far."""
        changes = self._keys.get(key)
        if isinstance(changes, list):
            changes = self._keys[key] = _KeyChanges(_Written(changes[2]))
        return changes

    def _changes(self, key: str) -> _KeyChanges:
        changes = self._known(key)
        if changes is None:
            changes = self._keys[key] = _KeyChanges()
        return changes

    def _shown(self, written: _Written) -> bytes | None:
        if written.expiry is not None and written.expiry <= self._replica.now_ms():
            return None
        return written.value

    def _clear_set(self, key: bytes, changes: _KeyChanges) -> None:
        head = self._reader.head(key)
        changes.set_cleared = head is not None and head.set_slots > 0
        changes.elements.clear()

    def _clear_map(self, key: bytes, changes: _KeyChanges) -> None:
        head = self._reader.head(key)
        changes.map_cleared = head is not None and head.map_slots > 0
        changes.fields.clear()

    def _require(self, key: str, type_code: int) -> None:
        if key in self._keys:
            types = self.visible_types(key)
            if types and type_code not in types:
                raise wrong_type(encode_key(key), types, type_code)
        else:
            self._reader.require(encode_key(key), type_code)

    def _account(self, key: str, value: bytes = b"", name: str = "") -> None:
        size = self._bytes + utf8_size(key) + len(value) + (utf8_size(name) if name else 0) + PUT_BYTES
        if size > self._bytes_max:
            check_commit_size(size, self._bytes_max)
        self._bytes = size


def delete_all(keys: list[str], transaction: Transaction) -> bool:
    """Delete several keys of any type; whether anything was there."""
    return any([transaction.delete(key) for key in keys])


def utf8_size(text: str) -> int:
    """How many bytes a text has."""
    return len(text) if text.isascii() else len(text.encode())


def check_commit_size(size: int, limit: int) -> None:
    """Raise `ValueTooLargeError` if what one commit holds is more than the limit."""
    if size > limit:
        raise ValueTooLargeError(
            f"commit: holds more than {limit:,} bytes (setting commit_bytes_max): make several commits of it", limit=limit
        )


def _delta(write: int, remove: int, where: list[object], written: _Written, value: list[object]) -> Delta:
    if written.value is None:
        return [remove, *where]
    delta = [write, *where, *value]
    if written.expiry is not None:
        delta.append(written.expiry)
    return delta
