"""`crdtkv bench`: instruments for users. `lag` is a thin skin over `crdtkv.bench`: parses, runs, tells, writes files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from crdtkv.bench.workload import SIZE_MIN, TYPES
from crdtkv.cli.bench_load import load
from crdtkv.cli.endpoints import parse_endpoints
from crdtkv.cli.errors import DONE, FAILED
from crdtkv.cli.output import JSON, emit, emit_json, output_option, table
from crdtkv.cli.usage import Group, Integer, Number
from crdtkv.cluster.spec import DEFAULT_REGIONS
from crdtkv.errors import ConfigError

_LOOPBACK: Final = ("127.", "localhost:", "[::1]:")
_POSITIVE: Final = Number(min=0, min_open=True)


@click.group(cls=Group)
def bench() -> None:
    """Measure speed."""


bench.add_command(load)


@bench.command()
@click.option("--regions", default=None, metavar="R,…", help=f"Of the cluster that is started. [default: {','.join(DEFAULT_REGIONS)}]")
@click.option(
    "--latency",
    metavar="none|published|R-S=DELAY,…",
    default="published",
    show_default=True,
    help="One-way delays of that cluster: none; published figures between cloud regions; or some pairs given, the others published. "
    "A number alone is milliseconds.",
)
@click.option("--at", metavar="R=HOST:PORT,…", help="Measure these nodes instead of starting a cluster.")
@click.option("--rate", type=_POSITIVE, default=200.0, show_default=True, help="Writes a second in each region.")
@click.option("--batch", type=Integer(min=1, max=10_000), default=1, show_default=True, help="Writes in a commit.")
@click.option("--type", "type_", type=click.Choice(TYPES), default="register", show_default=True, help="What is written.")
@click.option("--size", type=Integer(min=SIZE_MIN, max=1 << 20), default=None, help="Bytes of a value. [default: 100]")
@click.option("--duration", default="20s", show_default=True, metavar="DURATION", help="How long is measured; a number alone is seconds.")
@click.option("--warmup", default="1s", show_default=True, metavar="DURATION", help="Writes before that, which do not count.")
@click.option("--load", type=Number(min=0), default=0.0, show_default=True, help="Background writes a second in each region.")
@click.option("--cut", metavar="R[-S]@START+DURATION", help="Cut R from all others, or from S, during the measurement: eu@5s+3s.")
@click.option(
    "--clock", type=click.Choice(["auto", "monotonic", "echo"]), default="auto", show_default=True, help="What times both ends, as above."
)
@click.option("--echo-elsewhere", is_flag=True, help="Echoes are written by `bench lag --respond` beside the other nodes.")
@click.option("--respond", is_flag=True, help="Only write echoes in the regions of --at, until Ctrl-C.")
@click.option("--engine", type=click.Choice(["rocksdb", "lmdb", "memory"]), help="State engine of the cluster's nodes.")
@click.option("--durability", type=click.Choice(["memory", "async", "sync"]), help="How safe a write is when it is answered.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, writable=True),
    default=Path("bench-results/lag"),
    show_default=True,
    help="Where to write index.html and results.json.",
)
@click.option("--compare", "old", type=click.Path(path_type=Path, dir_okay=False), metavar="OLD.json", help="An earlier results.json.")
@click.option("--tls-ca", type=click.Path(), help="With --at: speak TLS and trust who this certificate (PEM) signed.")
@click.option("--tls-cert", type=click.Path(), help="Our certificate (PEM), for nodes that ask for one.")
@click.option("--tls-key", type=click.Path(), help="Its key (PEM).")
@output_option
def lag(
    regions: str | None,
    latency: str,
    at: str | None,
    rate: float,
    batch: int,
    type_: str,
    size: int | None,
    duration: str,
    warmup: str,
    load: float,
    cut: str | None,
    clock: str,
    echo_elsewhere: bool,
    respond: bool,
    engine: str | None,
    durability: str | None,
    out: Path,
    old: Path | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    output: str,
) -> int:
    """How long until a write due in A is readable in B, for every pair of regions, beside the emulated delay.

    Starts a cluster on this machine, or takes the nodes of --at. Writes come on a schedule that waits for no answer, and lag counts from
    when a write was due, so a stall shows in full. A percentile is told only if at least ten samples lie beyond it. What a cut holds back
    has no lag: it is unknown, and the time to drain after the heal is told instead.

    One clock measures both ends. monotonic: this process writes and watches, so it should be near all nodes. echo: what is seen in B is
    written back and seen in A, and half the round trip counts; the echo comes from this process, or, with --echo-elsewhere, from one
    beside each other node. auto: echo if a node of --at is not on loopback.

    With --compare, also tells what changed since an earlier run, and whether it is noise. The exit status is 1 if a write failed or never
    arrived.
    """
    from crdtkv.bench.laboratory import Clock, LagSettings
    from crdtkv.bench.schedule import parse_cut, parse_seconds

    context = click.get_current_context()
    addresses = None if at is None else parse_endpoints(at)
    tls = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    if addresses is None and (respond or clock == "echo" or echo_elsewhere or any(tls.values())):
        raise click.UsageError("--respond, --clock echo, --echo-elsewhere and --tls-… need --at", context)
    if addresses is not None:
        given = [name for name in ("regions", "latency", "cut", "engine", "durability") if _typed(context, name)]
        if given:
            raise click.UsageError(f"--{given[0]} is for a cluster that is started here: leave it out, or --at", context)
        if respond:
            return _respond(addresses, tls)
    if type_ == "counter" and size is not None:
        raise click.UsageError("--size: a counter has none", context)
    names = tuple(addresses) if addresses is not None else _names(regions)
    if len(names) < 2:
        raise click.UsageError("lag is between regions: name at least two", context)
    if echo_elsewhere:
        clock = "echo"
    if clock == "auto":
        clock = "echo" if addresses is not None and not all(a.startswith(_LOOPBACK) for a in addresses.values()) else "monotonic"
    duration_s = parse_seconds(duration, "duration")
    if duration_s <= 0:
        raise ConfigError("duration: must be longer than 0", setting="duration")
    settings = LagSettings(
        rate=rate,
        batch=batch,
        type=type_,
        size=100 if size is None else size,
        duration_s=duration_s,
        warmup_s=parse_seconds(warmup, "warmup"),
        load=load,
        cut=None if cut is None else parse_cut(cut, names, duration_s),
        clock=Clock(clock),
        echo_elsewhere=echo_elsewhere,
    )
    from crdtkv.bench import compare, page

    earlier = None if old is None else compare.load(old)  # what cannot be read is found out before the work, not after
    out.mkdir(parents=True, exist_ok=True)
    results = _measure(settings, names, addresses, latency, engine, durability, tls)
    if earlier is not None:
        results["comparison"] = compare.compare(earlier, results)
    written = page.write_results(results, out)
    if output == JSON:
        emit_json({name: value for name, value in results.items() if name not in ("timeline",)})
    else:
        tell(results)
        emit(f"page: {written}")
    complete = all(g["failed"] == 0 for g in results["generators"].values()) and all(p["unseen"] == 0 for p in _all_figures(results))
    return DONE if complete else FAILED


def _measure(
    settings: Any,
    names: tuple[str, ...],
    addresses: Mapping[str, str] | None,
    latency: str,
    engine: str | None,
    durability: str | None,
    tls: Mapping[str, str | None],
) -> dict[str, Any]:
    import gc

    from crdtkv.bench.run import measure_cluster, measure_endpoints
    from crdtkv.cluster.spec import parse_latency

    # This process is short and keeps what it makes: collections would only slow it, and show up as lag.
    gc.disable()
    told = _progress(settings.duration_s)
    if addresses is not None:
        return measure_endpoints(addresses, settings, {"at": True}, told, tls)
    delays = parse_latency(None if latency == "published" else latency, names)
    options = {"at": False, "latency": latency, "engine": engine, "durability": durability}
    return measure_cluster(delays, names, settings, options, told, engine=engine, durability=durability)


def _names(regions: str | None) -> tuple[str, ...]:
    return DEFAULT_REGIONS if regions is None else tuple(part.strip() for part in regions.split(",") if part.strip())


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _respond(addresses: Mapping[str, str], tls: Mapping[str, str | None]) -> int:
    from crdtkv.bench.run import respond_until_cancelled

    def ready(region: str) -> None:
        emit(f"echoing in {region}; Ctrl-C ends it")
        sys.stdout.flush()

    respond_until_cancelled(addresses, tls, ready)
    return DONE


def _progress(duration_s: float) -> Callable[[float], None]:
    """Tells a person how far it is; nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda _: None

    def told(now_s: float) -> None:
        measuring = f"measuring: {now_s:.0f} of {duration_s:g} s" if now_s < duration_s else "draining"
        text = "warming up" if now_s < 0 else measuring
        print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)

    return told


