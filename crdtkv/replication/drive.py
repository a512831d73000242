"""The one loop for all peers of a replica, itself sans-IO: node, in-process transport and simulator supply only the I/O.

    feed inputs      connect, receive, disconnect, local_commits, applied, tick
    work = ready()   what to send to whom, what to apply, which links to close, when to wake
    accept(work)     before any further input; then do it: send, apply (in a thread if it blocks), close

Two short cuts for who has a turn for every write. `ready_to_apply` is that part of `ready`, so that what is applied is told of, and
relayed, in the messages of the same turn. `rests_until` says until when local commits alone call for nothing, as every link waits
for its pace or for an ack.

At most one group of frames is being applied: what arrives meanwhile gathers into the next, a message of each peer in turn.
After `port.apply` the I/O reports `applied` or `apply_failed`; only then acks say so.

**Which peer to ask for a relay** is decided here, because it takes all peers to see it. A *need* is an origin of which
something is known to exist and is not applied, and which does not come by itself: a frame waits here for it, or a peer that
has it says so while no live link to that origin sends it. A need that makes no progress for `relay_delay_ms` is asked for:
one peer at a time, the nearest that has it; the next one if that refuses, or brings nothing for `relay_timeout_ms`. A relay
ends when for `relay_linger_ms` it brought nothing but what came by itself as well. When all that have it refuse, only a
snapshot helps: that is reported.

**What should have come.** All waits above end by something that comes. In case it never does, by a bug: a live link over which something
is owed that nothing accounts for (`Session.owes`), and that makes no progress, is ended, with an alarm. The next one begins with what both
sides have. A link that is far, slow or cut is not to blame, so time counts only as far as answers prove it: from when a heartbeat of since
then was answered until the answer to one that was sent `starved_ms` later. Messages of one link keep their order, so between these two the
peer has sent nothing. `waits_for` tells people what has been missing for some seconds.

**Amnesia.** Once a peer knows more of this replica than it does itself, `amnesia` says so, and nothing may be committed any
more under the present origin: the I/O layer has the replica take a new incarnation and calls `renewed`. All links end and are
dialled again; what was lost is then a need like any other, of an origin that nobody continues, and comes back by relay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Final, NamedTuple

import msgspec

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, region_of
from crdtkv.core.control import Steering
from crdtkv.core.frame import Frame
from crdtkv.core.replica import Applied
from crdtkv.errors import CorruptionError, CrdtkvError
from crdtkv.replication.membership import NO_STEERING, Membership
from crdtkv.replication.messages import (
    Ack,
    AskSnapshot,
    CannotSnapshot,
    Chunk,
    ChunkAck,
    Credit,
    EndSnapshot,
    Frames,
    Heartbeat,
    HeartbeatReply,
    Message,
    Reports,
)
from crdtkv.replication.packing import Packing
from crdtkv.replication.port import ReplicaPort
from crdtkv.replication.progress import TIMER_MS, OwnTail
from crdtkv.replication.session import Owed, Ready, Session
from crdtkv.replication.settings import ReplicationSettings
from crdtkv.replication.snapshot import Job, Transfers
from crdtkv.replication.status import LIVE, OPENING, RELAYING, Code, Event, EventKind, PeerStatistics, State

Link = Hashable
"""Whatever the I/O layer names a connection by; a new connection has a new name."""

SHORT_BYTES_MAX: Final = 64 << 10
"""So many bytes of frames are applied before anything else is sent: a millisecond or two."""

_NEVER_MS: Final = float("inf")
# Kinds of messages, as sets of their types: asked of every message.
_UNANSWERED: Final = frozenset[type[Message]]((Ack, HeartbeatReply))
_ABOUT_SNAPSHOTS: Final = frozenset[type[Message]]((AskSnapshot, CannotSnapshot, Chunk, ChunkAck, EndSnapshot))
_NO_NEWS: Final = frozenset[type[Message]]((Ack, HeartbeatReply, Heartbeat))
"""These tell nothing but vectors, if anything."""
_NOT_REVIEWED: Final = frozenset[type[Message]]((Frames, Ack, Credit, HeartbeatReply, Chunk, ChunkAck))
"""After these it is not looked anew at what is missing: what acks tell of others' commits, the next heartbeat tells as well."""
REMEMBERED_MAX: Final = 64
"""Regions whose peers are listed in `statistics`, and whose distance is known, after they are gone."""


_CODES: Final = frozenset(Code)


class Closed(msgspec.Struct, frozen=True):
    """A link to close once its messages are sent."""

    link: Link
    origin: Origin | None
    code: str
    """A `session.Code`, or whatever else the peer's Bye said."""

    @property
    def permanent(self) -> bool:
        """Whether dialling again soon cannot help."""
        return self.code in _CODES and Code(self.code).permanent


class Work(msgspec.Struct, frozen=True):
    """What is to be done. Links with nothing to be sent are left out."""

    messages: Mapping[Link, tuple[Message, ...]]
    apply: tuple[Frame, ...]
    """For `port.apply`, in this order; then `applied` or `apply_failed`, which is due even if the links are gone by then."""
    closed: tuple[Closed, ...]
    events: tuple[Event, ...]
    wake_at_ms: float | None
    """When to `tick` at the latest; None: nothing is pending."""
    steering: Steering | None = None
    """For `port.steer`, after the messages; then `local_commits`."""
    jobs: tuple[Job, ...] = ()
    """What snapshots need done; then `job_done` or `job_failed`, in any order."""
    sends: int = 0
    readies: Mapping[Link, Ready] = msgspec.field(default_factory=dict)
    packings: Mapping[Link, Packing] = msgspec.field(default_factory=dict)
    arrivals: tuple[_Arrival, ...] = ()
    is_empty: bool = False
    """Nothing is to be done but to wake."""

    def encoded(self, link: Link) -> list[bytes]:
        """The bytes of the messages for a link, one each. To be asked once: they are counted, and sent."""
        return list(map(self.packings[link].encode, self.messages[link]))


