"""`client.stream.PageStream`: what comes is kept until it is asked for; who gives up waiting loses none; the end stays the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from crdtkv.client.session import Connection, Session
from crdtkv.client.stream import ChangeReader, PageStream, RowReader
from crdtkv.core.codec import encode_value
from crdtkv.errors import CorruptionError, DeadlineExceededError, PermissionDeniedError, RegionUnavailableError, StoreClosedError
from crdtkv.pb.v1 import kv_pb2
from crdtkv.transport.answering import Call, Method, of_one_request
from crdtkv.transport.listening import Listener

DEADLINE_S = 60.0


async def send(call: Call, *pages: Any) -> None:
    for page in pages:
        await call.write(kv_pb2.Page(rows=b"" if page is None else encode_value([page])))


async def hold(call: Call) -> None:
    """As a session whose requests nobody makes."""
    await call.read()


Serve = Callable[[Any, Call], Awaitable[None]]


@asynccontextmanager
async def watching(serve: Serve, timeout: float = DEADLINE_S) -> AsyncIterator[tuple[PageStream, Session]]:
    """A watch of a node that serves it so."""
    methods = {
        b"/crdtkv.v1.KeyValue/Session": Method(kv_pb2.RequestBatch, hold),
        b"/crdtkv.v1.KeyValue/Watch": Method(kv_pb2.StreamRequest, of_one_request(serve)),
    }
    listener = Listener(methods, "/nowhere")
    address = f"127.0.0.1:{listener.open('127.0.0.1', 0)}"
    await listener.start()
    session = Session([address])
    try:
        yield PageStream(session, "Watch", ("watch", ["", None]), timeout), session
    finally:
        await session.close()
        await listener.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body()

    asyncio.run(within())


def test_pages_come_in_order_and_their_end_once_and_for_all() -> None:
    async def serve(request: Any, call: Call) -> None:
        assert request.op == "watch"
        await send(call, None, *range(100))

    async def main() -> None:
        async with watching(serve) as (stream, _):
            await stream.open()
            assert await stream.next_page(None) == []
            assert [await stream.next_page(60.0) for _ in range(100)] == [[n] for n in range(100)]
            assert await stream.next_page(None) is None and await stream.next_page(None) is None

    run(main)


def test_who_gives_up_waiting_for_a_page_loses_none() -> None:
    go_on = asyncio.Event()

    async def serve(_: Any, call: Call) -> None:
        await send(call, "first")
        await go_on.wait()
        await send(call, "second", "third")
        await asyncio.Event().wait()

    async def main() -> None:
        async with watching(serve) as (stream, _):
            assert await stream.next_page(None) == ["first"]
            with pytest.raises(TimeoutError):
                await stream.next_page(0.0)
            waiting = asyncio.ensure_future(stream.next_page(None))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go_on.set()
            assert await stream.next_page(None) == ["second"]
            waiting = asyncio.ensure_future(stream.next_page(None))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await stream.next_page(None) == ["third"]

    run(main)


def test_a_closed_stream_ends_and_its_node_hears_of_it() -> None:
    left = asyncio.Event()

    async def serve(_: Any, call: Call) -> None:
        try:
            await send(call, *range(10))
            await asyncio.Event().wait()
        finally:
            left.set()

    async def main() -> None:
        async with watching(serve) as (stream, session):
            assert await stream.next_page(None) == [0]
            waiting = asyncio.ensure_future(stream.next_page(None))
            stream.close()
            stream.close()
            assert await waiting in ([1], None) and await stream.next_page(None) is None
            await left.wait()
            while session._calls:
                await asyncio.sleep(0.001)

    run(main)


def test_a_session_that_is_closed_ends_its_streams() -> None:
    async def serve(_: Any, call: Call) -> None:
        await send(call, 0)
        await asyncio.Event().wait()

    async def main() -> None:
        async with watching(serve) as (stream, session):
            assert await stream.next_page(None) == [0]
            waiting = asyncio.ensure_future(stream.next_page(None))
            await asyncio.sleep(0)
            await session.close()
            for page in (waiting, stream.next_page(None)):
                with pytest.raises(StoreClosedError):
                    await page

    run(main)


def test_a_lost_connection_is_told_of_as_often_as_it_is_asked_for() -> None:
    async def serve(_: Any, call: Call) -> None:
        await send(call, 0)
        call.stream._transport.abort()

    async def main() -> None:
        async with watching(serve) as (stream, _):
            assert await stream.next_page(None) == [0]
            for _ in range(2):
                with pytest.raises(RegionUnavailableError, match=r"127\.0\.0\.1:\d+: "):
                    await stream.next_page(None)

    run(main)


def test_a_refusal_is_one_though_the_calls_beginning_comes_before_it() -> None:
    """Once: a stream counted as open when its initial metadata had come, which a refused call has, too; the error came later, to nobody."""

    async def serve(_: Any, call: Call) -> None:
        await call.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    async def main() -> None:
        async with watching(serve) as (stream, _):
            with pytest.raises(PermissionDeniedError, match="not you"):
                await stream.open()

    run(main)


def test_a_stream_that_breaks_before_its_first_page_is_opened_anew() -> None:
    tries = 0

    async def serve(_: Any, call: Call) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            call.stream._transport.abort()
            return
        await send(call, "at last")

    async def main() -> None:
        async with watching(serve) as (stream, _):
            assert await stream.next_page(None) == ["at last"] and tries == 3

    run(main)


def test_a_node_that_does_not_begin_is_not_waited_for() -> None:
    async def serve(_: Any, call: Call) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with watching(serve, timeout=0.05) as (stream, _):
            with pytest.raises(DeadlineExceededError, match=r"no answer from 127\.0\.0\.1:\d+ within 0\.05 s"):
                await stream.open()

    run(main)


@pytest.fixture
def silent() -> Iterator[str]:
    """Where connections come about, and nothing is ever said: a process that is paused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_connecting_is_within_the_time_to_open(silent: str) -> None:
    """It had rounds of its own: 19 seconds, three of which `timeout` was asked for."""

    async def main() -> None:
        session = Session([silent])
        try:
            with pytest.raises(DeadlineExceededError, match=f"no answer from {silent} within 0.05 s"):
                await PageStream(session, "Scan", ("scan", []), 0.05).open()
        finally:
            await session.close()

    run(main)


