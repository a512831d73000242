"""One node of a local cluster as its supervisor sees it: a child process, its ports, its log, and what it does now.

Children are started through `launcher.py`, so that they die with the supervisor, and in a session of their own, so that Ctrl-C in the
terminal reaches the supervisor only, which then stops them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from crdtkv.cluster.control import ClusterError
from crdtkv.errors import ConfigError, StorageError

STOP_GRACE_S: Final = 10.0
"""How long a node may take to stop before it is killed."""
HOST: Final = "127.0.0.1"
_PORTS: Final = range(20_000, 32_000)
"""Where free ports are looked for: below what kernels give to outgoing connections, so that the port of a node that is down stays free."""
_LAUNCHER: Final = Path(__file__).with_name("launcher.py")

State = Literal["stopped", "starting", "running", "paused", "killed", "crashed"]


class Lifeline:
    """Starts children that end with this process."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()  # neither is inherited; the read end is passed on, the write end never

    async def start(self, command: Sequence[str], **kwargs: Any) -> asyncio.subprocess.Process:
        """Start a command; must be called on the main thread, whose end the kernel takes for the parent's."""
        launch = (sys.executable, "-I", "-S", str(_LAUNCHER), str(self._read), str(os.getpid()))
        return await asyncio.create_subprocess_exec(
            *launch, *command, pass_fds=(self._read,), start_new_session=True, env=child_environment(), **kwargs
        )

    def close(self) -> None:
        """Children that are left end where a watchdog guards them."""
        os.close(self._read)
        os.close(self._write)


class NodeProcess:
    """A region's node. `metrics`: where it serves those, if it does."""

    def __init__(self, region: str, address: str, directory: Path, command: Sequence[str], metrics: str | None = None) -> None:
        self.region = region
        self.address = address
        self.metrics = metrics
        self.command = tuple(command)
        self.data = directory / "data" / region
        self.log = directory / "logs" / f"{region}.log"
        self.state: State = "stopped"
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._log_offset = 0
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return self.process.pid if self.process is not None and self.is_alive else None

    @property
    def is_alive(self) -> bool:
        """Whether the process exists, running or paused."""
        return self.process is not None and self.process.returncode is None

    async def start(self, lifeline: Lifeline) -> None:
        """Start the process; it is `running` once the supervisor has seen it ready."""
        assert not self.is_alive, f"{self.region} runs already"
        try:
            self.data.parent.mkdir(parents=True, exist_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._log_offset = log.tell()
                self.state = "starting"
                self.starts += 1
                self._started_at = time.monotonic()
                self.process = await lifeline.start(self.command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as e:
            self.state = "stopped"
            raise StorageError(f"the node of {self.region} cannot be started: {e}") from e

    async def stop(self, state: State, *, graceful: bool = True) -> None:
        """End the process, by SIGTERM if `graceful`, and after a grace by SIGKILL; it is reaped when this returns."""
        self.state = state
        if self.process is None or self.process.returncode is not None:
            return
        if graceful:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await self.process.wait()
        self._signal(signal.SIGKILL)
        await self.process.wait()

    def kill(self) -> None:
        """End the process now."""
        self._signal(signal.SIGKILL)

    async def pause(self) -> None:
        """Stop the process where it stands (SIGSTOP)."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + 5.0
        while self._is_scheduled() and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        self.state = "paused"

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)
        self.state = "running"

    def _last_words(self) -> str:
        """The last line that the node logged since its start."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(self._log_offset, self.log.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].strip()[:500].removeprefix("crdtkv: ")
        return f"nothing in its log, {self.log}"

    def describe_end(self) -> str:
        """How the process ended; if by itself, with the last it had to say."""
        code = None if self.process is None else self.process.returncode
        if code is None:
            return "did not end"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}: {self._last_words()}"

    def to_wire(self) -> dict[str, Any]:
        """What status and `cluster.json` say."""
        found = {"address": self.address, "pid": self.pid, "state": self.state, "data": str(self.data), "log": str(self.log)}
        return found if self.metrics is None else {**found, "metrics": self.metrics}

    @property
    def uptime_s(self) -> float | None:
        """Seconds since its start."""
        return round(time.monotonic() - self._started_at, 3) if self.is_alive else None

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def _is_scheduled(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False  # gone, or a system without /proc, where the signal has to be taken for the deed
        return stat.rpartition(")")[2].split()[0] not in "Tt"


def child_environment() -> dict[str, str]:
    """The environment of nodes: no settings that a user's shell has for other commands, and this very crdtkv."""
    environment: dict[str, str] = {k: v for k, v in os.environ.items() if not k.startswith("CRDTKV_") or k in _PASSED_ON}
    root = Path(__file__).parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    return environment


_PASSED_ON: Final = frozenset({"CRDTKV_DEBUG", "CRDTKV_LAUNCHER_WATCHDOG"})


def choose_ports(regions: Sequence[str], base_port: int | None) -> Mapping[str, int]:
    """A port for each region: from `base_port` on, or free ones.

    Raises:
        ConfigError: one of the ports asked for is in use.
    """
    if base_port is not None:
        for i, region in enumerate(regions):
            if not _is_free(base_port + i):
                raise ConfigError(
                    f"port {base_port + i} (for region {region}) is in use: stop what listens there, or choose another --base-port",
                    port=base_port + i,
                )
        return {region: base_port + i for i, region in enumerate(regions)}
    free = (port for port in random.sample(_PORTS, len(_PORTS)) if _is_free(port))
    chosen = dict(zip(regions, free, strict=False))
    if len(chosen) < len(regions):
        raise ClusterError(f"no free ports between {_PORTS.start} and {_PORTS.stop}: give --base-port")
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
