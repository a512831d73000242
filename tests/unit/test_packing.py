"""The bytes of a link's messages: compressed where it pays and was agreed on, and hostile ones unpacked within bounds."""

from __future__ import annotations

import base64
import random
import tracemalloc
import zlib
from dataclasses import replace
from itertools import pairwise

import pytest

from crdtkv.core.causality import EMPTY_VV
from crdtkv.errors import CorruptionError
from crdtkv.replication import LAN, Code, EventKind, ReplicationSettings
from crdtkv.replication.messages import FRAMES_BYTES_MAX, Ack, Bye, Chunk, Frames, Message, Packed, decode, encode, weight
from crdtkv.replication.packing import PAUSE_BYTES, PAUSE_BYTES_MAX, ZLIB, Packing, pack, unpack
from tests.toy_replica import Network, ToyReplica
from tests.unit.test_session import hello_of, live

TEXT = Frames(False, tuple(b'{"id": %d, "city": "London", "score": %d}' % (n, n % 101) for n in range(200)), Ack(EMPTY_VV, EMPTY_VV, 1, 0))
NOISE = Frames(False, (random.Random(1).randbytes(20_000),))


def link(settings: ReplicationSettings = LAN, *, agreed: bool = True, round_trip_ms: float | None = 80.0) -> Packing:
    packing = Packing(settings)
    packing.agreed = agreed
    packing.round_trip_ms = round_trip_ms
    return packing


def is_packed(data: bytes) -> bool:
    return isinstance(decode(data), Packed)


@pytest.mark.parametrize("message", [TEXT, Chunk(b"i", 3, b"record" * 1_000, b"l", False)], ids=["frames", "chunk"])
def test_what_is_long_and_repeats_arrives_as_it_was_in_fewer_bytes(message: Message) -> None:
    sender, receiver = link(), link()
    data = sender.encode(message)
    assert len(data) < 0.4 * len(encode(message))
    assert receiver.decode(data) == message
    assert (sender.sent_bytes, sender.sent_wire_bytes) == (len(encode(message)), len(data))
    assert (receiver.received_bytes, receiver.received_wire_bytes) == (len(encode(message)), len(data))
    assert weight(data) == len(data) + len(encode(message))


@pytest.mark.parametrize(
    ("settings", "agreed", "round_trip_ms", "expected"),
    [
        (LAN, True, None, False),
        (LAN, True, 0.3, False),
        (LAN, True, 80.0, True),
        (LAN, False, 80.0, False),
        (replace(LAN, compression="on"), True, None, True),
        (replace(LAN, compression="on"), False, 80.0, False),
        (replace(LAN, compression="off"), True, 80.0, False),
    ],
)
def test_when_it_is_done(settings: ReplicationSettings, agreed: bool, round_trip_ms: float | None, expected: bool) -> None:
    packing = link(settings, agreed=agreed, round_trip_ms=round_trip_ms)
    assert packing.is_on is expected
    data = packing.encode(TEXT)
    assert is_packed(data) is expected
    if not expected:
        assert data == encode(TEXT)
        assert weight(data) == len(data)


def test_short_messages_and_those_of_other_kinds_go_as_they_are() -> None:
    packing = link()
    for message in (Frames(False, (b"a" * 400,)), Bye("code", "because " * 100)):
        assert packing.encode(message) == encode(message)


def test_what_does_not_shrink_is_not_tried_for_long_and_ever_longer_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    packing, tries, size = link(), list[int](), len(encode(NOISE))

    def noted(plain: bytes) -> Packed:
        tries.append(packing.sent_bytes)
        return pack(plain)

    monkeypatch.setattr("crdtkv.replication.packing.pack", noted)
    while packing.sent_bytes < 5 * PAUSE_BYTES_MAX:
        assert packing.encode(NOISE) == encode(NOISE)
    pauses = [after - before - size for before, after in pairwise(tries)]
    expected = [min(PAUSE_BYTES << n, PAUSE_BYTES_MAX) for n in range(len(pauses))]
    assert expected[-1] == PAUSE_BYTES_MAX
    assert all(wanted <= pause < wanted + size for pause, wanted in zip(pauses, expected, strict=True))

    while not is_packed(packing.encode(TEXT)):
        pass
    del tries[:]
    while len(tries) < 2:  # it did shrink: it begins anew
        packing.encode(NOISE)
    assert tries[1] - tries[0] - size < PAUSE_BYTES + size


def raw(data: bytes) -> bytes:
    return pack(data).data


