"""What the cluster has agreed about itself: which origins are closed, and who its members are.

Both travel as commits like everything else (`DeltaKind.CLOSE`, `DeltaKind.MEMBER`), in frames that require the feature
`control`, and are kept in side records: they are a function of the commits applied, outside the state and its digest. (Equal
version vectors name the same commits, so they mean the same control too; the digest has nothing to add.)

**Closing.** An origin that will never write again (an ended incarnation, a removed region) would stay in every version vector for
ever. A commit `CLOSE x F`, made where x had been applied up to F, ends that: whoever has applied it *leaves x out* of the vectors
that it shows. So there are two forms of one vector, and each says exactly the other:

    full   what is applied, closed origins included: what replicas reckon with
    shown  the full one without each x that stands exactly where a CLOSE that it covers says: contexts, wire, tokens

`complete` makes the first from the second: a vector that covers a CLOSE of x covers x up to the F in it, whether it names x or not. One
that covers none says nothing of x by leaving it out: its owner has not heard of the closing, and had perhaps nothing of x. That
distinction is what keeps concurrent writes: a context that lacks x is no proof that its writer had seen x.

Two closings of one origin with different F join by the greater. An origin that goes beyond every F after all (a member that nobody
knew of had taken more of it) is shown again until it is closed again: no vector ever says less than what it stands for.

**Members** are one record per region, of which the greatest `(epoch, hlc, origin)` counts: where it listens, and whether it is active,
draining or removed.

After: DESIGN §4; Akka's "pruning by rewriting state" is the way not taken: nothing in the state is changed by a closing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from crdtkv.core.causality import SEQ_MAX, Origin, VersionVector, check_origin, region_of
from crdtkv.core.frame import HASH_BYTES, Delta, DeltaKind, check_member
from crdtkv.core.state import State
from crdtkv.errors import CorruptionError, SessionLostError

CLOSED_SPACE = b"c"
MEMBER_SPACE = b"g"
FROZEN_SPACE = b"f"


class MemberState(enum.StrEnum):
    """What becomes of a region: the values of `frame.MEMBER_STATES`. `REMOVED` may be followed by `ACTIVE` again, under a greater
    epoch and as another incarnation."""

    ACTIVE = "active"
    DRAINING = "draining"
    REMOVED = "removed"


class Close(NamedTuple):
    """One CLOSE commit: the origin ends at `seq`, says the commit `(by, at)`."""

    seq: int
    by: Origin
    at: int


class Member(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One region, as the cluster knows it. `address` is `host:port`, or empty if it is not known."""

    region: str
    state: str
    address: str
    epoch: int
    hlc: int
    origin: str
    seq: int
    """The record's commit is `(origin, seq)`."""

    @property
    def rank(self) -> tuple[int, int, str]:
        """The greatest counts."""
        return self.epoch, self.hlc, self.origin

    @property
    def is_removed(self) -> bool:
        return self.state == MemberState.REMOVED


class _Closed(msgspec.Struct, array_like=True, frozen=True):
    """The side record of a closed origin: the CLOSE commits applied, and the hash of its frame that ends at the last F."""

    closes: tuple[tuple[int, str, int], ...]
    hash: bytes


