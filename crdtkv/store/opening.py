"""Opening a store: the directory, its identity, the log and the engine, and the machine on them.

A directory holds `LOCK`, `replica.json` (format, cluster, region, shard, engine, origin), `INSTANCE`, `log/` and `state/`.
During a backup there is `checkpoints/`.
Under which id it goes on is decided here, before the first write (`identity` has the rules): the one it had, or a new
*incarnation*, where own commits may be missing. A new id is in `replica.json` before the engine has it, and in both
before anything is written under it, so a crash in between only means that the next opening goes on with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crdtkv.core.causality import Origin, check_origin, check_region, make_origin, next_generation, region_of
from crdtkv.core.clock import HybridClock
from crdtkv.core.install import Installed
from crdtkv.errors import ConfigError, CorruptionError, DiskFullError, StorageError
from crdtkv.storage.engine import MemoryEngine, StateEngine
from crdtkv.storage.files import is_full, sync_directory
from crdtkv.storage.lock import DirectoryLock
from crdtkv.storage.log import CommitLog, FileLog
from crdtkv.storage.memory_log import MemoryLog
from crdtkv.store.identity import TRUST, Instance, why_new
from crdtkv.store.machine import Machine
from crdtkv.store.settings import Settings
from crdtkv.store.snapshots import DIRECTORY, FileStaging, MemoryStaging, Staging
from crdtkv.store.view import CHECKPOINTS

LOGGER = logging.getLogger("crdtkv.store")
ENGINES = ("memory", "rocksdb", "lmdb")
IDENTITY_NAME = "replica.json"
FORMAT = 1


@dataclass(slots=True)
class Opened:
    """A machine and what must be closed with it. `instance` keeps the sent bound; None in memory."""

    machine: Machine
    region: str
    engine_name: str
    path: Path | None
    lock: DirectoryLock | None
    instance: Instance | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    installed: tuple[Origin, Installed] | None = None
    """A snapshot's donor and what its install, which had been cut short, did at the opening."""
    staging: Staging | None = None
    """Where a snapshot from another node waits to be installed; None: none can be."""
    incarnation_reason: str | None = None
    """Why a new incarnation was taken since the process opened it; None: none was."""

    def begin_incarnation(self, reason: str) -> Origin:
        """Take a new incarnation, from now on, everything written; its origin. With the store's lock held.

        Raises:
            DiskFullError: there is no room for it, and nothing has changed: do it again before anything is written.
            StorageError: it could not be written down; nothing may be written any more.
        """
        machine = self.machine
        machine.settle()  # also an id before this one that the engine has not yet: `former` is what a crash would find there
        former = machine.origin
        known = (*machine.replica.vv(), former)
        origin = new_origin(self.region, next_generation(self.region, known))
        if self.path is not None:
            self.identity = {**self.identity, "origin": origin, "former": former}
            _write_identity(self.path / IDENTITY_NAME, self.identity)
        machine.begin_incarnation(origin)
        if self.instance is not None:
            self.instance.open(origin, 0, machine.commits_durable(), is_new=True)
        self.incarnation_reason = reason
        LOGGER.warning("region %s takes a new incarnation, %s after %s: %s", self.region, origin, former, reason)
        return origin

    def note(self) -> None:
        """Note outside, fsynced, what the directory holds by now. With the store's lock held."""
        machine = self.machine
        if self.instance is not None:
            durable = machine.durable_vv()
            self.instance.note(machine.origin, durable.seq(machine.origin), machine.commits_durable(), sync=True)

    def close(self) -> None:
        try:
            if isinstance(self.staging, FileStaging):
                self.staging.close()
            self.machine.log.close()
        finally:
            try:
                with self.machine.fold_guard:  # of a machine that has failed, a fold may be under way
                    self.machine.engine.close()
            finally:
                if self.instance is not None:
                    self.instance.close()
                if self.lock is not None:
                    self.lock.release()


