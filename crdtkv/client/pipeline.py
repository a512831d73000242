"""Pipelines: calls collected and sent together, each with a result object of its own.

A pipeline is no transaction: its calls are applied in order, but each for itself, and others may come between. For one
atomic commit there is `batch()`. What is answered in pages (scan, watch, the members of a set, the items of a map) is asked of the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from crdtkv.client import wire
from crdtkv.client.wire import Block, Call
from crdtkv.core.causality import VersionVector
from crdtkv.errors import InvalidValueError
from crdtkv.results import Commit, Conflict, Explanation, Sibling

T = TypeVar("T")
_PENDING: Any = object()


class Result(msgspec.Struct, Generic[T], eq=False):
    """What one call of a pipeline gave: `value`, which raises the call's error if it failed."""

    _group: PipelineCore
    _value: Any = _PENDING
    error: Exception | None = None

    @property
    def value(self) -> T:
        """The call's result.

        Raises:
            CrdtkvError: what the call failed with.
            InvalidValueError: the pipeline has not been executed.
        """
        if self.error is not None:
            raise self.error
        if self._value is _PENDING:
            raise InvalidValueError("the pipeline has not been executed: leave its `with` block, or call execute(), first")
        return cast(T, self._value)

    @property
    def ok(self) -> bool:
        """Whether the call was answered without an error."""
        return self.error is None and self._value is not _PENDING

    def done(self) -> bool:
        """Whether the call was answered."""
        return self._value is not _PENDING or self.error is not None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Result(error={self.error!r})"
        return "Result(pending)" if self._value is _PENDING else f"Result({self._value!r})"

    def set_result(self, result: Any, /) -> None:
        self._value = result
        group = self._group
        group.unanswered -= 1
        if not group.unanswered:
            group.finish()

    def set_exception(self, exception: Any, /) -> None:
        self.error = exception
        group = self._group
        group.unanswered -= 1
        if not group.unanswered:
            group.finish()


