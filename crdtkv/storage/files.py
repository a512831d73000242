"""The few file operations that the commit log rests on, as a seam: tests put a failing disk under it here.

What the log may assume of a `File`: `write` appends, may write less than it was given, and survives the death of the
process once it returned, as `reserve` does; `sync` makes all that was written before survive the loss of power; after a failed one nothing
is known about what is on the disk (the kernel may have dropped the dirty pages), so it is never tried again.
All methods raise `OSError`.

Sources: Rebello et al., "Can Applications Recover from fsync Failures?" (ATC 2020); Pillai et al., "All File Systems Are
Not Created Equal" (OSDI 2014) for why a new name needs its directory synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import NamedTuple, Protocol


class File(Protocol):
    """An open file: written at its end by one thread, read by any."""

    def write(self, data: bytes) -> int:
        """Append some or all of `data`, over what was reserved; returns how many bytes."""

    def reserve(self, size: int) -> None:
        """Have at least `size` bytes of zeros where the next writes go. They count as part of the file. An error may leave some."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; fewer only at the end of the file."""

    def size(self) -> int:
        """Bytes in the file, with what is reserved."""

    def truncate(self, size: int) -> None:
        """Cut the file, and all that was reserved; the next write goes to its new end."""

    def sync(self) -> None:
        """fdatasync."""

    def close(self) -> None:
        """Idempotent."""


class FileLayer(Protocol):
    """A directory's worth of files."""

    def create(self, path: Path) -> File:
        """A new, empty file, open for appending; one that exists is emptied."""

    def open(self, path: Path, *, writable: bool = False) -> File:
        """An existing file; `writable` to append to it."""

    def list(self, directory: Path) -> list[str]:
        """The names in a directory."""

    def rename(self, source: Path, target: Path) -> None:
        """Atomic; replaces `target`."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def sync_directory(self, directory: Path) -> None:
        """Make created, renamed and removed names survive the loss of power."""


sync_data = getattr(os, "fdatasync", os.fsync)
"""Make an open file's data survive the loss of power (macOS has no fdatasync)."""


def sync_directory(path: Path) -> None:
    """Make created, renamed and removed names in a directory survive the loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class OsFile:
    """A `File` of the operating system. Writes go to where the descriptor stands: at the end of what was written."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def reserve(self, size: int) -> None:
        # Written, not `fallocate`d: to turn what was only allocated into data is a change of the file system's own records again.
        end, wanted = os.fstat(self._fd).st_size, os.lseek(self._fd, 0, os.SEEK_CUR) + size
        while end < wanted:
            end += os.pwrite(self._fd, bytes(wanted - end), end)

    def read_at(self, offset: int, size: int) -> bytes:
        first = os.pread(self._fd, size, offset)
        if len(first) == size or not first:
            return first
        parts = [first]
        got = len(first)
        while got < size:
            part = os.pread(self._fd, size - got, offset + got)
            if not part:
                break
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)

    def sync(self) -> None:
        sync_data(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class OsFiles:
    """The `FileLayer` of the operating system."""

    def create(self, path: Path) -> File:
        return OsFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))

    def open(self, path: Path, *, writable: bool = False) -> File:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        if writable:
            os.lseek(fd, 0, os.SEEK_END)
        return OsFile(fd)

    def list(self, directory: Path) -> list[str]:
        return os.listdir(directory)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, directory: Path) -> None:
        sync_directory(directory)


class Space(NamedTuple):
    """Bytes of a file system: free for this user, and in all."""

    free: int
    total: int


def space_of(directory: Path) -> Space:
    """The room on the file system of a directory."""
    found = os.statvfs(directory)
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def is_full(error: OSError) -> bool:
    """Whether an operation failed for want of room (or of quota), and may succeed once there is some."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_all(file: File, data: bytes) -> None:
    """Write the whole of `data`, however the file slices it."""
    written = file.write(data)
    while written < len(data):
        written += file.write(data[written:])


def write_atomically(files: FileLayer, path: Path, data: bytes) -> None:
    """Replace or create `path` with `data`: after a crash it holds the old bytes or the new ones, never a mixture."""
    temporary = path.with_name(path.name + ".tmp")
    file = files.create(temporary)
    try:
        write_all(file, data)
        file.sync()
    except OSError:
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise
    finally:
        file.close()
    files.rename(temporary, path)
    files.sync_directory(path.parent)
