"""Rows of replication between nodes: lag, sustained writes, what a cut leaves behind, what peers cost their origin."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from bench.goals.row import Bench, Figures, Row, Side
from bench.judging import Claim
from bench.peers.base import free_port
from bench.peers.nats import Nats
from bench.peers.redis import Redis, RedisServer
from bench.processes import Node, Worker, module, nodes

OURS, SYNC, PROTOTYPE, BARE = "crdtkv", "crdtkv sync", "prototype", "bare stream"
EQUAL_TIMEOUT_S: Final = 180.0
PIPELINE: Final = 1000
_DURABILITY: Final = {
    PROTOTYPE: "none",
    BARE: "none",
    Redis.name: Redis.durability,
    OURS: "process crash (async)",
    SYNC: "machine crash (sync)",
}


class Chain:
    """A writer beside A and a watcher beside B, each a process, and the rounds they are asked for."""

    def __init__(self, writer: Worker, watcher: Worker) -> None:
        self._writer, self._watcher = writer, watcher
        self._rounds = itertools.count(1)

    def run(self, rate: float, seconds: float, *, windows: int = 1, timeout_s: float = 20.0) -> dict[str, Any]:
        """Write on a schedule for so long; figures of what the watcher saw, without the first tenth."""
        return self.finish(self.start(rate, seconds), windows=windows, timeout_s=timeout_s)

    def start(self, rate: float, seconds: float) -> dict[str, Any]:
        """Begin; `finish` waits for the end."""
        begins_ns = time.monotonic_ns() + 50_000_000
        command = {"round": next(self._rounds), "rate": rate, "start_ns": begins_ns, "count": int(rate * seconds)}
        self._writer.ask(**command)
        return command

    def finish(self, command: Mapping[str, Any], *, windows: int = 1, timeout_s: float = 20.0) -> dict[str, Any]:
        """What came of it."""
        wrote = self._writer.answer()
        skip = min(command["count"] // 10, int(command["rate"]))
        self._watcher.ask(**command, skip=skip, timeout_s=timeout_s, windows=windows)
        return {**self._watcher.answer(), **wrote}


def chain(bench: Bench, stack: ExitStack, kind: str, written: str, watched: str) -> Chain:
    """Probes of a kind beside two addresses."""
    watcher = stack.enter_context(module("bench.probe", "watch", kind, watched, parent=bench.directory))
    return Chain(stack.enter_context(module("bench.probe", "write", kind, written, parent=bench.directory)), watcher)


def prototype_chain(bench: Bench, stack: ExitStack) -> Chain:
    """The bare four processes."""
    a, b = (f"127.0.0.1:{free_port()}" for _ in range(2))
    stack.enter_context(module("bench.limits.prototype", "sink", b, parent=bench.directory))
    stack.enter_context(module("bench.limits.prototype", "relay", a, b, parent=bench.directory))
    return chain(bench, stack, PROTOTYPE, a, b)


def bare_chain(bench: Bench, stack: ExitStack) -> Chain:
    """One server between writer and watcher: two bare messages, one after the other."""
    address = f"127.0.0.1:{free_port()}"
    stack.enter_context(module("bench.limits.prototype", "sink", address, parent=bench.directory))
    return chain(bench, stack, PROTOTYPE, address, address)


def crdtkv_chain(bench: Bench, stack: ExitStack, durability: str = "async") -> Chain:
    """Two nodes: written in us, watched in eu."""
    pair = stack.enter_context(nodes(["us", "eu"], bench.directory, durability=durability))
    return chain(bench, stack, "crdtkv", pair["us"].address, pair["eu"].address)


def lag_figures(found: Mapping[str, Any]) -> Figures:
    """What is judged. A write that failed or never arrived is counted, and has waited until the end of the round."""
    figures = {name: found[name] for name in ("p50_us", "p99_us", "max_us", "late_p50_us", "late_p99_us")}
    return {**figures, "failed": found["failed"] + found["unseen"]}


def lag_at(rate: float) -> Callable[[Bench, ExitStack], Mapping[str, Side]]:
    """Lag from when a write was due in A until a watcher in B has it, beside the bare chain and Redis with the same stamps."""

    def open_(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
        seconds = bench.seconds(2.5, quick=1.0)
        chains = {PROTOTYPE: prototype_chain(bench, stack)}
        if bench.has(Redis):
            redis: Any = stack.enter_context(Redis.start(bench.folder(Redis.name), replicated=True))
            chains[Redis.name] = chain(bench, stack, "redis", redis.address, redis.replica)
        if rate <= 1000 and bench.has(Nats):
            nats: Any = stack.enter_context(Nats.start(bench.folder("nats"), replicated=True))
            with_bucket(nats)
            chains[Nats.name] = chain(bench, stack, "nats", nats.address, nats.replica)
        chains[OURS] = crdtkv_chain(bench, stack)
        chains[SYNC] = crdtkv_chain(bench, stack, "sync")
        sides: dict[str, Side] = {name: lambda each=each: lag_figures(each.run(rate, seconds)) for name, each in chains.items()}  # type: ignore[misc]
        if rate <= 1000:
            bare = bare_chain(bench, stack)
            sides[BARE] = lambda: {"one_way_us": bare.run(rate, seconds)["p50_us"] / 2}
        return sides

    return open_


def with_bucket(server: Any) -> None:
    """Make the bucket before anything mirrors it."""

    async def run() -> None:
        async with server.awaited() as store:
            await store.put("first", "x")

    asyncio.run(run())


def lag_50k(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """50 k writes a second for a minute; the worst of six windows stands beside the whole. What never arrived has waited until the end."""
    rate, seconds = 50_000.0, bench.seconds(60.0, quick=5.0)
    bare, ours = prototype_chain(bench, stack), crdtkv_chain(bench, stack)

    def run(each: Chain, length: float) -> Figures:
        found = each.run(rate, length, windows=6, timeout_s=20.0)
        figures = {f"{name}_ms": found[f"{name}_us"] / 1e3 for name in ("p50", "p99", "worst_p50", "worst_p99")}
        return {**figures, "failed": found["failed"] + found["unseen"]}

    return {PROTOTYPE: lambda: run(bare, min(seconds, 12.0)), OURS: lambda: run(ours, seconds)}


def lag_wan(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """The lag laboratory at 1 k/s in both of two regions 40 ms apart: the worst pair's percentiles less the emulated delay."""
    from crdtkv.bench.laboratory import LagSettings
    from crdtkv.bench.run import measure_cluster

    delay_ms = 40.0
    delays = {("us", "eu"): delay_ms, ("eu", "us"): delay_ms}
    settings = LagSettings(rate=1000.0, duration_s=bench.seconds(8.0, quick=2.0), warmup_s=1.0)

    def run() -> Figures:
        found = measure_cluster(delays, ("us", "eu"), settings, {}, lambda _: None, engine="rocksdb", durability="async")
        if any(pair["unseen"] for pair in found["lag"]):
            raise RuntimeError("a write never arrived")
        worst = {name: max(pair[f"{name}_ms"] for pair in found["lag"]) for name in ("p50", "p99")}
        return {f"{name}_overhead_ms": value - delay_ms for name, value in worst.items()}

    return {OURS: run}


