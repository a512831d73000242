"""Three nodes whose links are cut, held and healed some times a second while clients write: after each heal they become equal.

All in one process, over the emulated WAN, with limits so small that everything that can be split, read from the disk, withheld or asked for
again is: it takes hundreds of heals to meet what a busy cluster meets once in a long while.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import pytest

import crdtkv
from crdtkv.aio import connect
from crdtkv.cluster.wan import Wan
from crdtkv.node.server import NodeServer
from crdtkv.replication import LOOPBACK, EventKind
from crdtkv.storage.log import FileLog
from crdtkv.store.settings import Settings

REGIONS = ("us", "eu", "ap")
DEADLINE_S = 60.0
KIB = 1 << 10


class Cluster:
    """Three nodes, their stores, and the network between them."""

    def __init__(self, wan: Wan, nodes: Sequence[NodeServer], stores: Sequence[crdtkv.Store], rng: random.Random) -> None:
        self.wan = wan
        self.nodes = nodes
        self.stores = stores
        self.rng = rng

    def cut_something(self) -> None:
        a, b = self.rng.sample(REGIONS, 2)
        match self.rng.randrange(4):
            case 0:
                self.wan.hold(a, b)  # the other way goes on
            case 1:
                self.wan.hold(a, b)
                self.wan.hold(b, a)
            case _:
                for other in (b,) if self.rng.random() < 0.7 else [r for r in REGIONS if r != a]:
                    self.wan.cut(a, other)

    def heal(self) -> None:
        for a, b in combinations(REGIONS, 2):
            self.wan.heal(a, b)

    async def write(self, region: str, until: asyncio.Event) -> None:
        """Puts by a client of a region, in messages of one to a hundred."""
        address = self.nodes[REGIONS.index(region)].address
        async with connect(address, timeout=DEADLINE_S) as client:
            while not until.is_set():
                async with client.pipeline() as pipeline:
                    for _ in range(self.rng.choice((1, 10, 100))):
                        pipeline.put(f"{region}/{self.rng.randrange(1_000)}", "x" * self.rng.choice((10, 200)))
                await asyncio.sleep(self.rng.choice((0.0, 0.002)))

    async def become_equal(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while len({store.vv() for store in self.stores}) > 1:
            assert time.monotonic() < end, "not equal: " + "; ".join([f"{store.vv()}" for store in self.stores] + self.waits())
            await asyncio.sleep(0.005)
        assert len({store.digest() for store in self.stores}) == 1

    def waits(self) -> list[str]:
        return [text for node in self.nodes for text in node.peers.alarms]

    async def round(self) -> None:
        """Cut and heal some times while some write; they write on for a moment after the last heal, or not."""
        rng, ended = self.rng, asyncio.Event()
        async with asyncio.TaskGroup() as writers:
            for region in rng.sample(REGIONS, rng.randint(1, 3)):
                writers.create_task(self.write(region, ended))
            for _ in range(rng.randint(1, 4)):
                self.cut_something()
                await asyncio.sleep(rng.choice((0.005, 0.02, 0.1)))
                self.heal()
                await asyncio.sleep(rng.choice((0.0, 0.005, 0.05)))
            ended.set()
        await self.become_equal()


@asynccontextmanager
async def cluster(directory: Path, rng: random.Random) -> AsyncIterator[Cluster]:
    wan = Wan(REGIONS, seed=rng.randrange(1 << 30))
    small = replace(
        LOOPBACK,
        heartbeat_ms=200,
        heartbeats_missed_max=5,
        message_bytes_max=rng.choice((2, 8)) * KIB,
        apply_bytes_max=rng.choice((1, 8)) * KIB,
        tail_bytes_max=rng.choice((1, 64)) * KIB,
        read_bytes_max=32 * KIB,
        flight_bytes_max=rng.choice((16, 512)) * KIB,
        backoff_min_ms=2,
        backoff_max_ms=20,
        relay_delay_ms=20,
    )
    settings = Settings(instance_dir="trust", log_segment_bytes=64 * KIB, fold_records_max=256, held_frames_max=rng.choice((0, 4, 4096)))
    async with AsyncExitStack() as stack:
        nodes: list[NodeServer] = []
        stores: list[crdtkv.Store] = []
        for region in REGIONS:
            stores.append(crdtkv.open(directory / region, region=region, durability=rng.choice(("async", "sync")), settings=settings))
            stack.callback(stores[-1].close)
            nodes.append(NodeServer(listen="127.0.0.1:0", peers={}, replication=small))
            stack.push_async_callback(nodes[-1].stop)
            await nodes[-1].start()
            await nodes[-1].open(stores[-1])
        stack.push_async_callback(wan.close)
        for (source, node), (target, other) in permutations(zip(REGIONS, nodes, strict=True), 2):
            host, _, port = other.address.rpartition(":")
            at = await wan.open(source, target, (host, int(port)))
            node.peers.set_address(target, f"{at[0]}:{at[1]}")
        yield Cluster(wan, nodes, stores, rng)


@contextmanager
def hasty_threads() -> Iterator[None]:
    """Threads take turns a hundred times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("rounds", [6, pytest.param(1_000, marks=pytest.mark.soak)])
def test_after_each_heal_all_regions_become_equal(rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No alarm either, so that what would mend a stall hides none."""
    seed = 1 if rounds < 100 else random.randrange(1 << 30)
    rng = random.Random(seed)
    print(f"seed {seed}")

    async def run() -> None:
        done = 0
        while done < rounds:
            monkeypatch.setitem(FileLog.__init__.__kwdefaults__, "tail_cache_bytes", rng.choice((8, 64)) * KIB)
            async with cluster(tmp_path / str(done), rng) as one:
                for _ in range(min(rounds - done, rng.choice((1, 5, 20)))):
                    await one.round()
                    done += 1
                for node in one.nodes:
                    assert not node.peers.events.keys() & {EventKind.STARVED.value, EventKind.FORK.value, "failed"}, one.waits()

    with hasty_threads():
        asyncio.run(run())
