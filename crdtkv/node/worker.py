"""The storage worker: everything that touches the store, in groups, and whatever may take long off the event loop.

A *turn* takes what has gathered since the last: first the tasks (messages of peers: decoding, applying their frames), then
all requests of all clients as one group (`Store.execute`: one frame, one log append, one engine batch), then `turn`, which
lets replication look at what is new and say what to send. While it works, the next turn's work gathers: group commit across
clients, with no timer. One turn is under way at a time, in one of two places:

- *In the loop*, if the turn is short for sure: a few requests that each touch a record or two, small messages of peers, and
  nobody holds the store's lock (`Store.begin_quick`). What came in one iteration of the loop is one group. Such a turn folds
  nothing, fsyncs nothing and waits for no lock; what it may wait for is the kernel taking a few KiB for the log, and a read
  of one record. One that took longer than `QUICK_SLOW_S` after all (a disk that stalls) sends everything to the writer
  for `QUICK_PAUSE_S`, and for longer if the next is slow as well: one may be the fault of whoever else uses the processors.
- *In the writer thread*, everything else.

For one caller, two hand-overs between threads cost as much as the work itself (measured: a quarter of a put's latency); with
many, messages are large, and reading and writing them while a group executes is worth the hand-over. So both ways exist.

Beside them, so that nothing that is slow blocks what is quick:

- *Syncer* (one, for stores that fsync before they answer): waits until a group is durable while the writer already
  executes the next ones, and takes all that have been executed meanwhile with one fsync. Only then are they answered.
- *Readers* (two): pages of scans, feeds, status: anything that may read for long or from a cold disk.

The replication core runs in the turn too: it reads the log and the replica, which only a turn may do without waiting.
So what a turn made goes to the loop in one wake-up: replies to clients and messages to peers together. At most one
wake-up is under way; the cost of a hop is per turn, not per request.

While a snapshot is installed the store is `occupied`, perhaps for seconds. Turns go on, so that the links to peers live; requests wait, and
after `HELD_S` are refused with the advice to come again.

Everything has a bound: requests waiting (`OverloadedError`), rows and bytes of one group. Whoever adds tasks bounds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from crdtkv.errors import (
    CrdtkvError,
    DeadlineExceededError,
    DiskFullError,
    OverloadedError,
    RegionUnavailableError,
    StorageError,
    StoreClosedError,
)
from crdtkv.node.logging import LOGGER, event
from crdtkv.store.requests import BLOCKS, QUICK_OPS, requests_of

if TYPE_CHECKING:
    from crdtkv.core.token import Token
    from crdtkv.results import Status
    from crdtkv.store.store import Store

T = TypeVar("T")
Row = Sequence[Any]
"""Requests `(id, op, args, options)`, or their reply `[id, status, payload]`; see `proto/crdtkv/pb/v1/kv.proto`."""
Deliver = Callable[[list[Any], int, str], None]
"""Takes the replies to one message of requests, how many requests they answer, and the token that covers them; called in the loop."""
Turn = Callable[[], float | None]
"""Runs in the writer after each turn; returns when it wants the next (`time.monotonic`), None: when there is work."""

GROUP_ROWS_MAX: Final = 512
GROUP_BYTES_MAX: Final = 1 << 20
"""One group becomes one frame, and its writes leave for other regions together, which apply it while the next is executed. Larger
ones hold up whoever waits, and the loop for want of the GIL; and each request of them costs more, since its rows are no longer in the
processor's cache when they are looked at again (measured: in groups of 2,048 a fifth more than in groups of 512)."""
READERS: Final = 2
QUICK_ROWS_MAX: Final = 256
QUICK_BYTES_MAX: Final = 64 << 10
"""What a turn in the loop may hold: about a millisecond's work. A turn of the writer holds up the loop as well, for want of the GIL."""
QUICK_SLOW_S: Final = 0.02
QUICK_PAUSE_S: Final = 0.05
QUICK_PAUSE_MAX_S: Final = 2.0
"""Each pause is twice as long as the last, up to this, if the last ended less than this ago."""
SOON_S: Final = 0.05
"""A turn that is wanted so soon (an ack that is due) is taken by the loop's timer; a later one (a heartbeat) by the writer."""
HELD_S: Final = 2.0
"""How long requests wait while the store is occupied (a snapshot is being installed) before they are refused."""
HELD_RETRY_MS: Final = 250
"""When those are to be tried again."""
_NONE_LATE: Final[Set[int]] = frozenset()
RETRY_S: Final = 1.0
"""When a turn that failed is tried again, if nothing else asks for one."""


