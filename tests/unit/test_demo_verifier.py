"""The demo's verifier: pure, so every defect it must find is made by hand. It must name what is wrong, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from crdtkv.core.causality import EMPTY_VV, Dot, Origin, VersionVector
from crdtkv.demo.records import Entry, JournalEntry, Kind, Observation, Op, Slot, Value, Write
from crdtkv.demo.verifier import Fate, Verdict, describe, histories, prove_cut, verify

US, EU, AP = (Origin(f"{r}@1-00000000") for r in ("us", "eu", "ap"))
REG, SET, MAP, CTR = Slot("r", "register"), Slot("s", "set", "e"), Slot("m", "map", "f"), Slot("c", "counter")


def write(slot: Slot, kind: Kind, value: Value, origin: Origin, seq: int, hlc: int, seen: Mapping[Origin, int] | None = None) -> Write:
    """A write whose author had applied `seen` of the others."""
    vv = VersionVector({**(seen or {}), origin: seq})
    return Write(origin.partition("@")[0], "edits", Op(kind, slot, value), Dot(origin, seq), hlc, vv, 0.0)


# Two concurrent puts, the second one of us having seen neither; an add against a remove; a field; three increments.
W_OLD = write(REG, Kind.SET, "old", US, 1, 10)
W_US = write(REG, Kind.SET, "from us", US, 2, 20)
W_EU = write(REG, Kind.SET, "from eu", EU, 1, 30, {US: 1})
ADD_1 = write(SET, Kind.SET, None, US, 3, 40)
ADD_2 = write(SET, Kind.SET, None, US, 4, 50)
REMOVE = write(SET, Kind.REMOVE, None, EU, 2, 60, {US: 3})
FIELD_1 = write(MAP, Kind.SET, "open", EU, 3, 70)
FIELD_2 = write(MAP, Kind.SET, "closed", US, 5, 80, {EU: 2})
INC = [write(CTR, Kind.INCREMENT, n, o, s, 90) for n, o, s in ((5, US, 6), (-2, EU, 4), (7, AP, 1))]
WRITES = [W_OLD, W_US, W_EU, ADD_1, ADD_2, REMOVE, FIELD_1, FIELD_2, *INC]
VV = VersionVector({US: 6, EU: 4, AP: 1})
JOURNAL = (
    JournalEntry(REG, "lww", W_EU.dot, (W_US.dot,)),
    JournalEntry(SET, "add wins", ADD_2.dot, (REMOVE.dot,)),
    JournalEntry(MAP, "lww", FIELD_2.dot, (FIELD_1.dot,)),
)


def sound(region: str) -> Observation:
    """What a correct region shows of `WRITES`."""
    return Observation(
        region=region,
        vv=VV,
        digest="d" * 32,
        registers={"r": [Entry(W_EU.dot, 30, "from eu"), Entry(W_US.dot, 20, "from us")]},
        values={"r": "from eu"},
        sets={"s": frozenset({"e"})},
        maps={"m": {"f": "closed"}},
        counters={"c": 10},
        journal=JOURNAL,
    )


def judge(**changes: object) -> Verdict:
    """us and ap are sound, eu is changed."""
    return verify(WRITES, [sound("us"), dataclasses.replace(sound("eu"), **changes), sound("ap")])  # type: ignore[arg-type]


def failing(verdict: Verdict) -> dict[str, list[str]]:
    return {c.name: c.violations for c in verdict.checks if not c.ok}


def test_a_converged_cluster_passes_and_the_classes_add_up() -> None:
    verdict = judge()
    assert verdict.ok and not verdict.violations()
    for region in ("us", "eu", "ap"):
        # W_EU, ADD_2, FIELD_2 and three increments; W_OLD and ADD_1; W_US, REMOVE, FIELD_1.
        assert verdict.fates[region] == {Fate.VISIBLE: 6, Fate.SUPERSEDED: 2, Fate.JOURNAL: 3, Fate.LOST: 0}
        assert sum(verdict.fates[region].values()) == verdict.acknowledged == len(WRITES)
        assert sum(n for fates in verdict.fates_by_type[region].values() for n in fates.values()) == len(WRITES)
    assert verdict.counters == {"c": 10}


def test_history_splits_by_what_was_seen_not_by_stamp() -> None:
    late_stamp_but_seen = write(REG, Kind.SET, "a", EU, 1, 999)
    early_stamp_that_saw_it = write(REG, Kind.SET, "b", US, 1, 1, {EU: 1})
    history = histories([late_stamp_but_seen, early_stamp_that_saw_it])[REG]
    assert history.maximal == [early_stamp_that_saw_it]
    assert history.superseded == {late_stamp_but_seen.dot: early_stamp_that_saw_it}


def test_a_commit_dropped_from_one_copy_is_named() -> None:
    verdict = judge(registers={"r": [Entry(W_US.dot, 20, "from us")]}, values={"r": "from us"})
    found = failing(verdict)
    lost = found["every acknowledged write is accounted for"]
    assert len(lost) == 1 and describe(W_EU) in lost[0] and "lost in eu" in lost[0]
    assert "the winner is the one the rule names" in found and "all regions answer every read alike" in found
    assert verdict.fates["eu"][Fate.LOST] == 1 and sum(verdict.fates["eu"].values()) == len(WRITES)


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"sets": {}}, "every acknowledged write is accounted for", "add of e to s by us"),
        ({"maps": {}}, "every acknowledged write is accounted for", "put of m.f by us"),
        ({"maps": {"m": {"f": "open"}}}, "the winner is the one the rule names", "m.f in eu reads open"),
        (
            {"counters": {"c": 12}},
            "counters equal the sum of acknowledged increments",
            "c in eu is 12; the acknowledged increments sum to 10",
        ),
        ({"counters": {}}, "counters equal the sum of acknowledged increments", "c in eu is 0"),
        ({"digest": "0" * 32}, "the digests are equal", "eu has " + "0" * 32),
        ({"vv": VV.advance(US, 7)}, "the version vectors are equal", "eu has"),
        ({"vv": VersionVector({US: 6, EU: 4})}, "every acknowledged commit is in every region", "eu lacks 1 acknowledged commits"),
        ({"journal": JOURNAL[1:]}, "every acknowledged write is accounted for", "put of r by us (us@1-00000000:2) is lost in eu"),
        ({"journal": (JOURNAL[0], JOURNAL[2])}, "every acknowledged write is accounted for", "removal of e from s by eu"),
        ({"values": {}}, "no read shows what was superseded or never written", "get and siblings disagree"),
        (
            {"values": {"r": "from eu", "stranger": 1}},
            "no read shows what was superseded or never written",
            "stranger in eu was never written",
        ),
        ({"sets": {"s": frozenset({"e", "x"})}}, "no read shows what was superseded or never written", "s ∋ x in eu was never written"),
    ],
)
def test_each_defect_is_found_and_named(changes: dict[str, object], name: str, words: str) -> None:
    verdict = judge(**changes)
    assert not verdict.ok
    assert any(words in v for v in failing(verdict)[name]), failing(verdict)


def test_only_the_tampered_check_fails() -> None:
    assert list(failing(judge(digest="0" * 32))) == ["the digests are equal"]


def test_a_superseded_write_that_shows_again_is_found() -> None:
    entries = [*sound("eu").registers["r"], Entry(W_OLD.dot, 10, "old")]
    found = failing(judge(registers={"r": entries}))
    assert any("still shows us@1-00000000:1" in v for v in found["no read shows what was superseded or never written"])


def test_a_sibling_that_nobody_was_told_of_is_found() -> None:
    entries = [*sound("eu").registers["r"], Entry(Dot(AP, 9), 5, "?")]
    found = failing(judge(registers={"r": entries}))
    assert any("which nobody was told" in v for v in found["no read shows what was superseded or never written"])


def test_a_value_of_another_type_is_another_value() -> None:
    writes = [write(REG, Kind.SET, 1, US, 1, 1)]
    seen = Observation("us", VersionVector({US: 1}), "d", {"r": [Entry(Dot(US, 1), 1, True)]}, {"r": True})
    assert not verify(writes, [seen]).ok


def test_a_journal_excuses_no_lost_add() -> None:
    """An add loses to nothing that has not seen it: a journal that says so is wrong."""
    writes = [write(SET, Kind.SET, None, US, 1, 1), write(SET, Kind.REMOVE, None, EU, 1, 2)]
    entry = JournalEntry(SET, "remove wins", Dot(EU, 1), (Dot(US, 1),))
    verdict = verify(writes, [Observation("us", VersionVector({US: 1, EU: 1}), "d", journal=[entry])])
    assert verdict.fates["us"][Fate.LOST] == 1


def test_a_removal_is_visible_superseded_or_in_the_journal() -> None:
    put = write(REG, Kind.SET, "a", US, 1, 1)
    removed = write(REG, Kind.REMOVE, None, EU, 1, 2, {US: 1})
    gone = Observation("us", VersionVector({US: 1, EU: 1}), "d")
    assert verify([put, removed], [gone]).fates["us"] == {Fate.VISIBLE: 1, Fate.SUPERSEDED: 1, Fate.JOURNAL: 0, Fate.LOST: 0}
    again = write(REG, Kind.SET, "b", US, 2, 3, {EU: 1})
    back = Observation("us", VersionVector({US: 2, EU: 1}), "d", {"r": [Entry(Dot(US, 2), 3, "b")]}, {"r": "b"})
    assert verify([put, removed, again], [back]).fates["us"] == {Fate.VISIBLE: 1, Fate.SUPERSEDED: 2, Fate.JOURNAL: 0, Fate.LOST: 0}
    unseen = write(REG, Kind.SET, "b", US, 2, 3)
    silent = verify([put, removed, unseen], [back])
    assert silent.fates["us"][Fate.LOST] == 1 and describe(removed) in silent.violations()[0]


def test_no_region_observed_is_no_proof() -> None:
    assert not verify(WRITES, []).ok


# -- the cut --------------------------------------------------------------------------------------------------


def cut_case(**inside: object) -> tuple[list[Write], list[Observation]]:
    writes = [
        dataclasses.replace(write(REG, Kind.SET, "us", US, 1, 1), phase="cut"),
        dataclasses.replace(write(REG, Kind.SET, "ap", AP, 1, 2), phase="cut"),
    ]
    outside = Observation("us", VersionVector({US: 1}), "a" * 32, values={"r": "us"}, sets={"s": frozenset("xy")})
    ap = Observation("ap", VersionVector({AP: 1}), "b" * 32, values={"r": "ap"}, sets={"s": frozenset("xyz")})
    return writes, [outside, dataclasses.replace(ap, **inside)]  # type: ignore[arg-type]


def test_a_real_cut_is_proved_and_shown() -> None:
    proof = prove_cut("ap", "cut", *cut_case())
    assert proof.check.ok
    assert proof.missing == {("ap", "us"): 1, ("us", "ap"): 1}
    assert proof.differing == {"r": {"us": "us", "ap": "ap"}, "s": {"us": "2 members, without z", "ap": "3 members, with z"}}


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ({"vv": VersionVector({AP: 1, US: 1})}, "ap has all that us wrote during the cut"),
        ({"digest": "a" * 32}, "the same digest"),
        ({"values": {"r": "us"}, "sets": {"s": frozenset("xy")}}, "no key reads differently in ap and us"),
    ],
)
def test_a_cut_that_leaks_is_found(inside: dict[str, object], words: str) -> None:
    proof = prove_cut("ap", "cut", *cut_case(**inside))
    assert not proof.check.ok and any(words in v for v in proof.check.violations)


def test_nothing_written_during_the_cut_proves_nothing() -> None:
    _, seen = cut_case()
    assert not prove_cut("ap", "cut", [], seen).check.ok
    assert EMPTY_VV.missing_from(VV) == 0
