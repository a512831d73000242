"""Wall clocks as bad as real ones: set wrong, too fast or slow, jumping, coarse."""

from __future__ import annotations

from typing import Protocol

EPOCH_MS = 1_700_000_000_000
"""Unix ms at virtual time zero."""


class Time(Protocol):
    """Who knows the virtual time."""

    now_us: int


class WallClock:
    """One machine's wall clock, driven by virtual time.

    Args:
        offset_ms: how far it is ahead.
        drift: how much too fast it runs, e.g. 0.01.
        grain_ms: its resolution. A coarse one gives many equal stamps, so that ties are met.
    """

    def __init__(self, time: Time, *, offset_ms: int = 0, drift: float = 0.0, grain_ms: int = 1) -> None:
        self._time = time
        self.offset_ms = offset_ms
        self._rate = 1.0 + drift
        self._grain_ms = grain_ms
        self._read_us, self._shown = -1, 0
        """When it was last read, in virtual time, and what it showed."""

    def __call__(self) -> int:
        now_us = self._time.now_us
        if now_us != self._read_us:
            ms = EPOCH_MS + self.offset_ms + int(now_us * self._rate / 1000)
            self._read_us, self._shown = now_us, ms - ms % self._grain_ms
        return self._shown

    def jump(self, ms: int) -> None:
        """Somebody sets the clock."""
        self.offset_ms += ms
        self._read_us = -1
