"""What clients of simulated clusters saw, judged by the history checkers: no look inside, sessions that wander between regions.

A session carries what it has seen as a token, and a region serves it once it has applied that: this is all that the session
guarantees need. The same clients without tokens must be caught, else the checkers or the runs would prove nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from crdtkv.simulation import Options
from crdtkv.simulation.case import Case, CaseWorld
from crdtkv.simulation.checkers import (
    History,
    atomic_visibility,
    causal_consistency,
    causal_convergence,
    long_forks,
    lost_updates,
    session_guarantees,
)
from crdtkv.simulation.rules import broken_rule

SEEDS = 12


class RecordedWorld(CaseWorld):
    """Clients that only read and write registers, several at a time, and write down what they saw."""

    def __init__(self, case: Case, *, tokens: bool = True) -> None:
        super().__init__(case)
        self.clients.tokens, self.clients.recorded = tokens, 1.0

    @property
    def options(self) -> Options:
        """Without power losses and failing disks: a client may have read what is then gone, and nobody had promised it."""
        return self._recorded

    @options.setter
    def options(self, drawn: Options) -> None:
        self._recorded = replace(self.case.adjust(drawn), sync=False, errors=0.0, fulls=0.0)


def recorded(scenario: str, seed: int, *, tokens: bool = True) -> tuple[RecordedWorld, History]:
    print(f"seed {seed} scenario {scenario}", flush=True)
    world = RecordedWorld(Case(seed=seed, scenario=scenario, regions=3, ops=60), tokens=tokens)
    outcome = world.run()
    assert not tokens or not outcome.violations, outcome.violations[0]
    return world, History(world.clients.transactions)


@pytest.mark.parametrize("scenario", ("mixed", "relay", "crashes", "ties"))
def test_what_clients_see_is_causal_atomic_and_keeps_to_sessions(scenario: str) -> None:
    met: Counter[str] = Counter()
    for seed in range(40_000, 40_000 + SEEDS):
        world, history = recorded(scenario, seed)
        assert not causal_consistency(history)
        assert not session_guarantees(history)
        assert not atomic_visibility(history)
        if world.options.core.max_skew_ms >= 60_000:  # no clock is so far off that others do not absorb its stamps
            assert not causal_convergence(history)
            met["convergence judged"] += 1
        met += Counter(
            hops=world.rare["session_hopped"],
            waited=world.rare["session_waited"],
            transactions=len(history),
            lost=len(lost_updates(history)),
        )
    assert met["hops"] > 50 and met["transactions"] > 300, "the sessions hardly moved"
    assert met["waited"] and met["lost"], f"too tame a load: {met}"
    assert met["convergence judged"] or scenario == "ties", "no clocks near enough to each other"


def test_without_tokens_the_simulator_and_the_checkers_find_it() -> None:
    found: Counter[str] = Counter()
    for seed in range(40_000, 40_000 + SEEDS):
        world, history = recorded("relay", seed, tokens=False)
        anomalies = session_guarantees(history)
        assert bool(anomalies) <= bool(causal_consistency(history)), "what breaks a session guarantee is not causal either"
        assert not atomic_visibility(history) or anomalies, "batches are whole, whoever reads them"
        assert not anomalies or "sees what was promised" in broken_rule(world.violations[0]).text, "the run itself must notice"
        found.update(anomaly.name for anomaly in anomalies)
    assert {"read your writes", "monotonic reads"} <= found.keys()


def test_long_forks_happen_and_are_allowed() -> None:
    """Two regions see two writes in opposite orders: the price of taking writes in both."""
    assert any(long_forks(recorded("ties", seed)[1]) for seed in range(40_000, 40_000 + 5 * SEEDS))
