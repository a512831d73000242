"""The trace hashes of some seeds, committed: `python -m tests.simulation.golden` renews them, `make golden` too.

A trace is a hash over every commit, message and fault of a run with its virtual time. It is the same on every Python and every
machine; one that changes by itself betrays chance or order that nobody drew from the seed: a set that was iterated, an `id`, a clock.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from crdtkv.simulation import SCENARIOS, simulate

PATH = Path(__file__).parent / "golden.json"
SEEDS = (7, 4711)


def traces() -> dict[str, dict[str, str]]:
    """Scenario → seed → trace."""
    return {name: {str(seed): simulate(seed, name).trace_sha256 for seed in SEEDS} for name in sorted(SCENARIOS)}


def main() -> int:
    before = json.loads(PATH.read_text()) if PATH.exists() else {}
    now = traces()
    PATH.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    changed = [name for name in now if now[name] != before.get(name)]
    print(f"{len(changed)} of {len(now)} scenarios have another trace: {', '.join(changed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
