"""The thread behind an open store: it fsyncs, issues due expiries and goes on with large clears, a little at a time."""

from __future__ import annotations

import threading
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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"crdtkv-{store.region}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait = self._interval_s
        while not self._stop.wait(wait):
            store = self._store()
            if store is None or store.closed:
                return
            try:
                store.maintain()
            except StoreClosedError:
                return
            except Exception as e:
                # Nobody is there to raise it to: the machine answers every later call with it.
                store._machine.fail(e)
                return
            wait = 0.001 if store._replica.purges else self._interval_s
            del store

    def stop(self) -> None:
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)
