"""Hostile bytes: `decode` gives a message or `CorruptionError`, and nothing else, in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.errors import CorruptionError
from crdtkv.replication import messages
from crdtkv.replication.messages import Frames, Message, Subscribe, Unknown, decode, encode

WIRE = messages.Wire.__args__
KINDS = sorted(str(cls.__struct_config__.tag) for cls in WIRE)

origins = st.builds(lambda r, g: Origin(f"{r}@{g:x}-0badcafe"), st.sampled_from(["us", "eu", "ap"]), st.integers(1, 2**31))
vectors = st.dictionaries(origins, st.integers(1, 2**63 - 1), max_size=4).map(VersionVector)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=12
)
fields = anything | vectors.map(VersionVector.flat)
rows = st.tuples(st.sampled_from(KINDS) | st.text(max_size=10), st.lists(fields, max_size=15)).map(lambda row: [row[0], *row[1]])


def is_message_or_corruption(data: bytes) -> bool:
    try:
        message = decode(data)
    except CorruptionError:
        return True
    return isinstance(message, (*WIRE, Unknown))


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    assert is_message_or_corruption(data)


@given(rows)
def test_wrong_fields(row: list[object]) -> None:
    assert is_message_or_corruption(msgspec.msgpack.encode(row))


@given(vectors, st.data())
def test_flipped_cut_and_joined_messages(vv: VersionVector, data: st.DataObject) -> None:
    good = encode(
        data.draw(
            st.sampled_from(
                [
                    Subscribe(vv),
                    messages.Reports(
                        {Origin("us@1-00000001"): {Origin("eu@1-00000002"): (3, True)}},
                        {Origin("us@1-00000001"): {Origin("eu@1-00000002"): 3}},
                    ),
                    Frames(True, (b"abc", b"")),
                    messages.Heartbeat(1, 2, vv, 3, (vv, "d")),
                ]
            )
        )
    )
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    assert is_message_or_corruption(bytes(bad))
    assert is_message_or_corruption(bytes(bad[: data.draw(st.integers(0, len(bad)))]) + good)


@given(vectors, st.lists(st.binary(max_size=30), max_size=5), st.booleans())
def test_round_trip(vv: VersionVector, frames: list[bytes], flag: bool) -> None:
    examples: list[Message] = [Frames(flag, tuple(frames)), messages.CannotRelay(vv, flag), messages.Ack(vv, EMPTY_VV, 0, 2**53)]
    for message in examples:
        assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 200_000,
        b"\x92\xa5?more" + b"\x91" * 200_000,
        b"\x93\xa6frames\xc2\xdd\x7f\xff\xff\xff" + b"\xc4\x00" * 100_000,
        b"\x93\xa6frames\xc2\xdc\x20\x00" + b"\xc4\x02ab" * 8_192,
        b"\x92\xa9subscribe\xdd\xff\xff\xff\xff" + b"\x01" * 250_000,
        b"\xdd\xff\xff\xff\xff" + b"\xc0" * 250_000,
        b"\x93\xa6frames\xc2\x91\xc6\xff\xff\xff\xff" + bytes(1 << 20),
    ],
    ids=["deep", "deep in an unknown kind", "many frames claimed", "many frames", "long vector", "long array", "one frame beyond the end"],
)
def test_time_and_memory_are_bounded_by_the_length(data: bytes) -> None:
    assert is_message_or_corruption(data)
    tracemalloc.start()
    began = time.process_time()
    try:
        assert is_message_or_corruption(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * len(data) + 100_000
    assert time.process_time() - began < 2
