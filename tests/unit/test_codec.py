"""Canonical bytes, example by example, and the order of slots. (The laws are in tests/property/test_codec.py.)"""

from __future__ import annotations

import datetime
import enum
import itertools
from typing import Any

import msgpack
import msgspec
import pytest

from crdtkv.core.codec import (
    VALUE_DEPTH_MAX,
    SlotType,
    check_value,
    decode_value,
    encode_key,
    encode_prefix,
    encode_value,
    key_range,
    prefix_range,
    slot_of,
    split_slot,
    successor,
    type_range,
)
from crdtkv.errors import CorruptionError, InvalidKeyError, InvalidValueError, KeyTooLargeError

UTC = datetime.UTC


class Level(enum.IntEnum):
    HIGH = 7


class Text(str):
    def __str__(self) -> str:
        return "not what it holds"


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, "c0"),
        (True, "c3"),
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (256, "cd0100"),
        (65536, "ce00010000"),
        (2**32, "cf0000000100000000"),
        (2**64 - 1, "cfffffffffffffffff"),
        (-1, "ff"),
        (-32, "e0"),
        (-33, "d0df"),
        (-(2**63), "d38000000000000000"),
        (1.0, "cb3ff0000000000000"),
        (-0.0, "cb8000000000000000"),
        (float("nan"), "cb7ff8000000000000"),
        (-float("nan"), "cb7ff8000000000000"),
        ("1", "a131"),
        (b"1", "c40131"),
        (bytearray(b"1"), "c40131"),
        ((1, "x"), "9201a178"),
        ({"b": 1, "a": 2, 1: 3}, "830103a16102a16201"),
        (Level.HIGH, "07"),
        (Text("a"), "a161"),
        (datetime.datetime(1970, 1, 1, tzinfo=UTC), "d6ff00000000"),
        (datetime.datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "d7ff00000fa000000000"),
        (datetime.datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), "c70cff00000000ffffffffffffffff"),
    ],
    ids=repr,
)
def test_the_bytes_of_values_for_ever(value: Any, data: str) -> None:
    assert encode_value(value).hex() == data
    check_value(bytes.fromhex(data))
    assert encode_value(decode_value(bytes.fromhex(data))).hex() == data
    assert msgpack.unpackb(bytes.fromhex(data), timestamp=3, strict_map_key=False) is not NotImplemented


def test_a_time_is_the_same_in_every_zone() -> None:
    there = datetime.datetime(2026, 1, 1, 9, tzinfo=datetime.timezone(datetime.timedelta(hours=9)))
    assert encode_value(there) == encode_value(datetime.datetime(2026, 1, 1, tzinfo=UTC))
    assert decode_value(encode_value(there)) == there


def test_what_is_equal_in_python_is_five_elements() -> None:
    five = [1, 1.0, True, "1", b"1"]
    assert len({encode_value(v) for v in five}) == 5


@pytest.mark.parametrize(
    "data",
    [
        "",
        "c1",
        "cc01",
        "cd0001",
        "d001",
        "d101",
        "ca3f800000",
        "cb7ff0000000000001",
        "cbfff8000000000000",
        "d90161",
        "c500013 1".replace(" ", ""),
        "dc000101",
        "82a16101a16102",
        "82a16201a16101",
        "8201a131c3a132",
        "820101cb3ff000000000000002",
        "81cb7ff800000000000001",
        "819001",
        "c0c0",
        "92c0",
        "a1ff",
        "a3eda080",
        "d40100",
        "d7ff0000000000000000",
        "c70cff000000010000000000000000",
        "c70cff3b9aca000000000000000000",
        "91" * 65 + "c0",
        "91" * 100_000 + "c0",
        "dfffffffff",
        "c6ffffffff",
    ],
    ids=lambda d: d[:40],
)
def test_other_forms_and_hostile_bytes_are_refused(data: str) -> None:
    with pytest.raises(CorruptionError):
        check_value(bytes.fromhex(data))


