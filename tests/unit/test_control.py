"""Closings and members as bytes and records: frames that older readers refuse by name, doors that stay shut, sessions that end."""

from __future__ import annotations

import pytest

import crdtkv
from crdtkv.core import frame as frames
from crdtkv.core.causality import VersionVector, make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.control import NOTHING_AGREED, Agreed, Close, Member, MemberState, close_delta, member_delta
from crdtkv.core.frame import DeltaKind, Frame
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.replica import Outcome, Replica
from crdtkv.core.state import DictBase
from crdtkv.core.transfer import NO_LINK, Arrival, encode_header, next_link
from crdtkv.errors import CorruptionError, IncompatibleFormatError, RegionRemovedError, RegionUnavailableError, SessionLostError

EU1, EU2, US = make_origin("eu", 1, 1), make_origin("eu", 2, 2), make_origin("us", 1, 3)


def replica(origin: str) -> Replica:
    return Replica(DictBase(), origin=origin, cluster="test", clock=HybridClock(lambda: 1_000, max_skew_ms=0))  # type: ignore[arg-type]


def put(one: Replica, value: bytes = b"\x01") -> Frame:
    one.commit([[DeltaKind.REGISTER_PUT, "k", value]])
    frame = one.close_frame()
    assert frame is not None
    return frame


def control(one: Replica, *deltas: list[object]) -> Frame:
    one.commit_control(list(deltas))
    frame = one.close_frame()
    assert frame is not None
    return Frame.decode(frame.data)


def test_an_older_reader_refuses_a_closing_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    us, eu = replica(US), replica(EU1)
    us.receive(put(eu))
    data = control(us, close_delta(EU1, 1)).data
    monkeypatch.setattr(frames, "KNOWN_FEATURES", frozenset[str]())
    with pytest.raises(IncompatibleFormatError, match="needs the feature 'control'"):
        Frame.decode(data)


def test_a_closing_in_a_frame_that_does_not_say_so_is_refused() -> None:
    frame = Frame.build("test", 0, US, 1, 1, VersionVector({EU1: 1}), b"", [[0, None, close_delta(EU1, 1)]])
    with pytest.raises(CorruptionError, match="unknown kind of delta"):
        Frame.decode(frame.data).rows()


def test_a_closing_that_its_writer_had_not_seen_the_end_of_is_refused_and_changes_nothing() -> None:
    us, eu = replica(US), replica(EU1)
    us.receive(put(eu))
    template = frames.FrameTemplate("test", 0, make_origin("ap", 1, 0), VersionVector(), control=True)
    bad = template.build(1, 1, b"", [[0, None, close_delta(EU1, 1)]])
    with pytest.raises(CorruptionError, match="which its writer had not applied"):
        us.receive(Frame.decode(bad.data))
    assert us.vv() == VersionVector({EU1: 1}) and not us.control


def test_what_comes_after_the_end_waits_and_duplicates_change_nothing() -> None:
    us, eu = replica(US), replica(EU1)
    first = put(eu)
    us.receive(first)
    later = put(eu, b"\x02")
    control(us, close_delta(EU1, 1))
    assert us.control.show(us.vv()) == VersionVector({US: 1})
    assert us.receive(first)[0] is Outcome.DUPLICATE
    assert us.receive(later)[0] is Outcome.HELD
    us.raise_limit(EU1, 2)  # a member had it after all
    applied: list[Frame] = []
    us.apply_held(applied)
    assert applied == [later] and us.control.show(us.vv()) == VersionVector({US: 1, EU1: 2})


def test_a_member_record_is_the_greatest_by_epoch_stamp_and_origin() -> None:
    us, eu = replica(US), replica(EU1)
    old = control(us, member_delta("ap", MemberState.ACTIVE, "127.0.0.1:1", 1))
    new = control(eu, member_delta("ap", MemberState.REMOVED, "127.0.0.1:1", 2))
    us.receive(new)
    eu.receive(old)
    assert us.control.members == eu.control.members and us.control.is_removed("ap")


@pytest.mark.parametrize(
    "delta",
    [[DeltaKind.CLOSE, EU1, 0], [DeltaKind.CLOSE, "nobody", 1], [DeltaKind.MEMBER, "Eu", "active", "", 1],
     [DeltaKind.MEMBER, "eu", "gone", "", 1], [DeltaKind.MEMBER, "eu", "active", "", 0], [DeltaKind.MEMBER, "eu", "active", ""]],
)  # fmt: skip
def test_malformed_control_deltas_are_refused(delta: list[object]) -> None:
    data = frames.FrameTemplate("test", 0, US, VersionVector(), control=True).build(1, 1, b"", [[0, None, delta]]).data
    with pytest.raises(CorruptionError):
        Frame.decode(data).rows()


def test_a_snapshot_carries_what_is_agreed_and_refuses_what_its_vector_does_not_cover() -> None:
    us, eu = replica(US), replica(EU1)
    us.receive(put(eu))
    control(us, close_delta(EU1, 1), member_delta("eu", MemberState.REMOVED, "", 1))
    snapshot = snapshot_of(us)
    assert Snapshot.from_bytes(snapshot.to_bytes()) == snapshot
    agreed = Agreed({EU1: (Close(1, US, 9),)}, {"eu": Member("eu", "removed", "", 1, 1, US, 2)})
    broken = Snapshot(snapshot.cluster, 0, snapshot.vv, snapshot.hashes, snapshot.slots, agreed)
    with pytest.raises(CorruptionError, match="not covered"):
        Snapshot.from_bytes(broken.to_bytes())


