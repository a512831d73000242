"""A view: the replicated state of one moment, held while somebody reads it: to compare it, to back it up, to send it.

An engine snapshot together with the version vector, hashes, digest and log position that belong to it, taken in one step under
the store's lock with everything folded and every clear done. What it names is durable before anyone sees it: nothing that leaves
through a view can be lost here afterwards and come back under the same number with other content. Reading it takes no lock and
stops no writer; it is read in bounded steps, from any thread, one at a time.

`View` is what the audit, backups and nodes are written against; a node's views are the same over gRPC (`client.views`).
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from crdtkv.core.causality import Origin, VersionVector, region_of
from crdtkv.core.codec import SLOT_SPACE, successor
from crdtkv.core.compare import digest_of
from crdtkv.core.control import NOTHING_AGREED, Agreed
from crdtkv.core.frame import Frame
from crdtkv.errors import StorageError, TokenExpiredError
from crdtkv.store.pacing import Pacer

if TYPE_CHECKING:
    from crdtkv.store.machine import Machine
    from crdtkv.store.store import Store

FIRST: Final = SLOT_SPACE
LAST: Final = successor(SLOT_SPACE)
"""All slots are in `[FIRST, LAST)`."""
CHECKPOINTS: Final = "checkpoints"
"""The folder in a store's directory where checkpoints are made."""
PARTS_MAX: Final = 64
"""Parts that one step gives or takes: the fan-out of a descent."""
PAGE_BYTES: Final = 1 << 20
"""About how much one page of records or frames holds."""
CHUNK_RECORDS: Final = 1024
"""Records that are read at a time; a view with a pace rests after each."""
_MASK: Final = (1 << 128) - 1

Page = tuple[list[bytes], bytes | None]
"""`[slot, record, slot, record, …]` in slot order, and where the next page starts; None: that was the last."""
FramePage = tuple[list[bytes], int | None]
"""Frames as they are in the log, and the position of the next page; None: that was the last."""


class Part(NamedTuple):
    """What a range of slots holds: it ends before `end`, with so many records and the sum of their shares of the digest."""

    end: bytes
    slots: int
    digest: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What a view is of.

    Attributes:
        origin: whose state. cluster, shard: of which data.
        vv: what is applied in it. hashes: for each origin in `vv` the hash of its last frame.
        digest: what the replica holds for its digest; a scan must give the same.
        mark: the clock's mark, at least the greatest stamp in it.
        position: the log position it stands at. floor: from where on the log has all frames.
        agreed: closed origins and members. All vectors here are full ones: closed origins are in them.
    """

    origin: Origin
    cluster: str
    shard: int
    vv: VersionVector
    hashes: Mapping[Origin, bytes]
    digest: int
    mark: int
    position: int
    floor: VersionVector
    agreed: Agreed = NOTHING_AGREED

    @property
    def region(self) -> str:
        return region_of(self.origin)


class View(Protocol):
    """See the module's docstring."""

    @property
    def moment(self) -> Moment: ...

    def parts(self, start: bytes, end: bytes, size: int) -> list[Part]:
        """Consecutive parts from `start` on of about `size` records each, at most `PARTS_MAX`. If the last ends before `end`, ask on.

        They cover the range without a gap. O(records in them).
        """

    def digests(self, start: bytes, ends: Sequence[bytes]) -> list[Part]:
        """What is in the consecutive ranges that end at `ends`, at most `PARTS_MAX`. O(records in them)."""

    def page(self, start: bytes, end: bytes, bytes_max: int = PAGE_BYTES) -> Page:
        """The records from `start` on, about `bytes_max` of them; one at least if there is any."""

    def frame_page(self, after: VersionVector, position: int = 0) -> FramePage | None:
        """From `position` on, frames that the view has applied and `after` lacks, in log order, about `PAGE_BYTES` of them.

        None: the log no longer has them all.
        """

    def close(self) -> None:
        """Let go; idempotent."""


@contextmanager
def at_rest(machine: Machine, lock: AbstractContextManager[Any], slots: int) -> Iterator[None]:
    """With the lock held, a moment in which no clear is in progress. What is left of some is done first, so many slots at a time, and
    the lock let go in between: writers do not wait for a large one."""
    while True:
        with lock:
            machine.check()
            if not machine.replica.purges:
                yield
                return
            machine.purge_slice(slots)


