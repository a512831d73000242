"""The serving end of a call that has a connection of its own (`http2`).

A handler gets a `Call`, which offers what gRPC's servicers use of their context: `read`, `write`, `abort`, `peer`. So one method serves a
call whichever way it came. The call ends with status OK when the handler returns; a caller that leaves cancels it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn
from urllib.parse import quote

import grpc
import grpc.aio
import hpack
from google.protobuf.message import DecodeError

from crdtkv.transport.http2 import STREAM, Headers, Stream, rpc_error
from crdtkv.transport.messages import Messages, StreamEnded

Metadata = Sequence[tuple[str, str | bytes]]

_MAX_CONCURRENT_STREAMS: Final = 3
_REFUSED_STREAM: Final = 7
_LINGER_S: Final = 1.0
"""How long a caller that has been told the end may take to close the connection: if we did at once, what it has sent meanwhile would
reset the connection, and it might not read the end."""
_TRAILERS_S: Final = 60.0
"""How long a caller that does not read may take to read what was sent before the end."""
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""Characters that stand for themselves in a status message."""

_log = logging.getLogger("crdtkv.node")


class Call:
    """A call, as its handler sees it.

    Attributes:
        stream, messages: for a handler that would rather look when told to (`Messages.changed`) than wait.
    """

    def __init__(self, stream: ServerStream, messages: Messages, request: Any) -> None:
        self.stream = stream
        self.messages = messages
        self._parse = request.FromString

    def peer(self) -> str:
        """Who calls, for people."""
        return self.stream.address

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`.

        Raises:
            grpc.aio.AioRpcError: the caller left, or its connection broke.
        """
        try:
            data = await self.messages.receive()
        except StreamEnded as e:
            raise e.error or rpc_error(grpc.StatusCode.CANCELLED, "the call is over") from None
        if data is None:
            return grpc.aio.EOF
        try:
            return self._parse(data)
        except DecodeError:
            await self.abort(grpc.StatusCode.INTERNAL, "a message cannot be parsed")

    async def write(self, message: Any) -> None:
        """Send a message; returns when it is on its way.

        Raises:
            grpc.aio.AioRpcError: as `read`.
        """
        try:
            await self.messages.send(message.SerializeToString())
        except StreamEnded as e:
            raise e.error or rpc_error(grpc.StatusCode.CANCELLED, "the call is over") from None

    def write_now(self, message: Any) -> bool:
        """Send a message if that takes no waiting, while nobody waits in `write`; False: it was not sent."""
        if not self.messages.can_send:
            return False
        self.messages.send_now(message.SerializeToString())
        return True

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with an error; raises `grpc.aio.AbortError`."""
        self.stream.finish(code, details, trailing_metadata)
        raise grpc.aio.AbortError(code, details)


Handler = Callable[[Call], Awaitable[None]]


class Method:
    """What is called under a path: the type of its requests, and what serves it.

    Args:
        request: a class of protobuf messages.
        serve: gets the call; for a method with a single request, `of_one_request` makes it.
    """

    __slots__ = ("request", "serve")

    def __init__(self, request: Any, serve: Handler) -> None:
        self.request = request
        self.serve = serve


def of_one_request(serve: Callable[[Any, Any], Awaitable[None]]) -> Handler:
    """The handler of a method that takes one request and answers with a stream."""

    async def handler(call: Call) -> None:
        request = await call.read()
        if request is grpc.aio.EOF:
            await call.abort(grpc.StatusCode.INTERNAL, "the call has no request")
        await serve(request, call)

    return handler


def of_stream(serve: Callable[[Any, Any], Awaitable[None]]) -> Handler:
    """The handler of a method that takes a stream of requests, which it reads from its context."""

    async def handler(call: Call) -> None:
        await serve(None, call)

    return handler


class ServerStream(Stream):
    """The serving end. `closed` is to be awaited after `cancel` or the end of the call.

    Args:
        methods: what can be called, by path.
        address: of the caller, for people.
    """

    def __init__(self, methods: Mapping[bytes, Method], address: str, message_bytes_max: int) -> None:
        self._messages = Messages()
        super().__init__(self._messages.arrived, self._go_on, message_bytes_max)
        self.address = address
        self._methods = methods
        self._encoder = hpack.Encoder()
        self._serving: asyncio.Task[None] | None = None
        self._trailers: bytes | None = None  # what is to be sent once all before it has gone

    def connection_made(self, transport: Any) -> None:
        self._greet(transport, b"", (_MAX_CONCURRENT_STREAMS, 1))

    def cancel(self) -> None:
        """End the call, and the connection soon; idempotent."""
        if self._serving is not None and not self._serving.done():
            self._serving.cancel()
        else:
            self._leave(None)

    def finish(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        """End the call with a status, once all that was sent before has gone; idempotent."""
        if self.ended.done() or self._trailers is not None:
            return
        headers = [(b"grpc-status", str(code.value[0]).encode())]
        if self._serving is None:  # nothing was said yet
            headers = [(b":status", b"200"), (b"content-type", b"application/grpc"), *headers]
        if details:
            headers.append((b"grpc-message", quote(details, safe=_PLAIN).encode()))
        for name, value in metadata:
            data = base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("latin-1", "replace")
            headers.append((name.encode(), data))
        self._trailers = self._encoder.encode(headers)
        self._loop.call_later(_TRAILERS_S, self._give_up)
        self._send_trailers()

    def _send_trailers(self) -> None:
        if self._trailers is None or self._unsent or self.ended.done():
            return
        self._send_headers(self._trailers, ends=True)
        self._end(None)
        self._loop.call_later(_LINGER_S, self._transport.close)

    def _give_up(self) -> None:
        if not self.gone.done():
            self._end(None)
            self._transport.abort()

    def _go_on(self) -> None:
        self._messages.writable()
        self._send_trailers()

    def _begin(self, headers: Headers) -> None:
        path = headers.get(b":path", b"")
        method = self._methods.get(path)
        if method is None:
            self.finish(grpc.StatusCode.UNIMPLEMENTED, f"{path.decode('ascii', 'replace')} cannot be called on a connection of its own")
            return
        self._send_headers(self._encoder.encode([(b":status", b"200"), (b"content-type", b"application/grpc")]), ends=False)
        self._messages.begin(self)
        self._serving = self._loop.create_task(self._serve(method))
        self.ended.add_done_callback(self._left)

    def _left(self, _: object) -> None:
        if self._trailers is None and self._serving is not None:
            self._serving.cancel()

    async def _serve(self, method: Method) -> None:
        try:
            await method.serve(Call(self, self._messages, method.request))
            self.finish(grpc.StatusCode.OK)
        except grpc.aio.AbortError:
            pass  # it has said why
        except asyncio.CancelledError:
            self.finish(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        except grpc.aio.AioRpcError:
            pass  # the caller left
        except Exception as e:
            _log.exception("a call failed")
            self.finish(grpc.StatusCode.UNKNOWN, f"{type(e).__name__}: {e}")

    def _take_headers(self, stream: int, headers: Headers, ends: bool) -> None:
        if stream != STREAM:
            self._send_reset(stream, _REFUSED_STREAM)
            return
        if self._serving is None:
            self._begin(headers)
        if ends and not self.ended.done():
            self._take_end()

    def _take_end(self) -> None:
        self._messages.whole()

    def _take_reset(self, code: int) -> None:
        self._leave(rpc_error(grpc.StatusCode.CANCELLED, f"the caller ended the call (code {code})"))

    def _refuse(self, code: grpc.StatusCode, text: str) -> None:
        self.finish(code, text)
        if self._serving is not None:
            self._serving.cancel()
