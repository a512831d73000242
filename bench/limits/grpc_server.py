"""A grpc.aio server that does nothing: `python -m bench.limits.grpc_server ADDRESS`.

`/bench/Unary` returns the bytes it got; `/bench/Stream` returns each message of a bidirectional stream; `/bench/Rows` takes messages of
many MessagePack rows `[id, key, value]` and answers each with one message of rows `[id, true]`, as a store would that has nothing to store.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec


async def unary(request: bytes, context: Any) -> bytes:
    return request


async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def rows(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    decode, encode = msgspec.msgpack.Decoder().decode, msgspec.msgpack.Encoder().encode
    async for request in requests:
        yield encode([[row[0], True] for row in decode(request)])


async def serve(address: str) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
        "Rows": grpc.stream_stream_rpc_method_handler(rows),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
