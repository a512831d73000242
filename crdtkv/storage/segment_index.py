"""Where in its files a log has which frames: its segments, each with a sparse index of positions, offsets and version vectors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crdtkv.core.causality import Origin, VersionVector

INDEX_INTERVAL_BYTES: Final = 64 << 10
"""How far apart the entries of an index are, in the file."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file. `index` holds (position, offset, version vector before it), sparse, beginning with the first record.

    `synced`: the offset up to which this process knows the file to be fsynced.
    """

    path: Path
    first: int
    end: int
    size: int
    begun_ms: int
    index: list[tuple[int, int, VersionVector]] = field(default_factory=list)
    is_indexed: bool = False
    synced: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def before(self) -> VersionVector:
        return self.index[0][2]


class Indexer:
    """Extends a segment's sparse index as its frames go by."""

    __slots__ = ("_index", "_next_at", "_seqs")

    def __init__(self, index: list[tuple[int, int, VersionVector]]) -> None:
        self._index = index
        self._next_at = index[-1][1] + INDEX_INTERVAL_BYTES
        self._seqs = dict(index[-1][2])

    def add(self, position: int, offset: int, origin: Origin, last_seq: int) -> None:
        """The frame at `position`, whose record begins at `offset`."""
        if offset >= self._next_at:
            self._index.append((position, offset, VersionVector(self._seqs)))
            self._next_at = offset + INDEX_INTERVAL_BYTES
        self._seqs[origin] = last_seq

    def vv(self) -> VersionVector:
        """The version vector after the frames that went by."""
        return VersionVector(self._seqs)
