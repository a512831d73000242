"""The sync client: what `crdtkv.open` gives, over gRPC, for threads.

All clients of a process share one background event loop (`runtime`); a call hands its request over, and waits. Requests
that many threads hand over meanwhile travel in the same message, so threads share one stream without a lock between them.
Handing over costs one wake-up of the loop at most, however many are waiting to be taken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from crdtkv.client import wire
from crdtkv.client.batch import Batch
from crdtkv.client.endpoints import Credentials
from crdtkv.client.pipeline import PipelineCore
from crdtkv.client.runtime import run, runtime
from crdtkv.client.session import Session, closed_error
from crdtkv.client.stream import ChangeReader, RowReader
from crdtkv.client.wire import Call, Stream
from crdtkv.core.causality import VersionVector
from crdtkv.errors import CrdtkvError, DeadlineExceededError, StoreClosedError, missing_field, missing_key
from crdtkv.results import Change, Commit, Conflict, Explanation, MergeResult, Sibling, Status

T = TypeVar("T")

GRACE_S = 2.0
"""How long after its deadline a call waits for the loop to say so, before it gives up on the loop itself."""


class _Waiter:
    """A sink that a thread waits at."""

    __slots__ = ("_answered", "_error", "_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._answered = False
        self._error: BaseException | None = None
        self._value: Any = None

    def done(self) -> bool:
        return self._answered

    def set_result(self, result: Any, /) -> None:
        self._value = result
        self._answered = True
        self._lock.release()

    def set_exception(self, exception: Any, /) -> None:
        self._error = exception
        self._answered = True
        self._lock.release()

    def wait(self, timeout: float) -> Any:
        """The result; False from the lock means that the loop never answered."""
        if not self._lock.acquire(timeout=timeout):
            raise DeadlineExceededError("the client's background thread did not answer; it may have been applied", maybe_applied=True)
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # no cycle through the traceback
        return self._value


class _Core:
    """What a client and its views with another timeout share: the session, and the way into its loop."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None) -> None:
        self.generation = runtime.generation
        self.loop = runtime.acquire()
        self.inbox: deque[tuple[list[Call], float]] = deque()
        self.closed = False
        self._awake = False
        self._closing = threading.Lock()
        try:
            self.session = run(self.loop, self._start(endpoints, credentials))
        except BaseException:
            runtime.release()
            raise

    @staticmethod
    async def _start(endpoints: Sequence[str], credentials: Credentials | None) -> Session:
        return Session(endpoints, credentials=credentials)

    def check(self) -> None:
        """Raise if this client was closed, or came here by a fork."""
        if self.generation != runtime.generation:
            raise StoreClosedError("this client belongs to the parent process: connect again after a fork")
        if self.closed:
            raise closed_error()

    def hand_over(self, calls: list[Call], timeout: float) -> None:
        """Give calls to the loop; it is woken unless it is awake already."""
        self.inbox.append((calls, timeout))
        if not self._awake:  # set after the append and cleared before the loop takes: nothing is left lying
            self._awake = True
            try:
                self.loop.call_soon_threadsafe(self._take)
            except RuntimeError:
                raise closed_error() from None

    def _take(self) -> None:
        self._awake = False
        self.session.submit_now(self.inbox)

    def close(self) -> None:
        with self._closing:
            if self.closed:
                return
            self.closed = True
        if self.generation != runtime.generation:
            return
        if threading.current_thread().name != "crdtkv-client":  # a finaliser may run in the loop's own thread
            try:
                run(self.loop, self._close())
            except CrdtkvError:
                return
            runtime.release()
        else:
            self.loop.create_task(self._close()).add_done_callback(lambda _: runtime.release())

    async def _close(self) -> None:
        await self.session.close()
        self._take()  # what was handed over meanwhile is refused


