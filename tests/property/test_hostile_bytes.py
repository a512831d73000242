"""Bytes from elsewhere give a value or the error that says so, nothing else; in bounded time and memory.

Every decoder of the core meets noise, structure with wrong content, good bytes that were cut, changed or went on, lengths
that promise gigabytes, and nesting without end. Where a checksum would hide the inside, it is made to fit.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from crdtkv.backup import chunks
from crdtkv.backup import manifest as manifest_module
from crdtkv.backup.chunks import FRAMES, STATE, checksum, decode_chunk, encode_chunk
from crdtkv.backup.manifest import Manifest
from crdtkv.core import join, transfer
from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.codec import check_value, decode_value, encode_value
from crdtkv.core.control import Agreed, MemberState, close_delta, member_delta
from crdtkv.core.frame import NO_HASH, Frame, FrameTemplate
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.token import Token, decode_token
from crdtkv.core.transfer import NO_LINK, Arrival, next_link
from crdtkv.errors import CorruptionError, IncompatibleFormatError, InvalidValueError
from crdtkv.replication import LAN
from crdtkv.replication.messages import Frames, Packed, encode
from crdtkv.replication.packing import Packing, pack, unpack
from crdtkv.storage.segments import (
    Damage,
    encode_header,
    encode_records,
    read_header,
    record_after,
    scan_records,
    segment_name,
    synced_beyond,
)
from crdtkv.store import exchange
from tests.property.fleet import Fleet

FLEET = Fleet.run(11, [("commit", i % 3, 2) for i in range(12)] + [("deliver", (i % 3, (i + 1) % 3), 4) for i in range(9)])


def _sealed_snapshot(body: bytes) -> bytes:
    return join.MAGIC + b"\x01" + hashlib.blake2b(body, digest_size=16).digest() + body


def _sealed_delta(body: bytes) -> bytes:
    return exchange.MAGIC + b"\x02" + xxh3_64_digest(body) + body


def _text(data: bytes) -> str:
    return data.decode("latin-1")


class BytesFile:
    """A file that is read: what of `File` the decoders of a log segment use."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def size(self) -> int:
        return len(self._data)


def _segment(data: bytes) -> list[object]:
    """A whole segment: its header, and the records or what is wrong with them."""
    file: Any = BytesFile(data)
    header = read_header(file, Path(segment_name(0)))
    return _records(data, header.records_at)


def _records(data: bytes, offset: int = 0) -> list[object]:
    """A segment's records, all of them good; whoever reads them says so by a `Damage`, behind which is searched for more."""
    file: Any = BytesFile(data)
    found = list(scan_records(file, offset, len(data)))
    for item in found:
        if isinstance(item, Damage):
            synced_beyond(file, item.offset, len(data))
            record_after(file, item.offset, len(data))
            raise CorruptionError(item.reason)
    if not found:
        raise CorruptionError("no record")
    return list(found)


def _unpacked(data: bytes) -> object:
    """A message as a link that agreed on compression takes it."""
    packing = Packing(LAN)
    packing.agreed = True
    return packing.decode(data)


def _manifest_inside(data: bytes) -> object:
    """A manifest of any content, with the checksum that fits."""
    try:
        plain = msgpack.unpackb(data)
        if isinstance(plain, dict):
            plain.pop("checksum", None)
            plain["checksum"] = manifest_module._checksum(plain)
        text = json.dumps(plain).encode()
    except Exception as e:
        raise CorruptionError("nothing that JSON has a form for") from e
    return Manifest.from_bytes(text, "target/b/manifest.json")


def _chunk_inside(data: bytes) -> object:
    """A chunk of any content, compressed and sealed."""
    head, body = encode_chunk(STATE, [])[:4], zlib.compress(data)
    return decode_chunk(STATE, head + checksum(head + body) + body, "target/b/state-000000")


def _control_inside(data: bytes) -> object:
    try:
        wire = msgpack.unpackb(data)
    except Exception as e:
        raise CorruptionError("no MessagePack") from e
    return Agreed.from_wire(wire)


