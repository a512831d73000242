"""A disk in memory whose power can fail at any call: what lies under a real commit log in tests.

It keeps, for each file and each directory, what a reader sees (the page cache) and what would be there after a loss of power. Only
`sync` carries a file's content over, only `sync_directory` its name. `lose_power` gives the disk as it would be found:
of what was not carried over each write may be there, be missing, or be *torn*, sector by sector and in any order (a later write may
have reached the disk and an earlier one not; a hole reads as zeros), and each change of a name may have happened or not.

After: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014); Rebello et al., "Can Applications Recover from fsync
Failures?" (ATC 2020); LazyFS (VLDB 2024).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from crdtkv.storage.files import File

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all."""


class PowerLost(BaseException):
    """The machine stopped within this call. Not an `Exception`: nothing may catch it and go on."""


class _Content:
    """A file's bytes: as seen, as durable, and the changes between the two in their order: (offset, bytes), or a new size."""

    __slots__ = ("durable", "pending", "seen")

    def __init__(self, data: bytes = b"") -> None:
        self.seen = bytearray(data)
        self.durable = bytes(data)
        self.pending: list[tuple[int, bytes] | int] = []

    def found(self, random: Callable[[], float]) -> _Content:
        """What is there after the power failed."""
        data = bytearray(self.durable)
        fate = _fate(random)
        for change in self.pending:
            if isinstance(change, int):
                if fate():
                    del data[change:]
                continue
            offset, written = change
            for at in range(0, len(written), SECTOR_BYTES):
                part = written[at : at + SECTOR_BYTES]
                if fate():
                    data.extend(bytes(max(0, offset + at - len(data))))
                    data[offset + at : offset + at + len(part)] = part
        return _Content(bytes(data))


def _fate(random: Callable[[], float]) -> Callable[[], bool]:
    """Whether a change reached the disk: all of a file's did, none did, or each for itself."""
    kind = random()
    if kind < 0.25:
        return lambda: True
    if kind < 0.5:
        return lambda: False
    return lambda: random() < 0.5


class FaultyFiles:
    """A `FileLayer` in memory.

    Attributes:
        calls: how many calls were made, of any kind.
        at_call: asked before each call, with its number and name; what it raises (an `OSError`, `PowerLost`) the call raises,
            having done nothing; of a write that `PowerLost` stops a part may be done.
        room: bytes that can still be written before ENOSPC; None: no end.
        sync_lies: `sync` says that it is done, and does nothing: what a test of durability has to notice.
    """

    def __init__(self, *, sync_lies: bool = False) -> None:
        self.calls = 0
        self.at_call: Callable[[int, str], None] = lambda number, name: None
        self.room: int | None = None
        self.sync_lies = sync_lies
        self._seen: dict[str, _Content] = {}  # by path as text: `Path` is slow to hash, and to say its parent
        self._durable: dict[str, _Content] = {}
        self._pending: list[tuple[str, list[tuple[str, _Content | None]]]] = []
        """Changes of names in a directory, each atomic, not yet carried over by a sync of that."""

    def enter(self, name: str) -> None:
        """Count a call and let it fail."""
        self.calls += 1
        self.at_call(self.calls, name)

    def lose_power(self, random: Callable[[], float]) -> FaultyFiles:
        """The disk as it is found when the power is back; `random` decides, as `Random.random` would. This one is used no more."""
        names = dict(self._durable)
        fate = _fate(random)
        for _, change in self._pending:
            if fate():
                _rename(names, change)
        found = FaultyFiles(sync_lies=self.sync_lies)
        contents = {id(content): content.found(random) for content in names.values()}
        found._seen = {path: contents[id(content)] for path, content in names.items()}
        found._durable = dict(found._seen)
        return found

    def copy(self) -> FaultyFiles:
        """Another disk with what a reader sees on this one."""
        twin = FaultyFiles()
        twin._seen = {path: _Content(bytes(content.seen)) for path, content in self._seen.items()}
        twin._durable = dict(twin._seen)
        return twin

    def rot(self, random: Callable[[], float]) -> bool:
        """One bit on the disk turns over, of what is synced; False if nothing is."""
        found = [content for content in self._seen.values() if content.durable]
        if not found:
            return False
        content = found[int(random() * len(found))]
        at = int(random() * len(content.durable))
        bit = 1 << int(random() * 8)
        content.durable = content.durable[:at] + bytes([content.durable[at] ^ bit]) + content.durable[at + 1 :]
        if at < len(content.seen):
            content.seen[at] ^= bit
        return True

    def _change(self, *changes: tuple[str, _Content | None]) -> None:
        _rename(self._seen, changes)
        self._pending.append((os.path.dirname(changes[0][0]), list(changes)))

    # -- the layer ------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> File:
        self.enter("create")
        name = str(path)
        content = self._seen.get(name)
        if content is None:
            content = _Content()
            self._change((name, content))
        else:
            content.pending.append(0)
            content.seen.clear()
        return FaultyFile(self, content)

    def open(self, path: Path, *, writable: bool = False) -> File:
        self.enter("open")
        content = self._seen.get(str(path))
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return FaultyFile(self, content)

    def list(self, directory: Path) -> list[str]:
        self.enter("list")
        found = map(os.path.split, self._seen)
        return [name for parent, name in found if parent == str(directory)]

    def rename(self, source: Path, target: Path) -> None:
        self.enter("rename")
        self._change((str(target), self._seen[str(source)]), (str(source), None))

    def remove(self, path: Path) -> None:
        self.enter("remove")
        if str(path) not in self._seen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._change((str(path), None))

    def sync_directory(self, directory: Path) -> None:
        self.enter("sync_directory")
        if self.sync_lies:
            return
        where = str(directory)
        for changed, change in self._pending:
            if changed == where:
                _rename(self._durable, change)
        self._pending = [pending for pending in self._pending if pending[0] != where]


