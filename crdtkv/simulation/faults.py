"""What goes wrong in a simulation: each kind of fault, when the seed says so.

A fault is traced by name with what it hit, so a run tells of itself; `rare` counts those that had an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from crdtkv.core.causality import Origin
from crdtkv.core.control import MemberState, member_delta
from crdtkv.errors import CorruptionError, DiskFullError, RegionRemovedError, StorageError
from crdtkv.simulation.filed_log import FiledLog
from crdtkv.simulation.options import REGIONS, Options
from crdtkv.simulation.rules import Violation

if TYPE_CHECKING:
    from crdtkv.simulation.member import Member
    from crdtkv.simulation.world import World

SLOW: Final = (5.0, 40.0)
"""How many times as long everything takes at a slow region."""


class Faults:
    """See the module's docstring. What is done to a member it does; what follows for the whole is decided here."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.leaving: set[int] = set()
        """Members that are being drained."""
        self.forced: set[int] = set()
        """Members that were removed as if they were dead, or that came back as from before it: what they take is lost."""
        self.once_removed: set[int] = set()
        """Members that were ever removed: those who have heard of nothing later tell them so."""

    @property
    def options(self) -> Options:
        return self.world.options

    @property
    def loses(self) -> bool:
        """Directories may be lost: then who a member is, and what is left, shows only when it starts again."""
        return self.options.losses > 0 or self.options.rots > 0

    def begin(self, busy_ms: float) -> None:
        """Draw when what happens."""
        options, dice, after = self.options, self.dice, self.world.after
        rates: tuple[tuple[float, Callable[[], None]], ...] = (
            (options.cuts, self.cut),
            (options.flaps, self.flap),
            (options.slows, self.slow),
            (options.resets, self.reset),
            (options.crashes, self.crash_one),
            (options.truncations, self.truncate),
            (options.jumps, self.jump),
            (options.fulls, self.fill),
            (options.errors, self.fail),
            (options.rots, self.rot),
            (options.losses, self.copy),
            (options.losses, self.lose),
        )
        for rate, fault in rates:
            expected = rate * options.busy_s * options.regions
            for _ in range(int(expected) + dice.chance(expected % 1)):
                after(dice.between(0, busy_ms), fault)
        for _ in range(options.absences):
            after(dice.between(0, busy_ms * 0.5), self.leave)
        for _ in range(options.removals):
            after(dice.between(0, busy_ms), self.remove, dice.chance(0.5))
        for _ in range(options.additions):
            after(dice.between(0, busy_ms), self.add)

    def _one_up(self) -> Member | None:
        """A member that runs; None, and nothing has happened, if the one drawn does not."""
        member = self.dice.pick(self.world.members)
        if member.is_up:
            return member
        self.world.idle()
        return None

    # -- the network ----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut one way, one pair, or one region off from all but perhaps one (a bridge); heal everything, later."""
        world, dice = self.world, self.dice
        a, b = dice.below(len(world.members)), dice.below(len(world.members))
        kind = dice.pick(("one_way", "pair", "island", "bridge"))
        others = [i for i in range(len(world.members)) if i != a]
        if a == b or (kind == "bridge" and len(others) < 2):
            return world.idle()
        world.rare[f"cut_{kind}"] += 1
        spared = b if kind == "bridge" else -1
        for peer in others if kind in ("island", "bridge") else [b]:
            if peer != spared:
                world.network.cut(a, peer)
                if kind != "one_way":
                    world.network.cut(peer, a)
        world.trace("cut", kind, a, b)
        world.after(dice.between(50, 1_500), self.heal)

    def heal(self) -> None:
        """Undo every cut but the lasting one."""
        world = self.world
        world.trace("heal cuts")
        world.network.heal()
        for member in world.members:
            member.pace = 1.0
        if self.options.bridge:
            world.network.cut(0, 1)
            world.network.cut(1, 0)

    def flap(self) -> None:
        """The link between two regions comes and goes."""
        world, dice = self.world, self.dice
        a, b = dice.below(len(world.members)), dice.below(len(world.members))
        if a == b:
            return world.idle()
        world.rare["link_flapped"] += 1
        world.trace("flap", a, b)
        self._flap(a, b, 2 * (2 + dice.below(6)), dice.between(10, 150))

    def _flap(self, a: int, b: int, turns: int, each_ms: float) -> None:
        if turns % 2 or not turns:
            self.heal()
        else:
            self.world.network.cut(a, b)
            self.world.network.cut(b, a)
        if turns:
            self.world.after(each_ms, self._flap, a, b, turns - 1, each_ms)

    def slow(self) -> None:
        """A region is slow for a while: its links, its disk, its hands."""
        world, member = self.world, self.dice.pick(self.world.members)
        factor = self.dice.pick(SLOW)
        world.rare["slow_region"] += 1
        world.trace("slow", member.index, factor)
        world.network.slow(member.index, factor)
        member.pace = factor
        world.after(self.dice.between(100, 1_000), self.heal)

    def reset(self) -> None:
        """A connection breaks; perhaps one end does not notice."""
        if self.world.network.reset(self.dice):
            self.world.rare["connection_lost"] += 1
            self.world.trace("reset")

    # -- processes and machines -----------------------------------------------------------------------------------

    def crash_one(self) -> None:
        member = self._one_up()
        if member is not None:
            self.crash(member)

    def crash(self, member: Member, *, torn: bool = False, power: bool | None = None, damaged: bool = False) -> None:
        """A process dies, or its host; `torn`: in the middle of a step that is done anew; `power` None: as the seed draws;
        `damaged`: it had found that its log is."""
        world, dice = self.world, self.dice
        state = member.machine.replica.state
        unfolded, folding = state.pending > 0, state.is_folding
        if power is None:
            power = (self.options.sync or self.options.losses > 0) and dice.chance(0.5)
        world.auditor.crashing(member, torn=torn)
        lost = member.crash(power=power)
        world.trace("crash", member.index, power, len(lost))
        world.rare["crashed"] += 1
        world.rare["crashed_between_append_and_fold"] += unfolded
        world.rare["crashed_while_folding"] += folding
        world.rare["log_lost_its_tail"] += bool(lost)
        if damaged or member.is_damaged:
            return self._replace(member)
        if not self.loses:
            world.auditor.crashed(member, [m for m in world.members if m is not member])
        world.after(dice.between(5, 400), self.restart, member, member.origin)

    def _replace(self, member: Member) -> None:
        """What it had written cannot be read any more: the operator gives it a new disk."""
        before = member.origin
        self.world.rare["damage_found"] += 1
        self.world.trace("replace", member.index)
        self.world.auditor.set_back(member)
        member.lose_disk()
        self.world.after(self.dice.between(5, 400), self.restart, member, before)

    def broke(self, error: Exception) -> bool:
        """A replica's own disk failed it in the middle of a step: its process ends. False if nobody's did."""
        member = next((m for m in self.world.members if m.is_up and m.log.is_broken), None)
        if member is None:
            return False
        world = self.world
        world.rare["stopped_by_its_disk"] += 1
        world.trace("broke", member.index, type(error).__name__)
        damaged = isinstance(error, CorruptionError) and isinstance(member.log, FiledLog) and member.log.has_rot
        self.crash(member, torn=True, power=self.options.sync, damaged=damaged)
        world.auditor.may_have_thawed(member)  # what it was about to freeze is on no disk, and nobody was told
        return True

    def restart(self, member: Member, before: Origin) -> None:
        world = self.world
        try:
            member.start()
        except DiskFullError:
            world.rare["no_room_to_start"] += 1
            world.idle()
            return world.after(100, self.restart, member, before)
        except (CorruptionError, RegionRemovedError):
            if not (isinstance(member.log, FiledLog) and member.log.has_rot):
                raise
            return self._replace(member)
        world.trace("restart", member.index, member.origin, member.origin != before)
        if self.loses:
            self._count_losses(member, before)
        world.rare["replayed"] += member.machine.replayed > 0
        world.auditor.recovered(member)
        if self.dice.chance(self.options.lives) and member.index not in self.leaving:
            member.renew()
            world.auditor.clock_begins_anew(member)
            world.rare["new_incarnation"] += 1
            world.trace("renew", member.index, member.origin)
            world.changed(member)
        return None

    def _count_losses(self, member: Member, before: Origin) -> None:
        """Only now it shows whether it goes on as who it was: then nobody may have what it lost of its own."""
        world = self.world
        world.auditor.may_have_thawed(member)
        if member.origin == before:
            world.auditor.crashed(member, [m for m in world.members if m is not member])
            member.drop_copy_beyond()
        else:
            world.rare["new_incarnation"] += 1
            world.auditor.renewed(member)
        world.auditor.kept([m.log.vv() for m in world.members])
        self._count_gone()

    def _count_gone(self) -> None:
        """Nobody gets back what was on lost disks, and those of removed regions, only; nothing else may be lost."""
        kept = [m.log.vv() for m in self.world.survivors]
        gone = {dot for dot in self.world.acknowledged if not any(vv.covers(dot) for vv in kept)}
        self.world.rare["acknowledged_and_lost"] += bool(gone)
        self.world.acknowledged -= gone

    def leave(self) -> None:
        """A region is away: stopped, or cut off from all; while it is, the others drop what it lacks from their logs."""
        member = self._one_up()
        if member is None:
            return
        world, dice = self.world, self.dice
        world.rare["region_away"] += 1
        stops = self.options.stops and dice.chance(0.5)
        world.trace("leave", member.index, stops)
        away_ms = dice.between(60, 250)
        for _ in range(4):
            world.after(dice.between(0, away_ms), world.clients.turn)
        if stops:
            before = member.origin
            world.auditor.crashing(member)
            member.crash(power=False)
            if not self.loses:
                world.auditor.crashed(member, [m for m in world.members if m is not member])
            if member.is_damaged:
                return self._replace(member)
            world.after(away_ms, self._return, member, before)
        else:
            for peer in range(len(world.members)):
                if peer != member.index:
                    world.network.cut(member.index, peer)
                    world.network.cut(peer, member.index)
            world.network.sever(member.index)
            world.after(away_ms, self._return, member, None)
        return None

    def _return(self, member: Member, before: Origin | None) -> None:
        world = self.world
        world.trace("return", member.index)
        if before is None:  # first: a disk that fails ends this step
            world.after(0, self.heal)
        else:
            world.after(0, self.restart, member, before)
        for other in world.members:
            if other is not member and other.is_up:
                start = other.log.start()
                other.truncate(other.log.synced())
                world.rare["log_truncated"] += other.log.start() > start
                world.changed(other)

    def start_late(self, member: Member) -> None:
        """A new, empty region joins."""
        member.start()
        self.world.rare["region_came_later"] += 1
        self.world.trace("late", member.index)
        self.world.changed(member)

    # -- disks ----------------------------------------------------------------------------------------------------

    def copy(self) -> None:
        member = self._one_up()
        if member is not None:
            member.take_copy()
            self.world.auditor.copied(member)
            self.world.trace("copy", member.index, member.log.end())

    def lose(self) -> None:
        """A directory is no longer what it was: put back from a copy, lost, or in part of an earlier time."""
        member = self._one_up()
        if member is None:
            return
        world, dice = self.world, self.dice
        kind = dice.pick(("put_back", "put_back", "lose_disk", "roll_back"))
        if kind == "put_back" and member.copy is None:
            return world.idle()
        before = member.origin
        world.auditor.crashing(member)
        member.crash(power=dice.chance(0.5))
        if kind == "put_back":
            member.put_back()
        elif kind == "lose_disk" or member.log.start() or member.log.jumps or isinstance(member.log, FiledLog):
            kind = "lose_disk"
            member.lose_disk()
        else:
            member.roll_back_log(dice.below(member.log.end() + 1))
        world.auditor.set_back(member, to_copy=kind == "put_back")
        world.rare[kind] += 1
        if member.index in world.removed:
            world.rare["removed_and_forgot_it"] += 1
            self.forced.add(member.index)
        world.trace("lose", member.index, kind, member.log.end())
        world.after(dice.between(5, 400), self.restart, member, before)

    def truncate(self) -> None:
        """Drop part of a log: what everybody has for good, or what its origin still keeps for those who lack it."""
        member = self._one_up()
        if member is None:
            return
        world, dice = self.world, self.dice
        start = member.log.start()
        if dice.chance(0.5):
            member.retain(dice.pick((0, 300, 2_000)))
        elif self.options.beyond and dice.chance(0.7):
            member.truncate(start + dice.below(member.log.synced() - start + 1))
        else:
            member.truncate(start + dice.below(self._needless(member) - start + 1))
        world.rare["log_truncated"] += member.log.start() > start
        world.rare["snapshot_while_truncated"] += member.log.start() > start and member.serves_snapshot
        if member.log.start() == start:
            world.idle()
        world.trace("truncate", member.index, member.log.start())
        world.changed(member)

    def _needless(self, member: Member) -> int:
        """Up to which position nobody needs a member's log."""
        members = self.world.members
        durable = [m.log.vv_at[m.log.synced()] for m in members]
        keeps = {m.origin: m.log.floor().seq(m.origin) for m in members}  # nobody sends a former incarnation's as their own
        position = member.log.start()
        while position < member.log.end():
            frame = member.log.frames[position]
            kept = keeps.get(frame.origin)
            elsewhere = not self.options.bridge and frame.origin != member.origin and kept is not None and kept < frame.first_seq
            if not (elsewhere or all(vv.covers((frame.origin, frame.last_seq)) for vv in durable)):
                break
            position += 1
        return position

    def fill(self) -> None:
        """No room on a member's disk, for its log or for its engine as well, until later."""
        member = self.dice.pick(self.world.members)
        member.log.is_full = True
        member.engine.is_full = self.dice.chance(0.5)
        self.world.trace("full", member.index, member.engine.is_full)
        self.world.after(self.dice.between(5, 700), self.free, member)

    def free(self, member: Member) -> None:
        """There is room again, and the disk does what it is told."""
        self.world.trace("free", member.index)
        if isinstance(member.log, FiledLog):
            member.log.fail_next(None)
        member.log.is_full = member.engine.is_full = False

    def fail(self) -> None:
        """The next write or fsync of a member's log fails with EIO."""
        member = self._one_up()
        if member is None:
            return
        if not isinstance(member.log, FiledLog):
            return self.world.idle()
        call = self.dice.pick(("write", "sync"))
        self.world.rare["disk_error"] += 1
        self.world.trace("fail", member.index, call)
        member.log.fail_next(call)

    def rot(self) -> None:
        """A bit of what a member has synced turns over; perhaps the power fails too."""
        member = self._one_up()
        if member is None:
            return
        if not isinstance(member.log, FiledLog) or not member.log.rot(self.dice):
            return self.world.idle()
        self.world.rare["bit_rot"] += 1
        self.world.trace("rot", member.index)
        if self.dice.chance(0.6):
            self.crash(member)

    def jump(self) -> None:
        """Somebody sets a clock."""
        member = self.dice.pick(self.world.members)
        by_ms = int(self.dice.between(-3_000, 3_000))
        member.wall.jump(by_ms)
        self.world.rare["clock_jumped_back" if by_ms < 0 else "clock_jumped_ahead"] += 1
        self.world.trace("jump", member.index, by_ms)

    # -- members --------------------------------------------------------------------------------------------------

    def remove(self, forced: bool) -> None:
        """An operator removes a region: by force, as if it were dead; or drains it first."""
        world = self.world
        able = [m for m in world.survivors if m.is_up and m.index not in self.leaving]
        if len(able) < 3:
            return world.idle()
        victim, by = self.dice.pick(able), self.dice.pick(able)
        if victim is by:
            return world.idle()
        world.trace("remove", victim.index, by.index, forced)
        if forced:
            if self._removed(victim, by) and self.options.regrets and self.dice.chance(0.6):
                world.after(self.dice.between(0, 400), self._add_again, victim)
            return None
        self._drain(victim, by)
        return None

    def _drain(self, victim: Member, by: Member) -> None:
        world = self.world
        self.leaving.add(victim.index)
        if self.options.regrets and self.dice.chance(0.7):
            world.after(self.dice.between(5, 500), self._take_back, victim)
        world.after(50, self._drained, victim, by)  # first: this step may end with a process that its disk has failed
        if _record(by, victim, MemberState.DRAINING):
            world.rare["region_drained"] += 1
        else:
            self.leaving.discard(victim.index)

    def _drained(self, victim: Member, by: Member) -> None:
        """Once it says that all others have what it has, it goes. Whom the operator asked may have a clock that refuses, or a disk that
        fails it in the middle: then another is asked, or the same again; and what it recorded may lose against another's record."""
        world = self.world
        if victim.index in world.removed or victim.index not in self.leaving:
            return world.idle()
        world.after(50, self._drained, victim, by)  # first, as above
        for asked in (by, *(m for m in world.survivors if m not in (by, victim))):
            if asked.is_up:
                if asked.machine.control.is_removed(victim.region):
                    return self._gone(victim, asked)
                record = asked.machine.control.members.get(victim.region)
                if record is None or record.state == MemberState.ACTIVE:  # it was lost with a disk, or that of its being added counts
                    _record(asked, victim, MemberState.DRAINING)
                    return None
                standings = asked.drive.membership.standings(asked.machine.vv())
                if any(s.is_drained for s in standings if s.region == victim.region):
                    if not self.loses and victim.machine.own_seq() > asked.machine.vv().seq(victim.origin):
                        raise Violation(f"{asked.region}: {victim.region} is called drained, and not all that it has written is here")
                    if self._removed(victim, asked):
                        world.rare["drained_and_removed"] += 1
                        return None
        return world.idle()

    def _removed(self, victim: Member, by: Member) -> bool:
        try:
            if not _record(by, victim, MemberState.REMOVED):
                return False
        except StorageError:  # nobody knows whether it is on the disk: the operator looks again, until it is
            self._gone(victim, by)
            raise
        self._gone(victim, by)
        return True

    def _gone(self, victim: Member, by: Member) -> None:
        world = self.world
        world.rare["region_removed"] += 1
        world.trace("removed", victim.index, by.index)
        world.removed.add(victim.index)
        self.once_removed.add(victim.index)
        world.auditor.removed_regions.add(victim.region)
        if victim.machine.replica.refusal is None or (self.loses and not victim.is_up):
            self.forced.add(victim.index)
        if self.loses:
            self._count_gone()
        world.after(200, self._confirm, victim)

    def _confirm(self, victim: Member) -> None:
        """The operator looks again: a removal may be lost with a disk, or count for less than a record of that moment which adds it."""
        world = self.world
        world.idle()
        if victim.index not in world.removed:
            return  # it was added again
        world.after(200, self._confirm, victim)
        asked = [m for m in world.survivors if m.is_up]
        if any(m.machine.control.is_removed(victim.region) for m in asked):
            return
        for by in asked:
            if _record(by, victim, MemberState.REMOVED):
                world.rare["removed_again"] += 1
                world.trace("removed", victim.index, by.index)
                self.forced.add(victim.index)
                return

    def add(self) -> None:
        """A region is added: it begins with nothing, and the others dial it."""
        world = self.world
        able = [m for m in world.survivors if m.is_up]
        if len(world.members) == len(REGIONS) or not able:
            return world.idle()
        by = self.dice.pick(able)
        newcomer = world.new_member(REGIONS[len(world.members)])
        world.rare["region_added"] += 1
        world.trace("add", newcomer.index, by.index)
        newcomer.start()
        for member in world.members[:-1]:
            member.meet(newcomer)
        _record(by, newcomer, MemberState.ACTIVE)
        if self.options.regrets:
            _record(self.dice.pick(able), newcomer, MemberState.ACTIVE)
        return None

    # -- operators who change their minds ---------------------------------------------------------------------------

    def _take_back(self, victim: Member) -> None:
        """A drain is taken back, somewhere; it may be begun again, elsewhere."""
        world = self.world
        able = [m for m in world.survivors if m.is_up and m is not victim]
        if victim.index not in self.leaving or victim.index in world.removed or not able:
            return world.idle()
        world.trace("take back", victim.index, (by := self.dice.pick(able)).index)
        if _record(by, victim, MemberState.ACTIVE):
            world.rare["drain_taken_back"] += 1
            self.leaving.discard(victim.index)
            world.after(200, self._confirm_active, victim)
            if self.dice.chance(0.5):
                world.after(self.dice.between(5, 500), self._drain_again, victim)
        return None

    def _drain_again(self, victim: Member) -> None:
        world = self.world
        able = [m for m in world.survivors if m.is_up and m is not victim]
        if victim.index in self.leaving or victim.index in world.removed or len(able) < 2:
            return world.idle()
        world.rare["drained_again"] += 1
        world.trace("remove", victim.index, (by := self.dice.pick(able)).index, False)
        return self._drain(victim, by)

    def _add_again(self, victim: Member) -> None:
        """A region that was removed is to be a member after all. Its process had gone on, unheard."""
        world = self.world
        able = [m for m in world.survivors if m.is_up]
        if victim.index not in world.removed or not able:
            return world.idle()
        world.trace("add again", victim.index, (by := self.dice.pick(able)).index)
        if _record(by, victim, MemberState.ACTIVE):
            world.rare["region_added_again"] += 1
            world.removed.discard(victim.index)
            if not self.loses:
                self.forced.discard(victim.index)
            world.auditor.removed_regions.discard(victim.region)
            world.after(200, self._confirm_active, victim)
        return None

    def _confirm_active(self, member: Member) -> None:
        """The operator looks again, elsewhere: the record may count for less than one of before, which whoever was asked had not heard of,
        or be lost with a disk. In the end he asks each region: those that took each other for removed have not heard of one another."""
        world = self.world
        world.idle()
        if member.index in world.removed or member.index in self.leaving:
            return
        world.after(200, self._confirm_active, member)
        records = [(m.machine.control.members.get(member.region), m) for m in world.survivors if m.is_up and m is not member]
        known = [(record, m) for record, m in records if record is not None]
        if world.is_busy:
            known = [max(known, key=lambda found: found[0].rank)] if known else []
        for record, by in known:
            if record.state != MemberState.ACTIVE:
                _record(by, member, MemberState.ACTIVE)
                return


def _record(by: Member, member: Member, state: MemberState) -> bool:
    """An operator has a member record what becomes of a region; False if it refuses."""
    return by.record([member_delta(member.region, state, "", by.machine.control.next_epoch())])
