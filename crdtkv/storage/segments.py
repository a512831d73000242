"""The format of a commit log's segment files, version 1, and nothing else of the log.

    file    = header record record …
    header  = "CRDTKVLG" version:u16 size:u32 crc:u32 payload        payload = MessagePack {first, before, begun}
    record  = length:u32 crc:u32 synced:u32 frame                    little-endian throughout
    note    = 0:u32 at:u32 at:u32                                    a record without a frame, at the offset `at`

`synced` is the offset up to which the file was known to be fsynced when the record was written; `crc` the CRC-32 of the frame,
begun at `synced`. A note, written when the log is at rest, says the same of what is before it: the last records have none
behind them that could. What was written since the last fsync a loss of power may leave in any order, with holes; so damage
means a torn end only beyond every offset that a valid record or note, wherever it stands, says was synced (`synced_beyond`).

`first` is the position of the first record, `before` the version vector of all frames of the log before it: so the floor
and the position for a peer are known from the headers alone. `begun`, when the segment was begun by the wall clock (Unix ms),
dates it and the end of the one before; it may be left out. A reader ignores further keys of the payload. A header is
complete and on the disk before its file gets its name, hence a damaged one is never a torn write.

Behind its records the last segment of a log may hold room for more: zeros up to the end of the file, which a log that ends in order, or
goes on in another segment, takes away. Older versions take them for a torn write, and cut them off.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

from crdtkv.core.causality import VersionVector
from crdtkv.core.frame import FRAME_BYTES_MAX, Frame
from crdtkv.core.frame import MAGIC as FRAME_START
from crdtkv.errors import CorruptionError, IncompatibleFormatError
from crdtkv.storage.files import File

MAGIC: Final = b"CRDTKVLG"
FORMAT_VERSION: Final = 1
SUFFIX: Final = ".log"
_HEADER = struct.Struct("<8sHII")
_RECORD = struct.Struct("<III")
RECORD_OVERHEAD: Final = _RECORD.size
HEADER_BYTES_MAX: Final = 1 << 20
HOW_TO_REPAIR: Final = "`crdtkv repair --data DIR --from HOST:PORT` fills it from a peer"
"""What to do about a segment that is damaged."""
_LIKE_A_NOTE: Final = re.compile(rb"(?=\0{4}(?!\0{4})([\s\S]{4})\1)")
"""Not the zeros of room that nothing was written to: no note is at offset 0."""
_READ_BYTES = 1 << 20


class _Payload(msgspec.Struct):
    first: int
    before: list[Any]
    begun: int = 0


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself. `records_at`: the offset of its first record. `begun_ms`: Unix time, 0 if not known."""

    first: int
    before: VersionVector
    records_at: int
    begun_ms: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Where the records of a segment stop being valid, and how."""

    offset: int
    reason: str


def segment_name(first: int) -> str:
    """The file's name: names sort as positions do."""
    return f"{first:020d}{SUFFIX}"


def encode_header(first: int, before: VersionVector, begun_ms: int = 0) -> bytes:
    """The header of a new segment."""
    fields: dict[str, Any] = {"first": first, "before": before.flat()}
    if begun_ms:
        fields["begun"] = begun_ms
    payload = msgspec.msgpack.encode(fields)
    return _HEADER.pack(MAGIC, FORMAT_VERSION, len(payload), crc32(payload)) + payload


