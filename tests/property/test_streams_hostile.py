"""The two ends of a stream against arbitrary peers: whatever comes, however cut, ends the call or is passed over; nothing else happens."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import grpc
from hypothesis import given
from hypothesis import strategies as st

from crdtkv.transport import http2
from crdtkv.transport.answering import Method, ServerStream
from crdtkv.transport.calling import ClientStream
from crdtkv.transport.listening import _is_single_call
from tests.streams import METHOD, Raw, back, encode, frame, message

MESSAGE_BYTES_MAX = 3000
DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
HELD_BYTES_MAX = http2._FRAME_BYTES_MAX + http2._HEADER_BYTES_MAX + MESSAGE_BYTES_MAX + (1 << 16)


class Transport(asyncio.Transport):
    """Takes what is written; closes as asyncio's does, in the next iteration of the loop."""

    def __init__(self, protocol: Callable[[], http2.Stream]) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol().connection_lost, None)

    abort = close


SETTING = st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, http2.SINGLE_CALL]), st.integers(0, 2**32 - 1)).map(lambda s: struct.pack(">HI", *s))
MESSAGES = st.lists(st.binary(max_size=40), max_size=3).map(lambda many: b"".join(map(message, many)))
BLOCKS = st.sampled_from(
    [
        encode([(b":path", METHOD.encode())]),
        encode([(b":path", b"/other")]),
        encode([(b":status", b"200")]),
        encode([(b"grpc-status", b"0")]),
        encode([(b"grpc-status", b"nonsense"), (b"grpc-message", b"%zz%ff"), (b"some-bin", b"***")]),
    ]
)
PAYLOADS = st.one_of(
    st.binary(max_size=80), SETTING, MESSAGES, BLOCKS, st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4, "big")), st.just(bytes(4000))
)
KINDS = st.one_of(st.sampled_from([DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION]), st.integers(0, 255))
FRAMES = st.builds(frame, KINDS, st.integers(0, 255), st.sampled_from([0, 1, 1, 1, 3, 2**32 - 1]), PAYLOADS)
LIKELY = st.one_of(
    FRAMES,
    st.builds(frame, st.just(DATA), st.sampled_from([0, 0, 0, 1, 8]), st.just(1), MESSAGES),
    st.builds(frame, st.just(HEADERS), st.sampled_from([4, 5, 0]), st.just(1), BLOCKS),
    st.binary(max_size=30),
)
SAID = st.lists(LIKELY, max_size=12).map(b"".join)
CUTS = st.lists(st.integers(1, 60), max_size=12)


def held(stream: http2.Stream) -> int:
    return len(stream._begun) + len(stream._message) + len(stream._block or b"") + len(stream._unsent)


async def feed(stream: http2.Stream, transport: Transport, said: bytes, cuts: list[int]) -> None:
    """Let it read, in pieces; then let the connection end, and see that the call is over."""
    at = 0
    for size in [*cuts, len(said)]:
        if transport.closing:
            break
        piece, at = said[at : at + size], at + size
        buffer = stream.get_buffer(-1)
        buffer[: len(piece)] = piece
        if piece:
            stream.buffer_updated(len(piece))
        assert held(stream) <= HELD_BYTES_MAX
        for _ in range(3):
            await asyncio.sleep(0)
    transport.close()
    for _ in range(6):
        await asyncio.sleep(0)
    assert stream.ended.done() and stream.gone.done()
    error = stream.ended.result()
    assert error is None or isinstance(error, grpc.aio.AioRpcError)


@given(SAID, CUTS, st.booleans())
def test_a_serving_end_against_any_caller(said: bytes, cuts: list[int], begins: bool) -> None:
    async def body() -> None:
        unhandled: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        stream = ServerStream({METHOD.encode(): Method(Raw, back)}, "127.0.0.1:1", MESSAGE_BYTES_MAX)
        transport = Transport(lambda: stream)
        stream.connection_made(transport)
        begin = frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 4, 1, encode([(b":path", METHOD.encode())])) if begins else b""
        await feed(stream, transport, begin + said, cuts)
        serving = stream._serving
        if serving is not None:
            await asyncio.wait({serving})
            assert serving.cancelled() or serving.exception() is None
        assert not unhandled

    asyncio.run(body())


@given(SAID, CUTS, st.booleans())
def test_a_calling_end_against_any_server(said: bytes, cuts: list[int], greets: bool) -> None:
    async def body() -> None:
        messages: list[bytes] = []
        stream = ClientStream("127.0.0.1:1", messages.append, lambda: None, MESSAGE_BYTES_MAX)
        transport = Transport(lambda: stream)
        stream.connection_made(transport)
        if greets:
            stream.take(frame(SETTINGS, 0, 0, b""))
            stream.begin(METHOD, "http")
            stream.send(bytes(100_000))
        await feed(stream, transport, said, cuts)
        assert all(len(message) <= MESSAGE_BYTES_MAX for message in messages)

    asyncio.run(body())


@given(st.binary(max_size=60), st.lists(SETTING, max_size=4), st.booleans())
def test_any_beginning_of_a_connection_is_judged(tail: bytes, settings: list[bytes], is_preface: bool) -> None:
    begun = (http2.PREFACE + frame(SETTINGS, 0, 0, b"".join(settings)) if is_preface else b"") + tail
    judged = _is_single_call(begun)
    assert judged in (True, False, None)
    if is_preface:
        assert judged is (struct.pack(">HI", http2.SINGLE_CALL, 1) in settings)
