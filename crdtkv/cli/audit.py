"""Proving that regions hold the same, and mending them: verify, repair."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crdtkv.cli.errors import DONE, FAILED
from crdtkv.cli.output import JSON, counted, emit, emit_json, output_option, plain
from crdtkv.cli.place import directory_option
from crdtkv.cli.usage import Integer, Number
from crdtkv.cluster.control import ClusterFile

if TYPE_CHECKING:
    from crdtkv.audit import Certificate, Difference
    from crdtkv.client.views import NodeSide


def nodes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that name several nodes, as the parameters `at`, `directory` and `tls`."""
    for option in (
        click.option("--tls-key", type=click.Path(), help="Its key (PEM)."),
        click.option("--tls-cert", type=click.Path(), help="Our certificate (PEM), for nodes that ask for one."),
        click.option("--tls-ca", type=click.Path(), help="Speak TLS and trust who this certificate (PEM) signed."),
        directory_option,
        click.option("--at", metavar="HOST:PORT,…", help="The nodes (or CRDTKV_AT); without it those of the local cluster in --dir."),
    ):
        command = option(command)
    return command


@contextmanager
def opened_nodes(at: str | None, directory: Path, tls: tuple[str | None, str | None, str | None]) -> Iterator[list[NodeSide]]:
    """Connections to the nodes that are named, in that order."""
    from crdtkv.client.views import NodeSide

    text = at if at is not None else os.environ.get("CRDTKV_AT", "")
    endpoints = [part.strip() for part in text.split(",") if part.strip()]
    if not endpoints:
        endpoints = [str(node["address"]) for node in ClusterFile.read(directory).regions.values()]
    with ExitStack() as stack:
        yield [stack.enter_context(NodeSide(endpoint, tls_ca=tls[0], tls_cert=tls[1], tls_key=tls[2])) for endpoint in endpoints]


@click.command()
@click.option("--wait", "wait_s", type=Number(min=0), default=30.0, show_default=True, help="Seconds for regions to catch up.")
@click.option("--limit", type=Integer(min=1), default=100, show_default=True, help="How many differences to print.")
@output_option
@nodes_options
def verify(
    at: str | None,
    directory: Path,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    wait_s: float,
    limit: int,
    output: str,
) -> int:
    """Compare regions record by record, while they serve and are written to.

    Prints a certificate that they agree: at which version vector, with which digest. Or the keys that differ, and status 1. It also
    compares each region's records with the digest that it keeps with every commit, so one node alone can be checked too.
    """
    from crdtkv.audit import verify as compare

    with opened_nodes(at, directory, (tls_ca, tls_cert, tls_key)) as sides:
        tell = partial(click.echo, err=True) if sys.stderr.isatty() else None  # who watches is not left in silence
        found = compare(sides, wait_s=wait_s, differences_max=limit, tell=tell)
    if output == JSON:
        emit_json(as_json(found))
    else:
        for line in as_lines(found):
            emit(line)
    return DONE if found.holds else FAILED


def as_json(found: Certificate) -> dict[str, Any]:
    """A certificate as plain JSON types."""
    return {
        "agree": found.holds,
        "cluster": found.cluster,
        "shard": found.shard,
        "vv": plain(found.vv),
        "digest": found.digest,
        "at_one_vector": found.at_one_vector,
        "regions": [
            {"region": s.region, "vv": plain(s.vv), "digest": s.scanned, "kept_digest": s.kept, "records": s.records}
            for s in found.standings
        ],
        "differences": [_difference(d) for d in found.differences],
        "difference_count": found.count,
    }


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "slot": found.text,
        "slot_hex": found.slot.hex(),
        "regions": list(found.regions),
        "damaged": found.damaged or None,
        "reason": found.reason,
    }


def as_lines(found: Certificate) -> Iterator[str]:
    """A certificate for people."""
    regions = ", ".join(s.region for s in found.standings)
    if found.holds:
        yield f"{regions} agree" if len(found.standings) > 1 else f"{regions} is sound: its records give the digest that it keeps"
        yield f"cluster {found.cluster}, shard {found.shard}"
        yield f"vector  {found.vv}"
        yield f"digest  {found.digest}"
        for s in found.standings:
            later = "" if s.vv == found.vv else f", read later, at {s.vv}: no difference but what these commits made"
            yield f"  {s.region}: {counted(s.records, 'record')}{later}"
        return
    for d in found.differences:
        whose = f"; the record of {d.damaged} is damaged" if d.damaged else ""
        yield f"{d.text}: {d.regions[0]} and {d.regions[1]} differ: {d.reason}{whose}"
    if found.count > len(found.differences):
        yield f"… and {found.count - len(found.differences)} more"
    for s in found.unsound:
        yield f"{s.region}: its records give digest {s.scanned}, with every commit it kept {s.kept}: it was changed behind its back"
    yield f"{counted(found.count, 'slot')} {'differs' if found.count == 1 else 'differ'} between {regions}: mend them with `crdtkv repair`"


