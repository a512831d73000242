"""Clients of the bare server: unary calls, one stream with a message a request, and one stream whose messages hold all that is pending."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec


@contextlib.asynccontextmanager
async def unary(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[Any]]]:
    """Empty unary calls."""
    import grpc

    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_unary("/bench/Unary")
        yield method


@contextlib.asynccontextmanager
async def stream(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[Any]]]:
    """Request and answer on an open stream, one at a time."""
    import grpc

    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream("/bench/Stream")()

        async def exchange(request: bytes) -> Any:
            await call.write(request)
            return await call.read()

        yield exchange
        call.cancel()


class Batched:
    """Puts that wait for nothing but their own answer: all that is pending in one turn of the loop travels in one message."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._rows: list[tuple[int, str, str]] = []
        self._some = asyncio.Event()
        self._number = 0

    async def put(self, key: str, value: str) -> bool:
        self._number += 1
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting[self._number] = future
        self._rows.append((self._number, key, value))
        self._some.set()
        return await future

    async def send(self) -> None:
        encode = msgspec.msgpack.Encoder().encode
        while True:
            await self._some.wait()
            self._some.clear()
            rows, self._rows = self._rows, []
            await self._call.write(encode(rows))

    async def receive(self) -> None:
        decode = msgspec.msgpack.Decoder().decode
        async for message in self._call:
            for number, answer in decode(message):
                self._waiting.pop(number).set_result(answer)


@contextlib.asynccontextmanager
async def batched(address: str) -> AsyncIterator[Batched]:
    """The bare auto-batched echo."""
    import grpc

    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream("/bench/Rows")()
        client = Batched(call)
        tasks = [asyncio.create_task(client.send()), asyncio.create_task(client.receive())]
        try:
            yield client
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
