"""The calling end of a stream: against both servers that it meets, and peers that answer byte by byte, oddly, wrongly, or not at all."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from crdtkv.errors import ConfigError, CrdtkvError, OverloadedError, RegionUnavailableError
from crdtkv.transport import calling, channel_options, http2, server_options
from crdtkv.transport.answering import Method
from crdtkv.transport.calling import ClientStream, open_stream
from crdtkv.transport.errors import from_rpc_error, status_code, trailing_metadata
from crdtkv.transport.grpc import client_context, server_context
from crdtkv.transport.listening import Listener
from tests.certificates import CERTIFICATE, KEY
from tests.streams import METHOD, Raw, back, both_loops, encode, frame, message, run


class Caller:
    """Collects what comes."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.stream: ClientStream

    async def open(self, address: str, method: str = METHOD, **options: Any) -> ClientStream:
        self._room = asyncio.Event()
        self.stream = await open_stream(address, method, self.messages.put_nowait, self._room.set, **options)
        return self.stream

    async def send(self, message: bytes) -> None:
        while not self.stream.can_send:
            self._room.clear()
            await self._room.wait()
        self.stream.send(message)

    async def error(self) -> CrdtkvError | None:
        error = await self.stream.ended
        await self.stream.closed()
        return None if error is None else from_rpc_error(error)


# -- against servers ----------------------------------------------------------------------------------------------------


Handle = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def grpc_server(handler: Handle, tls: tuple[Path, Path, Path | None] | None = None) -> AsyncIterator[str]:
    """A gRPC server; its address."""

    class Context:
        def __init__(self, context: Any) -> None:
            self.context = context
            self.abort = context.abort

        async def read(self) -> Any:
            data = await self.context.read()
            return data if data is aio.EOF else Raw(data)

        async def write(self, message: Raw) -> None:
            await self.context.write(message.data)

    async def serve(_: Any, context: Any) -> None:
        await handler(Context(context))

    server = aio.server(options=server_options())
    methods: dict[str, Any] = {"Echo": grpc.stream_stream_rpc_method_handler(serve)}  # type: ignore[arg-type]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        cert, key, ca = tls
        trusted = None if ca is None else ca.read_bytes()
        chain = [(key.read_bytes(), cert.read_bytes())]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(chain, trusted, require_client_auth=ca is not None))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def listener(handler: Handle, tls: tuple[Path, Path, Path | None] | None = None) -> AsyncIterator[str]:
    """A port of a node, and no gRPC behind it; its address."""
    listening = Listener({METHOD.encode(): Method(Raw, handler)}, "/nowhere", tls=None if tls is None else server_context(*tls))
    port = listening.open("127.0.0.1", 0)
    await listening.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await listening.close()
        assert not listening.streams


both_servers = pytest.mark.parametrize("server", [grpc_server, listener])
Server = Callable[..., Any]


