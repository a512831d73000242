"""Judges of histories: what clients saw, without a look inside. A checker returns the anomalies it finds; none, if the promise held.

| promised | checker | anomalies |
|---|---|---|
| causal consistency | `causal_consistency` | thin-air read, cyclic causality, stale read, missed write |
| causal convergence | `causal_convergence` | the same, and conflicts that are not decided alike everywhere |
| sessions | `session_guarantees` | read your writes, monotonic reads, monotonic writes, writes follow reads |
| batches | `atomic_visibility` | fractured read, intermediate read, a batch that does not see itself |
| retries | `at_most_once`, `counted_once` | a request with two effects, an answer without one |
| one home | `linearizable` | no order in real time explains the answers |

Not promised by a store that takes writes in every region, and therefore only named: `lost_updates` (what lost is in the
journal) and `long_forks`.

All need *differentiated* histories, in which no two transactions write the same value to one key; `History` refuses others.
"""

from __future__ import annotations

from crdtkv.simulation.checkers.atomicity import atomic_visibility
from crdtkv.simulation.checkers.causal import causal_consistency, causal_convergence, long_forks, lost_updates
from crdtkv.simulation.checkers.history import Anomaly, History, Read, Transaction, Write
from crdtkv.simulation.checkers.linearizable import Call, CounterModel, Model, RegisterModel, Undecided, linearizable
from crdtkv.simulation.checkers.once import Answer, at_most_once, counted_once
from crdtkv.simulation.checkers.sessions import session_guarantees

__all__ = [
    "Anomaly",
    "Answer",
    "Call",
    "CounterModel",
    "History",
    "Model",
    "Read",
    "RegisterModel",
    "Transaction",
    "Undecided",
    "Write",
    "at_most_once",
    "atomic_visibility",
    "causal_consistency",
    "causal_convergence",
    "counted_once",
    "linearizable",
    "long_forks",
    "lost_updates",
    "session_guarantees",
]
