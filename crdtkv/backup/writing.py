"""Making a backup of a replica that serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from crdtkv import interrupts
from crdtkv.audit.sides import LocalSide, Side
from crdtkv.backup.beside import NoReaderError, Reader
from crdtkv.backup.chunks import CHUNK_BYTES, FRAMES, StateChunk, checksum, encode_chunk, state_chunks
from crdtkv.backup.manifest import FULL, INCREMENTAL, NAME, ChunkFile, Manifest, manifests, new_id
from crdtkv.backup.target import Target
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, StorageError
from crdtkv.store.store import Store
from crdtkv.store.view import PAGE_BYTES, FramePage, View, checkpointed, pages
from crdtkv.version import VERSION

LOGGER: Final = logging.getLogger(__name__)
BESIDE_BYTES_MIN: Final = 4 << 20
"""What the engine holds, from which on a state is read by a process of its own, which takes a quarter of a second to start."""
PACE: Final = 0.3
"""How much of the time a backup of an embedded store that is read in its own process keeps a processor busy: the interpreter is the
writers' as well."""
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
    with ExitStack() as stack:
        begun = None if full else _incremental(stack, side, target)
        if begun is not None:
            view, parent, first = begun
            files = _Files(target, new_id(view.moment.region, now_ms), progress)
            commits = _frames(view, parent, first, files)
            kind, continued, records, frames, hlc = INCREMENTAL, parent.id, 0, files.items, max(view.moment.mark, parent.hlc)
        else:
            view, read = stack.enter_context(_whole(side))
            files = _Files(target, new_id(view.moment.region, now_ms), progress)
            kind, continued, records, frames, commits, hlc = FULL, None, _state(view, files, read), 0, 0, view.moment.mark
        moment = view.moment
        manifest = Manifest(
            files.id,
            kind,
            continued,
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
        if continued is not None and target.get(f"{continued}/{NAME}") is None:
            raise StorageError(f"{target}: backup {continued}, which this one continues, was removed meanwhile: try again", retryable=True)
        target.put(f"{files.id}/{NAME}", manifest.to_bytes())  # last: only now the backup is there
        return manifest


@contextmanager
def _whole(side: Side) -> Iterator[tuple[View, Iterable[StateChunk]]]:
    """A view of a whole state, and its records in chunks: read beside, in a process of its own, where that is possible and worth while."""
    if isinstance(side, LocalSide) and side.store.engine_name == "rocksdb" and side.store._machine.engine.size_bytes() >= BESIDE_BYTES_MIN:
        with checkpointed(side.store) as (view, checkpoint):
            if checkpoint is not None:
                try:
                    reader = Reader(checkpoint, side.store.port.log.end)
                except NoReaderError as e:
                    LOGGER.info("the backup of region %s is read beside its writers in one process, which slows them: %s", side.name, e)
                else:
                    with reader:
                        yield view, reader.chunks()
                    return
    with closing(side.view()) as view:
        yield view, state_chunks(pages(view, bytes_max=min(PAGE_BYTES, CHUNK_BYTES)), CHUNK_BYTES)


def _incremental(stack: ExitStack, side: Side, target: Target) -> tuple[View, Manifest, FramePage] | None:
    """A view, the newest backup that it continues, and the first page of what came since; None if there is none, or the log lacks some."""
    view: View = stack.enter_context(closing(side.view()))
    moment = view.moment
    for manifest in reversed(manifests(target)):
        if (manifest.cluster, manifest.shard) == (moment.cluster, moment.shard) and manifest.vv <= moment.vv:
            page = view.frame_page(manifest.vv)
            if page is not None:
                return view, manifest, page
            break
    stack.close()  # it holds back what the engine would drop
    return None


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

    def put(self, kind: str, data: bytes, items: int) -> None:
        """A chunk's file."""
        name = f"{kind}-{len(self.written):06d}"
        self._target.put(f"{self.id}/{name}", data)
        self.written.append(ChunkFile(name, len(data), checksum(data).hex(), items))
        self.items += items
        self._size += len(data)
        self._progress(self.items, self._size)

    def add(self, frames: list[bytes]) -> None:
        """Frames, for a chunk that is put once it is full."""
        self._waiting += frames
        self._waiting_bytes += sum(map(len, frames))
        if self._waiting_bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put the frames that wait."""
        if self._waiting:
            self.put("frames", encode_chunk(FRAMES, self._waiting), len(self._waiting))
            self._waiting, self._waiting_bytes = [], 0


def _state(view: View, files: _Files, read: Iterable[StateChunk]) -> int:
    """Write all records; how many. They must give the digest that the replica keeps: a damaged state is no backup."""
    total = 0
    for chunk in read:
        interrupts.check()
        total += chunk.digest
        files.put("state", chunk.data, chunk.items)
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
        files.add(page)
    files.flush()
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