class Agreed(NamedTuple):
    """The whole of it as a value, as a snapshot carries it. Both mappings are in the order of their keys."""

    closed: Mapping[Origin, tuple[Close, ...]]
    members: Mapping[str, Member]

    def join(self, other: Agreed) -> Agreed:
        """What follows from both: the union of the closings, the greatest record of each region."""
        closed = dict(self.closed)
        for origin, closes in other.closed.items():
            closed[origin] = tuple(sorted({*closed.get(origin, ()), *closes}))
        members = dict(self.members)
        for region, member in other.members.items():
            if region not in members or members[region].rank < member.rank:
                members[region] = member
        return Agreed(dict(sorted(closed.items())), dict(sorted(members.items())))

    def to_wire(self) -> list[object]:
        """`[[origin, [[seq, by, at], …]], …], [member, …]` for MessagePack; `from_wire` reads and checks it."""
        return [[[o, [list(c) for c in closes]] for o, closes in self.closed.items()], list(self.members.values())]

    @classmethod
    def from_wire(cls, wire: object) -> Agreed:
        """The inverse of `to_wire`; anything else is a `CorruptionError`."""
        try:
            closed_rows, member_rows = msgspec.convert(wire, tuple[list[tuple[str, list[tuple[int, str, int]]]], list[Member]])
            closed = {check_origin(o): tuple(Close(seq, check_origin(by), at) for seq, by, at in rows) for o, rows in closed_rows}
        except msgspec.ValidationError as e:
            raise CorruptionError(f"control records: {e}") from e
        for m in member_rows:
            check_member(m.region, m.state, m.address, m.epoch)
        members = {m.region: m for m in member_rows}
        for closes in closed.values():
            if (
                not closes
                or list(closes) != sorted(set(closes))
                or any(not 0 < c.seq <= SEQ_MAX or not 0 < c.at <= SEQ_MAX for c in closes)
            ):
                raise CorruptionError("control records: a closing is out of range or out of order")
        if list(closed) != sorted(closed) or list(members) != sorted(members) or len(members) != len(member_rows):
            raise CorruptionError("control records: repeated or out of order")
        return cls(closed, members)


NOTHING_AGREED = Agreed({}, {})


_REMEMBERED_MAX: Final = 32


def _remember(known: dict[VersionVector, VersionVector], asked: VersionVector, answer: VersionVector) -> VersionVector:
    """Keep an answer; of so many at most."""
    if len(known) >= _REMEMBERED_MAX:
        known.clear()
    known[asked] = answer
    return answer


