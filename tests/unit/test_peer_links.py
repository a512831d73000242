"""How a link's messages leave and come in: where they are made and read while nothing waits, else by its tasks, and always in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from crdtkv.node import peers as peers_module
from crdtkv.node.peers import Peers
from crdtkv.node.replicating import Link
from crdtkv.replication import ReplicationSettings
from crdtkv.transport.base import Transport


class Stream:
    """The other end takes messages while it has room, and says things."""

    address, dialled = "eu:1", True

    def __init__(self) -> None:
        self.room = 0
        self.has_room = asyncio.Event()
        self.sent: list[bytes] = []
        self.said: list[bytes] = []
        self.news = asyncio.Event()
        self.look: Callable[[], None] = lambda: None

    def send_now(self, data: bytes) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(data)
        return True

    async def send(self, data: bytes) -> None:
        await self.has_room.wait()
        self.sent.append(data)

    def say(self, data: bytes) -> None:
        self.said.append(data)
        self.look()
        if self.said:
            self.news.set()

    def take(self) -> bytes | None:
        return self.said.pop(0) if self.said else None

    async def receive(self) -> bytes | None:
        while not self.said:
            self.news.clear()
            await self.news.wait()
        return self.said.pop(0)

    def on_arrival(self, look: Callable[[], None]) -> None:
        self.look = look

    def close(self) -> None:
        pass


class Core:
    """Notes what it is given; a link's backlog shrinks when `process` says so."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def connect(self, link: Link) -> None: ...

    def disconnect(self, link: Link, reason: str) -> None: ...

    def receive(self, link: Link, data: bytes) -> None:
        self.received.append(data)

    def process(self, link: Link) -> None:
        link.processed_bytes = link.read_bytes
        if link.room_wanted:
            link.room.set()


class Worker:
    """Does a task at once."""

    def task(self, function: Callable[[], None], size: int | None = None) -> None:
        function()


def linked(body: Callable[[Peers, Link, Any, Core], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            peers = Peers({}, cast(Transport, None), ReplicationSettings())
            core, stream = Core(), Stream()
            peers._core, peers._worker = cast(Any, core), cast(Any, Worker())
            link = Link(cast(Any, stream))
            running = asyncio.create_task(peers._run(link))
            while link.writer is None:
                await asyncio.sleep(0)
            try:
                await body(peers, link, stream, core)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_messages_leave_at_once_and_behind_those_that_wait() -> None:
    async def body(peers: Peers, link: Link, stream: Any, core: Core) -> None:
        stream.room = 2
        peers._send_one(link, [b"1", b"2", b"3"])
        assert stream.sent == [b"1", b"2"]  # no task has run
        await asyncio.sleep(0)  # now one waits with the third
        stream.room = 5
        peers._send_one(link, [b"4"])
        assert stream.sent == [b"1", b"2"]
        stream.has_room.set()
        while link.outgoing:
            await asyncio.sleep(0)
        assert stream.sent == [b"1", b"2", b"3", b"4"] and link.outgoing_bytes == 0
        peers._send_one(link, [b"5"])
        assert stream.sent[4:] == [b"5"]

    linked(body)


def test_what_comes_is_taken_where_it_is_read_until_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "BACKLOG_BYTES_MAX", 3)

    async def body(peers: Peers, link: Link, stream: Any, core: Core) -> None:
        stream.say(b"11")
        stream.say(b"22")
        assert core.received == [b"11", b"22"]  # no task has run
        stream.say(b"33")
        assert core.received == [b"11", b"22"]
        while not link.room_wanted:  # the task has taken one more, and waits for room
            await asyncio.sleep(0)
        assert core.received == [b"11", b"22", b"33"]
        stream.say(b"44")
        for _ in range(3):
            await asyncio.sleep(0)
        assert core.received == [b"11", b"22", b"33"]
        core.process(link)
        while len(core.received) < 4:
            await asyncio.sleep(0)
        core.process(link)
        while link.room_wanted:
            await asyncio.sleep(0)
        stream.say(b"55")
        assert core.received == [b"11", b"22", b"33", b"44", b"55"]

    linked(body)


def test_a_link_that_a_bug_keeps_from_sending_ends_and_costs_no_other_its_message() -> None:
    """What a turn hands over for several links counts as sent: one that failed took along what was meant for those after it."""

    async def body(peers: Peers, link: Link, stream: Any, core: Core) -> None:
        other = Link(cast(Any, Stream()))
        cast(Any, other.stream).room = 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream, "send_now", lambda data: [][0])
            peers._send([(link, [b"1"]), (other, [b"2"])])
        assert cast(Any, other.stream).sent == [b"2"]
        while link in peers._links:  # its peer begins anew from what it has
            await asyncio.sleep(0)

    linked(body)
