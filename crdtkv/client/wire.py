"""Requests as values: what each operation sends, and how its answer is read. Pure; both clients share it.

A `Call` is one request on its way: the row it becomes, where its result goes, until when it is worth an answer. Keys and
values are checked and encoded here, by the functions that the embedded store uses, so a bad one is refused before
anything is sent. Every write carries a request id of its own, by which a region applies it at most once: so a write may
be sent again to the region that may have it, and nowhere else.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import Any, Final, Protocol

import msgspec

from crdtkv.core.causality import Dot, VersionVector
from crdtkv.core.codec import KEY_BYTES_MAX, decode_value, encode_key, encode_prefix, encode_value, number_from_wire
from crdtkv.errors import (
    CorruptionError,
    CrdtkvError,
    InvalidValueError,
    KeyNotFoundError,
    ValueTooLargeError,
    error_from_parts,
    missing_field,
    missing_key,
)
from crdtkv.results import Commit, Conflict, Explanation, MergeResult, Sibling, Status
from crdtkv.transport import MESSAGE_BYTES_MAX

CALL_BYTES_MAX: Final = MESSAGE_BYTES_MAX - (64 << 10)
"""What one request may hold: it travels whole in one message."""
BLOCK_REQUESTS_MAX: Final = 256
BLOCK_BYTES_MAX: Final = 1 << 20
"""What a block may hold. A request that is larger by itself is a call of its own."""
GET_WEIGHT: Final = 64
_PUT_WEIGHT: Final = 64
INCREMENT_MAX: Final = 2**63 - 1
DURABILITIES: Final = ("memory", "async", "sync")

Decoder = Callable[[Any, str], Any]
"""From the payload and the token of an ok reply to the result; what it raises is the result too."""


class Sink(Protocol):
    """Where the outcome of a call goes: an `asyncio.Future`, a waiting thread, a pipeline's result."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


_TYPES: Final = {"s": "set", "c": "counter", "h": "map"}
_VERBS: Final = {"add", "discard", "remove", "clear", "contains", "len", "incr", "reset", "get", "put", "del"}
_LONG: Final = {"incr": "increment", "del": "delete", "len": "size"}


def _said(op: str) -> str:
    """An operation by the name that its caller knows.

    >>> _said("cincr"), _said("hdel"), _said("put")
    ('counter.increment', 'map.delete', 'put')
    """
    verb = op[1:]
    return f"{_TYPES[op[0]]}.{_LONG.get(verb, verb)}" if op[0] in _TYPES and verb in _VERBS else op


class Call(msgspec.Struct, eq=False):
    """One request, or a block of them: a row of a message. `sink`, `deadline` and what follows belong to the session that sends it.

    Attributes:
        weight: bytes of the row, roughly.
        write: it may change something, so it is sent again only to the region that may have it.
        durability: of a write, if not the node's.
        request_id: of a write: 16 bytes by which a region knows it again; None: given when it is first sent.
        sent_at: loop time at which it was last sent; 0: never.
        bound: index of the endpoint that may have applied it; None: free to go anywhere.
        deadline: loop time at which it fails; `timeout` seconds after it was queued.
    """

    op: str
    args: list[Any]
    decode: Decoder
    weight: int = 0
    write: bool = False
    durability: str | None = None
    request_id: bytes | None = None
    sent_at: float = 0.0
    bound: int | None = None
    deadline: float = 0.0
    timeout: float = 0.0
    sink: Any = None
    """A `Sink`."""

    @property
    def count(self) -> int:
        """How many requests it stands for."""
        return 1

    @property
    def name(self) -> str:
        """What it asks, for people: as they asked it."""
        return _said(self.op)

    @property
    def is_named(self) -> bool:
        """It has a request id for each of its requests."""
        return self.request_id is not None

    def name_requests(self, ids: Iterator[bytes]) -> None:
        """Take an id for each of its requests."""
        self.request_id = next(ids)

    def done(self) -> bool:
        """Nobody waits for an answer any more."""
        return bool(self.sink.done())

    def answer(self, payload: Any, token: str) -> None:
        """Hand on what the node answered; what cannot be read fails the call."""
        if self.done():
            return
        try:
            result = self._read(payload, token)
        except CrdtkvError as e:
            self.fail(e)
        except (TypeError, ValueError, IndexError, AttributeError) as e:
            self.fail(CorruptionError(f"{self.name}: the answer has an unexpected form: {e}"))
        else:
            self._succeed(result)

    def fail(self, error: CrdtkvError) -> None:
        """Hand on an error, unless there is an outcome already."""
        if not self.sink.done():
            self.sink.set_exception(error)

    def _read(self, payload: Any, token: str) -> Any:
        return self.decode(payload, token)

    def _succeed(self, result: Any) -> None:
        self.sink.set_result(result)


