"""Waiting for what other threads and processes do: for a condition, with a deadline, and never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

DEADLINE_S: Final = 60.0


def until(condition: Callable[[], Any], what: str = "", *, every_s: float = 0.005) -> Any:
    """Wait until a condition holds; its value. `what`: the condition in words, for when it never does."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what or condition}"
        time.sleep(every_s)
    return value
