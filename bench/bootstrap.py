"""How fast an empty region is brought up by a snapshot over loopback, and what that costs the donor's writers.

    python -m bench.bootstrap [--entries N]

The donor is a process of its own with a store on RocksDB whose log no longer reaches back. Printed as JSON: entries per second from the
receiver's start to equal vectors, its parts, the same records written to an engine without anything around them (the bare limit), and
the donor's writes per second before and during the transfer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import crdtkv

DONOR = """
import sys, time, threading
import crdtkv
path, entries = sys.argv[1], int(sys.argv[2])
sys.setswitchinterval(0.0005)
store = crdtkv.open(path, region="us", durability="async")
for at in range(0, entries, 1000):
    with store.batch() as b:
        for n in range(at, min(entries, at + 1000)):
            b.put(f"key/{n:09}", b"x" * 100)
machine = store._machine
with store._lock:
    machine.fold()
    machine.log.roll()
machine.flush(machine.replica.position)
machine.log.truncate(machine.replica.position)
store.close()
store = crdtkv.open(path, region="us", durability="async")
node = crdtkv.Node(store, listen="127.0.0.1:0", peers={}, replication="loopback")
print(node.address, flush=True)
for line in sys.stdin:
    if line.strip() == "write":
        began, count = time.monotonic(), 0
        while time.monotonic() - began < 1.0:
            store.put(f"live/{count % 1000}", count)
            count += 1
        print(count, flush=True)
    else:
        break
node.close()
store.close()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--writing", action="store_true", help="the donor writes meanwhile")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        donor = subprocess.Popen(
            [sys.executable, "-c", DONOR, str(Path(directory) / "us"), str(asked.entries)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert donor.stdin is not None and donor.stdout is not None
        address = donor.stdout.readline().strip()

        def ask(what: str) -> None:
            assert donor.stdin is not None
            donor.stdin.write(what + "\n")
            donor.stdin.flush()

        alone = 0
        if asked.writing:
            ask("write")
            alone = int(donor.stdout.readline())
        sys.setswitchinterval(0.0005)
        store = crdtkv.open(Path(directory) / "eu", region="eu", durability="async")
        snapshots = store._machine.snapshots
        assert snapshots is not None
        began = time.monotonic()
        node = crdtkv.Node(store, listen="127.0.0.1:0", peers={"us": address}, replication="loopback")
        if asked.writing:
            ask("write")
        first = staged = 0.0
        while not store.last_install:
            time.sleep(0.002)
            chunks = snapshots.staged.chunks
            first = first or (time.monotonic() if chunks else 0.0)
            if snapshots.staged.slots >= asked.entries and not staged:
                staged = time.monotonic()
        done = time.monotonic()
        beside = int(donor.stdout.readline()) if asked.writing else 0
        records = [(f"key/{n:09}".encode(), b"\x91\x95" + b"x" * 140) for n in range(asked.entries)]
        from crdtkv.storage.rocksdb import RocksDbEngine

        engine = RocksDbEngine(Path(directory) / "bare")
        bare_began = time.monotonic()
        for at in range(0, len(records), 4096):
            engine.write(dict(records[at : at + 4096]))
        bare = time.monotonic() - bare_began
        engine.close()
        found = {
            "entries": asked.entries,
            "entries_per_s": round(asked.entries / (done - began)),
            "asked_after_s": round(first - began, 3),
            "staged_in_s": round(staged - first, 3),
            "installed_in_s": round(done - staged, 3),
            "bare_engine_entries_per_s": round(asked.entries / bare),
            "ratio": round(bare / (done - began), 3),
            "donor_puts_per_s_alone": alone,
            "donor_puts_per_s_beside": beside,
        }
        print(json.dumps(found))
        node.close()
        store.close()
        ask("end")
        donor.wait(timeout=30)


if __name__ == "__main__":
    main()