class Storage(Protocol):
    """What the worker asks of a store (`crdtkv.store.Store`)."""

    def execute(self, requests: list[Any]) -> Any: ...

    def wait_durable(self, position: int) -> None: ...

    def is_durable(self, position: int) -> bool: ...

    def begin_quick(self) -> bool: ...

    def end_quick(self) -> None: ...


@dataclass(slots=True)
class _Batch:
    """One message of requests on its way to the store."""

    rows: Sequence[Row]
    size: int
    deliver: Deliver
    arrived: float
    deadline_ms: int
    """Of the requests that have none of their own, from its arrival on; 0: none."""
    ops: set[str]
    optioned: list[Row]
    """The requests whose options are a map."""
    count: int
    """How many requests its rows stand for."""

    @property
    def is_quick(self) -> bool:
        """Each of its requests touches a record or two and waits for nothing."""
        return (
            self.count <= QUICK_ROWS_MAX
            and self.ops <= QUICK_OPS
            and not (self.optioned and any("durability" in row[3] for row in self.optioned))
        )

    def expired(self, now: float) -> Set[int]:
        """The places of rows that are past their deadlines."""
        waited_ms = (now - self.arrived) * 1000
        own = self.optioned and [row for row in self.optioned if "deadline_ms" in row[3]]
        if not own and not 0 < self.deadline_ms <= waited_ms:
            return _NONE_LATE
        common = self.deadline_ms or None
        return {at for at, row in enumerate(self.rows) if _is_past(_deadline_ms(row, common), waited_ms)}


def error_row(request_id: int, error: CrdtkvError) -> list[Any]:
    """The reply row of a failed request."""
    return [request_id, 1, [error.code, error.message, error.details, error.retryable, error.maybe_applied]]


def as_crdtkv_error(error: BaseException) -> CrdtkvError:
    """What a client is told of `error`: our own errors as they are, a bug or a broken disk without its insides."""
    if isinstance(error, CrdtkvError):
        return error
    return StorageError(f"the node failed to execute the request: {type(error).__name__}; its log has more", maybe_applied=True)


