"""One simulated world: virtual time, replicas, network, clients and faults, all decided by one seed.

Clients write and everything fails, and after each step the invariants hold. How a run ends is its mode:

    safety      faults never stop, nor do clients: nothing wrong may have happened by the end
    liveness    everything heals, or a *core* of at least two regions does, and the others stay as they are, down, cut off, slow or
                full; then each region of the core takes writes, and all of them become equal within a bound of virtual time

The first violation ends the run. Each run has a *trace*: a hash over every event with its time and content. One seed gives one
trace, on every machine, whatever PYTHONHASHSEED is; a run can be repeated exactly by its seed and scenario.

After: Zhou et al., "FoundationDB" (SIGMOD 2021), section 4; TigerBeetle's VOPR, for safety, liveness and its core.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from crdtkv.core.causality import Dot, Origin, VersionVector, region_of
from crdtkv.errors import CorruptionError, CrdtkvError, IncompatibleFormatError, StorageError
from crdtkv.simulation.clients import Clients, Wandering
from crdtkv.simulation.clocks import WallClock
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.faults import Faults
from crdtkv.simulation.filed_log import LogBroke
from crdtkv.simulation.invariants import Auditor
from crdtkv.simulation.lives import Life
from crdtkv.simulation.member import Member
from crdtkv.simulation.network import Network
from crdtkv.simulation.options import REGIONS, Options, draw
from crdtkv.simulation.rules import Violation, raised_text
from crdtkv.simulation.specification import Commit, History
from crdtkv.simulation.workload import Workload

INSTANTS_MAX: Final = 300_000
"""A run in which something is done at more instants than this goes round in circles."""
SETTLE_MS: Final = 50.0
"""How often, once healed, one looks whether all are equal."""
_Turn = tuple[Life | None, Callable[..., None], tuple[object, ...]]
"""As long as whose life lasts, what is done."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run. `events` are those in which something happened: a timer that found nothing to do, a heartbeat and what
    was rung up for a process that has died since are not among them."""

    seed: int
    scenario: str
    trace_sha256: str
    events: int
    virtual_s: float
    rare: Mapping[str, int]
    violations: tuple[str, ...]
    regions: tuple[str, ...] = ()
    """Those that took part, by name."""
    commits: int = 0
    """How many were made, but for those that a crash took before anybody was told."""
    traceback: str = field(default="", compare=False)
    """Of the exception that ended it, if one did: for who mends it. It names files of this machine."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """A run keeps nearly all that it makes until its end: looking for garbage in between costs a tenth of it, and finds none.

    Around the making of the world, too, if nobody looks at it afterwards: then it is garbage when it is first looked through.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class World:
    """See the module's docstring."""

    def __init__(self, seed: int, scenario: str = "mixed") -> None:
        self.seed = seed
        self.scenario = scenario
        self.dice = Dice(seed)
        self.options = self.drawn()
        self.now_us = 0
        self.now_ms = 0.0
        self.rare: Counter[str] = Counter()
        self.acknowledged: set[Dot] = set()
        self.history = History()
        self._stamps: set[int] = set()
        self.auditor = Auditor(self.history, max_skew_ms=self.options.core.max_skew_ms, sync=self.options.sync)
        self.network = Network(self, self.dice, delay_ms=self.options.delay_ms, jitter=self.options.jitter)
        self.members: list[Member] = []
        for region in REGIONS[: self.options.regions]:
            self.new_member(region)
        self.violations: list[str] = []
        workload = Workload(self.dice, self.options.keys, self.options.weights, elements=self.options.elements)
        self.clients = Clients(self, workload, Wandering(self.dice, self.options.hop))
        self.faults = Faults(self)
        self._due: dict[int, list[_Turn]] = {}
        """By instant, in the order of asking."""
        self._instants: list[int] = []
        """Those, as a heap. Numbers alone, for they are compared in a fraction of the time that tuples take."""
        self.events = 0
        self._is_idle = False
        self._trace = hashlib.sha256()
        self._finished = False
        self._probed: set[int] = set()
        self.removed: set[int] = set()
        """Members whose region was removed: they go on by themselves, unheard."""
        self.lame: set[int] = set()
        """Members outside the healthy core: they stay as they are when the others heal."""

    def drawn(self) -> Options:
        """The options that the seed draws."""
        return draw(self.dice, self.scenario)

    def new_member(self, region: str) -> Member:
        """A further region, which is not started yet."""
        options, dice = self.options, self.dice
        offset_ms = int(dice.between(-options.skew_ms, options.skew_ms))
        wall = WallClock(self, offset_ms=offset_ms, drift=dice.between(-options.drift, options.drift), grain_ms=options.grain_ms)
        member = Member(self, len(self.members), region, wall)
        self.members.append(member)
        self.auditor.watch(member)
        return member

    # -- time -----------------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Clients write."""
        return self.now_ms < self.options.busy_s * 1000

    def after(self, delay_ms: float, what: Callable[..., None], *args: object) -> None:
        """Have something done later; in the order of asking, if at the same instant."""
        self.in_life(None, delay_ms, what, *args)

    def in_life(self, life: Life | None, delay_ms: float, what: Callable[..., None], *args: object) -> None:
        """`after`, unless the life of who asks is over by then; None: it never is."""
        at_us = self.now_us + int(delay_ms * 1000)
        turns = self._due.setdefault(at_us, [])
        if not turns:
            heappush(self._instants, at_us)
        turns.append((life, what, args))

    def at(self, at_us: int, what: Callable[..., None], *args: object) -> None:
        """Have something done at an instant: through a delay in ms one may be off by a microsecond, and what is sent in order is not."""
        turns = self._due.setdefault(at_us, [])
        if not turns:
            heappush(self._instants, at_us)
        turns.append((None, what, args))

    def idle(self) -> None:
        """What is being run found nothing to do: it is no event."""
        self._is_idle = True

    def trace(self, *parts: object) -> None:
        """Make something part of what the run is recognised by."""
        self._trace.update(repr((self.now_us, *parts)).encode())

    def trace_sent(self, index: int, link: int, data: bytes) -> None:
        """`trace` of a message: most of what is traced."""
        self._trace.update(b"%d send %d %d %d\n%b" % (self.now_us, index, link, len(data), data))

    def run(self) -> Outcome:
        """Run to the end, or to the first violation."""
        with without_collection():
            return self._run()

    def _run(self) -> Outcome:
        raised = ""
        try:
            self._begin()
            self._go_on()
        except (Violation, LogBroke) as e:
            self.violations.append(str(e))
        except Exception as e:  # whatever the product raises where nothing may be raised is a finding
            self.raised(e)
            self.violations.append(raised_text(e))
            raised = "".join(traceback.format_exception(e))
        self.rare["three_siblings"] = int(self.history.siblings_max >= 3)
        self.trace("end", self.violations)
        rare = {name: count for name, count in sorted(self.rare.items()) if count}
        regions = tuple(dict.fromkeys(member.region for member in self.members))
        return Outcome(
            self.seed, self.scenario, self._trace.hexdigest(), self.events, self.now_us / 1e6, rare, tuple(self.violations), regions,
            len(self.history.commits), raised,
        )  # fmt: skip

    def _go_on(self) -> None:
        """Do what is due, one after the other, as time goes on, until the run is finished."""
        for _ in range(INSTANTS_MAX):
            self.now_us = heappop(self._instants)
            self.now_ms = self.now_us / 1000
            for life, what, args in self._due.pop(self.now_us):
                if life is not None and life.is_over:
                    continue
                self._is_idle = False
                try:
                    what(*args)
                except (StorageError, CorruptionError, IncompatibleFormatError) as e:
                    if not self.faults.broke(e):
                        raise
                if not self._is_idle:
                    self.events += 1
                if self._finished:
                    return
        raise Violation(f"still going on after {INSTANTS_MAX:,} instants")

    def raised(self, error: Exception) -> None:
        """A step raised what no step may: for who tells the run."""

    # -- what members tell ----------------------------------------------------------------------------------------

    def violation(self, text: str) -> None:
        raise Violation(text)

    def fault(self, member: Member, error: CrdtkvError, text: str) -> None:
        """A replica could not do a step: its own disk is to blame, or a rule is broken."""
        if member.log.is_broken:
            raise error
        raise Violation(text)

    def committed(self, member: Member, commit: Commit) -> None:
        self.trace("commit", commit.dot, commit.hlc)
        self.rare["equal_stamps"] += commit.hlc in self._stamps
        self._stamps.add(commit.hlc)
        self.rare["stamped_below_its_past"] += commit.hlc <= self.history.last_stamp(commit.past)
        self.auditor.committed(member, commit)

    def acknowledge(self, member: Member, dots: Sequence[Dot]) -> None:
        """A client is told that its commits are done."""
        self.auditor.acknowledging(member, dots)
        self.acknowledged.update(dots)

    def changed(self, member: Member, *, wholly: bool = False) -> None:
        """A step was done that may have changed a replica's state."""
        if member.machine.replica.purges.active:
            self.rare["clear_in_slices"] += 1
        self.auditor.check(member, wholly=wholly)

    # -- the run --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        options, dice = self.options, self.dice
        late = self.members[-1] if options.late else None
        for member in self.members:
            if member is not late:
                member.start()
        busy_ms = options.busy_s * 1000
        if late is not None:
            self.after(dice.between(busy_ms / 4, busy_ms / 2), self.faults.start_late, late)
        for _ in range(options.transactions):
            self.after(dice.between(0, busy_ms), self.clients.turn)
        self.faults.begin(busy_ms)
        expected = 1.2 * options.busy_s * options.regions
        for _ in range(int(expected) + dice.chance(expected % 1)):
            self.after(dice.between(0, busy_ms), self._join)
        # A region that joins at that moment may have taken more of an origin than those agreed who did not know of it.
        self.auditor.ends_may_rise = options.regrets or (options.additions > 0 and options.removals + options.lives > 0)
        self.after(busy_ms, self._end_in_the_middle if options.safety else self._heal)

    def _join(self) -> None:
        self.idle()  # it is a check
        a, b = self.dice.pick(self.members), self.dice.pick(self.members)
        if a.is_up and b.is_up:
            self.auditor.check_join(a, b)

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def survivors(self) -> list[Member]:
        """The members of the cluster, as it should be by now."""
        return [m for m in self.members if m.index not in self.removed]

    @property
    def core(self) -> list[Member]:
        """Those of them that are healthy in the end."""
        return [m for m in self.survivors if m.index not in self.lame]

    def _end_in_the_middle(self) -> None:
        """Safety mode: nothing heals; what is known by now must be right."""
        self.trace("stop")
        self.rare["stopped_in_the_middle"] += 1
        for member in self.members:
            if member.is_up:
                self.changed(member, wholly=True)
        self._judge_clients()
        self._finished = True

    def _heal(self) -> None:
        """No more faults, no more writes: from now on there is only catching up."""
        faults = self.faults
        if self.options.core_min:
            self._choose_the_lame()
        self.trace("heal", sorted(self.lame))
        if self.lame:
            self.network.heal({m.index for m in self.core})
            for member in self.core:
                member.pace = 1.0
        else:
            faults.heal()
        for member in self.core:
            faults.free(member)
        self.after(1_000, self._probe)
        self._settle(self.now_ms + self.options.quiet_s * 1000)

    def _choose_the_lame(self) -> None:
        """Some regions stay as bad as they are for ever, in one way or another; at least so many do not."""
        dice, able = self.dice, self.survivors
        for _ in range(dice.below(len(able) - self.options.core_min + 1)):
            member = dice.pick([m for m in able if m.index not in self.lame])
            fate = dice.pick(("stopped", "cut off", "deaf", "mute", "full"))
            self.lame.add(member.index)
            self.rare["lame_region"] += 1
            self.trace("lame", member.index, fate)
            if fate == "stopped":
                member.stop_for_good()
            elif fate == "full":
                member.log.is_full = member.engine.is_full = True
            for other in self.members:
                if other is not member and fate in ("cut off", "deaf"):
                    self.network.cut(other.index, member.index)
                if other is not member and fate in ("cut off", "mute"):
                    self.network.cut(member.index, other.index)

    def _probe(self) -> None:
        """Liveness: each region of the core takes a write, unless its clock is so far off that it must refuse."""
        self.after(500, self._probe)  # first: a step may end with a process that its disk has failed
        for member in self.core:
            if member.is_up and member.index not in self._probed:
                if member.index not in self.faults.leaving:
                    if self.options.regrets and member.machine.replica.refusal is not None:
                        continue  # that it is a member after all is on its way: until `_settle` gives up
                    if not self.clients.probe(member):
                        raise Violation(f"{member.region} takes no writes 1 s after everything healed")
                self._probed.add(member.index)
                self.rare["probed"] += 1
                self.changed(member)
        self.idle()

    def _settle(self, until_ms: float) -> None:
        self.idle()
        members = self.core
        if self._probed >= {m.index for m in members} and next(self._unequal(), None) is None:
            self._judge(members)
            self._finished = True
        elif self.now_ms > until_ms:
            raise Violation(f"not equal {self.options.quiet_s:.0f} s after everything healed: {'; '.join(self.differences())}")
        else:
            self.after(SETTLE_MS, self._settle, until_ms)

    def _judge(self, members: Sequence[Member]) -> None:
        lost = {self.members[index].region for index in self.faults.forced}
        # What only a region outside the core has, nobody can ask for.
        bound = {dot for dot in self.acknowledged if region_of(dot.origin) not in lost}
        if self.lame:
            ours = {m.region for m in members}
            bound = {dot for dot in bound if region_of(dot.origin) in ours}
        for member in members:
            self.auditor.check(member, wholly=True)
        self.auditor.quiescent(members, bound, judges_all=len(members) == len(self.members) and self._is_nothing_lost())
        self._judge_clients()
        if not self.lame and not self.faults.forced and self._is_nothing_lost():
            for member in members:
                if (waits := self.clients.waits_for(member)) is not None:
                    raise Violation(waits)

    def _is_nothing_lost(self) -> bool:
        """No commit that was applied anywhere is gone: what a client has seen still is."""
        return not any(self.rare[name] for name in ("log_lost_its_tail", "commit_undone", "acknowledged_and_lost", "put_back", "lose_disk",
                                                    "roll_back", "damage_found", "stopped_by_its_disk"))  # fmt: skip

    def _judge_clients(self) -> None:
        if self._is_nothing_lost():
            convergent = not self.rare["stamped_below_its_past"]
            self.rare["histories_judged"] += 1
            self.rare["convergence_judged"] += convergent
            if (anomaly := self.clients.judge(convergent=convergent)) is not None:
                raise Violation(anomaly)

    def _unequal(self) -> Iterator[str]:
        """What keeps the core from being equal, in words; nothing if it is. Of vectors only where they differ."""
        core = self.core
        up = [m for m in core if m.is_up]
        yield from (f"{m.region} is down" for m in core if not m.is_up)
        yield from _apart("", {m.region: m.machine.vv() for m in up})
        if up and not self.lame:
            ended = set(up[0].machine.control.show(up[0].machine.vv())) - {m.origin for m in core}
            yield from (f"{origin} has ended and is not closed" for origin in sorted(ended))
        for m in up:
            if m.machine.replica.purges:
                yield f"{m.region} has a purge to do"
            if not m.drive.is_settled:
                yield f"{m.region} has messages to take up"
            if m.log.synced() != m.log.end():
                yield f"{m.region} has log records that are not synced"
        yield from (f"{self.members[index].region} is still leaving" for index in sorted(self.faults.leaving - self.removed))

    def differences(self) -> Iterator[str]:
        """What keeps the core from being equal, and what may be why."""
        up = [m for m in self.core if m.is_up]
        yield from self._unequal()
        yield from _apart("frozen ", {m.region: m.machine.control.frozen for m in up})
        yield from (f"{m.region} holds {held} frames back" for m in up if (held := m.machine.replica.held[0]))


def _apart(what: str, found: Mapping[str, VersionVector | Mapping[Origin, int]]) -> Iterator[str]:
    """Where regions have different seqs of an origin, in words."""
    if len(found) < 2 or all(seqs == next(iter(found.values())) for seqs in found.values()):
        return  # as nearly always
    maps = {region: dict(seqs.items()) for region, seqs in found.items()}
    for origin in sorted({origin for seqs in maps.values() for origin in seqs}):
        places: dict[int | None, list[str]] = {}
        for region, seqs in maps.items():
            places.setdefault(seqs.get(origin), []).append(region)
        if len(places) > 1:
            parts = [f"{'nothing' if at is None else at} at {', '.join(regions)}" for at, regions in places.items()]
            yield f"{what}{origin} is {' and '.join(parts)}"


def simulate(seed: int, scenario: str = "mixed") -> Outcome:
    """Run one seed of one scenario."""
    with without_collection():
        return World(seed, scenario).run()