# -- until all are equal -----------------------------------------------------------------------------------------------


async def equal_after(addresses: Sequence[str], began: float, *, digests: bool = True) -> float:
    """Seconds since `began` until all have equal version vectors, and digests.

    Raises:
        RuntimeError: they are not after `EQUAL_TIMEOUT_S`, or differ in state at equal vectors.
    """
    from crdtkv.aio import connect

    clients = [connect(address, timeout=60.0) for address in addresses]
    try:
        while time.monotonic() - began < EQUAL_TIMEOUT_S:
            vectors = await asyncio.gather(*(client.vv() for client in clients))
            if all(vv == vectors[0] for vv in vectors[1:]):
                at = time.monotonic() - began
                if digests and len(set(await asyncio.gather(*(client.digest() for client in clients)))) > 1:
                    raise RuntimeError("equal version vectors, unequal digests")
                return at
            await asyncio.sleep(0.01)
        found = [f"{address}: {(await client.status()).to_wire()}" for address, client in zip(addresses, clients, strict=True)]
        raise RuntimeError("\n".join([f"not equal after {EQUAL_TIMEOUT_S:g} s", *found]))
    finally:
        for client in clients:
            await client.close()


def loaders(bench: Bench, stack: ExitStack, kind: str, addresses: Sequence[str]) -> list[Worker]:
    """A loading process beside each address."""
    return [stack.enter_context(module("bench.probe", "load", kind, address, parent=bench.directory)) for address in addresses]


