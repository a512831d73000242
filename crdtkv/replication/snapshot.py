"""Snapshots between nodes: who is asked for one, and both roles of its transfer. Sans-IO, like the drive loop that owns it.

**When.** The drive says of which origins something is missing that no reachable peer's log reaches back to. Then *one* donor is asked:
the nearest of the live peers that have it and can give snapshots; the one whose snapshot is staged in part already, if it is there.

**Receiver.** `AskSnapshot` names what is staged (how many chunks, and the link of the last), so a transfer goes
on after a lost link or a restart if the donor still holds that snapshot; else it begins anew, with another id and chunk 0. Each
chunk is staged (a job: checked and written), and then acknowledged. When the last is staged the whole is installed (a job). A donor
that sends nothing for `snapshot_timeout_ms` loses the transfer to the next, as does one that has not ended after `snapshot_life_ms`; one
that sends what no replica would, or more ahead of its acks than anyone's window, loses its link.

**Donor.** A snapshot is taken (a job), and read chunk by chunk (jobs), never further ahead of what is acknowledged than
`snapshot_window` chunks: that is its credit, apart from that of live frames, so that neither starves. It is held for
`snapshot_hold_ms` after the last that was heard of it, and never longer than `snapshot_life_ms`; `snapshots_max` of them at most. What is
committed or installed at the donor meanwhile does not change it.

*Jobs* are what may block or take long: the I/O layer does each off the loop, where it can, and reports `done` or `failed`. Each kind
touches only its own object (the donor's source, the receiver's staging), one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from crdtkv.core.causality import Origin
from crdtkv.core.install import Installed
from crdtkv.core.transfer import NO_LINK, next_link
from crdtkv.errors import CorruptionError, CrdtkvError, IncompatibleFormatError, RegionUnavailableError
from crdtkv.replication.messages import AboutSnapshots, AskSnapshot, CannotSnapshot, Chunk, ChunkAck, EndSnapshot, Message
from crdtkv.replication.status import LIVE, Code, Event, EventKind

if TYPE_CHECKING:
    from crdtkv.replication.port import ReplicaPort, Snapshots, SnapshotSource
    from crdtkv.replication.session import Session
    from crdtkv.replication.settings import ReplicationSettings

FEATURE: Final = "snapshot"
CHUNKS_WAITING_MAX: Final = 256
"""A donor that sends more chunks than this ahead of their acks breaks the protocol, whatever its window."""
WAITING_BYTES_MAX: Final = 32 << 20
"""The same in bytes."""


@dataclass(frozen=True, slots=True)
class Job:
    """Work for the I/O layer: call `run`, then `Drive.job_done` with its result or `Drive.job_failed`.

    Attributes:
        kind: `open`, `read`, `stage` or `install`. `install` stops the store for as long as it takes.
    """

    kind: str
    run: Callable[[], Any] = field(repr=False)
    subject: Hashable = None


class _Giving:
    """A snapshot that is held here for a receiver."""

    def __init__(self, region: str, now_ms: float) -> None:
        self.region = region
        self.link: Hashable = None
        self.id = b""
        self.source: SnapshotSource | None = None
        self.began_ms = self.heard_ms = now_ms
        self.marks: list[tuple[bytes, bytes]] = [(b"", NO_LINK)]
        """Per chunk the cursor where it begins and the link before it."""
        self.acked = 0
        self.next = 0
        self.last: int | None = None
        """The number of the last chunk, once it was read."""
        self.busy = False


def report(done: Installed) -> str:
    """What an install did, for people."""
    origins, removed = len(done.jumped), ", ".join(done.removed_keys[:5])
    text = f"{done.applied} commits of {origins} origins, {done.added} slots new, {done.changed} changed, {done.removed} removed here"
    return f"{text}{f' ({removed} …)' if removed else ''}, {done.conflicts} conflicts; {done.unseen} own commits were unseen and flow out"


class Transfers:
    """See the module's docstring. One for each drive."""

    def __init__(self, port: ReplicaPort, settings: ReplicationSettings, events: list[Event], wall_ms: Callable[[], float]) -> None:
        self._port = port
        self._settings = settings
        self._events = events
        self._wall_ms = wall_ms
        self._now = 0.0
        self._out: list[tuple[Hashable, Message]] = []
        self._jobs: list[Job] = []
        self._sessions: dict[Hashable, Session] = {}
        # donor
        self._giving: list[_Giving] = []
        self.begun = 0
        """Snapshots taken here since the start."""
        self.given = 0
        """Of those, such as the receiver has whole."""
        self.sent_bytes = 0
        # receiver
        self._donor: Hashable | None = None
        self._donor_region = ""
        self._id = b""
        self._heard_ms = 0.0
        self._began_ms = 0.0
        """When its first chunk came, or the first after a start."""
        self._lost = False
        """The link to the donor ended in the middle."""
        self._tried: dict[str, float] = {}
        self._chunks: list[Chunk] = []
        self._next = 0
        """The number of the chunk that comes next."""
        self._staging = False
        self._whole = False
        self._reserved = False
        self.installing = False
        self.installs = 0
        self.given_up = 0
        """How often one that was asked for did not come, or could not be installed."""
        self.received_bytes = 0
        self.wake_ms: float | None = None

    # -- what goes out --------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Something is to be sent or done."""
        return bool(self._out or self._jobs)

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs)

    def messages(self) -> Sequence[tuple[Hashable, Message]]:
        return tuple(self._out)

    def accept(self, jobs: int, messages: int) -> None:
        """So many of the first jobs and messages are being done."""
        del self._jobs[:jobs]
        del self._out[:messages]

    @property
    def is_active(self) -> bool:
        """Whether a snapshot is on its way here, or being installed."""
        return self._donor is not None or self.installing or self._staging or self._reserved

    @property
    def snapshots(self) -> Snapshots | None:
        """What gives, stages and installs them; None: this replica does not."""
        return self._port.snapshots

    @property
    def holds(self) -> int:
        """How many snapshots are held for others."""
        return len(self._giving)

    def _send(self, link: Hashable, message: Message) -> None:
        if link in self._sessions:
            self._out.append((link, message))

    # -- links ----------------------------------------------------------------------------------------------------

    def receive(self, link: Hashable, session: Session, message: AboutSnapshots, now_ms: float) -> None:
        """A message of the transfer came over a live link."""
        self._now = now_ms
        self._sessions[link] = session
        match message:
            case AskSnapshot():
                self._asked(link, session, message)
            case ChunkAck():
                self._acked(link, message)
            case EndSnapshot():
                for giving in [g for g in self._giving if g.id == message.id and g.region == session.region]:
                    self._drop(giving)
            case Chunk():
                self._arrived(link, message)
            case CannotSnapshot():
                if link == self._donor and not self._whole:
                    self._leave(message.reason, retry_ms=min(message.retry_ms, 600_000))

    def gone(self, link: Hashable, now_ms: float) -> None:
        """A link has ended."""
        self._now = now_ms
        self._sessions.pop(link, None)
        self._out = [(to, message) for to, message in self._out if to != link]
        for giving in self._giving:
            if giving.link == link:
                giving.link, giving.heard_ms = None, now_ms
                self._wake(now_ms + self._settings.snapshot_hold_ms)
        if link == self._donor:
            self._donor = None
            self._lost = True
            self._heard_ms = now_ms  # it may come back, and is waited for a while
            if not self._whole:
                self._chunks = []

    def tick(self, now_ms: float) -> None:
        """Time has passed."""
        self._now = now_ms
        settings = self._settings
        self.wake_ms = None
        for giving in list(self._giving):
            until = min(giving.heard_ms + settings.snapshot_hold_ms, giving.began_ms + settings.snapshot_life_ms)
            if until <= now_ms and not giving.busy:
                self._drop(giving)
            else:
                self._wake(max(until, now_ms + 1))
        if self._donor is not None and not self._staging and not self._whole:
            if self._is_endless():
                return
            if (until := self._heard_ms + settings.snapshot_timeout_ms) <= now_ms:
                self._leave(f"nothing came for {settings.snapshot_timeout_ms} ms", retry_ms=settings.snapshot_timeout_ms)
            else:
                self._wake(until)

    def _is_endless(self) -> bool:
        """Leave a donor whose snapshot takes longer than any is held; nothing is being staged. Whether that was so."""
        life_ms, snapshots = self._settings.snapshot_life_ms, self._port.snapshots
        if not self._id or self._now < self._began_ms + life_ms:
            return False
        self._leave(f"it had not ended after {life_ms} ms", retry_ms=life_ms)
        assert snapshots is not None
        snapshots.discard()
        return True

    def _wake(self, at_ms: float) -> None:
        self.wake_ms = at_ms if self.wake_ms is None else min(self.wake_ms, at_ms)

    # -- receiver -------------------------------------------------------------------------------------------------

    def need(self, holders: Sequence[tuple[Hashable, Session]], now_ms: float) -> None:
        """Nobody's log reaches back to something that is missing here, and these peers have it: have a snapshot of one of them."""
        self._now = now_ms
        snapshots, settings = self._port.snapshots, self._settings
        if snapshots is None or not holders or self.is_active:
            return
        staged = snapshots.staged
        fit = []
        for link, session in holders:
            if session.state is not LIVE or FEATURE not in session.features:
                continue
            again = self._tried.get(session.region, float("-inf"))
            if again > now_ms:
                self._wake(again)
                continue
            is_staged = bool(staged.chunks and staged.origin == session.origin)
            fit.append((not is_staged, session.round_trip_ms or 0.0, str(session.origin), link, session))
        if not fit:
            return
        other, _, _, link, session = min(fit, key=lambda row: row[:3])
        if other and staged.chunks and (until := self._heard_ms + settings.snapshot_timeout_ms) > now_ms and self._lost:
            self._wake(until)  # the donor of what is staged may come back
            return
        self._sessions[link] = session
        self._donor, self._donor_region = link, session.region
        self._lost = False
        self._heard_ms = now_ms
        self._whole = False
        self._chunks = []
        resumed = not other
        chunks = staged.chunks if resumed else 0
        self._id = b""
        self._next = chunks
        self._send(link, AskSnapshot(chunks, staged.link if resumed else NO_LINK))
        self._event(EventKind.SNAPSHOT_ASKED, session.origin, f"asked {session.origin} for a snapshot", chunks=chunks)

    def _arrived(self, link: Hashable, chunk: Chunk) -> None:
        if link != self._donor or self._whole or self.installing:
            return  # of a transfer that is over
        snapshots = self._port.snapshots
        assert snapshots is not None
        self._heard_ms = self._now
        if not self._id:
            self._id = chunk.id
            self._next = min(chunk.number, self._next)  # 0: it is another snapshot than the staged one
            if not chunk.number or not self._began_ms:
                self._began_ms = self._now
        if chunk.id != self._id or chunk.number != self._next:
            self._sessions[link].close(Code.PROTOCOL, f"chunk {chunk.number} of a snapshot, {self._next} was next")
            return
        waiting = sum(len(one.data) for one in self._chunks)
        if len(self._chunks) >= CHUNKS_WAITING_MAX or (self._chunks and waiting + len(chunk.data) > WAITING_BYTES_MAX):
            what = f"{len(self._chunks) + 1} chunks of a snapshot, {waiting + len(chunk.data):,} bytes, ahead of their acks"
            self._sessions[link].close(Code.PROTOCOL, f"{what}; the limits are {CHUNKS_WAITING_MAX} and {WAITING_BYTES_MAX:,}")
            return
        self._next += 1
        self.received_bytes += len(chunk.data)
        self._chunks.append(chunk)
        self._stage_next()

    def _stage_next(self) -> None:
        if self._staging or not self._chunks:
            return
        snapshots = self._port.snapshots
        assert snapshots is not None
        chunk = self._chunks.pop(0)
        self._staging = True
        self._jobs.append(Job("stage", lambda: snapshots.stage(chunk.data, chunk.link, anew=not chunk.number), chunk))

    def _staged(self, chunk: Chunk) -> None:
        self._staging = False
        self._heard_ms = self._now
        if chunk.id != self._id or (self._donor is None and not chunk.last):
            return
        if not chunk.last and self._donor is not None and self._is_endless():
            return
        if self._donor is not None:
            self._send(self._donor, ChunkAck(self._id, chunk.number + 1))
        if chunk.last:
            self._whole = True
            self.installing = True
            snapshots = self._port.snapshots
            assert snapshots is not None
            self._event(EventKind.SNAPSHOT_STAGED, None, f"all {chunk.number + 1} chunks of a snapshot are staged; it is installed now")
            self._jobs.append(Job("install", snapshots.install))
        else:
            self._stage_next()

    def _leave(self, reason: str, *, retry_ms: float) -> None:
        """Give up on this donor for a while; what is staged of it stays, in case that nobody else can give one."""
        link, region = self._donor, self._donor_region
        self._tried[region] = self._now + retry_ms
        self.given_up += 1
        self._event(EventKind.SNAPSHOT_ENDED, None, f"no snapshot from {region}: {reason}", region=region)
        if link is not None and self._id:
            self._send(link, EndSnapshot(self._id))
        self._donor, self._whole, self._chunks = None, False, []
        self._id = b""

    def _event(self, kind: EventKind, origin: Origin | None, text: str, **details: str | int) -> None:
        self._events.append(Event(kind, origin, text, details))

    # -- a state from elsewhere -----------------------------------------------------------------------------------

    def reserve(self, whence: str) -> None:
        """Ask nobody for a snapshot until `release`: what is staged now comes from elsewhere (a backup). Raises if one is on its way."""
        if self.is_active:
            raise RegionUnavailableError(
                "a snapshot of another region is on its way here: try again when it is installed", retry_after_ms=1_000
            )
        self._reserved, self._donor_region = True, whence

    def begin_install(self) -> Job:
        """All that was reserved for is staged: a job for the caller to run, and to report like those of `Work.jobs`."""
        snapshots = self._port.snapshots
        assert self._reserved and snapshots is not None
        self.installing = True
        return Job("install", snapshots.install)

    def release(self) -> None:
        """It is installed, or will not be."""
        self._reserved = False

    # -- donor ----------------------------------------------------------------------------------------------------

    def _asked(self, link: Hashable, session: Session, ask: AskSnapshot) -> None:
        settings, snapshots = self._settings, self._port.snapshots
        assert snapshots is not None
        for giving in [g for g in self._giving if g.region == session.region]:
            at = ask.chunks
            if (
                giving.source is not None
                and 0 < at < len(giving.marks)
                and (giving.last is None or at <= giving.last)
                and giving.marks[at][1] == ask.link
                and not giving.busy
            ):
                giving.link, giving.heard_ms = link, self._now
                giving.acked = giving.next = at
                return self._read_next(giving)
            self._drop(giving)  # its receiver begins anew
        if len(self._giving) >= settings.snapshots_max:
            return self._send(
                link, CannotSnapshot(f"{len(self._giving)} snapshots are being sent, the limit", settings.snapshot_timeout_ms)
            )
        giving = _Giving(session.region, self._now)
        giving.link, giving.busy = link, True
        self._giving.append(giving)
        self.begun += 1
        self._jobs.append(Job("open", snapshots.open, giving))
        self._event(EventKind.SNAPSHOT_BEGUN, session.origin, f"a snapshot for {session.origin} is taken")
        return None

    def _opened(self, giving: _Giving, source: SnapshotSource) -> None:
        giving.busy = False
        if giving not in self._giving:
            source.close()
            return
        giving.source = source
        name = f"{self._port.origin} {self.begun} {self._wall_ms()} {source.vv}"
        giving.id = blake2b(name.encode(), digest_size=16).digest()
        giving.heard_ms = self._now
        self._read_next(giving)

    def _read_next(self, giving: _Giving) -> None:
        if giving.busy or giving.link is None or giving.source is None:
            return
        if giving.next >= giving.acked + self._settings.snapshot_window or (giving.last is not None and giving.next > giving.last):
            return
        cursor, size, source = giving.marks[giving.next][0], self._settings.snapshot_chunk_bytes, giving.source
        giving.busy = True
        self._jobs.append(Job("read", lambda: source.read(cursor, size), giving))

    def _read(self, giving: _Giving, data: bytes, cursor: bytes | None) -> None:
        giving.busy = False
        if giving not in self._giving:
            if giving.source is not None:
                giving.source.close()
            return
        number = giving.next
        link = next_link(giving.marks[number][1], data)
        if number + 1 == len(giving.marks):
            giving.marks.append((cursor or b"", link))
        if cursor is None:
            giving.last = number
        giving.next = number + 1
        if giving.link is not None:
            self.sent_bytes += len(data)
            self._send(giving.link, Chunk(giving.id, number, data, link, cursor is None))
        self._read_next(giving)

    def _acked(self, link: Hashable, ack: ChunkAck) -> None:
        for giving in self._giving:
            if giving.id == ack.id and giving.link == link:
                if not giving.acked <= ack.chunks <= giving.next:
                    self._sessions[link].close(Code.PROTOCOL, "an ack for chunks that were not sent")
                    return
                if giving.last is not None and giving.acked <= giving.last < ack.chunks:
                    self.given += 1
                giving.acked, giving.heard_ms = ack.chunks, self._now
                self._read_next(giving)

    def _drop(self, giving: _Giving) -> None:
        self._giving.remove(giving)
        if giving.source is not None and not giving.busy:  # else whoever reads it closes it
            giving.source.close()

    # -- jobs -----------------------------------------------------------------------------------------------------

    def done(self, job: Job, result: Any, now_ms: float) -> None:
        """What came of a job."""
        self._now = now_ms
        subject: Any = job.subject
        if job.kind == "open":
            self._opened(subject, result)
        elif job.kind == "read":
            self._read(subject, *result)
        elif job.kind == "stage":
            self._staged(subject)
        else:
            self._installed(result)

    def _installed(self, result: Installed) -> None:
        self.installing = False
        self.installs += 1
        if self._donor is not None:
            self._send(self._donor, EndSnapshot(self._id))
        text = f"a snapshot from {self._donor_region} is installed: {report(result)}"
        self._event(EventKind.SNAPSHOT_INSTALLED, None, text, region=self._donor_region)
        self._donor, self._whole, self._id, self._chunks = None, False, b"", []

    def failed(self, job: Job, error: CrdtkvError, now_ms: float) -> None:
        """A job raised."""
        self._now = now_ms
        subject: Any = job.subject
        if job.kind in ("open", "read"):
            subject.busy = False
            if subject in self._giving:
                link = subject.link
                self._drop(subject)
                if link is not None:
                    self._send(link, CannotSnapshot(error.message[:1_000], self._settings.snapshot_timeout_ms))
            return
        link, snapshots = self._donor, self._port.snapshots
        assert snapshots is not None
        self._staging = self.installing = False
        self._leave(error.message, retry_ms=self._settings.snapshot_timeout_ms)
        snapshots.discard()
        if link is not None and isinstance(error, CorruptionError | IncompatibleFormatError) and (session := self._sessions.get(link)):
            session.close(Code.CORRUPT, error.message)

    def close(self) -> None:
        """Let go of every snapshot held."""
        for giving in list(self._giving):
            self._drop(giving)
