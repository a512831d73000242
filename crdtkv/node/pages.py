"""The pages in which scans and watches are sent, and who sends those of a watch.

A watch is fed by the store through a bounded queue; whoever reads too slowly is cut with `OverloadedError` and goes on from the last token
it got. Where it has a stream of ours (`transport.answering`) and nothing waits, what is new is sent where it was made, in the midst of the
turn; else by a task, which waits for room, for a feed that still catches up, or for something to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from grpc import aio

from crdtkv.errors import OverloadedError
from crdtkv.pb.v1 import kv_pb2
from crdtkv.transport.answering import Call

if TYPE_CHECKING:
    from crdtkv.node.worker import StorageWorker
    from crdtkv.store.watching import Subscription

Context = aio.ServicerContext[Any, Any] | Call

PAGE_BYTES_MAX: Final = 256 << 10
WATCH_KEEPALIVE_S: Final = 5.0
"""An empty page after this much silence, so that a watcher can tell a quiet store from a lost one."""
WATCH_ROWS_MAX: Final = 256
"""Changes taken from a watcher's queue at a time."""

_encoder = msgspec.msgpack.Encoder(enc_hook=str)


def encode_rows(rows: Sequence[Any], bytes_max: int = PAGE_BYTES_MAX) -> Iterator[bytes]:
    """MessagePack lists that together hold `rows` in order, each under `bytes_max` unless a single row is larger."""
    data = _encoder.encode(rows)
    if len(data) <= bytes_max or len(rows) <= 1:
        yield data
    else:
        half = len(rows) // 2
        yield from encode_rows(rows[:half], bytes_max)
        yield from encode_rows(rows[half:], bytes_max)


class Watch:
    """Sends a feed's changes to one watcher. `notify` is for the feed; then `follow`.

    Args:
        stall_ms: how long a page may wait for a watcher that does not read.
    """

    def __init__(self, context: Context, worker: StorageWorker, stall_ms: int) -> None:
        self._context = context
        self._worker = worker
        self._stall_ms = stall_ms
        self._news = asyncio.Event()
        self._feed: Subscription | None = None
        """What is followed, while the task only waits for news."""
        self._sender: PageSender | None = None
        self._pages: deque[bytes] = deque()
        """Still to be sent."""
        self._last: str | None = None
        """The token of what has been sent."""
        self._then: str | None = None
        """And of what will have been sent after the pages."""

    def notify(self) -> None:
        """There is news. Any thread."""
        self._worker.emit(self._look)

    def _look(self) -> None:
        feed, sender = self._feed, self._sender
        if feed is not None and sender is not None and feed.is_live and sender.can_send and (rows := feed.drain(WATCH_ROWS_MAX)):
            self._fill(rows)
            while self._pages and sender.send_now(self._pages[0]):
                self._pages.popleft()
            if not self._pages:
                self._last = self._then
                if len(rows) < WATCH_ROWS_MAX:
                    return
        self._news.set()  # the task sees to the rest

    def _fill(self, rows: list[Any]) -> None:
        self._pages.extend(encode_rows(rows))
        self._then = rows[-1][-1]

    async def follow(self, feed: Subscription) -> None:
        """Send what the feed has, for ever.

        Raises:
            OverloadedError: the watcher is too slow; it has the token from which to go on.
        """
        news, pages = self._news, self._pages
        self._last = self._then = feed.last_token
        sender = self._sender = PageSender(self._context, self._stall_ms, news)
        try:
            # An empty page at once: the watch is in place, and what is written from now on will be seen.
            await sender.send(b"", self._last)
            while True:
                news.clear()
                # What was pushed is here to be taken; one that still catches up reads the log, which is not for the loop.
                rows = feed.drain(WATCH_ROWS_MAX) if feed.is_live else await self._worker.read(feed.drain, WATCH_ROWS_MAX)
                if rows:
                    self._fill(rows)
                if pages:
                    while pages:
                        await sender.send(pages[0], self._last)
                        pages.popleft()
                    self._last = self._then
                elif feed.overflowed:
                    raise too_slow("more changes waited for this watcher than the node keeps for one", self._last)
                elif sender.is_quiet:
                    await sender.send(b"", self._last)
                else:
                    self._feed = feed
                    await news.wait()
                    self._feed = None
        finally:
            self._feed = None
            sender.close()


class PageSender:
    """The pages of a watch, and the two limits of time that they have, kept by one timer that looks now and then: to arm timers for
    each page costs more than to encode a small one. A limit is noticed when it has passed by a quarter, at the latest.

    Args:
        stall_ms: how long a page may wait for a watcher that does not read.
        news: is set when there has been silence for `WATCH_KEEPALIVE_S`.
    """

    def __init__(self, context: Context, stall_ms: int, news: asyncio.Event) -> None:
        self._context = context
        self._stall_ms = stall_ms
        self._news = news
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._writing = False
        self._is_stalled = False
        self._since = self._loop.time()
        """When the page under way was begun, or the last one sent."""
        self._interval_s = min(stall_ms / 1000, WATCH_KEEPALIVE_S) / 4
        self._timer = self._loop.call_later(self._interval_s, self._look)

    @property
    def is_quiet(self) -> bool:
        """Nothing was sent for so long that the watcher may wonder."""
        return self._loop.time() - self._since >= WATCH_KEEPALIVE_S

    @property
    def can_send(self) -> bool:
        """There is room for a page."""
        return isinstance(self._context, Call) and self._context.messages.can_send

    def send_now(self, rows: bytes) -> bool:
        """Send a page if that takes no waiting; False: it was not sent."""
        if not isinstance(self._context, Call) or not self._context.write_now(kv_pb2.Page(rows=rows)):
            return False
        self._since = self._loop.time()
        return True

    async def send(self, rows: bytes, last: str | None) -> None:
        """Send a page.

        Args:
            last: the token of what was sent before it.
        Raises:
            OverloadedError: the watcher does not read.
        """
        self._since = self._loop.time()
        self._writing = True
        try:
            await self._context.write(kv_pb2.Page(rows=rows))
        except asyncio.CancelledError:
            if not self._is_stalled or self._task is None or self._task.uncancel():  # somebody else cancels, too
                raise
            raise too_slow(f"nothing was read for {self._stall_ms} ms", last) from None
        finally:
            self._writing = False

    def _look(self) -> None:
        silent_s = self._loop.time() - self._since
        if self._writing:
            if silent_s * 1000 >= self._stall_ms and self._task is not None:
                self._is_stalled = True
                self._task.cancel()
                return
        elif silent_s >= WATCH_KEEPALIVE_S:
            self._news.set()
        self._timer = self._loop.call_later(self._interval_s, self._look)

    def close(self) -> None:
        """End the timer."""
        self._timer.cancel()


def too_slow(why: str, token: str | None) -> OverloadedError:
    return OverloadedError(f"{why}: read faster, then go on from the last token", token=token, retry_after_ms=0)
