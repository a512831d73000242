"""Understanding: explain, conflicts, digest, status, lag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from crdtkv.cli.errors import DONE, FAILED
from crdtkv.cli.output import JSON, emit, emit_json, output_option, plain, table
from crdtkv.cli.place import Place, where_options
from crdtkv.cli.usage import Integer

if TYPE_CHECKING:
    from crdtkv.results import PeerLag, Status


@click.command()
@click.argument("key")
@output_option
@where_options
def explain(place: Place, key: str, output: str) -> int:
    """Tell why KEY reads as it does: who wrote what and when, who had seen what, who won, by which rule.

    Status 1 if nothing is there and nothing is known of it.
    """
    with place.connect() as client:
        explanation = client.explain(key)
    if output == JSON:
        emit_json({**plain(explanation), "text": str(explanation)})
    else:
        emit(str(explanation))
    return DONE if explanation.found or explanation.writes or explanation.conflicts else FAILED


@click.command()
@click.argument("prefix", default="")
@click.option("--limit", type=Integer(min=1), help="Only the newest so many.")
@output_option
@where_options
def conflicts(place: Place, prefix: str, limit: int | None, output: str) -> int:
    """Print the conflicts on record of keys that begin with PREFIX, newest last: the slot, the rule, who won, what it met."""
    with place.connect() as client:
        found = client.conflicts(prefix, limit=limit)
    for conflict in found:
        if output == JSON:
            emit_json(plain(conflict))
        else:
            emit(str(conflict))
    return DONE


@click.command()
@output_option
@where_options
def digest(place: Place, output: str) -> int:
    """Print the digest of the visible state, 32 hex digits. Regions that have applied the same commits have equal digests."""
    with place.connect() as client:
        value = client.digest()
        vv = client.vv() if output == JSON else None
    if output == JSON:
        emit_json({"digest": value, "vv": plain(vv)})
    else:
        emit(value)
    return DONE


@click.command()
@output_option
@where_options
def status(place: Place, output: str) -> int:
    """Print a node's state: replica, version vector, digest, log, peers, and warnings with what to do."""
    with place.connect() as client:
        found = client.status()
    if output == JSON:
        emit_json(plain(found))
        return DONE
    facts: list[tuple[str, Any]] = [
        ("region", found.region),
        ("origin", found.origin),
        ("cluster", found.cluster),
        ("version", found.version),
        ("ready", "yes" if found.ready else "no"),
        ("address", found.listen),
        ("process", found.pid),
        ("up", f"{found.uptime_ms / 1000:.1f} s"),
        ("data", found.path or "in memory"),
        ("engine", f"{found.engine}, durability {found.durability}"),
        ("applied", found.vv),
        ("fsynced", found.durable_vv),
        ("digest", found.digest),
        ("log", f"frames {found.log_start} to {found.log_end}, {found.log_bytes} bytes"),
        ("writes", "refused" if found.read_only else "taken"),
        *([("last snapshot", found.last_install)] if found.last_install else []),
        ("log floor", found.log_floor),
        ("log kept for", ", ".join(found.log_kept_for)),
        ("held frames", found.held_frames),
        ("conflicts", found.conflicts),
        ("watchers", found.watchers),
        ("requests", found.requests),
    ]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        emit(f"{name.ljust(width)}  {'–' if value is None or value == '' else value}")
    for warning in found.warnings:
        emit(f"{'warning'.ljust(width)}  {warning}")
    if found.peers:
        emit("")
        _peers(found)
    return DONE


@click.command()
@output_option
@where_options
def lag(place: Place, output: str) -> int:
    """Print how far each peer is behind and ahead of this region. What is not known, as when cut off, is "–", never 0.

    To come: commits that the peer has and this region has not; to be acked: commits that this region has sent or keeps for it; both with
    their bytes, where known.
    """
    with place.connect() as client:
        found = client.status()
    if output == JSON:
        emit_json({"region": found.region, "peers": plain(found.peers)})
    else:
        _peers(found)
    return DONE


def _peers(found: Status) -> None:
    def span(ms: float | None, suffix: str = "") -> str | None:
        return None if ms is None else f"{ms:.1f} ms{suffix}"

    def sent(peer: PeerLag) -> str | None:
        if peer.sent_bytes and peer.sent_wire_bytes is not None and peer.sent_wire_bytes < peer.sent_bytes:
            return f"{peer.sent_wire_bytes} ({peer.sent_wire_bytes / peer.sent_bytes:.0%})"
        return None if peer.sent_wire_bytes is None else str(peer.sent_wire_bytes)

    def commits(count: int | None, size: int | None) -> str | None:
        return None if count is None else f"{count} ({size} B)" if size else str(count)

    table(
        ("peer", "link", "lag", "to come", "to be acked", "bytes sent", "round trip", "clock", "heard"),
        [
            (
                peer.region,
                peer.state or ("up" if peer.connected else "down"),
                span(peer.lag_ms),
                commits(peer.commits_behind, peer.bytes_behind),
                commits(peer.commits_ahead, peer.bytes_ahead),
                sent(peer),
                span(peer.rtt_ms),
                span(peer.clock_offset_ms),
                span(peer.last_heard_ms, " ago"),
            )
            for peer in found.peers
        ],
    )
