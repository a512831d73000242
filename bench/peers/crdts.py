"""CRDT libraries in compiled code, embedded, without durability: pycrdt (Yjs) and loro."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.peers.base import EmbeddedPeer, Store


class Replicated(Store):
    """What a CRDT's document does besides: exchange updates."""

    def update_since(self, version: bytes | None) -> bytes:
        """What `version` lacks; None: everything."""
        raise NotImplementedError

    def version(self) -> bytes:
        """What this replica has."""
        raise NotImplementedError

    def merge(self, update: bytes) -> None:
        """Apply another's update."""
        raise NotImplementedError


class PycrdtMap(Replicated):
    """A map of a document."""

    def __init__(self) -> None:
        import pycrdt

        self._crdt = pycrdt
        self.document: Any = pycrdt.Doc()
        self.document["map"] = pycrdt.Map()
        self._map: Any = self.document["map"]

    def put(self, key: str, value: str) -> None:
        self._map[key] = value

    def get(self, key: str) -> str | None:
        found: str | None = self._map.get(key)
        return found

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        with self.document.transaction():
            for key, value in pairs:
                self._map[key] = value

    def version(self) -> bytes:
        state: bytes = self.document.get_state()
        return state

    def update_since(self, version: bytes | None) -> bytes:
        update: bytes = self.document.get_update(version) if version is not None else self.document.get_update()
        return update

    def merge(self, update: bytes) -> None:
        self.document.apply_update(update)


class LoroMap(Replicated):
    """A map of a document."""

    def __init__(self) -> None:
        import loro

        self._crdt: Any = loro
        self.document: Any = self._crdt.LoroDoc()
        self._map = self.document.get_map("map")

    def put(self, key: str, value: str) -> None:
        self._map.insert(key, value)
        self.document.commit()

    def get(self, key: str) -> str | None:
        found: Any = self._map.get(key)
        value: str | None = None if found is None else found.value
        return value

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        for key, value in pairs:
            self._map.insert(key, value)
        self.document.commit()

    def version(self) -> bytes:
        encoded: bytes = self.document.oplog_vv.encode()
        return encoded

    def update_since(self, version: bytes | None) -> bytes:
        since = self._crdt.VersionVector() if version is None else self._crdt.VersionVector.decode(version)
        update: bytes = self.document.export(self._crdt.ExportMode.Updates(since))
        return update

    def merge(self, update: bytes) -> None:
        self.document.import_(update)


class Pycrdt(EmbeddedPeer):
    """Yjs in Rust."""

    name = "pycrdt"
    durability = "none (memory)"
    modules = ("pycrdt",)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[PycrdtMap]:
        yield PycrdtMap()


class Loro(EmbeddedPeer):
    """Loro in Rust."""

    name = "loro"
    durability = "none (memory)"
    modules = ("loro",)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[LoroMap]:
        yield LoroMap()
