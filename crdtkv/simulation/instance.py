"""The records by which a simulated directory is told from its copies: `store.identity` without files.

What is *inside* goes where the disk goes: it is copied, restored and wiped with it. What is outside, and the boot, are the machine's.
"""

from __future__ import annotations

from msgspec.structs import replace

from crdtkv.core.causality import Origin
from crdtkv.store.identity import Evidence, Mark, Record


class SimulatedInstance:
    """See the module's docstring. Writes are whole and durable at once; what takes time is the caller's to wait for."""

    def __init__(self) -> None:
        self.inside: Record | None = None
        self.outside: Record | None = None
        self.boot = 0
        self._mark: tuple[Origin, Mark] = (Origin(""), Mark())
        self._synced_mark = self._mark
        self._writes = 0

    @property
    def bound(self) -> int:
        """The sent bound that is on the disk."""
        return 0 if self.outside is None else self.outside.bound

    def evidence(self, origin: Origin, recovered: int, commits: int, *, is_engine_ahead: bool = False) -> Evidence:
        marked, mark = self._mark
        if marked != origin:
            mark = Mark()
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

    def note(self, origin: Origin, seq: int, synced: int, *, sync: bool = False) -> None:
        self._mark = origin, Mark(seq, synced)
        if sync:
            self._synced_mark = self._mark

    def power_failed(self, *, keeps_mark: bool) -> None:
        """Another boot; what was noted without an fsync is gone."""
        self.boot += 1
        if not keeps_mark:
            self._mark = self._synced_mark

    def wipe(self) -> None:
        """A new disk, of which nothing is known."""
        self.inside = self.outside = None
