"""`replication.messages`: bytes out and back, limits, and what a newer version may say to this one."""

from __future__ import annotations

import msgspec
import pytest

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.errors import CorruptionError
from crdtkv.replication import messages
from crdtkv.replication.messages import (
    Ack,
    AskRelay,
    AskSnapshot,
    Bye,
    CannotRelay,
    CannotSnapshot,
    Chunk,
    ChunkAck,
    Credit,
    EndRelay,
    EndSnapshot,
    Frames,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    Packed,
    Reports,
    Subscribe,
    Unknown,
    decode,
    encode,
)

US, EU = Origin("us@1-00000001"), Origin("eu@2-00000002")
VV = VersionVector({US: 3, EU: 2**63 - 1})
HELLO = Hello(
    version_min=1,
    version_max=3,
    features=("zstd",),
    cluster="c",
    shard=0,
    region="us",
    origin=US,
    members=("us", "eu"),
    vv=VV,
    kept={US: (3, b"h" * 16)},
    wall_ms=1_700_000_000_000,
    hlc=2**62,
    own_credit=1 << 25,
    relay_credit=1 << 24,
)
EXAMPLES: list[Message] = [
    HELLO,
    Frames(False, (b"one", b"two")),
    Frames(True, tuple(bytes([n % 256]) * 3 for n in range(1_000))),
    Subscribe(VV),
    AskRelay(EMPTY_VV),
    EndRelay(),
    CannotRelay(VV),
    CannotRelay(VV, own=True),
    Ack(VV, EMPTY_VV, 7, 8),
    Credit(1 << 40, 0),
    Heartbeat(9, 1_700_000_000_000_000, VV, 5, None),
    Heartbeat(9, 1_700_000_000_000_000, VV, 5, (VV, "d" * 32)),
    HeartbeatReply(9, 1, 2),
    Reports({US: {EU: (7, True), Origin("ap@1-00000003"): (0, False)}}),
    Reports({US: {EU: (7, True)}}, {US: {EU: 3}}),
    AskSnapshot(0, b""),
    AskSnapshot(7, b"l" * 16),
    Chunk(b"i" * 16, 3, b"data" * 100, b"l" * 16, True),
    ChunkAck(b"i" * 16, 4),
    EndSnapshot(b"i" * 16),
    CannotSnapshot("too many", 10_000),
    Packed(1 << 20, b"compressed"),
    Bye("fork", "two contents"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_part_of_a_message_or_one_with_garbage_behind_is_corruption(message: Message) -> None:
    data = encode(message)
    for length in {*range(min(len(data), 64)), len(data) - 1}:
        with pytest.raises(CorruptionError):
            decode(data[:length])
    with pytest.raises(CorruptionError):
        decode(data + b"\x00")


def test_every_kind_is_in_the_examples() -> None:
    assert {type(m) for m in EXAMPLES} == set(messages.Wire.__args__)


def test_fields_that_a_newer_version_added_are_skipped() -> None:
    row = msgspec.msgpack.decode(encode(EXAMPLES[-3]))
    assert decode(msgspec.msgpack.encode([*row, {"later": [1, 2]}, None])) == EXAMPLES[-3]


def test_a_field_with_a_default_may_be_left_out_by_an_older_version() -> None:
    row = msgspec.msgpack.decode(encode(CannotRelay(VV)))
    assert decode(msgspec.msgpack.encode(row[:2])) == CannotRelay(VV, own=False)


def test_an_unknown_kind_keeps_its_name_and_says_whether_it_may_be_ignored() -> None:
    assert decode(msgspec.msgpack.encode(["snapshot_v9", 1, [2]])) == Unknown("snapshot_v9", optional=False)
    assert decode(msgspec.msgpack.encode(["?gossip", {"a": 1}])) == Unknown("?gossip", optional=True)


def test_a_known_kind_with_wrong_fields_is_not_taken_for_an_unknown_one() -> None:
    for row in (["ack", 1], ["frames", False, [b"x", 7]], ["hello"], ["bye", "x" * 200, "y"], ["credit", -1, 0], [1, 2], [], {"ack": 1}):
        with pytest.raises(CorruptionError):
            decode(msgspec.msgpack.encode(row))


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "nobody"},
        {"kept": {"nobody": (1, b"h" * 16)}},
        {"kept": {US: (1, b"short")}},
        {"hlc": -1},
        {"version_min": 0},
        {"shard": -1},
    ],
)
def test_a_hello_with_values_out_of_range_is_corruption(change: dict[str, object]) -> None:
    data = encode(msgspec.structs.replace(HELLO, **change))
    with pytest.raises(CorruptionError):
        decode(data)


def test_limits_hold_before_anything_is_built() -> None:
    with pytest.raises(CorruptionError, match=r"8,193 frames, the limit is 8,192"):
        decode(encode(Frames(False, (b"x",) * 8_193)))
    claimed = b"\x93\xa6frames\xc2\xdd\xff\xff\xff\xff"
    with pytest.raises(CorruptionError, match=r"4,294,967,295 frames"):
        decode(claimed)
    with pytest.raises(CorruptionError, match=r"bytes of frames, the limit"):
        decode(encode(Frames(False, (bytes(messages.FRAMES_BYTES_MAX),))))
    with pytest.raises(CorruptionError, match=r"the limit is 524,288"):
        decode(msgspec.msgpack.encode(["?later", bytes(messages.CONTROL_BYTES_MAX)]))
    many = VersionVector({Origin(f"us@{n:x}-00000000"): 1 for n in range(1, messages.ORIGINS_MAX + 2)})
    with pytest.raises(CorruptionError, match=r"4,097 origins"):
        decode(encode(Subscribe(many)))


def test_the_bytes_of_version_1_are_kept_for_ever() -> None:
    """A released format is decoded for ever: whoever changes these bytes breaks every cluster in the middle of an upgrade."""
    assert decode(b"\x93\xa6frames\xc3\x91\xc4\x02ab") == Frames(True, (b"ab",))  # before acks could go with frames
    assert encode(Frames(True, (b"ab",))) == b"\x94\xa6frames\xc3\x91\xc4\x02ab\xc0"
    with_ack = Frames(False, (b"ab",), Ack(EMPTY_VV, EMPTY_VV, 1, 2))
    assert encode(with_ack) == b"\x94\xa6frames\xc2\x91\xc4\x02ab\x95\xa3ack\x90\x90\x01\x02"
    assert decode(encode(with_ack)) == with_ack
    assert encode(Ack(VersionVector({US: 3}), EMPTY_VV, 1, 2)) == b"\x95\xa3ack\x92\xadus@1-00000001\x03\x90\x01\x02"
    assert encode(Packed(300, b"ab")) == b"\x93\xa6packed\xcd\x01\x2c\xc4\x02ab"
    assert encode(EndRelay()) == b"\x91\xa9end_relay"
    assert encode(Heartbeat(1, 2, EMPTY_VV, 3)) == b"\x96\xa9heartbeat\x01\x02\x90\x03\xc0"