def load_all(
    workers: Sequence[Worker], prefixes: Sequence[str], count: int, *, first: Sequence[int] | None = None, keys: int = 10**9
) -> None:
    """Let all write at once, `count` each; returns when all are answered."""
    firsts = first or [0] * len(workers)
    for worker, prefix, start in zip(workers, prefixes, firsts, strict=True):
        worker.ask(prefix=prefix, first=start, count=count, batch=PIPELINE, keys=keys)
    for worker in workers:
        worker.answer()


def redis_caught_up(server: RedisServer) -> None:
    """Wait until the replica has all of the primary's log."""
    import redis

    primary, follower = (redis.Redis(port=int(address.rpartition(":")[2])) for address in (server.address, server.replica))
    with primary, follower:
        deadline = time.monotonic() + EQUAL_TIMEOUT_S
        while time.monotonic() < deadline:
            there = follower.info("replication")
            linked = there.get("master_link_status") == "up"
            if linked and there["slave_repl_offset"] >= primary.info("replication")["master_repl_offset"]:
                return
            time.sleep(0.01)
    raise RuntimeError("the replica does not catch up")


def sustained(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Three writers, pipelines of a thousand, in three regions; beside three into a Redis primary. The clock stops when all have all."""
    count, keys = bench.scaled(40_000, PIPELINE), 20_000
    sides: dict[str, Side] = {}
    prefixes = ("a/", "b/", "c/")
    if bench.has(Redis):
        server: Any = stack.enter_context(Redis.start(bench.folder(Redis.name), replicated=True))
        theirs = loaders(bench, stack, "redis", [server.address] * 3)

        def redis_side() -> Figures:
            began = time.monotonic()
            load_all(theirs, prefixes, count, keys=keys)
            redis_caught_up(server)
            return {"op_per_s": 3 * count / (time.monotonic() - began)}

        sides[Redis.name] = redis_side

    def ours(durability: str) -> Side:
        three = stack.enter_context(nodes(["us", "eu", "ap"], bench.directory, durability=durability))
        addresses = [node.address for node in three.values()]
        workers = loaders(bench, stack, "crdtkv", addresses)

        def run() -> Figures:
            began = time.monotonic()
            load_all(workers, prefixes, count, keys=keys)
            return {"op_per_s": 3 * count / asyncio.run(equal_after(addresses, began))}

        return run

    sides[OURS] = ours("async")
    sides[SYNC] = ours("sync")
    return sides


def steady(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Three writers at a fixed rate, each in its region; then how long until all three regions are equal."""
    rate, seconds = 5_000, bench.seconds(30.0)
    three = stack.enter_context(nodes(["us", "eu", "ap"], bench.directory))
    addresses = [node.address for node in three.values()]
    writers = [stack.enter_context(module("bench.probe", "write", "crdtkv", address, parent=bench.directory)) for address in addresses]
    rounds = itertools.count(1)

    def run() -> Figures:
        count, start_ns = int(rate * seconds), time.monotonic_ns() + 200_000_000
        for writer in writers:
            writer.ask(round=next(rounds), rate=rate, start_ns=start_ns, count=count)
        failed = sum(writer.answer()["failed"] for writer in writers)
        answered = time.monotonic()
        equal_s = asyncio.run(equal_after(addresses, answered))
        return {"each_per_s": count / (answered - start_ns / 1e9), "equal_ms": equal_s * 1e3, "failed": failed}

    return {OURS: run}


def _flow(signs: Sequence[tuple[float, int]]) -> float:
    """Commits per second between the first sign of progress and the last; all at once counts from the heal."""
    (first_s, first), (last_s, last) = signs[0], signs[-1]
    return (last - first) / (last_s - first_s) if last > first else last / last_s


def drain(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """eu is cut off while both sides write; then healed. Rates once it flows; and lag us → ap, never cut, meanwhile."""
    from crdtkv.cluster import LocalCluster

    count = bench.scaled(100_000, PIPELINE)
    cluster = stack.enter_context(LocalCluster(("us", "eu", "ap"), latency_ms=0.0, engine="rocksdb", durability="async"))
    addresses = cluster.addresses()
    workers = loaders(bench, stack, "crdtkv", [addresses["us"], addresses["eu"]])
    uncut = chain(bench, stack, "crdtkv", addresses["us"], addresses["ap"])
    firsts = itertools.count(0, count)

    async def progress(began: float, before: Mapping[str, int]) -> dict[str, float]:
        """Direction → commits per second between the first and the last sign of progress; `equal`: seconds from the heal."""
        from crdtkv.aio import connect

        async with connect(addresses["us"], timeout=60.0) as us, connect(addresses["eu"], timeout=60.0) as eu:
            signs: dict[str, list[tuple[float, int]]] = {"us_to_eu": [], "eu_to_us": []}
            while True:
                a, b = dict((await us.vv()).items()), dict((await eu.vv()).items())
                now = time.monotonic() - began
                own = {o.partition("@")[0]: o for o in a.keys() | b.keys()}
                for name, there, origin in (("us_to_eu", b, own["us"]), ("eu_to_us", a, own["eu"])):
                    got = there.get(origin, 0) - before[name]
                    if got > 0 and (not signs[name] or signs[name][-1][1] < got):
                        signs[name].append((now, got))
                if all(found and found[-1][1] >= count for found in signs.values()):
                    return {name: count / found[-1][0] for name, found in signs.items()} | {
                        f"{name}_flowing": _flow(found) for name, found in signs.items()
                    }
                if now > EQUAL_TIMEOUT_S:
                    raise RuntimeError(f"not drained after {EQUAL_TIMEOUT_S:g} s")
                await asyncio.sleep(0.005)

    async def vectors() -> dict[str, int]:
        from crdtkv.aio import connect

        async with connect(addresses["us"], timeout=60.0) as us, connect(addresses["eu"], timeout=60.0) as eu:
            a, b = dict((await us.vv()).items()), dict((await eu.vv()).items())
        return {
            "us_to_eu": sum(seq for origin, seq in b.items() if origin.startswith("us@")),
            "eu_to_us": sum(seq for origin, seq in a.items() if origin.startswith("eu@")),
        }

    def run() -> Figures:
        cluster.partition("eu")
        first = next(firsts)
        before = asyncio.run(vectors())
        load_all(workers, ("us/", "eu/"), count, first=[first, first], keys=200_000)
        began = time.monotonic()
        cluster.heal(wait=False)
        probing = uncut.start(200.0, bench.seconds(4.0, quick=1.0))
        flow = asyncio.run(progress(began, before))
        lag = uncut.finish(probing)
        asyncio.run(equal_after(list(addresses.values()), began))
        return {
            "us_to_eu_per_s": flow["us_to_eu"],
            "eu_to_us_per_s": flow["eu_to_us"],
            "us_to_eu_flowing_per_s": flow["us_to_eu_flowing"],
            "eu_to_us_flowing_per_s": flow["eu_to_us_flowing"],
            "uncut_p99_ms": lag["p99_us"] / 1e3,
        }

    return {OURS: run}


def split(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """Two regions, cut; a million keys written on each side, half of them the same; healed; until digests are equal.

    Beside: a Redis replica that begins from nothing, full resync of the 1.5 million keys.
    """
    from crdtkv.cluster import LocalCluster

    count = bench.scaled(1_000_000, PIPELINE) if not bench.quick else 20_000
    sides: dict[str, Side] = {}
    folders = itertools.count()

    if bench.has(Redis):

        def redis_side() -> Figures:
            import redis as redis_py

            from bench.peers import redis as adapter

            with ExitStack() as own:
                folder = bench.folder(f"redis-{next(folders)}")
                server: Any = own.enter_context(Redis.start(folder))
                load_all(loaders(bench, own, "redis", [server.address]), ("k/",), count * 3 // 2)
                binary, port = adapter.server_binary(), free_port()
                assert binary is not None
                began = time.monotonic()
                extra = ("--replicaof", "127.0.0.1", server.address.rpartition(":")[2])
                own.enter_context(adapter.running(binary, folder / "replica", port, "everysec", extra))
                with redis_py.Redis(port=port) as follower:
                    assert follower.dbsize() == count * 3 // 2
                return {"equal_s": time.monotonic() - began}

        sides[Redis.name] = redis_side

    def ours() -> Figures:
        with ExitStack() as own, LocalCluster(("us", "eu"), latency_ms=0.0, engine="rocksdb", durability="async") as cluster:
            addresses = list(cluster.addresses().values())
            cluster.partition("us", "eu")
            load_all(loaders(bench, own, "crdtkv", addresses), ("k/", "k/"), count, first=[0, count // 2])
            began = time.monotonic()
            cluster.heal(wait=False)
            return {"equal_s": asyncio.run(equal_after(addresses, began))}

    sides[OURS] = ours
    return sides


@contextmanager
def origin(bench: Bench, peers: int) -> Iterator[tuple[Node, list[str]]]:
    """A node and so many peers."""
    names = [f"r{number}" for number in range(peers + 1)]
    with nodes(names, bench.directory) as started:
        yield started["r0"], [node.address for node in started.values()]


def origin_cpu(bench: Bench, stack: ExitStack) -> Mapping[str, Side]:
    """CPU of the origin's process per write: 50 k writes a second in pipelines on a schedule, until every peer has them."""
    rate, count = 50_000, bench.scaled(50_000, PIPELINE)

    def side(peers: int) -> Side:
        first, addresses = stack.enter_context(origin(bench, peers))
        worker = loaders(bench, stack, "crdtkv", [first.address])[0]

        def run() -> Figures:
            before, began = first.cpu_s(), time.monotonic()
            for start in range(0, count, 5 * PIPELINE):
                worker.ask(prefix="k/", first=start, count=min(5 * PIPELINE, count - start), batch=PIPELINE, keys=20_000)
                worker.answer()
                time.sleep(max(0.0, began + (start + 5 * PIPELINE) / rate - time.monotonic()))
            asyncio.run(equal_after(addresses, began, digests=False))
            return {"cpu_us": (first.cpu_s() - before) / count * 1e6}

        return run

    return {"1 peer": side(1), "5 peers": side(5)}


def _lag_row(name: str, rate: int, figure: str) -> Row:
    return Row(
        name,
        f"replication lag, write due in A → a watcher in B has it, {figure} writes/s, no emulated delay",
        "the bare prototype; Redis primary → replica with the same stamps",
        "p50 ≤ 2 × prototype; p99 ≤ 2 × Redis; none fails" + ("; p50 ≤ 3 × a bare message" if rate <= 1000 else ""),
        (
            Claim(f"{OURS}/p50_us", 2.0, f"{PROTOTYPE}/p50_us", at_most=True),
            Claim(f"{OURS}/p99_us", 2.0, f"{Redis.name}/p99_us", at_most=True, limit=f"{PROTOTYPE}/p99_us"),
            Claim(f"{OURS}/failed", 0.0, at_most=True),
            Claim(f"{OURS}/p50_us", None, f"{Redis.name}/p50_us", at_most=True),
            Claim(f"{SYNC}/p50_us", None, f"{PROTOTYPE}/p50_us", at_most=True),
            *(
                (
                    Claim(f"{OURS}/p50_us", None, f"{Nats.name}/p50_us", at_most=True),
                    Claim(f"{OURS}/p50_us", 3.0, f"{BARE}/one_way_us", at_most=True),
                )
                if rate <= 1000
                else ()
            ),
        ),
        lag_at(float(rate)),
        _DURABILITY,
    )


ROWS: Final = (
    _lag_row("lag-1k", 1_000, "1 k"),
    _lag_row("lag-10k", 10_000, "10 k"),
    Row(
        "lag-50k",
        "replication lag at 50 k writes/s, pipelined, over 60 s",
        "the bare prototype",
        "p50 ≤ 5 ms, p99 ≤ 50 ms, the worst of six windows too; none fails",
        (
            Claim(f"{OURS}/p50_ms", 5.0, at_most=True, limit=f"{PROTOTYPE}/p50_ms"),
            Claim(f"{OURS}/p99_ms", 50.0, at_most=True, limit=f"{PROTOTYPE}/p99_ms"),
            Claim(f"{OURS}/worst_p50_ms", 5.0, at_most=True, limit=f"{PROTOTYPE}/worst_p50_ms"),
            Claim(f"{OURS}/worst_p99_ms", 50.0, at_most=True, limit=f"{PROTOTYPE}/worst_p99_ms"),
            Claim(f"{OURS}/failed", 0.0, at_most=True, limit=f"{PROTOTYPE}/failed"),
            Claim(f"{PROTOTYPE}/p50_ms", at_most=True),
            Claim(f"{PROTOTYPE}/p99_ms", at_most=True),
        ),
        lag_50k,
        {OURS: "process crash (async)"},
        rounds=1,
        warm_up=False,
    ),
    Row(
        "lag-wan",
        "lag on top of the emulated one-way delay of 40 ms, 1 k writes/s in each of two regions",
        "–",
        "p50 ≤ 1.5 ms, p99 ≤ 10 ms",
        (Claim(f"{OURS}/p50_overhead_ms", 1.5, at_most=True), Claim(f"{OURS}/p99_overhead_ms", 10.0, at_most=True)),
        lag_wan,
        {OURS: "process crash (async)"},
        warm_up=False,
    ),
    Row(
        "sustained",
        "sustained writes, pipelined, 3 regions, writers in all three",
        "Redis primary with one replica, three writers",
        "total applied everywhere ≥ 0.3 ×",
        (Claim(f"{OURS}/op_per_s", 0.3, f"{Redis.name}/op_per_s"), Claim(f"{SYNC}/op_per_s", None, f"{Redis.name}/op_per_s")),
        sustained,
        _DURABILITY,
    ),
    Row(
        "steady",
        "three regions take 5 k writes/s each for 30 s, batched: until they are equal",
        "–",
        "≥ 4.9 k/s each, equal within 500 ms of the last answer; none fails",
        (
            Claim(f"{OURS}/each_per_s", 4_900),
            Claim(f"{OURS}/equal_ms", 500.0, at_most=True),
            Claim(f"{OURS}/failed", 0.0, at_most=True),
        ),
        steady,
        {OURS: "process crash (async)"},
        rounds=1,
        warm_up=False,
    ),
    Row(
        "drain",
        "backlog of 100 k commits a side after a cut",
        "live apply",
        "drains ≥ 80 k commits/s a direction; meanwhile lag between regions never cut: p99 < 250 ms",
        (
            Claim(f"{OURS}/us_to_eu_flowing_per_s", 80_000.0),
            Claim(f"{OURS}/eu_to_us_flowing_per_s", 80_000.0),
            Claim(f"{OURS}/uncut_p99_ms", 250.0, at_most=True),
            Claim(f"{OURS}/us_to_eu_per_s"),
            Claim(f"{OURS}/eu_to_us_per_s"),
        ),
        drain,
        rounds=5,
        warm_up=False,
    ),
    Row(
        "split",
        "two regions split, 1 M keys written on each side, 500 k of them the same: time to equal digests",
        "Redis full resync of the same 1.5 M keys",
        "≤ 4 ×",
        (Claim(f"{OURS}/equal_s", 4.0, f"{Redis.name}/equal_s", at_most=True),),
        split,
        _DURABILITY,
        rounds=3,
        warm_up=False,
    ),
    Row(
        "origin-cpu",
        "CPU per write at the origin at 50 k writes/s batched, 5 peers",
        "1 peer",
        "≤ 1.5 ×",
        (Claim("5 peers/cpu_us", 1.5, "1 peer/cpu_us", at_most=True),),
        origin_cpu,
    ),
)
