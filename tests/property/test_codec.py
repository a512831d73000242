"""Values: what goes in comes out, one value has one form, and that form is MessagePack's (msgpack is the oracle)."""

from __future__ import annotations

import datetime
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.codec import (
    TYPE_NAMES,
    VALUE_DEPTH_MAX,
    are_plain_values,
    check_value,
    decode_value,
    encode_value,
    key_range,
    register_slot_of,
    register_slots_of,
    slot_of,
    split_slot,
    type_range,
)
from crdtkv.errors import CorruptionError, InvalidValueError

moments = st.datetimes(timezones=st.sampled_from([datetime.UTC, datetime.timezone(datetime.timedelta(hours=-7))])).filter(
    lambda moment: 2 < moment.year < 9998
)
integers = st.integers(-(2**63), 2**64 - 1)
numbers = integers | st.floats()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.binary(max_size=20) | moments
keys = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5), max_leaves=20)
slots = st.tuples(st.binary(min_size=1, max_size=6), st.sampled_from(sorted(TYPE_NAMES)), st.binary(max_size=6))


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down; NaN is NaN, -0.0 is not 0.0."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        theirs = sorted(b.items(), key=lambda item: encode_value(item[0]))
        ours = sorted(a.items(), key=lambda item: encode_value(item[0]))
        return len(ours) == len(theirs) and all(same(list(x), list(y)) for x, y in zip(ours, theirs, strict=True))
    return bool(a == b)


@given(values)
def test_round_trip(value: Any) -> None:
    data = encode_value(value)
    assert same(decode_value(data), value)
    assert encode_value(decode_value(data)) == data
    check_value(data)


@given(values)
def test_it_is_messagepack(value: Any) -> None:
    """Another implementation reads the same, and would write as many bytes: only the order of map keys is ours."""
    data = encode_value(value)
    theirs = msgpack.unpackb(data, timestamp=3, strict_map_key=False)
    assert same(theirs, value)
    assert len(msgpack.packb(theirs, datetime=True)) == len(data)


@given(st.none() | st.booleans() | numbers.filter(lambda n: n == n) | st.text() | st.binary())
def test_scalars_are_to_the_byte_what_msgpack_writes(value: Any) -> None:
    assert encode_value(value) == msgpack.packb(value)


@given(values, values)
def test_one_value_one_form(a: Any, b: Any) -> None:
    assert (encode_value(a) == encode_value(b)) == same(a, b)


@given(st.dictionaries(keys, scalars, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_a_dict_does_not_matter(value: dict[Any, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    data = encode_value(value)
    assert encode_value(dict(items)) == data
    order = [encode_value(key) for key in decode_value(data)]
    assert order == sorted(order)


def test_five_different_elements() -> None:
    assert len({encode_value(v) for v in (1, 1.0, True, "1", b"1")}) == 5
    assert encode_value(-0.0) != encode_value(0.0)
    assert encode_value(float("nan")) == encode_value(-math.nan) == b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"
    assert encode_value((1, 2)) == encode_value([1, 2])


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, "\ud800", object(), {1, 2}, datetime.datetime(2026, 1, 1), {(1,): 2}, {float("nan"): 1}, {"a": [object()]}, 1j],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError):
        encode_value(value)


def test_a_refusal_names_the_path() -> None:
    with pytest.raises(InvalidValueError, match=r"a\.b\[3\]"):
        encode_value({"a": {"b": [0, 1, 2, object()]}})


def test_depth_has_a_limit() -> None:
    deep: Any = []
    for _ in range(VALUE_DEPTH_MAX - 1):
        deep = [deep]
    check_value(encode_value(deep))
    with pytest.raises(InvalidValueError):
        encode_value([[deep]])


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x01",  # an integer that is not the shortest
        b"\xd9\x01a",  # a str header that is not the shortest
        b"\xca\x3f\x80\x00\x00",  # a float of 32 bits
        b"\xcb\xff\xf8\x00\x00\x00\x00\x00\x00",  # another NaN
        b"\x82\xa1b\x01\xa1a\x02",  # map keys out of order
        b"\x82\xa1a\x01\xa1a\x02",  # a map key twice
        b"\x01\x01",  # something after the value
        b"\xc7\x01\x05x",  # an extension type that is not a timestamp
        b"\xc1",
        b"",
    ],
)
def test_other_forms_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError):
        check_value(data)


@given(slots)
def test_slots_round_trip(slot: tuple[bytes, int, bytes]) -> None:
    assert split_slot(slot_of(*slot)) == slot


@given(slots, slots)
def test_slots_sort_by_key_then_type_then_subkey(a: tuple[bytes, int, bytes], b: tuple[bytes, int, bytes]) -> None:
    assert (slot_of(*a) < slot_of(*b)) == (a < b)


@given(slots, slots)
def test_ranges_hold_exactly_their_slots(a: tuple[bytes, int, bytes], b: tuple[bytes, int, bytes]) -> None:
    start, end = key_range(a[0])
    assert (start <= slot_of(*b) < end) == (a[0] == b[0])
    start, end = type_range(a[0], a[1])
    assert (start <= slot_of(*b) < end) == (a[:2] == b[:2])


pieces = st.sampled_from(
    [b"\xa1a", b"\xa2a", b"b\x01", b"\x01", b"\xd9\x01a", b"\xcd\x00\x01", b"\xcb" + bytes(8), b"\x90", b"", b"\xc4\x00", b"\xc0"]
)


@given(st.lists(pieces | st.text(max_size=40).map(encode_value) | integers.map(encode_value), max_size=6))
def test_a_look_at_all_values_at_once_says_of_each_what_a_look_at_each_says(given: list[bytes]) -> None:
    """Also where the end of one and the beginning of the next would pass for values together."""
    assert are_plain_values(given) is all(is_plain(data) for data in given)


def is_plain(data: bytes) -> bool:
    try:
        check_value(data)
    except CorruptionError:
        return False
    return isinstance(decode_value(data), bool | int | str | bytes | None)


register_keys = st.text(st.sampled_from("ad\0\1\2é\x7f"), min_size=1, max_size=5)


@given(st.lists(register_keys, max_size=6))
def test_the_slots_of_many_registers_are_those_of_each(keys: list[str]) -> None:
    assert register_slots_of(keys) == [register_slot_of(key) for key in keys] == [slot_of(key.encode(), 1) for key in keys]
