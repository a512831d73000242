"""How long the event loop stands still: the lateness of a timer that comes every so often."""

from __future__ import annotations

import asyncio
from typing import Final

EVERY_S: Final = 0.02
"""A stop shorter than this may pass unseen; one that is seen is seen to within as much."""
SPAN_S: Final = 60.0


class LoopStops:
    """Watches one event loop until `close`; made in it. `longest_s` may be asked for on any thread. About 0.1 % of a processor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._longest_s = 0.0
        self._before_s = 0.0  # of the span before
        self._span_ends = loop.time() + SPAN_S
        self._due = loop.time() + EVERY_S
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        if now >= self._span_ends:
            self._before_s, self._longest_s = self._longest_s, 0.0
            self._span_ends = now + SPAN_S
        self._longest_s = max(self._longest_s, now - self._due)
        self._due = now + EVERY_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def longest_s(self) -> float:
        """The longest stop of the last minute or two; one that has not ended counts as far as it has come."""
        return max(self._longest_s, self._before_s, self._loop.time() - self._due)

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
