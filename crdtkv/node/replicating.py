"""What a node's replication does in turns of the storage worker: the drive, fed and obeyed.

`Replicator` feeds `replication.Drive` with what links brought and with what was committed, applies what it says, and hands what
is to be sent to the loop's half, `peers`. It names a connection by its `Link`, and touches nothing of it but what is the writer's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from crdtkv.core.causality import region_of
from crdtkv.core.control import Member, Steering
from crdtkv.errors import CrdtkvError, DiskFullError
from crdtkv.node.logging import event
from crdtkv.node.worker import StorageWorker, as_crdtkv_error
from crdtkv.replication import Code, Drive, Event, EventKind, PeerStatistics, ReplicationSettings, State
from crdtkv.replication.membership import Standing
from crdtkv.replication.snapshot import Job
from crdtkv.storage.retention import Acknowledgement
from crdtkv.transport.base import PeerStream

if TYPE_CHECKING:
    from crdtkv.store.store import Store

INSTALLING: Final = "a snapshot of another region is being installed"
ACKNOWLEDGE_MS: Final = 500
"""How often the store is told what its peers have fsynced."""
SAMPLE_MS: Final = 50
"""How often it is noted what is missing of each peer, while there is traffic: the error of `lag_ms`."""
APPLY_MS: Final = 4
"""How long a turn goes on to begin applying what was received: then clients have theirs, and what arrived meanwhile is looked at."""
ALARMS_MAX: Final = 16
FAILED_TEXT: Final = "failed: a turn of replication failed by a bug, and all links were begun anew: the log has more"
_NUMBERS: Final = re.compile(r" \d+")

_numbers = itertools.count(1)


class Link:
    """One stream, as both halves name it. The fields are the loop's unless they say otherwise."""

    def __init__(self, stream: PeerStream) -> None:
        self.stream = stream
        self.number = next(_numbers)
        self.outgoing: deque[bytes] = deque()
        self.outgoing_bytes = 0
        self.changed = asyncio.Event()
        self.finishing = False
        self.code = ""
        self.permanent = False
        self.unwritable = False
        self.read_bytes = 0
        self.read_messages = 0
        self.processed_bytes = 0  # the writer's
        self.room_wanted = False
        self.room = asyncio.Event()
        self.writer: asyncio.Task[None] | None = None

    @property
    def backlog_bytes(self) -> int:
        """Read and not yet processed."""
        return self.read_bytes - self.processed_bytes

    def cut(self) -> None:
        """End it without waiting for what is still to be sent."""
        if self.writer is not None:
            self.writer.cancel()


def note_warning(warnings: deque[str], one: Event) -> None:
    """Keep what stands: an event may be a warning, the same one again, or the end of some."""
    said, needs = f"{one.kind.value}: {one.text}", f"{EventKind.NEEDS_SNAPSHOT.value}: "
    if one.kind is EventKind.SNAPSHOT_INSTALLED:  # what was needed is here
        ended = [text for text in warnings if text.startswith(needs)]
    elif one.kind is EventKind.SNAPSHOT_BEGUN:  # what a peer needs is on its way
        ended = [text for text in warnings if text.startswith(f"{needs}{one.origin} lacks")]
    elif one.alarm or one.kind is EventKind.NEEDS_SNAPSHOT:  # the same again says only how far it is by now
        ended = [text for text in warnings if _NUMBERS.sub("", text) == _NUMBERS.sub("", said)]
    else:
        return
    for text in ended:
        warnings.remove(text)
    if one.alarm or one.kind is EventKind.NEEDS_SNAPSHOT:
        warnings.append(said)