class PipelineCore:
    """The calls a pipeline collects; how they are sent is its owner's.

    Attributes:
        unanswered: of the calls being executed.
        finish: called in the event loop when all are answered.
    """

    finish: Callable[[], None]

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.unanswered = 0
        self._count = 0
        self._block: Block | None = None  # the last of the calls, if it is one

    def add(self, call: Call) -> Result[Any]:
        """Collect a call."""
        result: Result[Any] = Result(self)
        call.sink = result
        self.calls.append(call)
        self._count += 1
        self._block = None
        return result

    def _gather(self, op: str, weight: int) -> Block:
        """The block to which the caller adds such a request now."""
        self._count += 1
        block = self._block
        if block is None or not block.takes(op, weight):
            self._block = block = wire.puts() if op == "puts" else wire.gets()
            block.settle = self._settle
            self.calls.append(block)
        return block

    def _settle(self, results: list[Result[Any]], values: list[Any]) -> None:
        """`Result.set_result` of each, of calls that were answered together."""
        for result, value in zip(results, values, strict=True):
            result._value = value
        self.unanswered -= len(values)
        if not self.unanswered:
            self.finish()

    def take(self) -> list[Call]:
        """The collected calls, to be sent now."""
        calls, self.calls = self.calls, []
        self.unanswered, self._count = self._count, 0
        self._block = None
        return calls

    def clear(self) -> None:
        """Forget the collected calls."""
        self.take()
        self.unanswered = 0

    def __len__(self) -> int:
        return self._count

    # Each method mirrors the client's and gives the result object.

    def put(self, key: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Result[Commit | None]:
        if ttl is not None or durability is not None:
            return self.add(wire.put(key, value, ttl, durability))
        data, weight = wire.plain_put(key, value)
        if weight > wire.BLOCK_BYTES_MAX:
            return self.add(wire.put(key, value))
        result: Result[Any] = Result(self)
        self._gather("puts", weight).add_put(key, data, weight, result)
        return result

    def get(self, key: str, default: Any = None) -> Result[Any]:
        if default is not None:
            return self.add(wire.get(key, default))
        wire.check_key(key)
        result: Result[Any] = Result(self)
        self._gather("gets", wire.GET_WEIGHT).add_get(key, result)
        return result

    def delete(self, key: str) -> Result[Commit | None]:
        return self.add(wire.delete(key))

    def exists(self, key: str) -> Result[bool]:
        return self.add(wire.exists(key))

    def ttl(self, key: str) -> Result[float | None]:
        return self.add(wire.ttl(key))

    def expire(self, key: str, seconds: float | None) -> Result[Commit | None]:
        return self.add(wire.expire(key, seconds))

    def count(self, prefix: str = "") -> Result[int]:
        return self.add(wire.count(prefix))

    def delete_prefix(self, prefix: str) -> Result[Commit | None]:
        return self.add(wire.delete_prefix(prefix))

    def siblings(self, key: str) -> Result[list[Sibling]]:
        return self.add(wire.siblings(key))

    def explain(self, key: str) -> Result[Explanation]:
        return self.add(wire.explain(key))

    def conflicts(self, prefix: str = "", *, since: Any = None, limit: int | None = None) -> Result[list[Conflict]]:
        return self.add(wire.conflicts(prefix, since, limit))

    def vv(self) -> Result[VersionVector]:
        return self.add(wire.vv())

    def digest(self) -> Result[str]:
        return self.add(wire.digest())

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        self.delete(key)

    def set(self, key: str) -> PipelineSet:
        return PipelineSet(self, key)

    def counter(self, key: str) -> PipelineCounter:
        return PipelineCounter(self, key)

    def map(self, key: str) -> PipelineMap:
        return PipelineMap(self, key)


class _Handle:
    __slots__ = ("_pipeline", "key")

    def __init__(self, pipeline: PipelineCore, key: str) -> None:
        self._pipeline = pipeline
        self.key = key


class PipelineSet(_Handle):
    """A set in a pipeline."""

    __slots__ = ()

    def add(self, *elements: Any, ttl: float | None = None) -> Result[Commit | None]:
        return self._pipeline.add(wire.set_add(self.key, elements, ttl))

    def discard(self, *elements: Any) -> Result[Commit | None]:
        return self._pipeline.add(wire.set_discard(self.key, elements))

    def remove(self, element: Any) -> Result[Commit | None]:
        return self._pipeline.add(wire.set_remove(self.key, element))

    def contains(self, element: Any) -> Result[bool]:
        return self._pipeline.add(wire.set_contains(self.key, element))

    def size(self) -> Result[int]:
        return self._pipeline.add(wire.set_length(self.key))

    def clear(self) -> Result[Commit | None]:
        return self._pipeline.add(wire.set_clear(self.key))


class PipelineCounter(_Handle):
    """A counter in a pipeline."""

    __slots__ = ()

    def increment(self, n: int = 1) -> Result[Commit | None]:
        return self._pipeline.add(wire.increment(self.key, n))

    def decrement(self, n: int = 1) -> Result[Commit | None]:
        return self._pipeline.add(wire.increment(self.key, wire.negated(n)))

    @property
    def value(self) -> Result[int]:
        return self.get()

    def get(self) -> Result[int]:
        return self._pipeline.add(wire.counter_value(self.key))

    def reset(self) -> Result[Commit | None]:
        return self._pipeline.add(wire.counter_reset(self.key))


class PipelineMap(_Handle):
    """A map in a pipeline."""

    __slots__ = ()

    def put(self, field: str, value: Any, *, ttl: float | None = None) -> Result[Commit | None]:
        return self._pipeline.add(wire.map_put(self.key, field, value, ttl))

    def get(self, field: str, default: Any = None) -> Result[Any]:
        return self._pipeline.add(wire.map_get(self.key, field, default))

    def delete(self, field: str) -> Result[Commit | None]:
        return self._pipeline.add(wire.map_delete(self.key, field))

    def contains(self, field: str) -> Result[bool]:
        return self._pipeline.add(wire.map_contains(self.key, field))

    def size(self) -> Result[int]:
        return self._pipeline.add(wire.map_length(self.key))

    def clear(self) -> Result[Commit | None]:
        return self._pipeline.add(wire.map_clear(self.key))
