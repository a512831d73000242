"""How to talk to the supervisor of a local cluster: the control protocol, and the file that says where it is.

The supervisor listens on a unix socket. A request is one line of JSON, `{"op": "kill", "args": {"region": "us"}}`; the answer one line,
`{"result": …}` or `{"error": {"code", "message", "details", "retryable", "maybe_applied"}}`, sent when the request is in effect. A
connection takes one request after the other.

`cluster.json` in the cluster's directory is replaced atomically, first when the cluster is ready and then whenever a process changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crdtkv.cluster.spec import dir_flag
from crdtkv.errors import CrdtkvError, StorageError, error_from_parts
from crdtkv.transport import SOCKET_PATH_BYTES_MAX

FILE_NAME: Final = "cluster.json"
FILE_VERSION: Final = 1
LOCK_NAME: Final = "supervisor.lock"
LINE_BYTES_MAX: Final = 4 << 20
_SOCKET_NAME: Final = "control.sock"


class ClusterError(CrdtkvError):
    """The local cluster could not do it: a port in use, a node that does not start."""


class ClusterNotRunningError(ClusterError):
    """No local cluster runs in the directory."""


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """What `cluster.json` says.

    Attributes:
        regions: region → {"address", "pid", "state", "data", "log"} and with metrics "metrics", in the cluster's order.
        control: path of the supervisor's socket.
        delay_ms: `R-S` → one-way delay.
    """

    regions: Mapping[str, Mapping[str, Any]]
    supervisor_pid: int
    control: str
    delay_ms: Mapping[str, float] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Replace the file in one step: a reader sees the old one or the new one."""
        document = {
            "version": FILE_VERSION,
            "supervisor_pid": self.supervisor_pid,
            "control": self.control,
            "regions": self.regions,
            "delay_ms": self.delay_ms,
        }
        replace_text(directory / FILE_NAME, json.dumps(document, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> ClusterFile:
        """Read the file of a directory.

        Raises:
            ClusterNotRunningError: there is none.
            StorageError: it cannot be read or is not what this version writes.
        """
        path = directory / FILE_NAME
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["version"] != FILE_VERSION:
                raise StorageError(f"{path} has version {document['version']}; this crdtkv knows version {FILE_VERSION}")
            return cls(document["regions"], document["supervisor_pid"], document["control"], document["delay_ms"])
        except FileNotFoundError:
            raise ClusterNotRunningError(
                f"no cluster runs in {directory}: start one with `crdtkv cluster up{dir_flag(directory)}`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise StorageError(f"{path} cannot be read: {e}") from e


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees what it held before, or all of this."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def socket_path(directory: Path) -> Path:
    """Where the supervisor of a directory listens: in it, or, if that is too long for a socket, in the temporary directory, or /tmp."""
    path = directory.absolute() / _SOCKET_NAME
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"crdtkv-{os.getuid()}-{name}.sock"
    return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX else Path("/tmp") / path.name


@contextlib.contextmanager
def supervisor_lock(directory: Path) -> Iterator[bool]:
    """Hold the directory's supervisor lock, if nobody else does; yields whether. A dead holder's lock is free."""
    fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def call(directory: Path, op: str, *, timeout_s: float = 120.0, **args: Any) -> Any:
    """Ask the supervisor of a directory and return its result; one connection, one request.

    Raises:
        ClusterNotRunningError: nobody listens.
        CrdtkvError: what the supervisor answered.
    """
    cluster = ClusterFile.read(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(cluster.control)
        except OSError:
            raise ClusterNotRunningError(
                f"the cluster in {directory} is not running any more (its supervisor, process {cluster.supervisor_pid}, is gone): start it"
                f" again with `crdtkv cluster up{dir_flag(directory)}`"
            ) from None
        try:
            connection.sendall(encode({"op": op, "args": args}))
            with connection.makefile("rb") as lines:
                line = lines.readline(LINE_BYTES_MAX)
        except TimeoutError:
            raise ClusterError(
                f"the supervisor of {directory} (process {cluster.supervisor_pid}) did not answer {op!r} within {timeout_s:g} s"
            ) from None
        except OSError:
            line = b""
    if not line.endswith(b"\n"):
        raise ClusterError(f"the supervisor of {directory} stopped before it answered {op!r}")
    return decode_answer(line)


def wait_gone(directory: Path, supervisor_pid: int | None, timeout_s: float = 10.0) -> bool:
    """Wait until no supervisor holds the directory and its process has ended; False if it still is there."""
    deadline = time.monotonic() + timeout_s
    while _is_held(directory) or (supervisor_pid is not None and _is_running(supervisor_pid)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _is_held(directory: Path) -> bool:
    if not directory.exists():
        return False
    with supervisor_lock(directory) as free:
        return not free


def _is_running(pid: int) -> bool:
    """Whether the process does anything: a zombie, which its parent has still to reap, does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except ProcessLookupError:
        return False
    except OSError:  # another's process, or a system without /proc: the lock has to be enough
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as its line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def encode_error(error: CrdtkvError) -> bytes:
    """The answer to a request that failed."""
    details = {k: v for k, v in error.details.items() if isinstance(v, (str, int, float, bool, list, type(None)))}
    parts = {"code": error.code, "message": error.message, "details": details}
    return encode({"error": {**parts, "retryable": error.retryable, "maybe_applied": error.maybe_applied}})


def decode_answer(line: bytes) -> Any:
    """The result in an answer; raises the error in it."""
    try:
        answer = json.loads(line)
        error = answer.get("error")
        if error is None:
            return answer["result"]
        raised = error_from_parts(error["code"], error["message"], error["details"], error["retryable"], error["maybe_applied"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ClusterError(f"the supervisor's answer makes no sense: {line[:200]!r}") from e
    raise raised
