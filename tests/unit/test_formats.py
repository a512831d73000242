"""The bytes of every released format, decoded for ever, and given again by today's encoders.

`tests/data/*.hex` were written once by `written()`, by replicas with fixed ids and clocks. A test that fails here says that data
directories, logs, peers or tokens of an earlier version would no longer be understood: never change a file, add a version.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from crdtkv.backup import FolderTarget, manifests, restore
from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import DeltaKind, Frame
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.replica import Replica
from crdtkv.core.token import Token, decode_token
from crdtkv.storage.engine import MemoryEngine
from crdtkv.storage.log import FileLog
from crdtkv.storage.memory_log import MemoryLog
from crdtkv.storage.segments import segment_name
from crdtkv.store.exchange import decode_frames, delta_since
from crdtkv.store.machine import Machine
from tests.frames import EU, US
from tests.stores import Clock

DATA = Path(__file__).parent.parent / "data"
K = DeltaKind
SLOTS = {
    "record_register": b"dk\x00\x00\x01",
    "record_element": b"ds\x00\x00\x02\xa1e",
    "record_counter": b"dc\x00\x00\x03\x92" + encode_value(US) + b"\x01",
    "record_field": b"dm\x00\x00\x04\xa1f",
}


def machine() -> Machine:
    """us and eu each write every type, concurrently, and us has merged it all."""
    clock = Clock()
    us, eu = (Machine(MemoryLog(1 << 20), MemoryEngine(), origin=o, cluster="test", clock=HybridClock(clock)) for o in (US, EU))
    one, two = encode_value(1), encode_value("two")
    element = encode_value("e")
    for at, value in ((us, one), (eu, two)):
        run = at.replica.seq(at.origin) + 1
        at.transact(
            [
                [K.REGISTER_PUT, "k", value],
                [K.SET_ADD, "s", element, clock.ms + 10**9],
                [K.MAP_PUT, "m", "f", value],
                [K.COUNTER_ADD, "c", run, 5],
            ],
            b"request",
        )
        at.transact([[K.REGISTER_PUT, "gone", value]])
        at.seal()
        at.transact([[K.REGISTER_DELETE, "gone"], [K.COUNTER_RESET, "c", [[at.origin, 1, 5, 1]]], [K.COUNTER_ADD, "c", 3, -2]])
        at.seal()
    us.apply(eu.log.read(0, bytes_max=1 << 20)[0])
    return us


def written(directory: Path) -> dict[str, bytes]:
    """What today's encoders give."""
    us = machine()
    frames = us.log.read(0, bytes_max=1 << 20)[0]
    log = FileLog(directory / "log")
    log.append(frames)
    log.close()
    (segment,) = [p for p in (directory / "log").iterdir() if p.is_file() and p.stat().st_size]
    # One that was at rest twice.
    log = FileLog(directory / "noted")
    for some in (frames[:1], frames[1:]):
        log.append(some)
        log.sync()
        log.note_synced()
    log.close()
    # Two dated segments, of which the first is gone, and the floor of what a snapshot brought.
    log = FileLog(directory / "later", segment_bytes=1, wall_ms=Clock())
    log.append(frames[:2])
    log.append(frames[2:])
    log.sync()
    log.truncate(2)
    log.reset_floor(VersionVector({EU: 1}))
    log.close()
    found = {
        "log_floor": (directory / "later" / "FLOOR").read_bytes(),
        "log_segment_later": (directory / "later" / segment_name(2)).read_bytes(),
        "frame": frames[0].data,
        "log_segment": segment.read_bytes(),
        "log_segment_noted": (directory / "noted" / segment_name(0)).read_bytes(),
        "delta": delta_since(us, EMPTY_VV),
        "snapshot": snapshot_of(us.replica).to_bytes(),
        "token": Token(0, US, 4, us.vv()).encode().encode(),
        "version_vector": us.vv().to_bytes(),
    }
    for name, slot in SLOTS.items():
        record = us.replica.state.get(slot)
        assert record is not None
        found[name] = record
    return found


def kept(name: str) -> bytes:
    return bytes.fromhex((DATA / f"{name}.hex").read_text())


NAMES = sorted(
    ["frame", "log_segment", "log_segment_noted", "log_segment_later", "log_floor", "delta", "snapshot", "token", "version_vector", *SLOTS]
)


@pytest.mark.parametrize("name", NAMES)
def test_today_s_encoder_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    assert written(tmp_path)[name].hex() == kept(name).hex()


