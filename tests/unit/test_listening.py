"""A node's port and the serving end of a stream: callers that say it byte by byte, oddly or wrongly, and those that gRPC's server gets."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from hpack import Decoder

from crdtkv.errors import ConfigError
from crdtkv.node.server import NodeServer
from crdtkv.transport import SOCKET_PATH_BYTES_MAX, answering, http2, listening
from crdtkv.transport.answering import Call, Method
from crdtkv.transport.grpc import server_context
from crdtkv.transport.listening import Listener
from crdtkv.transport.private_socket import PrivateSocket
from tests.certificates import CERTIFICATE, KEY
from tests.streams import METHOD, Raw, back, both_loops, encode, frame, message, run


@asynccontextmanager
async def port(
    handler: Callable[[Call], Awaitable[None]] = back, onward: str = "/nowhere", **options: Any
) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener({METHOD.encode(): Method(Raw, handler)}, onward, **options)
    number = listener.open("127.0.0.1", 0)
    await listener.start()
    try:
        yield listener, number
    finally:
        await listener.close()
        assert not listener.streams and not listener.passed_on


# -- callers that say it oddly or wrongly ---------------------------------------------------------------------------------


def headers(path: str = METHOD, *more: tuple[bytes, bytes]) -> bytes:
    return encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), *more])


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OURS = struct.pack(">HI", http2.SINGLE_CALL, 1)
GREETING = PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 1 << 20) + OURS)
BEGIN = frame(1, 4, 1, headers())


class Heard:
    """What a server said, frame by frame."""

    def __init__(self, data: bytes) -> None:
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.headers: list[dict[bytes, bytes]] = []
        decoder, block = Decoder(), b""
        while len(data) >= 9:
            size = int.from_bytes(data[:3], "big")
            if len(data) < 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", data[3:9])
            payload = data[9 : 9 + size]
            self.frames.append((kind, flags, stream, payload))
            data = data[9 + size :]
            if kind in (1, 9):
                block += payload
                if flags & 4:
                    self.headers.append({bytes(k): bytes(v) for k, v in decoder.decode(block, raw=True)})
                    block = b""

    def of(self, kind: int) -> list[tuple[int, int, int, bytes]]:
        return [one for one in self.frames if one[0] == kind]

    @property
    def data(self) -> bytes:
        return b"".join(payload for _, _, _, payload in self.of(0))

    @property
    def status(self) -> tuple[int, str]:
        last = self.headers[-1]
        return int(last[b"grpc-status"]), last.get(b"grpc-message", b"").decode()


async def say(number: int, *parts: bytes, until: Callable[[Heard], bool] | None = None) -> Heard:
    """Connect, say it, and hear until the status has come (or `until`), or the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    heard = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        while data := await reader.read(65_536):
            heard += data
            so_far = Heard(heard)
            if until(so_far) if until else any(b"grpc-status" in one for one in so_far.headers):
                break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return Heard(heard)


def test_a_call_byte_by_byte_padded_and_continued() -> None:
    block = headers(METHOD, (b"x" * 100, b"y" * 200))
    said = b"".join(
        (
            GREETING,
            frame(8, 0, 0, (5).to_bytes(4, "big")),
            frame(1, 0x8 | 0x20, 1, b"\x03\0\0\0\0\x10" + block[:7] + bytes(3)),
            frame(9, 0, 1, block[7:9]),
            frame(9, 4, 1, block[9:]),
            frame(0xEE, 0xFF, 7, b"of a later standard"),
            frame(6, 0, 0, b"pingpong"),
            frame(0, 0, 1, message(b"one") + message(b"two") + message(b"three")[:3]),
            frame(0, 0x8 | 0x1, 1, b"\x02" + message(b"three")[3:] + bytes(2)),
        )
    )

    async def body() -> None:
        async with port() as (_, number):
            heard = await say(number, *(said[at : at + 1] for at in range(len(said))))
            assert heard.frames[0][0] == 4 and struct.pack(">HI", 3, 1) in heard.frames[0][3]  # its settings come first: one stream
            assert heard.data == message(b"one") + message(b"two") + message(b"three")
            assert (6, 1, 0, b"pingpong") in heard.frames
            assert heard.headers[0] == {b":status": b"200", b"content-type": b"application/grpc"} and heard.status == (0, "")
            assert heard.of(1)[-1][1] & 1

    run(body())


