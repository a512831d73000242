"""LWW register: one slot per key; causality first, then the greatest `(hlc, origin)` among concurrent writes.

Concurrent writes stay as siblings (an MV-register for free) until a write that has seen them. A delete removes what
it has seen; a concurrent write survives it, whatever its clock says.

Anomaly to know: of two truly concurrent writes one is not read. It stays among the siblings and in the journal.
"""

from __future__ import annotations

from crdtkv.core.apply import Applier
from crdtkv.core.codec import SlotType
from crdtkv.core.frame import Delta


def apply_put(step: Applier, delta: Delta) -> None:
    """`[kind, key, value, expiry?]`."""
    step.write(delta[1], SlotType.REGISTER, b"", delta[2], delta[3] if len(delta) > 3 else None)


def apply_delete(step: Applier, delta: Delta) -> None:
    """`[kind, key]`."""
    step.remove(delta[1], SlotType.REGISTER, b"")
