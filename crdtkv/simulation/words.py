"""Dots, places and operations as a person would say them, for messages and stories."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from crdtkv.core import clock as core_clock
from crdtkv.core.causality import Dot, Origin, VersionVector
from crdtkv.core.codec import decode_value
from crdtkv.errors import CorruptionError
from crdtkv.simulation.clocks import EPOCH_MS
from crdtkv.simulation.specification import Clear, Expire, Increment, Operation, Remove, Reset, Slot, Write

_AT_FIRST: Final = re.compile(r"@1-0{6}[0-9a-f]{2}\b")
"""How the id ends that a simulated region begins with. Those that it goes on as are drawn."""


def named(text: str) -> str:
    """A text with the region alone in place of the id that it began with. A later incarnation keeps its whole id."""
    return _AT_FIRST.sub("", text)


def short(dot: Dot) -> str:
    """A dot, e.g. `us:3` or `us@2-34711ded:1`."""
    return f"{named(dot.origin)}:{dot.seq}"


def span(origin: Origin, first: int, last: int) -> str:
    """Commits of one origin, e.g. `us:3` or `us:3-5`."""
    return f"{named(origin)}:{first}" + (f"-{last}" if last > first else "")


def moment(stamp: int) -> str:
    """The instant of a hybrid clock's stamp, in ms of the run, as stories have them."""
    if not stamp:
        return "nothing"
    counter = stamp - core_clock.stamp(core_clock.ms_of(stamp))
    return f"{core_clock.ms_of(stamp) - EPOCH_MS} ms" + (f" + {counter}" if counter else "")


def seen(vv: VersionVector) -> str:
    """A version vector."""
    return ", ".join(f"{named(origin)}:{seq}" for origin, seq in vv.items()) or "nothing"


def place_name(slot: Slot) -> str:
    """A slot as a user would say it."""
    key, kind, subkey = slot
    match kind:
        case "register":
            return f"register {key}"
        case "set":
            return f"element {decode_value(subkey)!r} of set {key}"
    return f"field {decode_value(subkey)!r} of {kind} {key}"


def entries_in_words(slot: Slot, writes: Mapping[Dot, bytes] | None, name: Callable[[Dot], str] = short) -> str:
    """What a slot holds: the value of each write by its dot; elements of a set have none."""
    if not writes:
        return "nothing"
    return " and ".join(name(dot) if slot[1] == "set" else f"{_value(writes[dot])} of {name(dot)}" for dot in sorted(writes))


def _value(data: bytes) -> str:
    try:
        return repr(decode_value(data))
    except CorruptionError:
        return f"the bytes {data!r}"


def in_words(operation: Operation) -> str:
    """What a client did."""
    match operation:
        case Write(slot=slot, value=value, expiry=expiry):
            what = f"adds {place_name(slot)}" if slot[1] == "set" else f"sets {place_name(slot)} to {decode_value(value)!r}"
            return what if expiry is None else f"{what}, to expire"
        case Remove(slot=slot):
            return f"removes {place_name(slot)}"
        case Clear(key=key, type=kind):
            return f"clears {kind} {key}"
        case Increment(key=key, amount=amount):
            return f"adds {amount:+} to counter {key}"
        case Reset(key=key):
            return f"resets counter {key}"
        case Expire(slot=slot, dots=dots):
            return f"removes what expired of {place_name(slot)} ({', '.join(map(short, dots))})"