class Control:
    """Closed origins, members and frozen origins of one replica, in its side records.

    *Frozen* is local: this replica takes no more of an origin than a limit says, so that what it reported of it stays true
    until the closing is there. The limit of a closed origin is its F. Which origins are frozen is kept on the disk; limits begin again
    at what is applied, with a restart and with whatever takes away what they rested on.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._closed: dict[Origin, tuple[Close, ...]] = {}
        self._hashes: dict[Origin, bytes] = {}
        self._shown: dict[VersionVector, VersionVector] = {}
        self._completed: dict[VersionVector, VersionVector] = {}
        """What `show` and `complete` lately said, since the last closing: each vector goes to, and comes from, several peers."""
        self.members: dict[str, Member] = {}
        self.frozen: dict[Origin, int] = {}
        """Origin → the last seq that is taken of it for now."""
        self.ended_by: dict[Origin, Origin] = {}
        """Of those that are frozen because their region went on as a later incarnation, which nobody else may remember: that one."""
        self.version = 0
        """Changes whenever anything here does."""
        for where, record in state.scan(CLOSED_SPACE, bytes([CLOSED_SPACE[0] + 1])):
            closed = msgspec.msgpack.decode(record, type=_Closed)
            origin = Origin(where[1:].decode())
            self._closed[origin] = tuple(Close(seq, Origin(by), at) for seq, by, at in closed.closes)
            self._hashes[origin] = closed.hash
        for _, record in state.scan(MEMBER_SPACE, bytes([MEMBER_SPACE[0] + 1])):
            member = msgspec.msgpack.decode(record, type=Member)
            self.members[member.region] = member
        for where, later in state.scan(FROZEN_SPACE, bytes([FROZEN_SPACE[0] + 1])):
            self.frozen[Origin(where[1:].decode())] = 0
            if later:
                self.ended_by[Origin(where[1:].decode())] = Origin(later.decode())

    # -- vectors ----------------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether any origin is closed: else both forms of a vector are the same."""
        return bool(self._closed)

    @property
    def closed(self) -> Mapping[Origin, tuple[Close, ...]]:
        """The CLOSE commits applied, per closed origin."""
        return self._closed

    def last(self, origin: Origin) -> int | None:
        """The F of a closed origin; None if it is not closed."""
        closes = self._closed.get(origin)
        return closes[-1].seq if closes else None

    def complete(self, vv: VersionVector) -> VersionVector:
        """The full form of a shown vector, as far as is known here. O(closed), O(1) while nothing is."""
        if not self._closed:
            return vv
        memo = self._completed
        known = memo.get(vv)
        if known is not None:
            return known
        seqs, ends_at = vv._seqs.copy(), self._ends_at
        # A closing's own origin may be closed as well, by a later one: looked at in reverse, that one shows it first.
        changed = True
        while changed:
            changed = False
            for origin in reversed(self._closed):
                seq = ends_at(origin, seqs)
                if seq > seqs.get(origin, 0):
                    seqs[origin] = seq
                    changed = True
        return _remember(memo, vv, VersionVector.adopt(seqs))

    def show(self, full: VersionVector | Mapping[Origin, int]) -> VersionVector:
        """The shown form of a full vector: without the origins that stand where a CLOSE that it covers says."""
        if type(full) is not VersionVector:
            return self.show(VersionVector.adopt({o: n for o, n in full.items() if n > 0}))
        if not self._closed:
            return full
        memo = self._shown
        known = memo.get(full)
        if known is not None:
            return known
        closed, ends_at, seqs = self._closed, self._ends_at, full._seqs
        shown = VersionVector.adopt({o: n for o, n in seqs.items() if not (o in closed and ends_at(o, seqs) == n)})
        return _remember(memo, full, shown)

    def _ends_at(self, origin: Origin, seqs: Mapping[Origin, int]) -> int:
        """Where a closed origin ends, as far as a full vector covers its closings; 0 if it covers none."""
        end = 0
        for seq, by, at in self._closed[origin]:  # in the order of the seqs
            if seqs.get(by, 0) >= at:
                end = seq
        return end

    # -- what commits change ------------------------------------------------------------------------------------------

    def apply(self, delta: Delta, by: Origin, at: int, hlc: int, hash_of_last: bytes) -> None:
        """Apply a CLOSE or MEMBER delta of the commit `(by, at)`. `hash_of_last`: of the closed origin's last frame, for a CLOSE."""
        if delta[0] == DeltaKind.CLOSE:
            self._close(Origin(delta[1]), (Close(delta[2], by, at),), hash_of_last)
        else:
            self._take(Member(delta[1], delta[2], delta[3], delta[4], hlc, by, at))

    def absorb(self, agreed: Agreed, hashes: Mapping[Origin, bytes]) -> None:
        """Take over what a snapshot brought; `hashes` are those of the origins' last frames."""
        for origin, closes in agreed.closed.items():
            self._close(origin, closes, hashes.get(origin, b""))
        for member in agreed.members.values():
            self._take(member)

    def agreed(self) -> Agreed:
        """All that commits have agreed, as a value."""
        return Agreed(dict(sorted(self._closed.items())), dict(sorted(self.members.items())))

    def _close(self, origin: Origin, closes: Iterable[Close], hash_of_last: bytes) -> None:
        known, closes = self._closed.pop(origin, ()), tuple(closes)
        joined = tuple(sorted({*known, *closes}))
        if known:
            kept, before, last = self._hashes[origin], known[-1].seq, max(close.seq for close in closes)
            if before > last or (before == last and kept):
                hash_of_last = kept  # who closed it had seen less of it than others, or no more
        self._closed[origin] = joined  # at the end: `complete` looks at what was closed last first
        self._shown, self._completed = {}, {}  # new ones: whoever is at it on another thread puts what it finds into those of before
        self._hashes[origin] = hash_of_last
        record = _Closed(tuple((c.seq, c.by, c.at) for c in joined), hash_of_last)
        self._state.side_put(CLOSED_SPACE + origin.encode(), msgspec.msgpack.encode(record))
        self.thaw(origin)
        self.version += 1

    def _take(self, member: Member) -> None:
        known = self.members.get(member.region)
        if known is None or known.rank < member.rank:
            self.members[member.region] = member
            self._state.side_put(MEMBER_SPACE + member.region.encode(), msgspec.msgpack.encode(member))
            self.version += 1

    def hash_of_closed(self, origin: Origin) -> bytes | None:
        """The hash of a closed origin's last frame, as its record has it; None if it has none."""
        found = self._hashes.get(origin)
        return found if found is not None and len(found) == HASH_BYTES else None

    def check_session(self, seen: VersionVector) -> None:
        """Raise `SessionLostError` if a session has seen commits that no region will ever have."""
        for origin, seq in seen.items():
            last = self.last(origin) if self._closed else None
            if last is not None and seq > last:
                raise SessionLostError(
                    f"token: it has seen commits of {origin} up to {seq}, and the cluster closed that origin at {last}: what came after is "
                    "lost to it; begin a new session, and check what the last one wrote",
                    origin=origin,
                    seq=seq,
                    last=last,
                )

    # -- freezing -------------------------------------------------------------------------------------------------

    def freeze(self, origin: Origin, limit: int, later: Origin | None = None) -> bool:
        """Take no more of an origin than up to `limit`; what is frozen already is only told why. The caller folds and flushes before
        anybody is told. False if all that was known.

        Args:
            later: the incarnation as which its region went on, if that is why.
        """
        if origin in self._closed or (origin in self.frozen and (later is None or origin in self.ended_by)):
            return False
        self.frozen.setdefault(origin, limit)
        if later is not None:
            self.ended_by[origin] = later
        self._state.side_put(FROZEN_SPACE + origin.encode(), b"" if later is None else later.encode())
        self.version += 1
        return True

    def thaw(self, origin: Origin) -> None:
        """Undo a freeze that could not be made durable, or is over."""
        self.ended_by.pop(origin, None)
        if self.frozen.pop(origin, None) is not None:
            self._state.side_put(FROZEN_SPACE + origin.encode(), None)
            self.version += 1

    def raise_limit(self, origin: Origin, limit: int) -> bool:
        """A member had taken so much before it froze: so much may be taken. True if that is more than before."""
        before = self.limit(origin)
        if before is None or before >= limit:
            return False
        self.frozen[origin] = limit
        return True

    def begin_limits_again(self, applied: Mapping[Origin, int]) -> None:
        """Take no more of what is frozen than is applied, and of what is closed than to its end: limits are to be found anew. Whoever
        had raised one learns of it by the version."""
        limits = {o: applied.get(o, 0) for o in self.frozen if o not in self._closed}
        if limits != self.frozen:
            self.frozen = limits
            self.version += 1

    @property
    def has_limits(self) -> bool:
        """Whether anything is frozen or closed."""
        return bool(self.frozen or self._closed)

    def limit(self, origin: Origin) -> int | None:
        """The last seq that is taken of an origin; None: no limit."""
        limit = self.frozen.get(origin)
        return limit if limit is not None or not self._closed else self.last(origin)

    # -- members ----------------------------------------------------------------------------------------------------

    def is_removed(self, region: str) -> bool:
        if not self.members:
            return False
        member = self.members.get(region)
        return member is not None and member.is_removed

    def next_epoch(self) -> int:
        """An epoch greater than any seen."""
        return 1 + max((m.epoch for m in self.members.values()), default=0)

    def open_regions(self, full: Mapping[Origin, int]) -> Iterator[str]:
        """Regions that have written, are not removed and have an origin that is not closed."""
        return (r for r in dict.fromkeys(region_of(o) for o in full if o not in self._closed) if not self.is_removed(r))


