"""`python -m crdtkv.simulation [--seed S] [--seeds N] [--scenario NAME|all]`: one JSON line a run; exit status 1 on a violation."""

from __future__ import annotations

import argparse
import json
import sys

from crdtkv.simulation.options import SCENARIOS
from crdtkv.simulation.world import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m crdtkv.simulation", description="Run simulated clusters; one JSON line a run.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default 1)")
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="all", help="what to be biased to; `all`: one after another")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first violation")
    args = parser.parse_args()
    scenarios = list(SCENARIOS) if args.scenario == "all" else [args.scenario]
    failed = False
    for seed in range(args.seed, args.seed + args.seeds):
        scenario = scenarios[seed % len(scenarios)]
        print(f"seed {seed} scenario {scenario}", file=sys.stderr, flush=True)  # first of all: whatever happens, it can be repeated
        outcome = simulate(seed, scenario)
        fields = ("seed", "scenario", "trace_sha256", "events", "virtual_s", "rare", "violations")
        print(json.dumps({name: getattr(outcome, name) for name in fields}), flush=True)
        failed = failed or bool(outcome.violations)
        if failed and args.until_failure:
            break
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