def _snapshot_chunk(data: bytes) -> object:
    """The first chunk of a snapshot, that comes with the link that fits."""
    arrival = Arrival()
    arrival.take(data, next_link(NO_LINK, data))
    return arrival.incoming


def _control_frame() -> Frame:
    """A closing, and two members' records, of a replica that has applied what it closes."""
    us, eu = (replica.origin for replica in FLEET.replicas[:2])
    deltas = [
        close_delta(eu, 3),
        member_delta("eu", MemberState.REMOVED, "", 2),
        member_delta("ap", MemberState.ACTIVE, "127.0.0.1:7001", 3),
    ]
    return FrameTemplate("test", 0, us, VersionVector({eu: 3}), control=True).build(1, 1 << 20, NO_HASH, [[0, None, *deltas]])


def _agreed() -> bytes:
    us, eu = (replica.origin for replica in FLEET.replicas[:2])
    return msgpack.packb([[[eu, [[3, us, 7]]]], [["eu", "removed", "127.0.0.1:7001", 2, 5, us, 8]]])


CONTROL = _control_frame().data
MANIFEST = bytes.fromhex((Path(__file__).parents[1] / "data" / "backup_full_manifest.hex").read_text()).strip()
RECORDS = encode_records([FLEET.frames()[0].data], 0)
DELTA = msgpack.packb([[frame.data for frame in FLEET.frames()]])
PLAIN = encode(Frames(False, tuple(frame.data for frame in FLEET.frames())))
DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "value": (decode_value, encode_value({"a": [1, 2.5, None], "b": b"xyz"})),
    "canonical value": (check_value, encode_value({"a": [1, 2.5, None], "b": b"xyz"})),
    "version vector": (VersionVector.from_bytes, FLEET.replicas[0].vv().to_bytes()),
    "frame": (lambda data: Frame.decode(data).rows(), FLEET.frames()[0].data),
    "frame's inside": (lambda data: Frame.decode(b"\xc1\x01" + data).rows(), FLEET.frames()[0].data[2:]),
    "log segment": (_segment, encode_header(0, EMPTY_VV) + RECORDS),
    "log records": (_records, RECORDS),
    "snapshot": (Snapshot.from_bytes, snapshot_of(FLEET.replicas[0]).to_bytes()),
    "snapshot's inside": (lambda data: Snapshot.from_bytes(_sealed_snapshot(data)), snapshot_of(FLEET.replicas[0]).to_bytes()[19:]),
    "delta": (exchange.decode_frames, _sealed_delta(DELTA)),
    "delta's inside": (lambda data: exchange.decode_frames(_sealed_delta(data)), DELTA),
    "compressed message": (_unpacked, encode(pack(PLAIN))),
    "compressed message's inside": (lambda data: unpack(Packed(len(PLAIN), data)), pack(PLAIN).data),
    "control frame": (lambda data: Frame.decode(b"\xc1\x01" + data).rows(), CONTROL[2:]),
    "control records": (_control_inside, _agreed()),
    "snapshot's first chunk": (_snapshot_chunk, transfer.encode_header(FLEET.replicas[0], FLEET.replicas[0].vv())),
    "backup's manifest": (lambda data: Manifest.from_bytes(data, "target/b/manifest.json"), MANIFEST),
    "manifest's inside": (_manifest_inside, msgpack.packb(json.loads(MANIFEST))),
    "backup's chunk": (lambda data: decode_chunk(FRAMES, data, "target/b/frames-000000"), encode_chunk(FRAMES, [CONTROL, b"", b"x"])),
    "chunk's inside": (_chunk_inside, msgpack.packb([b"slot", b"record", b""])),
    "token": (lambda data: decode_token(_text(data)), Token(0, FLEET.replicas[0].origin, 3, FLEET.replicas[0].vv()).encode().encode()),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
structures = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=11) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=25
)


