"""How long a node's event loop stands still while it takes writes: what the p99 of everything else that the node does begins with.

    python -m bench.stops [--rate N] [--seconds S] [--durability async|sync] [--fold-records N]

The node runs in this process, as `crdtkv node` would run it; the writer is a process of its own, in messages of a hundred puts at a
given rate, over keys of which most are in the state engine already. A task in the node's loop asks to be woken each millisecond. Printed as
JSON: how late that was (a loop that is idle is late by 0.1 to 1 ms: timers), and how long the longest stops were.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import crdtkv
from crdtkv.node.server import GC_THRESHOLDS, SWITCH_INTERVAL_S
from crdtkv.store import Settings
from crdtkv.transport.loop import background_loop

BATCH = 100
KEYS = 200_000
STEP_S = 0.001
WRITER = """
import random, sys, time
import crdtkv
address, rate, seconds, batch, keys = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
dice, value = random.Random(1), "x" * 100
with crdtkv.connect(address) as client:
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        if sent < passed * rate:
            with client.pipeline() as group:
                for _ in range(batch):
                    group.put(f"old/{dice.randrange(keys):012d}", value)
            sent += batch
        else:
            time.sleep(0.0005)
    print(sent / passed)
"""


async def _watch(seconds: float) -> list[float]:
    """How late the loop was at each wake-up, in ms."""
    late: list[float] = []
    end = time.perf_counter() + seconds
    while (asked := time.perf_counter()) < end:
        await asyncio.sleep(STEP_S)
        late.append(max(0.0, time.perf_counter() - asked - STEP_S) * 1000)
    return sorted(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--durability", default="async")
    parser.add_argument("--fold-records", type=int, default=1024)
    parser.add_argument("--fold-at-once", action="store_true", help="as before there was a thread for it: what it is compared with")
    asked = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(fold_records_max=asked.fold_records)
        with crdtkv.open(Path(directory) / "store", region="us", durability="async", settings=settings) as store:
            for start in range(0, KEYS, 1000):
                with store.batch() as batch:
                    for number in range(start, start + 1000):
                        batch.put(f"old/{number:012d}", "y" * 100)
        with crdtkv.open(Path(directory) / "store", region="us", durability=asked.durability, settings=settings) as store:
            if asked.fold_at_once:
                store._machine.when_folding = None
            with crdtkv.Node(store, listen="127.0.0.1:0") as node:
                gc.collect()
                gc.freeze()
                arguments = [node.address, asked.rate, asked.seconds, BATCH, KEYS]
                idle = asyncio.run_coroutine_threadsafe(_watch(1.0), background_loop()).result()
                writer = subprocess.Popen([sys.executable, "-c", WRITER, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
                cpu = time.process_time()
                late = asyncio.run_coroutine_threadsafe(_watch(asked.seconds), background_loop()).result()
                cpu = time.process_time() - cpu
                assert writer.stdout is not None
                done = float(writer.stdout.read())
                writer.wait(timeout=30)
        found = {
            "puts_per_s": round(done),
            "cpu_share": round(cpu / asked.seconds, 2),
            "late_ms": {f"p{share}": round(late[min(len(late) - 1, int(len(late) * share / 100))], 2) for share in (50, 99, 99.9)},
            "longest_ms": [round(ms, 1) for ms in late[-5:]],
            "idle_p99_ms": round(idle[int(len(idle) * 0.99)], 2),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
