"""Frames: built bytes decode to the same, and whatever breaks a rule is refused before anything is applied."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crdtkv.core.causality import EMPTY_VV, SEQ_MAX, VersionVector
from crdtkv.core.clock import STAMP_MAX
from crdtkv.core.codec import SlotType, encode_value
from crdtkv.core.frame import DeltaKind, Frame, hash_of
from crdtkv.errors import CorruptionError, IncompatibleFormatError
from tests.frames import AP, EU, US

K = DeltaKind
V = encode_value(1)
HASH = b"h" * 16


def header(**changed: Any) -> list[Any]:
    fields: dict[str, Any] = {
        "requires": [],
        "cluster": "test",
        "shard": 0,
        "origin": US,
        "first_seq": 1,
        "count": 1,
        "hlc": 5,
        "context": [],
        "previous": b"",
        "extensions": None,
    }
    return list({**fields, **changed}.values())


def wire(head: Any, rows: Any) -> bytes:
    return b"\xc1\x01" + msgspec.msgpack.encode([head, rows])


def row(*deltas: Any, seq: int = 1) -> bytes:
    return wire(header(first_seq=seq, previous=HASH if seq > 1 else b""), [[0, None, *deltas]])


PUT = [K.REGISTER_PUT, "k", V]


def test_round_trip() -> None:
    context = VersionVector({EU: 3, AP: 9})
    frame = Frame.build("test", 7, US, 5, 100, context, HASH, [[0, None, PUT], [3, {"r": b"id"}, [K.SET_ADD, "s", V, 99]]])
    again = Frame.decode(frame.data)
    assert again == frame and hash(again) == hash(frame) and again.hash == frame.hash == hash_of(frame.data)
    for name in ("cluster", "shard", "origin", "first_seq", "last_seq", "hlc", "context", "previous", "size", "count"):
        assert getattr(again, name) == getattr(frame, name)
    assert list(again.commits()) == list(frame.commits())
    assert list(again.commits()) == [(5, 100, None, [PUT]), (6, 103, {"r": b"id"}, [[K.SET_ADD, "s", V, 99]])]


def test_what_a_later_version_adds_is_passed_over() -> None:
    later = wire([*header(extensions={"x": 1}), "new"], [[0, {"new": [1]}, PUT]])
    frame = Frame.decode(later)
    assert list(frame.commits()) == [(1, 5, {"new": [1]}, [PUT])] and frame.data == later


def test_what_must_be_known_is_refused_by_name() -> None:
    with pytest.raises(IncompatibleFormatError, match="'compression'"):
        Frame.decode(wire(header(requires=["compression"]), []))
    with pytest.raises(IncompatibleFormatError, match="version 2"):
        Frame.decode(b"\xc1\x02" + wire(header(), [])[2:])


@pytest.mark.parametrize(
    "changed",
    [
        {"cluster": 1},
        {"shard": -1},
        {"origin": "us"},
        {"origin": "us@1-0000000g"},
        {"first_seq": 0},
        {"count": 0},
        {"first_seq": SEQ_MAX, "count": 2, "previous": HASH},
        {"hlc": -1},
        {"hlc": STAMP_MAX + 1},
        {"context": [US, 1]},
        {"context": [EU, 0]},
        {"context": [EU, 1, AP, 1]},
        {"context": [EU]},
        {"previous": HASH},
        {"first_seq": 2, "previous": b""},
        {"first_seq": 2, "previous": HASH + b"x"},
    ],
    ids=repr,
)
def test_headers_that_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError):
        Frame.decode(wire(header(**changed), [[0, None, PUT]]))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[0, None]],
        [[0, None, PUT]] * 2,
        [[-1, None, PUT]],
        [[STAMP_MAX, None, PUT]],
        [[True, None, PUT]],
        [[0, [], PUT]],
        [[0, None, []]],
        [[0, None, [K.REGISTER_PUT, "k"]]],
        [[0, None, [K.REGISTER_PUT, "", V]]],
        [[0, None, [K.REGISTER_PUT, "x" * 1025, V]]],
        [[0, None, [K.REGISTER_PUT, "é" * 513, V]]],
        [[0, None, [K.REGISTER_PUT, b"k", V]]],
        [[0, None, [K.REGISTER_PUT, "k", "text"]]],
        [[0, None, [K.REGISTER_PUT, "k", b"\xcc\x01"]]],
        [[0, None, [K.REGISTER_PUT, "k", V, 0]]],
        [[0, None, [K.REGISTER_PUT, "k", V, None]]],
        [[0, None, [K.REGISTER_PUT, "k", V, 5, 5]]],
        [[0, None, [K.REGISTER_DELETE, "k", V]]],
        [[0, None, [K.SET_ADD, "k"]]],
        [[0, None, [K.SET_REMOVE, "k", V, 1]]],
        [[0, None, [K.SET_CLEAR, "k", V]]],
        [[0, None, [K.COUNTER_ADD, "k", 2, 1]]],
        [[0, None, [K.COUNTER_ADD, "k", 0, 1]]],
        [[0, None, [K.COUNTER_ADD, "k", 1, 1.5]]],
        [[0, None, [K.COUNTER_ADD, "k", 1]]],
        [[0, None, [K.COUNTER_RESET, "k", []]]],
        [[0, None, [K.COUNTER_RESET, "k", [[EU, 2, 1, 1]]]]],
        [[0, None, [K.COUNTER_RESET, "k", [[US, 1, 1, 1], [EU, 1, 1, 1]]]]],
        [[0, None, [K.COUNTER_RESET, "k", [[EU, 1, 1, 1]] * 2]]],
        [[0, None, [K.MAP_PUT, "k", b"f", V]]],
        [[0, None, [K.MAP_PUT, "k", "f"]]],
        [[0, None, [K.EXPIRE, "k", SlotType.COUNTER, V, [[US, 1]]]]],
        [[0, None, [K.EXPIRE, "k", 9, V, [[US, 1]]]]],
        [[0, None, [K.EXPIRE, "k", SlotType.REGISTER, V, [[US, 1]]]]],
        [[0, None, [K.EXPIRE, "k", SlotType.MAP, V, [[US, 1]]]]],
        [[0, None, [K.EXPIRE, "k", SlotType.SET, V, []]]],
        [[0, None, [K.EXPIRE, "k", SlotType.SET, V, [[US, 0]]]]],
        [[0, None, [11, "k"]]],
        [[0, None, [[], "k"]]],
        [[0, None, [None, "k"]]],
    ],
    ids=lambda r: repr(r)[:60],
)
def test_rows_that_are_refused(rows: list[Any]) -> None:
    frame = Frame.decode(wire(header(), rows))
    with pytest.raises(CorruptionError):
        frame.rows()


FIELD = encode_value("f")


@pytest.mark.parametrize(
    "deltas",
    [
        [PUT, PUT],
        [PUT, [K.REGISTER_DELETE, "k"]],
        [[K.SET_ADD, "k", V], [K.SET_REMOVE, "k", V]],
        [[K.SET_ADD, "k", V], [K.SET_CLEAR, "k"]],
        [[K.SET_CLEAR, "k"], [K.SET_CLEAR, "k"]],
        [[K.MAP_DELETE, "k", "f"], [K.MAP_CLEAR, "k"]],
        [[K.MAP_PUT, "k", "f", V], [K.EXPIRE, "k", SlotType.MAP, FIELD, [[EU, 1]]]],
        [[K.EXPIRE, "k", SlotType.SET, V, [[EU, 1]]], [K.SET_ADD, "k", V]],
        [[K.COUNTER_ADD, "k", 1, 1], [K.COUNTER_ADD, "k", 1, 2]],
        [[K.COUNTER_ADD, "k", 1, 1], [K.COUNTER_RESET, "k", [[EU, 1, 1, 1]]]],
    ],
    ids=lambda d: repr(d)[:70],
)
def test_a_commit_is_its_net_effect(deltas: list[Any]) -> None:
    with pytest.raises(CorruptionError, match=r"two deltas|a clear after"):
        Frame.decode(row(*deltas)).rows()


def test_one_commit_may_touch_a_key_in_every_type() -> None:
    """The clear of a map was named "clear" among its slots, as a field may be: a batch that cleared a map and put a field of
    that name made a frame that peers refused, and that its own store could not replay.
    """
    deltas = [
        PUT,
        [K.SET_CLEAR, "k"],
        [K.SET_ADD, "k", V],
        [K.SET_REMOVE, "k", encode_value("clear")],
        [K.MAP_CLEAR, "k"],
        [K.MAP_PUT, "k", "clear", V],
        [K.COUNTER_RESET, "k", [[EU, 1, 1, 1]]],
        [K.COUNTER_ADD, "k", 1, -(2**63)],
    ]
    assert next(Frame.decode(row(*deltas)).commits())[3] == deltas


def test_every_cut_and_every_tail_is_refused() -> None:
    data = row(PUT)
    for cut in range(len(data)):
        with pytest.raises(CorruptionError):
            Frame.decode(data[:cut]).rows()
    with pytest.raises(CorruptionError):
        Frame.decode(data + b"\x00")
    with pytest.raises(CorruptionError):
        Frame.decode(data + data)


def test_which_frames_cross_a_multiple_of_the_interval() -> None:
    def crosses(first: int, count: int) -> bool:
        previous = HASH if first > 1 else b""
        return Frame.build("test", 0, US, first, 1, EMPTY_VV, previous, [[0, None, PUT]] * count).crosses_interval()

    assert not crosses(1, 1023) and crosses(1, 1024) and crosses(1024, 1) and not crosses(1025, 1023) and crosses(1000, 100)


def test_stamps_within_a_frame_strictly_increase() -> None:
    def rows(*offsets: int) -> Frame:
        return Frame.decode(wire(header(count=len(offsets)), [[offset, None, [K.REGISTER_PUT, "k", V]] for offset in offsets]))

    assert [hlc for _, hlc, _, _ in rows(0, 1, 7).commits()] == [5, 6, 12]
    for offsets in ((0, 0), (3, 2)):
        with pytest.raises(CorruptionError, match="stamps do not increase") as refused:
            rows(*offsets).rows()
        assert refused.value.details == {"origin": US, "seq": 1}
