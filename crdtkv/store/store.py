"""The embedded store: all of the public interface, on one machine (replica, log, engine), for many threads.

Writers take the store's lock for the few microseconds of validate, apply, encode, append; waiting for the disk
happens outside it, so concurrent `sync` writers share one fsync. Single-record reads take no lock. Scans and the
members of collections read an engine snapshot, so they see one moment and block nobody.

Durability of a write, per store or per call: `memory` and `async` are acknowledged once the log has them (a process
crash loses nothing; a power failure may lose what was not fsynced, at `async` at most what was acknowledged in the last
`async_sync_ms`); `sync` once the log is fsynced. See `durability`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from crdtkv.core.apply import Touched
from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.codec import (
    TYPE_NAMES,
    SlotType,
    check_size,
    decode_checked,
    decode_value,
    encode_key,
    encode_prefix,
    encode_text,
    encode_value,
    register_slot_of,
)
from crdtkv.core.control import Steering
from crdtkv.core.frame import Delta, DeltaKind, Frame
from crdtkv.core.install import Installed
from crdtkv.core.replica import Applied
from crdtkv.core.types.base import decode_only_entry
from crdtkv.errors import DiskFullError, InvalidValueError, RegionRemovedError, StoreClosedError, missing_key
from crdtkv.results import Change, Commit, Conflict, Explanation, MergeResult, Sibling, Status
from crdtkv.storage.retention import Acknowledgement, RetentionPolicy
from crdtkv.store.batch import Batch
from crdtkv.store.durability import Durability
from crdtkv.store.exchange import decode, delta_since, known_of_own, merge
from crdtkv.store.folding import Folder
from crdtkv.store.handles import CounterHandle, MapHandle, SetHandle
from crdtkv.store.machine import Machine
from crdtkv.store.opening import Opened
from crdtkv.store.port import StorePort
from crdtkv.store.reading import Reader, wrong_type
from crdtkv.store.requests import Executed, execute
from crdtkv.store.retention import Retention
from crdtkv.store.scanning import open_pages, open_scan, plain_value
from crdtkv.store.settings import Settings, check_durability
from crdtkv.store.snapshots import Snapshots
from crdtkv.store.story import conflicts, explain, siblings
from crdtkv.store.transaction import Transaction, check_commit_size, delete_all
from crdtkv.store.upkeep import Upkeep
from crdtkv.store.watching import Subscription, Watches

LOGGER = logging.getLogger("crdtkv.store")
_stores: weakref.WeakSet[Store] = weakref.WeakSet()
DELETE_PREFIX_KEYS = 1000
"""How many keys one commit of `delete_prefix` removes."""
ROLL_BYTES_MIN = 1 << 20
"""A log's last file of this size is ended when a store is closed: opening reads the last file through."""


