"""How the members agree where an origin ends, sans-IO: what each has of it goes round, and one of them closes it (DESIGN §4).

An origin *ends* when its region goes on as a later incarnation, or is removed. Then, at every member by itself:

    1  freeze    it takes no more of the origin than it has; that is on its disk before anybody hears of it, so a restart keeps it
    2  report    it tells its peers what it has fsynced of the origin; they pass that on, so that two who cannot meet hear of each other
    3  follow    it takes as much as any member had when it froze: the greatest of all reports is F, and nobody will ever have more
    4  close     once *every* member is frozen and has fsynced up to F, the origin's own region (of one that is removed or drained: the
                 least other member by name) commits CLOSE; causal order does the rest

There are no rounds and no leader: reports only grow, everybody may compute F, and whoever crashes goes on from its disk. A member that
cannot be reached blocks step 4 and nothing else: until then the origin stays in the vectors. Two may close the same origin (a driver
that changes): both then say the same F. A member that nobody counted (it was added at that moment) may have taken more; its report
says so, all follow, and the origin is closed once more.

A report promises: of what it names its reporter takes no more than it says, but for what another member that *it counts* has
told. So a closing may rest only on reports of who counts nobody that the driver does not. Reports of a removed region count for
nothing; so with its reports each member tells by which removals it *goes*: those on its disk, with limits found anew since it heard of
them, and everything that it froze in the same message. Step 4 waits until all members go by the removals that the driver knows. (Told of
a freeze, one may well be frozen for a removal that has not come yet.)

What is frozen because its region went on as another incarnation may be alive: whoever met that other one, which wrote nothing, freezes
what comes after it (a lost disk begins at the first generation again). The living one takes a later incarnation when it is told why it is
refused; so the reason is kept, and goes round, with the freeze: he who found it may lose his disk.

Members are this region, those configured, those recorded (`core.control`), those that peers name, and those that have written and were
not closed; without those removed. A region that is being drained reports, and is reported on, in the same way without being frozen:
when all have what it has, it may go. Its reports count once it tells that it goes by that very drain: one that was taken back is another.

Not frozen is an origin to which a link is live: then two nodes run as one region, and whose commits shall end is for an operator to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Final

from crdtkv.core.causality import Dot, Origin, VersionVector, generation_of, region_of
from crdtkv.core.control import MemberState, Steering
from crdtkv.replication.messages import ORIGINS_MAX, Reports
from crdtkv.replication.port import ReplicaPort

Told = dict[Origin, tuple[int, bool]]
"""Per origin that ends: what a member has fsynced of it, and whether it takes no more."""

NO_STEERING: Final = Steering()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One region as this replica sees it. `region`'s own commits by origin; None is unknown."""

    region: str
    state: str
    address: str
    is_member: bool
    origins: Mapping[Origin, int]
    """What is applied here, of its open origins."""
    announced: Mapping[Origin, int]
    """The greatest seq that anybody ever named here: what is more than `origins` may be lost if the region is removed now."""
    reports: Mapping[str, Mapping[Origin, int]]
    """What each member has fsynced of it, as far as told: while it is drained, or an origin of it is being closed."""
    waits_for: tuple[str, ...]
    """Members that have not told yet, or have not fetched everything."""

    @property
    def is_drained(self) -> bool:
        """It takes no writes, and every member has told that it has all that the region has."""
        return self.state == MemberState.DRAINING and not self.waits_for


