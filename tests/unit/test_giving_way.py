"""A node that has handed on a message lets what follows from it go first, before it asks gRPC for the next. (A client need not ask.)"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
from grpc import aio

from crdtkv.node.config import Limits
from crdtkv.node.kv import _ContextSession
from crdtkv.transport.loop import give_way

PUTS = 3
_encode = msgspec.msgpack.Encoder().encode


def test_what_is_ready_and_what_that_makes_ready_goes_first() -> None:
    async def run() -> list[str]:
        loop, said = asyncio.get_running_loop(), []

        def first() -> None:
            said.append("first")
            loop.call_soon(said.append, "second")

        loop.call_soon(first)
        await give_way()
        said.append("who gave way")
        return said

    assert asyncio.run(run()) == ["first", "second", "who gave way"]


class Context:
    """A stream of `PUTS` messages, at the node's end; says what is asked of it."""

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.left = PUTS

    async def read(self) -> Any:
        self.said.append("read")
        if not self.left:
            return aio.EOF
        self.left -= 1
        return SimpleNamespace(rows=_encode([(self.left, "get", ["k"], None)]), deadline_ms=0)

    async def write(self, message: Any) -> None:
        self.said.append("write")


class Worker:
    """Takes its turns in the loop, as the storage worker does when they are short."""

    def submit(self, rows: Sequence[Any], size: int, deliver: Callable[[list[Any], int, str], None], deadline_ms: int) -> int:
        asyncio.get_running_loop().call_soon(deliver, [[row[0], 0, None] for row in rows], len(rows), "")
        return len(rows)


def test_a_node_answers_before_it_asks_for_the_next_message() -> None:
    said: list[str] = []

    async def run() -> None:
        await _ContextSession(Context(said), Worker(), Limits()).run()  # type: ignore[arg-type]

    asyncio.run(run())
    assert said == ["read", "write"] * PUTS + ["read"]
