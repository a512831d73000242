"""The state engine on RocksDB, by way of rocksdict; the default of a store with a directory.

RocksDB's own write-ahead log is off, since ours is the one that counts, and there is one column family: so after a crash
what is on the disk is a prefix of the batches written. `flush` writes out the memtable.

What rocksdict 0.3 does, and why this module reads as it does:
- Raw mode always: by default it pickles, and a stored value must never be unpickled.
- An iterator of a `Snapshot` shows the present, not the snapshot (its `[]` is right). An iterator of the database does keep
  the view of the moment it was made. So a snapshot here *is* one iterator, and its gets are seeks. It pins memtables and
  files while it lives, as any iterator of RocksDB does.
- `set_iterate_lower_bound` sets the upper bound; it is left alone, and the lower one is checked here.
- `items()` ends silently at a damaged block. `RdictIter` does too, but its `status()` tells.
- All errors are bare `Exception`s with RocksDB's text, which is taken apart at this seam.
- The files stay locked until the last iterator is gone: closing the engine takes them away from snapshots and scans.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from crdtkv.errors import CorruptionError, CrdtkvError, DiskFullError, StorageError, StoreLockedError
from crdtkv.storage.engine import HOW_TO_REPLACE, SCAN_CHUNK, closed_error

BLOCK_CACHE_BYTES = 64 << 20
"""Blocks of files kept in memory, for all engines of the process together."""
WRITE_BUFFER_BYTES = 2 << 20
"""A memtable. Small, for finding a record's place in one costs a few misses of the processor's cache more with each doubling: in one of
32 MiB the write of a record takes twice as long, under the interpreter's lock; of records put over and over, 0.41 µs in one of 4 MiB and
0.23 in this. A look-up asks twice as many of them then, at 0.1 µs more."""
WRITE_BUFFERS_MERGED = 16
"""So many of them are written out together, as one file without what was overwritten."""
WRITE_BUFFERS_MAX = 2 * WRITE_BUFFERS_MERGED + 1
FILES_MERGED = 8
"""So many files that were written out are merged into the next level at once. With four, RocksDB's default, that level is rewritten twice
as often, at half as much CPU again in all; a look-up asks the filters of four files more at most."""
BLOOM_BITS_PER_KEY = 10  # about 1 % of useless file reads for keys that are absent
MEMTABLE_BLOOM_SHARE = 0.1
"""Of a memtable's memory, what its bloom filter takes: a third of the cost of asking for a key that is absent."""
RECENT_BYTES_MAX = 4 << 20
"""Of records written last, what is at hand without asking RocksDB, keys and `RECENT_OVERHEAD` included; up to twice as much."""
RECENT_OVERHEAD = 160
"""About what a record takes of memory beside the bytes of its key and value."""
METADATA_BLOCK_BYTES = 16 << 10
"""A piece of a file's index: what a look-up needs of it in the cache."""
OPEN_FILES_MAX = 256
DELETIONS_WINDOW = 4096
"""A file with this many neighbours of which half are deletions is compacted soon: what was deleted gives its space back."""
_UNKNOWN = object()
INFO_LOGS_MAX = 2
INFO_LOG_BYTES_MAX = 1 << 20


