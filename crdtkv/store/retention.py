"""Dropping the log's prefix, and what is remembered only for the sake of commits in it.

Each round is a few steps, so that its caller can hold the store's lock for the short ones only:

1. `due` decides (`storage/retention.py`), from what the members have acknowledged.
2. `forget` (lock held, a slice at a time): removals and dead counter runs that are stable go from the state.
3. `fold` (lock held): the engine has everything up to a position of the log.
4. `flush` (no lock): log, then engine, on the disk up to there. This order, so that the engine is never ahead of the log.
5. `drop` (no lock): the log's parts go, never beyond what was flushed.

A crash in between leaves more than was decided, and the next round begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.storage.retention import Acknowledgement, Due, RetentionPolicy, is_roll_due, what_is_due

if TYPE_CHECKING:
    from crdtkv.store.machine import Machine

RUNS_AT_ONCE = 5_000
"""Dead counter runs that are looked at in one step."""


class Retention:
    """What one machine keeps of its log, and for whom."""

    def __init__(self, machine: Machine, policy: RetentionPolicy) -> None:
        self._machine = machine
        self.policy = policy
        self.members: dict[str, Acknowledgement | None] = {}
        self.last = Due()
        """The latest decision, for whoever asks what is kept."""
        self._forced: set[str] = set()

    def acknowledged(self, members: Mapping[str, Acknowledgement | None]) -> None:
        """These are the other regions, and what each has fsynced; None: nothing new is known of it. See `Store.acknowledged`."""
        self.members = {region: self.members.get(region) if ack is None else ack for region, ack in members.items()}

    def _known(self) -> dict[str, Acknowledgement | None]:
        """What the members have, closed origins included, as the log counts them; whoever was removed counts no more."""
        control = self._machine.replica.control
        gone = {region for region, member in control.members.items() if member.is_removed}
        return {
            region: None if ack is None else Acknowledgement(ack.origin, control.complete(ack.durable))
            for region, ack in self.members.items()
            if region not in gone
        }

    def warnings(self) -> tuple[str, ...]:
        """What an operator should know of, one line each."""
        found, held, floor = [], self.last.held_by, self._machine.log.floor()
        # A region that was away is listed until it has what was dropped without it.
        known = self._known()
        forced = sorted(r for r in self._forced & known.keys() if (ack := known[r]) is None or not floor <= ack.durable)
        if held and (size := self._machine.log.retained_bytes()) > self.policy.bytes_kept:
            found.append(
                f"the log holds {size:,} bytes, more than log_keep_bytes, for {', '.join(held)}: bring it back or remove it from the "
                f"cluster; above {self.policy.bytes_max:,} (log_bytes_max) the log goes on without it, and it will need a snapshot"
            )
        if forced:
            found.append(f"the log was above log_bytes_max and dropped what {', '.join(forced)} lacks: it will need a snapshot")
        return tuple(found)

    def due(self, now_ms: int) -> Due:
        """What may go now."""
        machine = self._machine
        if machine.engine_is_rebuilt:
            return Due()  # the log is all there is
        log = machine.log
        self.last = what_is_due(log.parts(), log.retained_bytes(), self._known(), machine.replica.vv(), self.policy, now_ms)
        return self.last

    def roll_due(self, now_ms: int) -> bool:
        """Whether the part of the log that is written to should be ended (`CommitLog.roll`, lock held)."""
        begun_ms = self._machine.log.begun_ms()
        return begun_ms is not None and not self._machine.engine_is_rebuilt and is_roll_due(begun_ms, self.policy, now_ms)

    def forget(self, due: Due, cursor: bytes = b"") -> bytes:
        """Forget what is stable, a slice; where to go on, empty when done."""
        said: dict[Origin, VersionVector] = {ack.origin: ack.durable for ack in self._known().values() if ack is not None}
        return self._machine.replica.forget_stable(due.stable, said, RUNS_AT_ONCE, cursor)

    def fold(self) -> int:
        """Have the engine take in everything; the log position that it then stands at."""
        self._machine.fold()
        return self._machine.replica.position

    def flush(self, position: int) -> None:
        """Have log and engine on the disk up to a position that was folded."""
        self._machine.flush(position)

    def note_durable(self) -> None:
        """Have it known what of the frames that may go is fsynced, while they are there (lock held)."""
        self._machine.durable_vv()

    def drop(self, due: Due) -> None:
        """Drop what is due and flushed; may run beside everything else. After `note_durable`."""
        machine = self._machine
        if due.position:
            self._forced |= set(due.forced)
            machine.log.truncate(min([due.position, machine.flushed, *machine.pins.values()]))

    def run(self, due: Due) -> None:
        """All steps in one, for a caller that nobody waits for."""
        cursor = self.forget(due)
        while cursor:
            cursor = self.forget(due, cursor)
        self.flush(self.fold())
        self.note_durable()
        self.drop(due)
