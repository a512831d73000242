"""Mending what differs: the damaged side of each slot takes over the record of a sound one.

Whose record is damaged is decided slot by slot, by the first of these that tells:

1. the operator has named the donor;
2. one record is malformed, or its dots are not covered by its own state's vector;
3. one replica's records give the digest that it has kept with every commit, and the other's do not;
4. of three or more replicas, a majority hold what the others do not.

If none does, nothing is touched and the operator is asked. The record is taken over only where no commit since the donor's view touches the
slot; slots that were touched are looked at again, in another round with new views. When nothing differs any more, each replica that was
off recounts what it keeps beside its records: heads, the index of expiries, the digest. All of it goes on while all replicas serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from crdtkv.audit.comparing import Certificate, Difference, verify
from crdtkv.audit.sides import WAIT_S, MendableSide
from crdtkv.core.compare import slot_text
from crdtkv.errors import ConfigError, CorruptionError
from crdtkv.store.mending import SLOTS_MAX, Settled
from crdtkv.store.view import View, records

ROUNDS_MAX: Final = 10
"""Slots that are written all the time heal by that, or wait for a moment between two views: so many are tried."""
SLOTS_LISTED_MAX: Final = 100_000
"""Slots that one round mends."""


@dataclass(frozen=True, slots=True)
class Mended:
    """One slot whose record a region took over from a donor."""

    slot: bytes
    region: str
    donor: str

    @property
    def text(self) -> str:
        return slot_text(self.slot)


@dataclass(slots=True)
class Repair:
    """What a repair did. `undecided`: where nothing tells whose record is damaged. `certificate`: of the comparison at the end."""

    mended: list[Mended] = field(default_factory=list)
    undecided: list[Difference] = field(default_factory=list)
    settled: dict[str, Settled] = field(default_factory=dict)
    certificate: Certificate | None = None

    @property
    def holds(self) -> bool:
        """Nothing differs any more."""
        return self.certificate is not None and self.certificate.holds


def repair(
    sides: Sequence[MendableSide], *, donor: str | None = None, wait_s: float = WAIT_S, dry_run: bool = False, rounds: int = ROUNDS_MAX
) -> Repair:
    """Compare replicas and mend those that are damaged; see the module's docstring. O(state) on each for every round.

    Args:
        donor: the region whose records are right, if the operator knows.
        dry_run: only say what would be taken over by whom from whom.
    Raises:
        ConfigError: the donor is none of the regions, or there is only one region.
        DeadlineExceededError: one does not get what another one has.
    """
    by_name = {side.name: side for side in sides}
    if len(sides) < 2:
        raise ConfigError("a repair needs the damaged region and at least one other: name both")
    if donor is not None and donor not in by_name:
        raise ConfigError(f"the donor {donor!r} is none of {', '.join(by_name)}", donor=donor)
    if donor is not None:
        sides = [by_name[donor], *(side for side in sides if side.name != donor)]
    done = Repair()
    for _ in range(rounds):
        found = verify(sides, wait_s=wait_s, differences_max=SLOTS_LISTED_MAX)
        done.certificate = found
        if not found.count:
            break
        plan, done.undecided = _decide(found, donor)
        if dry_run:
            done.mended = [Mended(slot, region, giver) for (region, giver), slots in plan.items() for slot in slots]
            return done
        for (region, giver), slots in plan.items():
            done.mended += _take_over(by_name[region], by_name[giver], slots, wait_s)
        if not plan:
            return done
    found = done.certificate or verify(sides, wait_s=wait_s)
    if found.count:
        return done
    off = {standing.region for standing in found.unsound} | {mended.region for mended in done.mended}
    if off and not dry_run:
        if donor is None and not done.mended and len(found.unsound) == len(sides):
            raise CorruptionError(
                "no region's records give the digest that it keeps, though all agree: all were damaged alike, or there is a bug; if the "
                "records of one are right, name it as the donor"
            )
        for region in sorted(off):
            done.settled[region] = by_name[region].settle()
        done.certificate = verify(sides, wait_s=wait_s)
    return done


def _decide(found: Certificate, donor: str | None) -> tuple[dict[tuple[str, str], list[bytes]], list[Difference]]:
    """Which region takes over which slots from whom, and the differences that nothing decides."""
    names = [standing.region for standing in found.standings]
    sound = {standing.region for standing in found.standings if standing.is_sound}
    reference, others = names[0], names[1:]
    by_slot: dict[bytes, list[Difference]] = {}
    for difference in found.differences:
        by_slot.setdefault(difference.slot, []).append(difference)
    plan: dict[tuple[str, str], list[bytes]] = {}
    undecided: list[Difference] = []
    for slot, differences in by_slot.items():
        # Each was compared with the reference: these regions differ from it, all others hold what it holds.
        against = {region for d in differences for region in d.regions} - {reference}
        malformed = {d.damaged for d in differences if d.damaged}
        agreeing = [region for region in others if region not in against]
        damaged: set[str] = set()
        if donor is not None:
            damaged = against
        elif malformed:
            damaged = malformed
        elif (reference in sound) != any(region in sound for region in against):
            damaged = against if reference in sound else {reference}
        elif 2 * (1 + len(agreeing)) > len(names):
            damaged = against
        elif len(against) == len(others) > 1:
            damaged = {reference}  # should the others differ among themselves, the next round finds it
        givers = [donor] if donor is not None else [r for r in [*(r for r in names if r in sound), *names] if r not in damaged]
        if not damaged or not givers:
            undecided += differences
            continue
        giver = reference if reference in givers and reference in sound else givers[0]
        for region in damaged:
            plan.setdefault((region, giver), []).append(slot)
    return plan, undecided


def _take_over(region: MendableSide, giver: MendableSide, slots: list[bytes], wait_s: float) -> list[Mended]:
    """Offer one region the records that another one holds now; what it took over."""
    mended = []
    slots = sorted(slots)
    for at in range(0, len(slots), SLOTS_MAX):
        some = slots[at : at + SLOTS_MAX]
        with closing(giver.view(wait_s=wait_s)) as view:
            offered = {slot: _record(view, slot) for slot in some}
            region.view(view.moment.vv, wait_s).close()  # only to wait until it has applied as much
            done = region.adopt(offered, view.moment.vv, giver.name)
        mended += [Mended(slot, region.name, giver.name) for slot in done.adopted]
    return mended


def _record(view: View, slot: bytes) -> bytes | None:
    return dict(records(view, slot, slot + b"\x00")).get(slot)
