"""Both ends of a snapshot between nodes, at the store: the state that is sent, where what comes is staged, and its install.

**Donor.** A `Source` is a consistent engine snapshot with the vector, hashes, digest and request ids that belong to it, taken in one step,
and on the disk before anything of it is sent. It stays what it is whatever is committed or installed afterwards; the log keeps what
follows it meanwhile (`Machine.pins`), so that one snapshot is enough.

**Receiver.** Chunks are *staged* outside the state, checked one by one, in memory or in a file that a restart finds again:

    DIR/snapshot/staged       "CRDTKVS1", then chunks: length:u32 crc:u32 link:16 bytes data
    DIR/snapshot/installing   there while the staged snapshot is being installed: whoever opens the directory finishes that first

A torn end of `staged` is cut; what is before it goes on from there, if the same donor still has the same snapshot.

**Install.** All slots in order, joined with what is here, in batches (`core/install.py`), the vector with the last one. It is one step
for everybody: the store's lock is held, reads wait, and after a crash in the middle the next opening does it again from the staged
file before it serves; joining twice changes nothing.

    1  everything is folded and on the disk      the log adds nothing to what the engine has
    2  `staged` whole, fsynced; `installing`     from here on it will be done
    3  slots, batch by batch
    4  the log's floor, for origins that jump
    5  vector, hashes, closings, request ids     one batch; flushed
    6  `installing`, then `staged` go            from here on it is done
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from zlib import crc32

from crdtkv.core.apply import Touched
from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.codec import SLOT_SPACE, successor
from crdtkv.core.install import Installed
from crdtkv.core.transfer import LINK_BYTES, Arrival, encode_header, encode_requests, encode_slots, slots_of
from crdtkv.errors import CorruptionError, CrdtkvError, DiskFullError, StorageError
from crdtkv.storage.engine import EngineSnapshot
from crdtkv.storage.files import FileLayer, OsFiles, write_all
from crdtkv.store.view import at_rest

if TYPE_CHECKING:
    from crdtkv.store.machine import Machine

DIRECTORY: Final = "snapshot"
STAGED: Final = "staged"
INSTALLING: Final = "installing"
PURGE_SLOTS: Final = 2_000
"""Slots of a large cleared collection that are dropped at a time before a snapshot is taken."""
_MAGIC: Final = b"CRDTKVS1"
_HEAD_BYTES: Final = 8 + LINK_BYTES
_END: Final = successor(SLOT_SPACE)


class Source:
    """A donor's state of one moment, in chunks. Made with the machine's caller alone; read from any thread, one call at a time.

    Attributes:
        vv: of that moment. position: of the log, which keeps what follows it until `close`.
    """

    def __init__(self, machine: Machine) -> None:
        replica = machine.replica
        while machine.purge_slice(PURGE_SLOTS):
            pass
        self._snapshot: EngineSnapshot = machine.snapshot()
        self.vv: VersionVector = machine.vv()
        self.position = machine.log.end()
        self._first = [encode_header(replica, self.vv), *encode_requests(replica.requests_made())]
        self._pins = machine.pins
        self._pins[id(self)] = self.position
        self._log = machine.log

    def sync(self) -> None:
        """What it names is on the disk when this returns; to be called before any of it leaves."""
        while self._log.synced() < self.position:
            self._log.sync()

    def read(self, cursor: bytes, bytes_max: int) -> tuple[bytes, bytes | None]:
        """The chunk at a cursor (the first: b""), about so long, and the cursor after it; None: that was the last. O(chunk)."""
        if len(cursor) <= 4:
            at = int.from_bytes(cursor, "big")
            return self._first[at], (at + 1).to_bytes(4, "big") if at + 1 < len(self._first) else SLOT_SPACE + bytes(4)
        flat: list[bytes] = []
        size = 0
        start = SLOT_SPACE if cursor == SLOT_SPACE + bytes(4) else cursor
        with closing(self._snapshot.scan(start, _END)) as records:  # type: ignore[type-var]
            for slot, record in records:
                if size >= bytes_max or (flat and size + len(slot) + len(record) > 2 * bytes_max):
                    return encode_slots(flat), slot
                flat += (slot, record)
                size += len(slot) + len(record)
        return encode_slots(flat), None

    def close(self) -> None:
        """Let go. Idempotent."""
        self._pins.pop(id(self), None)
        self._snapshot.close()


class Staging(Protocol):
    """Where a snapshot's chunks wait until all are there. One caller at a time.

    Attributes:
        arrival: of what is staged. is_marked: it was whole, and an install of it began.
    """

    arrival: Arrival
    is_marked: bool

    def append(self, data: bytes, link: bytes) -> None:
        """Check and keep the next chunk. Raises what `Arrival.take` does, `DiskFullError`, `StorageError`."""

    def mark(self) -> None:
        """All of it is on the disk, and is to be installed, when this returns."""

    def slots(self) -> Iterator[tuple[bytes, bytes]]:
        """All slots, in order."""

    def discard(self) -> None:
        """Forget what is staged. Idempotent."""


class MemoryStaging:
    """`Staging` of a store without a disk."""

    def __init__(self) -> None:
        self.arrival = Arrival()
        self.is_marked = False
        self._chunks: list[bytes] = []

    def append(self, data: bytes, link: bytes) -> None:
        self.arrival.take(data, link)
        self._chunks.append(data)

    def mark(self) -> None:
        self.is_marked = True

    def slots(self) -> Iterator[tuple[bytes, bytes]]:
        for data in self._chunks:
            yield from slots_of(data)

    def discard(self) -> None:
        self.arrival = Arrival()
        self.is_marked = False
        self._chunks = []


class FileStaging:
    """`Staging` in a directory; what an earlier process staged there is found again.

    Raises:
        CorruptionError: an install was begun there, and what was staged for it is damaged.
    """

    def __init__(self, directory: Path, files: FileLayer | None = None) -> None:
        self._files = files or OsFiles()
        self._directory = directory
        self.arrival = Arrival()
        self.is_marked = False
        self._file: Any = None
        try:
            if directory.is_dir():
                self._load()
        except OSError as e:
            raise self._error("read", e) from e

    def _load(self) -> None:
        names = self._files.list(self._directory)
        self.is_marked = INSTALLING in names
        if STAGED not in names:
            self.is_marked = False
            return
        self._file = self._files.open(self._directory / STAGED, writable=True)
        end = len(_MAGIC)
        try:
            for data, link, end in self._chunks():  # noqa: B007  # the end of the last whole chunk is wanted
                self.arrival.take(data, link)
            if self.is_marked:
                self.arrival.check_whole()
        except CrdtkvError as e:
            if self.is_marked:
                raise CorruptionError(
                    f"{self._directory}: a snapshot that was being installed is damaged ({e.message}): move the data directory away and "
                    "start again with an empty one, so that the data comes back from the others",
                    path=str(self._directory),
                ) from e
            self.discard()
            return
        if self._file.size() > max(end, len(_MAGIC)):
            self._file.truncate(end)
        if not self.arrival.chunks:
            self.discard()

    def _chunks(self) -> Iterator[tuple[bytes, bytes, int]]:
        """The whole chunks of the file, each with its link and where it ends; a torn one ends them."""
        file, at, size = self._file, len(_MAGIC), self._file.size()
        if file.read_at(0, at) != _MAGIC:
            return
        while at + _HEAD_BYTES <= size:
            head = file.read_at(at, _HEAD_BYTES)
            length, crc = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:8], "little")
            if at + _HEAD_BYTES + length > size:
                return
            data = file.read_at(at + _HEAD_BYTES, length)
            if crc32(data) != crc:
                return
            at += _HEAD_BYTES + length
            yield data, head[8:], at

    def append(self, data: bytes, link: bytes) -> None:
        self.arrival.take(data, link)
        try:
            if self._file is None:
                self._directory.mkdir(exist_ok=True)
                self._file = self._files.create(self._directory / STAGED)
                write_all(self._file, _MAGIC)
                self._files.sync_directory(self._directory)
                self._files.sync_directory(self._directory.parent)
            write_all(self._file, len(data).to_bytes(4, "little") + crc32(data).to_bytes(4, "little") + link + data)
        except OSError as e:
            raise self._error("write", e) from e

    def mark(self) -> None:
        try:
            self._file.sync()
            self._files.create(self._directory / INSTALLING).close()
            self._files.sync_directory(self._directory)
        except OSError as e:
            raise self._error("write", e) from e
        self.is_marked = True

    def slots(self) -> Iterator[tuple[bytes, bytes]]:
        try:
            count = 0
            for data, _, _ in self._chunks():
                count += 1
                yield from slots_of(data)
        except OSError as e:
            raise self._error("read", e) from e
        if count != self.arrival.chunks:
            raise StorageError(f"{self._directory / STAGED} was damaged while it was installed: chunk {count} does not read back")

    def discard(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
                self._file = None
            names = self._files.list(self._directory) if self._directory.is_dir() else []
            for name in (INSTALLING, STAGED):  # in this order: a mark without what it is of means nothing
                if name in names:
                    self._files.remove(self._directory / name)
                    self._files.sync_directory(self._directory)
        except OSError as e:
            raise self._error("clear", e) from e
        self.arrival = Arrival()
        self.is_marked = False

    def close(self) -> None:
        """Close the file; what is staged stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _error(self, what: str, error: OSError) -> StorageError:
        import errno

        text = f"cannot {what} the staged snapshot in {self._directory}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(text, path=str(self._directory))
        return StorageError(text, path=str(self._directory))


