"""From an error to an exit status and one line on stderr.

| status | meaning |
|---|---|
| 0 | done |
| 1 | failed, or not found, or a violation was found |
| 2 | bad usage or input; nothing changed |
| 3 | unavailable or timed out; the outcome of a write is unknown |
| 130 | ended by Ctrl-C; 143 by SIGTERM, 129 by the end of its terminal |
"""

from __future__ import annotations

import os
from typing import Final

from crdtkv.errors import (
    ConfigError,
    CrdtkvError,
    DeadlineExceededError,
    InvalidKeyError,
    InvalidValueError,
    NotHomeError,
    OverloadedError,
    RegionUnavailableError,
    WrongTypeError,
)

DONE: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130

_STATUS: Final[tuple[tuple[type[CrdtkvError], int], ...]] = (
    (InvalidKeyError, BAD_INPUT),
    (InvalidValueError, BAD_INPUT),
    (WrongTypeError, BAD_INPUT),
    (ConfigError, BAD_INPUT),
    (RegionUnavailableError, UNAVAILABLE),
    (DeadlineExceededError, UNAVAILABLE),
    (OverloadedError, UNAVAILABLE),
    (NotHomeError, UNAVAILABLE),
    (CrdtkvError, FAILED),
)
"""The first class that fits decides."""


_NOBODY: Final = ("connection refused", "name not found", "no answer within the time to connect", "does not speak gRPC")
"""How the text of a call ends that reached no node."""


def exit_status(error: CrdtkvError) -> int:
    """The status for an error, of the table above."""
    return next(status for cls, status in _STATUS if isinstance(error, cls))


def is_debugging() -> bool:
    """Whether `CRDTKV_DEBUG` asks for tracebacks."""
    return os.environ.get("CRDTKV_DEBUG", "") not in ("", "0")


def one_line(text: object) -> str:
    """A message as a single line."""
    return " ".join(str(text).split())


def describe(error: CrdtkvError) -> str:
    """The line for stderr; it says when a write may have been applied all the same, and what to do where nobody listens."""
    text = one_line(error) or type(error).__name__
    if isinstance(error, RegionUnavailableError) and text.endswith(_NOBODY):
        text = f"{text}; see that a node runs there, or name another"
    return f"{text} (a write may have been applied)" if error.maybe_applied and "may have been applied" not in text else text