class FaultyFile:
    """A `File` of `FaultyFiles`."""

    __slots__ = ("_at", "_content", "_disk")

    def __init__(self, disk: FaultyFiles, content: _Content) -> None:
        self._disk = disk
        self._content = content
        self._at = len(content.seen)  # where the next write goes

    def write(self, data: bytes) -> int:
        try:
            self._disk.enter("write")
        except PowerLost:
            self._put(self._at, data[: len(data) // 2])
            raise
        data = data[: self._take_room(self._at + len(data)) - self._at]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._put(self._at, data)
        self._at += len(data)
        return len(data)

    def reserve(self, size: int) -> None:
        wanted, end = self._at + size, len(self._content.seen)
        try:
            self._disk.enter("reserve")
        except PowerLost:
            self._put(end, bytes(max(0, wanted - end) // 2))
            raise
        given = self._take_room(wanted)
        self._put(end, bytes(max(0, given - end)))
        if given < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_room(self, end: int) -> int:
        """Let the file grow up to an end, as far as there is room; how far it may. What is part of the file already needs none."""
        grown = max(0, end - len(self._content.seen))
        if self._disk.room is not None:
            end -= max(0, grown - self._disk.room)
            self._disk.room = max(0, self._disk.room - grown)
        return end

    def _put(self, at: int, data: bytes) -> None:
        self._content.pending.append((at, bytes(data)))
        self._content.seen[at : at + len(data)] = data

    def read_at(self, offset: int, size: int) -> bytes:
        self._disk.enter("read_at")
        return bytes(self._content.seen[offset : offset + size])

    def size(self) -> int:
        return len(self._content.seen)

    def truncate(self, size: int) -> None:
        self._disk.enter("truncate")
        self._content.pending.append(size)
        del self._content.seen[size:]
        self._at = size

    def sync(self) -> None:
        self._disk.enter("sync")
        if not self._disk.sync_lies:
            self._content.durable = bytes(self._content.seen)
            self._content.pending.clear()

    def close(self) -> None:
        pass


def _rename(names: dict[str, _Content], change: Sequence[tuple[str, _Content | None]]) -> None:
    """Carry out one change of names; None: the name goes."""
    for path, content in change:
        if content is None:
            names.pop(path, None)
        else:
            names[path] = content
