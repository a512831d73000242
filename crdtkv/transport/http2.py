"""A bidirectional gRPC call on an HTTP/2 connection of its own: what both of its ends have in common.

The wire is gRPC's, and any gRPC peer can be at the other end; only the path to it is shorter. grpc.aio moves each message
through a completion queue and a polling thread, which wakes the event loop through a socket, once for the write and once for
what is read. Here the loop reads and writes the socket itself: a message is written where `send` is called, and handed on
where it is read. The calling end is `calling`, the serving one `answering`.

One connection carries one call, so what HTTP/2 has for many (priorities, pushes, dependencies) is not here. What is: flow control
both ways, keepalive, trailers with their errors, an orderly end, and TLS by the event loop. Header blocks, of which a call has one to
send and two to read, are the hpack library's. The h2 library, which has all of HTTP/2, takes 100 µs of a wave of 64 puts, as much as
grpc.aio; what is here takes 20.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import hpack

from crdtkv.transport import KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME: Final = struct.Struct(">IBI")
"""24 bits of length, 8 of kind; flags; stream."""
SETTING: Final = struct.Struct(">HI")
SETTINGS: Final = 4
"""The kind of the frame that comes first, from either side."""
SINGLE_CALL: Final = 0xFC01
"""A setting of our own, among the numbers that RFC 7540 (11.3) leaves for experiments and others pass over: whoever connects will make a
single call here. A node then serves it by a stream of this kind (`crdtkv.transport.listening`)."""

_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 5, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 2, 4, 5
STREAM: Final = 1
"""The number of the only stream."""
_PREFIX: Final = struct.Struct(">BI")
"""Of a gRPC message: compressed or not; its length."""

_WINDOW: Final = 8 << 20
"""Bytes that the peer may send before it is told that they came. It is told when half of them are used up, unless whoever gets them has
enough (`withhold`): so this bounds what is on its way, and what waits here."""
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

Headers = dict[bytes, bytes]

_of_thread = threading.local()


def read_buffer() -> memoryview:
    """What the running event loop's connections read into: one for all, as what was read is taken out before anything else is. The loop's
    own way makes one of 256 KiB for each read, for which the C library asks the system every time."""
    try:
        return _of_thread.buffer  # type: ignore[no-any-return]
    except AttributeError:
        _of_thread.buffer = memoryview(bytearray(_READ_BYTES))
        return _of_thread.buffer  # type: ignore[no-any-return]


def rpc_error(code: grpc.StatusCode, details: str, trailers: list[tuple[str, str | bytes]] | None = None) -> grpc.aio.AioRpcError:
    """What a call ended with."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*(trailers or ())), details)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


class ProtocolError(Exception):
    """What the peer sent is not what it says it speaks."""


