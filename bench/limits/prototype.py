"""The bare chain: client → A → B → subscriber, four processes and gRPC streams, nothing stored, merged or fsynced.

What replication over these parts cannot undercut. Each hop but the last has one message unacknowledged, and the next holds all that has
come meanwhile: without that bound a faster sender fills gRPC's buffers without end, and lag grows as long as it runs.

`python -m bench.limits.prototype relay ADDRESS NEXT` is A, `… sink ADDRESS` is B. Rows are opaque bytes, concatenated.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

ACK = b"a"
WRITE, SUBSCRIBE = "/bench/Write", "/bench/Subscribe"


class Gathering:
    """What waits for the next message."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._some = asyncio.Event()

    def add(self, rows: bytes) -> None:
        self._parts.append(rows)
        self._some.set()

    async def take(self) -> bytes:
        """All of it, once there is some."""
        await self._some.wait()
        self._some.clear()
        parts, self._parts = self._parts, []
        return b"".join(parts)


async def forward(gathering: Gathering, call: Any) -> None:
    """Send what gathers, one unacknowledged message at a time, for ever."""
    while True:
        await call.write(await gathering.take())
        if await call.read() is grpc.aio.EOF:
            return


async def serve(address: str, following: str | None) -> None:
    """A, which forwards to `following`; or B, whose subscribers get what arrives."""
    subscribers: list[Gathering] = []
    onward = Gathering()

    async def write(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for rows in requests:
            if following is not None:
                onward.add(rows)
            for subscriber in subscribers:
                subscriber.add(rows)
            yield ACK

    async def subscribe(request: bytes, context: Any) -> AsyncIterator[bytes]:
        mine = Gathering()
        subscribers.append(mine)
        yield b""  # it listens
        while True:
            yield await mine.take()

    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Write": grpc.stream_stream_rpc_method_handler(write),
        "Subscribe": grpc.unary_stream_rpc_method_handler(subscribe),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    if following is not None:
        async with grpc.aio.insecure_channel(following) as channel:
            await forward(onward, channel.stream_stream(WRITE)())
    await server.wait_for_termination()


if __name__ == "__main__":
    role, address, *rest = sys.argv[1:]
    asyncio.run(serve(address, rest[0] if role == "relay" else None))
