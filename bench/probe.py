"""Writers and watchers in processes of their own, for lag and sustained load: `python -m bench.probe ROLE KIND ADDRESS`.

Roles: `write` follows a schedule and waits for no answer; `watch` notes when each number arrived; `load` writes as fast as it is answered.
Kinds: `crdtkv`, `redis`, `nats`, `prototype`. Each takes commands, a line of JSON each, on stdin, and answers on stdout
(`processes.Worker`).

Number n of a round is due at `start_ns + n / rate`, on the monotonic clock, which all processes of a machine share. It is written to the
key `lag/ROUND/(n mod KEYS)`. A watcher reads the number from the value, where it is told the value, else from the key and the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from bench.goals.row import VALUE_BYTES
from bench.judging import percentile

KEYS: Final = 20_000
IN_FLIGHT_MAX: Final = 64
MESSAGE_MAX: Final = 1000
"""Writes in a message: a writer that is late sends what is overdue in several, not in one that no store would take."""
TICK_S_PER_RATE: Final = 4e-8
"""A writer wakes at least so long after the last time, for each write a second: 0.4 ms at 10 k/s, 2 ms at 50 k/s. Else it would spend the
CPU that it shares with what it measures on waking up, and on messages. Lag counts from when a write was due, so what it waits is in it."""
NUMBER_DIGITS: Final = 12
PADDING: Final = "x" * (VALUE_BYTES - NUMBER_DIGITS)

Send = Callable[[int, Sequence[int]], Awaitable[None] | None]
"""Writes the numbers of a round; what it returns is to be awaited for the answer, None if none will come."""


@functools.cache
def names(round_: int) -> list[str]:
    """The keys of a round, 16 bytes each; made once, before the round: to make one for each write costs as much as to send it."""
    return [f"lag/{round_:04d}/{number:07d}" for number in range(KEYS)]


def name(round_: int, number: int) -> str:
    """The key of a number."""
    return names(round_)[number % KEYS]


def value(number: int) -> str:
    """100 bytes that begin with the number."""
    return f"{number:0{NUMBER_DIGITS}d}{PADDING}"


# -- writers: kind → a context that yields `Send` ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def crdtkv_writer(address: str) -> AsyncIterator[Send]:
    from crdtkv.aio import connect

    async with connect(address, timeout=120.0) as client:

        async def send(round_: int, numbers: Sequence[int]) -> None:
            if len(numbers) == 1:
                await client.put(name(round_, numbers[0]), value(numbers[0]))
                return
            keys = names(round_)
            async with client.pipeline() as pipeline:
                for number in numbers:
                    pipeline.put(keys[number % KEYS], value(number))

        yield send


@contextlib.asynccontextmanager
async def redis_writer(address: str) -> AsyncIterator[Send]:
    from bench.peers.redis import RedisServer

    async with RedisServer(address, "").awaited() as client:

        async def send(round_: int, numbers: Sequence[int]) -> None:
            if len(numbers) == 1:
                await client.put(name(round_, numbers[0]), value(numbers[0]))
            else:
                await client.put_many([(name(round_, number), value(number)) for number in numbers])

        yield send


@contextlib.asynccontextmanager
async def nats_writer(address: str) -> AsyncIterator[Send]:
    from bench.peers.nats import NatsServer

    async with NatsServer(address).awaited() as client:

        async def send(round_: int, numbers: Sequence[int]) -> None:
            await asyncio.gather(*(client.put(name(round_, number), value(number)) for number in numbers))

        yield send


@contextlib.asynccontextmanager
async def prototype_writer(address: str) -> AsyncIterator[Send]:
    import grpc
    import msgspec

    from bench.limits.prototype import WRITE, Gathering, forward

    async with grpc.aio.insecure_channel(address) as channel:
        gathering = Gathering()
        task = asyncio.create_task(forward(gathering, channel.stream_stream(WRITE)()))
        encode = msgspec.msgpack.Encoder().encode

        def send(round_: int, numbers: Sequence[int]) -> None:
            gathering.add(b"".join([encode((name(round_, number), value(number))) for number in numbers]))

        try:
            yield send
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# -- watchers: kind → an iterator of (round, number or None, number mod KEYS); the first item only says that it listens ----

Arrival = tuple[int, int]
LISTENING: Final[Arrival] = (-1, -1)


async def crdtkv_arrivals(address: str) -> AsyncIterator[Arrival]:
    from crdtkv.aio import connect
    from crdtkv.errors import OverloadedError

    token = None
    async with connect(address, timeout=120.0) as client:
        while True:
            changes = client.watch("lag/", since=token)
            await changes
            yield LISTENING
            try:
                async for change in changes:
                    token = change.token
                    yield int(change.key[4:8]), int(change.value[:NUMBER_DIGITS])
            except OverloadedError:  # it read too slowly, and goes on where it was
                continue


async def keyed_arrivals(keys: AsyncIterator[str]) -> AsyncIterator[Arrival]:
    """Where a watcher hears only of keys: the number is that of its place in the order."""
    assert await anext(keys) == ""
    yield LISTENING
    round_, last = -1, -1
    async for key in keys:
        if int(key[4:8]) != round_:
            round_, last = int(key[4:8]), -1
        place = int(key[9:])
        step = (place - last + KEYS // 2) % KEYS - KEYS // 2  # several connections may overtake each other by a little
        number = last + step
        last = max(last, number)
        yield round_, number


def redis_arrivals(address: str) -> AsyncIterator[Arrival]:
    from bench.peers.redis import RedisServer

    return keyed_arrivals(RedisServer("", address).arrivals("lag/"))


def nats_arrivals(address: str) -> AsyncIterator[Arrival]:
    from bench.peers.nats import NatsServer

    return keyed_arrivals(NatsServer(address).arrivals("lag/"))


async def prototype_arrivals(address: str) -> AsyncIterator[Arrival]:
    import grpc
    import msgpack

    from bench.limits.prototype import SUBSCRIBE

    async with grpc.aio.insecure_channel(address) as channel:
        subscribe: Any = channel.unary_stream(SUBSCRIBE)
        call = subscribe(b"")
        assert await call.read() == b""
        yield LISTENING
        unpacker = msgpack.Unpacker()
        while (message := await call.read()) is not grpc.aio.EOF:
            unpacker.feed(message)
            for key, content in unpacker:
                yield int(key[4:8]), int(content[:NUMBER_DIGITS])


WRITERS: Final = {"crdtkv": crdtkv_writer, "redis": redis_writer, "nats": nats_writer, "prototype": prototype_writer}
WATCHERS: Final = {"crdtkv": crdtkv_arrivals, "redis": redis_arrivals, "nats": nats_arrivals, "prototype": prototype_arrivals}


# -- roles -------------------------------------------------------------------------------------------------------------


async def commands() -> AsyncIterator[dict[str, Any]]:
    """What the parent asks for."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def answer(**content: Any) -> None:
    print(json.dumps(content), flush=True)


