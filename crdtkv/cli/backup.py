"""Backups: create, list, verify, prune, restore."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crdtkv.cli.errors import DONE
from crdtkv.cli.output import JSON, counted, emit, emit_json, output_option, plain, table
from crdtkv.cli.place import Place, where_options, where_options_if_any
from crdtkv.cli.usage import Group, Integer

if TYPE_CHECKING:
    from crdtkv.backup import Manifest, Point
    from crdtkv.client.views import NodeSide

MERGE_S = 120.0
"""The deadline of a merge into a node, at least."""


@click.group(cls=Group, no_args_is_help=True)
def backup() -> None:
    """Make, list, check, prune and restore backups.

    TARGET is a folder, or s3://BUCKET/PREFIX (extra `backup`; endpoint and credentials from AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). One target is for one cluster.
    """


@backup.command()
@click.argument("target")
@click.option("--full", is_flag=True, help="Everything, also if what came since the last backup would do.")
@output_option
@where_options
def create(place: Place, target: str, full: bool, output: str) -> int:
    """Back up the state of one moment to TARGET, while the node serves.

    Incremental if TARGET holds a backup of this cluster, from whatever region, and the node's log has all that came since.
    """
    from crdtkv.backup import create as make
    from crdtkv.backup import open_target

    kept = open_target(target)
    with _side(place) as side:
        made = make(side, kept, full=full)
    _show(made, output)
    return DONE


def _side(place: Place) -> NodeSide:
    from crdtkv.client.views import NodeSide

    tls = {"tls_ca": place.tls_ca, "tls_cert": place.tls_cert, "tls_key": place.tls_key}
    return NodeSide(place.endpoints[0], connect_s=place.timeout_s, **tls)


@backup.command("list")
@click.argument("target")
@output_option
def list_(target: str, output: str) -> int:
    """Print the backups in TARGET, oldest first."""
    from crdtkv.backup import manifests, open_target

    found = manifests(open_target(target))
    if output == JSON:
        for one in found:
            emit_json(as_json(one))
    elif not found:
        emit(f"{target} holds no backup")
    else:
        table(
            ("backup", "kind", "continues", "from", "reaches", "records", "commits", "bytes"),
            [(m.id, m.kind, m.parent, m.region, m.time, m.records or None, m.commits or None, m.size) for m in found],
        )
    return DONE


@backup.command()
@click.argument("target")
@click.argument("id", required=False)
@click.option("--replay", is_flag=True, help="Apply the frames too, in a scratch directory, and compare the digest they lead to.")
@output_option
def verify(target: str, id: str | None, replay: bool, output: str) -> int:
    """Read a backup (default: the newest) and all that it continues, and check every byte of it. Status 1 if it is damaged."""
    from crdtkv.backup import open_target
    from crdtkv.backup import verify as check

    done = check(open_target(target), id, replay=replay)
    last = done.manifests[-1]
    if output == JSON:
        emit_json({"backup": last.id, "records": done.records, "frames": done.frames, "bytes": done.bytes, "digest": last.digest})
    else:
        what = f"{counted(done.records, 'record')} and {counted(done.frames, 'frame')} in {counted(done.bytes, 'byte')}"
        emit(f"{last.id} is sound: {what} of {counted(len(done.manifests), 'backup')}")
        emit(f"vector  {last.vv}")
        emit(f"digest  {last.digest}")
    return DONE


@backup.command()
@click.argument("target")
@click.option("--keep", type=Integer(min=1), metavar="N", help="The newest N stay.")
@click.option("--older-than", metavar="AGE", help="Only those that are older go, like 30d, 12h or 90m.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@output_option
def prune(target: str, keep: int | None, older_than: str | None, dry_run: bool, output: str) -> int:
    """Remove backups from TARGET: never the newest, and never one that a later one continues which stays.

    With both --keep and --older-than a backup goes if it is beyond the newest N and older. Files of backups that were never finished go
    once they are a day old.
    """
    from crdtkv.backup import open_target
    from crdtkv.backup import prune as remove

    age_ms = None if older_than is None else _age_ms(older_than)
    if keep is None and age_ms is None:
        raise click.UsageError("say what stays: --keep N, or what goes: --older-than AGE")
    done = remove(open_target(target), keep=keep, older_than_ms=age_ms, now_ms=time.time_ns() // 1_000_000, dry_run=dry_run)
    if output == JSON:
        removed, kept = [m.id for m in done.removed], [m.id for m in done.kept]
        emit_json(
            {
                "removed": removed,
                "kept": kept,
                "continued": [m.id for m in done.continued],
                "unfinished": list(done.unfinished),
                "files": done.files,
                "bytes": done.size,
                "dry_run": dry_run,
            }
        )
        return DONE
    for made in done.removed:
        emit(f"{'would remove' if dry_run else 'removed'} {made.id}: {made.kind}, {counted(made.size, 'byte')}")
    for name in done.unfinished:
        emit(f"{'would remove' if dry_run else 'removed'} {name}: never finished")
    why = f", {len(done.continued)} of them only because a newer one continues them" if done.continued else ""
    gone = f"{counted(len(done.removed), 'backup')} of {counted(done.size, 'byte')} {'would go' if dry_run else 'gone'}"
    emit(f"{gone}, {len(done.kept)} left{why}")
    return DONE


def _age_ms(text: str) -> int:
    units = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit():
        raise click.UsageError(f"--older-than {text!r} is no age, like 30d, 12h or 90m")
    return int(number) * units[unit]


@backup.command()
@click.argument("target")
@click.argument("id", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Directory to make, for `crdtkv node --data`.")
@click.option("--as", "own_region", metavar="R", help="With --data: the region that it is to be, the lost one or a new one.")
@click.option("--cluster", metavar="NAME", help="With --data: another name for the cluster, so that the restored is kept apart from it.")
@click.option("--engine", type=click.Choice(["rocksdb", "lmdb"]), default="rocksdb", show_default=True, help="Its state engine.")
@click.option("--time", "time_text", metavar="ISO", help="As of a time, like 2026-03-01T12:00:00+00:00 (without a zone: UTC).")
@click.option("--hlc", type=Integer(min=1), help="As of a stamp, as `-o json` shows them.")
@click.option("--vv", "vv_text", metavar="VV", help="As of a version vector, as `crdtkv status` shows it.")
@output_option
@where_options_if_any
def restore(
    place: Place | None,
    target: str,
    id: str | None,
    data: Path | None,
    own_region: str | None,
    cluster: str | None,
    engine: str,
    time_text: str | None,
    hlc: int | None,
    vv_text: str | None,
    output: str,
) -> int:
    """Restore a backup (default: the newest) to a directory, or into a running region.

    --data DIR --as R makes a directory for a new replica of region R: start a node on it, and it joins its peers and catches up. With
    --cluster it stands alone. --time, --hlc or --vv restore an earlier point of what the backups hold; joined to its cluster the past
    catches up again, so to go back name another cluster.

    --at HOST:PORT joins the backup into a running region: it gets back what nobody has any more, and nothing counts twice.
    """
    from crdtkv.backup import merge, open_target
    from crdtkv.backup import restore as make

    point = _point(time_text, hlc, vv_text)
    if place is None:
        if data is None or own_region is None:
            raise click.UsageError("say where to: --data DIR and --as R for a new directory, or --at HOST:PORT for a running region")
        made = make(open_target(target), data, region=own_region, id=id, point=point, cluster=cluster, engine=engine)
        if output == JSON:
            emit_json({**plain(made), "path": str(made.path), "backups": [m.id for m in made.backups]})
        else:
            held = f"{counted(made.records, 'record')} and {counted(made.frames, 'frame')}"
            emit(f"{made.path}: {made.origin} of cluster {made.cluster}, {held}")
            emit(f"vector  {made.vv}")
            emit(f"digest  {made.digest}")
            if made.left_out:
                emit(f"{counted(made.left_out, 'frame')} up to that point left out: resting on later ones")
        return DONE
    if data is not None or own_region is not None or cluster is not None:
        raise click.UsageError("--data, --as and --cluster make a directory, --at and --region name a running region: give one")
    if point is not None:
        raise click.UsageError("a past state joined into its cluster undoes nothing: restore it with --data, --as and --cluster")
    # One node, for the state and what follows it.
    place = dataclasses.replace(place, endpoints=place.endpoints[:1], timeout_s=max(place.timeout_s, MERGE_S))
    with place.connect() as client, _side(place) as side:
        done = merge(open_target(target), client, id=id, node=side)
    if output == JSON:
        emit_json({"applied": done.applied, "changed_keys": done.changed_keys, "backups": [m.id for m in done.backups]})
    else:
        emit(f"{counted(done.applied, 'new commit')}, {counted(done.changed_keys, 'changed key')}")
    return DONE


def _point(time_text: str | None, hlc: int | None, vv_text: str | None) -> Point | None:
    from crdtkv.backup import Point
    from crdtkv.core.causality import VersionVector, check_origin
    from crdtkv.core.clock import MS_MAX, stamp
    from crdtkv.errors import CorruptionError

    if sum(option is not None for option in (time_text, hlc, vv_text)) > 1:
        raise click.UsageError("--time, --hlc and --vv each name a point: give one")
    if time_text is not None:
        try:
            when = datetime.datetime.fromisoformat(time_text)
        except ValueError:
            raise click.UsageError(f"--time {time_text!r} is no ISO 8601 time, like 2026-03-01T12:00:00+00:00") from None
        ms = round((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp() * 1000)
        return Point(hlc=stamp(min(max(ms, 0), MS_MAX) + 1) - 1)
    if vv_text is not None:
        try:
            pairs = [pair.strip().rpartition(":") for pair in vv_text.strip(" {}").split(",")]
            return Point(vv=VersionVector({check_origin(origin): int(seq) for origin, _, seq in pairs}))
        except (ValueError, CorruptionError):
            raise click.UsageError(f"--vv {vv_text!r} is no version vector, like {{us@1-9f3c2a1b:12, eu@1-0a1b2c3d:7}}") from None
    return None if hlc is None else Point(hlc=hlc)


def as_json(made: Manifest) -> dict[str, Any]:
    """A backup as plain JSON types."""
    return {
        "id": made.id,
        "kind": made.kind,
        "parent": made.parent,
        "cluster": made.cluster,
        "shard": made.shard,
        "origin": made.origin,
        "vv": plain(made.vv),
        "digest": made.digest,
        "hlc": made.hlc,
        "time": made.time,
        "records": made.records,
        "frames": made.frames,
        "commits": made.commits,
        "bytes": made.size,
        "files": len(made.files),
    }


def _show(made: Manifest, output: str) -> None:
    if output == JSON:
        emit_json(as_json(made))
        return
    if made.kind == "full" or made.commits:
        what = counted(made.records, "record") if made.kind == "full" else f"{counted(made.commits, 'commit')} since {made.parent}"
        emit(f"{made.id}: {made.kind}, {what}, {counted(made.size, 'byte')} in {counted(len(made.files), 'file')}")
    else:
        emit(f"{made.id}: {made.kind}, nothing new since {made.parent}")
    emit(f"vector  {made.vv}")
    emit(f"digest  {made.digest}")
