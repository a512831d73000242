"""State engines: ordered maps from slot bytes to record bytes. Here the protocols, and the engine in memory beside them.

An engine knows nothing of slots, commits or logs. Its writes are atomic but need not survive a crash until `flush`: the
commit log is what is fsynced, and after a crash the engine holds *some prefix* of the batches written to it. Writes come from
one thread at a time; reads from any. Keys are not empty. After `close` every call raises `StoreClosedError`.

**Theory of operation of `MemoryEngine`.** A dict is the state, so a get is a dict's get and a batch a dict's update. Order
is wanted only by scans, so it is kept lazily: a dict iterates in order of insertion, hence the keys that the sorted index
has not got yet are the newest of the dict, and counting them is all that a put pays. A scan folds them in. The index may hold
too much (deleted keys, a key twice after it was deleted and put again): a scan looks each key up, and an index that is
mostly waste is built anew.

A snapshot costs nothing until something is written: then the values that a batch is about to replace (*pre-images*) are
kept with the newest snapshot. A snapshot reads a key from the first of its own and the younger snapshots' pre-images that has
it, else from the dict; a snapshot that ends leaves its pre-images to the next older one. So any number of snapshots costs
a writer one lookup per key.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self
from zlib import crc32

import msgspec
from sortedcontainers import SortedList

from crdtkv.errors import CorruptionError, StorageError, StoreClosedError

HOW_TO_REPLACE: Final = "move the data directory aside, and start with an empty one or a restored backup: the rest comes from a peer"
"""What to do about a directory that cannot be mended where it is."""
SCAN_CHUNK = 256
"""Items that a scan fetches at a time: long enough to hide the cost of seeking, short enough to bound memory."""

_SAMPLE = 10_000
_CHECKPOINT_NAME = "memory.checkpoint"
_CHECKPOINT_MAGIC = b"CRDTKVM1"


class EngineSnapshot(Protocol):
    """A consistent view of an engine as it was when the snapshot was taken; usable from any thread, one call at a time."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value of `key`, or None."""

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order."""

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Items with `start <= key < end` in order of their bytes; no `end`: to the last."""

    def close(self) -> None:
        """Let go of what the view holds back; idempotent. A snapshot that is garbage collected is closed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class StateEngine(Protocol):
    """An ordered map with atomic batches and consistent views."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value of `key`, or None."""

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order."""

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        """Apply a batch, all or nothing, also for readers of other threads; None deletes. Not durable until `flush`."""

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Items with `start <= key < end` in order of their bytes, as they are at the call. The iterator holds a view
        until it is exhausted, closed or garbage collected."""

    def snapshot(self) -> EngineSnapshot:
        """A consistent view of now."""

    def checkpoint(self, directory: Path) -> None:
        """A copy of the state as of now in `directory`, which must not exist yet; an engine of the kind opens it."""

    def flush(self) -> None:
        """What was written before is on the disk when this returns."""

    def size_bytes(self) -> int:
        """About how many bytes the state takes. Cheap enough for a status page."""

    def close(self) -> None:
        """Idempotent. Does not promise more durability than the last `flush`."""


def closed_error() -> StoreClosedError:
    """The error for using an engine, snapshot or scan after `close`."""
    return StoreClosedError("the state engine, or this view of it, is closed")


def _closed_get(key: bytes, /) -> bytes | None:
    raise closed_error()


class _Version:
    """A moment that some snapshot still reads: the pre-images of what was written since, until the next younger one."""

    __slots__ = ("before",)

    def __init__(self) -> None:
        self.before: dict[bytes, bytes | None] = {}


