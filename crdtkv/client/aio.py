"""The asyncio client: what `crdtkv.open` gives, over gRPC, awaited. What cannot be awaited has a method twin: `exists` for `in`,
`get` for `[]`, `size` for `len`, `value()` for the property.

Requests of one turn of the event loop travel in one message, so `asyncio.gather` of a thousand puts costs a message or two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from threading import get_ident
from types import TracebackType
from typing import Any, Self

from crdtkv.client import wire
from crdtkv.client.batch import AsyncBatch
from crdtkv.client.endpoints import Credentials, check_endpoints, credentials
from crdtkv.client.pipeline import PipelineCore
from crdtkv.client.runtime import runtime
from crdtkv.client.session import Session, closed_error
from crdtkv.client.stream import AsyncItems, ChangeReader, RowReader
from crdtkv.client.wire import Call, Stream
from crdtkv.core.causality import VersionVector
from crdtkv.errors import InvalidValueError, RegionUnavailableError, StoreClosedError
from crdtkv.results import Commit, Conflict, Explanation, MergeResult, Sibling, Status


class _Core:
    """What a client and its views with another timeout share. The session is made in the first loop that uses it."""

    __slots__ = ("closed", "credentials", "endpoints", "generation", "loop", "session", "thread")

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None) -> None:
        self.endpoints = tuple(endpoints)
        self.credentials = credentials
        self.generation = runtime.generation
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self.session: Session | None = None
        self.closed = False

    def check(self) -> Session:
        """The session, for the running loop."""
        if self.generation != runtime.generation:
            raise StoreClosedError("this client belongs to the parent process: connect again after a fork")
        if self.closed:
            raise closed_error()
        loop = asyncio.get_running_loop()
        if self.session is None:
            self.loop = loop
            self.thread = get_ident()
            self.session = Session(self.endpoints, credentials=self.credentials)
        elif self.loop is not loop:
            raise InvalidValueError("this client belongs to another event loop: connect in the loop that uses it")
        return self.session


class AsyncClient:
    """A region's store over gRPC, for one event loop. `async with` closes it; awaiting it waits for the connection."""

    def __init__(self, endpoints: Sequence[str], *, timeout: float = 5.0, credentials: Credentials | None = None) -> None:
        self._core = _Core(endpoints, credentials)
        self._timeout = timeout

    def with_timeout(self, seconds: float) -> AsyncClient:
        """This client with another deadline per request; shares the connection, and ends with it."""
        view = object.__new__(AsyncClient)
        view._core, view._timeout = self._core, wire.check_timeout(seconds)
        return view

    # -- how calls are made ---------------------------------------------------------------------------------------------

    def _session(self) -> Session:
        """The session, with room for another request."""
        core = self._core
        session, loop = core.session, core.loop
        if (
            session is None
            or loop is None
            # In its thread and running, so it is the running loop: `get_running_loop` asks the system for the process's id each time.
            or core.thread != get_ident()
            or not loop.is_running()
            or core.closed
            or core.generation != runtime.generation
        ):
            session = core.check()
        if session.pending.requests >= session.pending_max:
            session.check_room()
        return session

    def _call(self, call: Call, durability: str | None = None) -> asyncio.Future[Any]:
        if durability is not None:
            wire.set_durability(call, durability)
        session = self._session()
        call.sink = future = session.loop.create_future()
        session.submit(call, self._timeout)
        return future

    def _put(self, key: str, value: Any) -> asyncio.Future[Any]:
        data, weight = wire.plain_put(key, value)
        if weight > wire.BLOCK_BYTES_MAX:
            return self._call(wire.put(key, value))
        session = self._session()
        future: asyncio.Future[Any] = asyncio.Future(loop=session.loop)
        session.gather("puts", weight, self._timeout).add_put(key, data, weight, future)
        return future

    def _get(self, key: str) -> asyncio.Future[Any]:
        wire.check_key(key)
        session = self._session()
        future: asyncio.Future[Any] = asyncio.Future(loop=session.loop)
        session.gather("gets", wire.GET_WEIGHT, self._timeout).add_get(key, future)
        return future

    def _rows(self, request: Stream) -> AsyncItems:
        return AsyncItems(RowReader(self._core.check(), request, self._timeout))

    async def _all(self, request: Stream) -> list[Any]:
        async with self._rows(request) as rows:
            return [row async for row in rows]

    async def _connected(self) -> Self:
        session = self._core.check()
        try:
            async with asyncio.timeout(self._timeout):
                await session.connected()
        except TimeoutError:
            where = ", ".join(session.endpoints)
            raise RegionUnavailableError(f"no answer from {where} within {self._timeout:g} s", endpoints=list(session.endpoints)) from None
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._connected().__await__()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints, in the order in which they are tried."""
        return self._core.endpoints

    # -- registers ------------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Write a register; `ttl` in seconds."""
        plain = ttl is None and durability is None
        result: Commit | None = await (self._put(key, value) if plain else self._call(wire.put(key, value, ttl, durability)))
        return result

    async def get(self, key: str, default: Any = None) -> Any:
        """The winner of a register, or `default`."""
        return await (self._get(key) if default is None else self._call(wire.get(key, default)))

    # -- keys of any type -----------------------------------------------------------------------------------------------

    async def exists(self, key: str) -> bool:
        """Whether anything is visible at the key."""
        return bool(await self._call(wire.exists(key)))

    async def types(self, key: str) -> list[str]:
        """The visible types at the key; two after concurrent writes of two types."""
        return list(await self._call(wire.types(key)))

    async def delete(self, key: str, *, durability: str | None = None) -> Commit | None:
        """Remove a key of any type; None if it was absent."""
        result: Commit | None = await self._call(wire.delete(key), durability)
        return result

    async def ttl(self, key: str) -> float | None:
        """Seconds until the register expires; None: never, or absent."""
        result: float | None = await self._call(wire.ttl(key))
        return result

    async def expire(self, key: str, seconds: float | None, *, durability: str | None = None) -> Commit | None:
        """Let the register expire after `seconds`; None: never."""
        result: Commit | None = await self._call(wire.expire(key, seconds), durability)
        return result

    async def count(self, prefix: str = "") -> int:
        """How many keys have the prefix."""
        return int(await self._call(wire.count(prefix)))

    async def delete_prefix(self, prefix: str, *, durability: str | None = None) -> Commit | None:
        """Remove all keys with the prefix; the last commit of it, None if there was none."""
        result: Commit | None = await self._call(wire.delete_prefix(prefix), durability)
        return result

    def set(self, key: str) -> AsyncSetHandle:
        """The set at a key; absent: empty."""
        return AsyncSetHandle(self, key)

    def counter(self, key: str) -> AsyncCounterHandle:
        """The counter at a key; absent: 0."""
        return AsyncCounterHandle(self, key)

    def map(self, key: str) -> AsyncMapHandle:
        """The map at a key; absent: empty."""
        return AsyncMapHandle(self, key)

    # -- many at once ---------------------------------------------------------------------------------------------------

    def batch(self, *, durability: str | None = None) -> AsyncBatch:
        """Writes that become one atomic commit when the `async with` block ends."""
        return AsyncBatch(self, durability)

    def pipeline(self) -> AsyncPipeline:
        """Calls that are sent together when the `async with` block ends; each returns a `Result`."""
        return AsyncPipeline(self)

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        types: Iterable[str] | None = None,
    ) -> AsyncItems:
        """Pairs of key and value in key order, `start <= key < end`: one consistent snapshot."""
        return self._rows(wire.scan(prefix, start, end, limit, reverse, types))

    def watch(self, prefix: str = "", *, since: str | None = None, timeout: float | None = None) -> AsyncItems:
        """Changes from now, or from after a token, on; ends when nothing changed for `timeout` seconds.

        Opening begins at the call; `await` the iterator to know that it is done: changes made after that are not missed.
        """
        reader = ChangeReader(self._core.check(), wire.watch(prefix, since), timeout, self._timeout)
        return AsyncItems(reader, asyncio.get_running_loop().create_task(reader.open()))

    # -- what happened --------------------------------------------------------------------------------------------------

    async def siblings(self, key: str) -> list[Sibling]:
        """The concurrent values of a register, the winner first."""
        return list(await self._call(wire.siblings(key)))

    async def explain(self, key: str) -> Explanation:
        """Why the key reads as it does; `str()` tells the story."""
        result: Explanation = await self._call(wire.explain(key))
        return result

    async def conflicts(self, prefix: str = "", *, since: Any = None, limit: int | None = None) -> list[Conflict]:
        """What the node's conflict journal holds, newest last."""
        return list(await self._call(wire.conflicts(prefix, since, limit)))

    async def vv(self) -> VersionVector:
        """What the node has applied."""
        result: VersionVector = await self._call(wire.vv())
        return result

    async def digest(self) -> str:
        """32 hex digits of the visible state; equal version vectors have equal digests."""
        return str(await self._call(wire.digest()))

    async def delta_since(self, vv: VersionVector | None = None) -> bytes:
        """Exactly what `vv` lacks, for `merge` elsewhere."""
        return b"".join(await self._all(wire.delta_since(vv)))

    async def merge(self, delta: bytes) -> MergeResult:
        """Apply what `delta_since` gave: all of it or nothing; idempotent."""
        result: MergeResult = await self._call(wire.merge(delta))
        return result

    async def status(self) -> Status:
        """The node's state, for people and tools."""
        result: Status = await self._call(wire.status())
        return result

    # -- the end --------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the connection; idempotent. Calls under way fail with `StoreClosedError`."""
        core = self._core
        core.closed = True
        if core.session is not None and core.generation == runtime.generation:
            await core.session.close()

    aclose = close

    async def __aenter__(self) -> Self:
        self._core.check()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<crdtkv.AsyncClient {','.join(self.endpoints)}{' closed' if self._core.closed else ''}>"


