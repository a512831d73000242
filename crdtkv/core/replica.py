"""The replica: one incarnation's copy of the state, as a pure state machine.

Local transactions come in as deltas and leave as frames; received frames come in and change the state. It reads and
writes records through `State`, and owns what decides about frames: the version vector, the hash of each origin's
last frame, frames held until what they rest on has come, the clock, the conflict journal, the window of request ids.
It knows no log, engine, network or lock: its caller appends frames to the log, folds the state at frame boundaries,
and lets nobody in while a frame is being made.

A received frame is applied iff it is the next of its origin and its context is covered; a lower one is a duplicate
and changes nothing; any other is held, within a bound. Nothing is ever skipped, so every state is causally closed.

After: Almeida, Shoker, Baquero, "Delta State Replicated Data Types" (arXiv:1603.01529), causal delta-merging;
Schwarz and Mattern on version vectors; hash chains per origin to find forks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import msgspec

from crdtkv.core.apply import Applier, Changes, Purges
from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, region_of
from crdtkv.core.clock import HybridClock, ms_of
from crdtkv.core.codec import SlotType, register_slots_of
from crdtkv.core.control import Agreed, Control, MemberState, removed_text
from crdtkv.core.expiries import Expiries
from crdtkv.core.frame import CONTROL_KINDS, NO_HASH, Delta, DeltaKind, Frame, FrameTemplate, PutDelta, Row
from crdtkv.core.heads import Head, Heads
from crdtkv.core.held import Held
from crdtkv.core.journal import Journal, JournalCounts
from crdtkv.core.meta import META_KEY, Meta, read_meta
from crdtkv.core.removals import Removal, Removals
from crdtkv.core.requests import Made, RequestWindow
from crdtkv.core.retirement import Retirement
from crdtkv.core.settings import CoreSettings
from crdtkv.core.state import Base, State
from crdtkv.core.types.base import Entry, around_value, encode_entries
from crdtkv.core.types.counter import decode_run
from crdtkv.core.types.registry import APPLY, records_of
from crdtkv.errors import CorruptionError, CrdtkvError, RegionRemovedError, RegionUnavailableError, WrongClusterError

KEPT_HASHES_MAX = 1024
"""Hashes kept per origin, one per `HASH_INTERVAL` commits: forks up to a million commits back are found by hash."""

_STAYS = frozenset(
    {
        "control",
        "settings",
        "clock",
        "state",
        "heads",
        "journal",
        "purges",
        "expiries",
        "_removals",
        "_requests",
        "_applier",
        "_vv",
        "_held",
        "_retirement",
    }
)
"""What `Replica.adopt` leaves in place, or takes over by its contents."""

_encode = msgspec.msgpack.Encoder().encode
_join = b"".join


class Outcome(enum.Enum):
    """What became of a received frame."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    HELD = "held"
    DROPPED = "dropped"  # it would have to be held, and the bound is reached: ask for it again


# At hand: until Python 3.12, to look a member up in its class costs ten times what a module's name does. Asked of each frame.
_APPLIED: Final = Outcome.APPLIED
_HELD: Final = Outcome.HELD
DUPLICATE: Final = Outcome.DUPLICATE
DROPPED: Final = Outcome.DROPPED


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of frames given to `apply`."""

    applied: int
    """Frames that became part of the state, those held before that became ready among them."""
    held: int
    """Frames that wait in memory for what they rest on, after this call."""
    position: int
    """The log's end."""
    dropped: int = 0
    """Frames of this call that were neither applied nor held: the bound on held frames was reached. They are asked for again."""


def enters_digest(slot: bytes, record: bytes) -> bool:
    """Whether a slot's record counts as state: every entry does, a counter's run only while it is live."""
    end = slot.index(b"\x00\x00")
    return slot[end + 2] != SlotType.COUNTER or decode_run(record).live


