"""The store as replication sees it: `ReplicaPort` for callers on any thread.

The machine allows one caller at a time. Replication's reads come from an event loop that must not wait for a thread
that is writing: those that need the lock try it, and give what they last knew if it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.control import Control, Steering
from crdtkv.core.frame import Frame
from crdtkv.core.replica import Applied
from crdtkv.storage.log import LogReader

if TYPE_CHECKING:
    from crdtkv.store.snapshots import Snapshots
    from crdtkv.store.store import Store


class StorePort:
    """See the module's docstring."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._machine = store._machine
        self._lock = store._lock
        self._durable = self._machine.durable_vv()
        self._released = self._machine.released()

    @property
    def origin(self) -> Origin:
        return self._machine.origin

    @property
    def cluster(self) -> str:
        return self._machine.cluster

    @property
    def shard(self) -> int:
        return self._machine.shard

    @property
    def log(self) -> LogReader:
        return self._machine.log

    @property
    def control(self) -> Control:
        return self._machine.control

    @property
    def snapshots(self) -> Snapshots | None:
        return self._machine.snapshots

    def vv(self) -> VersionVector:
        return self._machine.vv()

    def durable_vv(self) -> VersionVector:
        if self._lock.acquire(blocking=False):
            try:
                self._durable = self._machine.durable_vv()
            finally:
                self._lock.release()
        return self._durable

    def released(self) -> int:
        if self._lock.acquire(blocking=False):
            try:
                self._released = self._machine.released()
            finally:
                self._lock.release()
        return self._released

    def hlc(self) -> int:
        return self._machine.hlc()

    def digest(self) -> tuple[VersionVector, str] | None:
        if not self._lock.acquire(blocking=False):
            return None
        try:
            machine = self._machine
            if machine.failed is not None or not machine.folds or machine.fold_soon():
                return None  # a digest folds, for which a turn in a hurry has no time, nor any turn for much: a later heartbeat has it
            return machine.digest()
        finally:
            self._lock.release()

    def frame_hash(self, origin: Origin, seq: int) -> bytes | None:
        with self._lock:
            return self._machine.frame_hash(origin, seq)

    def kept_hashes(self) -> dict[Origin, tuple[int, bytes]]:
        with self._lock:
            return self._machine.kept_hashes()

    def steer(self, steering: Steering) -> None:
        """Freeze, raise limits, close; see `ReplicaPort.steer`. May block on the disk."""
        self._store._steer(steering)

    def apply(self, frames: Sequence[Frame]) -> Applied:
        """Apply received frames; see `ReplicaPort.apply`. May block on the disk."""
        return self._store._apply_received(frames)
