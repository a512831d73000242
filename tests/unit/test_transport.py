"""Peer streams: one suite for every transport."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

import crdtkv
from crdtkv.errors import RegionUnavailableError
from crdtkv.pb.v1 import replication_pb2, replication_pb2_grpc
from crdtkv.transport import server_options
from crdtkv.transport.answering import Method, of_stream
from crdtkv.transport.base import Accept, InProcessNetwork, PeerStream, Transport
from crdtkv.transport.errors import plain_reason
from crdtkv.transport.grpc import EXCHANGE, ExchangeServicer, GrpcTransport, client_context, server_context
from crdtkv.transport.listening import Listener
from crdtkv.transport.loop import background_loop
from tests.certificates import CERTIFICATE, KEY


@dataclass
class Pair:
    """A transport, where to dial, and the ends accepted there; `serving` keeps them open until `release`."""

    transport: Transport
    address: str
    accepted: asyncio.Queue[PeerStream]
    release: asyncio.Event
    stop: Callable[[], Awaitable[None]]
    errors: list[BaseException] = field(default_factory=list)

    async def dial(self) -> tuple[PeerStream, PeerStream]:
        ours = await self.transport.dial(self.address, timeout_s=5)
        return ours, await self.accepted.get()


@asynccontextmanager
async def grpc_pair() -> AsyncIterator[Pair]:
    accepted: asyncio.Queue[PeerStream] = asyncio.Queue()
    release = asyncio.Event()

    async def accept(stream: PeerStream) -> None:
        accepted.put_nowait(stream)
        await release.wait()

    server = aio.server(options=server_options())
    replication_pb2_grpc.add_ReplicationServicer_to_server(ExchangeServicer(accept), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def stop() -> None:
        await server.stop(0)

    yield Pair(GrpcTransport(), f"127.0.0.1:{port}", accepted, release, stop)
    release.set()
    await server.stop(0)


def exchange(accept: Accept) -> dict[bytes, Method]:
    return {EXCHANGE.encode(): Method(replication_pb2.PeerMessage, of_stream(ExchangeServicer(accept).Exchange))}


@asynccontextmanager
async def listener_pair() -> AsyncIterator[Pair]:
    accepted: asyncio.Queue[PeerStream] = asyncio.Queue()
    release = asyncio.Event()

    async def accept(stream: PeerStream) -> None:
        accepted.put_nowait(stream)
        await release.wait()

    listener = Listener(exchange(accept), "/nowhere")
    port = listener.open("127.0.0.1", 0)
    await listener.start()
    yield Pair(GrpcTransport(), f"127.0.0.1:{port}", accepted, release, listener.close)
    release.set()
    await listener.close()


@asynccontextmanager
async def in_process_pair() -> AsyncIterator[Pair]:
    accepted: asyncio.Queue[PeerStream] = asyncio.Queue()
    release = asyncio.Event()
    network = InProcessNetwork()

    async def accept(stream: PeerStream) -> None:
        accepted.put_nowait(stream)
        await release.wait()

    network.listen("b", accept)

    async def stop() -> None:
        network.unlisten("b")
        network.partition("a", "b")

    yield Pair(network.transport("a"), "b", accepted, release, stop)
    release.set()


MakePair = Callable[[], AbstractAsyncContextManager[Pair]]
both = pytest.mark.parametrize("make_pair", [listener_pair, grpc_pair, in_process_pair])


def run_in_background(work: Coroutine[Any, Any, None]) -> None:
    """gRPC's objects outlive a test; the loop of the process outlives them."""
    asyncio.run_coroutine_threadsafe(work, background_loop()).result(30)


def run(check: Callable[[Pair], Awaitable[None]], make_pair: MakePair) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), make_pair() as pair:
            await check(pair)

    run_in_background(main())


