"""Streaming reads: pages of rows from a server stream, at the node that the session has chosen, on a connection of their own.

A stream belongs to one node: a scan is a consistent snapshot there, a watch follows that replica's log. So one that breaks
before its first page is opened anew, elsewhere if need be; one that breaks later is an error, and that of a watch carries
the token from which to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

import msgspec
from google.protobuf.message import DecodeError

from crdtkv.client.session import Session, closed_error
from crdtkv.client.wire import ScanRows, Stream
from crdtkv.core.codec import decode_value
from crdtkv.errors import CorruptionError, CrdtkvError, DeadlineExceededError, RegionUnavailableError
from crdtkv.pb.v1 import kv_pb2
from crdtkv.results import Change
from crdtkv.transport.calling import ClientStream
from crdtkv.transport.errors import from_rpc_error
from crdtkv.transport.messages import Messages, StreamEnded

OPEN_ATTEMPTS: Final = 3

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


class PageStream:
    """One server stream, on a connection of its own; `next_page` until it gives None.

    Args:
        request: op and args.
        timeout: seconds to wait until the stream is open, a connection to a node included.
    """

    def __init__(self, session: Session, method: Literal["Scan", "Watch"], request: Stream, timeout: float) -> None:
        self._session = session
        self._method = method
        self._request = request
        self._timeout = timeout
        self._stream: ClientStream | None = None
        self._messages = Messages()
        self._first: bytes | None = None
        """The first page, which shows that the stream is open."""
        self._address = ""
        self._closed = False

    async def open(self) -> None:
        """Open the stream and wait until the node has begun it: from then on a watch misses nothing.

        Raises:
            DeadlineExceededError: it did not within `timeout`. RegionUnavailableError: no endpoint answers, or the node lost the stream.
        """
        try:
            async with asyncio.timeout(self._timeout):
                await self._begin()
        except DeadlineExceededError:  # a TimeoutError, too: the node's
            raise
        except TimeoutError:
            self.close()
            where = self._address or ", ".join(self._session.endpoints)
            raise DeadlineExceededError(f"no answer from {where} within {self._timeout:g} s", call=self._request[0]) from None
        except asyncio.CancelledError:
            self.close()
            raise

    async def _begin(self) -> None:
        op, args = self._request
        request = kv_pb2.StreamRequest(op=op, args=_encode(args)).SerializeToString()
        for attempt in range(OPEN_ATTEMPTS):
            self._address = ""
            self._address = (await self._session.connected()).address
            try:
                messages = self._messages = Messages()
                self._stream = await self._session.call(self._address, f"/crdtkv.v1.KeyValue/{self._method}", messages)
                await messages.send(request)
                self._first = await messages.receive()
                return
            except StreamEnded as e:
                ending = self._ending(e)
                if ending is None:
                    return
                error = ending
            except RegionUnavailableError as e:
                error = e
            if not isinstance(error, RegionUnavailableError) or attempt == OPEN_ATTEMPTS - 1 or self._closed:
                raise error
            await asyncio.sleep(0.05 * 2**attempt)

    async def next_page(self, timeout: float | None) -> list[Any] | None:
        """The rows of the next page (empty: the node is alive), or None at the end.

        Raises:
            TimeoutError: no page within `timeout`; the stream is as it was.
        """
        if self._closed:
            return None
        if self._stream is None:
            await self.open()
        message, self._first = self._first, None
        try:
            if message is None and timeout is None:  # a watch for ever: no timer for each page
                message = await self._messages.receive()
            elif message is None:
                async with asyncio.timeout(timeout):
                    message = await self._messages.receive()
        except StreamEnded as e:
            ending = self._ending(e)
            if ending is None:
                return None
            raise ending from e
        assert message is not None  # the end of a call that we made comes as a status
        try:
            page = kv_pb2.Page.FromString(message)
            return _decode(page.rows) if page.rows else []
        except (msgspec.DecodeError, DecodeError) as e:
            raise CorruptionError(f"{self._request[0]}: a page is not a list: {e}") from e

    def _ending(self, ended: StreamEnded) -> CrdtkvError | None:
        """The error that the stream ended with; None: with its last page, or because it was closed."""
        if self._closed:
            return None
        if self._session.closed:
            return closed_error()
        return None if ended.error is None else from_rpc_error(ended.error, where=self._address)

    def close(self) -> None:
        """Cancel the stream; idempotent. Only in the session's loop."""
        self._closed = True
        if self._stream is not None:
            self._stream.cancel()


