"""A case: a seed, a scenario, and what a user fixes of what the seed would draw. A case is run exactly again by its command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from crdtkv.simulation.options import REGIONS, SCENARIOS, Options
from crdtkv.simulation.world import Outcome, World, without_collection

FAULTS: Final = ("absences", "clocks", "connections", "crashes", "cuts", "disks", "slow", "truncations")
"""Kinds of faults that can be switched off: regions that are away until nobody has the log that they lack, wrong, drifting and jumping
clocks, lost connections, crashes of processes and machines, cut and flapping links, full, failing, rotting, rolled back and lost disks,
slow regions, truncated logs. Delays, and reordering between links, are always there: they are how a network is."""
REGIONS_MIN: Final = 2
REGIONS_MAX: Final = len(REGIONS)
OPS_MAX: Final = 1_000
"""A run of so many requests takes some seconds, and the checks at its end grow as the square of its requests."""
MODES: Final = ("safety", "liveness")
"""Faults never stop; or they do, at least for a core of the regions, which must then make progress."""
_BUSY_OPS: Final = 40
"""More client requests than this, and than are drawn, take more virtual time, at the same rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run, completely.

    Attributes:
        seed, scenario: what everything else is drawn from.
        regions: how many; None: as drawn. So are `ops`, the number of client requests (each is up to three transactions),
        faults: the kinds that may happen, and then do as drawn.
        mode: one of `MODES`; None: as drawn, most often liveness.
    """

    seed: int
    scenario: str = "mixed"
    regions: int | None = None
    ops: int | None = None
    faults: frozenset[str] = frozenset(FAULTS)
    mode: str | None = None

    def __post_init__(self) -> None:
        assert self.mode is None or self.mode in MODES
        assert self.scenario in SCENARIOS and self.faults <= frozenset(FAULTS)
        assert self.regions is None or REGIONS_MIN <= self.regions <= REGIONS_MAX
        assert self.ops is None or 1 <= self.ops <= OPS_MAX

    def adjust(self, drawn: Options) -> Options:
        """What was drawn, with what this case fixes."""
        options = drawn
        if self.regions is not None:
            options = replace(options, regions=self.regions, bridge=options.bridge and self.regions > 2)
        if self.ops is not None:
            busy_s = options.busy_s * max(1.0, self.ops / max(_BUSY_OPS, options.transactions))
            options = replace(options, transactions=self.ops, busy_s=busy_s)
        if "cuts" not in self.faults:
            options = replace(options, cuts=0.0, flaps=0.0, bridge=False, core_min=0)
        if "connections" not in self.faults:
            options = replace(options, resets=0.0)
        if "crashes" not in self.faults:
            options = replace(options, crashes=0.0, install_crashes=0.0, stops=False)
        if "truncations" not in self.faults:
            options = replace(options, truncations=0.0)
        if "disks" not in self.faults:
            options = replace(options, fulls=0.0, losses=0.0, errors=0.0, rots=0.0, filed=False)
        if "slow" not in self.faults:
            options = replace(options, slows=0.0)
        if "absences" not in self.faults:
            options = replace(options, absences=0, late=False)
        if "clocks" not in self.faults:
            options = replace(options, skew_ms=0, drift=0.0, jumps=0.0)
        if self.mode is not None:
            options = replace(options, safety=self.mode == "safety")
        return options

    def command(self) -> str:
        """What to type to run it again."""
        words = [f"crdtkv simulate --seed {self.seed} --scenario {self.scenario}"]
        if self.regions is not None:
            words.append(f"--regions {self.regions}")
        if self.ops is not None:
            words.append(f"--ops {self.ops}")
        if self.faults != frozenset(FAULTS):
            words.append(f"--faults {','.join(sorted(self.faults)) or 'none'}")
        if self.mode is not None:
            words.append(f"--mode {self.mode}")
        return " ".join(words)


class CaseWorld(World):
    """A world whose options are those of a case. Where the case fixes nothing, its trace is that of `simulate(seed, scenario)`."""

    def __init__(self, case: Case) -> None:
        self.case = case
        super().__init__(case.seed, case.scenario)

    def drawn(self) -> Options:
        """What the seed draws, as the case changes it."""
        return self.case.adjust(super().drawn())


def run_case(case: Case) -> Outcome:
    """Run one case."""
    with without_collection():
        return CaseWorld(case).run()
