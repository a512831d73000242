"""The registry of types: which function applies which kind of delta.

A new type is a file here, a slot type in `codec`, its kinds of delta in `frame`, its lines below, a declarative
specification in the tests and a byte vector in `tests/data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from crdtkv.core.apply import Applier
from crdtkv.core.causality import Origin
from crdtkv.core.codec import SlotType, encode_value, slot_of
from crdtkv.core.frame import CONTROL_KINDS, Delta, DeltaKind, Frame
from crdtkv.core.heads import head_key
from crdtkv.core.types import counter, map, orset, register
from crdtkv.core.types.counter import run_slot

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


def records_of(delta: Delta, frame: Frame) -> Iterator[bytes]:
    """The records that applying a frame's delta reads."""
    kind, key = delta[0], delta[1].encode()
    if kind in CONTROL_KINDS:
        return
    if kind in (DeltaKind.REGISTER_PUT, DeltaKind.REGISTER_DELETE):
        yield slot_of(key, SlotType.REGISTER)
        return
    if kind == DeltaKind.EXPIRE:
        yield slot_of(key, delta[2], delta[3])
    elif kind in (DeltaKind.SET_ADD, DeltaKind.SET_REMOVE):
        yield slot_of(key, SlotType.SET, delta[2])
    elif kind in (DeltaKind.MAP_PUT, DeltaKind.MAP_DELETE):
        yield slot_of(key, SlotType.MAP, encode_value(delta[2]))
    elif kind == DeltaKind.COUNTER_ADD:
        yield run_slot(key, frame.origin, delta[2])
    elif kind == DeltaKind.COUNTER_RESET:
        for origin, run, _, _ in delta[2]:
            yield run_slot(key, Origin(origin), run)
    yield head_key(key)
