"""The invariants of the design, asserted on one replica after each of its steps, and on all of them at the end. What each says stands
in `rules`, and in the design; here is where it is looked at:

    1  in order, once, causes first; where origins end    `_follow_log`, `_check_ends`
    2  one content for ever                               `_follow_log`, `renewed`
    3  one batch, one replay; a request once              `crashing`, `recovered`, `_check_heads`, `_check_requests`, `requested`
    4  dots are covered                                   `_check_state`
    5  same commits, same state, same digest              `_check_state`, `_check_digest`
    6  by log as by join; what clients see                `check_join`; `checkers`
    7  nothing before it is durable; the log keeps it     `sending`, `acknowledging`, `crashed`; `filed_log`
    8  nothing goes back; clocks follow                   `_check_clock`, `_check_runs`, `committed`
    9  the winner is read                                 `_check_reads`
    10 the acknowledged is everywhere, the lost in the journal    `quiescent`; `losses`
    11 all become equal; the healthy take writes          `World._settle`, `World._probe`, `quiescent`

States are judged by `specification`, and hashed here anew; of the production code only records are decoded. The order
of the checks is that of blame: what goes wrong first is said first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from crdtkv.core.causality import EMPTY_VV, Dot, Origin, VersionVector, region_of
from crdtkv.core.clock import stamp
from crdtkv.core.codec import successor
from crdtkv.core.frame import Frame, peek
from crdtkv.core.heads import HEAD_SPACE, head_key
from crdtkv.core.join import Snapshot, join, snapshot_of
from crdtkv.core.journal import JOURNAL_SPACE
from crdtkv.core.removals import REMOVAL_SPACE
from crdtkv.core.transfer import Arrival
from crdtkv.core.types.counter import DEAD_SPACE, Run, run_name
from crdtkv.replication.messages import Ack, AskRelay, Chunk, Frames, Heartbeat, Hello, Message, Subscribe
from crdtkv.simulation.following import COUNTER, DIGEST_MASK, FollowedSlots, Head, counts, live_in, name_of, parts_of, run_in
from crdtkv.simulation.losses import Losses
from crdtkv.simulation.rules import Violation, must
from crdtkv.simulation.specification import Commit, History, Live, Slot, read
from crdtkv.simulation.words import entries_in_words, moment, place_name

if TYPE_CHECKING:
    from crdtkv.simulation.member import Member

_REPLAYED: Final = (HEAD_SPACE, REMOVAL_SPACE, JOURNAL_SPACE, DEAD_SPACE)
"""Bookkeeping that replay must give again to the byte: a function of the log, but for what was forgotten as stable, which is flushed."""
_PROMISING: Final = frozenset[type[Message]]((Ack, AskRelay, Chunk, Frames, Heartbeat, Hello, Subscribe))
"""Messages that say what is applied, or durable."""
_STAMPS_AT_ONCE: Final = 1_000
"""More stamps than one step issues: how far the clock's mark may go ahead of the bound by counting."""


@lru_cache(maxsize=1 << 12)
def last_in(frame: bytes) -> int:
    """The last seq of an encoded frame: most go to several peers."""
    return peek(frame)[1]


def _goes_beyond(one: Member, other: Member) -> bool:
    """Whether one replica has more of an origin than where another has closed it."""
    vv = one.machine.vv()
    return any(vv.seq(origin) > closes[-1].seq for origin, closes in other.machine.control.closed.items())


class _Copied(NamedTuple):
    """What goes with a copy of a directory: of `_Followed`, as it was then."""

    replayed: dict[bytes, bytes] | None
    has_sliced: bool
    forgotten: tuple[tuple[int, VersionVector], ...]


