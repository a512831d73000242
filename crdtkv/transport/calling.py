"""The calling end of a call that has a connection of its own (`http2`): connecting, beginning it, and what its end says."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio
import hpack

from crdtkv.errors import RegionUnavailableError
from crdtkv.transport import MESSAGE_BYTES_MAX
from crdtkv.transport.http2 import PREFACE, SINGLE_CALL, Headers, Stream, rpc_error
from crdtkv.version import VERSION

_CANCEL: Final = 8
_TLS_CLOSE_S: Final = 0.05
"""How long the peer's goodbye within TLS is waited for: gRPC's servers say none, and by then they know that the call is over."""

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_OF_HTTP: Final = {
    b"400": grpc.StatusCode.INTERNAL,
    b"401": grpc.StatusCode.UNAUTHENTICATED,
    b"403": grpc.StatusCode.PERMISSION_DENIED,
    b"404": grpc.StatusCode.UNIMPLEMENTED,
    b"429": grpc.StatusCode.UNAVAILABLE,
    b"502": grpc.StatusCode.UNAVAILABLE,
    b"503": grpc.StatusCode.UNAVAILABLE,
    b"504": grpc.StatusCode.UNAVAILABLE,
}
"""What an answer without a gRPC status means, by its HTTP status."""
_OF_RESET: Final = {
    7: grpc.StatusCode.UNAVAILABLE,  # REFUSED_STREAM
    8: grpc.StatusCode.CANCELLED,
    11: grpc.StatusCode.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    12: grpc.StatusCode.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}
"""By the code of a RST_STREAM; others are INTERNAL."""


class ClientStream(Stream):
    """The calling end; `open_stream` makes them.

    Attributes:
        address: of the peer.
    """

    def __init__(self, address: str, receive: Callable[[bytes], None], writable: Callable[[], None], message_bytes_max: int) -> None:
        super().__init__(receive, writable, message_bytes_max)
        self.address = address
        self.greeted: asyncio.Future[None] = self._loop.create_future()
        """Done when the peer has shown that it speaks HTTP/2, or that it does not: `ended` says which."""
        self._http_status = b""

    def connection_made(self, transport: Any) -> None:
        self._greet(transport, PREFACE, (SINGLE_CALL, 1))

    def begin(self, method: str, scheme: str) -> None:
        """Begin the call; once, after `greeted`."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":path", method.encode()),
            (b":authority", self.address.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", f"crdtkv/{VERSION}".encode()),
        ]
        self._send_headers(hpack.Encoder().encode(headers), ends=False)

    def cancel(self) -> None:
        """End the call from here; idempotent."""
        self._leave(None, _CANCEL)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._end(rpc_error(grpc.StatusCode.UNAVAILABLE, _reason(exc)))
        elif not self._greeted:  # as a port does that expects a TLS handshake
            text = "it closed the connection before it said anything; does one side use TLS and the other not?"
            self._end(rpc_error(grpc.StatusCode.UNAVAILABLE, text))
        super().connection_lost(exc)

    def _end(self, error: grpc.aio.AioRpcError | None) -> bool:
        if not self.greeted.done():
            self.greeted.set_result(None)
        return super()._end(error)

    def _hear_greeting(self) -> None:
        if not self.greeted.done():
            self.greeted.set_result(None)

    def _take_headers(self, stream: int, headers: Headers, ends: bool) -> None:
        self._http_status = headers.get(b":status", self._http_status)
        if ends:
            self._leave(_status(headers, self._http_status))

    def _take_end(self) -> None:
        self._leave(rpc_error(grpc.StatusCode.INTERNAL, "the stream ended without a status"))

    def _take_reset(self, code: int) -> None:
        self._leave(rpc_error(_OF_RESET.get(code, grpc.StatusCode.INTERNAL), f"the stream was reset with code {code}"))

    def _take_farewell(self, last: int) -> None:
        if last < 1:
            self._leave(rpc_error(grpc.StatusCode.UNAVAILABLE, "the peer is going away"))

    def _refuse(self, code: grpc.StatusCode, text: str) -> None:
        self._leave(rpc_error(code, text), _CANCEL)


async def open_stream(
    address: str,
    method: str,
    receive: Callable[[bytes], None],
    writable: Callable[[], None],
    *,
    tls: ssl.SSLContext | None = None,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> ClientStream:
    """Connect, and begin a call.

    The connection's settings say that it carries this call alone, so a node serves it by its own stream; whoever does not know the setting
    passes over it.

    Args:
        address: `host:port`.
        method: `/package.Service/Method`.
        receive: gets each message, as it is read, in the event loop; it raises nothing.
        writable: called when `can_send` has become true again.
        tls: whom to trust and who we are; None: plain text.

    Raises:
        RegionUnavailableError: nobody answers there, or not as a gRPC server; says why.
    """
    host, _, port = address.rpartition(":")
    stream = ClientStream(address, receive, writable, message_bytes_max)
    secure: dict[str, Any] = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": _TLS_CLOSE_S}
    try:
        await asyncio.get_running_loop().create_connection(lambda: stream, host.strip("[]"), int(port), **secure)
    except (OSError, UnicodeError) as e:  # the latter of a name that no resolver could be asked for
        raise RegionUnavailableError(_reason(e)) from e
    try:
        await asyncio.shield(stream.greeted)
    except BaseException:
        stream.cancel()
        raise
    if stream.ended.done():
        error = stream.ended.result()
        raise RegionUnavailableError(str(error.details() if error else "the connection was lost"))
    stream.begin(method, "http" if tls is None else "https")
    return stream


def _status(headers: Headers, http_status: bytes) -> grpc.aio.AioRpcError | None:
    """What the trailers of a call say; None: OK."""
    number = headers.get(b"grpc-status")
    if number is None:
        code = _OF_HTTP.get(http_status, grpc.StatusCode.UNKNOWN)
        return rpc_error(code, f"an answer of HTTP status {http_status.decode('ascii', 'replace')} without one of gRPC")
    if number == b"0":
        return None
    code = _CODES.get(int(number) if number.isdigit() else -1, grpc.StatusCode.UNKNOWN)
    trailers: list[tuple[str, str | bytes]] = []
    for name, value in headers.items():
        text = value.decode("latin-1")
        if name.endswith(b"-bin"):
            with contextlib.suppress(binascii.Error):
                trailers.append((name.decode("latin-1"), base64.b64decode(value + b"=" * (-len(value) % 4))))
        elif not name.startswith((b":", b"grpc-")):
            trailers.append((name.decode("latin-1"), text))
    return rpc_error(code, unquote(headers.get(b"grpc-message", b"").decode("latin-1")), trailers)


def _reason(error: Exception) -> str:
    """Why a connection did not come about, or broke, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "the TLS handshake failed; does one side use TLS and the other not?"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError):
        return "connection reset"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "name not found"
    if isinstance(error, TimeoutError):
        return "no answer within the time to connect"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error)  # of several addresses: "Multiple exceptions: …"
    return "connection refused" if f"[Errno {errno.ECONNREFUSED}]" in text else text