PLAIN = encode(TEXT)
HOSTILE = {
    "more than any message may hold": Packed(FRAMES_BYTES_MAX + 1, raw(bytes(FRAMES_BYTES_MAX + 1))),
    "more than it claims": Packed(1_000, raw(bytes(64 << 20))),
    "less than it claims": Packed(len(PLAIN) + 1, raw(PLAIN)),
    "one byte more than it claims": Packed(len(PLAIN) - 1, raw(PLAIN)),
    "nothing": Packed(0, b""),
    "noise": Packed(100, b"\xff" * 100),
    "a part": Packed(len(PLAIN), raw(PLAIN)[:-1]),
    "something behind the end": Packed(len(PLAIN), raw(PLAIN) + b"\x00"),
    "zlib's own header": Packed(len(PLAIN), zlib.compress(PLAIN)),
    "compressed twice": Packed(len(encode(pack(PLAIN))), raw(encode(pack(PLAIN)))),
    "another kind": Packed(len(encode(Bye("c", "r"))), raw(encode(Bye("c", "r")))),
    "no message": Packed(5, raw(b"hello")),
    "zeros, as many as may be": Packed(FRAMES_BYTES_MAX, raw(bytes(FRAMES_BYTES_MAX))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_compression_bomb_is_an_error_and_takes_no_more_memory_than_any_message_may(name: str) -> None:
    packed = HOSTILE[name]
    data = encode(packed)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptionError, match=r"^message: "):
            link().decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * min(packed.size, FRAMES_BYTES_MAX) + 4 * len(data) + 100_000


def test_a_bomb_costs_its_sender_the_link_and_nothing_else() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")], settings=replace(LAN, compression="on"))
    net.mesh()
    net.run_until(net.is_live)
    net.write("us")
    net.run_until(net.is_equal)
    (number,) = net.links
    net.drives["eu"].receive(number, encode(HOSTILE["more than it claims"]), net.now)
    net.turn("eu")
    net.run(50)
    closed = next(event for event in net.events["eu"] if event.kind is EventKind.CLOSED)
    assert closed.details["code"] == Code.CORRUPT
    net.reconnect()
    net.write("us")
    net.run_until(net.is_equal)


def test_what_was_not_agreed_on_is_refused() -> None:
    with pytest.raises(CorruptionError, match="not agreed on"):
        link(agreed=False).decode(encode(pack(PLAIN)))
    side = live(ToyReplica("us"), ToyReplica("eu"), replace(LAN, compression="on"))
    side.receive(pack(PLAIN))  # past the link's packing
    assert side.bye().code == Code.PROTOCOL


def test_the_hello_offers_it_unless_it_is_off() -> None:
    us, eu = ToyReplica("us"), ToyReplica("eu")
    for compression, offered in (("auto", True), ("on", True), ("off", False)):
        side = live(us, eu, replace(LAN, compression=compression), features=(ZLIB,))
        assert side.session.packing.agreed is offered


def test_replicas_converge_over_compressed_links_and_say_what_that_saved() -> None:
    settings = replace(LAN, compression="on")
    net = Network([ToyReplica("us"), ToyReplica("eu"), ToyReplica("ap")], settings=settings, delay_ms=20.0)
    net.settings = replace(settings, compression="off")  # of three, one does not
    net.restart("ap")
    net.mesh()
    net.run_until(net.is_live)
    for _ in range(300):
        net.replicas["us"].write(size=40)
    net.write("us")
    net.run_until(net.is_equal)
    row = net.peer("us", "eu")
    assert row.is_compressing
    assert row.sent_wire_bytes < 0.6 * row.sent_bytes
    other = net.peer("us", "ap")
    assert not other.is_compressing
    assert other.sent_wire_bytes == other.sent_bytes > row.sent_wire_bytes
    assert net.peer("eu", "us").received_wire_bytes == row.sent_wire_bytes


def test_a_peer_that_does_not_know_it_gets_plain_messages() -> None:
    us, eu = ToyReplica("us"), ToyReplica("eu")
    side = live(us, eu, replace(LAN, compression="on", compression_bytes_min=1))
    assert hello_of(eu).features == ()
    side.write(size=2_000)
    assert [is_packed(side.session.packing.encode(m)) for m in side.send()] == [False]


def test_noise_in_text_form_is_still_worth_it() -> None:
    """Base64 leaves a compressor three quarters; what repeats between commits is the rest."""
    text = Frames(False, tuple(base64.b64encode(random.Random(n).randbytes(75)) for n in range(100)))
    assert is_packed(link().encode(text))


def test_unpack_gives_what_was_packed() -> None:
    assert unpack(pack(PLAIN)) == TEXT


@pytest.mark.parametrize("size", [0, 1, 249, 250, 251, 3_834, 3_835, 30_000, 32_506, 40_000, 200_000])
def test_a_window_as_large_as_it_takes_packs_as_well_as_the_widest(size: int) -> None:
    dice = random.Random(size)
    words = [bytes(dice.randrange(256) for _ in range(dice.randrange(1, 40))) for _ in range(60)]
    plain = b"".join(dice.choice(words) for _ in range(size // 8 + 1))[:size]
    packed = pack(plain)
    widest = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    assert len(packed.data) <= 1.05 * len(widest.compress(plain) + widest.flush()) + 64  # the same, where zlib is the usual one
    assert zlib.decompress(packed.data, -zlib.MAX_WBITS) == plain
