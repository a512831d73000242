"""What one run of the demo found: filled by `run.py`, judged by `verifier.py`, told by `report.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crdtkv.core.causality import Dot
from crdtkv.demo.records import JournalEntry, Observation, Write
from crdtkv.demo.verifier import Check, CutProof, Verdict
from crdtkv.instruments.lag import LagMeter, Pair


@dataclass(frozen=True, slots=True)
class Place:
    """A region: where its delays were measured, and how to reach its node."""

    name: str
    city: str
    address: str


@dataclass(frozen=True, slots=True)
class Geography:
    """The regions, the emulated one-way delays in ms between them, and where those figures were published."""

    places: Sequence[Place]
    delays_ms: Mapping[tuple[str, str], float]
    source: str

    def delay_ms(self, a: str, b: str) -> float:
        """The emulated one-way delay between two regions; links are symmetric."""
        return self.delays_ms.get((a, b), self.delays_ms.get((b, a), 0.0))


@dataclass(slots=True)
class Phase:
    """One stretch of the run, in seconds since it began."""

    name: str
    title: str
    start_s: float
    end_s: float = 0.0


@dataclass(slots=True)
class Cut:
    """The cut: when it was in effect, the state on both sides just before the heal, and its proof.

    Attributes:
        reported_lag_ms: (at, of) → the lag that the node itself reported across the cut; None: unknown, as it must be.
        caught_up_s: pair → how long after the heal everything written before it was visible; None: never.
    """

    region: str
    start_s: float
    end_s: float
    digests: Mapping[str, str]
    vvs: Mapping[str, str]
    proof: CutProof
    reported_lag_ms: Mapping[tuple[str, str], float | None]
    caught_up_s: dict[Pair, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Story:
    """One staged conflict as it ended: what was done, and the store's own explanation."""

    title: str
    key: str
    outcome: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Clash:
    """One conflict as the journals tell it, with the acknowledged writes behind its dots where they are known.

    Attributes:
        regions: whose journals name it.
        winner, losers: None where the commit is not an acknowledged write to that slot.
    """

    entry: JournalEntry
    regions: Sequence[str]
    winner: Write | None
    losers: Sequence[tuple[Dot, Write | None]]
    staged: bool = False


@dataclass(slots=True)
class Findings:
    """All that a run found."""

    started_at: str
    seed: int
    geography: Geography
    dataset: Mapping[str, object]
    meter: LagMeter
    writes: list[Write] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    cut: Cut | None = None
    settled_s: float | None = None
    """How long after the last write all version vectors and digests were equal; None: they were not in time."""
    observations: list[Observation] = field(default_factory=list)
    verdict: Verdict | None = None
    checks: list[Check] = field(default_factory=list)
    """Checks besides those of the verdict."""
    stories: list[Story] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    duration_s: float = 0.0

    def all_checks(self) -> list[Check]:
        """Every check made."""
        return [*self.checks, *(self.verdict.checks if self.verdict else ())]

    @property
    def ok(self) -> bool:
        """Whether the demo proved what it set out to prove."""
        return self.verdict is not None and all(check.ok for check in self.all_checks())

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(p for p in self.phases if p.name == name)
