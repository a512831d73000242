"""`python -m crdtkv` is `crdtkv`."""

from __future__ import annotations

import sys

from crdtkv.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
