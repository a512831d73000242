"""A view: the replicated state of one moment, held while somebody reads it: to compare it, to back it up, to send it.

An engine snapshot together with the version vector, hashes, digest and log position that belong to it, taken in one step under
the store's lock with everything folded and every clear done. What it names is durable before anyone sees it: nothing that leaves
through a view can be lost here afterwards and come back under the same number with other content. Reading it takes no lock and
stops no writer; it is read in bounded steps, from any thread, one at a time.

`View` is what the audit, backups and nodes are written against; a node's views are the same over gRPC (`client.views`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from crdtkv.core.causality import Origin, VersionVector, region_of
from crdtkv.core.codec import SLOT_SPACE, successor
from crdtkv.core.compare import digest_share
from crdtkv.core.frame import Frame
from crdtkv.errors import StorageError, TokenExpiredError

if TYPE_CHECKING:
    from crdtkv.store.store import Store

FIRST: Final = SLOT_SPACE
LAST: Final = successor(SLOT_SPACE)
"""All slots are in `[FIRST, LAST)`."""
PARTS_MAX: Final = 64
"""Parts that one step gives or takes: the fan-out of a descent."""
PAGE_BYTES: Final = 1 << 20
"""About how much one page of records or frames holds."""
PACE_RECORDS: Final = 512
"""A paced scan rests each time after so many records."""
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


class StateView:
    """The `View` of a store in this process. A context manager.

    Args:
        pace: how much of the time a scan may keep its thread busy, so that it leaves the interpreter to others; 1: all of it.
    """

    def __init__(self, store: Store, pace: float = 1.0) -> None:
        self._rest = 1 / pace - 1
        machine, replica = store._machine, store._replica
        while True:
            with store._lock:
                store._settled()
                if not replica.purges:
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
                    )
                    break
                machine.purge_slice(store.settings.purge_slots)
        self._log = machine.log
        try:
            while self._log.synced() < self.moment.position:
                self._log.sync()
        except BaseException:
            self._snapshot.close()
            raise

    def parts(self, start: bytes, end: bytes, size: int) -> list[Part]:
        found: list[Part] = []
        count = total = 0
        with closing(self._scan(start, end)) as records:
            for slot, record in records:
                if count >= size:
                    found.append(Part(slot, count, total & _MASK))
                    if len(found) == PARTS_MAX:
                        return found
                    count = total = 0
                count += 1
                total += digest_share(slot, record)
        found.append(Part(end, count, total & _MASK))
        return found

    def digests(self, start: bytes, ends: Sequence[bytes]) -> list[Part]:
        found: list[Part] = []
        waiting = iter(ends[:PARTS_MAX])
        end = next(waiting, None)
        count = total = 0
        if end is None:
            return found
        with closing(self._scan(start, ends[:PARTS_MAX][-1])) as records:
            for slot, record in records:
                while slot >= end:
                    found.append(Part(end, count, total & _MASK))
                    count = total = 0
                    end = next(waiting)
                count += 1
                total += digest_share(slot, record)
        found.append(Part(end, count, total & _MASK))
        found += [Part(e, 0, 0) for e in waiting]
        return found

    def page(self, start: bytes, end: bytes, bytes_max: int = PAGE_BYTES) -> Page:
        flat: list[bytes] = []
        size = 0
        with closing(self._scan(start, end)) as records:
            for slot, record in records:
                if size >= bytes_max:
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

    def _scan(self, start: bytes, end: bytes) -> Generator[tuple[bytes, bytes], None, None]:
        scan = self._snapshot.scan(max(start, FIRST), min(end, LAST))
        if not self._rest:
            yield from scan
            return
        began = time.monotonic()
        for number, item in enumerate(scan, 1):
            yield item
            if not number % PACE_RECORDS:
                # Time waited for the interpreter counts as busy: so the busier the others, the more is left to them.
                time.sleep((time.monotonic() - began) * self._rest)
                began = time.monotonic()

    def close(self) -> None:
        self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


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
