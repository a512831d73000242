"""`crdtkv bench load`: a thin skin over `crdtkv.bench.load_run`: parses, runs, tells, writes files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from crdtkv.bench.workload import SIZE_MIN
from crdtkv.bench.ycsb import WORKLOADS
from crdtkv.cli.endpoints import parse_endpoints
from crdtkv.cli.errors import DONE, FAILED
from crdtkv.cli.output import JSON, emit, emit_json, output_option, table
from crdtkv.cli.usage import Integer, Number
from crdtkv.cluster.spec import DEFAULT_REGIONS
from crdtkv.errors import ConfigError

TARGETS: Final = ("embedded", "node", "cluster")
_MIXES: Final = "  ".join(f"{name}: {workload.about}." for name, workload in WORKLOADS.items())


@click.command(epilog=_MIXES)
@click.argument("workload", type=click.Choice(tuple(WORKLOADS)), default="a", metavar="[WORKLOAD]")
@click.option(
    "--target", type=click.Choice(TARGETS), default="embedded", show_default=True, help="What is loaded; started and stopped here."
)
@click.option("--at", metavar="HOST:PORT|R=HOST:PORT,…", help="Load these nodes instead.")
@click.option("--regions", default=None, metavar="R,…", help=f"Of the cluster. [default: {','.join(DEFAULT_REGIONS)}]")
@click.option(
    "--latency",
    metavar="none|published|R-S=DELAY,…",
    default="none",
    show_default=True,
    help="One-way delays of the cluster; a number alone is milliseconds.",
)
@click.option("--callers", type=Integer(min=1, max=10_000), default=None, help="Closed loop. [default: 1 embedded, else 64]")
@click.option("--rate", type=Number(min=0, min_open=True), default=None, help="Open loop: so many operations a second, in all.")
@click.option("--records", type=Integer(min=10, max=100_000_000), default=10_000, show_default=True, help="Keys.")
@click.option("--size", type=Integer(min=SIZE_MIN, max=1 << 20), default=100, show_default=True, help="Bytes of a value.")
@click.option("--duration", default="10s", show_default=True, metavar="DURATION", help="How long is measured; a number alone is seconds.")
@click.option("--warmup", default="1s", show_default=True, metavar="DURATION", help="Operations before that, which do not count.")
@click.option("--seed", type=Integer(min=0), default=1, show_default=True, help="Of every draw: the same seed, the same operations.")
@click.option("--engine", type=click.Choice(["rocksdb", "lmdb", "memory"]), help="State engine. [default: memory embedded, else rocksdb]")
@click.option("--durability", type=click.Choice(["memory", "async", "sync"]), help="How safe a write is when it is answered.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, writable=True),
    default=Path("bench-results/load"),
    show_default=True,
    help="Where to write index.html and results.json.",
)
@click.option("--tls-ca", type=click.Path(), help="With --at: speak TLS and trust who this certificate (PEM) signed.")
@click.option("--tls-cert", type=click.Path(), help="Our certificate (PEM), for nodes that ask for one.")
@click.option("--tls-key", type=click.Path(), help="Its key (PEM).")
@output_option
def load(
    workload: str,
    target: str,
    at: str | None,
    regions: str | None,
    latency: str,
    callers: int | None,
    rate: float | None,
    records: int,
    size: int,
    duration: str,
    warmup: str,
    seed: int,
    engine: str | None,
    durability: str | None,
    out: Path,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    output: str,
) -> int:
    """How many operations a second, and what each takes: YCSB A to F, sets, counters, maps, conflicts.

    Closed loop: --callers that each wait for their answer before the next call. Open loop, with --rate: operations are due on a schedule
    that waits for nobody, and time counts from when one was due, so a stall shows in full. In a cluster the load is spread over all
    regions, and afterwards it is told how long they took to become equal, and how many conflicts they recorded.

    The exit status is 1 if an operation failed, or the regions did not become equal.
    """
    from crdtkv.bench.load import LoadSettings
    from crdtkv.bench.schedule import parse_seconds

    context = click.get_current_context()
    tls = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    addresses = None if at is None else _addresses(at)
    if addresses is None and any(tls.values()):
        raise click.UsageError("--tls-… need --at", context)
    if addresses is not None:
        given = [name for name in ("target", "regions", "latency", "engine", "durability") if _typed(context, name)]
        if given:
            raise click.UsageError(f"--{given[0]} is for what is started here: leave it out, or --at", context)
        target = "node" if len(addresses) == 1 else "cluster"
    elif target != "cluster" and (_typed(context, "regions") or _typed(context, "latency")):
        raise click.UsageError("--regions and --latency are for --target cluster", context)
    duration_s = parse_seconds(duration, "duration")
    if duration_s <= 0:
        raise ConfigError("duration: must be longer than 0", setting="duration")
    settings = LoadSettings(
        workload=WORKLOADS[workload],
        records=records,
        size=size,
        callers=callers if callers is not None else 1 if target == "embedded" else 64,
        rate=rate,
        duration_s=duration_s,
        warmup_s=parse_seconds(warmup, "warmup"),
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    results = _run(settings, target, addresses, regions, latency, engine, durability, tls)
    from crdtkv.bench import page

    written = page.write_results(results, out)
    if output == JSON:
        emit_json({name: value for name, value in results.items() if name != "timeline"})
    else:
        tell(results)
        emit(f"page: {written}")
    apart = len(results["regions"]) > 1 and results["converged_s"] is None
    return FAILED if results["total"]["failed"] or apart else DONE


def _run(
    settings: Any,
    target: str,
    addresses: Mapping[str, str] | None,
    regions: str | None,
    latency: str,
    engine: str | None,
    durability: str | None,
    tls: Mapping[str, str | None],
) -> dict[str, Any]:
    from crdtkv.bench import load_run
    from crdtkv.cluster.spec import parse_latency

    told = _progress(settings.duration_s)
    if addresses is not None:
        return load_run.load_endpoints(addresses, settings, {"at": True}, told, tls)
    if target == "embedded":
        return load_run.load_embedded(settings, engine=engine, durability=durability, on_progress=told)
    names = (
        ("local",)
        if target == "node"
        else DEFAULT_REGIONS
        if regions is None
        else tuple(r.strip() for r in regions.split(",") if r.strip())
    )
    delays = {} if target == "node" else parse_latency(None if latency == "published" else latency, names)
    options = {"engine": engine or "rocksdb", "durability": durability or "sync", "latency": latency}
    return load_run.load_cluster(settings, names, delays, options, told, engine=engine, durability=durability)


def _addresses(text: str) -> dict[str, str]:
    """`HOST:PORT` alone is a node whose region is not told."""
    return parse_endpoints(text) if "=" in text else {"": text.strip()}


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _progress(duration_s: float) -> Callable[[float], None]:
    """Tells a person how far it is; nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda _: None

    def told(now_s: float) -> None:
        text = "warming up" if now_s < 0 else f"measuring: {min(now_s, duration_s):.0f} of {duration_s:g} s"
        print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)

    return told


