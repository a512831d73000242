"""Streaming reads: pages of rows from a server stream, on the connection that the session has chosen.

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

import grpc
import grpc.aio
import msgspec

from crdtkv.client.session import Session, closed_error
from crdtkv.client.wire import ScanRows, Stream
from crdtkv.core.codec import decode_value
from crdtkv.errors import CorruptionError, CrdtkvError, DeadlineExceededError, RegionUnavailableError
from crdtkv.pb.v1 import kv_pb2
from crdtkv.results import Change
from crdtkv.transport.errors import from_rpc_error

OPEN_ATTEMPTS: Final = 3
PAGES_AHEAD: Final = 4
"""Pages read before they are asked for. To begin a task and a wait for each costs as much as to read it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


class PageStream:
    """One server stream; `next_page` until it gives None.

    Args:
        request: op and args.
        timeout: seconds to wait for a page (of a watch: for the stream to open).
    """

    def __init__(self, session: Session, method: Literal["Scan", "Watch"], request: Stream, timeout: float) -> None:
        self._session = session
        self._method = method
        self._request = request
        self._timeout = timeout
        self._call: Any = None  # a grpc.aio.UnaryStreamCall; its stubs differ between versions
        self._read: deque[Any] = deque()
        """Pages, and what ended the stream, that nobody has asked for yet."""
        self._reading: asyncio.Task[None] | None = None  # of its own: who waits for a page may give up, and the stream is as it was
        self._changed: asyncio.Future[None] | None = None
        """What the one waits for who has nothing to do: the caller for a page, the reading task for room."""
        self._address = ""
        self._closed = False

    async def open(self) -> None:
        """Open the stream and wait until the node has begun it: from then on a watch misses nothing."""
        op, args = self._request
        request = kv_pb2.StreamRequest(op=op, args=_encode(args))
        for attempt in range(OPEN_ATTEMPTS):
            connection = await self._session.connected()
            self._address = connection.address
            self._call = getattr(connection.stub, self._method)(request)
            try:
                async with asyncio.timeout(self._timeout):
                    # The first page, or the end, and not the initial metadata: a refused call has some, before it has its error.
                    self._read.append(await self._call.read())
                return
            except TimeoutError:
                self.close()
                raise DeadlineExceededError(f"{op}: {self._address} did not begin within {self._timeout:g} s") from None
            except grpc.RpcError as e:
                error = from_rpc_error(e, where=self._address)
            except asyncio.CancelledError:
                if not self._lost():
                    self.close()
                    raise
                error = RegionUnavailableError(f"{self._address}: the connection was lost")
            except RegionUnavailableError as e:
                error = e
            if not isinstance(error, RegionUnavailableError) or attempt == OPEN_ATTEMPTS - 1:
                raise error
            await asyncio.sleep(0.05 * 2**attempt)

    async def next_page(self, timeout: float | None) -> list[Any] | None:
        """The rows of the next page (empty: the node is alive), or None at the end.

        Raises:
            TimeoutError: no page within `timeout`; the stream is as it was.
        """
        if self._closed:
            return None
        if self._call is None:
            await self.open()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read_ahead())
        if not self._read:
            if timeout is None:
                await self._wait()
            else:
                async with asyncio.timeout(timeout):
                    await self._wait()
        page = self._read[0]
        try:
            if isinstance(page, BaseException):
                raise page
            if page is grpc.aio.EOF:
                await self._check()
                return None
        except grpc.RpcError as e:
            raise from_rpc_error(e, where=self._address) from e
        except asyncio.CancelledError:
            if not isinstance(page, BaseException):
                raise
            if self._closed:
                return None
            if self._session.closed:
                raise closed_error() from None
            raise RegionUnavailableError(f"{self._address}: the connection was lost") from None
        self._read.popleft()
        self._wake()
        try:
            return _decode(page.rows) if page.rows else []
        except msgspec.DecodeError as e:
            raise CorruptionError(f"{self._request[0]}: a page is not a list: {e}") from e

    async def _read_ahead(self) -> None:
        """Read as long as there are pages, at most `PAGES_AHEAD` of them before they are asked for. What ends the stream stays the last."""
        page: Any = None
        while page is not grpc.aio.EOF and not isinstance(page, BaseException):
            while len(self._read) >= PAGES_AHEAD:
                await self._wait()
            try:
                page = await self._call.read()
            except (grpc.RpcError, asyncio.CancelledError) as e:
                page = e
            self._read.append(page)
            self._wake()

    async def _wait(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _check(self) -> None:
        """Raise what a stream that has ended ended with."""
        if await self._call.code() is not grpc.StatusCode.OK:
            trailers = await self._call.trailing_metadata()
            raise from_rpc_error(
                grpc.aio.AioRpcError(
                    await self._call.code(), await self._call.initial_metadata(), trailers, details=await self._call.details()
                ),
                where=self._address,
            )

    def _lost(self) -> bool:
        """Whether a cancellation is the channel's, which was closed under the call, and not our caller's."""
        task = asyncio.current_task()
        return not self._closed and not self._session.closed and (task is None or not task.cancelling())

    def close(self) -> None:
        """Cancel the stream; idempotent. Only in the session's loop."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()
        if self._reading is not None and len(self._read) >= PAGES_AHEAD:
            self._reading.cancel()  # else its read ends by that of the call


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
        except TimeoutError:
            self.close()
            raise DeadlineExceededError(f"{self._op}: no page within {self._timeout:g} s") from None
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
