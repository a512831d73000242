"""Counter with resets: cumulative runs, one slot per `(origin, run)`.

A run holds `total` (signed, cumulative) as of the increment `seq`, and `base` as of the greatest reset, `base_seq`.
It is live iff `seq > base_seq`; the value is the sum of `total - base` over live runs. An increment replaces its
origin's run by a greater total at a greater seq, so it is idempotent in any snapshot; runs join by greater seq,
pairwise (a maximum of totals would lose decrements). A reset names each run it has seen with its total and seq, and
never creates one: increments it has not seen survive, and two concurrent resets subtract once. An origin whose run
was reset opens a new one, named by its next seq: re-dotting the old one at each increment would let a reset miss
what it had seen.

A run that is not live counts for nothing, but its `base` must stay while an increment of it that had not seen the reset may
still come: without it, the whole total would count again. So dead runs are listed, each under what killed it, and one is
dropped (`Replica.forget_stable`) once that is causally stable and its origin is known to have seen it, or to have opened
another since, all of the origin's commits up to that knowledge being applied here: from then on that origin only writes to
newer runs. Whoever still holds the run has a dot that the version vector here covers; by the absence rule it is dropped there,
too, and never comes back.

Sources: the remove/re-add and double-reset defects of riak_dt (#53, #98); Weidner and Almeida, "An Oblivious
Observed-Reset Embeddable Replicated Counter" (PaPoC 2022), for the alternative that needs FIFO delivery.
"""

from __future__ import annotations

import msgspec

from crdtkv.core.apply import Applier
from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.codec import SlotType, slot_of
from crdtkv.core.frame import Delta
from crdtkv.core.state import State

DEAD_SPACE = b"z"
"""Side records of runs that are not live: the rest of the slot → the version vector of what killed it."""
SPENT_RUNS_MAX = 8
"""So many runs of one origin that are not live wait at a key, at most, for being replaced."""


class Run(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One origin's stretch between resets. `seq` and `base_seq` never decrease."""

    total: int
    seq: int
    base: int
    base_seq: int

    @property
    def live(self) -> bool:
        return self.seq > self.base_seq

    @property
    def amount(self) -> int:
        """What it adds to the counter's value."""
        return self.total - self.base if self.seq > self.base_seq else 0


encode_run = msgspec.msgpack.Encoder().encode
decode_run = msgspec.msgpack.Decoder(Run).decode
_encode_name = msgspec.msgpack.Encoder().encode
_decode_name = msgspec.msgpack.Decoder(tuple[str, int]).decode


def run_slot(key: bytes, origin: Origin, run: int) -> bytes:
    """The slot of one run."""
    return slot_of(key, SlotType.COUNTER, _encode_name((origin, run)))


def run_name(subkey: bytes) -> tuple[Origin, int]:
    """The `(origin, run)` inside a run's slot."""
    origin, run = _decode_name(subkey)
    return Origin(origin), run


def dead_key(slot: bytes) -> bytes:
    """The side record that lists a run as dead."""
    return DEAD_SPACE + slot[1:]


def list_dead(state: State, slot: bytes, by: VersionVector | None) -> None:
    """List a run as dead by what `by` covers; None: it is live, or gone."""
    state.side_put(dead_key(slot), None if by is None else by.to_bytes())


def join_runs(mine: Run, theirs: Run) -> Run:
    """The pairwise join: the total of the greater seq, the base of the greater base_seq."""
    total, seq = (theirs.total, theirs.seq) if theirs.seq > mine.seq else (mine.total, mine.seq)
    base, base_seq = (theirs.base, theirs.base_seq) if theirs.base_seq > mine.base_seq else (mine.base, mine.base_seq)
    return Run(total, seq, base, base_seq)


def apply_add(step: Applier, delta: Delta) -> None:
    """`[kind, key, run, total]`."""
    key = delta[1].encode()
    slot = run_slot(key, step.origin, delta[2])
    record = step.state.get(slot)
    if record is None:
        run = Run(delta[3], step.seq, 0, 0)
        _drop_replaced(step, key)
        step.heads.add_run(key, step.origin, delta[2])
    else:
        old = decode_run(record)
        run = Run(delta[3], step.seq, old.base, old.base_seq)
        if not old.live:
            list_dead(step.state, slot, None)
    step.state.put(slot, encode_run(run))
    step.meet_removal(key, SlotType.COUNTER, b"", None)
    step.changed(delta[1], SlotType.COUNTER, b"", "increment")


def _drop_replaced(step: Applier, key: bytes) -> None:
    """An origin opens a run because it has seen its last ones reset: where the new one arrives they are not needed any more.

    They go a few at a time. So a counter that is reset over and over stays small without anybody knowing what is stable.
    """
    mine = [number for origin, number in step.heads.runs(key) if origin == step.origin]
    if len(mine) >= SPENT_RUNS_MAX:
        for number in mine:
            slot = run_slot(key, step.origin, number)
            record = step.state.get(slot)
            if record is not None and not decode_run(record).live:
                step.state.put(slot, None)
                list_dead(step.state, slot, None)
                step.heads.drop_run(key, step.origin, number)


def apply_reset(step: Applier, delta: Delta) -> None:
    """`[kind, key, [[origin, run, total, seq], …]]`."""
    key = delta[1].encode()
    named = set()
    for origin, number, total, seq in delta[2]:
        named.add((origin, number))
        slot = run_slot(key, origin, number)
        record = step.state.get(slot)
        if record is None:
            continue  # dropped here already; a reset never creates a run
        run = decode_run(record)
        was_live = run.live
        if seq > run.base_seq:
            run = Run(run.total, run.seq, total, seq)
            if seq > run.seq:
                run = Run(total, seq, total, seq)
            step.state.put(slot, encode_run(run))
            if was_live and not run.live:
                list_dead(step.state, slot, VersionVector({step.origin: step.seq}))
    step.note_removal(key, SlotType.COUNTER)
    if not step.local:
        _journal_survivors(step, key)
    step.changed(delta[1], SlotType.COUNTER, b"", "reset")


def _journal_survivors(step: Applier, key: bytes) -> None:
    """A reset that arrives after increments it had not seen: they survive, and the journal says so."""
    for origin, number in step.heads.runs(key):
        record = step.state.get(run_slot(key, origin, number))
        if record is not None:
            run = decode_run(record)
            if run.live and step.seen.get(origin, 0) < run.seq:
                step.journal_reset_lost(key, origin, run.seq)
