"""The Admin service: what operators and tools ask a node, answered while the node is not ready as far as it can.

What is not known of a peer is absent in the answer, never 0: a lag of a peer that is cut off is unknown, not small.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.errors import InvalidValueError, RegionUnavailableError
from crdtkv.node.kv import KeyValueService, unary
from crdtkv.node.logging import event
from crdtkv.node.pages import Context
from crdtkv.node.peers import Peers
from crdtkv.node.regions import changes, regions_reply
from crdtkv.node.views import PACE, Views, from_vector
from crdtkv.node.views import vector as _vector
from crdtkv.node.worker import HELD_RETRY_MS, StorageWorker
from crdtkv.pb.v1 import admin_pb2, admin_pb2_grpc
from crdtkv.replication import PeerStatistics
from crdtkv.results import PeerLag, Status
from crdtkv.store.mending import SLOTS_MAX, adopt_records, settle

if TYPE_CHECKING:
    from crdtkv.store.store import Store

_decode_rows = msgspec.msgpack.Decoder(list[bytes | None]).decode
_PEER_FIELDS = tuple(field.name for field in dataclasses.fields(PeerLag))
_STATUS_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Status)
    if field.name not in ("path", "vv", "durable_vv", "log_floor", "log_kept_for", "digest", "peers", "warnings")
)


class AdminService(admin_pb2_grpc.AdminServicer):
    """`crdtkv.v1.Admin` of one node."""

    def __init__(self, kv: KeyValueService, peers: Peers) -> None:
        self._kv = kv
        self._peers = peers
        self._store: Store | None = None
        self._worker: StorageWorker | None = None
        self._began = time.monotonic()
        self._views = Views()
        self._last: Status | None = None
        """What the store last said of itself."""
        self.listen = ""

    def open(self, store: Store, worker: StorageWorker) -> None:
        """The store is open."""
        self._store = store
        self._worker = worker
        worker.status = self.status

    def _serving(self) -> tuple[Store, StorageWorker]:
        if self._store is None or self._worker is None:
            raise RegionUnavailableError("the node is still opening its store; try again")
        return self._store, self._worker

    def status(self) -> Status:
        """What the store says of itself, with what the node adds. Runs in the writer."""
        store, worker = self._serving()
        if worker.occupied:
            if self._last is None:
                raise RegionUnavailableError(f"{worker.occupied}: try again in a moment", retry_after_ms=HELD_RETRY_MS)
            warning = f"{worker.occupied}: what is said of the store here is of before"
            own = dataclasses.replace(self._last, warnings=(warning, *self._last.warnings))
        else:
            own = self._last = store.status()
        return dataclasses.replace(
            own,
            ready=self._kv.ready and not own.read_only,
            pid=os.getpid(),
            uptime_ms=round((time.monotonic() - self._began) * 1000),
            listen=self.listen,
            sessions=self._kv.sessions,
            requests=worker.answered,
            peers=tuple(lag for lag, _ in self._peers.lag_now()),
            warnings=(*own.warnings, *self._peers.alarms),
        )

    @unary
    async def Status(self, request: Any, context: Context) -> Any:
        _, worker = self._serving()
        status, peers = await worker.run(lambda: (self.status(), self._peers.lag_now()))
        reply = admin_pb2.StatusReply(
            vv=_vector(status.vv),
            durable_vv=_vector(status.durable_vv),
            log_floor=_vector(status.log_floor),
            log_kept_for=status.log_kept_for,
            digest=status.digest or "",
            peers=[_peer(lag, row, status.origin) for lag, row in peers],
            warnings=status.warnings,
        )
        for name in _STATUS_FIELDS:
            setattr(reply, name, getattr(status, name))
        return reply

    @unary
    async def Digest(self, request: Any, context: Context) -> Any:
        store, worker = self._serving()

        def read() -> tuple[VersionVector, str]:
            # Vector and digest of one state: read the vector around the digest until nothing came between.
            while True:
                before = store.vv()
                digest = store.digest()
                if store.vv() == before:
                    return before, digest

        vv, digest = await worker.read(read)
        return admin_pb2.DigestReply(digest=digest, vv=_vector(vv))

    @unary
    async def GetVersionVector(self, request: Any, context: Context) -> Any:
        store, worker = self._serving()
        applied, durable = await worker.read(lambda: (store.port.vv(), store.port.durable_vv()))
        return admin_pb2.VersionVectorReply(applied=_vector(applied), durable=_vector(durable))

    @unary
    async def Lag(self, request: Any, context: Context) -> Any:
        store, _ = self._serving()
        return admin_pb2.LagReply(region=store.region, peers=[_peer(lag, row, store.origin) for lag, row in await self._peers.lag()])

    # -- a state from elsewhere -----------------------------------------------------------------------------------

    @unary
    async def MergeState(self, request_iterator: AsyncIterator[Any], context: Context) -> Any:
        self._serving()

        async def chunks() -> AsyncIterator[tuple[bytes, bytes]]:
            async for chunk in request_iterator:
                if chunk.end:
                    return
                yield chunk.data, chunk.link
            raise InvalidValueError("the state broke off before its end: nothing was changed", field="state")

        done = await self._peers.merge_state(chunks())
        event(logging.INFO, "state_merged", applied=done.applied, added=done.added, changed=done.changed, removed=done.removed)
        return admin_pb2.MergeStateReply(applied=done.applied, changed=done.added + done.changed + done.removed)

    # -- members --------------------------------------------------------------------------------------------------

    def _regions(self, addresses: Mapping[str, str]) -> Any:
        return regions_reply(self._serving()[0], self._peers.standings(), addresses)

    def _addresses(self) -> dict[str, str]:
        """Where this node and those that it dials listen."""
        return {**self._peers.addresses, self._serving()[0].region: self.listen}

    @unary
    async def Regions(self, request: Any, context: Context) -> Any:
        return await self._serving()[1].run(partial(self._regions, self._addresses()))

    @unary
    async def ChangeRegions(self, request: Any, context: Context) -> Any:
        store, worker = self._serving()
        addresses = self._addresses()

        def decide() -> list[list[Any]]:
            return changes(store, self._peers.standings(), addresses, request.change, list(request.regions), request.address)

        deltas = await worker.run(decide)
        if deltas:
            event(logging.INFO, "regions_changed", change=request.change, regions=",".join(request.regions))
            await worker.read(store.commit_control, deltas)  # may wait for the disk
        return await worker.run(partial(self._regions, addresses))

    # -- views ----------------------------------------------------------------------------------------------------

    def close_views(self) -> None:
        """The node stops."""
        self._views.close_all()

    @unary
    async def OpenView(self, request: Any, context: Context) -> Any:
        return await self._views.open(*self._serving(), from_vector(request.covers), request.wait_ms)

    @unary
    async def ReadParts(self, request: Any, context: Context) -> Any:
        return await self._views.parts(self._serving()[1], request)

    @unary
    async def ReadDigests(self, request: Any, context: Context) -> Any:
        return await self._views.digests(self._serving()[1], request)

    @unary
    async def ReadRecords(self, request: Any, context: Context) -> Any:
        return await self._views.records(self._serving()[1], request)

    @unary
    async def ReadFrames(self, request: Any, context: Context) -> Any:
        return await self._views.frames(self._serving()[1], request)

    @unary
    async def CloseView(self, request: Any, context: Context) -> Any:
        self._views.close(request.view)
        return admin_pb2.CloseViewReply()

    # -- repair ---------------------------------------------------------------------------------------------------

    @unary
    async def Adopt(self, request: Any, context: Context) -> Any:
        store, worker = self._serving()
        try:
            flat = _decode_rows(request.rows)
        except msgspec.DecodeError as e:
            raise InvalidValueError(f"rows: not a list of slots and records: {e}", field="rows") from e
        if len(flat) % 2 or len(flat) > 2 * SLOTS_MAX or None in flat[::2]:
            raise InvalidValueError(f"rows: must be up to {SLOTS_MAX} pairs of slot and record", field="rows")
        offered: dict[bytes, bytes | None] = dict(zip(flat[::2], flat[1::2], strict=True))  # type: ignore[arg-type]  # checked above
        done = await worker.read(adopt_records, store, offered, from_vector(request.vv), request.donor)
        worker.poke()
        event(logging.WARNING, "repaired", donor=request.donor, adopted=len(done.adopted), touched=len(done.touched))
        return admin_pb2.AdoptReply(adopted=done.adopted, touched=done.touched)

    @unary
    async def Settle(self, request: Any, context: Context) -> Any:
        store, worker = self._serving()
        done = await worker.read(settle, store, PACE)
        event(logging.WARNING, "settled", kept=done.kept, scanned=done.scanned, beside=done.beside)
        return admin_pb2.SettleReply(kept=done.kept, scanned=done.scanned, beside=done.beside)


def _peer(lag: PeerLag, row: PeerStatistics | None, own: Origin) -> Any:
    known = {name: value for name in _PEER_FIELDS if (value := getattr(lag, name)) is not None}
    if row is not None and lag.connected:
        known["acknowledged"] = _vector(row.vv)
        if row.durable_seq:
            known["acknowledged_durable"] = _vector(VersionVector({own: row.durable_seq}))
    return admin_pb2.PeerLag(**known)