def open_machine(
    path: str | os.PathLike[str] | None,
    *,
    region: str,
    engine: str | None,
    durability: str,
    settings: Settings,
    wall_ms: Callable[[], int],
) -> Opened:
    """Open (or create) the machine of a store; see `crdtkv.open` for the arguments and errors."""
    check_region(region)
    name = engine if engine is not None else "memory" if path is None else "rocksdb"
    if name not in ENGINES:
        raise ConfigError(f"engine: must be one of {', '.join(ENGINES)}, got {name!r}", setting="engine")
    clock = HybridClock(wall_ms, max_skew_ms=settings.max_skew_ms, refuse_ms=settings.clock_refuse_ms)
    if path is None:
        if name != "memory":
            raise ConfigError(f"engine {name!r} needs a path", setting="engine")
        if durability == "sync":
            raise ConfigError("durability 'sync' needs a path: a store without one has no disk to sync", setting="durability")
        machine = _machine(MemoryLog(settings.memory_log_bytes), MemoryEngine(), new_origin(region), clock, settings, durability)
        return Opened(machine, region, name, None, None, staging=MemoryStaging())
    directory = Path(path)
    lock = DirectoryLock(directory)
    opened: list[Any] = []
    try:
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)  # of a backup that was being made when the process died
        identity = _identity(directory, region, name, settings)
        instance: Instance | None = None
        if identity is None:
            instance = Instance(directory, settings.instance_dir)
            opened.append(instance)
            # The record first: a directory with an identity and without one is suspect.
            instance.open(origin := new_origin(region), 0, 0, is_new=True)
            identity = _make_identity(directory / IDENTITY_NAME, region, name, settings, origin)
        log = FileLog(directory / "log", segment_bytes=settings.log_segment_bytes, wall_ms=wall_ms)
        opened.append(log)
        state = open_engine(directory, name)
        opened.append(state)
        machine = _machine(log, state, check_origin(identity["origin"]), clock, settings, durability)
        if instance is None:
            instance = Instance(directory, settings.instance_dir)
            opened.append(instance)
        found = Opened(machine, region, name, directory, lock, instance, identity)
        _decide(found)
        machine.when_installed = found.note
        if durability != "sync":
            machine.sent_bound = machine.own_seq()
        machine.engine_is_rebuilt = name == "memory"
        if not machine.engine_is_rebuilt:
            staging = FileStaging(directory / DIRECTORY)
            opened.append(staging)
            found.staging = staging
            if staging.is_marked:
                LOGGER.warning("region %s goes on with the install of a snapshot that was cut short", region)
                donor = staging.arrival.origin
                assert donor is not None
                found.installed = donor, machine.install(staging)
        return found
    except BaseException:
        for part in reversed(opened):
            part.close()
        lock.release()
        raise


