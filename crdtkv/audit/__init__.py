"""Proving that regions hold the same, and mending what does not: `verify`, `repair`.

What is here knows views of stores (`store.view`), not where they are: in this process, or in nodes over gRPC.
"""

from __future__ import annotations

from crdtkv.audit.comparing import Certificate, Difference, verify
from crdtkv.audit.repairing import Mended, Repair, repair
from crdtkv.audit.salvaging import LogRepair, repair_log
from crdtkv.audit.sides import LocalSide, MendableSide, Side

__all__ = [
    "Certificate",
    "Difference",
    "LocalSide",
    "LogRepair",
    "MendableSide",
    "Mended",
    "Repair",
    "Side",
    "repair",
    "repair_log",
    "verify",
]
