"""Where backups are kept: names with bytes behind them, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from crdtkv.errors import StorageError
from crdtkv.storage.files import sync_directory


class Target(Protocol):
    """A place for files. Names are relative, with `/` between parts. All methods raise `StorageError`."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file, replacing one of the name. When this returns it is kept; before, nobody sees part of it."""

    def get(self, name: str) -> bytes | None:
        """What is in a file, None if there is none."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing if there is none. When this returns it is gone."""

    def names(self) -> list[str]:
        """All names, in order."""

    def __str__(self) -> str:
        """For messages."""


class FolderTarget:
    """A folder, made when first written to."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            for directory in (path.parent, self.folder):
                sync_directory(directory)
        except OSError as e:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StorageError(f"cannot write {path}: {e.strerror or e}", path=str(path)) from e

    def get(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"cannot read {self.folder / name}: {e.strerror or e}", path=str(self.folder / name)) from e

    def delete(self, name: str) -> None:
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds more, or is gone
                path.parent.rmdir()
            for directory in (path.parent, self.folder):
                if directory.is_dir():
                    sync_directory(directory)
        except OSError as e:
            raise StorageError(f"cannot remove {path}: {e.strerror or e}", path=str(path)) from e

    def names(self) -> list[str]:
        try:
            return sorted(f"{entry.name}/{file}" for entry in os.scandir(self.folder) if entry.is_dir() for file in os.listdir(entry.path))
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StorageError(
                f"cannot list {self.folder}: {e.strerror or e}; name a folder that may be read", path=str(self.folder)
            ) from e

    def __str__(self) -> str:
        return str(self.folder)


def open_target(where: str | os.PathLike[str]) -> Target:
    """The target that a path or an `s3://bucket/prefix` names.

    Raises:
        ImportError: S3 without the extra `backup`.
        ConfigError: the URL or the environment's settings for S3 are wrong.
    """
    text = os.fspath(where)
    if text.startswith("s3://"):
        from crdtkv.backup.s3 import ObjectTarget

        return ObjectTarget(text)
    return FolderTarget(text)
