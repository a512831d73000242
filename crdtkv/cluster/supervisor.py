"""Runs a local cluster: one real `crdtkv node` process per region, the WAN between them, and a control socket.

A process of its own, or the foreground of `crdtkv cluster up`; it never loads gRPC, since it starts processes all its life (`probe.py`
asks the nodes). All state lives in one event loop; requests that change something are served one at a time, and answered when they are in
effect. The order of a start: lock the directory, take the ports, open the proxies, listen for control, start the nodes, wait until every
pair that can be linked is, write `cluster.json` and `last-run.json`. A stop undoes all of it, from wherever the start got to.

Nothing outlives the supervisor: it stops its nodes itself when told to (`down`, SIGINT, SIGTERM, SIGHUP, the end of its owner), and the
kernel or a watchdog kills them if it dies without a chance to (`launcher.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import combinations
from typing import Any, Final

from crdtkv.cluster import control
from crdtkv.cluster.control import ClusterError, ClusterFile
from crdtkv.cluster.last_run import LastRun
from crdtkv.cluster.probe import Prober
from crdtkv.cluster.process import HOST, Lifeline, NodeProcess, choose_ports
from crdtkv.cluster.spec import ClusterSpec, added, check_known, dir_flag, without
from crdtkv.cluster.wan import Wan
from crdtkv.errors import ConfigError, CrdtkvError, DeadlineExceededError, StorageError
from crdtkv.interrupts import Signals

CLUSTER_NAME: Final = "local"
STOPPED_BY: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S: Final = 0.05
_RESTART_BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

Handler = Callable[..., Awaitable[Any]]
Report = Callable[[str], None]


class Supervisor:
    """A local cluster, from start to stop; use once.

    Args:
        spec: what to run.
        report: told in a line what happens: crashes, cuts, requests.
    """

    def __init__(self, spec: ClusterSpec, report: Report = lambda line: None) -> None:
        self.spec = spec
        self.directory = spec.directory.absolute()
        self.nodes: dict[str, NodeProcess] = {}
        self._peers: dict[str, dict[str, str]] = {}
        """By region, where its node finds the others: the proxies of its links."""
        self._report = report
        self._wan = Wan(spec.regions)
        self._lifeline = Lifeline()
        self._prober = Prober(self._start_prober)
        self._changing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._ready = False
        self._handlers: dict[str, Handler] = {
            "status": self._status,
            "add": self._add,
            "remove": self._remove,
            "partition": self._partition,
            "heal": self._heal,
            "shape": self._shape,
            "kill": self._kill,
            "stop": self._stop_node,
            "restart": self._restart,
            "pause": self._pause,
            "resume": self._resume,
        }

    def stop(self) -> None:
        """Have `run` stop everything and return; asked a second time, without grace."""
        if self._stop.is_set():
            for node in self.nodes.values():
                node.kill()
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        """It was asked to stop."""
        return self._stop.is_set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start, call `on_ready` when all peer links are up, and serve until `stop`; nothing is left when this returns.

        Raises:
            CrdtkvError: the cluster could not be started.
        """
        spec, names = self.spec, self.spec.regions
        chosen = choose_ports((*names, *(f"{name}, metrics" for name in names if spec.metrics)), spec.base_port)
        ports = {name: chosen[name] for name in names}
        self._metrics = {name: f"{HOST}:{chosen[f'{name}, metrics']}" for name in names if spec.metrics}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StorageError(f"directory {self.directory} cannot be made: {e.strerror}") from e
        with control.supervisor_lock(self.directory) as free:
            if not free:
                raise ClusterError(
                    f"a cluster runs in {spec.directory} already: stop it with `crdtkv cluster down{dir_flag(spec.directory)}`, or"
                    " choose another --dir"
                )
            (self.directory / control.FILE_NAME).unlink(missing_ok=True)
            socket_path = control.socket_path(self.directory)
            socket_path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._accept, socket_path, limit=control.LINE_BYTES_MAX)
            socket_path.chmod(0o600)
            try:
                await self._until_stopped(self._start(ports, on_ready))
            finally:
                server.close()
                await self._stop_everything()
                (self.directory / control.FILE_NAME).unlink(missing_ok=True)
                socket_path.unlink(missing_ok=True)
        self._stopped.set()  # whoever asked for `down` hears of it when even the lock is free
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=1.0)
            for connection in late:
                connection.cancel()

    # -- start and stop ---------------------------------------------------------------------------------------------

    async def _until_stopped(self, start: Awaitable[None]) -> None:
        """Start, then wait for the stop, which may come while still starting."""
        starting = asyncio.ensure_future(start)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _start(self, ports: Mapping[str, int], on_ready: Callable[[], None]) -> None:
        spec = self.spec
        self._shape_as_given(self._all_ways(spec.regions))
        async with self._changing:
            for region, port in ports.items():
                self.nodes[region] = NodeProcess(region, f"{HOST}:{port}", self.directory, (), self._metrics.get(region))
            for region, other in self._all_ways(ports):
                await self._connect(region, other)
            self._set_commands()
            for node in self.nodes.values():
                await self._start_node(node)
            await self._wait_ready(self.nodes)
            self._ready = True
            self._write_file()
            self._note_last_run()
        on_ready()

    def _shape_as_given(self, ways: Iterable[tuple[str, str]]) -> None:
        spec = self.spec
        for source, target in ways:
            delay_ms = spec.delay_ms.get((source, target), 0.0)
            self._wan.shape(source, target, delay_ms=delay_ms, jitter_ms=spec.jitter_ms, bytes_per_s=spec.bytes_per_s)

    async def _connect(self, region: str, other: str) -> None:
        """Where `region` finds `other`."""
        host, _, port = self.nodes[other].address.rpartition(":")
        at = (host, int(port)) if self.spec.direct else await self._wan.open(region, other, (host, int(port)))
        self._peers.setdefault(region, {})[other] = f"{at[0]}:{at[1]}"

    def _set_commands(self) -> None:
        """What each node is started with, from its next start on."""
        for region, node in self.nodes.items():
            node.command = self._command(node, self._peers.get(region, {}))

    async def _stop_everything(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(node.stop("stopped") for node in self.nodes.values()))
        await self._prober.close()
        await self._wan.close()
        self._lifeline.close()

    def _command(self, node: NodeProcess, peers: Mapping[str, str]) -> tuple[str, ...]:
        program = self.spec.node_command or (sys.executable, "-m", "crdtkv", "node")
        arguments = ["--region", node.region, "--listen", node.address, "--cluster", CLUSTER_NAME]
        if self.spec.engine != "memory":
            # The tokens stay with the cluster's directory, which is made and thrown away as a whole.
            arguments += ["--data", str(node.data), "--instance-dir", str(self.directory / "instances")]
        for region, address in peers.items():
            arguments += ["--peer", f"{region}={address}"]
        if self.spec.config is not None:
            arguments += ["--config", str(self.spec.config)]
        if node.metrics is not None:
            arguments += ["--metrics", node.metrics]
        for name in ("engine", "durability"):
            if (value := getattr(self.spec, name)) is not None:
                arguments += [f"--{name}", value]
        return (*program, *arguments)

    async def _start_node(self, node: NodeProcess) -> None:
        await node.start(self._lifeline)
        self._spawn(self._watch(node))

    async def _start_prober(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        with (self.directory / "logs" / "probe.log").open("ab") as log:
            return await self._lifeline.start((sys.executable, "-m", "crdtkv.cluster.probe"), stdin=pipe, stdout=pipe, stderr=log)

    async def _watch(self, node: NodeProcess) -> None:
        """Notice the end of a process that nobody asked for, report it, and start the node again if so configured."""
        process = node.process
        assert process is not None
        await process.wait()
        if node.process is not process or node.state not in ("starting", "running", "paused"):
            return
        was_ready = node.state != "starting"
        node.state = "crashed"
        if not self._ready:
            return  # the start reports it
        self._report(f"{node.region} {node.describe_end()}")
        self._write_file()
        if not self.spec.restart_crashed:
            return
        delay_s = _RESTART_BACKOFF_S[0 if was_ready else min(node.starts, len(_RESTART_BACKOFF_S)) - 1]
        await asyncio.sleep(delay_s)
        async with self._changing:
            if node.state == "crashed":
                await self._start_node(node)
                with contextlib.suppress(CrdtkvError):  # its end is reported by the next watch
                    await self._wait_ready([node.region])
                    self._report(f"{node.region} runs again as process {node.pid}")
                self._write_file()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _write_file(self) -> None:
        ClusterFile(
            regions={region: node.to_wire() for region, node in self.nodes.items()},
            supervisor_pid=os.getpid(),
            control=str(control.socket_path(self.directory)),
            delay_ms={f"{a}-{b}": delay for (a, b), delay in self.spec.delay_ms.items()},
        ).write(self.directory)

    def _note_last_run(self) -> None:
        """Apart from `_write_file`, which is also called while a region is being added that may not stay."""
        LastRun.of(self.spec).write(self.directory)

    # -- readiness --------------------------------------------------------------------------------------------------

    async def _wait_ready(self, regions: Iterable[str]) -> None:
        """Wait until these nodes answer and every link between one of them and a node that runs, over a WAN that is open, is up."""
        wanted = tuple(regions)
        missing = "?"
        try:
            async with asyncio.timeout(self.spec.ready_timeout_s):
                while missing:
                    missing = await self._not_ready(wanted)
                    if missing:
                        await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DeadlineExceededError(
                f"not ready within {self.spec.ready_timeout_s:g} s: {missing}; the logs are in {self.directory / 'logs'}"
            ) from None

    async def _not_ready(self, wanted: tuple[str, ...]) -> str:
        """What is missing, in words; empty if nothing is."""
        for region in wanted:
            node = self.nodes[region]
            if node.state == "crashed":
                raise ClusterError(f"the node of {region} {node.describe_end()}", region=region)
        alive = [r for r, node in self.nodes.items() if node.state in ("starting", "running")]
        answers = dict(zip(alive, await asyncio.gather(*(self._ask(r) for r in alive)), strict=True))
        for region in wanted:
            answer = answers.get(region)
            if region not in alive:
                continue
            if answer is None or not answer["ready"]:
                return f"{region} does not answer as ready"
            self.nodes[region].state = "running"
            for warning in answer.get("warnings", ()):
                if "removed from the cluster" in warning:  # it runs, and nobody will ever link to it
                    others = ",".join(r for r in alive if r != region)
                    hint = "" if self._ready or not others else f"; leave it out: --regions {others}"
                    raise ClusterError(f"{region} runs, alone: {warning}{hint}", region=region)
        if self.spec.node_command is None:
            for a, b in combinations(alive, 2):
                if (a in wanted or b in wanted) and (self.spec.direct or self._wan.is_open(a, b)):
                    for this, other in ((a, b), (b, a)):
                        answer = answers[this]
                        if answer is None or not answer["peers"].get(other, {}).get("connected"):
                            return f"{this} has no link to {other}"
        return ""

    async def _ask(self, region: str) -> Mapping[str, Any] | None:
        """What the node says of itself; None if it does not answer."""
        node = self.nodes[region]
        if self.spec.node_command is None:
            return await self._prober.ask(node.address)
        try:
            host, _, port = node.address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return None
        writer.close()
        return {"ready": True, "peers": {}}

    # -- control ----------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while line := await reader.readline():
                writer.write(await self._answer(line))
                await writer.drain()
                if self._stopped.is_set():
                    break
        except (OSError, ValueError):  # gone, or a line past the limit
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            op, args = request["op"], request["args"]
            if op == "down":
                self._report("down")
                self.stop()
                await self._stopped.wait()
                return control.encode({"result": None})
            handler = self._handlers.get(op)
            if handler is None:
                raise ConfigError(f"unknown request {op!r}: known are {', '.join(self._handlers)} and down")
            serving = asyncio.ensure_future(handler(**args))
            stopping = asyncio.ensure_future(self._stop.wait())
            try:
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    raise ClusterError(f"the cluster is stopping; {op} was not finished", maybe_applied=True)
                return control.encode({"result": serving.result()})
            finally:
                for task in (serving, stopping):
                    task.cancel()
        except CrdtkvError as e:
            return control.encode_error(e)
        except (ValueError, KeyError, TypeError) as e:
            return control.encode_error(ConfigError(f"not a request: {e}"))

    async def _status(self) -> dict[str, Any]:
        alive = [r for r, node in self.nodes.items() if node.state in ("starting", "running")]
        answers = dict(zip(alive, await asyncio.gather(*(self._ask(r) for r in alive)), strict=True))
        return {
            "directory": str(self.directory),
            "supervisor_pid": os.getpid(),
            "ready": self._ready,
            "regions": {
                region: {**node.to_wire(), "starts": node.starts, "uptime_s": node.uptime_s, "node": answers.get(region)}
                for region, node in self.nodes.items()
            },
            "links": [] if self.spec.direct else [asdict(link) for link in self._wan.statistics()],
        }

    async def _add(self, region: str, latency: Mapping[str, float] | float | None = None) -> str:
        """Start the node of one region more; it finds the others, who learn of it from the cluster's own records. Returns its address."""
        async with self._changing:
            before, spec = self.spec, added(self.spec, region, latency)
            ports = choose_ports((region, f"{region}, metrics") if spec.metrics else (region,), None)
            if spec.metrics:
                self._metrics[region] = f"{HOST}:{ports[f'{region}, metrics']}"
            self.spec = spec
            self._wan.add(region)
            node = self.nodes[region] = NodeProcess(region, f"{HOST}:{ports[region]}", self.directory, (), self._metrics.get(region))
            ways = [pair for pair in self._all_ways(spec.regions) if region in pair]
            self._shape_as_given(ways)
            try:
                for a, b in ways:
                    await self._connect(a, b)
                self._set_commands()
                await self._start_node(node)
                await self._wait_ready([region])
            except BaseException:
                await self._forget(region)
                self.spec = before
                raise
            self._write_file()
            self._note_last_run()
            self._report(f"added {region} as process {node.pid}")
            return node.address

    async def _remove(self, region: str) -> None:
        async with self._changing:
            self.spec = without(self.spec, region)
            await self._forget(region)
            self._write_file()
            self._note_last_run()
            self._report(f"removed {region}")

    async def _forget(self, region: str) -> None:
        """Stop a node and drop what leads to it. Its data and its log stay."""
        await self.nodes[region].stop("stopped")
        self._wan.remove(region)
        del self.nodes[region]
        self._metrics.pop(region, None)
        self._peers.pop(region, None)
        for peers in self._peers.values():
            peers.pop(region, None)
        self._set_commands()

    async def _partition(self, region: str, other: str | None = None, *, one_way: bool = False, half_open: bool = False) -> None:
        if one_way and half_open:
            raise ConfigError("a partition is either one-way or half-open")
        async with self._changing:
            for a, b in self._pairs(region, other):
                if one_way:
                    self._wan.hold(a, b)
                elif half_open:
                    self._wan.hold(a, b)
                    self._wan.hold(b, a)
                else:
                    self._wan.cut(a, b)
            kind = " one way" if one_way else " half-open" if half_open else ""
            self._report(f"cut{kind}: {region} from {other or 'all others'}")

    async def _heal(self, region: str | None = None, other: str | None = None, *, wait: bool = True) -> None:
        async with self._changing:
            regions = self.spec.regions if region is None else (region,)
            pairs = {frozenset(pair): pair for r in regions for pair in self._pairs(r, other)}
            for a, b in pairs.values():
                self._wan.heal(a, b)
            self._report(f"healed: {'all' if region is None else region}{'' if other is None else ' and ' + other}")
            if wait:
                await self._wait_ready([r for r, node in self.nodes.items() if node.state == "running" and any(r in p for p in pairs)])

    async def _shape(
        self,
        region: str,
        other: str | None = None,
        *,
        delay_ms: float | None = None,
        jitter_ms: float | None = None,
        bytes_per_s: float | None = None,
        one_way: bool = False,
    ) -> None:
        async with self._changing:
            for a, b in self._pairs(region, other):
                for source, target in ((a, b),) if one_way else ((a, b), (b, a)):
                    self._wan.shape(source, target, delay_ms=delay_ms, jitter_ms=jitter_ms, bytes_per_s=bytes_per_s)
            self._report(f"link changed: {region} to {other or 'all others'}")

    async def _kill(self, region: str) -> None:
        async with self._changing:
            node = self._node(region)
            if not node.is_alive:
                raise ClusterError(f"the node of {region} does not run: it {node.describe_end()}", region=region)
            await node.stop("killed", graceful=False)
            self._write_file()
            self._report(f"killed {region}")

    async def _stop_node(self, region: str) -> None:
        async with self._changing:
            node = self._node(region)
            if not node.is_alive:
                raise ClusterError(f"the node of {region} does not run: it {node.describe_end()}", region=region)
            await node.stop("stopped")
            self._write_file()
            self._report(f"stopped {region}")

    async def _restart(self, region: str) -> int:
        async with self._changing:
            node = self._node(region)
            await node.stop("stopped")
            await self._start_node(node)
            try:
                await self._wait_ready([region])
            finally:
                self._write_file()
            self._report(f"restarted {region} as process {node.pid}")
            assert node.pid is not None
            return node.pid

    async def _pause(self, region: str) -> None:
        async with self._changing:
            node = self._node(region)
            if not node.is_alive:
                raise ClusterError(f"the node of {region} does not run: start it with restart", region=region)
            await node.pause()
            self._write_file()
            self._report(f"paused {region}")

    async def _resume(self, region: str) -> None:
        async with self._changing:
            node = self._node(region)
            if node.state != "paused":
                raise ClusterError(f"the node of {region} is not paused: it is {node.state}", region=region)
            node.resume()
            self._write_file()
            self._report(f"resumed {region}")

    def _node(self, region: str) -> NodeProcess:
        return self.nodes[check_known(region, self.spec.regions)]

    def _pairs(self, region: str, other: str | None) -> list[tuple[str, str]]:
        """(region, other), or region with each of the others."""
        if self.spec.direct:
            raise ConfigError("this cluster was started with direct links, without the WAN emulator: there is nothing to cut or shape")
        check_known(region, self.spec.regions)
        if other is None:
            return [(region, r) for r in self.spec.regions if r != region]
        check_known(other, self.spec.regions)
        if other == region:
            raise ConfigError(f"{region}-{other} names one region twice", region=region)
        return [(region, other)]

    @staticmethod
    def _all_ways(regions: Iterable[str]) -> list[tuple[str, str]]:
        names = tuple(regions)
        return [(a, b) for a in names for b in names if a != b]


async def supervise(
    spec: ClusterSpec, on_ready: Callable[[Supervisor], None], report: Report, signals: Signals, *, owner: int | None = None
) -> None:
    """Run a cluster until a signal (`STOPPED_BY`), `down`, or the end of the owner (EOF on the descriptor `owner`)."""
    supervisor = Supervisor(spec, report)
    loop = asyncio.get_running_loop()

    def on_owner_gone(descriptor: int) -> None:
        if not os.read(descriptor, 1):
            loop.remove_reader(descriptor)
            if not (supervisor.is_stopping or signals.received):  # else an owner that gives up has asked already, and asks for no more
                supervisor.stop()

    if owner is not None:
        loop.add_reader(owner, on_owner_gone, owner)
    try:
        with signals.told(lambda _: loop.call_soon_threadsafe(supervisor.stop)):
            await supervisor.run(lambda: on_ready(supervisor))
    finally:
        if owner is not None:
            loop.remove_reader(owner)
