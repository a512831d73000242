"""The judge outside the cluster: what became of every acknowledged write, in every region.

It is given two things that do not depend on each other: the writes that clients were told were done, each with what its
author had seen, and what clients read in each region afterwards. From the first alone follows what each slot must
look like (the declarative meaning of the types); the second is held against it.

Each write is, in each region, exactly one of

    visible      a read shows it: the winner of a register or field, an element that is there, a removal of something
                 absent, an increment inside a sum that is right to the last unit
    superseded   a later acknowledged write to the same slot had seen it
    journal      it met a concurrent write, lost by the rule, and the region's conflict journal says so
    lost         none of these: a defect, and the demo fails

The classes partition the acknowledged writes, so their counts must add up in each region. Besides, no read may show what
nobody wrote or what was superseded, the winner must be the one that the rule names, all regions must answer alike,
and version vectors and digests must be equal.
"""

from __future__ import annotations

import enum
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from crdtkv.core.causality import EMPTY_VV, Dot, VersionVector
from crdtkv.core.codec import encode_value
from crdtkv.demo.records import Kind, Observation, Slot, Value, Write

VIOLATIONS_MAX = 200
"""Of each check, how many violations are kept in words; all are counted."""


class Fate(enum.StrEnum):
    """What became of an acknowledged write in one region."""

    VISIBLE = "visible"
    SUPERSEDED = "superseded"
    JOURNAL = "journal"
    LOST = "lost"


@dataclass(slots=True)
class Check:
    """One thing that must hold, what was found, and the first violations in words."""

    name: str
    detail: str = ""
    violations: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def ok(self) -> bool:
        """Whether it held everywhere."""
        return self.count == 0

    def fail(self, what: str) -> None:
        """Record one violation."""
        self.count += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(what)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement.

    Attributes:
        checks: every check made, in the order of the report.
        fates: region → class → number of writes; the classes of a region sum to `acknowledged`.
        fates_by_type: region → type → class → number of writes.
        acknowledged: how many writes were judged.
        counters: key → the sum of its acknowledged increments.
    """

    checks: Sequence[Check]
    fates: Mapping[str, Mapping[Fate, int]]
    fates_by_type: Mapping[str, Mapping[str, Mapping[Fate, int]]]
    acknowledged: int
    counters: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.ok for check in self.checks)

    def violations(self) -> list[str]:
        """All kept violations, each with its check's name in front."""
        return [f"{check.name}: {v}" for check in self.checks for v in check.violations]


@dataclass(frozen=True, slots=True)
class SlotHistory:
    """The acknowledged writes to one slot, split by whether a later one had seen them.

    Attributes:
        maximal: those that no other had seen; what a converged region must show follows from these alone.
        superseded: dot → a write that had seen it.
    """

    slot: Slot
    writes: Sequence[Write]
    maximal: Sequence[Write]
    superseded: Mapping[Dot, Write]

    def sets(self) -> list[Write]:
        """Maximal puts or adds, the one that the rule reads (greatest stamp, then origin) first."""
        return sorted((w for w in self.maximal if w.op.kind is Kind.SET), key=lambda w: (w.hlc, w.dot.origin), reverse=True)


def history_of(slot: Slot, writes: Sequence[Write]) -> SlotHistory:
    """Split the writes to one slot. O(n) for each origin that wrote to it.

    A replica has always seen its own earlier commits, so of each origin all but the last are superseded by the next;
    only the last ones need to be held against the others' contexts.
    """
    if len(writes) == 1:
        return SlotHistory(slot, writes, writes, {})
    by_origin: dict[str, list[Write]] = defaultdict(list)
    for w in writes:
        by_origin[w.dot.origin].append(w)
    superseded: dict[Dot, Write] = {}
    maximal: list[Write] = []
    for own in by_origin.values():
        own.sort(key=lambda w: w.dot.seq)
        for earlier, later in itertools.pairwise(own):
            superseded[earlier.dot] = later
    for origin, own in by_origin.items():
        last = own[-1]
        witness = next((w for other, theirs in by_origin.items() if other != origin for w in theirs if w.saw(last.dot)), None)
        if witness is None:
            maximal.append(last)
        else:
            superseded[last.dot] = witness
    return SlotHistory(slot, writes, maximal, superseded)


def histories(writes: Iterable[Write]) -> dict[Slot, SlotHistory]:
    """The history of every slot that was written."""
    by_slot: dict[Slot, list[Write]] = defaultdict(list)
    for w in writes:
        by_slot[w.slot].append(w)
    return {slot: history_of(slot, group) for slot, group in by_slot.items()}


