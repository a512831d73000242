"""Views that a node holds for whoever reads them over gRPC; see `crdtkv.store.view`.

A view pins what the state engine would otherwise drop, so there are few, and one that nobody reads for a while goes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from crdtkv.audit.sides import check_wait
from crdtkv.core.causality import Origin, VersionVector
from crdtkv.errors import InvalidValueError, OverloadedError, StoreClosedError
from crdtkv.node.worker import StorageWorker
from crdtkv.pb.v1 import admin_pb2
from crdtkv.store.view import PAGE_BYTES, PARTS_MAX, Part, StateView

if TYPE_CHECKING:
    from crdtkv.store.store import Store

T = TypeVar("T")

VIEWS_MAX: Final = 8
VIEW_IDLE_S: Final = 600.0
"""Long: while one view of a comparison is read, the others wait."""
WAIT_MS_MAX: Final = 600_000
PACE: Final = 0.5
"""How much of the time a scan for a view may take of a reader thread while requests come in: serving goes before."""
_POLL_S: Final = 0.005
_encode = msgspec.msgpack.Encoder().encode


class Views:
    """The views of one node. Methods are for the loop's thread."""

    def __init__(self) -> None:
        self._views: dict[int, StateView] = {}
        self._used: dict[int, float] = {}
        self._numbers = itertools.count(time.time_ns())  # not those of an earlier process
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, store: Store, worker: StorageWorker, covers: VersionVector, wait_ms: int) -> Any:
        """A new view that covers `covers`, as a `ViewReply`."""
        if len(self._views) >= VIEWS_MAX:
            raise OverloadedError(f"{VIEWS_MAX} views are held already: close one, or wait until one expires", limit=VIEWS_MAX)
        began, wait_s = time.monotonic(), min(wait_ms, WAIT_MS_MAX) / 1000
        while not covers <= (vv := store.port.vv()):
            check_wait(store, covers.missing_from(vv), time.monotonic() - began, wait_s)
            await asyncio.sleep(_POLL_S)
        view = await worker.read(StateView, store, PACE, lambda: store.port.log.end() + worker.answered)
        number = next(self._numbers)
        self._views[number] = view
        self._touch(number)
        moment = view.moment
        return admin_pb2.ViewReply(
            view=number,
            origin=moment.origin,
            cluster=moment.cluster,
            shard=moment.shard,
            vv=vector(moment.vv),
            hashes=[moment.hashes[origin] for origin in moment.vv],
            digest=f"{moment.digest:032x}",
            hlc=moment.mark,
            position=moment.position,
            floor=vector(moment.floor),
            control=_encode(moment.agreed.to_wire()),
        )

    async def parts(self, worker: StorageWorker, request: Any) -> Any:
        if request.size < 1:
            raise InvalidValueError(f"size: must be at least 1 record, got {request.size}", field="size")
        return _parts(await self._read(worker, request.view, lambda v: v.parts(request.start, request.end, request.size)))

    async def digests(self, worker: StorageWorker, request: Any) -> Any:
        ends = list(request.ends)
        if not 0 < len(ends) <= PARTS_MAX or any(a > b for a, b in itertools.pairwise((request.start, *ends))):
            raise InvalidValueError(f"ends: must be 1 to {PARTS_MAX} ascending ends after start, got {len(ends)}", field="ends")
        return _parts(await self._read(worker, request.view, lambda v: v.digests(request.start, ends)))

    async def records(self, worker: StorageWorker, request: Any) -> Any:
        bytes_max = min(request.bytes_max or PAGE_BYTES, 4 * PAGE_BYTES)

        def read(view: StateView) -> Any:
            flat, following = view.page(request.start, request.end, bytes_max)
            return admin_pb2.RecordsReply(rows=_encode(flat), next=following)

        return await self._read(worker, request.view, read)

    async def frames(self, worker: StorageWorker, request: Any) -> Any:
        after = from_vector(request.after)
        page = await self._read(worker, request.view, lambda v: v.frame_page(after, request.position))
        return admin_pb2.FramesReply() if page is None else admin_pb2.FramesReply(available=True, frames=page[0], next=page[1])

    def close(self, number: int) -> None:
        """Let go of a view, if it is still there."""
        view = self._views.pop(number, None)
        self._used.pop(number, None)
        if view is not None:
            view.close()

    def close_all(self) -> None:
        """The node stops."""
        for number in list(self._views):
            self.close(number)
        if self._timer is not None:
            self._timer.cancel()

    async def _read(self, worker: StorageWorker, number: int, read: Callable[[StateView], T]) -> T:
        view = self._views.get(number)
        if view is None:
            raise StoreClosedError(
                f"view {number} is not held here: it was closed, unread for {VIEW_IDLE_S:g} s, or the node was started anew; open another",
                retryable=True,
            )
        self._used[number] = float("inf")  # it does not expire while it is read
        try:
            return await worker.read(read, view)
        finally:
            if number in self._views:
                self._touch(number)

    def _touch(self, number: int) -> None:
        self._used[number] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(VIEW_IDLE_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for number, used in list(self._used.items()):
            if now - used >= VIEW_IDLE_S:
                self.close(number)
        if self._views:
            self._timer = asyncio.get_running_loop().call_later(VIEW_IDLE_S / 10, self._expire)


def _parts(parts: list[Part]) -> Any:
    return admin_pb2.PartsReply(parts=[admin_pb2.Part(end=p.end, slots=p.slots, digest=p.digest.to_bytes(16, "big")) for p in parts])


def vector(vv: VersionVector) -> Any:
    """A version vector as protobuf."""
    return admin_pb2.VersionVector(entries=[admin_pb2.OriginSeq(origin=origin, seq=seq) for origin, seq in vv.items()])


def from_vector(message: Any) -> VersionVector:
    """The inverse of `vector`."""
    return VersionVector({Origin(entry.origin): entry.seq for entry in message.entries})
