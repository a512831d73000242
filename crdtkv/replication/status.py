"""What replication tells: states, why links end, events to log or to act on, and what is known of each peer."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector


class State(enum.Enum):
    OPENING = "opening"
    LIVE = "live"
    CLOSED = "closed"
    QUARANTINED = "quarantined"


class Relay(enum.Enum):
    """The relay from this peer to here."""

    NONE = "none"
    ASKED = "asked"
    OPEN = "open"
    REFUSED = "refused"


# At hand: until Python 3.12, to look a member up in its class costs ten times what a name of a module does, and these are asked for every
# peer at every turn.
OPENING: Final = State.OPENING
LIVE: Final = State.LIVE
RELAYING: Final = (Relay.ASKED, Relay.OPEN)


class Code(enum.StrEnum):
    """Why a link ends; goes over the wire in `Bye`."""

    CLUSTER = "cluster"
    SELF = "self"
    VERSION = "version"
    AMNESIA = "amnesia"
    FORK = "fork"
    REMOVED = "removed"
    ENDED = "ended"
    FROZEN = "frozen"
    DUPLICATE = "duplicate"
    REPLACED = "replaced"
    OVERDRAWN = "overdrawn"
    PROTOCOL = "protocol"
    CORRUPT = "corrupt"
    TIMEOUT = "timeout"
    APPLY = "apply"
    SHUTDOWN = "shutdown"
    RENEWED = "renewed"
    FAILED = "failed"
    STARVED = "starved"

    @property
    def permanent(self) -> bool:
        """Whether dialling again soon cannot help."""
        return self in (Code.CLUSTER, Code.SELF, Code.VERSION, Code.FORK, Code.REMOVED)


class EventKind(enum.StrEnum):
    LIVE = "live"
    CLOSED = "closed"
    AMNESIA = "amnesia"
    FORK = "fork"
    DIVERGENCE = "divergence"
    REMOVED = "removed"
    NEEDS_SNAPSHOT = "needs_snapshot"
    STALLED = "stalled"
    STARVED = "starved"
    SNAPSHOT_ASKED = "snapshot_asked"
    SNAPSHOT_BEGUN = "snapshot_begun"
    SNAPSHOT_STAGED = "snapshot_staged"
    SNAPSHOT_INSTALLED = "snapshot_installed"
    SNAPSHOT_ENDED = "snapshot_ended"
    RELAY_ASKED = "relay_asked"
    RELAY_REFUSED = "relay_refused"
    RELAY_ENDED = "relay_ended"


_ALARMS: Final = frozenset((EventKind.AMNESIA, EventKind.FORK, EventKind.DIVERGENCE, EventKind.REMOVED, EventKind.STARVED))


class Event(msgspec.Struct, frozen=True):
    """Something to log, and if `alarm` to act on."""

    kind: EventKind
    origin: Origin | None
    text: str
    details: Mapping[str, str | int] = msgspec.field(default_factory=dict)

    @property
    def alarm(self) -> bool:
        return self.kind in _ALARMS


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatistics:
    """What is known of one peer. None is *unknown*, as everything is that changes while it is not connected."""

    region: str
    origin: Origin
    state: State
    applied_seq: int | None = None
    """The last of this replica's commits that the peer has applied."""
    durable_seq: int | None = None
    behind_commits: int | None = None
    behind_bytes: int | None = None
    behind_ms: float | None = None
    """Since when the oldest own commit that the peer has not applied could leave; 0 if there is none."""
    round_trip_ms: float | None = None
    clock_offset_ms: float | None = None
    """How far the peer's wall clock is ahead of this one's."""
    heard_ms_ago: float | None = None
    in_flight_messages: int = 0
    waiting_frames: int = 0
    """Frames received from it that are not part of the state yet."""
    sent_bytes: int = 0
    """Of all messages of this link, before compression; as is the next but one."""
    sent_wire_bytes: int = 0
    received_bytes: int = 0
    received_wire_bytes: int = 0
    is_compressing: bool = False
    """What is large enough is compressed before it is sent."""
    relay_in: Relay = Relay.NONE
    relay_out: bool = False
    needs_snapshot: bool = False
    """The peer lacks own commits of this replica that the log no longer has."""
    below_floor: bool = False
    """This replica lacks commits of the peer that the peer's log no longer has."""
    vv: VersionVector = EMPTY_VV
    durable: VersionVector = EMPTY_VV
    """What the peer has fsynced of all origins, as of its last ack."""