@pytest.mark.parametrize(
    ("said", "code", "why"),
    [
        (frame(1, 5, 1, headers("/test.Echo/Other")), 12, "/test.Echo/Other cannot be called"),
        (BEGIN + frame(0, 0, 1, message(b"x", compressed=1)), 13, "came compressed"),
        (BEGIN + frame(0, 0, 1, message(bytes(2001))), 8, "larger than max (2001 vs. 2000)"),
    ],
)
def test_what_is_called_wrongly_is_refused_with_a_status(said: bytes, code: int, why: str) -> None:
    async def body() -> None:
        async with port(message_bytes_max=2000) as (_, number):
            found, text = (await say(number, GREETING + said)).status
            assert found == code and why in text

    run(body())


@pytest.mark.parametrize(
    "said",
    [
        frame(1, 0, 1, b"") + frame(1, 4, 1, headers()),
        frame(9, 4, 1, b""),
        frame(1, 4, 1, b"\xff\xff\xff\xff\xff"),
        frame(1, 0, 1, bytes(60_000)) + frame(9, 0, 1, bytes(10_000)),
        frame(5, 0, 1, b""),
        frame(0, 0, 3, message(b"x")),
        BEGIN + frame(0, 0x8, 1, b""),
        frame(4, 0, 0, b"odd"),
        frame(8, 0, 0, (2**31 - 1).to_bytes(4, "big")),
        (1 << 21).to_bytes(3, "big") + struct.pack(">BBI", 0, 0, 1),
    ],
)
def test_who_does_not_speak_http2_is_left(said: bytes) -> None:
    async def body() -> None:
        async with port() as (listener, number):
            heard = await say(number, GREETING + said, until=lambda _: False)
            assert not heard.data
            while listener.streams:
                await asyncio.sleep(0.001)

    run(body())


def test_a_second_call_on_the_connection_is_refused_and_the_first_goes_on() -> None:
    async def body() -> None:
        async with port() as (_, number):
            second = frame(1, 4, 3, headers())
            heard = await say(number, GREETING + BEGIN + second + frame(0, 1, 1, message(b"first")))
            assert heard.of(3) == [(3, 0, 3, (7).to_bytes(4, "big"))]
            assert heard.data == message(b"first") and heard.status == (0, "")

    run(body())


def test_a_caller_that_resets_or_vanishes_cancels_the_handler() -> None:
    async def body() -> None:
        ends: asyncio.Queue[str] = asyncio.Queue()

        async def wait(call: Call) -> None:
            assert call.peer().startswith("127.0.0.1:")
            try:
                await call.read()
                await asyncio.Event().wait()
            except BaseException as e:
                ends.put_nowait(type(e).__name__)
                raise

        async with port(wait) as (_, number):
            await say(
                number, GREETING + BEGIN + frame(0, 0, 1, message(b"x")) + frame(3, 0, 1, (8).to_bytes(4, "big")), until=lambda _: False
            )
            assert await ends.get() == "CancelledError"
            await say(number, GREETING + BEGIN, until=lambda heard: bool(heard.headers))
            assert await ends.get() in ("CancelledError", "AioRpcError")

    run(body())