def test_no_snapshot_was_taken_in_a_cluster_that_had_recorded_a_member_or_closed_an_origin() -> None:
    """Its header could not be read: of a union of Raw and None, msgspec takes the None only. Who needed one asked for ever."""
    us = replica(US)
    us.receive(put(replica(EU1)))
    control(us, close_delta(EU1, 1), member_delta("eu", MemberState.REMOVED, "", 1))
    header = encode_header(us, us.vv())
    arrival = Arrival()
    arrival.take(header, next_link(NO_LINK, header))
    assert arrival.incoming is not None and arrival.incoming.agreed == us.control.agreed() != NOTHING_AGREED


def test_a_drained_and_a_removed_region_take_no_writes() -> None:
    us = replica(US)
    control(us, member_delta("us", MemberState.DRAINING, "", 1))
    with pytest.raises(RegionUnavailableError, match="is being drained"):
        put(us)
    us.refuse_writes("us was removed")  # say its peers, who end its links with the removal: their commits never reach it
    with pytest.raises(RegionRemovedError, match="us was removed"):
        put(us)
    us.refuse_writes(None)  # it was added again, and others talk to it
    with pytest.raises(RegionUnavailableError, match="is being drained"):
        put(us)
    eu = replica(EU1)
    us.receive(control(eu, member_delta("us", MemberState.REMOVED, "", 2)))
    with pytest.raises(RegionRemovedError, match="crdtkv recover export"):
        put(us)
    us.receive(control(eu, member_delta("us", MemberState.ACTIVE, "", 3)))
    put(us)


def test_a_region_recorded_a_member_after_it_had_told_that_it_is_drained_and_the_record_went_with_it() -> None:
    """All others had told that they have what it had, so it was removed a moment later. That it stays after all, it may still record."""
    us, other, taken_back = replica(US), member_delta("ap", MemberState.ACTIVE, "", 2), member_delta("us", MemberState.ACTIVE, "", 2)
    control(us, member_delta("us", MemberState.DRAINING, "", 1))
    for changes in ([other], [member_delta("us", MemberState.REMOVED, "", 2)], [other, member_delta("us", MemberState.DRAINING, "", 2)]):
        before = us.vv()
        with pytest.raises(RegionUnavailableError, match="no changes of regions; use another region"):
            control(us, *changes)
        assert us.vv() == before and not us.making and us.control.members.keys() == {"us"}
    control(us, taken_back, other)
    put(us)
    us.receive(control(replica(EU1), member_delta("us", MemberState.REMOVED, "", 3)))
    with pytest.raises(RegionRemovedError, match="crdtkv recover export"):
        control(us, member_delta("us", MemberState.ACTIVE, "", 4))


def test_commits_of_a_closed_origin_enter_by_no_door_and_sessions_that_saw_them_end() -> None:
    us, eu = crdtkv.open(region="us"), crdtkv.open(region="eu")
    eu.put("k", 1)
    us.merge(eu.delta_since(us.vv()))
    before = us.delta_since(None)
    us._machine.commit_control([close_delta(eu.vv().__iter__().__next__(), 1)])
    lost = eu.put("k", 2)
    with pytest.raises(RegionRemovedError, match="crdtkv recover export"):
        us.merge(eu.delta_since(None))
    assert list(us.vv()) == [us.origin] and us.get("k") == 1
    assert us.merge(before).applied == 0
    with pytest.raises(SessionLostError, match="closed that origin at 1"):
        us._machine.control.check_session(eu.vv())
    assert lost is not None
    eu2 = crdtkv.open(region="eu")
    eu2.merge(us.delta_since(None))
    assert eu2.get("k") == 1 and eu2.vv() == us.vv() and eu2.digest() == us.digest()


def test_what_is_being_closed_is_not_merged_meanwhile_and_the_error_says_to_try_again() -> None:
    us, eu = crdtkv.open(region="us"), crdtkv.open(region="eu")
    eu.put("k", 1)
    us.merge(eu.delta_since(None))
    us._machine.freeze([eu.origin])
    eu.put("k", 2)
    with pytest.raises(RegionUnavailableError, match="is being closed") as caught:
        us.merge(eu.delta_since(us.vv()))
    assert caught.value.retryable and us.get("k") == 1
    us._machine.raise_limits({eu.origin: 2})
    assert us.merge(eu.delta_since(us.vv())).applied == 1 and us.get("k") == 2


def test_what_is_remembered_of_vectors_ends_when_another_origin_is_closed() -> None:
    us, ap, of_eu = replica(US), replica(make_origin("ap", 1, 4)), [put(replica(EU1)), put(replica(EU2))]
    for frame in of_eu:
        us.receive(frame)
        ap.receive(frame)
    closings = [control(us, close_delta(EU1, 1)), control(us, close_delta(EU2, 1))]
    told = VersionVector({US: 2})  # all that `us` shows of what it has
    ap.receive(closings[0])
    before = ap.vv()
    assert ap.control.complete(told) == VersionVector({EU1: 1, US: 2}) and ap.control.show(before) == VersionVector({EU2: 1, US: 1})
    assert ap.control.complete(told) is ap.control.complete(told) and ap.control.show(before) is ap.control.show(before)
    ap.receive(closings[1])
    assert ap.control.complete(told) == VersionVector({EU1: 1, EU2: 1, US: 2}) and ap.control.show(ap.vv()) == told
    assert ap.control.show(before) == VersionVector({EU2: 1, US: 1})  # by what it covers itself, which is one closing
    many = [VersionVector({US: seq}) for seq in range(3, 103)]
    assert [ap.control.complete(vv).seq(EU2) for vv in many] == [1] * len(many)
