"""What the demo remembers on the client's side, and what it reads back: plain values, no behaviour of a cluster.

A `Write` is one acknowledged change of one slot, with what its author had seen; an `Observation` is what clients read
in one region. The verifier compares the two, so neither may be derived from the other.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crdtkv.core.causality import Dot, VersionVector

Value = Any
"""A value as a user writes it; a user's types are open, so there is no narrower one."""


class Kind(enum.StrEnum):
    """What a write does to its slot."""

    SET = "set"
    REMOVE = "remove"
    INCREMENT = "increment"


class Slot(NamedTuple):
    """`(key, type, subkey)`: a register, one element of a set, one field of a map, or a whole counter."""

    key: str
    type: str
    subkey: str | None = None

    def __str__(self) -> str:
        if self.type == "set":
            return f"{self.key} ∋ {self.subkey}"
        return self.key if self.subkey is None else f"{self.key}.{self.subkey}"


class Op(NamedTuple):
    """One change to be asked for. `value` is the register's or field's value, or the counter's increment."""

    kind: Kind
    slot: Slot
    value: Value = None


class Ack(NamedTuple):
    """What a region answered to one commit: its dot, its stamp, and all that it had applied by then."""

    dot: Dot
    hlc: int
    vv: VersionVector


@dataclass(frozen=True, slots=True)
class Write:
    """One acknowledged change.

    Attributes:
        vv: what its region had applied after the commit, from the commit's token: of other origins exactly what
            the author had seen; of its own, what came before `dot.seq`.
        acked_s: when the acknowledgement was in hand, in seconds since the demo began.
    """

    region: str
    phase: str
    op: Op
    dot: Dot
    hlc: int
    vv: VersionVector
    acked_s: float

    @property
    def slot(self) -> Slot:
        """Where it wrote."""
        return self.op.slot

    def saw(self, dot: Dot) -> bool:
        """Whether the author had applied the commit named by `dot` when it wrote this."""
        return dot.seq < self.dot.seq if dot.origin == self.dot.origin else self.vv.covers(dot)


class Entry(NamedTuple):
    """One sibling of a register as a client reads it."""

    dot: Dot
    hlc: int
    value: Value


class JournalEntry(NamedTuple):
    """One line of a region's conflict journal. `winner` is None when a removal met another."""

    slot: Slot
    rule: str
    winner: Dot | None
    losers: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """What clients read in one region at rest.

    Attributes:
        registers: key → its siblings, the winner first.
        values: register key → what `get` gives.
    """

    region: str
    vv: VersionVector
    digest: str
    registers: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    sets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    journal: Sequence[JournalEntry] = ()