class Client:
    """A region's store over gRPC. Thread-safe; `with` closes it. See `crdtkv.connect`."""

    def __init__(self, endpoints: Sequence[str], *, timeout: float = 5.0, credentials: Credentials | None = None) -> None:
        self._core = _Core(endpoints, credentials)
        self._timeout = timeout
        self._owner = True

    def with_timeout(self, seconds: float) -> Client:
        """This client with another deadline per request; shares the connection, and ends with it."""
        view = object.__new__(Client)
        view._core, view._timeout, view._owner = self._core, wire.check_timeout(seconds), False
        return view

    # -- how calls are made ---------------------------------------------------------------------------------------------

    def _call(self, call: Call, durability: str | None = None) -> Any:
        if durability is not None:
            wire.set_durability(call, durability)
        core = self._core
        if core.closed or core.generation != runtime.generation:
            core.check()
        core.session.check_room()
        call.sink = waiter = _Waiter()
        timeout = self._timeout
        core.hand_over([call], timeout)
        return waiter.wait(timeout + GRACE_S)

    def _rows(self, request: Stream) -> RowIterator[Any]:
        self._core.check()
        return RowIterator(self._core, RowReader(self._core.session, request, self._timeout))

    def _all(self, request: Stream) -> list[Any]:
        with self._rows(request) as rows:
            return list(rows)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints, in the order in which they are tried."""
        return self._core.session.endpoints

    # -- registers ------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Write a register; `ttl` in seconds."""
        result: Commit | None = self._call(wire.put(key, value, ttl, durability))
        return result

    def get(self, key: str, default: Any = None) -> Any:
        """The winner of a register, or `default`."""
        return self._call(wire.get(key, default))

    def __getitem__(self, key: str) -> Any:
        return self._call(wire.get_item(key))

    def __setitem__(self, key: str, value: Any) -> None:
        self._call(wire.put(key, value))

    def __delitem__(self, key: str) -> None:
        if self._call(wire.delete(key)) is None:
            raise missing_key(key)

    def __contains__(self, key: str) -> bool:
        return bool(self._call(wire.exists(key)))

    # -- keys of any type -----------------------------------------------------------------------------------------------

    def exists(self, key: str) -> bool:
        """Whether anything is visible at the key; also `key in client`."""
        return bool(self._call(wire.exists(key)))

    def types(self, key: str) -> list[str]:
        """The visible types at the key; two after concurrent writes of two types."""
        return list(self._call(wire.types(key)))

    def delete(self, key: str, *, durability: str | None = None) -> Commit | None:
        """Remove a key of any type; None if it was absent."""
        result: Commit | None = self._call(wire.delete(key), durability)
        return result

    def ttl(self, key: str) -> float | None:
        """Seconds until the register expires; None: never, or absent."""
        result: float | None = self._call(wire.ttl(key))
        return result

    def expire(self, key: str, seconds: float | None, *, durability: str | None = None) -> Commit | None:
        """Let the register expire after `seconds`; None: never."""
        result: Commit | None = self._call(wire.expire(key, seconds), durability)
        return result

    def count(self, prefix: str = "") -> int:
        """How many keys have the prefix."""
        return int(self._call(wire.count(prefix)))

    def delete_prefix(self, prefix: str, *, durability: str | None = None) -> Commit | None:
        """Remove all keys with the prefix; the last commit of it, None if there was none."""
        result: Commit | None = self._call(wire.delete_prefix(prefix), durability)
        return result

    def set(self, key: str) -> SetHandle:
        """The set at a key; absent: empty."""
        return SetHandle(self, key)

    def counter(self, key: str) -> CounterHandle:
        """The counter at a key; absent: 0."""
        return CounterHandle(self, key)

    def map(self, key: str) -> MapHandle:
        """The map at a key; absent: empty."""
        return MapHandle(self, key)

    # -- many at once ---------------------------------------------------------------------------------------------------

    def batch(self, *, durability: str | None = None) -> Batch:
        """Writes that become one atomic commit when the `with` block ends."""
        return Batch(self, durability)

    def pipeline(self) -> Pipeline:
        """Calls that are sent together when the `with` block ends; each returns a `Result`."""
        return Pipeline(self)

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        types: Iterable[str] | None = None,
    ) -> RowIterator[tuple[str, Any]]:
        """Pairs of key and value in key order, `start <= key < end`: one consistent snapshot."""
        return self._rows(wire.scan(prefix, start, end, limit, reverse, types))

    def watch(self, prefix: str = "", *, since: str | None = None, timeout: float | None = None) -> RowIterator[Change]:
        """Changes from now, or from after a token, on; ends when nothing changed for `timeout` seconds."""
        self._core.check()
        reader = ChangeReader(self._core.session, wire.watch(prefix, since), timeout, self._timeout)
        run(self._core.loop, reader.open())
        return RowIterator(self._core, reader)

    # -- what happened --------------------------------------------------------------------------------------------------

    def siblings(self, key: str) -> list[Sibling]:
        """The concurrent values of a register, the winner first."""
        return list(self._call(wire.siblings(key)))

    def explain(self, key: str) -> Explanation:
        """Why the key reads as it does; `str()` tells the story."""
        result: Explanation = self._call(wire.explain(key))
        return result

    def conflicts(self, prefix: str = "", *, since: Any = None, limit: int | None = None) -> list[Conflict]:
        """What the node's conflict journal holds, newest last."""
        return list(self._call(wire.conflicts(prefix, since, limit)))

    def vv(self) -> VersionVector:
        """What the node has applied."""
        result: VersionVector = self._call(wire.vv())
        return result

    def digest(self) -> str:
        """32 hex digits of the visible state; equal version vectors have equal digests."""
        return str(self._call(wire.digest()))

    def delta_since(self, vv: VersionVector | None = None) -> bytes:
        """Exactly what `vv` lacks, for `merge` elsewhere."""
        return b"".join(self._all(wire.delta_since(vv)))

    def merge(self, delta: bytes) -> MergeResult:
        """Apply what `delta_since` gave: all of it or nothing; idempotent."""
        result: MergeResult = self._call(wire.merge(delta))
        return result

    def status(self) -> Status:
        """The node's state, for people and tools."""
        result: Status = self._call(wire.status())
        return result

    # -- the end --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; idempotent. Calls under way fail with `StoreClosedError`."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_owner", False):
            core = getattr(self, "_core", None)
            if core is not None and not core.closed and core.loop.is_running():
                core.loop.call_soon_threadsafe(core.close)

    def __repr__(self) -> str:
        return f"<crdtkv.Client {','.join(self.endpoints)}{' closed' if self._core.closed else ''}>"


