"""Which incarnation a data directory may go on as: the evidence, the decision, and the two files that hold it.

A replica that continues under its id after it has lost commits of its own gives their dots to other writes: a fork, the
one thing that merging cannot mend. So before the first write it must be known that nothing of its own which may have left
is missing. A new incarnation costs an entry in version vectors; a wrong guess costs data. Hence: in doubt, a new one, and
never for a mere SIGKILL.

**Inside** the directory (`INSTANCE`) and **outside** it (the *instance token*, by default below `~/.local/state`) stands the
same record, renewed at each opening and close: a nonce, the boot of the machine, whether the directory was closed in order, and
the *sent bound*. What tells on whom:

    an older copy put back in its place      the nonce inside is not the one outside; or the last own seq noted outside is missing
    a copy on the same machine               the path outside still holds a directory of that id
    a copy on another machine                there is no token
    a power failure, commits lost            another boot, not closed in order, and the log ends before the sent bound
    put back, own commits all there          fewer commits, of all origins together, than were fsynced here
    SIGKILL                                  the same boot: what was written to files is there; the id is kept

The last but one is as bad as the first: under the same id this replica has acknowledged, and reported of origins that end, what it
had fsynced of *others'* commits, and peers have let go of bookkeeping by that (`storage.retention`, `replication.membership`).

**The sent bound** (durability `async` and `memory`, whose commits leave before they are fsynced): no own commit above it
leaves; it is fsynced before it is raised. It leaps ahead, so that it is rarely written, and is drawn back when the replica
is at rest and all is fsynced. At `sync` only what is fsynced leaves: the log is the evidence.

**Writing** takes three steps, each fsynced: outside (with the nonce before it, which counts as well), inside, outside. A
crash between any two leaves a pair that fits. Each file has two slots, written in turn: a torn slot leaves the one before it.

After: the "amnesia" of viewstamped replication (Liskov and Cowling, 2012, section 4.3) and Riak's vnode ids and status files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from crdtkv.core.causality import Origin
from crdtkv.errors import DiskFullError, StorageError
from crdtkv.storage.files import is_full, sync_data, sync_directory

INSTANCE_NAME: Final = "INSTANCE"
TRUST: Final = "trust"
"""As `instance_dir`: keep no token; a directory is what it says it is."""
LEAP: Final = 1 << 20
"""How far ahead of the last own commit the sent bound is set. Far: it says what may be missing, not what is, so distance costs nothing."""
TOKENS_MAX: Final = 1024
"""Tokens kept beside each other; above it those of directories that are gone go, the oldest first."""
TOKEN_AGE_S: Final = 30 * 86_400
"""A token that was not used for so long goes if its directory is gone (it may be on a disk that is not mounted)."""
_SLOT_BYTES: Final = 8192  # a path has up to 4096
_MARK_AT: Final = 2 * _SLOT_BYTES
_MARK: Final = Struct("<Q8sQ")
"""Seq, name of the origin, count. The count came later: where a file ends before it, none was noted."""
_MAGIC: Final = b"CRDTKVI1"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What both files hold.

    Attributes:
        seq: the last own commit when it was written.
        bound: the same if `clean`, else up to where own commits may have left.
        path: the directory; "" if no token is kept.
        synced: how many commits were fsynced here by then, of all origins together.
    """

    number: int
    id: str
    nonce: str
    previous: str
    origin: str
    boot: str
    clean: bool
    bound: int
    path: str
    seq: int = 0
    synced: int = 0


class Mark(NamedTuple):
    """What is noted outside between two records: the last own seq, and how many commits of all origins are fsynced here.

    The count grows by whatever way a vector does, by frames and by installs, and of one replica's states the earlier has the lesser.
    """

    seq: int = 0
    synced: int = 0


