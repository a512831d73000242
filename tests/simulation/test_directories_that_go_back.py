"""What may be missing, or there again, once a directory was lost or put back from a copy; and that nothing else may."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crdtkv.core.codec import SlotType, encode_value, successor
from crdtkv.core.removals import REMOVAL_SPACE
from crdtkv.core.types.counter import DEAD_SPACE
from crdtkv.simulation.member import Member
from crdtkv.simulation.options import Options
from crdtkv.simulation.specification import Increment, Operation, Remove, Reset, Slot, Write
from crdtkv.simulation.world import World
from crdtkv.store.transaction import Transaction

ELEMENT = encode_value("e")
SLOT: Slot = ("s", "set", ELEMENT)
NEVER = 1e-9
"""A rate at which nothing happens by itself: directories may be lost, and are when a test says so."""


class Staged(World):
    """Two regions, nothing drawn to go wrong, and no clients but what a test has done at its instants."""

    def drawn(self) -> Options:
        return Options(regions=2, transactions=0, busy_s=2.0, cuts=0, resets=0, crashes=0, skew_ms=0, jitter=0, folds=0, losses=NEVER)

    def play(self, *steps: tuple[float, Callable[[], object]]) -> tuple[str, ...]:
        """Have each step done at its instant, in ms; the violations."""
        for at_ms, step in steps:
            self.after(at_ms, step)
        return self.run().violations

    def commit(self, member: Member, call: Callable[[Transaction], object], *operations: Operation) -> None:
        def fill(transaction: Transaction) -> tuple[list[list[object]], tuple[Operation, ...]]:
            call(transaction)
            return transaction.deltas(), operations

        assert member.serve(fill, 1)
        self.changed(member)

    def forget(self, member: Member) -> None:
        member.retain(0)
        self.changed(member)

    def replace(self, member: Member, how: Callable[[Member], None], *, to_copy: bool) -> None:
        """Its process dies, and starts in another directory."""
        before = member.origin
        self.auditor.crashing(member)
        member.crash(power=False)
        self.auditor.set_back(member, to_copy=to_copy)
        how(member)
        self.faults.restart(member, before)


def side(member: Member, space: bytes) -> list[bytes]:
    return [key for key, _ in member.machine.replica.state.scan(space, successor(space))]


def add(world: Staged, member: Member) -> None:
    world.commit(member, lambda t: t.add("s", ELEMENT), Write(SLOT))


def remove(world: Staged, member: Member) -> None:
    world.commit(member, lambda t: t.discard("s", ELEMENT), Remove(SLOT))


@pytest.mark.parametrize("loses", [True, False])
def test_a_removal_that_all_had_is_told_to_have_lost_only_against_who_did_not_lose_it_with_a_disk(loses: bool) -> None:
    """ap had forgotten a removal as stable: br had it durably. Then br lost its disk, and added the element again without having seen the
    removal. The add wins, and nobody can tell any more that the removal lost. Had br kept its disk, ap would have forgotten too early."""
    world = Staged(1)
    ap, br = world.members

    def cut() -> None:
        world.network.cut(0, 1)
        world.network.cut(1, 0)

    def have_it_forgotten() -> None:
        assert side(ap, REMOVAL_SPACE)
        if loses:
            world.forget(ap)
        else:  # what it may not do: br has added meanwhile, unseen
            world.auditor.forgetting(ap, ap.machine.vv())
            ap.machine.replica.forget_stable(ap.machine.vv(), {}, 100)
        assert not side(ap, REMOVAL_SPACE)

    steps: list[tuple[float, Callable[[], object]]] = [(100, lambda: add(world, ap))]
    if loses:
        steps += [(300, lambda: remove(world, ap)), (1200, have_it_forgotten), (1300, cut)]
        steps += [(1400, lambda: world.replace(br, Member.lose_disk, to_copy=False)), (1500, lambda: add(world, br))]
    else:
        steps += [(300, cut), (400, lambda: remove(world, ap)), (410, lambda: add(world, br)), (420, have_it_forgotten)]
    violations = world.play(*steps)
    assert ap.reader.size(b"s", SlotType.SET) == 1
    if loses:
        assert violations == ()
    else:
        assert len(violations) == 1 and "the removal" in violations[0] and "lost, and the journal does not say so" in violations[0]


def test_who_goes_on_as_another_in_its_own_directory_has_forgotten_what_it_had_forgotten() -> None:
    """ap had forgotten a removal as stable and then, its identity lost, went on as another incarnation with the same state. After that br,
    whose disk was lost, added the element again: ap cannot tell that the removal lost, no more than if it had kept its name."""
    world = Staged(1)
    ap, br = world.members
    named: list[str] = []

    def cut() -> None:
        world.network.cut(0, 1)
        world.network.cut(1, 0)

    def rename() -> None:
        before = ap.origin
        world.auditor.crashing(ap)
        ap.crash(power=False)
        ap.instance.wipe()
        world.faults.restart(ap, before)
        named.extend((before, ap.origin))
        assert not side(ap, REMOVAL_SPACE)

    violations = world.play(
        (100, lambda: add(world, ap)),
        (300, lambda: remove(world, ap)),
        (1200, lambda: world.forget(ap)),
        (1250, rename),
        (1300, cut),
        (1400, lambda: world.replace(br, Member.lose_disk, to_copy=False)),
        (1500, lambda: add(world, br)),
    )
    assert named[0] != named[1] and ap.reader.size(b"s", SlotType.SET) == 1
    assert violations == ()


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_copy_of_before_a_run_was_forgotten_brings_it_back_until_it_is_forgotten_again(is_whole: bool) -> None:
    """Forgetting is not logged: it goes to the disk with a fold. A directory that is put back as it was before has the spent run again, as
    it had it then, dead: value and digest are the same, and the next round forgets it. A copy that lacks some of it is found out."""
    world = Staged(1)
    ap, _ = world.members
    seen: list[list[bytes]] = []

    def copy() -> None:
        ap.machine.fold()
        ap.take_copy()
        world.auditor.copied(ap)
        if not is_whole:
            assert ap.copy is not None
            for key in side(ap, DEAD_SPACE):
                del ap.copy[2].records[key]

    def forget() -> None:
        seen.append(side(ap, DEAD_SPACE))
        world.forget(ap)
        seen.append(side(ap, DEAD_SPACE))

    violations = world.play(
        (100, lambda: world.commit(ap, lambda t: t.increment("c", 2), Increment("c", 2))),
        (200, lambda: world.commit(ap, lambda t: t.reset("c"), Reset("c"))),
        (300, lambda: world.commit(ap, lambda t: t.increment("c", 5), Increment("c", 5))),
        (1100, copy),
        (1200, forget),
        (1300, lambda: world.replace(ap, Member.put_back, to_copy=True)),
        (1900, forget),
    )
    if is_whole:
        assert violations == () and [len(keys) for keys in seen] == [1, 0, 1, 0]
        assert ap.reader.counter(b"c") == 5
    else:
        assert len(violations) == 1 and "replay made" in violations[0]
