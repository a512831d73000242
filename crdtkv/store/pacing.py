"""The pace of whoever reads much for long beside those who are served: a backup, a view, the donor of a snapshot.

All threads share one interpreter, and whoever reads a whole state would keep it for himself half of the time. So he works in small steps
and rests after each, as long as others are at work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

REST_S_MAX: Final = 0.1
"""However long a step took: one that had to wait for a disk is not made up for."""


class Pacer:
    """Keeps a thread's work to a share of its time while others are at work; while nobody is, it does not rest at all.

    Args:
        share: of the time that may be worked, 0 < share <= 1; 1: never rest.
        others: a number that changes as others work, such as the log's end; None: they always do.
    """

    def __init__(self, share: float, others: Callable[[], int] | None = None) -> None:
        self._rest = 1 / share - 1
        self._others = others
        self._seen = others() if others is not None else 0
        self._thread, self._spent = 0, 0.0

    def rest(self) -> None:
        """To be called after each step of work, of about a millisecond. Sleeps; the work is the thread's CPU time since the last call."""
        if not self._rest:
            return
        # CPU time, and with it what the caller did of the step: what was waited for (the interpreter, a disk) is no work.
        thread, spent = threading.get_ident(), time.thread_time()
        if thread == self._thread and self._are_others_at_work():
            time.sleep(min(REST_S_MAX, (spent - self._spent) * self._rest))
        self._thread, self._spent = thread, time.thread_time()

    def _are_others_at_work(self) -> bool:
        if self._others is None:
            return True
        seen, self._seen = self._seen, self._others()
        return seen != self._seen
