"""What tests of streams share: a time limit, messages that are their bytes, a handler that echoes, and frames as a peer writes them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from grpc import aio
from hpack import Encoder

from crdtkv.transport.loop import new_event_loop

DEADLINE_S = 60.0
METHOD = "/test.Echo/Echo"

both_loops = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, new_event_loop], ids=["asyncio", "fastest"])
"""The caller's own, and that of nodes and blocking clients."""


def run(body: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(within())


class Raw:
    """A message that is its bytes, with what is used of protobuf's."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data

    @staticmethod
    def FromString(data: bytes) -> Raw:
        return Raw(data)


async def back(call: Any) -> None:
    """Echo every message."""
    while (message := await call.read()) is not aio.EOF:
        await call.write(message)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def message(data: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(data)) + data


def encode(headers: list[tuple[bytes, bytes]]) -> bytes:
    return bytes(Encoder().encode(headers))
