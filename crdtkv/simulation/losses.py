"""Whether nothing was lost in silence: the journals, held against what the specification says has lost.

Of two updates that had not seen each other one loses, and whoever applies the later one by log writes it down in its journal. So once a
run has ended, each live write that is not read, and each removal that a live write survived, must be told of by every replica to
which both came by log; each such write by at least one of all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from crdtkv.core.causality import Dot, VersionVector, region_of
from crdtkv.core.codec import TYPE_NAMES
from crdtkv.core.frame import Frame
from crdtkv.core.journal import Record
from crdtkv.simulation.rules import must
from crdtkv.simulation.specification import Clear, Commit, History, Operation, Place, Remove, Reset, Slot, beaten, concurrent, place_of
from crdtkv.simulation.words import place_name

if TYPE_CHECKING:
    from crdtkv.simulation.member import Member

Forgotten = Sequence[tuple[int, VersionVector]]
"""Where a replica's log ended when it forgot what of the removals."""
_REMOVING: Final = (Remove, Clear, Reset)


class _Arrival(NamedTuple):
    """How a commit came to a replica by log."""

    position: int
    """Among all the commits that did."""
    frame: int
    """The position of its frame."""
    stretch: int
    """After so many installs: only within one stretch did two come by log with all that either had seen."""


