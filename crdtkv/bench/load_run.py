"""One load from its beginning to its results: the store, node or cluster, clients, the loop, the JSON. What it starts, it stops."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crdtkv import interrupts
from crdtkv.bench.load import Loaded, LoadSettings, run_embedded, run_nodes
from crdtkv.bench.load_results import build
from crdtkv.bench.results import environment
from crdtkv.bench.run import TIMEOUT_S
from crdtkv.bench.target import ClientTarget, EmbeddedTarget, Names
from crdtkv.transport import loop
from crdtkv.transport.loop import precise_event_loop


def load_embedded(
    settings: LoadSettings, *, engine: str | None, durability: str | None, on_progress: Callable[[float], None]
) -> dict[str, Any]:
    """Load a fresh store in this process, gone afterwards; returns the results.

    Raises:
        ConfigError: engine and durability do not go together.
    """
    from crdtkv.store import open_store

    machine, started_at = environment(), _now()
    with interrupts.held(), _directory(engine) as path, open_store(path, engine=engine if path else None, durability=durability) as store:
        status = store.status()
        loaded = run_embedded(EmbeddedTarget(store, Names(_run_id(), settings.size)), settings, on_progress)
    options = {"engine": status.engine, "durability": status.durability}
    return build(loaded, settings, started_at=started_at, target="embedded", options=options, environment=machine)


def load_cluster(
    settings: LoadSettings,
    regions: tuple[str, ...],
    delays_ms: Mapping[tuple[str, str], float],
    options: Mapping[str, Any],
    on_progress: Callable[[float], None],
    **cluster_settings: Any,
) -> dict[str, Any]:
    """Start a cluster (of one region: a node), load it, stop it; returns the results."""
    from crdtkv.cluster import LocalCluster

    machine, started_at = environment(), _now()
    with interrupts.held(), LocalCluster(regions, latency_ms=delays_ms, **cluster_settings) as cluster:
        loaded = _run(cluster.addresses(), settings, on_progress, {})
    target = "node" if len(regions) == 1 else "cluster"
    return build(loaded, settings, started_at=started_at, target=target, options=options, environment=machine)


def load_endpoints(
    addresses: Mapping[str, str],
    settings: LoadSettings,
    options: Mapping[str, Any],
    on_progress: Callable[[float], None],
    tls: Mapping[str, str | None],
) -> dict[str, Any]:
    """Load nodes that are there already; returns the results."""
    machine, started_at = environment(), _now()
    loaded = _run(addresses, settings, on_progress, tls)
    target = "node" if len(addresses) == 1 else "cluster"
    return build(loaded, settings, started_at=started_at, target=target, options=options, environment=machine)


def _run(
    addresses: Mapping[str, str], settings: LoadSettings, on_progress: Callable[[float], None], tls: Mapping[str, str | None]
) -> Loaded:
    from crdtkv.client.aio import connect

    async def run() -> Loaded:
        async with contextlib.AsyncExitStack() as stack:
            run_id = _run_id()
            targets = {}
            for region, address in addresses.items():
                client = await stack.enter_async_context(connect([address], timeout=TIMEOUT_S, **tls))
                targets[region] = ClientTarget(client, Names(run_id, settings.size))
            return await run_nodes(targets, settings, on_progress)

    return loop.run(run(), precise_event_loop)


@contextlib.contextmanager
def _directory(engine: str | None) -> Iterator[Path | None]:
    """Where an embedded store lies: nowhere if it is in memory."""
    if engine in (None, "memory"):
        yield None
        return
    made = Path(tempfile.mkdtemp(prefix="crdtkv-bench-"))
    try:
        yield made / "store"
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _run_id() -> str:
    return f"{int(time.time()):x}-{secrets.token_hex(3)}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
