"""One simulated world: virtual time, replicas, network, clients and faults, all decided by one seed.

Safety first: clients write and everything fails, and after each step the invariants hold. Then everything heals, nobody
writes, and all replicas must become equal within a bound of virtual time. The first violation ends the run.

Each run has a *trace*: a hash over every event with its time and content. One seed gives one trace, on every machine,
whatever PYTHONHASHSEED is; a run can be repeated exactly by its seed and scenario.

After: Zhou et al., "FoundationDB" (SIGMOD 2021), section 4; TigerBeetle's VOPR for safety and liveness in one run.
"""

from __future__ import annotations

import hashlib
import heapq
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from crdtkv.core.causality import Dot, Origin, region_of
from crdtkv.core.control import MemberState, member_delta
from crdtkv.simulation.clocks import WallClock
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.invariants import Auditor, Violation
from crdtkv.simulation.member import Member
from crdtkv.simulation.network import Network
from crdtkv.simulation.options import REGIONS, Options, draw
from crdtkv.simulation.specification import Commit, History
from crdtkv.simulation.workload import Workload

EVENTS_MAX: Final = 200_000
"""A run with more events than this goes round in circles."""
SETTLE_MS: Final = 50.0
"""How often, once healed, one looks whether all are equal."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run."""

    seed: int
    scenario: str
    trace_sha256: str
    events: int
    virtual_s: float
    rare: Mapping[str, int]
    violations: tuple[str, ...]