class _Arrival(NamedTuple):
    """One message of frames on its way to be applied."""

    link: Link
    session: Session
    relayed: bool
    frames: list[Frame]


class _Debt(NamedTuple):
    owed: Owed
    since_ms: float
    answered_ms: float
    """When a heartbeat was answered that was sent since then: the peer had all that was sent before it. Infinite: none was yet."""


class _Need(NamedTuple):
    applied: int
    """What was applied of the origin when the waiting began; progress begins it anew."""
    since_ms: float


class _Peer:
    """A link and its session."""

    __slots__ = ("dialed", "session", "writable")

    def __init__(self, session: Session, dialed: bool) -> None:
        self.session = session
        self.dialed = dialed
        self.writable = True


def _s(now_ms: float, since_ms: float) -> str:
    return f"{(now_ms - since_ms) / 1000:.0f} s"


def _frames_of(arrivals: Sequence[_Arrival]) -> tuple[Frame, ...]:
    return tuple([frame for arrival in arrivals for frame in arrival.frames])


class Drive:
    """All peers of one replica. Not thread-safe: one loop calls it; `port` may be written to by others meanwhile.

    Args:
        now_ms: a clock that never goes back; every input has it. Deadlines are compared with it.
        wall_ms: the wall clock, for hellos and clock offsets only.
        members: names of the regions of the cluster, as far as configured.
    """

    # More than thirty attributes would be kept, and looked up, in a plain dict: slower at each turn.
    __slots__ = (
        "_agreed_as_of", "_agreed_with", "_alone", "_applied_by_ms", "_apply_at_ms", "_apply_began_ms", "_applying", "_began_here",
        "_checked_for", "_debts", "_direct", "_distances", "_durable", "_events", "_groups", "_is_deferred", "_is_quiet", "_members",
        "_needs", "_news", "_news_agreed", "_news_reviewed", "_now", "_peers", "_port", "_queue", "_relay_wake_ms", "_remembered",
        "_rests", "_resubscribe_after_ms", "_resubscribe_at_ms", "_reviewed_as_of", "_served", "_settings", "_sharing", "_snapshot_for",
        "_tail", "_tried", "_vv", "_wall_ms", "amnesia", "membership", "transfers",
    )  # fmt: skip

    def __init__(
        self, port: ReplicaPort, settings: ReplicationSettings, *, now_ms: float, wall_ms: Callable[[], float], members: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._settings = settings.validate()
        self._wall_ms = wall_ms
        self._members = tuple(members)
        self._now = now_ms
        self._tail = OwnTail(port, settings, now_ms)
        self._vv = port.vv()
        self._durable = port.durable_vv()
        self._peers: dict[Link, _Peer] = {}
        self._events: list[Event] = []
        self.membership = Membership(port, members)
        self._agreed_as_of: tuple[int, int] | None = None
        """The control's version and its count of frozen origins at the last look."""
        self._reviewed_as_of: object = None
        """What the last review of the membership rested on."""
        self._checked_for: object = None
        """Who was present by the review before it, when it was last checked who of the peers has gone on as another."""
        self._agreed_with: tuple[int, list[Session]] | None = None
        """How many origins there were at the last look, and the live sessions, if nothing ends, nobody goes, and that look found nothing
        new: while both are the same, another one would find nothing either."""
        self._remembered: dict[str, tuple[Origin, State]] = {}
        """Per region that was once connected: who it was, and how the last link to it ended."""
        self._distances: dict[str, float] = {}
        """Per region, how far it was by the last link that measured it."""

        self._queue: list[_Arrival] = []
        """In order of arrival."""
        self._groups = 0
        self._served: dict[Link, int] = {}
        """The number of the last group that held something of a link."""
        self._alone: list[list[_Arrival]] = []
        """Groups that failed together, now one link each: who is to blame shows."""
        self._applying: tuple[_Arrival, ...] | None = None
        self._apply_began_ms = self._applied_by_ms = now_ms
        self._apply_at_ms = now_ms
        """Nothing is applied before: the replica could not take it."""
        self._is_deferred = False
        """It could not take what it was given last."""

        self._direct: frozenset[Origin] = frozenset()
        """Origins whose own stream comes over a live link."""
        self._sharing = 0
        """How many those are: so many share the pace of what is written here."""
        self._needs: dict[Origin, _Need] = {}
        self._debts: dict[Link, _Debt] = {}
        """What links owe, and since when there was no progress of it."""
        self._tried: dict[Link, float] = {}
        """Peers whose relay brought nothing, and when that was found."""
        self._snapshot_for: set[Origin] = set()
        self.transfers = Transfers(port, settings, self._events, wall_ms)
        self._relay_wake_ms: float | None = None
        self._resubscribe_at_ms: float | None = None
        self._resubscribe_after_ms = settings.resubscribe_ms
        self._news = 1
        """Counts what comes that `_agree` or `_review` look at."""
        self._news_agreed = self._news_reviewed = 0
        """How much it was when `_agree` found nothing to do, and at the last `_review`: until more comes, the one would find nothing again,
        and the other nothing before the time that it named."""
        self._is_quiet = False
        """`ready` would find nothing to do before `_rests`, the deadline of every link, if nothing comes until then."""
        self._began_here = False
        """The present origin began in this process: whoever says to know more of it is wrong."""
        self._rests: float | None = None
        """When the last `ready` would be woken whatever happens here; None: something came since."""
        self.amnesia: str | None = None
        """What shows that the replica has lost commits of its own: it must take a new incarnation; then `renewed`."""

    # -- inputs -----------------------------------------------------------------------------------------------

    def connect(self, link: Link, now_ms: float, *, dialed: bool) -> None:
        """A link is open, `dialed` by this side or accepted from the other."""
        self._begin(now_ms)
        assert link not in self._peers
        session = Session(
            self._port,
            self._settings,
            self._tail,
            now_ms=self._now,
            wall_ms=self._wall_ms,
            events=self._events,
            members=self._members,
            is_former=self.membership.is_former,
            began_here=self._began_here,
        )
        session.share_pace(self._sharing)
        self._peers[link] = _Peer(session, dialed)

    def disconnect(self, link: Link, now_ms: float, reason: str = "the connection ended") -> None:
        """A link is gone. A link that is not known (any more) is ignored."""
        self._begin(now_ms)
        peer = self._peers.pop(link, None)
        if peer is not None:
            self._news += 1
            self._forget(link, peer.session)
            if not peer.session.ended:
                self._events.append(Event(EventKind.CLOSED, peer.session.origin, reason, {"code": "disconnected"}))
            self._review()

    def receive(self, link: Link, data: bytes | Message, now_ms: float) -> None:
        """A message came in; whatever it holds, nothing is raised: a link that breaks the protocol is closed."""
        rests = self._rests if self._is_quiet else None
        self._begin(now_ms)
        peer = self._peers.get(link)
        if peer is None:
            return
        session, before = peer.session, peer.session.state
        vv, durable = session.peer_vv, session.peer_durable
        try:
            message = session.packing.decode(data) if isinstance(data, bytes) else data
        except CorruptionError as e:
            self._news += 1
            session.receive_garbage(e, self._now)
            return
        session.receive(message, self._now)
        kind = type(message)
        if not (kind in _NO_NEWS and session.peer_vv is vv and session.peer_durable is durable and session.state is before):
            self._news += 1
        if kind in _UNANSWERED and session.quiet is not None and not self._events:
            self._rests, self._is_quiet = rests, rests is not None  # nothing came of it
            return
        if kind is Frames:
            for relayed, frames in session.take_frames():
                self._queue.append(_Arrival(link, session, relayed, frames))
                if relayed and self._brings_more(frames):
                    session.relay_useful_ms = self._now
        elif kind in _ABOUT_SNAPSHOTS:
            for one in session.take_of_snapshots():
                self.transfers.receive(link, session, one, self._now)
        if session.found_amnesia and before in (OPENING, LIVE) and self.amnesia is None:
            self.amnesia = next(e.text for e in reversed(self._events) if e.kind is EventKind.AMNESIA)
        if is_new := before is OPENING and session.state is LIVE:
            if (distance_ms := self._distances.get(session.region)) is not None:
                session.recall(distance_ms)
            self._drop_duplicates(link, peer)
        if kind is Reports:
            self.membership.receive(session.reports)
            self._agree()
        elif kind not in _NOT_REVIEWED:
            if is_new and session.state is LIVE:
                self._agree()
            if self._news_reviewed != self._news:
                self._review()

    def _brings_more(self, frames: Sequence[Frame]) -> bool:
        """Whether some of these are new here, and do not come by themselves."""
        return any(f.origin not in self._direct and f.last_seq > self._vv.seq(f.origin) for f in frames)

    def local_commits(self, now_ms: float) -> None:
        """Something was committed here, released, or became durable. Cheap; many changes may share one call."""
        rests, last_seq = self._rests if self._is_quiet else None, self._tail.last_seq
        self._begin(now_ms)
        self._refresh()
        if (
            self._agreed_as_of != (self._port.control.version, len(self._port.control.frozen))
            or self.membership.steering is not NO_STEERING
        ):
            self._agree()
        elif rests is not None and self._tail.last_seq == last_seq:
            # Nothing more may leave; what peers are to be told is told in time.
            self._rest(rests, self._peers)

    def applied(self, result: Applied, now_ms: float) -> None:
        """What came of the last `Work.apply`."""
        self._begin(now_ms)
        self._news += 1
        group, before = self._end_apply(), self._vv
        self._applied_by_ms = self._apply_began_ms
        for arrival in group:
            arrival.session.settle(arrival.relayed, arrival.frames)
        self._refresh()
        if self._vv != before:
            self._resubscribe_after_ms = self._settings.resubscribe_ms
        if result.dropped and self._resubscribe_at_ms is None:
            self._resubscribe_at_ms = self._now + self._resubscribe_after_ms
            self._resubscribe_after_ms = min(2 * self._resubscribe_after_ms, max(self._settings.relay_retry_ms, self._resubscribe_after_ms))
        if result.held or result.dropped or self._needs:
            self._review()
        if self._agreed_as_of is None or self._agreed_as_of[0] != self._port.control.version:
            self._agree()

    def apply_failed(self, error: CrdtkvError, now_ms: float) -> None:
        """The last `Work.apply` raised. Who is to blame loses its link; `details["fork"]` of the error makes it a quarantine.

        The frame to blame, which `details` name by origin and seq, may be one that was held and that the group only made
        ready. Else, with several links in the group and content to blame, each link's frames are tried alone first.
        """
        self._begin(now_ms)
        self._news += 1
        group = self._end_apply()
        self._refresh()
        links = list(dict.fromkeys(arrival.link for arrival in group))
        details = {k: v for k, v in error.details.items() if isinstance(v, (str, int))}
        held = self._held_by(details, group) if isinstance(error, CorruptionError) else []
        for session in held:
            self._blame(session, error, details)
        if held or (isinstance(error, CorruptionError) and len(links) > 1):
            self._alone += [[arrival for arrival in group if arrival.link == link] for link in links]
            return
        for session in {id(arrival.session): arrival.session for arrival in group}.values():
            self._blame(session, error, details)

    @staticmethod
    def _blame(session: Session, error: CrdtkvError, details: Mapping[str, str | int]) -> None:
        if details.get("fork"):
            session.quarantine(error.message, **details)
        else:
            session.close(Code.APPLY, f"received frames could not be applied: {error.message}")

    def _held_by(self, details: Mapping[str, str | int], group: Sequence[_Arrival]) -> list[Session]:
        """Over whose links a frame came that is named and not in the group: that only made it ready."""
        origin, seq = details.get("origin"), details.get("seq")
        if origin is None or seq is None or any(frame.origin == origin and frame.first_seq == seq for a in group for frame in a.frames):
            return []
        return [peer.session for peer in self._peers.values() if peer.session.waits_with(origin, seq)]

    def apply_deferred(self, now_ms: float) -> None:
        """The last `Work.apply` could not be done for now (a full disk) and changed nothing: it is due again a little later.

        What it holds keeps its credit, so that peers stop sending, and nothing is lost.
        """
        self._begin(now_ms)
        self._news += 1
        group = self._end_apply()
        self._queue[:0] = [arrival for arrival in group if not arrival.session.ended]
        self._apply_at_ms = self._now + self._settings.apply_retry_ms
        self._is_deferred = True

    def renewed(self, now_ms: float) -> None:
        """The replica goes on under a new origin, as it must after `amnesia`: peers learn it from a new hello."""
        self._begin(now_ms)
        self.amnesia, self._began_here, self._agreed_with = None, True, None
        self._tail = OwnTail(self._port, self._settings, self._now)
        self._vv = self._port.vv()
        self._news += 1
        for peer in self._peers.values():
            peer.session.close(Code.RENEWED, "this replica has a new origin")

    def job_done(self, job: Job, result: object, now_ms: float) -> None:
        """What came of one of `Work.jobs`."""
        self._begin(now_ms)
        self.transfers.done(job, result, self._now)
        if job.kind == "install":
            self._refresh()
            self._review()

    def job_failed(self, job: Job, error: CrdtkvError, now_ms: float) -> None:
        """One of `Work.jobs` raised."""
        self._begin(now_ms)
        self.transfers.failed(job, error, self._now)
        self._review()

    def set_writable(self, link: Link, writable: bool, now_ms: float) -> None:
        """Whether the link takes messages: while it does not, what is to be sent gathers, and stays bounded."""
        self._begin(now_ms)
        if (peer := self._peers.get(link)) is not None:
            peer.writable = writable

    def tick(self, now_ms: float) -> None:
        """Time has passed; to be called at `Work.wake_at_ms`."""
        self._begin(now_ms)
        self._refresh()
        for peer in self._peers.values():
            peer.session.tick(self._now)
            if peer.session.ended:
                self._news += 1
        has_changed = self._agreed_as_of != (self._port.control.version, len(self._port.control.frozen))
        if has_changed or (self._news_agreed != self._news and not self._is_agreed()):
            self._agree()
        self.transfers.tick(self._now)
        if self._resubscribe_at_ms is not None and self._resubscribe_at_ms <= self._now:
            self._resubscribe_at_ms = None
            self._news += 1
            for peer in self._peers.values():
                if peer.session.own_in.waiting or peer.session.relay_in.waiting:
                    peer.session.resubscribe()
        is_due = self._relay_wake_ms is not None and self._relay_wake_ms <= self._now
        if self._news_reviewed != self._news or is_due or self._snapshot_for:  # `transfers` has its own times to ask for a snapshot at
            self._review()

    def start_over(self, now_ms: float) -> None:
        """An input, or the doing of what `ready` said, failed half-way by a bug: nobody knows what was sent and what taken in.

        All links end, and the next ones begin with what is applied at either side, so nothing is lost by it.
        """
        self._begin(now_ms)
        self._news += 1
        self._agreed_with = None
        self._applying, self._queue, self._alone, self._is_deferred = None, [], [], False
        for peer in self._peers.values():
            peer.session.close(Code.FAILED, "replication failed half-way and starts over")

    def shutdown(self, now_ms: float) -> None:
        """Say goodbye to everybody."""
        self._begin(now_ms)
        for peer in self._peers.values():
            peer.session.close(Code.SHUTDOWN, "the node is shutting down")

    # -- outputs ----------------------------------------------------------------------------------------------

    def ready(self, *, apply: bool = True) -> Work:
        """What is to be done now. Asking twice changes nothing.

        Args:
            apply: whether some of what was received may be in it; without, `is_behind` says whether any waits.
        """
        messages: dict[Link, tuple[Message, ...]] = {}
        packings: dict[Link, Packing] = {}
        readies: dict[Link, Ready] = {}
        closed: list[Closed] = []
        transfers, waits, wake_at_ms = self.transfers, bool(self._queue or self._alone), _NEVER_MS
        transfers_work = transfers.has_work
        now, last_seq = self._now, self._tail.last_seq
        for link, peer in self._peers.items():
            session = peer.session
            quiet = session.quiet
            # As `Session.ready` asks itself: nearly every turn concerns one session, and passes by the others.
            if (
                quiet is not None
                and now < session.quiet_until_ms
                and session.quiet_seq == last_seq
                and peer.writable
                and not session.relay_out.is_open
            ):
                at_ms = quiet.wake_at_ms
                if at_ms is not None and at_ms < wake_at_ms:
                    wake_at_ms = at_ms
                continue
            if not peer.writable and not session.ended:
                wake_at_ms = min(wake_at_ms, now + self._settings.heartbeat_ms)
                continue
            ready = session.ready() if session.relay_out.is_open else session.look()
            if ready.messages or ready.plans:
                readies[link] = ready
                if ready.messages:
                    messages[link], packings[link] = ready.messages, session.packing
            at_ms = ready.wake_at_ms
            if at_ms is None:
                closed.append(Closed(link, session.origin, session.close_code or ""))
            elif at_ms < wake_at_ms:
                wake_at_ms = at_ms
        for at_ms in (self._relay_wake_ms, self._resubscribe_at_ms, transfers.wake_ms):
            if at_ms is not None and at_ms < wake_at_ms:
                wake_at_ms = at_ms
        if not (readies or closed or waits or self._events or transfers_work or self.membership.steering is not NO_STEERING):
            return Work({}, (), (), (), None if wake_at_ms == _NEVER_MS else wake_at_ms, None, (), 0, {}, {}, (), True)
        if waits and now < self._apply_at_ms < wake_at_ms:
            wake_at_ms = self._apply_at_ms
        sends, jobs = (transfers.messages(), transfers.jobs) if transfers_work else ((), ())
        for to, message in sends:
            if (receiver := self._peers.get(to)) is not None and receiver.session.state is LIVE:
                messages[to], packings[to] = (*messages.get(to, ()), message), receiver.session.packing
        arrivals = self._next_group() if apply and waits else ()
        steering = None if self.membership.steering is NO_STEERING else self.membership.steering
        return Work(
            messages,
            _frames_of(arrivals) if arrivals else (),
            tuple(closed),
            tuple(self._events),
            None if wake_at_ms == _NEVER_MS else wake_at_ms,
            steering,
            jobs,
            len(sends),
            readies,
            packings,
            arrivals,
            not (messages or readies or arrivals or closed or self._events or jobs or steering or sends),
        )

    def ready_to_apply(self) -> Work | None:
        """Of `ready`, what is to be applied, if that is all that waits and short: what is to be sent leaves after it, in the same turn.

        None: there is nothing, or more than a message should wait for; `ready` has it.
        """
        arrivals = self._next_group()
        if not arrivals or self._alone or len(arrivals) < len(self._queue):
            return None
        frames = _frames_of(arrivals)
        return Work({}, frames, (), (), None, arrivals=arrivals) if sum(frame.size for frame in frames) <= SHORT_BYTES_MAX else None

    def rests_until(self, now_ms: float) -> float | None:
        """If nothing came since the last `ready` but, perhaps, local commits that may not leave yet: when to look again.

        None: there may be something to do now. It does not look at what became durable, of which acks tell.
        """
        if self._rests is None:
            return None
        until = self._rests
        if not self._tail.is_at_end:
            until = min([until, *[peer.session.next_frames_ms for peer in self._peers.values() if peer.writable]])
        return until if now_ms + TIMER_MS < until else None

    def idle_until(self, now_ms: float) -> float | None:
        """If another `ready` would find nothing to do: when to `tick`, as it would say. None: it may find something."""
        if self._rests is None or not self._is_quiet or self.amnesia is not None:
            return None
        return self._rests if now_ms + TIMER_MS < self._rests else None

    def accept(self, work: Work) -> None:
        """What `ready` returned is being done. To be called before any further input."""
        self._is_quiet = is_empty = work.is_empty
        if (is_empty or not (work.apply or work.closed or work.steering)) and not (self._queue or self._alone):
            for peer in self._peers.values():
                if peer.writable:
                    self._rests = _NEVER_MS if work.wake_at_ms is None else work.wake_at_ms
                    break
        if is_empty:
            return
        del self._events[: len(work.events)]
        if work.steering is not None:
            self.membership.steering = NO_STEERING
        if work.jobs or work.sends:
            self.transfers.accept(len(work.jobs), work.sends)
        if work.arrivals:
            self._take_up(work.arrivals)  # before anything is forgotten: what waits is what it was when this was decided
        for link, ready in work.readies.items():
            self._peers[link].session.accept(ready)
        if self._rests is not None and not (self._events or work.jobs or work.sends):
            self._rest(self._rests, work.readies)  # all others had nothing to do
        for closed in work.closed:
            self._news += 1
            self._forget(closed.link, self._peers.pop(closed.link).session)
        if work.closed:
            self._review()

    def _rest(self, until_ms: float, links: Iterable[Link]) -> None:
        """Have nothing to do until then, or until the first of these links is due, if each knows when that is."""
        for link in links:
            session = self._peers[link].session
            quiet = session.quiet
            if quiet is None or quiet.wake_at_ms is None or session.relay_out.is_open:
                return
            if quiet.wake_at_ms < until_ms:
                until_ms = quiet.wake_at_ms
        self._rests, self._is_quiet = until_ms, True

    def _take_up(self, arrivals: tuple[_Arrival, ...]) -> None:
        """These are being applied, and no longer wait."""
        self._groups += 1
        for arrival in arrivals:
            self._served[arrival.link] = self._groups
        self._applying, self._apply_began_ms = arrivals, self._now
        if self._alone:
            del self._alone[0]
        elif len(arrivals) == len(self._queue):
            self._queue = []
        else:
            taken = set(map(id, arrivals))
            self._queue = [arrival for arrival in self._queue if id(arrival) not in taken]

    def is_connected(self, region: str) -> bool:
        """Whether a live link leads to a region: another one is not to be dialled."""
        return any(peer.session.state is LIVE and peer.session.region == region for peer in self._peers.values())

    @property
    def is_behind(self) -> bool:
        """Something received waits that may be applied now."""
        return bool(self._next_group())

    @property
    def is_settled(self) -> bool:
        """Nothing received waits to be applied."""
        return self._applying is None and not self._queue and not self._alone

    @property
    def astray(self) -> list[Link]:
        """Links that live on, and brought messages that were not dealt with and wait nowhere: none, for whoever judges. O(what waits)."""
        waiting: dict[int, int] = {}
        if not self.is_settled:
            for arrival in chain(self._applying or (), *self._alone, self._queue):
                waiting[id(arrival.session)] = waiting.get(id(arrival.session), 0) + 1
        found = []
        for link, peer in self._peers.items():
            session = peer.session
            unsettled = session.own_in.unsettled_messages + session.relay_in.unsettled_messages
            if not session.ended and unsettled != waiting.get(id(session), 0):
                found.append(link)
        return found

    def statistics(self, now_ms: float) -> tuple[PeerStatistics, ...]:
        """One row per region ever connected, by name; what is not known of the disconnected is None."""
        self._begin(now_ms)
        rows = {region: PeerStatistics(region=region, origin=origin, state=state) for region, (origin, state) in self._remembered.items()}
        for peer in self._peers.values():
            if peer.session.origin is not None and not (peer.session.ended and peer.session.region in rows):
                peer.session.tick(self._now)
                rows[peer.session.region] = peer.session.statistics()
        return tuple(rows[region] for region in sorted(rows))

    # -- inside -----------------------------------------------------------------------------------------------

    def _begin(self, now_ms: float) -> None:
        if now_ms > self._now:
            self._now = now_ms
        self._rests, self._is_quiet = None, False

    def _refresh(self) -> None:
        """Take in what is applied, durable and released by now. Ports give the same vectors while nothing has changed."""
        self._tail.refresh(self._now)
        vv, durable = self._port.vv(), self._port.durable_vv()
        if vv is not self._vv or durable is not self._durable:
            self._vv, self._durable = vv, durable
            self._news += 1
        for peer in self._peers.values():
            peer.session.advance(vv, durable, self._now)

    def _agree(self) -> None:
        """Look anew at what ends and who is a member; tell the peers, and end links to whoever was removed."""
        control, membership, vv = self._port.control, self.membership, self._vv
        if self._agreed_as_of != (as_of_control := (control.version, len(control.frozen))):
            self._agreed_as_of = as_of_control
            self._news += 1
        self._agreed_with = None
        sessions = [peer.session for peer in self._peers.values() if peer.session.state is LIVE]
        live: dict[Origin, Sequence[str]] = {}
        for session in sessions:
            assert session.origin is not None
            membership.announce(session.origin, session.peer_vv)
            live[session.origin] = session.peer_members
        if membership.review_plainly(vv, live):
            self._reviewed_as_of = None
            return self._note_agreed(sessions)
        durable = self._port.durable_vv()
        is_draining = bool(control.members) and membership.is_draining
        peers = [(s, s.origin, s.peer_members, s.peer_durable if is_draining else None) for s in sessions]
        as_of = self._agreed_as_of, self._port.origin, membership.changes, membership.rests_on(vv, durable), peers
        # This is asked at every tick, and most of them change nothing that matters here.
        is_known = as_of == self._reviewed_as_of
        if is_known and membership.present is self._checked_for:
            return self._note_agreed(sessions)
        self._checked_for = membership.present
        for session in sessions:
            session.check_removed()
        if is_known and all(session.state is LIVE for session in sessions):
            return self._note_agreed(sessions)
        live = {s.origin: s.peer_members for s in sessions if s.state is LIVE and s.origin is not None}
        told = membership.message
        message = membership.review(vv, durable, live, is_handed_over=not is_draining or self._is_handed_over())
        # Again, until nothing changes any more; and what may fail is asked for again.
        self._reviewed_as_of = as_of if message is told and membership.steering is NO_STEERING else None
        if message is not None:
            for peer in self._peers.values():
                if peer.session.told is not message:
                    peer.session.tell(message)
        return None

    def _note_agreed(self, sessions: list[Session]) -> None:
        """`_agree` found nothing to do, and would find nothing to do again."""
        self._news_agreed = self._news
        self._agreed_with = (len(self._vv), sessions) if self.membership.is_at_rest else None

    def _is_agreed(self) -> bool:
        """Whether `_agree` would find what it found the last time, as it does in most clusters at most ticks."""
        if self._agreed_with is None:
            return False
        origins, sessions = self._agreed_with
        if len(self._vv) != origins or [peer.session for peer in self._peers.values() if peer.session.state is LIVE] != sessions:
            return False
        for session in sessions:
            assert session.origin is not None
            self.membership.announce(session.origin, session.peer_vv)
        self._news_agreed = self._news
        return True

    def _is_handed_over(self) -> bool:
        """The connected peers have fsynced all that this replica has, but for what they can have from whoever wrote it."""
        sessions = [peer.session for peer in self._peers.values() if peer.session.state is LIVE]
        here = {session.origin for session in sessions}  # not its region: a former incarnation's disk may be gone
        alone = VersionVector.adopt({o: n for o, n in self._vv.items() if o not in here})
        complete = self._port.control.complete  # what is closed no ack names, and by now more may be closed than when it came
        return bool(sessions) and all(alone <= complete(session.peer_durable) for session in sessions)

    def _next_group(self) -> tuple[_Arrival, ...]:
        """What is applied next: whole messages, a link's in order of arrival, up to `apply_bytes_max`."""
        if self._applying is not None or self._now < self._apply_at_ms or self.transfers.installing:
            return ()
        if self._alone:
            return tuple(self._alone[0])
        size, queue = 0, self._in_turn()
        for count, arrival in enumerate(queue):
            size += sum(frame.size for frame in arrival.frames)
            if size > self._settings.apply_bytes_max:
                return tuple(queue[: max(1, count)])
        return tuple(queue)

    def _in_turn(self) -> list[_Arrival]:
        """What waits, a message of each link in turn, beginning with whom it is longest that something was applied of: a peer that
        sends all it wrote during a cut holds up by one group what others write now."""
        queue = self._queue
        if len(queue) < 2 or all(arrival.link == queue[0].link for arrival in queue):
            return queue
        of_link: dict[Link, list[_Arrival]] = {}
        for arrival in queue:
            of_link.setdefault(arrival.link, []).append(arrival)
        rows = sorted(of_link.values(), key=lambda row: self._served.get(row[0].link, 0))
        return [arrival for round_ in zip_longest(*rows) for arrival in round_ if arrival is not None]

    def _end_apply(self) -> tuple[_Arrival, ...]:
        assert self._applying is not None, "nothing was being applied"
        group, self._applying, self._is_deferred = self._applying, None, False
        return group

    def _forget(self, link: Link, session: Session) -> None:
        """Nothing more of this link is applied; what is lost by that is sent again on the next."""
        self.transfers.gone(link, self._now)
        self._queue = [arrival for arrival in self._queue if arrival.session is not session]
        self._alone = [group for group in self._alone if group[0].session is not session]
        self._tried.pop(link, None)
        self._served.pop(link, None)
        if session.origin is not None and session.distance_ms is not None:
            self._distances.pop(session.region, None)
            self._distances[session.region] = session.distance_ms
            if len(self._distances) > REMEMBERED_MAX:
                del self._distances[next(iter(self._distances))]
        if session.origin is not None and not self.is_connected(session.region):
            state = session.state if session.ended else State.CLOSED
            self._remembered.pop(session.region, None)
            self._remembered[session.region] = session.origin, state
            if len(self._remembered) > REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]

    def _drop_duplicates(self, link: Link, peer: _Peer) -> None:
        """Keep one link per peer. Both sides choose alike: a newer one replaces an older one of the same dialler, else
        the link that the lesser origin dialled stays. One to a former incarnation of the peer leads nowhere any more."""
        origin = peer.session.origin
        assert origin is not None
        for other_link, other in list(self._peers.items()):
            if other_link == link or other.session.state is not LIVE or other.session.region != peer.session.region:
                continue
            if other.session.origin != origin:
                other.session.close(Code.REPLACED, "a link to another incarnation replaces this one")
            elif other.dialed == peer.dialed:
                other.session.close(Code.REPLACED, "a newer link replaces this one")
            elif peer.dialed == (self._port.origin < origin):
                other.session.close(Code.DUPLICATE, "another link to the same peer is kept")
            else:
                peer.session.close(Code.DUPLICATE, "another link to the same peer is kept")
                return

    # -- relays -----------------------------------------------------------------------------------------------

    def _review(self) -> None:
        """Find what does not come by itself; ask for it, go on to the next peer, or end what is no longer needed. Until something comes,
        another look before `_relay_wake_ms` would find the same; it need not be taken while `_news` is what it is now."""
        self._news_reviewed = self._news
        direct: list[Origin] = []
        rests, vv = not self._needs and not self._snapshot_for, self._vv
        for peer in self._peers.values():
            session = peer.session
            if session.state is LIVE and session.origin is not None:
                if session.own_floor is EMPTY_VV or session.sends_own:
                    direct.append(session.origin)
                rests = rests and session.brings_all() and session.peer_vv <= vv
        self._direct = frozenset(direct)
        if len(direct) != self._sharing:
            self._sharing = len(direct)
            for peer in self._peers.values():
                peer.session.share_pace(self._sharing)
        self._relay_wake_ms = None
        if not rests:
            self._look_for_needs()
        elif self._debts:
            self._debts = {}

    def _look_for_needs(self) -> None:
        """The part of `_review` for when something is missing, or on its way."""
        live = [(link, peer.session) for link, peer in self._peers.items() if peer.session.state is LIVE]
        holders = self._find_needs([session for _, session in live])
        for origin, need in self._needs.items():
            if (due := need.since_ms + self._settings.relay_delay_ms) > self._now:
                self._wake_for_relay(due)
            else:
                self._meet(origin, need, [(link, s) for link, s in live if s in holders[origin]])
        self._snapshot_for.intersection_update(self._needs)
        if self._snapshot_for:
            donors = [(link, s) for link, s in live if any(s in holders[origin] for origin in self._snapshot_for)]
            self.transfers.need(donors, self._now)
        self._look_for_debts(live)
        needed = set().union(*holders.values()) if holders else set()
        for _, session in live:
            if session.relay in RELAYING and session not in needed:
                if (end := session.relay_useful_ms + self._settings.relay_linger_ms) <= self._now:
                    session.end_relay()
                else:
                    self._wake_for_relay(end)

    def _look_for_debts(self, live: Sequence[tuple[Link, Session]]) -> None:
        """Begin links anew that have owed something for too long. O(messages that wait)."""
        first: dict[tuple[int, bool], Sequence[Frame]] = {}  # empty at most turns
        for arrival in chain(self._applying or (), *self._alone, self._queue):
            first.setdefault((id(arrival.session), arrival.relayed), arrival.frames)
        debts: dict[Link, _Debt] = {}
        settings = self._settings
        # What was dropped is about to be asked for again, and what the disk has no room for is given to the replica again.
        for link, session in live if self._resubscribe_at_ms is None and not self._is_deferred else ():
            own, relayed = (first.get((id(session), False), ()), first.get((id(session), True), ())) if first else ((), ())
            owed = session.owes(own, relayed)
            if owed is None:
                continue
            debt = self._debts.get(link)
            if debt is None or debt.owed.mark != owed.mark:
                debt = _Debt(owed, self._now, _NEVER_MS)
            if session.answered_ms >= debt.since_ms and debt.answered_ms == _NEVER_MS:
                debt = debt._replace(answered_ms=self._now)
            if session.answered_ms >= debt.answered_ms + settings.starved_ms:
                session.starve(f"{owed.text} for {settings.starved_ms / 1000:.3g} s: this link begins anew")
            else:
                debts[link] = debt
                due = 0.0 if debt.answered_ms == _NEVER_MS else debt.answered_ms + settings.starved_ms
                self._wake_for_relay(max(due, self._now + settings.heartbeat_ms))
        self._debts = debts

    def waits_for(self, now_ms: float) -> tuple[str, ...]:
        """What has been missing here for longer than `stalled_ms`, for people; empty where all is well."""
        long_ago = now_ms - self._settings.stalled_ms
        found = [
            f"commits of {origin} after {self._vv.seq(origin)} are missing here, and nobody has brought them for {_s(now_ms, since)}"
            for origin, (_, since) in self._needs.items()
            if since <= long_ago and origin not in self._snapshot_for
        ]
        return (*found, *(f"{owed.text} for {_s(now_ms, since)}" for owed, since, _ in self._debts.values() if since <= long_ago))

    def _find_needs(self, live: Sequence[Session]) -> dict[Origin, set[Session]]:
        """Bring `_needs` up to date; per origin needed, the peers that have what is missing."""
        vv, own = self._vv, self._port.origin
        seq = vv.seq
        began: dict[Origin, float] = {}
        holders: dict[Origin, set[Session]] = {}
        for session in live:
            for origin in sorted(session.peer_vv.beyond(vv)):
                if origin != own:
                    holders.setdefault(origin, set()).add(session)
                    if origin not in self._direct:
                        began.setdefault(origin, self._now)
            if (blocked := session.blocked_on(self._applied_by_ms)) is not None:
                missing, since_ms, frame = blocked
                # Whoever sent a frame, or has applied it, has what it rests on, also where its vector leaves that out: an origin that is
                # closed there by a commit that is not here yet.
                have = [s for s in live if s is session or s.peer_vv.covers((frame.origin, frame.last_seq))]
                for origin in missing:
                    holders.setdefault(origin, set()).update(have)
                    began[origin] = min(began.get(origin, self._now), since_ms)
        needs: dict[Origin, _Need] = {}
        for origin, since_ms in began.items():
            old = self._needs.get(origin)
            if old is None:
                needs[origin] = _Need(seq(origin), since_ms)
            elif old.applied == seq(origin):
                needs[origin] = old
            else:  # some of it came, by a snapshot perhaps: the rest may come by itself
                needs[origin] = _Need(seq(origin), self._now)
                self._snapshot_for.discard(origin)
        self._needs = needs
        return {origin: holders[origin] for origin in needs}

    def _meet(self, origin: Origin, need: _Need, holders: Sequence[tuple[Link, Session]]) -> None:
        """Have what is needed of an origin relayed by one of the peers that have it."""
        settings = self._settings
        below = any(session.origin == origin and not session.sends_own for _, session in holders)
        holders = [(link, session) for link, session in holders if session.origin != origin]
        for link, session in holders:
            if session.relay in RELAYING:
                patience = max(need.since_ms, session.relay_changed_ms, session.relay_received_ms) + settings.relay_timeout_ms
                if patience > self._now:
                    return self._wake_for_relay(patience)
                session.end_relay()
                self._tried[link] = self._now
        if (holders or below) and all(session.refuses_to_relay for _, session in holders) and origin not in self._snapshot_for:
            self._snapshot_for.add(origin)
            text = f"no peer's log reaches back to what is missing of {origin}, after {self._vv.seq(origin)}: a snapshot is needed"
            self._events.append(Event(EventKind.NEEDS_SNAPSHOT, origin, text, {"region": region_of(origin)}))
        candidates = []
        for link, session in holders:
            refused = session.refuses_to_relay
            again = (session.relay_changed_ms if refused else self._tried.get(link, float("-inf"))) + settings.relay_retry_ms
            if again <= self._now:
                # Who has refused is asked again only after all others: near ones may refuse faster than far ones are asked.
                candidates.append((refused, session.round_trip_ms or 0.0, str(session.origin), session))
            else:
                self._wake_for_relay(again)
        if candidates:
            min(candidates, key=lambda row: row[:3])[3].ask_relay()
            self._wake_for_relay(self._now + settings.relay_timeout_ms)
        return None

    def _wake_for_relay(self, at_ms: float) -> None:
        self._relay_wake_ms = at_ms if self._relay_wake_ms is None else min(self._relay_wake_ms, at_ms)

    @property
    def needs_snapshot(self) -> frozenset[Origin]:
        """Origins of which something is missing that no reachable peer can send from its log."""
        return frozenset(self._snapshot_for)
