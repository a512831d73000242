"""Nodes, bare servers and probes in processes of their own, started as a user starts them and stopped whatever happens.

Children are started before this process loads grpc: a fork under its threads is not safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.peers.base import free_port, stop

CRDTKV: Final = [sys.executable, "-m", "crdtkv"]
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def process(command: Sequence[str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has printed its first line, which says that it is ready.

    Raises:
        RuntimeError: it ended before that; with what it wrote.
    """
    with log.open("wb") as errors:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        assert child.stdout is not None
        if not child.stdout.readline():
            raise RuntimeError(f"{' '.join(command)}: ended before it was ready: {log.read_text(errors='replace')[-600:]}")
        yield child
    finally:
        stop(child)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Node:
    """A running node."""

    def __init__(self, region: str, address: str, pid: int) -> None:
        self.region, self.address, self.pid = region, address, pid

    def cpu_s(self) -> float:
        """What it has computed so far, in seconds of one core."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@contextlib.contextmanager
def nodes(regions: Sequence[str], parent: Path, *, durability: str = "async", engine: str = "rocksdb") -> Iterator[dict[str, Node]]:
    """One node a region, each a peer of the others, linked directly."""
    addresses = {region: f"127.0.0.1:{free_port()}" for region in regions}
    started: dict[str, Node] = {}
    with ExitStack() as stack:
        for region in regions:
            home = parent / f"{region}-{durability}-{addresses[region].rpartition(':')[2]}"
            home.mkdir(parents=True)
            config = home / "node.toml"
            config.write_text(_configuration(region, addresses, durability, engine, home / "data"), encoding="utf-8")
            child = stack.enter_context(process([*CRDTKV, "node", "--config", str(config)], log=home / "log"))
            started[region] = Node(region, addresses[region], child.pid)
        yield started


def _configuration(region: str, addresses: Mapping[str, str], durability: str, engine: str, data: Path) -> str:
    lines = [f'region = "{region}"', f'listen = "{addresses[region]}"', f'data = "{data}"', f'durability = "{durability}"']
    lines += [f'engine = "{engine}"', "[log]", 'level = "warning"', "[peers]"]
    lines += [f'{peer} = "{address}"' for peer, address in addresses.items() if peer != region]
    return "\n".join([*lines, ""])


@contextlib.contextmanager
def module(name: str, *arguments: str, parent: Path) -> Iterator[Worker]:
    """A module of this package as a child that takes commands."""
    log = parent / f"{name}-{'-'.join(arguments[:2])}-{free_port()}.log".replace("/", "_")
    with process([sys.executable, "-m", name, *arguments], log=log) as child:
        yield Worker(child, log)


class Worker:
    """A child that answers a line of JSON with a line of JSON."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path) -> None:
        self._child, self._log = child, log

    def ask(self, **command: Any) -> None:
        """Send a command; `answer` waits for what it gives."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(command).encode() + b"\n")
        self._child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest command that has none yet.

        Raises:
            RuntimeError: the child has ended; with what it wrote.
        """
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._log.stem} ended: {self._log.read_text(errors='replace')[-800:]}")
        found: dict[str, Any] = json.loads(line)
        return found
