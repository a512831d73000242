"""OR-set, add wins: one slot per element, named by the element's canonical bytes.

An element is present iff some add of it is not in the causal past of any remove of it. An add or remove reads and
writes one slot, whatever the size of the set. Removal leaves nothing behind: absence plus version vector says it.

Anomaly to know: an element removed in one region while it is added again in another stays.

After: Bieniusa et al., "An Optimized Conflict-free Replicated Set" (arXiv:1210.3368); Brown et al., "Big(ger) Sets"
(arXiv:1605.06424), for one record per element.
"""

from __future__ import annotations

from crdtkv.core.apply import Applier
from crdtkv.core.codec import SlotType
from crdtkv.core.frame import Delta


def apply_add(step: Applier, delta: Delta) -> None:
    """`[kind, key, element, expiry?]`."""
    step.write(delta[1], SlotType.SET, delta[2], b"", delta[3] if len(delta) > 3 else None)


def apply_remove(step: Applier, delta: Delta) -> None:
    """`[kind, key, element]`."""
    step.remove(delta[1], SlotType.SET, delta[2])


def apply_clear(step: Applier, delta: Delta) -> None:
    """`[kind, key]`: removes every element that its context covers."""
    step.clear(delta[1], SlotType.SET)
