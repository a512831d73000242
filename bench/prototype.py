"""The bare prototype: client → A → B → subscriber over gRPC streams, with nothing in between.

What replication over these streams costs at the least: no CRDT, no log, no checks, no answers but one acknowledgement a
message. Each hop has one message under way and puts all that gathered meanwhile into the next, without which it collapses
at 10,000 writes a second. Alone it runs four processes (client, A, B, subscriber) and prints lag from when a write was
due; `replication.py` runs client and subscriber in its own process, as it does with real nodes, to stand beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from common import free_port, percentile
from processes import process, scratch

STAMP = struct.Struct("<q")
WRITE_BYTES = 120
"""A write's stamp and padding: a key of 16 bytes and a value of 100."""
PADDING = bytes(WRITE_BYTES - STAMP.size)


def punctual_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are good to tens of µs: the usual one rounds them up to the next ms, which at 1,000 writes a
    second would be most of what is measured. For a process that writes on a schedule."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class Hop:
    """Writes on their way over one stream: what gathers while a message is under way travels in the next."""

    def __init__(self) -> None:
        self._gathered: list[bytes] = []
        self._more = asyncio.Event()

    def put(self, data: bytes) -> None:
        self._gathered.append(data)
        self._more.set()

    async def take(self) -> bytes:
        await self._more.wait()
        self._more.clear()
        data = b"".join(self._gathered)
        self._gathered.clear()
        return data

    async def send_over(self, call: Any) -> None:
        """Send what comes over a bidirectional stream, one unacknowledged message at a time."""
        while True:
            await call.write(await self.take())
            await call.read()


async def serve(address: str, onward: str) -> None:
    """Be A, which hands on to `onward`, or (without) B, which hands on to its subscribers."""
    import grpc

    hops: set[Hop] = set()

    async def write(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        async for data in requests:
            for hop in hops:
                hop.put(data)
            yield b""

    async def subscribe(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        hop = Hop()
        hops.add(hop)
        try:
            yield b""
            while True:
                yield await hop.take()
        finally:
            hops.discard(hop)

    server = grpc.aio.server()
    handlers = {
        "Write": grpc.stream_stream_rpc_method_handler(write),
        "Subscribe": grpc.unary_stream_rpc_method_handler(subscribe),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(address)
    await server.start()
    async with asyncio.TaskGroup() as group:
        if onward:
            channel = grpc.aio.insecure_channel(onward)
            await channel.channel_ready()
            hop = Hop()
            hops.add(hop)
            group.create_task(hop.send_over(channel.stream_stream("/bench/Write")()))
        print("ready", flush=True)
        await server.wait_for_termination()


async def write(address: str, rate: float, amount: int) -> None:
    """Be the client: `amount` writes on a schedule, each stamped with when it was due."""
    import grpc

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        call = channel.stream_stream("/bench/Write")()
        hop = Hop()
        sender = group.create_task(hop.send_over(call))
        began, sent = time.monotonic_ns(), 0
        while sent < amount:
            due = began + int(sent / rate * 1e9)
            if (wait_s := (due - time.monotonic_ns()) / 1e9) > 0:
                await asyncio.sleep(wait_s)
            hop.put(STAMP.pack(due) + PADDING)
            sent += 1
        await asyncio.sleep(0.5)  # what gathered last is still to be sent
        sender.cancel()


async def subscribe(address: str, amount: int, subscribed: asyncio.Event) -> list[float]:
    """Be the subscriber: µs from when each of `amount` writes was due until it is here."""
    import grpc

    taken: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream("/bench/Subscribe")(b"")
        async for data in call:
            now = time.monotonic_ns()
            subscribed.set()
            taken += [(now - STAMP.unpack_from(data, at)[0]) / 1e3 for at in range(0, len(data), WRITE_BYTES)]
            if len(taken) >= amount:
                call.cancel()
                break
    return taken


@contextlib.contextmanager
def prototype(parent: Path) -> Iterator[tuple[str, str]]:
    """A and B in processes of their own; yields their addresses."""
    a, b = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, __file__, "--serve"]
    with process([*command, b], log=parent / "prototype-b.log"), process([*command, a, "--onward", b], log=parent / "prototype-a.log"):
        yield a, b


async def lag(a: str, b: str, rate: float, amount: int, *, client_process: bool = False) -> list[float]:
    """µs from due in A to seen by a subscriber of B, of `amount` writes.

    Args:
        client_process: the client is a process of its own, instead of a task beside the subscriber.
    """
    subscribed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(subscribe(b, amount, subscribed))
        await subscribed.wait()
        if client_process:
            child = subprocess.Popen([sys.executable, __file__, "--write", a, "--rate", str(rate), "--amount", str(amount)])
            try:
                return await watching
            finally:
                child.wait()
        group.create_task(write(a, rate, amount))
    return watching.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1_000, help="writes a second (default %(default)g)")
    parser.add_argument("--amount", type=int, default=5_000, help="writes (default %(default)s)")
    parser.add_argument("--serve", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--onward", metavar="ADDRESS", default="", help=argparse.SUPPRESS)
    parser.add_argument("--write", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.onward))
    elif arguments.write:
        with asyncio.Runner(loop_factory=punctual_loop) as runner:
            runner.run(write(arguments.write, arguments.rate, arguments.amount))
    else:
        with scratch() as parent, prototype(parent) as (a, b):
            taken = asyncio.run(lag(a, b, arguments.rate, arguments.amount, client_process=True))[arguments.amount // 10 :]
        figures = ", ".join(f"p{p} {percentile(taken, p):.0f} µs" for p in (50, 90, 99))
        print(f"client → A → B → subscriber, {arguments.rate:g} writes/s: {figures}, max {max(taken):.0f} µs")


if __name__ == "__main__":
    main()
