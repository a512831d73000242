"""One peer: what it is told and what it may be sent. Sans-IO: messages and time in, messages out.

                 hello out            hello in, all checks hold
    (new) ──────────────▶ OPENING ─────────────────────────────▶ LIVE
                             │                                     │
                             │ wrong cluster, self, version,       │ protocol broken, overdrawn, corrupt, silent,
                             │ no hello in time, Bye               │ replaced by another link, shutdown, Bye
                             ▼                                     ▼
                           CLOSED ◀────────────────────────────────┤ a peer knows more of us than we do (*amnesia*)
                                                                   │
                                                                   │ fork (from OPENING too)
                        QUARANTINED ◀──────────────────────────────┘ an operator must act

Amnesia means that this replica has lost commits of its own: the drive says so, and it goes on under another origin, over new links.
A closed session has one Bye to say, and then does nothing more. The I/O layer opens a new link, and with it a new session.

**Out.** The own frames that the peer lacks, in log order, up to `port.released()`; where the log's floor is above what the
peer has, the peer is told so (`needs_snapshot`) and nothing is skipped. Relayed frames while the peer asks for them: *all*
that it lacks of third origins, in log order (with only the origin asked for, two held frames can wait for each other);
refused unless the whole floor is covered by what it has. The own stream goes on meanwhile, with its own credit.

**In.** Frames are checked as far as one link can tell (cluster, origin, no gap, credit) and handed to the drive loop, which
has them applied. What the replica holds because it rests on something else stays counted here until it is applied.
Whether to ask for a relay is the drive's decision: it sees all peers. `blocked_on` says what this link waits for.

What is remembered per peer is bounded: one pending message of each kind (the newest replaces older ones), frames within
the credit, one version vector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, assert_never

import msgspec

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, IncompatibleFormatError
from crdtkv.replication import messages
from crdtkv.replication.hello import ACK_WITH_FRAMES, SNAPSHOT, features_of, find_fork, make_hello, members_of, objection, refusal
from crdtkv.replication.messages import (
    AboutSnapshots,
    Ack,
    AskRelay,
    AskSnapshot,
    Bye,
    CannotRelay,
    CannotSnapshot,
    Chunk,
    ChunkAck,
    Credit,
    EndRelay,
    EndSnapshot,
    Frames,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Live,
    Message,
    Packed,
    Reports,
    Subscribe,
    Unknown,
)
from crdtkv.replication.packing import ZLIB, Packing
from crdtkv.replication.port import ReplicaPort
from crdtkv.replication.progress import TIMER_MS, AckTimer, Incoming, OwnTail
from crdtkv.replication.settings import ReplicationSettings
from crdtkv.replication.status import LIVE, OPENING, RELAYING, Code, Event, EventKind, PeerStatistics, Relay, State
from crdtkv.replication.streams import OwnStream, Plan, RelayStream

_NOT_YET_MS: Final = float("-inf")
_UNANSWERED: Final = frozenset[type[Message]]((Ack, HeartbeatReply, Frames))
"""What calls for nothing by itself: it may let a stream go on, if one has more; frames have to be applied first."""
_OF_THE_LINK: Final = frozenset[type[Message]]((Bye, Hello, Packed, Unknown))
"""What a live link is not for, but begins or ends with, or does not understand."""
_NO_RELAY: Final = (Relay.NONE, Relay.REFUSED)
SAMPLES: Final = 8
"""Heartbeats whose answers are waited for, and clock samples of which the one with the shortest round trip counts (NTP's filter)."""
ROUND_TRIPS: Final = 32
"""Round trips of which the least is the link's: a quarter of a minute of them, for a peer that catches up may be busy for as long."""


class Ready(msgspec.Struct, frozen=True):
    """What is to be done for one peer. One is made for each peer at each turn, and a struct costs a third of what a dataclass does."""

    messages: tuple[Message, ...]
    """May leave at once, in this order: none promises more than `advance` has reported."""
    wake_at_ms: float | None
    """The next deadline; None: nothing is pending."""
    plans: tuple[Plan, ...] = ()


class Owed(NamedTuple):
    """What a link should have brought."""

    text: str
    mark: tuple[object, object]
    """Changes with every progress."""


class Session:
    """The protocol with one peer over one link. Pure state; see the module's docstring.

    Args:
        tail: the newest own frames, shared by all sessions of the replica.
        events: what happens is appended to it.
        members: names of the regions known here, for the hello.
        is_former: whether a region is known to have gone on as a later incarnation than the one given.
        began_here: whether the replica's origin began in this process, which has lost nothing since: then a peer that knows more of it is
            wrong. Else each such word would cost another incarnation.
        wall_ms: the wall clock, for clock offsets only. `now_ms` everywhere is a clock that never goes back.
    """

    # More than thirty attributes would be kept, and looked up, in a plain dict: slower at each turn.
    __slots__ = (
        "_ack", "_arrived", "_beat_vv", "_beats", "_began_here", "_clock_samples", "_dead_after_ms", "_divergence", "_durable",
        "_events", "_heard_ms", "_heartbeat_at_ms", "_heartbeat_number", "_hello_due", "_is_former", "_last_received", "_members",
        "_now", "_of_snapshots", "_offers", "_pending", "_port", "_quiet_released", "_reply", "_round_trips", "_settings",
        "_stall_reported", "_tail", "_told_durable", "_vv", "_wall_ms", "_was_asked", "answered_ms", "close_code", "distance_ms",
        "ended", "features", "found_amnesia", "origin", "own_floor", "own_in", "own_out", "packing", "peer_durable", "peer_members",
        "peer_vv", "quiet", "quiet_seq", "quiet_until_ms", "region", "relay", "relay_changed_ms", "relay_floor", "relay_in",
        "relay_out", "relay_received_ms", "relay_useful_ms", "reports", "round_trip_ms", "said_bye_by_peer", "state", "told",
    )  # fmt: skip

    def __init__(
        self,
        port: ReplicaPort,
        settings: ReplicationSettings,
        tail: OwnTail,
        *,
        now_ms: float,
        wall_ms: Callable[[], float],
        events: list[Event],
        members: Sequence[str] = (),
        is_former: Callable[[Origin], bool] = lambda origin: False,
        began_here: bool = False,
    ) -> None:
        self._port = port
        self._settings = settings
        self._dead_after_ms = settings.dead_after_ms  # at hand: it is asked at each turn
        self._tail = tail
        self._wall_ms = wall_ms
        self._is_former = is_former
        self._began_here = began_here
        self._now = now_ms
        self.state = OPENING
        self.ended = False
        self.origin: Origin | None = None
        self.reports: Reports = Reports({})
        """What members told of origins that end, by this peer's last word; see `membership`."""
        self.told: Reports | None = None
        """What this peer was last told of them."""
        self.region = ""
        self.peer_members: tuple[str, ...] = ()
        self.features: frozenset[str] = frozenset()
        self.close_code: str | None = None
        """Why this session ended: a `Code`, or whatever the peer's Bye said."""
        self.said_bye_by_peer = False
        self.found_amnesia = False
        """The peer knows more of this replica than it does itself."""
        self._events = events
        self._arrived: list[tuple[bool, list[Frame]]] = []
        self.packing = Packing(settings)
        self._offers = features_of(port, settings)
        self._of_snapshots: list[AboutSnapshots] = []

        self._vv = port.vv()
        self._durable = port.durable_vv()
        self.peer_vv = EMPTY_VV
        """What the peer has applied, by its latest message; never goes back."""
        self.peer_durable = EMPTY_VV
        self._told_durable = EMPTY_VV

        self.own_out = OwnStream(port, settings, tail)
        self.relay_out = RelayStream(port, settings)
        self.own_in = Incoming(settings.own_credit_bytes)
        self.relay_in = Incoming(settings.relay_credit_bytes)

        self.relay = Relay.NONE
        self.relay_changed_ms = now_ms
        self.relay_useful_ms = now_ms
        """When the relay was asked for, or last brought what did not come by itself (the drive says so)."""
        self.relay_received_ms = now_ms
        """When the relay last brought anything new."""
        self.relay_floor = EMPTY_VV
        """The floor that the peer named when it refused."""
        self.own_floor = EMPTY_VV
        """The floor that the peer named when it could not send its own."""
        self._was_asked = False
        self._last_received = 0
        self._stall_reported: Frame | None = None

        self.quiet: Ready | None = None
        """What `ready` answers, if nothing is to be done and nothing but time has come in since that was found."""
        self.quiet_until_ms = 0.0
        self.quiet_seq = self._quiet_released = 0
        """The own frames and the log that were released then: what a session finds out by itself."""
        self._pending: dict[str, Message] = {}
        """Decided and not sent yet, one per purpose: `relay`, `subscribe`, `reports`, `bye`."""
        self._hello_due = True
        self._ack = AckTimer(settings)
        self._heartbeat_at_ms = now_ms
        self._heartbeat_number = 0
        self._beat_vv: VersionVector | None = None
        self._beats: dict[int, tuple[float, float]] = {}
        self._reply: tuple[int, float, float] | None = None
        self._heard_ms = now_ms
        self.answered_ms = _NOT_YET_MS
        """When the last heartbeat was sent that was answered: what the peer sent before its answer has come."""
        self.round_trip_ms: float | None = None
        """Of late, on average, with what the peer was busy: how long until it answers."""
        self.distance_ms: float | None = None
        """The least round trip lately: the link's own. What a busy peer adds by answering late is no distance; taken for one, it would be
        sent more ahead."""
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._clock_samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._divergence: VersionVector | None = None
        self._members = members_of(port, members, self._vv)

    # -- inputs -----------------------------------------------------------------------------------------------

    def receive(self, message: Message, now_ms: float) -> None:
        """Take in one message. A peer that breaks the protocol closes this session; nothing is raised."""
        if now_ms > self._now:
            self._now = now_ms
        if self.ended:
            return
        self._heard_ms = self._now
        if type(message) not in _UNANSWERED or self.own_out.seq < self._tail.last_seq or self.relay_out.is_open:
            self.quiet = None
        if self.state is LIVE and type(message) not in _OF_THE_LINK:
            self._receive_live(message)  # type: ignore[arg-type]  # all others are
        elif isinstance(message, Bye):
            self.said_bye_by_peer = True
            if message.code == Code.REMOVED:
                self._event(EventKind.REMOVED, message.reason)
            elif message.code == Code.ENDED:
                self.found_amnesia = True  # this replica goes on from an earlier state of its region: under another origin, then
                self._event(EventKind.AMNESIA, message.reason)
            self._end(message.code, f"the peer ended the link: {message.reason}", say=False)
        elif isinstance(message, Unknown):
            if not message.optional:
                self._end(Code.VERSION, f"messages of kind {message.kind!r} are not known here: upgrade")
        elif isinstance(message, Hello):
            if self.state is OPENING:
                self._receive_hello(message)
            else:
                self._end(Code.PROTOCOL, "a second hello")
        elif self.state is OPENING or isinstance(message, Packed):  # what is packed was unpacked by `packing`
            self._end(Code.PROTOCOL, f"{type(message).__name__} before the hello")
        else:
            self._receive_live(message)

    def receive_garbage(self, error: CorruptionError, now_ms: float) -> None:
        """Bytes came that are not a message."""
        self._now = max(self._now, now_ms)
        if not self.ended:
            self._end(Code.CORRUPT, error.message)

    def tick(self, now_ms: float) -> None:
        """Time has passed."""
        if now_ms > self._now:
            self._now = now_ms
        if self.ended:
            return
        silent_ms = self._now - self._heard_ms
        if self.state is LIVE:
            if silent_ms >= self._dead_after_ms:
                self._end(Code.TIMEOUT, f"silent for {self._dead_after_ms} ms")
        elif silent_ms >= self._settings.hello_timeout_ms:
            self._end(Code.TIMEOUT, f"no hello within {self._settings.hello_timeout_ms} ms")
        if self.own_in.waiting or self.relay_in.waiting:
            self._find_stalls()

    def _find_stalls(self) -> None:
        """Report frames that have waited for long."""
        stalled_ms = self._settings.stalled_ms
        for incoming in (self.own_in, self.relay_in):
            if not incoming.waiting:
                continue
            frame, since_ms = incoming.waiting[0]
            if since_ms + stalled_ms <= self._now and self._stall_reported is not frame:
                self._stall_reported, missing = frame, self._missing(frame)
                text = f"{frame.origin}:{frame.first_seq} waits for {missing} for more than {stalled_ms} ms"
                self._event(EventKind.STALLED, text, missing=str(missing))

    def advance(self, vv: VersionVector, durable: VersionVector, now_ms: float) -> None:
        """What is applied here, and fsynced, by now. The only source of what acks and heartbeats say."""
        if now_ms > self._now:
            self._now = now_ms
        if (vv is self._vv and durable is self._durable) or self.ended:
            return
        peer, former, former_durable = self.origin, self._vv, self._durable
        if peer is not None:
            moved = vv is not former and vv.seq(peer) != former.seq(peer)
            moved = moved or (durable is not former_durable and durable.seq(peer) != former_durable.seq(peer))
            if moved or (self.relay in RELAYING and (vv != former or durable != former_durable)):
                self._ack.note(self._now)
                if self.quiet is not None:
                    self._rest()
        self._vv, self._durable = vv, durable
        if self.own_in.waiting or self.relay_in.waiting:
            self.own_in.advance(vv)
            self.relay_in.advance(vv)
            if self.own_in.grant_due or self.relay_in.grant_due:
                self.quiet = None
        # Else what was committed here, or came from others, does not concern this link: what of it may leave, `ready` finds out by itself.

    def settle(self, relayed: bool, frames: Sequence[Frame]) -> None:
        """The frames of one message were applied, or are held: their sender may go on. Precedes `advance`."""
        incoming = self.relay_in if relayed else self.own_in
        incoming.settled_messages += 1
        self._ack.settled(sum(frame.size for frame in frames), self._now)
        if self.quiet is not None:
            self._rest()

    def ask_relay(self) -> None:
        """Ask the peer for what third origins wrote and this replica lacks."""
        assert self.state is LIVE
        self.quiet = None
        self.relay, self.relay_changed_ms, self.relay_useful_ms = Relay.ASKED, self._now, self._now
        self._was_asked = True
        # By a closing that the peer has not applied it cannot tell that what was closed is here: after a refusal, what it lacked is named.
        asked = {o: n for o in self.relay_floor if (n := self._vv.seq(o))}
        self._pending["relay"] = AskRelay(self._port.control.show(self._vv).join(VersionVector(asked)))
        self._event(EventKind.RELAY_ASKED, f"asked {self.origin} to relay")

    def end_relay(self) -> None:
        """What the peer relayed is no longer needed."""
        if self.relay in RELAYING:
            self.relay, self.relay_changed_ms = Relay.NONE, self._now
            if self.state is LIVE:
                self.quiet = None
                self._pending["relay"] = EndRelay()
                self._event(EventKind.RELAY_ENDED, f"no longer need what {self.origin} relays")

    def resubscribe(self) -> None:
        """The replica dropped frames that it could not hold: have both streams sent anew from what is applied."""
        if self.state is LIVE:
            self.quiet = None
            self.own_in.forget()
            self.relay_in.forget()
            self._pending["subscribe"] = Subscribe(self._port.control.show(self._vv))

    def tell(self, message: Reports) -> None:
        """Send the newest reports on origins that end."""
        if self.state is LIVE:
            self.quiet = None
            self._pending["reports"] = self.told = message

    def close(self, code: Code, reason: str) -> None:
        """End the link from this side."""
        if not self.ended:
            self._end(code, reason)

    # -- outputs ----------------------------------------------------------------------------------------------

    def ready(self) -> Ready:
        """What is to be sent now. Asking twice changes nothing; what the log has dropped is answered, not raised.

        A drive asks all its sessions at each turn, most of which concern one of them: O(1) for a session that had nothing to do, heard
        nothing since, and whose deadline has not come.
        """
        quiet, last_seq = self.quiet, self._tail.last_seq
        released = self._port.released() if self.relay_out.is_open else 0
        if quiet is not None and self._now < self.quiet_until_ms and self.quiet_seq == last_seq and self._quiet_released == released:
            return quiet
        return self.look()

    def look(self) -> Ready:
        """`ready` for who knows that its last answer no longer holds."""
        if self.ended:
            bye = self._pending.get("bye")
            return Ready((bye,) if bye is not None else (), None)
        messages, wake_at_ms, plans = self._due()
        ready = Ready(messages, wake_at_ms, plans)
        if not messages and not plans:
            self._be_quiet(ready, wake_at_ms)
        return ready

    def _be_quiet(self, ready: Ready, wake_at_ms: float) -> None:
        """Nothing is to be done before `wake_at_ms`, if nothing but time comes in."""
        self.quiet, self.quiet_until_ms, self.quiet_seq = ready, wake_at_ms - TIMER_MS, self._tail.last_seq
        self._quiet_released = self._port.released() if self.relay_out.is_open else 0

    def _due(self) -> tuple[tuple[Message, ...], float, tuple[Plan, ...]]:
        """What `ready` says, while the session goes on."""
        out: list[Message] = []
        if self._hello_due:
            out.append(self._hello())
        if self.state is not LIVE:
            return tuple(out), self._heard_ms + self._settings.hello_timeout_ms, ()
        now, wake_at_ms = self._now, self._heard_ms + self._dead_after_ms
        ack_ms, beat_ms, reply = self._ack.due_ms, self._heartbeat_at_ms, self._reply
        ack_due, grant_due = ack_ms <= now + TIMER_MS, self.own_in.grant_due or self.relay_in.grant_due
        has_streams = self.relay_out.is_open or self.own_out.has_more
        if not (has_streams or ack_due or beat_ms <= now or reply or grant_due or self._pending or out):
            if ack_ms < wake_at_ms:
                wake_at_ms = ack_ms
            return (), beat_ms if beat_ms < wake_at_ms else wake_at_ms, ()  # as after most of what comes in
        out.extend(self._pending.values())
        plans: list[Plan] = []
        of_streams: list[Message] = []
        if has_streams:
            plans, of_streams, again_ms = self._plan_streams()
            wake_at_ms = min(wake_at_ms, again_ms)
        carrier = None
        if of_streams and ACK_WITH_FRAMES in self.features:
            carrier = next((i for i, m in enumerate(of_streams) if type(m) is Frames), None)
        if ack_due or (carrier is not None and self._ack.is_pending):
            show = self._port.control.show
            ack = Ack(show(self._vv), show(self._durable), self.own_in.settled_messages, self.relay_in.settled_messages)
            if carrier is None:
                out.append(ack)
            else:
                of_streams[carrier] = msgspec.structs.replace(of_streams[carrier], ack=ack)
        if grant_due:
            out.append(Credit(self.own_in.next_grant, self.relay_in.next_grant))
        if reply is not None:
            number, received_wall_ms, received_ms = reply
            out.append(HeartbeatReply(number, int(received_wall_ms * 1000), int((now - received_ms) * 1000)))
        if not ack_due and ack_ms < wake_at_ms:
            wake_at_ms = ack_ms
        if beat_ms <= now:
            out.append(self._heartbeat())
        elif beat_ms < wake_at_ms:
            wake_at_ms = beat_ms
        return (*out, *of_streams), wake_at_ms, tuple(plans)

    def _heartbeat(self) -> Heartbeat:
        # Settling a digest costs the replica work: only when it is idle, and in the first heartbeat.
        show = self._port.control.show
        digest = self._port.digest() if self._beat_vv in (None, self._vv) else None
        told = None if digest is None else (show(digest[0]), digest[1])
        wall_us = max(0, int(self._wall_ms() * 1000))
        return Heartbeat(self._heartbeat_number, wall_us, show(self._vv), self._port.hlc(), told)

    def _plan_streams(self) -> tuple[list[Plan], list[Message], float]:
        """What both streams are to send now, and when to look again; infinity: when something changes."""
        plans: list[Plan] = []
        out: list[Message] = []
        wake_at_ms = float("inf")
        for stream in (self.own_out, self.relay_out) if self.relay_out.is_open else (self.own_out,):
            flow, distance_ms = stream.flow, self.distance_ms
            if not stream.has_more or not flow.has_room(distance_ms):
                continue
            if (due := flow.flush_due_ms(distance_ms)) > self._now + TIMER_MS:
                wake_at_ms = min(wake_at_ms, due)
                continue
            plan = self._plan(stream)
            if plan is None:
                continue
            plans.append(plan)
            if plan.refused is not None:
                # Of closed origins the peer need not hear, if it has them.
                lacks = VersionVector.adopt(plan.refused.beyond(self.peer_vv))
                out.append(CannotRelay(lacks, own=not plan.relayed))
            elif plan.frames:
                out.append(Frames(plan.relayed, tuple(frame.data for frame in plan.frames)))
                if stream.has_more_after(plan):
                    wake_at_ms = self._now
            elif plan.is_searching:
                wake_at_ms = self._now
        return plans, out, wake_at_ms

    @property
    def next_frames_ms(self) -> float:
        """When frames may next leave, if there are any; infinity: when something is received."""
        if self.state is not LIVE:
            return float("inf")
        flows = (self.own_out.flow, self.relay_out.flow) if self.relay_out.is_open else (self.own_out.flow,)
        return min(flow.flush_due_ms(self.distance_ms) if flow.has_room(self.distance_ms) else float("inf") for flow in flows)

    def accept(self, ready: Ready) -> None:
        """What `ready` returned is being sent. To be called before any further input, if it holds messages or plans."""
        for message in ready.messages:  # not by `match`, which is slow to tell one kind of struct from another
            if type(message) is Heartbeat:
                self._note_beat(message)
            elif type(message) is HeartbeatReply:
                self._reply = None
            elif type(message) is Ack or (type(message) is Frames and message.ack is not None):
                self._ack.sent()
                self._told_durable = self._durable
            elif type(message) is Credit:
                self.own_in.grant(message.own_bytes)
                self.relay_in.grant(message.relay_bytes)
            elif type(message) is Hello:
                self._hello_due = False
        self._pending.clear()
        for plan in ready.plans:
            if plan.relayed:
                self.relay_out.accept(plan, self._now)
                continue
            if plan.refused is not None:
                text = f"{self.origin} lacks own commits up to {plan.refused.seq(self._port.origin)} that the log no longer has"
                self._event(EventKind.NEEDS_SNAPSHOT, text)
            self.own_out.accept(plan, self._now)
        self._rest()

    def _rest(self) -> None:
        """Nothing else is due, as it is being sent: nothing will be before the next ack or heartbeat, unless a stream has more, or the
        peer is silent."""
        wake_at_ms = self._heartbeat_at_ms
        if self._ack.due_ms < wake_at_ms:
            wake_at_ms = self._ack.due_ms
        is_at_rest = self._now + TIMER_MS < wake_at_ms < self._heard_ms + self._dead_after_ms and self.state is LIVE
        if is_at_rest and not (self.own_out.has_more or self.relay_out.is_open):
            self._be_quiet(Ready((), wake_at_ms), wake_at_ms)
        else:
            self.quiet = None

    def _note_beat(self, message: Heartbeat) -> None:
        """A heartbeat is being sent."""
        self._beats[message.number] = (self._now, message.wall_us / 1000)
        if len(self._beats) > SAMPLES:
            del self._beats[next(iter(self._beats))]
        self._beat_vv = self._vv
        self._heartbeat_number += 1
        self._heartbeat_at_ms = self._now + self._settings.heartbeat_ms
        if self._told_durable != self._durable:
            self._ack.note(self._now)  # of others' commits too: the peer keeps its log for whoever lacks them

    def _plan(self, stream: OwnStream | RelayStream) -> Plan | None:
        if isinstance(stream, OwnStream):
            return stream.plan(self._vv)
        assert self.origin is not None
        return stream.plan(self._vv, self.origin, self.peer_vv, self.own_out.seq)

    def take_frames(self) -> list[tuple[bool, list[Frame]]]:
        """The frames received since the last call, per message, with whether they were relayed; to be applied in this order."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def take_of_snapshots(self) -> list[AboutSnapshots]:
        """What was received about snapshots since the last call."""
        found, self._of_snapshots = self._of_snapshots, []
        return found

    def blocked_on(self, arrived_by_ms: float) -> tuple[VersionVector, float, Frame] | None:
        """What the first frame that waits here rests on and is not applied, since when it waits, and the frame.

        Args:
            arrived_by_ms: frames that came later had no chance to be applied yet, and are not looked at.

        Only that first one is looked at: by the order of streams (`progress`), nothing after it can be ready for long
        while it is not, so what it waits for is what this link waits for.
        """
        worst: tuple[VersionVector, float, Frame] | None = None
        if not (self.own_in.waiting or self.relay_in.waiting):
            return None
        for incoming in (self.own_in, self.relay_in):
            if incoming.waiting:
                frame, since = incoming.waiting[0]
                missing = self._missing(frame)
                if since <= arrived_by_ms and missing and (worst is None or since < worst[1]):
                    worst = (missing, since, frame)
        return worst

    def owes(self, own: Sequence[Frame], relayed: Sequence[Frame]) -> Owed | None:
        """What this link should have brought and, by all that is known here, is not on its way: a bug at either end, if it lasts.

        A frame that came and rests on nothing that is missing is applied within a turn; what a peer has fsynced of its own, it may send.
        A disk that is slow or full, and a peer that is far behind, do not show here. O(1).

        Args:
            own, relayed: of each stream, the frames of the first message that is being applied, or is to be; empty: there is none.
        """
        limit_of = self._port.control.limit
        origin, own_in = self.origin, self.own_in
        for incoming, under_way in ((own_in, own), (self.relay_in, relayed)) if own_in.waiting or self.relay_in.waiting else ():
            if incoming.waiting:
                frame = incoming.waiting[0][0]
                limit = limit_of(frame.origin)  # beyond it nothing is applied, as the members agreed
                if not self._missing(frame) and frame not in under_way and (limit is None or frame.last_seq <= limit):
                    text = f"{frame.origin}:{frame.first_seq} came from {origin}, rests on nothing that is missing, and is not applied"
                    return Owed(text, (frame.origin, frame.first_seq))
        if own_in.waiting or origin is None:
            return None
        there, here = self.peer_durable.seq(origin), self._vv.seq(origin)
        if there <= here or not self.sends_own or limit_of(origin) is not None:
            return None
        text = f"{origin} has fsynced its commits up to {there}, and after {here} none comes"
        return Owed(text, (here, own_in.received_messages))

    def starve(self, text: str) -> None:
        """End the link because of what `owes` has said for too long: the next one begins with what both sides have."""
        if not self.ended:
            self._alarm(Code.STARVED, text)

    def brings_all(self) -> bool:
        """No relay is open or asked for, and all that came is applied."""
        return self.relay in _NO_RELAY and not (self.own_in.waiting or self.relay_in.waiting)

    def waits_with(self, origin: str | int, seq: str | int) -> bool:
        """Whether the frame of an origin that begins at a seq came over this link and is not applied."""
        return any(
            frame.origin == origin and frame.first_seq == seq for incoming in (self.own_in, self.relay_in) for frame, _ in incoming.waiting
        )

    @property
    def sends_own(self) -> bool:
        """Whether what the peer itself writes comes over this link, as far as one can know."""
        if self.state is not LIVE:
            return False
        origin, floor = self.origin, self.own_floor
        return origin is not None and (floor is EMPTY_VV or floor.seq(origin) <= self._vv.seq(origin))

    @property
    def refuses_to_relay(self) -> bool:
        """Whether the peer's log, as far as it said, begins beyond what is applied here: no longer, once a snapshot was installed."""
        return self.relay is Relay.REFUSED and not self.relay_floor <= self._vv

    def statistics(self) -> PeerStatistics:
        """What is known of the peer. Needs its hello."""
        assert self.origin is not None
        if self.state is not LIVE:
            return PeerStatistics(region=self.region, origin=self.origin, state=self.state)
        tail, applied = self._tail, self.peer_vv.seq(self._port.origin)
        return PeerStatistics(
            region=self.region,
            origin=self.origin,
            state=self.state,
            applied_seq=applied,
            durable_seq=self.peer_durable.seq(self._port.origin),
            behind_commits=max(0, tail.last_seq - applied),
            behind_bytes=tail.behind_bytes(applied),
            behind_ms=tail.behind_ms(applied, self._now),
            round_trip_ms=self.round_trip_ms,
            clock_offset_ms=min(self._clock_samples)[1] if self._clock_samples else None,
            heard_ms_ago=self._now - self._heard_ms,
            in_flight_messages=self.own_out.flow.in_flight + self.relay_out.flow.in_flight,
            waiting_frames=len(self.own_in.waiting) + len(self.relay_in.waiting),
            sent_bytes=self.packing.sent_bytes,
            sent_wire_bytes=self.packing.sent_wire_bytes,
            received_bytes=self.packing.received_bytes,
            received_wire_bytes=self.packing.received_wire_bytes,
            is_compressing=self.packing.is_on,
            relay_in=self.relay,
            relay_out=self.relay_out.is_open,
            needs_snapshot=self.own_out.needs_snapshot,
            below_floor=not self.sends_own,
            vv=self.peer_vv,
            durable=self.peer_durable,
        )

    # -- the hello --------------------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        return make_hello(
            self._port,
            self._vv,
            features=self._offers,
            members=self._members,
            wall_ms=self._wall_ms(),
            own_credit=self.own_in.granted_bytes,
            relay_credit=self.relay_in.granted_bytes,
        )

    def _receive_hello(self, hello: Hello) -> None:
        if (why := objection(hello, self._port)) is not None:
            return self._end(*why)
        self.origin, self.region, self.peer_members = hello.origin, hello.region, hello.members
        if (why := self._refusal()) is not None:
            return self._end(*why)
        self.features = frozenset(self._offers) & frozenset(hello.features)
        self.packing.agreed = ZLIB in self.features
        if not self._learn(hello.vv):
            return None
        if (fork := find_fork(hello, self._port, self._vv)) is not None:
            return self._alarm(Code.FORK, fork[0], **fork[1])
        self.own_out.flow.grant(hello.own_credit)
        self.relay_out.flow.grant(hello.relay_credit)
        self.own_out.restart(self.peer_vv.seq(self._port.origin))
        self._last_received = self._vv.seq(hello.origin)
        self._heartbeat_at_ms = self._now
        self.state = LIVE
        self._event(EventKind.LIVE, f"{hello.origin} is connected", behind=self._vv.missing_from(hello.vv))
        return None

    def _refusal(self) -> tuple[Code, str] | None:
        assert self.origin is not None
        return refusal(self._port, self.origin, self._vv, is_former=self._is_former(self.origin))

    def check_removed(self) -> None:
        """End the link if the peer was removed since it was opened."""
        if self.state is LIVE and (why := self._refusal()) is not None:
            self._end(*why)

    def _learn(self, vv: VersionVector) -> bool:
        """Take in what the peer says it has applied; False if the session ended by that."""
        named, vv = vv, self._port.control.complete(vv)
        if vv == self.peer_vv:
            return True
        if not (vv is named and self.peer_vv <= vv):  # nearly always
            # What it no longer names it has closed, but for the two that talk here; what it names must not go back.
            known, talking = self.peer_vv.seq, (self.origin, self._port.origin)
            if any([n < known(o) for o, n in named.pairs()]) or any(o and named.seq(o) < known(o) for o in talking):
                self._end(Code.PROTOCOL, "the peer's version vector went back")
                return False
            vv = self.peer_vv.join(vv)
        if len(vv) > messages.ORIGINS_MAX + len(self._port.control.closed):
            self._end(Code.PROTOCOL, f"the peer named {len(vv):,} origins, the limit is {messages.ORIGINS_MAX:,}")
            return False
        origin = self._port.origin
        theirs, ours = vv.seq(origin), self._port.vv().seq(origin)
        if theirs > ours:
            return self._find_amnesia(theirs, ours)
        self.peer_vv = vv
        self.own_out.learn(theirs)
        return True

    def _find_amnesia(self, theirs: int, ours: int) -> bool:
        if self._began_here:
            what = f"{self.origin} claims to know {self._port.origin} up to {theirs}, which began here and has {ours} commits"
            self._end(Code.PROTOCOL, f"{what}: it is wrong")
            return False
        self.found_amnesia = True
        text = f"{self.origin} knows {self._port.origin} up to {theirs}, this replica only up to {ours}: commits were lost here"
        self._alarm(Code.AMNESIA, text, theirs=theirs, ours=ours)
        return False

    def _check_own_report(self, message: Reports) -> None:
        """Whether this replica had told under its id that it has more of others than it has: then its disk was put back to an earlier
        state, and what it promised by its acks and reports no longer holds. As another incarnation it promises anew."""
        told = message.reports.get(self._port.origin)
        if not told or self._began_here:  # what began in this process knows what it has told
            return None
        applied = self._port.vv()
        for origin, (seq, _) in told.items():
            if seq > applied.seq(origin):
                ours = applied.seq(origin)
                self.found_amnesia = True
                text = f"this replica had told that it has {origin} up to {seq}, and has it up to {ours}: commits were lost here"
                return self._alarm(Code.AMNESIA, text, theirs=seq, ours=ours)
        return None

    def _check_own_end(self, message: Reports) -> None:
        """Whether a member that this replica cannot reach has frozen it, since it met another incarnation of the region: what is told of
        that here, a link to that member would say at its hello. Not if that other one tells something itself: then two run as one region.
        """
        own = self._port.origin
        later = message.ended_by.get(own)
        if later is not None and later not in message.reports and not self.ended:
            self.found_amnesia = True
            text = f"{own} has ended: a member takes no more of it, since it met {later}; it must go on as another incarnation"
            self._alarm(Code.AMNESIA, text, later=later)

    # -- live -------------------------------------------------------------------------------------------------

    def _receive_live(self, message: Live) -> None:
        # The commonest kinds first, by their types: `match` is slow to tell one kind of struct from another.
        if type(message) is Ack:
            self._receive_ack(message)
        elif type(message) is Heartbeat:
            if self._learn(message.vv):
                self._reply = (message.number, max(0.0, self._wall_ms()), self._now)
                self._compare_digest(message)
        elif type(message) is HeartbeatReply:
            self._receive_reply(message)
        elif type(message) is Frames:
            if message.ack is not None:
                self._receive_ack(message.ack)
            if not self.ended:
                self._receive_frames(message)
        else:
            self._receive_seldom(message)

    def _receive_seldom(self, message: Live) -> None:
        match message:
            case Credit():
                if not self.own_out.flow.grant(message.own_bytes) or not self.relay_out.flow.grant(message.relay_bytes):
                    self._end(Code.PROTOCOL, "credit was taken back")
            case Subscribe():
                if self._learn(message.vv):
                    self.own_out.restart(message.vv.seq(self._port.origin))
                    if self.relay_out.is_open:
                        self.relay_out.begin()
            case AskRelay():
                if self._learn(message.vv):
                    self.relay_out.begin()
            case EndRelay():
                self.relay_out.end()
            case CannotRelay():
                self._receive_refusal(message)
            case Reports():
                self.reports = message
                self._check_own_report(message)
                self._check_own_end(message)
            case AskSnapshot() | Chunk() | ChunkAck() | EndSnapshot() | CannotSnapshot():
                if SNAPSHOT in self.features:
                    self._of_snapshots.append(message)
                else:
                    self._end(Code.PROTOCOL, "a message about snapshots, which were not agreed on")
            case Ack() | Frames() | Heartbeat() | HeartbeatReply():
                raise AssertionError("it is received already")
            case _:
                assert_never(message)

    def _receive_ack(self, ack: Ack) -> None:
        if not self.own_out.flow.ack(ack.own_messages) or not self.relay_out.flow.ack(ack.relay_messages):
            self._end(Code.PROTOCOL, "an ack for messages that were not sent")
        elif self._learn(ack.applied) and (durable := self._port.control.complete(ack.durable)) != self.peer_durable:
            self.peer_durable = durable

    def _receive_refusal(self, message: CannotRelay) -> None:
        assert self.origin is not None
        if message.own:
            self.own_floor = message.floor
            if not self.sends_own:
                text = f"{self.origin} no longer has its own commits up to {message.floor.seq(self.origin)}, which are missing here"
                self._event(EventKind.NEEDS_SNAPSHOT, text)
        elif self.relay in RELAYING:
            self.relay, self.relay_changed_ms, self.relay_floor = Relay.REFUSED, self._now, message.floor
            self._event(EventKind.RELAY_REFUSED, f"{self.origin} cannot relay: its log begins at {message.floor}")

    def _receive_frames(self, message: Frames) -> None:
        incoming = self.relay_in if message.relayed else self.own_in
        if not message.frames:
            return self._end(Code.PROTOCOL, "a message of no frames")
        if message.relayed and not self._was_asked:
            return self._end(Code.PROTOCOL, "relayed frames that nobody asked for")
        if not incoming.take(sum(map(len, message.frames))):
            return self._end(Code.OVERDRAWN, f"{incoming.received_bytes:,} bytes were sent, {incoming.granted_bytes:,} were granted")
        try:
            frames = [Frame.decode(data) for data in message.frames]
        except (CorruptionError, IncompatibleFormatError) as e:
            return self._end(Code.CORRUPT if isinstance(e, CorruptionError) else Code.VERSION, e.message)
        if not all(map(self._relayed_is_fit if message.relayed else self._own_is_fit, frames)):
            return None
        incoming.wait_for(frames, self._now)
        incoming.advance(self._vv)
        if incoming.grant_due:
            self.quiet = None
        self._arrived.append((message.relayed, frames))
        if message.relayed:
            if any(frame.last_seq > self._vv.seq(frame.origin) for frame in frames):
                self.relay_received_ms = self._now
            if self.relay is Relay.ASKED:
                self.relay, self.relay_changed_ms = Relay.OPEN, self._now
        return None

    def _own_is_fit(self, frame: Frame) -> bool:
        """Whether a frame may come as the peer's own; otherwise the session has ended."""
        if frame.origin != self.origin:
            self._end(Code.PROTOCOL, f"a frame of {frame.origin} among the own frames of {self.origin}")
            return False
        if frame.first_seq > self._last_received + 1 and frame.first_seq > self._vv.seq(frame.origin) + 1:
            after = max(self._last_received, self._vv.seq(frame.origin))
            self._end(Code.PROTOCOL, f"a gap: {frame.origin}:{frame.first_seq} follows {after}")
            return False
        if not self._is_fit(frame):
            return False
        self._last_received = frame.last_seq
        return True

    def _relayed_is_fit(self, frame: Frame) -> bool:
        if frame.origin == self.origin or frame.origin == self._port.origin:
            self._end(Code.PROTOCOL, f"a relayed frame of {frame.origin}")
            return False
        return self._is_fit(frame)

    def _is_fit(self, frame: Frame) -> bool:
        port = self._port
        if frame.cluster != port.cluster or frame.shard != port.shard:
            self._end(Code.PROTOCOL, f"a frame of cluster {frame.cluster[:64]!r}, shard {frame.shard}")
            return False
        seen = frame.context.seq(port.origin)
        if seen > self._vv.seq(port.origin) and seen > (ours := port.vv().seq(port.origin)):
            return self._find_amnesia(seen, ours)
        return True

    def _missing(self, frame: Frame) -> VersionVector:
        """What a frame rests on and is not applied."""
        missing = frame.context.beyond(self._vv)
        if frame.first_seq > self._vv.seq(frame.origin) + 1:
            missing[frame.origin] = frame.first_seq - 1
        return VersionVector.adopt(missing)

    def _receive_reply(self, reply: HeartbeatReply) -> None:
        beat = self._beats.pop(reply.number, None)
        if beat is None:
            return
        sent_ms, sent_wall_ms = beat
        round_trip_ms = max(0.0, self._now - sent_ms - reply.waited_us / 1000)
        self.round_trip_ms = round_trip_ms if self.round_trip_ms is None else self.round_trip_ms + (round_trip_ms - self.round_trip_ms) / 8
        self._note_round_trip(round_trip_ms)
        there = reply.received_wall_us / 1000
        offset_ms = ((there - sent_wall_ms) + (there + reply.waited_us / 1000 - self._wall_ms())) / 2
        self._clock_samples.append((round_trip_ms, offset_ms))
        self.answered_ms = sent_ms

    def _note_round_trip(self, round_trip_ms: float) -> None:
        self._round_trips.append(round_trip_ms)
        self.distance_ms = self.packing.round_trip_ms = min(self._round_trips)
        self._ack.delay_ms = max(self._settings.ack_delay_ms, self.own_out.flow.pace_ms(self.distance_ms))

    def share_pace(self, peers: int) -> None:
        """So many peers are sent what is written here."""
        self.own_out.flow.sharers = self.relay_out.flow.sharers = max(1, peers)

    def recall(self, distance_ms: float) -> None:
        """Take what an earlier link to this region measured for a first round trip: the peer that comes back may be busy from the start."""
        if self.distance_ms is None:
            self._note_round_trip(distance_ms)

    def _compare_digest(self, beat: Heartbeat) -> None:
        """Equal vectors must have equal digests; anything else is divergence, whoever is to blame."""
        if beat.digest is None:
            return
        vv, theirs = self._port.control.complete(beat.digest[0]), beat.digest[1]
        if vv != self._vv or (mine := self._port.digest()) is None:
            return
        if vv == mine[0] and theirs != mine[1] and vv != self._divergence:
            self._divergence = vv
            text = f"this replica and {self.origin} differ at {vv}: digest {mine[1]} here, {theirs} there: run `crdtkv verify`"
            self._event(EventKind.DIVERGENCE, text, vv=str(vv), ours=mine[1], theirs=theirs)

    # -- the end ----------------------------------------------------------------------------------------------

    def _event(self, kind: EventKind, text: str, **details: str | int) -> None:
        self._events.append(Event(kind, self.origin, text, details))

    def _alarm(self, code: Code, text: str, **details: str | int) -> None:
        self._event(EventKind(code.value), text, **details)
        self._end(code, text)

    def quarantine(self, text: str, **details: str | int) -> None:
        """The replica found other content under a known name in what this peer sent."""
        if not self.ended:
            self._alarm(Code.FORK, text, **details)

    def _end(self, code: str, reason: str, *, say: bool = True) -> None:
        self.quiet = None
        self.state, self.ended = State.QUARANTINED if code == Code.FORK else State.CLOSED, True
        self.close_code = str(code)
        self._pending.clear()
        if say:
            self._pending["bye"] = Bye(str(code), reason[:1_000])
        self.own_in.forget()
        self.relay_in.forget()
        self._arrived.clear()
        self._event(EventKind.CLOSED, reason, code=str(code))
