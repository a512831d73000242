"""Every conflict rule as DESIGN §1 states it: both regions agree on the state, and each journals what it met."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from crdtkv import Store, WrongTypeError
from crdtkv.core.journal import RULE_ADD_WINS, RULE_ELEMENT, RULE_INCREMENT_SURVIVES, RULE_LWW, RULE_WRITE_SURVIVES
from tests.stores import Clock, store_at, sync


class Pair:
    """Two regions, each with a clock of its own."""

    def __init__(self) -> None:
        self.us_clock, self.eu_clock = Clock(), Clock()
        self.us, self.eu = store_at(self.us_clock), store_at(self.eu_clock, "eu")

    def rules(self, key: str = "k") -> tuple[list[str], list[str]]:
        return [c.rule for c in self.us.conflicts(key)], [c.rule for c in self.eu.conflicts(key)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    with made.us, made.eu:
        yield made


def test_causality_decides_before_clocks(pair: Pair) -> None:
    pair.us_clock.ms += 50_000
    pair.us["k"] = "early, by a fast clock"
    sync(pair.us, pair.eu)
    pair.eu["k"] = "later, by a slow clock"
    sync(pair.us, pair.eu)
    assert pair.us["k"] == pair.eu["k"] == "later, by a slow clock"
    assert len(pair.us.siblings("k")) == 1 and pair.rules() == ([], [])


def test_concurrent_writes_leave_siblings_until_a_write_has_seen_them(pair: Pair) -> None:
    pair.us["k"] = "us"
    pair.eu_clock.ms += 1
    pair.eu["k"] = "eu"
    sync(pair.us, pair.eu)
    assert pair.us["k"] == pair.eu["k"] == "eu"
    for store in (pair.us, pair.eu):
        assert [s.value for s in store.siblings("k")] == ["eu", "us"]
        (met,) = store.conflicts("k")
        assert met.rule == RULE_LWW and met.winner.value == "eu" and [w.value for w in met.losers] == ["us"]
    pair.us["k"] = "both seen"
    sync(pair.us, pair.eu)
    assert [s.value for s in pair.eu.siblings("k")] == ["both seen"] and pair.rules() == ([RULE_LWW], [RULE_LWW])


def test_equal_stamps_are_decided_by_the_greater_origin(pair: Pair) -> None:
    pair.us["k"] = "us"
    pair.eu["k"] = "eu"
    sync(pair.us, pair.eu)
    assert pair.us["k"] == pair.eu["k"] == "us"  # "us@…" > "eu@…"


def test_a_removal_that_saw_only_the_winner_leaves_the_loser(pair: Pair) -> None:
    with store_at(Clock(), "ap") as ap:
        pair.us["k"] = "loser"
        pair.eu_clock.ms += 1
        pair.eu["k"] = "winner"
        ap.merge(pair.eu.delta_since(ap.vv()))
        ap.delete("k")
        sync(pair.us, pair.eu, ap)
        assert [s["k"] for s in (pair.us, pair.eu, ap)] == ["loser"] * 3


REMOVALS: list[tuple[str, Callable[[Store], object], Callable[[Store], object], Callable[[Store], object], str]] = [
    ("register", lambda s: s.put("k", 0), lambda s: s.put("k", 1), lambda s: s.delete("k"), RULE_WRITE_SURVIVES),
    ("element", lambda s: s.set("k").add("e"), lambda s: s.set("k").add("e"), lambda s: s.set("k").discard("e"), RULE_ADD_WINS),
    ("set", lambda s: s.set("k").add("e"), lambda s: s.set("k").add("e"), lambda s: s.set("k").clear(), RULE_ADD_WINS),
    ("set key", lambda s: s.set("k").add("e"), lambda s: s.set("k").add("e", "f"), lambda s: s.delete("k"), RULE_ADD_WINS),
    ("field", lambda s: s.map("k").put("f", 0), lambda s: s.map("k").put("f", 1), lambda s: s.map("k").delete("f"), RULE_WRITE_SURVIVES),
    ("map", lambda s: s.map("k").put("f", 0), lambda s: s.map("k").put("f", 1), lambda s: s.map("k").clear(), RULE_WRITE_SURVIVES),
    (
        "counter",
        lambda s: s.counter("k").increment(5),
        lambda s: s.counter("k").increment(2),
        lambda s: s.counter("k").reset(),
        RULE_INCREMENT_SURVIVES,
    ),
]


@pytest.mark.parametrize(("_name", "first", "write", "remove", "rule"), REMOVALS, ids=[r[0] for r in REMOVALS])
@pytest.mark.parametrize("writer_is_ahead", [False, True])
def test_a_write_survives_a_removal_that_had_not_seen_it_whatever_the_clocks_say(
    pair: Pair,
    _name: str,
    first: Callable[[Store], object],
    write: Callable[[Store], object],
    remove: Callable[[Store], object],
    rule: str,
    writer_is_ahead: bool,
) -> None:
    """On the writer's side the removal arrives second, on the remover's side the write does: both journals have it."""
    first(pair.us)
    sync(pair.us, pair.eu)
    (pair.us_clock if writer_is_ahead else pair.eu_clock).ms += 10_000
    write(pair.us)
    remove(pair.eu)
    assert "k" not in pair.eu
    sync(pair.us, pair.eu)
    assert "k" in pair.us and "k" in pair.eu
    for rules in pair.rules():
        assert rules and set(rules) == {rule}
    for store in (pair.us, pair.eu):
        met = store.conflicts("k")[-1]
        assert met.winner.origin == pair.us.origin and [w.origin for w in met.losers] == [pair.eu.origin]


@pytest.mark.parametrize(("_name", "first", "write", "remove", "rule"), REMOVALS, ids=[r[0] for r in REMOVALS])
def test_a_removal_that_has_seen_everything_removes_it_in_silence(
    pair: Pair,
    _name: str,
    first: Callable[[Store], object],
    write: Callable[[Store], object],
    remove: Callable[[Store], object],
    rule: str,
) -> None:
    first(pair.us)
    write(pair.us)
    sync(pair.us, pair.eu)
    remove(pair.eu)
    sync(pair.us, pair.eu)
    assert rule
    assert pair.rules() == ([], [])
    write(pair.us)
    sync(pair.us, pair.eu)
    assert "k" in pair.eu and pair.rules() == ([], [])  # a write that has seen the removal meets nothing


def test_adds_of_one_element_lose_nothing_unless_their_expiries_differ(pair: Pair) -> None:
    pair.us.set("k").add("e")
    pair.eu.set("k").add("e")
    sync(pair.us, pair.eu)
    assert pair.rules() == ([], []) and pair.us.set("k").members() == ["e"]
    pair.us.set("k").add("t")
    pair.eu.set("k").add("t", ttl=5)
    sync(pair.us, pair.eu)
    assert pair.rules() == ([RULE_ELEMENT], [RULE_ELEMENT])


def test_fields_and_elements_apart_do_not_meet(pair: Pair) -> None:
    pair.us.map("k").put("a", 1)
    pair.eu.map("k").put("b", 2)
    sync(pair.us, pair.eu)
    pair.us.map("k").delete("a")
    pair.eu.map("k").put("b", 3)
    sync(pair.us, pair.eu)
    assert pair.us.map("k").items() == [("b", 3)] and pair.rules() == ([], [])


def test_two_concurrent_resets_subtract_once(pair: Pair) -> None:
    pair.us.counter("k").increment(7)
    pair.eu.counter("k").decrement(2)
    sync(pair.us, pair.eu)
    pair.us.counter("k").reset()
    pair.eu.counter("k").reset()
    pair.eu.counter("k").increment(3)
    sync(pair.us, pair.eu)
    assert pair.us.counter("k").value == pair.eu.counter("k").value == 3


def test_decrements_outlive_a_join(pair: Pair) -> None:
    pair.us.counter("k").increment(10)
    sync(pair.us, pair.eu)
    pair.us.counter("k").decrement(8)
    sync(pair.us, pair.eu)
    assert pair.eu.counter("k").value == 2


def test_keys_of_two_types_are_read_by_type_and_deleted_as_one(pair: Pair) -> None:
    pair.us["k"] = 1
    pair.eu.set("k").add("e")
    sync(pair.us, pair.eu)
    for store in (pair.us, pair.eu):
        assert store.types("k") == ["register", "set"]
        assert store["k"] == 1 and store.set("k").members() == ["e"]
        with pytest.raises(WrongTypeError, match="a register and a set"):
            store.counter("k").increment()
        with pytest.raises(WrongTypeError):
            store.map("k").put("f", 1)
    pair.us["k"] = 2
    pair.eu.set("k").add("f")
    sync(pair.us, pair.eu)
    pair.eu.delete("k")
    sync(pair.us, pair.eu)
    assert "k" not in pair.us and pair.us.types("k") == []


# -- expiry ---------------------------------------------------------------------------------------------------


def later(pair: Pair, ms: int) -> None:
    pair.us_clock.ms += ms
    pair.eu_clock.ms += ms


def test_an_expired_winner_shows_no_beaten_sibling(pair: Pair) -> None:
    pair.us["k"] = "beaten"
    later(pair, 0)
    pair.eu_clock.ms += 1
    pair.eu.put("k", "wins for five seconds", ttl=5)
    sync(pair.us, pair.eu)
    later(pair, 6_000)
    for store in (pair.us, pair.eu):
        assert "k" not in store and store.get("k") is None and store.siblings("k") == []
    pair.eu.maintain()
    sync(pair.us, pair.eu)
    assert "k" not in pair.us and list(pair.us._replica.state.scan(b"d", b"e")) == []


def test_a_concurrent_refresh_survives_the_removal_of_what_expired(pair: Pair) -> None:
    pair.us.put("k", 1, ttl=5)
    sync(pair.us, pair.eu)
    pair.us_clock.ms += 6_000
    pair.us.maintain()  # us names the dot that it removes …
    pair.eu.expire("k", 100)  # … and eu, whose clock is behind, refreshes it meanwhile
    sync(pair.us, pair.eu)
    assert pair.us["k"] == pair.eu["k"] == 1


def test_an_expiry_that_both_sides_issue_removes_once(pair: Pair) -> None:
    pair.us.set("k").add("e", ttl=5)
    pair.us.set("k").add("stays")
    sync(pair.us, pair.eu)
    later(pair, 1_000_000)
    pair.us.maintain()
    pair.eu.maintain()
    sync(pair.us, pair.eu)
    assert pair.us.set("k").members() == ["stays"] and len(pair.eu.set("k")) == 1


def test_only_the_writer_s_region_removes_until_the_grace_has_passed(pair: Pair) -> None:
    pair.us.put("k", 1, ttl=5)
    sync(pair.us, pair.eu)
    later(pair, 6_000)
    before = pair.eu.vv()
    pair.eu.maintain()
    assert pair.eu.vv() == before and "k" not in pair.eu
    later(pair, 60_000)
    pair.eu.maintain()
    assert pair.eu.vv() != before
    sync(pair.us, pair.eu)


def test_a_sibling_that_expired_while_beaten_is_removed_once_it_is_alone(pair: Pair) -> None:
    """It was taken off the list of expiries while another write hid it. A removal that had seen only that other left it in
    the state for ever, hidden.
    """
    pair.us.put("k", "beaten", ttl=5)
    pair.eu_clock.ms += 1
    pair.eu["k"] = "wins"
    pair.us.merge(pair.eu.delta_since(pair.us.vv()))
    later(pair, 400_000)
    pair.us.maintain()
    pair.eu.delete("k")
    pair.us.merge(pair.eu.delta_since(pair.us.vv()))
    assert "k" not in pair.us
    pair.us.maintain()
    assert list(pair.us._replica.state.scan(b"d", b"e")) == []
    pair.us.maintain()  # the list itself is tidied the next time
    assert list(pair.us._replica.state.scan(b"t", b"u")) == []
    sync(pair.us, pair.eu)


def test_a_ttl_beyond_all_numbers_is_refused_like_any_other(pair: Pair) -> None:
    """An integer too large for a float came out as OverflowError."""
    with pytest.raises(ValueError, match="ttl: must be"):
        pair.us.put("k", 1, ttl=10**400)
    assert "k" not in pair.us