class Losses:
    """See the module's docstring. Of one simulation."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._removals: dict[tuple[Dot, Operation], bool] = {}
        """Whether there was anything to remove."""
        self._had_before: dict[str, list[VersionVector]] = {}
        """By region: what it may have acknowledged whenever its directory was lost or put back: it may write without having seen that."""

    def forget(self) -> None:
        """Commits were lost before anybody was told: what rests on the history is to be judged again."""
        self._removals.clear()

    def went_back(self, region: str, durable: VersionVector) -> None:
        """Its directory was lost or put back; until then it had had this durably."""
        self._had_before.setdefault(region, []).append(durable)

    def check(self, member: Member, frames: Sequence[Frame], forgotten: Forgotten) -> None:
        """10: each update that lost against one it had not seen is in the journal of whoever applied both by log, unless trimmed: then it
        is counted. What came by a snapshot was judged where it came by log; `check_together` sees to that.

        Args:
            frames: what came by log, in the order in which it came.
            forgotten: what of the removals was forgotten as stable, and where the log ended then.
        """
        vv, journal = member.machine.vv(), member.machine.replica.journal
        counts, records = journal.counts, list(journal.records())
        must(sum(counts.by_rule.values()) == journal.total == counts.first + len(records), f"{member.region}: the journal counts {counts}")
        if counts.first:
            return
        losers, came = _losers_in(records), _came_by_log(member, frames)
        for slot, lost, won in self._beaten_writes(vv):
            if lost in came and won in came:
                must(lost in losers, f"{member.region}: {lost} lost at {place_name(slot)}, and the journal does not say so")
        for removal, (key, kind) in self._beaten_removals(vv, came, forgotten):
            told = any(TYPE_NAMES[r.type_code] == kind and r.key == key.encode() for r in losers.get(removal, ()))
            must(told, f"{member.region}: the removal {removal} at {key} ({kind}) lost, and the journal does not say so")

    def check_together(self, members: Sequence[Member]) -> None:
        """10: each write that lost is in the journal of at least one region, if none has been trimmed, and no disk was lost.

        Args:
            members: all that there ever were; they are equal by now.
        """
        if any(member.machine.replica.journal.counts.first for member in members):
            return
        losers = {dot for member in members for dot in _losers_in(member.machine.replica.journal.records())}
        for slot, lost, _ in self._beaten_writes(members[0].machine.vv()):
            must(lost in losers, f"{lost} lost at {place_name(slot)}, and the journal does not say so anywhere")

    def _beaten_writes(self, vv: VersionVector) -> Iterator[tuple[Slot, Dot, Dot]]:
        """Each live write that is not read: its slot, its dot, and that of the one that is."""
        for slot, live in self._history.state(vv).slots.items():
            if slot[1] != "set" or len({write.expiry for write in live}) > 1:
                chosen = max(live, key=lambda write: (write.hlc, write.dot.origin))
                for write in beaten(live):
                    yield slot, write.dot, chosen.dot

    def _beaten_removals(
        self, vv: VersionVector, came: Mapping[Dot, _Arrival], forgotten: Forgotten
    ) -> Iterator[tuple[Dot, tuple[str, str]]]:
        """Removals that a write or increment which is still live had not seen, nor they it.

        A write meets each removal that comes after it; and of those before it, the ones that no other of them had seen, unless it was
        made by a region that had had that one on a disk that is gone: then it may have been forgotten here as stable.
        A removal that found nothing to remove lost nothing.
        """
        removals_at: dict[Place, list[tuple[Commit, Operation]]] = {}
        for places, write in self._surviving(vv):
            if (here := came.get(write.dot)) is None:
                continue
            for place in places:
                removals = removals_at.get(place)
                if removals is None:
                    done = self._history.at.get(place, ())
                    removals = removals_at[place] = [(c, op) for c, op in done if isinstance(op, _REMOVING) and c.dot in came]
                for commit, op in removals:
                    there = came[commit.dot]
                    if there.stretch != here.stretch or not concurrent(commit, write) or not self._removed(commit, op):
                        continue
                    if there.position < here.position:
                        earlier = [other for other, _ in removals if came[other.dot].position < here.position]
                        if any(other.past.covers(commit.dot) for other in earlier):
                            continue
                    was_forgotten = any(end <= here.frame and stable.covers(commit.dot) for end, stable in forgotten)
                    if not (was_forgotten and self._has_unlearned(write.dot, commit.dot)):
                        yield commit.dot, place[:2]

    def _has_unlearned(self, write: Dot, other: Dot) -> bool:
        """Whether the region that made a write had had another commit before that, durably, on a disk that was lost or put back."""
        return any(vv.covers(other) and not vv.covers(write) for vv in self._had_before.get(region_of(write.origin), ()))

    def _surviving(self, vv: VersionVector) -> Iterator[tuple[tuple[Place, ...], Commit]]:
        """Each live write and increment, with the places where a removal could have met it."""
        state = self._history.state(vv)
        for slot, live in state.slots.items():
            for write in live:
                places = (slot, slot[:2]) if slot[1] in ("set", "map") else (slot,)
                yield places, self._history.commits[write.dot]
        for key, amounts in state.increments.items():
            for dot in amounts:
                yield ((key, "counter"),), self._history.commits[dot]

    def _removed(self, commit: Commit, operation: Operation) -> bool:
        """Whether there was something to remove: judged once, for all replicas."""
        found = self._removals.get((commit.dot, operation))
        if found is None:
            found = self._removals[commit.dot, operation] = self._had_something(commit, operation)
        return found

    def _had_something(self, commit: Commit, operation: Operation) -> bool:
        if isinstance(operation, Reset):
            return self._history.counter(commit.past, operation.key)[0] > 0
        if isinstance(operation, Clear):
            return any(self._history.live(commit.past, s) for s in self._history.slots if s[:2] == place_of(operation))
        assert isinstance(operation, Remove)
        return bool(self._history.live(commit.past, operation.slot))


def _losers_in(records: Iterable[Record]) -> dict[Dot, list[Record]]:
    """The records that tell of each update that lost."""
    losers: dict[Dot, list[Record]] = {}
    for record in records:
        for update in record.losers:
            losers.setdefault(Dot(update.origin, update.seq), []).append(record)
    return losers


def _came_by_log(member: Member, frames: Sequence[Frame]) -> dict[Dot, _Arrival]:
    """How each commit came to a replica, but for those that a snapshot brought."""
    came: dict[Dot, _Arrival] = {}
    jumps = [at for at, _ in member.log.jumps]
    for at, frame in enumerate(frames):
        stretch = bisect_right(jumps, at)
        for seq in range(frame.first_seq, frame.last_seq + 1):
            came[Dot(frame.origin, seq)] = _Arrival(len(came), at, stretch)
    return came
