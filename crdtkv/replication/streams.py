"""What one peer is sent: the stream of own frames, and the stream of relayed ones, each in the order of the log.

Both decide (`plan`, which changes nothing), then do (`accept`). Neither ever skips a frame: where the log no longer has
what the peer lacks, the plan is a refusal that names the log's floor.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import TokenExpiredError
from crdtkv.replication.port import ReplicaPort
from crdtkv.replication.progress import Outgoing, OwnTail, pick
from crdtkv.replication.settings import ReplicationSettings

ATTEMPTS = 2
"""The log may drop frames between finding a position and reading there: look again, once."""


class Plan(msgspec.Struct, frozen=True):
    """Frames about to be sent, and where in the log their stream goes on after them; or the floor, if it cannot be sent."""

    relayed: bool
    cursor: int | None = None
    frames: tuple[Frame, ...] = ()
    refused: VersionVector | None = None
    is_searching: bool = False
    """The turn's share of reading is used up, and nothing was found yet."""


def _pick(port: ReplicaPort, flow: Outgoing, relayed: bool, cursor: int, wanted: Callable[[Frame], bool]) -> Plan:
    settings, until = flow.settings, port.released()
    frames, following = pick(
        port.log,
        cursor,
        until,
        wanted,
        bytes_max=settings.message_bytes_max,
        frames_max=settings.message_frames_max,
        credit=flow.credit,
        read_bytes_max=settings.read_bytes_max,
    )
    return Plan(relayed, following, tuple(frames), is_searching=not frames and cursor < following < until)


class OwnStream:
    """The own frames that a peer lacks, up to what is released.

    Attributes:
        seq: the last own seq sent, or known to be there.
        needs_snapshot: the log's floor is above what the peer has; nothing is sent until it has more.
    """

    __slots__ = ("_cursor", "_port", "_tail", "flow", "needs_snapshot", "seq")

    def __init__(self, port: ReplicaPort, settings: ReplicationSettings, tail: OwnTail) -> None:
        self._port = port
        self._tail = tail
        self._cursor: int | None = None
        self.flow = Outgoing(settings)
        self.seq = 0
        self.needs_snapshot = False

    @property
    def has_more(self) -> bool:
        """Whether there is something to plan: of what was refused there is nothing, until the peer has more of it by another way."""
        return self.seq < self._tail.last_seq and not self.needs_snapshot

    def has_more_after(self, plan: Plan) -> bool:
        """Whether something is left to be sent once `plan` is."""
        return bool(plan.frames) and plan.frames[-1].last_seq < self._tail.last_seq

    def learn(self, seq: int) -> None:
        """The peer has the own commits up to `seq`, by whatever way."""
        if seq > self.seq:
            self.restart(seq)

    def restart(self, seq: int) -> None:
        """Go on after `seq`, which may be earlier than what was sent."""
        self.seq, self._cursor, self.needs_snapshot = seq, None, False

    def plan(self, vv: VersionVector) -> Plan | None:
        """The next frames: from the shared tail, or from the log if that does not reach back so far. `vv`: what is applied here."""
        port, seq, flow, settings = self._port, self.seq, self.flow, self.flow.settings
        if not self.has_more:
            return None
        recent = self._tail.after(seq, bytes_max=settings.message_bytes_max, frames_max=settings.message_frames_max, credit=flow.credit)
        if recent is not None:
            return Plan(False, None, tuple(recent)) if recent else None
        origin, log = port.origin, port.log
        for _ in range(ATTEMPTS):
            cursor = self._cursor
            if cursor is None or cursor < log.start():
                if (floor := log.floor()).seq(origin) > seq:
                    return Plan(False, refused=floor)
                # As if all else were applied there: find the first own frame that is not.
                cursor = log.position_after(vv.without(origin).advance(origin, seq))
            try:
                return _pick(port, flow, False, cursor, lambda frame: frame.origin == origin and frame.last_seq > seq)
            except TokenExpiredError:
                continue
        return None

    def accept(self, plan: Plan, now_ms: float) -> None:
        """The plan is being carried out."""
        if plan.refused is not None:
            self.needs_snapshot = True
            return
        self._cursor = plan.cursor
        if plan.frames:
            self.seq = plan.frames[-1].last_seq
            self.flow.sent(sum(frame.size for frame in plan.frames), now_ms, more=self.has_more)


class RelayStream:
    """The frames of third origins that a peer lacks, from when it asks until it no longer does."""

    __slots__ = ("_cursor", "_port", "_sent", "flow", "is_open")

    def __init__(self, port: ReplicaPort, settings: ReplicationSettings) -> None:
        self._port = port
        self._cursor: int | None = None
        self._sent: dict[Origin, int] = {}
        self.flow = Outgoing(settings)
        self.is_open = False

    def begin(self) -> None:
        """Send all that the peer lacks by what it has applied; again, if it was being sent."""
        self.is_open, self._cursor, self._sent = True, None, {}

    def end(self) -> None:
        self.is_open, self._cursor, self._sent = False, None, {}

    @property
    def has_more(self) -> bool:
        return self.is_open and (self._cursor is None or self._cursor < self._port.released())

    def has_more_after(self, plan: Plan) -> bool:
        """Whether something may be left to be sent once `plan` is."""
        return plan.cursor is not None and plan.cursor < self._port.released()

    def plan(self, vv: VersionVector, peer: Origin, peer_vv: VersionVector, own_seq: int) -> Plan | None:
        """The next frames, in the order of the log.

        Args:
            vv: what is applied here.
            peer_vv: what is applied there, by its latest message.
            own_seq: how far the own stream is.
        """
        if not self.has_more:
            return None
        port, sent, theirs = self._port, self._sent, peer_vv.seq
        own, log = port.origin, port.log

        def is_wanted(frame: Frame) -> bool:
            origin = frame.origin
            return origin != own and origin != peer and frame.last_seq > theirs(origin) and frame.last_seq > sent.get(origin, 0)

        for _ in range(ATTEMPTS):
            cursor = self._cursor
            if cursor is None or cursor < log.start():
                base = peer_vv.join(VersionVector(sent)).advance(own, own_seq)
                if not (floor := log.floor()) <= base:
                    return Plan(True, refused=floor)
                # Own frames go by the own stream: do not begin at the first of them.
                cursor = log.position_after(base.advance(own, vv.seq(own)))
            try:
                return _pick(port, self.flow, True, cursor, is_wanted)
            except TokenExpiredError:
                continue
        return None

    def accept(self, plan: Plan, now_ms: float) -> None:
        """The plan is being carried out."""
        if plan.refused is not None:
            return self.end()
        self._cursor = plan.cursor
        for frame in plan.frames:
            self._sent[frame.origin] = frame.last_seq
        if plan.frames:
            self.flow.sent(sum(frame.size for frame in plan.frames), now_ms, more=self.has_more)
        return None
