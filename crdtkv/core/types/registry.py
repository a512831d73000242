"""The registry of types: which function applies which kind of delta.

A new type is a file here, a slot type in `codec`, its kinds of delta in `frame`, its lines below, a declarative
specification in the tests and a byte vector in `tests/data`.
"""

from __future__ import annotations

from collections.abc import Callable

from crdtkv.core.apply import Applier
from crdtkv.core.frame import Delta, DeltaKind
from crdtkv.core.types import counter, map, orset, register

APPLY: dict[int, Callable[[Applier, Delta], None]] = {
    DeltaKind.REGISTER_PUT: register.apply_put,
    DeltaKind.REGISTER_DELETE: register.apply_delete,
    DeltaKind.SET_ADD: orset.apply_add,
    DeltaKind.SET_REMOVE: orset.apply_remove,
    DeltaKind.SET_CLEAR: orset.apply_clear,
    DeltaKind.COUNTER_ADD: counter.apply_add,
    DeltaKind.COUNTER_RESET: counter.apply_reset,
    DeltaKind.MAP_PUT: map.apply_put,
    DeltaKind.MAP_DELETE: map.apply_delete,
    DeltaKind.MAP_CLEAR: map.apply_clear,
    DeltaKind.EXPIRE: Applier.expire,
}
