"""Reading a whole state in a process of its own, beside the one that writes it.

A loop over all records keeps the interpreter busy, and a process has one: what a backup reads and encodes in it, its writers wait for.
So the records of a large state are read by a *reader*, another process, from a checkpoint of the engine: its files at one moment, as hard
links. It sends finished chunks through a pipe, has a low priority, and is kept to a share of a processor while others write: it waits for
the next chunk to be taken.

    to the reader    a command line: the module search path, the checkpoint
    from it          R            the checkpoint is open
                     C chunk      items:u32 digest:16 bytes work_us:u32 size:u64 data; work_us: processor time since the last
                     E text       what went wrong: size:u64 text
                     .            that was all

What is missing at the end is found by whoever adds up the chunks: their digests must give the state's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Final

from crdtkv.backup.chunks import StateChunk, state_chunks
from crdtkv.errors import CorruptionError, CrdtkvError, StorageError
from crdtkv.store.view import CHUNK_RECORDS, FIRST, LAST

NICENESS: Final = 5
"""A quarter of the time of a processor that a writer wants as well, all of one that is idle."""
SHARE: Final = 0.4
"""How much of a processor's time it may take while others write; measured (`python -m bench goals --row backup`)."""
REST_S_MAX: Final = 1.0
PIPE_BYTES: Final = 1 << 20
"""Each time it is read, who reads waits for the interpreter: a few times a chunk instead of a hundred."""
READY, CHUNK, ERROR, END = b"R", b"C", b"E", b"."
_CHUNK_HEAD: Final = struct.Struct("<I16sIQ")
_ERROR_HEAD: Final = struct.Struct("<Q")
_RUN: Final = (
    f"import json,os,sys;os.nice({NICENESS});sys.path[:]=json.loads(sys.argv[1]);from crdtkv.backup.beside import main;main(sys.argv[2])"
)


class NoReaderError(Exception):
    """No such process can be had here; whoever asked for it can do without."""


class Reader:
    """A process that reads a checkpoint. A context manager: at its end the process is gone.

    Args:
        checkpoint: of a RocksDB engine.
        others: a number that changes as others work, such as the log's end.
    Raises:
        NoReaderError: it cannot be started, or does not come as far as opening the checkpoint.
    """

    def __init__(self, checkpoint: Path, others: Callable[[], int]) -> None:
        self._others = others
        name = Path(sys.executable or "").name
        if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
            raise NoReaderError(f"this program, {name or 'which has no name'}, is not a Python interpreter")
        # `crdtkv` by where it is and not by how it was found: an editable installation's hooks are not in the path.
        path = [str(Path(__file__).parents[2]), *sys.path]
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the reader
        try:
            # In a process group of its own, so that Ctrl-C in a terminal reaches this process, which ends it; not in a session, where its
            # priority could count within that session only.
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", _RUN, json.dumps(path), str(checkpoint)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._said,
                bufsize=0,
                process_group=0,
            )
        except OSError as e:
            self._said.close()
            raise NoReaderError(str(e)) from e
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        _widen(self._pipe.fileno())
        try:
            if (kind := self._read(1)) != READY:
                raise self._error(kind)
        except (StorageError, CorruptionError) as e:
            self.close()
            raise NoReaderError(e.message) from e
        except BaseException:
            self.close()
            raise

    def chunks(self) -> Iterator[StateChunk]:
        """All records, once.

        Raises:
            CorruptionError: RocksDB finds the checkpoint damaged. StorageError: the process failed or was ended.
        """
        began, seen = time.monotonic(), self._others()
        while (kind := self._read(1)) != END:
            if kind != CHUNK:
                raise self._error(kind)
            items, digest, work_us, size = _CHUNK_HEAD.unpack(self._read(_CHUNK_HEAD.size))
            yield StateChunk(self._read(size), items, int.from_bytes(digest, "little"))
            if (now := self._others()) != seen:
                time.sleep(min(REST_S_MAX, max(0.0, began + work_us / 1e6 / SHARE - time.monotonic())))
            began, seen = time.monotonic(), now

    def _error(self, kind: bytes) -> CrdtkvError:
        """What it says that went wrong."""
        assert kind == ERROR, f"a message of kind {kind!r}"
        (size,) = _ERROR_HEAD.unpack(self._read(_ERROR_HEAD.size))
        failed = json.loads(self._read(size))
        return (CorruptionError if failed["is_corrupt"] else StorageError)(failed["message"])

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._pipe.readinto(view)  # type: ignore[attr-defined]  # unbuffered: a raw file
            if not count:
                raise StorageError(
                    f"the process that reads the state for a backup ended before it was done: {self._last_words()}", retryable=True
                )
            view = view[count:]
        return bytes(data)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """End the process, whatever it does; idempotent."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._said.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _widen(pipe: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # the user has too many pipes: they stay small
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


# -- in the process of its own ------------------------------------------------------------------------------------------


def main(checkpoint: str) -> None:
    """Read the checkpoint and send it. It ends by SIGPIPE's error when nobody takes it any more."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    with contextlib.suppress(BrokenPipeError):
        try:
            _send(out, Path(checkpoint))
        except CrdtkvError as e:
            text = json.dumps({"message": e.message, "is_corrupt": isinstance(e, CorruptionError)}).encode()
            _write(out, ERROR + _ERROR_HEAD.pack(len(text)) + text)
    os._exit(0)  # nothing is to be kept: closing the engine would only take time


def _send(out: IO[bytes], checkpoint: Path) -> None:
    from crdtkv.storage.rocksdb import RocksDbEngine

    engine = RocksDbEngine(checkpoint, read_only=True)
    _write(out, READY)
    scan = engine.scan(FIRST, LAST)
    pages = iter(lambda: list(chain.from_iterable(islice(scan, CHUNK_RECORDS))), [])
    worked_s = time.process_time()
    for chunk in state_chunks(pages):
        digest = (chunk.digest & ((1 << 128) - 1)).to_bytes(16, "little")
        now_s = time.process_time()
        _write(out, CHUNK + _CHUNK_HEAD.pack(chunk.items, digest, round((now_s - worked_s) * 1e6), len(chunk.data)))
        worked_s = now_s
        _write(out, chunk.data)
    _write(out, END)


def _write(out: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]
