"""`python -m crdtkv.simulation [--seed S] [--seeds N] [--scenario NAME|all]`: one JSON line a run; exit status 1 on a violation.

The bare runner, for machines to read; `crdtkv simulate` runs the same cases, and shrinks and tells what fails.
"""

from __future__ import annotations

import argparse
import json
import sys

from crdtkv.simulation.case import Case, run_case
from crdtkv.simulation.options import SCENARIOS
from crdtkv.simulation.programme import ALL, cases, fields


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m crdtkv.simulation", description="Run simulated clusters; one JSON line a run.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default 1)")
    parser.add_argument("--scenario", choices=[*SCENARIOS, ALL], default=ALL, help="what to be biased to; `all`: one after another")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first violation")
    args = parser.parse_args()
    failed = False
    for case in cases(args.scenario, args.seeds, Case(seed=args.seed)):
        print(
            f"seed {case.seed} scenario {case.scenario}", file=sys.stderr, flush=True
        )  # first of all: whatever happens, it can be repeated
        outcome = run_case(case)
        print(json.dumps(fields(outcome)), flush=True)
        failed = failed or bool(outcome.violations)
        if failed and args.until_failure:
            break
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
