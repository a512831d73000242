"""Scans: many keys, or one large collection, as of one moment and without stopping writers.

A scan reads an engine snapshot, with what the engine has not got yet laid over it: whatever is written meanwhile is not seen.
For nodes the same comes in pages of bounded size, a large collection in several rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from typing import TYPE_CHECKING, Any

from crdtkv.core.causality import VersionVector
from crdtkv.core.codec import (
    TYPE_CODES,
    TYPE_NAMES,
    SlotType,
    decode_value,
    encode_key,
    encode_prefix,
    key_range,
    number_to_wire,
    prefix_range,
    slot_of,
    split_slot,
    type_range,
)
from crdtkv.core.types.base import Entry, decode_entries, visible
from crdtkv.core.types.counter import decode_run
from crdtkv.errors import InvalidValueError

if TYPE_CHECKING:
    from crdtkv.store.store import Store

Pair = tuple[bytes, Entry]


class _View:
    """The records of one moment, and what decides about them."""

    def __init__(self, store: Store) -> None:
        with store._lock:
            store._check()
            self.snapshot = store._machine.quick_snapshot()
            self.cleared = dict(store._replica.purges.vvs)
            self.now_ms = store._replica.now_ms()

    def entry(self, slot: bytes, record: bytes, start: bytes) -> Entry | None:
        """The visible entry of a record; `start` names its collection."""
        entries = decode_entries(record)
        cleared = self.cleared.get(start) if self.cleared else None
        if cleared is not None:
            entries = [e for e in entries if not cleared.covers((e.origin, e.seq))]
        return visible(entries, self.now_ms) if entries else None

    def close(self) -> None:
        self.snapshot.close()


def open_collection(store: Store, key: str, type_code: int) -> Iterator[Pair]:
    """The visible elements (or fields) of a set (or map) of this moment, as `(subkey, entry)` in canonical order."""
    raw = encode_key(key)
    with store._lock:
        store._check()
        empty = not store._reader.size(raw, type_code)
    if empty:
        store._not_another_type(key, type_code)
        return iter(())
    return _collection(_View(store), raw, type_code)


def _collection(view: _View, raw: bytes, type_code: int) -> Iterator[Pair]:
    with closing(view):
        start = slot_of(raw, type_code)
        for slot, record in view.snapshot.scan(*type_range(raw, type_code)):
            entry = view.entry(slot, record, start)
            if entry is not None:
                yield slot[len(start) :], entry


def open_scan(
    store: Store,
    prefix: str,
    *,
    start: str | None = None,
    end: str | None = None,
    limit: int | None = None,
    reverse: bool = False,
    types: Sequence[str] | None = None,
    values: bool = True,
) -> Iterator[tuple[str, int, Any]]:
    """The visible keys of this moment as `(key, type, content)`; see `Store.scan`.

    The content of a register is its canonical bytes, of a counter its value, of a set or map an iterator of
    `(subkey, entry)` in canonical order that must be used before the next key (with `values` False, None).
    """
    low, high = prefix_range(encode_prefix(prefix))
    if start is not None:
        low = max(low, key_range(encode_key(start))[0])
    if end is not None:
        high = min(high, key_range(encode_key(end))[0])
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidValueError(f"limit: must be a whole number of at least 0 or None, got {limit!r}", field="limit")
    wanted = None
    if types is not None:
        names = [types] if isinstance(types, str) else list(types)
        if any(name not in TYPE_CODES for name in names):
            raise InvalidValueError(f"types: must be of {', '.join(TYPE_CODES)}, got {types!r}", field="types")
        wanted = {TYPE_CODES[name] for name in names}
    return _scan(_View(store), low, high, limit, reverse, wanted, values)


def _scan(
    view: _View, low: bytes, high: bytes, limit: int | None, reverse: bool, wanted: set[int] | None, values: bool
) -> Iterator[tuple[str, int, Any]]:
    with closing(view):
        if low >= high or limit == 0:
            return
        found = 0
        # One group per collection: the slots of a type at a key stand together. In reverse they come last first.
        for (key, type_code), group in groupby(view.snapshot.scan(low, high, reverse=reverse), key=lambda kv: split_slot(kv[0])[:2]):
            if wanted is not None and type_code not in wanted:
                continue
            content = _content(view, key, type_code, group, reverse)
            if content is None:
                continue
            yield key.decode(), type_code, content if values else None
            found += 1
            if found == limit:
                return


def _content(view: _View, key: bytes, type_code: int, group: Iterator[tuple[bytes, bytes]], reverse: bool) -> Any:
    """What is visible of one type at a key, None if nothing is."""
    if type_code == SlotType.COUNTER:
        runs = [decode_run(record) for _, record in group]
        return sum(r.amount for r in runs) if any(r.live for r in runs) else None
    start = slot_of(key, type_code)
    if type_code == SlotType.REGISTER:
        ((slot, record),) = group
        entry = view.entry(slot, record, start)
        return None if entry is None else entry.value
    seen = ((slot[len(start) :], entry) for slot, record in group if (entry := view.entry(slot, record, start)) is not None)
    if reverse:
        seen = (pair for pair in list(seen)[::-1])
    first = next(seen, None)
    return None if first is None else _with_first(first, seen)


def _with_first(first: Pair, rest: Iterator[Pair]) -> Iterator[Pair]:
    yield first
    yield from rest


def plain_value(type_code: int, content: Any) -> Any:
    """The content of a key as the values that a caller sees."""
    if type_code == SlotType.REGISTER:
        return decode_value(content)
    if type_code == SlotType.SET:
        return [decode_value(subkey) for subkey, _ in content]
    if type_code == SlotType.MAP:
        return {decode_value(subkey): decode_value(entry.value) for subkey, entry in content}
    return content


# -- pages for nodes ------------------------------------------------------------------------------------------


def open_pages(store: Store, op: str, args: Sequence[Any], page_bytes: int) -> Iterator[list[Any]]:
    """See `Store.open_scan`. Arguments are checked before the first page is asked for."""
    arguments = list(args)
    if op == "scan" and len(arguments) <= 6:
        prefix, start, end, limit, reverse, types = arguments + ["", None, None, None, False, None][len(arguments) :]
        found = open_scan(store, prefix, start=start, end=end, limit=limit, reverse=bool(reverse), types=types)
        return _paged(_scan_rows(found, page_bytes), page_bytes)
    if op == "smembers" and len(arguments) == 1:
        pairs = open_collection(store, arguments[0], SlotType.SET)
        return _paged(((subkey, len(subkey)) for subkey, _ in pairs), page_bytes)
    if op == "hitems" and len(arguments) == 1:
        pairs = open_collection(store, arguments[0], SlotType.MAP)
        return _paged(([decode_value(n), e.value] for n, e in pairs), page_bytes, _field_size)
    if op == "delta_since" and len(arguments) == 1:
        vv = None if arguments[0] is None else VersionVector.from_bytes(arguments[0])
        data = store.delta_since(vv)
        return ([data[at : at + page_bytes]] for at in range(0, len(data), page_bytes))
    raise InvalidValueError(f"op: {op!r} with {len(arguments)} arguments is no streaming read", op=op)


def _field_size(row: list[Any]) -> int:
    return len(row[0]) + len(row[1]) + 16


def _paged(rows: Iterator[Any], page_bytes: int, size_of: Any = None) -> Iterator[list[Any]]:
    """Rows (or `(row, size)` pairs) gathered into pages of about `page_bytes`."""
    page: list[Any] = []
    size = 0
    for item in rows:
        row, row_size = item if size_of is None else (item, size_of(item))
        if page and size + row_size > page_bytes:
            yield page
            page, size = [], 0
        page.append(row)
        size += row_size + 8
    if page:
        yield page


def _scan_rows(found: Iterator[tuple[str, int, Any]], page_bytes: int) -> Iterator[tuple[list[Any], int]]:
    """`[key, type, payload, more]` rows with their sizes; a large collection comes in several."""
    for key, type_code, content in found:
        name = TYPE_NAMES[type_code]
        if type_code == SlotType.REGISTER:
            yield [key, name, content, False], len(key) + len(content) + 16
        elif type_code == SlotType.COUNTER:
            yield [key, name, number_to_wire(content), False], len(key) + 24
        else:
            part: list[Any] = []
            size = 0
            for subkey, entry in content:
                if part and size > page_bytes // 2:
                    yield [key, name, part, True], len(key) + size + 16
                    part, size = [], 0
                part.append(subkey if type_code == SlotType.SET else [decode_value(subkey), entry.value])
                size += len(subkey) + len(entry.value) + 8
            yield [key, name, part, False], len(key) + size + 16