class RowReader:
    """Rows of a finite stream, decoded one by one; a page must come within the client's timeout."""

    def __init__(self, session: Session, request: Stream, timeout: float) -> None:
        self._pages = PageStream(session, "Scan", request, timeout)
        self._timeout = timeout
        self._op = request[0]
        self._scan = ScanRows()

    async def next_items(self) -> list[Any] | None:
        """What the next page holds, or None at the end."""
        try:
            rows = await self._pages.next_page(self._timeout)
        except DeadlineExceededError:  # a TimeoutError, too: the stream did not begin, or the node has ended it
            raise
        except TimeoutError:
            self.close()
            raise DeadlineExceededError(f"nothing more came within {self._timeout:g} s", call=self._op) from None
        if rows is None:
            return None
        try:
            return self._items(rows)
        except (TypeError, ValueError) as e:
            raise CorruptionError(f"{self._op}: a row has an unexpected form: {e}") from e

    def _items(self, rows: list[Any]) -> list[Any]:
        if self._op == "scan":
            return [pair for row in rows if (pair := self._scan.feed(row)) is not None]
        if self._op == "smembers":
            return [decode_value(row) for row in rows]
        if self._op == "hitems":
            return [(field, decode_value(value)) for field, value in rows]
        return rows

    def close(self) -> None:
        self._pages.close()


class ChangeReader:
    """Changes of a watch, until nothing changed for `idle` seconds (None: for ever)."""

    def __init__(self, session: Session, request: Stream, idle: float | None, timeout: float) -> None:
        self._pages = PageStream(session, "Watch", request, timeout)
        self._idle = idle
        self._token: str | None = request[1][1]

    async def open(self) -> None:
        """Wait until the node follows its log for this watch."""
        await self._pages.open()

    async def next_items(self) -> list[Any] | None:
        """The next changes, at least one; None when idle for too long or closed."""
        loop = asyncio.get_running_loop()
        until = None if self._idle is None else loop.time() + self._idle
        while True:
            try:
                rows = await self._pages.next_page(None if until is None else max(0.0, until - loop.time()))
            except DeadlineExceededError:  # a TimeoutError, too, and no sign of idleness
                raise
            except TimeoutError:
                self.close()
                return None
            except RegionUnavailableError as e:
                e.details["token"] = self._token
                raise
            if rows is None:
                return None
            if rows:
                try:
                    changes = [Change.from_row(row) for row in rows]
                except (TypeError, ValueError) as e:
                    raise CorruptionError(f"watch: a row has an unexpected form: {e}") from e
                self._token = changes[-1].token
                return changes

    def close(self) -> None:
        self._pages.close()


class AsyncItems(AsyncIterator[Any]):
    """The items of a reader, one by one; awaiting it waits until the stream has begun; `aclose` ends it."""

    def __init__(self, reader: RowReader | ChangeReader, opening: asyncio.Task[None] | None = None) -> None:
        self._reader = reader
        self._opening = opening
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._ended = False

    async def _opened(self) -> AsyncItems:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            await opening
        return self

    def __await__(self) -> Any:
        return self._opened().__await__()

    def __aiter__(self) -> AsyncItems:
        return self

    async def __anext__(self) -> Any:
        if self._items:
            return self._items.popleft()
        if self._opening is not None:
            await self._opened()
        while not self._items and not self._ended:
            try:
                items = await self._reader.next_items()
            except CrdtkvError:
                self._ended = True
                raise
            if items is None:
                self._ended = True
            else:
                self._items.extend(items)
        if not self._items:
            raise StopAsyncIteration
        return self._items.popleft()

    async def aclose(self) -> None:
        """End the stream; idempotent."""
        self._ended = True
        self._items.clear()
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        self._reader.close()

    def __del__(self) -> None:
        # A loop was left with `break` and nobody said `aclose`: the node is not to feed a watch that nobody reads.
        if not self._ended:
            with contextlib.suppress(RuntimeError):  # the event loop is closed, and the stream with it
                self._loop.call_soon_threadsafe(self._reader.close)

    async def __aenter__(self) -> AsyncItems:
        return await self._opened()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
