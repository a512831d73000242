"""When writes are due, and a clock that can be met: the open loop.

A write is due at a time that no answer moves. If the store, or the instrument, stalls, the writes of that stretch are late, and their
lag counts from when they were due, as it would for users who do not wait for each other. Measured from when a write was sent, a stall of
a second would be one slow sample instead of a second's worth of them ("coordinated omission": G. Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from crdtkv.cluster.spec import parse_duration_ms, parse_target
from crdtkv.errors import ConfigError

_CUT: Final = re.compile(r"(?P<target>[^@]+)@(?P<start>[^+]+)\+(?P<duration>.+)")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Times at a steady rate. Each is computed from the beginning, so that no error adds up.

    >>> s = Schedule(start_s=10.0, rate=4.0)
    >>> [s.due_s(n) for n in range(3)], s.count_before(11.0)
    ([10.0, 10.25, 10.5], 4)
    """

    start_s: float
    rate: float

    def due_s(self, number: int) -> float:
        """When number 0, 1, 2 … is due."""
        return self.start_s + number / self.rate

    def count_before(self, time_s: float) -> int:
        """How many are due before a time."""
        count = max(0, int((time_s - self.start_s) * self.rate))
        while self.due_s(count) < time_s:
            count += 1
        while count and self.due_s(count - 1) >= time_s:
            count -= 1
        return count

    async def until(self, end_s: float, now_s: Callable[[], float]) -> AsyncIterator[tuple[int, float]]:
        """Number and due time of each that is due before `end_s`, when it is due; those that are overdue at once, none is left out."""
        for number in range(self.count_before(end_s)):
            due = self.due_s(number)
            while (early := due - now_s()) > 0:  # a sleep may end early by the resolution of the timer
                await asyncio.sleep(early)
            yield number, due


@dataclass(frozen=True, slots=True)
class CutPlan:
    """A partition during the run: `region` from `other`, or from all others; times count from the beginning of the measurement."""

    region: str
    other: str | None
    start_s: float
    duration_s: float

    @property
    def end_s(self) -> float:
        """When it is to be healed."""
        return self.start_s + self.duration_s

    @property
    def target(self) -> str:
        """As on the command line."""
        return self.region if self.other is None else f"{self.region}-{self.other}"

    def separates(self, a: str, b: str) -> bool:
        """Whether it lies between two regions."""
        if self.other is None:
            return a != b and self.region in (a, b)
        return {a, b} == {self.region, self.other}


def parse_cut(text: str, regions: tuple[str, ...], duration_s: float) -> CutPlan:
    """`R@START+DURATION` or `R-S@START+DURATION`, inside the measurement; numbers without a unit are seconds.

    >>> parse_cut("eu@5s+500ms", ("us", "eu"), 10.0)
    CutPlan(region='eu', other=None, start_s=5.0, duration_s=0.5)

    Raises:
        ConfigError: it is not of that form, names no region of these, or does not end before the measurement does.
    """
    match = _CUT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"cut: {text!r} is not R@START+DURATION, for example {regions[-1]}@5s+3s", setting="cut")
    region, other = parse_target(match["target"], regions)
    plan = CutPlan(region, other, parse_seconds(match["start"], "cut"), parse_seconds(match["duration"], "cut"))
    if plan.duration_s <= 0 or plan.end_s >= duration_s:
        why = f"cut: {text} ends at {plan.end_s:g} s; it must last, and end before the {duration_s:g} s of --duration"
        raise ConfigError(why, setting="cut")
    return plan


def parse_seconds(text: str, setting: str) -> float:
    """`20`, `20s`, `500ms` → seconds.

    >>> parse_seconds("20", "duration"), parse_seconds("500ms", "duration")
    (20.0, 0.5)
    """
    return parse_duration_ms(text, setting, bare="s") / 1000