class Block(Call, eq=False):
    """Puts, or gets, that follow each other, in columns: one row that stands for all of them (`crdtkv.store.requests`).

    Attributes:
        op: "puts" or "gets"; `args` are the columns, those of the request ids (of puts) empty until it is first sent.
        sinks: of each request, in order.
        settle: takes the sinks and their results, if they are all of one owner that nothing else settles; None: each sink is told.
        is_settled: by that, or failed.
        deadline: of the first; the others have it, too.
        answered: places of those that the node has answered, while it has not answered all.
    """

    sinks: list[Any] = []
    settle: Callable[[list[Any], list[Any]], None] | None = None
    is_settled: bool = False
    answered: set[int] = set()

    @property
    def count(self) -> int:
        return len(self.sinks)

    @property
    def name(self) -> str:
        return self.op[:-1]

    @property
    def is_named(self) -> bool:
        return bool(self.args[2])

    def name_requests(self, ids: Iterator[bytes]) -> None:
        self.args[2] = list(islice(ids, len(self.sinks)))

    def takes(self, op: str, weight: int) -> bool:
        """Whether there is room for such a request."""
        return op == self.op and len(self.sinks) < BLOCK_REQUESTS_MAX and self.weight + weight <= BLOCK_BYTES_MAX

    def add_put(self, key: str, data: bytes, weight: int, sink: Any) -> None:
        """Add a put."""
        args = self.args
        args[0].append(key)
        args[1].append(data)
        self.weight += weight
        self.sinks.append(sink)

    def add_get(self, key: str, sink: Any) -> None:
        """Add a get."""
        self.args[0].append(key)
        self.weight += GET_WEIGHT
        self.sinks.append(sink)

    def done(self) -> bool:
        return self.is_settled if self.settle is not None else all([sink.done() for sink in self.sinks])

    def _read(self, payload: Any, token: str) -> list[Any]:
        count = len(self.sinks)
        if self.op == "puts":
            origin, seq, hlc = payload
            return list(map(Commit, repeat(origin), range(seq, seq + count), range(hlc, hlc + count), repeat(token)))
        if type(payload) is not list or len(payload) != count:
            raise ValueError(f"not a list of {count} values")
        return [None if value is None else decode_value(value) for value in payload]

    def _succeed(self, result: list[Any]) -> None:
        self.is_settled = True
        if self.settle is not None and not self.answered:
            self.settle(self.sinks, result)
            return
        for sink, of_one in zip(self.sinks, result, strict=True):
            if not sink.done():
                sink.set_result(of_one)

    def fail(self, error: CrdtkvError) -> None:
        self.is_settled = True
        for sink in self.sinks:
            if not sink.done():
                sink.set_exception(error)
                # Raised in several places, one exception would gather the traces of all of them.
                error = error_from_parts(error.code, error.message, error.details, error.retryable, error.maybe_applied)

    def single(self, at: int) -> Call:
        """The request at a place, as a call of its own."""
        request_id = None
        if self.op == "puts":
            keys, values, ids = self.args
            call = Call("put", [keys[at], values[at]], _commit, _PUT_WEIGHT + len(keys[at]) + len(values[at]), True)
            request_id = ids[at] if ids else None
        else:
            call = Call("get", [self.args[0][at]], _value_or_none, GET_WEIGHT)
        call.request_id, call.sent_at, call.bound, call.deadline = request_id, self.sent_at, self.bound, self.deadline
        call.sink = self.sinks[at]
        return call

    def drop_done(self) -> None:
        """Drop the requests that are answered, or that nobody waits for any more."""
        answered, self.answered = self.answered, set()
        if answered or (self.settle is None and any([sink.done() for sink in self.sinks])):
            left = [at for at, sink in enumerate(self.sinks) if at not in answered and not sink.done()]
            self.args = [[column[at] for at in left] if column else column for column in self.args]
            self.sinks = [self.sinks[at] for at in left]

    def split(self, count: int) -> Block:
        """Take the first so many requests off, as a block of their own."""
        first = Block(self.op, [column[:count] for column in self.args], self.decode, 0, self.write)
        first.sent_at, first.bound, first.deadline, first.sinks = self.sent_at, self.bound, self.deadline, self.sinks[:count]
        first.settle = self.settle
        first.weight = self.weight * count // len(self.sinks)
        self.weight -= first.weight
        self.args, self.sinks = [column[count:] for column in self.args], self.sinks[count:]
        return first


