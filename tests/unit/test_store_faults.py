"""What a store does when something breaks half way, and the bounds that keep a frame readable.

Each test tells the story of a defect that was found by reading: what was acknowledged and lost, or logged and never
readable again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import FRAME_BYTES_MAX, Delta, DeltaKind, Frame
from crdtkv.errors import ClockSkewError, StorageError, ValueTooLargeError
from crdtkv.store import Settings, Store
from crdtkv.store.machine import Machine
from tests.stores import Clock, store_at

QUIET = Settings(async_sync_ms=3_600_000)
"""The housekeeping thread does not run: a test calls `maintain`."""


def refuse_appends(store: Store, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 0) -> None:
    """Let so many appends through, then raise."""
    append, left = store._machine.log.append, [after]

    def failing(frames: Sequence[Frame], /) -> int:
        if not left[0]:
            raise error
        left[0] -= 1
        return append(frames)

    monkeypatch.setattr(store._machine.log, "append", failing)


def test_a_write_is_not_acknowledged_when_a_later_request_of_its_group_failed_to_seal_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # `count` seals the frame in the making. When that failed, the put before it was answered as done, and was nowhere.
    store = crdtkv.open()
    refuse_appends(store, monkeypatch, StorageError("the disk is full"))
    with pytest.raises(StorageError) as failed:
        store.execute([[1, "put", ["k", encode_value(1)], None], [2, "count", [""], None]])
    assert not failed.value.maybe_applied


def test_a_group_that_fails_after_part_of_it_was_logged_says_that_it_may_have_been_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    store = crdtkv.open()
    refuse_appends(store, monkeypatch, StorageError("the disk is full"), after=1)
    value = encode_value(b"x" * 900_000)
    with pytest.raises(StorageError) as failed:
        store.execute([[n, "put", [f"k{n}", value], None] for n in range(4)])
    assert failed.value.maybe_applied


def test_what_could_not_be_logged_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(Clock())
    store.put("k", 1)
    refuse_appends(store, monkeypatch, StorageError("the disk is full"))
    with pytest.raises(StorageError):
        store.put("k", 2)
    with pytest.raises(StorageError, match="opened again"):
        store.get("k")


def test_an_interrupt_between_encoding_and_appending_leaves_no_hole_in_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Ctrl-C came when the frame was made and not yet logged; the next put was logged after a seq that is nowhere.
    store = crdtkv.open(tmp_path, settings=QUIET, durability="async")
    store.put("before", 1)
    encode_frame = store._replica._encode_frame

    def interrupted(*arguments: Any) -> Frame:
        encode_frame(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(store._replica, "_encode_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put("lost", 2)
    monkeypatch.undo()
    with pytest.raises(StorageError):
        store.put("after", 3)
    store.close()
    with crdtkv.open(tmp_path, settings=QUIET) as again:
        assert again.get("before") == 1 and again.get("lost") is None
        again.put("after", 3)


def test_the_limit_of_a_commit_counts_the_bytes_of_keys_not_their_characters() -> None:
    # 12,000 keys of 250 emoji were counted as 3 MB and made a frame of 12 MB, with which the store did not open again.
    with crdtkv.open() as store, pytest.raises(ValueTooLargeError), store.batch() as batch:
        for number in range(12_000):
            batch.put("\N{GRINNING FACE}" * 250 + str(number), 1)


def test_expiries_of_large_elements_make_commits_that_fit_a_frame() -> None:
    # Ten elements of a megabyte expired in one commit of ten megabytes: the store did not open again.
    clock = Clock()
    store = store_at(clock)
    for number in range(10):
        store.set("large").add(b"%d" % number * 1_000_000, ttl=1)
    clock.ms += 10_000
    before = store._machine.log.end()
    for _ in range(10):
        store.maintain()
    frames, _ = store._machine.log.read(before, bytes_max=100_000_000)
    assert frames and all(Frame.decode(f.data).size < FRAME_BYTES_MAX for f in frames)
    assert not store._reader.entries(b"large") and store._reader.head(b"large") is None


def test_expiries_beyond_what_one_round_looks_at_are_all_issued() -> None:
    clock = Clock()
    store = store_at(clock)
    with store.batch() as batch:
        for number in range(9_000):
            batch.put(f"k{number}", number, ttl=1)
    clock.ms += 10_000
    for _ in range(14):
        store.maintain()
    assert not any(store._reader.entries(slot) for slot, _ in store._replica.state.scan(b"s", b"t"))
    assert not list(store._replica.due(10_000))


def test_a_frame_that_could_not_be_read_again_is_refused_before_it_is_logged() -> None:
    origin = crdtkv.open().origin
    value = encode_value(b"x" * 1_000_000)
    deltas: list[Delta] = [[DeltaKind.REGISTER_PUT, f"k{n}", value] for n in range(9)]
    with pytest.raises(ValueTooLargeError):
        Frame.build("c", 0, origin, 1, 1, crdtkv.VersionVector(), b"", [[0, None, *deltas]])


def test_a_clock_that_refuses_writes_does_not_stop_reads_when_something_expires() -> None:
    # The housekeeper took the refusal for a broken store: one entry with a TTL, and every read failed.
    clock = Clock()
    store = store_at(clock)
    store.put("stays", 1)
    store.put("expires", 1, ttl=1)
    clock.ms += 10_000
    store._replica.clock.restore(clock.ms + 3_600_000 << 16)
    with pytest.raises(ClockSkewError):
        store.put("other", 1)
    store.maintain()
    assert store.get("stays") == 1 and store.get("expires") is None
    clock.ms += 3_600_000
    store.maintain()
    assert not store._reader.entries(b"expires")


def test_a_large_clear_reaches_the_engine_while_it_goes_on() -> None:
    # Nothing but a write folded: what a clear of millions had dropped gathered in memory, and each slice walked it.
    settings = Settings(async_sync_ms=3_600_000, fold_records_max=500, purge_slots=200)
    store = store_at(Clock(), settings=settings)
    store.set("s").add(*range(5_000))
    store.set("s").clear()
    most = 0
    while store._replica.purges:
        store.maintain()
        most = max(most, store._replica.state.pending)
    assert most < 500 + 2 * 200
    assert store.set("s").members() == []


def test_one_hot_key_is_folded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fold counted changed records only: a key that was written for ever was one, and all of it was replayed after a crash.
    monkeypatch.setattr("crdtkv.store.machine.FOLD_BYTES_MAX", 100_000)
    store = store_at(Clock())
    for number in range(3_000):
        store.put("hot", number)
    assert store._machine.unfolded_bytes < 100_000
    assert store._machine.engine.get(b"m") is not None


def interrupt_after_a_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C strikes a put between its commit and its frame."""
    make = Machine.transact_put

    def interrupted(machine: Machine, key: bytes, delta: Delta, request_id: bytes | None = None) -> tuple[int, int]:
        make(machine, key, delta, request_id)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Machine, "transact_put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put("interrupted", 1)


def test_a_commit_that_was_interrupted_before_its_frame_joins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was sealed with the next write, which then stood for two commits, one of them of nobody who was told.
    for write in ("put", "add", "execute", "expire"):
        with store_at(Clock()) as store:
            store.put("k", 0)
            interrupt_after_a_commit(store, monkeypatch)
            if write == "put":
                store.put("k", 1)
            elif write == "add":
                store.set("s").add(1)
            elif write == "execute":
                store.execute([[1, "put", ["k", encode_value(1)], None]])
            else:
                store.expire("k", 10)
            frames, _ = store._machine.log.read(0, bytes_max=1 << 20)
            assert [frame.count for frame in frames] == [1, 1, 1], write
            assert store.get("interrupted") == 1


def test_a_commit_that_was_interrupted_is_there_after_a_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with crdtkv.open(tmp_path, region="us", settings=QUIET) as store:
        interrupt_after_a_commit(store, monkeypatch)
    assert store._machine.log.synced() == 1
    with crdtkv.open(tmp_path, region="us", settings=QUIET) as again:
        assert again.get("interrupted") == 1 and again.vv().seq(again.origin) == 1
