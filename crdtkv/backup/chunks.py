"""Chunks: the files of a backup, of bounded size, compressed, with a checksum.

    0xC1 0x42 version kind  checksum  body          kind: S (records of slots) or F (frames)
    body = zlib([item, item, …])                    S: slot, record, slot, record, …; F: frames as they are in the log

The checksum (BLAKE2b, 16 bytes, of all before and after it) finds damage; the manifest has it too, and so finds another file in its place.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from crdtkv.core.compare import digest_of
from crdtkv.errors import CorruptionError, IncompatibleFormatError

MAGIC: Final = b"\xc1\x42"
FORMAT_VERSION: Final = 1
STATE: Final = b"S"
FRAMES: Final = b"F"
CHUNK_BYTES: Final = 8 << 20
"""About how much a chunk holds before it is compressed."""
CHUNK_BYTES_MAX: Final = 64 << 20
"""What is longer uncompressed is not read: no chunk is."""
ITEMS_MAX: Final = 8 << 20
"""More byte strings no chunk holds."""
LEVEL: Final = 1
"""Of compression: records shrink to a third or less at more than 100 MB/s; higher levels are several times slower for a tenth more."""
CHECKSUM_BYTES: Final = 16
_HEAD: Final = len(MAGIC) + 2
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class StateChunk(NamedTuple):
    """A chunk of records: its file, how many items that has, two a record, and what they add to the state's digest."""

    data: bytes
    items: int
    digest: int


def state_chunks(pages: Iterable[list[bytes]], bytes_max: int = CHUNK_BYTES) -> Iterator[StateChunk]:
    """All chunks of a state, of its records `[slot, record, slot, record, …]` in order, page by page. O(records), one chunk in memory."""
    waiting: list[bytes] = []
    size = digest = 0
    for flat in pages:
        digest += digest_of(zip(flat[::2], flat[1::2], strict=True))
        waiting += flat
        size += sum(map(len, flat))
        if size >= bytes_max:
            yield StateChunk(encode_chunk(STATE, waiting), len(waiting), digest)
            waiting, size, digest = [], 0, 0
    if waiting:
        yield StateChunk(encode_chunk(STATE, waiting), len(waiting), digest)


def encode_chunk(kind: bytes, items: list[bytes]) -> bytes:
    """The bytes of a chunk's file."""
    head = MAGIC + bytes([FORMAT_VERSION]) + kind
    body = zlib.compress(_encode(items), LEVEL)
    return head + checksum(head + body) + body


def decode_chunk(kind: bytes, data: bytes, where: str) -> list[bytes]:
    """The inverse of `encode_chunk`.

    Raises:
        CorruptionError: not such a chunk, or damaged; names `where`. IncompatibleFormatError: of a later format.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < _HEAD + CHECKSUM_BYTES:
        raise CorruptionError(f"{where}: not a chunk of a backup", path=where)
    if data[2] != FORMAT_VERSION:
        raise IncompatibleFormatError(f"{where}: chunk format {data[2]}, this version of crdtkv knows {FORMAT_VERSION}: upgrade it")
    head, body = data[:_HEAD], data[_HEAD + CHECKSUM_BYTES :]
    if data[_HEAD : _HEAD + CHECKSUM_BYTES] != checksum(head + body) or head[3:] != kind:
        raise CorruptionError(f"{where}: the checksum does not fit: it was cut or changed", path=where)
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(body, CHUNK_BYTES_MAX)
        if not unpacker.eof:
            raise CorruptionError(f"{where}: longer than any chunk", path=where)
        if _announced(plain) > ITEMS_MAX:
            raise CorruptionError(f"{where}: more items than any chunk holds", path=where)
        return _decode(plain)
    except (zlib.error, msgspec.DecodeError, ValueError) as e:
        raise CorruptionError(f"{where}: {e}", path=where) from e


def _announced(plain: bytes) -> int:
    """The length of the MessagePack array that data begins with, 0 if it is short or none: each item takes memory, however empty."""
    width = {0xDC: 2, 0xDD: 4}.get(plain[0] if plain else 0, 0)
    return int.from_bytes(plain[1 : 1 + width], "big")


def checksum(data: bytes) -> bytes:
    """What a chunk and its manifest carry of it."""
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()