class Stream(asyncio.BufferedProtocol):
    """One end of a call. Only for the event loop it was made in.

    Args:
        receive: gets each message, as it is read, in the event loop; it raises nothing.
        writable: called when `can_send` has become true again.
        message_bytes_max: a longer message ends the call.

    Attributes:
        ended: done when the call is over: with None if its status was OK or it was ended here, else with the error. It is never an
            exception, so nobody need look at it.
    """

    def __init__(self, receive: Callable[[bytes], None], writable: Callable[[], None], message_bytes_max: int) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[grpc.aio.AioRpcError | None] = loop.create_future()
        self._loop = loop
        self._receive = receive
        self._writable = writable
        self._message_bytes_max = message_bytes_max
        self._transport: Any = None
        self._socket = -1
        """What can be written to beside the transport, while that has nothing to be written; -1: nothing, as with TLS."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the connection is closed."""
        self._greeted = False  # the peer has shown that it speaks HTTP/2
        self._is_paused = False
        self._is_withholding = False
        self._unsent = memoryview(b"")  # what is left of a message for which there was no room
        self._window = self._stream_window = self._initial_window = _DEFAULT_WINDOW
        self._frame_bytes = _DEFAULT_FRAME_BYTES
        self._incoming = read_buffer()
        self._begun = b""  # a frame that has not come whole
        self._message = bytearray()  # a message that has not come whole
        self._untold = 0  # bytes read of which the peer was not told
        self._decoder = hpack.Decoder()
        self._block: bytearray | None = None  # a header block that has not come whole
        self._block_stream = 0
        self._block_ends = False  # the stream ends with it
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
            self._write_now(b"".join((FRAME.pack(size << 8, 0, STREAM), _PREFIX.pack(0, len(message)), message)))
        else:
            self._unsent = memoryview(_PREFIX.pack(0, len(message)) + message)
            self._send_on()

    def withhold(self) -> None:
        """Let the peer send no more than the rest of its window, until `grant`. What it has sent goes on to be read: news of our own window
        may be behind it."""
        self._is_withholding = True

    def grant(self) -> None:
        """Let the peer send on."""
        self._is_withholding = False
        self._tell_room()

    async def closed(self) -> None:
        """Wait until the connection is closed, which is to be soon."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.shield(self.gone)
        except TimeoutError:
            self._transport.abort()

    # -- what the two ends do differently -------------------------------------------------------------------------------

    @abstractmethod
    def _take_headers(self, stream: int, headers: Headers, ends: bool) -> None:
        """A header block has come whole; `ends`: the peer sends nothing after it on its stream."""

    @abstractmethod
    def _take_end(self) -> None:
        """The peer has sent the last of its messages, without trailers."""

    @abstractmethod
    def _take_reset(self, code: int) -> None:
        """The peer has ended the call."""

    @abstractmethod
    def _refuse(self, code: grpc.StatusCode, text: str) -> None:
        """End the call because of a message that cannot be taken."""

    def _hear_greeting(self) -> None:
        """The peer speaks HTTP/2."""

    # -- writing --------------------------------------------------------------------------------------------------------

    def _write_now(self, data: bytes) -> None:
        """Write to the socket here, as far as it takes it. The event loop's own way leaves that for the end of its iteration, and who is to
        read it sleeps meanwhile."""
        transport = self._transport
        if transport.is_closing():
            return  # the connection is lost, and the loop is about to say so
        if self._socket >= 0 and not transport.get_write_buffer_size():
            try:
                written = os.write(self._socket, data)
            except OSError:  # no room; or the connection broke, which the transport will find as well
                written = 0
            if written == len(data):
                return
            data = data[written:]
        transport.write(data)

    def _send_on(self) -> None:
        """Send as much of the message under way as the peer has room for."""
        unsent = self._unsent
        parts: list[bytes] = []
        while unsent:
            size = min(len(unsent), self._frame_bytes, self._window, self._stream_window)
            if size <= 0:
                break
            parts += (FRAME.pack(size << 8, 0, STREAM), bytes(unsent[:size]))
            unsent = unsent[size:]
            self._window -= size
            self._stream_window -= size
        self._unsent = unsent
        if parts:
            self._write_now(b"".join(parts))

    def _send_headers(self, block: bytes, ends: bool) -> None:
        flags = _END_STREAM if ends else 0
        first, rest = block[: self._frame_bytes], block[self._frame_bytes :]
        parts = [frame(_HEADERS, flags if rest else flags | _END_HEADERS, STREAM, first)]
        while rest:
            first, rest = rest[: self._frame_bytes], rest[self._frame_bytes :]
            parts.append(frame(_CONTINUATION, 0 if rest else _END_HEADERS, STREAM, first))
        self._transport.write(b"".join(parts))

    def _send_reset(self, stream: int, code: int) -> None:
        self._transport.write(frame(_RST_STREAM, 0, stream, code.to_bytes(4, "big")))

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

    def _greet(self, transport: Any, preface: bytes, *ours: tuple[int, int]) -> None:
        """Say what every connection begins with."""
        self._transport = transport
        end = transport.get_extra_info("socket") if transport.get_extra_info("ssl_object") is None else None
        if end is not None:  # what stands in for a transport has none
            self._socket = end.fileno()
        settings = ((_ENABLE_PUSH, 0), (_INITIAL_WINDOW_SIZE, _WINDOW), (_MAX_FRAME_SIZE, _FRAME_BYTES_MAX), *ours)
        packed = b"".join(SETTING.pack(*setting) for setting in settings)
        more = (_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")
        transport.write(preface + frame(SETTINGS, 0, 0, packed) + frame(_WINDOW_UPDATE, 0, 0, more))
        self._timer = self._loop.call_later(KEEPALIVE_TIMEOUT_MS / 1000, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket = -1
        if not self.gone.done():
            self.gone.set_result(None)
        self._end(rpc_error(grpc.StatusCode.UNAVAILABLE, "the connection was lost"))

    def _end(self, error: grpc.aio.AioRpcError | None) -> bool:
        """The call is over; the connection goes on to be closed, and nothing that comes is looked at. False: it was over."""
        if self.ended.done():
            return False
        self.ended.set_result(error)
        if self._timer is not None:
            self._timer.cancel()
        self._unsent = memoryview(b"")
        return True

    def _leave(self, error: grpc.aio.AioRpcError | None, reset: int | None = None) -> None:
        """End the call, and close the connection."""
        if not self._end(error) or self._transport is None:
            return
        if self._is_paused:  # the peer does not read: it would never hear of it
            self._transport.abort()
        elif not self._transport.is_closing():
            if reset is not None:
                self._send_reset(STREAM, reset)
            self._transport.close()

    def _tick(self) -> None:
        """Every `KEEPALIVE_TIMEOUT_MS`: ping a peer that was silent for `KEEPALIVE_MS`, and leave one that does not answer.

        Silence is counted in ticks, so a process that was stopped for a while finds what came meanwhile before it counts enough of them.
        """
        self._silent_ticks = 0 if self._heard else self._silent_ticks + 1
        self._heard = False
        if self._silent_ticks == _TICKS_TO_PING:
            self._transport.write(frame(_PING, 0, 0, b"crdtkv??"))
        elif self._silent_ticks > _TICKS_TO_PING:
            self._end(rpc_error(grpc.StatusCode.UNAVAILABLE, f"no answer to a ping within {KEEPALIVE_TIMEOUT_MS} ms"))
            self._transport.abort()
            return
        self._timer = self._loop.call_later(KEEPALIVE_TIMEOUT_MS / 1000, self._tick)

    # -- reading --------------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        self.take(bytes(self._incoming[:nbytes]))

    def take(self, data: bytes) -> None:
        """Read what has come."""
        if self.ended.done():
            return
        self._heard = True
        if self._begun:
            data = self._begun + data
        at, end = 0, len(data)
        try:
            while end - at >= FRAME.size:
                head, flags, stream = FRAME.unpack_from(data, at)
                first = at + FRAME.size
                last = first + (head >> 8)
                if last > end:
                    if head >> 8 > _FRAME_BYTES_MAX:
                        raise ProtocolError(f"a frame of {head >> 8:,} bytes")
                    break
                self._take(head & 0xFF, flags, stream & 0x7FFFFFFF, data[first:last])
                at = last
                if self.ended.done():
                    return
        except (ProtocolError, struct.error, IndexError) as e:
            why = str(e) if self._greeted else "what listens there does not speak gRPC"
            self._leave(rpc_error(grpc.StatusCode.UNAVAILABLE, why))
            return
        self._begun = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(flags, stream, payload)
        elif not self._greeted and kind != SETTINGS:
            raise ProtocolError("the first frame is not one of settings")
        elif kind == _WINDOW_UPDATE:
            room = int.from_bytes(payload, "big") & 0x7FFFFFFF
            if stream == 0:
                self._window += room
            elif stream == STREAM:
                self._stream_window += room
            if max(self._window, self._stream_window) > _WINDOW_MAX:
                raise ProtocolError("a window of flow control over 2^31-1 bytes")
            self._more_room()
        elif kind == _PING:
            if not flags & _ACK:
                self._transport.write(frame(_PING, _ACK, 0, payload))
        elif kind == SETTINGS:
            if not flags & _ACK:
                self._take_settings(payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_block(kind, flags, stream, payload)
        elif kind == _RST_STREAM:
            if stream == STREAM:
                self._take_reset(int.from_bytes(payload, "big"))
        elif kind == _GOAWAY:
            self._take_farewell(int.from_bytes(payload[:4], "big") & 0x7FFFFFFF)
        elif kind == _PUSH_PROMISE:
            raise ProtocolError("a pushed stream, which our settings forbid")
        # Anything else (PRIORITY, and what may come to be) has nothing to say to us.

    def _take_farewell(self, last: int) -> None:
        """The peer begins no more calls, and will finish those up to `last`."""

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        if stream != STREAM:
            raise ProtocolError(f"data of stream {stream}, which nobody opened")
        self._untold += len(payload)
        if self._untold >= _WINDOW // 2:
            if self._untold > _WINDOW:
                raise ProtocolError("more data than was granted")
            self._tell_room()
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
            self._take_end()

    def _tell_room(self) -> None:
        if self._untold >= _WINDOW // 2 and not self._is_withholding and not self.ended.done():
            room, self._untold = self._untold.to_bytes(4, "big"), 0
            self._transport.write(frame(_WINDOW_UPDATE, 0, 0, room) + frame(_WINDOW_UPDATE, 0, STREAM, room))

    def _take_messages(self) -> None:
        message = self._message
        while len(message) >= _PREFIX.size and not self.ended.done():
            is_compressed, size = _PREFIX.unpack_from(message)
            if is_compressed:
                self._refuse(grpc.StatusCode.INTERNAL, "a message came compressed, which was not offered")
                return
            if size > self._message_bytes_max:
                text = f"Received message larger than max ({size} vs. {self._message_bytes_max})"
                self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
                return
            last = _PREFIX.size + size
            if len(message) < last:
                return
            whole = bytes(memoryview(message)[_PREFIX.size : last])
            del message[:last]
            self._receive(whole)

    def _take_settings(self, payload: bytes) -> None:
        for name, value in SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == _MAX_FRAME_SIZE:
                self._frame_bytes = max(_DEFAULT_FRAME_BYTES, value)
        self._transport.write(frame(SETTINGS, _ACK, 0, b""))
        if not self._greeted:
            self._greeted = True
            self._hear_greeting()
        self._more_room()

    def _take_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS:
            if self._block is not None:
                raise ProtocolError("a header block within another")
            self._block = bytearray()
            self._block_stream = stream
            self._block_ends = bool(flags & _END_STREAM)
            if flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & _PRIORITY:
                payload = payload[5:]
        elif self._block is None:
            raise ProtocolError("the continuation of a header block that was not begun")
        self._block += payload
        if len(self._block) > _HEADER_BYTES_MAX:
            raise ProtocolError(f"a header block of more than {_HEADER_BYTES_MAX:,} bytes")
        if flags & _END_HEADERS:
            block, self._block = bytes(self._block), None
            try:
                headers = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
            except hpack.HPACKError as e:
                raise ProtocolError("a header block that cannot be read") from e
            self._take_headers(self._block_stream, headers, self._block_ends)