def read_header(file: File, path: Path) -> SegmentHeader:
    """Read and check a segment's header.

    Raises:
        CorruptionError: it is damaged, or its position is not that of the file's name.
        IncompatibleFormatError: a later version wrote it.
    """
    head = file.read_at(0, _HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise CorruptionError(f"{path} is damaged at offset 0: not a segment of a commit log. {HOW_TO_REPAIR}", path=str(path), offset=0)
    _, version, size, checksum = _HEADER.unpack(head)
    if version != FORMAT_VERSION:
        raise IncompatibleFormatError(
            f"{path}: log format version {version}, this version of crdtkv knows {FORMAT_VERSION}: upgrade it",
            path=str(path),
            version=version,
        )
    payload = file.read_at(_HEADER.size, size) if size <= HEADER_BYTES_MAX else b""
    try:
        if crc32(payload) != checksum:
            raise CorruptionError("checksum mismatch")
        fields = msgspec.msgpack.decode(payload, type=_Payload)
        if path.name != segment_name(fields.first):
            raise CorruptionError(f"the header is that of position {fields.first}")
        before = VersionVector.from_flat(fields.before)
    except (CorruptionError, msgspec.DecodeError) as e:
        raise CorruptionError(f"{path} is damaged at offset 0: {e} in its header. {HOW_TO_REPAIR}", path=str(path), offset=0) from e
    return SegmentHeader(fields.first, before, _HEADER.size + size, fields.begun)


def encode_records(frames: list[bytes], synced: int) -> bytes:
    """The records of a group of frames, to be written at once; the file is known to be fsynced up to `synced`."""
    pack = _RECORD.pack
    if len(frames) == 1:
        return pack(len(frames[0]), crc32(frames[0], synced), synced) + frames[0]
    return b"".join(part for data in frames for part in (pack(len(data), crc32(data, synced), synced), data))


def encode_note(at: int) -> bytes:
    """What is written at the offset `at` once the file is known to be fsynced up to there."""
    return _RECORD.pack(0, at, at)


def scan_records(file: File, offset: int, end: int, *, read_bytes: int = _READ_BYTES) -> Iterator[tuple[int, bytes] | Damage]:
    """The records from `offset` to `end`, each as its offset and the frame's bytes; a `Damage` last if one is not valid. No notes.

    Reads ahead `read_bytes` at a time, and more for a longer record.
    """
    buffer, base, at = b"", offset, 0  # `buffer` is the file from `base` on, `at` where we are in it
    while base + at < end:
        if len(buffer) - at < RECORD_OVERHEAD:
            buffer, base, at = file.read_at(base + at, min(read_bytes, end - base - at)), base + at, 0
            if len(buffer) < RECORD_OVERHEAD:
                yield Damage(base, "the record's head is cut short")
                return
        length, checksum, synced = _RECORD.unpack_from(buffer, at)
        start = base + at
        if length == 0 and checksum == synced == start:
            at += RECORD_OVERHEAD
            continue
        if not 0 < length <= FRAME_BYTES_MAX:
            yield Damage(start, f"a record of {length:,} bytes, which none has")
            return
        if start + RECORD_OVERHEAD + length > end:
            yield Damage(start, f"a record of {length:,} bytes is cut short")
            return
        if len(buffer) - at < RECORD_OVERHEAD + length:
            buffer, base, at = file.read_at(start, min(max(read_bytes, RECORD_OVERHEAD + length), end - start)), start, 0
        data = buffer[at + RECORD_OVERHEAD : at + RECORD_OVERHEAD + length]
        if len(data) < length or crc32(data, synced) != checksum:
            yield Damage(start, "checksum mismatch")
            return
        yield start, data
        at += RECORD_OVERHEAD + length


def synced_beyond(file: File, offset: int, end: int) -> int:
    """The greatest offset that a valid record or note beyond damage at `offset` says was synced; 0 if none follows.

    Above `offset`: the damage is in what was fsynced, and no loss of power explains it. Else what follows are writes of which
    a loss of power left some and not others; none of it was promised. A record's own length may be what is damaged, so every
    offset is tried; a checksum of 32 bits over so many tries proves little, so a record must also be a frame. O(end - offset).
    """
    data = file.read_at(offset, end - offset)
    view = memoryview(data)
    unpack = _RECORD.unpack_from
    greatest = 0
    body = data.find(FRAME_START, RECORD_OVERHEAD + 1)
    while body >= 0:
        length, checksum, synced = unpack(data, body - RECORD_OVERHEAD)
        following = body + 1
        if 0 < length <= min(len(data) - body, FRAME_BYTES_MAX) and _is_frame(view[body : body + length], checksum, synced):
            greatest = max(greatest, synced)
            following = body + length + RECORD_OVERHEAD
        body = data.find(FRAME_START, following)
    noted = (
        offset + found.start()
        for found in _LIKE_A_NOTE.finditer(data)
        if data.startswith(encode_note(offset + found.start()), found.start())
    )
    return max(greatest, max(noted, default=0))


def room_from(file: File, offset: int, end: int) -> int:
    """From where on, beyond `offset`, zeros reach to the end: there is room, and nothing was written. O(end - offset)."""
    return offset + len(file.read_at(offset, end - offset).rstrip(b"\0"))


def record_after(file: File, offset: int, end: int) -> int | None:
    """The offset of the first valid record that begins at `offset` or beyond, None if there is none; found as in `synced_beyond`."""
    data = file.read_at(offset, end - offset)
    view = memoryview(data)
    body = data.find(FRAME_START, RECORD_OVERHEAD)
    while body >= 0:
        length, checksum, synced = _RECORD.unpack_from(data, body - RECORD_OVERHEAD)
        if 0 < length <= min(len(data) - body, FRAME_BYTES_MAX) and _is_frame(view[body : body + length], checksum, synced):
            return offset + body - RECORD_OVERHEAD
        body = data.find(FRAME_START, body + 1)
    return None


def _is_frame(body: memoryview, checksum: int, synced: int) -> bool:
    if crc32(body, synced) != checksum:
        return False
    try:
        Frame.decode(bytes(body))
    except (CorruptionError, IncompatibleFormatError):
        return False
    return True
