"""Embedded stores on disk, without replication: rocksdict, LMDB, SQLite (apsw, else the standard library's), diskcache."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.peers.base import EmbeddedPeer, Store


class RocksStore(Store):
    """Raw RocksDB. `wal`: its write-ahead log is on (and fsynced before each answer if `sync`)."""

    def __init__(self, directory: Path, *, wal: bool = True, sync: bool = False) -> None:
        import rocksdict

        self._rocksdict: Any = rocksdict
        options = self._rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self.db = self._rocksdict.Rdict(str(directory), options)
        self.how = self._rocksdict.WriteOptions()
        self.how.sync = sync
        if not wal:
            self.how.disable_wal = True

    def put(self, key: str, value: str) -> None:
        self.db.put(key.encode(), value.encode(), write_opt=self.how)

    def get(self, key: str) -> str | None:
        found = self.db.get(key.encode())
        return None if found is None else found.decode()

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for key, value in pairs:
            batch.put(key.encode(), value.encode())
        self.db.write(batch, write_opt=self.how)


class Rocksdict(EmbeddedPeer):
    """The engine under the store, alone: no log of ours, no conflict rules, no replication."""

    name = "rocksdict"
    durability = "process crash (its write-ahead log, not fsynced)"
    modules = ("rocksdict",)
    wal, sync = True, False

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[RocksStore]:
        directory.mkdir(parents=True, exist_ok=True)
        store = RocksStore(directory / "rocksdict", wal=cls.wal, sync=cls.sync)
        try:
            yield store
        finally:
            store.db.close()


class RocksdictSync(Rocksdict):
    """The same, fsynced before each answer."""

    name = "rocksdict sync"
    durability = "machine crash (write-ahead log fsynced)"
    sync = True


class LmdbStore(Store):
    """One environment, sync off: a crash of the machine may corrupt it (`MDB_NOSYNC`)."""

    def __init__(self, directory: Path) -> None:
        import lmdb

        self.environment = lmdb.open(str(directory), map_size=16 << 30, sync=False, metasync=False)

    def put(self, key: str, value: str) -> None:
        with self.environment.begin(write=True) as transaction:
            transaction.put(key.encode(), value.encode())

    def get(self, key: str) -> str | None:
        with self.environment.begin() as transaction:
            found = transaction.get(key.encode())
        return None if found is None else bytes(found).decode()

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        with self.environment.begin(write=True) as transaction:
            for key, value in pairs:
                transaction.put(key.encode(), value.encode())


class Lmdb(EmbeddedPeer):
    """A memory-mapped B-tree."""

    name = "lmdb"
    durability = "process crash (sync off)"
    modules = ("lmdb",)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[LmdbStore]:
        directory.mkdir(parents=True, exist_ok=True)
        store = LmdbStore(directory / "lmdb")
        try:
            yield store
        finally:
            store.environment.close()


class SqliteStore(Store):
    """A table of two columns, WAL journal, `synchronous=NORMAL`."""

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("apsw") is not None:
            import apsw

            self.connection: Any = apsw.Connection(str(path))
        else:
            import sqlite3

            self.connection = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=NORMAL",
            "CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
        ):
            self.connection.execute(statement).fetchall()

    def put(self, key: str, value: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def get(self, key: str) -> str | None:
        row = self.connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", pairs)
        self.connection.execute("COMMIT")


class Sqlite(EmbeddedPeer):
    """SQLite, of apsw if that is installed."""

    name = "sqlite"
    durability = "process crash (WAL, synchronous=NORMAL)"
    modules = ("sqlite3",)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[SqliteStore]:
        directory.mkdir(parents=True, exist_ok=True)
        store = SqliteStore(directory / "sqlite.db")
        try:
            yield store
        finally:
            store.connection.close()


class DiskcacheStore(Store):
    """A cache without a size limit. It pickles what is not a text, number or bytes; ours are texts."""

    def __init__(self, directory: Path) -> None:
        import diskcache

        self.cache = diskcache.Cache(str(directory), eviction_policy="none")

    def put(self, key: str, value: str) -> None:
        self.cache.set(key, value)

    def get(self, key: str) -> str | None:
        found: str | None = self.cache.get(key)
        return found

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        with self.cache.transact():
            for key, value in pairs:
                self.cache.set(key, value)


class Diskcache(EmbeddedPeer):
    """A cache on SQLite."""

    name = "diskcache"
    durability = "process crash (SQLite, WAL, synchronous=NORMAL)"
    modules = ("diskcache",)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[DiskcacheStore]:
        directory.mkdir(parents=True, exist_ok=True)
        store = DiskcacheStore(directory / "diskcache")
        try:
            yield store
        finally:
            store.cache.close()