class Replicator:
    """The drive and what surrounds it in the writer. Every method runs there."""

    def __init__(
        self,
        store: Store,
        worker: StorageWorker,
        settings: ReplicationSettings,
        members: Sequence[str],
        *,
        sync: bool,
        send: Callable[[Sequence[tuple[Any, list[bytes]]]], None],
        finish: Callable[[Link, str, bool], None],
        changed: Callable[[frozenset[str]], None],
        recorded: Callable[[Mapping[str, Member]], None],
    ) -> None:
        self._port = store.port
        self._store = store
        self._origin = store.origin
        self._members = tuple(members)
        self._worker = worker
        self._settings = settings
        self._sync = sync
        self._send = send
        self._finish = finish
        self._changed = changed
        self._recorded = recorded
        self._recorded_as_of: int | None = None
        self._removed_ms: float | None = None
        """When a peer last said that this region was removed."""
        self._links: set[Link] = set()
        self._touched = False
        """Links came or went since the last turn."""
        self.drive = Drive(self._port, settings, now_ms=_now_ms(), wall_ms=_wall_ms, members=members)
        self._wake_at_ms: float | None = None
        self._behind_since: dict[str, float] = {}
        self._sample_at_ms = 0.0
        self._acknowledge_at_ms = 0.0
        self._live: frozenset[str] = frozenset()
        self.alarms: deque[str] = deque(maxlen=ALARMS_MAX)
        self.events: Counter[str] = Counter()
        """What happened to links, relays and snapshots since the start, by kind."""
        self.acknowledge()

    def connect(self, link: Link) -> None:
        self._links.add(link)
        self._touched = True
        self.drive.connect(link, _now_ms(), dialed=link.stream.dialled)

    def receive(self, link: Link, data: bytes) -> None:
        try:
            self.drive.receive(link, data, _now_ms())
        except Exception:
            self._start_over()
            raise
        if self.drive.amnesia is not None and self._store.owed_incarnation is None and self._port.origin == self._origin:
            with contextlib.suppress(DiskFullError):  # the store writes nothing before it has one, and takes it as soon as there is room
                self._begin_incarnation(self.drive.amnesia)
        link.processed_bytes += len(data)
        if link.room_wanted:
            self._worker.emit(link.room.set)

    def _begin_incarnation(self, reason: str) -> None:
        """Before anything else is written: what was lost comes back under the former id."""
        self._store.begin_incarnation(reason)
        self._go_on_anew()

    def _go_on_anew(self) -> None:
        self._origin = self._port.origin
        event(logging.WARNING, "new_incarnation", origin=self._origin, reason=self._store.incarnation_reason)
        self.drive.renewed(_now_ms())
        self._touched = True

    def disconnect(self, link: Link, reason: str) -> None:
        self._links.discard(link)
        self._touched = True
        self.drive.disconnect(link, _now_ms(), reason)

    def set_writable(self, link: Link, writable: bool) -> None:
        self.drive.set_writable(link, writable, _now_ms())

    def shutdown(self) -> None:
        self.drive.shutdown(_now_ms())
        self.drive.transfers.close()

    def _start_over(self) -> None:
        """A bug must not leave the drive waiting for what was never done: it would replicate no more, and seem well."""
        self._touched = True
        self.events[Code.FAILED.value] += 1
        if FAILED_TEXT not in self.alarms:
            self.alarms.append(FAILED_TEXT)
        self.drive.start_over(_now_ms())

    def turn(self) -> float | None:
        """Let the drive see what is new and do what it says; when the next turn is due, in `time.monotonic`."""
        try:
            return self._take_turn()
        except Exception:
            self._start_over()
            raise

    def _take_turn(self) -> float | None:
        if self._port.origin != self._origin:  # the store has taken a new incarnation by itself
            self._go_on_anew()
        if (version := self._port.control.version) != self._recorded_as_of:
            self._recorded_as_of, self._touched = version, True
            self._worker.emit(partial(self._recorded, dict(self._port.control.members)))
        # First of all: whoever sees it false knows that a later turn will look at what is durable by then.
        self._worker.is_followed = bool(self._links or self._touched or self.drive.transfers.holds or self._port.control.frozen)
        if not self._worker.is_followed:
            return None
        drive, now_ms = self.drive, _now_ms()
        if not self._sync and not self._touched and (until_ms := drive.rests_until(now_ms)) is not None:
            return until_ms / 1000
        self._touched = False
        is_due = self._wake_at_ms is not None and self._wake_at_ms <= now_ms
        first = None if is_due else drive.ready_to_apply()
        if first is None:
            drive.local_commits(now_ms)  # else the drive looks at them when `first` is applied
        if is_due:
            drive.tick(now_ms)
        apply = True
        while True:
            work, first = first or drive.ready(apply=apply), None
            drive.accept(work)
            sends: list[tuple[Any, list[bytes]]] = [(link, work.encoded(link)) for link in work.messages]
            if sends:
                self._worker.emit(partial(self._send, sends))
                self._worker.flush()
            for closed in work.closed:
                link: Any = closed.link
                self._links.discard(link)
                self._worker.emit(partial(self._finish, link, closed.code, closed.permanent))
            if work.events:
                self._report(work.events)
            for job in work.jobs:
                self._worker.read_soon(partial(self._do, job))
            if work.steering is not None and not drive.transfers.installing:  # else found due again at the next look
                self._steer(work.steering)
            if not work.apply and (work.steering is None or drive.transfers.installing):
                break
            if not work.apply:
                continue
            apply = _now_ms() - now_ms < APPLY_MS
            try:
                applied = self._port.apply(work.apply)
            except DiskFullError:
                drive.apply_deferred(_now_ms())
                drive.local_commits(_now_ms())
            except Exception as e:
                if not isinstance(e, CrdtkvError):
                    event(logging.ERROR, "apply_failed", error=f"{type(e).__name__}: {e}")
                drive.apply_failed(as_crdtkv_error(e), _now_ms())
            else:
                self._worker.flush()  # who watches need not wait for what is to be told to peers
                drive.applied(applied, _now_ms())
        if drive.is_behind:
            self._worker.task(_nothing)  # the next turn, once what clients asked meanwhile is done
        self._worker.occupied = INSTALLING if drive.transfers.installing else ""
        if self._sync:
            # What was received is acknowledged as fsynced, and what others wrote may leave, once this is done.
            end = self._port.log.end()
            if self._port.released() < end:
                self._worker.sync_through(end)
        if _now_ms() >= self._sample_at_ms:
            self._sample()
        self._wake_at_ms = work.wake_at_ms
        if self._wake_at_ms is None and self._port.control.frozen:
            self._wake_at_ms = _now_ms() + self._settings.heartbeat_ms  # with nobody connected, too, an origin may be closed
        return None if self._wake_at_ms is None else self._wake_at_ms / 1000

    def _steer(self, steering: Steering) -> None:
        """Freeze, raise limits, close; what fails is found due again at the next look."""
        try:
            self._port.steer(steering)
        except CrdtkvError as e:
            event(logging.WARNING, "membership_waits", error=e.message)
            return
        if steering.freeze or steering.close:
            closed = ", ".join(f"{origin} at {seq}" for origin, seq in steering.close.items())
            event(logging.INFO, "membership", frozen=", ".join(steering.freeze), closed=closed)
        self.drive.local_commits(_now_ms())

    def _do(self, job: Job) -> None:
        """In a reader thread: work for a snapshot, and back into a turn with what came of it."""
        try:
            result = job.run()
        except Exception as e:
            if not isinstance(e, CrdtkvError):
                event(logging.ERROR, "snapshot_failed", job=job.kind, error=f"{type(e).__name__}: {e}")
            self._worker.task(partial(self._job_failed, job, as_crdtkv_error(e)))
        else:
            self._worker.task(partial(self._job_done, job, result))

    def _job_done(self, job: Job, result: Any) -> None:
        self._touched = True
        self.drive.job_done(job, result, _now_ms())

    def _job_failed(self, job: Job, error: CrdtkvError) -> None:
        self._touched = True
        self.drive.job_failed(job, error, _now_ms())

    def reserve_install(self) -> None:
        self.drive.transfers.reserve("a backup")

    def begin_install(self) -> Job:
        snapshots = self._port.snapshots
        incoming = None if snapshots is None else snapshots.staged.incoming
        if incoming is not None and (incoming.cluster, incoming.shard) == (self._port.cluster, self._port.shard):
            origin, seq = self._port.origin, self._port.vv().seq(self._port.origin)
            if (known := incoming.vv.seq(origin)) > seq:
                self._begin_incarnation(f"what is to be merged knows {origin} up to {known}, and here it ended at {seq}: commits were lost")
        self._touched = True
        return self.drive.transfers.begin_install()

    def end_install(self, job: Job | None, result: Any = None, error: CrdtkvError | None = None) -> None:
        """What came of it; no job: it did not come to that."""
        self.drive.transfers.release()
        if job is not None and error is not None:
            self._job_failed(job, error)
        elif job is not None:
            self._job_done(job, result)

    def _report(self, events: Sequence[Event]) -> None:
        for one in events:
            self.events[one.kind.value] += 1
            quiet = one.details.get("code") in (Code.DUPLICATE, Code.REPLACED)
            level = logging.ERROR if one.alarm else logging.DEBUG if quiet else logging.INFO
            if one.kind in (EventKind.NEEDS_SNAPSHOT, EventKind.STALLED):
                level = logging.WARNING
            if one.kind is EventKind.LIVE and one.origin is not None and region_of(one.origin) in self._live:
                level = logging.DEBUG  # a second link, of which one will be dropped
            # Of a fork the details name an origin too, that of the commit; the text names both.
            event(level, f"peer_{one.kind.value}", **{**one.details, "origin": one.origin, "text": one.text})
            if one.kind is EventKind.REMOVED:
                self._removed_ms = _now_ms()
                self._store.refuse_writes(one.text)  # which warns of it, as long as it is so
            else:
                note_warning(self.alarms, one)
        self._live = frozenset(row.region for row in self.drive.statistics(_now_ms()) if row.state is State.LIVE)
        self._worker.emit(partial(self._changed, self._live))

    def _sample(self) -> None:
        """Note since when something that a peer announced is missing here."""
        now_ms, vv = _now_ms(), self._port.vv()
        self._sample_at_ms = now_ms + SAMPLE_MS
        for row in self.drive.statistics(now_ms):
            if row.state is State.LIVE and not row.vv <= vv:
                self._behind_since.setdefault(row.region, now_ms)
            else:
                self._behind_since.pop(row.region, None)
        if self._removed_ms is not None and now_ms - self._removed_ms > 2 * self._settings.backoff_refused_ms and self._live:
            # Whoever said so had not heard that the region was added again: others have gone on talking to it.
            self._removed_ms = None
            self._store.refuse_writes(None)
        if now_ms >= self._acknowledge_at_ms:
            self._acknowledge_at_ms = now_ms + ACKNOWLEDGE_MS
            self.acknowledge()

    def acknowledge(self) -> None:
        """Tell the store who there is and what they have fsynced: it keeps its log for them."""
        rows = {row.region: row for row in self.drive.statistics(_now_ms())}
        found: dict[str, Acknowledgement | None] = {}
        control = self._port.control
        for region in {r for r in (*self._members, *rows, *control.members) if r != self._store.region and not control.is_removed(r)}:
            row = rows.get(region)
            is_live = row is not None and row.state is State.LIVE and row.durable
            found[region] = Acknowledgement(row.origin, row.durable) if row is not None and is_live else None
        self._store.acknowledged(found)

    def rows(self) -> list[tuple[PeerStatistics, int, float | None]]:
        """Per peer its statistics, how much of what it announced is missing here, and since when."""
        self._sample()
        now_ms, vv = _now_ms(), self._port.vv()
        found = []
        for row in self.drive.statistics(now_ms):
            since = self._behind_since.get(row.region)
            found.append((row, row.vv.missing_from(vv), None if since is None else now_ms - since))
        return found

    def standings(self) -> tuple[tuple[Standing, bool], ...]:
        """Every region known, and whether it is connected."""
        live = {row.region for row in self.drive.statistics(_now_ms()) if row.state is State.LIVE} | {self._store.region}
        return tuple((standing, standing.region in live) for standing in self.drive.membership.standings(self._port.vv()))

    def waits_for(self) -> tuple[str, ...]:
        """What has been missing for some seconds, as warnings."""
        return tuple(f"waiting: {text}" for text in self.drive.waits_for(_now_ms()))

    def is_flushed(self) -> bool:
        """Every connected peer has acknowledged what was written here."""
        return all(not row.behind_commits for row in self.drive.statistics(_now_ms()) if row.state is State.LIVE)


def _nothing() -> None:
    """That there is a turn is all."""


def _now_ms() -> float:
    return time.monotonic() * 1000


def _wall_ms() -> float:
    return time.time() * 1000
