"""Linearizability of one object: is there an order of all calls, each between its beginning and its end, that explains the answers?

Depth-first search over the calls that may come next (those that began before any open call ended), with a memo of
(which calls are done, state): a state reached twice by the same calls need not be tried again. A call without an answer may have
taken effect at any time since it began, or never. The question is NP-complete; this is for histories of dozens of calls with few
open at once. Histories of many keys are checked key by key, since linearizability is local.

Sources: Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects" (TOPLAS 1990); Wing and Gong, "Testing
and verifying concurrent objects" (JPDC 1993); Lowe, "Testing for linearizability" (CCPE 2017), for the memo.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

STEPS_MAX: Final = 200_000


class Undecided(Exception):
    """The search was longer than allowed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its client saw it.

    Attributes:
        operation: what was asked, e.g. ("put", 3); the model understands it.
        answer: what came back; meaningless without `ended`.
        began, ended: in any common clock; None: no answer came.
    """

    operation: tuple[Hashable, ...]
    answer: Hashable
    began: float
    ended: float | None

    def __post_init__(self) -> None:
        if self.ended is not None and self.ended < self.began:
            raise ValueError(f"{self.operation} ended before it began")


class Model(Protocol):
    """A sequential object. States are hashable; `apply` changes nothing."""

    def initial(self) -> Hashable: ...

    def apply(self, state: Hashable, operation: tuple[Hashable, ...]) -> tuple[Hashable, Hashable]:
        """The state after, and the answer."""
        ...


class RegisterModel:
    """("put", v) answers None; ("get",) answers the value, at first None; ("replace", old, new) answers whether `old` was there."""

    def initial(self) -> Hashable:
        return None

    def apply(self, state: Hashable, operation: tuple[Hashable, ...]) -> tuple[Hashable, Hashable]:
        match operation:
            case ("put", value):
                return value, None
            case ("get",):
                return state, state
            case ("replace", old, new):
                return (new, True) if state == old else (state, False)
        raise ValueError(f"a register knows no {operation}")


class CounterModel:
    """("increment", n) answers None; ("get",) answers the sum."""

    def initial(self) -> Hashable:
        return 0

    def apply(self, state: Hashable, operation: tuple[Hashable, ...]) -> tuple[Hashable, Hashable]:
        assert isinstance(state, int)
        match operation:
            case ("increment", int(amount)):
                return state + amount, None
            case ("get",):
                return state, state
        raise ValueError(f"a counter knows no {operation}")


def linearizable(calls: Sequence[Call], model: Model, *, steps_max: int = STEPS_MAX) -> tuple[Call, ...] | None:
    """An order that explains all answers (calls that never took effect are not in it), or None if there is none.

    Raises:
        Undecided: not within `steps_max` steps.
    """
    ordered = sorted(calls, key=lambda call: call.began)
    answered = sum(1 << i for i, call in enumerate(ordered) if call.ended is not None)
    start = model.initial()
    tried = {(0, start)}
    stack: list[tuple[int, Hashable, tuple[int, ...]]] = [(0, start, ())]
    steps = 0
    while stack:
        done, state, order = stack.pop()
        if done & answered == answered:
            return tuple(ordered[i] for i in order)
        first_end = min((c.ended for i, c in enumerate(ordered) if c.ended is not None and not done >> i & 1), default=float("inf"))
        for i, call in enumerate(ordered):
            if call.began > first_end:
                break
            if done >> i & 1:
                continue
            steps += 1
            if steps > steps_max:
                raise Undecided(f"not decided within {steps_max:,} steps")
            after, answer = model.apply(state, call.operation)
            if call.ended is not None and answer != call.answer:
                continue
            reached = (done | 1 << i, after)
            if reached not in tried:
                tried.add(reached)
                stack.append((*reached, (*order, i)))
    return None
