"""Dots and version vectors: the order, the bounds, and the bytes."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from crdtkv.core.causality import (
    EMPTY_VV,
    SEQ_MAX,
    Dot,
    Origin,
    VersionVector,
    check_origin,
    check_region,
    generation_of,
    make_origin,
    region_of,
)
from crdtkv.errors import ConfigError, CorruptionError
from tests.frames import AP, EU, US

SEQS = (0, 1, 2)
VECTORS = [VersionVector({US: a, EU: b, AP: c}) for a, b, c in itertools.product(SEQS, repeat=3)]


def commits(vv: VersionVector) -> set[tuple[Origin, int]]:
    """What a vector means: the set of commits that it names."""
    return {(o, n) for o, last in vv.items() for n in range(1, last + 1)}


def test_each_operation_is_the_one_on_sets_of_commits() -> None:
    for a, b in itertools.product(VECTORS, repeat=2):
        x, y = commits(a), commits(b)
        assert commits(a.join(b)) == x | y and commits(a.meet(b)) == x & y
        assert (a <= b) == (x <= y) and (a < b) == (x < y) and (a >= b) == (x >= y) and (a > b) == (x > y)
        assert (a == b) == (x == y) and (a != b or hash(a) == hash(b))
        assert a.concurrent(b) == (not x <= y and not y <= x)
        assert a.missing_from(b) == len(x - y)
        assert a.covers(b) == (y <= x)


def test_zero_is_never_stored_and_absent_counts_as_zero() -> None:
    vv = VersionVector({US: 0, EU: 2})
    assert list(vv) == [EU] and US not in vv and vv.seq(US) == 0 and len(vv) == 1
    assert vv == VersionVector({EU: 2}) and VersionVector({US: 0}) == EMPTY_VV
    assert vv.covers(Dot(EU, 2)) and not vv.covers((EU, 3)) and not vv.covers((US, 1)) and vv.covers((US, 0))
    assert vv.meet(VersionVector({US: 5})) == EMPTY_VV and len(vv.meet(VersionVector({US: 5}))) == 0


def test_advance_never_goes_back_and_leaves_the_original() -> None:
    vv = VersionVector({US: 5})
    assert vv.advance(US, 3) is vv and vv.advance(US, 5) is vv
    assert vv.advance(US, 6).seq(US) == 6 and vv.advance(EU, 1).seq(EU) == 1
    assert vv == VersionVector({US: 5})
    assert vv.without(US) == EMPTY_VV and vv.without(EU) is vv


def test_iteration_text_and_bytes_do_not_depend_on_the_order_of_insertion() -> None:
    forward = EMPTY_VV.advance(US, 1).advance(EU, 2).advance(AP, 3)
    back = EMPTY_VV.advance(AP, 3).advance(EU, 2).advance(US, 1)
    assert list(forward) == list(back) == sorted([AP, EU, US])
    assert forward.to_bytes() == back.to_bytes() and str(forward) == str(back) and hash(forward) == hash(back)
    assert VersionVector.from_bytes(forward.to_bytes()) == back
    assert VersionVector.from_bytes(EMPTY_VV.to_bytes()) == EMPTY_VV


@pytest.mark.parametrize(
    "flat",
    [
        None,
        {},
        "us",
        [US],
        [US, 0],
        [US, -1],
        [US, SEQ_MAX + 1],
        [US, True],
        [US, 1.0],
        [US, "1"],
        [US, 1, US, 2],
        [US, 1, EU, 1],
        ["us", 1],
        ["us@1", 1],
        [b"us@1-00000000", 1],
        ["US@1-00000000", 1],
        ["us@1-00000000\n", 1],
        [1, 1],
    ],
    ids=repr,
)
def test_what_is_no_vector_is_refused(flat: object) -> None:
    with pytest.raises(CorruptionError):
        VersionVector.from_flat(flat)
    with pytest.raises(CorruptionError):
        VersionVector.from_bytes(msgspec.msgpack.encode(flat))


def test_bytes_of_a_vector_have_one_form() -> None:
    """A seq written longer than need be was taken: two texts for one vector, though equal vectors have equal bytes."""
    data = VersionVector({US: 5}).to_bytes()
    for bad in (data[:-1] + b"\xcd\x00\x05", data + b"\x00", data[:-1], b"", b"\xc1", b"\x91" * 5000):
        with pytest.raises(CorruptionError):
            VersionVector.from_bytes(bad)


def test_origins() -> None:
    origin = make_origin("us-east_1", 255, 2**40 + 7)
    assert origin == "us-east_1@ff-00000007"
    assert region_of(origin) == "us-east_1" and generation_of(origin) == 255 and check_origin(origin) == origin
    assert str(Dot(origin, 3)) == "us-east_1@ff-00000007:3"
    for bad in ("", "_a", "-a", "A", "a b", "a" * 33, "é", "a\n", None, 3):
        with pytest.raises(ConfigError, match="not a valid name"):
            check_region(bad)


def test_a_vector_that_came_lately_is_the_same_object_and_what_merely_equals_it_is_refused() -> None:
    flat = [EU, 1, US, 2]
    known = VersionVector.from_flat(flat)
    assert VersionVector.from_flat(list(flat)) is known
    for impostor in ([EU, True, US, 2], [EU, 1.0, US, 2], [EU, 1, US, [2]], [[EU], 1, US, 2], [US, 2, EU, 1]):
        with pytest.raises(CorruptionError):
            VersionVector.from_flat(impostor)
    many = VersionVector({make_origin("us", 1, n): 1 for n in range(17)})
    assert VersionVector.from_flat(many.flat()) == many and VersionVector.from_flat(many.flat()) is not VersionVector.from_flat(many.flat())