def test_depth() -> None:
    value: Any = "bottom"
    for _ in range(VALUE_DEPTH_MAX):
        value = [value]
    check_value(encode_value(value))
    for deeper in ([value], {"k": value}):
        with pytest.raises(InvalidValueError, match="64 levels"):
            encode_value(deeper)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidValueError, match="64 levels"):
        encode_value(loop)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b": [1, 2, 3, object()]}}, "a.b[3]"),
        ([{"x": 2**64}], "[0].x"),
        ([[-(2**63) - 1]], "[0][0]"),
        ({"t": datetime.datetime(2026, 1, 1)}, "t"),
        ({"s": "\ud800"}, "s"),
        ({"d": {(1,): 2}}, "d"),
        ({"d": {float("nan"): 2}}, "d"),
        ({"d": {2**64: 1}}, "d"),
        ({"e": msgspec.msgpack.Ext(1, b"")}, "e"),
        ([datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1)))], "[0]"),
        (1j, ""),
        ({1, 2}, ""),
        (2**10_000, ""),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, str) else type(v).__name__,
)
def test_an_error_names_the_path(value: Any, path: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        encode_value(value)
    assert refused.value.details["path"] == path
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


KEYS = ["a", "a\x00", "a\x00\x00", "a\x00\x01", "a\x00b", "a\x00\x7f", "a\x01", "ab", "\x00", "\x00\x00", "é", "aé", "\U0010ffff", "~"]


def test_slots_sort_as_keys_do_and_split_again() -> None:
    slots = []
    for key in sorted(k.encode() for k in KEYS):
        for code in (SlotType.REGISTER, SlotType.SET, SlotType.COUNTER, SlotType.MAP):
            for subkey in (b"", b"\x00", b"\x00\x00\x01", b"\xff\xff"):
                slot = slot_of(key, code, subkey)
                assert split_slot(slot) == (key, code, subkey)
                slots.append(slot)
    assert slots == sorted(slots) and len(set(slots)) == len(slots)


def test_ranges_hold_exactly_what_they_name() -> None:
    raws = [k.encode() for k in KEYS]
    codes = (SlotType.REGISTER, SlotType.SET, SlotType.COUNTER, SlotType.MAP)
    slots = [(key, code, slot_of(key, code, sub)) for key in raws for code in codes for sub in (b"", b"\x00", b"\xff" * 3)]
    for wanted in raws:
        start, end = key_range(wanted)
        assert {s for _, _, s in slots if start <= s < end} == {s for k, _, s in slots if k == wanted}
        start, end = prefix_range(wanted)
        assert {s for _, _, s in slots if start <= s < end} == {s for k, _, s in slots if k.startswith(wanted)}
        for code in codes:
            start, end = type_range(wanted, code)
            assert {s for _, _, s in slots if start <= s < end} == {s for k, c, s in slots if (k, c) == (wanted, code)}
    start, end = prefix_range(b"")
    assert all(start <= s < end for _, _, s in slots)


def test_successor() -> None:
    assert successor(b"a") == b"b" and successor(b"a\xff\xff") == b"b" and successor(b"a\x00") == b"a\x01"
    samples = [bytes(p) for n in (1, 2, 3) for p in itertools.product((0, 1, 254, 255), repeat=n)]
    for prefix in samples:
        if set(prefix) != {255}:
            end = successor(prefix)
            assert all((prefix <= s < end) == s.startswith(prefix) for s in samples)


@pytest.mark.parametrize("key", ["", "\ud800", b"bytes", None, 1])
def test_what_is_no_key(key: Any) -> None:
    with pytest.raises(InvalidKeyError):
        encode_key(key)


def test_the_limit_of_keys_counts_bytes() -> None:
    assert len(encode_key("é" * 512)) == 1024
    for long in ("a" * 1025, "é" * 513, "a" * 2**20):
        with pytest.raises(KeyTooLargeError) as refused:
            encode_key(long)
        assert len(str(refused.value)) < 150
    assert encode_prefix("") == b""
    with pytest.raises(InvalidKeyError):
        encode_prefix(None)  # type: ignore[arg-type]
