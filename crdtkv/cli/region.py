"""The members of the cluster: list, status, add, drain, remove."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from crdtkv.cli.errors import DONE, UNAVAILABLE
from crdtkv.cli.output import JSON, emit, emit_json, output_option, table
from crdtkv.cli.place import Place, where_options
from crdtkv.cli.usage import Group, Number
from crdtkv.errors import ConfigError, RegionUnavailableError

if TYPE_CHECKING:
    from crdtkv.client.views import NodeSide

POLL_S: Final = 0.2


@contextmanager
def _node(place: Place) -> Iterator[NodeSide]:
    """The first of the named nodes that answers."""
    from crdtkv.client.views import NodeSide

    for last, endpoint in enumerate(place.endpoints, 1):
        try:
            side = NodeSide(endpoint, connect_s=place.timeout_s, tls_ca=place.tls_ca, tls_cert=place.tls_cert, tls_key=place.tls_key)
        except RegionUnavailableError:
            if last == len(place.endpoints):
                raise
            continue
        with side:
            yield side
        return


def _seen_from(place: Place, reply: Any) -> Any:
    """What a node answered, with the addresses of the local cluster: there each region has ways of its own to the others."""
    for r in reply.regions:
        r.address = place.local.get(r.region, r.address)
    return reply


def next_command(verb: str, name: str, place: Place, reply: Any) -> str:
    """What to type next, at the same place; a region itself is not asked what becomes of it."""
    where = " --at HOST:PORT of a region that stays" if reply.region == name else place.options
    return f"crdtkv region {verb} {name}{where}"


@click.group(cls=Group)
def region() -> None:
    """The members of the cluster, changed while it serves: ask any node that stays.

    Adding: `crdtkv region add R HOST:PORT`, then start its node with an empty directory and one member as --peer. Removing: `drain`, then
    `remove`; of a region that is dead, `remove --force`.
    """


@region.command("list")
@output_option
@where_options
def list_regions(place: Place, output: str) -> int:
    """Print every region: its state, where it listens, whether it is connected."""
    with _node(place) as side:
        reply = _seen_from(place, side.regions())
    if output == JSON:
        emit_json(as_json(reply))
        return DONE
    table(
        ("region", "state", "address", "link", "commits", "incarnations ended"),
        [(r.region, _state(r), r.address or None, _link(reply, r), sum(a.seq for a in r.applied), len(r.closed)) for r in reply.regions],
    )
    return DONE


@region.command()
@click.argument("name", metavar="[R]", required=False)
@output_option
@where_options
def status(place: Place, output: str, name: str | None) -> int:
    """Print what is known of one region, or of all: what is applied of it, what waits for whom, where its former incarnations ended."""
    with _node(place) as side:
        reply = _seen_from(place, side.regions())
    found = [r for r in reply.regions if name in (None, r.region)]
    if not found:
        raise ConfigError(f"region {name} is not known here: known are {', '.join(r.region for r in reply.regions)}", setting="region")
    if output == JSON:
        emit_json({**as_json(reply), "regions": [_row(r) for r in found]})
        return DONE
    for r in found:
        emit(f"{r.region}  {_state(r)}, {_link(reply, r)}{', at ' + r.address if r.address else ''}")
        for at in r.applied:
            emit(f"  {at.origin}  applied here up to {at.seq}")
        for line in _losses(r):
            emit(f"  {line}")
        for at in r.closed:
            emit(f"  {at.origin}  ended with {at.seq}")
        if r.waits_for:
            emit(f"  waits for {', '.join(r.waits_for)}")
    return DONE


@region.command()
@click.argument("name", metavar="R")
@click.argument("address", metavar="[HOST:PORT]", default="")
@output_option
@where_options
def add(place: Place, output: str, name: str, address: str) -> int:
    """Record a region and where it listens: all members dial it, and it learns of them. Its node may start before or after.

    A region that is drained, or was removed, is taken back; without an address, at the one on record. Without one on record either,
    nobody can dial it: give its node all members as --peer, and it dials them.
    """
    with _node(place) as side:
        before = next((r for r in side.regions().regions if r.region == name), None)
        reply = _seen_from(place, side.change_regions("add", (name,), address))
    if output == JSON:
        emit_json(as_json(reply))
        return DONE
    now = next(r for r in reply.regions if r.region == name)
    at = f", at {now.address}" if now.address else ""
    if before is not None and before.state == "draining":
        emit(f"{name} is a member again{at}, and takes writes")
    elif before is not None and before.state == "active" and before.connected:
        emit(f"{name} is a member{at}")
    else:
        emit(f"{name} is a member{at}: start its node {'there ' if at else ''}with an empty directory")
    return DONE


@region.command()
@click.argument("name", metavar="R")
@click.option("--wait/--no-wait", default=True, help="Wait until it is drained.  [default: wait]")
@click.option("--within", "within_s", type=Number(min=0), default=600.0, show_default=True, help="Seconds to wait.")
@output_option
@where_options
def drain(place: Place, output: str, name: str, wait: bool, within_s: float) -> int:
    """Have a region take no more writes and hand over what only it has; returns when it may be removed.

    Reads go on there. `crdtkv region add` with its address takes it back.
    """
    until = time.monotonic() + within_s
    with _node(place) as side:
        reply = _seen_from(place, side.change_regions("drain", [name]))
        found = next(r for r in reply.regions if r.region == name)
        told = ""
        while wait and found.state == "draining" and not found.drained:
            if time.monotonic() >= until:
                click.echo(f"{name} is not drained within {within_s:.0f} s: it waits for {', '.join(found.waits_for)}", err=True)
                return UNAVAILABLE
            if output != JSON and (now := ", ".join(found.waits_for)) != told:
                told = now
                emit(f"{name} takes no more writes ({next_command('add', name, place, reply)}: it does again); waits for {now}")
            time.sleep(POLL_S)
            reply = _seen_from(place, side.regions())
            found = next(r for r in reply.regions if r.region == name)
    if output == JSON:
        emit_json(as_json(reply))
    else:
        emit(f"{name} is drained: {next_command('remove', name, place, reply)}" if found.drained else f"{name} is {found.state}")
    return DONE


@region.command()
@click.argument("names", metavar="R…", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove it as it is, because it is dead: says what may be lost.")
@output_option
@where_options
def remove(place: Place, output: str, names: tuple[str, ...], force: bool) -> int:
    """Remove regions from the cluster: drained ones, or with --force dead ones.

    The others agree on its last commit, take up to there whatever any of them has, and forget it. It is refused when it returns. Name all
    that are dead in one call: a member that cannot be reached keeps the others from forgetting.
    """
    if not force:
        return _change(place, output, "remove", names, "", f"{', '.join(names)} removed: stop its node, delete its directory")
    with _node(place) as side:
        before = {r.region: r for r in side.regions().regions}
        reply = _seen_from(place, side.change_regions("force", names))
    losses = {name: _losses(before[name]) for name in names if name in before}
    if output == JSON:
        emit_json({**as_json(reply), "may_be_lost": losses})
        return DONE
    for name in names:
        emit(f"{name} removed by force")
        for line in losses.get(name, ()):
            emit(f"  {line}")
        emit("  what it acknowledged and told no member is not counted here: it is in its directory, if that still exists")
    return DONE


def _change(place: Place, output: str, change: str, names: tuple[str, ...], address: str, done: str) -> int:
    with _node(place) as side:
        reply = _seen_from(place, side.change_regions(change, names, address))
    if output == JSON:
        emit_json(as_json(reply))
    else:
        emit(done)
    return DONE


def _losses(found: Any) -> list[str]:
    """What somebody has named of a region's commits, and this node does not have: another member may, or nobody."""
    applied = {at.origin: at.seq for at in found.applied}
    return [
        f"{at.origin}  {at.seq - applied.get(at.origin, 0)} commits after {applied.get(at.origin, 0)}, up to {at.seq}, may be lost: "
        "they were heard of and are not here"
        for at in found.announced
    ]


def _state(found: Any) -> str:
    return "drained" if found.drained else str(found.state)


def _link(reply: Any, found: Any) -> str:
    return "this node" if found.region == reply.region else "connected" if found.connected else "not connected"


def as_json(reply: Any) -> dict[str, Any]:
    """The reply as plain JSON types."""
    return {"asked": reply.region, "regions": [_row(r) for r in reply.regions]}


def _row(r: Any) -> dict[str, Any]:
    return {
        "region": r.region,
        "state": r.state,
        "address": r.address,
        "member": r.member,
        "connected": r.connected,
        "applied": {at.origin: at.seq for at in r.applied},
        "announced": {at.origin: at.seq for at in r.announced},
        "closed": {at.origin: at.seq for at in r.closed},
        "waits_for": list(r.waits_for),
        "drained": r.drained,
    }
