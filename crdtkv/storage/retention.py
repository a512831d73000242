"""How much of a commit log is kept: the decision alone, as a function of facts, for stores and simulations alike.

A log is dropped from its beginning, in *parts* that go as a whole (a segment file; a frame of a simulated log). The oldest
part goes when it is older than `age_ms`, or while the log holds more than `bytes_kept`, provided that every member has
acknowledged all of it as fsynced; above `bytes_max` it goes even if not, since a full disk would stop this region for the
sake of one that is away. Dropping costs whoever comes back a snapshot, never data: see the floor (`LogReader.floor`).

A member of which nothing is known yet has acknowledged nothing. A replica without members waits for nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, region_of

ROLLS_PER_AGE: Final = 8
"""The part that is written to is ended so often within `age_ms`: what is kept is at most an eighth older than asked for."""


class Acknowledgement(NamedTuple):
    """What a member says it has fsynced, and as which replica."""

    origin: Origin
    durable: VersionVector

    def own(self) -> VersionVector:
        """What of it the member's region has made itself, in all its incarnations: an earlier one's last write may be on its way still."""
        region = region_of(self.origin)
        return VersionVector({origin: seq for origin, seq in self.durable.items() if region_of(origin) == region})


Members = Mapping[str, Acknowledgement | None]
"""The other regions of the cluster; None: nothing is known of it."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """See the module's docstring. Times in ms, sizes in bytes; `bytes_kept <= bytes_max`."""

    age_ms: int = 86_400_000
    bytes_kept: int = 1 << 30
    bytes_max: int = 8 << 30


class LogPart(NamedTuple):
    """What can be dropped at once. `end`: the position after it. `after`: the version vector of the log up to there."""

    end: int
    after: VersionVector
    size: int
    ended_ms: int
    """When nothing was added to it any more, by this replica's wall clock."""


@dataclass(frozen=True, slots=True)
class Due:
    """What of a log may go.

    Attributes:
        position: drop what is before it; 0: nothing.
        stable: what of that every member has acknowledged, all that each had made by then being applied here: so nothing
            concurrent with it is still to come, unless from who loses the disk that he acknowledged it from.
        held_by: the regions for which more is kept than age and size ask for.
        forced: the regions that lack something of what goes: the log is above `bytes_max`.
    """

    position: int = 0
    stable: VersionVector = EMPTY_VV
    held_by: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()


def what_is_due(
    parts: Sequence[LogPart], log_bytes: int, members: Members, applied: VersionVector, policy: RetentionPolicy, now_ms: int
) -> Due:
    """What of a log may go now. O(parts that go × members).

    Args:
        parts: of the log, oldest first, without the one that is written to.
        log_bytes: the size of the whole log.
        applied: what is applied here.
    """
    position, stable = 0, EMPTY_VV
    forced: tuple[str, ...] = ()
    # A member's write that was concurrent with what it acknowledges may be on its way still: an ack can overtake it.
    is_settled = all(ack is not None and ack.own() <= applied for ack in members.values())
    for part in parts:
        too_large = log_bytes > policy.bytes_max
        if not too_large and log_bytes <= policy.bytes_kept and now_ms - part.ended_ms < policy.age_ms:
            break
        lacking = tuple(sorted(region for region, ack in members.items() if ack is None or not part.after <= ack.durable))
        if not lacking:
            stable = part.after if is_settled else stable
        elif too_large:
            forced = lacking
        else:
            return Due(position, stable, lacking, forced)
        position = part.end
        log_bytes -= part.size
    return Due(position, stable, (), forced)


def is_roll_due(begun_ms: int, policy: RetentionPolicy, now_ms: int) -> bool:
    """Whether the part that is written to, if it holds anything, should be ended so that it can go one day."""
    return now_ms - begun_ms >= policy.age_ms // ROLLS_PER_AGE