class _Handle:
    __slots__ = ("_call", "_client", "key")

    def __init__(self, client: AsyncClient, key: str) -> None:
        self._client = client
        self._call = client._call
        self.key = wire.check_key(key)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} of {self._client!r}>"


class AsyncSetHandle(_Handle):
    """An add-wins set. Iteration and `members` are in canonical order."""

    __slots__ = ()

    async def add(self, *elements: Any, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Add elements; None if nothing changed."""
        result: Commit | None = await self._call(wire.set_add(self.key, elements, ttl), durability)
        return result

    async def discard(self, *elements: Any, durability: str | None = None) -> Commit | None:
        """Remove elements where present."""
        result: Commit | None = await self._call(wire.set_discard(self.key, elements), durability)
        return result

    async def remove(self, element: Any, *, durability: str | None = None) -> Commit | None:
        """Remove an element; `KeyNotFoundError` if absent."""
        result: Commit | None = await self._call(wire.set_remove(self.key, element), durability)
        return result

    async def contains(self, element: Any) -> bool:
        """Whether the element is in the set."""
        return bool(await self._call(wire.set_contains(self.key, element)))

    async def members(self) -> list[Any]:
        """All elements."""
        return await self._client._all(wire.members(self.key))

    async def size(self) -> int:
        """How many elements."""
        return int(await self._call(wire.set_length(self.key)))

    async def clear(self, *, durability: str | None = None) -> Commit | None:
        """Remove the elements that the node has seen."""
        result: Commit | None = await self._call(wire.set_clear(self.key), durability)
        return result

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._client._rows(wire.members(self.key))


class AsyncCounterHandle(_Handle):
    """A counter of whole numbers."""

    __slots__ = ()

    async def increment(self, n: int = 1, *, durability: str | None = None) -> Commit | None:
        """Add `n`."""
        result: Commit | None = await self._call(wire.increment(self.key, n), durability)
        return result

    async def decrement(self, n: int = 1, *, durability: str | None = None) -> Commit | None:
        """Subtract `n`."""
        return await self.increment(wire.negated(n), durability=durability)

    async def value(self) -> int:
        """The sum over all regions' increments that the node has seen."""
        return int(await self._call(wire.counter_value(self.key)))

    async def get(self) -> int:
        """The same as `value`."""
        return await self.value()

    async def reset(self, *, durability: str | None = None) -> Commit | None:
        """Cancel the increments that the node has seen."""
        result: Commit | None = await self._call(wire.counter_reset(self.key), durability)
        return result


class AsyncMapHandle(_Handle):
    """A map of registers by field."""

    __slots__ = ()

    async def get(self, field: str, default: Any = None) -> Any:
        """The winner at a field, or `default`."""
        return await self._call(wire.map_get(self.key, field, default))

    async def put(self, field: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Write a field."""
        result: Commit | None = await self._call(wire.map_put(self.key, field, value, ttl), durability)
        return result

    async def delete(self, field: str, *, durability: str | None = None) -> Commit | None:
        """Remove a field; None if absent."""
        result: Commit | None = await self._call(wire.map_delete(self.key, field), durability)
        return result

    async def contains(self, field: str) -> bool:
        """Whether the field is there."""
        return bool(await self._call(wire.map_contains(self.key, field)))

    async def items(self) -> list[tuple[str, Any]]:
        """Pairs of field and value."""
        return await self._client._all(wire.items(self.key))

    async def size(self) -> int:
        """How many fields."""
        return int(await self._call(wire.map_length(self.key)))

    async def clear(self, *, durability: str | None = None) -> Commit | None:
        """Remove the fields that the node has seen."""
        result: Commit | None = await self._call(wire.map_clear(self.key), durability)
        return result

    async def __aiter__(self) -> AsyncIterator[str]:
        async with self._client._rows(wire.items(self.key)) as rows:
            async for field, _ in rows:
                yield field


class AsyncPipeline(PipelineCore):
    """Calls sent together; see `AsyncClient.pipeline`."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__()
        self._client = client

    async def execute(self) -> None:
        """Send what was collected and wait for all answers; errors stay with their results. May be called again."""
        session = self._client._core.check()
        if not self.calls:
            return
        session.check_room()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finish = lambda: None if answered.done() else answered.set_result(None)
        session.submit_all(self.take(), self._client._timeout)
        await answered

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            await self.execute()
        else:
            self.clear()


def connect(
    endpoints: str | Iterable[str],
    *,
    timeout: float = 5.0,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
) -> AsyncClient:
    """An asyncio client of the first endpoint that answers; see `crdtkv.connect`. It connects when first used, or awaited."""
    return AsyncClient(check_endpoints(endpoints), timeout=wire.check_timeout(timeout), credentials=credentials(tls_ca, tls_cert, tls_key))