def tell(results: Mapping[str, Any]) -> None:
    """The results as tables."""
    configuration = results["configuration"]
    size = "" if configuration["size"] is None else f" of {configuration['size']} bytes"
    load = f", under {configuration['load']:g} background writes/s each" if configuration["load"] else ""
    emit(
        f"{configuration['rate']:g} {configuration['type']} writes/s{size} in each region, {configuration['batch']} a commit, for "
        f"{configuration['duration_s']:g} s{load}"
    )
    emit(results["clock"]["meaning"])
    emit(results["cluster"]["source"])
    emit("")
    emit(
        "lag in ms, from when a write was due until it was readable"
        + ("; writes that the cut held back are not in it" if results["cut"] else "")
    )
    head = ("from → to", "emulated", "p50", "p90", "p99", "p99.9", "p99.99", "max", "p50 on top", "samples", "unseen")
    table(head, [_row(pair) for pair in results["lag"]])
    if any(pair["unsupported"] for pair in results["lag"]):
        emit(f"few: fewer than {results['percentiles_need_beyond']} samples lie beyond it; measure longer, or at a higher rate")
    if results["cut"] is not None:
        _tell_cut(results["cut"])
    _tell_generators(results["generators"])
    if results["comparison"] is not None:
        _tell_comparison(results["comparison"])


