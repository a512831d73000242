"""What the levels of durability promise, and the background fsync of level `async`.

`memory`  acknowledged once the log has it: with a directory it survives the death of the process, and nothing is fsynced on
          purpose. Lost with the machine: whatever the kernel had not written, typically half a minute.
`async`   the same, and fsynced within `async_sync_ms`. Lost with the machine: at most what was acknowledged in so long a time.
`sync`    acknowledged once it is fsynced. Lost with the machine: nothing that was acknowledged.

The bound of `async` is kept under load, too. The log is fsynced twice within it, by a thread that takes no lock of the store. If
the disk is so slow that the bound passes all the same, writers wait for the fsync themselves: so there is never more at risk than was
acknowledged within the bound, and a disk that stalls shows as latency and not as loss.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from crdtkv.errors import StoreClosedError
from crdtkv.storage.log import CommitLog


class BackgroundSync:
    """Has what was acknowledged as `async` fsynced in time. `admit` may come from any thread; `round` from one.

    Args:
        bound_s: within what time.
        everything: whatever is in the log is wanted, not only what was admitted.
        failed: told of an error of the thread; the log is of no use then.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        log: CommitLog,
        bound_s: float,
        *,
        everything: bool = False,
        failed: Callable[[BaseException], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._bound_s = bound_s
        self._everything = everything
        self._failed = failed
        self._now = now
        self._wanted = 0
        self._good_until = now() + bound_s
        """Whatever was acknowledged longer than the bound before this instant is fsynced."""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def admit(self, position: int) -> bool:
        """Before a write is acknowledged whose frame ends at a log position: whether it may be at once.

        If not, the last fsync that is done began too long ago: the caller waits for one that covers the position. O(1).
        """
        if position > self._wanted:
            self._wanted = position
        return self._now() <= self._good_until

    def round(self) -> None:
        """Fsync what is wanted. Raises `StorageError`: the log's."""
        began, log = self._now(), self._log
        if log.synced() < (log.end() if self._everything else self._wanted):
            log.sync()
        # What was acknowledged before `began` is fsynced. What comes from then on has the whole bound.
        self._good_until = began + self._bound_s

    def start(self) -> None:
        """Begin the thread that makes the rounds; idempotent."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._good_until = self._now() + self._bound_s
                    self._thread = threading.Thread(target=self._run, name="crdtkv-fsync", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        next_at = self._now()
        while not self._stopped.wait(max(0.0, next_at - self._now())):
            next_at = self._now() + self._bound_s / 2
            try:
                self.round()
            except StoreClosedError:
                return
            except BaseException as e:
                self._failed(e)
                return

    def stop(self) -> None:
        """End the thread, soon."""
        self._stopped.set()