class Steering(msgspec.Struct, frozen=True):
    """What `replication.membership` wants done, in this order: origins to freeze (on the disk before anybody is told; with the later
    incarnations that ended them, as far as that is why, and again when that becomes known later), limits to raise, origins to close at
    their last commit. It was found as of a `Control.version`: by then a report may have counted whose region is known to be removed now."""

    freeze: tuple[Origin, ...] = ()
    later: Mapping[Origin, Origin] = msgspec.field(default_factory=dict)
    limits: Mapping[Origin, int] = msgspec.field(default_factory=dict)
    close: Mapping[Origin, int] = msgspec.field(default_factory=dict)
    version: int = 0

    def __bool__(self) -> bool:
        return bool(self.freeze or self.limits or self.close)


def removed_text(origin: Origin, limit: int) -> str:
    """What is said to a removed region or an ended incarnation that returns, and to whoever brings its commits."""
    return (
        f"{origin} was removed from the cluster, which took its commits up to {limit}: export what it wrote after that "
        "(crdtkv recover export), start the region again with an empty directory, and write it again (crdtkv recover reissue)"
    )


def close_delta(origin: Origin, seq: int) -> Delta:
    """The delta that closes an origin at its last commit."""
    return [DeltaKind.CLOSE, str(origin), seq]


def member_delta(region: str, state: MemberState, address: str, epoch: int) -> Delta:
    """The delta that records a region."""
    return [DeltaKind.MEMBER, region, str(state), address, epoch]
