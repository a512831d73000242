"""Batches of both clients: writes collected on the client, one atomic commit at exit. The decisions are in `overlay`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from crdtkv.client import wire
from crdtkv.client.overlay import Overlay
from crdtkv.client.wire import Call, Stream
from crdtkv.errors import missing_field, missing_key
from crdtkv.results import Commit

T = TypeVar("T")


class SyncCaller(Protocol):
    """What a batch needs of its client."""

    def _call(self, call: Call) -> Any: ...
    def _all(self, request: Stream) -> list[Any]: ...


class AsyncCaller(Protocol):
    """What an asyncio batch needs of its client."""

    def _call(self, call: Call) -> Awaitable[Any]: ...
    def _all(self, request: Stream) -> Awaitable[list[Any]]: ...


class Batch:
    """Writes of one atomic commit; see `Client.batch`.

    Attributes:
        commit: after the block: the commit, or None if nothing changed.
        request_id: 16 bytes by which the node tells a repetition; None: one of its own.
    """

    def __init__(self, client: SyncCaller, durability: str | None) -> None:
        self._client = client
        self._durability = durability
        self._core = Overlay()
        self.commit: Commit | None = None
        self.request_id: bytes | None = None

    def _read(self, reads: Generator[Call | Stream, Any, T]) -> T:
        """Run a read's decisions, asking the node as they say."""
        answer: Any = None
        try:
            while True:
                asked = reads.send(answer)
                answer = self._client._call(asked) if isinstance(asked, Call) else self._client._all(asked)
        except StopIteration as done:
            result: T = done.value
            return result

    def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        self._core.put(key, value, ttl)

    def get(self, key: str, default: Any = None) -> Any:
        return self._read(self._core.get(key, default))

    def delete(self, key: str) -> None:
        self._core.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every key with a prefix, as the batch sees them now; what it holds is bounded by one commit."""
        self._read(self._core.delete_prefix(prefix))

    def expire(self, key: str, seconds: float | None) -> None:
        self._core.expire(key, seconds)

    def exists(self, key: str) -> bool:
        return self._read(self._core.exists(key))

    def __getitem__(self, key: str) -> Any:
        return self._read(self._core.get_item(key))

    def __setitem__(self, key: str, value: Any) -> None:
        self._core.put(key, value, None)

    def __delitem__(self, key: str) -> None:
        if not self.exists(key):
            raise missing_key(key)
        self._core.delete(key)

    def __contains__(self, key: str) -> bool:
        return self.exists(key)

    def set(self, key: str) -> BatchSet:
        return BatchSet(self, key)

    def counter(self, key: str) -> BatchCounter:
        return BatchCounter(self, key)

    def map(self, key: str) -> BatchMap:
        return BatchMap(self, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        core = self._core
        core.open = False
        if kind is None and core.writes:
            call = wire.batch(core.writes, self._durability)
            call.request_id = self.request_id
            self.commit = self._client._call(call)


class _BatchHandle:
    __slots__ = ("_batch", "_core", "_read", "key")
    _read: Callable[[Generator[Any, Any, Any]], Any]

    def __init__(self, batch: Batch, key: str) -> None:
        self._batch = batch
        self._core = batch._core
        self._read = batch._read
        self.key = key
        wire.check_key(key)


class BatchSet(_BatchHandle):
    """A set in a batch."""

    __slots__ = ()

    def add(self, *elements: Any, ttl: float | None = None) -> None:
        self._core.set_add(self.key, elements, ttl)

    def discard(self, *elements: Any) -> None:
        self._core.set_discard(self.key, elements)

    def remove(self, element: Any) -> None:
        self._read(self._core.set_remove(self.key, element))

    def contains(self, element: Any) -> bool:
        return bool(self._read(self._core.set_contains(self.key, element)))

    def members(self) -> list[Any]:
        return list(self._read(self._core.members(self.key)))

    def size(self) -> int:
        return int(self._read(self._core.set_length(self.key)))

    def clear(self) -> None:
        self._core.set_clear(self.key)

    def __contains__(self, element: Any) -> bool:
        return self.contains(element)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members())

    def __len__(self) -> int:
        return self.size()


class BatchCounter(_BatchHandle):
    """A counter in a batch."""

    __slots__ = ()

    def increment(self, n: int = 1) -> None:
        self._core.increment(self.key, n)

    def decrement(self, n: int = 1) -> None:
        self._core.increment(self.key, wire.negated(n))

    @property
    def value(self) -> int:
        return self.get()

    def get(self) -> int:
        return int(self._read(self._core.counter_value(self.key)))

    def reset(self) -> None:
        self._core.counter_reset(self.key)


class BatchMap(_BatchHandle):
    """A map in a batch."""

    __slots__ = ()

    def put(self, field: str, value: Any, *, ttl: float | None = None) -> None:
        self._core.map_put(self.key, field, value, ttl)

    def get(self, field: str, default: Any = None) -> Any:
        return self._read(self._core.map_get(self.key, field, default))

    def delete(self, field: str) -> None:
        self._core.map_delete(self.key, field)

    def contains(self, field: str) -> bool:
        return bool(self._read(self._core.map_contains(self.key, field)))

    def items(self) -> list[tuple[str, Any]]:
        return list(self._read(self._core.items(self.key)))

    def size(self) -> int:
        return int(self._read(self._core.map_length(self.key)))

    def clear(self) -> None:
        self._core.map_clear(self.key)

    def __getitem__(self, field: str) -> Any:
        return self._read(self._core.map_get_item(self.key, field))

    def __setitem__(self, field: str, value: Any) -> None:
        self.put(field, value)

    def __delitem__(self, field: str) -> None:
        if not self.contains(field):
            raise missing_field(self.key, field)
        self.delete(field)

    def __contains__(self, field: str) -> bool:
        return self.contains(field)

    def __iter__(self) -> Iterator[str]:
        return (field for field, _ in self.items())

    def __len__(self) -> int:
        return self.size()


class AsyncBatch:
    """Writes of one atomic commit; see `AsyncClient.batch`.

    Attributes:
        commit: after the block: the commit, or None if nothing changed.
    """

    def __init__(self, client: AsyncCaller, durability: str | None) -> None:
        self._client = client
        self._durability = durability
        self._core = Overlay()
        self.commit: Commit | None = None

    async def _read(self, reads: Generator[Call | Stream, Any, T]) -> T:
        """Run a read's decisions, asking the node as they say."""
        answer: Any = None
        try:
            while True:
                asked = reads.send(answer)
                answer = await (self._client._call(asked) if isinstance(asked, Call) else self._client._all(asked))
        except StopIteration as done:
            result: T = done.value
            return result

    async def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        self._core.put(key, value, ttl)

    async def get(self, key: str, default: Any = None) -> Any:
        return await self._read(self._core.get(key, default))

    async def delete(self, key: str) -> None:
        self._core.delete(key)

    async def delete_prefix(self, prefix: str) -> None:
        """Delete every key with a prefix, as the batch sees them now; what it holds is bounded by one commit."""
        await self._read(self._core.delete_prefix(prefix))

    async def expire(self, key: str, seconds: float | None) -> None:
        self._core.expire(key, seconds)

    async def exists(self, key: str) -> bool:
        return await self._read(self._core.exists(key))

    def set(self, key: str) -> AsyncBatchSet:
        return AsyncBatchSet(self, key)

    def counter(self, key: str) -> AsyncBatchCounter:
        return AsyncBatchCounter(self, key)

    def map(self, key: str) -> AsyncBatchMap:
        return AsyncBatchMap(self, key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        core = self._core
        core.open = False
        if kind is None and core.writes:
            self.commit = await self._client._call(wire.batch(core.writes, self._durability))


class _AsyncBatchHandle:
    __slots__ = ("_core", "_read", "key")
    _read: Callable[[Generator[Any, Any, Any]], Any]

    def __init__(self, batch: AsyncBatch, key: str) -> None:
        self._core = batch._core
        self._read = batch._read
        self.key = wire.check_key(key)


class AsyncBatchSet(_AsyncBatchHandle):
    """A set in a batch."""

    __slots__ = ()

    async def add(self, *elements: Any, ttl: float | None = None) -> None:
        self._core.set_add(self.key, elements, ttl)

    async def discard(self, *elements: Any) -> None:
        self._core.set_discard(self.key, elements)

    async def remove(self, element: Any) -> None:
        await self._read(self._core.set_remove(self.key, element))

    async def contains(self, element: Any) -> bool:
        return bool(await self._read(self._core.set_contains(self.key, element)))

    async def members(self) -> list[Any]:
        return list(await self._read(self._core.members(self.key)))

    async def size(self) -> int:
        return int(await self._read(self._core.set_length(self.key)))

    async def clear(self) -> None:
        self._core.set_clear(self.key)


class AsyncBatchCounter(_AsyncBatchHandle):
    """A counter in a batch."""

    __slots__ = ()

    async def increment(self, n: int = 1) -> None:
        self._core.increment(self.key, n)

    async def decrement(self, n: int = 1) -> None:
        self._core.increment(self.key, wire.negated(n))

    async def value(self) -> int:
        return int(await self._read(self._core.counter_value(self.key)))

    async def get(self) -> int:
        return await self.value()

    async def reset(self) -> None:
        self._core.counter_reset(self.key)


class AsyncBatchMap(_AsyncBatchHandle):
    """A map in a batch."""

    __slots__ = ()

    async def put(self, field: str, value: Any, *, ttl: float | None = None) -> None:
        self._core.map_put(self.key, field, value, ttl)

    async def get(self, field: str, default: Any = None) -> Any:
        return await self._read(self._core.map_get(self.key, field, default))

    async def delete(self, field: str) -> None:
        self._core.map_delete(self.key, field)

    async def contains(self, field: str) -> bool:
        return bool(await self._read(self._core.map_contains(self.key, field)))

    async def items(self) -> list[tuple[str, Any]]:
        return list(await self._read(self._core.items(self.key)))

    async def size(self) -> int:
        return int(await self._read(self._core.map_length(self.key)))

    async def clear(self) -> None:
        self._core.map_clear(self.key)
