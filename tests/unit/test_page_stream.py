"""`client.stream.PageStream`: pages are read ahead, few of them; who gives up waiting loses none; the end stays the end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from crdtkv.client.stream import PAGES_AHEAD, PageStream
from crdtkv.core.codec import encode_value
from crdtkv.errors import PermissionDeniedError, RegionUnavailableError


class Call:
    """A call whose pages the test hands in."""

    def __init__(self) -> None:
        self.reads = 0
        self._pages: asyncio.Queue[Any] = asyncio.Queue()

    def give(self, *pages: Any) -> None:
        for page in pages:
            self._pages.put_nowait(page if page is grpc.aio.EOF else SimpleNamespace(rows=encode_value([page])))

    async def read(self) -> Any:
        self.reads += 1
        page = await self._pages.get()
        if isinstance(page, BaseException):
            raise page
        return page

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    def cancel(self) -> None:
        self._pages.put_nowait(asyncio.CancelledError())


def opened() -> tuple[PageStream, Call]:
    stream, call = PageStream(SimpleNamespace(closed=False), "Watch", ("watch", ["", None]), 5.0), Call()  # type: ignore[arg-type]
    stream._call = call
    return stream, call


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_pages_are_read_ahead_but_few() -> None:
    async def main() -> None:
        stream, call = opened()
        call.give(*range(3 * PAGES_AHEAD), grpc.aio.EOF)
        assert await stream.next_page(None) == [0]
        await settled()
        assert call.reads == PAGES_AHEAD + 1
        assert [await stream.next_page(1.0) for _ in range(3 * PAGES_AHEAD - 1)] == [[n] for n in range(1, 3 * PAGES_AHEAD)]
        assert await stream.next_page(None) is None and await stream.next_page(None) is None

    asyncio.run(main())


def test_who_gives_up_waiting_for_a_page_loses_none() -> None:
    async def main() -> None:
        stream, call = opened()
        with pytest.raises(TimeoutError):
            await stream.next_page(0.0)
        waiting = asyncio.ensure_future(stream.next_page(None))
        await settled()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert call.reads == 1
        call.give("a", "b")
        assert await stream.next_page(None) == ["a"]
        waiting = asyncio.ensure_future(stream.next_page(None))
        waiting.cancel()
        await settled()
        assert await stream.next_page(None) == ["b"]

    asyncio.run(main())


@pytest.mark.parametrize("is_full", [False, True])
def test_a_closed_stream_ends_and_leaves_no_task(is_full: bool) -> None:
    async def main() -> None:
        stream, call = opened()
        call.give(*range(2 * PAGES_AHEAD if is_full else 1))
        assert await stream.next_page(None) == [0]
        await settled()
        stream.close()
        assert await stream.next_page(None) is None
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_lost_connection_is_told_of_as_often_as_it_is_asked_for() -> None:
    async def main() -> None:
        stream, call = opened()
        call.cancel()  # not by `close`: the channel's doing
        for _ in range(2):
            with pytest.raises(RegionUnavailableError, match="the connection was lost"):
                await stream.next_page(None)

    asyncio.run(main())


def test_a_refusal_is_one_though_the_calls_beginning_comes_before_it() -> None:
    """Once: a stream counted as open when its initial metadata had come, which a refused call has, too; the error came later, to nobody."""

    async def main() -> None:
        call = Call()

        async def initial_metadata() -> tuple[()]:
            return ()

        async def connected() -> Any:
            return SimpleNamespace(address="us:1", stub=SimpleNamespace(Watch=lambda _: call))

        call.initial_metadata, call.done = initial_metadata, lambda: False  # type: ignore[attr-defined]
        metadata = grpc.aio.Metadata()
        call._pages.put_nowait(grpc.aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, metadata, metadata, "not you"))
        stream = PageStream(SimpleNamespace(closed=False, connected=connected), "Watch", ("watch", ["", None]), 60.0)  # type: ignore[arg-type]
        with pytest.raises(PermissionDeniedError, match="not you"):
            await stream.open()

    asyncio.run(main())
