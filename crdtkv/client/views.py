"""Views of a node's state over gRPC, and the sides of an audit that they make; see `crdtkv.store.view` and `crdtkv.audit`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import msgspec

from crdtkv.audit.salvaging import Fetch
from crdtkv.audit.sides import WAIT_S
from crdtkv.client.endpoints import check_endpoints, credentials
from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.control import NOTHING_AGREED, Agreed
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, CrdtkvError
from crdtkv.pb.v1 import admin_pb2, admin_pb2_grpc
from crdtkv.store.mending import Adopted, Settled
from crdtkv.store.view import PAGE_BYTES, FramePage, Moment, Page, Part, frames
from crdtkv.transport import channel_options
from crdtkv.transport.errors import rpc_errors

READ_S: Final = 120.0
"""How long one step of reading a view may take."""
SETTLE_S: Final = 3600.0
"""How long a recount of the whole state may take."""
_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(list[bytes]).decode


class NodeSide:
    """One node, as an audit, a backup or an operator asks it. A context manager.

    Args:
        endpoint: `host:port`.
        connect_s: how long the node may take to answer at all.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        connect_s: float = 5.0,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        (self.endpoint,) = check_endpoints([endpoint])
        secure = credentials(tls_ca, tls_cert, tls_key)
        options = channel_options()
        self._channel = (
            grpc.insecure_channel(endpoint, options) if secure is None else grpc.secure_channel(endpoint, secure.channel, options)
        )
        self._stub: Any = admin_pb2_grpc.AdminStub(self._channel)
        try:
            status = self._call(self._stub.Status, admin_pb2.StatusRequest(), connect_s)
        except BaseException:
            self.close()
            raise
        self.name: str = status.region
        self.origin = Origin(status.origin)

    def view(self, covers: VersionVector = EMPTY_VV, wait_s: float = WAIT_S) -> NodeView:
        """See `Side.view`."""
        request = admin_pb2.OpenViewRequest(covers=_vector(covers), wait_ms=round(wait_s * 1000))
        return NodeView(self, self._call(self._stub.OpenView, request, wait_s + READ_S))

    def adopt(self, offered: Mapping[bytes, bytes | None], vv: VersionVector, donor: str) -> Adopted:
        """See `MendableSide.adopt`."""
        rows = _encode([part for pair in offered.items() for part in pair])
        reply = self._call(self._stub.Adopt, admin_pb2.AdoptRequest(donor=donor, vv=_vector(vv), rows=rows))
        return Adopted(tuple(reply.adopted), tuple(reply.touched))

    def settle(self) -> Settled:
        """See `MendableSide.settle`."""
        reply = self._call(self._stub.Settle, admin_pb2.SettleRequest(), SETTLE_S)
        return Settled(reply.kept, reply.scanned, reply.beside)

    def merge_state(self, chunks: Iterable[tuple[bytes, bytes]]) -> tuple[int, int]:
        """Join a state, sent in chunks with their links, into the node's replica: how many commits were new, and slots changed.

        What iterating raises ends it, and is raised; nothing changes there then.
        """
        failed: list[Exception] = []

        def requests() -> Iterator[Any]:
            try:
                for data, link in chunks:
                    yield admin_pb2.StateChunk(data=data, link=link)
            except Exception as e:
                failed.append(e)  # gRPC would print it
            else:
                yield admin_pb2.StateChunk(end=True)

        try:
            reply = self._call(self._stub.MergeState, requests(), SETTLE_S)
        except CrdtkvError:
            if failed:
                raise failed[0] from None
            raise
        return reply.applied, reply.changed

    def regions(self) -> Any:
        """The members of the cluster as the node knows them: `admin_pb2.RegionsReply`."""
        return self._call(self._stub.Regions, admin_pb2.RegionsRequest())

    def change_regions(self, change: str, regions: Sequence[str], address: str = "") -> Any:
        """`add`, `drain`, `remove` or `force` regions; what is known of all after it."""
        return self._call(self._stub.ChangeRegions, admin_pb2.ChangeRegionsRequest(change=change, regions=regions, address=address))

    def _call(self, method: Callable[..., Any], request: Any, timeout_s: float = READ_S) -> Any:
        with rpc_errors(where=self.endpoint, within_s=timeout_s):
            return method(request, timeout=timeout_s)

    def close(self) -> None:
        """Idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def fetch_frames(side: NodeSide) -> Iterator[Fetch]:
    """What `repair_log` asks a peer, from one view that is held as long as this lasts."""
    view = side.view()

    def fetch(after: VersionVector) -> tuple[VersionVector, Iterator[Frame]] | None:
        found = frames(view, after)
        return None if found is None else (view.moment.vv, found)

    try:
        yield fetch
    finally:
        view.close()


class NodeView:
    """The `View` of a node's state."""

    def __init__(self, side: NodeSide, reply: Any) -> None:
        self._call = side._call
        self._stub = side._stub
        self._number: int | None = reply.view
        vv = _from_vector(reply.vv)
        if len(reply.hashes) != len(vv):
            raise CorruptionError(f"{side.endpoint}: a view with {len(reply.hashes)} hashes for {len(vv)} origins")
        self.moment = Moment(
            Origin(reply.origin),
            reply.cluster,
            reply.shard,
            vv,
            dict(zip(vv, reply.hashes, strict=True)),
            int(reply.digest, 16),
            reply.hlc,
            reply.position,
            _from_vector(reply.floor),
            Agreed.from_wire(msgspec.msgpack.decode(reply.control)) if reply.control else NOTHING_AGREED,
        )

    def parts(self, start: bytes, end: bytes, size: int) -> list[Part]:
        request = admin_pb2.PartsRequest(view=self._number, start=start, end=end, size=size)
        return _parts(self._call(self._stub.ReadParts, request))

    def digests(self, start: bytes, ends: Sequence[bytes]) -> list[Part]:
        return _parts(self._call(self._stub.ReadDigests, admin_pb2.DigestsRequest(view=self._number, start=start, ends=ends)))

    def page(self, start: bytes, end: bytes, bytes_max: int = PAGE_BYTES) -> Page:
        request = admin_pb2.RecordsRequest(view=self._number, start=start, end=end, bytes_max=bytes_max)
        reply = self._call(self._stub.ReadRecords, request)
        return _decode_rows(reply.rows), reply.next if reply.HasField("next") else None

    def frame_page(self, after: VersionVector, position: int = 0) -> FramePage | None:
        request = admin_pb2.FramesRequest(view=self._number, after=_vector(after), position=position)
        reply = self._call(self._stub.ReadFrames, request)
        return (list(reply.frames), reply.next if reply.HasField("next") else None) if reply.available else None

    def close(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            with contextlib.suppress(CrdtkvError, ValueError):  # the node is gone, or the channel: so is the view, soon
                self._call(self._stub.CloseView, admin_pb2.CloseViewRequest(view=number), 5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _parts(reply: Any) -> list[Part]:
    return [Part(part.end, part.slots, int.from_bytes(part.digest, "big")) for part in reply.parts]


def _vector(vv: VersionVector) -> Any:
    return admin_pb2.VersionVector(entries=[admin_pb2.OriginSeq(origin=origin, seq=seq) for origin, seq in vv.items()])


def _from_vector(message: Any) -> VersionVector:
    return VersionVector({Origin(entry.origin): entry.seq for entry in message.entries})
