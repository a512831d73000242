"""A bidirectional gRPC call on an HTTP/2 connection of its own, for the client end of a session and for the node that dials another.

The wire is gRPC's, and any gRPC server can be at the other end; only the path to it is shorter. grpc.aio moves each message
through a completion queue and a polling thread, which wakes the event loop through a socket, once for the write and once for
what is read. Here the loop reads and writes the socket itself: a message is written where `send` is called, and handed on
where it is read.

One connection carries one call, so what HTTP/2 has for many (priorities, pushes, dependencies) is not here. What is: flow control
both ways, keepalive, trailers with their errors, an orderly end, and TLS by the event loop. Header blocks, of which a call has one to
send and two to read, are the hpack library's. The h2 library, which has all of HTTP/2, takes 100 µs of a wave of 64 puts, as much as
grpc.aio; what is here takes 20.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio
import hpack

from crdtkv.errors import RegionUnavailableError
from crdtkv.transport import KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, MESSAGE_BYTES_MAX
from crdtkv.version import VERSION

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 2, 4, 5
_CANCEL: Final = 8
_STREAM: Final = 1
"""The number of the only stream."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME: Final = struct.Struct(">IBI")
"""24 bits of length, 8 of kind; flags; stream."""
_PREFIX: Final = struct.Struct(">BI")
"""Of a gRPC message: compressed or not; its length."""
_SETTING: Final = struct.Struct(">HI")

_WINDOW: Final = 8 << 20
"""Bytes that the peer may send before it is told that they came. Each is told of when half of it is used up: what is read is handed on at
once, so it bounds only what is on its way."""
_READ_BYTES: Final = 256 << 10
"""At most so many are read at once."""
_FRAME_BYTES_MAX: Final = 1 << 20
"""Of a frame that we read. The peer's own limit holds for those we write."""
_HEADER_BYTES_MAX: Final = 64 << 10
_DEFAULT_WINDOW: Final = 65_535
_DEFAULT_FRAME_BYTES: Final = 16_384
_WINDOW_MAX: Final = (1 << 31) - 1
_TICKS_TO_PING: Final = KEEPALIVE_MS // KEEPALIVE_TIMEOUT_MS
_CLOSE_S: Final = 1.0
"""How long a connection may take to end."""
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


class _ProtocolError(Exception):
    """What the peer sent is not what it says it speaks."""


