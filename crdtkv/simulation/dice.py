"""The only source of chance in a simulation.

Everything is drawn from `random.Random(seed).random()`, whose stream Python keeps the same from version to version
(that of `choice`, `shuffle` and `randint` it does not), so a seed is worth writing down.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Seeded choices. Nothing is drawn for a certain outcome, so a fault that is switched off costs no randomness."""

    __slots__ = ("random",)

    def __init__(self, seed: int) -> None:
        self.random = Random(seed).random  # in [0, 1); also what `Backoff` asks of a random source

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return probability > 0 and (probability >= 1 or self.random() < probability)

    def below(self, n: int) -> int:
        """A whole number in `0 .. n-1`."""
        return int(self.random() * n)

    def between(self, low: float, high: float) -> float:
        """A number in `[low, high)`."""
        return low + (high - low) * self.random()

    def pick(self, options: Sequence[T]) -> T:
        """One of several."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One of several, by weight."""
        at = self.random() * sum([weight for _, weight in options])
        for option, weight in options:
            at -= weight
            if at < 0:
                return option
        return options[-1][0]
