"""A local cluster as an object, for tests, demos and programs: the supervisor runs beside the caller and ends with it.

    with LocalCluster(("us", "eu"), latency_ms={("us", "eu"): 46}) as cluster:
        client = crdtkv.connect(cluster.address("us"))
        cluster.partition("us", "eu")

The caller may have loaded gRPC, or have threads: nodes are started by the supervisor, a fresh process, and never by the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from crdtkv import interrupts
from crdtkv.cluster import control
from crdtkv.cluster.control import ClusterError, ClusterNotRunningError
from crdtkv.cluster.process import STOP_GRACE_S, child_environment
from crdtkv.cluster.spec import DEFAULT_REGIONS, ClusterSpec, added, check_known, default_delays, dir_flag, without
from crdtkv.core.causality import check_region
from crdtkv.errors import ConfigError, CrdtkvError, RegionRemovedError, RegionUnavailableError

DOWN_TIMEOUT_S: Final = STOP_GRACE_S + 10.0


class LocalCluster:
    """Regions on this machine: real node processes and an emulated WAN. A context manager; not for use by several threads at once.

    Args:
        regions: their names.
        latency_ms: one-way delay by pair, each pair named in one order (both ways alike) or in both; a pair that is not named has its
            published delay, or none. A number is the delay of all pairs. None: published delays.
        jitter_ms: added to each delay, uniform from 0 to this.
        bytes_per_s: limit of each direction of each pair.
        directory: for data, logs and `cluster.json`; kept. None: a temporary one, removed by `stop`.
        base_port, engine, durability, restart_crashed, direct, metrics, ready_timeout_s, node_command: as in `ClusterSpec`.
    """

    def __init__(
        self,
        regions: Iterable[str] = DEFAULT_REGIONS,
        *,
        latency_ms: Mapping[tuple[str, str], float] | float | None = None,
        jitter_ms: float = 0.0,
        bytes_per_s: float | None = None,
        directory: str | Path | None = None,
        **settings: Any,
    ) -> None:
        names = tuple(regions)
        self._temporary = directory is None
        self._directory = Path(tempfile.mkdtemp(prefix="crdtkv-") if directory is None else directory)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._addresses: dict[str, str] = {}
        try:
            self.spec = ClusterSpec(
                regions=names,
                directory=self._directory.absolute(),
                delay_ms=_delays(names, latency_ms),
                jitter_ms=jitter_ms,
                bytes_per_s=bytes_per_s,
                **settings,
            )
        except BaseException:
            self._remove_temporary()
            raise

    @property
    def regions(self) -> tuple[str, ...]:
        """Their names, in order."""
        return self.spec.regions

    @property
    def directory(self) -> Path:
        """Where data, logs and `cluster.json` are."""
        return self._directory

    def start(self) -> Self:
        """Start everything; returns when all peer links are up.

        Raises:
            CrdtkvError: it did not start; nothing is left running.
        """
        assert self._supervisor is None, "started already"
        try:
            with interrupts.held():
                self._supervisor, self._addresses = launch(self.spec, owned=True)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything; returns when nothing runs any more. Idempotent."""
        with interrupts.held():
            supervisor, self._supervisor = self._supervisor, None
            try:
                if supervisor is not None:
                    try:
                        down(self._directory)
                    finally:
                        _end(supervisor)
            finally:
                self._remove_temporary()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def addresses(self) -> dict[str, str]:
        """Region → `host:port` for clients; the same across restarts of a node."""
        return dict(self._addresses)

    def address(self, region: str) -> str:
        """One region's `host:port`."""
        return self._addresses[region]

    def log(self, region: str) -> Path:
        """What a node has written."""
        return self._directory / "logs" / f"{region}.log"

    def partition(self, region: str, other: str | None = None, *, one_way: bool = False, half_open: bool = False) -> None:
        """Cut a region from another, or from all others; clients still reach it.

        Connections are reset and refused. With `half_open` they stay up and silent; with `one_way` nothing from `region` arrives at
        `other`, while the other direction works.
        """
        self._call("partition", region=region, other=other, one_way=one_way, half_open=half_open)

    def heal(self, region: str | None = None, other: str | None = None, *, wait: bool = True) -> None:
        """Undo partitions: of a pair, of a region, or all. With `wait`, returns when the peer links are up again."""
        self._call("heal", region=region, other=other, wait=wait)

    def shape(
        self,
        region: str,
        other: str | None = None,
        *,
        delay_ms: float | None = None,
        jitter_ms: float | None = None,
        bytes_per_s: float | None = None,
        one_way: bool = False,
    ) -> None:
        """Change what is given of the links between a region and another, or all others; `bytes_per_s=0` is no limit."""
        self._call("shape", region=region, other=other, delay_ms=delay_ms, jitter_ms=jitter_ms, bytes_per_s=bytes_per_s, one_way=one_way)

    def add(self, region: str, latency_ms: Mapping[str, float] | float | None = None) -> None:
        """One region more: recorded as a member, and its node started with an empty directory; returns when it is linked.

        Args:
            latency_ms: one-way delays to the others, by name, or of all; what is not given has its published delay, or none.
        """
        self._addresses[region] = add_region(self._directory, region, latency_ms)
        self.spec = added(self.spec, region, latency_ms)

    def remove(self, region: str) -> None:
        """Stop a region's node and forget it; its data stays. What its members think of it is theirs: see `crdtkv region remove`."""
        self._call("remove", region=region)
        del self._addresses[region]
        self.spec = without(self.spec, region)

    def kill(self, region: str) -> None:
        """SIGKILL a node."""
        self._call("kill", region=region)

    def stop_node(self, region: str) -> None:
        """SIGTERM a node, which hands over what it can and ends; returns when it has."""
        self._call("stop", region=region)

    def restart(self, region: str) -> None:
        """Stop a node, if it runs, and start it; returns when it is ready and linked to all that it can reach."""
        self._call("restart", region=region)

    def pause(self, region: str) -> None:
        """SIGSTOP a node: its connections stay up and silent."""
        self._call("pause", region=region)

    def resume(self, region: str) -> None:
        """SIGCONT a paused node."""
        self._call("resume", region=region)

    def status(self) -> dict[str, Any]:
        """Processes, what each node says of itself, and the WAN's links, as plain values."""
        status: dict[str, Any] = self._call("status")
        return status

    def _call(self, op: str, **args: Any) -> Any:
        return control.call(self._directory, op, timeout_s=self.spec.ready_timeout_s + DOWN_TIMEOUT_S, **args)

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self._directory, ignore_errors=True)


