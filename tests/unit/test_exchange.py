"""`delta_since` and `merge`: exactly what is lacking, all or nothing, once however often, and never a fork."""

from __future__ import annotations

import pytest

from crdtkv import CorruptionError, InvalidValueError, MissingHistoryError, Settings, Store, WrongClusterError
from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.core.join import is_snapshot
from crdtkv.errors import IncompatibleFormatError
from crdtkv.store.exchange import _checksum, _encode, _Wire, decode_frames
from tests.stores import Clock, store_at, stores, sync

SHORT = Settings(async_sync_ms=3_600_000, memory_log_bytes=1000)


def packed(_: Store, frames: list[Frame]) -> bytes:
    body = _encode(_Wire([f.data for f in frames]))
    return b"\xc1\x44\x02" + _checksum(body) + body


def frames_of(store: Store, vv: VersionVector = EMPTY_VV) -> list[Frame]:
    return decode_frames(store.delta_since(vv))


def state_of(store: Store) -> tuple[object, ...]:
    return store.vv(), store.digest(), store._machine.log.end(), store._replica.journal.total, list(store.scan())


def test_exactly_what_is_lacking() -> None:
    with stores("us", "eu") as (us, eu):
        for i in range(10):
            us.put(f"k{i}", i)
        seen = us.vv()
        us.put("new", 1)
        assert [(f.first_seq, f.last_seq) for f in frames_of(us, seen)] == [(11, 11)]
        assert frames_of(us, us.vv()) == [] and len(frames_of(us)) == 11
        result = eu.merge(us.delta_since(eu.vv()))
        assert (result.applied, result.duplicates, result.conflicts) == (11, 0, 0)
        assert result.changed_keys == (*(f"k{i}" for i in range(10)), "new")
        before = state_of(eu)
        again = eu.merge(us.delta_since())
        assert (again.applied, again.duplicates, again.changed_keys) == (0, 11, ()) and state_of(eu) == before
        nothing = eu.merge(us.delta_since(eu.vv()))
        assert (nothing.applied, nothing.duplicates) == (0, 0)


def test_commits_of_third_replicas_come_along() -> None:
    with stores("us", "eu", "ap") as (us, eu, ap):
        us.put("k", "us")
        eu.merge(us.delta_since())
        eu.put("k", "eu")
        ap.merge(eu.delta_since())
        assert ap["k"] == "eu" and ap.vv() == eu.vv() and len(ap.siblings("k")) == 1
        us.merge(ap.delta_since(us.vv()))
        sync(us, eu, ap)


def test_frames_in_any_order_and_twice_are_taken_once() -> None:
    with stores("us", "eu", "ap") as (us, eu, ap):
        us.put("a", 1)
        eu.merge(us.delta_since())
        eu.set("s").add(2)
        us.merge(eu.delta_since(us.vv()))
        us.counter("c").increment()
        frames = frames_of(us)
        result = ap.merge(packed(ap, [*frames[::-1], *frames]))
        assert result.applied == 3 and ap.digest() == us.digest()


def test_missing_history_is_named_and_nothing_is_taken() -> None:
    with stores("us", "eu", "ap") as (us, eu, ap):
        eu.put("rests on", 0)
        us.put("first", 1)
        us.merge(eu.delta_since())
        us.put("second", 2)
        first, eus, second = frames_of(us)
        for bag in ([second], [first, second], [eus, second]):
            before = state_of(ap)
            with pytest.raises(MissingHistoryError) as refused:
                ap.merge(packed(ap, bag))
            assert state_of(ap) == before and ap._replica.held == (0, 0)
            needed = us.origin if first not in bag else eu.origin
            assert needed in refused.value.details["needs"] and "\n" not in str(refused.value)
        ap.merge(us.delta_since(ap.vv()))
        assert ap.digest() == us.digest()


def test_another_cluster_or_shard_is_refused() -> None:
    for settings in (Settings(cluster="other"), Settings(shard=1)):
        with stores("us") as (us,), store_at(Clock(), "eu", settings) as eu:
            us.put("k", 1)
            for data in (us.delta_since(), packed(eu, frames_of(us))):
                with pytest.raises(WrongClusterError):
                    eu.merge(data)
            assert eu.vv() == EMPTY_VV


