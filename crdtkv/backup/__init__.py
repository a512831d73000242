"""Backups: the state of one moment, and what came since, in files that carry data and no identity.

`create` reads a replica that serves (an embedded store, or a node) and writes to a *target*: a folder, or S3-compatible storage. A *full*
backup holds every record of one version vector; an *incremental* one the frames between its parent's vector and its own. What a backup
is stands in its manifest, which is written last: a backup without one never happened. Whatever region it was taken from, a backup is of
the cluster's data, so the next one may be taken from another region and still be incremental.

`restore` makes a directory of one: a new replica (a new incarnation, under no name that ever wrote) that holds what was backed up, and
joins, catches up, or stands alone. `merge` joins one into a running replica: the same dots, so nothing counts twice. `prune` removes old
ones, never one that another continues.
"""

from __future__ import annotations

from crdtkv.backup.checking import Checked, verify
from crdtkv.backup.manifest import Manifest, manifests
from crdtkv.backup.pruning import Pruned, prune
from crdtkv.backup.restoring import Merged, Point, Restored, merge, restore
from crdtkv.backup.target import FolderTarget, Target, open_target
from crdtkv.backup.writing import create

__all__ = [
    "Checked",
    "FolderTarget",
    "Manifest",
    "Merged",
    "Point",
    "Pruned",
    "Restored",
    "Target",
    "create",
    "manifests",
    "merge",
    "open_target",
    "prune",
    "restore",
    "verify",
]
