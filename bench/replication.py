"""Replication between nodes on loopback, one process each, no emulated delay.

Lag is measured from outside: a program stamps a value with the time at which it was due by its schedule, puts it through its
client in us, and another task of it reads the clock as the watch in eu shows the change. So it spans client → us → eu →
watcher, three hops. It stands beside two floors, taken in alternating stretches of the same run and at the same rate: the
one-way time of a bare message on a gRPC stream, and the same three hops with nothing in between (`prototype.py`). Writes
are issued whether or not earlier ones were answered.

The second part writes to three regions at once and asks, from the moment at which the last write was answered, how
long until all three have equal digests over equal version vectors.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Mapping

import crdtkv
import crdtkv.aio

from common import Report, Row, Target, human, percentile, rows
from processes import echo, nodes, scratch
from prototype import lag as prototype_lag
from prototype import prototype, punctual_loop

STAMP = struct.Struct("<q")
RATE = 1_000
STRETCH_S = 3
CONVERGE_S = 30
CONVERGE_RATE = 5_000
BATCH = 100
DEADLINE_S = 60


async def bare_stream(address: str, seconds: float) -> list[float]:
    """One-way times in µs of messages that a bare server sends at `RATE`."""
    import grpc

    taken: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream("/bench/Ticks")(STAMP.pack(RATE))
        async for message in call:
            taken.append((time.monotonic_ns() - STAMP.unpack(message)[0]) / 1e3)
            if len(taken) >= RATE * seconds:
                call.cancel()
                break
    return taken[len(taken) // 10 :]


async def replicated(writer: crdtkv.aio.AsyncClient, watcher: crdtkv.aio.AsyncClient, seconds: float) -> list[float]:
    """Times in µs from when a put was due in one region to the watch in the other."""
    amount = int(RATE * seconds)
    taken: list[float] = []
    watching = asyncio.Event()

    async def watch() -> None:
        async for change in watcher.watch("lag/"):
            if change.key == "lag/warm":
                watching.set()
                continue
            taken.append((time.monotonic_ns() - STAMP.unpack(change.value)[0]) / 1e3)
            if len(taken) == amount:
                return

    async def warm() -> None:
        number = 0
        while not watching.is_set():
            await writer.put("lag/warm", number)
            number += 1
            await asyncio.sleep(0.05)

    async with asyncio.timeout(seconds + DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(watch())
        await warm()
        began = time.monotonic_ns()
        for number in range(amount):
            due = began + int(number / RATE * 1e9)
            if (wait_s := (due - time.monotonic_ns()) / 1e9) > 0:
                await asyncio.sleep(wait_s)
            group.create_task(writer.put(f"lag/{number % 1000}", STAMP.pack(due)))
    return taken[amount // 10 :]


def lag(report: Report, addresses: Mapping[str, str], echo_address: str, bare_hops: tuple[str, str]) -> tuple[list[Row], list[Row]]:
    """Two tables: lag beside a bare message, and beside the bare prototype. Where that misses the bound on the first too, it is void."""
    seconds = STRETCH_S * report.arguments.scale
    bare, one_way, p99 = "bare stream message, one way, p50", "us → eu, client to watcher, p50", "us → eu, client to watcher, p99"
    hops, hops_p99 = "bare prototype, client to subscriber, p50", "bare prototype, client to subscriber, p99"
    figures: dict[str, list[float]] = {bare: [], hops: [], hops_p99: [], one_way: [], p99: []}

    async def run() -> None:
        async with crdtkv.aio.connect(addresses["us"]) as writer, crdtkv.aio.connect(addresses["eu"]) as watcher:
            for number in range(report.arguments.rounds + 1):
                floor = await bare_stream(echo_address, seconds)
                nothing_between = (await prototype_lag(*bare_hops, RATE, int(RATE * seconds)))[int(RATE * seconds) // 10 :]
                taken = await replicated(writer, watcher, seconds)
                if number:
                    figures[bare].append(percentile(floor, 50))
                    figures[hops].append(percentile(nothing_between, 50))
                    figures[hops_p99].append(percentile(nothing_between, 99))
                    figures[one_way].append(percentile(taken, 50))
                    figures[p99].append(percentile(taken, 99))

    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(run())
    beside_message = rows(
        {name: figures[name] for name in (bare, hops, one_way)},
        unit="µs",
        targets={
            hops: Target(3, bare, at_most=True),
            one_way: Target(3, bare, at_most=True),
        },
    )
    names = (hops, one_way, hops_p99, p99)
    beside_hops = rows({name: figures[name] for name in names}, unit="µs", targets={one_way: Target(2, hops, at_most=True)})
    return beside_message, beside_hops


async def write_for(address: str, region: str, seconds: float) -> int:
    """Batched puts at `CONVERGE_RATE`, on a schedule; returns how many were acknowledged."""
    period = BATCH / CONVERGE_RATE
    done = 0
    async with crdtkv.aio.connect(address, timeout=30.0) as client:
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            due = began + (done // BATCH) * period
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            await asyncio.gather(*(client.put(f"{region}/{(done + n) % 50_000}", f"{elapsed:.3f}" * 16) for n in range(BATCH)))
            done += BATCH
    return done


async def time_to_equal(addresses: Mapping[str, str]) -> float:
    """Milliseconds until all regions have equal version vectors and digests."""
    began = time.monotonic()
    clients = [crdtkv.aio.connect(address) for address in addresses.values()]
    try:
        while time.monotonic() - began < DEADLINE_S:
            seen = await asyncio.gather(*(client.vv() for client in clients))
            if all(vv == seen[0] for vv in seen[1:]):
                digests = await asyncio.gather(*(client.digest() for client in clients))
                if len(set(digests)) == 1:
                    return (time.monotonic() - began) * 1e3
            await asyncio.sleep(0.005)
        raise SystemExit(f"not equal after {DEADLINE_S} s")
    finally:
        for client in clients:
            await client.close()


def converge(report: Report, durability: str) -> list[Row]:
    seconds = CONVERGE_S * report.arguments.scale

    async def run(addresses: Mapping[str, str]) -> tuple[float, float]:
        done = await asyncio.gather(*(write_for(address, region, seconds) for region, address in addresses.items()))
        return min(done) / seconds, await time_to_equal(addresses)

    with scratch() as parent, nodes(["us", "eu", "ap"], durability=durability, parent=parent) as addresses:
        per_region, settled_ms = asyncio.run(run(addresses))
    taken, settled = f"puts per region, {durability}, {seconds:.0f} s", f"until digests are equal, {durability}"
    return [
        *rows({taken: [per_region]}, unit="put/s", targets={taken: Target(CONVERGE_RATE * 0.99)}),
        *rows({settled: [settled_ms]}, unit="ms", targets={settled: Target(500, at_most=True)}),
    ]


def main() -> None:
    report = Report(__doc__)
    began = time.perf_counter()
    for durability in ("async", "sync"):
        with (
            scratch() as parent,
            nodes(["us", "eu"], durability=durability, parent=parent) as addresses,
            echo(parent) as echo_address,
            prototype(parent) as bare_hops,
        ):
            beside_message, beside_hops = lag(report, addresses, echo_address, bare_hops)
            report.add(f"lag at {human(RATE)} writes/s, {durability}", beside_message)
            report.add(f"the same, {durability}, beside client → A → B → subscriber with nothing in between", beside_hops)
    report.add(f"three regions, each {human(CONVERGE_RATE)} writes/s", converge(report, "async"))
    report.finish()
    if not report.arguments.json:
        print(f"replication: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
