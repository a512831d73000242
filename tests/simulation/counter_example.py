"""The counter-example that docs/testing.md shows: what `crdtkv simulate --until-failure` tells of a bug that is planted in the core.
`python -m tests.simulation.counter_example` writes it anew, and `make golden` does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.planting import MUTANTS, PACKAGE

MUTANT = "loser_dropped_at_once"
PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
_BEGINS = "The smallest case found in "
_BLOCK = re.compile(rf"(?<=```text\n){_BEGINS}.*?(?=```\n)", re.DOTALL)


def shown() -> str:
    """What the page shows."""
    found = _BLOCK.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None, f"{PAGE.name} shows no counter-example"
    return found[0]


def told(root: Path) -> str:
    """What the command tells of a copy of the package under `root` with the bug in it: from the shrunk case to its command line."""
    shutil.copytree(PACKAGE, root / "crdtkv", ignore=shutil.ignore_patterns("pb", "demo", "*.tmp"))
    next(mutant for mutant in MUTANTS if mutant.name == MUTANT).apply(root)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from crdtkv.cli.main import main; sys.exit(main(['simulate', '--until-failure']))"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = re.search(rf"^{_BEGINS}.*?^Again: .*?\n", done.stdout, re.DOTALL | re.MULTILINE)
    assert found is not None, done.stdout
    return found[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        now = told(Path(root))
    print(f"the counter-example in docs/{PAGE.name} {'is as it was' if now == shown() else 'is another'}")
    PAGE.write_text(_BLOCK.sub(lambda _: now, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