class _Judge:
    """One region's reads against the histories."""

    def __init__(self, observation: Observation, accounted: Check, readings: Check, winners: Check, counters: Check) -> None:
        self.seen = observation
        self.accounted, self.readings, self.winners, self.counters = accounted, readings, winners, counters
        self.journaled = {(entry.slot, dot) for entry in observation.journal for dot in entry.losers}
        self.fates: dict[Fate, int] = dict.fromkeys(Fate, 0)
        self.by_type: dict[str, dict[Fate, int]] = defaultdict(lambda: dict.fromkeys(Fate, 0))

    def _settle(self, write: Write, fate: Fate, reason: str = "") -> None:
        self.fates[fate] += 1
        self.by_type[write.slot.type][fate] += 1
        if fate is Fate.LOST:
            self.accounted.fail(f"{describe(write)} is lost in {self.seen.region}: {reason}")

    def _settle_unseen(self, history: SlotHistory, write: Write, reason: str) -> None:
        """A write that no read shows: superseded, in the journal, or lost."""
        if write.dot in history.superseded:
            self._settle(write, Fate.SUPERSEDED)
        elif (history.slot, write.dot) in self.journaled:
            self._settle(write, Fate.JOURNAL)
        else:
            self._settle(write, Fate.LOST, f"{reason}, no later write had seen it, and the journal does not name it")

    def judge(self, history: SlotHistory) -> None:
        """Classify every write to one slot."""
        match history.slot.type:
            case "register":
                self._register(history)
            case "map":
                self._field(history)
            case "set":
                self._element(history)
            case "counter":
                self._counter(history)
            case other:
                raise AssertionError(f"a write to an unknown type {other!r}")

    def _register(self, history: SlotHistory) -> None:
        key = history.slot.key
        shown = self.seen.registers.get(key, ())
        must = history.sets()
        region = self.seen.region
        for entry in shown:
            if entry.dot in history.superseded:
                self.readings.fail(f"{key} in {region} still shows {entry.dot}, which {describe(history.superseded[entry.dot])} had seen")
            elif all(w.dot != entry.dot for w in history.writes):
                self.readings.fail(f"{key} in {region} shows {entry.dot}, which nobody was told was written")
        if shown and must and shown[0].dot != must[0].dot:
            self.winners.fail(f"{key} in {region} reads {shown[0].dot}; the greatest stamp is that of {describe(must[0])}")
        if shown and must and not _same(shown[0].value, must[0].op.value):
            self.winners.fail(f"{key} in {region} reads another value than {describe(must[0])} wrote")
        if (key in self.seen.values) != bool(shown) or (shown and not _same(self.seen.values.get(key), shown[0].value)):
            self.readings.fail(f"{key} in {region}: get and siblings disagree")
        for w in history.writes:
            if w.op.kind is Kind.REMOVE:
                visible = not shown and w.dot not in history.superseded
            else:
                visible = bool(shown) and shown[0].dot == w.dot and _same(shown[0].value, w.op.value)
            if visible:
                self._settle(w, Fate.VISIBLE)
            else:
                self._settle_unseen(history, w, "no read shows it")

    def _field(self, history: SlotHistory) -> None:
        key, name = history.slot.key, history.slot.subkey
        fields = self.seen.maps.get(key, {})
        present = name in fields
        value = fields.get(name or "")
        must = history.sets()
        if present and not must:
            self.readings.fail(f"{history.slot} in {self.seen.region} is there although every put was seen by a later write")
        elif present and not _same(value, must[0].op.value):
            self.winners.fail(f"{history.slot} in {self.seen.region} reads {short(value)}; the rule names {describe(must[0])}")
        for w in history.writes:
            alive = w.dot not in history.superseded
            if alive and (not present if w.op.kind is Kind.REMOVE else present and _same(value, w.op.value)):
                self._settle(w, Fate.VISIBLE)
            else:
                self._settle_unseen(history, w, "no read shows it")

    def _element(self, history: SlotHistory) -> None:
        present = history.slot.subkey in self.seen.sets.get(history.slot.key, frozenset())
        if present and not history.sets():
            self.readings.fail(f"{history.slot} in {self.seen.region} is there although every add was seen by a later write")
        for w in history.writes:
            if w.dot not in history.superseded and present == (w.op.kind is Kind.SET):
                self._settle(w, Fate.VISIBLE)
            elif w.op.kind is Kind.SET and w.dot not in history.superseded:
                # An add loses to nothing that has not seen it, so no journal can excuse its absence.
                self._settle(w, Fate.LOST, "the element is absent and no later write had seen the add")
            else:
                self._settle_unseen(history, w, "the element is there")

    def _counter(self, history: SlotHistory) -> None:
        key = history.slot.key
        must = sum(int(w.op.value) for w in history.writes)
        shown = self.seen.counters.get(key, 0)
        if shown != must:
            self.counters.fail(f"{key} in {self.seen.region} is {shown}; the acknowledged increments sum to {must}")
        for w in history.writes:
            if shown == must:
                self._settle(w, Fate.VISIBLE)
            else:
                self._settle(w, Fate.LOST, f"the counter reads {shown}, not {must}")


