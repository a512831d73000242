"""What a row is, and what its sides get to work with."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.judging import Claim
from bench.peers.base import Peer

KEY_BYTES: Final = 16
VALUE_BYTES: Final = 100
VALUE: Final = "x" * VALUE_BYTES

Figures = Mapping[str, float]
"""Metric → figure of one round; a metric's name ends in its unit."""
Side = Callable[[], Figures]
"""Does a fixed amount of work and tells how it went."""


def key(number: int) -> str:
    """A key of 16 bytes."""
    return f"key/{number:012d}"


def scattered(number: int) -> str:
    """A key of 16 bytes; consecutive numbers are far apart."""
    return f"key/{number * 2654435761 % 10**12:012d}"


@dataclass(slots=True)
class Bench:
    """What a row's sides work with.

    Attributes:
        quick: about a tenth of the work: to see that it runs, not for figures.
        directory: for this row's files; removed afterwards.
        missing: peer → why it could not be measured.
    """

    quick: bool
    directory: Path
    missing: dict[str, str] = field(default_factory=dict)

    def scaled(self, amount: int, least: int = 1) -> int:
        """An amount of work."""
        return max(least, amount // 10) if self.quick else amount

    def seconds(self, length: float, quick: float | None = None) -> float:
        """How long something runs."""
        return (max(0.5, length / 5) if quick is None else quick) if self.quick else length

    def has(self, peer: type[Peer]) -> bool:
        """Whether a peer can be measured; if not, remembers why."""
        reason = peer.missing()
        if reason is not None:
            self.missing[peer.name] = reason
        return reason is None

    def folder(self, name: str) -> Path:
        """A fresh directory."""
        made = self.directory / name
        made.mkdir(parents=True)
        return made


@dataclass(frozen=True, slots=True)
class Row:
    """One path, as in the table of goals.

    Attributes:
        name: for `--row`.
        path, against, goal: as the table tells them.
        claims: what is judged, and what is told beside.
        open: starts what the row needs, and yields its sides, which run in turn.
        durability: side → what its answered writes survive.
        rounds: at most so many, where a round is long.
        warm_up: whether a round that does not count comes first.
    """

    name: str
    path: str
    against: str
    goal: str
    claims: tuple[Claim, ...]
    open: Callable[[Bench, ExitStack], Mapping[str, Side]]
    durability: Mapping[str, str] = field(default_factory=dict)
    rounds: int | None = None
    warm_up: bool = True

    @property
    def rerun(self) -> str:
        """The command that runs it alone."""
        return f"python -m bench goals --row {self.name}"


def rate(work: Callable[[], object], operations: int) -> dict[str, float]:
    """Operations per second of one run of `work`."""
    began = time.perf_counter()
    work()
    return {"op_per_s": operations / (time.perf_counter() - began)}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="crdtkv-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
