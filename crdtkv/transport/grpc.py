"""Peer streams over gRPC: one bidirectional `Replication.Exchange` call is one stream, dialled or accepted.

A dialled stream has a connection of its own, which the event loop reads and writes itself (`http2`): a broken link is replaced whole,
and no back-off of gRPC's stands between ours and the network. Keepalive (`crdtkv.transport`) ends a link that died without a packet.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from crdtkv.errors import ConfigError, RegionUnavailableError
from crdtkv.pb.v1 import replication_pb2, replication_pb2_grpc
from crdtkv.transport import MESSAGE_BYTES_MAX
from crdtkv.transport.answering import Call
from crdtkv.transport.base import Accept, PeerStream
from crdtkv.transport.calling import ClientStream, open_stream
from crdtkv.transport.errors import plain_reason
from crdtkv.transport.messages import Messages, StreamEnded

EXCHANGE: Final = "/crdtkv.v1.Replication/Exchange"


def _pem(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{name}: {path}: {e.strerror or e}", setting=name) from e


def channel_credentials(ca: Path | None, cert: Path | None = None, key: Path | None = None) -> grpc.ChannelCredentials:
    """TLS towards a node: `ca` says whom to trust (None: the system's), `cert` and `key` who we are."""
    return grpc.ssl_channel_credentials(_pem("tls.ca", ca), _pem("tls.key", key), _pem("tls.cert", cert))


def client_context(ca: Path | None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """The same for a connection that the event loop makes (`crdtkv.transport.http2`)."""
    trusted = _pem("tls.ca", ca)
    try:
        context = ssl.create_default_context(cadata=None if trusted is None else trusted.decode("latin-1"))
    except (ssl.SSLError, ValueError) as e:
        raise _no_certificates(ca, e) from e
    if cert is not None and key is not None:
        _load_chain(context, cert, key)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as gRPC's: what a node's other clients trust is trusted here
    context.set_alpn_protocols(["h2"])
    return context


def server_context(cert: Path, key: Path, ca: Path | None = None) -> ssl.SSLContext:
    """TLS of a node; with `ca`, whoever connects needs a certificate that it signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load_chain(context, cert, key)
    if ca is not None:
        trusted = _pem("tls.ca", ca)
        assert trusted is not None
        try:
            context.load_verify_locations(cadata=trusted.decode("latin-1"))
        except (ssl.SSLError, ValueError) as e:
            raise _no_certificates(ca, e) from e
        context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    return context


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    _pem("tls.cert", cert), _pem("tls.key", key)
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # asks nobody
    except (ssl.SSLError, OSError) as e:
        text = f"tls.cert, tls.key: {cert}, {key}: not a certificate and its key in PEM form: {e}"
        raise ConfigError(text, setting="tls.cert") from e


def _no_certificates(ca: Path | None, error: Exception) -> ConfigError:
    return ConfigError(f"tls.ca: {ca}: no certificates in PEM form: {error}", setting="tls.ca")


def _why(error: aio.AioRpcError) -> str:
    details = plain_reason(error.details() or "")
    return f"{error.code().name.lower().replace('_', ' ')}{': ' + details if details else ''}"


class _Exchange:
    """What both ends of an Exchange have in common.

    Args:
        messages: of a connection that the event loop reads and writes itself; None: it is gRPC's.
    """

    def __init__(self, address: str, messages: Messages | None) -> None:
        self.address = address
        self._direct = messages
        self._is_closed = False

    def send_now(self, data: bytes) -> bool:
        messages = self._direct
        if messages is None or self._is_closed or not messages.can_send:
            return False
        messages.send_now(replication_pb2.PeerMessage(data=data).SerializeToString())
        return True

    def take(self) -> bytes | None:
        if self._direct is None or self._is_closed or (message := self._direct.take()) is None:
            return None
        return _data_of(message)

    def on_arrival(self, look: Callable[[], None]) -> None:
        if self._direct is not None:
            self._direct.changed = look


def _data_of(message: bytes) -> bytes:
    try:
        return replication_pb2.PeerMessage.FromString(message).data
    except DecodeError:
        return message  # no message of a peer either: whoever reads it says so


class DialledStream(_Exchange):
    """The calling end of an Exchange."""

    dialled = True

    def __init__(self, address: str) -> None:
        self._messages = Messages()
        super().__init__(address, self._messages)
        self._stream: ClientStream | None = None
        self._closing: asyncio.Task[None] | None = None

    async def open(self, tls: ssl.SSLContext | None, message_bytes_max: int) -> None:
        """Connect, and begin the call. Raises `RegionUnavailableError` that says why, without the address."""
        messages = self._messages
        stream = await open_stream(
            self.address, EXCHANGE, messages.arrived, messages.writable, tls=tls, message_bytes_max=message_bytes_max
        )
        self._stream = stream
        messages.begin(stream)

    async def send(self, data: bytes) -> None:
        try:
            await self._messages.send(replication_pb2.PeerMessage(data=data).SerializeToString())
        except StreamEnded as e:
            why = "the stream is closed" if e.error is None else _why(e.error)
            raise RegionUnavailableError(f"{self.address}: {why}", address=self.address) from None

    async def receive(self) -> bytes | None:
        try:
            message = None if self._is_closed else await self._messages.receive()
        except StreamEnded as e:
            if e.error is None:
                return None
            raise RegionUnavailableError(f"{self.address}: {_why(e.error)}", address=self.address) from None
        return None if message is None or self._is_closed else _data_of(message)

    def close(self) -> None:
        if self._closing is None and self._stream is not None:
            self._is_closed = True
            self._stream.cancel()
            self._closing = asyncio.get_running_loop().create_task(self._stream.closed())


class AcceptedStream(_Exchange):
    """The serving end of an Exchange; it ends when its handler returns."""

    dialled = False

    def __init__(self, context: aio.ServicerContext[Any, Any] | Call) -> None:
        super().__init__(str(context.peer()), context.messages if isinstance(context, Call) else None)
        self._context = context

    async def send(self, data: bytes) -> None:
        if self._is_closed:
            raise RegionUnavailableError(f"{self.address}: the stream is closed", address=self.address)
        try:
            await self._context.write(replication_pb2.PeerMessage(data=data))
        except (aio.AioRpcError, aio.UsageError, aio.InternalError, asyncio.InvalidStateError, aio.AbortError) as e:
            raise RegionUnavailableError(f"{self.address}: {e}", address=self.address) from e

    async def receive(self) -> bytes | None:
        if self._is_closed:
            return None
        try:
            message = await self._context.read()
        except (aio.AioRpcError, aio.UsageError, aio.InternalError, asyncio.InvalidStateError) as e:
            raise RegionUnavailableError(f"{self.address}: {e}", address=self.address) from e
        return None if message is aio.EOF else bytes(message.data)

    def close(self) -> None:
        self._is_closed = True


class GrpcTransport:
    """Dials Exchange streams.

    Args:
        tls: whom to trust and who we are; None: plain text.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._tls = tls
        self._message_bytes_max = message_bytes_max

    async def dial(self, address: str, *, timeout_s: float) -> PeerStream:
        stream = DialledStream(address)
        try:
            async with asyncio.timeout(timeout_s):
                await stream.open(self._tls, self._message_bytes_max)
        except TimeoutError as e:
            raise RegionUnavailableError(f"{address}: no connection within {timeout_s:g} s", address=address) from e
        except RegionUnavailableError as e:
            raise RegionUnavailableError(f"{address}: {e}", address=address) from e
        return stream

    async def close(self) -> None:
        return None


class ExchangeServicer(replication_pb2_grpc.ReplicationServicer):
    """Hands every accepted Exchange to `accept`; the call ends when that returns."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept

    async def Exchange(self, request_iterator: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]) -> None:
        stream = AcceptedStream(context)
        try:
            await self._accept(stream)
        finally:
            stream.close()
