"""What the state must be, said without saying how: each type's value as a comprehension over the visible commits.

A commit is `(dot, past, operations)`: `past` is what its origin had applied when it was made, its own earlier commits
included. A replica's state is determined by its version vector alone:

    register, element, field    the writes that no visible write, removal or clear of the slot had in its past, and that
                                no visible expiry names
    counter                     the increments that no visible reset had in its past; their sum
    value read                  the greatest (hlc, origin) among a slot's writes, unless it has expired

This knows nothing of entries, runs, frames, clears in slices or journals, and shares no code with what it judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from crdtkv.core.causality import Dot, VersionVector

Slot = tuple[str, str, bytes]
"""Key, type name, subkey (the canonical bytes of an element or field)."""
Place = Slot | tuple[str, str]
"""A slot; or a whole collection or counter, as key and type name."""


class Write(NamedTuple):
    slot: Slot
    value: bytes = b""
    expiry: int | None = None


class Remove(NamedTuple):
    slot: Slot


class Clear(NamedTuple):
    key: str
    type: str


class Increment(NamedTuple):
    key: str
    amount: int


class Reset(NamedTuple):
    key: str


class Expire(NamedTuple):
    slot: Slot
    dots: tuple[Dot, ...]


Operation = Write | Remove | Clear | Increment | Reset | Expire
_SUPERSEDING: Final = (Write, Remove, Clear)
_OF_A_SLOT: Final = (Write, Remove, Expire)


class Commit(NamedTuple):
    """One transaction as its client meant it: clears and resets before what it adds to the same collection."""

    dot: Dot
    hlc: int
    past: VersionVector
    operations: tuple[Operation, ...]


class Live(NamedTuple):
    """A write that is in the state."""

    dot: Dot
    hlc: int
    value: bytes
    expiry: int | None


class State(NamedTuple):
    """Live writes per slot; per counter its value, and the increments that count. Only where there are any. Not to be changed."""

    slots: dict[Slot, tuple[Live, ...]]
    counters: dict[str, int]
    increments: dict[str, dict[Dot, int]]


class History:
    """Every commit ever made, by dot; and by slot, counter and collection, so that looking is cheap.

    Attributes:
        siblings_max: the most writes that were live in one slot of any state that was asked for.
    """

    def __init__(self) -> None:
        self.commits: dict[Dot, Commit] = {}
        self.at: dict[Place, list[tuple[Commit, Operation]]] = {}
        self.slots: dict[Slot, None] = {}  # as ordered sets
        self.counters: dict[str, None] = {}
        self.siblings_max = 0
        self._live: dict[tuple[Slot, tuple[Dot, ...]], tuple[Live, ...]] = {}
        self._counted: dict[tuple[str, tuple[Dot, ...]], tuple[int, int]] = {}
        self._states: dict[VersionVector, State] = {}

    def record(self, commit: Commit) -> None:
        """Note a commit when it is made."""
        assert commit.dot not in self.commits, f"{commit.dot} was issued twice"
        self.commits[commit.dot] = commit
        for operation in commit.operations:
            if isinstance(operation, Write):
                self.slots[operation.slot] = None
            elif isinstance(operation, Increment):
                self.counters[operation.key] = None
            self.at.setdefault(place_of(operation), []).append((commit, operation))

    def forget(self, dots: list[Dot]) -> None:
        """These commits were lost before anybody was told: they never were."""
        for dot in dots:
            for operation in self.commits.pop(dot).operations:
                self.at[place_of(operation)] = [pair for pair in self.at[place_of(operation)] if pair[0].dot != dot]
        for vv in [vv for vv in self._states if any(vv.covers(dot) for dot in dots)]:
            del self._states[vv]
        self._live.clear()
        self._counted.clear()

    def seen(self, vv: VersionVector, *places: Place) -> list[tuple[Commit, Operation]]:
        """What the visible commits did at some places."""
        seq = vv.seq
        return [pair for place in places for pair in self.at.get(place, ()) if pair[0].dot[1] <= seq(pair[0].dot[0])]

    def last_stamp(self, vv: VersionVector) -> int:
        """The highest stamp of a commit that a vector covers: those of one origin go up."""
        get = self.commits.get
        # A dot is found by the plain tuple of its origin and seq.
        return max([commit.hlc for pair in vv.pairs() if (commit := get(pair)) is not None], default=0)  # type: ignore[call-overload]

    # The same commits are visible at many replicas and for many steps: each combination is judged once.

    def live(self, vv: VersionVector, slot: Slot) -> tuple[Live, ...]:
        """The writes live in a slot, in dot order."""
        seen = self.seen(vv, slot, slot[:2])
        known = slot, tuple([commit.dot for commit, _ in seen])
        found = self._live.get(known)
        if found is None:
            found = self._live[known] = live_writes(seen)
        return found

    def counter(self, vv: VersionVector, key: str) -> tuple[int, int]:
        """How many increments count, and their sum."""
        seen = self.seen(vv, (key, "counter"))
        known = key, tuple([commit.dot for commit, _ in seen])
        found = self._counted.get(known)
        if found is None:
            found = self._counted[known] = live_increments(seen)
        return found

    def state(self, vv: VersionVector, since: VersionVector | None = None) -> State:
        """The whole state: live writes per slot, value per counter that has any.

        Args:
            since: a vector whose state was asked for before, if it is known: only what came after it is looked at then.
        """
        found = self._states.get(vv)
        if found is None:
            before = self._states.get(since) if since is not None and since <= vv else None
            if since is not None and before is not None:
                found = self._continued(before, self._between(since, vv))
            else:
                slots = {slot: live for slot in self.slots if (live := self.live(vv, slot))}
                increments = {key: counted for key in self.counters if (counted := live_amounts(self.seen(vv, (key, "counter"))))}
                found = State(slots, {key: sum(counted.values()) for key, counted in increments.items()}, increments)
            self._states[vv] = found
            self.siblings_max = max([self.siblings_max, *map(len, found.slots.values())])
        return found

    def _between(self, since: VersionVector, vv: VersionVector) -> list[Commit]:
        """The commits that one vector covers and another does not."""
        dots = [(origin, seq) for origin, last in vv.beyond(since).items() for seq in range(since.seq(origin) + 1, last + 1)]
        return [commit for commit in map(self.commits.get, dots) if commit is not None]  # type: ignore[arg-type]  # as above

    @staticmethod
    def _continued(before: State, new: list[Commit]) -> State:
        """A state with some commits that come after it.

        Commits are applied after everything in their past. So none of the former ones supersedes one of the new ones, and what
        they had superseded stays so: it is enough to hold what was live, and what is new, against the new ones.
        """
        slots, counters, increments = before.slots.copy(), before.counters.copy(), before.increments.copy()
        at: dict[Place, list[tuple[Commit, Operation]]] = {}
        for commit in new:
            for op in commit.operations:
                at.setdefault(place_of(op), []).append((commit, op))
        touched: dict[Slot, None] = {}
        for place, seen in at.items():
            if len(place) == 3:
                touched[place] = None
            elif place[1] != "counter":
                touched.update(dict.fromkeys([slot for slot in slots if slot[:2] == place]))
            elif counted := live_amounts(seen, increments.get(place[0], {})):
                increments[place[0]], counters[place[0]] = counted, sum(counted.values())
            else:
                increments.pop(place[0], None)
                counters.pop(place[0], None)
        for slot in touched:
            live = live_writes([*at.get(slot, ()), *at.get(slot[:2], ())], slots.get(slot, ()))
            if live:
                slots[slot] = live
            else:
                slots.pop(slot, None)
        return State(slots, counters, increments)


def place_of(operation: Operation) -> Place:
    """What an operation acts on: a slot, a whole collection, or a counter."""
    if isinstance(operation, _OF_A_SLOT):
        return operation.slot
    return operation.key, operation.type if isinstance(operation, Clear) else "counter"


# -- the specification proper ---------------------------------------------------------------------------------


def live_writes(seen: list[tuple[Commit, Operation]], before: tuple[Live, ...] = ()) -> tuple[Live, ...]:
    """A slot: the writes that nothing visible has superseded. `before`: what was live before any of it was done."""
    named = {dot for _, op in seen if isinstance(op, Expire) for dot in op.dots}
    # The latest first: one of them has seen nearly every write.
    superseding = [commit.past for commit, op in reversed(seen) if isinstance(op, _SUPERSEDING)]
    writes = [*before, *[Live(commit.dot, commit.hlc, op.value, op.expiry) for commit, op in seen if isinstance(op, Write)]]
    return tuple(sorted([w for w in writes if w.dot not in named and not any(past.covers(w.dot) for past in superseding)]))


def live_amounts(seen: list[tuple[Commit, Operation]], before: Mapping[Dot, int] = MappingProxyType({})) -> dict[Dot, int]:
    """A counter: the increments that no visible reset had seen. `before`: those that counted before any of it was done."""
    resets = [commit.past for commit, op in reversed(seen) if isinstance(op, Reset)]
    amounts = {**before, **{commit.dot: op.amount for commit, op in seen if isinstance(op, Increment)}}
    return {dot: amount for dot, amount in amounts.items() if not any(past.covers(dot) for past in resets)} if resets else amounts


def live_increments(seen: list[tuple[Commit, Operation]]) -> tuple[int, int]:
    """How many increments count, and their sum."""
    amounts = live_amounts(seen).values()
    return len(amounts), sum(amounts)


def read(live: tuple[Live, ...], now_ms: int) -> Live | None:
    """What a reader is shown: the winner, unless it has expired."""
    if not live:
        return None
    chosen = live[0] if len(live) == 1 else max(live, key=lambda write: (write.hlc, write.dot.origin))
    return None if chosen.expiry is not None and chosen.expiry <= now_ms else chosen


def concurrent(a: Commit, b: Commit) -> bool:
    """Neither had seen the other."""
    return a.dot != b.dot and not a.past.covers(b.dot) and not b.past.covers(a.dot)


def beaten(live: tuple[Live, ...]) -> Iterator[Live]:
    """The live writes that are not read."""
    chosen = max(live, key=lambda write: (write.hlc, write.dot.origin)) if live else None
    return (write for write in live if write is not chosen)


__all__ = [
    "Clear", "Commit", "Expire", "History", "Increment", "Live", "Operation", "Place", "Remove", "Reset", "Slot", "State", "Write",
    "beaten", "concurrent", "live_amounts", "live_increments", "live_writes", "place_of", "read",
]  # fmt: skip