def meets(name: str, data: bytes) -> bool:
    """Decode; True if that gave a value. Any other error than the promised ones fails the test by itself."""
    allowed = (InvalidValueError,) if name == "token" else (CorruptionError, IncompatibleFormatError)
    try:
        DECODERS[name][0](data)
    except allowed:
        return False
    return True


@every_decoder
def test_good_bytes_are_good(name: str) -> None:
    assert meets(name, DECODERS[name][1])


@every_decoder
@given(data=st.binary(max_size=300))
def test_noise(name: str, data: bytes) -> None:
    meets(name, data)


@every_decoder
@given(structure=structures)
def test_structure_with_other_content(name: str, structure: Any) -> None:
    meets(name, msgpack.packb(structure))


@every_decoder
@given(data=st.data())
def test_changed_bytes(name: str, data: st.DataObject) -> None:
    bad = bytearray(DECODERS[name][1])
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    meets(name, bytes(bad))


@every_decoder
@given(data=st.data())
def test_another_piece_of_structure_inside(name: str, data: st.DataObject) -> None:
    """Good bytes in which one whole MessagePack item was replaced by another: what a bug of a peer would send."""
    good = DECODERS[name][1]
    at = data.draw(st.integers(0, len(good) - 1))
    length = data.draw(st.integers(0, 12))
    meets(name, good[:at] + msgpack.packb(data.draw(scalars)) + good[at + length :])


@every_decoder
def test_every_cut(name: str) -> None:
    good = DECODERS[name][1]
    if name != "token":  # a token's text that lost its last characters may still be a shorter token's
        assert not any(meets(name, good[:end]) for end in range(len(good))), "a part was taken for the whole"


@every_decoder
def test_followed_by_garbage(name: str) -> None:
    if name != "token":
        assert not meets(name, DECODERS[name][1] + b"\x00")


@every_decoder
@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"], ids=["array", "map", "bin", "str", "ext"])
@pytest.mark.parametrize("at", [0, 1, 2, 5, 19, 20])
def test_lengths_that_promise_gigabytes(name: str, header: bytes, at: int) -> None:
    good = DECODERS[name][1]
    for length in (2**31 - 1, 2**32 - 1):
        assert peak_of(name, good[:at] + header + struct.pack(">I", length) + good[at:]) < 4 << 20


@every_decoder
@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a", b"\x81"], ids=["lists", "maps", "map keys"])
def test_nesting_without_end(name: str, nest: bytes) -> None:
    for depth in (5_000, 300_000) if name == "value" else (100, 5_000, 300_000):  # a plain decode leaves depth to `check_value`
        assert not meets(name, nest * depth)
        assert not meets(name, nest * depth + b"\x01")


@every_decoder
def test_long_input_takes_time_in_proportion(name: str) -> None:
    noise = DECODERS[name][1] * 2_000
    began = time.process_time()
    meets(name, noise)
    meets(name, msgpack.packb([[0] * 100_000, ["x"] * 100_000]))
    assert time.process_time() - began < 5
    assert peak_of(name, noise) < 60 * len(noise) + (1 << 20)


def peak_of(name: str, data: bytes) -> int:
    """The most memory that decoding held, in bytes."""
    tracemalloc.start()
    try:
        meets(name, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["../x", "x/../../y", "/etc/passwd", "..", ".x", "", "x\n", "x" * 300])
@pytest.mark.parametrize("where", ["id", "parent", "file"])
def test_a_manifest_names_nothing_outside_its_target(where: str, name: str) -> None:
    """A backup is read from, and pruned in, a place that others may write to."""
    plain = json.loads(MANIFEST)
    if where == "file":
        plain["files"][0]["name"] = name
    else:
        plain[where] = name
    with pytest.raises(CorruptionError, match="not a manifest"):
        _manifest_inside(msgpack.packb(plain))


