"""The floor that calls are measured against: a grpc.aio server that does nothing.

`/bench/Echo` returns the bytes it got (unary). `/bench/Relay` is a bidirectional stream that returns each message.
`/bench/Ticks` sends, `rate` times a second, a message that holds the monotonic time at which it was handed to gRPC.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import AsyncIterator

import grpc

STAMP = struct.Struct("<q")


async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return request


async def relay(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def ticks(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    rate, number = STAMP.unpack(request)[0], 0
    began = time.monotonic()
    while True:
        number += 1
        await asyncio.sleep(began + number / rate - time.monotonic())
        yield STAMP.pack(time.monotonic_ns())


async def serve(address: str) -> None:
    server = grpc.aio.server()
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Relay": grpc.stream_stream_rpc_method_handler(relay),
        "Ticks": grpc.unary_stream_rpc_method_handler(ticks),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
