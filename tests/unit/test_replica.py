"""The replica as a state machine: which frames apply, which are held, and that a refused one changes nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from crdtkv.core.causality import Origin, VersionVector, make_origin
from crdtkv.core.clock import HybridClock, ms_of, stamp
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import HASH_INTERVAL, DeltaKind, Frame
from crdtkv.core.journal import Journal, JournalCounts, Update
from crdtkv.core.removals import Removal, Removals
from crdtkv.core.replica import Outcome, Replica
from crdtkv.core.settings import CoreSettings
from crdtkv.core.state import DictBase, State
from crdtkv.core.types.counter import Run, join_runs
from crdtkv.errors import CorruptionError, WrongClusterError
from tests.frames import AP, EU, US
from tests.stores import Clock, store_at


def replica(origin: Origin = US, base: DictBase | None = None, **settings: int) -> Replica:
    return Replica(
        DictBase() if base is None else base, origin=origin, cluster="test", clock=HybridClock(Clock()), settings=CoreSettings(**settings)
    )


def put(at: Replica, key: str = "k", value: object = 1, request_id: bytes | None = None) -> Frame:
    at.commit([[DeltaKind.REGISTER_PUT, key, encode_value(value)]], request_id)
    frame = at.close_frame()
    assert frame is not None
    return frame


def chain() -> tuple[Frame, Frame, Frame]:
    """us writes, eu has seen it and writes, ap has seen both and writes."""
    us, eu, ap = replica(US), replica(EU), replica(AP)
    first = put(us)
    eu.receive(first)
    second = put(eu)
    ap.receive(first)
    ap.receive(second)
    return first, second, put(ap)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_frames_wait_for_what_they_rest_on(order: tuple[int, ...]) -> None:
    frames = chain()
    at = replica(Origin("br@1-00000001"))
    applied: list[Frame] = []
    for index in order:
        outcome, done = at.receive(frames[index])
        assert outcome is (Outcome.APPLIED if done else Outcome.HELD)
        applied += done
        assert len(applied) + at.held[0] == order.index(index) + 1
    assert applied == list(frames) and at.held == (0, 0) and len(at.held_needs()) == 0
    before = at.digest()
    for frame in frames:
        assert at.receive(frame) == (Outcome.DUPLICATE, [])
    assert at.digest() == before and at.position == 3


def test_what_is_held_says_what_it_needs_and_has_a_bound() -> None:
    first, second, third = chain()
    at = replica(Origin("br@1-00000001"), held_frames_max=1)
    assert at.receive(third)[0] is Outcome.HELD and at.receive(third)[0] is Outcome.HELD
    assert at.held_needs() == VersionVector({US: 1, EU: 1})
    assert at.receive(second)[0] is Outcome.DROPPED and at.held == (1, third.size)
    at.receive(first)
    at.receive(second)
    assert at.vv() == VersionVector({US: 1, EU: 1, AP: 1})
    none = replica(Origin("br@1-00000001"), held_bytes_max=0)
    assert none.receive(third)[0] is Outcome.DROPPED and none.held == (0, 0)
    other = replica(Origin("br@1-00000001"))
    other.receive(third)
    other.drop_held()
    assert other.held == (0, 0) and len(other.held_needs()) == 0


def test_a_broken_held_frame_is_dropped_and_those_before_it_stay() -> None:
    first, second, _ = chain()
    broken = Frame.build("test", 0, EU, 1, 5, VersionVector({US: 1}), b"", [[0, None, [0, "k", b"\xc1"]]])
    at = replica(AP)
    at.receive(broken)
    applied: list[Frame] = []
    with pytest.raises(CorruptionError):
        at.receive(first, applied)
    assert applied == [first] and at.vv() == VersionVector({US: 1}) and at.held == (0, 0)
    assert at.receive(second)[0] is Outcome.APPLIED


class Place(int):
    """A seq that counts how often it is compared."""

    compared = 0

    def _count(name: str) -> Any:  # type: ignore[misc]
        def compare(self: Place, other: object) -> Any:
            Place.compared += 1
            return getattr(int, name)(self, other)

        return compare

    __lt__, __le__, __gt__, __ge__, __eq__ = map(_count, ("__lt__", "__le__", "__gt__", "__ge__", "__eq__"))  # type: ignore[assignment]
    __hash__ = int.__hash__


def test_a_frame_that_applies_costs_no_look_at_each_of_the_thousands_that_are_held() -> None:
    # Every applied frame went through all that were held: 20,000 frames with 4,000 held took seconds, the lock held.
    held_max = 2000
    us, eu, at = replica(US), replica(EU), replica(AP)
    first = put(us)
    eu.receive(first)
    waiting = [put(eu, f"k{i}") for i in range(held_max)]
    for frame in waiting:
        frame.first_seq = Place(frame.first_seq)
        assert at.receive(frame)[0] is Outcome.HELD
        frame.first_seq = int(frame.first_seq)  # what it is listed by still counts
    others = [put(replica(make_origin("br", 1, n))) for n in range(500)]
    Place.compared = 0
    for frame in others:
        at.receive(frame)
    assert Place.compared == 0  # nobody waited for these
    outcome, applied = at.receive(first)
    assert outcome is Outcome.APPLIED and applied == [first, *waiting] and at.held == (0, 0)
    assert Place.compared < 40 * held_max


def test_held_frames_go_on_after_a_broken_one_among_them() -> None:
    first, second, third = chain()
    broken = Frame.build("test", 0, Origin("aa@1-00000001"), 1, 5, VersionVector({US: 1}), b"", [[0, None, [0, "k", b"\xc1"]]])
    at = replica(Origin("br@1-00000001"))
    for frame in (third, second, broken):
        assert at.receive(frame)[0] is Outcome.HELD
    with pytest.raises(CorruptionError) as refused:
        at.receive(first)
    assert refused.value.details == {"origin": broken.origin, "seq": 1}  # not the one that made it ready
    applied: list[Frame] = []
    at.apply_held(applied)
    assert applied == [second, third] and at.held == (0, 0)


def test_stamps_of_one_origin_that_do_not_increase_are_refused() -> None:
    us, at = replica(US), replica(EU)
    first = put(us)
    at.receive(first)
    row = [[0, None, [0, "k", b"\x01"]]]
    for stamped in (first.hlc, first.hlc - 1):
        with pytest.raises(CorruptionError, match="stamp") as refused:
            at.receive(Frame.build("test", 0, US, 2, stamped, VersionVector(), first.hash, row))
        assert refused.value.details == {"origin": US, "seq": 2}
    assert at.seq(US) == 1
    later = Frame.build("test", 0, US, 2, first.hlc + 1, VersionVector(), first.hash, row)
    base = DictBase()
    other = replica(AP, base)
    other.receive(first)
    other.fold()
    again = replica(AP, base)  # what was the last stamp is known after a restart too
    with pytest.raises(CorruptionError, match="stamp"):
        again.receive(Frame.build("test", 0, US, 2, first.hlc, VersionVector(), first.hash, row))
    assert again.receive(later)[0] is at.receive(later)[0] is Outcome.APPLIED


def test_a_clock_set_back_before_a_restart_makes_no_history_that_others_refuse() -> None:
    base, clock, at = DictBase(), Clock(), replica(EU)
    before = Replica(base, origin=US, cluster="test", clock=HybridClock(clock))
    frames = [put(before)]
    before.fold()
    clock.ms -= 60_000
    after = Replica(base, origin=US, cluster="test", clock=HybridClock(clock))
    frames.append(put(after))
    for frame in frames:
        assert at.receive(frame)[0] is Outcome.APPLIED


def test_forks_and_other_clusters_change_nothing() -> None:
    us, eu = replica(US), replica(EU)
    eu.receive(put(us))
    before = eu.vv(), eu.digest(), eu.position, eu.last_hashes()
    row = [[0, None, [0, "k", b"\x01"]]]
    follows_another = Frame.build("test", 0, US, 2, stamp(2**40), VersionVector(), b"x" * 16, row)
    overlaps = Frame.build("test", 0, US, 1, 1, VersionVector(), b"", row * 2)
    for frame in (follows_another, overlaps):
        with pytest.raises(CorruptionError, match="fork") as refused:
            eu.receive(frame)
        assert refused.value.details["fork"] is True
    for cluster, shard in (("other", 0), ("test", 1)):
        with pytest.raises(WrongClusterError):
            eu.receive(Frame.build(cluster, shard, AP, 1, 1, VersionVector(), b"", row))
    assert (eu.vv(), eu.digest(), eu.position, eu.last_hashes()) == before


def test_what_was_folded_is_read_again_as_it_was() -> None:
    base = DictBase()
    at = replica(US, base)
    eu = replica(EU)
    eu.clock.absorb(stamp(Clock().ms + 5000))
    at.receive(put(eu, "remote"))
    for i in range(HASH_INTERVAL + 2):
        put(at, f"k{i}", i, b"request %d" % i)
    at.fold()
    again = replica(Origin("us@9-99999999"), base)
    assert again.origin == US and again.vv() == at.vv() and again.digest() == at.digest() and again.position == at.position
    assert again.last_hashes() == at.last_hashes() and again.clock.mark == at.clock.mark
    assert again.hash_at(US, HASH_INTERVAL) == at.hash_at(US, HASH_INTERVAL) is not None
    assert again.hash_at(US, 5) is None and again.request(b"request 7") == at.request(b"request 7") is not None
    assert put(again).previous == at.last_hash(US)[1]


def test_stamps_of_peers_far_ahead_are_applied_and_absorbed_up_to_the_cap() -> None:
    at = replica(EU)
    far = stamp(Clock().ms + 10**9)
    at.receive(Frame.build("test", 0, US, 1, far, VersionVector(), b"", [[0, None, [0, "k", b"\x01"]]]))
    assert at.clock.mark == stamp(Clock().ms + at.settings.max_skew_ms)
    assert put(at).hlc > stamp(Clock().ms + at.settings.max_skew_ms)


def test_runs_join_by_the_greater_seq_of_each_pair() -> None:
    ahead, behind = Run(2, 9, 0, 0), Run(10, 5, 3, 4)
    assert join_runs(ahead, behind) == join_runs(behind, ahead) == Run(2, 9, 3, 4)
    assert join_runs(ahead, ahead) == ahead and Run(2, 9, 3, 4).amount == -1
    assert not Run(5, 4, 5, 4).live and Run(5, 4, 5, 4).amount == 0


# -- the bookkeeping beside the state ---------------------------------------------------------------------------


def test_the_journal_is_bounded_by_count_bytes_and_age_and_its_counts_survive() -> None:
    def journal(count_max: int = 100, bytes_max: int = 10**6) -> Journal:
        return Journal(
            State(DictBase(), lambda *_: True), JournalCounts(), log_time=lambda: log_time, count_max=count_max, bytes_max=bytes_max
        )

    log_time = 0

    def fill(into: Journal) -> Journal:
        for n in range(10):
            won, lost = Update(US, n + 1, stamp(n), "put", b"\x01"), Update(EU, 1, 1, "put", b"\x02")
            into.record(b"k", 1, b"", "rule", won, [lost], stamp(n))
        return into

    few = fill(journal(count_max=3))
    assert [r.number for r in few.records()] == [7, 8, 9] and len(few) == 3 and few.total == 10 and few.counts.by_rule == {"rule": 10}
    size = fill(journal()).counts.size_bytes
    small = fill(journal(bytes_max=size // 2))
    assert small.counts.size_bytes <= size // 2 and 0 < len(small) < 10
    assert len(fill(journal(bytes_max=1))) == 1, "the newest record is kept, however large"
    old = fill(journal())
    log_time = stamp(10)
    assert old.trim(6, wall_ms=10**9) == 4 and [r.number for r in old.records()] == [4, 5, 6, 7, 8, 9]
    assert old.trim(6, wall_ms=10**9) == 0 and [r.number for r in old.records(since=8)] == [8, 9]
    fill(old)
    assert {r.hlc for r in old.records()} == {*(stamp(n) for n in range(4, 10)), stamp(10)}, "what is recorded now is of now"
    log_time = stamp(10**9)
    assert old.trim(6, wall_ms=10) == 0, "a stamp from the future makes nothing old"
    assert old.trim(6, wall_ms=10**9) == 16 and len(old) == 0 and old.counts.size_bytes == 0 and old.total == 20


def test_what_a_region_wrote_long_ago_is_a_conflict_of_now_when_it_comes_back() -> None:
    """The journal's age counted from the stamp of the commit that met another: housekeeping forgot such conflicts at once."""
    day_ms = 86_400_000
    clock = Clock()
    with store_at(clock, "us") as us, store_at(clock, "eu") as away:
        us.put("k", "here")
        away.put("k", "away")
        clock.ms += 8 * day_ms
        us.put("other", 1)
        us.merge(away.delta_since(us.vv()))
        us.maintain()
        (conflict,) = us.conflicts()
        assert {conflict.winner.value, conflict.losers[0].value} == {"here", "away"}
        assert ms_of(conflict.hlc) == clock.ms
        clock.ms += 8 * day_ms
        us.maintain()
        assert us.conflicts(), "nothing was written since: by the log, no time has passed"
        us.put("other", 2)
        us.maintain()
        assert us.conflicts() == [] and us.status().conflicts == 1


def test_the_index_of_removals_forgets_the_oldest_and_the_stable() -> None:
    base = DictBase()
    state = State(base, lambda *_: True)
    removals = Removals(state, 3)
    for n in range(1, 6):
        removals.note(b"d%d" % n, Removal(US, n, n, "delete"), {US: n - 1})
    assert len(removals) == 3 and removals.get(b"d1") == () and removals.get(b"d5")[0].seq == 5
    assert removals.evicted == 2
    removals.note(b"d5", Removal(EU, 1, 9, "delete"), {})
    assert {r.origin for r in removals.get(b"d5")} == {US, EU}, "concurrent removals stand side by side"
    removals.note(b"d5", Removal(AP, 1, 10, "delete"), {US: 5, EU: 1})
    assert [r.origin for r in removals.get(b"d5")] == [AP], "one that has seen them takes their place"
    assert removals.drop_stable(VersionVector({US: 3})) == 1 and len(removals) == 2
    assert removals.evicted == 2, "what is stable is not missed"
    state.begin_fold(lambda _: {})
    state.end_fold()
    again = Removals(State(base, lambda *_: True), 3)
    assert len(again) == 2 and again.get(b"d5") == removals.get(b"d5")
