"""Manifests: what a backup is. Written last, as JSON with a checksum of its own: people can read it, and programs trust it."""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from crdtkv.backup.target import Target
from crdtkv.core.causality import Origin, VersionVector, check_origin, region_of
from crdtkv.core.clock import STAMP_MAX, stamp, time_text
from crdtkv.core.control import NOTHING_AGREED, Agreed
from crdtkv.core.frame import CONTROL_FEATURE
from crdtkv.errors import ConfigError, CorruptionError, CrdtkvError, IncompatibleFormatError

FORMAT: Final = 1
NAME: Final = "manifest.json"
FULL: Final = "full"
INCREMENTAL: Final = "incremental"
KNOWN_FEATURES: Final = frozenset({CONTROL_FEATURE})


_Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")]
"""Of a backup or a file in it: a part of a path, and so nothing that leads elsewhere."""
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _File(msgspec.Struct):
    name: _Name
    bytes: _Count
    checksum: _Hex
    items: _Count


class _Wire(msgspec.Struct):
    """What is between the checksum and a `Manifest`."""

    id: _Name
    kind: Literal["full", "incremental"]
    parent: _Name | None
    cluster: str
    shard: _Count
    origin: str
    vv: list[Any]
    hashes: list[_Hex]
    digest: _Hex
    hlc: Annotated[int, msgspec.Meta(ge=0, le=STAMP_MAX)]
    created_ms: Annotated[int, msgspec.Meta(ge=0, le=STAMP_MAX >> 16)]
    records: _Count
    frames: _Count
    commits: _Count
    files: list[_File]
    version: str
    control: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkFile:
    """One file. `checksum`: of all of it, hex; `items`: how many byte strings it holds."""

    name: str
    bytes: int
    checksum: str
    items: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup.

    Attributes:
        id: its name; ids ascend with the time at which they were made.
        parent: the backup that an incremental one continues.
        origin: the replica that it was read from; it carries nothing of that one's identity.
        vv, hashes: what it holds when its parents are loaded before it; the hash of each origin's last frame.
        digest: of that state, 32 hex digits.
        hlc: at least the greatest stamp in it.
        created_ms: Unix time by the clock of who made it, just before: it holds all that the replica had then.
        records: slots of a full one. frames, commits: of an incremental one.
        agreed: closed origins and members; `vv` is a full one, closed origins included.
    """

    id: str
    kind: str
    parent: str | None
    cluster: str
    shard: int
    origin: Origin
    vv: VersionVector
    hashes: Mapping[Origin, bytes]
    digest: str
    hlc: int
    created_ms: int
    records: int
    frames: int
    commits: int
    files: tuple[ChunkFile, ...]
    version: str
    agreed: Agreed = NOTHING_AGREED

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.bytes for file in self.files)

    @property
    def region(self) -> str:
        return region_of(self.origin)

    @property
    def until(self) -> int:
        """The last stamp that it can be restored to: with no commit since its last one, that is when it was made."""
        return max(self.hlc, stamp(self.created_ms))

    @property
    def time(self) -> str:
        """Up to when it reaches, by its stamps."""
        return time_text(self.hlc)

    def to_bytes(self) -> bytes:
        plain: dict[str, Any] = {
            "format": FORMAT,
            "requires": [] if self.agreed == NOTHING_AGREED else [CONTROL_FEATURE],
            "id": self.id,
            "kind": self.kind,
            "parent": self.parent,
            "cluster": self.cluster,
            "shard": self.shard,
            "origin": self.origin,
            "vv": self.vv.flat(),
            "hashes": [self.hashes[origin].hex() for origin in self.vv],
            "digest": self.digest,
            "hlc": self.hlc,
            "created_ms": self.created_ms,
            "records": self.records,
            "frames": self.frames,
            "commits": self.commits,
            "version": self.version,
            "control": None if self.agreed == NOTHING_AGREED else msgspec.msgpack.encode(self.agreed.to_wire()).hex(),
            "files": [{"name": f.name, "bytes": f.bytes, "checksum": f.checksum, "items": f.items} for f in self.files],
        }
        plain["checksum"] = _checksum(plain)
        return json.dumps(plain, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """The inverse of `to_bytes`; `where` names the file in errors.

        Raises:
            CorruptionError: not a manifest, or changed. IncompatibleFormatError: of a later format.
        """
        try:
            plain = json.loads(data)
            if plain["format"] != FORMAT:
                text = f"{where}: format {plain['format']!r:.20}, this version of crdtkv knows {FORMAT}: upgrade it"
                raise IncompatibleFormatError(text)
            unknown = [name for name in plain["requires"] if name not in KNOWN_FEATURES]
            if unknown:
                text = f"{where}: needs the feature {unknown[0]!r:.50}, unknown to this version of crdtkv: upgrade it"
                raise IncompatibleFormatError(text)
            if plain.pop("checksum") != _checksum(plain):
                raise CorruptionError(f"{where}: the checksum does not fit: it was changed", path=where)
            wire = msgspec.convert(plain, _Wire)
            vv = VersionVector.from_flat(wire.vv)
            return cls(
                wire.id,
                wire.kind,
                wire.parent,
                wire.cluster,
                wire.shard,
                check_origin(wire.origin),
                vv,
                {origin: bytes.fromhex(text) for origin, text in zip(vv, wire.hashes, strict=True)},
                wire.digest,
                wire.hlc,
                wire.created_ms,
                wire.records,
                wire.frames,
                wire.commits,
                tuple(ChunkFile(f.name, f.bytes, f.checksum, f.items) for f in wire.files),
                wire.version,
                NOTHING_AGREED if not wire.control else Agreed.from_wire(msgspec.msgpack.decode(bytes.fromhex(wire.control))),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, msgspec.DecodeError) as e:
            if isinstance(e, CrdtkvError):
                raise
            raise CorruptionError(f"{where}: not a manifest: {e}", path=where) from e


def _checksum(plain: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def new_id(region: str, now_ms: int) -> str:
    """A name for a backup made now: ids sort by time, and two made at once differ."""
    when = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
    return f"{when:%Y%m%dT%H%M%S}{now_ms % 1000:03d}Z-{region}-{secrets.token_hex(2)}"


def manifests(target: Target) -> list[Manifest]:
    """The backups in a target, oldest first. One that was not finished has no manifest and is not among them.

    Raises:
        CorruptionError: a manifest is damaged; names it.
    """
    found = []
    for name in target.names():
        if name.endswith(f"/{NAME}"):
            data = target.get(name)
            if data is not None:
                manifest = Manifest.from_bytes(data, f"{target}/{name}")
                if name != f"{manifest.id}/{NAME}":
                    raise CorruptionError(f"{target}/{name} is that of backup {manifest.id}: name the folder so again", path=name)
                found.append(manifest)
    return sorted(found, key=lambda m: m.id)


def chosen(found: list[Manifest], id: str | None, target: Target) -> Manifest:
    """The backup of an id, or the newest.

    Raises:
        ConfigError: there is none.
    """
    if id is None:
        if not found:
            raise ConfigError(f"{target} holds no backup: make one with `crdtkv backup create`")
        return found[-1]
    for manifest in found:
        if manifest.id == id:
            return manifest
    raise ConfigError(f"{target} holds no backup {id!r}: `crdtkv backup list` names those it has", id=id)


def chain(found: list[Manifest], last: Manifest, target: Target) -> list[Manifest]:
    """A backup and all that it continues, the full one first.

    Raises:
        CorruptionError: one of them is missing.
    """
    by_id = {manifest.id: manifest for manifest in found}
    line = [last]
    while line[-1].kind == INCREMENTAL:
        parent = by_id.get(line[-1].parent or "")
        if parent is None or parent in line:
            raise CorruptionError(f"{target}: backup {line[-1].id} continues {line[-1].parent}, which is not there: use another backup")
        line.append(parent)
    return line[::-1]
