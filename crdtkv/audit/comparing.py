"""Comparing replicas while they are written to: equal, or exactly the slots that differ.

One replica is the *reference*. A view of it is taken, then one of each other replica that covers it, then, unless all stand at the
same vector, a second one of the reference that covers all of these. Each view is compared with the next (`core.compare` says why
that decides everything). Nothing is stopped and nothing must be idle; replication must go on, or the wait for it ends in an error.

Two views are compared by *descent*: digests of ranges of some thousand slots, then of parts of those that differ, then the slots
themselves. So besides one scan on each side it costs what differs times the depth, not what is held.

The parts that the descent begins with add up to the digest of the whole scan, which must be the one that the replica has kept up to
date with every commit: a replica whose two digests differ has been changed behind its back.

After: Merkle's trees as Dynamo uses them (DeCandia et al., SOSP 2007), with the ranges of an ordered map for nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from crdtkv.audit.sides import WAIT_S, Side
from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.compare import disagreement, slot_text
from crdtkv.errors import ConfigError, DeadlineExceededError, WrongClusterError
from crdtkv.store.view import FIRST, LAST, PARTS_MAX, Part, View, records

TELL_S: Final = 1.5
"""A wait that is longer is told of; one for a replica that was removed is over before."""
PART_RECORDS: Final = 4096
"""Slots of a range of the first level."""
LEAF_RECORDS: Final = 64
"""Ranges of so many slots are compared slot by slot."""
DIFFERENCES_MAX: Final = 1000
"""How many differences a certificate lists; the rest are counted."""
_MASK: Final = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Difference:
    """One slot that two replicas cannot both be right about.

    Attributes:
        slot: its bytes; `text` for people.
        regions: the two that were compared, by name; `damaged`: the one whose record is certainly damaged, "" if that is not known.
        reason: what cannot be.
    """

    slot: bytes
    regions: tuple[str, str]
    damaged: str
    reason: str

    @property
    def text(self) -> str:
        return slot_text(self.slot)


@dataclass(slots=True)
class Standing:
    """Where one replica stood. `scanned`: the digest of its records; `kept`: the one it keeps with every commit."""

    region: str
    vv: VersionVector
    scanned: str
    kept: str
    records: int

    @property
    def is_sound(self) -> bool:
        return self.scanned == self.kept


@dataclass(slots=True)
class Certificate:
    """What a comparison found.

    Attributes:
        cluster, shard: of which data.
        vv, digest: the reference's; all others were shown to agree with that state, up to commits that it had not.
        standings: one for each replica, the reference first.
        differences: the first `DIFFERENCES_MAX`; `count` of all.
    """

    cluster: str
    shard: int
    vv: VersionVector
    digest: str
    standings: list[Standing]
    differences: list[Difference] = field(default_factory=list)
    count: int = 0

    @property
    def unsound(self) -> list[Standing]:
        """The replicas whose records do not give the digest that they keep."""
        return [standing for standing in self.standings if not standing.is_sound]

    @property
    def holds(self) -> bool:
        """No difference anywhere."""
        return not self.count and not self.unsound

    @property
    def at_one_vector(self) -> bool:
        """Whether all stood at the same vector, so that the one digest is that of all."""
        return all(standing.vv == self.vv for standing in self.standings)


class Pair(NamedTuple):
    """A slot whose records differ in two views."""

    slot: bytes
    lower: bytes | None
    upper: bytes | None


def verify(
    sides: Sequence[Side],
    *,
    wait_s: float = WAIT_S,
    differences_max: int = DIFFERENCES_MAX,
    tell: Callable[[str], None] | None = None,
) -> Certificate:
    """Compare replicas; the first is the reference. See the module's docstring. O(state) on each, and O(what differs) between them.

    Args:
        wait_s: how long a replica may take to get what another one has.
        differences_max: how many are listed.
        tell: is told which replica is waited for, once that takes longer than `TELL_S`.

    Raises:
        ConfigError: the same replica twice. WrongClusterError: replicas of two clusters.
        DeadlineExceededError: one does not get what another one has. RegionRemovedError: and never will.
    """
    with ExitStack() as stack:

        def opened(side: Side, covers: VersionVector) -> View:
            view = _view(side, covers, wait_s, tell)
            stack.callback(view.close)
            return view

        reference = opened(sides[0], EMPTY_VV)
        others = [opened(side, reference.moment.vv) for side in sides[1:]]
        _check_distinct([reference, *others])
        found = _Findings(differences_max)
        standings = [_standing(reference)] if not others else []
        for other in others:
            totals = found.compare(reference, other)
            if not standings:
                standings.append(_standing(reference, totals[0]))
            standings.append(_standing(other, totals[1]))
        later = [other for other in others if other.moment.vv != reference.moment.vv]
        if later:
            covers = reference.moment.vv
            for other in later:
                covers = covers.join(other.moment.vv)
            again = opened(sides[0], covers)
            for other in later:
                found.compare(other, again)
        moment = reference.moment
        return Certificate(moment.cluster, moment.shard, moment.vv, standings[0].scanned, standings, found.listed, found.count)


def _view(side: Side, covers: VersionVector, wait_s: float, tell: Callable[[str], None] | None) -> View:
    if tell is None or wait_s <= TELL_S:
        return side.view(covers, wait_s)
    try:
        return side.view(covers, TELL_S)
    except DeadlineExceededError as e:
        missing = e.details.get("missing")
        if missing is None:  # it did not answer at all
            raise
        tell(f"waits up to {wait_s:g} s for {side.name} to get what it lacks: {missing} commit{'' if missing == 1 else 's'}")
        return side.view(covers, wait_s)


def differing(lower: View, upper: View, totals: list[Part] | None = None) -> Iterator[Pair]:
    """The slots whose records differ in two views.

    Args:
        totals: gets two parts, what all records of either view amount to, once the iterator is exhausted.
    """
    counts, sums = [0, 0], [0, 0]
    for start, mine, theirs in _levels(lower, upper, FIRST, LAST, PART_RECORDS):
        for which, part in enumerate((mine, theirs)):
            counts[which] += part.slots
            sums[which] += part.digest
        if mine != theirs:
            yield from _descend(lower, upper, start, mine, theirs)
    if totals is not None:
        totals += [Part(LAST, count, total & _MASK) for count, total in zip(counts, sums, strict=True)]


def _descend(lower: View, upper: View, start: bytes, mine: Part, theirs: Part) -> Iterator[Pair]:
    size = max(mine.slots, theirs.slots)
    if size <= 2 * LEAF_RECORDS:  # twice: a part may be half as large again as asked for, and must get smaller
        before, after = dict(records(lower, start, mine.end)), dict(records(upper, start, mine.end))
        for slot in sorted(before.keys() | after.keys()):
            if before.get(slot) != after.get(slot):
                yield Pair(slot, before.get(slot), after.get(slot))
        return
    for begin, left, right in _levels(lower, upper, start, mine.end, max(LEAF_RECORDS, -(-size // PARTS_MAX))):
        if left != right:
            yield from _descend(lower, upper, begin, left, right)


def _levels(lower: View, upper: View, start: bytes, end: bytes, size: int) -> Iterator[tuple[bytes, Part, Part]]:
    """A range in parts, as both views hold them. Whoever has more where a part begins divides it: there is no bound by the other."""
    while start < end:
        ends = lower.parts(start, end, size)
        theirs = upper.digests(start, [part.end for part in ends])
        if any(part.slots > 2 * size for part in theirs):
            theirs = upper.parts(start, end, size)
            ends = lower.digests(start, [part.end for part in theirs])
        for mine, other in zip(ends, theirs, strict=True):
            yield start, mine, other
            start = mine.end


class _Findings:
    """Differences gathered, each slot once per pair of regions."""

    def __init__(self, listed_max: int) -> None:
        self.listed: list[Difference] = []
        self.count = 0
        self._listed_max = listed_max
        self._seen: set[tuple[bytes, frozenset[str]]] = set()

    def compare(self, lower: View, upper: View) -> list[Part]:
        """Compare two views, at equal vectors both ways; what all records of either amount to."""
        low, high = lower.moment, upper.moment
        totals: list[Part] = []
        for pair in differing(lower, upper, totals):
            found = disagreement(pair.slot, pair.lower, low.vv, pair.upper, high.vv)
            first, second = sorted((low.region, high.region))
            names = {"lower": low.region, "upper": high.region}
            if found is None and low.vv == high.vv:
                found = disagreement(pair.slot, pair.upper, high.vv, pair.lower, low.vv)
                names = {"lower": high.region, "upper": low.region}
            key = (pair.slot, frozenset((first, second)))
            if found is None or key in self._seen:
                continue
            self._seen.add(key)
            self.count += 1
            if len(self.listed) < self._listed_max:
                self.listed.append(Difference(pair.slot, (first, second), names.get(found.damaged, ""), found.reason))
        return totals


def _standing(view: View, total: Part | None = None) -> Standing:
    if total is None:
        count = digest = 0
        start = FIRST
        while start < LAST:
            for part in view.parts(start, LAST, PART_RECORDS):
                count, digest, start = count + part.slots, digest + part.digest, part.end
        total = Part(LAST, count, digest & _MASK)
    return Standing(view.moment.region, view.moment.vv, f"{total.digest:032x}", f"{view.moment.digest:032x}", total.slots)


def _check_distinct(views: Sequence[View]) -> None:
    first = views[0].moment
    seen = set()
    for view in views:
        moment = view.moment
        if (moment.cluster, moment.shard) != (first.cluster, first.shard):
            raise WrongClusterError(
                f"{moment.region} is of cluster {moment.cluster!r} shard {moment.shard}, {first.region} of {first.cluster!r} shard "
                f"{first.shard}: only replicas of one cluster can be compared"
            )
        if moment.origin in seen:
            raise ConfigError(f"{moment.origin} is named twice: name each replica once")
        seen.add(moment.origin)
