"""The embedded store; see `crdtkv.open`."""

from __future__ import annotations

import os

from crdtkv.errors import ConfigError
from crdtkv.store.opening import open_machine
from crdtkv.store.settings import Settings, check_durability
from crdtkv.store.store import Store, wall_clock_ms

__all__ = ["Settings", "Store", "open_store"]


def open_store(
    path: str | os.PathLike[str] | None = None,
    *,
    region: str = "local",
    engine: str | None = None,
    durability: str | None = None,
    settings: Settings | None = None,
) -> Store:
    """Open an embedded store, creating it if need be.

    Args:
        path: its directory; None: it lives in memory.
        region: which region's copy it is.
        engine: "memory", "rocksdb" or "lmdb"; by default memory without a path, rocksdb with one.
        durability: of writes that name none; by default sync with a path, else memory. What a crash of the machine may take
            with it of what was acknowledged: "memory": what the kernel had not written; "async": what came in the last
            `async_sync_ms`; "sync": nothing. A crash of the process alone takes nothing from a store with a path.
        settings: limits and policies.
    Raises:
        ConfigError: an argument is wrong, or the directory belongs to another region or cluster.
        StoreLockedError: another process or store owns the directory.
        CorruptionError, StorageError: what is in it cannot be used; nothing was changed.
    """
    chosen = settings if settings is not None else Settings()
    if not isinstance(chosen, Settings):
        raise ConfigError(f"settings: must be a crdtkv.Settings, got {type(chosen).__name__}", setting="settings")
    chosen.validate()
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path: must be a str, a path, or None for a store in memory, got {path!r}", setting="path")
    level = check_durability(durability, ConfigError) if durability is not None else "memory" if path is None else "sync"
    opened = open_machine(path, region=region, engine=engine, durability=level, settings=chosen, wall_ms=wall_clock_ms)
    return Store(opened, level, chosen, wall_clock_ms)
