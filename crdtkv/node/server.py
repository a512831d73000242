"""A node's life: listen, open the store, serve, shut down.

Order of the start. The port is bound first: a port in use fails before the data directory is touched. Behind it gRPC's server listens on
a Unix socket (see `crdtkv.transport.listening`). Then the server
answers health checks (live) while the store opens in a thread, which after a crash may take a while; when it has,
the KeyValue service is ready, the peers are dialled and the ready line is printed. `''` in the health service is
liveness; `crdtkv.v1.KeyValue` is readiness.

Order of the end (SIGTERM, SIGINT, `stop`): not ready; no new calls; what clients have sent is executed and answered;
what is durable is sent to peers, then Bye; the store is closed last. All of it within `shutdown_grace_ms`, except the
store's own close, which is never cut short.

A process that is a node sets two things for the whole process. The interpreter's switch interval goes from 5 ms to
0.5 ms: the storage worker holds the GIL while it executes, and a loop that waits 5 ms for it would add that to the
latency of everything. The garbage collector is told that what exists at the start stays (`gc.freeze`), and looks at
the young generation less often: records are bytes and structs without cycles, so collections find nothing, and full
ones would stop the node for tens of ms per million objects (measured: 2 to 3 × on the path of a write).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from crdtkv import interrupts
from crdtkv.errors import ConfigError
from crdtkv.node.admin import AdminService
from crdtkv.node.config import Limits, NodeConfig, Tls, parse_address
from crdtkv.node.kv import KeyValueService
from crdtkv.node.logging import configure, event
from crdtkv.node.peers import Peers
from crdtkv.node.worker import StorageWorker
from crdtkv.pb.v1 import admin_pb2_grpc, kv_pb2, kv_pb2_grpc, replication_pb2, replication_pb2_grpc
from crdtkv.replication import LAN, ReplicationSettings
from crdtkv.store import Store, open_store
from crdtkv.transport import address_of, server_options
from crdtkv.transport.answering import Method, of_one_request, of_stream
from crdtkv.transport.base import Transport
from crdtkv.transport.grpc import ExchangeServicer, GrpcTransport, client_context, server_context
from crdtkv.transport.listening import Listener
from crdtkv.transport.loop import new_event_loop
from crdtkv.transport.private_socket import PrivateSocket

if TYPE_CHECKING:
    from crdtkv.node.metrics import NodeCollector
    from crdtkv.node.scraping import Scraping

KEY_VALUE: Final = "crdtkv.v1.KeyValue"
SERVICES: Final = (KEY_VALUE, "crdtkv.v1.Replication", "crdtkv.v1.Admin")
HEALTH_S: Final = 0.2
"""How often it is looked whether the store takes writes."""
SWITCH_INTERVAL_S: Final = 0.0005
GC_THRESHOLDS: Final = (50_000, 20, 100)


class NodeServer:
    """One node in the running event loop. `start`, `open`, then `stop`; each once."""

    def __init__(
        self,
        *,
        listen: str,
        peers: Mapping[str, str],
        tls: Tls | None = None,
        limits: Limits | None = None,
        replication: ReplicationSettings = LAN,
        transport: Transport | None = None,
        metrics: str | None = None,
    ) -> None:
        self._listen = listen
        self._metrics_listen = metrics
        self._tls = tls
        self._limits = limits or Limits()
        self._inner: PrivateSocket | None = None  # where gRPC's server listens
        self._listener: Listener | None = None
        self._server: aio.Server | None = None
        self._health = health.HealthServicer()
        self._kv = KeyValueService(self._limits)
        if transport is None:
            context = client_context(tls.ca, tls.cert, tls.key) if tls else None
            transport = GrpcTransport(context, self._limits.message_bytes_max)
        self._peers = Peers(peers, transport, replication)
        self._exchange = ExchangeServicer(self._peers.accept)
        self._admin = AdminService(self._kv, self._peers)
        self._worker: StorageWorker | None = None
        self._follows: Callable[[], None] | None = None  # ends it
        self._watching: asyncio.Task[None] | None = None
        self._collector: NodeCollector | None = None
        self._scraping: Scraping | None = None
        self.failed = asyncio.Event()
        """The store can no longer keep its promises (a failed fsync): stop the node."""
        self.address = ""
        """`host:port` that is listened on."""
        self.metrics_address = ""
        """`host:port` where metrics are; empty: nowhere."""

    @classmethod
    def of(cls, config: NodeConfig) -> NodeServer:
        """As a node's configuration says."""
        return cls(
            listen=config.listen,
            peers=config.peers,
            tls=config.tls,
            limits=config.limits,
            replication=config.replication_settings,
            metrics=config.metrics,
        )

    async def start(self) -> None:
        """Bind the port and answer health checks. Raises `ConfigError` if the address cannot be listened on."""
        host, port = parse_address(self._listen, "listen", port_min=0)
        tls = None if self._tls is None else server_context(self._tls.cert, self._tls.key, self._tls.ca)
        bytes_max = self._limits.message_bytes_max
        try:
            self._inner = PrivateSocket()
        except OSError as e:
            where = tempfile.gettempdir()
            raise ConfigError(f"TMPDIR: no directory for gRPC's socket can be made in {where}: {e.strerror or e}", setting="TMPDIR") from e
        self._listener = Listener(self._methods(), self._inner.path, tls=tls, message_bytes_max=bytes_max)
        try:
            bound = self._listener.open(host, port)
        except OSError as e:
            raise _cannot_listen(self._listen, e) from e
        server = aio.server(options=server_options(bytes_max))
        kv_pb2_grpc.add_KeyValueServicer_to_server(self._kv, server)
        replication_pb2_grpc.add_ReplicationServicer_to_server(self._exchange, server)
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
        )
        server.add_insecure_port(f"unix:{self._inner.path}")
        self._server = server
        self.address = address_of(host, bound)
        self._admin.listen = self.address
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._health.set(KEY_VALUE, health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        await self._listener.start()
        if self._metrics_listen is not None:
            self._serve_metrics(self._metrics_listen)

    def _methods(self) -> dict[bytes, Method]:
        """What has the shorter way: calls of many messages."""
        return {
            b"/crdtkv.v1.KeyValue/Session": Method(kv_pb2.RequestBatch, of_stream(self._kv.Session)),
            b"/crdtkv.v1.KeyValue/Scan": Method(kv_pb2.StreamRequest, of_one_request(self._kv.Scan)),
            b"/crdtkv.v1.KeyValue/Watch": Method(kv_pb2.StreamRequest, of_one_request(self._kv.Watch)),
            b"/crdtkv.v1.Replication/Exchange": Method(replication_pb2.PeerMessage, of_stream(self._exchange.Exchange)),
        }

    def _serve_metrics(self, listen: str) -> None:
        # Imported here: nobody else needs the library, which takes 50 ms to import.
        from crdtkv.node.metrics import NodeCollector
        from crdtkv.node.scraping import Scraping

        self._collector = NodeCollector(asyncio.get_running_loop(), self._kv, self._peers)
        self._scraping = Scraping(listen, self._collector, self._tls)
        self.metrics_address = self._scraping.address

    async def open(self, store: Store) -> None:
        """Serve `store`, which stays the caller's to close, and dial the peers."""
        sync = store.durability == "sync"
        worker = StorageWorker(
            store,
            asyncio.get_running_loop(),
            sync=sync,
            requests_queued_max=self._limits.requests_queued_max,
            failed=self.failed.set,
        )
        self._worker = worker
        await self._peers.open(store, worker, sync=sync)
        self._follows = store.on_commit(worker.poke)
        self._kv.open(store, worker)
        self._admin.open(store, worker)
        if self._collector is not None:
            self._collector.open(store, worker)
        await self._health.set(KEY_VALUE, health_pb2.HealthCheckResponse.SERVING)
        self._watching = asyncio.create_task(self._watch_room(store))

    async def _watch_room(self, store: Store) -> None:
        """Not ready while the store takes no writes, or has no time: whoever can should go elsewhere."""
        told = ""
        while True:
            await asyncio.sleep(HEALTH_S)
            occupied = "" if self._worker is None else self._worker.occupied
            why = store.read_only or occupied
            if bool(why) == bool(told):
                continue
            told = why
            status = health_pb2.HealthCheckResponse
            await self._health.set(KEY_VALUE, status.NOT_SERVING if why else status.SERVING)
            event(logging.WARNING if why else logging.INFO, "not_ready" if why else "ready_again", reason=why)

    @property
    def peers(self) -> Peers:
        """The links to the other nodes."""
        return self._peers

    async def stop(self) -> None:
        """Shut down in order; see the module. The store is the caller's to close after it."""
        began = time.monotonic()
        grace_s = self._limits.shutdown_grace_ms / 1000
        await self._health.enter_graceful_shutdown()
        if self._watching is not None:
            self._watching.cancel()
        if self._collector is not None:
            self._collector.close()
        self._kv.close()
        try:
            async with asyncio.timeout(grace_s):
                if self._worker is not None:
                    await self._worker.drain()
                await self._peers.close()
        except TimeoutError:
            event(logging.WARNING, "shutdown_cut_short", grace_ms=self._limits.shutdown_grace_ms)
            self._peers.abandon()
        if self._listener is not None:
            self._listener.stop_accepting()  # until now whoever came was told why not
        if self._server is not None:
            await self._server.stop(max(0.0, min(1.0, grace_s - (time.monotonic() - began))))
        if self._listener is not None:
            await self._listener.close()
        if self._inner is not None:
            self._inner.close()
        if self._follows is not None:
            await asyncio.to_thread(self._follows)  # may wait for the store's lock
        if self._worker is not None:
            await self._worker.stop()
        self._admin.close_views()
        if self._scraping is not None:
            await asyncio.to_thread(self._scraping.close)
        level = logging.DEBUG if self._worker is None else logging.INFO  # a node that never opened has nothing to say
        event(level, "stopped", took_ms=round((time.monotonic() - began) * 1000))


def _cannot_listen(listen: str, error: OSError) -> ConfigError:
    why = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        why = "the port is in use; stop whoever uses it, or choose another"
    return ConfigError(f"listen: cannot listen on {listen}: {why}", setting="listen")


def run(config: NodeConfig) -> int:
    """Be a node until SIGTERM or SIGINT: the whole of `crdtkv node`.

    Returns:
        The exit status: 0 after an orderly stop, 1 if the store failed under way.
    Raises:
        CrdtkvError: the node could not start; nothing is left open.
    """
    handler = configure(config.log_level, config.log_format)
    logging.getLogger("crdtkv.store").addHandler(logging.NullHandler())  # what it says is logged here as an event
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with interrupts.noted(signal.SIGINT, signal.SIGTERM) as signals, asyncio.Runner(loop_factory=new_event_loop) as runner:
            loop, asked = runner.get_loop(), asyncio.Event()
            with signals.told(lambda _: loop.call_soon_threadsafe(asked.set)):
                return runner.run(_run(config, asked))
    finally:
        logging.getLogger("crdtkv.node").removeHandler(handler)


async def _run(config: NodeConfig, asked: asyncio.Event) -> int:
    node = NodeServer.of(config)
    store: Store | None = None
    try:
        await node.start()
        event(logging.DEBUG, "opening", region=config.region, data=config.data, listen=node.address)
        # A signal while the store opens waits for it: recovery is not left half done.
        store = await asyncio.to_thread(_open_store, config)
        if store.incarnation_reason is not None:
            event(logging.WARNING, "new_incarnation", origin=store.origin, reason=store.incarnation_reason)
        await node.open(store)
        gc.collect()
        gc.freeze()
        where = {"metrics": node.metrics_address} if node.metrics_address else {}
        event(logging.INFO, "ready", origin=store.origin, listen=node.address, peers=sorted(config.peers), **where)
        if not asked.is_set():
            _say_ready(config, store.origin, node.address, node.metrics_address)
        waits = [asyncio.create_task(asked.wait()), asyncio.create_task(node.failed.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        event(logging.INFO, "stopping", reason="storage failed" if node.failed.is_set() else "signal")
        return 1 if node.failed.is_set() else 0
    finally:
        await node.stop()
        if store is not None:
            await asyncio.to_thread(store.close)


def _open_store(config: NodeConfig) -> Store:
    settings = config.store_settings()
    return open_store(config.data, region=config.region, engine=config.engine, durability=config.durability, settings=settings)


def _say_ready(config: NodeConfig, origin: str, address: str, metrics: str) -> None:
    if config.ready_format == "json":
        said = {"event": "ready", "origin": origin, "region": config.region, "listen": address, "pid": os.getpid()}
        line = json.dumps(said | ({"metrics": metrics} if metrics else {}))
    else:
        line = f"crdtkv node {origin} listening on {address}" + (f", metrics on http://{metrics}/metrics" if metrics else "")
    print(line, flush=True)


__all__ = ["SERVICES", "NodeServer", "run"]