@contextmanager
def create_directory(directory: Path, origin: Origin, engine: str, settings: Settings, cluster: str | None = None) -> Iterator[Opened]:
    """Make a new directory around what the caller puts into the machine; it becomes a store when the block ends without an error.

    The identity is written last, so a directory that was not finished is refused by whoever opens it.

    Args:
        cluster: the cluster's name in the finished directory, if it is another than `settings.cluster`.
    Raises:
        ConfigError: the directory is not empty.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty: name a directory that does not exist yet", path=str(directory))
    lock = DirectoryLock(directory)
    opened: list[Any] = []
    try:
        (directory / "log").mkdir()
        log = FileLog(directory / "log", segment_bytes=settings.log_segment_bytes)
        opened.append(log)
        state = open_engine(directory, engine)
        opened.append(state)
        clock = HybridClock(lambda: time.time_ns() // 1_000_000, max_skew_ms=settings.max_skew_ms, refuse_ms=settings.clock_refuse_ms)
        machine = _machine(log, state, origin, clock, settings, "async")
        yield Opened(machine, region_of(origin), engine, directory, lock)
        named = dataclasses.replace(settings, cluster=cluster or settings.cluster)
        named.validate()
        machine.replica.cluster = named.cluster
        log.sync()
        machine.replica.fold()
        state.flush()
        # As if it had been trusted so far: whoever opens it first keeps its token.
        instance = Instance(directory, TRUST)
        opened.append(instance)
        instance.open(origin, 0, machine.commits_durable(), is_new=True)
        _make_identity(directory / IDENTITY_NAME, region_of(origin), engine, named, origin)
    finally:
        for part in reversed(opened):
            part.close()
        lock.release()


def _decide(found: Opened) -> None:
    """Go on under the id that the directory had, or take a new one; its records are renewed."""
    machine, instance, identity = found.machine, found.instance, found.identity
    assert instance is not None
    origin = check_origin(identity["origin"])
    if machine.origin != origin:
        if machine.origin != identity.get("former"):
            raise CorruptionError(
                f"{found.path}: {IDENTITY_NAME} names {origin}, the state engine {machine.origin}: parts of two directories?"
            )
        # A change of id was cut short: nothing was written under the new one, so whatever the reason was, it still holds.
        found.begin_incarnation("a change of incarnation was cut short")
        return
    commits = sum(machine.replica.vv().values())
    reason = why_new(instance.evidence(origin, machine.replica.seq(origin), commits, is_engine_ahead=machine.is_engine_ahead))
    if reason is not None:
        found.begin_incarnation(reason)
    else:
        instance.open(origin, machine.own_seq(), machine.commits_durable(), is_new=False)


def new_origin(region: str, generation: int = 1) -> Origin:
    """A new incarnation of a region."""
    return make_origin(region, generation, secrets.randbits(32))


def _machine(log: CommitLog, engine: StateEngine, origin: Origin, clock: HybridClock, settings: Settings, durability: str) -> Machine:
    return Machine(
        log,
        engine,
        origin=origin,
        cluster=settings.cluster,
        shard=settings.shard,
        clock=clock,
        settings=settings,
        sync_releases=durability == "sync",
        fold_records_max=settings.fold_records_max,
        gather_commits_max=settings.gather_commits_max,
    )


def open_engine(directory: Path, name: str) -> StateEngine:
    """The state engine of a data directory; "memory" has none there, and is rebuilt from the log at each opening."""
    if name == "memory":
        return MemoryEngine()
    if name == "rocksdb":
        from crdtkv.storage.rocksdb import RocksDbEngine

        return RocksDbEngine(directory / "state")
    from crdtkv.storage.lmdb import LmdbEngine

    return LmdbEngine(directory / "state")


def _identity(directory: Path, region: str, engine: str, settings: Settings) -> dict[str, Any] | None:
    """The identity of a directory; None if it is new."""
    path = directory / IDENTITY_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if any(any((directory / part).glob("*")) for part in ("log", "state")):
            raise CorruptionError(
                f"{directory} holds a log or state but no {IDENTITY_NAME}: restore it, or move the directory away"
            ) from None
        return None
    except OSError as e:
        raise StorageError(f"cannot read {path}: {e.strerror}", path=str(path)) from e
    try:
        identity = json.loads(text)
        found = {name: identity[name] for name in ("format", "cluster", "region", "shard", "engine", "origin")}
        found["former"] = identity.get("former")
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise CorruptionError(f"{path} is damaged: restore it, or move the directory away", path=str(path)) from e
    if found["format"] != FORMAT:
        raise StorageError(
            f"{directory} has format {found['format']}, this version of crdtkv knows {FORMAT}: upgrade it", path=str(directory)
        )
    asked = {"cluster": settings.cluster, "region": region, "shard": settings.shard, "engine": engine}
    for name, value in asked.items():
        if found[name] != value:
            raise ConfigError(
                f"{name}: {directory} belongs to {name} {found[name]!r}, not {value!r}: open it as that, or choose another directory",
                setting=name,
            )
    if region_of(check_origin(found["origin"])) != region:
        raise CorruptionError(f"{path} is damaged: {found['origin']!r} is not of region {region!r}", path=str(path))
    if not (directory / "log").is_dir():
        raise CorruptionError(
            f"{directory} has lost its log: restore it, or move it away and start again, so that the data comes back from a peer",
            path=str(directory),
        )
    return found


def _make_identity(path: Path, region: str, engine: str, settings: Settings, origin: Origin) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "format": FORMAT,
        "cluster": settings.cluster,
        "region": region,
        "shard": settings.shard,
        "engine": engine,
        "origin": origin,
    }
    try:
        (path.parent / "log").mkdir(exist_ok=True)  # before the identity: whoever has one without a log has lost it
    except OSError as e:
        raise StorageError(f"cannot make {path.parent / 'log'}: {e.strerror}", path=str(path.parent)) from e
    _write_identity(path, identity)
    return identity


def _write_identity(path: Path, identity: dict[str, Any]) -> None:
    """Replace `replica.json`, fsynced; after a crash it holds the old text or the new one."""
    temporary = path.with_suffix(".new")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(identity, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as e:
        kind = DiskFullError if is_full(e) else StorageError
        raise kind(f"cannot write {path}: {e.strerror}", path=str(path)) from e
