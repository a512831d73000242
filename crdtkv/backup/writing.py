"""Making a backup of a replica that serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from crdtkv.audit.sides import LocalSide, Side
from crdtkv.backup.chunks import CHUNK_BYTES, FRAMES, STATE, checksum, encode_chunk
from crdtkv.backup.manifest import FULL, INCREMENTAL, NAME, ChunkFile, Manifest, manifests, new_id
from crdtkv.backup.target import Target
from crdtkv.core.compare import digest_of
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, StorageError
from crdtkv.store.store import Store
from crdtkv.store.view import PAGE_BYTES, FramePage, View, pages
from crdtkv.version import VERSION

PACE: Final = 0.3
"""How much of the time a backup of an embedded store keeps a processor busy: the interpreter is the writers' as well.

Measured (`python -m bench goals --row backup`): about 100 k entries/s beside a writer that never pauses, and about a fifth of its speed."""
_MASK: Final = (1 << 128) - 1
Progress = Callable[[int, int], None]
"""Told now and then how many records (or frames) and bytes have been written."""


def create(source: Store | Side, target: Target, *, full: bool = False, progress: Progress = lambda items, size: None) -> Manifest:
    """Back up a replica as of one moment, while it serves. O(state), or for an incremental backup O(what came since).

    It is incremental if the target holds a backup of the same data that this replica has grown beyond, and its log still has all frames
    since; else it is full.

    Args:
        source: a store, or a node's `crdtkv.client.views.NodeSide`.
        full: whatever is there already.
    Raises:
        CorruptionError: the replica's records are damaged, or its history is not the one in the target. The target stays as it was.
        StorageError: the target cannot be written. What was written of this backup counts for nothing.
    """
    side = LocalSide(source, PACE) if isinstance(source, Store) else source
    now_ms = time.time_ns() // 1_000_000
    view = side.view()
    try:
        moment = view.moment
        files = _Files(target, new_id(moment.region, now_ms), progress)
        parent, first = (None, None) if full else _parent(view, target)
        if parent is not None and first is not None:
            commits = _frames(view, parent, first, files)
            kind, records, frames, hlc = INCREMENTAL, 0, files.items, max(moment.mark, parent.hlc)
        else:
            parent, kind, records, frames, commits, hlc = None, FULL, _state(view, files), 0, 0, moment.mark
        manifest = Manifest(
            files.id,
            kind,
            parent.id if parent is not None else None,
            moment.cluster,
            moment.shard,
            moment.origin,
            moment.vv,
            moment.hashes,
            f"{moment.digest:032x}",
            hlc,
            now_ms,
            records,
            frames,
            commits,
            tuple(files.written),
            VERSION,
            moment.agreed,
        )
        if parent is not None and target.get(f"{parent.id}/{NAME}") is None:
            raise StorageError(f"{target}: backup {parent.id}, which this one continues, was removed meanwhile: try again", retryable=True)
        target.put(f"{files.id}/{NAME}", manifest.to_bytes())  # last: only now the backup is there
        return manifest
    finally:
        view.close()


def _parent(view: View, target: Target) -> tuple[Manifest | None, FramePage | None]:
    """The newest backup that this state continues, if the log has what came since; and its first page."""
    moment = view.moment
    for manifest in reversed(manifests(target)):
        if (manifest.cluster, manifest.shard) == (moment.cluster, moment.shard) and manifest.vv <= moment.vv:
            page = view.frame_page(manifest.vv)
            return (manifest, page) if page is not None else (None, None)
    return None, None


class _Files:
    """Chunks of one backup on their way to the target."""

    def __init__(self, target: Target, id: str, progress: Progress) -> None:
        self.id = id
        self.items = 0
        self.written: list[ChunkFile] = []
        self._target = target
        self._progress = progress
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._size = 0

    def add(self, kind: bytes, items: list[bytes], size: int) -> None:
        self._waiting += items
        self._waiting_bytes += size
        if self._waiting_bytes >= CHUNK_BYTES:
            self.flush(kind)

    def flush(self, kind: bytes) -> None:
        if not self._waiting:
            return
        name = f"{'state' if kind == STATE else 'frames'}-{len(self.written):06d}"
        data = encode_chunk(kind, self._waiting)
        self._target.put(f"{self.id}/{name}", data)
        self.written.append(ChunkFile(name, len(data), checksum(data).hex(), len(self._waiting)))
        self.items += len(self._waiting)
        self._size += len(data)
        self._waiting, self._waiting_bytes = [], 0
        self._progress(self.items, self._size)


def _state(view: View, files: _Files) -> int:
    """Write all records; how many. They must give the digest that the replica keeps: a damaged state is no backup."""
    total = 0
    for flat in pages(view, bytes_max=min(PAGE_BYTES, CHUNK_BYTES)):
        total += digest_of(zip(flat[::2], flat[1::2], strict=True))
        files.add(STATE, flat, sum(map(len, flat)))
    files.flush(STATE)
    if total & _MASK != view.moment.digest:
        raise CorruptionError(
            f"{view.moment.region}: its records give digest {total & _MASK:032x}, with every commit it kept {view.moment.digest:032x}: "
            "it was changed behind its back, and a backup of it would be too; see `crdtkv verify`, and back up another region"
        )
    return files.items // 2


def _frames(view: View, parent: Manifest, first: FramePage, files: _Files) -> int:
    """Write the frames since the parent; how many commits. Each must follow the last of its origin."""
    last = {origin: (seq, parent.hashes[origin]) for origin, seq in parent.vv.items()}
    commits = 0
    for page in _frame_pages(view, parent, first):
        for data in page:
            frame = Frame.decode(data)
            seq, known = last.get(frame.origin, (0, b""))
            if frame.first_seq != seq + 1 or frame.previous != known:
                raise CorruptionError(
                    f"fork: the frame {frame.origin}:{frame.first_seq} of {view.moment.region} does not follow what the backup {parent.id} "
                    f"holds of {frame.origin}: this is another history; back it up to another target",
                    origin=frame.origin,
                )
            last[frame.origin] = (frame.last_seq, frame.hash)
            commits += frame.count
        files.add(FRAMES, page, sum(map(len, page)))
    files.flush(FRAMES)
    reached = {origin: seq for origin, (seq, _) in last.items()}
    if reached != dict(view.moment.vv.items()):
        raise CorruptionError(f"{view.moment.region}: its log does not hold every frame since backup {parent.id}: make a full one")
    return commits


def _frame_pages(view: View, parent: Manifest, first: FramePage) -> Iterator[list[bytes]]:
    page: FramePage | None = first
    while page is not None:
        yield page[0]
        if page[1] is None:
            return
        page = view.frame_page(parent.vv, page[1])
    raise CorruptionError(f"{view.moment.region}: its log was truncated while it was backed up: try again, it will be a full backup")
