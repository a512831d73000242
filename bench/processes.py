"""Node and echo processes for the benchmarks, started as a user starts them and stopped whatever happens.

Children are started before this process loads grpc: a fork under its threads is not safe.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import free_port

READY_S = 30
CRDTKV = [sys.executable, "-m", "crdtkv"]


@contextmanager
def process(command: Sequence[str], *, log: Path) -> Iterator[int]:
    """A child that has printed its first line, which says that it is ready; yields its pid."""
    with log.open("wb") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
        try:
            assert child.stdout is not None
            if not child.stdout.readline():
                raise SystemExit(f"{' '.join(command)}: exited before it was ready:\n{log.read_text()}")
            yield child.pid
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(READY_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


@contextmanager
def scratch() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="crdtkv-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def nodes(regions: Sequence[str], *, durability: str, parent: Path) -> Iterator[Mapping[str, str]]:
    """One node a region, each a peer of the others; yields region → address."""
    addresses = {region: f"127.0.0.1:{free_port()}" for region in regions}
    with ExitStack() as started:
        for region in regions:
            home = parent / f"{region}-{durability}"
            home.mkdir(parents=True)
            config = home / "node.toml"
            config.write_text(configuration(region, addresses, durability, home / "data"), encoding="utf-8")
            started.enter_context(process([*CRDTKV, "node", "--config", str(config)], log=home / "log"))
        yield addresses


def configuration(region: str, addresses: Mapping[str, str], durability: str, data: Path) -> str:
    """A node's file."""
    peers = [f'{peer} = "{address}"' for peer, address in addresses.items() if peer != region]
    return "\n".join(
        [
            f'region = "{region}"',
            f'listen = "{addresses[region]}"',
            f'data = "{data}"',
            f'durability = "{durability}"',
            "[log]",
            'level = "warning"',
            "[peers]",
            *peers,
            "",
        ]
    )


@contextmanager
def echo(parent: Path) -> Iterator[str]:
    """A bare gRPC server (`echo_server.py`) in its own process; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    server = Path(__file__).with_name("echo_server.py")
    with process([sys.executable, str(server), address], log=parent / f"echo-{os.getpid()}.log"):
        yield address
