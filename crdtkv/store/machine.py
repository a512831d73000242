"""One replica on one log and one engine: what makes commits durable, without locks, threads or sockets.

The way of a local transaction: its deltas change the replica's overlay (`transact`), `seal` encodes the frame and
appends it to the log, and only then may anyone be told. The engine follows in batches (`fold`): the log is the write
ahead log, and recovery replays from the position that the engine's last batch recorded. Where somebody folds beside (`when_folding`), a
full overlay is set aside in no time, and worked through by another thread in small steps; if that cannot keep up, writers take steps of it
themselves, so that they get slower rather than stop, and memory stays bounded. The way of a received frame
is the same, except that its bytes are there already. An append that fails leaves the overlay ahead of the log: the
machine is then *failed*, and answers nothing more; opening the store again recovers to what the log holds.

A full disk is the exception, for it passes: the machine then does that recovery by itself, in place (`_undo`), and is *full*:
it reads, but takes nothing, until `retry` finds that there is room. So nothing of a refused write is left. Frames received
meanwhile are refused as well, and stay with whoever has them. An engine that has no room is only late: the log has what it lacks.

A *sent bound*, where the store sets one, keeps own commits above it from leaving until it is raised: see `identity`.

It is also the port that replication sees: the embedded store, the node and the simulator all drive this one class.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from crdtkv.core.apply import Touched
from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.clock import HybridClock
from crdtkv.core.control import Control, Steering, close_delta
from crdtkv.core.frame import Delta, DeltaKind, Frame
from crdtkv.core.heads import Head
from crdtkv.core.install import Installed, Installer
from crdtkv.core.replica import DROPPED, DUPLICATE, Applied, Outcome, Replica
from crdtkv.core.settings import CoreSettings
from crdtkv.errors import (
    ClockSkewError,
    CorruptionError,
    CrdtkvError,
    DiskFullError,
    RegionRemovedError,
    RegionUnavailableError,
    StorageError,
    WrongClusterError,
)
from crdtkv.storage.durations import Durations
from crdtkv.storage.engine import EngineSnapshot, MemoryEngine, StateEngine
from crdtkv.storage.log import CommitLog
from crdtkv.storage.memory_log import MemoryLog

if TYPE_CHECKING:
    from types import TracebackType

    from crdtkv.store.snapshots import Snapshots, Staging

REFUSED = (ClockSkewError, RegionUnavailableError, RegionRemovedError)
"""What a commit may be refused with before anything changes."""
FOLD_BYTES_MAX = 16 << 20
"""The engine is written once so many bytes of frames wait: it bounds the replay after a crash, however few the records."""
FOLD_STEP = 1024
"""Records that one step of a fold works through: what somebody who waits for it may have to wait."""
FOLD_SHARE = 256
"""Records that a write works through once writers got ahead."""
QUICK_FOLD_MAX = 128
"""Changed records that whoever wants a quick view folds himself."""
VIEW_FOLD_MAX = 2048
"""More changed records than these are folded beside once somebody wants a quick view: each view lays all that waits over the engine's."""
REQUEST_CHUNKS = 4
"""The window of request ids is forgotten a fold at a time: it has so many at least, unless the records alone have more folds begun."""
GATHER_BYTES_MAX = 64 << 10
"""A frame whose commits gather is sealed once it holds this much."""
NO_REASONS: Mapping[Origin, Origin] = {}
UNLOGGED_KEY = b"u"
"""The side record of `Machine.unlogged`."""
REPLAY_BYTES = 1 << 20
"""How much of the log recovery reads at a time."""
KNOWN_MAX = 65_536
"""Records that recovery keeps of what it read ahead."""
UNSYNCED_MAX = 1 << 14
"""Frames whose dots are remembered until somebody asks what of them is fsynced; of more the log is read."""

_encode_unlogged = msgspec.msgpack.Encoder().encode
_decode_unlogged = msgspec.msgpack.Decoder(tuple[int, list[Any] | None]).decode


