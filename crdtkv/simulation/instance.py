"""The records by which a simulated directory is told from its copies: `store.identity` without files.

What is *inside* goes where the disk goes: it is copied, restored and wiped with it. What is outside, and the boot, are the machine's.
"""

from __future__ import annotations

from msgspec.structs import replace

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.store.identity import Evidence, Mark, Record


class SimulatedInstance:
    """See the module's docstring. Writes are whole and durable at once; what takes time is the caller's to wait for."""

    def __init__(self) -> None:
        self.inside: Record | None = None
        self.outside: Record | None = None
        self.boot = 0
        self._noted: tuple[Origin, VersionVector, VersionVector] = (Origin(""), EMPTY_VV, EMPTY_VV)
        """The mark, as what it is made of: it is noted at every turn, and read at a start."""
        self._noted_synced = self._noted
        self._writes = 0

    @property
    def bound(self) -> int:
        """The sent bound that is on the disk."""
        return 0 if self.outside is None else self.outside.bound

    def evidence(self, origin: Origin, recovered: int, commits: int, *, is_engine_ahead: bool = False) -> Evidence:
        noted, kept, synced = self._noted
        mark = Mark(kept.seq(origin), synced.count()) if noted == origin else Mark()
        return Evidence(
            origin=origin, recovered=recovered, commits=commits, inside=self.inside, outside=self.outside, mark=mark, boot=str(self.boot),
            is_engine_ahead=is_engine_ahead,
        )  # fmt: skip

    def open(self, origin: Origin, bound: int, synced: int) -> None:
        self.set_bound(origin, bound, bound, synced)
        assert self.outside is not None
        self.outside = replace(self.outside, previous="")

    def set_bound(self, origin: Origin, seq: int, bound: int, synced: int) -> None:
        self._writes += 1
        before = "" if self.inside is None else self.inside.nonce
        self.inside = self.outside = Record(
            number=self._writes, id="", nonce=str(self._writes), previous=before, origin=origin, boot=str(self.boot), clean=False,
            bound=bound, seq=seq, path="/", synced=synced,
        )  # fmt: skip

    def note(self, origin: Origin, kept: VersionVector, synced: VersionVector, *, sync: bool = False) -> None:
        """Note what would be found here after a crash of the process, and what is fsynced; `sync`: the note is, too."""
        self._noted = origin, kept, synced
        if sync:
            self._noted_synced = self._noted

    def power_failed(self, *, keeps_mark: bool) -> None:
        """Another boot; what was noted without an fsync is gone."""
        self.boot += 1
        if not keeps_mark:
            self._noted = self._noted_synced

    def wipe(self) -> None:
        """A new disk, of which nothing is known."""
        self.inside = self.outside = None