def verify(writes: Sequence[Write], observations: Sequence[Observation]) -> Verdict:
    """Judge what clients read, in regions at rest, against every acknowledged write. Pure; O(writes × regions)."""
    slots = histories(writes)
    must_cover = EMPTY_VV
    for w in writes:
        must_cover = must_cover.advance(w.dot.origin, w.dot.seq)
    accounted = Check("every acknowledged write is accounted for")
    adds_up = Check("the counts add up")
    covered = Check("every acknowledged commit is in every region")
    vectors = Check("the version vectors are equal")
    digests = Check("the digests are equal")
    counters = Check("counters equal the sum of acknowledged increments")
    winners = Check("the winner is the one the rule names")
    readings = Check("no read shows what was superseded or never written")
    alike = Check("all regions answer every read alike")
    fates: dict[str, Mapping[Fate, int]] = {}
    by_type: dict[str, Mapping[str, Mapping[Fate, int]]] = {}
    for seen in observations:
        judge = _Judge(seen, accounted, readings, winners, counters)
        for history in slots.values():
            judge.judge(history)
        _check_strangers(slots, seen, readings)
        fates[seen.region], by_type[seen.region] = judge.fates, judge.by_type
        total = sum(judge.fates.values())
        if total != len(writes):
            adds_up.fail(f"{seen.region}: {total} classified of {len(writes)} acknowledged")
        if not seen.vv.covers(must_cover):
            covered.fail(f"{seen.region} lacks {must_cover.missing_from(seen.vv)} acknowledged commits: it has {seen.vv}")
    if not observations:
        adds_up.fail("no region was observed")
    for seen in observations[1:]:
        _compare(observations[0], seen, vectors, digests, alike)
    sums = {slot.key: sum(int(w.op.value) for w in h.writes) for slot, h in slots.items() if slot.type == "counter"}
    regions = len(observations)
    accounted.detail = f"{len(writes):,} writes in each of {regions} regions"
    adds_up.detail = "visible + superseded + journal = acknowledged, in each region"
    covered.detail = f"{sum(must_cover.values()):,} commits of {len(must_cover)} origins"
    vectors.detail = str(observations[0].vv) if observations else ""
    digests.detail = ", ".join(sorted({o.digest for o in observations}))
    counters.detail = f"{len(sums):,} counters, sum {sum(sums.values()):,}"
    winners.detail = "greatest (stamp, origin) among writes that had not seen each other"
    readings.detail = f"{len(slots):,} slots"
    alike.detail = "siblings, members, fields, counters"
    return Verdict(
        checks=(accounted, adds_up, covered, vectors, digests, counters, winners, readings, alike),
        fates=fates,
        fates_by_type=by_type,
        acknowledged=len(writes),
        counters=sums,
    )


def _check_strangers(slots: Mapping[Slot, SlotHistory], seen: Observation, readings: Check) -> None:
    """Whatever a read shows must be in a slot that somebody wrote."""
    shown: list[Slot] = [Slot(key, "register") for key in {**seen.registers, **seen.values}]
    shown += [Slot(key, "counter") for key in seen.counters]
    shown += [Slot(key, "set", e) for key, members in seen.sets.items() for e in members]
    shown += [Slot(key, "map", f) for key, fields in seen.maps.items() for f in fields]
    for slot in shown:
        if slot not in slots:
            readings.fail(f"{slot} in {seen.region} was never written")


def _compare(a: Observation, b: Observation, vectors: Check, digests: Check, alike: Check) -> None:
    if a.vv != b.vv:
        vectors.fail(f"{a.region} has {a.vv}, {b.region} has {b.vv}")
    if a.digest != b.digest:
        digests.fail(f"{a.region} has {a.digest}, {b.region} has {b.digest}")
    for what, one, other in (
        ("siblings", _dots(a), _dots(b)),
        ("values", a.values, b.values),
        ("members", a.sets, b.sets),
        ("fields", a.maps, b.maps),
        ("counters", a.counters, b.counters),
    ):
        if one != other:
            keys = [k for k in sorted(one.keys() | other.keys()) if one.get(k) != other.get(k)]
            alike.fail(f"{a.region} and {b.region} give other {what} for {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''}")


def _dots(seen: Observation) -> dict[str, frozenset[Dot]]:
    return {key: frozenset(e.dot for e in entries) for key, entries in seen.registers.items() if entries}


