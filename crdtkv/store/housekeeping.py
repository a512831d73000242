"""The thread behind an open store: it fsyncs, issues due expiries and goes on with large clears, a little at a time."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from crdtkv.errors import StoreClosedError

if TYPE_CHECKING:
    from crdtkv.store.store import Store


class Housekeeper:
    """A daemon thread that calls `Store.maintain` while its store is open; it keeps no store alive."""

    def __init__(self, store: Store) -> None:
        self._store = weakref.ref(store)
        self._interval_s = store.settings.async_sync_ms / 1000
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"crdtkv-{store.region}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait = self._interval_s
        due_s = time.monotonic() + wait
        while True:
            self._woken.wait(max(0.0, due_s - time.monotonic()))
            self._woken.clear()
            store = self._store()
            if self._stopping or store is None or store.closed:
                return
            try:
                store.keep_bound()
                if time.monotonic() < due_s:
                    continue
                store.maintain()
            except StoreClosedError:
                return
            except Exception as e:
                # Nobody is there to raise it to: the machine answers every later call with it.
                store._machine.fail(e)
                return
            finally:
                purges = store._replica.purges
                del store
            due_s = time.monotonic() + (0.001 if purges else self._interval_s)

    def wake(self) -> None:
        """Have the sent bound raised soon. Any thread; cheap if it was asked already."""
        if not self._woken.is_set():
            self._woken.set()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)
