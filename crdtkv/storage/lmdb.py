"""The state engine on LMDB: a B+ tree in a memory map. Reads are faster than RocksDB's, writes slower, the file larger.

Commits are not synced (`sync=False`): our log is the write-ahead log, and `flush` syncs. A killed process loses nothing, as
the kernel has all commits. After the loss of *power* between flushes the file may be damaged, since pages reach the disk in
any order; the state must then be rebuilt, from a checkpoint or a peer. Where that matters, choose RocksDB.

**Long keys.** LMDB takes keys of 1..511 bytes; slots may be longer. Order must be kept and memory bounded, so a hash of the
rest will not do. A long key is a path in a tree of nodes instead: the root node is the database `slots`, every other is a
range of `long` under an 8-byte number. A node holds

    rest of the key, up to N bytes                     → the value       (a leaf)
    the next N bytes of the key, 0x01                  → the number of a child node, which holds the rest

with N = 510 in the root and 502 below. A leaf has at most N bytes, a link N + 1, so they cannot be mixed up; a link sorts
right behind the leaf that ends where it begins, and before all that is greater. An emptied node's link is removed with the
last key under it. A key costs one more lookup for each 502 bytes beyond 510. Limit: none but LMDB's own on values (4 GiB).

**Growth.** The map is a reservation of address space, not of memory or disk: 1 TiB, or as much as the system grants. Should it
fill up, it is doubled, which LMDB permits only while nobody reads: with a snapshot or scan open the write fails, may be
retried, and says so.

A snapshot or scan is a read transaction: pages freed after it began are not used again until it ends, so one that is
kept long lets the file grow.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from crdtkv.errors import ConfigError, CorruptionError, CrdtkvError, DiskFullError, StorageError, StoreLockedError
from crdtkv.storage.engine import HOW_TO_REPLACE, SCAN_CHUNK, closed_error
from crdtkv.storage.files import space_of

try:
    import lmdb
except ImportError as e:
    raise ConfigError("the LMDB engine needs the lmdb package: pip install crdtkv[lmdb]", package="lmdb") from e

if TYPE_CHECKING:
    # Without `buffers=True` LMDB hands out bytes; the package's stubs allow for memoryviews everywhere, and these do not.
    Database = lmdb._Database
    Transaction = Any

T = TypeVar("T")

MAP_BYTES: Final = 1 << 40
MAP_BYTES_MIN: Final = 1 << 30
READERS_MAX: Final = 1024
NO_ROOM_BYTES: Final = 1 << 20
KEY_BYTES_MAX: Final = 511
_LINK: Final = b"\x01"
_BEYOND_LINK: Final = b"\x02"
_NUMBER_BYTES: Final = 8
_NEXT_NUMBER: Final = bytes(_NUMBER_BYTES)  # node 0 is none: its place holds the next number


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of the tree of keys. `base`: what all keys in it begin with; `prefix`: where it lies in its database."""

    db: Database
    prefix: bytes
    base: bytes

    @property
    def step(self) -> int:
        """How many bytes of key one link stands for."""
        return KEY_BYTES_MAX - 1 - len(self.prefix)