async def write(kind: str, address: str) -> None:
    """Follow schedules: `{round, rate, start_ns, count}` → `{late_p99_us, failed}`."""
    async with WRITERS[kind](address) as send:
        first = send(0, [0])
        if first is not None:
            await first
        print("ready", flush=True)
        async for command in commands():
            names(command["round"])
            answer(**await scheduled(send, command["round"], command["rate"], command["start_ns"], command["count"]))


async def scheduled(send: Send, round_: int, rate: float, start_ns: int, count: int) -> dict[str, Any]:
    """Send what is due, whether or not what came before was answered, but never more than `IN_FLIGHT_MAX` messages."""
    room = asyncio.Semaphore(IN_FLIGHT_MAX)
    late: list[float] = []
    failed = 0

    async def answered(numbers: Sequence[int], answer: Awaitable[None]) -> None:
        nonlocal failed
        try:
            await answer
        except Exception as e:
            failed += len(numbers)
            print(f"{type(e).__name__}: {e}", file=sys.stderr)
        finally:
            room.release()

    period_ns = 1e9 / rate
    number = 0
    async with asyncio.TaskGroup() as group:
        while number < count:
            wait = start_ns + number * period_ns - time.monotonic_ns()
            if wait > 0:
                await asyncio.sleep(max(wait / 1e9, TICK_S_PER_RATE * rate))
            await room.acquire()
            now = time.monotonic_ns()
            until = min(count, number + MESSAGE_MAX, int((now - start_ns) / period_ns) + 1)
            if until <= number:
                room.release()
                continue
            late.append((now - start_ns - number * period_ns) / 1e3)
            numbers = range(number, until)
            coming = send(round_, numbers)
            if coming is None:
                room.release()
            else:
                group.create_task(answered(numbers, coming))
            number = until
    return {"late_p50_us": percentile(late, 50), "late_p99_us": percentile(late, 99), "failed": failed}


