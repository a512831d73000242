"""Settings of a store: one frozen value, a unit and a consequence per field."""

from __future__ import annotations

from dataclasses import dataclass

from crdtkv.core.settings import CoreSettings
from crdtkv.errors import ConfigError, CrdtkvError, InvalidValueError

DURABILITIES = ("memory", "async", "sync")


@dataclass(frozen=True, slots=True)
class Settings(CoreSettings):
    """Limits and policies of a store, beside those of the core.

    Attributes:
        cluster: the cluster's name; replicas of different clusters refuse each other's commits.
        shard: which part of the region's data this store holds; 0 while a region has one.
        async_sync_ms: at durability `async`, within what time a commit is fsynced; if the disk is slower, writers wait for it.
        fold_records_max: changed records that may wait in memory before the state engine is written; more means
            fewer, larger writes, and a longer replay after a crash.
        gather_commits_max: how many commits of a store without a path may share a frame, as long as nobody follows its log.
        memory_log_bytes: how much of its log a store without a path keeps; a `delta_since` from before gives a snapshot.
        log_segment_bytes: size of the log's files.
        log_keep_s, log_keep_bytes: the log's oldest part goes when it is older than this, or while the log is larger,
            as soon as every member has acknowledged it. Longer serves watches and regions that were away from the log
            instead of from a snapshot.
        log_bytes_max: above it the oldest part goes even if a member lacks it: that one then needs a snapshot.
        disk_reserve_bytes: with less room on the disk than this, or than a twentieth of it if that is less, writes are refused
            until there is more: so that what is under way, and the making of room, find some.
        watch_changes_max: changes that may wait for one watcher; a slower one is cut with a token to resume by.
        purge_slots: how many slots of a large cleared collection are dropped at a time.
        instance_dir: where the instance tokens of data directories are kept, by which a restored or copied one is noticed: a directory
            that outlives them, or "trust" to keep none; None: `$XDG_STATE_HOME/crdtkv/instances`, else `~/.local/state/crdtkv/instances`.
    """

    cluster: str = "crdtkv"
    shard: int = 0
    async_sync_ms: int = 100
    fold_records_max: int = 4096
    gather_commits_max: int = 256
    memory_log_bytes: int = 64 << 20
    log_segment_bytes: int = 64 << 20
    log_keep_s: int = 86_400
    log_keep_bytes: int = 1 << 30
    log_bytes_max: int = 8 << 30
    disk_reserve_bytes: int = 64 << 20
    watch_changes_max: int = 100_000
    purge_slots: int = 2000
    instance_dir: str | None = None

    def validate(self) -> None:
        """Raise `ConfigError` naming the first field that is out of range."""
        if not 0 < len(str(self.cluster).encode()) <= 64:
            raise ConfigError(f"setting cluster: must be 1 to 64 bytes of text, got {self.cluster!r}", setting="cluster")
        for name in (
            "async_sync_ms",
            "fold_records_max",
            "gather_commits_max",
            "memory_log_bytes",
            "log_segment_bytes",
            "log_keep_s",
            "log_keep_bytes",
            "log_bytes_max",
            "disk_reserve_bytes",
            "watch_changes_max",
            "purge_slots",
        ):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"setting {name}: must be a whole number of at least 1, got {value!r}", setting=name)
        if self.log_keep_bytes > self.log_bytes_max:
            raise ConfigError(
                f"setting log_keep_bytes: must be at most log_bytes_max, {self.log_bytes_max:,}, got {self.log_keep_bytes:,}",
                setting="log_keep_bytes",
            )
        if self.instance_dir is not None and (type(self.instance_dir) is not str or not self.instance_dir):
            raise ConfigError(
                f"setting instance_dir: must be a path, or 'trust' to keep no token, got {self.instance_dir!r}", setting="instance_dir"
            )
        if type(self.shard) is not int or self.shard < 0:
            raise ConfigError(f"setting shard: must be a whole number of at least 0, got {self.shard!r}", setting="shard")
        CoreSettings.validate(self)


def check_durability(level: str, error: type[CrdtkvError] = InvalidValueError) -> str:
    """Return `level` if it is one of memory, async, sync. Raises `error` if not."""
    if level not in DURABILITIES:
        raise error(f"durability: must be one of {', '.join(DURABILITIES)}, got {level!r}", field="durability")
    return level
