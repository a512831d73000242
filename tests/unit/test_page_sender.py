"""The pages of a watch: what is cut, and when a sign of life is due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from crdtkv.errors import OverloadedError
from crdtkv.node import pages


class Reader:
    """Takes pages, or does not read while `reads` is clear."""

    def __init__(self) -> None:
        self.pages: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def write(self, page: Any) -> None:
        await self.reads.wait()
        self.pages.append(page.rows)


def with_sender(body: Callable[[Any, Reader, asyncio.Event], Awaitable[None]], stall_ms: int) -> None:
    async def main() -> None:
        reader, news = Reader(), asyncio.Event()
        sender = pages.PageSender(reader, stall_ms, news)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(10) as limit:
                await body(sender, reader, news)
                assert not limit.expired()
        finally:
            sender.close()

    asyncio.run(main())


def test_a_watcher_that_does_not_read_is_cut_with_its_last_token_and_the_task_goes_on() -> None:
    async def body(sender: Any, reader: Reader, news: asyncio.Event) -> None:
        await sender.send(b"a", None)
        reader.reads.clear()
        with pytest.raises(OverloadedError) as caught:
            await sender.send(b"b", "token")
        assert caught.value.details["token"] == "token"
        await asyncio.sleep(0)  # it is not cancelled any more
        assert reader.pages == [b"a"]

    with_sender(body, 20)


def test_a_watch_that_is_ended_while_a_page_waits_is_cancelled() -> None:
    async def body(sender: Any, reader: Reader, news: asyncio.Event) -> None:
        reader.reads.clear()
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await sender.send(b"b", None)
        assert task.uncancel() == 0

    with_sender(body, 60_000)


def test_after_silence_there_is_news_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "WATCH_KEEPALIVE_S", 0.02)

    async def body(sender: Any, reader: Reader, news: asyncio.Event) -> None:
        await sender.send(b"a", None)
        assert not news.is_set()
        await news.wait()
        assert sender.is_quiet
        news.clear()
        await sender.send(b"", None)
        assert not sender.is_quiet and reader.pages == [b"a", b""]
        await news.wait()

    with_sender(body, 60_000)
