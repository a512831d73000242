"""`python -m tests.mutants.recut`: writes each planted bug anew against the code as it is, so that `git apply` takes it too.

Hunks are found by their text, so a patch still plants its bug after the code around it has moved; only its line numbers, and what stands
beyond its context, are then those of another day. A patch that no longer applies is an error, and for a person to mend.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from tests.mutants.planting import HERE, MUTANTS, PACKAGE, Mutant

CONTEXT = (2, 3, 4, 6, 8)
"""Lines around a change: the first number with which each hunk stands once in its file."""


def recut(mutant: Mutant, path: Path) -> None:
    """Write `path` anew."""
    header = path.read_text().partition("--- a/")[0]
    before = (PACKAGE.parent / mutant.file).read_text()
    after = mutant.planted(before)
    for context in CONTEXT:
        sides = (before.splitlines(keepends=True), after.splitlines(keepends=True))
        path.write_text(header + "".join(difflib.unified_diff(*sides, f"a/{mutant.file}", f"b/{mutant.file}", n=context)))
        try:
            if Mutant.load(path).planted(before) == after:
                return
        except AssertionError:
            continue  # a hunk that stands elsewhere, too
    raise AssertionError(f"{mutant.name}: no context tells its places from others like them")


if __name__ == "__main__":
    for mutant in MUTANTS:
        recut(mutant, HERE / f"{mutant.name}.patch")
