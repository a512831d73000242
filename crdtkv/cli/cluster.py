"""`crdtkv cluster`: a thin skin over the supervisor and its control protocol."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from crdtkv import interrupts
from crdtkv.cli.errors import DONE, INTERRUPTED
from crdtkv.cli.output import JSON, emit, emit_json, output_option, table
from crdtkv.cli.place import complete_region, directory_option
from crdtkv.cli.usage import Group
from crdtkv.cluster.control import ClusterFile, call
from crdtkv.cluster.last_run import LastRun
from crdtkv.cluster.spec import (
    DEFAULT_REGIONS,
    ClusterSpec,
    dir_flag,
    parse_delays,
    parse_duration_ms,
    parse_latency,
    parse_rate,
    parse_target,
)

_WAIT_S: Final = 120.0

region_argument = click.argument("region", metavar="R", shell_complete=complete_region)
target_argument = click.argument("target", metavar="R|R-S", shell_complete=complete_region)


@click.group(cls=Group)
def cluster() -> None:
    """A cluster on this machine: one real node process per region, and the wide-area network between them, with faults to order.

    The cluster is found by its directory, --dir. Each command returns when what it asks for is in effect.
    """


@cluster.command()
@click.option("--regions", metavar="R,…", help=f"Their names. Default: those that ran last in --dir, else {','.join(DEFAULT_REGIONS)}.")
@click.option(
    "--latency",
    metavar="R-S=DELAY,…",
    help="One-way delay of a pair (us-eu=40ms), of all pairs (40ms), or none. Default: as it last was in --dir, else published figures.",
)
@click.option("--jitter", metavar="DELAY", help="Added to each delay, at random from 0 to this. Default: as it last was, else 0ms.")
@click.option("--rate", metavar="RATE", help="Limit of each direction of each pair, such as 100mbit. Default: as it last was, else none.")
@directory_option
@click.option("--base-port", type=int, metavar="N", help="Port of the first region; the others follow. Default: free ones.")
@click.option("--engine", type=click.Choice(["rocksdb", "lmdb", "memory"]), help="State engine. Default: as it last was.")
@click.option("--durability", type=click.Choice(["memory", "async", "sync"]), help="How safe a write is when it is answered.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML file with further settings of the nodes, such as [store] and [limits]; see `crdtkv node`.",
)
@click.option("--restart-crashed", is_flag=True, help="Start a node again that stopped without being asked to.")
@click.option("--direct", is_flag=True, help="Link the nodes directly: no delays and no partitions.")
@click.option("--metrics", is_flag=True, help="Have each node serve metrics for Prometheus; the ports follow those of the regions.")
@click.option("--detach", is_flag=True, help="Return when ready; stop it with `crdtkv cluster down`.")
@output_option
def up(
    regions: str | None,
    latency: str | None,
    jitter: str | None,
    rate: str | None,
    directory: Path,
    base_port: int | None,
    engine: str | None,
    durability: str | None,
    config: Path | None,
    restart_crashed: bool,
    direct: bool,
    metrics: bool,
    detach: bool,
    output: str,
) -> int:
    """Start a cluster: ready, with all peer links up, when it prints the addresses and writes cluster.json into --dir.

    In the foreground it reports what happens, and Ctrl-C stops everything. Data and logs stay in --dir, and `up` there goes on with them:
    with the regions that ran last, and the delays between them. With --regions it is these: a new one begins empty, and the data of one
    that is not named stays.
    """
    last = LastRun.read(directory)
    names = last.regions if regions is None else tuple(part.strip() for part in regions.split(",") if part.strip())
    spec = ClusterSpec(
        regions=names,
        directory=directory,
        delay_ms=parse_latency(latency, names, last.delay_ms),
        jitter_ms=last.jitter_ms if jitter is None else parse_duration_ms(jitter, "jitter"),
        bytes_per_s=last.bytes_per_s if rate is None else parse_rate(rate) or None,
        base_port=base_port,
        engine=engine or last.engine,
        durability=durability,
        config=config,
        restart_crashed=restart_crashed,
        direct=direct,
        metrics=metrics,
    )
    if config is not None:
        _check_config(spec, config)
    left_out = [r for r in last.regions if r not in names and (directory / "data" / r).exists()]
    return _detached(spec, left_out, output) if detach else _foreground(spec, left_out, output)


def _check_config(spec: ClusterSpec, config: Path) -> None:
    """Refuse, before anything is made, what each node would refuse.

    Raises:
        ConfigError: names the setting.
    """
    from crdtkv.node import NodeConfig

    for region in spec.regions:
        data = None if spec.engine == "memory" else spec.directory / "data" / region
        flags = {"region": region, "listen": "127.0.0.1:0", "data": data, "engine": spec.engine, "durability": spec.durability}
        NodeConfig.load(config, flags=flags)


def _detached(spec: ClusterSpec, left_out: list[str], output: str) -> int:
    from crdtkv.cluster.local import launch

    with interrupts.noted(*interrupts.ENDED_BY):  # once it is ready, it is too late for Ctrl-C: it is told how to stop it
        _, addresses = launch(spec, owned=False)
        _print_ready(spec, addresses, left_out, output)
        if output != JSON:
            emit(f"stop it: crdtkv cluster down{dir_flag(spec.directory)}")
        sys.stdout.flush()
    return DONE


def _foreground(spec: ClusterSpec, left_out: list[str], output: str) -> int:
    import asyncio

    from crdtkv.cluster.supervisor import STOPPED_BY, Supervisor, supervise
    from crdtkv.transport.loop import precise_event_loop

    def on_ready(supervisor: Supervisor) -> None:
        _print_ready(spec, {region: node.address for region, node in supervisor.nodes.items()}, left_out, output)
        if output != JSON:
            emit("Ctrl-C stops it")
        sys.stdout.flush()

    def report(line: str) -> None:
        if output == JSON:
            emit_json({"time": time.time(), "event": line})
        else:
            emit(f"{time.strftime('%H:%M:%S')}  {line}")
        sys.stdout.flush()

    with interrupts.noted(*STOPPED_BY) as signals, asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(supervise(spec, on_ready, report, signals))
    return INTERRUPTED if signals.received[:1] == [signal.SIGINT] else DONE


def _print_ready(spec: ClusterSpec, addresses: dict[str, str], left_out: list[str], output: str) -> None:
    if left_out:
        click.echo(f"left out: {', '.join(left_out)}, which ran here last; their data stays in {spec.directory / 'data'}", err=True)
    at = {r: row["metrics"] for r, row in ClusterFile.read(spec.directory).regions.items()} if spec.metrics else {}
    if output == JSON:
        regions = {r: {"address": address, **({"metrics": at[r]} if at else {})} for r, address in addresses.items()}
        emit_json({"directory": str(spec.directory), "regions": regions})
        return
    rows = [[r, addresses[r], *([at[r]] if at else ()), *(_delay(spec, r, s) for s in spec.regions)] for r in spec.regions]
    table(("region", "address", *(["metrics"] if at else ()), *(f"to {s}" for s in spec.regions)), rows)


def _delay(spec: ClusterSpec, a: str, b: str) -> str:
    return "" if a == b else "direct" if spec.direct else f"{spec.delay_ms[a, b]:g} ms"


@cluster.command()
@directory_option
@output_option
def status(directory: Path, output: str) -> int:
    """Print the nodes, their processes, and the links between them."""
    found = call(directory, "status", timeout_s=_WAIT_S)
    if output == JSON:
        emit_json(found)
        return DONE
    rows = []
    for region, process in found["regions"].items():
        node = process["node"] or {}
        links = ", ".join(name for name, peer in node.get("peers", {}).items() if peer["connected"]) or None
        up_s = process["uptime_s"]
        uptime = None if up_s is None else f"{up_s:.0f} s"
        digest = (node.get("digest") or "")[:8] or None  # enough to see whether they are equal; all of it with -o json
        rows.append([region, process["state"], process["address"], process["pid"], uptime, links, digest])
    table(("region", "state", "address", "process", "up", "linked to", "digest"), rows)
    changed = [link for link in found["links"] if link["state"] != "open"]
    if changed:
        emit("")
        table(("link", "state", "delay"), [[f"{x['source']} → {x['target']}", x["state"], f"{x['delay_ms']:g} ms"] for x in changed])
    return DONE


@cluster.command()
@directory_option
@output_option
def down(directory: Path, output: str) -> int:
    """Stop everything. Data and logs stay."""
    from crdtkv.cluster.local import down as stop

    stop(directory)
    return _done(output, "down")


@cluster.command()
@click.argument("region", metavar="R")
@click.option("--latency", metavar="S=DELAY,…", help="One-way delay to region S (eu=40ms), or to all (40ms). Default: as of `up`.")
@directory_option
@output_option
def add(region: str, latency: str | None, directory: Path, output: str) -> int:
    """Add a region: a member of the cluster from now on. Returns when its node runs, with an empty directory, and is linked to all others.

    It fetches everything meanwhile and afterwards; `crdtkv lag --region R` tells how far it is.
    """
    from crdtkv.cluster.local import add_region

    delays = None if latency is None else parse_delays(latency)
    address = add_region(directory, region, delays)
    if output == JSON:
        emit_json({"done": "add", "region": region, "address": address})
    else:
        emit(f"{region} is a member, at {address}")
    return DONE


@cluster.command()
@region_argument
@directory_option
@output_option
def remove(region: str, directory: Path, output: str) -> int:
    """Stop a region's node and forget it on this machine; its data stays.

    It stays a member for the other regions, who keep what it has missed: end that first, with `crdtkv region drain` and `remove`.
    """
    return _ask(directory, output, "remove", region=region)


@cluster.command()
@region_argument
@directory_option
@output_option
def kill(region: str, directory: Path, output: str) -> int:
    """Kill a node with SIGKILL."""
    return _ask(directory, output, "kill", region=region)


@cluster.command()
@region_argument
@directory_option
@output_option
def stop(region: str, directory: Path, output: str) -> int:
    """Stop a node in order: it answers what it has read, hands over what it can, and ends. `restart` starts it again."""
    return _ask(directory, output, "stop", region=region)


@cluster.command()
@region_argument
@directory_option
@output_option
def restart(region: str, directory: Path, output: str) -> int:
    """Start a node again, stopping it first if it runs; returns when it is ready and linked."""
    return _ask(directory, output, "restart", region=region)


@cluster.command()
@region_argument
@directory_option
@output_option
def pause(region: str, directory: Path, output: str) -> int:
    """Freeze a node (SIGSTOP): its connections stay up and silent."""
    return _ask(directory, output, "pause", region=region)


@cluster.command()
@region_argument
@directory_option
@output_option
def resume(region: str, directory: Path, output: str) -> int:
    """Let a paused node go on."""
    return _ask(directory, output, "resume", region=region)


@cluster.command()
@target_argument
@click.option("--one-way", is_flag=True, help="Only what R sends is lost; what it receives still arrives.")
@click.option("--half-open", is_flag=True, help="Connections stay up and silent, instead of being reset.")
@directory_option
@output_option
def partition(target: str, one_way: bool, half_open: bool, directory: Path, output: str) -> int:
    """Cut region R from all others, or R from S. Clients still reach it."""
    if one_way and half_open:
        raise click.UsageError("--one-way and --half-open exclude each other", click.get_current_context())
    region, other = parse_target(target, _regions(directory))
    return _ask(directory, output, "partition", region=region, other=other, one_way=one_way, half_open=half_open)


@cluster.command()
@click.argument("target", metavar="[R|R-S]", required=False, shell_complete=complete_region)
@click.option("--no-wait", is_flag=True, help="Return at once, before the nodes are linked again.")
@directory_option
@output_option
def heal(target: str | None, no_wait: bool, directory: Path, output: str) -> int:
    """Undo partitions: all of them, those of R, or that between R and S; returns when the nodes are linked again."""
    region, other = (None, None) if target is None else parse_target(target, _regions(directory))
    return _ask(directory, output, "heal", region=region, other=other, wait=not no_wait)


@cluster.command()
@target_argument
@click.option("--latency", metavar="DELAY", help="One-way delay.")
@click.option("--jitter", metavar="DELAY", help="Added to each delay, at random from 0 to this.")
@click.option("--rate", metavar="RATE", help="Limit of each direction, such as 10mbit; none lifts it.")
@click.option("--one-way", is_flag=True, help="Only what R sends.")
@directory_option
@output_option
def shape(target: str, latency: str | None, jitter: str | None, rate: str | None, one_way: bool, directory: Path, output: str) -> int:
    """Change delay, jitter or rate between R and all others, or R and S, while it runs."""
    if latency is None and jitter is None and rate is None:
        raise click.UsageError("give --latency, --jitter or --rate", click.get_current_context())
    region, other = parse_target(target, _regions(directory))
    return _ask(
        directory,
        output,
        "shape",
        region=region,
        other=other,
        delay_ms=None if latency is None else parse_duration_ms(latency, "latency"),
        jitter_ms=None if jitter is None else parse_duration_ms(jitter, "jitter"),
        bytes_per_s=None if rate is None else parse_rate(rate),
        one_way=one_way,
    )


def _regions(directory: Path) -> tuple[str, ...]:
    return tuple(ClusterFile.read(directory).regions)


def _ask(directory: Path, output: str, op: str, **args: Any) -> int:
    call(directory, op, timeout_s=_WAIT_S, **args)
    return _done(output, op, **args)


def _done(output: str, op: str, **args: Any) -> int:
    if output == JSON:
        emit_json({"done": op, **args})
    return DONE