class LmdbEngine:
    """See `StateEngine`. Opens or makes the environment in the directory `path`, whose parent must be there.

    Args:
        path: the directory.
        map_bytes: the address space to begin with; the default is enough for any disk.
    """

    def __init__(self, path: Path | str, *, map_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()  # one use of the environment's handle at a time; LMDB holds the GIL anyway
        self._views: weakref.WeakSet[_View] = weakref.WeakSet()
        self._is_closed = False
        try:
            self.path.mkdir(exist_ok=True)
            self._env = self._open(MAP_BYTES if map_bytes is None else map_bytes, MAP_BYTES_MIN if map_bytes is None else map_bytes)
            self._slots = self._env.open_db(b"slots")
            self._long = self._env.open_db(b"long")
        except (lmdb.Error, OSError) as e:
            raise self._mapped(e) from e

    def _open(self, map_bytes: int, map_bytes_min: int) -> lmdb.Environment:
        while True:
            try:
                return lmdb.open(
                    str(self.path), map_size=map_bytes, max_dbs=2, max_readers=READERS_MAX, sync=False, metasync=False, max_spare_txns=8
                )
            except (lmdb.MemoryError, MemoryError, OverflowError):  # an address space that is limited, or of 32 bits
                if map_bytes // 2 < map_bytes_min:
                    raise
                map_bytes //= 2

    def _mapped(self, error: Exception) -> CrdtkvError:
        """What a foreign exception means."""
        path = str(self.path)
        match error:
            case lmdb.CorruptedError() | lmdb.PageNotFoundError() | lmdb.InvalidError() | lmdb.VersionMismatchError() | lmdb.PanicError():
                return CorruptionError(f"the state engine in {path} is damaged: {error}; {HOW_TO_REPLACE}", path=path)
            case lmdb.LockError():
                return StoreLockedError(f"the state engine in {path} is in use: close the store that owns it first", path=path)
            case lmdb.ReadersFullError():
                return StorageError(f"more than {READERS_MAX} snapshots and scans are open: close some", path=path, retryable=True)
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error) or self._had_no_room(error):
            return DiskFullError(f"the state engine in {path} has no room: {error}", path=path)
        return StorageError(f"the state engine in {path} failed: {error}", path=path)

    def _had_no_room(self, error: Exception) -> bool:
        """A page that the file system takes only in part is an I/O error to LMDB."""
        return "Input/output error" in str(error) and space_of(self.path).free < NO_ROOM_BYTES

    def _read(self, what: Callable[[Transaction], T]) -> T:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            try:
                with self._env.begin() as txn:
                    return what(txn)
            except lmdb.Error as e:
                raise self._mapped(e) from e

    def get(self, key: bytes, /) -> bytes | None:
        return self._read(lambda txn: self._lookup(txn, key))

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._read(lambda txn: [self._lookup(txn, key) for key in keys])

    def _lookup(self, txn: Transaction, key: bytes) -> bytes | None:
        if len(key) < KEY_BYTES_MAX:
            value: bytes | None = txn.get(key, db=self._slots)
            return value
        path = self._descend(txn, key)
        if path is None:
            return None
        node = path[-1]
        value = txn.get(node.prefix + key[len(node.base) :], db=node.db)
        return value

    def _root(self) -> _Node:
        return _Node(self._slots, b"", b"")

    def _child(self, node: _Node, chunk: bytes, number: bytes) -> _Node:
        return _Node(self._long, number, node.base + chunk)

    def _descend(self, txn: Transaction, key: bytes) -> list[_Node] | None:
        """The nodes from the root to the one that would hold `key` as a leaf; None if they are not there."""
        path = [self._root()]
        while len(key) - len(path[-1].base) > path[-1].step:
            node = path[-1]
            chunk = key[len(node.base) : len(node.base) + node.step]
            number = txn.get(node.prefix + chunk + _LINK, db=node.db)
            if number is None:
                return None
            path.append(self._child(node, chunk, number))
        return path

    # -- writing ----------------------------------------------------------------------------------------------

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        for key, value in batch.items():
                            if len(key) >= KEY_BYTES_MAX:
                                self._write_long(txn, key, value)
                            elif value is None:
                                txn.delete(key, db=self._slots)
                            else:
                                txn.put(key, value, db=self._slots)
                    return
                except lmdb.MapFullError as e:
                    self._grow(e)
                except lmdb.Error as e:
                    raise self._mapped(e) from e

    def _grow(self, error: lmdb.MapFullError) -> None:
        """Double the map. It would pull the map from under open transactions, so there must be none."""
        open_views = sum(view.is_open for view in self._views)
        size = self._env.info()["map_size"]
        if open_views:
            raise StorageError(
                f"the map of the state engine in {self.path} ({size:,} bytes) is full, and cannot grow while {open_views} snapshots "
                "or scans are open: close them and try again",
                path=str(self.path),
                retryable=True,
            ) from error
        try:
            self._env.set_mapsize(size * 2)
        except (lmdb.Error, OverflowError) as e:
            raise self._mapped(e) from e

    def _write_long(self, txn: Transaction, key: bytes, value: bytes | None) -> None:
        if value is None:
            path = self._descend(txn, key)
            if path is not None:
                self._delete_long(txn, key, path)
            return
        node = self._root()
        while len(key) - len(node.base) > node.step:
            chunk = key[len(node.base) : len(node.base) + node.step]
            link = node.prefix + chunk + _LINK
            number = txn.get(link, db=node.db)
            if number is None:
                last = txn.get(_NEXT_NUMBER, db=self._long, default=_NEXT_NUMBER)
                number = (int.from_bytes(last, "big") + 1).to_bytes(_NUMBER_BYTES, "big")
                txn.put(_NEXT_NUMBER, number, db=self._long)
                txn.put(link, number, db=node.db)
            node = self._child(node, chunk, number)
        txn.put(node.prefix + key[len(node.base) :], value, db=node.db)

    def _delete_long(self, txn: Transaction, key: bytes, path: list[_Node]) -> None:
        """Delete the leaf, then the links to nodes that are empty thereby."""
        node = path.pop()
        if not txn.delete(node.prefix + key[len(node.base) :], db=node.db):
            return
        cursor = txn.cursor(db=self._long)
        while path and not (cursor.set_range(node.prefix) and cursor.key().startswith(node.prefix)):
            parent = path.pop()
            txn.delete(parent.prefix + node.base[len(parent.base) :] + _LINK, db=parent.db)
            node = parent

    # -- views ------------------------------------------------------------------------------------------------

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._view().scan(start, end, reverse)

    def snapshot(self) -> LmdbSnapshot:
        return LmdbSnapshot(self._view())

    def _view(self) -> _View:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            try:
                view = _View(self, self._env.begin())
            except lmdb.Error as e:
                raise self._mapped(e) from e
            self._views.add(view)
            return view

    def _page(self, txn: Transaction, start: bytes, end: bytes | None, *, after: bytes | None, reverse: bool) -> list[tuple[bytes, bytes]]:
        """The next items of a scan, those beyond `after`; fewer than `SCAN_CHUNK` at its end."""
        if after is not None:
            start, end = (start, after) if reverse else (after + b"\0", end)
        items: list[tuple[bytes, bytes]] = []
        walk = _walk_back if reverse else _walk
        stack = [(self._root(), walk(txn, self._root(), start, end))]
        while stack and len(items) < SCAN_CHUNK:
            node, entries = stack[-1]
            for rest, value in entries:
                if len(rest) > node.step:
                    child = self._child(node, rest[:-1], value)
                    stack.append((child, walk(txn, child, start, end)))
                    break
                items.append((node.base + rest, value))
                if len(items) == SCAN_CHUNK:
                    break
            else:
                stack.pop()
        return items

    # -- the rest ---------------------------------------------------------------------------------------------

    def checkpoint(self, directory: Path) -> None:
        """A compacted copy."""
        with self._lock:
            if self._is_closed:
                raise closed_error()
            try:
                directory.mkdir()
                self._env.copy(str(directory), compact=True)
            except (lmdb.Error, OSError) as e:
                raise self._mapped(e) from e

    def flush(self) -> None:
        if self._is_closed:
            raise closed_error()
        try:
            self._env.sync(True)
        except lmdb.Error as e:
            raise self._mapped(e) from e

    def size_bytes(self) -> int:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            info, page_size = self._env.info(), self._env.stat()["psize"]
        return int((info["last_pgno"] + 1) * page_size)

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for view in list(self._views):
                view.close()
            self._env.close()