class Store:
    """An embedded replica; `crdtkv.open` makes one. Thread-safe; use it as a context manager, or `close` it.

    Attributes:
        region: the region it was opened for. origin: its replica id. cluster, shard: whose data it holds.
        path: its directory, None if it lives in memory. durability: the level of writes that name none.
    """

    def __init__(self, opened: Opened, durability: str, settings: Settings, wall_ms: Callable[[], int]) -> None:
        self._opened = opened
        self._machine: Machine = opened.machine
        self._replica = opened.machine.replica
        self._reader = Reader(self._replica)
        self._record = self._replica.state.register
        self._heads = self._replica.heads
        self._purges = self._replica.purges
        self._wall_ms = wall_ms
        self._lock = threading.RLock()
        self._closed: str | None = None
        self._durable = Durability(self._machine, durability, settings.async_sync_ms / 1000, on_disk=opened.path is not None)
        self._gathers = opened.path is None and settings.gather_commits_max > 1
        """Commits that follow each other share a frame: nobody follows the log, and there is no disk to be on."""
        self._value_max = settings.value_bytes_max
        self._callbacks: tuple[Callable[[], None], ...] = ()
        self._watches = Watches(self._machine, self._reader)
        self._port: StorePort | None = None
        policy = RetentionPolicy(settings.log_keep_s * 1000, settings.log_keep_bytes, settings.log_bytes_max)
        self._retention = Retention(self._machine, policy)
        self.settings = settings
        self.durability = durability
        self.path: Path | None = opened.path
        self.engine_name = opened.engine_name
        self.region = opened.region
        self.origin: Origin = self._machine.origin
        self.cluster = self._machine.cluster
        self.shard = self._machine.shard
        self._machine.when_failed = self._refuse_reads
        self.owed_incarnation: str | None = None
        """Why a new incarnation is to be taken, for which there was no room: until it is, nothing is written."""
        self.last_install = ""
        """What the last snapshot from another region changed here; empty if there was none since the start."""
        if opened.installed is not None:
            self._installed(*opened.installed)
        if opened.staging is not None:
            self._machine.offer(Snapshots(self._machine, opened.staging, self._lock, self._installing, self._installed))
        self._upkeep = Upkeep(self, opened.instance, wall_ms)
        _stores.add(self)
        if self.path is not None and not self._machine.engine_is_rebuilt:
            Folder(self._machine)
        if self.path is not None:
            weakref.finalize(self, self._durable.stop)
            self._durable.start()
        if self.path is not None or self._replica.purges:
            self._upkeep.start()
            self._machine.when_beyond = self._upkeep.wake

    # -- life -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Fsync, write the state engine, release the directory. Idempotent."""
        self._upkeep.stop()
        with self._upkeep.bound_lock, self._lock:
            if self._closed is not None:
                return
            self._watches.close()
            self._durable.stop()
            try:
                if self._machine.failed is None:
                    self._machine.seal()
                    self._machine.log.sync()
                    with contextlib.suppress(DiskFullError):  # the log has what the engine lacks
                        self._machine.log.roll(ROLL_BYTES_MIN)
                        self._machine.note_synced()
                        self._machine.fold()
                        self._machine.engine.flush()
                    if self._opened.instance is not None:
                        machine = self._machine
                        self._opened.instance.close_clean(self.origin, machine.own_seq(), machine.commits_durable())
            finally:
                self._closed = "the store is closed"
                self._machine.blocked = True
                self._record = self._refused_record
                self._opened.close()
        _stores.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> StorePort:
        """This replica as replication sees it."""
        if self._port is None:
            with self._lock:
                self._stop_gathering()
                if not self._replica.state.has_digest:
                    self._replica.state.digest()  # kept from now on: peers ask for it whenever they rest
                self._port = StorePort(self)
        return self._port

    @property
    def closed(self) -> bool:
        """Whether `close` was called (or this is a fork's child)."""
        return self._closed is not None

    def _check(self) -> None:
        if self._closed is None and self._machine.failed is None:
            return
        if self._closed is not None:
            raise StoreClosedError(f"{self._closed}: open it again with crdtkv.open({str(self.path)!r})" if self.path else self._closed)
        self._machine.check()

    def _refuse_reads(self) -> None:
        """The overlay may hold what the log does not: the read without the lock must not show it."""
        self._record = self._refused_record

    def _refused_record(self, key: str) -> bytes | None:
        """What the read without the lock meets once the store is closed or has failed: why. (The engine would say less.)"""
        encode_key(key)
        self._check()
        return None

    @contextlib.contextmanager
    def _installing(self) -> Iterator[Callable[[Touched], None] | None]:
        """While a snapshot is installed, with the lock held: reads without the lock wait for it as well, so nobody sees half of it."""
        self._settled()
        record, gather = self._record, self._watches.active
        self._record = self._record_later
        try:
            with self._watches.gathering(unlogged=True) if gather else contextlib.nullcontext() as touched:
                yield None if touched is None else touched.append
        finally:
            if self._machine.failed is None:
                self._record = record

    def _record_later(self, key: str) -> bytes | None:
        with self._lock:
            self._check()
            return self._replica.state.register(key)

    def _installed(self, donor: Origin, done: Installed) -> None:
        removed = f" ({', '.join(done.removed_keys[:5])} …)" if done.removed_keys else ""
        self.last_install = (
            f"from {donor}: {done.applied} commits, {done.added} slots new, {done.changed} changed, {done.removed} removed here{removed}, "
            f"{done.conflicts} conflicts in the journal; {done.unseen} own commits were unseen there and flow out"
        )
        LOGGER.info("region %s installed a snapshot %s", self.region, self.last_install)

    def _forked(self) -> None:
        self._closed = "the store belongs to the parent process of this fork"
        self._machine.blocked = True
        self._record = self._refused_record

    def begin_incarnation(self, reason: str) -> Origin:
        """Go on under a new id; its origin. What was written stays, under the former one. See docs/operations.md for when.

        The store does it by itself where its directory may have lost commits. By hand it is the cure for a clock that ran far ahead.

        Raises:
            DiskFullError: there is no room for it. Nothing is written under the former id any more: the new one is taken as soon as
                there is room.
        """
        with self._lock:
            self._check()
            try:
                self._settled()
                origin = self._opened.begin_incarnation(reason)
            except DiskFullError as e:
                self.owed_incarnation = reason
                self._machine.refuse(e)
                raise
            self.owed_incarnation = None
            self.origin = origin
        for callback in self._callbacks:
            callback()
        return origin

    @property
    def incarnation_reason(self) -> str | None:
        """Why a new incarnation was taken since the store was opened, or at its opening; None: none was."""
        return self._opened.incarnation_reason

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know of this replica; empty when all is well."""
        found = [f"read only: {self.read_only}"] if self.read_only else []
        if self._opened.incarnation_reason is not None:
            found.append(f"this replica took a new incarnation, {self.origin}: {self._opened.incarnation_reason}")
        if self._opened.instance is not None and self._opened.instance.warning is not None:
            found.append(self._opened.instance.warning)
        snapshots = self._machine.snapshots
        if snapshots is not None and (staged := snapshots.staged).chunks:
            found.append(f"a snapshot from {staged.origin} is being received: {staged.slots:,} records in {staged.chunks:,} chunks so far")
        with self._lock:
            return (*found, *self._retention.warnings())

    # -- registers and keys ---------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, *, ttl: float | None = None, durability: str | None = None) -> Commit:
        """Write a register. O(1).

        Args:
            value: None, bool, int (-2^63 .. 2^64-1), float, str, bytes, list, dict or an aware datetime, nested as needed.
            ttl: seconds until it is no longer visible; None: it stays.
        Raises:
            InvalidKeyError, InvalidValueError, ValueTooLargeError: nothing changed.
            WrongTypeError: something else than a register is visible at the key.
        """
        data = encode_text(value) if type(value) is str and value.isascii() else encode_value(value)
        if len(data) > self._value_max:
            check_size(data, self._value_max)
        slot = register_slot_of(key)
        delta: Delta = [DeltaKind.REGISTER_PUT, key, data]
        with self._lock:
            if self._gathers and durability is None and ttl is None and not self._machine.blocked and not self._heads.exist:
                context = self._replica.context()
                seq, hlc, position = self._machine.gather_put(slot, delta, len(data))
                return Commit(self.origin, seq, hlc, (self.shard, position, context, True))
            self._begin(durability)
            if self._heads.exist:
                self._reader.require(encode_key(key), SlotType.REGISTER)
            if ttl is not None:
                delta.append(self._expiry(ttl))
                commit = self._finish([delta], len(data), durability)
            else:
                context = self._replica.context()
                seq, hlc = self._machine.transact_put(slot, delta)
                if self._gathers and durability is None:
                    return Commit(self.origin, seq, hlc, (self.shard, self._machine.gather(len(data)), context, True))
                commit = self._sealed(seq, hlc, context, durability)
        return self._settle(commit, durability)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a register, or `default` if nothing is visible there. O(1), no lock.

        Raises:
            WrongTypeError: a set, counter or map is there.
        """
        record = self._record(key)
        if record is not None:
            # `Reader.entry` of a slot that holds one entry for good, written out.
            try:
                ((_, _, _, value, expiry),) = decode_only_entry(record)
                if expiry is None:
                    return decode_checked(value)
            except Exception:
                pass  # siblings; or else what follows says what is wrong
            chosen = self._reader.register(encode_key(key))
            if chosen is not None:
                return decode_value(chosen.value)
        self._check()
        self._not_another_type(key, SlotType.REGISTER)
        return default

    def _not_another_type(self, key: str, type_code: int) -> None:
        """For a read that found nothing: complain if something else is there."""
        raw = encode_key(key)
        if self._reader.head(raw) is None and type_code == SlotType.REGISTER:
            return
        with self._lock:
            types = self._reader.visible_types(raw)
        if types and type_code not in types:
            raise wrong_type(raw, types, type_code)

    def __getitem__(self, key: str) -> Any:
        missing = object()
        found = self.get(key, missing)
        if found is missing:
            raise missing_key(key)
        return found

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        if self.delete(key) is None:
            raise missing_key(key)

    def __contains__(self, key: str) -> bool:
        return self.exists(key)

    def exists(self, key: str) -> bool:
        """Whether anything of any type is visible at a key. O(1)."""
        return bool(self.types(key))

    def types(self, key: str) -> list[str]:
        """The names of the types that are visible at a key; two if it was written concurrently as two."""
        raw = encode_key(key)
        with self._lock:
            self._check()
            return [TYPE_NAMES[code] for code in self._reader.visible_types(raw)]

    def delete(self, key: str, *, durability: str | None = None) -> Commit | None:
        """Remove a key of any type; None (and no commit) if nothing is visible there."""
        return self._transact(lambda t: t.delete(key), durability)

    def ttl(self, key: str) -> float | None:
        """Seconds until a register expires; None if it never does, or is absent."""
        entry = self._reader.register(encode_key(key))
        self._check()
        if entry is None:
            self._not_another_type(key, SlotType.REGISTER)
            return None
        return None if entry.expiry is None else max(0.0, (entry.expiry - self._replica.now_ms()) / 1000)

    def expire(self, key: str, seconds: float | None, *, durability: str | None = None) -> Commit | None:
        """Give a register another expiry, `seconds` from now (None: it stays); None if it is absent.

        It is a write of the same value, so it wins and loses against concurrent writes like any other. Elements
        and fields take their own `ttl` when they are added or put.
        """
        raw = encode_key(key)
        with self._lock:
            self._begin(durability)
            self._reader.require(raw, SlotType.REGISTER)
            entry = self._reader.register(raw)
            if entry is None:
                if seconds is not None:
                    self._expiry(seconds)
                return None
            delta: Delta = [DeltaKind.REGISTER_PUT, key, entry.value]
            if seconds is not None:
                delta.append(self._expiry(seconds))
            elif entry.expiry is None:
                return None
            commit = self._finish([delta], len(entry.value), durability)
        return self._settle(commit, durability)

    def count(self, prefix: str = "") -> int:
        """How many keys with a prefix are visible. O(keys with the prefix)."""
        return sum(1 for _ in self._scan_keys(prefix))

    def delete_prefix(self, prefix: str, *, durability: str | None = None) -> Commit | None:
        """Remove every key with a prefix, as of one moment; the last commit, or None if there was none.

        It makes one commit per 1,000 keys, so that neither store nor peers stop for it; each commit is atomic,
        the whole is not. A key written meanwhile stays.
        """
        last: Commit | None = None
        for delete in self._prefix_deletions(prefix):
            last = self._transact(delete, durability) or last
        return last

    def _prefix_deletions(self, prefix: str) -> Iterator[Callable[[Transaction], bool]]:
        """What deletes the keys with a prefix, one transaction for so many of them."""
        keys = self._scan_keys(prefix)
        while chunk := list(islice(keys, DELETE_PREFIX_KEYS)):
            yield partial(delete_all, chunk)

    def _scan_keys(self, prefix: str) -> Iterator[str]:
        last = None
        for key, _type, _entries in open_scan(self, prefix, values=False):
            if key != last:
                last = key
                yield key

    # -- collections, batches -------------------------------------------------------------------------------------

    def set(self, key: str) -> SetHandle:
        """A handle on the OR-set at a key; an absent key reads as empty, and the handle creates nothing."""
        return SetHandle(self, key)

    def counter(self, key: str) -> CounterHandle:
        """A handle on the counter at a key."""
        return CounterHandle(self, key)

    def map(self, key: str) -> MapHandle:
        """A handle on the map at a key."""
        return MapHandle(self, key)

    def batch(self, *, durability: str | None = None) -> Batch:
        """A context manager with the same mutators: one atomic commit at its exit, nothing if it raises."""
        return Batch(self, durability)

    # -- the way of every write -----------------------------------------------------------------------------------

    def _transact(self, build: Callable[[Transaction], bool], durability: str | None, tried: Transaction | None = None) -> Commit | None:
        """Run one transaction; None if it changed nothing.

        Args:
            tried: one that `build` has been run on before: it is committed as it is if nothing has happened since.
        """
        with self._lock:
            commit = self._change(build, durability, tried)
        return None if commit is None else self._settle(commit, durability)

    def _change(self, build: Callable[[Transaction], bool], durability: str | None, tried: Transaction | None = None) -> Commit | None:
        """`_transact` with the lock held, up to the append: `_settle`, which may wait, follows without it."""
        self._begin(durability)
        if tried is not None and tried.still_holds(self._replica):
            transaction = tried
        else:
            transaction = Transaction(self._replica, self._reader)
            if not build(transaction):
                return None
        deltas = transaction.deltas()
        return self._finish(deltas, transaction.size, durability) if deltas else None

    def _put_all(self, puts: Mapping[str, bytes], size: int, durability: str | None) -> Commit | None:
        """Put registers for good in one commit, of values as canonical bytes; None: at some key there may be something else.

        Args:
            size: about how many bytes that is.
        """
        with self._lock:
            self._begin(durability)
            if self._heads.exist:
                return None
            context = self._replica.context()
            seq, hlc = self._machine.transact_together(puts)
            commit = self._appended(seq, hlc, context, size, durability)
        return self._settle(commit, durability)

    def _add(self, key: str, raw: bytes, elements: list[bytes], ttl: float | None, durability: str | None) -> Commit | None:
        """Add elements to a set in one commit: what a transaction of adds comes to, without one."""
        if not elements:
            return None
        deltas: list[Delta] = [[DeltaKind.SET_ADD, key, element] for element in dict.fromkeys(elements)]
        size = sum(map(len, elements)) + len(deltas) * (len(raw) + 16)
        if len(deltas) > 1:
            check_commit_size(size, self.settings.commit_bytes_max)
        with self._lock:
            self._begin(durability)
            self._reader.require(raw, SlotType.SET)
            if ttl is not None:
                expiry = self._expiry(ttl)
                for delta in deltas:
                    delta.append(expiry)
            commit = self._finish(deltas, size, durability)
        return self._settle(commit, durability)

    def _finish(self, deltas: list[Delta], size: int, durability: str | None) -> Commit:
        """Commit and append, with the lock held; `_settle` follows without it."""
        context = self._replica.context()
        seq, hlc = self._machine.transact(deltas)
        return self._appended(seq, hlc, context, size, durability)

    def _appended(self, seq: int, hlc: int, context: VersionVector, size: int, durability: str | None) -> Commit:
        """Append a commit of about so many bytes, or leave it in the frame in the making."""
        if self._gathers and durability is None:
            return Commit(self.origin, seq, hlc, (self.shard, self._machine.gather(size), context, True))
        return self._sealed(seq, hlc, context, durability)

    def _sealed(self, seq: int, hlc: int, context: VersionVector, durability: str | None) -> Commit:
        position = self._machine.seal(sync=self._durable.syncs(durability))
        if self._watches.active:
            self._watches.publish(position)
        return Commit(self.origin, seq, hlc, (self.shard, position, context))

    def _begin(self, durability: str | None = None) -> None:
        """Before a write, with the lock held: check that it may be made, as durable as it asks to be.

        Also seal what an interrupt (Ctrl-C) left between its commit and its frame. Such a commit is visible, and may not share a
        frame with one that was not made with it.
        """
        if self._machine.blocked:
            self._check()
            self._machine.check_writable()
        if durability is not None:
            check_durability(durability)
        if not self._gathers and self._replica.making:
            self._machine.seal(sync=self._durable.is_sync)

    def _open_for_reads(self) -> None:
        """`_begin` for what need not write: on a full disk it goes on."""
        if self._machine.full is None:
            self._begin()
        else:
            self._check()

    def _settled(self) -> None:
        """With the lock held: check, and seal what has gathered, for someone who will look at it."""
        self._check()
        if self._replica.making:
            self._machine.seal()

    def _settle(self, commit: Commit, durability: str | None) -> Commit:
        """Wait until a commit is as durable as was asked for, then tell the peers."""
        if durability is not None or self._durable.waits:
            assert not isinstance(commit.mark, str)
            self._durable.make(commit.mark[1], durability)
        for callback in self._callbacks:
            callback()
        return commit

    def _expiry(self, ttl: float) -> int:
        if type(ttl) not in (int, float) or not 0 < ttl <= 10**10:
            raise InvalidValueError(f"ttl: must be a number of seconds above 0 and at most 10^10, got {ttl!r}", field="ttl")
        self._upkeep.start()
        return self._replica.now_ms() + max(1, math.ceil(ttl * 1000))

    # -- scans and watches ----------------------------------------------------------------------------------------

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        types: Sequence[str] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """The visible keys of one moment in byte order, with their values; sets as lists, maps as dicts.

        Args:
            start, end: keys; from `start` on, before `end`.
            types: only these of "register", "set", "counter", "map".
        """
        found = open_scan(self, prefix, start=start, end=end, limit=limit, reverse=reverse, types=types)
        return ((key, plain_value(type_code, value)) for key, type_code, value in found)

    def watch(self, prefix: str = "", *, since: str | None = None, timeout: float | None = None) -> Iterator[Change]:
        """Changes of keys with a prefix, as they become visible, in the order applied here.

        Args:
            since: the token of a change or commit to go on after; None: from now.
            timeout: end after so many seconds without a change; None: wait for ever.
        Raises:
            TokenExpiredError: the token is below the log's floor, or of another replica's log; or this watcher was
                too slow: the error's `token` says where to resume.
        """
        return self.subscribe(prefix, since).changes(timeout)

    def subscribe(self, prefix: str = "", since: str | None = None, notify: Callable[[], None] | None = None) -> Subscription:
        """The push form of `watch`: see `Subscription`. `notify` is called, on any thread, when there is more."""
        encode_prefix(prefix)
        with self._lock:
            self._check()
            self._stop_gathering()
            return self._watches.subscribe(self._lock, prefix, since, self.settings.watch_changes_max, notify)

    def on_commit(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each append to the log, on the thread that made it, until what this returns is called."""

        def registered() -> None:  # one of its own for each call, so that each ends only itself
            callback()

        def end() -> None:
            with self._lock:
                self._callbacks = tuple(c for c in self._callbacks if c is not registered)

        with self._lock:
            self._stop_gathering()
            self._callbacks = (*self._callbacks, registered)
        return end

    def _stop_gathering(self) -> None:
        """Somebody follows the log: from now on each commit is sealed when it is made."""
        if self._gathers:
            self._settled()
            self._gathers = False

    # -- conflicts ------------------------------------------------------------------------------------------------

    def siblings(self, key: str) -> list[Sibling]:
        """The concurrent values of a register, the one that is read first; [] if it is absent."""
        raw = encode_key(key)
        with self._lock:
            self._check()
            return siblings(self._replica, self._reader, raw)

    def explain(self, key: str) -> Explanation:
        """Why a key reads as it does here: who wrote what, who had seen what, who won, by which rule."""
        raw = encode_key(key)
        with self._lock:
            self._settled()
            return explain(self._machine, self._reader, raw)

    def conflicts(self, prefix: str = "", *, since: int | None = None, limit: int | None = None) -> list[Conflict]:
        """What the conflict journal holds about keys with a prefix, newest last.

        Args:
            since: only conflicts recorded at or after this stamp (`Conflict.hlc`).
            limit: only the newest so many.
        """
        wanted = encode_prefix(prefix)
        with self._lock:
            self._check()
            return conflicts(self._replica, wanted, since, limit)

    # -- replication by hand --------------------------------------------------------------------------------------

    def vv(self) -> VersionVector:
        """What is applied here. Origins that are closed are left out: whoever has applied their closing has applied them."""
        with self._lock:
            self._settled()
            return self._machine.control.show(self._machine.vv())

    def digest(self) -> str:
        """The digest of the state, 32 hex digits: equal version vectors give equal digests, on every engine.

        Finishes clears in progress first, in slices. O(what changed since the last call); the first call on a store in memory O(state).
        """
        while True:
            with self._lock:
                self._check()
                found = self._machine.digest()
                if found is not None:
                    return found[1]
                self._machine.purge_slice(self.settings.purge_slots)

    def delta_since(self, vv: VersionVector | None = None) -> bytes:
        """Exactly what `vv` lacks of what is here (everything if None), for another replica's `merge`.

        If the log no longer has all of it, the bytes hold a snapshot of the state instead.
        """
        if vv is not None and not isinstance(vv, VersionVector):
            raise InvalidValueError(f"vv: must be a VersionVector or None, got {type(vv).__name__}", field="vv")
        while True:
            with self._lock:
                self._settled()
                bound = self._machine.sent_bound
                if bound is None or self._machine.own_seq() <= bound:
                    return delta_since(self._machine, vv or EMPTY_VV)
            self.keep_bound()

    def merge(self, data: bytes) -> MergeResult:
        """Take in what another replica's `delta_since` gave: all or nothing, and once however often it is repeated.

        Raises:
            CorruptionError: not such bytes. MissingHistoryError: they rest on commits that are not here.
            WrongClusterError: they are of another cluster.

        If they know more of this replica than it does itself, it has lost commits; it takes a new incarnation first, and gets them back.
        """
        with self._lock:
            result, position = self._merge(data)
        self.wait_durable(position)
        for callback in self._callbacks:
            callback()
        return result

    def _merge(self, data: bytes) -> tuple[MergeResult, int]:
        """`merge` with the lock held, up to the append; with it the log's end."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidValueError(f"merge: needs bytes, got {type(data).__name__}", field="data")
        self._settled()
        given = decode(bytes(data))
        origin, seq = self.origin, self._machine.own_seq()
        if (known := known_of_own(given, self._machine)) > seq:
            self.begin_incarnation(f"what was given to merge knows {origin} up to {known}, and here it ended at {seq}: commits were lost")
        found = merge(self._machine, given, self._watches)
        if self._replica.purges:
            self._upkeep.start()
        return found

    # -- for nodes ------------------------------------------------------------------------------------------------

    def execute(self, requests: Sequence[Sequence[Any]]) -> Executed:
        """Run a group of requests (rows `[id, op, args, opts]`): its writes are one frame and one append."""
        with self._lock:
            self._open_for_reads()
            executed = execute(self, requests)
        if executed.level is not None or self._durable.is_async:
            self._durable.make(executed.position, executed.level or "async")
        for callback in self._callbacks:
            callback()
        return executed

    def begin_quick(self) -> bool:
        """Take the store's lock for a few quick operations in a thread that must not wait, until `end_quick`.

        False, and nothing taken, if somebody holds it or the engine is to be written first; meanwhile it is not written.
        """
        if not self._lock.acquire(blocking=False):
            return False
        if self._machine.postpone_fold():
            return True
        self._lock.release()
        return False

    def end_quick(self) -> None:
        """End what `begin_quick` began."""
        self._machine.folds = True
        self._lock.release()

    def is_durable(self, position: int) -> bool:
        """Whether `wait_durable` would return at once. O(1), takes no lock."""
        return not self._durable.is_sync or self._machine.log.synced() >= position

    def wait_durable(self, position: int) -> None:
        """Block until what is before a log position is durable at the store's level."""
        if self._durable.is_sync:
            self._durable.make(position)

    def _apply_received(self, frames: Sequence[Frame]) -> Applied:
        with self._lock:
            self._check()
            try:
                return self._machine.apply(frames)
            finally:
                if self._watches.active and self._machine.failed is None:
                    self._watches.publish(self._machine.log.end())
                if self._replica.purges:
                    self._upkeep.start()

    def commit_control(self, deltas: list[Delta]) -> None:
        """Commit members' records (`core.control.member_delta`). Returns when it is as durable as a write."""
        with self._lock:
            self._settled()
            position = self._machine.commit_control(deltas)
        self.wait_durable(position)
        for callback in self._callbacks:
            callback()

    def refuse_writes(self, why: str | None) -> None:
        """Take no writes, for the cluster has removed this region; None: take them again."""
        with self._lock:
            self._replica.refuse_writes(why)

    def _steer(self, steering: Steering) -> None:
        with self._lock:
            self._settled()
            self._machine.steer(steering)

    def open_scan(self, op: str, args: Sequence[Any], *, page_bytes: int = 256 << 10) -> Iterator[list[Any]]:
        """A streaming read (`scan`, `smembers`, `hitems`, `delta_since`) as pages of rows, of one moment."""
        return open_pages(self, op, args, page_bytes)

    def status(self) -> Status:
        """What this replica is and holds."""
        with self._lock:
            self._settled()
            machine, replica = self._machine, self._replica
            found = machine.digest()
            retained = getattr(machine.log, "retained_bytes", None)
            return Status(
                region=self.region,
                origin=self.origin,
                cluster=self.cluster,
                shard=self.shard,
                version=_version(),
                engine=self.engine_name,
                durability=self.durability,
                path=None if self.path is None else str(self.path),
                vv=machine.control.show(machine.vv()),
                durable_vv=machine.control.show(machine.durable_vv()),
                digest=None if found is None else found[1],
                hlc=replica.clock.mark,
                wall_ms=self._wall_ms(),
                log_start=machine.log.start(),
                log_end=machine.log.end(),
                log_bytes=retained() if retained is not None else 0,
                log_floor=machine.log.floor(),
                log_kept_for=self._retention.last.held_by,
                read_only=self.read_only,
                last_install=self.last_install,
                state_bytes=machine.engine.size_bytes(),
                held_frames=replica.held[0],
                conflicts=replica.journal.total,
                watchers=self._watches.count,
                pid=os.getpid(),
                warnings=self.warnings,
            )

    # -- housekeeping ---------------------------------------------------------------------------------------------

    @property
    def read_only(self) -> str:
        """Why no writes are taken at present (a full disk, or the region is drained or removed), and what to do; empty if they are."""
        why = self._machine.full or self._replica.refusal
        return "" if why is None else why.message

    @property
    def removed(self) -> str:
        """Why the cluster takes nothing that is written here any more (the region is removed), and what to do; empty if it does."""
        why = self._replica.refusal
        return why.message if isinstance(why, RegionRemovedError) else ""

    def maintain(self) -> None:
        """One round of housekeeping: issue due expiries, purge a slice, fsync, trim. The store's thread calls it."""
        self._upkeep.round()

    def keep_bound(self) -> None:
        """Keep the sent bound ahead of what is written, and draw it back at rest. The store's thread calls it."""
        self._upkeep.keep_bound()

    def acknowledged(self, members: Mapping[str, Acknowledgement | None]) -> None:
        """Say which other regions there are, and what each has fsynced: for them the log is kept until they have it, within bounds.

        A node says so by itself. A store that nobody has told of members keeps its log by age and size alone.

        Args:
            members: all of them, those that are away too; None: nothing new is known of it.
        """
        self._retention.acknowledged(members)


def _version() -> str:
    from crdtkv.version import VERSION

    return VERSION


def wall_clock_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
