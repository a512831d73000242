"""A node inside a program: the same server as `crdtkv node`, around a store that the program opened.

    with crdtkv.open("data", region="us") as store, crdtkv.Node(store, listen="127.0.0.1:7001", peers={"eu": "…"}) as node:
        store.put("k", 1)             # replicates
        crdtkv.connect(node.address)  # the same store, from elsewhere

All nodes of a process share one background thread and event loop (`crdtkv.transport.loop`). The store stays the
program's: it may be used beside the node, and is closed after it. Nothing of the process is changed (signals, switch
interval, garbage collector); a process that is a node and nothing else runs `crdtkv.node.run`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from crdtkv.errors import ConfigError, DeadlineExceededError, StoreClosedError
from crdtkv.node.config import Limits, NodeConfig, Tls
from crdtkv.node.server import NodeServer
from crdtkv.results import PeerLag
from crdtkv.transport.loop import background_loop

if TYPE_CHECKING:
    from crdtkv.store.store import Store

T = TypeVar("T")


class Node:
    """Serves and replicates `store` until `close`. Thread-safe.

    Args:
        store: an open store; close it after the node.
        listen: `host:port`; port 0 takes a free one, see `address`.
        peers: region → `host:port` of the other nodes; links may be dialled from either side.
        tls, insecure, limits, replication, compression, metrics: as in `NodeConfig`.
    Raises:
        ConfigError: a setting is wrong, or the port is in use.
    """

    def __init__(
        self,
        store: Store,
        *,
        listen: str = "127.0.0.1:0",
        peers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        replication: str = "lan",
        compression: str = "auto",
        metrics: str | None = None,
    ) -> None:
        if not isinstance(peers, Mapping | None):
            raise ConfigError(f"peers: must map each region to its HOST:PORT, got {type(peers).__name__}", setting="peers")
        config = NodeConfig(
            region=store.region,
            listen=listen,
            peers=dict(peers or {}),
            tls=tls,
            insecure=insecure,
            limits=limits or Limits(),
            replication=replication,
            compression=compression,
            metrics=metrics,
        )
        config.validate()
        self._loop = background_loop()
        self._closing = threading.Lock()
        self._closed = False
        self._server: NodeServer = self._call(self._start(config, store))

    @staticmethod
    async def _start(config: NodeConfig, store: Store) -> NodeServer:
        server = NodeServer.of(config)
        try:
            await server.start()
            await server.open(store)
        except BaseException:
            await server.stop()
            raise
        return server

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    @property
    def address(self) -> str:
        """`host:port` that it listens on."""
        return self._server.address

    @property
    def metrics_address(self) -> str:
        """`host:port` where metrics are served; empty: nowhere."""
        return self._server.metrics_address

    def peers(self) -> tuple[PeerLag, ...]:
        """Replication with each peer, as this node sees it."""

        async def lag() -> tuple[PeerLag, ...]:
            return tuple(row for row, _ in await self._server.peers.lag())

        return self._call(lag())

    def set_peer(self, region: str, address: str | None) -> None:
        """Dial `region` at `address` from now on; None: no longer."""

        async def change() -> None:
            self._server.peers.set_address(region, address)

        self._call(change())

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until the link to every configured peer is up.

        Raises:
            DeadlineExceededError: names the peers that are not connected, and why.
            StoreClosedError: the node was closed.
        """
        if self._closed:
            raise StoreClosedError("the node is closed")
        try:
            self._call(self._server.peers.wait_connected(), timeout)
        except TimeoutError as e:
            down = [f"{peer.region} ({peer.state})" for peer in self.peers() if not peer.connected]
            raise DeadlineExceededError(f"not connected within {timeout:g} s: {', '.join(down)}", peers=down) from e

    def close(self) -> None:
        """Shut down in order: answer what was asked, send what is durable, say Bye. Idempotent; the store stays open."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._call(self._server.stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
