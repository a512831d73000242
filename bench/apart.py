"""A measurement in processes of its own: whatever ends it, nothing of it is left running, and nothing in the temporary directory.

It leads a session, so Ctrl-C at the terminal does not reach it: who measures hears of that (`interrupts.check`) and ends it. It has a
temporary directory to itself, which goes with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from crdtkv import interrupts

ORDERLY_S: Final = 5.0
"""How long its servers have to end as they are asked to, before they are killed."""
_POLL_S: Final = 0.1


class TooLongError(Exception):
    """It did not end within its limit."""


@contextlib.contextmanager
def started(command: Sequence[str], *, out: IO[Any] | None = None, errors: IO[Any] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A child and all that it starts, ended with the block. `out`, `errors`: where it writes; by default where we do."""
    directory = tempfile.mkdtemp(prefix="crdtkv-bench-")
    try:
        environment = {**os.environ, "TMPDIR": directory}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True, env=environment)
        try:
            yield child
        finally:
            _end(child)
    finally:
        _remove(directory)


def run(command: Sequence[str], *, limit_s: float, is_shown: bool = False) -> subprocess.CompletedProcess[str]:
    """Run it to its end and return its status and what it wrote; `is_shown`: what it writes to stderr is shown and not kept.

    Raises:
        TooLongError: it took longer than that, and was ended.
        KeyboardInterrupt: a block around has noted Ctrl-C; it was ended.
    """
    interrupts.check()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        with started(command, out=out, errors=None if is_shown else errors) as child:
            _wait(child, limit_s)
        out.seek(0)
        errors.seek(0)
        said = [file.read().decode(errors="replace") for file in (out, errors)]
    return subprocess.CompletedProcess(command, child.returncode, *said)


def _wait(child: subprocess.Popen[bytes], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        interrupts.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_S)
            return
        if time.monotonic() > deadline:
            raise TooLongError(f"took more than {limit_s:g} s")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask all of its session, then kill what is left. A local cluster's supervisor has a session of its own, and ends with its owner."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
            deadline = time.monotonic() + ORDERLY_S
            while time.monotonic() < deadline:
                child.poll()
                os.killpg(child.pid, 0)
                time.sleep(_POLL_S)
    child.wait()


def _remove(directory: str) -> None:
    """Remove what a process may still write to that is about to end."""
    deadline = time.monotonic() + ORDERLY_S
    while os.path.exists(directory) and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)


def bench(*arguments: str | Path) -> list[str]:
    """The command that runs a part of this package."""
    return [sys.executable, "-m", "bench", *map(str, arguments)]
