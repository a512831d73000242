"""The messages of a stream, one after the other: for whoever waits for the next, and for room to send; or looks when told to.

What came and was not yet asked for is bounded: past `ARRIVED_BYTES_MAX` the other end is granted no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import grpc.aio

from crdtkv.transport.http2 import Stream

ARRIVED_BYTES_MAX: Final = 1 << 20


class StreamEnded(Exception):
    """The call is over.

    Attributes:
        error: what it ended with; None: with status OK, or from this side.
    """

    def __init__(self, error: grpc.aio.AioRpcError | None) -> None:
        super().__init__(str(error))
        self.error = error


class Messages:
    """Made before its stream, which gets `arrived` and `writable` as its callbacks; then `begin`."""

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._arrived: deque[bytes] = deque()
        self._arrived_bytes = 0
        self._is_withheld = False
        self._is_whole = False
        self._news = asyncio.Event()  # something came, or nothing more will
        self._room = asyncio.Event()  # it can be sent, or the call is over
        self.changed: Callable[[], None] = _nobody
        """Called when something came or nothing more will, when there is room to send, and when the call is over."""

    def begin(self, stream: Stream) -> None:
        """The stream whose callbacks these are."""
        self._stream = stream
        stream.ended.add_done_callback(self._over)

    def arrived(self, message: bytes) -> None:
        """A message has come."""
        if self._is_whole:
            return
        self._arrived.append(message)
        self._arrived_bytes += len(message)
        self.changed()
        if self._arrived:  # else it was taken, and nobody need wake up
            self._news.set()
        if self._arrived_bytes > ARRIVED_BYTES_MAX and self._stream is not None and not self._is_withheld:
            self._is_withheld = True
            self._stream.withhold()

    def whole(self) -> None:
        """All messages have come."""
        self._is_whole = True
        self._news.set()
        self.changed()

    def writable(self) -> None:
        """There is room to send."""
        self._room.set()
        self.changed()

    def _over(self, _: object) -> None:
        self._news.set()
        self._room.set()
        self.changed()

    @property
    def is_whole(self) -> bool:
        """All messages have come, and have been taken."""
        return self._is_whole and not self._arrived

    @property
    def can_send(self) -> bool:
        """There is room to send."""
        return self._stream is not None and self._stream.can_send

    def send_now(self, message: bytes) -> None:
        """Hand over a message. Only if `can_send`, and while nobody waits in `send`."""
        assert self._stream is not None
        self._stream.send(message)

    async def send(self, message: bytes) -> None:
        """Hand over a message, when all before it has gone. One caller at a time.

        Raises:
            StreamEnded: the call is over.
        """
        stream = self._stream
        assert stream is not None
        while not stream.can_send:
            if stream.ended.done():
                raise StreamEnded(stream.ended.result())
            self._room.clear()
            await self._room.wait()
        stream.send(message)

    async def receive(self) -> bytes | None:
        """The next message; None when all have been taken. One caller at a time.

        Raises:
            StreamEnded: the call is over, and what had come before has been taken.
        """
        stream = self._stream
        assert stream is not None
        while not self._arrived:
            if self._is_whole:
                return None
            if stream.ended.done():
                raise StreamEnded(stream.ended.result())
            self._news.clear()
            await self._news.wait()
        return self.take()

    def take(self) -> bytes | None:
        """The next message, if one has come."""
        if not self._arrived:
            return None
        message = self._arrived.popleft()
        self._arrived_bytes -= len(message)
        if self._is_withheld and self._arrived_bytes <= ARRIVED_BYTES_MAX // 2:
            self._is_withheld = False
            assert self._stream is not None
            self._stream.grant()
        return message


def _nobody() -> None:
    """Is not told."""
