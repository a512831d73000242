"""One measurement from its beginning to its results: the cluster or the given endpoints, clients, the laboratory, the JSON.

The nodes are started before gRPC is loaded here, and stopped however this ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import gc
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from crdtkv import interrupts
from crdtkv.bench.laboratory import Laboratory, LagSettings, Measured, respond
from crdtkv.bench.results import build, environment
from crdtkv.bench.schedule import CutPlan
from crdtkv.cluster import LocalCluster
from crdtkv.transport import loop
from crdtkv.transport.loop import precise_event_loop

if TYPE_CHECKING:
    from crdtkv.client.aio import AsyncClient

TIMEOUT_S: Final = 30.0
"""Deadline of a request: generous, since a few cores may run all nodes, the network and the instrument."""
CITIES: Final = {"us": "washington", "eu": "frankfurt", "ap": "tokyo"}
DELAY_SOURCE: Final = (
    "Delays that are not given: half the average round trip between regions of one public cloud, 27 Jul to 25 Aug 2024: IBM Cloud VPC "
    "documentation, “Network latency” (repository ibm-cloud-docs/vpc)."
)
NOT_EMULATED: Final = "Nothing is emulated: the nodes were there before, and what lies between them is what it is."


@dataclass(frozen=True, slots=True)
class ClusterNetwork:
    """A local cluster's links."""

    cluster: LocalCluster

    async def cut(self, plan: CutPlan) -> None:
        """Cut as planned; returns when it is in effect."""
        await asyncio.to_thread(self.cluster.partition, plan.region, plan.other)

    async def heal(self) -> None:
        """Restore all links; returns at once, so that the peers' reconnecting counts as part of draining."""
        await asyncio.to_thread(self.cluster.heal, wait=False)


def measure_cluster(
    delays_ms: Mapping[tuple[str, str], float],
    regions: tuple[str, ...],
    settings: LagSettings,
    options: Mapping[str, Any],
    on_progress: Callable[[float], None],
    **cluster_settings: Any,
) -> dict[str, Any]:
    """Start a cluster, measure, stop it; returns the results.

    Args:
        options: told in the results' configuration.
        cluster_settings: as of `ClusterSpec`.
    """
    machine = environment()
    with interrupts.held(), LocalCluster(regions, latency_ms=delays_ms, **cluster_settings) as cluster:
        addresses = cluster.addresses()
        started_at, measured = _measure(addresses, ClusterNetwork(cluster), settings, on_progress, {})
    return build(
        measured,
        settings,
        started_at=started_at,
        addresses=addresses,
        cities={r: CITIES.get(r, "") for r in regions},
        delays_ms=delays_ms,
        delay_source=DELAY_SOURCE if any(delays_ms.values()) else "No delay is emulated.",
        options=options,
        environment=machine,
    )


def measure_endpoints(
    addresses: Mapping[str, str],
    settings: LagSettings,
    options: Mapping[str, Any],
    on_progress: Callable[[float], None],
    tls: Mapping[str, str | None],
) -> dict[str, Any]:
    """Measure nodes that are there already; returns the results."""
    machine = environment()
    started_at, measured = _measure(addresses, None, settings, on_progress, tls)
    return build(
        measured,
        settings,
        started_at=started_at,
        addresses=addresses,
        cities={},
        delays_ms=None,
        delay_source=NOT_EMULATED,
        options=options,
        environment=machine,
    )


def respond_until_cancelled(addresses: Mapping[str, str], tls: Mapping[str, str | None], on_ready: Callable[[str], None]) -> None:
    """Echo in the given regions for laboratories elsewhere; ends by an error or by Ctrl-C."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = await _clients(stack, addresses, tls)
            await asyncio.gather(*(respond(region, client, functools.partial(on_ready, region)) for region, client in clients.items()))

    loop.run(run(), precise_event_loop)


def _measure(
    addresses: Mapping[str, str],
    network: ClusterNetwork | None,
    settings: LagSettings,
    on_progress: Callable[[float], None],
    tls: Mapping[str, str | None],
) -> tuple[str, Measured]:
    async def run() -> Measured:
        async with contextlib.AsyncExitStack() as stack:
            writers = await _clients(stack, addresses, tls)
            watchers = await _clients(stack, addresses, tls)
            loaders = await _clients(stack, addresses, tls) if settings.load else {}
            run_id = f"{int(time.time()):x}-{secrets.token_hex(3)}"
            return await Laboratory(writers, watchers, loaders, network, settings, run_id).run(on_progress)

    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    gc.collect()
    gc.freeze()  # what was imported is looked through no more: a collection of all would show as a lag of 10 ms
    try:
        return started_at, loop.run(run(), precise_event_loop)
    finally:
        gc.unfreeze()


async def _clients(stack: contextlib.AsyncExitStack, addresses: Mapping[str, str], tls: Mapping[str, str | None]) -> dict[str, AsyncClient]:
    from crdtkv.client.aio import connect

    return {r: await stack.enter_async_context(connect([address], timeout=TIMEOUT_S, **tls)) for r, address in addresses.items()}
