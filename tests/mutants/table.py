"""Writes docs/mutants.md: which planted bug is killed by what, and after how many seeds.

python -m tests.mutants.table [--starts N]    each hunt by the simulations is begun N times, at other seeds
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.planting import HERE, MUTANTS, Mutant

PAGE = HERE.parents[1] / "docs" / "mutants.md"
HEAD = """# Planted bugs

Each of these small bugs, an example of a trap that others fell into, is planted in a copy of the package by
`tests/mutants/NAME.patch`, and something must then go red: the simulations in a scenario (*seeds*: the median number of seeds
until the first violation, over several starts), or a test. `make mutants` does it; `make test` does too. `python -m tests.mutants.table`
writes this page.

| planted bug | the trap | in | killed by | seeds |
|---|---|---|---|---|
"""
SEEDS_MAX = 60


def _row(mutant: Mutant, starts: int) -> str:
    if mutant.test is not None:
        by, seeds = f"`{mutant.test.split('::')[-1]}`", "–"
    else:
        needed = []
        for start in range(starts):
            with tempfile.TemporaryDirectory() as directory:
                outcomes = mutant.hunt(Path(directory), seed=1 + start * 1000, seeds=SEEDS_MAX)
            needed.append(len(outcomes) if outcomes[-1]["violations"] else SEEDS_MAX + 1)
        by, seeds = f"scenario `{mutant.scenario}`", f"{statistics.median(needed):g}"
    return f"| `{mutant.name}` | {mutant.trap} | `{mutant.file.removeprefix('crdtkv/')}` | {by} | {seeds} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/mutants.md.")
    parser.add_argument("--starts", type=int, default=3, help="how often each hunt by the simulations is begun anew")
    starts = parser.parse_args().starts
    with ThreadPoolExecutor(2) as pool:
        try:
            rows = list(pool.map(lambda mutant: _row(mutant, starts), MUTANTS))
        except KeyboardInterrupt:  # the hunts under way have heard it too, and clear their copies away
            pool.shutdown(cancel_futures=True)
            print(f"stopped: {PAGE.name} is as it was", file=sys.stderr)
            return 130
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