def _walk(txn: Transaction, node: _Node, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a node that hold keys from `start` (before `end`) on, in order: rest of a key, or link, and value."""
    depth, step, prefix = len(node.base), node.step, node.prefix
    rest = start[depth:] if start.startswith(node.base) else b""  # else all of the node is beyond `start`
    cursor = txn.cursor(db=node.db)
    seek = prefix + (rest if len(rest) <= step else rest[:step] + _LINK)
    if not (cursor.set_range(seek) if seek else cursor.first()):
        return
    bounded = end is not None and (end.startswith(node.base) or end < node.base)  # else all of the node is before `end`
    stop = end[depth:] if end is not None and end.startswith(node.base) else b""
    for key, value in cursor.iternext():
        if not key.startswith(prefix):
            return
        found = key[len(prefix) :]
        if bounded and (found if len(found) <= step else found[:-1]) >= stop:
            return
        yield found, value


def _walk_back(txn: Transaction, node: _Node, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    """The same entries from the last to the first."""
    depth, step, prefix = len(node.base), node.step, node.prefix
    cursor = txn.cursor(db=node.db)
    if end is None or not end.startswith(node.base):
        if end is not None and end < node.base:
            return
        seek = _successor(prefix)  # all of the node is before `end`
    else:
        rest = end[depth:]
        seek = prefix + (rest if len(rest) <= step else rest[:step] + _BEYOND_LINK)
    if not (cursor.prev() if seek and cursor.set_range(seek) else cursor.last()):
        return
    least = start[depth:] if start.startswith(node.base) else b""
    for key, value in cursor.iterprev():
        if not key.startswith(prefix):
            return
        found = key[len(prefix) :]
        if len(found) <= step:
            if found < least:
                return
        elif found[:-1] < least[:step]:
            return
        yield found, value


def _successor(prefix: bytes) -> bytes:
    """The first key beyond all that begin with a node's number; b"" beyond the root."""
    return (int.from_bytes(prefix, "big") + 1).to_bytes(_NUMBER_BYTES, "big") if prefix else b""


class _View:
    """One read transaction, used by one thread at a time under its engine's lock."""

    __slots__ = ("__weakref__", "_engine", "_txn")

    def __init__(self, engine: LmdbEngine, txn: Transaction) -> None:
        self._engine = engine
        self._txn: Transaction | None = txn

    @property
    def is_open(self) -> bool:
        return self._txn is not None

    def _use(self, what: Callable[[Transaction], T]) -> T:
        engine = self._engine
        with engine._lock:
            if self._txn is None:
                raise closed_error()
            try:
                return what(self._txn)
            except lmdb.Error as e:
                raise engine._mapped(e) from e

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._use(lambda txn: [self._engine._lookup(txn, key) for key in keys])

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while end is None or start < end:
            items = self._page(start, end, after, reverse)
            yield from items
            if len(items) < SCAN_CHUNK:
                return
            after = items[-1][0]

    def _page(self, start: bytes, end: bytes | None, after: bytes | None, reverse: bool) -> list[tuple[bytes, bytes]]:
        return self._use(lambda txn: self._engine._page(txn, start, end, after=after, reverse=reverse))

    def close(self) -> None:
        # The lock is reentrant: this may run in the garbage collector, within a call of the same thread. A write has its own
        # transaction, so ending this one then is harmless.
        with self._engine._lock:
            txn, self._txn = self._txn, None
            if txn is not None:
                txn.abort()

    def __del__(self) -> None:
        self.close()


class LmdbSnapshot:
    """See `EngineSnapshot`."""

    __slots__ = ("_view",)

    def __init__(self, view: _View) -> None:
        self._view = view

    def get(self, key: bytes, /) -> bytes | None:
        return self._view.multi_get((key,))[0]

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._view.multi_get(keys)

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._view.scan(start, end, reverse)

    def close(self) -> None:
        self._view.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
