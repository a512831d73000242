"""A cluster on one machine: real node processes, supervised, with the wide-area network between them emulated in user space.

`LocalCluster` is the door for programs and tests; `crdtkv cluster` is the same for people.
"""

from __future__ import annotations

from crdtkv.cluster.control import ClusterError, ClusterNotRunningError
from crdtkv.cluster.local import LocalCluster
from crdtkv.cluster.spec import ClusterSpec, published_delay_ms

__all__ = ["ClusterError", "ClusterNotRunningError", "ClusterSpec", "LocalCluster", "published_delay_ms"]