class ClientStream(asyncio.BufferedProtocol):
    """The calling end. Only for the event loop it was opened in; `open_stream` makes them.

    Attributes:
        address: of the peer.
        ended: done when the call is over: with None if its status was OK or it was cancelled here, else with the error. It is never an
            exception, so nobody need look at it.
    """

    def __init__(self, address: str, receive: Callable[[bytes], None], writable: Callable[[], None], message_bytes_max: int) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.ended: asyncio.Future[grpc.aio.AioRpcError | None] = loop.create_future()
        self.greeted: asyncio.Future[None] = loop.create_future()
        """Done when the peer has shown that it speaks HTTP/2, or that it does not: `ended` says which."""
        self._loop = loop
        self._receive = receive
        self._writable = writable
        self._message_bytes_max = message_bytes_max
        self._transport: Any = None
        self._gone = loop.create_future()  # the connection is closed
        self._is_paused = False
        self._is_reading = True
        self._unsent = memoryview(b"")  # what is left of a message for which there was no room
        self._window = self._stream_window = self._initial_window = _DEFAULT_WINDOW
        self._frame_bytes = _DEFAULT_FRAME_BYTES
        self._incoming = memoryview(bytearray(_READ_BYTES))
        self._begun = b""  # a frame that has not come whole
        self._message = bytearray()  # a message that has not come whole
        self._untold = 0  # bytes read of which the peer was not told
        self._decoder = hpack.Decoder()
        self._block: bytearray | None = None  # a header block that has not come whole
        self._block_ends = False  # the stream ends with it
        self._http_status = b""
        self._heard = True
        self._silent_ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- what the owner does -------------------------------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        """All that was sent before is with the operating system, or nearly, and the call goes on."""
        return not self._unsent and not self._is_paused and not self.ended.done()

    def send(self, message: bytes) -> None:
        """Send a message. Only when `can_send`; if there is room for a part of it, the rest goes by itself."""
        size = len(message) + _PREFIX.size
        if size <= self._frame_bytes and size <= self._window and size <= self._stream_window:
            self._window -= size
            self._stream_window -= size
            self._transport.write(b"".join((_FRAME.pack(size << 8, 0, _STREAM), _PREFIX.pack(0, len(message)), message)))
        else:
            self._unsent = memoryview(_PREFIX.pack(0, len(message)) + message)
            self._send_on()

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`, so that the peer has to wait: its windows are not renewed."""
        if self._is_reading and not self._transport.is_closing():
            self._is_reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self._is_reading and not self._transport.is_closing():
            self._is_reading = True
            self._transport.resume_reading()

    def cancel(self) -> None:
        """End the call from here; idempotent."""
        self._end(None, _CANCEL)

    async def closed(self) -> None:
        """Wait until the connection is closed; `cancel` first."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self._transport.abort()

    # -- writing --------------------------------------------------------------------------------------------------------

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return _FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload

    def _send_on(self) -> None:
        """Send as much of the message under way as the peer has room for."""
        unsent = self._unsent
        parts: list[bytes] = []
        while unsent:
            size = min(len(unsent), self._frame_bytes, self._window, self._stream_window)
            if size <= 0:
                break
            parts += (_FRAME.pack(size << 8, 0, _STREAM), bytes(unsent[:size]))
            unsent = unsent[size:]
            self._window -= size
            self._stream_window -= size
        self._unsent = unsent
        if parts:
            self._transport.write(b"".join(parts))

    def _more_room(self) -> None:
        if self._unsent and not self._is_paused:
            self._send_on()
            if self.can_send:
                self._writable()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._unsent:
            self._more_room()
        elif self.can_send:
            self._writable()

    # -- the connection -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = b"".join(
            _SETTING.pack(*setting) for setting in ((_ENABLE_PUSH, 0), (_INITIAL_WINDOW_SIZE, _WINDOW), (_MAX_FRAME_SIZE, _FRAME_BYTES_MAX))
        )
        more = (_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")
        transport.write(_PREFACE + self._frame(_SETTINGS, 0, 0, settings) + self._frame(_WINDOW_UPDATE, 0, 0, more))
        self._timer = self._loop.call_later(KEEPALIVE_TIMEOUT_MS / 1000, self._tick)

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
        self._transport.write(self._frame(_HEADERS, _END_HEADERS, _STREAM, hpack.Encoder().encode(headers)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        self._end(_error(grpc.StatusCode.UNAVAILABLE, _reason(exc) if exc else "the connection was lost"))

    def _end(self, error: grpc.aio.AioRpcError | None, reset: int | None = None) -> None:
        if self.ended.done():
            return
        self.ended.set_result(error)
        if not self.greeted.done():
            self.greeted.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        self._unsent = memoryview(b"")
        if self._transport is None:
            return
        if self._is_paused:  # the peer does not read: it would never hear of it
            self._transport.abort()
        elif not self._transport.is_closing():
            if reset is not None:
                self._transport.write(self._frame(_RST_STREAM, 0, _STREAM, reset.to_bytes(4, "big")))
            self._transport.close()

    def _tick(self) -> None:
        """Every `KEEPALIVE_TIMEOUT_MS`: ping a peer that was silent for `KEEPALIVE_MS`, and leave one that does not answer.

        Silence is counted in ticks, so a process that was stopped for a while finds what came meanwhile before it counts enough of them.
        """
        self._silent_ticks = 0 if self._heard or not self._is_reading else self._silent_ticks + 1  # unheard is not silent
        self._heard = False
        if self._silent_ticks == _TICKS_TO_PING:
            self._transport.write(self._frame(_PING, 0, 0, b"crdtkv??"))
        elif self._silent_ticks > _TICKS_TO_PING:
            self._end(_error(grpc.StatusCode.UNAVAILABLE, f"no answer to a ping within {KEEPALIVE_TIMEOUT_MS} ms"))
            self._transport.abort()
            return
        self._timer = self._loop.call_later(KEEPALIVE_TIMEOUT_MS / 1000, self._tick)

    # -- reading --------------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        # One buffer for all: the loop's own way makes one of 256 KiB for each read, for which the C library asks the system every time.
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        data = bytes(self._incoming[:nbytes])
        if self._begun:
            data = self._begun + data
        at, end = 0, len(data)
        try:
            while end - at >= _FRAME.size:
                head, flags, stream = _FRAME.unpack_from(data, at)
                first = at + _FRAME.size
                last = first + (head >> 8)
                if last > end:
                    if head >> 8 > _FRAME_BYTES_MAX:
                        raise _ProtocolError(f"a frame of {head >> 8:,} bytes")
                    break
                self._take(head & 0xFF, flags, stream & 0x7FFFFFFF, data[first:last])
                at = last
                if self.ended.done():
                    return
        except (_ProtocolError, struct.error, IndexError) as e:
            why = str(e) if self.greeted.done() else "what listens there does not speak gRPC"
            self._end(_error(grpc.StatusCode.UNAVAILABLE, why))
            return
        self._begun = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(flags, stream, payload)
        elif not self.greeted.done() and kind != _SETTINGS:
            raise _ProtocolError("the first frame is not one of settings")
        elif kind == _WINDOW_UPDATE:
            room = int.from_bytes(payload, "big") & 0x7FFFFFFF
            if stream == 0:
                self._window += room
            elif stream == _STREAM:
                self._stream_window += room
            if max(self._window, self._stream_window) > _WINDOW_MAX:
                raise _ProtocolError("a window of flow control over 2^31-1 bytes")
            self._more_room()
        elif kind == _PING:
            if not flags & _ACK:
                self._transport.write(self._frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS:
            if not flags & _ACK:
                self._take_settings(payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_headers(kind, flags, payload)
        elif kind == _RST_STREAM:
            if stream == _STREAM:
                code = int.from_bytes(payload, "big")
                self._end(_error(_OF_RESET.get(code, grpc.StatusCode.INTERNAL), f"the stream was reset with code {code}"))
        elif kind == _GOAWAY:
            if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF < _STREAM:
                self._end(_error(grpc.StatusCode.UNAVAILABLE, "the peer is going away"))
        elif kind == _PUSH_PROMISE:
            raise _ProtocolError("a pushed stream, which our settings forbid")
        # Anything else (PRIORITY, and what may come to be) has nothing to say to us.

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        if stream != _STREAM:
            raise _ProtocolError(f"data of stream {stream}, which nobody opened")
        self._untold += len(payload)
        if self._untold >= _WINDOW // 2:
            room, self._untold = self._untold.to_bytes(4, "big"), 0
            self._transport.write(self._frame(_WINDOW_UPDATE, 0, 0, room) + self._frame(_WINDOW_UPDATE, 0, _STREAM, room))
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        message = self._message
        if not message and len(payload) >= _PREFIX.size:
            is_compressed, size = _PREFIX.unpack_from(payload)
            if len(payload) == size + _PREFIX.size and not is_compressed and size <= self._message_bytes_max:  # as most are
                self._receive(payload[_PREFIX.size :])
                payload = b""
        if payload:
            message += payload
            self._take_messages()
        if flags & _END_STREAM and not self.ended.done():
            self._end(_error(grpc.StatusCode.INTERNAL, "the stream ended without a status"))

    def _take_messages(self) -> None:
        message = self._message
        while len(message) >= _PREFIX.size and not self.ended.done():
            is_compressed, size = _PREFIX.unpack_from(message)
            if is_compressed:
                self._end(_error(grpc.StatusCode.INTERNAL, "a message came compressed, which was not offered"), _CANCEL)
                return
            if size > self._message_bytes_max:
                text = f"Received message larger than max ({size} vs. {self._message_bytes_max})"
                self._end(_error(grpc.StatusCode.RESOURCE_EXHAUSTED, text), _CANCEL)
                return
            last = _PREFIX.size + size
            if len(message) < last:
                return
            whole = bytes(memoryview(message)[_PREFIX.size : last])
            del message[:last]
            self._receive(whole)

    def _take_settings(self, payload: bytes) -> None:
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == _MAX_FRAME_SIZE:
                self._frame_bytes = max(_DEFAULT_FRAME_BYTES, value)
        self._transport.write(self._frame(_SETTINGS, _ACK, 0, b""))
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._more_room()

    def _take_headers(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS:
            if self._block is not None:
                raise _ProtocolError("a header block within another")
            self._block = bytearray()
            self._block_ends = bool(flags & _END_STREAM)
            if flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & _PRIORITY:
                payload = payload[5:]
        elif self._block is None:
            raise _ProtocolError("the continuation of a header block that was not begun")
        self._block += payload
        if len(self._block) > _HEADER_BYTES_MAX:
            raise _ProtocolError(f"a header block of more than {_HEADER_BYTES_MAX:,} bytes")
        if flags & _END_HEADERS:
            block, self._block = bytes(self._block), None
            try:
                headers = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
            except hpack.HPACKError as e:
                raise _ProtocolError("a header block that cannot be read") from e
            self._http_status = headers.get(b":status", self._http_status)
            if self._block_ends:
                self._end(_status(headers, self._http_status))


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


def _error(code: grpc.StatusCode, details: str, trailers: list[tuple[str, str | bytes]] | None = None) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*(trailers or ())), details)


def _status(headers: dict[bytes, bytes], http_status: bytes) -> grpc.aio.AioRpcError | None:
    """What the trailers of a call say; None: OK."""
    number = headers.get(b"grpc-status")
    if number is None:
        code = _OF_HTTP.get(http_status, grpc.StatusCode.UNKNOWN)
        return _error(code, f"an answer of HTTP status {http_status.decode('ascii', 'replace')} without one of gRPC")
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
    return _error(code, unquote(headers.get(b"grpc-message", b"").decode("latin-1")), trailers)


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
