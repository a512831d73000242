"""Reading what a backup holds, checked against its manifest."""

from __future__ import annotations

from collections.abc import Iterator

from crdtkv import interrupts
from crdtkv.backup.chunks import FRAMES, STATE, checksum, decode_chunk
from crdtkv.backup.manifest import FULL, Manifest
from crdtkv.backup.target import Target
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError


def read_chunks(target: Target, manifest: Manifest) -> Iterator[list[bytes]]:
    """The items of a backup's files, file by file.

    Raises:
        CorruptionError: a file is missing, damaged, or another one than was written; names it.
    """
    kind = STATE if manifest.kind == FULL else FRAMES
    for file in manifest.files:
        interrupts.check()
        where = f"{target}/{manifest.id}/{file.name}"
        data = target.get(f"{manifest.id}/{file.name}")
        if data is None:
            raise CorruptionError(f"{where}: the file is missing: use another backup", path=where)
        if len(data) != file.bytes or checksum(data).hex() != file.checksum:
            raise CorruptionError(f"{where}: it is not the file that was written: use another backup", path=where)
        items = decode_chunk(kind, data, where)
        if len(items) != file.items:
            raise CorruptionError(f"{where}: {len(items)} items, the manifest says {file.items}", path=where)
        yield items


def read_frames(target: Target, manifest: Manifest) -> Iterator[Frame]:
    """The frames of an incremental backup, in an order in which they apply."""
    for items in read_chunks(target, manifest):
        yield from map(Frame.decode, items)
