"""What replication may ask of a replica: the narrow seam between `store` and `replication`.

Reads through it are synchronous and cheap. The only write, `apply`, is called by the I/O layer around the drive loop
(it may block on the disk, so a node calls it in a thread), never by a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.control import Control, Steering
from crdtkv.core.frame import Frame
from crdtkv.core.install import Installed
from crdtkv.core.replica import Applied
from crdtkv.core.transfer import Arrival
from crdtkv.storage.log import LogReader


class SnapshotSource(Protocol):
    """A state of one moment, held while it is sent. Read from any thread, one call at a time."""

    vv: VersionVector

    def read(self, cursor: bytes, bytes_max: int) -> tuple[bytes, bytes | None]:
        """The chunk at a cursor (the first: b""), about so long, and the cursor after it; None: that was the last."""

    def close(self) -> None:
        """Let go; idempotent."""


class Snapshots(Protocol):
    """Snapshots of this replica for others, and of others for this one. All but `staged` may block: see `snapshot.Job`."""

    @property
    def staged(self) -> Arrival:
        """What is staged of a snapshot from elsewhere."""

    def open(self) -> SnapshotSource:
        """A snapshot of what is applied now, on the disk by the time this returns."""

    def stage(self, data: bytes, link: bytes, *, anew: bool) -> None:
        """Check and keep the next chunk. `anew`: it is the first of a snapshot, and what was staged before is forgotten."""

    def discard(self) -> None:
        """Forget what is staged."""

    def install(self) -> Installed:
        """Install what is staged as a whole, in one step."""


class ReplicaPort(Protocol):
    """One replica, as its peers' sessions see it."""

    @property
    def origin(self) -> Origin: ...
    @property
    def cluster(self) -> str: ...
    @property
    def shard(self) -> int: ...
    @property
    def log(self) -> LogReader: ...

    @property
    def control(self) -> Control:
        """Closed origins, members, frozen origins."""

    @property
    def snapshots(self) -> Snapshots | None:
        """Snapshots given and taken; None: this replica does neither."""

    def vv(self) -> VersionVector:
        """What is applied, closed origins included. (All vectors here are full ones; those in messages are shown ones.)"""

    def durable_vv(self) -> VersionVector:
        """What of it is fsynced here (or as durable as it ever gets)."""

    def released(self) -> int:
        """The log position up to which frames may leave: durable at their level."""

    def hlc(self) -> int:
        """The clock's mark."""

    def digest(self) -> tuple[VersionVector, str] | None:
        """The digest of the state and the vector that it is of; None while that is not settled. Cheap."""

    def frame_hash(self, origin: Origin, seq: int) -> bytes | None:
        """The hash of the frame that ends at `seq`, if it is kept."""

    def kept_hashes(self) -> dict[Origin, tuple[int, bytes]]:
        """Per origin the last seq of its last frame, and that frame's hash."""

    def apply(self, frames: Sequence[Frame]) -> Applied:
        """Apply frames in this order; those not ready are held within a bound, duplicates are no-ops.

        Raises:
            DiskFullError: there is no room for them now; nothing changed. To be given again, all of them.
            CorruptionError: a frame's bytes, or the hash of its predecessor, are not what they should be. Nothing before
                it is lost; it and what follows may be given again.
        """

    def steer(self, steering: Steering) -> None:
        """Carry out what `membership` decided. May block on the disk: called by the I/O layer around the drive loop, like `apply`."""


__all__ = ["Applied", "ReplicaPort"]