class _Followed:
    """What is remembered of one replica from one check to the next."""

    ends_judged: object = None
    """What the last look at closed origins rested on."""

    def rebuilt(self) -> None:
        """The replica was rebuilt from its disk, or changed back: nothing that was followed of its state counts."""
        self.slots.rebuilt()
        self.checked = EMPTY_VV
        self.requests_checked.clear()
        self.ends_judged = None

    def __init__(self) -> None:
        self.order: list[Frame] = []
        self.vv = EMPTY_VV
        self.hashes: dict[Origin, bytes] = {}
        self.mark = 0
        self.heard = 0
        """The greatest stamp of what came from others since the last look at the clock."""
        self.slots = FollowedSlots()
        self.runs: dict[bytes, Run] = {}
        """Each counter's run as it was when it last changed, also of those that are dropped since."""
        self.expired = 0
        self.requests_checked: dict[Origin, int] = {}
        self.replayed: dict[bytes, bytes] | None = None
        self.has_sliced = False
        """Since it was last rebuilt, a clear went in slices. What that met is journaled as slices and commits take turns, and a replay has
        turns of its own: each is told, but under another number."""
        self.jumps = 0
        self.forgotten: list[tuple[int, VersionVector]] = []
        """What of the removals was forgotten as stable, and where its log ended then."""
        self.durable = EMPTY_VV
        """What it had durably, and may have acknowledged, when it last died."""
        self.before_jump = (-1, EMPTY_VV)
        """Where the log stood at the last install, and what was applied before it."""
        self.checked = EMPTY_VV
        self.frozen: set[Origin] = set()


