"""`python -m bench goals|curves|profile|table`: run from the root of the repository."""

from __future__ import annotations

import sys

from crdtkv import interrupts


def main() -> int:
    """The command line; Ctrl-C is safe from here on, so it comes before the imports."""
    interrupts.end_at_once_on_ctrl_c()
    from bench.commands import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