class StateView:
    """The `View` of a store in this process. A context manager.

    Args:
        pace: how much of the time a scan may keep a processor busy while others are at work; 1: all of it.
        others: see `Pacer`; None: others are at work when they write.
        checkpoint: a directory to be made, on the store's file system: the engine's records of the same moment, on the disk, for another
            process to read; see `has_checkpoint`. It is the caller's.
    """

    def __init__(self, store: Store, pace: float = 1.0, others: Callable[[], int] | None = None, *, checkpoint: Path | None = None) -> None:
        machine, replica = store._machine, store._replica
        self._pacer = Pacer(pace, machine.log.end if others is None else others)
        self.has_checkpoint = False
        """Whether the checkpoint asked for was made: there may be no room for it."""
        with ExitStack() as held:
            with at_rest(machine, store._lock, store.settings.purge_slots):
                store._settled()
                self._snapshot = machine.snapshot()
                vv = machine.vv()
                self.moment = Moment(
                    store.origin,
                    store.cluster,
                    store.shard,
                    vv,
                    {o: replica.last_hash(o)[1] for o in vv},
                    replica.digest(),
                    replica.clock.mark,
                    machine.log.end(),
                    machine.log.floor(),
                    replica.control.agreed(),
                )
                if checkpoint is not None:
                    # The engine stays as it is until the copy is made; who writes meanwhile has room for a quarter of a second in memory.
                    held.enter_context(machine.fold_guard)
                    checkpoint = checkpoint if not replica.state.pending else None
            self._log = machine.log
            try:
                if checkpoint is not None:
                    self.has_checkpoint = machine.checkpoint(checkpoint, self.moment.position)
                while self._log.synced() < self.moment.position:
                    self._log.sync()
            except BaseException:
                self._snapshot.close()
                raise

    def parts(self, start: bytes, end: bytes, size: int) -> list[Part]:
        found: list[Part] = []
        with closing(self._chunks(start, end, size)) as chunks:
            for chunk in chunks:
                found.append(Part(chunk[-1][0] + b"\x00", len(chunk), digest_of(chunk)))
                if len(found) == PARTS_MAX:
                    return found
        if found and found[-1].slots < size:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Part(end, 0, 0))
        return found

    def digests(self, start: bytes, ends: Sequence[bytes]) -> list[Part]:
        found: list[Part] = []
        for end in ends[:PARTS_MAX]:
            slots = total = 0
            for chunk in self._chunks(start, end):
                slots += len(chunk)
                total += digest_of(chunk)
            found.append(Part(end, slots, total & _MASK))
            start = end
        return found

    def page(self, start: bytes, end: bytes, bytes_max: int = PAGE_BYTES) -> Page:
        flat: list[bytes] = []
        size = 0
        with closing(self._chunks(start, end)) as chunks:
            for chunk in chunks:
                items = list(chain.from_iterable(chunk))
                size += sum(map(len, items))
                if size < bytes_max:
                    flat += items
                    continue
                # The page is full within this chunk, which may be of large records: cut it where it is.
                size -= sum(map(len, items))
                for slot, record in chunk:
                    if flat and size + len(slot) + len(record) > bytes_max:
                        return flat, slot
                    flat += (slot, record)
                    size += len(slot) + len(record)
        return flat, None

    def frame_page(self, after: VersionVector, position: int = 0) -> FramePage | None:
        log, until = self._log, self.moment.position
        if not self.moment.floor <= after:
            return None
        try:
            position = max(position, log.position_after(after))
            if position >= until:
                return [], None
            frames, position = log.read(position, bytes_max=PAGE_BYTES, until=until)
        except TokenExpiredError:  # truncated since the view was taken
            return None
        return [f.data for f in frames if not after.covers((f.origin, f.last_seq))], position if position < until else None

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """All records, one by one."""
        return chain.from_iterable(self._chunks(FIRST, LAST))

    def _chunks(self, start: bytes, end: bytes, size: int = CHUNK_RECORDS) -> Generator[list[tuple[bytes, bytes]], None, None]:
        """A range's records, so many at a time, at this view's pace."""
        scan = self._snapshot.scan(max(start, FIRST), min(end, LAST))
        while chunk := list(islice(scan, size)):
            yield chunk
            self._pacer.rest()

    def close(self) -> None:
        self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@contextmanager
def checkpointed(store: Store) -> Iterator[tuple[StateView, Path | None]]:
    """A view of a store in a directory, and a checkpoint of its engine of the same moment, for another process to read.

    The checkpoint goes when the block ends, or when the store is opened after a crash. None: there is no room for one.
    """
    assert store.path is not None, "a store without a directory has nowhere for a checkpoint"
    directory = store.path / CHECKPOINTS / secrets.token_hex(4)
    try:
        try:
            directory.parent.mkdir(exist_ok=True)
        except OSError:
            with StateView(store) as view:
                yield view, None
        else:
            with StateView(store, checkpoint=directory) as view:
                yield view, directory if view.has_checkpoint else None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # another one is there
            directory.parent.rmdir()


def pages(view: View, start: bytes = FIRST, end: bytes = LAST, bytes_max: int = PAGE_BYTES) -> Iterator[list[bytes]]:
    """All records of a range, page by page."""
    position: bytes | None = start
    while position is not None:
        flat, position = view.page(position, end, bytes_max)
        if flat:
            yield flat


def records(view: View, start: bytes = FIRST, end: bytes = LAST) -> Iterator[tuple[bytes, bytes]]:
    """All records of a range, one by one."""
    for flat in pages(view, start, end):
        yield from zip(islice(flat, 0, None, 2), islice(flat, 1, None, 2), strict=True)


def frames(view: View, after: VersionVector) -> Iterator[Frame] | None:
    """The frames that a view has applied and `after` lacks, in log order. None: the log no longer has them all.

    Raises:
        StorageError: (while iterating) the log was truncated meanwhile.
    """
    first = view.frame_page(after)
    return None if first is None else _frames(view, after, first)


def _frames(view: View, after: VersionVector, page: FramePage | None) -> Iterator[Frame]:
    while page is not None:
        yield from map(Frame.decode, page[0])
        if page[1] is None:
            return
        page = view.frame_page(after, page[1])
    raise StorageError("the log was truncated while it was read: try again", retryable=True)