@pytest.mark.parametrize("snapshot", [False, True])
def test_every_cut_and_every_flipped_bit_is_refused(snapshot: bool) -> None:
    with store_at(Clock(), "us", SHORT if snapshot else None) as us, store_at(Clock(), "eu") as eu:
        for i in range(30 if snapshot else 2):
            us.put(f"k{i % 3}", "v" * 40)
        data = us.delta_since()
        assert is_snapshot(data) == snapshot
        before = state_of(eu)
        for bad in [*(data[:n] for n in range(len(data))), data + b"\x00"]:
            with pytest.raises(CorruptionError):
                eu.merge(bad)
        for at in range(len(data)):
            with pytest.raises((CorruptionError, IncompatibleFormatError)):
                eu.merge(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert state_of(eu) == before
        for wrong in ("text", None, 5):
            with pytest.raises(InvalidValueError):
                eu.merge(wrong)  # type: ignore[arg-type]
        eu.merge(bytearray(data))
        assert eu.digest() == us.digest()


def test_one_bad_frame_in_a_bag_spoils_all_of_it() -> None:
    with stores("us", "eu") as (us, eu):
        us.put("a", 1)
        us.put("b", 2)
        good, other = frames_of(us)
        rows = [[0, None, [0, "b", b"\xc1"]]]
        broken = Frame.build(us.cluster, 0, us.origin, 2, other.hlc, EMPTY_VV, good.hash, rows)
        with pytest.raises(CorruptionError):
            eu.merge(packed(eu, [good, broken]))
        assert eu.vv() == EMPTY_VV


def test_a_fork_is_refused_whole() -> None:
    """Two histories of one origin: a copied disk. The frame that follows the other history is not taken, nor what came with it."""
    with stores("us", "eu", "ap") as (us, eu, ap):
        us.put("a", 1)
        ap.put("innocent", 1)
        eu.merge(us.delta_since())
        original = frames_of(us)[0]
        rows = [[0, None, [0, "a", b"\x02"]]]
        twin = Frame.build(us.cluster, 0, us.origin, 1, original.hlc, EMPTY_VV, b"", rows)
        follows = Frame.build(us.cluster, 0, us.origin, 2, original.hlc + 9, EMPTY_VV, twin.hash, rows)
        overlaps = Frame.build(us.cluster, 0, us.origin, 1, original.hlc, EMPTY_VV, b"", [*rows, [1, *rows[0][1:]]])
        for fork in (follows, overlaps):
            before = state_of(eu)
            with pytest.raises(CorruptionError, match="fork"):
                eu.merge(packed(eu, [*frames_of(ap), fork]))
            assert state_of(eu) == before


def test_below_the_floor_a_snapshot_comes_and_own_unseen_writes_stay() -> None:
    with store_at(Clock(), "us", SHORT) as us, store_at(Clock(), "eu") as eu:
        us.set("s").add("both", "removed later")
        us.counter("c").increment(5)
        eu.merge(us.delta_since(eu.vv()))
        eu.set("s").add("only eu")
        eu.counter("c").increment(2)
        eu.put("r", "eu")
        us.set("s").discard("removed later")
        for i in range(60):
            us.put("r", i)
        assert not us._machine.log.floor() <= eu.vv()
        data = us.delta_since(eu.vv())
        assert is_snapshot(data)
        result = eu.merge(data)
        assert result.applied == 61 and set(result.changed_keys) >= {"r", "s"}
        assert sorted(eu.set("s").members()) == ["both", "only eu"] and eu.counter("c").value == 7
        assert {s.value for s in eu.siblings("r")} == {59, "eu"}
        (met,) = eu.conflicts("r")
        assert met.installed
        again = eu.merge(data)
        assert again.applied == 0 and again.changed_keys == ()
        us.merge(eu.delta_since(us.vv()))
        assert us.digest() == eu.digest() and us.vv() == eu.vv()
        us.put("goes on", 1)
        eu.merge(us.delta_since(eu.vv()))
        assert eu["goes on"] == 1 and eu.digest() == us.digest()


def test_what_a_snapshot_brought_is_passed_on() -> None:
    with store_at(Clock(), "us", SHORT) as us, stores("eu", "ap") as (eu, ap):
        for i in range(60):
            us.put(f"k{i % 5}", i)
        eu.merge(us.delta_since())
        eu.put("own", 1)
        data = eu.delta_since(ap.vv())
        assert is_snapshot(data), "the log of eu has not what the snapshot brought"
        ap.merge(data)
        assert ap.digest() == eu.digest()


def test_a_vector_that_is_none() -> None:
    with stores("us") as (us,), pytest.raises(InvalidValueError, match="vv"):
        us.delta_since(b"bytes")  # type: ignore[arg-type]
