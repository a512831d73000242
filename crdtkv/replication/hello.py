"""The hello: what each side of a link says first, and why it goes no further. Pure functions of a hello and of the replica.

A hello says who speaks (cluster, shard, origin), what it can do (versions, features), what it has applied, how it knows each origin's last
frame (a hash, by which forks show), and how much it will take. What a link can do is what both name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crdtkv.core.causality import Origin, VersionVector, region_of
from crdtkv.core.control import removed_text
from crdtkv.replication.messages import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, Hello
from crdtkv.replication.packing import ZLIB
from crdtkv.replication.port import ReplicaPort
from crdtkv.replication.settings import ReplicationSettings
from crdtkv.replication.status import Code

ACK_WITH_FRAMES: Final = "ack_with_frames"
"""A feature: what this version can do beyond protocol version 1; a link uses what both sides name."""
SNAPSHOT: Final = "snapshot"
MEMBERS_MAX: Final = 1_024
"""Names of regions in a hello."""


def features_of(port: ReplicaPort, settings: ReplicationSettings) -> tuple[str, ...]:
    """What this side offers."""
    offers = [ACK_WITH_FRAMES]
    if settings.compression != "off":
        offers.append(ZLIB)
    if port.snapshots is not None:
        offers.append(SNAPSHOT)
    return tuple(offers)


def members_of(port: ReplicaPort, members: Sequence[str], vv: VersionVector) -> tuple[str, ...]:
    """The regions that this side knows: those configured first."""
    return tuple(dict.fromkeys((*members, *map(region_of, (port.origin, *vv)))))[:MEMBERS_MAX]


def make_hello(
    port: ReplicaPort,
    vv: VersionVector,
    *,
    features: tuple[str, ...],
    members: tuple[str, ...],
    wall_ms: float,
    own_credit: int,
    relay_credit: int,
) -> Hello:
    """What this side says, having applied `vv`; credits in bytes."""
    shown = port.control.show(vv)
    return Hello(
        version_min=PROTOCOL_VERSION_MIN,
        version_max=PROTOCOL_VERSION_MAX,
        features=features,
        cluster=port.cluster,
        shard=port.shard,
        region=region_of(port.origin),
        origin=port.origin,
        members=members,
        vv=shown,
        kept={o: kept for o, kept in port.kept_hashes().items() if o in shown},
        wall_ms=max(0, int(wall_ms)),
        hlc=port.hlc(),
        own_credit=own_credit,
        relay_credit=relay_credit,
    )


def objection(hello: Hello, port: ReplicaPort) -> tuple[Code, str] | None:
    """Why whoever says this is no peer of the replica; None: it may be one."""
    if hello.cluster != port.cluster or hello.shard != port.shard:
        there = f"cluster {hello.cluster!r}, shard {hello.shard}"
        return Code.CLUSTER, f"the peer is of {there}; this is cluster {port.cluster!r}, shard {port.shard}"
    if max(hello.version_min, PROTOCOL_VERSION_MIN) > min(hello.version_max, PROTOCOL_VERSION_MAX):
        ours = f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}"
        theirs = f"{hello.version_min} to {hello.version_max}"
        return Code.VERSION, f"the peer speaks protocol {theirs}, this is {ours}: upgrade the older"
    if region_of(hello.origin) != hello.region:
        return Code.PROTOCOL, f"origin {hello.origin} is not of region {hello.region!r}"
    if hello.origin == port.origin:
        return Code.SELF, f"the peer is {port.origin} as well: a link to oneself, or a copied data directory"
    return None


def refusal(port: ReplicaPort, origin: Origin, vv: VersionVector, *, is_former: bool) -> tuple[Code, str] | None:
    """Why a peer is not talked to (any more): its region was removed, or its incarnation has ended; None if neither.

    Args:
        vv: what is applied here.
        is_former: its region is known to have gone on as a later incarnation.
    """
    control, region = port.control, region_of(origin)
    limit = control.limit(origin)
    if control.is_removed(region):
        return Code.REMOVED, removed_text(origin, vv.seq(origin) if limit is None else limit)
    if limit is not None and control.last(origin) is None and not is_former:
        return Code.FROZEN, f"{origin} is being closed, for a reason that has not reached this replica yet"
    if limit is not None or is_former:
        return Code.ENDED, f"{origin} has ended: region {region} went on as another incarnation, and so must whoever was it"
    return None


def find_fork(hello: Hello, port: ReplicaPort, vv: VersionVector) -> tuple[str, dict[str, str | int]] | None:
    """Compare the peer's hash of each origin's last frame with that of the same frame here, if it is known: the first with two
    contents, as a text with details; None: there is none."""
    for origin, (seq, theirs) in hello.kept.items():
        if not 0 < seq <= vv.seq(origin):
            continue
        ours = port.frame_hash(origin, seq)
        if ours is None and (frame := port.log.find(origin, seq)) is not None:
            # A frame that holds this commit but ends elsewhere is other content as well.
            ours = frame.hash
        if ours is not None and ours != theirs:
            details: dict[str, str | int] = {"origin": origin, "seq": seq, "ours": ours.hex(), "theirs": theirs.hex()}
            return f"{origin}:{seq} has two contents, here and at {hello.origin}: a copied or rolled back disk", details
    return None