@both
def test_messages_arrive_whole_and_in_order_both_ways(make_pair: MakePair) -> None:
    async def check(pair: Pair) -> None:
        ours, theirs = await pair.dial()
        assert (ours.dialled, theirs.dialled) == (True, False)
        sent = [bytes([n]) * size for n, size in enumerate((0, 1, 100, 70_000, 1 << 20))]

        async def exchange(source: PeerStream, sink: PeerStream) -> None:
            async def send() -> None:
                for data in sent:
                    await source.send(data)

            sending = asyncio.create_task(send())
            assert [await sink.receive() for _ in sent] == sent
            await sending

        await asyncio.gather(exchange(ours, theirs), exchange(theirs, ours))
        ours.close()

    run(check, make_pair)


@both
def test_what_is_sent_and_taken_without_waiting_keeps_its_place(make_pair: MakePair) -> None:
    """A stream that offers neither says so, and loses nothing."""

    async def check(pair: Pair) -> None:
        ours, theirs = await pair.dial()
        for source, sink in ((ours, theirs), (theirs, ours)):
            got: list[bytes] = []
            whole = asyncio.Event()
            sent = [bytes([n]) * size for n, size in enumerate((1, 0, 70_000, 5, 1 << 20, 3, 2))]

            def add(data: bytes, got: list[bytes] = got, whole: asyncio.Event = whole, count: int = len(sent)) -> None:
                got.append(data)
                if len(got) == count:
                    whole.set()

            def look(sink: PeerStream = sink, got: list[bytes] = got, add: Callable[[bytes], None] = add) -> None:
                while len(got) % 3 != 2 and (data := sink.take()) is not None:
                    add(data)

            async def rest(sink: PeerStream = sink, add: Callable[[bytes], None] = add) -> None:
                while (data := await sink.receive()) is not None:
                    add(data)

            sink.on_arrival(look)
            reading, sending = asyncio.create_task(rest()), asyncio.create_task(all_of(source, sent))
            await whole.wait()
            assert got == sent
            await sending
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        ours.close()
        assert not ours.send_now(b"late")
        assert ours.take() is None

    async def all_of(source: PeerStream, messages: list[bytes]) -> None:
        for data in messages:
            if not source.send_now(data):
                await source.send(data)

    run(check, make_pair)


@both
def test_closing_ends_both_ends_and_refuses_what_comes_after(make_pair: MakePair) -> None:
    async def check(pair: Pair) -> None:
        ours, theirs = await pair.dial()
        await ours.send(b"1")
        assert await theirs.receive() == b"1"
        ours.close()
        ours.close()
        assert await ours.receive() is None
        with pytest.raises(RegionUnavailableError):
            await ours.send(b"2")
        with contextlib.suppress(RegionUnavailableError):  # a broken call, for gRPC: it is over either way
            assert await theirs.receive() is None

    run(check, make_pair)


@both
def test_the_acceptor_ends_the_stream_by_returning_after_what_it_sent(make_pair: MakePair) -> None:
    async def check(pair: Pair) -> None:
        ours, theirs = await pair.dial()
        await theirs.send(b"bye")
        pair.release.set()
        assert await ours.receive() == b"bye"
        assert await ours.receive() is None

    run(check, make_pair)


@both
def test_nobody_there_is_an_error_that_names_the_address(make_pair: MakePair) -> None:
    async def check(pair: Pair) -> None:
        pair.release.set()
        await pair.stop()
        with pytest.raises(RegionUnavailableError) as caught:
            await pair.transport.dial(pair.address, timeout_s=5)
        assert pair.address in str(caught.value)

    run(check, make_pair)


@both
def test_a_lost_connection_breaks_the_stream(make_pair: MakePair) -> None:
    async def check(pair: Pair) -> None:
        ours, _ = await pair.dial()
        await pair.stop()
        with pytest.raises(RegionUnavailableError):
            assert await ours.receive() is None
            raise RegionUnavailableError("an orderly end will do as well")
        ours.close()

    run(check, make_pair)


