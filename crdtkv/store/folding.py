"""The thread that writes a store's engine, beside those who write the store.

While little is written, folds are small, and so is what anybody waits for them; while much is, they are large, and what is put over and
over is written once (`Folder._is_due`). The thread works in small steps (`Machine.fold_some`) and rests after each: beside one that works
on, whoever serves waits for the interpreter after each of his system calls, for as long as a turn takes otherwise. Once half of what makes
the next fold has gathered, it rests no more. What it looks up in the engine, it looks up without the interpreter's lock; the batch at the
end RocksDB takes with it, about half a microsecond a record. It is there while there is something to fold, and a little longer, so that
an idle store has no thread for it; and it takes no lock of the store.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from crdtkv.errors import CrdtkvError

if TYPE_CHECKING:
    from crdtkv.store.machine import Machine

LINGER_S: Final = 1.0
"""How long the thread waits for another fold before it ends."""
STEP: Final = 128
"""Records of a step: 0.2 ms of work."""
REST_S: Final = 0.001
EVERY_S: Final = 0.05
SMALL_MIN: Final = 256
SMALL_MAX: Final = 1024
"""A fold is begun after so long if so many records wait: 5,000 to 20,000 a second. Of more it waits until they are `fold_records_max`."""


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
        machine.is_fold_due = self._is_due
        self._begun_s = 0.0

    def _is_due(self) -> bool:
        """Whether a fold is to be begun though less than enough waits: asked at each append."""
        state = self._machine.replica.state
        return SMALL_MIN <= state.changed <= SMALL_MAX and not state.is_folding and time.monotonic() - self._begun_s >= EVERY_S

    def _wake(self) -> None:
        self._begun_s = time.monotonic()
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
                while not self._machine.fold_some(STEP):
                    if not self._machine.is_half_full:
                        time.sleep(REST_S)
            except CrdtkvError:
                pass  # the machine knows: it is full, and folds when there is room, or it has failed
