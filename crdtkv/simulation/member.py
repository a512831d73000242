"""One replica of a simulation: the real machine and the real drive loop, and the I/O around them in virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from crdtkv.core.causality import Dot, Origin, VersionVector, make_origin, next_generation
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import TYPE_NAMES, successor
from crdtkv.core.control import Steering
from crdtkv.core.frame import Frame
from crdtkv.core.install import Installed
from crdtkv.core.types.counter import DEAD_SPACE
from crdtkv.errors import (
    ClockSkewError,
    CorruptionError,
    CrdtkvError,
    DiskFullError,
    IncompatibleFormatError,
    RegionRemovedError,
    RegionUnavailableError,
)
from crdtkv.replication.backoff import Backoff
from crdtkv.replication.drive import Drive, Work
from crdtkv.replication.messages import CannotRelay, Chunk, Frames, Heartbeat, HeartbeatReply, Message, encode, is_packed
from crdtkv.replication.snapshot import Job
from crdtkv.replication.status import EventKind
from crdtkv.simulation.clocks import WallClock
from crdtkv.simulation.disk import SimulatedEngine, SimulatedLog
from crdtkv.simulation.filed_log import FiledLog
from crdtkv.simulation.instance import SimulatedInstance
from crdtkv.simulation.lives import Life
from crdtkv.simulation.specification import Commit, Expire, Operation
from crdtkv.storage.retention import Acknowledgement, Due, RetentionPolicy
from crdtkv.store.identity import Record, why_new
from crdtkv.store.machine import REFUSED, Machine
from crdtkv.store.reading import Reader
from crdtkv.store.retention import Retention
from crdtkv.store.snapshots import MemoryStaging, Snapshots, Staging
from crdtkv.store.transaction import Transaction

if TYPE_CHECKING:
    from crdtkv.simulation.world import World

_BEATS: Final = frozenset[type[Message]]((Heartbeat, HeartbeatReply))
_COUNTED: Final = frozenset[type[Message]]((CannotRelay, Frames, Chunk))
CLUSTER: Final = "simulation"
EXPIRIES_AT_ONCE: Final = 4
LEAP: Final = 3
"""How far ahead the sent bound is set here: near, so that it is often reached."""


class PowerCut(BaseException):
    """The process died here."""


class _Snapshots(Snapshots):
    """Installs that die after some of their steps."""

    def __init__(self, machine: Machine, staging: Staging, world: World) -> None:
        super().__init__(machine, staging)
        self._world = world

    def install(self, step: Callable[[str], None] = lambda name: None) -> Installed:
        return super().install(self._step)

    def _step(self, name: str) -> None:
        if self._world.options.install_crashes and self._world.dice.chance(self._world.options.install_crashes):
            raise PowerCut(name)


class Member:
    """See the module's docstring. Its disks and its wall clock outlive its crashes."""

    def __init__(self, world: World, index: int, region: str, wall: WallClock) -> None:
        self.index = index
        self.region = region
        self.origin = make_origin(region, 1, index)
        self.wall = wall
        self.log = self._new_log(world)
        self.engine = SimulatedEngine()
        self.staging = MemoryStaging()  # a disk, too: it outlives a crash
        self.instance = SimulatedInstance()
        self.instance.open(self.origin, 0, 0)
        self.copy: tuple[Origin, SimulatedLog, SimulatedEngine, Record | None] | None = None
        """A copy of the directory, taken while it was in use."""
        self.is_up = False
        self.is_damaged = False
        """What its log had synced cannot be read any more."""
        self.pace = 1.0
        """How many times as long its disk and its hands take."""
        self.machine: Machine
        self.drive: Drive
        self.reader: Reader
        self._world = world
        self._life = Life()
        self._backoffs: dict[int, Backoff] = {}
        self._dialed: dict[int, int] = {}
        self._dialing: set[int] = set()
        self._unacknowledged: list[tuple[int, Dot]] = []
        self._pump_due = self._sync_due = self._bound_due = False
        self._wake_us: int | None = None

    def _new_log(self, world: World) -> SimulatedLog:
        # How much of it is in memory is not drawn, so that what is drawn stays what it was.
        return FiledLog() if world.options.filed else SimulatedLog((None, 0, 1, 3)[(world.seed + self.index) % 4])

    # -- life and death -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover from what the disks hold, and go on.

        Raises:
            DiskFullError: there is no room even for that; it is still down.
        """
        world, options = self._world, self._world.options
        self._end_life()
        self._dialed, self._dialing, self._unacknowledged = {}, set(), []
        self._pump_due = self._sync_due = self._bound_due = False
        self._wake_us = None
        clock = HybridClock(self.wall, max_skew_ms=options.core.max_skew_ms, refuse_ms=options.core.clock_refuse_ms)
        self.machine = Machine(
            self.log,
            self.engine,
            origin=self.origin,
            cluster=CLUSTER,
            clock=clock,
            settings=options.core,
            sync_releases=options.sync,
            fold_records_max=options.fold_records_max,
        )
        self._decide_incarnation()
        self.machine.when_installed = self._note_installed
        if options.beside:
            self.machine.when_folding = self._fold_later
        if self.staging.is_marked:
            self.machine.install(self.staging)
            world.rare["install_finished_at_start"] += 1
            world.rare["installed_while_writing"] += world.is_busy
        self.is_up = True
        self.machine.offer(_Snapshots(self.machine, self.staging, world))
        replication = options.replication
        if (world.seed + self.index) % 4 == 0:  # some do not compress, nor do those that talk to them: without drawing
            replication = replace(replication, compression="off")
        self.drive = Drive(self.machine, replication, now_ms=world.now_ms, wall_ms=self.wall, members=[m.region for m in world.members])
        self.reader = Reader(self.machine.replica)
        self._backoffs = {peer.index: Backoff(options.replication, world.dice) for peer in world.members if peer is not self}
        for peer in self._backoffs:
            if self.index < peer or options.both_dial:
                self._dial_in(peer, 0)
        self._later(world.dice.between(20, 120), self._housekeep)
        self._sync_later()  # what a killed process had appended is synced by the next one
        self.poke()

    def _decide_incarnation(self) -> None:
        """As the opening of a store does."""
        machine, instance = self.machine, self.instance
        vv = machine.replica.vv()
        evidence = instance.evidence(self.origin, vv.seq(self.origin), sum(vv.values()), is_engine_ahead=machine.is_engine_ahead)
        if machine.origin != self.origin or why_new(evidence) is not None:  # or a change of id was cut short
            known = (*machine.replica.vv(), self.origin)
            self.origin = make_origin(self.region, next_generation(self.region, known), self._world.dice.below(1 << 32))
            machine.begin_incarnation(self.origin)
        instance.open(self.origin, machine.own_seq(), machine.commits_durable())
        if not self._world.options.sync:
            machine.sent_bound = machine.own_seq()
            machine.when_beyond = self._raise_bound_later

    def _note(self) -> None:
        kept = self.log.vv_at[self.log.synced() if self._world.options.sync else self.log.end()]
        self.instance.note(self.origin, kept, self.machine.durable_vv())

    def _note_installed(self) -> None:
        durable = self.machine.durable_vv()
        self.instance.note(self.origin, durable, durable, sync=True)

    def _raise_bound_later(self) -> None:
        if not self._bound_due:
            self._bound_due = True
            self._later(self._world.options.disk_ms * (0.5 + self._world.dice.random()), self._raise_bound)

    def _raise_bound(self) -> None:
        self._bound_due = False
        bound = self.machine.own_seq() + LEAP
        self.instance.set_bound(self.origin, self.machine.own_seq(), bound, self.machine.commits_durable())
        self.machine.raise_bound(bound)
        self._released()

    @property
    def serves_snapshot(self) -> bool:
        """A peer is being sent a snapshot."""
        return bool(self.machine.pins)

    def take_copy(self) -> None:
        """Copy the directory as it is, in use."""
        self.copy = self.origin, self.log.copy(), self.engine.copy(), self.instance.inside

    def put_back(self) -> None:
        """The disk holds what the last copy did; its process is dead."""
        assert self.copy is not None and not self.is_up
        self.origin, log, engine, self.instance.inside = self.copy
        self.staging = MemoryStaging()
        self.log, self.engine = log.copy(), engine.copy()

    def drop_copy_beyond(self) -> None:
        """Own commits were lost that nobody had, and it goes on as who it was: others get their numbers, so no copy brings them back."""
        if self.copy is not None:
            origin, log, _, _ = self.copy
            if origin == self.origin and log.vv().seq(origin) > self.log.vv().seq(origin):
                self.copy = None

    def lose_disk(self) -> None:
        """The disk is a new one; its process is dead."""
        assert not self.is_up
        self.origin = make_origin(self.region, 1, self._world.dice.below(1 << 32))
        self.log, self.engine, self.staging, self.copy = self._new_log(self._world), SimulatedEngine(), MemoryStaging(), None
        self.is_damaged = False
        self.instance.wipe()
        self.instance.open(self.origin, 0, 0)

    def roll_back_log(self, position: int) -> None:
        """The log alone is that of an earlier time, and the engine is rebuilt from it; its process is dead."""
        assert not self.is_up and self.log.start() == 0
        self.log = self.log.copy()
        del self.log.frames[position:], self.log.vv_at[position + 1 :]
        self.log.sync()
        self.engine = SimulatedEngine()

    def renew(self) -> None:
        """Go on as another incarnation, before the first write."""
        known = (*self.machine.replica.vv(), self.origin)
        self.origin = make_origin(self.region, next_generation(self.region, known), self._world.dice.below(1 << 32))
        self.machine.begin_incarnation(self.origin)
        self.instance.open(self.origin, self.machine.own_seq(), self.machine.commits_durable())

    def meet(self, peer: Member) -> None:
        """A region that was added: dial it."""
        self._backoffs[peer.index] = Backoff(self._world.options.replication, self._world.dice)
        if self.is_up:
            self._dial_in(peer.index, 0)

    def crash(self, *, power: bool) -> list[Frame]:
        """Stop at once. With the power goes what was not synced; returns that. The engine wakes up at an earlier batch."""
        dice = self._world.dice
        self.is_up = False
        self._end_life()
        self._world.network.host_died(self, silently=power and dice.chance(0.5))
        lost: list[Frame] = []
        if power and self.staging.arrival.chunks and not self.staging.is_marked and dice.chance(0.5):
            self.staging.discard()  # never synced
        if not self.log.is_broken and self.machine.failed is None:
            self._note()  # a snapshot that is sent syncs the log as well: what is noted some times a second in a store is noted by now
        if power:
            self.instance.power_failed(keeps_mark=self._world.options.sync)
        least = max(self.log.synced(), min(self.engine.positions()))
        if isinstance(self.log, FiledLog):
            try:
                lost = self.log.stop(dice, least, power=power)
            except (CorruptionError, IncompatibleFormatError):
                if not self.log.has_rot:
                    raise
                self.is_damaged = True
                return []
        elif power:
            lost = self.log.lose(least + dice.below(self.log.end() - least + 1))
        fits = [i for i, p in enumerate(self.engine.positions()) if self.log.start() <= p <= self.log.end()]
        if not fits:
            assert isinstance(self.log, FiledLog) and self.log.has_rot, "the log ends before the engine"
            self._world.rare["engine_ahead_of_its_log"] += 1
        self.engine.wake(dice.pick(fits or range(len(self.engine.folds))))
        return lost

    def stop_for_good(self) -> None:
        """Nobody starts it again."""
        if self.is_up:
            self.is_up = False
            self._world.network.host_died(self, silently=True)
        self._end_life()

    def _end_life(self) -> None:
        """Nothing that was rung up so far is done any more."""
        self._life.is_over = True
        self._life = Life()

    # -- clients --------------------------------------------------------------------------------------------------

    def serve(
        self, fill: Callable[[Transaction], tuple[list[list[object]], tuple[Operation, ...]]], count: int, request_id: bytes | None = None
    ) -> bool:
        """Commit a group of transactions as one frame; acknowledge them as the durability level allows. False if none was made."""
        if self.machine.full is not None:
            return False
        made: list[Dot] = []
        if self.log.is_full:
            self._world.auditor.crashing(self)  # what an undo, too, must give again
        for _ in range(count):
            deltas, operations = fill(Transaction(self.machine.replica, self.reader))
            if deltas:
                made += self._commit(deltas, operations, request_id)
        return self._seal(made)

    def _commit(self, deltas: list[list[object]], operations: tuple[Operation, ...], request_id: bytes | None = None) -> list[Dot]:
        past = self.machine.replica.vv()
        try:
            seq, hlc = self.machine.transact(deltas, request_id)
        except REFUSED as e:
            self._world.rare["clock_refused" if isinstance(e, ClockSkewError) else "write_refused"] += 1
            return []
        dot = Dot(self.origin, seq)
        self._world.committed(self, Commit(dot, hlc, past, operations))
        if request_id is not None:
            self._world.auditor.requested(self, past, dot, request_id)
        return [dot]

    def _seal(self, made: list[Dot]) -> bool:
        if not made:
            return False
        folding = self.machine.replica.state.is_folding
        try:
            end = self.machine.seal()
        except DiskFullError:
            self._world.rare["commit_undone"] += 1
            self._world.rare["undone_while_folding"] += folding
            self._world.auditor.undone(self, made)
            return False
        self._unacknowledged += [(end, dot) for dot in made]
        self._released()
        self._sync_later()
        return True

    def _released(self) -> None:
        """Tell clients, and the drive, what may be told by now."""
        if self._unacknowledged:
            told = self.log.synced() if self._world.options.sync else self.log.end()
            self._world.acknowledge(self, [dot for end, dot in self._unacknowledged if end <= told])
            self._unacknowledged = [(end, dot) for end, dot in self._unacknowledged if end > told]
        self._note()
        self.drive.local_commits(self._world.now_ms)
        self.poke()

    # -- what nodes do beside serving -----------------------------------------------------------------------------

    def _sync_later(self) -> None:
        if not self._sync_due and self.log.synced() < self.log.end():
            self._sync_due = True
            self._later(self.pace * self._world.options.disk_ms * (0.5 + self._world.dice.random()), self._sync)

    def _sync(self) -> None:
        self._sync_due = False
        self.log.sync()
        machine = self.machine
        if machine.sent_bound is not None and machine.sent_bound > machine.own_seq() and self._world.dice.chance(0.3):
            machine.raise_bound(machine.own_seq())  # drawn back, as at rest
            self.instance.set_bound(self.origin, machine.own_seq(), machine.own_seq(), machine.commits_durable())
        self._released()

    def _housekeep(self) -> None:
        """Issue removals of what expired, clear a slice, fold, now and then."""
        world, replica = self._world, self.machine.replica
        end = self.log.end()
        if self.machine.full is not None and not self.log.is_full:
            self.machine.retry()
        due = list(replica.due(EXPIRIES_AT_ONCE)) if not self.log.is_full and self.machine.full is None else []
        if due:
            operations = [
                Expire((key, TYPE_NAMES[code], subkey), tuple(Dot(origin, seq) for origin, seq in dots))
                for _, key, code, subkey, dots in due
            ]
            world.rare["expiry_by_another"] += {dot.origin for op in operations for dot in op.dots} != {self.origin}
            self._seal(self._commit(due, tuple(operations)))
        is_idle = not due and not replica.purges.active and self.log.end() == end  # a retry may have applied what was held
        if replica.purges.active:
            replica.purge_slice(1 + world.dice.below(3))
        if world.dice.chance(world.options.folds / 10):
            is_idle = is_idle and not replica.state.pending
            with contextlib.suppress(DiskFullError):
                self.machine.fold()
        self._later(world.dice.between(20, 120), self._housekeep)
        if is_idle:
            world.idle()
        else:
            world.changed(self)

    def _fold_later(self) -> None:
        self._later(self._world.dice.pick((0.1, 1.0, 20.0)), self._fold_some)

    def _fold_some(self) -> None:
        """A step of a fold, as another thread does it in a store."""
        state, rare = self.machine.replica.state, self._world.rare
        rare["written_while_folding"] += state.is_folding and state.changed > 0
        if self.machine.full is None:  # else `retry` goes on with it
            with contextlib.suppress(DiskFullError):
                if not self.machine.fold_some(1 + self._world.dice.below(self._world.options.fold_records_max)):
                    self._fold_later()
        self._world.changed(self)

    def truncate(self, position: int) -> None:
        """Drop the log before a position, whoever lacks it, once the engine has flushed what rests on it."""
        self._drop(Retention(self.machine, RetentionPolicy()), Due(position))

    def retain(self, bytes_kept: int) -> None:
        """Drop what a store would by its policy, from what its peers have acknowledged to it."""
        retention = Retention(self.machine, RetentionPolicy(age_ms=1 << 60, bytes_kept=bytes_kept))
        told = {row.region: Acknowledgement(row.origin, row.durable) for row in self.drive.statistics(self._world.now_ms) if row.durable}
        retention.acknowledged({m.region: told.get(m.region) for m in self._world.members if m is not self})
        due = retention.due(self.wall())
        self._world.rare["log_held_for_a_member"] += bool(due.held_by)
        self._drop(retention, due)

    def _drop(self, retention: Retention, due: Due) -> None:
        # A round that the engine's disk stops half-way is due again, but has changed what replay is compared with.
        if due.position and not self.engine.is_full:
            before = [key for key, _ in self.engine.scan(DEAD_SPACE, successor(DEAD_SPACE))]
            self._world.auditor.forgetting(self, due.stable)
            retention.run(due)
            self._world.rare["dead_runs_dropped"] += sum(1 for key in before if key not in self.engine.records)
            self._released()

    # -- the I/O around the drive loop ----------------------------------------------------------------------------

    def poke(self) -> None:
        """Something came in: let the drive say soon what is to be done. Many pokes make one turn."""
        if not self._pump_due:
            self._pump_due = True
            self._world.in_life(self._life, 0.3 * self._world.dice.random(), self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        world, drive = self._world, self.drive
        if (until_ms := drive.idle_until(world.now_ms)) is not None:
            self._wake(until_ms)
            return world.idle()
        work = drive.ready()
        drive.accept(work)
        if work.is_empty:
            world.idle()
        else:
            self._tell(work)
            if (work.apply or work.closed) and drive.astray:  # it is by these that messages leave what waits
                world.violation(f"{self.region}: a message that came over a link that lives on was forgotten")
        if drive.amnesia is not None:
            self._begin_anew()
        if not work.is_empty:
            if work.steering is not None:
                self._later(world.dice.pick((0.0, 5.0)), self._steer, work.steering)
            if work.apply:
                self._later(self.pace * world.dice.pick((0.0, 0.1, 5.0)), self._apply, work.apply)
            for job in work.jobs:
                self._later(self.pace * world.dice.pick((0.1, 1.0, 10.0)), self._do, job)
        if work.wake_at_ms is not None:
            self._wake(work.wake_at_ms)

    def _begin_anew(self) -> None:
        """Go on as another: others know more of this one than it does."""
        world = self._world
        if self.engine.is_full or self.log.is_full:
            self._later(100, self.poke)  # there is no room to begin anew
        else:
            world.rare["told_that_it_ended"] += 1
            self.renew()
            world.auditor.clock_begins_anew(self)
            self.drive.renewed(world.now_ms)
            self.poke()

    def _tell(self, work: Work) -> None:
        """Send, close and note what the drive says."""
        world, is_idle = self._world, not (work.apply or work.jobs or work.steering or work.closed or work.events)
        index, sending, trace, send = self.index, world.auditor.sending, world.trace_sent, world.network.send
        for link, messages in work.messages.items():
            assert isinstance(link, int)
            for message, data in zip(messages, work.encoded(link), strict=True):
                sending(self, message)
                kind = type(message)
                is_beat = kind in _BEATS
                is_idle = is_idle and is_beat
                # What zlib makes of a message differs between its builds.
                trace(index, link, self._counted(message, data) if kind in _COUNTED else data)
                send(self, link, data, is_idle=is_beat)
        if is_idle:
            world.idle()
        for closed in work.closed:
            assert isinstance(closed.link, int)
            world.network.close(self, closed.link)
            self._gone(closed.link, permanent=closed.permanent)
        for event in work.events:
            world.rare[event.kind.value] += 1
            if event.kind is EventKind.SNAPSHOT_INSTALLED and world.is_busy:
                world.rare["installed_while_writing"] += 1
            # It goes on as another. What it had told and has lost shows to others only if the note of it went with the power.
            is_told = event.kind is EventKind.AMNESIA and ("has ended" in event.text or (world.faults.loses and "had told" in event.text))
            world.rare["told_that_it_lost"] += is_told and "had told" in event.text
            if event.alarm and not is_told and not (event.kind is EventKind.REMOVED and self.index in world.faults.once_removed):
                world.violation(f"{self.region}: {event.kind}: {event.text}")

    def _counted(self, message: Message, data: bytes) -> bytes:
        """Count what is rare about a message that is sent; its bytes without compression."""
        rare = self._world.rare
        if type(message) is CannotRelay:
            rare["cannot_relay"] += 1
        elif type(message) is Frames:
            rare["relayed_frames"] += message.relayed
        if not is_packed(data):
            return data
        rare["compressed"] += 1
        return encode(message)

    def record(self, deltas: list[list[object]]) -> bool:
        """Commit members' records, as an operator would have it; False if a wrong clock refuses it, or the region is about to go."""
        past = self.machine.replica.vv()
        try:
            self.machine.commit_control(deltas)
        except (ClockSkewError, RegionUnavailableError, RegionRemovedError):
            return False
        except DiskFullError:
            self._world.changed(self)  # it was made, and undone
            return False
        self._noted(past)
        self._sync()  # the operator is answered once it is on the disk
        return True

    def _steer(self, steering: Steering) -> None:
        past = self.machine.replica.vv()
        with contextlib.suppress(ClockSkewError, DiskFullError):  # it is tried again
            self.machine.steer(steering)
        self._world.rare["frozen"] += len(steering.freeze)
        if steering.limits:
            self._world.rare["limit_raised"] += 1
        if self.machine.replica.vv().seq(self.origin) > past.seq(self.origin):
            self._world.rare["closed_an_origin"] += 1
            self._noted(past)
        else:
            self.drive.local_commits(self._world.now_ms)
            self._sync_later()  # a limit that rose let in what was held back
            self.poke()
            self._world.changed(self)

    def _noted(self, past: VersionVector) -> None:
        """A control commit was made."""
        frame = self.log.frames[-1]
        dot = Dot(self.origin, frame.last_seq)
        self._world.committed(self, Commit(dot, frame.hlc, past, ()))
        self._unacknowledged.append((self.machine.log.end(), dot))
        self._released()
        self._sync_later()
        self._world.changed(self)

    def _do(self, job: Job) -> None:
        """Work for a snapshot."""
        world = self._world
        try:
            result = job.run()
        except PowerCut:
            world.rare["crashed_in_install"] += 1
            world.faults.crash(self, torn=True)
            return
        except DiskFullError as e:
            if self.machine.failed is not None:  # half of a snapshot is in its engine: it stops, and finishes that when it starts again
                world.rare["no_room_in_install"] += 1
                return world.faults.crash(self, torn=True, power=False)
            self.drive.job_failed(job, e, world.now_ms)
        except RegionRemovedError as e:  # it goes beyond where an origin was frozen: until the limit has risen
            world.rare["install_refused"] += 1
            self.drive.job_failed(job, e, world.now_ms)
        except CrdtkvError as e:
            world.fault(self, e, f"{self.region}: a snapshot could not be taken over ({job.kind}): {e}")
        else:
            self.drive.job_done(job, result, world.now_ms)
        world.trace("snapshot", self.index, job.kind)
        self.poke()
        self._sync_later()
        world.changed(self)

    def _apply(self, frames: tuple[Frame, ...]) -> None:
        world = self._world
        try:
            result = self.machine.apply(frames)
        except DiskFullError:
            world.rare["apply_deferred"] += 1
            self.drive.apply_deferred(world.now_ms)
            self.poke()
            world.changed(self)
            return
        except CrdtkvError as e:
            return world.fault(self, e, f"{self.region}: a frame could not be applied: {e}")
        world.rare["held"] += result.held > 0
        world.rare["dropped_held"] += result.dropped
        self.drive.applied(result, world.now_ms)
        self._sync_later()
        self.poke()
        world.changed(self)

    def _wake(self, at_ms: float) -> None:
        at_us, soonest_us = int(at_ms * 1000) + 1, self._world.now_us + 100
        if at_us < soonest_us:
            at_us = soonest_us
        if self._wake_us is None or at_us < self._wake_us:
            self._wake_us = at_us
            self._world.in_life(self._life, (at_us - self._world.now_us) / 1000, self._tick, at_us)

    def _tick(self, at_us: int) -> None:
        if self._wake_us != at_us:
            return self._world.idle()  # an earlier deadline has replaced this one
        self._wake_us = None
        self.drive.tick(self._world.now_ms)
        self._pump()

    def _later(self, delay_ms: float, what: Callable[..., None], *args: object) -> None:
        """Schedule something that only this life of the process does."""
        self._world.in_life(self._life, delay_ms, what, *args)

    # -- the network ----------------------------------------------------------------------------------------------

    def _dial(self, peer: int) -> None:
        """Open a link to a peer, unless there is one: then look again after a while."""
        self._dialing.discard(peer)
        if self.drive.is_connected(self._world.members[peer].region) or peer in self._dialed.values():
            self._world.idle()
            self._dial_in(peer, 200)
        else:
            self._dialing.add(peer)
            self._world.network.dial(self, self._world.members[peer])

    def _dial_in(self, peer: int, delay_ms: float) -> None:
        if peer not in self._dialing:
            self._dialing.add(peer)
            self._later(delay_ms, self._dial, peer)

    def dial_failed(self, peer: int) -> None:
        self._dialing.discard(peer)
        self._dial_in(peer, self._backoffs[peer].next_ms())

    def connected(self, link: int, peer: int, dialed: bool) -> None:
        if dialed:
            self._dialing.discard(peer)
            self._dialed[link] = peer
            self._backoffs[peer].reset()
        self.drive.connect(link, self._world.now_ms, dialed=dialed)
        self.poke()

    def received(self, link: int, data: bytes) -> None:
        self.drive.receive(link, data, self._world.now_ms)
        self.poke()

    def writable(self, link: int, is_writable: bool) -> None:
        self._world.rare["link_was_full"] += not is_writable
        self.drive.set_writable(link, is_writable, self._world.now_ms)
        self.poke()

    def disconnected(self, link: int) -> None:
        self.drive.disconnect(link, self._world.now_ms)
        self._gone(link)
        self.poke()

    def _gone(self, link: int, *, permanent: bool = False) -> None:
        peer = self._dialed.pop(link, None)
        if peer is not None:
            self._dial_in(peer, self._backoffs[peer].next_ms(permanent=permanent))
