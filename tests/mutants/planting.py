"""Plants a bug: copies the package, applies one patch to the copy, and runs what has to find it there.

A mutant is a unified diff with a header that names the trap it is an example of, and its hunter: `Scenario`, in which the
simulations must find it (from seed `Seed` on, where it is rare), or `Test`, the tests that must fail. Hunks are found by
their text, not their line numbers, and must be found exactly once: a mutant that no longer applies is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "crdtkv"
_HUNK = re.compile(r"^@@ .*@@.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """One planted bug; `edits` are pairs of what stands in `file` and what is put in its place."""

    name: str
    trap: str
    scenario: str | None
    test: str | None
    seed: int
    file: str
    edits: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls, path: Path) -> Mutant:
        header, _, rest = path.read_text().partition("--- a/")
        facts = dict(line.removeprefix("# ").split(": ", 1) for line in header.splitlines())
        file, _, hunks = rest.partition("\n")
        edits = tuple((_side(hunk, "-"), _side(hunk, "+")) for hunk in _HUNK.split(hunks)[1:])
        assert edits, f"{path.name} changes nothing"
        assert ("Scenario" in facts) != ("Test" in facts), f"{path.name}: name a scenario or a test"
        return cls(path.stem, facts["Trap"], facts.get("Scenario"), facts.get("Test"), int(facts.get("Seed", "1")), file, edits)

    def apply(self, root: Path) -> None:
        """Change the copy of the package under `root`."""
        target = root / self.file
        target.write_text(self.planted(target.read_text()))

    def planted(self, text: str) -> str:
        """The text of `file` with the bug in it."""
        for old, new in self.edits:
            assert text.count(old) == 1, f"{self.name} does not apply: this stands {text.count(old)} times in {self.file}:\n{old}"
            text = text.replace(old, new)
        return text

    def hunt(self, root: Path, *, seed: int, seeds: int) -> list[dict[str, Any]]:
        """What the simulations in the changed copy say, up to the first violation."""
        assert self.scenario is not None
        shutil.copytree(PACKAGE, root / "crdtkv", ignore=shutil.ignore_patterns("pb", "demo", "*.tmp"))
        self.apply(root)
        command = [sys.executable, "-m", "crdtkv.simulation", "--scenario", self.scenario, "--seed", str(seed), "--seeds", str(seeds)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [*command, "--until-failure"], cwd=root, env=environment, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.stdout, f"no simulation ran:\n{done.stderr[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    def try_test(self, root: Path) -> subprocess.CompletedProcess[str]:
        """Run its test against the changed copy, up to the first failure."""
        assert self.test is not None
        shutil.copytree(PACKAGE, root / "crdtkv", ignore=shutil.ignore_patterns("*.tmp", "__pycache__"))
        shutil.copytree(HERE.parent, root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(HERE.parents[1] / "pyproject.toml", root)
        self.apply(root)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", self.test]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return subprocess.run(
            command, cwd=root, env={**environment, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=150, check=False
        )


def _side(hunk: str, sign: str) -> str:
    """One side of a hunk: its context, and the lines of one sign."""
    return "".join(line[1:] for line in hunk.splitlines(keepends=True) if line[0] in (" ", sign))


MUTANTS = [Mutant.load(path) for path in sorted(HERE.glob("*.patch"))]
