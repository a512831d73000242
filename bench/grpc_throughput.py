"""One node over gRPC on loopback, in its own process, beside a bare gRPC echo server in the same run.

Latency of one caller stands beside an empty unary echo called in the same way (blocking beside blocking, awaited beside awaited):
the client's multiplexed stream should not cost more than the plainest gRPC call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import crdtkv
import crdtkv.aio

from common import Report, Row, Target, compare, percentile, rate
from processes import echo, nodes, scratch

VALUE = "x" * 100
CALLERS = 64


def key(number: int) -> str:
    return f"key/{number % 10_000:06d}"


def pipelined(report: Report, address: str) -> float:
    """Puts per second of one client that sends a thousand at a time."""
    operations, chunk = report.scaled(40_000), 1_000
    with crdtkv.connect(address, timeout=30.0) as client:

        def run() -> None:
            for start in range(0, operations, chunk):
                with client.pipeline() as pipeline:
                    for number in range(start, start + chunk):
                        pipeline.put(key(number), VALUE)

        return rate(run, operations)


def concurrent(report: Report, address: str) -> float:
    """Puts per second of 64 callers that each wait for their own answer."""
    each = report.scaled(500)

    async def caller(client: crdtkv.aio.AsyncClient, first: int) -> None:
        for number in range(first, first + each):
            await client.put(key(number), VALUE)

    async def run() -> float:
        async with crdtkv.aio.connect(address) as client:
            await client.put("warm", VALUE)
            began = time.perf_counter()
            await asyncio.gather(*(caller(client, n * each) for n in range(CALLERS)))
            return CALLERS * each / (time.perf_counter() - began)

    return asyncio.run(run())


def awaited_latency(calls: int, call: Callable[[int], Awaitable[object]]) -> Awaitable[float]:
    async def run() -> float:
        taken = []
        for number in range(calls):
            began = time.perf_counter_ns()
            await call(number)
            taken.append((time.perf_counter_ns() - began) / 1e3)
        return percentile(taken[calls // 10 :], 50)

    return run()


def blocking_latency(calls: int, call: Callable[[int], object]) -> float:
    taken = []
    for number in range(calls):
        began = time.perf_counter_ns()
        call(number)
        taken.append((time.perf_counter_ns() - began) / 1e3)
    return percentile(taken[calls // 10 :], 50)


def latency(report: Report, quick: str, safe: str, echo_address: str) -> list[Row]:
    import grpc

    calls = report.scaled(2_000)

    def awaited_echo() -> float:
        async def run() -> float:
            async with grpc.aio.insecure_channel(echo_address) as channel:
                method = channel.unary_unary("/bench/Echo")
                return await awaited_latency(calls, lambda _: method(b""))

        return asyncio.run(run())

    def awaited_put(address: str) -> float:
        async def run() -> float:
            async with crdtkv.aio.connect(address) as client:
                return await awaited_latency(calls, lambda number: client.put(key(number), VALUE))

        return asyncio.run(run())

    def blocking_echo() -> float:
        with grpc.insecure_channel(echo_address) as channel:
            method = channel.unary_unary("/bench/Echo")
            return blocking_latency(calls, lambda _: method(b""))

    def blocking_put(address: str) -> float:
        with crdtkv.connect(address) as client:
            return blocking_latency(calls, lambda number: client.put(key(number), VALUE))

    return compare(
        {
            "empty unary echo, awaited": awaited_echo,
            "put, awaited": lambda: awaited_put(quick),
            "put sync, awaited": lambda: awaited_put(safe),
            "empty unary echo, blocking": blocking_echo,
            "put, blocking": lambda: blocking_put(quick),
            "put sync, blocking": lambda: blocking_put(safe),
        },
        unit="µs p50",
        targets={
            "put, awaited": Target(1.0, "empty unary echo, awaited", at_most=True),
            "put, blocking": Target(1.0, "empty unary echo, blocking", at_most=True),
        },
        rounds=report.arguments.rounds,
    )


def main() -> None:
    report = Report(__doc__)
    began = time.perf_counter()
    with (
        scratch() as parent,
        nodes(["us"], durability="async", parent=parent) as quick_nodes,
        nodes(["us"], durability="sync", parent=parent) as safe_nodes,
        echo(parent) as echo_address,
    ):
        quick, safe = quick_nodes["us"], safe_nodes["us"]
        throughput = compare(
            {
                "one pipelining client": lambda: pipelined(report, quick),
                "one pipelining client, sync": lambda: pipelined(report, safe),
                "64 concurrent callers": lambda: concurrent(report, quick),
                "64 concurrent callers, sync": lambda: concurrent(report, safe),
            },
            unit="put/s",
            targets={"one pipelining client": Target(80_000), "64 concurrent callers": Target(60_000)},
            rounds=report.arguments.rounds,
        )
        report.add("puts of a 100-byte value through one node", throughput)
        report.add("one caller's put", latency(report, quick, safe, echo_address))
    report.finish()
    if not report.arguments.json:
        print(f"grpc_throughput: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
