"""What a load is put on: a store in this process, or a client of a node; both perform the same operations on the same keys."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from crdtkv.bench.workload import SIZE_MIN, Workload
from crdtkv.bench.ycsb import Kind, Operation

if TYPE_CHECKING:
    from crdtkv.client.aio import AsyncClient
    from crdtkv.store.store import Store

ROOT: Final = "crdtkv-bench/ycsb/"
_TYPES: Final = {
    Kind.ADD: "set/", Kind.REMOVE: "set/", Kind.CONTAINS: "set/",
    Kind.INCREMENT: "counter/", Kind.VALUE: "counter/",
    Kind.FIELD_PUT: "map/", Kind.FIELD_GET: "map/",
}  # fmt: skip


class Names:
    """Keys below the run's own prefix, one a type, and values of a size, no two alike."""

    def __init__(self, run_id: str, size: int) -> None:
        self._prefix = f"{ROOT}{run_id}/"
        self.records = f"{self._prefix}record/"
        self._payload = Workload("", "register", max(size, SIZE_MIN), 1).payload
        self._numbers = itertools.count()

    @property
    def prefix(self) -> str:
        """Of all keys of the run."""
        return self._prefix

    def key(self, operation: Operation) -> str:
        """An operation's key."""
        return f"{self._prefix}{_TYPES.get(operation.kind, 'record/')}{operation.key}"

    def value(self) -> bytes:
        """A fresh value."""
        return self._payload(next(self._numbers))


class EmbeddedTarget:
    """A store in this process; blocking."""

    def __init__(self, store: Store, names: Names) -> None:
        self.store, self.names = store, names
        self._do: Mapping[Kind, Callable[[str, int], object]] = {
            Kind.READ: lambda key, _: store.get(key),
            Kind.UPDATE: lambda key, _: store.put(key, names.value()),
            Kind.INSERT: lambda key, _: store.put(key, names.value()),
            Kind.SCAN: lambda key, count: sum(1 for _ in store.scan(names.records, start=key, limit=count)),
            Kind.RMW: self._read_modify_write,
            Kind.ADD: lambda key, element: store.set(key).add(element),
            Kind.REMOVE: lambda key, element: store.set(key).discard(element),
            Kind.CONTAINS: lambda key, element: store.set(key).contains(element),
            Kind.INCREMENT: lambda key, _: store.counter(key).increment(),
            Kind.VALUE: lambda key, _: store.counter(key).get(),
            Kind.FIELD_PUT: lambda key, field: store.map(key).put(str(field), names.value()),
            Kind.FIELD_GET: lambda key, field: store.map(key).get(str(field)),
        }

    def _read_modify_write(self, key: str, _: int) -> None:
        self.store.get(key)
        self.store.put(key, self.names.value())

    def perform(self, operation: Operation) -> None:
        """Do it; returns when it is done.

        Raises:
            CrdtkvError: it failed.
        """
        self._do[operation.kind](self.names.key(operation), operation.argument)


class ClientTarget:
    """A node, through a client that many callers share; awaited."""

    def __init__(self, client: AsyncClient, names: Names) -> None:
        self.client, self.names = client, names
        self._do: Mapping[Kind, Callable[[str, int], Awaitable[Any]]] = {
            Kind.READ: lambda key, _: client.get(key),
            Kind.UPDATE: lambda key, _: client.put(key, names.value()),
            Kind.INSERT: lambda key, _: client.put(key, names.value()),
            Kind.SCAN: self._scan,
            Kind.RMW: self._read_modify_write,
            Kind.ADD: lambda key, element: client.set(key).add(element),
            Kind.REMOVE: lambda key, element: client.set(key).discard(element),
            Kind.CONTAINS: lambda key, element: client.set(key).contains(element),
            Kind.INCREMENT: lambda key, _: client.counter(key).increment(),
            Kind.VALUE: lambda key, _: client.counter(key).get(),
            Kind.FIELD_PUT: lambda key, field: client.map(key).put(str(field), names.value()),
            Kind.FIELD_GET: lambda key, field: client.map(key).get(str(field)),
        }

    async def _scan(self, key: str, count: int) -> int:
        found = 0
        async for _ in self.client.scan(self.names.records, start=key, limit=count):
            found += 1
        return found

    async def _read_modify_write(self, key: str, _: int) -> None:
        await self.client.get(key)
        await self.client.put(key, self.names.value())

    async def perform(self, operation: Operation) -> None:
        """Do it; returns when it is answered.

        Raises:
            CrdtkvError: it failed.
        """
        await self._do[operation.kind](self.names.key(operation), operation.argument)
