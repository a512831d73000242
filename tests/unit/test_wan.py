"""The WAN emulator: what a link does to the bytes between two real sockets, and that nothing of it leaks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from crdtkv.cluster import wan as wan_module
from crdtkv.cluster.wan import Wan

DEADLINE_S = 60.0


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            await main

    asyncio.run(bounded())


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.002)


class Target:
    """A server in `eu` that keeps what it receives and echoes it."""

    def __init__(self, *, echo: bool = True) -> None:
        self.echo = echo
        self.received = bytearray()
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = 0
        self.reading = asyncio.Event()
        self.reading.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while True:
                await self.reading.wait()
                data = await reader.read(65536)
                if not data:
                    break
                self.received += data
                if self.echo:
                    writer.write(data)
                    await writer.drain()
        self.ended += 1
        writer.close()


@contextlib.asynccontextmanager
async def linked(target: Target, *, seed: int = 1) -> AsyncIterator[tuple[Wan, tuple[str, int]]]:
    """A WAN of us, eu and ap; yields it and where `us` dials `eu`."""
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
    wan = Wan(("us", "eu", "ap"), seed=seed)
    try:
        yield wan, await wan.open("us", "eu", server.sockets[0].getsockname()[:2])
    finally:
        await wan.close()
        server.close()
        for writer in target.writers:
            writer.close()
    await eventually(lambda: not any(s.connections for s in wan.statistics()), "all connections forgotten")
    await eventually(lambda: not wan.dialling, "no dialling left")


async def timed(awaitable: Awaitable[Any]) -> float:
    began = time.monotonic()
    await awaitable
    return time.monotonic() - began


def test_delay_is_one_way_and_separate_for_each_direction() -> None:
    async def main() -> None:
        target = Target()
        async with linked(target) as (wan, address):
            wan.shape("us", "eu", delay_ms=30)
            wan.shape("eu", "us", delay_ms=50)
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"first")
            assert await timed(reader.readexactly(5)) >= 0.155  # handshake 80, there 30, back 50; timers may be early by a tick
            writer.write(b"again")
            took = await timed(reader.readexactly(5))
            assert 0.079 <= took < 0.5
            writer.close()

    run(main())


def test_bytes_stay_in_order_under_jitter_and_changing_delay() -> None:
    async def main() -> None:
        target = Target()
        async with linked(target) as (wan, address):
            wan.shape("us", "eu", delay_ms=5, jitter_ms=10)
            reader, writer = await asyncio.open_connection(*address)
            sent = bytearray()
            for i in range(200):
                piece = i.to_bytes(4, "big") * (1 + i % 7)
                sent += piece
                writer.write(piece)
                if i == 100:
                    wan.shape("us", "eu", delay_ms=0, jitter_ms=0)  # the later bytes may not overtake
                await asyncio.sleep(0)
            assert await reader.readexactly(len(sent)) == sent
            writer.close()

    run(main())


def test_rate_is_shared_by_the_connections_of_a_link() -> None:
    async def main() -> None:
        target = Target(echo=False)
        async with linked(target) as (wan, address):
            wan.shape("us", "eu", bytes_per_s=200_000)
            writers = [(await asyncio.open_connection(*address))[1] for _ in range(2)]
            began = time.monotonic()
            for writer in writers:
                writer.write(bytes(20_000))
            await eventually(lambda: len(target.received) > 0, "the first piece trickles")
            assert len(target.received) < 40_000
            await eventually(lambda: len(target.received) == 40_000, "all bytes arrive")
            assert time.monotonic() - began >= 0.19
            for writer in writers:
                writer.close()

    run(main())


def test_a_receiver_that_does_not_read_slows_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan_module, "BUFFER_BYTES_MAX", 256 << 10)

    async def main() -> None:
        target = Target(echo=False)
        target.reading.clear()
        async with linked(target) as (wan, address):
            wan.shape("us", "eu", delay_ms=5)
            _, writer = await asyncio.open_connection(*address)
            size = 64 << 20  # more than all kernel buffers on the way
            writer.write(bytes(size))
            us_eu = lambda: next(s for s in wan.statistics() if (s.source, s.target) == ("us", "eu"))  # noqa: E731
            await eventually(lambda: us_eu().bytes_waiting >= 256 << 10, "the queue fills")
            assert us_eu().bytes_waiting < 1 << 20
            assert writer.transport.get_write_buffer_size() > size // 2
            target.reading.set()
            await writer.drain()
            await eventually(lambda: len(target.received) == size, "all bytes arrive")
            writer.close()

    run(main())


def test_the_end_of_a_stream_is_as_late_as_its_data_and_half_close_works() -> None:
    async def main() -> None:
        target = Target()
        async with linked(target) as (wan, address):
            wan.shape("us", "eu", delay_ms=20)
            wan.shape("eu", "us", delay_ms=20)
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"last words")
            writer.write_eof()
            assert await reader.read() == b"last words"
            assert target.ended == 1
            writer.close()
            await eventually(lambda: wan.statistics()[0].connections == 0, "finished by itself")

    run(main())


def test_cut_resets_what_is_open_refuses_what_is_new_and_heals() -> None:
    async def main() -> None:
        target = Target()
        async with linked(target) as (wan, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            wan.cut("eu", "us")
            assert not wan.is_open("us", "eu")
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                reader, writer = await asyncio.open_connection(*address)
                await reader.readexactly(1)
            await eventually(lambda: target.ended == 1, "the target noticed")
            assert len(target.writers) == 1, "no new connection reached the target"
            wan.heal("us", "eu")
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"b")
            assert await reader.readexactly(1) == b"b"
            writer.close()

    run(main())


def test_one_way_hold_silences_one_direction_and_the_bytes_go_on_after_the_heal() -> None:
    async def main() -> None:
        target = Target()
        async with linked(target) as (wan, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            wan.hold("eu", "us")
            writer.write(b"b")  # still arrives at the target; its echo does not come back
            await eventually(lambda: target.received == b"ab", "the other direction works")
            await eventually(lambda: any(s.bytes_waiting == 1 for s in wan.statistics()), "the echo waits")
            assert not reader.at_eof()
            states = {(s.source, s.target): s.state for s in wan.statistics()}
            assert states["eu", "us"] == "held" and states["us", "eu"] == "open"
            wan.heal("us", "eu")
            assert await reader.readexactly(1) == b"b"
            writer.close()

    run(main())


def test_half_open_keeps_connections_up_and_silent_and_lets_nobody_new_through() -> None:
    async def main() -> None:
        target = Target()
        async with linked(target) as (wan, address):
            old_reader, old_writer = await asyncio.open_connection(*address)
            old_writer.write(b"a")
            assert await old_reader.readexactly(1) == b"a"
            wan.hold("us", "eu")
            wan.hold("eu", "us")
            old_writer.close()  # the target is not told
            waiting_reader, waiting_writer = await asyncio.open_connection(*address)
            waiting_writer.write(b"b")
            _, gave_up = await asyncio.open_connection(*address)
            gave_up.close()
            await eventually(lambda: wan.statistics()[0].connections == 2, "who gave up is forgotten")
            assert (bytes(target.received), target.ended, len(target.writers)) == (b"a", 0, 1)
            wan.heal("us", "eu")
            assert await waiting_reader.readexactly(1) == b"b"
            await eventually(lambda: target.ended == 1, "the close arrives after the heal")
            waiting_writer.close()

    run(main())


def test_an_end_of_stream_for_a_socket_that_was_just_reset_is_no_error() -> None:
    """Seen when a node was killed: its reset met the other side's close in one turn of the loop, and shutdown() failed with ENOTCONN."""

    class JustReset(asyncio.Transport):
        def is_closing(self) -> bool:
            return False

        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async def main() -> None:
        ended = []
        flow = wan_module._Flow(wan_module.Link("us", "eu"), random.Random(1), lambda: ended.append(True))
        flow.write_to(JustReset())
        flow.feed_end()
        assert flow.ended and ended == [True]

    run(main())


def test_a_target_that_is_not_there_looks_refused() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        nowhere = server.sockets[0].getsockname()[:2]
        server.close()
        await server.wait_closed()
        wan = Wan(("us", "eu"))
        reader, _ = await asyncio.open_connection(*await wan.open("us", "eu", nowhere))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert all(s.connections == 0 for s in wan.statistics())
        await wan.close()

    run(main())