@click.command()
@click.option("--from", "donor", metavar="REGION|HOST:PORT", help="The region whose records are right; with --data, a peer's address.")
@click.option("--data", type=click.Path(path_type=Path), help="Mend the commit log of this directory instead, while its node is stopped.")
@click.option("--dry-run", is_flag=True, help="Only say who would take over what from whom.")
@click.option("--wait", "wait_s", type=Number(min=0), default=30.0, show_default=True, help="Seconds for regions to catch up.")
@output_option
@nodes_options
def repair(
    at: str | None,
    directory: Path,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    donor: str | None,
    data: Path | None,
    dry_run: bool,
    wait_s: float,
    output: str,
) -> int:
    """Mend what `verify` finds, while the regions serve: a damaged record is replaced by that of a sound region.

    Whose is damaged is told by the record itself, by the digest that a region keeps with every commit, or by the majority of three; where
    nothing tells, nothing is touched, and --from REGION decides. What was taken over is printed, and is in that region's journal of
    conflicts. Status 1 if something still differs at the end.

    --data DIR mends a commit log that is damaged in the middle, of a node that is stopped: the missing frames come from the peer that
    --from names. If it has not got them, or none is named, the log's beginning goes, if the state engine has all of it.
    """
    if data is not None:
        if dry_run or at is not None:
            raise click.UsageError("--data mends a directory, --at regions that serve: give one, and --dry-run only with --at")
        return _repair_log(data, donor, (tls_ca, tls_cert, tls_key), output)
    from crdtkv.audit import repair as mend

    with opened_nodes(at, directory, (tls_ca, tls_cert, tls_key)) as sides:
        done = mend(sides, donor=donor, wait_s=wait_s, dry_run=dry_run)
    assert done.certificate is not None
    if output == JSON:
        emit_json(
            {
                "mended": [{"slot": m.text, "slot_hex": m.slot.hex(), "region": m.region, "donor": m.donor} for m in done.mended],
                "undecided": [_difference(d) for d in done.undecided],
                "settled": {region: plain(settled) for region, settled in done.settled.items()},
                "dry_run": dry_run,
                "certificate": as_json(done.certificate),
            }
        )
        return DONE if done.holds or (dry_run and not done.undecided) else FAILED
    for m in done.mended:
        emit(f"{m.text}: {m.region} {'would take' if dry_run else 'took'} over the record of {m.donor}")
    for d in done.undecided:
        emit(
            f"{d.text}: {d.regions[0]} and {d.regions[1]} differ, and nothing tells whose record is damaged: name the sound one with --from"
        )
    if dry_run:
        emit(f"{counted(len(done.mended), 'record')} would be taken over; nothing was changed")
        return FAILED if done.undecided else DONE
    for region, settled in done.settled.items():
        emit(
            f"{region}: digest {settled.scanned} counted from its records, it had {settled.kept}; "
            f"{counted(settled.beside, 'record')} beside them put right"
        )
    for line in as_lines(done.certificate):
        emit(line)
    return DONE if done.holds else FAILED


def _repair_log(data: Path, peer: str | None, tls: tuple[str | None, str | None, str | None], output: str) -> int:
    from crdtkv.audit import repair_log
    from crdtkv.audit.salvaging import Fetch

    with ExitStack() as stack:
        fetch: Fetch | None = None
        if peer is not None:
            from crdtkv.client.views import NodeSide, fetch_frames

            side = stack.enter_context(NodeSide(peer, tls_ca=tls[0], tls_cert=tls[1], tls_key=tls[2]))
            fetch = stack.enter_context(fetch_frames(side))
        done = repair_log(data, fetch)
    if output == JSON:
        kept = [str(path) for path in done.kept]
        emit_json({"damage": list(done.damage), "refilled": done.refilled, "given_up": done.given_up, "kept": kept})
        return DONE
    for where in done.damage:
        emit(f"damaged: {where}")
    if not done.damage:
        emit(f"{data}: the log is sound")
    elif done.given_up:
        emit("the log begins behind the damage now: the state engine has all that was before it, peers get it elsewhere")
    elif done.refilled:
        emit(f"{counted(done.refilled, 'frame')} {'was' if done.refilled == 1 else 'were'} filled in from the peer")
    else:
        emit("no frame was missing: the damaged segment was written anew")
    for path in done.kept:
        emit(f"kept: {path}")
    return DONE