class Auditor:
    """Judges every replica of one simulation. Everything it knows, it has seen from outside."""

    def __init__(self, history: History, *, max_skew_ms: int, sync: bool) -> None:
        self._history = history
        self._losses = Losses(history)
        self._max_skew_ms = max_skew_ms
        self._sync = sync
        self._followed: dict[int, _Followed] = {}
        self._contents: dict[tuple[Origin, int], bytes] = {}
        self._ends: dict[tuple[Origin, int], bytes] = {}
        """The hash of each frame that was seen anywhere, by its last commit."""
        self._digests: dict[VersionVector, int] = {}
        self._stamps: dict[Origin, int] = {}
        self._requests: dict[Dot, bytes] = {}
        self._requests_of: dict[Origin, dict[int, bytes]] = {}
        self._done_for: dict[bytes, list[Dot]] = {}
        self._closed_at: dict[Origin, int] = {}
        self._ends_as_of = 0
        """Changes whenever that does."""
        self._closings: dict[Origin, set[Dot]] = {}
        """The commits that closed an origin at its present end."""
        self._unsaid: set[Origin] = set()
        """Origins of which every such commit was once on lost disks only, or that came back with more: they may be closed elsewhere."""
        self._copied: dict[int, _Copied] = {}
        self._put_back: dict[int, _Copied] = {}
        """Of whom is to start from one."""
        self._joined: tuple[Snapshot, Snapshot] | None = None
        """Of which two states the join was last judged."""
        self.removed_regions: set[str] = set()
        self.ends_may_rise = False

    def watch(self, member: Member) -> None:
        """Begin to follow a replica."""
        self._followed[member.index] = _Followed()

    # -- after each step ------------------------------------------------------------------------------------------

    def committed(self, member: Member, commit: Commit) -> None:
        """A local commit was made: numbered without a gap, stamped upwards."""
        last = commit.past.seq(member.origin)
        if commit.dot.seq != last + 1:
            raise Violation(f"{commit.dot} follows {last}")
        if commit.hlc <= self._stamps.get(member.origin, 0):
            raise Violation(f"{commit.dot}: its stamp is not greater than that of {last}")
        self._stamps[member.origin] = commit.hlc
        self._history.record(commit)

    def requested(self, member: Member, past: VersionVector, dot: Dot, request_id: bytes) -> None:
        """The commit was made for a request that may be tried again anywhere; where it is known to be done, it is not done again."""
        before = self._done_for.setdefault(request_id, [])
        if len(self._requests) <= member.machine.replica.settings.requests_max:
            done = next((earlier for earlier in before if past.covers(earlier)), None)
            must(done is None, f"the request of {done} was done again at {member.region}, as {dot}")
        before.append(dot)
        self._requests[dot] = request_id
        self._requests_of.setdefault(dot.origin, {})[dot.seq] = request_id

    def answered(self, request_id: bytes, dot: Dot) -> None:
        """A retry is told which commit its first try made."""
        must(dot in self._done_for.get(request_id, ()), f"the request of {self._done_for.get(request_id)} was answered with {dot}")

    def check(self, member: Member, *, wholly: bool = False) -> None:
        """Whatever just happened at a replica, all of this holds. `wholly`: look at every record, and not only at those that may have
        changed since the last look."""
        followed, log, machine = self._followed[member.index], member.log, member.machine
        if len(log.frames) != len(followed.order) or len(log.jumps) != followed.jumps:
            self._follow_log(member, followed)
        vv = machine.vv()
        if vv is not followed.vv:  # messages are made only where they are needed: this runs after every step
            if vv != followed.vv:
                raise Violation(f"{member.region} says it has applied {vv}, its log amounts to {followed.vv}")
            followed.vv = vv  # the machine gives the same object until it changes
        changed = followed.slots.follow(member, wholly=wholly)
        has_advanced = vv is not followed.checked and vv != followed.checked
        if changed or has_advanced:
            self._check_state(member, followed, vv, changed)
            self._check_heads(member, followed, changed)
            self._check_requests(member, followed, vv)
            self._check_digest(member, followed, vv)
            self._check_runs(member, followed, vv, changed)
        if self._closed_at or machine.control.closed:
            self._check_ends(member, followed, vv)
        if followed.heard or machine.hlc() != followed.mark:
            self._check_clock(member, followed)
        if changed or followed.slots.expiries or followed.expired:
            self._check_reads(member, followed, vv, changed)
        followed.checked = vv

    def _follow_log(self, member: Member, followed: _Followed) -> None:
        """1, 2: walk what was appended since, as a replica that knows nothing else would have to."""
        is_anew = followed.checked is EMPTY_VV  # its clock may have lost what it had only absorbed
        for position, frame in enumerate(member.log.frames[len(followed.order) :], len(followed.order)):
            if followed.jumps < len(member.log.jumps):
                self._follow_jumps(member, followed, position)
            after = followed.vv.seq(frame.origin)
            if frame.first_seq != after + 1:
                raise Violation(f"{member.region} applied {frame} after {frame.origin}:{after}")
            if not frame.context <= followed.vv:
                raise Violation(f"{member.region} applied {frame}, which rests on {frame.context}, at {followed.vv}")
            content = self._contents.setdefault((frame.origin, frame.first_seq), frame.data)
            if content != frame.data:
                raise Violation(f"two contents of {frame}: another one at {member.region}")
            if frame.previous != followed.hashes.get(frame.origin, b""):
                raise Violation(f"{frame} does not follow the last frame of its origin")
            followed.order.append(frame)
            followed.hashes[frame.origin] = frame.hash
            followed.vv = followed.vv.advance(frame.origin, frame.last_seq)
            self._ends[frame.origin, frame.last_seq] = frame.hash
            commit = self._history.commits.get(Dot(frame.origin, frame.last_seq))
            if commit is not None and commit.hlc > followed.heard and not is_anew:
                followed.heard = commit.hlc
        self._follow_jumps(member, followed, len(member.log.frames))

    def _follow_jumps(self, member: Member, followed: _Followed, position: int) -> None:
        """Snapshots that were installed at a position of the log."""
        jumps = member.log.jumps
        while followed.jumps < len(jumps) and jumps[followed.jumps][0] <= position:
            if followed.before_jump[0] != jumps[followed.jumps][0]:
                followed.before_jump = jumps[followed.jumps][0], followed.vv
            for origin, seq in jumps[followed.jumps][1].items():
                must(
                    seq > followed.before_jump[1].seq(origin),
                    f"{member.region}: the floor of {origin} rose to {seq}, where it had been applied by log",
                )
                must((origin, seq) in self._ends, f"{member.region} installed {origin} up to {seq}, where no frame ends")
                followed.vv = followed.vv.advance(origin, max(seq, followed.vv.seq(origin)))
                followed.hashes[origin] = self._ends[origin, followed.vv.seq(origin)]
            followed.jumps += 1

    def _check_state(self, member: Member, followed: _Followed, vv: VersionVector, changed: Sequence[bytes]) -> None:
        """4, 5: the state is what the specification says of this version vector."""
        slots = followed.slots
        for slot in changed:
            run = slots.runs.get(slot)
            if run is not None and not run.base_seq <= run.seq <= vv.seq(run_name(parts_of(slot)[2])[0]):
                raise Violation(f"{member.region}: {run} of {run_name(parts_of(slot)[2])[0]} is not covered by {vv}")
        wanted, counters, _ = self._history.state(vv, followed.checked)
        if wanted != slots.live:
            self._differ(f"{member.region} at {vv}", vv, slots.live, wanted)
        if counters != slots.counters:
            self._differ_in_counters(f"{member.region} at {vv}", slots.counters, counters)
        slots.live = wanted.copy()  # the same objects: what does not change is equal at a glance next time

    @staticmethod
    def _differ(what: str, vv: VersionVector, found: Mapping[Slot, tuple[Live, ...]], wanted: Mapping[Slot, tuple[Live, ...]]) -> None:
        slot = next(s for s in sorted(wanted.keys() | found.keys()) if wanted.get(s) != found.get(s))
        here, there = found.get(slot, ()), wanted.get(slot, ())
        uncovered = [str(write.dot) for write in here if not vv.covers(write.dot)]
        because = f", {uncovered} not even covered" if uncovered else ""
        holds, should = (entries_in_words(slot, {write.dot: write.value for write in live}, str) for live in (here, there))
        if holds == should:  # they differ in a stamp or an expiry
            holds, should = str(here), str(there)
        must(False, f"{what}: {place_name(slot)} holds {holds}{because}; it should hold {should}")

    @staticmethod
    def _differ_in_counters(what: str, found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        key = next(k for k in sorted(wanted.keys() | found.keys()) if wanted.get(k) != found.get(k))
        raise Violation(f"{what}: counter {key} is {found.get(key, 'absent')}; it should be {wanted.get(key, 'absent')}")

    def _compare(self, what: str, vv: VersionVector, records: Mapping[bytes, bytes]) -> None:
        """5, 6: any records against the specification."""
        wanted, counters, _ = self._history.state(vv)
        found = {name_of(slot): live_in(record) for slot, record in records.items() if parts_of(slot)[1] != COUNTER}
        if wanted != found:
            self._differ(what, vv, found, wanted)
        counted: dict[str, int] = {}
        for slot, record in records.items():
            if parts_of(slot)[1] == COUNTER and counts(run := run_in(record)):
                key = parts_of(slot)[0].decode()
                counted[key] = counted.get(key, 0) + run.total - run.base
        if counters != counted:
            self._differ_in_counters(what, counted, counters)

    def _check_digest(self, member: Member, followed: _Followed, vv: VersionVector) -> None:
        """5: the incremental digest is that of the live entries and runs, added up here by itself; the same for all at `vv`."""
        replica = member.machine.replica  # asked itself: the machine would fold first, and hide what a crash before the fold does
        if replica.purges.active:
            followed.has_sliced = True
            return  # not settled while a clear is in progress
        told, total = replica.digest(), followed.slots.total & DIGEST_MASK
        if told != total:
            raise Violation(f"{member.region}: its digest is {told:032x}, its state amounts to another")
        if self._digests.setdefault(vv, told) != told:
            raise Violation(f"{member.region}: digest {told:032x} at {vv} was {self._digests[vv]:032x} elsewhere")

    def _check_ends(self, member: Member, followed: _Followed, vv: VersionVector) -> None:
        """An origin is closed once, and nobody has more of it than that; each vector says the same with and without what is closed."""
        control = member.machine.control
        judged = vv, control.version, self._ends_as_of, self.ends_may_rise, len(self.removed_regions), len(self._unsaid), member.origin
        if judged == followed.ends_judged:
            return  # all that this rests on is as it was
        if control.closed and control.complete(control.show(vv)) != vv:
            raise Violation(f"{member.region} shows {vv} as {control.show(vv)}")
        for origin, closes in control.closed.items():
            end = closes[-1].seq
            if vv.seq(origin) < end:
                raise Violation(f"{member.region} has closed {origin} at {end} without having it: {vv}")
            if origin in self._unsaid:
                continue
            known = self._closed_at.get(origin, end)
            if known != end and not self.ends_may_rise:
                raise Violation(f"{member.region}: {origin} is closed at {end} and at {known}")
            if end > self._closed_at.get(origin, 0):
                self._closed_at[origin], self._closings[origin] = end, set()
                self._ends_as_of += 1
            self._closings[origin].update(Dot(c.by, c.at) for c in closes if c.seq == self._closed_at[origin])
        if region_of(member.origin) not in self.removed_regions and not self.ends_may_rise:
            for origin, end in self._closed_at.items():
                if vv.seq(origin) > end:
                    raise Violation(f"{member.region} has {origin} up to {vv.seq(origin)}, which was closed at {end}")
        followed.ends_judged = judged

    def _check_heads(self, member: Member, followed: _Followed, changed: Sequence[bytes]) -> None:
        """3: the bookkeeping beside the state: heads count slots and name runs."""
        heads, wanted = member.machine.replica.heads, followed.slots.heads
        heads.fold()
        for key in sorted({parts_of(slot)[0] for slot in changed}):
            head, should = heads.get(key), wanted.get(key) or Head()
            told = ([0, 0], set()) if head is None else ([head.set_slots, head.map_slots], set(head.runs))
            exists = member.machine.replica.state.side_get(head_key(key)) is not None
            if told != (should.slots, should.runs):
                raise Violation(f"{member.region}: the head of {key!r} is {head}")
            if exists != bool(should.runs or any(should.slots)):
                raise Violation(f"{member.region}: heads are kept for {key!r}: {exists}")

    def _check_requests(self, member: Member, followed: _Followed, vv: VersionVector) -> None:
        """3: where a request's commit is applied, the request is known: a retry there, also after a crash, makes no second one."""
        replica = member.machine.replica
        if len(self._requests) > replica.settings.requests_max:
            return  # the window may have moved on
        for origin, last in vv.pairs():
            asked = self._requests_of.get(origin)
            if asked is None or last <= (since := followed.requests_checked.get(origin, 0)):
                continue
            followed.requests_checked[origin] = last
            for seq in [seq for seq in asked if since < seq <= last]:
                made = replica.request(asked[seq])
                known = made is not None and (made.origin, made.seq) == (origin, seq)
                if not known:
                    raise Violation(f"{member.region}: the request of {origin}:{seq} is known as {made}")

    def _check_clock(self, member: Member, followed: _Followed) -> None:
        """8: the clock goes up, as far as stamps from elsewhere must pull it, and no further than they may."""
        mark, reach = member.machine.hlc(), stamp(member.wall() + self._max_skew_ms)
        if mark < min(followed.heard, reach):
            raise Violation(
                f"{member.region}: the clock's mark is {moment(mark)}, behind what is applied, {moment(followed.heard)}; "
                f"the bound is {moment(reach)}"
            )
        followed.heard = 0
        bound = max(followed.mark, reach) + _STAMPS_AT_ONCE
        if not followed.mark <= mark <= bound:
            raise Violation(
                f"{member.region}: the clock's mark went from {moment(followed.mark)} to {moment(mark)}, the bound is {moment(bound)}"
            )
        followed.mark = mark

    def _check_runs(self, member: Member, followed: _Followed, vv: VersionVector, changed: Sequence[bytes]) -> None:
        """8: a run's seqs go up."""
        for slot in changed:
            now = followed.slots.runs.get(slot)
            if now is not None:
                before = followed.runs.get(slot)
                if before is not None and not (before.seq <= now.seq and before.base_seq <= now.base_seq):
                    raise Violation(f"{member.region}: run {before} became {now}")
                followed.runs[slot] = now

    def _check_reads(self, member: Member, followed: _Followed, vv: VersionVector, changed: Sequence[bytes]) -> None:
        """9: readers are shown the winner by stored stamp and origin, unless it has expired: that may change with time alone."""
        reader, slots = member.reader, followed.slots
        now_ms = member.machine.replica.now_ms() if slots.expiries else 0  # nothing that is shown asks for it
        expired = slots.expired_by(now_ms)
        judged = changed
        if expired != followed.expired:
            followed.expired = expired
            judged = sorted({*changed, *slots.expiries})
        for slot in judged:
            if parts_of(slot)[1] != COUNTER:
                live = slots.live.get(name_of(slot), ())
                wanted, shown = read(live, now_ms), reader.entry(slot)
                told = None if shown is None else shown.dot
                if told != (wanted and wanted.dot):
                    should = "nothing" if wanted is None else wanted.dot
                    raise Violation(f"{member.region}: {place_name(name_of(slot))} shows {told or 'nothing'}; it should show {should}")
        if counters := {parts_of(slot)[0] for slot in changed if slot in slots.runs}:
            for key in sorted(counters):  # what they amount to is judged by now
                value, reads = slots.counters.get(key.decode()), reader.counter(key)
                if value is not None and reads != value:
                    raise Violation(f"{member.region}: counter {key.decode()} reads {reads}; it should read {value}")

    # -- now and then ---------------------------------------------------------------------------------------------

    def check_join(self, a: Member, b: Member) -> None:
        """6: the join of two states is what the specification says of both together, whichever way it is taken. Not where each of them
        would refuse the other: what a removed region wrote beyond its end rests on what the others have let go of."""
        if _goes_beyond(a, b) or _goes_beyond(b, a):
            return
        one, two = snapshot_of(a.machine.replica), snapshot_of(b.machine.replica)
        if (one, two) == self._joined:
            return  # nothing else goes into what follows
        both, self._joined = join(one, two), (one, two)
        if one == two:  # as most often, once all is applied: then each of the joins below is this one
            must(both == one, f"the join of {a.region} and {b.region} is not idempotent")
        else:
            must(both == join(two, one), f"the join of {a.region} and {b.region} depends on the order")
            must(join(both, one) == both and join(one, one) == one, f"the join of {a.region} and {b.region} is not idempotent")
        must(Snapshot.from_bytes(both.to_bytes()) == both, "a snapshot's bytes do not give it back")
        self._compare(f"the join of {a.region} and {b.region}", both.vv, both.slots)

    def sending(self, member: Member, message: Message) -> None:
        """7: what leaves promises and carries only what is applied, and durable, by now."""
        if type(message) not in _PROMISING:
            return
        log = member.log
        if type(message) is Ack:
            if not message.applied <= (applied := member.machine.vv()):
                raise Violation(f"{member.region} acknowledged {message.applied}, it has applied {applied}")
            if not message.durable <= (durable := log.vv_at[log.synced()]):
                raise Violation(f"{member.region} acknowledged {message.durable} as durable, it is {durable or 'nothing'}")
        elif type(message) is Frames:
            if message.ack is not None:
                self.sending(member, message.ack)
            if message.relayed:
                return
            last = max(map(last_in, message.frames))
            bound = log.vv_at[log.synced() if self._sync else -1]
            if last > bound.seq(member.origin):
                raise Violation(f"{member.region} sent {member.origin}:{last}, durable up to {bound or 'nothing'}")
            if not self._sync and last > member.instance.bound:
                raise Violation(f"{member.region} sent {member.origin}:{last} above the sent bound")
        elif isinstance(message, (Heartbeat, Hello, Subscribe, AskRelay)):
            if not message.vv <= (applied := member.machine.vv()):
                raise Violation(f"{member.region} told {message.vv}, it has applied {applied}")
        elif isinstance(message, Chunk) and message.number == 0:
            header = Arrival()
            header.take(message.data, message.link)
            assert header.incoming is not None
            durable = log.vv_at[log.synced()]
            must(header.incoming.vv <= durable, f"{member.region} sent a snapshot of {header.incoming.vv}, durable up to {durable}")

    def acknowledging(self, member: Member, dots: Iterable[Dot]) -> None:
        """7: a client is told of a commit only when it is durable at its level."""
        log = member.log
        durable = log.vv_at[log.synced() if self._sync else log.end()]
        for dot in dots:
            if not durable.covers(dot):
                raise Violation(f"{member.region} acknowledged {dot}, durable up to {durable or 'nothing'}")

    def crashing(self, member: Member, *, torn: bool = False) -> None:
        """3: note what replay must give again, and what must still be frozen; nothing to replay, if it dies half-way through an install,
        which is then done anew."""
        self._followed[member.index].frozen = set(member.machine.control.frozen)
        self._followed[member.index].replayed = None if torn else self._bookkeeping(member)
        self._followed[member.index].durable = member.log.vv_at[member.log.synced()]

    def copied(self, member: Member) -> None:
        """A copy of its directory was taken: 3 holds of that as well, and it may be of before something was forgotten."""
        followed = self._followed[member.index]
        self._copied[member.index] = _Copied(self._bookkeeping(member), followed.has_sliced, tuple(followed.forgotten))

    def set_back(self, member: Member, *, to_copy: bool = False) -> None:
        """Its directory is not what it was when it died, but the last copy, or less."""
        self._losses.went_back(member.region, self._followed[member.index].durable)
        self._put_back.pop(member.index, None)
        if to_copy:
            self._put_back[member.index] = self._copied[member.index]
        else:
            self._followed[member.index].forgotten.clear()  # there is nothing left that lacks it, or all is made anew of a whole log

    def forgetting(self, member: Member, stable: VersionVector) -> None:
        """It forgets the removals that every member has acknowledged."""
        if stable:
            self._followed[member.index].forgotten.append((member.log.end(), stable))

    def crashed(self, member: Member, others: Iterable[Member]) -> None:
        """7: what the power loss took, nobody else may have."""
        followed = self._followed[member.index]
        lost = [frame for frame in followed.order[len(member.log.frames) :] if frame.origin == member.origin]
        kept_seq = member.log.vv_at[-1].seq(member.origin)
        dots = sorted(dot for dot in self._history.commits if dot.origin == member.origin and dot.seq > kept_seq)
        for other in others:
            has = other.log.vv_at[-1].seq(member.origin)
            must(not dots or has < dots[0].seq, f"{dots[0] if dots else ''} was lost at {member.region}, but {other.region} has it")
        for frame in lost:
            del self._contents[frame.origin, frame.first_seq]
        self._forget(dots)
        kept = followed.order[: len(member.log.frames)]
        if dots:
            self._stamps[member.origin] = max((c.hlc for dot, c in self._history.commits.items() if dot.origin == member.origin), default=0)
        if len(kept) < len(followed.order):
            self._rewind(member, followed, kept)

    def _forget(self, dots: list[Dot]) -> None:
        """These commits never were."""
        self._history.forget(dots)
        self._losses.forget()
        for dot in dots:
            if (request_id := self._requests.pop(dot, None)) is not None:
                del self._requests_of[dot.origin][dot.seq]
                self._done_for[request_id].remove(dot)

    def may_have_thawed(self, member: Member) -> None:
        """An earlier state of its disk may have come back: what it had frozen since is told again, and closed again if need be."""
        self._followed[member.index].frozen = set()

    def kept(self, vvs: Sequence[VersionVector]) -> None:
        """What is on all disks by now: a closing of which nothing is left was never said. A disk of an earlier time may also bring
        back what its origin had written, and nobody else had seen when they closed it."""
        for origin, dots in list(self._closings.items()):
            is_beyond = any(vv.seq(origin) > self._closed_at[origin] for vv in vvs)
            if is_beyond or not any(vv.covers(dot) for vv in vvs for dot in dots):
                self._unsaid.add(origin)
                del self._closings[origin], self._closed_at[origin]
                self._ends_as_of += 1

    def renewed(self, member: Member) -> None:
        """8: it goes on under an id that nobody has seen, above every one seen; what its disk holds is followed anew."""
        written = any(dot.origin == member.origin for dot in self._history.commits)
        must(not written, f"{member.region} goes on as {member.origin}, which has written")
        forgotten = self._followed[member.index].forgotten  # by whatever name
        followed = self._followed[member.index] = _Followed()
        followed.mark, followed.forgotten = member.machine.hlc(), forgotten

    def undone(self, member: Member, dots: list[Dot]) -> None:
        """3: commits that found no room: nothing of them is left, here or anywhere, and nothing else has changed."""
        followed = self._followed[member.index]
        self._forget(dots)
        self._stamps[member.origin] = max((c.hlc for dot, c in self._history.commits.items() if dot.origin == member.origin), default=0)
        followed.runs, followed.frozen = {}, set()
        self.recovered(member)

    def _rewind(self, member: Member, followed: _Followed, kept: list[Frame]) -> None:
        """Part of the log was lost, with whatever it had done."""
        followed.order, followed.vv = kept, member.log.vv_at[-1]
        followed.hashes = {o: self._ends[o, n] for o, n in followed.vv.items()}
        followed.runs, followed.replayed = {}, None
        self._digests = {vv: digest for vv, digest in self._digests.items() if vv.seq(member.origin) <= followed.vv.seq(member.origin)}

    def recovered(self, member: Member) -> None:
        """3: replay from whatever batch the engine had kept gives the same state, digest and bookkeeping."""
        followed = self._followed[member.index]
        if (copied := self._put_back.pop(member.index, None)) is not None:
            followed.replayed, followed.has_sliced, followed.forgotten = copied.replayed, copied.has_sliced, [*copied.forgotten]
        followed.rebuilt()
        followed.mark = member.machine.hlc()  # what was only absorbed may be lost; that own stamps go up, `committed` sees to
        control, vv = member.machine.control, member.machine.vv()
        for origin in followed.frozen:
            limit = control.limit(origin)
            must(
                limit is not None and limit <= vv.seq(origin),
                f"{member.region}: {origin} was frozen, and after a restart is taken up to {limit}",
            )
        if followed.replayed is not None:
            now = self._bookkeeping(member)
            if now is not None and now != followed.replayed:
                where = next(k for k in sorted(now.keys() | followed.replayed.keys()) if now.get(k) != followed.replayed.get(k))
                must(False, f"{member.region}: replay made {where!r} {now.get(where)!r}, it was {followed.replayed.get(where)!r}")
        followed.has_sliced = False
        self.check(member)

    def clock_begins_anew(self, member: Member) -> None:
        """The replica goes on as another incarnation: its clock may begin anew."""
        self._followed[member.index].mark = member.machine.hlc()

    def _bookkeeping(self, member: Member) -> dict[bytes, bytes] | None:
        """What replay must give again; None while a clear goes on, which a replay may have got further with, or less far."""
        if member.machine.replica.purges:
            return None
        state = member.machine.replica.state
        member.machine.replica.heads.fold()
        spaces = [space for space in _REPLAYED if space != JOURNAL_SPACE or not self._followed[member.index].has_sliced]
        return {key: record for space in spaces for key, record in state.scan(space, successor(space))}

    # -- at the end -----------------------------------------------------------------------------------------------

    def quiescent(self, members: Sequence[Member], acknowledged: Iterable[Dot], *, judges_all: bool) -> None:
        """10, 11: all the same, nothing acknowledged is missing, nothing lost in silence. `judges_all`: these are all there ever were."""
        first = members[0].machine
        for member in members:
            must(member.machine.digest() == first.digest(), f"{member.region} and {members[0].region} ended differently")
            vv = member.machine.vv()
            missing = [str(dot) for dot in sorted(acknowledged) if not vv.covers(dot)]
            must(not missing, f"{member.region} lacks what was acknowledged: {missing[:5]}")
            followed = self._followed[member.index]
            self._losses.check(member, followed.order, followed.forgotten)
        if judges_all:
            self._losses.check_together(members)
        for member in members[1:]:
            self.check_join(members[0], member)