class Machine:
    """See the module's docstring. One caller at a time; `ReplicaPort` reads are safe from that caller only.

    Args:
        log: what was committed and received, in the order applied.
        engine: what some prefix of it amounts to.
        origin, cluster, shard: used if the engine is empty.
        sync_releases: a frame may leave for peers only once it is fsynced (durability `sync`).
        fold_records_max: changed records that may wait in memory before the engine is written.
        gather_commits_max: commits that may share a frame, of a caller that lets them `gather`.
    """

    # More than thirty attributes would be kept, and looked up, in a plain dict: slower at each turn.
    __slots__ = (
        "_beyond", "_changes", "_durable", "_durable_as_of", "_durable_at", "_folded_at", "_gathered_bytes", "_held_back", "_in_memory",
        "_is_flush_owed", "_logged", "_snapshots", "_unsynced", "_unsynced_at", "_vv", "blocked", "cluster", "control", "engine",
        "engine_is_rebuilt", "failed", "flushed", "fold_guard", "fold_records_max", "fold_steps", "folds", "full", "gather_commits_max",
        "is_engine_ahead", "is_fold_due", "is_folding_now", "log", "origin", "pins", "replayed", "replica", "sent_bound", "shard",
        "sync_releases", "unfolded_bytes", "when_beyond", "when_failed", "when_folding", "when_installed",
    )  # fmt: skip

    def __init__(
        self,
        log: CommitLog,
        engine: StateEngine,
        *,
        origin: Origin,
        cluster: str,
        clock: HybridClock,
        shard: int = 0,
        settings: CoreSettings | None = None,
        sync_releases: bool = False,
        fold_records_max: int = 4096,
        gather_commits_max: int = 256,
    ) -> None:
        self.log = log
        self.engine = engine
        self._in_memory = isinstance(log, MemoryLog) and isinstance(engine, MemoryEngine)
        self.replica = Replica(
            engine,
            origin=origin,
            cluster=cluster,
            shard=shard,
            clock=clock,
            settings=settings,
            base_keeps=isinstance(engine, MemoryEngine),
            digest_on_demand=self._in_memory,  # where nothing is compared with peers, few ask; and no restart needs it
        )
        self.control: Control = self.replica.control
        """Closed origins, members and frozen origins."""
        self.origin = self.replica.origin
        self.cluster = self.replica.cluster
        self.shard = self.replica.shard
        self.sync_releases = sync_releases
        self.fold_records_max = fold_records_max
        self.gather_commits_max = gather_commits_max
        self.failed: BaseException | None = None
        self.full: DiskFullError | None = None
        """Why nothing is taken, as long as that is so."""
        self.blocked = False
        """Failed, full or closed: what a write looks at first."""
        self.when_failed: Callable[[], None] = lambda: None
        self.engine_is_rebuilt = False
        """The engine starts empty at each opening: nothing may come to it but by the log."""
        self.flushed = 0
        """The log position up to which the engine is known to be on the disk; the log is not dropped beyond it."""
        self.pins: dict[int, int] = {}
        """Log positions from which on somebody still needs the log: it is not dropped beyond them."""
        self._snapshots: Snapshots | None = None
        self.sent_bound: int | None = None
        """Own commits above this seq may not leave yet; None: no bound. Raised by `raise_bound`."""
        self.when_beyond: Callable[[], None] = lambda: None
        """Called when an own commit above the bound was appended: whoever keeps the bound should raise it."""
        self._beyond: deque[tuple[int, int]] = deque()  # position and last seq of own frames above the bound
        self.folds = True
        """The engine is written once enough has gathered; False: it waits (`postpone_fold`)."""
        self.when_installed: Callable[[], None] = lambda: None
        """Called once something that the log has not is on the disk, before anything rests on it: what a directory had then is noted."""
        self.when_folding: Callable[[], None] | None = None
        """Called when a fold was begun: whoever is told calls `fold_some` until it is done. None: folds are done where they are due."""
        self.fold_guard: AbstractContextManager[object] = contextlib.nullcontext()
        """Held while somebody folds: a lock, if that may be another thread."""
        self.is_folding_now: Callable[[], bool] = lambda: False
        self.is_fold_due: Callable[[], bool] = lambda: False
        """By whoever folds beside: whether to begin with less than enough."""
        """Whether another thread is at a step of it just now."""
        self.unfolded_bytes = 0
        """Of frames that were appended since a fold was begun."""
        self.fold_steps = Durations()
        """How long it took to write the engine, step by step."""
        self._gathered_bytes = 0  # commits of the frame in the making, while they gather
        self.is_engine_ahead = self.replica.position > log.end()
        """The engine holds what the log has lost: nothing may be done before `begin_incarnation`."""
        self._is_flush_owed = False  # the engine must be on the disk before anything follows in the log
        self._folded_at = self.replica.position  # where the engine stands, at least, or will after the fold that was begun
        self.replayed = 0 if self.is_engine_ahead else self._replay(self.replica)
        if log.synced() < log.end():
            log.sync()  # a killed process leaves frames that only the kernel has; nothing may be promised on them before
        # What is in the log, and what of it is fsynced: the latter follows `log.synced()` when somebody asks.
        self._logged: dict[Origin, int] = dict(self.replica.vv().items())
        self._changes = 0
        """How often `_logged` has changed: what was made of it before is out of date."""
        self._vv = 0, VersionVector(self._logged)
        self._durable = self._vv[1]
        self._durable_at = log.end()
        self._durable_as_of = 0  # so many changes there were when `_durable` was last worked out
        self._unsynced: list[tuple[Origin, int]] = []
        """The last dot of each frame in the log from `_unsynced_at` on, so that nobody has to read the log to learn what was fsynced."""
        self._unsynced_at = log.end()
        self._held_back: deque[int] = deque()  # positions of frames that may leave only once fsynced

    # -- recovery -------------------------------------------------------------------------------------------------

    def _replay(self, replica: Replica, *, folding: bool = True) -> int:
        """Apply what the log has and the engine has not; how many frames that were."""
        log = self.log
        if replica.position < log.start():
            raise CorruptionError(
                f"the state engine stands at log position {replica.position}, but the log holds {log.start()} to {log.end()}: part of the "
                "directory was lost or restored; move the directory away and start again, so that the data comes back from a peer"
            )
        replayed = 0
        while replica.position < log.end():
            frames, _ = log.read(replica.position, bytes_max=REPLAY_BYTES)
            for frame in frames:
                frame.trust()
            replica.state.load(replica.touches(frames))
            for frame in frames:
                if replica.ready(frame) is not Outcome.APPLIED:
                    raise CorruptionError(
                        f"the log holds {frame!r} where the state engine stands at {replica.vv()}: part of the directory was lost or "
                        "restored; move the directory away and start again, so that the data comes back from a peer"
                    )
                replica.apply(frame)
            replayed += len(frames)
            replica.state.forget(KNOWN_MAX)  # what the fold looks up again, it finds here
            if folding and replica.state.pending >= self.fold_records_max:
                try:
                    replica.fold()
                except DiskFullError as e:
                    folding = False
                    self.refuse(e)
        return replayed

    # -- identity -------------------------------------------------------------------------------------------------

    def begin_incarnation(self, origin: Origin) -> None:
        """Go on under another id, which must be on record already; the engine has it when this returns.

        What the engine has and the log has lost (`is_engine_ahead`) then counts as installed: peers that lack it get it by a snapshot.

        If the engine has no room for it, the machine is full: the engine gets it at `retry`, and has it on the disk before anything is
        written. Whoever opens the directory before that finds a change that was cut short.
        """
        self.check()
        replica, log = self.replica, self.log
        if replica.making:
            self.seal()
        try:
            if self.is_engine_ahead:
                here = log.vv().join(log.floor())
                log.reset_floor(VersionVector({o: n for o, n in replica.vv().items() if n > here.seq(o)}))
                replica.position = log.end()
            replica.begin_incarnation(origin)
            self._fold()
            log.sync()  # before the engine, which must never be ahead
            self.engine.flush()
        except BaseException as e:
            if not isinstance(e, DiskFullError) or replica.origin != origin:
                self.fail(e)
                raise
            self.refuse(e)
            self._is_flush_owed = True
        self.is_engine_ahead = False
        self.origin = origin
        # What was held back was of the former id: nobody continues it, so it may leave, and be lost, like what was received.
        self._beyond.clear()
        if self.sent_bound is not None:
            self.sent_bound = 0

    def own_seq(self) -> int:
        """The last own commit in the log."""
        return self._logged.get(self.origin, 0)

    def raise_bound(self, seq: int) -> None:
        """Own commits up to `seq` may leave: that they may is on the disk. A lesser one than before, if none above it has been made."""
        assert self.sent_bound is not None and seq >= min(self.sent_bound, self.own_seq())
        self.sent_bound = seq
        while self._beyond and self._beyond[0][1] <= seq:
            self._beyond.popleft()

    # -- local transactions ---------------------------------------------------------------------------------------

    def transact(self, deltas: list[Delta], request_id: bytes | None = None) -> tuple[int, int]:
        """Make one commit, of a frame that `seal` will close; its `(seq, hlc)`. Nobody may be told before."""
        try:
            return self.replica.commit(deltas, request_id)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise

    def transact_put(self, slot: bytes, delta: Delta, request_id: bytes | None = None) -> tuple[int, int]:
        """`transact` of one register put without expiry; `slot` is the register's."""
        if self.replica.is_watched:
            return self.transact([delta], request_id)
        try:
            return self.replica.commit_put(slot, delta, request_id)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise

    def transact_together(self, puts: Mapping[str, bytes]) -> tuple[int, int]:
        """`transact` of register puts for good, by key."""
        if self.replica.is_watched:
            return self.transact([[DeltaKind.REGISTER_PUT, key, value] for key, value in puts.items()])
        try:
            return self.replica.commit_together(puts)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise

    def transact_puts(
        self, slots: Sequence[bytes], keys: Sequence[str], values: Sequence[bytes], request_ids: Sequence[bytes | None]
    ) -> tuple[int, int]:
        """`transact_put` of each put of these columns; the seq and stamp of the first, those that follow have the next of both."""
        assert not self.replica.is_watched, "what a commit changes visibly is told commit by commit"
        try:
            return self.replica.commit_puts(slots, keys, values, request_ids)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise

    def transact_add(self, slot: bytes, head: Head, delta: Delta) -> tuple[int, int]:
        """`transact` of one element's add without expiry; see `Replica.commit_add`."""
        if self.replica.is_watched:
            return self.transact([delta])
        try:
            return self.replica.commit_add(slot, head, delta)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise

    def gather(self, size: int) -> int:
        """Leave the commit just made in a frame that may still grow, instead of sealing it; that frame's position.

        For a store without a disk, where an append makes nothing more durable: commits that follow each other then
        share one header, hash and append. Whoever looks at the log, the vector or the engine seals first.

        Args:
            size: about how many bytes the commit holds.
        """
        self._gathered_bytes += size
        position = self.log.end()
        if self.replica.making >= self.gather_commits_max or self._gathered_bytes >= GATHER_BYTES_MAX:
            self.seal()
        return position

    def gather_put(self, slot: bytes, delta: Delta, size: int) -> tuple[int, int, int]:
        """`transact_put` and `gather`, for a log that nobody follows: `(seq, hlc, position)`. The commonest write of all, written out."""
        replica = self.replica
        try:
            seq, hlc = replica.commit_put(slot, delta)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise
        self._gathered_bytes += size
        position = replica.position  # where the log ends: all that is applied and not in the making is there
        if replica.making >= self.gather_commits_max or self._gathered_bytes >= GATHER_BYTES_MAX:
            self.seal()
        return seq, hlc, position

    def seal(self, *, sync: bool = False) -> int:
        """Close the frame in the making and append it; the log's end. `sync`: it may leave only once fsynced.

        Raises:
            DiskFullError: the log has no room for it; nothing of it is left.
            StorageError: the log could not take it; the machine is failed from now on.
        """
        self.check()  # else a group whose commits were lost with a failed append would seem to be written
        self._gathered_bytes = 0
        try:
            frame = self.replica.close_frame()
            return self.log.end() if frame is None else self._append((frame,), sync)
        except DiskFullError as e:
            self._undo(e)
            raise
        except BaseException as e:  # an interrupt too: the replica would be ahead of the log, which would get a hole
            self.fail(e)
            raise

    def _append(self, frames: Sequence[Frame], sync: bool) -> int:
        if self.failed is not None:
            raise self._failure()
        try:
            end = self.log.append(frames)
        except DiskFullError:
            raise
        except BaseException as e:
            self.fail(e)
            raise
        if sync and not self.sync_releases:
            self._held_back.append(end - len(frames))
        logged, unsynced = self._logged, self._unsynced
        for frame in frames:
            logged[frame.origin] = frame.last_seq
            unsynced.append((frame.origin, frame.last_seq))
            self.unfolded_bytes += frame.size
        if len(unsynced) > UNSYNCED_MAX:
            unsynced.clear()
            self._unsynced_at = end
        self._changes += 1
        if self.sent_bound is not None and (own := logged.get(self.origin, 0)) > self.sent_bound:
            if frames[-1].origin == self.origin:  # own frames are appended one by one
                self._beyond.append((end - 1, own))
            self.when_beyond()
        if self._is_full() or self.is_fold_due():
            try:
                self._fold_in_time()
            except DiskFullError:
                pass  # the log has it; that the next write is refused is enough
            except CrdtkvError as e:
                e.maybe_applied = True  # the log has it
                raise
        return end

    @property
    def is_half_full(self) -> bool:
        """Whether half of what has the engine written waits. Any thread."""
        return self._is_full(0.5)

    def _is_full(self, times: float = 1) -> bool:
        """Whether enough waits for the engine to be written; or so many times enough."""
        replica, most = self.replica, times * self.fold_records_max
        if replica.state.changed >= most or self.unfolded_bytes >= times * FOLD_BYTES_MAX:
            return True
        # Request ids beside the records: a few keys may be put over and over, and records in memory do not wait at all.
        ids = replica.requests.unfolded
        return ids >= most and ids >= times * replica.settings.requests_max // REQUEST_CHUNKS

    def postpone_fold(self) -> bool:
        """For a few small changes in a hurry: have none of them write the engine, until `folds` is set again.

        False if the engine is to be written first: so what is postponed stays small.
        """
        self.folds = self._is_full() and (self.when_folding is None or self.replica.state.is_folding)
        return not self.folds

    def _fold_in_time(self) -> None:
        """Enough waits: write it, or have it written beside. While what was set aside before is not done, do a share of that.

        So each write pays for some of the work once writers got ahead, unless the other thread is at it; nobody lets more than twice enough
        wait.
        """
        state = self.replica.state
        if self.when_folding is None:
            if self.folds:
                self.fold()
            return
        if state.is_folding and self.folds:
            if self._is_full(2):
                self._end_fold()
            elif not self.is_folding_now():
                self.fold_some(FOLD_SHARE)
        if not state.is_folding:
            self._begin_fold()
            self.when_folding()

    def _begin_fold(self) -> None:
        try:
            self.replica.begin_fold()
        except BaseException as e:
            self.fail(e)
            raise
        self.unfolded_bytes = 0
        self._folded_at = self.replica.position

    def fold_some(self, records_max: int = FOLD_STEP) -> bool:
        """Do some of a fold that was begun; True when nothing of it is left. Any thread, beside everything else.

        Raises:
            DiskFullError: the engine has no room: the machine is full, and the fold goes on at `retry`.
            StorageError: the engine could not be written; the machine is failed from now on.
        """
        with self.fold_guard:
            if self.failed is not None:
                raise self._failure()
            if not self.replica.state.is_folding:
                return True
            began = time.perf_counter()
            with _OrStopped(self):
                is_done = self.replica.state.fold_some(records_max)
            self.fold_steps.note(time.perf_counter() - began)
            return is_done

    def fold_soon(self, records_max: int = QUICK_FOLD_MAX) -> bool:
        """Have what waits for the engine written beside, if that is more than so many records; True: it is not written yet.

        For whoever needs it written, and would have others wait if he did it himself. False too where nobody folds beside.
        """
        state = self.replica.state
        if self.when_folding is None or self.full is not None or state.pending <= records_max:
            return False
        self.check()
        if self.replica.making:
            self.seal()
        if not state.is_folding:
            self._begin_fold()
            self.when_folding()
        return True

    def _end_fold(self) -> None:
        """Do the rest of a fold that was begun."""
        if self.failed is not None:
            raise self._failure()
        while self.replica.state.is_folding and not self.fold_some(FOLD_STEP):
            pass

    def fold(self) -> None:
        """Write what changed to the engine. When it returns, all of it is there and nobody folds."""
        if self.failed is not None:
            raise self._failure()
        if self.replica.making:
            self.seal()
        # Frames that change nothing here move the position all the same, and the log may be dropped up to what was folded.
        if self.replica.state.changed or self.replica.position != self._folded_at:
            self._fold()
        else:
            self._end_fold()

    def _fold(self) -> None:
        self._end_fold()
        self._begin_fold()
        self._end_fold()

    def settle(self) -> None:
        """Have log and engine on the disk, up to here. Raises as `flush` does."""
        self.check()
        if not self.is_engine_ahead:
            self.fold()
            self.flush(self.replica.position)

    def flush(self, position: int) -> None:
        """Have log and engine on the disk up to a position that was folded. May run beside everything else."""
        with _OrStopped(self):
            if self.log.synced() < position:
                self.log.sync()  # first: an engine that is ahead of its log would look like a log that was rolled back
            self.engine.flush()
        self.flushed = max(self.flushed, position)

    def note_synced(self) -> None:
        """See `CommitLog.note_synced`. Raises as `flush` does."""
        with _OrStopped(self):
            self.log.note_synced()

    def purge_slice(self, slots_max: int) -> bool:
        """Do some of the clearing that is due, and write it once enough has gathered; True if more is left."""
        try:
            more = self.replica.purge_slice(slots_max)
        except BaseException as e:
            self.fail(e)
            raise
        if self._is_full():
            with contextlib.suppress(DiskFullError):
                self._fold_in_time()
        return more

    def fail(self, error: BaseException) -> None:
        """Something broke half way: answer nothing more."""
        if self.failed is None:
            self.failed = error
            self.blocked = True
            self.when_failed()

    # -- a full disk ----------------------------------------------------------------------------------------------

    def refuse(self, why: DiskFullError) -> None:
        """Take nothing until `retry` finds room."""
        self.full = why
        self.blocked = True

    def retry(self) -> None:
        """There may be room again: take writes, unless the engine still has none for what waits for it."""
        if self.full is not None and self.failed is None:
            with contextlib.suppress(DiskFullError):
                self.fold()
                if self._is_flush_owed:
                    self.flush(self.replica.position)
                    self._is_flush_owed = False
                self.full = None
                self.blocked = False
                self._apply_held()  # what an undo had held again

    def check_writable(self) -> None:
        """Raise if the machine has failed (`StorageError`) or takes nothing for want of room (`DiskFullError`)."""
        self.check()
        if self.full is not None:
            raise DiskFullError(
                f"no room on the disk, so nothing is written until there is some: {self.full.message}",
                **self.full.details,
                retry_after_ms=1000,
            )

    def _undo(self, why: DiskFullError) -> None:
        """Go back to what engine and log hold, as a restart would, and refuse what comes. O(what was not folded).

        Another replica is made from them, and its contents are taken over: readers see what was undone, or not. A fold that was begun is
        given up: all of it is in the log.
        """
        try:
            mine = self.replica
            with self.fold_guard:
                again = Replica(
                    self.engine, origin=self.origin, cluster=self.cluster, shard=self.shard, clock=mine.clock, settings=mine.settings
                )
                self._folded_at = again.position
                self._replay(again, folding=False)
                mine.adopt(again)
        except BaseException as e:
            self.fail(e)
            raise
        self._gathered_bytes = 0
        self.refuse(why)

    def _failure(self) -> StorageError:
        return StorageError(f"the store failed and must be opened again: {self.failed}", cause=str(self.failed))

    def check(self) -> None:
        """Raise `StorageError` if the machine has failed."""
        if self.failed is not None:
            raise self._failure()

    # -- the port that replication sees ---------------------------------------------------------------------------

    def apply(self, frames: Sequence[Frame]) -> Applied:
        """Apply received frames, append what became part of the state to the log; see `ReplicaPort.apply`."""
        self.check_writable()
        replica = self.replica
        if replica.making:
            self.seal()
        applied: list[Frame] = []
        added = dropped = 0
        try:
            if not self._in_memory and sum([frame.count for frame in frames]) > 1:
                self._read_ahead(frames)
            for frame in frames:
                outcome, _ = replica.receive(frame, applied)
                dropped += outcome is DROPPED
                if self._in_memory and applied and self._is_full():
                    added += len(applied)
                    self._append(applied, False)  # never refused: so what waits to be folded stays small, and in the processor's caches
                    applied = []
        except (CorruptionError, WrongClusterError):
            raise  # the frame's fault: it has changed nothing
        except BaseException as e:
            self.fail(e)
            raise
        finally:
            # Whatever stopped us, what was applied before it must be in the log.
            replica.state.forget(KNOWN_MAX)  # what a fold looks up again, it finds here
            if applied and self.failed is None:
                self._append_received(frames, applied)
        return Applied(added + len(applied), replica.held[0], self.log.end(), dropped)

    def _append_received(self, frames: Sequence[Frame], applied: Sequence[Frame]) -> None:
        try:
            self._append(applied, False)
        except DiskFullError as e:
            self._undo(e)
            given = set(map(id, frames))
            self.replica.hold(frame for frame in applied if id(frame) not in given)  # these nobody will send again by himself
            raise

    def _read_ahead(self, frames: Sequence[Frame]) -> None:
        """Fetch in one multi-get what a group of frames will touch. A damaged frame is left for `apply` to refuse."""
        keys: list[bytes] = []
        with contextlib.suppress(CorruptionError, WrongClusterError):
            for frame in frames:
                if self.replica.ready(frame) is not DUPLICATE:
                    keys += self.replica.touches((frame,))
        self.replica.state.load(keys)

    def commit_control(self, deltas: list[Delta]) -> int:
        """Commit closings and members' records as a frame of their own; the log's end. See `Replica.commit_control`."""
        self.check_writable()
        if self.replica.making:
            self.seal()
        try:
            self.replica.commit_control(deltas)
        except REFUSED:
            raise  # nothing has changed
        except BaseException as e:
            self.fail(e)
            raise
        return self.seal()

    def freeze(self, origins: Iterable[Origin], later: Mapping[Origin, Origin] = NO_REASONS) -> None:
        """Take no more of these origins than is applied now, across restarts too: what is told of them afterwards stays true.

        Args:
            later: see `Control.ended_by`.
        """
        self.check_writable()
        if self.replica.making:
            self.seal()
        wanted = list(origins)
        frozen = [origin for origin in wanted if origin not in self.control.frozen]
        try:
            for origin in wanted:
                self.replica.freeze(origin, later.get(origin))
            self.log.sync()
            self._fold()
            self.engine.flush()
        except DiskFullError as e:
            for origin in frozen:
                self.control.thaw(origin)  # or somebody would be told what a restart forgets
            self.refuse(e)
            raise
        except BaseException as e:
            self.fail(e)
            raise

    def raise_limits(self, limits: Mapping[Origin, int]) -> None:
        """Take so much more of origins that are frozen; what was held of them is applied if it is ready by that."""
        self.check_writable()
        if self.replica.making:
            self.seal()
        for origin, limit in limits.items():
            self.replica.raise_limit(origin, limit)
        self._apply_held()

    def _apply_held(self) -> None:
        """Apply what is held and became ready though no frame came, and have it in the log.

        Raises:
            DiskFullError: there is no room; it is held again, and the machine is full.
        """
        waited: list[Frame] = []
        try:
            while True:
                try:
                    self.replica.apply_held(waited)
                    return
                except (CorruptionError, WrongClusterError):
                    pass  # that frame is dropped, and has changed nothing: whoever brings it again is blamed for it
        except BaseException as e:
            self.fail(e)
            raise
        finally:
            if waited and self.failed is None:
                self._append_received((), waited)

    def steer(self, steering: Steering) -> None:
        """Freeze, raise limits, close. What was closed meanwhile, or is not applied exactly to its end, is left for the next time, and so
        are limits and closings if anything was agreed or frozen meanwhile."""
        is_as_found = steering.version == self.control.version
        if steering.freeze:
            self.freeze(steering.freeze, steering.later)
        if steering.limits and is_as_found:
            self.raise_limits(steering.limits)
        ready = {o: n for o, n in steering.close.items() if self.replica.seq(o) == n and self.control.last(o) != n}
        if ready and is_as_found:
            self.commit_control([close_delta(origin, seq) for origin, seq in sorted(ready.items())])

    def install(
        self, staging: Staging, step: Callable[[str], None] = lambda name: None, changed: Callable[[Touched], None] | None = None
    ) -> Installed:
        """Install a snapshot that is staged as a whole: see `store.snapshots` for the steps. O(both states).

        Args:
            step: called after each step; a test that raises there stops as a crash does.
            changed: is told of each slot that changed.
        Raises:
            CorruptionError, WrongClusterError, StorageError, RegionRemovedError: it cannot be installed here; nothing has changed.
        """
        self.check_writable()
        replica, log = self.replica, self.log
        if replica.making:
            self.seal()
        staging.arrival.check_whole()
        incoming = staging.arrival.incoming
        assert incoming is not None
        while self.purge_slice(10_000):
            pass
        assert staging.arrival.origin is not None
        replica.follow(staging.arrival.origin, incoming.vv)
        if staging.is_marked:  # it was allowed when it began: what limits had risen to by then was in memory only
            for origin in [o for o in incoming.vv if o in replica.control.frozen]:
                replica.raise_limit(origin, incoming.vv.seq(origin))
        installer = Installer(replica, incoming, changed, begun=staging.is_marked)
        try:
            log.sync()
            self.fold()
            self.engine.flush()
            step("flushed before")
            staging.mark()
            step("marked")
            for _ in installer.run(staging.slots(), self.fold_records_max):
                self._fold()
                step("batch")
            self._fold()
            step("joined")
            before = self.vv()
            log.reset_floor(VersionVector({o: n for o, n in incoming.vv.items() if n > before.seq(o)}))
            step("floor")
            done = installer.finish()
            self.installed(done.jumped)
            step("installed")
            staging.discard()
            step("done")
        except DiskFullError as e:
            if not staging.is_marked:
                self.refuse(e)
                raise
            self.fail(e)
            raise
        except BaseException as e:
            self.fail(e)
            raise
        return done

    def installed(self, jumped: VersionVector) -> None:
        """After a snapshot was installed: the engine must have it before anything rests on it, for the log has not."""
        self.note_unlogged(self.vv().join(jumped))
        try:
            self.log.reset_floor(jumped)
            self._fold()
        except DiskFullError as e:
            self._undo(e)  # a floor that is too high costs whoever asks another way, and no more
            raise
        except BaseException as e:
            self.fail(e)
            raise
        try:
            self.engine.flush()
        except BaseException as e:
            self.fail(e)
            raise
        self._logged.update(jumped.items())
        self._changes += 1
        self._durable = self._durable.join(jumped)
        self.when_installed()
        with contextlib.suppress(DiskFullError):  # the install is done all the same; the rest comes with `retry`
            self._apply_held()

    def note_unlogged(self, vv: VersionVector | None = None) -> None:
        """Records change here without a frame in the log; the engine gets the note with the next fold. `vv`: what is applied with it."""
        self.replica.state.side_put(UNLOGGED_KEY, _encode_unlogged((self.log.end(), None if vv is None else vv.flat())))

    @property
    def unlogged(self) -> tuple[int, VersionVector | None] | None:
        """Where the log last ended when records changed without a frame in it: what follows the log from before lacks that.

        None: never. With it what is applied since; None there: that did not change (a repair). O(1), a read of the engine.
        """
        data = self.replica.state.side_get(UNLOGGED_KEY)
        if data is None:
            return None
        position, flat = _decode_unlogged(data)
        return position, None if flat is None else VersionVector.from_flat(flat)

    @property
    def snapshots(self) -> Snapshots | None:
        """Snapshots between nodes; None: this machine neither gives nor takes any (`offer`)."""
        return self._snapshots

    def offer(self, snapshots: Snapshots) -> None:
        """Give and take snapshots from now on."""
        self._snapshots = snapshots

    def vv(self) -> VersionVector:
        """What is applied and in the log, closed origins included: it never names a commit of a frame in the making.

        The same object until that changes. Any thread.
        """
        made_at, vv = self._vv
        if made_at != self._changes:
            changes = self._changes  # before the copy: what changes while it is made makes it out of date
            vv = VersionVector.adopt(dict(self._logged))
            self._vv = changes, vv
        return vv

    def durable_vv(self) -> VersionVector:
        """What is fsynced; the same object until that changes. O(frames fsynced since the last call). With the lock held.

        To be asked before any of these frames is dropped. The log's floor does not tell what they were: where a process died between
        raising it and the engine's batch of an install, it names what this replica never had.
        """
        log = self.log
        synced = log.synced()
        if synced == self._durable_at and self._changes == self._durable_as_of:
            return self._durable
        self._durable_as_of = self._changes
        if synced == log.end():
            self._durable = self.vv()
        elif self._durable_at < synced:
            durable = dict(self._durable.items())
            while self._durable_at < min(synced, self._unsynced_at):
                frames, self._durable_at = log.read(self._durable_at, bytes_max=REPLAY_BYTES, until=synced)
                for frame in frames:
                    durable[frame.origin] = max(frame.last_seq, durable.get(frame.origin, 0))
            # Of each origin's dots the last stays.
            for origin, seq in dict(self._unsynced[: max(0, synced - self._unsynced_at)]).items():
                durable[origin] = max(seq, durable.get(origin, 0))
            self._durable = VersionVector.adopt(durable)
        self._durable_at = synced
        if synced > self._unsynced_at:
            del self._unsynced[: synced - self._unsynced_at]
            self._unsynced_at = synced
        return self._durable

    def commits_durable(self) -> int:
        """How many commits of all origins are fsynced. Costs what `durable_vv` does."""
        return self.durable_vv().count()

    def released(self) -> int:
        synced = self.log.synced()
        if self.sync_releases:
            return synced
        while self._held_back and self._held_back[0] < synced:
            self._held_back.popleft()
        end = self._held_back[0] if self._held_back else self.log.end()
        return min(end, self._beyond[0][0]) if self._beyond else end

    def hlc(self) -> int:
        return self.replica.clock.mark

    def digest(self) -> tuple[VersionVector, str] | None:
        if self.replica.purges.active:
            return None
        self._settle()  # the digest is then at hand
        return self.vv(), f"{self.replica.digest():032x}"

    def _settle(self) -> None:
        """Fold, if the engine has room; nobody folds when it returns."""
        with contextlib.suppress(DiskFullError):
            if self.full is None:
                self.fold()
            else:
                self._end_fold()

    def snapshot(self) -> EngineSnapshot:
        """A view of all that is applied. Folds first; if the engine has no room, what waits for it is laid over its view."""
        self._settle()
        self.check()
        view, state = self.engine.snapshot(), self.replica.state
        return state.overlaid(view) if state.pending else view

    def checkpoint(self, directory: Path, position: int) -> bool:
        """A copy of the engine, which stands at that log position, in a directory that must not be there; see `StateEngine.checkpoint`.

        For who holds `fold_guard`; beside everything else. False: there is no room for it.
        """
        try:
            self.flush(position)
            self.engine.checkpoint(directory)
        except DiskFullError:
            return False
        return True

    def quick_snapshot(self) -> EngineSnapshot:
        """`snapshot` for one of many short reads: nobody waits for more than a few records to be folded.

        What waits for the engine is laid over its view if it is much, which makes reading a little slower, a record.
        """
        if self.when_folding is None or self.replica.state.pending <= QUICK_FOLD_MAX:
            return self.snapshot()
        self.check()
        if self.replica.making:
            self.seal()
        self.fold_soon(VIEW_FOLD_MAX)
        self.replica.heads.fold()
        return self.replica.state.snapshot(self.engine.snapshot)

    def frame_hash(self, origin: Origin, seq: int) -> bytes | None:
        return self.replica.hash_at(origin, seq)

    def kept_hashes(self) -> dict[Origin, tuple[int, bytes]]:
        return self.replica.last_hashes()


class _OrStopped:
    """What the disk may refuse beside the writers: no room makes the machine full, anything else fails it; either is raised."""

    __slots__ = ("_machine",)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, DiskFullError):
            self._machine.refuse(error)
        elif error is not None:
            self._machine.fail(error)