def tell(results: Mapping[str, Any]) -> None:
    """The results as tables."""
    configuration, total = results["configuration"], results["total"]
    callers = configuration["callers"]
    loop = (
        f"{callers} caller{'s' if callers != 1 else ''}"
        if configuration["loop"] == "closed"
        else f"{configuration['rate']:g} a second are due"
    )
    records = f"{configuration['records']:,} records of {configuration['size']} bytes"
    emit(f"{configuration['about']}; {configuration['target']}, {loop}, {records}")
    kept = [f"{name} {configuration[name]}" for name in ("engine", "durability") if configuration.get(name)]
    if kept:
        emit(", ".join(kept))
    if results["preload"] is not None:
        emit(f"records written first: {results['preload']['per_s']:,} a second")
    emit("")
    emit(f"{total['per_s']:,} operations a second over {total['measured_s']:g} s")
    if total["in_calls_share"] is not None:
        emit(f"{total['in_calls_share']:.0%} of the callers' time was in the store, the rest the instrument's own")
    emit("time of an operation, from " + ("the call" if configuration["loop"] == "closed" else "when it was due") + " to its answer")
    head = ("operation", "a second", "p50", "p90", "p99", "p99.9", "p99.99", "max", "operations", "failed")
    table(head, [_row(o["operation"], o) for o in (*results["operations"], {**total, "operation": "all"})])
    if any(o["unsupported"] for o in results["operations"]):
        emit(f"few: fewer than {results['percentiles_need_beyond']} samples lie beyond it")
    if len(results["regions"]) > 1:
        emit("")
        rows = [(r["region"], f"{r['per_s']:,}", _time(r["p50_ms"]), _figure(r, "p99"), f"{r['conflicts']:,}") for r in results["regions"]]
        table(("region", "a second", "p50", "p99", "conflicts"), rows)
        equal = results["converged_s"]
        emit("the regions did not become equal" if equal is None else f"all regions equal {equal:.2f} s after the last answer")
    if total["first_error"]:
        emit(f"first failure: {total['first_error']}")


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{figures['per_s']:,}",
        *(_figure(figures, percentile) for percentile in ("p50", "p90", "p99", "p99_9", "p99_99")),
        _time(figures["max_ms"]),
        f"{figures['samples']:,}",
        f"{figures['failed']:,}",
    )


def _figure(figures: Mapping[str, Any], name: str) -> str:
    return "few" if name in figures["unsupported"] and figures["samples"] else _time(figures[f"{name}_ms"])


def _time(ms: float | None) -> str:
    """
    >>> _time(0.0123), _time(4.5), _time(1234.0), _time(None)
    ('12.3 µs', '4.50 ms', '1.23 s', 'unknown')
    """
    if ms is None:
        return "unknown"
    if ms < 1:
        return f"{ms * 1000:.3g} µs"
    return f"{ms:.2f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"
