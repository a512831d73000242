"""The checker outside the nodes: what clients were told, held against what every region answers at the end.

Every acknowledged put of a key that nobody else writes is there, unless it was deleted; what was deleted, acknowledged, is nowhere;
nothing is there that nobody wrote. Of shared registers every acknowledged write is read, or a later acknowledged one had seen it, or the
journal of some region names it as beaten, also while it stands there as a sibling. A shared register of which some write has an unknown
outcome is judged only for visible values, since what became of its writes may hang on that one; how many those are is told, and bounded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crdtkv
from crdtkv.core.causality import Dot
from crdtkv.core.token import token_vv
from crdtkv.demo.records import Kind, Op, Slot, Write
from crdtkv.demo.verifier import histories


@dataclass
class Told:
    """What the clients noted."""

    put: dict[str, str] = field(default_factory=dict)
    perhaps_put: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    perhaps_deleted: set[str] = field(default_factory=set)
    shared: list[Write] = field(default_factory=list)
    unknown_shared: dict[str, set[str]] = field(default_factory=dict)
    events: list[tuple[float, str, str]] = field(default_factory=list)
    """(time, kind, client): of all."""
    steps: list[tuple[float, float]] = field(default_factory=list)
    """From when to when a client had writes under way."""
    refusals: Counter[str] = field(default_factory=Counter)

    def between(self, start: float, end: float, kind: str, *clients: str) -> int:
        """How many notes of a kind fall into a time."""
        return sum(start <= at <= end and what == kind and (not clients or who in clients) for at, what, who in self.events)

    def under_way(self, at: float) -> int:
        """How many clients had writes under way at a moment."""
        return sum(began < at < ended for began, ended in self.steps)

    @property
    def acknowledged(self) -> int:
        """How many writes were answered."""
        return len(self.put) + len(self.deleted) + len(self.shared)


def read(files: Iterable[Path]) -> Told:
    """What the clients have noted so far; a line that is being written is left for later."""
    told = Told()
    for file in files:
        for line in file.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            at, kind, *rest = json.loads(line)
            told.events.append((at, kind, file.stem))
            match kind:
                case "put":
                    (told.put if rest[2] else told.perhaps_put)[rest[0]] = rest[1]
                case "del":
                    (told.deleted if rest[1] else told.perhaps_deleted).add(rest[0])
                case "shared":
                    key, value, answered, origin, seq, hlc, token = rest
                    if answered:
                        op = Op(Kind.SET, Slot(key, "register"), value)
                        told.shared.append(Write(file.stem, "", op, Dot(origin, seq), hlc, token_vv(token), at))
                    else:
                        told.unknown_shared.setdefault(key, set()).add(value)
                case "step":
                    told.steps.append((rest[0], at))
                case _:
                    told.refusals[rest[0].partition(":")[0]] += 1
    return told


def judge(told: Told, clients: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    """What is wrong, in words; and what became of the acknowledged writes, counted over all regions.

    Args:
        clients: region → a client of it, at rest.
    """
    wrong: list[str] = []
    fates: Counter[str] = Counter()
    beaten = {(c.key, loser.dot) for client in clients.values() for c in client.conflicts() for loser in c.losers}
    slots = {slot.key: history for slot, history in histories(told.shared).items()}
    for region, client in clients.items():
        there = dict(client.scan("own/"))
        for key, value in told.put.items():
            if key in told.deleted:
                fates["deleted"] += 1
                if key in there:
                    wrong.append(f"{region}: {key} was deleted, and is there")
            elif key not in there:
                if key in told.perhaps_deleted:
                    fates["deleted"] += 1
                else:
                    wrong.append(f"{region}: {key} was acknowledged, and is not there")
            else:
                fates["there"] += 1
                if there[key] != value:
                    wrong.append(f"{region}: {key} is not what was put")
        for key in there.keys() - told.put.keys() - told.perhaps_put.keys():
            wrong.append(f"{region}: {key} is there, and whoever wrote it was refused")
        for key, history in slots.items():
            siblings = {s.dot: s.value for s in client.siblings(key)}
            values = {w.op.value for w in history.writes} | told.unknown_shared.get(key, set())
            wrong += [f"{region}: {key} reads {value!r}, which nobody wrote" for value in siblings.values() if value not in values]
            read_here = next(iter(siblings), None)  # the winner comes first
            for w in history.writes:
                if w.dot == read_here:
                    fates["visible"] += 1
                elif w.dot in siblings and (key, w.dot) not in beaten:
                    wrong.append(f"{region}: the write of {w.op.value!r} to {key} ({w.dot}) lost to a concurrent one, and is in no journal")
                elif w.dot in history.superseded:
                    fates["superseded"] += 1
                elif (key, w.dot) in beaten:
                    fates["journalled"] += 1
                elif key in told.unknown_shared:
                    fates["beside an unknown outcome"] += 1
                else:
                    wrong.append(f"{region}: the write of {w.op.value!r} to {key} ({w.dot}) is not visible, seen by none, in no journal")
    if fates["beside an unknown outcome"] * 20 > sum(fates.values()):
        wrong.append(f"too many writes could not be judged: {fates['beside an unknown outcome']:,}")
    return wrong, dict(fates)


def connect(addresses: Mapping[str, str]) -> dict[str, crdtkv.Client]:
    """A client of each region."""
    return {region: crdtkv.connect(address, timeout=30.0) for region, address in addresses.items()}