@functools.cache
def _block_cache() -> Cache:
    return Cache(BLOCK_CACHE_BYTES)


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(_block_cache())
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    # Filters are beside the cache, whole, as long as their file is open: 1.25 bytes a record, so 128 MiB at most of `OPEN_FILES_MAX` files.
    # A look-up asks those of all files, and where they are in pieces it searches each for the piece first: a third of what it costs.
    table.set_cache_index_and_filter_blocks(False)
    # Indexes are in the cache, in pieces: that of a file of a million records is more than a MiB, which is all that each of the cache's
    # 64 shards holds. It would be read anew for every look-up (0.3 ms of CPU), in one piece.
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_metadata_block_size(METADATA_BLOCK_BYTES)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_paranoid_checks(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX)
    options.set_min_write_buffer_number_to_merge(WRITE_BUFFERS_MERGED)
    options.set_level_zero_file_num_compaction_trigger(FILES_MERGED)
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_SHARE)
    options.set_memtable_whole_key_filtering(True)
    options.set_allow_concurrent_memtable_write(False)  # there is one writer: it need not guard against others
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.add_compact_on_deletion_collector_factory(DELETIONS_WINDOW, DELETIONS_WINDOW // 2, 0.0)
    options.set_keep_log_file_num(INFO_LOGS_MAX)
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    options.set_stats_dump_period_sec(0)
    return options


def _mapped(error: Exception, path: Path) -> CrdtkvError:
    """What a foreign exception means."""
    text = str(error)
    if isinstance(error, DbClosedError):
        return closed_error()
    if "lock hold by" in text or "While lock file" in text:
        return StoreLockedError(f"the state engine in {path} is in use: close the store that owns it first", path=str(path))
    if text.startswith("Corruption") or "Corruption:" in text:
        return CorruptionError(f"the state engine in {path} is damaged: {text}; {HOW_TO_REPLACE}", path=str(path))
    if "No space left on device" in text or "Disk quota exceeded" in text or "NoSpace" in text:
        return DiskFullError(f"the state engine in {path} has no room: {text}", path=str(path))
    return StorageError(f"the state engine in {path} failed: {text}", path=str(path))


class _Cursor:
    """One RocksDB iterator, which is one consistent view, and the lock that lets several threads use it in turn."""

    __slots__ = ("__weakref__", "_lock", "_passed", "_path", "_raw")

    def __init__(self, raw: RdictIter, path: Path) -> None:
        self._raw: RdictIter | None = raw
        self._path = path
        self._passed: bytes | None = None
        """The iterator stands right behind this key, where a scan left it."""
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            raw = self._open()
            self._passed = None
            try:
                raw.seek(key)
                if raw.valid():
                    value: bytes | None = raw.value() if raw.key() == key else None
                    return value
                raw.status()
            except Exception as e:
                raise _mapped(e, self._path) from e
            return None

    def page(self, start: bytes, end: bytes | None, *, after: bytes | None, reverse: bool) -> list[tuple[bytes, bytes]]:
        """The next items of a scan, those beyond `after`; fewer than `SCAN_CHUNK` at its end."""
        items: list[tuple[bytes, bytes]] = []
        with self._lock:
            raw = self._open()
            passed, self._passed = self._passed, None
            try:
                if reverse:
                    bound = end if after is None else after
                    if bound is None:
                        raw.seek_to_last()
                    else:
                        raw.seek_for_prev(bound)
                        if raw.valid() and raw.key() == bound:
                            raw.prev()
                    while raw.valid() and len(items) < SCAN_CHUNK and (key := raw.key()) >= start:
                        items.append((key, raw.value()))
                        raw.prev()
                else:
                    # A scan that goes on where it stopped seeks nothing, which also keeps RocksDB reading ahead.
                    if after is None or after != passed:
                        raw.seek(start if after is None else after)
                        if after is not None and raw.valid() and raw.key() == after:
                            raw.next()
                    # A loop over whole states: what it calls is looked up once.
                    key_here, value_here, advance, append = raw.key, raw.value, raw.next, items.append
                    for _ in range(SCAN_CHUNK):
                        key = key_here()
                        if key is None or (end is not None and key >= end):  # None: it is valid no more
                            break
                        append((key, value_here()))
                        advance()
                    if items:
                        self._passed = items[-1][0]
                if not raw.valid():
                    raw.status()  # at its end, or at a damaged block
            except Exception as e:
                raise _mapped(e, self._path) from e
        return items

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while end is None or start < end:
            items = self.page(start, end, after=after, reverse=reverse)
            yield from items
            if len(items) < SCAN_CHUNK:
                return
            after = items[-1][0]

    def _open(self) -> RdictIter:
        if self._raw is None:
            raise closed_error()
        return self._raw

    def close(self) -> None:
        with self._lock:
            self._raw = None


class _Recent:
    """The records that were written last, or that they are not there (None): what is overwritten, or read, soon is at hand.

    In two generations: once the younger holds `RECENT_BYTES_MAX` it becomes the older, and the one before is dropped. One thread writes at
    a time, between `begin` and `add` or `clear`; any may look, and sees a batch whole or not at all.
    """

    __slots__ = ("_bytes", "_older", "_younger", "writes")

    def __init__(self) -> None:
        self._younger: dict[bytes, bytes | None] = {}
        self._older: dict[bytes, bytes | None] = {}
        self._bytes = 0
        self.writes = 0
        """How many times a write has begun or ended: odd while one is under way, and RocksDB alone knows whether it is there."""

    def get(self, key: bytes) -> Any:
        """A record, or `_UNKNOWN`."""
        if self.writes & 1:
            return _UNKNOWN
        record = self._younger.get(key, _UNKNOWN)
        return self._older.get(key, _UNKNOWN) if record is _UNKNOWN else record

    def has_any(self, keys: Sequence[bytes]) -> bool:
        """Whether any of these is at hand, as by `get_all`."""
        return not (self._younger.keys().isdisjoint(keys) and self._older.keys().isdisjoint(keys))

    def get_all(self, keys: Sequence[bytes]) -> list[Any]:
        """`get` of each; true of one moment if `writes` is the same, and even, when RocksDB has been asked for the rest."""
        younger, older = self._younger, self._older
        return [younger[key] if key in younger else older.get(key, _UNKNOWN) for key in keys]

    def begin(self) -> None:
        """A batch is about to be written."""
        self.writes += 1

    def add(self, batch: Mapping[bytes, bytes | None]) -> None:
        """It has been written."""
        self._younger.update(batch)
        self._bytes += sum(map(len, batch)) + sum(map(len, filter(None, batch.values()))) + RECENT_OVERHEAD * len(batch)
        if self._bytes > RECENT_BYTES_MAX:
            self._older = self._younger  # before the younger is empty: whoever looks in between finds a record in both
            self._younger = {}
            self._bytes = 0
        self.writes += 1

    def clear(self) -> None:
        """Forget all; nobody knows what was written."""
        self._younger, self._older, self._bytes = {}, {}, 0
        self.writes += self.writes & 1


class RocksDbEngine:
    """See `StateEngine`. Opens or makes the database in `path`, whose parent must be there.

    Args:
        read_only: open what is there, such as a checkpoint, and change nothing in the directory; nothing is locked, written or compacted.
    Raises:
        StoreLockedError: it is open already.
        CorruptionError: RocksDB finds it damaged.
        StorageError: it cannot be opened.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._without_wal = WriteOptions()
        self._without_wal.disable_wal = True  # type: ignore[method-assign, assignment]  # a property; the stubs say method
        self._cursors: weakref.WeakSet[_Cursor] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards `_cursors`
        self._is_closed = False
        self._recent = _Recent()
        try:
            access = AccessType.read_only() if read_only else AccessType.read_write()
            self._db = Rdict(str(self.path), _options(), access_type=access)
        except Exception as e:
            raise _mapped(e, self.path) from e
        self._db.set_write_options(self._without_wal)

    def get(self, key: bytes, /) -> bytes | None:
        value = self._recent.get(key)
        if value is _UNKNOWN:
            try:
                value = self._db.get(key)
            except Exception as e:
                raise _mapped(e, self.path) from e
        return value  # type: ignore[no-any-return]

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        recent = self._recent
        writes = recent.writes
        if not recent.has_any(keys):
            return self._read(list(keys))  # all of them from RocksDB, so of one moment, whatever is written meanwhile
        values = recent.get_all(keys)
        wanted = [key for key, value in zip(keys, values, strict=True) if value is _UNKNOWN]
        if wanted:
            read = iter(self._read(wanted))
            values = [next(read) if value is _UNKNOWN else value for value in values]
        if writes & 1 or writes != recent.writes:
            values = self._read(list(keys))  # those at hand may be from before a batch, the others from after it
        return values

    def _read(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            values: list[bytes | None] = self._db.get(keys)  # type: ignore[assignment, arg-type]  # a list in, a list out
        except Exception as e:
            raise _mapped(e, self.path) from e
        return values

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        self._recent.begin()
        try:
            writes = WriteBatch(raw_mode=True)
            for key, value in batch.items():
                if value is None:
                    writes.delete(key)
                else:
                    writes[key] = value
            self._db.write(writes, self._without_wal)
            self._recent.add(batch)
        except BaseException as e:
            self._recent.clear()
            if isinstance(e, Exception):
                raise _mapped(e, self.path) from e
            raise

    def _cursor(self, options: ReadOptions | None = None) -> _Cursor:
        try:
            cursor = _Cursor(self._db.iter(options), self.path)
        except Exception as e:
            raise _mapped(e, self.path) from e
        with self._lock:
            if self._is_closed:
                raise closed_error()
            self._cursors.add(cursor)
        return cursor

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        options = ReadOptions()
        if end is not None:
            options.set_iterate_upper_bound(end)  # keeps RocksDB from wading through what was deleted beyond it
        return self._cursor(options).scan(start, end, reverse)

    def snapshot(self) -> RocksDbSnapshot:
        return RocksDbSnapshot(self._cursor())

    def checkpoint(self, directory: Path) -> None:
        """Hard links to the files, after writing out the memtable: cheap on the same file system."""
        try:
            Checkpoint(self._db).create_checkpoint(str(directory))
        except Exception as e:
            raise _mapped(e, self.path) from e

    def flush(self) -> None:
        try:
            self._db.flush(True)
        except Exception as e:
            raise _mapped(e, self.path) from e

    def size_bytes(self) -> int:
        try:
            names = ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables")
            return sum(self._db.property_int_value(name) or 0 for name in names)
        except Exception as e:
            raise _mapped(e, self.path) from e

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._recent.clear()
            cursors = list(self._cursors)
            self._cursors.clear()
        for cursor in cursors:
            cursor.close()
        try:
            self._db.close()
        except Exception as e:
            if not isinstance(error := _mapped(e, self.path), DiskFullError):  # what its memtable held, the log has
                raise error from e


class RocksDbSnapshot:
    """See `EngineSnapshot`."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: _Cursor) -> None:
        self._cursor = cursor

    def get(self, key: bytes, /) -> bytes | None:
        return self._cursor.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._cursor.get(key) for key in keys]

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._cursor.scan(start, end, reverse)

    def close(self) -> None:
        self._cursor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