class SetHandle:
    """An add-wins set. Iteration and `members` are in canonical order."""

    __slots__ = ("_client", "key")

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self.key = key
        wire.check_key(key)

    def add(self, *elements: Any, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Add elements; None if all were there and none is refreshed."""
        result: Commit | None = self._client._call(wire.set_add(self.key, elements, ttl), durability)
        return result

    def discard(self, *elements: Any, durability: str | None = None) -> Commit | None:
        """Remove elements where present."""
        result: Commit | None = self._client._call(wire.set_discard(self.key, elements), durability)
        return result

    def remove(self, element: Any, *, durability: str | None = None) -> Commit | None:
        """Remove an element; `KeyNotFoundError` if absent."""
        result: Commit | None = self._client._call(wire.set_remove(self.key, element), durability)
        return result

    def contains(self, element: Any) -> bool:
        """Whether the element is in the set."""
        return bool(self._client._call(wire.set_contains(self.key, element)))

    def members(self) -> list[Any]:
        """All elements."""
        return self._client._all(wire.members(self.key))

    def size(self) -> int:
        """How many elements."""
        return int(self._client._call(wire.set_length(self.key)))

    def clear(self, *, durability: str | None = None) -> Commit | None:
        """Remove the elements that the node has seen."""
        result: Commit | None = self._client._call(wire.set_clear(self.key), durability)
        return result

    def __contains__(self, element: Any) -> bool:
        return self.contains(element)

    def __iter__(self) -> Iterator[Any]:
        return self._client._rows(wire.members(self.key))

    def __len__(self) -> int:
        return self.size()

    def __repr__(self) -> str:
        return f"<set {self.key!r} of {self._client!r}>"


class CounterHandle:
    """A counter of whole numbers."""

    __slots__ = ("_client", "key")

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self.key = key
        wire.check_key(key)

    def increment(self, n: int = 1, *, durability: str | None = None) -> Commit | None:
        """Add `n`."""
        result: Commit | None = self._client._call(wire.increment(self.key, n), durability)
        return result

    def decrement(self, n: int = 1, *, durability: str | None = None) -> Commit | None:
        """Subtract `n`."""
        return self.increment(wire.negated(n), durability=durability)

    @property
    def value(self) -> int:
        """The sum over all regions' increments that the node has seen."""
        return self.get()

    def get(self) -> int:
        """The same as `value`."""
        return int(self._client._call(wire.counter_value(self.key)))

    def reset(self, *, durability: str | None = None) -> Commit | None:
        """Cancel the increments that the node has seen."""
        result: Commit | None = self._client._call(wire.counter_reset(self.key), durability)
        return result

    def __repr__(self) -> str:
        return f"<counter {self.key!r} of {self._client!r}>"


class MapHandle:
    """A map of registers by field."""

    __slots__ = ("_client", "key")

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self.key = key
        wire.check_key(key)

    def get(self, field: str, default: Any = None) -> Any:
        """The winner at a field, or `default`."""
        return self._client._call(wire.map_get(self.key, field, default))

    def put(self, field: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Commit | None:
        """Write a field."""
        result: Commit | None = self._client._call(wire.map_put(self.key, field, value, ttl), durability)
        return result

    def delete(self, field: str, *, durability: str | None = None) -> Commit | None:
        """Remove a field; None if absent."""
        result: Commit | None = self._client._call(wire.map_delete(self.key, field), durability)
        return result

    def contains(self, field: str) -> bool:
        """Whether the field is there."""
        return bool(self._client._call(wire.map_contains(self.key, field)))

    def items(self) -> list[tuple[str, Any]]:
        """Pairs of field and value."""
        return self._client._all(wire.items(self.key))

    def size(self) -> int:
        """How many fields."""
        return int(self._client._call(wire.map_length(self.key)))

    def clear(self, *, durability: str | None = None) -> Commit | None:
        """Remove the fields that the node has seen."""
        result: Commit | None = self._client._call(wire.map_clear(self.key), durability)
        return result

    def __getitem__(self, field: str) -> Any:
        return self._client._call(wire.map_get_item(self.key, field))

    def __setitem__(self, field: str, value: Any) -> None:
        self.put(field, value)

    def __delitem__(self, field: str) -> None:
        if self.delete(field) is None:
            raise missing_field(self.key, field)

    def __contains__(self, field: str) -> bool:
        return self.contains(field)

    def __iter__(self) -> Iterator[str]:
        return (field for field, _ in self._client._rows(wire.items(self.key)))

    def __len__(self) -> int:
        return self.size()

    def __repr__(self) -> str:
        return f"<map {self.key!r} of {self._client!r}>"


class RowIterator(Generic[T]):
    """The items of a stream, blocking; `close`, `with` and garbage collection cancel it at the node."""

    def __init__(self, core: _Core, reader: RowReader | ChangeReader) -> None:
        self._core = core
        self._reader = reader
        self._items: deque[T] = deque()
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while not self._items:
            if self._ended:
                raise StopIteration
            self._core.check()
            try:
                items = run(self._core.loop, self._reader.next_items())
            except BaseException:
                self.close()
                raise
            if items is None:
                self._ended = True
            else:
                self._items.extend(items)
        return self._items.popleft()

    def close(self) -> None:
        """End the stream; idempotent."""
        self._ended = True
        self._items.clear()
        core = self._core
        if core.generation == runtime.generation and core.loop.is_running():
            core.loop.call_soon_threadsafe(self._reader.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self.close()


class Pipeline(PipelineCore):
    """Calls sent together; see `Client.pipeline`."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def execute(self) -> None:
        """Send what was collected and wait for all answers; errors stay with their results. May be called again."""
        core = self._client._core
        core.check()
        if not self.calls:
            return
        core.session.check_room()
        calls = self.take()
        waiter = _Waiter()
        self.finish = lambda: waiter.set_result(None)
        timeout = self._client._timeout
        core.hand_over(calls, timeout)
        waiter.wait(timeout + GRACE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.execute()
        else:
            self.clear()
