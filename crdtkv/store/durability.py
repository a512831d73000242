"""What the levels of durability promise, and what a writer waits for; the background fsync of level `async`.

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
from typing import TYPE_CHECKING

from crdtkv.errors import StorageError, StoreClosedError
from crdtkv.storage.log import CommitLog
from crdtkv.store.settings import check_durability

if TYPE_CHECKING:
    from crdtkv.store.machine import Machine


class Durability:
    """What one store's writes wait for before they are acknowledged. Takes no lock of the store.

    Args:
        level: of writes that name none.
        bound_s: within what time `async` is fsynced.
        on_disk: else nothing is ever fsynced, and `sync` asks no more than `memory`.

    Attributes:
        is_sync, is_async: whether that is the store's level. waits: whether a write that names none may have to wait.
    """

    def __init__(self, machine: Machine, level: str, bound_s: float, *, on_disk: bool) -> None:
        self._machine = machine
        self._level = level
        self.is_sync = level == "sync"
        self.is_async = level == "async"
        self.waits = level != "memory" and on_disk
        self._background = BackgroundSync(machine.log, bound_s, everything=self.is_async, failed=machine.fail) if on_disk else None

    def start(self) -> None:
        """Begin what the store's level needs in the background; other levels begin it when they are first asked for."""
        if self.is_async and self._background is not None:
            self._background.start()

    def stop(self) -> None:
        """End the background fsync, soon."""
        if self._background is not None:
            self._background.stop()

    def syncs(self, level: str | None) -> bool:
        """Whether a write of that level, or of the store's, leaves only once it is fsynced."""
        return self.is_sync if level is None else check_durability(level) == "sync"

    def make(self, position: int, level: str | None = None) -> None:
        """Do what a level, or the store's, asks for before a write up to a log position may be acknowledged."""
        level = self._level if level is None else level
        if level == "sync":
            self._wait_synced(position)
        elif level == "async" and self._background is not None:
            self._background.start()
            if not self._background.admit(position):
                self._wait_synced(position)

    def _wait_synced(self, position: int) -> None:
        """Wait until the log is fsynced up to a position. Concurrent writers share one fsync."""
        log = self._machine.log
        try:
            while log.synced() < position:
                log.sync()
        except StoreClosedError as e:
            if log.synced() < position:  # else `close` has synced it meanwhile
                e.maybe_applied = True
                raise
        except StorageError as e:
            self._machine.fail(e)
            e.maybe_applied = True
            raise


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
