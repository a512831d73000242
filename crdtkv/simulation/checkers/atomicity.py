"""Atomic visibility of batches: all of a transaction's writes are seen, or none; and it sees its own.

    fractured read       one key of a batch's, and of another key something from before the batch
    intermediate read    a value that its batch itself had overwritten
    blind batch          a batch that does not read what it has just written, or reads one key in two ways

"Before" is by the least order that explains the reads: if T reads x from T1, and y, which T1 wrote too, from T0, then T0 must
come after T1. With session order and read-from these edges must have no cycle. This asks that one order of all writes explains every
read, which crdtkv promises where `causal_convergence` holds. Where a write may carry a smaller stamp than the one that it overwrites, three
whole batches can win over each other in a ring; then "before" is causal order alone.

Sources: Bailis, Fekete, Hellerstein, Ghodsi, Stoica, "Scalable atomic visibility with RAMP transactions" (SIGMOD 2014), section 3;
Biswas and Enea, "On the complexity of checking transactional consistency" (OOPSLA 2019), figure 2, Read Atomic; Adya, "Weak
consistency" (1999), G1b for intermediate reads.
"""

from __future__ import annotations

from crdtkv.simulation.checkers.history import INITIAL, THIN_AIR, Anomaly, History, closure, holds


def atomic_visibility(history: History, *, convergent: bool = True) -> list[Anomaly]:
    """Every read that saw part of a batch. `convergent`: one order of all writes explains every read, as `causal_convergence` demands."""
    found = [
        Anomaly("intermediate read", (writer, number), f"{history.say(number)} saw at {key} what {history.say(writer)} overwrote itself")
        for number, writer, key in history.intermediate
    ]
    found += [
        Anomaly("blind batch", (number,), f"{history.say(number)} read {seen!r} at {key}, where it had written {wanted!r}")
        for number, key, seen, wanted in history.inside
    ]
    found += [Anomaly("blind batch", (number,), f"{history.say(number)} read {key} in two ways") for number, key in history.repeated]
    split = [
        (number, batch, key, writer)
        for number, reads in enumerate(history.reads)
        for batch in sorted({writer for writer in reads.values() if writer >= 0 and writer != number})
        for key, writer in reads.items()
        if key in history.writes[batch] and writer not in (batch, THIN_AIR)
    ]
    order = history.co
    if convergent:
        before = list(history.direct)
        for _, batch, _, writer in split:
            if writer != INITIAL:
                before[writer] |= 1 << batch
        order = closure(before)
    return found + [
        Anomaly("fractured read", (batch, number), f"{history.say(number)} saw part of {history.say(batch)}, but {key} from before it")
        for number, batch, key, writer in split
        if writer == INITIAL or holds(order, writer, batch)
    ]