class Replica:
    """See the module's docstring. One caller at a time.

    Args:
        base: the engine's records; empty, or what an earlier replica folded.
        origin: this incarnation; used only if `base` is empty.
        clock: stamps local commits.
        base_keeps: the base keeps records as the objects that it is given.
        digest_on_demand: the digest of a new state is kept only from when somebody first asks for it: see `State`.
    """

    def __init__(
        self,
        base: Base,
        *,
        origin: Origin,
        cluster: str,
        shard: int = 0,
        clock: HybridClock,
        settings: CoreSettings | None = None,
        digest_on_demand: bool = False,
        base_keeps: bool = False,
    ) -> None:
        self.settings = settings or CoreSettings()
        self.clock = clock
        raw = base.get(META_KEY)
        meta = None if raw is None else read_meta(raw)
        self.origin = Origin(meta.origin) if meta else origin
        self.cluster = meta.cluster if meta else cluster
        self.shard = meta.shard if meta else shard
        self.position = meta.position if meta else 0
        """The log position up to which frames are applied."""
        digest = (None if digest_on_demand else 0) if meta is None else int.from_bytes(meta.digest, "big") if meta.digest else None
        self.state = State(base, enters_digest, digest, trims=base_keeps)
        self._vv: dict[Origin, int] = dict(VersionVector.from_flat(meta.vv)) if meta else {}
        self._hashes: dict[Origin, tuple[int, bytes]] = meta.hashes if meta else {}
        self._kept: dict[Origin, list[tuple[int, bytes]]] = meta.kept if meta else {}
        self._stamps: dict[Origin, int] = meta.stamps if meta else {}
        """The stamp of each origin's last commit; unknown after a snapshot that brought it."""
        self.control = Control(self.state)
        """Closed origins and members. `vv` and everything reckoned with here are *full* vectors; see `control`."""
        self.refusal: CrdtkvError | None = None
        """Why no writes are taken: the region is drained or removed. (Closings are still made.)"""
        self._vv = dict(self.control.complete(VersionVector.adopt(self._vv)).items()) if self.control else self._vv
        for closed in self.control.closed:
            if closed not in self._hashes and (kept := self.control.hash_of_closed(closed)) is not None:
                self._hashes[closed] = (self._vv[closed], kept)
        for frozen in self.control.frozen:
            self.control.frozen[frozen] = self._vv.get(frozen, 0)
        self._find_refusal()
        if meta:
            clock.restore(meta.mark)
        self.heads = Heads(self.state)
        self.journal = Journal(
            self.state,
            meta.journal if meta else JournalCounts(),
            log_time=self.log_time,
            count_max=self.settings.journal_records_max,
            bytes_max=self.settings.journal_bytes_max,
        )
        self.purges = Purges(self.state)
        self.expiries = Expiries(self.state)
        self._removals = Removals(self.state, self.settings.removals_max)
        self._applier = Applier(
            self.state,
            self._vv,
            self.heads,
            self._removals,
            self.journal,
            self.purges,
            self.expiries,
            self.settings.clear_at_once_max,
        )
        self._held = Held(self._vv, self._is_beyond, self.settings.held_frames_max, self.settings.held_bytes_max)
        self._requests = RequestWindow(self.state, count_max=self.settings.requests_max, age_ms=self.settings.requests_age_s * 1000)
        self._rows: list[Row] = []
        self._first_hlc = 0
        self._retirement = Retirement(self, self._removals)
        self._context: VersionVector | None = None
        self._template: FrameTemplate | None = None  # both hold until a frame of another origin, or a control frame, is applied

    def begin_incarnation(self, origin: Origin) -> None:
        """Go on under another id. What was written under the former one stays, as another origin's. Fold and flush before writing."""
        assert not self._rows, "a frame is being made"
        self.origin = origin
        self._find_refusal()
        self.clock.begin_incarnation()
        self._context = None
        self._template = None

    def adopt(self, other: Replica) -> None:
        """Become what another replica on the same base is, in place: for those who hold references to this one or its parts.

        What is held stays, and is looked at anew when something is applied. The clock is the same, and never goes back.
        """
        self.state.adopt(other.state)
        version = self.control.version
        for mine, its in (
            (self.control, other.control),
            (self.heads, other.heads),
            (self.journal, other.journal),
            (self.purges, other.purges),
            (self.expiries, other.expiries),
            (self._removals, other._removals),
            (self._requests, other._requests),
        ):
            for name in getattr(type(mine), "__slots__", None) or vars(its):
                # What is frozen is decided here, not by the log; and what went for want of room has gone here.
                if name not in ("_state", "_log_time", "frozen", "ended_by", "evicted"):
                    setattr(mine, name, getattr(its, name))
        # But what an undone closing had thawed is frozen still, as the engine has it, and for the same reason.
        self.control.frozen = {**other.control.frozen, **self.control.frozen}
        self.control.ended_by = {**other.control.ended_by, **self.control.ended_by}
        self.control.version = max(version, other.control.version) + 1
        self._vv.clear()
        self._vv.update(other._vv)
        for name, value in vars(other).items():
            if name not in _STAYS:
                setattr(self, name, value)
        self._begin_limits_again()
        self._retirement.adopt(other._retirement)
        if self._applier.touched is not None:
            self._applier.touched.clear()

    def hold(self, frames: Iterable[Frame]) -> None:
        """Hold frames again that had been held and whose application was undone."""
        for frame in frames:
            self._held.add(frame)

    # -- what is applied ------------------------------------------------------------------------------------------

    def vv(self) -> VersionVector:
        """What is applied here, own commits of a frame in the making included; closed origins too (`control.show` leaves them out)."""
        return VersionVector.adopt(dict(self._vv))

    def seq(self, origin: Origin) -> int:
        """The last applied seq of an origin, 0 if none."""
        return self._vv.get(origin, 0)

    def context(self) -> VersionVector:
        """What has been applied of other origins: the context of a frame made now, as it is shown. O(1) until a frame comes in."""
        if self._context is None:
            self._context = self.control.show(self._vv).without(self.origin)
        return self._context

    def log_time(self) -> int:
        """The greatest stamp among the last frames of all origins: what time it is by the log, the same at each replay. O(origins)."""
        return max(self._stamps.values(), default=0)

    def digest(self) -> int:
        """The digest of the state, 128 bits. Settled only while `purges` is empty."""
        return self.state.digest()

    def last_hash(self, origin: Origin) -> tuple[int, bytes]:
        """The last seq of an origin and the hash of its frame; `(0, b"")` if none."""
        return self._hashes.get(origin, (0, NO_HASH))

    def last_hashes(self) -> dict[Origin, tuple[int, bytes]]:
        """For each origin the last applied seq and the hash of its frame."""
        return dict(self._hashes)

    def hash_at(self, origin: Origin, seq: int) -> bytes | None:
        """The kept hash of the frame that ends at `seq`, if there is one."""
        last = self._hashes.get(origin)
        if last is not None and last[0] == seq:
            return last[1]
        return next((h for n, h in self._kept.get(origin, ()) if n == seq), None)

    @property
    def held(self) -> tuple[int, int]:
        """How many frames are held, and their bytes."""
        return len(self._held), self._held.size_bytes

    def removals(self, slot: bytes) -> tuple[Removal, ...]:
        """The last removals of a slot (of a collection's first one: its clears) that are still in the index."""
        return self._removals.get(slot)

    @property
    def remembered(self) -> tuple[int, int, int]:
        """Of how many slots removals are in the index, or went for want of room; how many request ids are in the window."""
        return len(self._removals), self._removals.evicted, len(self._requests)

    def held_needs(self) -> VersionVector:
        """What the held frames wait for and is not applied here."""
        return self._held.needs()

    # -- local commits --------------------------------------------------------------------------------------------

    def commit(self, deltas: list[Delta], request_id: bytes | None = None) -> tuple[int, int]:
        """Make one local commit of the frame in the making; its `(seq, hlc)`.

        The deltas are a net effect: at most one per slot, clears before adds, already validated. Until `close_frame`
        nothing else may be applied.

        Raises:
            ClockSkewError: the clock's mark is too far ahead of the wall clock; nothing changed.
            RegionUnavailableError, RegionRemovedError: the region is drained or removed; nothing changed.
        """
        origin = self.origin
        seq, hlc = self._begin_commit()
        step = self._applier
        step.begin(origin, seq, hlc, self._vv, True)
        if len(deltas) > 1 and step.touched is None:
            # Registers put for good, the most of a large batch, are written in one step.
            puts = {d[1]: d[2] for d in deltas if d[0] == DeltaKind.REGISTER_PUT and len(d) == 3}
            self._put_all(puts, seq, hlc)
            for delta in deltas if len(puts) < len(deltas) else ():
                if delta[0] != DeltaKind.REGISTER_PUT or len(delta) > 3:
                    APPLY[delta[0]](step, delta)
        else:
            for delta in deltas:
                APPLY[delta[0]](step, delta)
        self._vv[origin] = seq
        meta: dict[str, Any] | None = None
        if request_id is not None:
            meta = {"r": request_id}
            self._requests.note(request_id, origin, seq, hlc)
        self._rows.append([hlc - self._first_hlc, meta, *deltas])
        return seq, hlc

    def _put_all(self, puts: Mapping[str, bytes], seq: int, hlc: int) -> None:
        """Put registers for good in a local commit that nobody watches: their records differ in the value alone."""
        if puts:
            begin, end = around_value(self.origin, seq, hlc)
            records = [_join((begin, value, end)) for value in map(_encode, puts.values())]
            self.state.put_all(register_slots_of(list(puts)), records, are_trimmed=True)

    def commit_together(self, puts: Mapping[str, bytes]) -> tuple[int, int]:
        """`commit` of register puts for good, by key, that nobody watches; its `(seq, hlc)`. Most large batches are one."""
        seq, hlc = self._begin_commit()
        self._put_all(puts, seq, hlc)
        self._vv[self.origin] = seq
        deltas = map(PutDelta, repeat(DeltaKind.REGISTER_PUT), puts, puts.values())
        self._rows.append([hlc - self._first_hlc, None, *deltas])
        return seq, hlc

    def _begin_commit(self, count: int = 1) -> tuple[int, int]:
        """The seq and stamp of the next commit, the first of so many; raises as `commit` says, and nothing has changed."""
        if self.refusal is not None:
            raise self.refusal
        hlc = self.clock.issue() if count == 1 else self.clock.issue_run(count)
        if not self._rows:
            self._first_hlc = hlc
        return self._vv.get(self.origin, 0) + 1, hlc

    def commit_control(self, deltas: list[Delta]) -> tuple[int, int]:
        """Make one commit of CLOSE and MEMBER deltas, the only one of its frame; its `(seq, hlc)`.

        A CLOSE must be made exactly where its origin has been applied up to its seq.

        Raises:
            ClockSkewError: as in `commit`.
            RegionUnavailableError, RegionRemovedError: members are to be recorded, and the region is drained or removed. It may have told
                that it is ready to go: nobody would wait for what it commits now. That it stays after all, a drained one may record.
        """
        assert not self._rows, "a frame is being made"
        if self.refusal is not None and any(d[0] == DeltaKind.MEMBER for d in deltas) and not self._is_taken_back(deltas):
            raise self.refusal
        assert all(d[0] == DeltaKind.MEMBER or self._vv.get(d[1], 0) == d[2] for d in deltas), "a closing covers what it closes"
        context = self.context()  # before the closing takes anything out of it
        hlc = self._first_hlc = self.clock.issue()
        seq = self._vv[self.origin] = self._vv.get(self.origin, 0) + 1
        for delta in deltas:
            self._apply_control(delta, self.origin, seq, hlc)
        self._begin_limits_again()
        self._rows.append([0, None, *deltas])
        self._template = FrameTemplate(self.cluster, self.shard, self.origin, context, control=True)
        return seq, hlc

    def _is_taken_back(self, deltas: Iterable[Delta]) -> bool:
        """Whether a record among these ends the drain of this region."""
        own = [DeltaKind.MEMBER, region_of(self.origin), str(MemberState.ACTIVE)]
        return isinstance(self.refusal, RegionUnavailableError) and any(delta[:3] == own for delta in deltas)

    def _apply_control(self, delta: Delta, by: Origin, at: int, hlc: int) -> None:
        if delta[0] == DeltaKind.CLOSE:
            origin = Origin(delta[1])
            known, hash_of_last = self.last_hash(origin)
            self.control.apply(delta, by, at, hlc, hash_of_last if known == delta[2] else NO_HASH)
            self._kept.pop(origin, None)
            self._stamps.pop(origin, None)
            self._held.drop(origin)  # beyond the end: whoever should have more of it after all will send it
        else:
            self.control.apply(delta, by, at, hlc, NO_HASH)
        self._find_refusal()

    def agree(self, agreed: Agreed, hashes: Mapping[Origin, bytes]) -> None:
        """Take over the closings and members of a snapshot, after `jump`."""
        self.control.absorb(agreed, hashes)
        self._begin_limits_again()
        self._context = None
        self._template = None
        self._find_refusal()

    def refuse_writes(self, why: str | None) -> None:
        """Take no writes, because the cluster says that this region is removed; None: as its records say."""
        self._find_refusal()
        if why is not None and not isinstance(self.refusal, RegionRemovedError):  # a drained one may never hear of its removal by commits
            self.refusal = RegionRemovedError(why, origin=self.origin)

    def _find_refusal(self) -> None:
        region, last = region_of(self.origin), self.control.last(self.origin)
        member = self.control.members.get(region)
        self.refusal = None
        if last is not None or (member is not None and member.is_removed):
            text = removed_text(self.origin, self._vv.get(self.origin, 0) if last is None else last)
            self.refusal = RegionRemovedError(text, origin=self.origin)
        elif member is not None and member.state == MemberState.DRAINING:
            self.refusal = RegionUnavailableError(
                f"region {region} is being drained: it takes no writes and no changes of regions; use another region", region=region
            )

    def commit_put(self, slot: bytes, delta: Delta, request_id: bytes | None = None) -> tuple[int, int]:
        """`commit` of one register put without expiry that nobody watches: the commonest commit, written out.

        A local write has seen whatever is there, so nothing is read; see `Applier.write`. `slot` is the register's.
        """
        if self.refusal is not None:
            raise self.refusal
        origin, rows = self.origin, self._rows
        hlc = self.clock.issue()
        if not rows:
            self._first_hlc = hlc
        seq = self._vv.get(origin, 0) + 1
        self.state.put(slot, encode_entries(((origin, seq, hlc, delta[2], None),)))  # an `Entry`, as it is encoded
        self._vv[origin] = seq
        if request_id is None:
            rows.append([hlc - self._first_hlc, None, delta])
        else:
            rows.append([hlc - self._first_hlc, {"r": request_id}, delta])
            self._requests.note(request_id, origin, seq, hlc)
        return seq, hlc

    def commit_puts(
        self, slots: Sequence[bytes], keys: Sequence[str], values: Sequence[bytes], request_ids: Sequence[bytes | None]
    ) -> tuple[int, int]:
        """`commit_put` of each put of these columns, a commit each; the seq and stamp of the first.

        Those that follow have the next of both. What a commit costs beside its own bytes is paid once.
        """
        origin = self.origin
        count = len(slots)
        first_seq, first_hlc = self._begin_commit(count)
        seqs, hlcs = range(first_seq, first_seq + count), range(first_hlc, first_hlc + count)
        offsets = range(first_hlc - self._first_hlc, first_hlc - self._first_hlc + count)
        # An `Entry`, as it is encoded, for each.
        records = list(map(encode_entries, zip(zip(repeat(origin), seqs, hlcs, values, repeat(None)))))
        self.state.put_all(slots, records)
        metas = [None if request_id is None else {"r": request_id} for request_id in request_ids]
        self._rows += zip(offsets, metas, zip(repeat(DeltaKind.REGISTER_PUT), keys, values), strict=True)
        self._vv[origin] = first_seq + count - 1
        if None not in request_ids:
            self._requests.note_all(request_ids, origin, seqs, hlcs)  # type: ignore[arg-type]  # there is none that is None
        else:
            for request_id, seq, hlc in zip(request_ids, seqs, hlcs, strict=True):
                if request_id is not None:
                    self._requests.note(request_id, origin, seq, hlc)
        return first_seq, first_hlc

    def commit_add(self, slot: bytes, head: Head, delta: Delta) -> tuple[int, int]:
        """`commit` of one element's add without expiry that nobody watches, written out like `commit_put`.

        `slot` is the element's, `head` its set's, from `Heads.counting`.
        """
        origin = self.origin
        seq, hlc = self._begin_commit()
        state = self.state
        if state.get(slot) is None:
            head.set_slots += 1
        state.put(slot, encode_entries((Entry(origin, seq, hlc, b"", None),)))
        self._vv[origin] = seq
        self._rows.append([hlc - self._first_hlc, None, delta])
        return seq, hlc

    @property
    def making(self) -> int:
        """How many commits are in the frame in the making."""
        return len(self._rows)

    def moment(self) -> tuple[int, int, VersionVector]:
        """What differs at any two times between which something was committed, applied or installed."""
        return self.position, len(self._rows), self.context()

    @property
    def is_watched(self) -> bool:
        """Whether somebody wants to know what changes visibly."""
        return self._applier.touched is not None

    def close_frame(self) -> Frame | None:
        """Encode the commits made since the last frame as one frame; None if there are none."""
        rows = self._rows
        if not rows:
            return None
        frame = self._encode_frame(self._vv[self.origin] - len(rows) + 1, self._first_hlc, rows)
        self._rows = []
        return frame

    def _encode_frame(self, first_seq: int, hlc: int, rows: list[Row]) -> Frame:
        """The next frame of this origin's chain."""
        template = self._template
        if template is None:
            template = self._template = FrameTemplate(self.cluster, self.shard, self.origin, self.context())
        last = self._hashes.get(self.origin)
        frame = template.build(first_seq, hlc, NO_HASH if last is None else last[1], rows)
        self._stamps[self.origin] = hlc + rows[-1][0]
        self._keep_hash(frame)
        self.position += 1
        if frame.is_control:
            self._context = None
            self._template = None
        return frame

    # -- received frames ------------------------------------------------------------------------------------------

    def receive(self, frame: Frame, applied: list[Frame] | None = None) -> tuple[Outcome, list[Frame]]:
        """Take a frame from a peer, a log or a delta.

        Args:
            applied: where to add the frames that were applied, as they are: one that had been held may turn out to
                be broken after others have become part of the state.
        Returns:
            What became of it, and the frames that were applied, in that order: this one, then held ones that had
            waited for it. They must be appended to the log in this order.
        Raises:
            CorruptionError: this frame, or a held one, does not follow from what is applied (a fork, `details["fork"]`)
                or breaks the format. It is dropped and has changed nothing.
            WrongClusterError: it is of another cluster or shard.
        """
        assert not self._rows, "a frame is being made"
        applied = [] if applied is None else applied
        outcome = self.ready(frame)
        if outcome is _HELD and self.control.has_limits:
            self.follow(frame.origin, frame.context)
            if self._held.has_ready:
                self.apply_held(applied)
                outcome = self.ready(frame)
        if outcome is _HELD or (outcome is _APPLIED and self._is_beyond(frame)):
            outcome = self._hold(frame)
        elif outcome is _APPLIED:
            self.apply(frame)
            applied.append(frame)
            if self._held:
                self.apply_held(applied)
        return outcome, applied

    def ready(self, frame: Frame) -> Outcome:
        """What would become of a frame now, limits aside: APPLIED, DUPLICATE or HELD. Changes nothing."""
        if frame.cluster != self.cluster or frame.shard != self.shard:
            raise WrongClusterError(
                f"a frame of cluster {frame.cluster!r} shard {frame.shard} came to cluster {self.cluster!r} shard {self.shard}: only "
                "replicas of one cluster exchange commits",
                cluster=frame.cluster,
                shard=frame.shard,
            )
        return self._readiness(frame, self._vv)

    def _is_beyond(self, frame: Frame) -> bool:
        """Whether a frame goes beyond what is taken of its origin, which is frozen or closed."""
        limit = self.control.limit(frame.origin)
        return limit is not None and frame.last_seq > limit

    def freeze(self, origin: Origin, later: Origin | None = None) -> None:
        """Take no more of an origin than is applied, or than what is held rests on. To be flushed before anybody is told."""
        if self.control.freeze(origin, self._vv.get(origin, 0), later):
            self._begin_limits_again()

    def _begin_limits_again(self) -> None:
        """Find anew how much is taken of what ends: whose report or frame had raised a limit may be no member any more."""
        if self.control.frozen:
            self.control.begin_limits_again(self._vv)
            for frame in self._held:
                self.follow(frame.origin, frame.context)

    def follow(self, member: Origin, had: VersionVector) -> None:
        """Take as much of a frozen or closed origin as the writer of a frame had, or the donor of a snapshot: it is a member, so all will
        have that much.

        (Its report says so too. But one who joins after the closing hears no reports, only frames, the closing's own among them.)
        """
        control = self.control
        if control.limit(member) is None and not control.is_removed(region_of(member)):
            for origin, seq in had.items():
                self.raise_limit(origin, seq)

    def raise_limit(self, origin: Origin, limit: int) -> None:
        """Take an origin that is frozen or closed up to `limit`, if that is more than before: what is held of it may be ready then."""
        if self.control.raise_limit(origin, limit):
            self._held.look_at(origin)

    @staticmethod
    def _readiness(frame: Frame, applied: dict[Origin, int]) -> Outcome:
        done = applied.get(frame.origin, 0)
        if frame.last_seq <= done:
            return DUPLICATE
        if frame.first_seq <= done:
            raise CorruptionError(
                f"fork: a frame of {frame.origin} holds commits {frame.first_seq}..{frame.last_seq}, but here a frame ended at {done}",
                fork=True,
            )
        if frame.first_seq > done + 1:
            return _HELD
        for origin, seq in frame.context.pairs():
            if applied.get(origin, 0) < seq:
                return _HELD
        return _APPLIED

    def plan(self, frames: Iterable[Frame]) -> tuple[list[Frame], VersionVector]:
        """The order in which a bag of frames would apply, and what those that would not rest on. Changes nothing."""
        applied = dict(self._vv)
        waiting = [f for f in frames if self.ready(f) is not DUPLICATE]
        order: list[Frame] = []
        progress = True
        while progress and waiting:
            progress = False
            rest = []
            for frame in waiting:
                outcome = self._readiness(frame, applied)
                if outcome is _APPLIED:
                    applied[frame.origin] = frame.last_seq
                    order.append(frame)
                if outcome is _HELD:
                    rest.append(frame)
                else:
                    progress = True
            waiting = rest
        needs = EMPTY_VV
        for frame in waiting:
            needs = needs.join(frame.context).advance(frame.origin, frame.first_seq - 1)
        return order, VersionVector({o: n for o, n in needs.items() if n > applied.get(o, 0)})

    def apply(self, frame: Frame) -> None:
        """Apply a frame that is ready (also: an own one while replaying the log). O(slots touched).

        Raises:
            CorruptionError: the hash chain, the format or the order of stamps is broken; nothing changed. `details` name the frame by
                origin and seq: it may be one that was held.
        """
        origin = frame.origin
        assert self._readiness(frame, self._vv) is _APPLIED, "applied only when next and covered"
        if frame.previous != self.last_hash(origin)[1]:
            raise CorruptionError(
                f"fork: frame {origin}:{frame.first_seq} follows another history than the one applied here",
                fork=True,
                origin=origin,
                seq=frame.first_seq,
            )
        puts = frame.puts()  # everything is checked before anything changes
        first_hlc = puts.hlcs[0] if puts is not None else frame.hlc + frame.rows()[0][0]
        last_stamp = self._stamps.get(origin)
        if last_stamp is not None and first_hlc <= last_stamp:
            raise CorruptionError(
                f"frame {origin}:{frame.first_seq} is stamped {first_hlc}, not after its origin's last stamp, {last_stamp}",
                origin=origin,
                seq=frame.first_seq,
            )
        past = frame.context
        if self.control:
            past = self.control.complete(past.advance(origin, frame.first_seq - 1))
        seen: dict[Origin, int] = dict(past.pairs())
        if frame.is_control:
            self._check_closings(frame, seen)
        own = origin == self.origin
        if puts is not None:
            self._applier.put_all(origin, seen, puts)
            ids, seqs, hlcs = puts.requests
            if ids:
                self._requests.note_all(ids, origin, seqs, hlcs)
            hlc = puts.hlcs[-1]
        else:
            hlc = self._apply_commits(frame, seen)
        if own:
            self.clock.restore(hlc)
        else:
            self.clock.absorb(hlc)
            self._retirement.seen_by[origin] = past
        if frame.is_control or not own:
            self._context = None
            self._template = None
        self._vv[origin] = frame.last_seq
        self._stamps[origin] = hlc
        self._keep_hash(frame)
        self.position += 1
        if frame.is_control:
            self._begin_limits_again()
        if self._held:
            self._held.drop_covered(origin, frame.first_seq, frame.last_seq)
        frame.release()

    def _apply_commits(self, frame: Frame, seen: dict[Origin, int]) -> int:
        """Apply a frame's commits, delta by delta; the last one's stamp."""
        step, origin, hlc = self._applier, frame.origin, 0
        for seq, hlc, meta, deltas in frame.commits():
            seen[origin] = seq - 1
            step.begin(origin, seq, hlc, seen, False)
            for delta in deltas:
                if delta[0] in CONTROL_KINDS:
                    self._apply_control(delta, origin, seq, hlc)
                else:
                    APPLY[delta[0]](step, delta)
            if meta is not None and type(meta.get("r")) is bytes:
                self._requests.note(meta["r"], origin, seq, hlc)
        return hlc

    @staticmethod
    def _check_closings(frame: Frame, seen: Mapping[Origin, int]) -> None:
        """A closing that its writer had not seen the end of would make vectors cover what nobody has applied."""
        for seq, _, _, deltas in frame.commits():
            for delta in deltas:
                if delta[0] == DeltaKind.CLOSE and (seq - 1 if delta[1] == frame.origin else seen.get(delta[1], 0)) < delta[2]:
                    raise CorruptionError(
                        f"frame {frame.origin}:{frame.first_seq} closes {delta[1]} at {delta[2]}, which its writer had not applied",
                        origin=frame.origin,
                        seq=frame.first_seq,
                    )

    def touches(self, frames: Iterable[Frame]) -> list[bytes]:
        """The records that applying frames will read: what `State.load` should fetch in one multi-get."""
        keys: list[bytes] = []
        for frame in frames:
            puts = frame.puts()
            if puts is not None:
                keys += puts.slots
            else:
                keys += [key for _, _, _, deltas in frame.commits() for delta in deltas for key in records_of(delta, frame)]
        return keys

    def _hold(self, frame: Frame) -> Outcome:
        return _HELD if self._held.add(frame) else DROPPED

    def apply_held(self, applied: list[Frame]) -> None:
        """Apply the held frames that are ready now, the least origin's first, and add them to `applied`."""
        for frame in self._held.ready():
            self.apply(frame)
            applied.append(frame)

    def drop_held(self) -> None:
        """Forget every held frame: a restart does, and so may a session that subscribes anew."""
        self._held.clear()

    # -- request ids ----------------------------------------------------------------------------------------------

    def request(self, request_id: bytes) -> Made | None:
        """The commit that a request id made, if it is still remembered."""
        return self._requests.get(request_id)

    @property
    def requests(self) -> RequestWindow:
        """What is remembered of requests."""
        return self._requests

    # -- expiry, clears, bookkeeping ------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """By which instant reads decide what has expired: the later of wall clock and HLC."""
        return max(self.clock.wall_ms(), ms_of(self.clock.mark))

    def due(self, limit: int) -> Iterator[Delta]:
        """Removals of expired entries that this replica should issue now: see `Retirement.due`."""
        return self._retirement.due(limit) if self.refusal is None else iter(())

    def maintain(self, now_ms: int) -> None:
        """Trim what is kept only for a time."""
        self.journal.trim(self.settings.journal_age_s * 1000, now_ms)
        self._requests.trim(now_ms)

    def forget_stable(
        self, stable: VersionVector, acknowledged: Mapping[Origin, VersionVector], runs_max: int, cursor: bytes = b""
    ) -> bytes:
        """Forget what only mattered to commits that can no longer come: see `Retirement.forget_stable`."""
        return self._retirement.forget_stable(stable, acknowledged, runs_max, cursor)

    def watch_changes(self, into: Changes | None, *, keys_only: bool = False) -> None:
        """Gather what changes visibly into a list from now on; None stops. `keys_only`: nobody looks at more than keys."""
        self._applier.touched = into
        self._applier.keys_only = keys_only

    def purge_slice(self, slots_max: int) -> bool:
        """Do some of the clearing that is due; True if more is left."""
        return self._applier.purge_slice(slots_max)

    def entries(self, slot: bytes, record: bytes | None) -> list[Entry]:
        """A record's live entries: those that a clear in progress has not covered."""
        return self._applier.entries(slot, record)

    def requests_made(self) -> list[Made]:
        """The window of request ids, oldest first: what a snapshot carries of it."""
        return self._requests.all()

    def note_request(self, made: Made) -> None:
        """Remember a request that a snapshot brought."""
        self._requests.note(made.request_id, made.origin, made.seq, made.hlc)

    def last_stamps(self) -> dict[Origin, int]:
        """The stamp of each origin's last commit, as far as it is known."""
        return dict(self._stamps)

    def jump(self, vv: VersionVector, hashes: Mapping[Origin, bytes], stamps: Mapping[Origin, int] | None = None) -> None:
        """After a snapshot's records were put: take over its vector, hashes and stamps. Held frames that it covers go."""
        for origin, seq in vv.items():
            before = self._vv.get(origin, 0)
            if seq > before:
                self._vv[origin] = seq
                self._hashes[origin] = (seq, hashes[origin])
                self._stamps.pop(origin, None)
                if stamps and origin in stamps:
                    self._stamps[origin] = stamps[origin]
                self._held.drop_covered(origin, before + 1, seq)
        self._context = None
        self._template = None

    def loaded(self, vv: VersionVector, hashes: Mapping[Origin, bytes], agreed: Agreed, digest: int, mark: int) -> None:
        """After a whole state was written to the base of a replica that had nothing: take over what belongs to it; see `core.load`."""
        assert not self._vv and not self.state.pending, "only what is empty is loaded"
        self.jump(vv, hashes)
        self.agree(agreed, hashes)
        self.state.correct_digest(digest)
        self.heads = self._applier.heads = Heads(self.state)
        self.expiries = self._applier.expiries = Expiries(self.state)
        self.clock.absorb(mark)

    def begin_fold(self) -> None:
        """Set aside everything that changed, with the replica's own record of now, for `State.fold_some` to write in one batch.

        O(heads that changed); nothing is read.
        """
        assert not self._rows, "a frame is being made"
        requests = self._requests.fold()
        self.heads.fold()
        meta = self._meta()

        def record(digest: int | None) -> dict[bytes, bytes | None]:
            meta.digest = b"" if digest is None else digest.to_bytes(16, "big")
            return {META_KEY: _encode(meta), **requests()}

        self.state.begin_fold(record)

    def fold(self) -> None:
        """Write everything that changed to the engine, in one batch with the replica's own record; first what was set aside before."""
        self.state.end_fold()
        self.begin_fold()
        self.state.end_fold()

    def _meta(self) -> Meta:
        """The replica's own record of now, but for the digest. Nothing in it changes any more."""
        shown = self.control.show(self._vv)  # what is closed has records of its own, written once
        counts = self.journal.counts
        return Meta(
            1,
            self.cluster,
            self.shard,
            self.origin,
            shown.flat(),
            {o: h for o, h in self._hashes.items() if o in shown} if self.control else dict(self._hashes),
            {origin: kept[:] for origin, kept in self._kept.items()},
            self.clock.mark,
            b"",
            self.position,
            JournalCounts(counts.following, counts.first, counts.size_bytes, dict(counts.by_rule), counts.oldest),
            dict(self._stamps),
        )

    def _keep_hash(self, frame: Frame) -> None:
        self._hashes[frame.origin] = (frame.last_seq, frame.hash)
        if frame.crosses_interval():
            kept = self._kept.setdefault(frame.origin, [])
            kept.append((frame.last_seq, frame.hash))
            if len(kept) > KEPT_HASHES_MAX:
                del kept[0]
