"""Removing backups that are no longer wanted, and never one that another one continues.

**What stays.** For each cluster and shard in the target the newest backup, always; besides, every one that a rule says to keep: the
newest N, or those younger than an age (two rules: what either keeps); and all that those continue, back to their full one. So a chain of
increments goes from its end, or as a whole.

**Order.** Each backup's manifest goes first, later ones before those that they continue: whatever is interrupted, every manifest that is
there leads to a whole chain. What was left of a backup that was never finished goes once it is a day old: a younger one may be in the
making.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crdtkv.backup.manifest import NAME, Manifest, manifests
from crdtkv.backup.target import Target
from crdtkv.errors import ConfigError

UNFINISHED_MS: Final = 86_400_000
"""How old the files of a backup without a manifest must be to be taken for ones of a backup that died."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a pruning removed, or would; oldest first.

    Attributes:
        removed, kept: backups. unfinished: the names of backups that have no manifest, whose files went.
        continued: those kept that no rule keeps, and that stay because one that does stay continues them.
        files: how many files went. size: bytes of those of backups that were whole.
    """

    removed: tuple[Manifest, ...]
    kept: tuple[Manifest, ...]
    continued: tuple[Manifest, ...]
    unfinished: tuple[str, ...]
    files: int
    size: int


def prune(target: Target, *, keep: int | None = None, older_than_ms: int | None = None, now_ms: int, dry_run: bool = False) -> Pruned:
    """Remove backups that neither rule keeps; see the module's docstring. O(files in the target).

    Args:
        keep: so many of the newest stay. older_than_ms: those that are no older stay. One of the two at least.
        now_ms: Unix time.
        dry_run: remove nothing, and say what would go.
    Raises:
        ConfigError: a rule is missing or wrong. CorruptionError: a manifest is damaged. Nothing was removed.
        StorageError: the target failed; what is left is whole, and pruning goes on where it was.
    """
    if keep is None and older_than_ms is None:
        raise ConfigError("prune: say what stays: --keep N, or what goes: --older-than AGE", setting="keep")
    if keep is not None and keep < 1:
        raise ConfigError(f"keep: {keep} is not a whole number above 0: the newest backup always stays", setting="keep")
    if older_than_ms is not None and older_than_ms < 0:
        raise ConfigError(f"older-than: {older_than_ms} ms is negative", setting="older_than")
    found = manifests(target)
    names = target.names()
    wanted = _wanted(found, keep, None if older_than_ms is None else now_ms - older_than_ms)
    staying = _with_continued(found, wanted)
    gone = [m for m in found if m.id not in staying]
    unfinished = _unfinished(names, {m.id for m in found}, now_ms)
    # Descending ids: what continues another was made after it.
    order = [*sorted((m.id for m in gone), reverse=True), *unfinished]
    files = {id: [name for name in names if name.startswith(f"{id}/") and name != f"{id}/{NAME}"] for id in order}
    if not dry_run:
        for id in order:
            for name in (*([] if id in unfinished else [f"{id}/{NAME}"]), *files[id]):
                target.delete(name)
    count = sum(map(len, files.values())) + len(gone)
    kept = tuple(m for m in found if m.id in staying)
    continued = tuple(m for m in kept if m.id not in wanted)
    return Pruned(tuple(gone), kept, continued, tuple(unfinished), count, sum(m.size for m in gone))


def _wanted(found: Sequence[Manifest], keep: int | None, since_ms: int | None) -> set[str]:
    """The ids of what a rule keeps."""
    wanted: set[str] = set()
    for data in {(m.cluster, m.shard) for m in found}:
        mine = [m for m in found if (m.cluster, m.shard) == data]
        kept = [mine[-1], *(mine[-keep:] if keep is not None else ())]
        wanted |= {m.id for m in kept} | {m.id for m in mine if since_ms is not None and m.created_ms >= since_ms}
    return wanted


def _with_continued(found: Sequence[Manifest], wanted: set[str]) -> set[str]:
    """The ids of these, and of all that they continue."""
    by_id = {m.id: m for m in found}
    staying: set[str] = set()
    for id in wanted:
        one: Manifest | None = by_id[id]
        while one is not None and one.id not in staying:
            staying.add(one.id)
            one = by_id.get(one.parent) if one.parent is not None else None
    return staying


def _unfinished(names: Sequence[str], whole: set[str], now_ms: int) -> list[str]:
    """Backups of which there are files and no manifest, old enough."""
    found = sorted({name.partition("/")[0] for name in names if "/" in name} - whole)
    return [id for id in found if (made_ms := _made_ms(id)) is not None and made_ms < now_ms - UNFINISHED_MS]


def _made_ms(id: str) -> int | None:
    """When a backup of this name was begun; None: the name is not one of ours, and its files are not ours to remove."""
    try:
        when = datetime.datetime.strptime(id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=datetime.UTC)
        return int(when.timestamp()) * 1000 + int(id[15:18]) if id[18:20] == "Z-" else None
    except ValueError:
        return None