def test_frame() -> None:
    frame = Frame.decode(kept("frame"))
    assert (frame.origin, frame.first_seq, frame.last_seq, frame.cluster, frame.context) == (US, 1, 2, "test", EMPTY_VV)
    (_, _, meta, deltas), _ = frame.commits()
    assert meta == {"r": b"request"} and [d[0] for d in deltas] == [K.REGISTER_PUT, K.SET_ADD, K.MAP_PUT, K.COUNTER_ADD]


@pytest.mark.parametrize("room", [0, 20_000])
@pytest.mark.parametrize("name", ["log_segment", "log_segment_noted"])
def test_log_segment(tmp_path: Path, name: str, room: int) -> None:
    written(tmp_path)
    (segment,) = [p for p in (tmp_path / "log").iterdir() if p.is_file() and p.stat().st_size]
    segment.write_bytes(kept(name) + bytes(room))
    log = FileLog(tmp_path / "log")
    try:
        frames, _ = log.read(0, bytes_max=1 << 20)
        assert log.recovery.cut_bytes == 0
        assert log.end() == 4 and [f.origin for f in frames] == [US, US, EU, EU] and frames[0].data == kept("frame")
    finally:
        log.close()


def test_a_log_that_was_truncated(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / segment_name(2)).write_bytes(kept("log_segment_later"))
    (tmp_path / "log" / "FLOOR").write_bytes(kept("log_floor"))
    log = FileLog(tmp_path / "log", wall_ms=Clock())
    try:
        frames, _ = log.read(2, bytes_max=1 << 20)
        assert (log.start(), log.end(), log.begun_ms()) == (2, 4, Clock().ms) and [f.origin for f in frames] == [EU, EU]
        assert log.floor() == VersionVector({US: 3, EU: 1})
    finally:
        log.close()


def test_the_records_of_a_state_engine() -> None:
    """Slots, heads, removals, spent runs, conflicts, request ids, expiries and the replica's own record."""
    engine, clock = MemoryEngine(), HybridClock(Clock())
    records = msgspec.msgpack.decode(kept("state"), type=dict[bytes, bytes])
    assert {key[:1] for key in records} >= {b"d", b"h", b"j", b"m", b"q", b"t", b"x", b"z"}
    engine.write(records)
    replica = Replica(engine, origin=EU, cluster="other", clock=clock)
    assert (replica.origin, replica.cluster, replica.position) == (US, "test", 4)
    assert replica.vv() == VersionVector({US: 3, EU: 3}) and clock.mark > 0
    assert {slot: replica.state.get(slot) for slot in SLOTS.values()} == {slot: kept(name) for name, slot in SLOTS.items()}
    assert replica.digest() == Snapshot.from_bytes(kept("snapshot")).digest()
    assert replica.journal.total == len(list(replica.journal.records())) > 0
    assert replica.request(b"request") is not None and len(replica._removals) > 0
    assert len(replica.heads.runs(b"c")) == 4 and replica.forget_stable(replica.vv(), {}, 10) == b""


def test_delta_and_snapshot_come_to_the_same_state() -> None:
    snapshot = Snapshot.from_bytes(kept("snapshot"))
    assert snapshot.vv == VersionVector.from_bytes(kept("version_vector")) == VersionVector({US: 3, EU: 3})
    at = Machine(MemoryLog(1 << 20), MemoryEngine(), origin=EU, cluster="test", clock=HybridClock(Clock()))
    frames = decode_frames(kept("delta"))
    assert frames == decode_frames(kept("delta_1"))  # of version 1
    at.apply(frames)
    assert at.vv() == snapshot.vv and at.replica.digest() == snapshot.digest()
    for name, slot in SLOTS.items():
        assert snapshot.slots[slot] == at.replica.state.get(slot) == kept(name)


def test_token() -> None:
    assert decode_token(kept("token").decode()) == Token(0, US, 4, VersionVector({US: 3, EU: 3}))


def test_a_backup_is_restored(tmp_path: Path) -> None:
    """Its manifest, a chunk of records and one of frames; what compression gives may differ from version to version, what it holds not."""
    target = FolderTarget(tmp_path / "backups")
    for name in ("full/manifest.json", "full/state-000000", "later/manifest.json", "later/frames-000000"):
        target.put(name, kept(f"backup_{name.replace('/', '_').replace('-', '_').removesuffix('.json')}"))
    full, later = manifests(target)
    assert (full.id, full.records, later.id, later.parent, later.frames) == ("full", 7, "later", "full", 1)
    made = restore(target, tmp_path / "data", region="us")
    assert (made.vv, made.digest) == (VersionVector({US: 4, EU: 3}), later.digest)
