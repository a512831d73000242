"""Tens of thousands of seeds, in parallel, with a summary; `make soak-simulate`. Stopped, it goes on where it was.

Seeds are run in chunks, the scenarios by turns; every so many seeds one is *long*, with a thousand client requests. Each chunk that is
done is a line in a file. The soak fails on a violation, on a rare state that was never met, and where fewer snapshots were installed
while clients wrote than there were seeds. What came of it is written as JSON, to be kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from crdtkv import interrupts
from crdtkv.simulation.case import OPS_MAX, Case, run_case
from crdtkv.simulation.options import SCENARIOS
from tests.simulation.test_biased_seeds import EVERYWHERE, MUST_MEET

CHUNK = 100
POLL_S = 0.2
LONG_EVERY = 500
"""One seed in so many is long."""


def run_chunk(first: int) -> dict[str, Any]:
    """Run one chunk of seeds."""
    names = list(SCENARIOS)
    events, long_runs = 0, 0
    rare: Counter[str] = Counter()
    violations = []
    began = time.process_time()
    gc.disable()  # a run keeps nearly all that it makes until its end
    gc.freeze()  # what was imported is not looked at for garbage after each
    for seed in range(first, first + CHUNK):
        is_long = seed % LONG_EVERY == 0
        case = Case(seed=seed, scenario=names[seed % len(names)], ops=OPS_MAX if is_long else None)
        outcome = run_case(case)
        gc.collect()
        gc.freeze()  # what is left are caches: they are not looked at for garbage after each run either
        events += outcome.events
        long_runs += is_long
        rare.update(outcome.rare)
        violations += [f"{case.command()}: {text}" for text in outcome.violations]
    cpu_s = time.process_time() - began
    return {"first": first, "events": events, "long": long_runs, "cpu_s": cpu_s, "rare": dict(rare), "violations": violations}


def summarise(done: list[dict[str, Any]], *, is_complete: bool) -> dict[str, Any]:
    """Print what came of it so far, and return it; `wrong` is what makes the soak fail."""
    rare: Counter[str] = Counter()
    for chunk in done:
        rare.update(chunk["rare"])
    events, cpu_s, long_runs = (sum(chunk[name] for chunk in done) for name in ("events", "cpu_s", "long"))
    seeds = len(done) * CHUNK
    installs = rare["installed_while_writing"] / max(1, seeds)
    print(
        f"{seeds:,} seeds, {long_runs} of them with {OPS_MAX:,} requests; {events:,} events, {events // max(1, seeds):,} a seed, "
        f"{events / max(cpu_s, 1e-9):,.0f} a second of one core; {installs:.2f} snapshots a seed installed while clients wrote"
    )
    wrong = [text for chunk in done for text in chunk["violations"]]
    if is_complete:
        print("met: " + ", ".join(f"{name} {count:,}" for name, count in sorted(rare.items())))
        wanted = EVERYWHERE.union(*MUST_MEET.values())
        wrong += [f"never met in {seeds:,} seeds: {name}" for name in sorted(wanted - rare.keys())]
        if installs < 1:
            wrong.append(f"only {installs:.2f} snapshots a seed were installed while clients wrote")
    return {
        "seeds": seeds, "long_runs": long_runs, "events": events, "cpu_s": round(cpu_s, 1),
        "events_per_s_and_core": round(events / max(cpu_s, 1e-9)), "installed_while_writing_per_seed": round(installs, 3),
        "rare": dict(sorted(rare.items())), "wrong": wrong,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1_000_000, help="the first seed")
    parser.add_argument("--seeds", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("soak-results/simulate.jsonl"), help="what is done, a line a chunk")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted = range(arguments.first, arguments.first + arguments.seeds, CHUNK)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = [chunk for chunk in known if chunk["first"] in wanted]
    left = sorted(set(wanted) - {chunk["first"] for chunk in done})
    print(f"{len(done)} of {len(wanted)} chunks of {CHUNK} seeds are done", flush=True)
    with (
        out.open("a") as file,
        interrupts.noted(*interrupts.ENDED_BY) as signals,
        multiprocessing.get_context("spawn").Pool(arguments.workers, interrupts.end_at_once_on_ctrl_c) as pool,
    ):
        chunks = pool.imap_unordered(run_chunk, left)
        while len(done) < len(wanted):
            if signals.received:
                print(f"stopped: {len(done)} of {len(wanted)} chunks are in {out}; the same command goes on from there", file=sys.stderr)
                return 128 + signals.received[0]
            try:
                chunk = chunks.next(timeout=POLL_S)
            except multiprocessing.TimeoutError:
                continue
            done.append(chunk)
            file.write(json.dumps(chunk) + "\n")
            file.flush()
            for text in chunk["violations"]:
                print(f"VIOLATION {text}", flush=True)
            if len(done) % 20 == 0:
                summarise(done, is_complete=False)
                sys.stdout.flush()
    summary = summarise(done, is_complete=True)
    report = {"first": arguments.first, "python": sys.version.split()[0], **summary}
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    for text in summary["wrong"]:
        print(text, file=sys.stderr)
    return 1 if summary["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
