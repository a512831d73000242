"""The KeyValue service: client sessions, streaming reads, watches, and unary calls for other languages.

A *session* is one bidirectional stream that carries the requests of many callers. The node reads a message, hands all
of its requests to the storage worker as they are, and answers with what has been executed: all replies that gathered
while the previous message was being written travel in the next one, so both ends batch at their own pace and the work
of a message is shared. No task, future or timer exists per request. When `session_window_max` requests of a session
are unanswered the node stops reading it, and HTTP/2 flow control stops the client. A session that comes by a stream of ours
(`transport.answering`) has no task that waits, either: what comes is submitted where the socket is read, and answers are written where they
are delivered.

*Streaming reads* pull one page at a time from a consistent snapshot, in a reader thread, and only when the previous
page has left: a million-element set costs one page of memory. A *watch* is in `pages`.

No message approaches the limit of gRPC: pages are encoded under `PAGE_BYTES_MAX` and replies under four times that; a row
that is larger by itself travels alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import msgspec
from google.protobuf.message import DecodeError
from grpc import aio

from crdtkv.core.codec import decode_value, encode_value
from crdtkv.errors import (
    CrdtkvError,
    InvalidValueError,
    OverloadedError,
    RegionUnavailableError,
    error_from_parts,
)
from crdtkv.node.config import Limits
from crdtkv.node.logging import event
from crdtkv.node.pages import PAGE_BYTES_MAX, Context, Watch, encode_rows, too_slow
from crdtkv.node.worker import Row, StorageWorker, as_crdtkv_error
from crdtkv.pb.v1 import kv_pb2, kv_pb2_grpc
from crdtkv.results import ONE_BY_ONE
from crdtkv.store.requests import BLOCKS
from crdtkv.transport.answering import Call
from crdtkv.transport.errors import status_code, trailing_metadata
from crdtkv.transport.loop import give_way

S = TypeVar("S")
R = TypeVar("R")

REPLIES_BYTES_MAX: Final = 4 * PAGE_BYTES_MAX

SCANS: Final = ("scan", "smembers", "hitems", "delta_since")

_requests = msgspec.msgpack.Decoder(list[tuple[int, str, list[Any], bytes | dict[str, Any] | None]])
_row = msgspec.msgpack.Decoder(tuple[str, list[Any], bytes | dict[str, Any] | None])
_args = msgspec.msgpack.Decoder(list[Any])
_encoder = msgspec.msgpack.Encoder(enc_hook=str)


def encode_replies(replies: list[Any]) -> Iterator[bytes]:
    """MessagePack lists that together hold `replies` in order, each under `REPLIES_BYTES_MAX` unless the answer to a single request is
    larger. The answers to a block that come one by one may be in several of them."""
    data = _encoder.encode(replies)
    if len(data) <= REPLIES_BYTES_MAX:
        yield data
    elif len(replies) > 1:
        half = len(replies) // 2
        yield from encode_replies(replies[:half])
        yield from encode_replies(replies[half:])
    else:
        number, status, payload = replies[0]
        if status == ONE_BY_ONE and len(payload) > 1:
            half = len(payload) // 2
            yield from encode_replies([[number, status, payload[:half]]])
            yield from encode_replies([[number, status, payload[half:]]])
        else:
            yield data


async def abort(context: Context, error: BaseException) -> None:
    """End a call with the status and details of `error`; raises."""
    ours = as_crdtkv_error(error)
    if ours is not error:
        event(logging.ERROR, "call_failed", error=f"{type(error).__name__}: {error}")
    await context.abort(status_code(ours), str(ours), trailing_metadata(ours))


def unary(method: Callable[[S, Any, Context], Coroutine[Any, Any, R]]) -> Callable[[S, Any, Context], Coroutine[Any, Any, R]]:
    """Errors of a call leave as a status with details."""

    @functools.wraps(method)
    async def call(self: S, request: Any, context: Context) -> R:
        try:
            return await method(self, request, context)
        except (aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as e:
            await abort(context, e)
            raise

    return call


class _ClientSession(ABC):
    """One Session stream: what comes is submitted, and answers leave when the one before has."""

    def __init__(self, worker: StorageWorker, limits: Limits) -> None:
        self._worker = worker
        self._window_max = limits.session_window_max
        # Read and not yet handed on as a reply: replies that the client does not fetch count against its window.
        self._outstanding = 0
        self._replies: list[Any] = []
        self._answered = 0  # requests that these answer
        self._token = ""

    @abstractmethod
    async def run(self) -> None:
        """Serve until the client closes its side, the call ends or `finish` is called."""

    @abstractmethod
    def finish(self) -> None:
        """Read no more; `run` returns when what was read has been answered."""

    @abstractmethod
    def _gathered(self) -> None:
        """There are replies."""

    def _submit(self, message: Any) -> None:
        data = message.rows
        try:
            rows = _requests.decode(data)
        except msgspec.MsgspecError as e:
            raise InvalidValueError(f"rows: not a list of requests [id, op, args, options]: {e}") from e
        submitted = self._worker.submit(rows, len(data), self._deliver, message.deadline_ms)  # which may deliver a refusal at once
        self._outstanding += submitted

    def _deliver(self, replies: list[Any], count: int, token: str) -> None:
        self._answered += count
        if self._replies:
            self._replies.extend(replies)
        else:
            self._replies = replies
        if token:
            self._token = token
        self._gathered()

    def _take_replies(self) -> tuple[list[Any], int]:
        """Messages with all that has gathered, and how many requests they answer."""
        replies, self._replies = self._replies, []
        answered, self._answered = self._answered, 0
        token = self._token
        return [kv_pb2.ReplyBatch(rows=data, token=token) for data in encode_replies(replies)], answered


class _DirectSession(_ClientSession):
    """Over a stream of ours: each message is submitted where it is read, and answers leave where they are delivered."""

    def __init__(self, call: Call, worker: StorageWorker, limits: Limits) -> None:
        super().__init__(worker, limits)
        self._stream = call.stream
        self._messages = call.messages
        self._outgoing: deque[tuple[Any, int]] = deque()
        """Messages, and how many requests are answered once each has left."""
        self._is_read = False  # nothing more is read
        self._error: Exception | None = None  # why
        self._is_going_on = False
        self._is_asked = False  # to go on in the next iteration of the loop
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        self._messages.changed = self._go_on
        self._go_on()
        await self._done

    def finish(self) -> None:
        self._is_read = True
        self._go_on()

    def _gathered(self) -> None:
        if self._answered >= self._outstanding:
            self._go_on()
        elif not self._is_asked:  # more may come of the same turn, and go with these
            self._is_asked = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Send and read what can be. Called when either may have become possible."""
        self._is_asked = False
        if self._is_going_on or self._done.done():
            return
        self._is_going_on = True
        try:
            while True:
                if self._replies or self._outgoing:
                    self._write()
                if not self._read():
                    break
        except (InvalidValueError, DecodeError) as e:
            self._is_read, self._error = True, e
        finally:
            self._is_going_on = False
        if (self._is_read or self._messages.is_whole) and not self._outstanding and not self._outgoing and not self._replies:
            if self._error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(self._error)

    def _write(self) -> None:
        outgoing = self._outgoing
        while (outgoing or self._replies) and self._stream.can_send:
            if not outgoing:
                messages, answered = self._take_replies()
                last = messages.pop()
                if messages:
                    outgoing.extend([(message, 0) for message in messages])
                outgoing.append((last, answered))
            message, answered = outgoing.popleft()
            self._stream.send(message.SerializeToString())
            self._outstanding -= answered

    def _read(self) -> bool:
        """Submit the next message; False: there is none, or no room for its answers."""
        if self._is_read or self._outstanding > self._window_max or (data := self._messages.take()) is None:
            return False
        self._submit(kv_pb2.RequestBatch.FromString(data))
        return True


