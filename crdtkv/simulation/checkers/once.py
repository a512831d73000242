"""Retries with a request id take effect at most once, and once if they were answered. Judged from outside.

Sources: Birrell and Nelson, "Implementing remote procedure calls" (TOCS 1984), for the semantics; Lee et al., "Implementing
linearizability at large scale and low latency" (RIFL, SOSP 2015), for ids that outlive a retry elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

from crdtkv.simulation.checkers.history import Anomaly

UNCERTAIN_MAX = 10_000
"""More different sums than this of unanswered increments are not told apart."""


class Answer(NamedTuple):
    """What one attempt at a request was told: the commit it made, or None if no answer came."""

    request: Hashable
    commit: Hashable | None


def at_most_once(answers: Iterable[Answer], effects: Mapping[Hashable, Hashable]) -> list[Anomaly]:
    """Hold answers and effects against each other.

    Args:
        answers: of all attempts, repeated ones too.
        effects: each commit that is visible in the end → the request it was made for.
    """
    made: dict[Hashable, list[Hashable]] = {}
    for commit, request in effects.items():
        made.setdefault(request, []).append(commit)
    found = [
        Anomaly("applied twice", (), f"request {request!r} took effect as {', '.join(map(str, commits))}")
        for request, commits in made.items()
        if len(commits) > 1
    ]
    told: dict[Hashable, Hashable] = {}
    for request, answer in answers:
        if answer is None:
            continue
        if effects.get(answer) != request:
            found.append(Anomaly("answered without effect", (), f"request {request!r} was told {answer}, which nobody has"))
        if told.setdefault(request, answer) != answer:
            found.append(Anomaly("two answers", (), f"request {request!r} was told {told[request]} and {answer}"))
    return found


def counted_once(value: int, answered: Iterable[int], unanswered: Iterable[int]) -> list[Anomaly]:
    """A counter's final value is the sum of the answered increments, and of some of the unanswered ones, each once.

    Raises:
        ValueError: too many different sums are possible for the question to have a useful answer.
    """
    sums = {sum(answered)}
    least = min(sums)
    for amount in unanswered:
        sums |= {total + amount for total in sums}
        if len(sums) > UNCERTAIN_MAX:
            raise ValueError(f"more than {UNCERTAIN_MAX:,} sums are possible")
    if value in sums:
        return []
    return [
        Anomaly(
            "miscounted", (), f"the counter is {value}; answered increments are {least}, with unanswered ones one of {sorted(sums)[:10]}"
        )
    ]