def puts() -> Block:
    """An empty block of puts without expiry, at the node's durability."""
    return Block("puts", [[], [], []], _commit, 0, True, sinks=[])


def gets() -> Block:
    """An empty block of gets that default to None."""
    return Block("gets", [[]], _value_or_none, sinks=[])


def new_request_ids(count: int) -> list[bytes]:
    """So many ids of their own: 8 bytes of Unix ms, big-endian, then 8 random bytes."""
    now, random = int(time.time() * 1000).to_bytes(8, "big"), os.urandom(8 * count)
    return list(map(now.__add__, struct.unpack("8s" * count, random)))


def _write(op: str, args: list[Any], decode: Decoder, weight: int = 0, durability: str | None = None) -> Call:
    if weight > CALL_BYTES_MAX:
        raise ValueTooLargeError(
            f"{_said(op)}: the request holds {weight:,} bytes; one message carries at most {CALL_BYTES_MAX:,}: send it in parts",
            limit=CALL_BYTES_MAX,
            size=weight,
        )
    return Call(op, args, decode, weight, True, None if durability is None else _durability(durability))


def set_durability(call: Call, level: str) -> None:
    """Ask for another durability than the node's for one write."""
    call.durability = _durability(level)


# -- checks -------------------------------------------------------------------------------------------------------------


def check_key(key: str) -> str:
    """Return `key` if it is one, else raise `InvalidKeyError`."""
    encode_key(key)
    return key


def check_timeout(seconds: object) -> float:
    """Return a positive number of seconds, else raise `InvalidValueError`."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise InvalidValueError(f"timeout: must be a positive number of seconds, got {seconds!r}")
    return float(seconds)


_key = check_key


def _prefix(prefix: str) -> str:
    encode_prefix(prefix)
    return prefix


def _field(field: object) -> str:
    if not isinstance(field, str):
        raise InvalidValueError(f"field: must be a str, got {type(field).__name__}")
    encode_value(field)
    return field


def _seconds(seconds: object, what: str) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise InvalidValueError(f"{what}: must be a number of seconds above 0 and at most 10^10, got {seconds!r}")
    return seconds


def _whole(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise InvalidValueError(f"increment: must be a whole number, got {n!r}", field="n")
    if not -INCREMENT_MAX <= n <= INCREMENT_MAX:
        raise InvalidValueError(f"increment: {n} is outside -(2^63-1) .. 2^63-1: take smaller steps", field="n", limit=INCREMENT_MAX)
    return int(n)


def negated(n: object) -> int:
    """`-n` of a whole number, for decrements."""
    return -_whole(n)


def _durability(level: object) -> str:
    if level not in DURABILITIES:
        raise InvalidValueError(f"durability: must be one of {', '.join(DURABILITIES)}, got {level!r}")
    return str(level)


def _limit(limit: object) -> int | None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise InvalidValueError(f"limit: must be a whole number of at least 0 or None, got {limit!r}")
    return limit


# -- reading answers ----------------------------------------------------------------------------------------------------


def _as_is(payload: Any, token: str) -> Any:
    return payload


def _commit(payload: Any, token: str) -> Commit | None:
    return None if payload is None else Commit(payload[0], payload[1], payload[2], token)


def _value_or_none(payload: Any, token: str) -> Any:
    return None if payload is None else decode_value(payload)


def _value_or(default: Any) -> Decoder:
    if default is None:
        return _value_or_none
    return lambda payload, token: default if payload is None else decode_value(payload)


def _value_or_raise(missing: Callable[..., KeyNotFoundError], *name: str) -> Decoder:
    def decode(payload: Any, token: str) -> Any:
        if payload is None:
            raise missing(*name)
        return decode_value(payload)

    return decode


def _siblings(payload: Any, token: str) -> list[Sibling]:
    return [Sibling(decode_value(value), Dot(origin, seq), hlc, origin) for value, origin, seq, hlc in payload]


def _explanation(payload: Any, token: str) -> Explanation:
    return Explanation.from_wire(payload)


def _conflicts(payload: Any, token: str) -> list[Conflict]:
    return [Conflict.from_wire(wire) for wire in payload]


def _vv(payload: Any, token: str) -> VersionVector:
    return VersionVector.from_bytes(payload)


def _status(payload: Any, token: str) -> Status:
    return Status.from_wire(payload)


def _merged(payload: Any, token: str) -> MergeResult:
    applied, duplicates, conflicts, keys = payload
    return MergeResult(applied, duplicates, conflicts, tuple(keys))


# -- operations ---------------------------------------------------------------------------------------------------------


def plain_put(key: str, value: Any) -> tuple[bytes, int]:
    """Check a put; its value's bytes, and its weight."""
    if type(key) is not str or not 0 < len(key) <= KEY_BYTES_MAX or not key.isascii():
        encode_key(key)  # says what is wrong with it, if anything is
    data = encode_value(value)
    return data, _PUT_WEIGHT + len(key) + len(data)


