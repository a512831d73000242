"""A Unix socket's path that only this process's user can reach, and that nothing is left of.

It lies in a directory of its own, which is locked as long as its process lives: a process that was killed leaves its directory behind, and
the next one that makes such a path takes it away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from crdtkv.transport import SOCKET_PATH_BYTES_MAX

_PREFIX: Final = "crdtkv-node-"
_LOCK: Final = "lock"
_SOCKET: Final = "grpc"


class PrivateSocket:
    """A path for one listening socket, until `close`.

    Attributes:
        path: where to listen.
    Raises:
        OSError: no directory can be made.
    """

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent / f"{_PREFIX}12345678" / _SOCKET)) > SOCKET_PATH_BYTES_MAX:
            parent = Path("/tmp")
        _sweep(parent)
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
        self._lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._directory = made.rename(parent / made.name[1:])  # under this name others look at it
        self.path = str(self._directory / _SOCKET)

    def close(self) -> None:
        """Remove it; idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _sweep(parent: Path) -> None:
    """Remove what killed processes of this user left."""
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            if directory.stat().st_uid != os.getuid():
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass  # its process lives
        finally:
            os.close(lock)