def _same(a: Value, b: Value) -> bool:
    """Whether two values are stored alike: 1, 1.0 and True differ. Several times cheaper than comparing canonical bytes."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict) and all(type(k) is str for k in a):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    return bool(a == b) if isinstance(a, str) else encode_value(a) == encode_value(b)


# -- the proof that the cut was real --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CutProof:
    """What shows that a region was really cut off, taken before the heal.

    Attributes:
        check: fails unless each region lacks commits of the other side, digests differ and reads differ.
        missing: (lacks, of) → acknowledged commits made in `of` during the cut that `lacks` has not got.
        differing: keys whose reads differ, with each region's reading.
    """

    check: Check
    missing: Mapping[tuple[str, str], int]
    differing: Mapping[str, Mapping[str, str]]


def prove_cut(cut: str, phase: str, writes: Sequence[Write], observations: Sequence[Observation]) -> CutProof:
    """Whether region `cut` and each other region really differ. The observations may hold a few keys only."""
    check = Check("the regions differed before the heal")
    last: dict[str, VersionVector] = {}
    for w in writes:
        if w.phase == phase:
            last[w.region] = last.get(w.region, EMPTY_VV).advance(w.dot.origin, w.dot.seq)
    by_region = {o.region: o for o in observations}
    inside = by_region[cut]
    missing: dict[tuple[str, str], int] = {}
    for outside in observations:
        if outside.region == cut:
            continue
        for lacks, of in ((inside, outside), (outside, inside)):
            missing[lacks.region, of.region] = last.get(of.region, EMPTY_VV).missing_from(lacks.vv)
            if missing[lacks.region, of.region] == 0:
                check.fail(f"{lacks.region} has all that {of.region} wrote during the cut")
        if inside.digest == outside.digest:
            check.fail(f"{cut} and {outside.region} have the same digest {inside.digest}")
    differing = _readings(observations)
    for outside in observations:
        if outside.region != cut and all(row[cut] == row[outside.region] for row in differing.values()):
            check.fail(f"no key reads differently in {cut} and {outside.region}")
    commits = sum(missing.values())
    check.detail = f"{len(differing)} keys read differently; {commits:,} acknowledged commits were missing across the cut"
    return CutProof(check, missing, differing)


def _readings(observations: Sequence[Observation]) -> dict[str, dict[str, str]]:
    """Key → region → what a read gives there in words, for the keys whose reads differ: only what differs is told."""
    out: dict[str, dict[str, str]] = {}
    regions = [o.region for o in observations]
    for key in sorted({k for o in observations for k in (*o.values, *o.sets, *o.maps, *o.counters)}):
        told: dict[str, str] = {}
        records = [o.maps.get(key, o.values.get(key)) for o in observations]
        members = [o.sets.get(key) for o in observations]
        if any(m is not None for m in members):
            union = frozenset[str]().union(*(m or () for m in members))
            common = union.intersection(*(m or () for m in members))
            for region, m in zip(regions, members, strict=True):
                extra, lacking = (m or frozenset()) - common, union - (m or frozenset())
                told[region] = f"{len(m or ()):,} members" + _listed(", with ", extra) + _listed(", without ", lacking)
        elif any(isinstance(r, Mapping) for r in records):
            fields = sorted({f for r in records if isinstance(r, Mapping) for f in r})
            differ = [f for f in fields if len({encode_value(r.get(f)) for r in records if isinstance(r, Mapping)}) > 1] or [
                "name",
                "edited",
            ]
            for region, r in zip(regions, records, strict=True):
                told[region] = short(", ".join(f"{f}: {r[f]}" for f in differ if f in r)) if isinstance(r, Mapping) else "absent"
        else:
            told = {o.region: short(str(o.values.get(key, o.counters.get(key, "absent")))) for o in observations}
        if len(set(told.values())) > 1:
            out[key] = told
    return out


def _listed(word: str, elements: frozenset[str]) -> str:
    return word + short(", ".join(sorted(elements)), 80) if elements else ""


# -- words ----------------------------------------------------------------------------------------------------


def short(value: Value, width: int = 160) -> str:
    """A value in words, cut at `width` characters; of an airport's record only what the demo edits."""
    if isinstance(value, Mapping):
        told = {k: value[k] for k in ("name", "elevation", "edited") if k in value} or value
        text = ", ".join(f"{k}: {v}" for k, v in told.items())
    else:
        text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def describe(write: Write) -> str:
    """A write in words: what, where, by whom."""
    op = write.op
    match op.slot.type, op.kind:
        case "counter", _:
            what = f"increment of {op.slot.key} by {op.value}"
        case "set", Kind.SET:
            what = f"add of {op.slot.subkey} to {op.slot.key}"
        case "set", _:
            what = f"removal of {op.slot.subkey} from {op.slot.key}"
        case _, Kind.SET:
            what = f"put of {op.slot}"
        case _:
            what = f"removal of {op.slot}"
    return f"{what} by {write.region} ({write.dot})"