async def watch(kind: str, address: str) -> None:
    """Note arrivals; `{round, rate, start_ns, count, skip, timeout_s, windows}` → figures of the numbers from `skip` on."""
    seen: dict[int, dict[int, int]] = {}
    arrivals = WATCHERS[kind](address)
    assert await anext(arrivals) == LISTENING
    print("ready", flush=True)

    async def note() -> None:
        clock = time.monotonic_ns
        of, times = -1, {}
        async for round_, number in arrivals:
            if round_ != of:
                of, times = round_, seen.setdefault(round_, {})
            if number not in times:
                times[number] = clock()

    task = asyncio.create_task(note())
    async for command in commands():
        times = seen.setdefault(command["round"], {})
        deadline = time.monotonic() + command["timeout_s"]
        while command["count"] - 1 not in times and time.monotonic() < deadline and not task.done():
            await asyncio.sleep(0.02)
        if task.done():
            task.result()
        answer(**figures(times, command, time.monotonic_ns()))
        seen.pop(command["round"])  # and no number of it comes any more, but perhaps one again


def figures(times: dict[int, int], command: dict[str, Any], now_ns: int) -> dict[str, Any]:
    """Lag of each number: what a later one overtook was there by then; what never came has waited until now."""
    count, skip, windows = command["count"], command["skip"], command["windows"]
    period_ns = 1e9 / command["rate"]
    lags: list[float] = [0.0] * count
    at = now_ns
    for number in range(count - 1, -1, -1):
        at = min(at, times.get(number, at))
        lags[number] = (times.get(number, at) - command["start_ns"] - number * period_ns) / 1e3
    lags = lags[skip:]
    size = -(-len(lags) // windows)
    parts = [lags[start : start + size] for start in range(0, len(lags), size)]
    return {
        "p50_us": percentile(lags, 50),
        "p99_us": percentile(lags, 99),
        "max_us": max(lags),
        "worst_p50_us": max(percentile(part, 50) for part in parts),
        "worst_p99_us": max(percentile(part, 99) for part in parts),
        "unseen": max(0, count - 1 - max(times, default=-1)),
    }


async def load(kind: str, address: str) -> None:
    """As fast as answered: `{prefix, first, count, batch, keys}` writes `count` numbers in messages of `batch`, four in flight."""
    async with LOADERS[kind](address) as put_many:
        print("ready", flush=True)
        async for command in commands():
            began = time.monotonic()
            numbers = iter(range(command["first"], command["first"] + command["count"], command["batch"]))

            async def worker(command: dict[str, Any] = command, numbers: Any = numbers) -> None:
                for start in numbers:
                    last = min(start + command["batch"], command["first"] + command["count"])
                    await put_many(
                        [(f"{command['prefix']}{number % command['keys']:012d}", value(number)) for number in range(start, last)]
                    )

            async with asyncio.TaskGroup() as group:
                for _ in range(command.get("in_flight", 4)):
                    group.create_task(worker())
            answer(seconds=time.monotonic() - began, written=command["count"])


PutMany = Callable[[Sequence[tuple[str, str]]], Awaitable[None]]


@contextlib.asynccontextmanager
async def crdtkv_loader(address: str) -> AsyncIterator[PutMany]:
    from crdtkv.aio import connect

    async with connect(address, timeout=120.0) as client:

        async def put_many(pairs: Sequence[tuple[str, str]]) -> None:
            async with client.pipeline() as pipeline:
                results = [pipeline.put(key, content) for key, content in pairs]
            for result in results:
                if result.error is not None:
                    raise result.error

        yield put_many


@contextlib.asynccontextmanager
async def redis_loader(address: str) -> AsyncIterator[PutMany]:
    from bench.peers.redis import RedisServer

    async with RedisServer(address, "").awaited() as client:
        yield client.put_many


LOADERS: Final = {"crdtkv": crdtkv_loader, "redis": redis_loader}
ROLES: Final = {"write": write, "watch": watch, "load": load}


def main() -> None:
    import gc

    from crdtkv.transport.loop import precise_event_loop

    gc.disable()  # short-lived: its own pauses would count as lag
    role, kind, address = sys.argv[1:]
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(ROLES[role](kind, address))


if __name__ == "__main__":
    main()