def _row(pair: Mapping[str, Any]) -> Sequence[str]:
    on_top = pair["p50_overhead_ms"]
    return (
        f"{pair['from']} → {pair['to']}",
        "unknown" if pair["emulated_ms"] is None else f"{pair['emulated_ms']:g}",
        *(_figure(pair, name) for name in ("p50", "p90", "p99", "p99_9", "p99_99")),
        _ms(pair["max_ms"]),
        "unknown" if on_top is None else f"{on_top:+.2f}",
        f"{pair['samples']:,}",
        f"{pair['unseen']:,}",
    )


def _figure(figures: Mapping[str, Any], name: str) -> str:
    return "few" if name in figures["unsupported"] and figures["samples"] else _ms(figures[f"{name}_ms"])


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _tell_cut(cut: Mapping[str, Any]) -> None:
    emit("")
    when = f"from {cut['start_s']:.2f} to {cut['end_s']:.2f} s"
    emit(f"{cut['region']} was cut off {when}; lag across the cut is unknown meanwhile. After the heal:")
    rows = []
    for pair in cut["pairs"]:
        took, rate = pair["drain_ms"], pair["writes_per_s"]
        ended = "nothing held back" if not pair["held_back"] else "never" if took is None else f"{took:.0f} ms"
        rows.append((f"{pair['from']} → {pair['to']}", f"{pair['held_back']:,}", ended, "" if rate is None else f"{rate:,}"))
    table(("from → to", "commits held back", "drained in", "writes/s"), rows)


def _tell_generators(generators: Mapping[str, Any]) -> None:
    emit("")
    emit("the instrument itself, in ms from when a write was due (within the lag above):")
    rows = []
    for region, g in generators.items():
        late, answered = g["late"], g["answered"]
        figures = (_figure(late, "p50"), _figure(late, "p99"), _ms(late["max_ms"]), _figure(answered, "p50"), _figure(answered, "p99"))
        rows.append((region, *figures, f"{g['acknowledged']:,}", f"{g['failed']:,}"))
    table(("region", "sent p50", "p99", "max", "answered p50", "p99", "commits", "failed"), rows)
    for region, g in generators.items():
        if g["first_error"]:
            emit(f"{region}: first failure: {g['first_error']}")


def _tell_comparison(comparison: Mapping[str, Any]) -> None:
    emit("")
    emit(f"since the run of {comparison['against']['started_at']} (crdtkv {comparison['against']['crdtkv']}):")
    for setting in comparison["configuration"]:
        emit(f"not the same: {setting['name']} was {setting['old']}, is {setting['new']}")
    rows = []
    for pair in comparison["pairs"]:
        for name in ("p50", "p99"):
            c = pair[name]
            interval = "" if c["low_ms"] is None else f"{c['low_ms']:+.2f} … {c['high_ms']:+.2f}"
            change = "unknown" if c["difference_ms"] is None else f"{c['difference_ms']:+.2f}"
            rows.append((f"{pair['from']} → {pair['to']}", name, _ms(c["old_ms"]), _ms(c["new_ms"]), change, interval, c["verdict"]))
    table(("from → to", "", "old", "new", "change", "interval", "verdict"), rows)
    emit(comparison["rule"])


def _all_figures(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of all phases of all pairs."""
    return [part for pair in results["lag"] for part in (pair["phases"].values() or [pair])]
