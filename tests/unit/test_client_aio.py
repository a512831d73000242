"""The asyncio client against a node over a dict; what both clients share is tested with the sync one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from crdtkv.client import queues, wire
from crdtkv.client import session as session_module
from crdtkv.client.aio import AsyncClient, connect
from crdtkv.errors import (
    ConfigError,
    DeadlineExceededError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    OverloadedError,
    RegionUnavailableError,
    StoreClosedError,
    TokenExpiredError,
    WrongTypeError,
)
from crdtkv.results import Commit
from crdtkv.transport import http2
from tests.fake_node import FakeNode


@pytest.fixture
def node() -> Iterator[FakeNode]:
    node = FakeNode()
    yield node
    node.stop()


@pytest.fixture
def other() -> Iterator[FakeNode]:
    node = FakeNode("eu")
    yield node
    node.stop()


def with_client(node: FakeNode, body: Callable[[AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """Run `body` with a client in an event loop of its own."""

    async def main() -> Any:
        async with connect(node.address, **options) as client:
            return await body(client)

    return asyncio.run(main())


async def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def test_everything_has_a_method_twin(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        commit = await client.put("a", [1, None])
        assert isinstance(commit, Commit) and commit.token == "1"
        assert await client.get("a") == [1, None] and await client.get("b", 7) == 7
        assert await client.exists("a") and not await client.exists("b") and await client.types("a") == ["register"]
        assert await client.ttl("a") is None and await client.expire("a", 1.5) is not None
        assert await client.count() == 1 and await client.delete("b") is None

        handle = client.set("s")
        await handle.add(1, 1.0, "x")
        assert await handle.members() == [member async for member in handle] and await handle.size() == 3
        assert await handle.contains("x") and await handle.discard(9) is None and await handle.remove(1) is not None
        with pytest.raises(KeyNotFoundError):
            await handle.remove(1)
        counter = client.counter("c")
        await counter.increment(4)
        await counter.decrement()
        assert await counter.value() == await counter.get() == 3
        fields = client.map("m")
        await fields.put("f", 1)
        assert await fields.items() == [("f", 1)] and [f async for f in fields] == ["f"]
        assert await fields.get("f") == 1 and await fields.contains("f") and await fields.size() == 1

        assert [key async for key, _ in client.scan()] == ["a", "c", "m", "s"]
        assert "the only write" in str(await client.explain("a"))
        assert len(await client.siblings("a")) == 1 and len(await client.conflicts()) == 1
        assert (await client.vv()).missing_from(await client.vv()) == 0 and len(await client.digest()) == 32
        assert await client.delta_since(None) == b"delta-all" and (await client.merge(b"x")).applied == 1
        assert (await client.status()).region == "us"
        await handle.clear()
        await counter.reset()
        await fields.delete("f")
        await fields.clear()
        assert await client.delete_prefix("a", durability="sync") is not None
        with pytest.raises(InvalidKeyError):
            await client.put("", 1)
        with pytest.raises(InvalidValueError):
            await client.put("k", object())

    with_client(node, body)


def test_all_of_one_turn_travels_in_one_message(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        before = node.messages
        results = await asyncio.gather(*(client.put(f"k{i}", i) for i in range(200)), client.get("k199"))
        assert node.messages == before + 1
        assert [commit.seq for commit in results[:-1]] == list(range(1, 201)) and results[-1] == 199

    with_client(node, body)


def test_what_gathers_behind_a_message_travels_in_the_next(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        before = node.messages

        async def caller(n: int) -> None:
            for i in range(20):
                await client.put(f"{n}/{i}", i)

        await asyncio.gather(*(caller(n) for n in range(64)))
        assert node.messages - before <= 60  # 20 rounds of 64 requests; one each would be 1,280

    with_client(node, body)


def test_messages_are_bounded(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "MESSAGE_REQUESTS_MAX", 10)
    monkeypatch.setattr(queues, "MESSAGE_TARGET_BYTES", 1000)
    monkeypatch.setattr(session_module, "MESSAGE_REQUESTS_MAX", 10)
    monkeypatch.setattr(wire, "BLOCK_BYTES_MAX", 1000)

    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        before = node.messages
        await asyncio.gather(*(client.exists(f"k{i}") for i in range(100)))
        assert node.messages == before + 10
        await asyncio.gather(*(client.put(f"k{i}", b"x" * 600) for i in range(5)))
        assert node.messages == before + 15

    with_client(node, body)


def test_a_message_follows_over_a_long_round_trip_without_an_answer(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        node.hold = {"get"}
        slow = asyncio.ensure_future(client.get("k"))
        await wait_until(lambda: node.ops["get"] == 1)
        assert await client.exists("k") is False
        slow.cancel()

    with_client(node, body)


def test_what_a_node_that_stands_still_misses_waits_here_and_not_in_a_queue_of_messages(node: FakeNode) -> None:
    """Once: each millisecond without an answer let one more message follow, and each answer let one follow in its place. So the messages
    sent while a node stood still for a moment stayed on their way for good, and every call waited behind them."""

    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        session = client._core.check()
        before, messages_max = session.messages, session._messages_max()
        node.hold = {"put"}
        calls = []
        for number in range(3 * messages_max):
            calls.append(asyncio.ensure_future(client.put(f"k{number}", number)))
            await asyncio.sleep(0)
            session._pace_passed()
            await asyncio.sleep(0.002)
        await wait_until(lambda: node.ops["put"] == messages_max)
        assert session.messages - before == messages_max
        node.hold = set()
        last = session._in_flight.get(session._in_flight.ids[-1])
        session._receive(msgspec.msgpack.encode([(session._in_flight.ids[-1], 0, ["us@1-00000000", 1, 1])]), "")
        assert last is not None and last.done()
        await asyncio.gather(*calls[messages_max - 1 :])
        assert session.messages - before == messages_max + 1, "all that gathered went in one"
        for call in calls:
            call.cancel()

    with_client(node, body)


def test_over_a_long_round_trip_more_messages_may_be_on_their_way(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        session = client._core.check()
        assert session._round_trip_s < 1.0
        session._round_trip_s = 0.001
        assert session._messages_max() == 2
        session._round_trip_s = 0.04
        assert session._messages_max() == 22
        session._round_trip_s = float("inf")
        assert session._messages_max() == 502, "nothing is known yet"

    with_client(node, body)


def test_a_call_that_waits_behind_a_silent_node_leaves_it_too(node: FakeNode, other: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        node.hold = {"get"}
        session = client._core.check()
        messages_max = session._messages_max()
        calls = []
        while len(session._unanswered) < messages_max:
            calls.append(asyncio.ensure_future(client.get("k")))
            await asyncio.sleep(0.002)
            session._pace_passed()
        with pytest.raises(DeadlineExceededError) as caught:
            await client.with_timeout(0.1).put("k", 1)
        assert caught.value.maybe_applied is False and node.ops["put"] == 0, "it never left"
        await asyncio.gather(*calls)
        assert other.ops["get"] == len(calls)

    async def main() -> None:
        async with connect([node.address, other.address], timeout=30.0) as client:
            await body(client)

    asyncio.run(main())


def test_a_cancelled_caller_costs_the_others_nothing(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        node.hold = {"get"}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.get("k"), 0.05)
        never_sent = asyncio.ensure_future(client.put("never", 1))
        await asyncio.sleep(0)
        never_sent.cancel()
        assert not await client.exists("never")
        assert node.ops["put"] == 0

    with_client(node, body)


def test_deadline_and_overload(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "IN_FLIGHT_MAX", 1)
    node.hold = {"put"}

    async def body(client: AsyncClient) -> None:
        assert not await client.exists("k")  # the session is open
        client._core.check().pending_max = 2
        hasty = client.with_timeout(0.5)
        results = await asyncio.gather(*(hasty.put("k", i) for i in range(5)), return_exceptions=True)
        kinds = [type(result) for result in results]
        assert kinds.count(OverloadedError) == 3 and kinds.count(DeadlineExceededError) == 2
        sent = [result.maybe_applied for result in results if isinstance(result, DeadlineExceededError)]
        assert sent == [True, False]  # the second never left

    with_client(node, body, timeout=30.0)


def test_pipeline(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client.get("warm")
        before = node.messages
        async with client.pipeline() as pipe:
            put, got, wrong = pipe.put("k", 1), pipe.get("k"), pipe.map("k").put("f", 1)
        assert node.messages == before + 1
        assert put.ok and got.value == 1 and isinstance(wrong.error, WrongTypeError)
        with pytest.raises(ZeroDivisionError):
            async with client.pipeline() as pipe:
                pipe.put("z", 1)
                raise ZeroDivisionError
        assert not await client.exists("z")

    with_client(node, body)


def test_batch(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client.set("s").add(1)
        async with client.batch() as b:
            await b.put("k", 1)
            await b.set("s").add(2)
            await b.counter("c").decrement(3)
            await b.map("m").put("f", 1)
            assert await b.get("k") == 1 and await b.set("s").members() == [1, 2] and await b.counter("c").value() == -3
            assert await b.map("m").items() == [("f", 1)] and await b.exists("m") and not await client.exists("k")
        assert b.commit is not None and await client.get("k") == 1 and node.ops["batch"] == 1
        with pytest.raises(ZeroDivisionError):
            async with client.batch() as b:
                await b.delete("k")
                raise ZeroDivisionError
        assert await client.get("k") == 1

    with_client(node, body)


def test_watch(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        watching = await client.watch("w")
        await client.put("w", 1)
        change = await anext(watching)
        assert (change.key, change.value) == ("w", 1)
        await watching.aclose()
        await wait_until(lambda: node.watchers == 0)
        await client.put("w", 2)
        assert [change.value async for change in client.watch("w", since=change.token, timeout=2)] == [2]
        with pytest.raises(TokenExpiredError):
            await client.watch(since="999")
        async with client.watch("w") as changes:
            with pytest.raises(TimeoutError):  # the caller's own patience; the watch goes on
                await asyncio.wait_for(anext(changes), 0.05)
            node.write(lambda store: store.op_put("w", b"\x03", None))
            assert (await anext(changes)).value == 3

    with_client(node, body)


def test_failover_and_connecting(node: FakeNode, other: FakeNode) -> None:
    async def main() -> None:
        client = await connect([node.address, other.address])
        assert (await client.status()).region == "us"
        node.stop()
        assert (await client.status()).region == "eu"
        await client.close()
        with pytest.raises(RegionUnavailableError, match="no endpoint answered"):
            await connect("127.0.0.1:1")
        with pytest.raises(ConfigError, match="nowhere"):
            connect("nowhere")

    asyncio.run(main())


def test_connecting_takes_no_longer_than_the_timeout() -> None:
    """Where connections come about and nothing is said, it took its rounds."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            at = f"127.0.0.1:{silent.getsockname()[1]}"
            client = connect(at, timeout=0.05)
            with pytest.raises(RegionUnavailableError, match=f"no answer from {at} within 0.05 s"):
                await client
            await client.close()

    asyncio.run(main())


