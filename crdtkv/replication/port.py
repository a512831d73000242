"""What replication may ask of a replica: the narrow seam between `store` and `replication`.

Reads through it are synchronous and cheap. The only write, `apply`, is called by the I/O layer around the drive loop
(it may block on the disk, so a node calls it in a thread), never by a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.core.replica import Applied
from crdtkv.storage.log import LogReader


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

    def vv(self) -> VersionVector:
        """What is applied."""

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


__all__ = ["Applied", "ReplicaPort"]