class World:
    """See the module's docstring."""

    def __init__(self, seed: int, scenario: str = "mixed") -> None:
        self.seed = seed
        self.scenario = scenario
        self.dice = Dice(seed)
        self.options: Options = draw(self.dice, scenario)
        self.now_us = 0
        self.rare: Counter[str] = Counter()
        self.acknowledged: set[Dot] = set()
        self.history = History()
        self._stamps: set[int] = set()
        self.auditor = Auditor(self.history, max_skew_ms=self.options.core.max_skew_ms, sync=self.options.sync)
        self.network = Network(self, self.dice, delay_ms=self.options.delay_ms, jitter=self.options.jitter)
        self.members = [Member(self, i, region, self._wall_clock()) for i, region in enumerate(REGIONS[: self.options.regions])]
        self.violations: list[str] = []
        self._workload = Workload(self.dice, self.options.keys, self.options.weights)
        self._events: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = self._done = 0
        self._trace = hashlib.sha256()
        self._finished = False
        self._at = 0
        self.removed: set[int] = set()
        """Members whose region was removed: they go on by themselves, unheard."""
        self._forced: set[int] = set()
        self._leaving: set[int] = set()

    def _wall_clock(self) -> WallClock:
        options, dice = self.options, self.dice
        offset_ms = int(dice.between(-options.skew_ms, options.skew_ms))
        return WallClock(self, offset_ms=offset_ms, drift=dice.between(-options.drift, options.drift), grain_ms=options.grain_ms)

    # -- time -----------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        return self.now_us / 1000

    def after(self, delay_ms: float, what: Callable[..., None], *args: object) -> None:
        """Have something done later; in the order of asking, if at the same instant."""
        self._count += 1
        heapq.heappush(self._events, (self.now_us + int(delay_ms * 1000), self._count, what, args))

    def trace(self, *parts: object) -> None:
        """Make something part of what the run is recognised by."""
        self._trace.update(repr((self.now_us, *parts)).encode())

    def run(self) -> Outcome:
        """Run to the end, or to the first violation."""
        try:
            self._begin()
            while not self._finished:
                self.now_us, _, what, args = heapq.heappop(self._events)
                self._done += 1
                what(*args)
                if self._done > EVENTS_MAX:
                    raise Violation(f"still going on after {EVENTS_MAX:,} events")
        except Violation as e:
            self.violations.append(str(e))
        except Exception as e:  # whatever the product raises where nothing may be raised is a finding
            where = traceback.extract_tb(e.__traceback__)[-1]
            self.violations.append(f"{type(e).__name__}: {e} ({where.name}, line {where.lineno})")
        self.rare["three_siblings"] = int(self.auditor.siblings_max >= 3)
        self.trace("end", self.violations)
        rare = {name: count for name, count in sorted(self.rare.items()) if count}
        return Outcome(self.seed, self.scenario, self._trace.hexdigest(), self._done, self.now_us / 1e6, rare, tuple(self.violations))

    # -- what members tell ----------------------------------------------------------------------------------------

    def violation(self, text: str) -> None:
        raise Violation(text)

    def committed(self, member: Member, commit: Commit) -> None:
        self.trace("commit", commit.dot, commit.hlc)
        self.rare["equal_stamps"] += commit.hlc in self._stamps
        self._stamps.add(commit.hlc)
        self.auditor.committed(member, commit)

    def acknowledge(self, member: Member, dots: Sequence[Dot]) -> None:
        """A client is told that its commits are done."""
        self.auditor.acknowledging(member, dots)
        self.acknowledged.update(dots)

    def changed(self, member: Member) -> None:
        """A step was done that may have changed a replica's state."""
        self.rare["clear_in_slices"] += bool(member.machine.replica.purges)
        self.auditor.check(member)

    # -- the run --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        options, dice = self.options, self.dice
        for member in self.members:
            self.auditor.watch(member)
            if not (options.late and member is self.members[-1]):
                member.start()
        busy_ms = options.busy_s * 1000
        if options.late:
            self.after(dice.between(busy_ms / 4, busy_ms), self._start_late, self.members[-1])
        for _ in range(options.transactions):
            self.after(dice.between(0, busy_ms), self._client)
        faults: tuple[tuple[float, Callable[[], None]], ...] = (
            (options.cuts, self._cut),
            (options.resets, self._reset),
            (options.crashes, self._crash),
            (options.truncations, self._truncate),
            (options.jumps, self._jump),
            (options.fulls, self._fill),
            (options.losses, self._copy),
            (options.losses, self._lose),
            (2.0, self._join),
        )
        for rate, fault in faults:
            expected = rate * options.busy_s * options.regions
            for _ in range(int(expected) + dice.chance(expected % 1)):
                self.after(dice.between(0, busy_ms), fault)
        for _ in range(options.removals):
            self.after(dice.between(0, busy_ms), self._remove, dice.chance(0.5))
        for _ in range(options.additions):
            self.after(dice.between(0, busy_ms), self._add)
        # A region that joins at that moment may have taken more of an origin than those agreed who did not know of it.
        self.auditor.ends_may_rise = options.additions > 0 and options.removals + options.lives > 0
        self.after(busy_ms, self._heal)

    def _client(self) -> None:
        """A client's next request: in the region of the last one, or elsewhere."""
        if self.dice.chance(self.options.hop):
            self._at = self.dice.below(len(self.members))
        member = self.members[self._at]
        if member.is_up:
            now_ms = member.machine.replica.now_ms()
            member.serve(lambda transaction: self._workload.fill(transaction, now_ms), self.dice.pick((1, 1, 3)))
            self.changed(member)

    def _cut(self) -> None:
        """Cut one way, one pair, or one region off from all but perhaps one (a bridge); heal everything, later."""
        a, b = self.dice.below(len(self.members)), self.dice.below(len(self.members))
        kind = self.dice.pick(("one_way", "pair", "island", "bridge"))
        others = [i for i in range(len(self.members)) if i != a]
        if a == b or (kind == "bridge" and len(others) < 2):
            return
        self.rare[f"cut_{kind}"] += 1
        spared = b if kind == "bridge" else -1
        for peer in others if kind in ("island", "bridge") else [b]:
            if peer != spared:
                self.network.cut(a, peer)
                if kind != "one_way":
                    self.network.cut(peer, a)
        self.trace("cut", kind, a, b)
        self.after(self.dice.between(50, 1_500), self._healed)

    def _start_late(self, member: Member) -> None:
        """A new, empty region joins."""
        member.start()
        self.rare["region_came_later"] += 1
        self.changed(member)

    def _reset(self) -> None:
        self.rare["connection_lost"] += self.network.reset(self.dice)

    def _crash(self) -> None:
        member = self.dice.pick(self.members)
        if not member.is_up:
            return
        self.crash(member)

    def crash(self, member: Member, *, torn: bool = False) -> None:
        """A process dies, or its host; `torn`: while it installs a snapshot."""
        state = member.machine.replica.state
        unfolded, folding = state.pending > 0, state.is_folding
        power = (self.options.sync or self.options.losses > 0) and self.dice.chance(0.5)
        self.auditor.crashing(member, torn=torn)
        lost = member.crash(power=power)
        self.trace("crash", member.index, power, len(lost))
        self.rare["crashed"] += 1
        self.rare["crashed_between_append_and_fold"] += unfolded
        self.rare["crashed_while_folding"] += folding
        self.rare["log_lost_its_tail"] += bool(lost)
        if not self.options.losses:
            self.auditor.crashed(member, [m for m in self.members if m is not member])
        self.after(self.dice.between(5, 400), self._restart, member, member.origin)

    def _copy(self) -> None:
        member = self.dice.pick(self.members)
        if member.is_up:
            member.take_copy()
            self.trace("copy", member.index, member.log.end())

    def _lose(self) -> None:
        """A directory is no longer what it was: put back from a copy, lost, or in part of an earlier time."""
        member = self.dice.pick(self.members)
        if not member.is_up:
            return
        kind = self.dice.pick(("put_back", "put_back", "lose_disk", "roll_back"))
        if kind == "put_back" and member.copy is None:
            return
        before = member.origin
        self.auditor.crashing(member)
        member.crash(power=self.dice.chance(0.5))
        if kind == "put_back":
            member.put_back()
        elif kind == "lose_disk":
            member.lose_disk()
        else:
            member.roll_back_log(self.dice.below(member.log.end() + 1))
        self.rare[kind] += 1
        self.trace("lose", member.index, kind, member.log.end())
        self.after(self.dice.between(5, 400), self._restart, member, before)

    def _restart(self, member: Member, before: Origin) -> None:
        member.start()
        if self.options.losses:
            self._count_losses(member, before)
        self.rare["replayed"] += member.machine.replayed > 0
        self.auditor.recovered(member)
        if self.dice.chance(self.options.lives) and not self._leaving & {member.index}:
            member.renew()
            self.auditor.clock_begins_anew(member)
            self.rare["new_incarnation"] += 1
            self.trace("renew", member.index, member.origin)
            self.changed(member)

    def _count_losses(self, member: Member, before: Origin) -> None:
        """Only now it shows whether it goes on as who it was: then nobody may have what it lost of its own."""
        self.auditor.may_have_thawed(member)
        if member.origin == before:
            self.auditor.crashed(member, [m for m in self.members if m is not member])
        else:
            self.rare["new_incarnation"] += 1
            self.auditor.renewed(member)
        # Nobody gets back what was on lost disks only; nothing else may be lost.
        kept = [m.log.vv() for m in self.members]
        gone = {dot for dot in self.acknowledged if not any(vv.covers(dot) for vv in kept)}
        self.rare["acknowledged_and_lost"] += bool(gone)
        self.acknowledged -= gone

    def _truncate(self) -> None:
        """Drop part of a log: what everybody has for good, or what its origin still keeps for those who lack it."""
        member = self.dice.pick(self.members)
        if not member.is_up:
            return
        if self.dice.chance(0.5):
            before = member.log.start()
            member.retain(self.dice.pick((0, 300, 2_000)))
            self.rare["log_truncated"] += member.log.start() > before
            self.trace("retain", member.index, member.log.start())
            self.changed(member)
            return
        if self.options.beyond and self.dice.chance(0.7):
            position = member.log.start() + self.dice.below(member.log.synced() - member.log.start() + 1)
            self.rare["log_truncated"] += position > member.log.start()
            member.truncate(position)
            self.trace("truncate beyond", member.index, member.log.start())
            self.changed(member)
            return
        durable = [m.log.vv_at[m.log.synced()] for m in self.members]
        keeps = {m.origin: m.log.floor().seq(m.origin) for m in self.members}  # nobody sends a former incarnation's as their own
        position = member.log.start()
        while position < member.log.end():
            frame = member.log.frames[position]
            last = (frame.origin, frame.last_seq)
            kept = keeps.get(frame.origin)
            elsewhere = not self.options.bridge and frame.origin != member.origin and kept is not None and kept < frame.first_seq
            if not (elsewhere or all(vv.covers(last) for vv in durable)):
                break
            position += 1
        self.rare["log_truncated"] += position > member.log.start()
        member.truncate(member.log.start() + self.dice.below(position - member.log.start() + 1))
        self.trace("truncate", member.index, member.log.start())
        self.changed(member)

    def _fill(self) -> None:
        """No room on a member's disk, for its log or for its engine as well, until later."""
        member = self.dice.pick(self.members)
        member.log.is_full = True
        member.engine.is_full = self.dice.chance(0.5)
        self.trace("full", member.index, member.engine.is_full)
        self.after(self.dice.between(5, 700), self._free, member)

    def _free(self, member: Member) -> None:
        member.log.is_full = member.engine.is_full = False

    @property
    def survivors(self) -> list[Member]:
        """The members of the cluster, as it should be by now."""
        return [m for m in self.members if m.index not in self.removed]

    def _remove(self, forced: bool) -> None:
        """An operator removes a region: by force, as if it were dead; or drains it first."""
        able = [m for m in self.survivors if m.is_up and m.index not in self._leaving]
        if len(able) < 3:
            return
        victim, by = self.dice.pick(able), self.dice.pick(able)
        if victim is by:
            return
        self.trace("remove", victim.index, by.index, forced)
        if forced:
            self._removed(victim, by)
        elif by.record([member_delta(victim.region, MemberState.DRAINING, "", by.machine.control.next_epoch())]):
            self.rare["region_drained"] += 1
            self._leaving.add(victim.index)
            self.after(50, self._drained, victim, by)

    def _drained(self, victim: Member, by: Member) -> None:
        """Once it says that all others have what it has, it goes."""
        standing = (
            next((s for s in by.drive.membership.standings(by.machine.vv()) if s.region == victim.region), None) if by.is_up else None
        )
        if standing is not None and standing.is_drained and self._removed(victim, by):
            self.rare["drained_and_removed"] += 1
        else:
            self.after(50, self._drained, victim, by)

    def _removed(self, victim: Member, by: Member) -> bool:
        if not by.record([member_delta(victim.region, MemberState.REMOVED, "", by.machine.control.next_epoch())]):
            return False
        self.rare["region_removed"] += 1
        self.removed.add(victim.index)
        self.auditor.removed_regions.add(victim.region)
        if victim.machine.replica.refusal is None:
            self._forced.add(victim.index)
        return True

    def _add(self) -> None:
        """A region is added: it begins with nothing, and the others dial it."""
        able = [m for m in self.survivors if m.is_up]
        if len(self.members) == len(REGIONS) or not able:
            return
        by = self.dice.pick(able)
        newcomer = Member(self, len(self.members), REGIONS[len(self.members)], self._wall_clock())
        self.members.append(newcomer)
        self.rare["region_added"] += 1
        self.trace("add", newcomer.index, by.index)
        self.auditor.watch(newcomer)
        newcomer.start()
        by.record([member_delta(newcomer.region, MemberState.ACTIVE, "", by.machine.control.next_epoch())])
        for member in self.members[:-1]:
            member.meet(newcomer)

    def _jump(self) -> None:
        member = self.dice.pick(self.members)
        member.wall.jump(int(self.dice.between(-3_000, 3_000)))
        self.rare["clock_jumped"] += 1

    def _join(self) -> None:
        a, b = self.dice.pick(self.members), self.dice.pick(self.members)
        if a.is_up and b.is_up:
            self.auditor.check_join(a, b)

    # -- the end --------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """No more faults, no more writes: from now on there is only catching up."""
        self._healed()
        for member in self.members:
            self._free(member)
        self.trace("heal")
        self._settle(self.now_ms + self.options.quiet_s * 1000)

    def _healed(self) -> None:
        """Undo every cut but the lasting one."""
        self.network.heal()
        if self.options.bridge:
            self.network.cut(0, 1)
            self.network.cut(1, 0)

    def _settle(self, until_ms: float) -> None:
        members = self.survivors
        up = [m for m in members if m.is_up]
        if len(up) == len(members) and self._is_equal() and not self._leaving - self.removed:
            lost = {self.members[index].region for index in self._forced}
            self.auditor.quiescent(members, [dot for dot in self.acknowledged if region_of(dot.origin) not in lost])
            self._finished = True
        elif self.now_ms > until_ms:
            state = "; ".join(f"{m.region} {m.machine.vv()} held {m.machine.replica.held[0]} frozen {m.machine.control.frozen}" for m in up)
            raise Violation(f"not equal {self.options.quiet_s:.0f} s after everything healed: {state}")
        else:
            self.after(SETTLE_MS, self._settle, until_ms)

    def _is_equal(self) -> bool:
        members = self.survivors
        first, shown = members[0].machine.vv(), members[0].machine.control.show(members[0].machine.vv())
        if not {m.origin for m in members} >= set(shown):
            return False  # what has ended is still being closed
        return all(
            m.machine.vv() == first and not m.machine.replica.purges and m.drive.is_settled and m.log.synced() == m.log.end()
            for m in members
        )


def simulate(seed: int, scenario: str = "mixed") -> Outcome:
    """Run one seed of one scenario."""
    return World(seed, scenario).run()
