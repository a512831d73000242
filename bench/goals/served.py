"""Rows of one client and one node over gRPC, beside Redis over redis-py and beside bare gRPC, all on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import crdtkv
import crdtkv.aio
from bench.goals.row import VALUE, Bench, Figures, Row, Side, key
from bench.judging import Claim, percentile
from bench.limits import append, echo
from bench.peers.base import free_port
from bench.peers.nats import Nats
from bench.peers.redis import Redis, RedisAlways
from bench.processes import module, nodes

LIVE_KEYS: Final = 10_000
CALLERS: Final = (64, 512)
OURS, SYNC = "crdtkv", "crdtkv sync"
_KEYS: Final = [key(number) for number in range(LIVE_KEYS)]
_DURABILITY: Final = {
    Redis.name: Redis.durability,
    RedisAlways.name: RedisAlways.durability,
    OURS: "process crash (async)",
    SYNC: "machine crash (sync)",
    "bare echo": "none",
}


def bare_server(bench: Bench, stack: ExitStack) -> str:
    """A gRPC server that does nothing; its address."""
    address = f"127.0.0.1:{free_port()}"
    stack.enter_context(module("bench.limits.grpc_server", address, parent=bench.directory))
    return address


def one_node(bench: Bench, stack: ExitStack, durability: str = "async") -> str:
    """A node alone; its address."""
    return stack.enter_context(nodes(["us"], bench.directory, durability=durability))["us"].address


async def callers_per_s(count: int, operations: int, put: Callable[[str, str], Awaitable[object]]) -> float:
    """Puts per second of `count` tasks that each wait for their own answer."""
    each = max(1, operations // count)

    async def caller(first: int) -> None:
        for number in range(first, first + each):
            await put(_KEYS[number % LIVE_KEYS], VALUE)

    began = time.perf_counter()
    await asyncio.gather(*(caller(number * each) for number in range(count)))
    return count * each / (time.perf_counter() - began)


def concurrent(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """64 and 512 tasks of one asyncio client, each waiting for its own put."""
    operations = bench.scaled(30_000)
    bare, quick, safe = bare_server(bench, stack), one_node(bench, stack), one_node(bench, stack, "sync")
    sides: dict[str, Side] = {}

    def side(open_client: Callable[[], Any], share: int, counts: tuple[int, ...] = CALLERS) -> Side:
        async def run() -> Figures:
            async with open_client() as client:
                await callers_per_s(8, 64, client.put)
                return {f"c{count}_per_s": await callers_per_s(count, operations // share, client.put) for count in counts}

        return lambda: asyncio.run(run())

    for peer, share in ((Redis, 2), (RedisAlways, 4), (Nats, 2)):
        if bench.has(peer):
            server: Any = stack.enter_context(peer.start(bench.folder(peer.name)))
            sides[peer.name] = side(server.awaited, share, CALLERS if peer is Redis else (64,))
    sides["bare echo"] = side(lambda: echo.batched(bare), 1)
    sides[OURS] = side(lambda: crdtkv.aio.connect(quick, timeout=60.0), 1)
    sides[SYNC] = side(lambda: crdtkv.aio.connect(safe, timeout=60.0), 2)
    return sides


def pipeline(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """One blocking client that sends a hundred or a thousand calls at a time."""
    operations = bench.scaled(30_000, 1000)
    quick, safe = one_node(bench, stack), one_node(bench, stack, "sync")
    sides: dict[str, Side] = {}

    def figures(put_many: Callable[[list[str]], object], get_many: Callable[[list[str]], object]) -> Figures:
        out = {}
        for size in (100, 1000):
            for name, many in (("put", put_many), ("get", get_many)):
                began = time.perf_counter()
                for start in range(0, operations, size):
                    first = start % LIVE_KEYS
                    many(_KEYS[first : first + size])
                out[f"{name}{size}_per_s"] = operations / (time.perf_counter() - began)
        return out

    def theirs(server: Any) -> Figures:
        with server.blocking() as store:
            return figures(lambda keys: store.put_many([(name, VALUE) for name in keys]), store.get_many)

    def ours(address: str) -> Figures:
        with crdtkv.connect(address, timeout=60.0) as client:

            def put_many(keys: list[str]) -> None:
                with client.pipeline() as group:
                    for name in keys:
                        group.put(name, VALUE)

            def get_many(keys: list[str]) -> list[Any]:
                with client.pipeline() as group:
                    results = [group.get(name) for name in keys]
                return [result.value for result in results]

            return figures(put_many, get_many)

    for peer in (Redis, RedisAlways):
        if bench.has(peer):
            server = stack.enter_context(peer.start(bench.folder(peer.name)))
            sides[peer.name] = lambda server=server: theirs(server)  # type: ignore[misc]
    sides[OURS] = lambda: ours(quick)
    sides[SYNC] = lambda: ours(safe)
    return sides


def latency(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """One caller, one request at a time; awaited beside an open bare stream, blocking beside redis-py and an empty unary call."""
    calls = bench.scaled(1500)
    bare, quick, safe = bare_server(bench, stack), one_node(bench, stack), one_node(bench, stack, "sync")

    async def awaited(call: Callable[[int], Awaitable[object]]) -> float:
        taken = []
        for number in range(calls):
            began = time.perf_counter_ns()
            await call(number)
            taken.append((time.perf_counter_ns() - began) / 1e3)
        return percentile(taken[calls // 10 :], 50)

    def blocking(call: Callable[[int], object]) -> float:
        taken = []
        for number in range(calls):
            began = time.perf_counter_ns()
            call(number)
            taken.append((time.perf_counter_ns() - began) / 1e3)
        return percentile(taken[calls // 10 :], 50)

    async def bare_figures() -> Figures:
        request = b"x" * 130
        async with echo.stream(bare) as exchange:
            answered = await awaited(lambda _: exchange(request))
        async with echo.unary(bare) as call:
            return {"stream_p50_us": answered, "unary_p50_us": await awaited(lambda _: call(request))}

    async def aio_figures(address: str) -> Figures:
        async with crdtkv.aio.connect(address) as client:
            return {
                "put_p50_us": await awaited(lambda number: client.put(_KEYS[number % LIVE_KEYS], VALUE)),
                "get_p50_us": await awaited(lambda number: client.get(_KEYS[number % LIVE_KEYS])),
            }

    def store_figures(store: Any) -> Figures:
        return {
            "put_p50_us": blocking(lambda number: store.put(_KEYS[number % LIVE_KEYS], VALUE)),
            "get_p50_us": blocking(lambda number: store.get(_KEYS[number % LIVE_KEYS])),
        }

    def through(open_store: Callable[[], Any]) -> Figures:
        with open_store() as store:
            return store_figures(store)

    sides: dict[str, Side] = {"bare": lambda: asyncio.run(bare_figures())}
    if bench.has(Redis):
        server: Any = stack.enter_context(Redis.start(bench.folder(Redis.name)))
        sides[Redis.name] = lambda: through(server.blocking)
    sides[OURS] = lambda: through(lambda: crdtkv.connect(quick))
    sides["crdtkv awaited"] = lambda: asyncio.run(aio_figures(quick))
    sides[SYNC] = lambda: through(lambda: crdtkv.connect(safe))
    return sides


def synced(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """64 callers over one stream to a node that fsyncs; beside one thread that appends blocks of 64 records and syncs each."""
    operations, blocks = bench.scaled(20_000), bench.scaled(500)
    address = one_node(bench, stack, "sync")
    file = bench.directory / "append"

    async def ours() -> Figures:
        async with crdtkv.aio.connect(address, timeout=60.0) as client:
            await callers_per_s(8, 64, client.put)
            return {"op_per_s": await callers_per_s(64, operations, client.put)}

    return {
        "append + fdatasync": lambda: {"op_per_s": append.records_per_s(file, blocks=blocks, records=64, size=136)},
        SYNC: lambda: asyncio.run(ours()),
    }


ROWS: Final = (
    Row(
        "rocksdb-sync",
        "RocksDB + sync, 64 callers over one stream",
        "one thread, blocks of 64 + fdatasync",
        "≥ 0.3 ×",
        (Claim(f"{SYNC}/op_per_s", 0.3, "append + fdatasync/op_per_s"),),
        synced,
        {"append + fdatasync": "machine crash", SYNC: "machine crash (sync)"},
    ),
    Row(
        "concurrent",
        "one asyncio client, 64 and 512 concurrent single-key puts",
        "redis-py asyncio → Redis everysec; bare auto-batched echo",
        "≥ 5 × Redis; ≥ 0.4 × the echo; ≥ 60 k/s with 64",
        (
            Claim(f"{OURS}/c64_per_s", 5.0, f"{Redis.name}/c64_per_s"),
            Claim(f"{OURS}/c64_per_s", 0.4, "bare echo/c64_per_s"),
            Claim(f"{OURS}/c512_per_s", 5.0, f"{Redis.name}/c512_per_s"),
            Claim(f"{OURS}/c512_per_s", 0.4, "bare echo/c512_per_s"),
            Claim(f"{OURS}/c64_per_s", 60_000),
            Claim(f"{OURS}/c64_per_s", None, f"{Nats.name}/c64_per_s"),
            Claim(f"{SYNC}/c64_per_s", None, f"{RedisAlways.name}/c64_per_s"),
        ),
        concurrent,
        {**_DURABILITY, Nats.name: Nats.durability},
    ),
    Row(
        "pipeline",
        "one client, pipelines of 100 and 1000, put and get",
        "redis-py pipelines → Redis everysec",
        "put ≥ 1.5 ×, get ≥ 1.2 ×; put ≥ 80 k/s by 1000",
        (
            *(Claim(f"{OURS}/put{size}_per_s", 1.5, f"{Redis.name}/put{size}_per_s") for size in (100, 1000)),
            *(Claim(f"{OURS}/get{size}_per_s", 1.2, f"{Redis.name}/get{size}_per_s") for size in (100, 1000)),
            Claim(f"{OURS}/put1000_per_s", 80_000),
            *(Claim(f"{SYNC}/put{size}_per_s", None, f"{RedisAlways.name}/put{size}_per_s") for size in (100, 1000)),
        ),
        pipeline,
        _DURABILITY,
    ),
    Row(
        "latency",
        "one client, one request at a time, put and get",
        "bare request and answer on an open stream (awaited); redis-py sync and an empty unary call (blocking)",
        "≤ 1.5 × the stream; ≤ 2 × Redis; ≤ 1 × the unary call",
        (
            Claim("crdtkv awaited/put_p50_us", 1.5, "bare/stream_p50_us", at_most=True),
            Claim("crdtkv awaited/get_p50_us", 1.5, "bare/stream_p50_us", at_most=True),
            Claim(f"{OURS}/put_p50_us", 2.0, f"{Redis.name}/put_p50_us", at_most=True),
            Claim(f"{OURS}/get_p50_us", 2.0, f"{Redis.name}/get_p50_us", at_most=True),
            Claim(f"{SYNC}/put_p50_us", None, f"{Redis.name}/put_p50_us", at_most=True),
            Claim(f"{OURS}/put_p50_us", 1.0, "bare/unary_p50_us", at_most=True),
        ),
        latency,
        _DURABILITY,
    ),
)