def put(key: str, value: Any, ttl: float | None = None, durability: str | None = None) -> Call:
    data, weight = plain_put(key, value)
    if ttl is None and durability is None and weight <= CALL_BYTES_MAX:
        return Call("put", [key, data], _commit, weight, True)
    args = [key, data] if ttl is None else [key, data, _seconds(ttl, "ttl")]
    return _write("put", args, _commit, weight, durability)


def get(key: str, default: Any = None) -> Call:
    encode_key(key)
    return Call("get", [key], _value_or(default), GET_WEIGHT)


def get_item(key: str) -> Call:
    return Call("get", [_key(key)], _value_or_raise(missing_key, key), GET_WEIGHT)


def delete(key: str) -> Call:
    return _write("delete", [_key(key)], _commit)


def exists(key: str) -> Call:
    return Call("exists", [_key(key)], _as_is)


def types(key: str) -> Call:
    return Call("type", [_key(key)], _as_is)


def ttl(key: str) -> Call:
    return Call("ttl", [_key(key)], _as_is)


def expire(key: str, seconds: float | None) -> Call:
    return _write("expire", [_key(key), _seconds(seconds, "seconds")], _commit)


def count(prefix: str) -> Call:
    return Call("count", [_prefix(prefix)], _as_is)


def delete_prefix(prefix: str) -> Call:
    return _write("delete_prefix", [_prefix(prefix)], _commit)


def _elements(elements: Iterable[Any]) -> tuple[list[bytes], int]:
    encoded = [encode_value(element) for element in elements]
    return encoded, 64 + sum(map(len, encoded)) + 5 * len(encoded)


def set_add(key: str, elements: Iterable[Any], ttl: float | None = None) -> Call:
    encoded, weight = _elements(elements)
    return _write("sadd", [_key(key), encoded, _seconds(ttl, "ttl")], _commit, weight)


def set_discard(key: str, elements: Iterable[Any]) -> Call:
    encoded, weight = _elements(elements)
    return _write("sdiscard", [_key(key), encoded], _commit, weight)


def set_remove(key: str, element: Any) -> Call:
    data = encode_value(element)
    return _write("sremove", [_key(key), data], _commit, 64 + len(data))


def set_contains(key: str, element: Any) -> Call:
    data = encode_value(element)
    return Call("scontains", [_key(key), data], _as_is, 64 + len(data))


def set_length(key: str) -> Call:
    return Call("slen", [_key(key)], _as_is)


def set_clear(key: str) -> Call:
    return _write("sclear", [_key(key)], _commit)


def increment(key: str, n: int) -> Call:
    return _write("cincr", [_key(key), _whole(n)], _commit)