NOTHING_NOTED: Final = Mark()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a directory when it is opened.

    Attributes:
        origin: the id it would go on as. recovered: its last own seq in log and engine. commits: how many they hold of all origins.
        inside, outside: the records, None where there is none. trusted: none is kept outside.
        mark: what was noted outside since the record.
        boot: this boot of this machine; "" where that cannot be known, which counts as another one.
        original: another directory with the same id.
        is_engine_ahead: the engine holds what the log does not.
    """

    origin: Origin
    recovered: int
    commits: int
    inside: Record | None
    outside: Record | None
    trusted: bool = False
    mark: Mark = NOTHING_NOTED
    boot: str = ""
    original: str | None = None
    is_engine_ahead: bool = False


def why_new(e: Evidence) -> str | None:
    """Why the directory must take a new incarnation; None: it goes on as it was. Pure."""
    if e.is_engine_ahead:
        return "the state engine held commits that the log had lost"
    if e.inside is None:
        return "it does not say how it was closed"
    if not e.trusted:
        if e.outside is None and e.inside.path:
            return "it was not used on this machine before: copied, restored, or its instance token is gone"
        if e.original is not None:
            return f"it is a copy of {e.original}"
        if e.outside is not None and e.inside.nonce not in (e.outside.nonce, e.outside.previous):
            return "an older copy of it was put back"
    records = [r for r in (e.inside, None if e.trusted else e.outside) if r is not None]
    if e.recovered and any(r.origin != e.origin for r in records):
        return "its parts are of different times"
    records = [r for r in records if r.origin == e.origin]
    kept = e.recovered
    if kept < e.mark.seq:
        return f"own commits up to {e.mark.seq} were written and the log ends at {kept}: an older copy of it was put back"
    closed = max((r.bound for r in records if r.clean), default=0)
    if kept < closed:
        return f"it was closed with own commits up to {closed} and the log ends at {kept}: a part of it was lost or put back"
    had = max((r.seq for r in records), default=0)
    if kept < had:
        return f"it had own commits up to {had} and the log ends at {kept}: a part of it was lost or put back"
    synced = max(e.mark.synced, *(r.synced for r in records), 0)
    if e.commits < synced:
        return f"it had fsynced {synced} commits of all regions and holds {e.commits}: a part of it was lost or put back"
    rebooted = not e.boot or any(r.boot != e.boot for r in records)
    bound = max((r.bound for r in records), default=0)
    if rebooted and kept < bound:
        return f"the machine stopped; own commits up to {bound} may have left, and the log ends at {kept}"
    return None


def boot_id() -> str:
    """Names this boot of this machine; "" where the system does not say."""
    try:
        if sys.platform == "darwin":
            import ctypes

            size = ctypes.c_size_t(64)
            buffer = ctypes.create_string_buffer(64)
            failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, 0)
            return "" if failed else buffer.value.decode()
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, AttributeError, UnicodeDecodeError):
        return ""


def instance_directory(setting: str | None) -> Path | None:
    """Where tokens are kept: what is set, else `$XDG_STATE_HOME/crdtkv/instances`, else below the home; None: `trust`.

    Raises:
        OSError, RuntimeError: there is no home to keep it in.
    """
    if setting == TRUST:
        return None
    if setting is not None:
        return Path(setting)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state and os.path.isabs(state) else Path.home() / ".local" / "state") / "crdtkv" / "instances"


class _SlotFile:
    """One record in a file of two slots, written in turn; and, outside, a mark behind them."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Raises OSError: it cannot be opened for writing, or (unless `create`) is not there."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        try:
            if os.fstat(self._fd).st_size < _MARK_AT + 16:
                os.ftruncate(self._fd, 0)
                # Allocated now, so that a full disk cannot refuse what is written over it later.
                os.pwrite(self._fd, bytes(_MARK_AT + _MARK.size), 0)
                os.fsync(self._fd)
                sync_directory(path.parent)
        except BaseException:
            self.close()
            raise
        self._newest = 0

    def read(self) -> Record | None:
        slots = [_decode(os.pread(self._fd, _SLOT_BYTES, at * _SLOT_BYTES)) for at in (0, 1)]
        numbers = [-1 if slot is None else slot.number for slot in slots]
        self._newest = numbers.index(max(numbers))
        return slots[self._newest]

    def write(self, record: Record) -> None:
        data = msgspec.msgpack.encode(record)
        slot = _MAGIC + len(data).to_bytes(4, "little") + crc32(data).to_bytes(4, "little") + data
        if len(slot) > _SLOT_BYTES:
            raise OSError(36, f"the path {record.path[:60]}… is too long")
        os.pwrite(self._fd, slot, (1 - self._newest) * _SLOT_BYTES)
        sync_data(self._fd)
        self._newest = 1 - self._newest

    def mark(self, origin: Origin) -> Mark:
        """What was noted for an origin; zeros if for another or none."""
        seq, name, synced = _MARK.unpack(os.pread(self._fd, _MARK.size, _MARK_AT).ljust(_MARK.size, b"\0"))
        return Mark(seq, synced) if name == _name(origin) else Mark()

    def note(self, origin: Origin, mark: Mark, *, sync: bool) -> None:
        os.pwrite(self._fd, _MARK.pack(mark.seq, _name(origin), mark.synced), _MARK_AT)
        if sync:
            sync_data(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _name(origin: Origin) -> bytes:
    data = origin.encode()
    return crc32(data).to_bytes(4, "little") + crc32(data[::-1]).to_bytes(4, "little")


def _decode(slot: bytes) -> Record | None:
    head, body = slot[: len(_MAGIC) + 8], slot[len(_MAGIC) + 8 :]
    if not head.startswith(_MAGIC):
        return None
    data = body[: int.from_bytes(head[-8:-4], "little")]
    if crc32(data) != int.from_bytes(head[-4:], "little"):
        return None
    try:
        return msgspec.msgpack.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _id_of(directory: Path) -> str | None:
    """The id of a directory, which may be in use; None if there is none."""
    try:
        slots = (directory / INSTANCE_NAME).read_bytes()[:_MARK_AT]
    except OSError:
        return None
    records = [r for r in (_decode(slots[:_SLOT_BYTES]), _decode(slots[_SLOT_BYTES:])) if r is not None]
    newest = max(records, key=lambda r: r.number, default=None)
    return None if newest is None else newest.id


class Instance:
    """The two records of an open directory, whose lock the caller holds. Thread-safe.

    Args:
        directory: the data directory.
        setting: the store's `instance_dir`.
    Raises:
        StorageError: the record inside cannot be read or made.
    """

    def __init__(self, directory: Path, setting: str | None) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self.warning: str | None = None
        """Why no token is kept, if that was not wished."""
        self._real = os.path.realpath(directory)
        self._boot = boot_id()
        self._outside: _SlotFile | None = None
        self._tokens: Path | None = None
        self._noted = Mark()
        self._noted_s = 0.0
        """When it was last fsynced."""
        self._number = 0
        path = directory / INSTANCE_NAME
        try:
            self._inside = _SlotFile(path, create=True)
            self._record = self._inside.read()
        except OSError as e:
            raise StorageError(f"cannot open {path}: {e.strerror}", path=str(path)) from e
        try:
            self._tokens = instance_directory(setting)
            if self._tokens is not None:
                self._tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._record is not None:
                    with contextlib.suppress(FileNotFoundError):
                        self._outside = _SlotFile(self._tokens / self._record.id, create=False)
        except (OSError, RuntimeError) as e:
            self._distrust(e)

    def _distrust(self, error: BaseException) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        where = self._tokens if self._tokens is not None else "the home directory"
        self.warning = (
            f"no instance token can be kept in {where} ({reason}): that {self.directory} was restored or copied will only show when a peer "
            "knows more of it; set instance_dir to a directory that stays"
        )
        self._tokens = None
        if self._outside is not None:
            self._outside.close()
            self._outside = None

    def evidence(self, origin: Origin, recovered: int, commits: int, *, is_engine_ahead: bool) -> Evidence:
        """What is known before the directory is used."""
        outside, mark, original = None, Mark(), None
        if self._outside is not None:
            try:
                outside, mark = self._outside.read(), self._outside.mark(origin)
            except OSError as e:
                self._distrust(e)
        self._number = max((r.number for r in (self._record, outside) if r is not None), default=0)
        if outside is not None and self._record is not None and outside.path != self._real and self._is_another(outside.path):
            original = outside.path
        return Evidence(
            origin=origin,
            recovered=recovered,
            commits=commits,
            inside=self._record,
            outside=outside,
            trusted=self._tokens is None,
            mark=mark,
            boot=self._boot,
            original=original,
            is_engine_ahead=is_engine_ahead,
        )

    def _is_another(self, path: str) -> bool:
        """Whether another directory than this one stands at a path and has the same id."""
        assert self._record is not None
        try:
            return not os.path.samefile(path, self.directory) and _id_of(Path(path)) == self._record.id
        except OSError:
            return False

    def open(self, origin: Origin, bound: int, synced: int, *, is_new: bool) -> None:
        """Renew the records, from now on for this use of the directory. `is_new`: it takes a new id for its token as well.

        Raises:
            StorageError: the record inside cannot be written.
        """
        with self._lock:
            if is_new or self._record is None or (self._outside is None and self._tokens is not None):
                self._begin_token(is_new)
            self._renew(origin, bound, bound, synced, clean=False, thrice=True)
            self._prune()

    def _begin_token(self, is_new: bool) -> None:
        old, self._outside = self._outside, None
        if old is not None:
            with contextlib.suppress(OSError):
                record = old.read()
                if record is not None and record.path == self._real:
                    old.path.unlink()
            old.close()
        name = secrets.token_hex(12) if is_new or self._record is None else self._record.id
        base = self._record or Record(number=0, id=name, nonce="", previous="", origin="", boot="", clean=True, bound=0, path="")
        self._record = msgspec.structs.replace(base, id=name)
        if self._tokens is not None:
            try:
                self._outside = _SlotFile(self._tokens / name, create=True)
            except OSError as e:
                self._distrust(e)

    def set_bound(self, origin: Origin, seq: int, bound: int, synced: int) -> bool:
        """Fsynced in both files when this returns True: own commits up to `bound` may have left, those up to `seq` are there, and
        `synced` commits of all origins are fsynced.

        False: the id is another by now, and nothing was written.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            if self._record is None or self._record.origin != origin:
                return False
            self._renew(origin, seq, bound, synced, clean=False)
            return True

    def close_clean(self, origin: Origin, seq: int, synced: int) -> None:
        """The directory ends in order with own commits up to `seq`, all of them fsynced, as is the log. Raises StorageError."""
        with self._lock:
            self._renew(origin, seq, seq, synced, clean=True)

    def _renew(self, origin: Origin, seq: int, bound: int, synced: int, *, clean: bool, thrice: bool = False) -> None:
        before = self._record
        assert before is not None
        nonce = secrets.token_hex(8)
        record = Record(
            number=self._next_number(), id=before.id, nonce=nonce, previous=before.nonce, origin=origin, boot=self._boot, clean=clean,
            bound=bound, seq=seq, path=self._real if self._outside is not None else "", synced=synced,
        )  # fmt: skip
        self._write_outside(record)
        try:
            self._inside.write(record)
        except OSError as e:
            kind = DiskFullError if is_full(e) else StorageError
            raise kind(f"cannot write {self._inside.path}: {e.strerror}", path=str(self._inside.path)) from e
        self._record = record
        if thrice:
            # From here on a copy from before this opening is told from what is written now.
            self._record = msgspec.structs.replace(record, number=self._next_number(), previous="")
            self._write_outside(self._record)

    def _next_number(self) -> int:
        """Of each write, also after one that failed between the two files."""
        assert self._record is not None
        self._number = max(self._number, self._record.number) + 1
        return self._number

    def _write_outside(self, record: Record) -> None:
        if self._outside is not None:
            try:
                self._outside.write(record)
            except OSError as e:
                self._distrust(e)

    def note(self, origin: Origin, seq: int, synced: int, *, sync: bool = False) -> None:
        """Own commits up to `seq` are there, fsynced if that is what lets them leave, and `synced` commits of all origins are fsynced.
        Cheap; fsynced itself about once a second, and if `sync`."""
        mark = Mark(seq, synced)
        with self._lock:
            if self._outside is None or mark == self._noted or self._record is None or self._record.origin != origin:
                return
            now_s = time.monotonic()
            sync = sync or now_s - self._noted_s >= 1.0
            try:
                self._outside.note(origin, mark, sync=sync)
            except OSError as e:
                self._distrust(e)
            self._noted, self._noted_s = mark, now_s if sync else self._noted_s

    def _prune(self) -> None:
        """Drop tokens of directories that are gone. Looks at the others only when there are many, and at a bounded number of them."""
        if self._tokens is None:
            return
        with contextlib.suppress(OSError):
            names = os.listdir(self._tokens)
            looked_at = names if len(names) > TOKENS_MAX else [secrets.choice(names) for _ in range(min(4, len(names)))]
            found = []
            for name in looked_at:
                with contextlib.suppress(OSError):
                    found.append((os.stat(self._tokens / name).st_mtime, name))
            excess = len(names) - TOKENS_MAX
            for at, (modified_s, name) in enumerate(sorted(found)):
                if (at < excess or time.time() - modified_s > TOKEN_AGE_S) and not self._is_used(self._tokens / name):
                    (self._tokens / name).unlink()

    @staticmethod
    def _is_used(token: Path) -> bool:
        file = _SlotFile(token, create=False)
        try:
            record = file.read()
        finally:
            file.close()
        return record is not None and _id_of(Path(record.path)) == token.name

    def close(self) -> None:
        """Let go of the files. Says nothing about how the directory ends."""
        self._inside.close()
        if self._outside is not None:
            self._outside.close()
            self._outside = None
