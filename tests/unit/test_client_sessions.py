"""A node's end of a client's session: what is read and when, and what is answered, over a stream of ours and over gRPC's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import msgspec
import pytest
from grpc import aio

from crdtkv.errors import InvalidValueError, RegionUnavailableError
from crdtkv.node.config import Limits
from crdtkv.node.kv import KeyValueService
from crdtkv.pb.v1 import kv_pb2, kv_pb2_grpc
from crdtkv.transport.answering import Method, of_stream
from crdtkv.transport.calling import open_stream
from crdtkv.transport.errors import from_rpc_error
from crdtkv.transport.listening import Listener

DEADLINE_S = 60.0
SESSION = "/crdtkv.v1.KeyValue/Session"
encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


@dataclass
class Worker:
    """Holds what is submitted until the test has it answered."""

    refuses: bool = False
    pads: str = ""
    waiting: list[tuple[list[Any], Callable[..., None]]] = field(default_factory=list)
    submitted: list[list[int]] = field(default_factory=list)

    def submit(self, rows: list[Any], size: int, deliver: Callable[..., None], deadline_ms: int) -> int:
        self.submitted.append([row[0] for row in rows])
        if self.refuses:
            deliver([[row[0], 1, ["OverloadedError", "no", {}, True, False]] for row in rows], len(rows), "")
        else:
            self.waiting.append((rows, deliver))
        return len(rows)

    def answer(self, messages: int = 1) -> None:
        for _ in range(messages):
            rows, deliver = self.waiting.pop(0)
            deliver([[row[0], 0, row[2][0] + self.pads] for row in rows], len(rows), f"t{rows[-1][0]}")

    async def have(self, messages: int) -> None:
        while len(self.submitted) < messages:
            await asyncio.sleep(0.001)


class Caller(Protocol):
    """Says requests, hears replies."""

    async def say(self, *rows: Any) -> None: ...

    async def say_raw(self, data: bytes) -> None: ...

    async def hear(self) -> tuple[list[Any], str]: ...

    async def end(self) -> Exception | None: ...

    async def close(self) -> None: ...


class Direct:
    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.room = asyncio.Event()

    async def open(self, address: str) -> None:
        self.stream = await open_stream(address, SESSION, self.heard.put_nowait, self.room.set)

    async def say(self, *rows: Any) -> None:
        await self.say_raw(encode(rows))

    async def say_raw(self, data: bytes) -> None:
        while not self.stream.can_send:
            self.room.clear()
            await self.room.wait()
        self.stream.send(kv_pb2.RequestBatch(rows=data).SerializeToString())

    async def hear(self) -> tuple[list[Any], str]:
        message = kv_pb2.ReplyBatch.FromString(await self.heard.get())
        return decode(message.rows), message.token

    async def end(self) -> Exception | None:
        error = await self.stream.ended
        return None if error is None else from_rpc_error(error)

    async def close(self) -> None:
        self.stream.cancel()
        await self.stream.closed()


class ByGrpc:
    async def open(self, address: str) -> None:
        self.channel = aio.insecure_channel(address)
        self.call: Any = kv_pb2_grpc.KeyValueStub(self.channel).Session()

    async def say(self, *rows: Any) -> None:
        await self.say_raw(encode(rows))

    async def say_raw(self, data: bytes) -> None:
        await self.call.write(kv_pb2.RequestBatch(rows=data))

    async def hear(self) -> tuple[list[Any], str]:
        message = await self.call.read()
        return decode(message.rows), message.token

    async def end(self) -> Exception | None:
        try:
            assert await self.call.read() is aio.EOF
        except grpc.RpcError as e:
            return from_rpc_error(e)
        return None

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


@asynccontextmanager
async def direct(service: KeyValueService) -> AsyncIterator[Direct]:
    listener = Listener({SESSION.encode(): Method(kv_pb2.RequestBatch, of_stream(service.Session))}, "/nowhere")
    number = listener.open("127.0.0.1", 0)
    await listener.start()
    caller = Direct()
    await caller.open(f"127.0.0.1:{number}")
    try:
        yield caller
    finally:
        await caller.close()
        await listener.close()


@asynccontextmanager
async def by_grpc(service: KeyValueService) -> AsyncIterator[ByGrpc]:
    server = aio.server()
    kv_pb2_grpc.add_KeyValueServicer_to_server(service, server)
    number = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    caller = ByGrpc()
    await caller.open(f"127.0.0.1:{number}")
    try:
        yield caller
    finally:
        await caller.close()
        await server.stop(0)


both = pytest.mark.parametrize("way", [direct, by_grpc])
Way = Callable[[KeyValueService], Any]


def run(way: Way, body: Callable[[Any, Worker, KeyValueService], Awaitable[None]], limits: Limits | None = None) -> None:
    async def main() -> None:
        service, worker = KeyValueService(limits or Limits()), Worker()
        service.open(None, worker)  # type: ignore[arg-type]
        async with asyncio.timeout(DEADLINE_S), way(service) as caller:
            await body(caller, worker, service)

    asyncio.run(main())


def row(number: int) -> list[Any]:
    return [number, "get", [f"k{number}"], None]


@both
def test_answers_come_with_their_token_and_those_of_one_turn_together(way: Way) -> None:
    async def body(caller: Caller, worker: Worker, _: KeyValueService) -> None:
        await caller.say(row(1), row(2))
        await worker.have(1)
        worker.answer()
        assert await caller.hear() == ([[1, 0, "k1"], [2, 0, "k2"]], "t2")
        for number in (3, 4, 5):
            await caller.say(row(number))
        await worker.have(4)
        worker.answer(3)
        assert await caller.hear() == ([[n, 0, f"k{n}"] for n in (3, 4, 5)], "t5")

    run(way, body)


@both
def test_no_more_is_read_than_the_window_allows(way: Way) -> None:
    async def body(caller: Caller, worker: Worker, _: KeyValueService) -> None:
        for number in range(1, 21):
            await caller.say(row(number))
        await worker.have(5)
        for _turn in range(50):
            await asyncio.sleep(0)
        for read in range(5, 20):
            assert len(worker.submitted) == read
            worker.answer()
            assert (await caller.hear())[0] == [[read - 4, 0, f"k{read - 4}"]]
            await worker.have(read + 1)
        worker.answer(5)
        assert len((await caller.hear())[0]) == 5

    run(way, body, Limits(session_window_max=4))


@both
def test_requests_that_are_refused_at_once_are_answered_in_order_however_many(way: Way) -> None:
    async def body(caller: Caller, worker: Worker, service: KeyValueService) -> None:
        worker.refuses = True
        heard: list[int] = []

        async def hear() -> None:
            while len(heard) < 3000:
                heard.extend(reply[0] for reply in (await caller.hear())[0])

        hearing = asyncio.create_task(hear())
        for number in range(3000):
            await caller.say(row(number))
        await hearing
        assert heard == list(range(3000))
        (session,) = service._sessions
        while session._outstanding:  # what was answered is counted once it is written
            await asyncio.sleep(0.001)

    run(way, body, Limits(session_window_max=64))


@both
@pytest.mark.parametrize("wrong", [b"\x01", encode([[1]])])
def test_rows_that_are_none_end_the_session_once_what_came_before_is_answered(way: Way, wrong: bytes) -> None:
    async def body(caller: Caller, worker: Worker, service: KeyValueService) -> None:
        await caller.say(row(1))
        await caller.say_raw(wrong)
        await caller.say(row(3))
        await worker.have(1)
        for _turn in range(50):
            await asyncio.sleep(0)
        worker.answer()
        assert (await caller.hear())[0] == [[1, 0, "k1"]]
        error = await caller.end()
        assert isinstance(error, InvalidValueError) and error.message.startswith("rows: ")
        assert worker.submitted == [[1]]
        while service.sessions:
            await asyncio.sleep(0.001)

    run(way, body)


@both
def test_a_node_that_shuts_down_answers_what_it_has_read(way: Way) -> None:
    async def body(caller: Caller, worker: Worker, service: KeyValueService) -> None:
        await caller.say(row(1))
        await worker.have(1)
        service.close()
        worker.answer()
        assert (await caller.hear())[0] == [[1, 0, "k1"]]
        error = await caller.end()
        assert isinstance(error, RegionUnavailableError) and "shutting down" in error.message

    run(way, body)


@both
def test_a_caller_that_leaves_is_forgotten_and_what_it_asked_is_answered_to_nobody(way: Way) -> None:
    async def body(caller: Caller, worker: Worker, service: KeyValueService) -> None:
        await caller.say(row(1))
        await worker.have(1)
        await caller.close()
        while service.sessions:
            await asyncio.sleep(0.001)
        worker.answer()

    run(way, body)


def test_answers_wait_for_a_caller_that_does_not_read_and_count_against_its_window() -> None:
    """What a caller has granted and the systems take is sent; then the node has answers for it, and reads no more of its requests."""

    async def body(caller: Direct, worker: Worker, service: KeyValueService) -> None:
        worker.pads = "x" * (1 << 20)
        caller.stream.withhold()
        for number in range(1, 41):
            await caller.say(row(number))
        await worker.have(1)
        (session,) = service._sessions
        while session._outstanding <= 4 or worker.waiting:
            if worker.waiting:
                worker.answer()
            await asyncio.sleep(0.001)
        assert 5 <= len(worker.submitted) < 40 and not session._stream.can_send
        caller.stream.grant()
        heard: list[int] = []
        while len(heard) < 40:
            while worker.waiting:
                worker.answer()
            while not caller.heard.empty():
                heard.extend(reply[0] for reply in (await caller.hear())[0])
            await asyncio.sleep(0.001)
        assert heard == list(range(1, 41))

    run(direct, body, Limits(session_window_max=4))
