"""Map: each field a register of its own, so that updates of different fields never meet.

A field's slot is named by the canonical bytes of its name. Within a field the register's rules hold; a removal of a
field against a concurrent put of it: the put survives. Clearing a map removes the fields that its context covers.
"""

from __future__ import annotations

from crdtkv.core.apply import Applier
from crdtkv.core.codec import SlotType, encode_value
from crdtkv.core.frame import Delta


def apply_put(step: Applier, delta: Delta) -> None:
    """`[kind, key, field, value, expiry?]`."""
    step.write(delta[1], SlotType.MAP, encode_value(delta[2]), delta[3], delta[4] if len(delta) > 4 else None)


def apply_delete(step: Applier, delta: Delta) -> None:
    """`[kind, key, field]`."""
    step.remove(delta[1], SlotType.MAP, encode_value(delta[2]))


def apply_clear(step: Applier, delta: Delta) -> None:
    """`[kind, key]`: removes every field that its context covers."""
    step.clear(delta[1], SlotType.MAP)
