"""What an open store does by itself, a little at a time, on a thread of its own.

A round: look for room on the disk, issue due expiries, go on with large clears, fsync, and once a second drop what of the log may go.
Between rounds, whenever writers come near it, the *sent bound* is raised (`identity`). Nothing of it holds the store's lock for longer
than a slice; files are fsynced and removed beside the writers.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from crdtkv.core.frame import Delta
from crdtkv.errors import ClockSkewError, DiskFullError, StoreClosedError
from crdtkv.storage.files import space_of
from crdtkv.store.identity import LEAP, Instance

if TYPE_CHECKING:
    from crdtkv.store.store import Store

REST_S: Final = 30.0
"""After so long without an own commit the sent bound is drawn back, so that a power failure at rest costs no incarnation."""
RETRY_S: Final = 0.5
"""How often a store that found the disk full looks whether it can write again."""
RETENTION_MS: Final = 1000
"""How often it is asked what of the log may go."""
PURGING_S: Final = 0.001
"""How long a round of a store waits for the next one while a clear is in progress."""


class Upkeep:
    """The rounds of one store, and the thread that makes them.

    `round` and `keep_bound` are for that thread, and for tests that want one at a given moment.

    Args:
        instance: what holds the sent bound; None: a store in memory has none.
        wall_ms: Unix time in ms.
    """

    def __init__(self, store: Store, instance: Instance | None, wall_ms: Callable[[], int]) -> None:
        self._store = store
        self._machine = store._machine
        self._lock = store._lock
        self._instance = instance
        self._wall_ms = wall_ms
        self._housekeeper: Housekeeper | None = None
        self.bound_lock = threading.Lock()
        """Held while the bound is kept, so that a store closes before or after it; taken before the store's lock."""
        self._own_seen = (self._machine.origin, self._machine.own_seq())
        self._own_seen_s = time.monotonic()
        """The last own commit that `keep_bound` saw, and since when it is the last."""
        self._space = space_of
        self._retry_at_s = 0.0
        self._retained_ms = wall_ms()  # a node that is about to open says who the members are

    # -- the thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, if it is not running yet. With the store's lock held, or before anybody else has the store."""
        if self._housekeeper is None:
            self._housekeeper = Housekeeper(self._store)

    def wake(self) -> None:
        """Have the sent bound raised soon. Any thread; cheap if it was asked already."""
        if self._housekeeper is not None:
            self._housekeeper.wake()

    def stop(self) -> None:
        """End the thread, for good; returns when it has ended (at once on itself)."""
        if self._housekeeper is not None:
            self._housekeeper.stop()

    # -- a round --------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Issue due expiries, purge a slice, fsync, trim."""
        self._look_for_room()
        with contextlib.suppress(DiskFullError):  # the machine knows, and refuses writes from now on
            self._tidy()
        now_ms = self._wall_ms()
        if not 0 <= now_ms - self._retained_ms < RETENTION_MS:
            self._retained_ms = now_ms
            with contextlib.suppress(DiskFullError):
                self._retain(now_ms)

    def _look_for_room(self) -> None:
        """Refuse writes while there is less room than the reserve, and take them again when there is more."""
        machine, path = self._machine, self._store.path
        if path is None:
            return
        try:
            free, total = self._space(path)
        except OSError:
            return  # what it is about, the next write will tell
        reserve = min(self._store.settings.disk_reserve_bytes, total // 20)
        if free < reserve:
            if machine.full is None:
                text = f"{path} has {free:,} bytes free, less than the {reserve:,} kept in reserve: free some"
                machine.refuse(DiskFullError(text, path=str(path), free=free, reserve=reserve))
        elif machine.full is not None and free >= reserve + reserve // 4 and time.monotonic() >= self._retry_at_s:
            self._retry_at_s = time.monotonic() + RETRY_S
            with self._lock, contextlib.suppress(DiskFullError):
                self._store._check()
                if (reason := self._store.owed_incarnation) is not None:
                    self._store.begin_incarnation(reason)
                machine.retry()
                if self._store._watches.active:
                    self._store._watches.publish(machine.log.end())  # what had been held may be applied by it

    def _tidy(self) -> None:
        store, machine, replica = self._store, self._machine, self._machine.replica
        callbacks: tuple[Callable[[], None], ...] = ()
        with self._lock:
            store._open_for_reads()
            position = machine.log.end()
            due = list(replica.due(1000)) if machine.full is None else []
            # While the clock may not be read, expired entries stay hidden as they are; their removal is issued later.
            if due and self._try_transact(due):
                position = machine.seal(sync=store._durable.is_sync)
                callbacks = store._callbacks
                if store._watches.active:
                    store._watches.publish(position)
            if machine.full is None:
                if replica.purges:
                    machine.purge_slice(store.settings.purge_slots)
                replica.maintain(self._wall_ms())
                machine.note_synced()
        if store._durable.is_sync and machine.log.synced() < position:
            machine.log.sync()
        for callback in callbacks:
            callback()

    def _try_transact(self, deltas: list[Delta]) -> bool:
        try:
            self._machine.transact(deltas)
        except ClockSkewError:
            return False
        return True

    def _retain(self, now_ms: int) -> None:
        """Drop what of the log may go. Files are removed, and the engine flushed, beside the writers."""
        store, retention = self._store, self._store._retention
        if retention.roll_due(now_ms):
            with self._lock:
                store._begin()
                self._machine.log.roll()
        due = retention.due(now_ms)
        if not due.position:
            return
        cursor: bytes | None = None
        while cursor != b"":
            with self._lock:
                store._open_for_reads()
                cursor = retention.forget(due, cursor or b"")
        with self._lock:
            store._open_for_reads()
            is_folding = self._machine.fold_soon()
        while is_folding and not self._machine.fold_some():  # here or beside: the writers wait for the rest alone
            pass
        with self._lock:
            store._open_for_reads()
            position = retention.fold()
        retention.flush(position)
        with self._lock:
            retention.note_durable()
        retention.drop(due)

    # -- the sent bound -------------------------------------------------------------------------------------------

    def keep_bound(self) -> None:
        """Keep the sent bound ahead of what is written, and draw it back at rest; without room, what is above the bound waits."""
        if self._instance is None:
            return
        try:
            self._keep_bound(self._instance)
        except DiskFullError as e:
            self._machine.refuse(e)

    def _keep_bound(self, instance: Instance) -> None:
        store, machine = self._store, self._machine
        with self.bound_lock:
            with self._lock:
                store._check()
                origin, seq, bound = machine.origin, machine.own_seq(), machine.sent_bound
                durable = machine.commits_durable()
                if bound is None:
                    instance.note(origin, machine.durable_vv().seq(origin), durable)
                    return
                now_s, last = time.monotonic(), self._own_seen
                if (origin, seq) != last:
                    self._own_seen, self._own_seen_s = (origin, seq), now_s
                rests = (origin, seq) == last and bound > seq and now_s - self._own_seen_s >= REST_S
                if rests and machine.log.synced() == machine.log.end():
                    machine.raise_bound(seq)  # what is written from here on waits for the next raise
            if seq > bound or 0 < bound - seq < LEAP // 2:
                if instance.set_bound(origin, seq, seq + LEAP, durable):
                    with self._lock:
                        if machine.origin == origin:
                            machine.raise_bound(seq + LEAP)
                for callback in store._callbacks:
                    callback()
            elif machine.sent_bound == seq < bound:
                instance.set_bound(origin, seq, seq, durable)
            elif rests:
                machine.log.sync()
            instance.note(origin, seq, durable)


class Housekeeper:
    """The daemon thread of an `Upkeep`, while its store is open; it keeps no store alive."""

    def __init__(self, store: Store) -> None:
        self._store = weakref.ref(store)
        self._interval_s = store.settings.async_sync_ms / 1000
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"crdtkv-{store.region}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait = self._interval_s
        due_s = time.monotonic() + wait
        while True:
            self._woken.wait(max(0.0, due_s - time.monotonic()))
            self._woken.clear()
            store = self._store()
            if self._stopping or store is None or store.closed:
                return
            try:
                store.keep_bound()
                if time.monotonic() < due_s:
                    continue
                store.maintain()
            except StoreClosedError:
                return
            except Exception as e:
                # Nobody is there to raise it to: the machine answers every later call with it.
                store._machine.fail(e)
                return
            finally:
                purges = store._replica.purges
                del store
            due_s = time.monotonic() + (PURGING_S if purges else self._interval_s)

    def wake(self) -> None:
        """Have the sent bound raised soon. Any thread; cheap if it was asked already."""
        if not self._woken.is_set():
            self._woken.set()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)
