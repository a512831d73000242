"""What is written: the data set, edits that conflict, and the staged conflicts of the cut. Decides, and does no I/O.

Every value names its author and number, so that a value read back tells which write it came from. All choices come from
a seeded generator: the same seed asks for the same changes in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crdtkv.demo.dataset import Airport
from crdtkv.demo.records import Kind, Op, Slot

PULSE_PREFIX = "pulse/"

STATUS_FIELDS = ("runway", "weather", "fuel", "tower")
_STATUS_WORDS = {
    "runway": ("open", "closed", "snow clearing", "inspection"),
    "weather": ("clear", "fog", "thunderstorm", "crosswind"),
    "fuel": ("normal", "low", "tanker due"),
    "tower": ("normal", "single frequency", "training"),
}


def put(airport: Airport, **changes: object) -> Op:
    """Put an airport's record, changed."""
    return Op(Kind.SET, Slot(f"airport/{airport.code}", "register"), {**airport.record, **changes})


def delete(airport: Airport) -> Op:
    """Delete an airport's record."""
    return Op(Kind.REMOVE, Slot(f"airport/{airport.code}", "register"))


def put_status(airport: Airport, name: str, value: str) -> Op:
    """Put one field of an airport's status map."""
    return Op(Kind.SET, Slot(f"status/{airport.code}", "map", name), value)


def drop_status(airport: Airport, name: str) -> Op:
    """Remove one field of an airport's status map."""
    return Op(Kind.REMOVE, Slot(f"status/{airport.code}", "map", name))


def list_in_country(airport: Airport, kind: Kind = Kind.SET) -> Op:
    """Add an airport to, or remove it from, the set of its country."""
    return Op(kind, Slot(f"country/{airport.country}", "set", airport.code))


def list_in_zone(airport: Airport, kind: Kind = Kind.SET) -> Op:
    """Add an airport to, or remove it from, the set of its time zone."""
    return Op(kind, Slot(f"tz/{airport.zone}", "set", airport.code))


def count(key: str, n: int) -> Op:
    """Add `n` (which may be negative) to a counter."""
    return Op(Kind.INCREMENT, Slot(key, "counter"), n)


def pulse(region: str, number: int) -> Op:
    """The region's numbered sign of life, by which lag is measured."""
    return Op(Kind.SET, Slot(f"{PULSE_PREFIX}{region}", "register"), number)


def load_commit(airport: Airport) -> list[Op]:
    """One airport, as one atomic commit: its record, its place in two sets, and two counters."""
    return [
        put(airport),
        list_in_country(airport),
        list_in_zone(airport),
        count(f"airports/{airport.country}", 1),
        count(f"loaded/{airport.owner}", 1),
    ]


class Editor:
    """An endless, seeded stream of small commits of one region against few airports, so that regions collide."""

    def __init__(self, region: str, airports: Sequence[Airport], seed: int) -> None:
        self._region = region
        self._airports = airports
        self._rng = random.Random(f"{seed}/{region}")
        self._number = 0

    def __iter__(self) -> Iterator[list[Op]]:
        return self

    def __next__(self) -> list[Op]:
        self._number += 1
        rng = self._rng
        mark = f"{self._region}-{self._number}"
        airport = rng.choice(self._airports)
        # Weights: 30 register puts, 4 deletes, 18 field puts, 4 field removals, 10 adds, 10 removals, 20 counters, 4 of several at once.
        roll = rng.randrange(100)
        if roll < 30:
            return [put(airport, elevation=float(rng.randrange(5000)), edited=mark)]
        if roll < 34:
            return [delete(airport)]
        if roll < 52:
            name = rng.choice(STATUS_FIELDS)
            return [put_status(airport, name, f"{rng.choice(_STATUS_WORDS[name])} ({mark})")]
        if roll < 56:
            return [drop_status(airport, rng.choice(STATUS_FIELDS))]
        if roll < 66:
            return [list_in_country(airport)]
        if roll < 76:
            return [list_in_country(airport, Kind.REMOVE)]
        if roll < 96:
            return [count(f"movements/{airport.code}", rng.choice((-2, -1, 1, 1, 2, 3)))]
        return [put(airport, edited=mark), put_status(airport, "tower", f"handover ({mark})"), count(f"movements/{airport.code}", 1)]


@dataclass(frozen=True, slots=True)
class StagedConflict:
    """A conflict made on purpose: what each region commits, one after the other, without having seen the others."""

    title: str
    key: str
    commits: Sequence[tuple[str, Sequence[Op]]]


def staged_conflicts(airports: Sequence[Airport], inside: str, outside: Sequence[str]) -> list[StagedConflict]:
    """The conflicts of the cut, each between region `inside`, which is cut off, and the regions `outside`.

    Args:
        airports: at least six; each conflict takes the next, so that they do not touch each other.
    """
    a, b = outside[0], outside[-1]
    name, gone, field, returned, busy, zone = airports[:6]
    everybody = (inside, *outside)
    flights = {region: (40, 25, -7)[i % 3] for i, region in enumerate(everybody)}
    return [
        StagedConflict(
            f"All regions rename {name.code}",
            f"airport/{name.code}",
            [(r, [put(name, name=f"{name.record['name']} (renamed in {r})", edited=f"cut-{r}")]) for r in everybody],
        ),
        StagedConflict(
            f"{a} deletes {gone.code} while {inside} edits it",
            f"airport/{gone.code}",
            [(a, [delete(gone)]), (inside, [put(gone, elevation=1.0, edited=f"cut-{inside}")])],
        ),
        StagedConflict(
            f"{b} closes the runway of {field.code} while {inside} opens it",
            f"status/{field.code}",
            [(b, [put_status(field, "runway", f"closed (cut-{b})")]), (inside, [put_status(field, "runway", f"open (cut-{inside})")])],
        ),
        StagedConflict(
            f"{a} takes {returned.code} off its country's list while {inside} takes it off and puts it back",
            f"country/{returned.country}",
            [
                (a, [list_in_country(returned, Kind.REMOVE)]),
                (inside, [list_in_country(returned, Kind.REMOVE)]),
                (inside, [list_in_country(returned)]),
            ],
        ),
        StagedConflict(
            f"All regions count movements at {busy.code}",
            f"movements/{busy.code}",
            [(r, [count(f"movements/{busy.code}", flights[r])]) for r in everybody],
        ),
        StagedConflict(
            f"{b} removes {zone.code} from its time zone while {inside} moves it there anew",
            f"tz/{zone.zone}",
            [
                (b, [list_in_zone(zone, Kind.REMOVE)]),
                (inside, [list_in_zone(zone, Kind.REMOVE)]),
                (inside, [list_in_zone(zone)]),
            ],
        ),
    ]
