"""What clients of simulated clusters saw, judged by the history checkers: no look inside, sessions that wander between regions.

A session carries what it has seen as a token, and a region serves it once it has applied that: this is all that the session
guarantees need. The same clients without tokens must be caught, else the checkers or the runs would prove nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from crdtkv.core.causality import EMPTY_VV
from crdtkv.core.codec import SlotType, decode_value, encode_value, slot_of
from crdtkv.simulation import Options
from crdtkv.simulation.case import FAULTS, Case, CaseWorld
from crdtkv.simulation.checkers import (
    History,
    Read,
    Transaction,
    Write,
    atomic_visibility,
    causal_consistency,
    causal_convergence,
    long_forks,
    lost_updates,
    session_guarantees,
)
from crdtkv.simulation.member import Member
from crdtkv.simulation.specification import Operation
from crdtkv.simulation.specification import Write as Written
from crdtkv.store.transaction import Transaction as Buffer

KEYS = ("x", "y", "z")
SESSIONS = ("ann", "bob", "cem", "dee")
SEEDS = 12


class RecordedWorld(CaseWorld):
    """Clients that read and write registers, several keys at a time, and write down what they saw."""

    def __init__(self, case: Case, *, tokens: bool = True) -> None:
        self.tokens = tokens
        self.transactions: list[Transaction] = []
        self.hops = self.refused = 0
        self._seen = dict.fromkeys(SESSIONS, EMPTY_VV)
        self._region: dict[str, int] = {}
        super().__init__(case)

    @property
    def options(self) -> Options:
        """Without power losses: a client may have read what is then gone, and nobody had promised it."""
        return self._recorded

    @options.setter
    def options(self, drawn: Options) -> None:
        self._recorded = replace(self.case.adjust(drawn), sync=False)

    def _client(self) -> None:
        dice = self.dice
        session = dice.pick(SESSIONS)
        before = self._region.get(session, 0)
        at = self._region[session] = dice.below(len(self.members)) if dice.chance(self.options.hop) else before
        member = self.members[at]
        if not member.is_up:
            return
        if self.tokens and not self._seen[session] <= member.machine.vv():
            self.refused += 1  # a node would let it wait; here it comes again later
            return
        self.hops += at != before
        reads = [Read(key, self._read(member, key)) for key in KEYS if dice.chance(0.6)]
        writes = [Write(key, len(self.transactions) + 1) for key in KEYS if dice.chance(0.4)]
        made = len(self.history.commits)
        if writes:
            member.serve(lambda buffer: _fill(buffer, writes), 1)
            writes = writes if len(self.history.commits) > made else []  # a clock too far off refuses
        if reads or writes:
            self.transactions.append(Transaction(session, (*reads, *writes)))
        self._seen[session] = member.machine.vv()
        self.changed(member)

    @staticmethod
    def _read(member: Member, key: str) -> object:
        entry = member.reader.entry(slot_of(key.encode(), SlotType.REGISTER, b""))
        return None if entry is None else decode_value(entry.value)


def _fill(buffer: Buffer, writes: list[Write]) -> tuple[list[list[object]], tuple[Operation, ...]]:
    for key, value in writes:
        buffer.put(key, encode_value(value))
    return buffer.deltas(), tuple(Written((key, "register", b""), encode_value(value)) for key, value in writes)


def recorded(scenario: str, seed: int, *, tokens: bool = True) -> tuple[RecordedWorld, History]:
    case = Case(seed=seed, scenario=scenario, regions=3, ops=60, faults=frozenset(FAULTS))
    print(f"seed {seed} scenario {scenario}", flush=True)
    world = RecordedWorld(case, tokens=tokens)
    outcome = world.run()
    assert not outcome.violations, outcome.violations[0]
    return world, History(world.transactions)


@pytest.mark.parametrize("scenario", ("mixed", "relay", "crashes", "ties"))
def test_what_clients_see_is_causal_atomic_and_keeps_to_sessions(scenario: str) -> None:
    met: Counter[str] = Counter()
    for seed in range(40_000, 40_000 + SEEDS):
        world, history = recorded(scenario, seed)
        assert not causal_consistency(history)
        assert not session_guarantees(history)
        assert not atomic_visibility(history)
        options = world.options
        agree = not (options.skew_ms or options.drift or options.jumps)
        if agree or options.core.max_skew_ms >= 60_000:  # no clock is so far off that others do not absorb its stamps
            assert not causal_convergence(history)
            met["convergence judged"] += 1
        met += Counter(hops=world.hops, refused=world.refused, transactions=len(history), lost=len(lost_updates(history)))
    assert met["hops"] > 50 and met["transactions"] > 300, "the sessions hardly moved"
    assert met["refused"] and met["lost"] and met["convergence judged"], f"too tame a load: {met}"


def test_without_tokens_the_checkers_find_it() -> None:
    found: Counter[str] = Counter()
    for seed in range(40_000, 40_000 + SEEDS):
        _, history = recorded("relay", seed, tokens=False)
        anomalies = session_guarantees(history)
        assert bool(anomalies) <= bool(causal_consistency(history)), "what breaks a session guarantee is not causal either"
        assert not atomic_visibility(history) or anomalies, "batches are whole, whoever reads them"
        found.update(anomaly.name for anomaly in anomalies)
    assert {"read your writes", "monotonic reads"} <= found.keys()


def test_long_forks_happen_and_are_allowed() -> None:
    """Two regions see two writes in opposite orders: the price of taking writes in both."""
    assert any(long_forks(recorded("ties", seed)[1]) for seed in range(40_000, 40_000 + 5 * SEEDS))
