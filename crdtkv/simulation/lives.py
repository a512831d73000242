"""What ends with a process: whatever it had rung up for later."""

from __future__ import annotations


class Life:
    """One run of a process, from its start to its end."""

    __slots__ = ("is_over",)

    def __init__(self) -> None:
        self.is_over = False