def test_a_handler_that_fails_says_so_and_one_that_is_cut_says_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(call: Call) -> None:
        raise ValueError("50 % — äh\n")

    async def wait(call: Call) -> None:
        await asyncio.Event().wait()

    async def body() -> None:
        async with port(fail) as (_, number):
            assert (await say(number, GREETING + BEGIN)).status == (2, "ValueError: 50 %25 %E2%80%94 %C3%A4h%0A")
        async with port(wait) as (listener, number):
            saying = asyncio.create_task(say(number, GREETING + BEGIN))
            while not listener.streams or next(iter(listener.streams))._serving is None:
                await asyncio.sleep(0.001)
            await listener.close()
            code, why = (await saying).status
            assert code == 14 and "shutting down" in why

    run(body())
    assert "a call failed" in caplog.text


def test_trailers_longer_than_a_frame() -> None:
    async def refuse(call: Call) -> None:
        await call.abort(grpc.StatusCode.NOT_FOUND, "x" * 50_000, (("some-bin", b"\xff\x00"), ("plain", "text")))

    async def body() -> None:
        async with port(refuse) as (_, number):
            heard = await say(number, GREETING + BEGIN)
            assert heard.status == (5, "x" * 50_000) and heard.of(9) and max(len(one[3]) for one in heard.frames) <= 16_384
            assert heard.headers[-1][b"some-bin"] == b"/wA" and heard.headers[-1][b"plain"] == b"text"

    run(body())


def test_who_does_not_read_gets_what_was_sent_and_then_the_status() -> None:
    """The window that the greeting grants is used up; the status waits behind what was sent."""
    big = bytes(3 << 20)

    async def refuse(call: Call) -> None:
        await call.write(Raw(big))
        await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too slow")

    async def body() -> None:
        async with port(refuse) as (_, number):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(GREETING + BEGIN)
            heard = b""
            while len(Heard(heard).data) < 65_535:  # the connection's window
                heard += await reader.read(1 << 20)
            assert b"grpc-status" not in Heard(heard).headers[-1]
            writer.write(frame(0, 0, 1, message(bytes(100_000))[:10_000]))  # what comes now is nobody's
            writer.write(b"".join(frame(8, 0, stream, (4 << 20).to_bytes(4, "big")) for stream in (0, 1)))
            while b"grpc-status" not in Heard(heard).headers[-1]:
                heard += await reader.read(1 << 20)
            assert Heard(heard).data == message(big) and Heard(heard).status == (8, "too slow")
            writer.close()

    run(body())


def test_a_caller_that_never_reads_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_TRAILERS_S", 0.05)

    async def refuse(call: Call) -> None:
        await call.write(Raw(bytes(3 << 20)))
        await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too slow")

    async def body() -> None:
        async with port(refuse) as (listener, number):
            await say(number, GREETING + BEGIN, until=lambda _: False)
            while listener.streams:
                await asyncio.sleep(0.001)

    run(body())


def test_a_handler_that_does_not_read_holds_its_caller_back() -> None:
    go_on = asyncio.Event()

    async def slow(call: Call) -> None:
        await go_on.wait()
        await back(call)

    async def body() -> None:
        async with port(slow) as (listener, number):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(GREETING + BEGIN)
            one = frame(0, 0, 1, message(bytes(1 << 19)))
            for _ in range(10):
                writer.write(one)
            heard = b""
            while not listener.streams or next(iter(listener.streams))._untold < 10 << 19:
                await asyncio.sleep(0.001)
            stream = next(iter(listener.streams))
            assert stream._is_withholding
            writer.write(b"".join(frame(8, 0, number, (16 << 20).to_bytes(4, "big")) for number in (0, 1)))  # heard all the same
            while stream._window < 16 << 20:
                await asyncio.sleep(0.001)
            go_on.set()
            while len(Heard(heard).data) < 10 * (5 + (1 << 19)):
                heard += await reader.read(1 << 20)
            assert len(Heard(heard).of(8)) >= 2  # told
            writer.close()

    run(body())


