"""A node without a store: the KeyValue service over a dict, in a background thread, for tests of the clients.

It answers as the contract says, counts messages and requests, remembers request ids, and misbehaves on demand: it can hold
its answers, drop its streams, or refuse them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import msgspec

from crdtkv.core.causality import EMPTY_VV, Origin
from crdtkv.core.codec import encode_value
from crdtkv.errors import CrdtkvError, KeyNotFoundError, TokenExpiredError, WrongTypeError
from crdtkv.pb.v1 import kv_pb2, kv_pb2_grpc
from crdtkv.results import Conflict, Explanation, Status, Write
from crdtkv.transport import server_options
from crdtkv.transport.errors import status_code, trailing_metadata

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode

TYPES = {"register": bytes, "set": set, "counter": int, "map": dict}


class DictStore:
    """Key → bytes (register), set, int (counter) or dict (map): just enough to answer every operation."""

    def __init__(self, region: str) -> None:
        self.origin = Origin(f"{region}@1-00000000")
        self.data: dict[str, Any] = {}
        self.log: list[list[Any]] = []
        self.rids: dict[bytes, Any] = {}

    @property
    def token(self) -> str:
        return str(len(self.log))

    def run(self, op: str, args: list[Any], options: bytes | dict[str, Any] | None) -> Any:
        rid = options.get("rid") if isinstance(options, dict) else options
        if rid is not None and rid in self.rids:
            return self.rids[rid]
        payload = getattr(self, f"op_{op}")(*args)
        if rid is not None:
            self.rids[rid] = payload
        return payload

    def commit(self, key: str, kind: str, type_: str = "register", subkey: bytes | None = None, value: bytes | None = None) -> list[Any]:
        seq = len(self.log) + 1
        self.log.append([key, type_, subkey, kind, value, self.origin, seq, seq << 16, str(seq)])
        return [self.origin, seq, seq << 16]

    def at(self, key: str, type_: str, *, make: bool = False) -> Any:
        held = self.data.get(key)
        if held is None and make:
            held = self.data[key] = TYPES[type_]()
        if held is not None and not isinstance(held, TYPES[type_]):
            raise WrongTypeError(f"key {key!r} is no {type_}", key=key)
        return held if held is not None else TYPES[type_]()

    def op_get(self, key: str) -> bytes | None:
        return self.at(key, "register") if key in self.data else None

    def op_put(self, key: str, value: bytes, ttl: float | None = None) -> list[Any]:
        self.at(key, "register")
        self.data[key] = value
        return self.commit(key, "put", value=value)

    def op_delete(self, key: str) -> list[Any] | None:
        return None if self.data.pop(key, None) is None else self.commit(key, "delete")

    def op_exists(self, key: str) -> bool:
        return key in self.data

    def op_type(self, key: str) -> list[str]:
        return [name for name, cls in TYPES.items() if isinstance(self.data.get(key), cls)]

    def op_ttl(self, key: str) -> None:
        return None

    def op_expire(self, key: str, seconds: float | None) -> list[Any] | None:
        return self.commit(key, "put", value=self.data[key]) if key in self.data else None

    def op_count(self, prefix: str) -> int:
        return sum(key.startswith(prefix) for key in self.data)

    def op_delete_prefix(self, prefix: str) -> list[Any] | None:
        commits = [self.op_delete(key) for key in list(self.data) if key.startswith(prefix)]
        return commits[-1] if commits else None

    def op_sadd(self, key: str, elements: list[bytes], ttl: float | None) -> list[Any] | None:
        held = self.at(key, "set", make=True)
        new = [element for element in elements if element not in held]
        held.update(new)
        return self.commit(key, "add", "set", new[0]) if new else None

    def op_sdiscard(self, key: str, elements: list[bytes]) -> list[Any] | None:
        held = self.at(key, "set")
        gone = [element for element in elements if element in held]
        held.difference_update(gone)
        return self.commit(key, "remove", "set", gone[0]) if gone else None

    def op_sremove(self, key: str, element: bytes) -> list[Any] | None:
        if element not in self.at(key, "set"):
            raise KeyNotFoundError(f"set {key!r} does not hold it", key=key)
        return self.op_sdiscard(key, [element])

    def op_scontains(self, key: str, element: bytes) -> bool:
        return element in self.at(key, "set")

    def op_slen(self, key: str) -> int:
        return len(self.at(key, "set"))

    def op_sclear(self, key: str) -> list[Any] | None:
        return self.op_delete(key)

    def op_cincr(self, key: str, n: int) -> list[Any]:
        self.data[key] = self.at(key, "counter") + n
        return self.commit(key, "increment", "counter", value=encode_value(self.data[key]))

    def op_cget(self, key: str) -> int:
        return int(self.at(key, "counter"))

    def op_creset(self, key: str) -> list[Any] | None:
        return self.op_delete(key)

    def op_hput(self, key: str, field: str, value: bytes, ttl: float | None) -> list[Any]:
        self.at(key, "map", make=True)[field] = value
        return self.commit(key, "put", "map", encode_value(field), value)

    def op_hget(self, key: str, field: str) -> bytes | None:
        value: bytes | None = self.at(key, "map").get(field)
        return value

    def op_hdel(self, key: str, field: str) -> list[Any] | None:
        return None if self.at(key, "map").pop(field, None) is None else self.commit(key, "delete", "map", encode_value(field))

    def op_hcontains(self, key: str, field: str) -> bool:
        return field in self.at(key, "map")

    def op_hlen(self, key: str) -> int:
        return len(self.at(key, "map"))

    def op_hclear(self, key: str) -> list[Any] | None:
        return self.op_delete(key)

    def op_batch(self, rows: list[list[Any]]) -> list[Any] | None:
        before, held = dict(self.data), len(self.log)
        try:
            for op, *args in rows:
                self.run(op, args, None)
        except CrdtkvError:
            self.data = before
            del self.log[held:]
            raise
        return [self.origin, held + 1, held + 1 << 16] if len(self.log) > held else None

    def op_siblings(self, key: str) -> list[list[Any]]:
        return [[self.data[key], self.origin, 1, 1 << 16]] if key in self.data else []

    def op_explain(self, key: str) -> dict[str, Any]:
        write = Write(self.origin, 1, 1 << 16, "put", value="v", seen=EMPTY_VV, outcome="winner")
        return Explanation(key, key in self.data, ("register",), "v", (write,), "the only write", self.origin).to_wire()

    def op_conflicts(self, prefix: str, since: Any, limit: int | None) -> list[dict[str, Any]]:
        winner, loser = (Write(self.origin, n, n << 16, "put", value=n) for n in (2, 1))
        return [Conflict("k", "register", None, "greatest (hlc, origin)", winner, (loser,), 2 << 16).to_wire()]

    def op_vv(self) -> bytes:
        return EMPTY_VV.advance(self.origin, len(self.log)).to_bytes()

    def op_digest(self) -> str:
        return f"{len(self.log):032x}"

    def op_status(self) -> dict[str, Any]:
        return {**Status(self.origin.partition("@")[0], self.origin, log_end=len(self.log)).to_wire(), "of a newer version": 1}

    def op_merge(self, delta: bytes) -> list[Any]:
        return [len(delta), 0, 0, sorted(self.data)]

    def op_hang(self) -> None:
        raise AssertionError("answered by the servicer")

    def stream(self, op: str, args: list[Any]) -> list[list[Any]]:
        """The pages of a streaming read, two rows each."""
        if op == "scan":
            prefix, start, end, limit, reverse, types = args
            rows: list[Any] = []
            keys = [k for k in self.data if k.startswith(prefix) and (start is None or k >= start) and (end is None or k < end)]
            for key in sorted(keys, reverse=reverse)[:limit]:
                held = self.data[key]
                kind = self.op_type(key)[0]
                if types and kind not in types:
                    continue
                if isinstance(held, bytes | int):
                    rows.append([key, kind, held, False])
                    continue
                parts = sorted(held) if isinstance(held, set) else [[f, v] for f, v in sorted(held.items())]
                chunks = [parts[i : i + 2] for i in range(0, len(parts), 2)] or [[]]
                rows += [[key, kind, chunk, i + 1 < len(chunks)] for i, chunk in enumerate(chunks)]
        elif op == "smembers":
            rows = sorted(self.at(args[0], "set"))
        elif op == "hitems":
            rows = [[field, value] for field, value in sorted(self.at(args[0], "map").items())]
        else:
            rows = [b"delta", b"-", args[0] or b"all"]
        return [rows[i : i + 2] for i in range(0, len(rows), 2)]


def taken_apart(op: str, args: list[Any], options: Any) -> list[tuple[int, str, list[Any], Any]] | None:
    """The requests of a block, numbered; None for a row that is none."""
    if op == "puts":
        keys, values, rids = args
        rows = zip(keys, values, rids, strict=True)
        return [(at, "put", [key, value], {**options, "rid": rid} if options else rid) for at, (key, value, rid) in enumerate(rows)]
    return [(at, "get", [key], options) for at, key in enumerate(args[0])] if op == "gets" else None


class FakeNode(kv_pb2_grpc.KeyValueServicer):
    """The service, its thread and its counts.

    Attributes:
        messages: of sessions, received.
        ops: how often each operation arrived.
        deadlines_ms: of each request, in the order they arrived.
        hold: operations that are applied and never answered.
        drop: operations at which the stream breaks: "before" or "after" they are applied.
        refuse: an error with which every session is refused.
        fail: operation → error with which it is answered, without being applied.
    """

    def __init__(self, region: str = "us", port: int = 0, store: DictStore | None = None) -> None:
        self.store = store or DictStore(region)
        self.messages = 0
        self.ops: Counter[str] = Counter()
        self.deadlines_ms: list[int] = []
        self.hold: set[str] = set()
        self.drop: dict[str, str] = {}
        self.refuse: CrdtkvError | None = None
        self.fail: dict[str, CrdtkvError] = {}
        self.watchers = 0
        self.port = port
        self._changed: asyncio.Event
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-node", daemon=True)
        self._thread.start()
        self._run(self._start())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> None:
        self._changed = asyncio.Event()
        self._server = grpc.aio.server(options=server_options())
        kv_pb2_grpc.add_KeyValueServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Cut every connection and stop listening; idempotent."""
        if self._loop.is_running():
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    async def _end(self) -> None:
        await self._server.stop(None)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(tasks, timeout=1) if tasks else None

    def write(self, action: Callable[[DictStore], Any]) -> None:
        """Change the store as if another client had."""

        async def act() -> None:
            action(self.store)
            self._notify()

        self._run(act())

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Session(self, request_iterator: Any, context: Any) -> None:
        if self.refuse is not None:
            await context.abort(status_code(self.refuse), str(self.refuse), trailing_metadata(self.refuse))
        while (message := await context.read()) is not grpc.aio.EOF:
            self.messages += 1
            replies: list[Any] = []
            blocks: dict[int, list[Any]] = {}
            for id, op, args, options in decode(message.rows):
                # A block's requests are answered one by one: the real node's short answers have tests of their own.
                alone = taken_apart(op, args, options)
                into = replies if alone is None else blocks.setdefault(id, [])
                for number, one, its, opts in alone or [(id, op, args, options)]:
                    await self._answer(into, number, one, its, opts, message.deadline_ms, context)
            replies += [[id, 2, answered] for id, answered in blocks.items() if answered]
            self._notify()
            if replies:
                await context.write(kv_pb2.ReplyBatch(rows=encode(replies), token=self.store.token))

    async def _answer(self, replies: list[Any], id: int, op: str, args: list[Any], options: Any, deadline_ms: int, context: Any) -> None:
        self.ops[op] += 1
        self.deadlines_ms.append(options["deadline_ms"] if isinstance(options, dict) else deadline_ms)
        drop = self.drop.pop(op, None)
        if drop == "before":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
        try:
            if op in self.fail:
                raise self.fail[op]
            payload = self.store.run(op, args, options)
            if op not in self.hold:
                replies.append([id, 0, payload])
        except CrdtkvError as e:
            replies.append([id, 1, [e.code, e.message, e.details, e.retryable, e.maybe_applied]])
        if drop == "after":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")

    async def Scan(self, request: Any, context: Any) -> None:
        try:
            for page in self.store.stream(request.op, decode(request.args)):
                await context.write(kv_pb2.Page(rows=encode(page)))
        except CrdtkvError as e:
            await context.abort(status_code(e), str(e), trailing_metadata(e))

    async def Watch(self, request: Any, context: Any) -> None:
        prefix, since = decode(request.args)
        position = len(self.store.log) if since is None else int(since)
        if position > len(self.store.log):
            error = TokenExpiredError("the token is of another replica: scan, then watch from its token", token=since)
            await context.abort(status_code(error), str(error), trailing_metadata(error))
        self.watchers += 1
        try:
            await context.write(kv_pb2.Page())
            while True:
                changed = self._changed
                rows = [row for row in self.store.log[position:] if row[0].startswith(prefix)]
                position = len(self.store.log)
                if rows:
                    await context.write(kv_pb2.Page(rows=encode(rows)))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.2)
        finally:
            self.watchers -= 1