def test_a_watch_that_does_not_begin_is_not_idle(silent: str) -> None:
    """The error is a TimeoutError, and was taken for one: the watch ended as if nothing had changed, without an error."""

    async def main() -> None:
        session = Session([silent])
        try:
            for reader in (ChangeReader(session, ("watch", ["", None]), 0.0, 0.05), RowReader(session, ("scan", []), 0.05)):
                with pytest.raises(DeadlineExceededError, match=f"no answer from {silent} within 0.05 s"):
                    await reader.next_items()
        finally:
            await session.close()

    run(main)


def test_where_nobody_listens_the_session_has_asked_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, connect = 0, Session._connect

    async def counted(session: Session) -> Connection:
        nonlocal asked
        asked += 1
        return await connect(session)

    monkeypatch.setattr(Session, "_connect", counted)

    async def main() -> None:
        session = Session(["127.0.0.1:1"])
        try:
            with pytest.raises(RegionUnavailableError, match=r"no endpoint answered, asked 3 times: 127\.0\.0\.1:1: connection refused"):
                await PageStream(session, "Watch", ("watch", ["", None]), DEADLINE_S).open()
        finally:
            await session.close()

    run(main)
    assert asked == 1


def test_a_page_that_is_none() -> None:
    async def serve(_: Any, call: Call) -> None:
        await call.write(kv_pb2.Page(rows=b"\x01"))
        await call.write(SimpleNamespace(SerializeToString=lambda: b"\xff"))

    async def main() -> None:
        async with watching(serve) as (stream, _):
            for _ in range(2):
                with pytest.raises(CorruptionError, match="a page is not a list"):
                    await stream.next_page(None)

    run(main)