class Snapshots:
    """What replication asks of a machine for snapshots: see `replication.port.Snapshots`.

    Args:
        lock: held while the machine is used.
        installing: entered, with the lock held, while the state is between two.
    """

    def __init__(
        self,
        machine: Machine,
        staging: Staging,
        lock: AbstractContextManager[Any] | None = None,
        installing: Callable[[], AbstractContextManager[Callable[[Touched], None] | None]] = nullcontext,
        installed: Callable[[Origin, Installed], None] = lambda donor, done: None,
    ) -> None:
        self._machine = machine
        self._staging = staging
        self._lock = lock or threading.RLock()
        self._installing = installing
        self._installed = installed

    @property
    def staged(self) -> Arrival:
        return self._staging.arrival

    def open(self) -> Source:
        with at_rest(self._machine, self._lock, PURGE_SLOTS):
            source = Source(self._machine)
        try:
            source.sync()
        except BaseException:
            source.close()
            raise
        return source

    def stage(self, data: bytes, link: bytes, *, anew: bool) -> None:
        if anew:
            self._staging.discard()
        if not self._staging.arrival.chunks and self._machine.full is not None:
            raise DiskFullError("no room on the disk for a snapshot")
        self._staging.append(data, link)

    def discard(self) -> None:
        self._staging.discard()

    def install(self, step: Callable[[str], None] = lambda name: None) -> Installed:
        with self._lock, self._installing() as changed:
            donor = self._staging.arrival.origin
            done = self._machine.install(self._staging, step, changed)
            assert donor is not None
            self._installed(donor, done)
        return done