def test_close(node: FakeNode) -> None:
    async def main() -> None:
        client = connect(node.address)
        await client.put("k", 1)
        node.hold = {"put"}
        waiting = asyncio.ensure_future(client.put("k", 2))
        await wait_until(lambda: node.ops["put"] == 2)
        watching = await client.watch()
        reading = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        with pytest.raises(StoreClosedError) as caught:
            await waiting
        assert caught.value.maybe_applied
        with pytest.raises(StoreClosedError):
            await reading
        with pytest.raises(StoreClosedError):
            await client.get("k")

    asyncio.run(main())


def test_a_client_of_another_loop_is_refused(node: FakeNode) -> None:
    client = connect(node.address)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.put("k", 1))

    async def elsewhere() -> None:
        with pytest.raises(InvalidValueError, match="loop"):
            await client.get("k")

    asyncio.run(elsewhere())
    loop.run_until_complete(client.close())
    loop.close()


def test_each_request_has_its_own_deadline_whatever_else_is_in_its_message(node: FakeNode) -> None:
    async def body(client: AsyncClient) -> None:
        await client
        quick, slow = client.with_timeout(7.0), client.with_timeout(60.0)
        await asyncio.gather(client.put("a", 1), quick.put("b", 2), slow.get("a"), slow.put("c", 3, durability="sync"), client.get("a"))
        assert node.messages == 1
        for deadline_ms, seconds in zip(node.deadlines_ms, (20, 7, 60, 60, 20), strict=True):
            assert seconds * 980 < deadline_ms <= seconds * 1000 + 1
        assert len(node.store.rids) == 3  # the writes', with and without other options

    with_client(node, body, timeout=20.0)


def test_closing_waited_for_the_deadline_of_its_connection(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: to cancel the session's task cancelled what it awaited, the end of its stream, too; so that counted as over, and its connection
    was never closed, but waited for, for a second."""
    monkeypatch.setattr(http2, "_CLOSE_S", 3600.0)

    async def main() -> None:
        client = connect(node.address)
        await client.put("k", 1)
        async with asyncio.timeout(10.0):  # before anybody misses a ping
            await client.close()

    asyncio.run(main())