def counter_value(key: str) -> Call:
    return Call("cget", [_key(key)], lambda payload, token: number_from_wire(payload))


def counter_reset(key: str) -> Call:
    return _write("creset", [_key(key)], _commit)


def map_put(key: str, field: str, value: Any, ttl: float | None = None) -> Call:
    data = encode_value(value)
    return _write("hput", [_key(key), _field(field), data, _seconds(ttl, "ttl")], _commit, 64 + len(data))


def map_get(key: str, field: str, default: Any = None) -> Call:
    return Call("hget", [_key(key), _field(field)], _value_or(default))


def map_get_item(key: str, field: str) -> Call:
    return Call("hget", [_key(key), _field(field)], _value_or_raise(missing_field, key, field))


def map_delete(key: str, field: str) -> Call:
    return _write("hdel", [_key(key), _field(field)], _commit)


def map_contains(key: str, field: str) -> Call:
    return Call("hcontains", [_key(key), _field(field)], _as_is)


def map_length(key: str) -> Call:
    return Call("hlen", [_key(key)], _as_is)


def map_clear(key: str) -> Call:
    return _write("hclear", [_key(key)], _commit)


def batch(writes: list[Call], durability: str | None = None) -> Call:
    rows = [[write.op, *write.args] for write in writes]
    return _write("batch", [rows], _commit, sum(write.weight or 64 for write in writes), durability)


def siblings(key: str) -> Call:
    return Call("siblings", [_key(key)], _siblings)


def explain(key: str) -> Call:
    return Call("explain", [_key(key)], _explanation)


def conflicts(prefix: str, since: Any, limit: int | None) -> Call:
    return Call("conflicts", [_prefix(prefix), since, _limit(limit)], _conflicts)


def vv() -> Call:
    return Call("vv", [], _vv)


def digest() -> Call:
    return Call("digest", [], _as_is)


def status() -> Call:
    return Call("status", [], _status)


def merge(delta: bytes) -> Call:
    if not isinstance(delta, bytes | bytearray | memoryview):
        raise InvalidValueError(f"merge: needs bytes, got {type(delta).__name__}", field="data")
    return _write("merge", [bytes(delta)], _merged, 64 + len(delta))


# -- streaming reads: (op, args) ----------------------------------------------------------------------------------------

Stream = tuple[str, list[Any]]


def scan(prefix: str, start: str | None, end: str | None, limit: int | None, reverse: bool, types: Iterable[str] | None) -> Stream:
    for bound in (start, end):
        if bound is not None:
            _prefix(bound)
    names = None if types is None else [types] if isinstance(types, str) else list(types)
    for name in names or ():
        if name not in ("register", "set", "counter", "map"):
            raise InvalidValueError(f"types: must be of register, set, counter, map, got {types!r}", field="types")
    return "scan", [_prefix(prefix), start, end, _limit(limit), bool(reverse), names]


def members(key: str) -> Stream:
    return "smembers", [_key(key)]


def items(key: str) -> Stream:
    return "hitems", [_key(key)]


def delta_since(vv: VersionVector | None) -> Stream:
    if vv is not None and not isinstance(vv, VersionVector):
        raise InvalidValueError(f"vv: must be a VersionVector or None, got {type(vv).__name__}", field="vv")
    return "delta_since", [None if vv is None else vv.to_bytes()]


def watch(prefix: str, since: str | None) -> Stream:
    if since is not None and not isinstance(since, str):
        raise InvalidValueError(f"since: must be a token (str) or None, got {type(since).__name__}")
    return "watch", [_prefix(prefix), since]


class ScanRows:
    """Assembles the rows of a scan: a large collection comes in several, all but the last marked `more`."""

    __slots__ = ("_part",)

    def __init__(self) -> None:
        self._part: list[Any] = []

    def feed(self, row: list[Any]) -> tuple[str, Any] | None:
        """The pair that this row completes, if it does."""
        key, kind, payload, more = row
        if kind == "register":
            return key, decode_value(payload)
        if kind == "counter":
            return key, number_from_wire(payload)
        self._part += payload
        if more:
            return None
        part, self._part = self._part, []
        if kind == "set":
            return key, [decode_value(element) for element in part]
        return key, {field: decode_value(value) for field, value in part}
