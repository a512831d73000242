"""The one interface of all peers, and what starting them takes.

A peer that is not installed is not an error: `missing` says what to do, and the row that wanted it says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final

READY_S: Final = 30.0
STOP_S: Final = 10.0


class Store(ABC):
    """A peer's store, open in this process (or a blocking connection to its server). Keys are str, values str of 7-bit text."""

    @abstractmethod
    def put(self, key: str, value: str) -> None:
        """One write in one transaction, as durable as the peer's `durability` says."""

    @abstractmethod
    def get(self, key: str) -> str | None:
        """The value as a Python str, whatever the peer keeps inside; None: absent."""

    @abstractmethod
    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Many writes in one transaction, or one pipeline where there are no transactions."""

    def get_many(self, keys: Sequence[str]) -> list[str | None]:
        """Many reads, in one round trip where there are any."""
        return [self.get(key) for key in keys]


class AwaitedStore(ABC):
    """A connection that many tasks share."""

    @abstractmethod
    async def put(self, key: str, value: str) -> None: ...

    @abstractmethod
    async def get(self, key: str) -> str | None: ...


class Peer(ABC):
    """A kind of store that crdtkv is held against.

    Attributes:
        name: as it stands in the tables.
        durability: what an answered write survives, in words.
        modules: that must be importable.
    """

    name: ClassVar[str]
    durability: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be measured, and what to do; None if it can."""
        absent = [module for module in cls.modules if importlib.util.find_spec(module) is None]
        return f"not installed ({', '.join(absent)}): pip install crdtkv[bench]" if absent else None


class EmbeddedPeer(Peer):
    """One that lives in this process."""

    @classmethod
    @abstractmethod
    def open(cls, directory: Path) -> AbstractContextManager[Store]:
        """A fresh store; whatever it keeps on disk is below `directory`."""


class Server(ABC):
    """A running server, with a second that follows it."""

    address: str
    replica: str

    @abstractmethod
    def blocking(self) -> AbstractContextManager[Store]:
        """A connection for one thread."""

    @abstractmethod
    def awaited(self) -> AbstractAsyncContextManager[AwaitedStore]:
        """A connection for many tasks of the running event loop."""

    @abstractmethod
    def arrivals(self, prefix: str) -> AsyncIterator[str]:
        """Keys below a prefix as a watcher of the *replica* hears that they were written. The first item is "" once it listens."""


class ServedPeer(Peer):
    """One that runs in processes of its own."""

    @classmethod
    @abstractmethod
    def start(cls, directory: Path, *, replicated: bool = False) -> AbstractContextManager[Server]:
        """Start it on loopback, with a replica if asked for; stopped at the end, whatever happens."""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def daemon(command: Sequence[str], *, log: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """A server process; yields its pid once `ready` says so, and stops it at the end.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of what it wrote.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_S
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{Path(command[0]).name} did not start: {log.read_text(errors='replace')[-400:]}")
            time.sleep(0.02)
        yield child.pid
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child of ours: SIGTERM, then SIGKILL."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def accepts(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def on_path(names: Iterable[str]) -> str | None:
    """The first of these programs that is on PATH."""
    for name in names:
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            if os.access(Path(folder, name), os.X_OK):
                return str(Path(folder, name))
    return None