def launch(spec: ClusterSpec, *, owned: bool) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start a supervisor process and wait until its cluster is ready; returns it and the addresses.

    Args:
        owned: it stops when this process ends (or closes its stdin); else it goes on by itself.
    Raises:
        CrdtkvError: the cluster did not start; nothing is left.
    """
    command = [sys.executable, "-m", "crdtkv.cluster", json.dumps(spec.to_wire()), "owned" if owned else "detached"]
    stdin = subprocess.PIPE if owned else subprocess.DEVNULL
    environment = child_environment()
    # An owned one shares our stderr for what it could not foresee; a detached one must not hold a terminal or a pipe open.
    stderr = None if owned else subprocess.DEVNULL
    supervisor = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True, env=environment)
    try:
        assert supervisor.stdout is not None
        with supervisor.stdout as stdout:
            interrupts.wait_readable(stdout.fileno())
            line = stdout.readline()
        if not line:
            raise ClusterError(f"the supervisor ended with exit status {supervisor.wait()} before the cluster was ready")
        addresses: dict[str, str] = control.decode_answer(line)
    except BaseException:
        supervisor.terminate()
        _end(supervisor)
        raise
    return supervisor, addresses


def add_region(directory: Path, region: str, latency_ms: Mapping[str, float] | float | None = None) -> str:
    """Record a region as a member at a node that runs, and start its node; returns its address, when it is linked to all others.

    Nobody is told where it listens: the recorded address is one for all, and here each region has its own way to it, through the WAN. So
    it dials the others, who find it by their own `--peer` from their next start on.

    Raises:
        CrdtkvError: the region is there already, nobody runs who could record it, or it did not start.
    """
    from crdtkv.client.views import NodeSide

    found = control.ClusterFile.read(directory)
    check_region(region)
    if region in found.regions:
        raise ConfigError(f"region {region} is in this cluster already: it has {', '.join(found.regions)}", region=region)
    for other in latency_ms if isinstance(latency_ms, Mapping) else ():
        check_known(other, found.regions)
    running = [str(node["address"]) for node in found.regions.values() if node["state"] == "running"]
    if not running:
        raise ClusterError("no node runs that could record the region: start one with `crdtkv cluster restart`", region=region)
    for node in running:
        try:
            with NodeSide(node) as side:
                side.change_regions("add", (region,))
            break
        except (RegionUnavailableError, RegionRemovedError):  # it is being drained, say: another may record it
            if node is running[-1]:
                raise
    try:
        address: str = control.call(directory, "add", region=region, latency=latency_ms)
    except ClusterError as e:
        there = next(name for name, node in found.regions.items() if node["address"] in running)
        remove = f"crdtkv region remove {region} --force --region {there}{dir_flag(directory)}"
        again = f"{region} is recorded as a member all the same: try again, or `{remove}`"
        raise ClusterError(f"{e.message}; {again}", **e.details) from e
    return address


def down(directory: Path) -> None:
    """Stop the cluster of a directory; returns when nothing of it runs. A supervisor that does not answer is killed, and its nodes with it.

    Raises:
        ClusterNotRunningError: none runs there.
    """
    supervisor_pid = None
    with contextlib.suppress(CrdtkvError):
        supervisor_pid = control.ClusterFile.read(directory).supervisor_pid
    try:
        control.call(directory, "down", timeout_s=DOWN_TIMEOUT_S)
    except ClusterNotRunningError:
        raise
    except ClusterError:
        if not control.wait_gone(directory, supervisor_pid, timeout_s=0.0) and supervisor_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor_pid, signal.SIGKILL)
    if not control.wait_gone(directory, supervisor_pid):
        raise ClusterError(f"the supervisor of {directory} (process {supervisor_pid}) does not end")


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Reap a supervisor that is stopping; kill it if it takes too long."""
    if supervisor.stdin is not None:
        supervisor.stdin.close()
    try:
        supervisor.wait(DOWN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def _delays(regions: tuple[str, ...], latency_ms: Mapping[tuple[str, str], float] | float | None) -> dict[tuple[str, str], float]:
    delays = default_delays(regions)
    if isinstance(latency_ms, (int, float)):
        return dict.fromkeys(delays, float(latency_ms))
    given = latency_ms or {}
    for (a, b), delay_ms in given.items():
        delays[a, b] = delay_ms
        if (b, a) not in given:
            delays[b, a] = delay_ms
    return delays
