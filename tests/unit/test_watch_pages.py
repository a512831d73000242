"""How a watch's changes get to its watcher: where they were made, if nothing waits; else by a task, in order, with the right token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from crdtkv.errors import OverloadedError
from crdtkv.node import pages as pages_module
from crdtkv.node.pages import WATCH_ROWS_MAX, Watch
from crdtkv.transport.answering import Call


class Room:
    """What a call shows of its messages: whether there is room."""

    can_send = True


class Watcher(Call):
    """A call whose other end takes pages while there is `room`."""

    def __init__(self) -> None:
        self.pages: list[list[Any]] = []
        self.room = Room()
        self.messages = self.room  # type: ignore[assignment]
        self.has_room = asyncio.Event()
        self.room_left = 1 << 30

    def _take(self, page: Any) -> None:
        self.pages.append(msgspec.msgpack.decode(page.rows) if page.rows else [])
        self.room_left -= 1
        self.room.can_send = self.room_left > 0

    def write_now(self, message: Any) -> bool:
        if not self.room.can_send:
            return False
        self._take(message)
        return True

    async def write(self, message: Any) -> None:
        await self.has_room.wait()
        self._take(message)


class Feed:
    """Changes that were pushed, and an overflow."""

    is_live = True

    def __init__(self) -> None:
        self.last_token = "t0"
        self.overflowed = False
        self.rows: list[list[Any]] = []
        self.made = 0

    def push(self, size: int = 1) -> None:
        self.made += 1
        self.rows.append(["x" * size, f"t{self.made}"])

    def drain(self, limit: int) -> list[list[Any]]:
        taken, self.rows = self.rows[:limit], self.rows[limit:]
        return taken


class Emitting:
    """A worker in whose turn, in the loop, what is emitted is done when it is flushed."""

    def __init__(self) -> None:
        self.emitted: list[Callable[[], None]] = []

    def emit(self, function: Callable[[], None]) -> None:
        self.emitted.append(function)

    def flush(self) -> None:
        while self.emitted:
            self.emitted.pop(0)()


def watching(body: Callable[[Watch, Watcher, Feed, Emitting, asyncio.Task[None]], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            watcher, feed, worker = Watcher(), Feed(), Emitting()
            watcher.has_room.set()
            watch = Watch(watcher, worker, 60_000)  # type: ignore[arg-type]
            task = asyncio.create_task(watch.follow(feed))  # type: ignore[arg-type]
            while watch._feed is None:
                await asyncio.sleep(0)
            assert watcher.pages == [[]]
            await body(watch, watcher, feed, worker, task)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_a_change_is_sent_in_the_turn_that_made_it() -> None:
    async def body(watch: Watch, watcher: Watcher, feed: Feed, worker: Emitting, task: asyncio.Task[None]) -> None:
        for _ in range(3):
            feed.push()
            watch.notify()
            worker.flush()  # and no task has run meanwhile
        assert watcher.pages == [[], [["x", "t1"]], [["x", "t2"]], [["x", "t3"]]]

    watching(body)


def test_of_many_changes_at_once_none_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frame of more changes than a page is made of, the rest stayed until something else was written: at 50,000 writes a second in
    frames of 500 a watcher fell seconds behind, and at rest the last changes came with the keepalive."""

    monkeypatch.setattr(pages_module, "WATCH_KEEPALIVE_S", 3600.0)

    async def body(watch: Watch, watcher: Watcher, feed: Feed, worker: Emitting, task: asyncio.Task[None]) -> None:
        for _ in range(2 * WATCH_ROWS_MAX + 1):
            feed.push()
        watch.notify()
        worker.flush()
        while feed.rows:
            await asyncio.sleep(0)
        assert [row[-1] for page in watcher.pages for row in page] == [f"t{n}" for n in range(1, 2 * WATCH_ROWS_MAX + 2)]

    watching(body)


def test_what_has_no_room_is_sent_by_the_task_in_order() -> None:
    async def body(watch: Watch, watcher: Watcher, feed: Feed, worker: Emitting, task: asyncio.Task[None]) -> None:
        watcher.has_room.clear()
        watcher.room_left = 1
        for _ in range(3):  # together more than a page
            feed.push(200_000)
        watch.notify()
        worker.flush()
        feed.push()
        watch.notify()
        worker.flush()
        assert [[row[-1] for row in page] for page in watcher.pages] == [[], ["t1"]]
        watcher.room_left = 100
        watcher.has_room.set()
        while len(watcher.pages) < 5:
            await asyncio.sleep(0)
        assert [row[-1] for page in watcher.pages for row in page] == ["t1", "t2", "t3", "t4"]
        while watch._feed is None:  # and it is sent at once again
            await asyncio.sleep(0)
        watcher.room.can_send = True
        feed.push()
        watch.notify()
        worker.flush()
        assert watcher.pages[-1] == [["x", "t5"]]

    watching(body)


@pytest.mark.parametrize("is_at_once", [True, False])
def test_who_is_cut_goes_on_after_what_was_sent(is_at_once: bool) -> None:
    async def body(watch: Watch, watcher: Watcher, feed: Feed, worker: Emitting, task: asyncio.Task[None]) -> None:
        watcher.room.can_send = is_at_once
        feed.push()
        watch.notify()
        worker.flush()
        while len(watcher.pages) < 2:
            await asyncio.sleep(0)
        feed.overflowed = True
        watch.notify()
        worker.flush()
        with pytest.raises(OverloadedError) as caught:
            await task
        assert caught.value.details["token"] == "t1"

    watching(body)
