"""`crdtkv demo`: runs `crdtkv.demo` on a cluster of real nodes, and says how it ended."""

from __future__ import annotations

from pathlib import Path

import click

from crdtkv import interrupts
from crdtkv.cli.errors import DONE, FAILED
from crdtkv.cli.usage import Integer


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running, and say how to reach and to stop it.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, writable=True),
    default=Path("demo-report"),
    show_default=True,
    help="Where to write index.html and report.json.",
)
@click.option("--seed", type=Integer(min=0), default=1, show_default=True, help="Of the edits.")
@click.option("--airports", type=Integer(min=100), default=None, help="Load only so many airports.")
def demo(keep: bool, out: Path, seed: int, airports: int | None) -> int:
    """Three regions replicate a real data set, conflict, are cut apart, heal, and prove that they converged.

    Nodes run as processes on this machine, with published cloud delays between them. A verifier outside the cluster keeps every
    acknowledged write and looks for each in every region. The exit status is 0 only if all of it held.
    """
    import asyncio
    import gc

    from rich.console import Console

    from crdtkv.demo.cluster import DemoCluster, demo_cluster
    from crdtkv.demo.dataset import load_airports
    from crdtkv.demo.findings import Findings
    from crdtkv.demo.narrator import Narrator
    from crdtkv.demo.report import build_report, write_report
    from crdtkv.demo.run import Demo, DemoSettings
    from crdtkv.transport import loop
    from crdtkv.version import VERSION

    # This process is short and keeps all that it makes: collections would only slow it, by whole seconds, and show up as lag.
    gc.disable()
    out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found out before the work, not after
    tell = Narrator(Console())
    dataset = load_airports(airports)
    tell.say(f"{len(dataset.airports):,} airports; starting three nodes and the network between them")

    async def run(cluster: DemoCluster) -> Findings:
        async with cluster.regions() as regions:
            settings = DemoSettings(seed=seed, airports_max=airports)
            return await Demo(regions, cluster, cluster.geography(), dataset, settings, tell).run()

    with interrupts.noted(*interrupts.ENDED_BY), demo_cluster(keep=keep) as cluster:
        for place in cluster.geography().places:
            tell.say(f"{place.name} at {place.address} ({place.city})")
        findings = loop.run(run(cluster), asyncio.new_event_loop)
        page = write_report(build_report(findings, VERSION), out)
        interrupts.check()  # from here on it is too late: what was found is told, and what is kept is kept
        tell.say("")
        tell.check(findings.ok, "the regions converged; no acknowledged write was lost" if findings.ok else "the demo FAILED: see above")
        tell.say(f"report: {page}")
        if keep:
            tell.say(f"the cluster is still up: crdtkv get airport/KJFK --region us --dir {cluster.directory}")
            tell.say(f"to stop it: crdtkv cluster down --dir {cluster.directory} (then the directory may be deleted)")
    return DONE if findings.ok else FAILED