@both
@pytest.mark.parametrize("back", [False, True])
def test_a_stream_that_nobody_reads_stops_its_sender(make_pair: MakePair, back: bool) -> None:
    async def check(pair: Pair) -> None:
        ours, theirs = await pair.dial()
        source, sink = (theirs, ours) if back else (ours, theirs)
        chunk = b"x" * (1 << 20)
        sent = 0
        while sent < 64:
            sending = asyncio.create_task(source.send(chunk))
            if not (await asyncio.wait({sending}, timeout=0.5 if sent else 30))[0]:
                break
            sent += 1
        assert 0 < sent < 64
        for _ in range(sent):  # and goes on once it is read
            assert await sink.receive() == chunk
        await sending
        ours.close()

    run(check, make_pair)


def test_peers_by_tls_know_each_other(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(CERTIFICATE)
    key.write_text(KEY)

    async def serve(stream: PeerStream) -> None:
        while (data := await stream.receive()) is not None:
            await stream.send(data)

    async def main() -> None:
        listener = Listener(exchange(serve), "/nowhere", tls=server_context(cert, key, cert))
        address = f"127.0.0.1:{listener.open('127.0.0.1', 0)}"
        await listener.start()
        stream = await GrpcTransport(client_context(cert, cert, key)).dial(address, timeout_s=10)
        await stream.send(b"x" * 300_000)
        assert await stream.receive() == b"x" * 300_000
        stream.close()
        for strangers in (None, client_context(None)):
            with pytest.raises(RegionUnavailableError, match=f"{address}: "):
                await GrpcTransport(strangers).dial(address, timeout_s=10)
        await listener.close()

    async def guarded() -> None:
        async with asyncio.timeout(30):
            await main()

    run_in_background(guarded())


def test_a_partition_cuts_and_refuses_until_it_heals() -> None:
    async def main() -> None:
        network = InProcessNetwork()
        accepted: asyncio.Queue[PeerStream] = asyncio.Queue()

        async def accept(stream: PeerStream) -> None:
            accepted.put_nowait(stream)
            await stream.receive()

        network.listen("b", accept)
        transport = network.transport("a")
        stream = await transport.dial("b", timeout_s=1)
        await accepted.get()
        network.partition("a", "b")
        with pytest.raises(RegionUnavailableError):
            await stream.receive()
        with pytest.raises(RegionUnavailableError):
            await transport.dial("b", timeout_s=1)
        network.heal("a", "b")
        again = await transport.dial("b", timeout_s=1)
        await again.send(b"1")
        assert await accepted.get() is not None
        again.close()

    async def guarded() -> None:
        async with asyncio.timeout(10):
            await main()

    run_in_background(guarded())


NOBODY = "failed to connect to all addresses; last error: "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NOBODY + "UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused", "connection refused"),
        (
            NOBODY + "UNKNOWN: ipv4:10.0.0.1:1: connection attempt timed out before receiving SETTINGS",
            "no answer within the time to connect",
        ),
        (NOBODY + "INTERNAL: ipv4:127.0.0.1:1: Failed parsing HTTP/2 (Expected SETTINGS frame)", "what listens there does not speak gRPC"),
        ("errors resolving a:1: [field:hostname lookup error:address lookup failed for a:1: Domain name not found]", "name not found"),
        (NOBODY + "of a kind not met yet\nmore", NOBODY + "of a kind not met yet"),
        ("a node's own words on a connection refused elsewhere", "a node's own words on a connection refused elsewhere"),
    ],
)
def test_why_nobody_answered_is_said_without_the_noise_of_grpc(text: str, reason: str) -> None:
    assert plain_reason(text) == reason


def test_a_port_that_nobody_listens_on_is_a_connection_refused() -> None:
    with pytest.raises(RegionUnavailableError) as refused, crdtkv.connect("127.0.0.1:1") as client:
        client.get("k")
    why = "127.0.0.1:1: connection refused; see that a node runs there, or name others"
    assert str(refused.value) == f"no endpoint answered, asked 3 times: {why}"