class _ContextSession(_ClientSession):
    """Over a call of gRPC's: a reader that submits, a writer that sends what has gathered."""

    def __init__(self, context: Context, worker: StorageWorker, limits: Limits) -> None:
        super().__init__(worker, limits)
        self._context = context
        self._changed = asyncio.Event()  # replies gathered, or nothing more will come
        self._room = asyncio.Event()  # the window has room
        self._read_all = False
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> None:
        self._reader = asyncio.create_task(self._read())
        try:
            await self._write()
            if self._reader.done() and not self._reader.cancelled():
                self._reader.result()
        finally:
            self._reader.cancel()

    def finish(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    def _gathered(self) -> None:
        self._changed.set()

    async def _read(self) -> None:
        try:
            while (message := await self._context.read()) is not aio.EOF:
                self._submit(message)
                while self._outstanding > self._window_max:
                    self._room.clear()
                    await self._room.wait()
                await give_way()
        finally:
            self._read_all = True
            self._changed.set()

    async def _write(self) -> None:
        while not (self._read_all and not self._outstanding):
            await self._changed.wait()
            self._changed.clear()
            while self._replies:
                messages, answered = self._take_replies()
                for message in messages:
                    await self._context.write(message)
                self._outstanding -= answered
                self._room.set()


class KeyValueService(kv_pb2_grpc.KeyValueServicer):
    """`crdtkv.v1.KeyValue`. Between `open` and `close` it serves; otherwise calls are refused as unavailable."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._store: Any = None
        self._worker: StorageWorker | None = None
        self._sessions: set[_ClientSession] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self.errors: Counter[str] = Counter()
        """Scans and watches that ended with an error since the start, by code."""
        self._why_closed = "the node is still opening its store"

    def open(self, store: Any, worker: StorageWorker) -> None:
        """Serve `store`."""
        self._store = store
        self._worker = worker

    def close(self) -> None:
        """Take nothing more; sessions end when what they have read is answered, streams are cut."""
        self._why_closed = "the node is shutting down"
        self._worker = None
        for session in self._sessions:
            session.finish()
        for stream in self._streams:
            stream.cancel()

    @property
    def ready(self) -> bool:
        """Takes requests."""
        return self._worker is not None

    @property
    def sessions(self) -> int:
        """Clients connected."""
        return len(self._sessions)

    @property
    def streams(self) -> int:
        """Scans and watches open."""
        return len(self._streams)

    def _serving(self) -> StorageWorker:
        if self._worker is None:
            raise RegionUnavailableError(f"{self._why_closed}; use another endpoint or try again")
        return self._worker

    # -- sessions -------------------------------------------------------------------------------------------------

    async def Session(self, request_iterator: AsyncIterator[Any], context: Context) -> None:
        try:
            worker = self._serving()
            session = (
                _DirectSession(context, worker, self._limits)
                if isinstance(context, Call)
                else _ContextSession(context, worker, self._limits)
            )
            self._sessions.add(session)
            try:
                await session.run()
            finally:
                self._sessions.discard(session)
            self._serving()  # shutting down: an error, so that the client goes elsewhere
        except CrdtkvError as e:
            await abort(context, e)

    # -- streaming reads ------------------------------------------------------------------------------------------

    async def Scan(self, request: Any, context: Context) -> None:
        async def scan() -> None:
            if request.op not in SCANS:
                raise InvalidValueError(f"op: {request.op!r} is not one of {', '.join(SCANS)}", op=request.op)
            async with contextlib.aclosing(self._pages(request.op, _decode_args(request.args))) as pages:
                async for rows in pages:
                    for data in encode_rows(rows):
                        await self._send(context, kv_pb2.Page(rows=data))

        await self._stream(context, scan())

    async def Members(self, request: Any, context: Context) -> None:
        async def members() -> None:
            async with contextlib.aclosing(self._pages("smembers", [request.key])) as pages:
                async for rows in pages:
                    for part in _slices(rows, PAGE_BYTES_MAX):
                        await self._send(context, kv_pb2.MembersReply(elements=[to_value(element) for element in part]))

        await self._stream(context, members())

    async def _pages(self, op: str, args: list[Any]) -> AsyncGenerator[list[Any], None]:
        worker = self._serving()
        pages = await worker.read(self._store.open_scan, op, args)
        # A call that is cancelled leaves a page under way in its thread: the lock lets that finish before the close.
        lock = threading.Lock()

        def take() -> list[Any] | None:
            with lock:
                return next(pages, None)

        def close() -> None:
            with lock:
                pages.close()  # ends the snapshot that the scan reads from

        try:
            while (rows := await worker.read(take)) is not None:
                if rows:
                    yield rows
        finally:
            worker.read_soon(close)

    async def Watch(self, request: Any, context: Context) -> None:
        async def watch() -> None:
            if request.op != "watch":
                raise InvalidValueError(f"op: {request.op!r} is not 'watch'", op=request.op)
            args = _decode_args(request.args)
            prefix = args[0] if args else ""
            since = args[1] if len(args) > 1 else None
            await self._watch(context, prefix, since)

        await self._stream(context, watch())

    async def _watch(self, context: Context, prefix: str, since: str | None) -> None:
        worker = self._serving()
        watch = Watch(context, worker, self._limits.watch_stall_ms)
        feed = await self._subscribe(worker, prefix, since, watch.notify)
        try:
            await watch.follow(feed)
        finally:
            worker.read_soon(feed.close)  # takes the store's lock

    async def _subscribe(self, worker: StorageWorker, prefix: str, since: str | None, notify: Callable[[], object]) -> Any:
        """A feed from a reader thread. A call that is cancelled meanwhile leaves none behind."""
        cancelled = threading.Event()

        def subscribe() -> Any:
            feed = self._store.subscribe(prefix, since, notify)
            if cancelled.is_set():
                feed.close()  # here: when this gets to the loop, a node that shuts down has no reader any more
            return feed

        def unsubscribe(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                worker.read_soon(done.result().close)  # it may have been made before it heard; closing twice is fine

        subscribing = asyncio.ensure_future(worker.read(subscribe))
        try:
            return await asyncio.shield(subscribing)
        except asyncio.CancelledError:
            cancelled.set()
            subscribing.add_done_callback(unsubscribe)
            raise

    async def _stream(self, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run a streaming call as a task of its own, so that `close` can cut it."""
        if len(self._streams) >= self._limits.streams_max:
            work.close()
            limit = self._limits.streams_max
            self.errors[OverloadedError.code] += 1
            await abort(context, OverloadedError(f"{limit} scans and watches are open, the limit", limit=limit, retry_after_ms=1000))
        task = asyncio.create_task(work)
        self._streams.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._streams.discard(task)
            task.cancel()
        if task.cancelled():
            await abort(context, RegionUnavailableError("the node is shutting down; go on elsewhere, or from the last token"))
        elif (error := task.exception()) is not None:
            self.errors[as_crdtkv_error(error).code] += 1
            await abort(context, error)

    async def _send(self, context: Context, message: Any, last: str | None = None) -> None:
        try:
            async with asyncio.timeout(self._limits.watch_stall_ms / 1000):
                await context.write(message)
        except TimeoutError as e:
            raise too_slow(f"nothing was read for {self._limits.watch_stall_ms} ms", last) from e

    # -- unary calls ----------------------------------------------------------------------------------------------

    async def _one(self, context: Context, op: str, args: list[Any], options: bytes | dict[str, Any] | None = None) -> tuple[Any, str]:
        """Execute one request; returns its payload and the token, or raises its error."""
        worker = self._serving()
        remaining_s = _remaining_s(context)
        answered: asyncio.Future[tuple[Any, str]] = asyncio.get_running_loop().create_future()

        def deliver(replies: list[Row], count: int, token: str) -> None:
            if answered.done():  # the caller left
                return
            _, status, payload = replies[0]
            if status:
                answered.set_exception(error_from_parts(*payload))
            else:
                answered.set_result((payload, token))

        worker.submit([(0, op, args, options)], 0, deliver, 0 if remaining_s is None else max(1, int(remaining_s * 1000)))
        return await answered

    async def _write(self, context: Context, op: str, args: list[Any], request_id: bytes) -> Any:
        payload, token = await self._one(context, op, args, request_id or None)
        if payload is None:
            return kv_pb2.WriteReply(token=token)
        origin, seq, hlc = payload
        return kv_pb2.WriteReply(commit=kv_pb2.Commit(origin=origin, seq=seq, hlc=hlc), token=token)

    @unary
    async def Get(self, request: Any, context: Context) -> Any:
        payload, token = await self._one(context, "get", [request.key])
        return _value_reply(payload, token)

    @unary
    async def Put(self, request: Any, context: Context) -> Any:
        return await self._write(context, "put", [request.key, from_value(request.value, "value"), _ttl(request)], request.request_id)

    @unary
    async def Delete(self, request: Any, context: Context) -> Any:
        return await self._write(context, "delete", [request.key], request.request_id)

    @unary
    async def Add(self, request: Any, context: Context) -> Any:
        return await self._write(context, "sadd", [request.key, _elements(request), _ttl(request)], request.request_id)

    @unary
    async def Remove(self, request: Any, context: Context) -> Any:
        return await self._write(context, "sdiscard", [request.key, _elements(request)], request.request_id)

    @unary
    async def Increment(self, request: Any, context: Context) -> Any:
        return await self._write(context, "cincr", [request.key, request.by], request.request_id)

    @unary
    async def GetCounter(self, request: Any, context: Context) -> Any:
        payload, token = await self._one(context, "cget", [request.key])
        if type(payload) is not int or not -(2**63) <= payload < 2**63:
            raise InvalidValueError(
                f"key {request.key!r}: the counter reads {payload}, which this call's 64 bits cannot hold: read it over a Session or Scan",
                key=request.key,
                value=str(payload),
            )
        return kv_pb2.CounterReply(found=True, value=payload, token=token)

    @unary
    async def PutField(self, request: Any, context: Context) -> Any:
        args = [request.key, request.field, from_value(request.value, "value"), _ttl(request)]
        return await self._write(context, "hput", args, request.request_id)

    @unary
    async def GetField(self, request: Any, context: Context) -> Any:
        payload, token = await self._one(context, "hget", [request.key, request.field])
        return _value_reply(payload, token)

    @unary
    async def DeleteField(self, request: Any, context: Context) -> Any:
        return await self._write(context, "hdel", [request.key, request.field], request.request_id)

    @unary
    async def Execute(self, request: Any, context: Context) -> Any:
        try:
            op, args, options = _row.decode(request.row)
        except msgspec.MsgspecError as e:
            raise InvalidValueError(f"row: not [op, args, options]: {e}") from e
        if op in BLOCKS:
            raise InvalidValueError(f"op: {op!r} stands for many requests, which a Session carries: send one, or open that", op=op)
        payload, token = await self._one(context, op, args, options)
        return kv_pb2.Row(row=_encoder.encode(payload), token=token)


def _remaining_s(context: Any) -> float | None:
    """What is left of a call's deadline, None if it has none (which gRPC's annotations forget)."""
    return context.time_remaining()  # type: ignore[no-any-return]


def _decode_args(data: bytes) -> list[Any]:
    try:
        return _args.decode(data) if data else []
    except msgspec.MsgspecError as e:
        raise InvalidValueError(f"args: not a MessagePack list: {e}") from e


def _slices(elements: list[bytes], bytes_max: int) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for element in elements:
        if part and size + len(element) > bytes_max:
            yield part
            part, size = [], 0
        part.append(element)
        size += len(element)
    if part:
        yield part


# -- protobuf values ----------------------------------------------------------------------------------------------


def from_value(value: Any, field: str) -> bytes:
    """The canonical encoding of a protobuf `Value`."""
    if value.msgpack:
        return bytes(value.msgpack)
    scalar = value.WhichOneof("scalar")
    if scalar is None:
        raise InvalidValueError(f"{field}: set msgpack or one of the scalars; null is msgpack 0xc0", field=field)
    return encode_value(getattr(value, scalar))


def to_value(data: bytes) -> Any:
    """A protobuf `Value` with the canonical encoding, and the scalar where there is one."""
    value = decode_value(data)
    match value:
        case bool():
            return kv_pb2.Value(msgpack=data, truth=value)
        case int() if value < 1 << 63:
            return kv_pb2.Value(msgpack=data, integer=value)
        case float():
            return kv_pb2.Value(msgpack=data, real=value)
        case str():
            return kv_pb2.Value(msgpack=data, text=value)
        case bytes():
            return kv_pb2.Value(msgpack=data, data=value)
        case _:
            return kv_pb2.Value(msgpack=data)


def _value_reply(payload: bytes | None, token: str) -> Any:
    if payload is None:
        return kv_pb2.ValueReply(found=False, token=token)
    return kv_pb2.ValueReply(found=True, value=to_value(payload), token=token)


def _elements(request: Any) -> list[bytes]:
    return [from_value(element, f"elements[{i}]") for i, element in enumerate(request.elements)]


def _ttl(request: Any) -> float | None:
    return request.ttl_s if request.HasField("ttl_s") else None
