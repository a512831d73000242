"""The links to other nodes: the I/O around `replication.Drive`.

Two halves. In the *loop*: streams are dialled and accepted, messages read and written (where the socket is, if nothing waits; else by a
task for each), dials repeated with jittered backoff; that is here. In *turns* of the storage worker: `replicating.Replicator` feeds the
drive, applies what it says, and hands back what is to be sent. Between them go only whole messages and link names; neither half touches
the other's state.

**One link per pair.** Both sides may dial; whoever has a live link to a region does not. When two links cross, the
drive keeps one, the same on both sides (the one that the lesser origin dialled; of two by the same dialler, the newer), and
says Bye on the other. A half-open link ends by its missing heartbeats or keepalive, after which dialling resumes; a
peer that restarted replaces its old link at once.

**Bounds.** Out: a link that does not drain is marked unwritable, and the drive lets things gather in the log. In: what was
read and is not yet processed is bounded per link by `BACKLOG_BYTES_MAX`, on top of the session's credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from crdtkv.core.control import Member
from crdtkv.core.install import Installed
from crdtkv.errors import CrdtkvError, RegionUnavailableError, StorageError
from crdtkv.node.logging import event
from crdtkv.node.replicating import Link, Replicator
from crdtkv.node.worker import StorageWorker, as_crdtkv_error
from crdtkv.replication import Backoff, Code, PeerStatistics, Relay, ReplicationSettings, State
from crdtkv.replication.membership import Standing
from crdtkv.replication.messages import weight
from crdtkv.replication.packing import ZLIB
from crdtkv.replication.snapshot import Job, Transfers
from crdtkv.results import PeerLag
from crdtkv.transport.base import PeerStream, Transport

if TYPE_CHECKING:
    from crdtkv.store.store import Store

T = TypeVar("T")

DIAL_TIMEOUT_S: Final = 5.0
BACKLOG_BYTES_MAX: Final = 8 << 20
UNWRITABLE_BYTES: Final = 4 << 20
"""A link with more than this on its way to the network takes no more until that is sent."""
OPENING_MESSAGES: Final = 4
"""So many messages of a link begin it: they are left to the writer."""
FLUSH_S: Final = 2.0
"""How long a node that stops waits for its peers to acknowledge what it wrote."""
BYE_S: Final = 1.0
"""How long a side that said Bye waits for the other to end the stream: cutting it at once may overtake the Bye."""
WHY: Final[Mapping[str, str]] = {
    Code.CLUSTER: "it belongs to another cluster or shard",
    Code.SELF: "the address leads to this node itself",
    Code.VERSION: "no common version of the protocol; upgrade the older node",
    Code.AMNESIA: "commits of one side were lost; it takes a new incarnation and fetches them",
    Code.FORK: "two contents for one commit: a copied or rolled back disk; see its log",
    Code.REMOVED: "one side's region was removed from the cluster; see its log",
    Code.ENDED: "one side returned as an incarnation that has ended; it takes a new one",
    Code.TIMEOUT: "it is silent",
    Code.SHUTDOWN: "it is shutting down",
    Code.STARVED: "what it should have sent did not come, by a bug; the link begins anew, see the log",
    Code.FAILED: "one side's replication failed by a bug and starts over; see its log",
}

Lag = tuple[tuple[PeerLag, PeerStatistics | None], ...]
"""One row per region; the statistics are those of the drive, if it ever met the region."""


class Peers:
    """All links of a node. Everything here is the loop's.

    Args:
        addresses: region → `host:port` to dial; others may connect by themselves.
    """

    def __init__(self, addresses: Mapping[str, str], transport: Transport, settings: ReplicationSettings) -> None:
        self._addresses = dict(addresses)
        self._configured = dict(addresses)
        self._own = ""
        self._transport = transport
        self._settings = settings
        self._core: Replicator | None = None
        self._worker: StorageWorker | None = None
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._links: set[Link] = set()
        self._live: frozenset[str] = frozenset()
        self._errors: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._closing = False
        self._notifying: set[asyncio.Task[None]] = set()

    # -- lifecycle ------------------------------------------------------------------------------------------------

    async def open(self, store: Store, worker: StorageWorker, *, sync: bool) -> None:
        """Replicate `store`: accept links, and dial."""
        self._worker = worker
        self._own = store.region

        def build() -> Replicator:
            members = tuple(self._addresses)
            return Replicator(
                store,
                worker,
                self._settings,
                members,
                sync=sync,
                send=self._send,
                finish=self._finish,
                changed=self._live_changed,
                recorded=self._members_recorded,
            )

        core = await worker.run(build)
        worker.turn = core.turn
        self._core = core
        for region in self._addresses:
            self._dial_soon(region)

    def set_address(self, region: str, address: str | None) -> None:
        """Dial a region at another address, or (None) no longer; a live link stays as it is."""
        if address is None:
            self._configured.pop(region, None)
        else:
            self._configured[region] = address
        self._dial_at(region, address)

    def _dial_at(self, region: str, address: str | None) -> None:
        if address is None:
            self._addresses.pop(region, None)
        else:
            self._addresses[region] = address
        if (dialer := self._dialers.pop(region, None)) is not None:
            dialer.cancel()
        if address is not None and self._core is not None and not self._closing:
            self._dial_soon(region)

    def _members_recorded(self, members: Mapping[str, Member]) -> None:
        """The members' records have changed: dial who was added, no longer who was removed. What is configured here comes first."""
        for region, member in members.items():
            address = None if member.is_removed else self._configured.get(region) or member.address or None
            if region != self._own and address != self._addresses.get(region):
                self._dial_at(region, address)

    async def wait_connected(self) -> None:
        """Wait until every region that is dialled is connected, by either side."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._live >= self._addresses.keys())

    async def close(self) -> None:
        """Let peers acknowledge what was written, as far as they do so soon; then say Bye and end all links."""
        self._closing = True
        core, worker = self._core, self._worker
        if core is None or worker is None:
            return
        until = time.monotonic() + FLUSH_S
        while not await worker.run(core.is_flushed) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await worker.run(core.shutdown)
        async with self._changed:
            await self._changed.wait_for(lambda: not self._links)
        self.abandon()
        await self._transport.close()

    def abandon(self) -> None:
        """End all links at once."""
        self._closing = True
        for dialer in self._dialers.values():
            dialer.cancel()
        for link in self._links:
            link.cut()

    # -- links ----------------------------------------------------------------------------------------------------

    async def accept(self, stream: PeerStream) -> None:
        """Serve one accepted stream until it ends."""
        if self._core is None or self._closing:
            return
        await self._run(Link(stream))

    def _dial_soon(self, region: str) -> None:
        self._dialers[region] = asyncio.create_task(self._dial(region))

    async def _dial(self, region: str) -> None:
        backoff = Backoff(self._settings, random.Random())
        while not self._closing:
            async with self._changed:
                await self._changed.wait_for(lambda: region not in self._live)
            permanent = False
            try:
                stream = await self._transport.dial(self._addresses[region], timeout_s=DIAL_TIMEOUT_S)
            except RegionUnavailableError as e:
                self._errors[region] = str(e)
                event(logging.DEBUG, "dial_failed", region=region, error=str(e))
            except Exception as e:  # a bug: it must not end the dialling of a region for good
                self._errors[region] = f"{type(e).__name__}: {e}"
                event(logging.ERROR, "dial_failed", region=region, error=self._errors[region])
            else:
                if self._closing:
                    stream.close()
                    return
                link = Link(stream)
                await self._run(link)
                permanent = link.permanent
                if region in self._live:  # the core has not yet said that it ended
                    backoff.reset()
            await self._pause(backoff.next_ms(permanent=permanent) / 1000, cut_short=not permanent)

    async def _pause(self, seconds: float, *, cut_short: bool) -> None:
        """Sleep; a link with another region that comes up meanwhile ends it: what cut that one off was likely the same.

        So after a partition all links of a node are there with its first. Else one region could apply, and write upon, what another
        would be told of a second later, and hold back what rests on it until then.
        """
        before = self._live
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: cut_short and bool(self._live - before))

    async def _run(self, link: Link) -> None:
        """Serve a link until it ends; its stream is closed then, and the core knows."""
        core, worker = self._core, self._worker
        assert core is not None and worker is not None
        self._links.add(link)
        worker.task(partial(core.connect, link))
        link.stream.on_arrival(partial(self._look, link, core, worker))
        reader = asyncio.create_task(self._read(link, core, worker))
        writer = link.writer = asyncio.create_task(self._write(link, core, worker))
        reason = "the connection ended"
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and not writer.cancelled() and link.finishing and link.stream.dialled:
                await asyncio.wait({reader}, timeout=BYE_S)
            for task in (reader, writer):
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    reason = str(error)
        finally:
            reader.cancel()
            writer.cancel()
            link.stream.close()
            worker.task(partial(core.disconnect, link, reason))
            self._links.discard(link)
            for region, address in self._addresses.items():
                if link.stream.address == address:
                    self._errors[region] = WHY.get(link.code, link.code) or reason
            self._notify()

    async def _read(self, link: Link, core: Replicator, worker: StorageWorker) -> None:
        while (data := await link.stream.receive()) is not None:
            self._received(link, data, core, worker)
            while link.backlog_bytes > BACKLOG_BYTES_MAX:
                # Say that room is wanted before looking again: the writer looks after it has counted.
                link.room.clear()
                link.room_wanted = True
                if link.backlog_bytes > BACKLOG_BYTES_MAX:
                    await link.room.wait()
                link.room_wanted = False

    def _look(self, link: Link, core: Replicator, worker: StorageWorker) -> None:
        """Take what has come where the socket is read; with too much waiting to be processed, `_read` takes it, and waits."""
        while link.backlog_bytes <= BACKLOG_BYTES_MAX and (data := link.stream.take()) is not None:
            self._received(link, data, core, worker)

    def _received(self, link: Link, data: bytes, core: Replicator, worker: StorageWorker) -> None:
        link.read_bytes += len(data)
        link.read_messages += 1
        # The first messages (hello, a heartbeat with the digest) may make a replica look back in its log, and fold.
        short = link.read_messages > OPENING_MESSAGES
        worker.task(partial(core.receive, link, data), weight(data) if short else None)

    async def _write(self, link: Link, core: Replicator, worker: StorageWorker) -> None:
        while True:
            while link.outgoing:
                data = link.outgoing[0]
                await link.stream.send(data)
                link.outgoing.popleft()
                link.outgoing_bytes -= len(data)
            if link.unwritable:
                link.unwritable = False
                worker.task(partial(core.set_writable, link, True))
            if link.finishing:
                return
            link.changed.clear()
            await link.changed.wait()

    # -- from the core, in the loop -----------------------------------------------------------------------------------

    def _send(self, sends: Sequence[tuple[Link, list[bytes]]]) -> None:
        for link, messages in sends:
            try:
                self._send_one(link, messages)
            except Exception as e:  # a bug: what counts as sent and was not is made good by another link, and others get theirs
                event(logging.ERROR, "send_failed", error=f"{type(e).__name__}: {e}")
                link.cut()

    def _send_one(self, link: Link, messages: list[bytes]) -> None:
        if not link.outgoing:  # else what is before them has not gone
            sent = 0
            while sent < len(messages) and link.stream.send_now(messages[sent]):
                sent += 1
            if sent == len(messages):
                return
            messages = messages[sent:]
        link.outgoing.extend(messages)
        link.outgoing_bytes += sum(map(len, messages))
        link.changed.set()
        if link.outgoing_bytes > UNWRITABLE_BYTES and not link.unwritable:
            core, worker = self._core, self._worker
            assert core is not None and worker is not None
            link.unwritable = True
            worker.task(partial(core.set_writable, link, False))

    def _finish(self, link: Link, code: str, permanent: bool) -> None:
        link.code = code
        link.permanent = permanent
        link.finishing = True
        link.changed.set()
        # A peer that is gone without a word takes nothing any more, not even the Bye.
        asyncio.get_running_loop().call_later(BYE_S, link.cut)

    def _live_changed(self, live: frozenset[str]) -> None:
        for region in live - self._live:
            self._errors.pop(region, None)
        self._live = live
        self._notify()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._notifying.add(task)
        task.add_done_callback(self._notifying.discard)

    # -- a state from elsewhere -----------------------------------------------------------------------------------

    async def merge_state(self, chunks: AsyncIterator[tuple[bytes, bytes]]) -> Installed:
        """Stage the chunks of a state, each with its link, and install it as a snapshot of another region.

        Raises:
            RegionUnavailableError: a snapshot is on its way here. StorageError: this store can take none.
            CorruptionError and what an install raises: nothing changed.
        """
        core, worker = self._core, self._worker
        assert core is not None and worker is not None
        snapshots = core.drive.transfers.snapshots
        if snapshots is None:
            raise StorageError("a directory with engine 'memory' keeps commits only, and can take no state: use rocksdb or lmdb")
        await worker.run(core.reserve_install)
        job: Job | None = None
        try:
            anew = True
            async for data, link in chunks:
                await _whole(worker.read(partial(snapshots.stage, data, link, anew=anew)))
                anew = False
            job = await _whole(worker.run(core.begin_install))
            result: Installed = await _whole(worker.read(job.run))
        except BaseException as e:
            await _whole(self._give_up_state(core, worker, job, as_crdtkv_error(e)))
            raise
        await _whole(worker.run(partial(core.end_install, job, result)))
        return result

    @staticmethod
    async def _give_up_state(core: Replicator, worker: StorageWorker, job: Job | None, error: CrdtkvError) -> None:
        snapshots = core.drive.transfers.snapshots
        if job is None and snapshots is not None:
            await worker.read(snapshots.discard)
        await worker.run(partial(core.end_install, job, None, error))

    # -- what is known --------------------------------------------------------------------------------------------

    def standings(self) -> tuple[tuple[Standing, bool], ...]:
        """In the writer: every region known, and whether it is connected."""
        return self._core.standings() if self._core is not None else ()

    @property
    def addresses(self) -> dict[str, str]:
        """Region → the address that is dialled."""
        return dict(self._addresses)

    @property
    def transfers(self) -> Transfers | None:
        """In the writer: snapshots to and from other nodes."""
        return None if self._core is None else self._core.drive.transfers

    @property
    def events(self) -> Mapping[str, int]:
        """In the writer: what happened to links, relays and snapshots since the start, by `EventKind`."""
        return {} if self._core is None else dict(self._core.events)

    @property
    def alarms(self) -> tuple[str, ...]:
        """In the writer: what an operator must look at, newest last, and what has been missing for some seconds."""
        return (*self._core.alarms, *self._core.waits_for()) if self._core is not None else ()

    async def lag(self) -> Lag:
        """Replication with every region that is configured or was connected, by name."""
        if self._worker is None:
            return self.lag_now()
        return await self._worker.run(self.lag_now)

    def lag_now(self) -> Lag:
        """The same, in the writer (what it reads of the loop's is replaced as a whole, or a word)."""
        rows = self._core.rows() if self._core is not None else []
        known = {row.region: (row, missing, waiting_ms) for row, missing, waiting_ms in rows}
        addresses, errors = dict(self._addresses), dict(self._errors)
        found: list[tuple[PeerLag, PeerStatistics | None]] = []
        for region in sorted(known.keys() | addresses.keys()):
            address, error = addresses.get(region, ""), errors.get(region, "")
            row = known[region][0] if region in known else None
            if row is not None and row.state is State.LIVE:
                found.append((self._lag_of(*known[region], address=address), row))
                continue
            state = f"down: {error}" if error else "connecting" if address else "down"
            if row is not None and row.state is State.QUARANTINED:
                state = f"quarantined: {error}"
            origin = row.origin if row is not None else ""
            found.append((PeerLag(region=region, address=address, origin=origin, state=state, error=error), row))
        return tuple(found)

    def _lag_of(self, row: PeerStatistics, missing: int, waiting_ms: float | None, *, address: str) -> PeerLag:
        # Of a peer that is overdue nothing is known; of one that announced nothing that is missing here, only that
        # what it wrote since may be on its way; else what is missing is as old as our wait for it, and the way here.
        overdue = row.heard_ms_ago is None or row.heard_ms_ago > 2 * self._settings.heartbeat_ms
        one_way_ms = None if row.round_trip_ms is None else row.round_trip_ms / 2
        lag_ms = None if overdue or one_way_ms is None else one_way_ms + (waiting_ms or 0.0)
        relaying = row.relay_in in (Relay.ASKED, Relay.OPEN)
        return PeerLag(
            region=row.region,
            address=address,
            origin=row.origin,
            connected=True,
            state="needs a snapshot" if row.below_floor else "relaying" if relaying else "streaming",
            lag_ms=lag_ms,
            commits_behind=None if overdue else missing,
            commits_ahead=row.behind_commits,
            bytes_ahead=row.behind_bytes,
            sent_bytes=row.sent_bytes,
            sent_wire_bytes=row.sent_wire_bytes,
            compression=ZLIB if row.is_compressing else "",
            rtt_ms=row.round_trip_ms,
            clock_offset_ms=row.clock_offset_ms,
            last_heard_ms=None if row.heard_ms_ago is None else round(row.heard_ms_ago),
        )


async def _whole(work: Awaitable[T]) -> T:
    """The result of something that must not be left half done: it goes on whoever is cancelled, who first waits for its end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