# -- what gRPC's server gets ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def with_grpc(**options: Any) -> AsyncIterator[tuple[Listener, int]]:
    """A port before a gRPC server that echoes."""

    async def serve(_: Any, context: Any) -> None:
        while (data := await context.read()) is not aio.EOF:
            await context.write(data)

    async def one(request: bytes, context: Any) -> bytes:
        return request

    inner = PrivateSocket()
    size = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = aio.server(options=size)
    methods: dict[str, Any] = {
        "Stream": grpc.stream_stream_rpc_method_handler(serve),  # type: ignore[arg-type]
        "One": grpc.unary_unary_rpc_method_handler(one),  # type: ignore[arg-type]
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Any", methods),))
    server.add_insecure_port(f"unix:{inner.path}")
    await server.start()
    try:
        async with port(onward=inner.path, **options) as (listener, number):
            yield listener, number
    finally:
        await server.stop(0)
        inner.close()


SIZES = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


@both_loops
def test_any_grpc_client_reaches_any_method(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body() -> None:
        async with with_grpc() as (listener, number), aio.insecure_channel(f"127.0.0.1:{number}", options=SIZES) as channel:
            one: Any = channel.unary_unary("/test.Any/One")
            assert await asyncio.gather(*(one(b"%d" % n) for n in range(50))) == [b"%d" % n for n in range(50)]
            call: Any = channel.stream_stream("/test.Any/Stream")()
            for size in (0, 1, 20 << 20, 100_000, 7):
                await call.write(bytes(size))
                assert len(await call.read()) == size
            nothing: Any = channel.unary_unary("/test.Any/Nothing")
            with pytest.raises(aio.AioRpcError) as caught:
                await nothing(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert len(listener.passed_on) == 1 and not listener.streams
            call.cancel()

    run(body(), loop_factory)


@both_loops
def test_what_is_on_its_way_through_the_port_is_bounded(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Both ways: who is passed on to somebody that does not read has to wait."""

    async def body() -> None:
        go_on = asyncio.Event()
        got = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal got
            await go_on.wait()
            while data := await reader.read(1 << 20):
                got += len(data)
                writer.write(data)
                await writer.drain()
            writer.close()

        inner = PrivateSocket()
        server = await asyncio.start_unix_server(serve, inner.path)
        async with port(onward=inner.path) as (_, number):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(b"GET")
            sent = 3
            while sent < 1 << 30:
                writer.write(bytes(1 << 20))
                sent += 1 << 20
                drained = asyncio.ensure_future(writer.drain())
                done, _ = await asyncio.wait({drained}, timeout=1.0)
                if not done:
                    break
            assert sent < 1 << 28
            go_on.set()
            heard = 0
            while heard < sent:
                heard += len(await reader.read(1 << 20))
            assert heard == got == sent
            await drained
            writer.close()
        server.close()
        inner.close()

    run(body(), loop_factory)


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"x", PREFACE + frame(6, 0, 0, bytes(8)), PREFACE + frame(4, 0, 0, b"odd"), PREFACE + b"\xff" * 9],
)
def test_what_else_comes_is_grpcs_to_refuse(said: bytes) -> None:
    async def body() -> None:
        async with with_grpc() as (listener, number):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(said)
            heard = b""
            while data := await reader.read(65_536):  # gRPC's settings, as no stream of ours says them; then it leaves
                heard += data
            assert heard and struct.pack(">HI", 3, 1) not in Heard(heard).frames[0][3]
            writer.close()
            while listener.passed_on:
                await asyncio.sleep(0.001)

    run(body())


def test_whose_connection_is_for_a_single_call() -> None:
    settings = struct.pack(">HI", 4, 1 << 20)
    assert listening._is_single_call(GREETING) is True
    assert listening._is_single_call(GREETING + BEGIN) is True
    for n in range(len(GREETING)):
        assert listening._is_single_call(GREETING[:n]) is None
    assert listening._is_single_call(PREFACE + frame(4, 0, 0, settings)) is False
    assert listening._is_single_call(PREFACE + frame(4, 0, 0, struct.pack(">HI", http2.SINGLE_CALL, 0))) is False
    assert listening._is_single_call(PREFACE + frame(4, 0, 0, bytes(17_000))) is False


def test_a_connection_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "GREETING_S", 0.05)

    async def body() -> None:
        async with port() as (_, number):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(PREFACE)
            with pytest.raises(ConnectionError):
                if not await reader.read(1):
                    raise ConnectionResetError
            writer.close()

    run(body())


def test_nobody_behind_the_port_ends_the_connection() -> None:
    async def body() -> None:
        async with port() as (_, number):
            heard = await say(number, PREFACE + frame(4, 0, 0), until=lambda _: False)
            assert heard.frames == []

    run(body())


def test_tls_ends_at_the_port_for_both(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(CERTIFICATE)
    key.write_text(KEY)

    async def body() -> None:
        async with with_grpc(tls=server_context(cert, key, cert)) as (_, number):
            known = grpc.ssl_channel_credentials(CERTIFICATE.encode(), KEY.encode(), CERTIFICATE.encode())
            async with aio.secure_channel(f"127.0.0.1:{number}", known, options=SIZES) as channel:
                one: Any = channel.unary_unary("/test.Any/One")
                assert await one(bytes(1 << 20)) == bytes(1 << 20)
            stranger = grpc.ssl_channel_credentials(CERTIFICATE.encode())
            async with aio.secure_channel(f"127.0.0.1:{number}", stranger) as channel:
                one = channel.unary_unary("/test.Any/One")
                with pytest.raises(aio.AioRpcError) as caught:
                    await one(b"")
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(body())


# -- the port -------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_and_is_free_again_after_it() -> None:
    async def body() -> None:
        async with port() as (_, number):
            with pytest.raises(OSError) as caught:
                Listener({}, "").open("127.0.0.1", number)
            assert caught.value.errno == errno.EADDRINUSE
        listener = Listener({}, "")
        assert listener.open("127.0.0.1", number) == number
        await listener.close()
        with pytest.raises(OSError):
            Listener({}, "").open("192.0.2.1", 0)

    run(body())


def test_all_addresses_of_a_host_have_the_same_port() -> None:
    async def body() -> None:
        listener = Listener({METHOD.encode(): Method(Raw, back)}, "")
        number = listener.open("localhost", 0)
        await listener.start()
        families = {family for family, *_ in socket.getaddrinfo("localhost", number, type=socket.SOCK_STREAM)}
        for one in listener._sockets:
            assert one.getsockname()[1] == number and one.family in families
        assert len(listener._sockets) >= 1
        await listener.close()

    run(body())


# -- the socket that only we can reach ------------------------------------------------------------------------------------


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name is short enough for a socket, wherever the tests' own are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def test_a_private_socket_is_private_and_leaves_nothing(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    first, second = PrivateSocket(), PrivateSocket()
    assert first.path != second.path and Path(first.path).parent.stat().st_mode & 0o777 == 0o700
    assert len(list(short.iterdir())) == 2  # the second took nothing of the first
    first.close()
    first.close()
    second.close()
    assert not list(short.iterdir())


def test_what_a_killed_process_left_is_removed(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import time, crdtkv.transport.private_socket as p; s = p.PrivateSocket(); print(s.path, flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(short)}, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        path = Path(child.stdout.readline().strip())
        monkeypatch.setattr(tempfile, "tempdir", str(short))
        PrivateSocket().close()
        assert path.parent.exists()  # it lives
        child.send_signal(signal.SIGKILL)
        child.wait()
    PrivateSocket().close()
    assert not list(short.iterdir())


def test_a_temporary_directory_whose_name_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    one = PrivateSocket()
    assert len(os.fsencode(one.path)) <= SOCKET_PATH_BYTES_MAX
    one.close()


def test_no_place_for_a_socket_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)

    async def body() -> None:
        node = NodeServer(listen="127.0.0.1:0", peers={})
        with pytest.raises(ConfigError, match=r"TMPDIR: no directory .*: No such file"):
            await node.start()
        await node.stop()

    run(body())
