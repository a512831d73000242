"""Replication between replicas, sans-IO: messages and time in, messages and frames to apply out (DESIGN §4).

`drive.Drive` is the loop that a node, an in-process transport or the simulator runs; `session.Session` is one peer, `messages`
what they say, `progress` what is on its way, `status` what it tells, `port.ReplicaPort` what they may ask of the replica,
`settings` every limit by its name, `backoff` when to dial again.
"""

from __future__ import annotations

from crdtkv.core.replica import Applied
from crdtkv.replication.backoff import Backoff
from crdtkv.replication.drive import Closed, Drive, Link, Work
from crdtkv.replication.port import ReplicaPort
from crdtkv.replication.session import Session
from crdtkv.replication.settings import LAN, LOOPBACK, PRESETS, WAN, ReplicationSettings, preset
from crdtkv.replication.status import Code, Event, EventKind, PeerStatistics, Relay, State

__all__ = [
    "LAN",
    "LOOPBACK",
    "PRESETS",
    "WAN",
    "Applied",
    "Backoff",
    "Closed",
    "Code",
    "Drive",
    "Event",
    "EventKind",
    "Link",
    "PeerStatistics",
    "Relay",
    "ReplicaPort",
    "ReplicationSettings",
    "Session",
    "State",
    "Work",
    "preset",
]
