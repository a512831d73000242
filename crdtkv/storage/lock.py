"""One owner per data directory.

`flock` on a `LOCK` file: the kernel lets go when the owner dies, however it dies, so no stale lock is ever broken by
guessing. The lock belongs to the open file, not to the process; hence a second store in the same process is refused as
well, and a forked child, which shares the open file, would keep it locked after its parent's death: the child closes its
copy at once, which leaves the parent's lock alone. The file holds the owner's pid for the error message and stays behind
when the lock is released (removing it would let two owners lock two files of one name).
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

from crdtkv.errors import StorageError, StoreLockedError

LOCK_NAME = "LOCK"

_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


class DirectoryLock:
    """The exclusive ownership of a directory, from construction to `release` (idempotent) or the process's end.

    Raises:
        StoreLockedError: someone else owns it; `details["pid"]` is the owner as far as known.
        StorageError: the directory or its lock file cannot be made.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._fd: int | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            why = "it is a file" if isinstance(e, FileExistsError) else e.strerror
            raise StorageError(
                f"cannot use {self.directory} as a data directory: {why}; name a directory that may be made and written",
                path=str(self.directory),
            ) from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as e:
            raise self._refusal(fd) from e
        except OSError as e:
            os.close(fd)
            raise StorageError(f"cannot lock {self.directory}: {e.strerror}", path=str(self.directory)) from e
        self._fd = fd
        _held.add(self)

    def _refusal(self, fd: int) -> StoreLockedError:
        try:
            text = os.pread(fd, 32, 0).strip()
        finally:
            os.close(fd)
        pid = int(text) if text.isdigit() else None
        match pid:
            case None:
                owner = "another process"
            case _ if pid == os.getpid():
                owner = f"another store of this process (pid {pid})"
            case _:
                owner = f"process {pid}"
        return StoreLockedError(f"{self.directory} is in use by {owner}: close that store first", path=str(self.directory), pid=pid)

    @property
    def is_held(self) -> bool:
        """Whether this object, in this process, owns the directory."""
        return self._fd is not None

    def release(self) -> None:
        """Let go. In a forked child, where the lock was never held, it does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            _held.discard(self)
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)

    def _abandon(self) -> None:
        """In a forked child: close the inherited file without unlocking the parent's."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _abandon_all() -> None:
    for lock in list(_held):
        lock._abandon()
    _held.clear()


os.register_at_fork(after_in_child=_abandon_all)
