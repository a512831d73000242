"""The thread that writes a store's engine, beside those who write the store.

It works in small steps (`Machine.fold_some`). What it looks up in the engine, it looks up without the interpreter's lock; the batch at the
end RocksDB takes with it, about half a microsecond a record. It is there while there is something to fold, and a little longer, so that
an idle store has no thread for it; and it takes no lock of the store.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from crdtkv.errors import CrdtkvError

if TYPE_CHECKING:
    from crdtkv.store.machine import Machine

LINGER_S: Final = 1.0
"""How long the thread waits for another fold before it ends."""


class Folder:
    """Folds beside a machine's writers, from now on."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()  # guards `_thread` against a fold that begins as the thread ends
        self._thread: threading.Thread | None = None
        self._begun = threading.Event()
        machine.fold_guard = guard = threading.Lock()
        machine.is_folding_now = guard.locked
        machine.when_folding = self._wake

    def _wake(self) -> None:
        with self._lock:
            self._begun.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="crdtkv-folder", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            if not self._begun.wait(LINGER_S):
                with self._lock:
                    if not self._begun.is_set():
                        self._thread = None
                        return
            self._begun.clear()
            try:
                while not self._machine.fold_some():
                    pass
            except CrdtkvError:
                pass  # the machine knows: it is full, and folds when there is room, or it has failed
