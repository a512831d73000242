"""Peer streams over gRPC: one bidirectional `Replication.Exchange` call is one stream, dialled or accepted.

A dialled stream owns a channel of its own with its own connection: a broken link is replaced whole, and no back-off of
gRPC's stands between ours and the network. Keepalive (`crdtkv.transport`) ends a link that died without a packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from crdtkv.errors import ConfigError, RegionUnavailableError
from crdtkv.pb.v1 import replication_pb2, replication_pb2_grpc
from crdtkv.transport import MESSAGE_BYTES_MAX, channel_options
from crdtkv.transport.base import Accept, PeerStream
from crdtkv.transport.errors import plain_reason


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
        raise ConfigError(f"tls.ca: {ca}: no certificates in PEM form: {e}", setting="tls.ca") from e
    if cert is not None and key is not None:
        _pem("tls.cert", cert), _pem("tls.key", key)
        try:
            context.load_cert_chain(cert, key, password=lambda: b"")  # asks nobody
        except (ssl.SSLError, OSError) as e:
            raise ConfigError(
                f"tls.cert, tls.key: {cert}, {key}: not a certificate and its key in PEM form: {e}", setting="tls.cert"
            ) from e
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as gRPC's: what a node's other clients trust is trusted here
    context.set_alpn_protocols(["h2"])
    return context


def server_credentials(cert: Path, key: Path, ca: Path | None = None) -> grpc.ServerCredentials:
    """TLS of a node; with `ca`, whoever connects needs a certificate that it signed."""
    chain, private = _pem("tls.cert", cert), _pem("tls.key", key)
    assert chain is not None and private is not None
    return grpc.ssl_server_credentials([(private, chain)], _pem("tls.ca", ca), require_client_auth=ca is not None)


def _why(error: aio.AioRpcError) -> str:
    details = plain_reason(error.details() or "")
    return f"{error.code().name.lower().replace('_', ' ')}{': ' + details if details else ''}"


class DialledStream:
    """The calling end of an Exchange."""

    dialled = True

    def __init__(self, address: str, channel: aio.Channel) -> None:
        self.address = address
        self._channel = channel
        stub = replication_pb2_grpc.ReplicationStub(channel)
        self._call: Any = stub.Exchange()
        self._closing: asyncio.Task[None] | None = None

    async def send(self, data: bytes) -> None:
        try:
            await self._call.write(replication_pb2.PeerMessage(data=data))
        except (aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError) as e:
            why = _why(e) if isinstance(e, aio.AioRpcError) else "the stream is closed"
            raise RegionUnavailableError(f"{self.address}: {why}", address=self.address) from e
        except asyncio.CancelledError:
            # `write` also raises this when the call, not the task, was cancelled.
            if self._closing is None:
                raise
            raise RegionUnavailableError(f"{self.address}: the stream is closed", address=self.address) from None

    async def receive(self) -> bytes | None:
        try:
            message = await self._call.read()
        except aio.AioRpcError as e:
            raise RegionUnavailableError(f"{self.address}: {_why(e)}", address=self.address) from e
        except asyncio.CancelledError:
            if self._closing is None:
                raise
            return None
        return None if message is aio.EOF else bytes(message.data)

    def close(self) -> None:
        if self._closing is None:
            self._call.cancel()
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        await self._channel.close()


class AcceptedStream:
    """The serving end of an Exchange; it ends when its handler returns."""

    dialled = False

    def __init__(self, context: aio.ServicerContext[Any, Any]) -> None:
        self.address = str(context.peer())
        self._context = context
        self._ended = False

    async def send(self, data: bytes) -> None:
        if self._ended:
            raise RegionUnavailableError(f"{self.address}: the stream is closed", address=self.address)
        try:
            await self._context.write(replication_pb2.PeerMessage(data=data))
        except (aio.AioRpcError, aio.UsageError, aio.InternalError, asyncio.InvalidStateError, aio.AbortError) as e:
            raise RegionUnavailableError(f"{self.address}: {e}", address=self.address) from e

    async def receive(self) -> bytes | None:
        if self._ended:
            return None
        try:
            message = await self._context.read()
        except (aio.AioRpcError, aio.UsageError, aio.InternalError, asyncio.InvalidStateError) as e:
            raise RegionUnavailableError(f"{self.address}: {e}", address=self.address) from e
        return None if message is aio.EOF else bytes(message.data)

    def close(self) -> None:
        self._ended = True


async def _connected(address: str, channel: aio.Channel) -> None:
    """Wait for a connection. The first failed attempt fails the dial: when to try again is the caller's decision."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            raise RegionUnavailableError(f"{address}: connection refused or lost", address=address)
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


class GrpcTransport:
    """Dials Exchange streams."""

    def __init__(self, credentials: grpc.ChannelCredentials | None = None, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._credentials = credentials
        self._options = channel_options(message_bytes_max)

    async def dial(self, address: str, *, timeout_s: float) -> PeerStream:
        if self._credentials is None:
            channel = aio.insecure_channel(address, options=self._options)
        else:
            channel = aio.secure_channel(address, self._credentials, options=self._options)
        try:
            async with asyncio.timeout(timeout_s):
                await _connected(address, channel)
        except BaseException as e:
            with contextlib.suppress(Exception):
                await channel.close()
            if isinstance(e, TimeoutError):
                raise RegionUnavailableError(f"{address}: no connection within {timeout_s:g} s", address=address) from e
            raise
        return DialledStream(address, channel)

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