@both_servers
@both_loops
def test_messages_of_all_sizes_come_back_in_order(server: Server, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The large ones exceed a frame, the first window of the peer, and ours."""

    async def body() -> None:
        async with server(back) as address:
            caller = Caller()
            await caller.open(address)
            sizes = [0, 1, 4, 5, 16_379, 16_380, 65_535, 100, 3 << 20, 20 << 20, 7]
            messages = [bytes([size % 251]) * size for size in sizes]
            reading = asyncio.gather(*(caller.messages.get() for _ in messages))
            for message in messages:
                await caller.send(message)
            assert await reading == messages
            caller.stream.cancel()
            assert await caller.error() is None

    run(body(), loop_factory)


@both_servers
def test_a_peer_that_does_not_read_is_waited_for(server: Server) -> None:
    async def body() -> None:
        go_on = asyncio.Event()

        async def slow(context: Any) -> None:
            await go_on.wait()
            await back(context)

        async with server(slow) as address:
            caller = Caller()
            stream = await caller.open(address)
            sent = 0
            while stream.can_send:
                stream.send(bytes(1 << 20))
                sent += 1
                await asyncio.sleep(0)
                assert sent < 1000
            go_on.set()
            await caller.send(b"last")
            for _ in range(sent):
                assert len(await caller.messages.get()) == 1 << 20
            assert await caller.messages.get() == b"last"
            stream.cancel()

    run(body())


@both_loops
def test_a_message_of_which_the_socket_takes_a_part_comes_whole(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What the socket did not take where it was sent goes on by the event loop, before anything that is sent after it."""

    async def body() -> None:
        async with listener(back) as address:
            caller = Caller()
            stream = await caller.open(address)
            while stream._frame_bytes < 1 << 20:  # until the other end has said how large a frame may be
                await asyncio.sleep(0)
            stream._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            messages = [bytes([n]) * 300_000 for n in range(6)]
            for message in messages:
                while not stream.can_send:
                    await asyncio.sleep(0)
                stream.send(message)
                stream.send(b"short")
            got = [await caller.messages.get() for _ in range(2 * len(messages))]
            assert got[::2] == messages
            assert set(got[1::2]) == {b"short"}
            stream.cancel()

    run(body(), loop_factory)


@both_loops
def test_what_is_sent_before_a_lost_connection_is_noticed_goes_nowhere(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """It was written to the transport all the same, and asyncio printed "socket.send() raised exception." for each message."""

    async def body() -> None:
        async with listener(back) as address:
            caller = Caller()
            stream = await caller.open(address)
            stream._transport.abort()
            for _ in range(10):
                assert stream.can_send
                stream.send(b"lost")
            assert await stream.ended is not None

    run(body(), loop_factory)
    assert not caplog.records


@both_servers
def test_an_error_comes_with_its_facts(server: Server) -> None:
    async def refuse(context: Any) -> None:
        await context.read()
        await context.write(Raw(b"first"))
        error = OverloadedError("zu voll: 50 % — später", retry_after_ms=7)
        await context.abort(status_code(error), str(error), trailing_metadata(error))

    async def body() -> None:
        async with server(refuse) as address:
            caller = Caller()
            (await caller.open(address)).send(b"")
            error = await caller.error()
            assert isinstance(error, OverloadedError) and error.details == {"retry_after_ms": 7}
            assert error.message == "zu voll: 50 % — später"
            assert caller.messages.get_nowait() == b"first"
            assert not caller.stream.can_send

    run(body())


@both_servers
def test_a_status_alone_and_a_normal_end(server: Server) -> None:
    async def body() -> None:
        async def plain(context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "äh 100%")

        async def nothing(context: Any) -> None:
            return

        async with server(plain) as address:
            caller = Caller()
            await caller.open(address)
            error = await caller.error()
            assert isinstance(error, RegionUnavailableError) and error.message == "äh 100%"
            await caller.open(address, "/test.Echo/Other")
            error = await caller.error()
            assert error is not None and error.code == "IncompatibleFormatError"
        async with server(nothing) as address:
            caller = Caller()
            await caller.open(address)
            assert await caller.error() is None

    run(body())


@both_servers
def test_a_cancelled_call_ends_at_the_server(server: Server) -> None:
    async def body() -> None:
        ended = asyncio.Event()

        async def wait(context: Any) -> None:
            await context.write(Raw(b"on"))
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with server(wait) as address:
            caller = Caller()
            stream = await caller.open(address)
            assert await caller.messages.get() == b"on"
            stream.cancel()
            stream.cancel()
            assert await caller.error() is None
            await ended.wait()

    run(body())


@both_servers
def test_a_message_over_the_limit_is_refused(server: Server) -> None:
    async def body() -> None:
        async with server(back) as address:
            caller = Caller()
            await caller.open(address, message_bytes_max=1000)
            await caller.send(bytes(1000))
            assert len(await caller.messages.get()) == 1000
            await caller.send(bytes(100_000))
            error = await caller.error()
            assert error is not None and error.code == "ValueTooLargeError"

    run(body())


@both_servers
@both_loops
def test_tls(server: Server, tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(CERTIFICATE)
    key.write_text(KEY)

    async def body() -> None:
        async with server(back, (cert, key, None)) as address:
            caller = Caller()
            stream = await caller.open(address, tls=client_context(cert))
            await caller.send(b"x" * 3_000_000)
            assert await caller.messages.get() == b"x" * 3_000_000
            stream.cancel()
            await stream.closed()
            with pytest.raises(RegionUnavailableError, match="its certificate is not trusted"):
                await caller.open(address, tls=client_context(None))
            with pytest.raises(RegionUnavailableError, match=r"does one side use TLS and the other not|connection reset"):
                await caller.open(address)
        async with server(back) as address:
            with pytest.raises(RegionUnavailableError, match=r"TLS handshake failed|connection reset"):
                await caller.open(address, tls=client_context(cert))
        async with server(back, (cert, key, cert)) as address:
            stream = await caller.open(address, tls=client_context(cert, cert, key))
            await caller.send(b"known")
            assert await caller.messages.get() == b"known"
            stream.cancel()
            await stream.closed()
            with pytest.raises(RegionUnavailableError):
                await caller.open(address, tls=client_context(cert))

    run(body(), loop_factory)


def test_files_of_tls_that_are_none(tmp_path: Path) -> None:
    cert, other = tmp_path / "cert.pem", tmp_path / "other.pem"
    cert.write_text(CERTIFICATE)
    other.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"tls\.ca: .*other\.pem"):
        client_context(other)
    with pytest.raises(ConfigError, match=r"tls\.key: .*missing"):
        client_context(cert, cert, tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"tls\.cert, tls\.key"):
        client_context(cert, cert, other)
    with pytest.raises(ConfigError, match=r"tls\.ca: .*other\.pem"):
        server_context(cert, tmp_path / "key", other) if (tmp_path / "key").write_text(KEY) else None
    with pytest.raises(ConfigError, match=r"tls\.cert, tls\.key"):
        server_context(cert, other)


# -- against peers that are none ----------------------------------------------------------------------------------------


def has_begun(heard: bytes) -> bool:
    """A header block has come."""
    at = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    while len(heard) >= at + 9:
        if heard[at + 3] == 1:
            return True
        at += 9 + int.from_bytes(heard[at : at + 3], "big")
    return False


SETTINGS = frame(4, 0, 0)
ANSWER = frame(1, 4, 1, encode([(b":status", b"200"), (b"content-type", b"application/grpc")]))
OK = encode([(b"grpc-status", b"0")])
END = frame(1, 5, 1, OK)


@asynccontextmanager
async def scripted(
    greeting: bytes, said: bytes = b"", *, slowly: bool = False, closes: bool = False
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A peer that greets, and says its part when the call begins; its address, and what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(greeting)
            while said and not has_begun(b"".join(heard)) and (data := await reader.read(65_536)):
                heard.append(data)
            for part in [said[at : at + 1] for at in range(len(said))] if slowly else [said]:
                writer.write(part)
                await writer.drain()
                if slowly:
                    await asyncio.sleep(0)
            while not closes and (data := await reader.read(65_536)):
                heard.append(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


def test_frames_in_pieces_padded_continued_and_unknown() -> None:
    trailers = encode([(b"grpc-status", b"14"), (b"grpc-message", b"a%20b"), (b"x" * 100, b"y" * 200)])
    said = b"".join(
        (
            frame(8, 0, 0, (5).to_bytes(4, "big")),
            ANSWER,
            frame(0xEE, 0xFF, 7, b"of a later standard"),
            frame(2, 0, 1, b"\0\0\0\0\1"),
            frame(0, 0, 1, message(b"one") + message(b"two") + message(b"three")[:3]),
            frame(0, 0, 1),
            frame(6, 0, 0, b"pingpong"),
            frame(0, 0x8, 1, b"\x04" + message(b"three")[3:] + message(b"")[:2] + bytes(4)),
            frame(0, 0, 1, message(b"")[2:]),
            frame(7, 0, 0, struct.pack(">II", 2**31 - 1, 0)),
            frame(1, 0x29, 1, b"\x02" + b"\0\0\0\0\1" + trailers[:7] + bytes(2)),
            frame(9, 0, 1, trailers[7:50]),
            frame(9, 4, 1, trailers[50:]),
        )
    )

    async def body() -> None:
        for slowly in (False, True):
            async with scripted(SETTINGS, said, slowly=slowly) as (address, heard):
                caller = Caller()
                await caller.open(address)
                error = await caller.error()
                assert isinstance(error, RegionUnavailableError) and error.message == "a b"
                got = [caller.messages.get_nowait() for _ in range(caller.messages.qsize())]
                assert got == [b"one", b"two", b"three", b""]
                while frame(6, 1, 0, b"pingpong") not in b"".join(heard):
                    await asyncio.sleep(0.001)

    run(body())


@pytest.mark.parametrize(
    ("said", "code", "why"),
    [
        (frame(3, 0, 1, (7).to_bytes(4, "big")), "RegionUnavailableError", "reset with code 7"),
        (frame(3, 0, 1, (11).to_bytes(4, "big")), "OverloadedError", "reset with code 11"),
        (frame(7, 0, 0, bytes(8)), "RegionUnavailableError", "going away"),
        (ANSWER + frame(0, 1, 1), "RegionUnavailableError", "without a status"),
        (ANSWER + frame(0, 0, 1, message(b"x", 1)), "RegionUnavailableError", "compressed"),
        (ANSWER + frame(0, 0, 3, b"x"), "RegionUnavailableError", "data of stream 3"),
        (frame(1, 5, 1, encode([(b":status", b"403")])), "PermissionDeniedError", "HTTP status 403"),
        (frame(1, 5, 1, encode([(b":status", b"200"), (b"grpc-status", b"what")])), "RegionUnavailableError", ""),
        (frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff"), "RegionUnavailableError", "header"),
        (frame(9, 4, 1, OK), "RegionUnavailableError", "not begun"),
        (frame(1, 0, 1, OK) * 2, "RegionUnavailableError", "within another"),
        (frame(1, 0, 1) + frame(9, 0, 1, bytes(40_000)) * 2, "RegionUnavailableError", "header block of more"),
        (frame(5, 4, 1, bytes(4) + OK), "RegionUnavailableError", "pushed"),
        (frame(8, 0, 1, (2**31 - 1).to_bytes(4, "big")), "RegionUnavailableError", "window"),
        (frame(4, 0, 0, b"odd"), "RegionUnavailableError", ""),
        (b"\xff\xff\xff\0\0\0\0\0\1", "RegionUnavailableError", "a frame of"),
    ],
)
def test_what_a_peer_says_wrongly_ends_the_call_with_a_reason(said: bytes, code: str, why: str) -> None:
    async def body() -> None:
        async with scripted(SETTINGS, said) as (address, _):
            caller = Caller()
            await caller.open(address)
            error = await caller.error()
            assert error is not None and why in error.message and error.code == code

    run(body())


def test_a_connection_that_breaks() -> None:
    async def body() -> None:
        async with scripted(SETTINGS, ANSWER + frame(0, 0, 1, b"\0\0\0\0\x09half"), closes=True) as (address, _):
            caller = Caller()
            await caller.open(address)
            assert isinstance(await caller.error(), RegionUnavailableError)
            assert caller.messages.empty()

    run(body())


def test_who_listens_there_may_speak_something_else_or_nothing() -> None:
    async def body() -> None:
        caller = Caller()
        for said in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail.example ESMTP ready\r\n", frame(6, 0, 0, bytes(8))):
            async with scripted(said) as (address, _):
                with pytest.raises(RegionUnavailableError, match="what listens there does not speak gRPC"):
                    await caller.open(address)
        async with scripted(b"", closes=True) as (address, _):
            with pytest.raises(RegionUnavailableError, match=r"the connection was lost|connection reset"):
                await caller.open(address)
        with pytest.raises(RegionUnavailableError, match="connection refused"):
            await caller.open(address)
        for name in ("a..b", "x" * 70, "\ud800x"):  # which asyncio refuses before anybody is asked
            with pytest.raises(RegionUnavailableError, match="name not found"):
                await caller.open(f"{name}:7001")

    run(body())


PING, PONG = frame(6, 0, 0, b"crdtkv??"), frame(6, 1, 0, b"crdtkv??")


def tick(stream: ClientStream) -> None:
    """Let the time to the next look at a silent peer pass."""
    assert stream._timer is not None
    stream._timer.cancel()
    stream._tick()


def test_a_silent_peer_is_pinged_and_left() -> None:
    async def body() -> None:
        async with scripted(SETTINGS) as (address, heard):
            caller = Caller()
            stream = await caller.open(address)
            for _ in range(1 + http2._TICKS_TO_PING):
                assert PING not in b"".join(heard)
                tick(stream)
            while PING not in b"".join(heard):
                await asyncio.sleep(0.001)
            assert stream.can_send
            tick(stream)
            error = await caller.error()
            assert isinstance(error, RegionUnavailableError) and "no answer to a ping" in error.message
            assert b"".join(heard).count(PING) == 1

    run(body())


def test_a_peer_that_is_granted_no_more_is_read_on_and_gets_its_room_when_it_is_asked_again() -> None:
    chunk = message(bytes(1 << 19))
    many = b"".join(frame(0, 0, 1, chunk) for _ in range(10))  # more than half of the window
    more = frame(8, 0, 0, (5).to_bytes(4, "big")) + frame(8, 0, 1, (5).to_bytes(4, "big"))

    async def body() -> None:
        async with scripted(SETTINGS, ANSWER + many + more) as (address, heard):
            caller = Caller()
            stream = await caller.open(address)
            stream.withhold()
            for _ in range(10):
                assert len(await caller.messages.get()) == 1 << 19
            while stream._stream_window == http2._DEFAULT_WINDOW:  # what it grants us, behind all that, is heard
                await asyncio.sleep(0.001)
            assert stream._untold > http2._WINDOW // 2
            stream.grant()
            assert stream._untold == 0
            told = frame(8, 0, 1, (10 * len(chunk)).to_bytes(4, "big"))
            while told not in b"".join(heard):
                await asyncio.sleep(0.001)
            stream.cancel()
            await stream.closed()

    run(body())


def test_a_peer_that_sends_more_than_was_granted_is_left() -> None:
    async def body() -> None:
        async with scripted(SETTINGS, ANSWER + b"".join(frame(0, 0, 1, message(bytes(1 << 19))) for _ in range(17))) as (address, _):
            caller = Caller()
            (await caller.open(address)).withhold()
            error = await caller.error()
            assert isinstance(error, RegionUnavailableError) and "more data than was granted" in error.message

    run(body())


def test_a_peer_that_answers_pings_stays() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS)
        heard = b""
        while data := await reader.read(65_536):
            heard += data
            if PING in heard:
                heard = heard.partition(PING)[2]
                writer.write(PONG)
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        caller = Caller()
        stream = await caller.open(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for _ in range(3):
            for _ in range(1 + http2._TICKS_TO_PING):
                tick(stream)
            while not stream._heard:
                await asyncio.sleep(0.001)
        assert stream.can_send
        stream.cancel()
        await stream.closed()
        server.close()

    run(body())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnicodeError("label empty or too long"), "name not found"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name not found"),
        (OSError(f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] Connect call failed ('::1', 1), and so on"), "connection refused"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "no route to host"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "connection reset"),
    ],
)
def test_reasons_are_for_people(error: Exception, reason: str) -> None:
    assert calling._reason(error) == reason


def test_options_of_channels_say_the_same() -> None:
    """Both ways to a node keep alive alike."""
    assert dict(channel_options())["grpc.keepalive_time_ms"] == http2.KEEPALIVE_MS
    assert dict(channel_options())["grpc.keepalive_timeout_ms"] == http2.KEEPALIVE_TIMEOUT_MS
