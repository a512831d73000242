"""The replica's own record: what a restart needs beside slots and side records, and changes in one batch with them."""

from __future__ import annotations

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.core.journal import JournalCounts
from crdtkv.errors import CorruptionError, StorageError

META_KEY = b"m"


class Meta(msgspec.Struct, array_like=True):
    """The replica's own record: what changes in one batch with the slots. `digest` is empty where it is not kept (`State`)."""

    format: int
    cluster: str
    shard: int
    origin: str
    vv: list[str | int]
    hashes: dict[Origin, tuple[int, bytes]]
    kept: dict[Origin, list[tuple[int, bytes]]]
    mark: int
    digest: bytes
    position: int
    journal: JournalCounts
    stamps: dict[Origin, int] = {}  # added later


_decode_meta = msgspec.msgpack.Decoder(Meta).decode


def read_meta(raw: bytes) -> Meta:
    """The replica's own record; CorruptionError or StorageError if it is damaged, or of a later version."""
    try:
        meta = _decode_meta(raw)
    except (msgspec.DecodeError, ValueError) as e:
        raise CorruptionError(f"state engine: the replica's own record does not decode: {e}") from e
    if meta.format != 1:
        raise StorageError(f"state engine: format {meta.format} is not known to this version of crdtkv (1): upgrade it")
    return meta