def test_a_chunk_of_more_items_than_any_holds_is_refused_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ITEMS_MAX", 70_000)
    assert len(_chunk_inside(msgpack.packb([b""] * 70_000))) == 70_000  # type: ignore[arg-type]
    with pytest.raises(CorruptionError, match="more items than any chunk holds"):
        _chunk_inside(msgpack.packb([b""] * 70_001))


def test_unknown_versions_and_features_are_refused_by_name() -> None:
    good = FLEET.frames()[0].data
    with pytest.raises(IncompatibleFormatError, match="version 9"):
        Frame.decode(good[:1] + b"\x09" + good[2:])
    with pytest.raises(IncompatibleFormatError, match="'zstd'"):
        Frame.decode(good[:3] + good[3:].replace(b"\x90", b"\x91\xa4zstd", 1))
    state = snapshot_of(FLEET.replicas[0]).to_bytes()
    with pytest.raises(IncompatibleFormatError, match="version 7"):
        Snapshot.from_bytes(state[:2] + b"\x07" + state[3:])
    with pytest.raises(IncompatibleFormatError, match="'runs2'"):
        Snapshot.from_bytes(_sealed_snapshot(state[19:].replace(b"\x90", b"\x91\xa5runs2", 1)))


def _with_slots(**changes: Any) -> bytes:
    """A snapshot's bytes with fields of its body replaced, sealed again."""
    names = ["requires", "cluster", "shard", "vv", "hashes", "slots", "extensions"]
    fields = dict(zip(names, msgpack.unpackb(snapshot_of(FLEET.replicas[0]).to_bytes()[19:]), strict=True))
    for name, change in changes.items():
        fields[name] = change(fields[name])
    return _sealed_snapshot(msgpack.packb(list(fields.values())))


@pytest.mark.parametrize(
    "changes",
    [
        {"vv": lambda vv: vv[:2]},  # dots that it no longer covers
        {"hashes": lambda hashes: hashes[1:]},
        {"hashes": lambda hashes: [b"short", *hashes[1:]]},
        {"slots": lambda slots: slots[:-1]},
        {"slots": lambda slots: slots[2:4] + slots[:2]},  # out of order
        {"slots": lambda slots: slots[:2] + slots[:2]},  # twice
        {"slots": lambda slots: [slots[0], b"\x90"]},  # no entries
        {"slots": lambda slots: [slots[0], b""]},
        {"slots": lambda slots: [b"d", slots[1]]},
        {"slots": lambda slots: [b"x" + slots[0][1:], slots[1]]},  # another space than that of slots
        {"slots": lambda slots: [b"dkey\x00\x00\x09", slots[1]]},  # a type that there is not
        {"slots": lambda slots: [b"d\xff\xfe\x00\x00\x01", slots[1]]},  # a key that is not text
        {"slots": lambda slots: [b"d" + b"k" * 1025 + b"\x00\x00\x01", slots[1]]},
        {"slots": lambda slots: [b"dkey\x00\x00\x02\xcc\x01", slots[1]]},  # an element not in canonical form
        {"slots": lambda slots: [b"dkey\x00\x00\x04\x01", slots[1]]},  # a field that is not text
        {"slots": lambda slots: [b"dkey\x00\x00\x03\x01", slots[1]]},  # a run without a name
        {"shard": lambda _: -1},
        {"extensions": lambda _: 5},
    ],
)
def test_snapshots_that_no_replica_would_write(changes: dict[str, Callable[[Any], Any]]) -> None:
    assert meets("snapshot", _with_slots())
    with pytest.raises(CorruptionError):
        Snapshot.from_bytes(_with_slots(**changes))


def test_what_fuzzing_found_stays_mended() -> None:
    """Inputs that once broke a decoder; see `tests/fuzz`."""
    names = {name.replace(" ", "_"): name for name in DECODERS}
    corpus = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*/*"))
    assert {path.parent.name for path in corpus} <= names.keys(), "a folder of no decoder: nothing in it would be decoded"
    for path in corpus:
        meets(names[path.parent.name], path.read_bytes())
