"""Causal consistency and causal convergence by bad patterns, for differentiated histories in polynomial time.

A history is causally consistent iff it has none of

    cyclic causality      co is cyclic                                                          CyclicCO
    thin-air read         a value that nobody wrote                                             ThinAirRead
    missed write          the initial value read after (co) a write of the key                  WriteCOInitRead
    stale read            from a writer whose value another had overwritten, co-before the reader   WriteCORead

and causally *convergent*, so that one order of all writes explains every read, iff besides

    diverging conflict    co ∪ cf is cyclic: w1 cf w2 if somebody read w2 of a key and had w1 of that key co-before    CyclicCF

crdtkv promises the first, and the second for plain writes as long as no clock is off by more than the bound on what others
absorb: beyond it a later write may carry a smaller stamp than the one it overwrites.

Source: Bouajjani, Enea, Guerraoui, Hamza, "On verifying causal consistency" (POPL 2017), theorems 4.1 to 4.3 and table 2. Long
forks: Sovran, Power, Aguilera, Li, "Transactional storage for geo-replicated systems" (SOSP 2011). Lost updates: Berenson et al.,
"A critique of ANSI SQL isolation levels" (SIGMOD 1995).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from crdtkv.simulation.checkers.history import INITIAL, THIN_AIR, Anomaly, History, closure, cycle, holds, members


def causal_consistency(history: History) -> list[Anomaly]:
    """The bad patterns that are there."""
    found = [
        Anomaly("thin-air read", (number,), f"nobody wrote what {history.say(number)} read at {key}")
        for number, reads in enumerate(history.reads)
        for key, writer in reads.items()
        if writer == THIN_AIR
    ]
    ring = cycle(history.direct)
    if ring:  # what comes before what is then moot
        return [*found, Anomaly("cyclic causality", ring, f"each before the next, and the last before the first: {history.say(*ring)}")]
    return found + list(_stale(history))


def _stale(history: History) -> Iterator[Anomaly]:
    for number, reads in enumerate(history.reads):
        for key, writer in reads.items():
            for other in history.writers(key):
                if writer == THIN_AIR or other in (writer, number) or not holds(history.co, other, number):
                    continue
                if writer == INITIAL:
                    story = f"{history.say(number)} found nothing at {key} after {history.say(other)}"
                    yield Anomaly("missed write", (other, number), story)
                elif holds(history.co, writer, other):
                    story = f"{history.say(number)} read {key} of {history.say(writer)}, overwritten before by {history.say(other)}"
                    yield Anomaly("stale read", (writer, other, number), story)


def causal_convergence(history: History) -> list[Anomaly]:
    """The bad patterns of causal consistency, and conflicts that no single order of writes explains."""
    found = causal_consistency(history)
    if found:
        return found
    before = list(history.direct)
    for number, reads in enumerate(history.reads):
        for key, writer in reads.items():
            if writer >= 0:
                for other in members(history.co[number]):
                    if other != writer and key in history.writes[other]:
                        before[writer] |= 1 << other
    ring = cycle(before)
    return [Anomaly("diverging conflict", ring, f"no order of these writes explains the reads: {history.say(*ring)}")] if ring else []


def lost_updates(history: History) -> list[Anomaly]:
    """Pairs of transactions that read the same version of a key and both overwrote it, neither having seen the other.

    Not forbidden where every region takes writes; each must then be a conflict on record.
    """
    found = []
    for one, other in combinations(range(len(history)), 2):
        for key in history.writes[one].keys() & history.writes[other].keys():
            read, also = history.reads[one].get(key), history.reads[other].get(key)
            if read is not None and read == also and not holds(history.co, one, other) and not holds(history.co, other, one):
                found.append(Anomaly("lost update", (one, other), f"both had read {history.say(read)}: {history.say(one, other)}"))
    return found


def long_forks(history: History) -> list[Anomaly]:
    """Pairs of readers who saw two concurrent writes in opposite orders. Causal consistency allows them; one home does not."""
    ahead = closure(history.direct)
    behind: dict[tuple[int, int], int] = {}  # (seen writer, unseen writer) → a reader
    for number, reads in enumerate(history.reads):
        for key, writer in reads.items():
            for missed in history.writers(key):
                if missed not in (writer, number) and (writer == INITIAL or history.precedes(writer, missed)):
                    for seen in {w for k, w in reads.items() if k != key and w >= 0 and w != missed}:
                        if not holds(ahead, seen, missed) and not holds(ahead, missed, seen):
                            behind.setdefault((seen, missed), number)
    return [
        Anomaly("long fork", (reader, behind[missed, seen]), f"{history.say(reader)}, but {history.say(behind[missed, seen])}")
        for (seen, missed), reader in behind.items()
        if seen < missed and (missed, seen) in behind
    ]
