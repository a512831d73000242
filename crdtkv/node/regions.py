"""Changes of the members, as an operator asks for them at any node: checked here, then committed like any write.

add      records a region and where it listens, so that the others dial it (without an address, the one on record; if there is none, it
         has to dial them); with it, once, everybody whom this node knows, so that the newcomer learns of them too
drain    the region takes no more writes, and says when all others have what it has
remove   ends a region that is drained; by force, also one that is dead: what only it had is lost
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from crdtkv.core.causality import Origin, check_region, region_of
from crdtkv.core.control import MemberState, member_delta
from crdtkv.core.frame import ADDRESS_CHARS_MAX, Delta
from crdtkv.errors import ConfigError, PreconditionFailedError
from crdtkv.node.config import parse_address
from crdtkv.pb.v1 import admin_pb2
from crdtkv.replication.membership import Standing

if TYPE_CHECKING:
    from crdtkv.store.store import Store

CHANGES: Final = ("add", "drain", "remove", "force")


def changes(
    store: Store,
    standings: Sequence[tuple[Standing, bool]],
    addresses: Mapping[str, str],
    change: str,
    regions: Sequence[str],
    address: str = "",
) -> list[Delta]:
    """What to commit for a change; empty if it is as asked already.

    Args:
        standings: every region known, and whether it is connected.
        addresses: where this node and those that it dials listen.
    Raises:
        ConfigError: the change, a region or the address is wrong.
        PreconditionFailedError: a region is not in a state for it.
    """
    if change not in CHANGES or not regions:
        raise ConfigError(f"region: {change!r} of {len(regions)} regions: name one of {', '.join(CHANGES)}, and regions", setting="change")
    control, known = store.port.control, {standing.region: standing for standing, _ in standings}
    epoch, deltas = control.next_epoch(), []
    for region in dict.fromkeys(regions):
        check_region(region)
        state = known[region].state if region in known else None
        record = control.members.get(region)
        if change == "add":
            deltas += _add(store, addresses, region, address, epoch)
            continue
        if state is None:
            raise ConfigError(f"region {region} is not known here: known are {', '.join(sorted(known))}", setting="region")
        if region == store.region and change != "drain":
            raise ConfigError(f"region {region} is this node's own: ask a region that stays", setting="region")
        if state == MemberState.REMOVED or (state == MemberState.DRAINING and change == "drain"):
            continue
        if change == "remove" and not known[region].is_drained:
            raise PreconditionFailedError(_not_drained(known[region]), region=region)
        to = MemberState.DRAINING if change == "drain" else MemberState.REMOVED
        deltas.append(member_delta(region, to, record.address if record is not None else addresses.get(region, ""), epoch))
    return deltas


def _add(store: Store, addresses: Mapping[str, str], region: str, address: str, epoch: int) -> list[Delta]:
    members = store.port.control.members
    record = members.get(region)
    if address:
        parse_address(address, f"region {region}")
    elif record is not None:
        address = record.address
    if len(address) > ADDRESS_CHARS_MAX:
        raise ConfigError(f"region {region}: an address of {len(address)} characters, the limit is {ADDRESS_CHARS_MAX}", setting="address")
    here = {name: at for name, at in addresses.items() if name != region and name not in members and not at.startswith(("0.0.0.0", "[::]"))}
    deltas = [member_delta(name, MemberState.ACTIVE, at, epoch) for name, at in sorted(here.items())]
    if record is None or record.state != MemberState.ACTIVE or record.address != address:
        deltas.append(member_delta(region, MemberState.ACTIVE, address, epoch))
    return deltas


def _not_drained(standing: Standing) -> str:
    region = standing.region
    if standing.state != MemberState.DRAINING:
        return f"region {region} takes writes: drain it first (crdtkv region drain {region}), or remove it with --force if it is dead"
    waits = ", ".join(standing.waits_for)
    return f"region {region} is not drained: {waits} has not told that it has everything; wait, or remove it with --force if it is dead"


def regions_reply(store: Store, standings: Sequence[tuple[Standing, bool]], addresses: Mapping[str, str]) -> Any:
    """What the Admin service answers. Of a region whose address is not recorded, that of `addresses`."""
    control = store.port.control
    return admin_pb2.RegionsReply(
        region=store.region,
        regions=[
            admin_pb2.RegionStanding(
                region=standing.region,
                state=standing.state,
                address=standing.address or addresses.get(standing.region, ""),
                member=standing.is_member,
                connected=connected,
                applied=_seqs(standing.origins),
                announced=_seqs(standing.announced),
                closed=_seqs({o: closes[-1].seq for o, closes in control.closed.items() if region_of(o) == standing.region}),
                waits_for=standing.waits_for,
                drained=standing.is_drained,
            )
            for standing, connected in standings
        ],
    )


def _seqs(seqs: Mapping[Origin, int]) -> list[Any]:
    return [admin_pb2.OriginSeq(origin=origin, seq=seq) for origin, seq in sorted(seqs.items())]
