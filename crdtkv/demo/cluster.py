"""The demo's cluster: real node processes with published delays between them, and a client of each region.

Without `keep` it ends with this process, however that ends; with `keep` it goes on by itself until `crdtkv cluster down`. Nodes are
started before gRPC is loaded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from crdtkv.cluster import control
from crdtkv.cluster.local import down, launch
from crdtkv.cluster.spec import ClusterSpec, default_delays
from crdtkv.demo.findings import Geography, Place
from crdtkv.demo.regions import ClientRegion

CITIES = {"us": "washington", "eu": "frankfurt", "ap": "tokyo"}
"""Region → the place whose published delays it has."""
DELAY_SOURCE = (
    "Delays: half the average round trip between regions of one public cloud, 27 Jul to 25 Aug 2024: IBM Cloud VPC documentation, "
    "“Network latency” (repository ibm-cloud-docs/vpc): washington-frankfurt 91 ms, washington-tokyo 164 ms, frankfurt-tokyo 233 ms."
)
_TIMEOUT_S = 30.0
"""Deadline of a request: generous, since two cores run three nodes, the WAN and the demo."""


@dataclass(frozen=True, slots=True)
class DemoCluster:
    """A running cluster."""

    directory: Path
    addresses: dict[str, str]
    spec: ClusterSpec

    async def cut(self, region: str) -> None:
        """Cut a region off from all others; returns when it is."""
        await asyncio.to_thread(control.call, self.directory, "partition", region=region, other=None, one_way=False, half_open=False)

    async def heal(self) -> None:
        """Restore all links; returns at once, so that the peers' reconnecting counts as part of catching up."""
        await asyncio.to_thread(control.call, self.directory, "heal", region=None, other=None, wait=False)

    def geography(self) -> Geography:
        """Its regions and delays."""
        places = [Place(r, CITIES.get(r, ""), self.addresses[r]) for r in self.spec.regions]
        delays = {(a, b): ms for (a, b), ms in self.spec.delay_ms.items() if self.spec.regions.index(a) < self.spec.regions.index(b)}
        return Geography(places, delays, DELAY_SOURCE)

    @contextlib.asynccontextmanager
    async def regions(self) -> AsyncIterator[list[ClientRegion]]:
        """A connected client of each region; they are closed at the end."""
        from crdtkv.client.aio import connect

        async with contextlib.AsyncExitStack() as stack:
            yield [
                ClientRegion(name, await stack.enter_async_context(connect([address], timeout=_TIMEOUT_S)))
                for name, address in self.addresses.items()
            ]


@contextlib.contextmanager
def demo_cluster(*, keep: bool) -> Iterator[DemoCluster]:
    """Start a cluster in a new temporary directory. It is stopped at the end, unless `keep` and the block ended well enough to return."""
    directory = Path(tempfile.mkdtemp(prefix="crdtkv-demo-"))
    regions = tuple(CITIES)
    spec = ClusterSpec(regions=regions, directory=directory, delay_ms=default_delays(regions))
    try:
        supervisor, addresses = launch(spec, owned=not keep)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    try:
        yield DemoCluster(directory, {r: addresses[r] for r in regions}, spec)
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            with contextlib.suppress(control.ClusterNotRunningError):
                down(directory)
            if supervisor.stdin is not None:
                supervisor.stdin.close()
            supervisor.wait()
            shutil.rmtree(directory, ignore_errors=True)