class MemoryEngine:
    """The engine without a disk. `get` takes no lock. It keeps the values that it is given, as the objects that they are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[bytes, bytes] = {}
        self.get: Callable[[bytes], bytes | None] = self._data.get  # the dict is never replaced; a get is the dict's own
        self._ordered: SortedList[bytes] = SortedList()  # every live key but the last `_tail` of the dict; maybe more
        self._tail = 0
        self._deleted: set[bytes] = set()  # deleted while a snapshot was open, before they were folded into the index
        self._versions: list[_Version] = []  # open snapshots, oldest first
        self._released: deque[_Version] = deque()  # snapshots that ended, to be taken out by the next who holds the lock
        self._is_closed = False

    @classmethod
    def open_checkpoint(cls, directory: Path) -> MemoryEngine:
        """An engine with the state of a `checkpoint`."""
        path = directory / _CHECKPOINT_NAME
        try:
            data = path.read_bytes()
        except OSError as e:
            raise StorageError(f"cannot read the checkpoint {path}: {e.strerror}", path=str(path)) from e
        head, body = data[: len(_CHECKPOINT_MAGIC) + 4], data[len(_CHECKPOINT_MAGIC) + 4 :]
        if head != _CHECKPOINT_MAGIC + crc32(body).to_bytes(4, "big"):
            raise CorruptionError(f"{path} is not a checkpoint, or is damaged", path=str(path))
        engine = cls()
        engine.write(msgspec.msgpack.decode(body, type=dict[bytes, bytes]))
        return engine

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            return list(map(self._data.get, keys))

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            data = self._data
            if self._versions:
                self._preserve(batch)
            if not all(batch.values()) and None in batch.values():  # `all`, twice as fast, tells most batches
                for key, value in batch.items():
                    if value is None:
                        data.pop(key, None)
                batch = {key: value for key, value in batch.items() if value is not None}
            size = len(data)
            data.update(batch)  # type: ignore[arg-type]  # none is None
            self._tail += len(data) - size

    def _preserve(self, batch: Mapping[bytes, bytes | None]) -> None:
        """Keep what `batch` replaces for the snapshots that still see it."""
        self._forget_released()
        if not self._versions:
            return
        before, get = self._versions[-1].before, self._data.get
        for key, value in batch.items():
            if key not in before:
                before[key] = get(key)
            if value is None:
                self._deleted.add(key)  # it may be among the dict's newest, which the index has not got yet

    def _forget_released(self) -> None:
        while self._released:
            version = self._released.popleft()
            if version not in self._versions:
                continue  # the engine was closed before it
            at = self._versions.index(version)
            del self._versions[at]
            if at:
                older = self._versions[at - 1]
                if len(older.before) < len(version.before):
                    version.before.update(older.before)
                    older.before = version.before
                else:
                    for key, value in version.before.items():
                        older.before.setdefault(key, value)

    def _fold(self) -> None:
        """Bring the keys that the index lacks into it."""
        ordered, data = self._ordered, self._data
        if self._tail or self._deleted:
            # Deletions among the newest make `_tail` too great: then old keys come in twice, which a scan passes over.
            ordered.update(chain(islice(reversed(data), self._tail), self._deleted))
            self._tail = 0
            self._deleted.clear()
        if len(ordered) > 2 * len(data) + 4 * SCAN_CHUNK:
            preserved = sum(len(version.before) for version in self._versions)
            if len(ordered) > 2 * (len(data) + preserved) + 4 * SCAN_CHUNK:
                self._ordered = SortedList(chain(data, *(version.before for version in self._versions)))

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self.snapshot().scan(start, end, reverse=reverse)

    def snapshot(self) -> MemorySnapshot:
        with self._lock:
            if self._is_closed:
                raise closed_error()
            self._forget_released()
            version = _Version()
            self._versions.append(version)
        return MemorySnapshot(self, version)

    def checkpoint(self, directory: Path) -> None:
        """Write the state to a file in `directory`: all of it is in memory twice while that lasts."""
        with self.snapshot() as snapshot:
            body = msgspec.msgpack.encode(dict(snapshot.scan(b"", None)))
        path = directory / _CHECKPOINT_NAME
        try:
            directory.mkdir()
            path.write_bytes(_CHECKPOINT_MAGIC + crc32(body).to_bytes(4, "big") + body)
        except OSError as e:
            raise StorageError(f"cannot write the checkpoint {path}: {e.strerror}", path=str(path)) from e

    def flush(self) -> None:
        """Nothing to do: there is no disk."""

    def size_bytes(self) -> int:
        """Bytes of keys and values: extrapolated from the oldest ten thousand."""
        with self._lock:
            sample = list(islice(self._data.items(), _SAMPLE))
            count = len(self._data)
        size = sum(len(key) + len(value) for key, value in sample)
        return size if count <= _SAMPLE else size * count // _SAMPLE

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self.get = _closed_get
            self._data.clear()
            self._ordered.clear()
            self._versions.clear()
            self._released.clear()
            self._deleted.clear()
            self._tail = 0

    # -- for the snapshots ------------------------------------------------------------------------------------

    def _view(self, version: _Version, keys: Sequence[bytes]) -> list[bytes | None]:
        """What `keys` were at `version`. The caller holds the lock."""
        if version not in self._versions:
            raise closed_error()
        chain_ = [v.before for v in self._versions[self._versions.index(version) :] if v.before]
        if not chain_:
            return list(map(self._data.get, keys))
        found: list[bytes | None] = []
        for key in keys:
            for before in chain_:
                if key in before:
                    found.append(before[key])
                    break
            else:
                found.append(self._data.get(key))
        return found

    def _page(
        self, version: _Version, start: bytes, end: bytes | None, *, after: bytes | None, reverse: bool, is_first: bool
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """The items among the next keys of the index (beyond `after`), and the last key looked at, None at the end."""
        with self._lock:
            if self._is_closed:
                raise closed_error()
            if is_first:
                self._fold()  # keys put later are not in this view, keys deleted later stay in the index
            low, high = (after, end) if after is not None and not reverse else (start, end if after is None else after)
            keys = list(islice(self._ordered.irange(low, high, (after is None or reverse, False), reverse), SCAN_CHUNK))
            if not keys:
                return [], None
            keys = list(dict.fromkeys(keys))
            values = self._view(version, keys)
        return [(key, value) for key, value in zip(keys, values, strict=True) if value is not None], keys[-1]

    def _check(self) -> None:
        """Assert every invariant of the index."""
        with self._lock:
            self._forget_released()
            newest = set(islice(reversed(self._data), self._tail)) | self._deleted
            indexed = set(self._ordered) | newest
            assert set(self._data) <= indexed, f"not indexed: {set(self._data) - indexed}"
            for version in self._versions:
                lost = {key for key, value in version.before.items() if value is not None} - indexed
                assert not lost, f"a snapshot's keys are not indexed: {lost}"


class MemorySnapshot:
    """See `EngineSnapshot`."""

    __slots__ = ("__weakref__", "_engine", "_is_open", "_version")

    def __init__(self, engine: MemoryEngine, version: _Version) -> None:
        self._engine = engine
        self._version = version
        self._is_open = True

    def get(self, key: bytes) -> bytes | None:
        return self.multi_get((key,))[0]

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not self._is_open:
            raise closed_error()
        with self._engine._lock:
            return self._engine._view(self._version, keys)

    def scan(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if not self._is_open:
            raise closed_error()
        return self._scan(start, end, reverse)

    def _scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        is_first = True
        while end is None or start < end:
            if not self._is_open:
                raise closed_error()
            items, after = self._engine._page(self._version, start, end, after=after, reverse=reverse, is_first=is_first)
            is_first = False
            yield from items
            if after is None:
                return

    def close(self) -> None:
        # Without the lock: this runs in the garbage collector too, which may come upon a thread that holds it.
        if self._is_open:
            self._is_open = False
            self._engine._released.append(self._version)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
