"""Whether a wave of requests goes in one message or in two.

Callers that each wait for their own answer move in waves: one message answers all of them, they go on, and what they ask next leaves
together. So either the client works or the node. In two halves both do: while one half is asked for, the node executes the other. A
message costs both ends about as much as ten requests do, so halves must be large; and they must not wait long: where the answer takes much
longer than the asking (a node that fsyncs, or has many clients, or is far away), two waits for what one would bring are a loss, and a wave
goes whole. So it does for a while where halves do not stay apart, for want of a processor for each end.
"""

from __future__ import annotations

from typing import Final

SPLIT_MIN: Final = 48
"""Fewer requests go whole, and so do the halves of fewer than twice as many."""
SPLIT_BELOW: Final = 2.5
"""A wave is split if the answer to the last one took less than so many times what the callers took to ask for it."""
WHOLE_ABOVE: Final = 5.0
"""Halves become one wave again if their answers, of which each waits for the other's, take more on average."""
KEPT_MIN: Final = 4
"""Halves that were answered together sooner than after so many answers did not stay apart."""
WHOLE_WAVES_MIN: Final = 16
WHOLE_WAVES_MAX: Final = 1024
"""So many waves then go whole, twice as many each time that it happens again."""


class Waves:
    """What one stream's waves are like, by a clock in seconds that its caller reads.

    Attributes:
        split_at: once so many requests wait, and none is in flight, they are to be sent although more are about to be asked; 0: never.
    """

    __slots__ = ("_answered_at", "_asking_s", "_is_split", "_kept", "_ratio", "_whole", "_whole_next", "split_at")

    def __init__(self) -> None:
        self.split_at = 0
        self._is_split = False
        self._kept = 0  # answers to one half while the other was in flight, since the wave was split
        self._ratio = 0.0  # what these answers took, by what their asking took, on average
        self._whole = 0  # waves that go whole, whatever their answers take
        self._whole_next = WHOLE_WAVES_MIN
        self._asking_s = 0.0  # a request
        self._answered_at: float | None = None

    def split(self) -> None:
        """The first half of a wave is being sent."""
        self.split_at = 0
        self._is_split = True
        self._kept = 0
        self._ratio = SPLIT_BELOW

    def sent(self, requests: int, now: float) -> None:
        """A message of so many requests was sent."""
        if self._answered_at is not None:
            self._asking_s = (now - self._answered_at) / requests
            self._answered_at = None

    def answered(self, requests: int, waited_s: float, now: float, *, are_all: bool) -> bool:
        """So many requests were answered, the last of them after so long; `are_all`: no other is in flight.

        Returns:
            Whether what is asked next may leave beside those that are in flight; else it waits for their answers.
        """
        asked_s = self._asking_s * requests
        self._answered_at = now
        if not are_all:
            if not self._is_split:
                return True
            self._kept += 1
            self._ratio += (waited_s / max(asked_s, 1e-9) - self._ratio) / 8
            return self._ratio < WHOLE_ABOVE
        if self._is_split:
            self._is_split = False
            if self._kept >= KEPT_MIN and self._ratio < WHOLE_ABOVE:
                self._whole_next = WHOLE_WAVES_MIN
            else:
                self._whole, self._whole_next = self._whole_next, min(2 * self._whole_next, WHOLE_WAVES_MAX)
        self.split_at = 0
        if self._whole:
            self._whole -= 1
        elif requests >= SPLIT_MIN and waited_s < SPLIT_BELOW * asked_s:
            self.split_at = requests // 2
        return True
