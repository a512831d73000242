"""When to dial a link again: exponential backoff with full jitter, so that peers that lost one node do not return as one.

After: Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
"""

from __future__ import annotations

from typing import Protocol

from crdtkv.replication.settings import ReplicationSettings


class Rng(Protocol):
    """The part of `random.Random` that is used; its state belongs to the caller."""

    def random(self) -> float: ...


class Backoff:
    """The delays of one link. `reset` when the link was of use, not merely opened."""

    __slots__ = ("_attempts", "_rng", "_settings")

    def __init__(self, settings: ReplicationSettings, rng: Rng) -> None:
        self._settings = settings
        self._rng = rng
        self._attempts = 0

    def next_ms(self, *, permanent: bool = False) -> float:
        """The delay before the next attempt, between half and all of a bound that doubles up to `backoff_max_ms`.

        Args:
            permanent: trying again soon will not help (`session.Code.permanent`): the bound is `backoff_refused_ms` at once.
        """
        least, most = self._settings.backoff_min_ms, self._settings.backoff_max_ms
        bound = self._settings.backoff_refused_ms if permanent else min(most, least << min(self._attempts, 30))
        self._attempts += 1
        return bound / 2 + bound / 2 * self._rng.random()

    def reset(self) -> None:
        """The link worked: begin with the least delay again."""
        self._attempts = 0