class StorageWorker:
    """Executes groups against one store. Methods are for the loop's thread unless they say otherwise.

    Args:
        sync: answers wait for `Store.wait_durable`.
        requests_queued_max: requests that may wait; more are answered with `OverloadedError`.
        failed: called in the loop when the store failed or the disk refused an fsync: nothing more can be promised.
    """

    def __init__(
        self,
        store: Store | Storage,
        loop: asyncio.AbstractEventLoop,
        *,
        sync: bool,
        requests_queued_max: int,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._loop = loop
        self._sync = sync
        self._queued_max = requests_queued_max
        self._on_failed = failed
        self.turn: Turn = lambda: None
        self.status: Callable[[], Status] | None = None
        """Answers the op `status`, in the writer, in place of the store: it knows the node as well."""

        self.occupied = ""
        """Why the store has no time for requests: they wait, up to `HELD_S`, while turns and their tasks go on. Set by `turn`."""

        self.is_followed = True
        """Somebody is to hear what is durable: a turn is taken when something became so. Set by `turn`."""

        # Guarded by `_lock`: what waits for a turn, and whether one is under way.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._batches: deque[_Batch] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._turning = 0
        """Ident of the thread that takes a turn; 0: nobody does, and what waits is in order."""
        self._next_at: float | None = None
        """When the writer takes a turn even if nothing waits for one."""
        self._stopping = False
        self._writer_blocked = False
        """The writer waits for a turn in the loop to end."""
        self._quick_asked = False
        """The loop is about to look at what waits."""
        self._quick_rows = 0  # what waits; past the limit if something among it is not quick
        self._quick_bytes = 0
        # The loop's.
        self._quick_after = float("-inf")  # when the last pause ended, or will
        self._quick_pause_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Guarded by `_executed`: what waits for the syncer.
        self._executed = threading.Condition(threading.Lock())
        self._unsynced: list[tuple[int, Callable[[], None]]] = []
        self._sync_asked = 0
        self._writer_ended = False
        self._poked = False
        # Results on their way to the loop; `_waking` says that a wake-up is under way.
        self._results: deque[Callable[[], None]] = deque()
        self._waking = False

        self.queued = 0
        """Requests accepted and not yet delivered. The loop's."""
        self.answered = 0
        """Requests answered since the start. The loop's."""
        self.reads = 0
        """Of those, requests that made no commit and did not fail."""
        self.errors: Counter[str] = Counter()
        """Requests that failed since the start, by code. A turn's; `refused`, those that never came to one, is the loop's."""
        self.refused: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="crdtkv-reader")
        self._threads = [threading.Thread(target=self._write_groups, name="crdtkv-writer", daemon=True)]
        if sync:
            self._threads.append(threading.Thread(target=self._sync_groups, name="crdtkv-syncer", daemon=True))
        for thread in self._threads:
            thread.start()
        self._loop_ident = threading.get_ident()

    # -- called by the loop ---------------------------------------------------------------------------------------

    def submit(self, rows: Sequence[Row], size: int, deliver: Deliver, deadline_ms: int = 0) -> int:
        """Execute one message's requests with the next group; `deliver` gets one reply for each row, in order.

        Args:
            rows: well-formed request rows.
            size: bytes they had on the wire.
            deadline_ms: how long those that do not say so themselves may wait; 0: for ever.
        Returns:
            How many requests the rows stand for.
        """
        refusal: CrdtkvError
        ops = {row[1] for row in rows}
        count = len(rows) if ops.isdisjoint(BLOCKS) else sum(map(requests_of, rows))
        if self._stopping:
            refusal = StoreClosedError("the node is shutting down; use another endpoint", retryable=True)
        elif self.queued and self.queued + count > self._queued_max:
            refusal = OverloadedError(
                f"{self.queued} requests are waiting, the limit is {self._queued_max}; try again later",
                limit=self._queued_max,
                retry_after_ms=100,
            )
        elif not rows:
            return 0
        else:
            self.queued += count
            self._idle.clear()
            optioned = [row for row in rows if type(row[3]) is dict]
            batch = _Batch(rows, size, deliver, time.monotonic(), deadline_ms, ops, optioned, count)
            cost = count if batch.is_quick else QUICK_ROWS_MAX + 1
            with self._lock:
                self._batches.append(batch)
                self._ask(cost, size)
            return count
        self.refused[refusal.code] += count
        deliver([error_row(row[0], refusal) for row in rows], count, "")
        return count

    def task(self, function: Callable[[], None], size: int | None = None) -> None:
        """Run something in a turn, in order, before the group. Any thread; dropped after `stop`.

        Args:
            size: it is short, as work on so many bytes is, and may run in the loop; None: in the writer only.
        """
        with self._lock:
            if self._writer_ended:
                return
            self._tasks.append(function)
            if threading.get_ident() == self._loop_ident:
                self._ask(QUICK_ROWS_MAX + 1 if size is None else 1, size or 0)
            else:
                self._quick_rows = QUICK_ROWS_MAX + 1
                self._work.notify()

    def _ask(self, rows: int, size: int) -> None:
        """In the loop, holding `_lock`: something waits for a turn; say who takes it."""
        self._quick_rows += rows
        self._quick_bytes += size
        if self._turning:
            return  # whoever takes it looks again when it ends
        if self._quick_rows > QUICK_ROWS_MAX or self._quick_bytes > QUICK_BYTES_MAX:
            self._work.notify()
        elif not self._quick_asked:
            self._quick_asked = True
            self._loop.call_soon(self._quick_turn)

    def poke(self) -> None:
        """Have a turn taken soon. Any thread; many calls before it make one."""
        if self._turning != threading.get_ident():  # else the turn under way looks at what there is
            self._ask_for_another()

    def _ask_for_another(self) -> None:
        if not self._poked:
            self._poked = True
            self.task(self._unpoke, 0)

    def _unpoke(self) -> None:
        self._poked = False

    async def run(self, function: Callable[[], T]) -> T:
        """Run something in the writer's turn and wait for its result."""
        done: asyncio.Future[T] = self._loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            try:
                result = function()
            except Exception as e:
                self.emit(partial(finish, None, e))
            else:
                self.emit(partial(finish, result, None))

        self.task(work)
        return await done

    def sync_through(self, position: int) -> None:
        """From a turn: have the log fsynced up to `position`, and take a turn then. Only if `sync`."""
        if position > self._sync_asked:
            self._to_syncer(position, _nothing)

    def _to_syncer(self, position: int, deliver: Callable[[], None]) -> None:
        with self._executed:
            self._sync_asked = max(self._sync_asked, position)
            self._unsynced.append((position, deliver))
            self._executed.notify()

    def emit(self, function: Callable[[], None]) -> None:
        """From a turn: have something done in the loop, after what was emitted before."""
        self._post((function,))

    def flush(self) -> None:
        """From a turn: have what was emitted so far done before the turn goes on, if that is in the loop; else it is done meanwhile."""
        if self._turning == self._loop_ident:
            self._wake()

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """Run something that reads, or may wait for a disk, in a reader thread."""
        return await self._loop.run_in_executor(self._readers, function, *args)

    def read_soon(self, function: Callable[[], None]) -> None:
        """Run something in a reader thread without waiting for it; dropped after `stop`."""
        with contextlib.suppress(RuntimeError):
            self._readers.submit(function)

    async def drain(self) -> None:
        """Wait until every request accepted so far has been delivered."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Refuse what comes, finish what was accepted, end the threads. The store stays open."""
        with self._lock:
            self._stopping = True
            self._work.notify()
        if self._timer is not None:
            self._timer.cancel()
        await self._idle.wait()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._wake()
        await asyncio.to_thread(self._readers.shutdown)

    # -- turns ----------------------------------------------------------------------------------------------------

    def _write_groups(self) -> None:
        """The writer's thread. A node without it would answer what is quick and never what is not: so its end, by a bug, is the node's."""
        try:
            self._take_turns()
        except BaseException as e:
            event(logging.CRITICAL, "writer_failed", error=f"{type(e).__name__}: {e}")
            LOGGER.debug("writer_failed", exc_info=e)
            self._post((self._fail,))
        finally:
            with self._lock:
                self._writer_ended = True
            with self._executed:
                self._executed.notify()

    def _take_turns(self) -> None:
        ident = threading.get_ident()
        while True:
            with self._lock:
                while not self._is_wanted():
                    due = self._due()
                    if self._turning:
                        self._writer_blocked = True
                        self._work.wait()
                        self._writer_blocked = False
                    elif due is None:
                        self._work.wait()
                    elif (wait_s := due - time.monotonic()) > 0:
                        self._work.wait(wait_s)
                    else:
                        break
                tasks, group = self._begin_turn(ident)
                if self._stopping and not tasks and not group:
                    return
            next_at = self._run_turn(tasks, group)
            with self._lock:
                self._turning = 0
                self._next_at = next_at

    def _is_wanted(self) -> bool:
        """Whether something waits for the writer, holding `_lock`."""
        if self._turning or (self._quick_asked and not self._stopping):
            return False
        return bool((self._batches and not self.occupied) or self._tasks or self._stopping)

    def _due(self) -> float | None:
        """When a turn is due that nothing waits for, holding `_lock`."""
        if not (self.occupied and self._batches):
            return self._next_at
        refuse_at = self._batches[0].arrived + HELD_S
        return refuse_at if self._next_at is None else min(refuse_at, self._next_at)

    def _begin_turn(self, ident: int) -> tuple[Sequence[Callable[[], None]], list[_Batch]]:
        """Take what the turn is about, holding `_lock`."""
        self._turning = ident
        tasks, self._tasks = self._tasks, deque()
        self._quick_rows = self._quick_bytes = 0
        return tasks, self._take()

    def _quick_turn(self) -> None:
        """Take a turn here in the loop if it is short for sure; else leave it to the writer."""
        with self._lock:
            self._quick_asked = False
            if self._turning or not (self._batches or self._tasks):
                return
            short = self._quick_rows <= QUICK_ROWS_MAX and self._quick_bytes <= QUICK_BYTES_MAX and not self._stopping
            if not short or time.monotonic() < self._quick_after or not self._store.begin_quick():
                self._work.notify()
                return
            tasks, group = self._begin_turn(self._loop_ident)
        began = time.monotonic()
        next_at: float | None = began
        try:
            next_at = self._run_turn(tasks, group)
        finally:
            self._store.end_quick()
            self._end_quick_turn(next_at)
        now = time.monotonic()
        if now - began > QUICK_SLOW_S:
            again = now - self._quick_after < QUICK_PAUSE_MAX_S
            self._quick_pause_s = min(QUICK_PAUSE_MAX_S, 2 * self._quick_pause_s) if again else QUICK_PAUSE_S
            self._quick_after = now + self._quick_pause_s
        self._wake()

    def _end_quick_turn(self, next_at: float | None) -> None:
        with self._lock:
            self._turning = 0
            wanted = bool(self._batches or self._tasks or self._stopping or self._writer_blocked)
            if next_at is not None and next_at - time.monotonic() < SOON_S:
                self._quick_at(next_at)
            elif next_at is not None and (self._next_at is None or next_at < self._next_at):
                self._next_at = next_at
                wanted = True  # it sleeps for too long
            if wanted:
                self._work.notify()

    def _quick_at(self, at: float) -> None:
        """Have a turn taken in the loop at a time (`time.monotonic`), if none is by then."""
        at = self._loop.time() + max(0.0, at - time.monotonic())
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._quick_due)

    def _quick_due(self) -> None:
        self._timer = None
        self.poke()

    def _run_turn(self, tasks: Sequence[Callable[[], None]], group: list[_Batch]) -> float | None:
        # Tasks first: what a peer wrote is older than what is asked now, and its sender waits for the ack.
        for task in tasks:
            self._guarded(task)
        answer: Callable[[], None] | None = None
        if group and self.occupied:
            answer = self._refuse(group)
        elif group:
            position, answer = self._execute(group)
            if self._sync and position and not self._store.is_durable(position):  # reads of what is durable need no fsync
                self._to_syncer(position, answer)
                answer = None
        try:
            return self.turn()
        except Exception as e:
            _report("turn_failed", e)
            return time.monotonic() + RETRY_S
        finally:
            # What was written leaves for the peers before its writer is told: they have further to go.
            if answer is not None:
                self.emit(answer)

    def _guarded(self, function: Callable[[], None]) -> None:
        """A bug in one task must not end the thread that everything depends on."""
        try:
            function()
        except Exception as e:
            _report("task_failed", e)

    def _take(self) -> list[_Batch]:
        """What makes the next group; at least one message if any waits."""
        group: list[_Batch] = []
        rows = size = 0
        batches = self._batches
        if self.occupied:
            until = time.monotonic() - HELD_S
            while batches and (self._stopping or batches[0].arrived <= until):
                group.append(batches.popleft())
            return group
        while batches and (not group or (rows + batches[0].count <= GROUP_ROWS_MAX and size + batches[0].size <= GROUP_BYTES_MAX)):
            batch = batches.popleft()
            group.append(batch)
            rows += batch.count
            size += batch.size
        return group

    def _refuse(self, group: list[_Batch]) -> Callable[[], None]:
        """What tells a group that waited for too long to come again."""
        text = f"{self.occupied}: try again in a moment, or use another endpoint"
        refusal = RegionUnavailableError(text, retry_after_ms=HELD_RETRY_MS)
        self.errors[refusal.code] += sum(batch.count for batch in group)
        replies = [error_row(row[0], refusal) for batch in group for row in batch.rows]
        return partial(self._deliver, group, [_NONE_LATE] * len(group), replies, None)

    def _deliver(self, group: Sequence[_Batch], lates: Sequence[Set[int]], replies: list[Any], of: Token | None) -> None:
        """In the loop: hand replies to whoever asked.

        Args:
            lates: of each message, the places of rows that were not executed; `replies` are those of all the others, in order.
            of: what they saw; None: nothing was executed.
        """
        token = "" if of is None else of.encode()
        start = 0
        for batch, late in zip(group, lates, strict=True):
            end = start + len(batch.rows) - len(late)
            part = replies[start:end]
            start = end
            if late:
                answered = iter(part)
                part = [_too_late(row) if at in late else next(answered) for at, row in enumerate(batch.rows)]
            self.queued -= batch.count
            self.answered += batch.count
            try:
                batch.deliver(part, batch.count, token)
            except Exception as e:
                _report("deliver_failed", e)  # what goes to others is not to be lost by it
        if not self.queued:
            self._idle.set()

    def _execute(self, group: list[_Batch]) -> tuple[int, Callable[[], None]]:
        """Run one group; returns its log position and what delivers its replies."""
        now = time.monotonic()
        expired = [batch.expired(now) for batch in group]
        requests: list[Row] = []
        asked = 0
        wants_status = False
        for batch, late in zip(group, expired, strict=True):
            if late:
                requests += [row for at, row in enumerate(batch.rows) if at not in late]
                refused = sum([requests_of(batch.rows[at]) for at in late])
                self.errors[DeadlineExceededError.code] += refused
                asked += batch.count - refused
            else:
                requests += batch.rows
                asked += batch.count
            wants_status = wants_status or "status" in batch.ops
        token: Token | None = None
        position = 0
        replies: list[Any] = []
        if requests:
            try:
                executed = self._store.execute(requests)
                replies, token, position = executed.replies, executed.token, executed.position
                assert len(replies) == len(requests), "one reply for each request"
                failed = 0
                if executed.errors:
                    self.errors.update(executed.errors)
                    failed = sum(executed.errors.values())
                self.reads += max(0, asked - executed.commits - failed)
                if wants_status and self.status is not None:
                    status = self.status().to_wire()
                    replies = [[r[0], 0, status] if q[1] == "status" and not r[1] else r for q, r in zip(requests, replies, strict=True)]
            except Exception as e:
                if not isinstance(e, CrdtkvError):
                    _report("execute_failed", e)
                if isinstance(e, StorageError) and not isinstance(e, DiskFullError):
                    # The store answers nothing more until it is opened again, which recovers it to what its log holds.
                    self._post((self._on_failed,))
                failure = as_crdtkv_error(e)
                self.errors[failure.code] += asked
                replies = [error_row(row[0], failure) for row in requests]
        # What is left, to slice and encode, is for the loop, once the peers have what was written.
        return position, partial(self._deliver, group, expired, replies, token)

    # -- the syncer -----------------------------------------------------------------------------------------------

    def _sync_groups(self) -> None:
        while True:
            with self._executed:
                while not self._unsynced and not self._writer_ended:
                    self._executed.wait()
                waiting, self._unsynced = self._unsynced, []
            if not waiting:
                return
            try:
                self._store.wait_durable(max(position for position, _ in waiting))
            except Exception as e:
                # A failed fsync is never retried: what it covered may be lost. The store refuses everything from here
                # on; the clients of this group are told nothing rather than a lie, and their streams are cut.
                event(logging.CRITICAL, "sync_failed", error=f"{type(e).__name__}: {e}")
                self._post((self._fail,))
                return
            results = [deliver for _, deliver in waiting]
            if self.is_followed:
                # And a turn, for what is durable now may leave for the peers. Asked for in the loop, it need not wake the writer; and be
                # it from the midst of a turn (`flush`), which may have looked before.
                results.append(self._ask_for_another)
            self._post(results)

    def _fail(self) -> None:
        with self._lock:
            self._stopping = True
            self._work.notify()
        self._idle.set()
        self._on_failed()

    # -- back to the loop -----------------------------------------------------------------------------------------

    def _post(self, results: Sequence[Callable[[], None]]) -> None:
        # Append first, then look at the flag; `_wake` clears the flag first, then takes. So nothing is left behind.
        self._results.extend(results)
        if not self._waking and self._turning != self._loop_ident:  # a turn in the loop ends with `_wake`
            self._waking = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._waking = False
        results = self._results
        while results:
            try:
                results.popleft()()
            except Exception as e:
                _report("result_failed", e)


def _report(name: str, error: Exception) -> None:
    event(logging.ERROR, name, error=f"{type(error).__name__}: {error}")
    LOGGER.debug(name, exc_info=error)


def _deadline_ms(row: Row, common: int | None) -> Any:
    """How long a request may wait; None: for ever."""
    options = row[3]
    return options.get("deadline_ms", common) if type(options) is dict else common


def _is_past(deadline_ms: Any, waited_ms: float) -> bool:
    """Whether a request that waited so long is past its deadline; what is no number is left for the store to refuse."""
    return isinstance(deadline_ms, int | float) and waited_ms >= deadline_ms


def _too_late(row: Row) -> list[Any]:
    return error_row(row[0], DeadlineExceededError("the deadline passed before the request was executed"))


def _nothing() -> None:
    """Nobody waits for this fsync itself."""