class Membership:
    """See the module's docstring. Pure state; `review` looks at everything anew.

    Args:
        configured: names of the regions of the cluster, as far as configured.
    """

    def __init__(self, port: ReplicaPort, configured: Sequence[str]) -> None:
        self._port = port
        self._configured = tuple(configured)
        self._reports: dict[Origin, Told] = {}
        """By member, its own entry included. Only the latest incarnation of a region counts."""
        self._removals: dict[Origin, dict[Origin, int]] = {}
        """By member that reports: by whoever recorded a removal or a drain, the last such commit that it goes by, and has fsynced."""
        self._ended_by: dict[Origin, Origin] = {}
        """Why peers have frozen origins that are not closed yet, as they told."""
        self._announced: dict[Origin, int] = {}
        """The greatest seq that anybody named, of origins of which not so much was applied at the last `review`; of so many at most."""
        self._last_announced: dict[Origin, VersionVector] = {}
        """By peer, of those that are connected."""
        self._named: tuple[str, ...] = ()
        self._present: frozenset[Origin] = frozenset()
        self._met: dict[str, Origin] = {}
        """Per region the latest incarnation that was ever connected: it has ended former ones here, also if it never wrote anything."""
        self._known: tuple[frozenset[Origin], frozenset[Origin], dict[str, list[Origin]]] = frozenset(), frozenset(), {}
        """Which origins were applied, and which had reported, when it was last looked which are of one region; and these."""
        self.message: Reports | None = None
        """What was last to be told."""
        self.changes = 0
        """How often what is known of reports has changed."""
        self.steering = NO_STEERING
        """What the I/O should have the replica do."""

    # -- inputs -----------------------------------------------------------------------------------------------------

    def receive(self, message: Reports) -> None:
        """What a peer knows of what members told. What is told only grows, so it may come late and in any order."""
        own, all_known = self._port.origin, self._reports
        for reporter, told in message.reports.items():
            if reporter == own or len(all_known) >= ORIGINS_MAX:
                continue
            if reporter not in all_known:
                all_known[reporter] = {}
                self.changes += 1
            known = all_known[reporter]
            for origin, (seq, is_frozen) in told.items():
                before = known.get(origin)
                if before is None or seq > before[0] or (is_frozen and not before[1]):
                    known[origin] = (seq, is_frozen) if before is None else (max(before[0], seq), before[1] or is_frozen)
                    self.changes += 1
                self._note_announced(origin, seq)
        for reporter, goes_by in message.removals.items():
            if reporter != own and reporter in all_known:
                records = self._removals.setdefault(reporter, {})
                for by, seq in goes_by.items():
                    if seq > records.get(by, 0) and (by in records or len(records) < ORIGINS_MAX):
                        records[by] = seq
                        self.changes += 1
        for origin, later in message.ended_by.items():
            if origin not in self._ended_by and len(self._ended_by) < ORIGINS_MAX:
                self._ended_by[origin] = later
                self.changes += 1

    def announce(self, peer: Origin, vv: VersionVector) -> None:
        """A peer says what it has applied. To be told again, also if that is nothing new, when a closing was applied here."""
        told = self._reports.get(peer)
        if told:
            last = self._port.control.last
            for origin, (seq, _) in list(told.items()):
                if seq < (last(origin) or 0) <= vv.seq(origin):
                    del told[origin]  # it was behind where that one ends, and no longer is
                    self.changes += 1
        if vv is self._last_announced.get(peer):
            return
        self._last_announced[peer] = vv
        known = self._announced.get
        for origin, seq in vv.pairs():
            if seq > known(origin, 0):
                self._note_announced(origin, seq)

    def _note_announced(self, origin: Origin, seq: int) -> None:
        known = self._announced.get(origin)
        if seq > (known or 0) and (known is not None or len(self._announced) < ORIGINS_MAX):
            self._announced[origin] = seq

    def review(
        self, vv: VersionVector, durable: VersionVector, live: Mapping[Origin, Iterable[str]], *, is_handed_over: bool = True
    ) -> Reports | None:
        """Look at everything anew: sets `steering`; what to tell every peer now, None if there is nothing to tell.

        Args:
            vv, durable: what is applied here, and fsynced.
            live: the peers that are connected, and the regions that each names as members.
            is_handed_over: the connected peers have fsynced what they cannot have from whoever wrote it. If this region is being
                drained, it says that it is ready to go only then.
        """
        control, own = self._port.control, self._port.origin
        self._meet(vv, live)
        if self.review_plainly(vv, live):
            return None
        told_of = list(chain.from_iterable(self._reports.values()))
        named = tuple(dict.fromkeys((*vv, *self._reports, *told_of)))
        stopped = self._frozen_elsewhere()
        latest = self._latest((own, *live, *(o for o in self._open(named) if o not in stopped)), named)
        ending = [o for o in self._ending(vv, latest, stopped) if o not in live and o != own]
        unexplained = [o for o in self._ended_by if o in control.frozen and o not in control.ended_by]
        freeze = (*(o for o in ending if control.last(o) is None and o not in control.frozen), *unexplained)
        mine = self._tell(vv, durable, latest, is_handed_over)
        removals = self._recorded(MemberState.REMOVED)
        # That it goes by its own drain it says only together with what it has: by then it takes no writes, and has handed over.
        tells_all = control.frozen.keys() <= mine.keys() and (is_handed_over or not self._is_drained_here())
        goes_by = _latest_of((*removals, *self._recorded(MemberState.DRAINING)), durable) if tells_all else self._removals.get(own, {})
        if mine != self._reports.get(own) or goes_by != self._removals.get(own, {}):
            self._reports[own], self._removals[own] = mine, goes_by
            self.changes += 1
        limits, close = {}, {}
        members = self.members(vv)
        for origin in dict.fromkeys((*control.frozen, *mine)):
            # Limits rise to what anybody had who has stopped taking more: also to what a former incarnation of a member told.
            frozen_at = [told[origin][0] for by, told in self._reports.items() if told.get(origin, (0, False))[1] and self._counts(by)]
            end = max(frozen_at, default=0)
            limit = control.limit(origin)
            if limit is not None and end > limit:
                limits[origin] = end
            if self._is_driver(origin, members, latest) and mine.get(origin) == (end, True) and control.last(origin) != end and end > 0:
                told_by = [latest.get(region) for region in members]
                if all(self._told_by(by, origin) == (end, True) and self._goes_by(by, removals) for by in told_by):
                    close[origin] = end
        reasons = {o: latest[region_of(o)] if latest.get(region_of(o), o) != o else self._ended_by.get(o) for o in freeze}
        later = {o: reason for o, reason in reasons.items() if reason is not None}
        self.steering = Steering(freeze, later, limits, close, control.version) if freeze or limits or close else NO_STEERING
        self._prune(latest)
        told = {by: dict(told) for by, told in self._reports.items() if told}
        if not told and self.message is None:
            return None
        message = Reports(
            told,
            {by: dict(records) for by in told if (records := self._removals.get(by))},
            self._reasons(told),
        )
        if message == self.message:
            return self.message
        self.message = message
        return message

    def review_plainly(self, vv: VersionVector, live: Mapping[Origin, Iterable[str]]) -> bool:
        """`review`, if there is nothing to agree on: whether that is so."""
        if not self.is_plain(live):
            return False
        self._meet(vv, live)
        self._reports[self._port.origin], self.steering = {}, NO_STEERING
        return True

    def is_plain(self, live: Iterable[Origin]) -> bool:
        """No region was ever another incarnation than now, and nothing was told or recorded: there is nothing to agree on, as in most
        clusters at most times, and of these peers that are connected none has ended."""
        control = self._port.control
        if control.has_limits or control.members or self.message or any(self._reports.values()):
            return False
        known = {self._port.origin, *live, *self._port.vv().origins(), *self._reports, *self._met.values()}
        return len(set(map(region_of, known))) == len(known)

    def is_former(self, origin: Origin) -> bool:
        """Whether its region is known to have been, and no longer to be, an incarnation that is not older: then it is not the latest.

        So it is for who lost its disk, and begins at the first generation again, for who was put back to an earlier state, and for a
        region that was removed and recorded anew while it ran. It takes a new incarnation then, and the greatest generation is the latest.
        """
        met = self._met.get(region_of(origin))
        if met is not None and met not in self._present and generation_of(met) > generation_of(origin):
            return True
        control = self._port.control
        later = control.ended_by.get(origin)
        if later is not None and later not in self._present:
            return True
        record = control.members.get(region_of(origin))
        if later is None and origin in control.frozen and record is not None and not record.is_removed:
            return True  # only a removal freezes without naming a later one, and it was outdone by this record, or is still to come
        known = self._incarnations(region_of(origin))
        if any(self._reports.values()):
            known = [*known, *self._reported_on(region_of(origin))]
        if not known or (len(known) == 1 and known[0] == origin):
            return False  # as nearly always
        others = [o for o in known if o != origin]
        return bool(others) and max(map(generation_of, self._open(others)), default=-1) >= generation_of(origin)

    def rests_on(self, vv: VersionVector, durable: VersionVector) -> object:
        """What `review` looks at of these vectors: while it is equal, and so is everything else that was given, told and agreed, another
        review would say the same. O(1) in most clusters: which origins there are, as long as none of them ends.
        """
        control = self._port.control
        if control.members and self.is_draining:
            return vv, durable
        if not control.has_limits and not any(self._reports.values()):
            return vv.origins()
        watched = {*control.frozen, *control.closed, *[o for told in self._reports.values() for o in told]}
        return vv.origins(), [(o, vv.seq(o), durable.seq(o)) for o in watched], _latest_of(self._recorded(MemberState.REMOVED), durable)

    @property
    def is_at_rest(self) -> bool:
        """No origin ends or has ended, no region comes or goes, and nobody told of any."""
        control = self._port.control
        return not (control.has_limits or control.members or any(self._reports.values()))

    @property
    def is_draining(self) -> bool:
        """A region is being drained: what all have of all counts."""
        members = self._port.control.members
        return bool(members) and any(member.state == MemberState.DRAINING for member in members.values())

    @property
    def present(self) -> frozenset[Origin]:
        """Who was connected at the last `review`, and this replica."""
        return self._present

    # -- inside -----------------------------------------------------------------------------------------------------

    def _meet(self, vv: VersionVector, live: Mapping[Origin, Iterable[str]]) -> None:
        """Note who is connected, and forget what no longer matters of who is not."""
        if self._announced:
            self._announced = {o: n for o, n in self._announced.items() if n > vv.seq(o)}
        self._named = tuple(dict.fromkeys(chain.from_iterable(live.values())))
        if (present := frozenset((self._port.origin, *live))) != self._present:
            self._present = present
            for origin in live:
                met = self._met.setdefault(region_of(origin), origin)
                if generation_of(met) < generation_of(origin):
                    self._met[region_of(origin)] = origin
        if not self._last_announced.keys() <= present:
            self._last_announced = {peer: told for peer, told in self._last_announced.items() if peer in present}

    def members(self, vv: VersionVector) -> list[str]:
        """The regions that must agree, by name."""
        control = self._port.control
        names = {region_of(self._port.origin), *self._configured, *control.members, *self._named, *control.open_regions(vv)}
        return sorted([name for name in names if not control.is_removed(name)] if control.members else names)

    def _told_by(self, member: Origin | None, origin: Origin) -> tuple[int, bool] | None:
        return None if member is None else self._reports.get(member, {}).get(origin)

    def _reasons(self, told: Mapping[Origin, Told]) -> dict[Origin, Origin]:
        """Why what members tell that they have frozen is, if it is not for a removal: whoever passes a freeze on says why, also if it has
        not frozen that one itself, to which it has a link, say."""
        known = {**self._ended_by, **self._port.control.ended_by}
        return {o: known[o] for by in told.values() for o, (_, is_frozen) in by.items() if is_frozen and o in known}

    def _recorded(self, state: MemberState) -> list[Dot]:
        """The commits that record who is removed, or drained."""
        return [Dot(Origin(m.origin), m.seq) for m in self._port.control.members.values() if m.state == state]

    def _is_drained_here(self) -> bool:
        record = self._port.control.members.get(region_of(self._port.origin))
        return record is not None and record.state == MemberState.DRAINING

    def _goes_by(self, member: Origin | None, records: Iterable[Dot]) -> bool:
        """Whether a member has told that it goes by all of these records: else it may yet follow who is no member any more, or write."""
        known = {} if member is None else self._removals.get(member, {})
        return all(known.get(by, 0) >= seq for by, seq in records)

    def _counts(self, reporter: Origin) -> bool:
        return not self._port.control.is_removed(region_of(reporter))

    def _incarnations(self, region: str) -> Sequence[Origin]:
        """Those of a region that have written something which is applied here, or told something. Found once for all regions, until
        another origin comes to that."""
        origins, reports = self._port.vv().origins(), self._reports.keys()
        known, told, by_region = self._known
        if origins != known or reports != told:
            by_region = {}
            for origin in dict.fromkeys((*origins, *reports)):
                by_region.setdefault(region_of(origin), []).append(origin)
            self._known = frozenset(origins), frozenset(reports), by_region
        return by_region.get(region, ())

    def _reported_on(self, region: str) -> list[Origin]:
        """Incarnations of a region that members report on while it is drained. One that wrote and told nothing is known by that."""
        told_of = [o for told in self._reports.values() for o, (_, is_frozen) in told.items() if not is_frozen and region_of(o) == region]
        stopped = self._frozen_elsewhere() if told_of else ()
        return [o for o in told_of if o not in stopped]

    def _open(self, origins: Iterable[Origin]) -> list[Origin]:
        """Those that may still go on: not closed, not frozen, and not connected (of these one knows)."""
        control = self._port.control
        return [o for o in origins if o not in self._present and control.limit(o) is None]

    @staticmethod
    def _latest(open_origins: Iterable[Origin], others: Iterable[Origin]) -> dict[str, Origin]:
        """Per region its latest incarnation that is known of, if possible one that may go on; the first of one generation."""
        latest: dict[str, Origin] = {}
        for origin in open_origins:
            region = region_of(origin)
            if region not in latest or generation_of(latest[region]) < generation_of(origin):
                latest[region] = origin
        ended: dict[str, Origin] = {}
        for origin in others:
            region = region_of(origin)
            if region not in ended or generation_of(ended[region]) < generation_of(origin):
                ended[region] = origin
        return {**ended, **latest}

    def _ending(self, vv: VersionVector, latest: Mapping[str, Origin], stopped: Set[Origin]) -> list[Origin]:
        """Origins of which something is known, that will not go on: each region's former incarnations, all of a removed one's, and
        those that a member has frozen."""
        control = self._port.control
        known = {*vv.origins(), *(o for told in self._reports.values() for o, (seq, _) in told.items() if seq)}
        present = self._present
        return sorted(
            [o for o in known if o in stopped or control.is_removed(region_of(o)) or _is_former(o, latest[region_of(o)], present)]
        )

    def _frozen_elsewhere(self) -> set[Origin]:
        """What a member has frozen: it does not go on, also if nobody has anything of it that still lives."""
        return {o for by, told in self._reports.items() if told and self._counts(by) for o, (_, is_frozen) in told.items() if is_frozen}

    def _tell(self, vv: VersionVector, durable: VersionVector, latest: Mapping[str, Origin], is_handed_over: bool) -> Told:
        """What this replica reports: of what is frozen here, of what went beyond its end, and of regions that are drained."""
        control = self._port.control
        mine: Told = {}
        for origin in control.frozen:
            if durable.seq(origin) == vv.seq(origin):  # else what is told could still be lost
                mine[origin] = vv.seq(origin), True
        beyond_here = [o for o in control.closed if vv.seq(o) > (control.last(o) or 0)]
        for origin in dict.fromkeys((*beyond_here, *(o for told in self._reports.values() for o in told))):
            last = control.last(origin)
            if last is None or durable.seq(origin) != vv.seq(origin):
                continue
            beyond = any(told.get(origin, (0, False))[0] > last for told in self._reports.values())
            if beyond or vv.seq(origin) > last or self._is_behind(origin, last):
                mine[origin] = vv.seq(origin), True
        for member in list(control.members.values()):
            current = latest.get(member.region)
            # Only once the record itself is on the disk: a drained region that forgot it would write again.
            is_known = durable.covers((Origin(member.origin), member.seq))
            if member.region == region_of(self._port.origin) and not is_handed_over:
                continue
            if member.state == MemberState.DRAINING and is_known and current is not None and current not in mine:
                mine[current] = durable.seq(current), False
        return mine

    def _is_behind(self, origin: Origin, last: int) -> bool:
        """Whether a member stopped before the end of an origin that is closed: its disk was put back to an earlier state, say. Until it
        is told where that end is, it takes neither what it lacks nor the closing."""
        return any(
            frozen and seq < last
            for by, told in self._reports.items()
            if self._counts(by)
            for seq, frozen in [told.get(origin, (0, False))]
        )

    def _is_driver(self, origin: Origin, members: Sequence[str], latest: Mapping[str, Origin]) -> bool:
        """Whether this region is the one to commit the closing. Not who is being drained: it may be removed as soon as all have told that
        they have what it had, and what it committed after that would be lost."""
        control, own, region = self._port.control, region_of(self._port.origin), region_of(origin)
        draining = {name for name, record in control.members.items() if record.state == MemberState.DRAINING}
        staying = [name for name in members if name not in draining] or members
        if not control.is_removed(region) and region in staying and latest.get(region) != origin:
            return region == own
        return staying[:1] == [own]

    def _prune(self, latest: Mapping[str, Origin]) -> None:
        """Forget what former incarnations and removed regions told, and what was told of origins that are closed since."""
        control = self._port.control
        if self._ended_by:
            self._ended_by = {o: later for o, later in self._ended_by.items() if control.last(o) is None}
        for reporter in list(self._reports):
            if not self._counts(reporter) or latest.get(region_of(reporter)) != reporter:
                del self._reports[reporter]
                self._removals.pop(reporter, None)
                self.changes += 1
                continue
            told = self._reports[reporter]
            if reporter == self._port.origin:
                continue  # it is made anew each time
            for origin, (seq, frozen) in list(told.items()):
                last = control.last(origin)
                if last is not None and (seq == last or (seq < last and not frozen)):
                    del told[origin]
                    self.changes += 1

    # -- what is known ----------------------------------------------------------------------------------------------

    def standings(self, vv: VersionVector) -> tuple[Standing, ...]:
        """Every region known, by name."""
        control, members = self._port.control, self.members(vv)
        known = (*vv, *self._reports)
        latest = self._latest((*self._present, self._port.origin, *self._open(known)), known)
        found = []
        for region in sorted({*members, *control.members, *(region_of(o) for o in vv)}):
            record = control.members.get(region)
            origins = {o: n for o, n in vv.items() if region_of(o) == region and control.last(o) != n}
            current = latest.get(region)
            watched = {o for o in origins if o in control.frozen}
            waits, reports = [], {}
            if record is not None and record.state == MemberState.DRAINING:
                # What it has, only the region itself can say: until then it may have what nobody here has heard of.
                # And what it told of an earlier drain, which was taken back, does not count: it may have written since.
                goes = self._goes_by(current, [Dot(Origin(record.origin), record.seq)])
                if current is None or not goes or current not in self._reports.get(current, {}):
                    waits.append(region)
                else:
                    watched |= {o for o in self._reports[current] if region_of(o) == region}
            for member in members:
                reporter = latest.get(member)
                told = self._reports.get(reporter, {}) if reporter is not None else {}
                reports[member] = {o: told[o][0] for o in sorted(watched) if o in told}
                # Of what is frozen and nobody has anything of, there is nothing to fetch, and not all may ever hear of it.
                ends = {o: max(self._greatest(o), origins.get(o, 0)) for o in watched}
                if member not in waits and any(told.get(o, (0,))[0] < n or (o not in told and o == current) for o, n in ends.items()):
                    waits.append(member)
            found.append(
                Standing(
                    region=region,
                    state=MemberState.ACTIVE.value if record is None else record.state,
                    address="" if record is None else record.address,
                    is_member=region in members,
                    origins=origins,
                    announced={o: n for o, n in sorted(self._announced.items()) if region_of(o) == region and n > vv.seq(o)},
                    reports=reports if watched else {},
                    waits_for=tuple(waits),
                )
            )
        return tuple(found)

    def _greatest(self, origin: Origin) -> int:
        return max((told[origin][0] for told in self._reports.values() if origin in told), default=0)


def _latest_of(dots: Iterable[Dot], durable: VersionVector) -> dict[Origin, int]:
    """Per origin the last of these commits that is fsynced."""
    latest: dict[Origin, int] = {}
    for origin, seq in dots:
        if latest.get(origin, 0) < seq <= durable.seq(origin):
            latest[origin] = seq
    return latest


def _is_former(origin: Origin, latest: Origin, present: frozenset[Origin]) -> bool:
    """Whether a region has gone on from an origin to its latest one."""
    return origin != latest and (generation_of(origin) < generation_of(latest) or latest in present)
