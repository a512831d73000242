"""Who has handed on a message lets what follows from it go first, before the next is asked of gRPC: at both ends of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from grpc import aio

from crdtkv.aio import AsyncClient
from crdtkv.client import session as client_session
from crdtkv.node.config import Limits
from crdtkv.node.kv import _ClientSession
from crdtkv.transport.loop import give_way

PUTS = 3
_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


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
        await _ClientSession(Context(said), Worker(), Limits()).run()  # type: ignore[arg-type]

    asyncio.run(run())
    assert said == ["read", "write"] * PUTS + ["read"]


class Stream:
    """A stream at the client's end whose other end answers at once; says what is asked of it."""

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def write(self, message: Any) -> None:
        self.said.append("write")
        rows = _encode([[id, 0, ["us-1", id, id]] for id, *_ in _decode(message.rows)])
        self.answers.put_nowait(SimpleNamespace(rows=rows, token=""))

    async def read(self) -> Any:
        self.said.append("read")
        return await self.answers.get()

    def cancel(self) -> None:
        """There is nothing to end."""


def test_a_client_sends_what_its_caller_asks_next_before_it_asks_for_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def connect(self: client_session.Session) -> Any:
        async def close() -> None: ...

        return SimpleNamespace(index=0, address="here", channel=SimpleNamespace(close=close), stream=Stream(said), stub=None)

    monkeypatch.setattr(client_session.Session, "_connect", connect)

    async def run() -> None:
        async with AsyncClient(["127.0.0.1:1"], timeout=60.0) as client:
            for _ in range(PUTS):
                await client.put("k", 1)

    asyncio.run(run())
    assert said[:2] in (["read", "write"], ["write", "read"]), "the first of both start together"
    assert said[2 : 2 * PUTS] == ["write", "read"] * (PUTS - 1)
