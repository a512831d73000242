"""The contract of state engines: one suite, run against each."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from crdtkv.errors import CorruptionError, CrdtkvError, StorageError, StoreClosedError, StoreLockedError
from crdtkv.storage import rocksdb
from crdtkv.storage.engine import SCAN_CHUNK, MemoryEngine, StateEngine
from crdtkv.storage.lmdb import KEY_BYTES_MAX, LmdbEngine
from crdtkv.storage.lock import DirectoryLock
from crdtkv.storage.rocksdb import RocksDbEngine

ENGINES: dict[str, Callable[[Path], StateEngine]] = {
    "memory": lambda path: MemoryEngine(),
    "rocksdb": RocksDbEngine,
    "lmdb": LmdbEngine,
}


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(kind: str, tmp_path: Path) -> Iterator[StateEngine]:
    engine = ENGINES[kind](tmp_path / "state")
    yield engine
    if isinstance(engine, MemoryEngine):
        engine._check()
    engine.close()


def fill(engine: StateEngine, count: int) -> dict[bytes, bytes]:
    items = {b"k%06d" % (i * 7919 % count): b"v%d" % i for i in range(count)}
    engine.write(items)
    return items


def items_of(engine: StateEngine) -> list[tuple[bytes, bytes]]:
    return list(engine.scan(b"", None))


def test_get_write_delete(engine: StateEngine) -> None:
    assert engine.get(b"a") is None
    engine.write({b"a": b"1", b"b": b"", b"\xff" * 40: b"\0"})
    assert engine.get(b"a") == b"1"
    assert engine.get(b"b") == b""
    engine.write({b"a": None, b"b": b"2", b"absent": None})
    assert engine.multi_get([b"b", b"a", b"\xff" * 40, b"b"]) == [b"2", None, b"\0", b"2"]
    assert engine.multi_get([]) == []
    engine.write({})
    assert items_of(engine) == [(b"b", b"2"), (b"\xff" * 40, b"\0")]


def test_scan_bounds_and_order(engine: StateEngine) -> None:
    keys = [b"a", b"a\0", b"a\0b", b"ab", b"b", b"b\xff", b"b\xff\xff", b"c"]
    engine.write(dict.fromkeys(reversed(keys), b"v"))
    bounds = [b"", b"\0", b"a", b"a\0", b"aa", b"b", b"b\xff", b"b\xff\0", b"c", b"c\0", b"d"]
    for start in bounds:
        for end in [*bounds, None]:
            expected = [key for key in keys if start <= key and (end is None or key < end)]
            assert [key for key, _ in engine.scan(start, end)] == expected, (start, end)
            assert [key for key, _ in engine.scan(start, end, reverse=True)] == expected[::-1], (start, end)


@pytest.mark.parametrize("count", [SCAN_CHUNK - 1, SCAN_CHUNK, SCAN_CHUNK + 1, 3 * SCAN_CHUNK])
def test_scan_across_chunks(engine: StateEngine, count: int) -> None:
    expected = sorted(fill(engine, count).items())
    assert items_of(engine) == expected
    assert list(engine.scan(b"", None, reverse=True)) == expected[::-1]
    assert list(islice(engine.scan(expected[5][0], None), 3)) == expected[5:8]


def test_scan_shows_the_moment_of_its_call(engine: StateEngine) -> None:
    before = sorted(fill(engine, 3 * SCAN_CHUNK).items())
    unstarted = engine.scan(b"", None)
    started = engine.scan(b"", None, reverse=True)
    first = next(started)
    engine.write({b"k000001": None, b"k000002": b"changed", b"new": b"n", b"a": b"first"})
    engine.write({b"k%06d" % i: None for i in range(SCAN_CHUNK, 2 * SCAN_CHUNK)})
    assert list(unstarted) == before
    assert [first, *started] == before[::-1]
    assert engine.get(b"k000002") == b"changed"


def test_snapshots_are_independent(engine: StateEngine) -> None:
    engine.write({b"a": b"1", b"b": b"1", b"gone": b"1"})
    with engine.snapshot() as first:
        engine.write({b"a": b"2", b"c": b"2", b"gone": None})
        second = engine.snapshot()
        engine.write({b"a": b"3", b"b": None, b"gone": b"3"})
        assert first.multi_get([b"a", b"b", b"c", b"gone"]) == [b"1", b"1", None, b"1"]
        assert second.multi_get([b"a", b"b", b"c", b"gone"]) == [b"2", b"1", b"2", None]
        assert list(first.scan(b"", None)) == [(b"a", b"1"), (b"b", b"1"), (b"gone", b"1")]
        assert list(second.scan(b"", None, reverse=True)) == [(b"c", b"2"), (b"b", b"1"), (b"a", b"2")]
        second.close()
        second.close()
        assert first.get(b"a") == b"1"  # what the younger one kept is still there for the older
        assert list(first.scan(b"a", b"b")) == [(b"a", b"1")]
    assert items_of(engine) == [(b"a", b"3"), (b"c", b"2"), (b"gone", b"3")]
    with pytest.raises(StoreClosedError):
        first.get(b"a")
    with pytest.raises(StoreClosedError):
        list(second.scan(b"", None))


@pytest.mark.parametrize("other", ["get", "scan", "reverse"])
def test_what_else_is_read_from_a_snapshot_moves_no_scan_of_it(engine: StateEngine, other: str) -> None:
    keys = [b"%05d" % number for number in range(3 * SCAN_CHUNK)]
    engine.write({key: key[::-1] for key in keys})
    with engine.snapshot() as snapshot:
        reads = {
            "get": lambda: snapshot.get(keys[-1]),
            "scan": lambda: next(snapshot.scan(keys[7], None)),
            "reverse": lambda: next(snapshot.scan(b"", None, reverse=True)),
        }
        found = []
        for number, item in enumerate(snapshot.scan(b"", None)):
            found.append(item)
            if number % (SCAN_CHUNK - 1) == 0:  # on either side of where a page ends
                assert reads[other]()
        assert found == [(key, key[::-1]) for key in keys]


def test_key_deleted_before_any_scan_ordered_it_is_in_the_snapshot(engine: StateEngine) -> None:
    engine.write({b"a": b"1", b"b": b"1"})
    with engine.snapshot() as snapshot:
        engine.write({b"a": b"2"})
        engine.write({b"a": None})
        engine.write({b"z": b"1"})
        assert list(snapshot.scan(b"", None)) == [(b"a", b"1"), (b"b", b"1")]
    engine.write({b"a": b"again"})
    assert items_of(engine) == [(b"a", b"again"), (b"b", b"1"), (b"z", b"1")]


@pytest.mark.parametrize("first_batch", [{}, {b"x%d" % i: b"2" for i in range(9)}], ids=["little kept", "much kept"])
def test_snapshot_that_ends_leaves_the_older_one_its_own_view(engine: StateEngine, first_batch: dict[bytes, bytes]) -> None:
    engine.write({b"a": b"1", b"b": b"1"})
    older = engine.snapshot()
    engine.write({**first_batch, b"a": b"2"})
    younger = engine.snapshot()
    engine.write({b"a": b"3", b"b": b"3", b"c": b"3"})
    younger.close()
    engine.write({b"a": b"4", b"b": b"4"})
    assert list(older.scan(b"", None)) == [(b"a", b"1"), (b"b", b"1")]
    assert older.multi_get([b"a", b"b", b"c", b"x1"]) == [b"1", b"1", None, None]
    older.close()
    engine.write({b"a": b"5"})
    assert engine.get(b"a") == b"5"


def test_snapshot_outlives_a_rebuilt_index(engine: StateEngine) -> None:
    waste = [b"waste/%05d" % i for i in range(12 * SCAN_CHUNK)]
    engine.write(dict.fromkeys(waste, b"w"))
    kept = {b"kept/%05d" % i: b"k" for i in range(2 * SCAN_CHUNK)}
    engine.write(kept)
    assert sum(1 for _ in engine.scan(b"", None)) == len(waste) + len(kept)
    engine.write(dict.fromkeys(waste))
    with engine.snapshot() as snapshot:
        engine.write(dict.fromkeys(kept))
        assert items_of(engine) == []  # this finds the index mostly waste
        assert list(snapshot.scan(b"", None)) == sorted(kept.items())


def test_dropped_snapshots_and_scans_hold_nothing_back(engine: StateEngine) -> None:
    fill(engine, 2 * SCAN_CHUNK)
    engine.snapshot()
    engine.scan(b"", None)
    next(engine.scan(b"", None))
    gc.collect()
    engine.write({b"x": b"1"})
    match engine:
        case MemoryEngine():
            assert not engine._versions
        case RocksDbEngine():
            assert not engine._cursors
        case LmdbEngine():
            assert not engine._views


def test_index_survives_churn(engine: StateEngine) -> None:
    for turn in range(20):
        engine.write({b"%d/%04d" % (turn, i): b"v" for i in range(SCAN_CHUNK)})
        assert sum(1 for _ in engine.scan(b"", None)) == SCAN_CHUNK
        engine.write({b"%d/%04d" % (turn, i): None for i in range(SCAN_CHUNK)})
        engine.write({b"%d/%04d" % (turn, 3): b"back"})
        engine.write({b"%d/%04d" % (turn, 3): None})
    assert items_of(engine) == []


@pytest.mark.parametrize("length", [KEY_BYTES_MAX - 2, KEY_BYTES_MAX - 1, KEY_BYTES_MAX, KEY_BYTES_MAX + 1, 1012, 1013, 1024, 5_000])
def test_long_keys_keep_their_order(engine: StateEngine, length: int) -> None:
    stem = b"k" * length
    keys = sorted({stem, stem[:-1], stem + b"\0", stem + b"\1", stem + b"\2", stem + b"z", stem[:-1] + b"j", stem[:-1] + b"l", b"k", b"l"})
    engine.write({key: b"%d" % len(key) for key in keys})
    assert [key for key, _ in engine.scan(b"", None)] == keys
    assert engine.multi_get(keys) == [b"%d" % len(key) for key in keys]
    assert engine.get(stem + b"absent") is None and engine.get(b"absent" * length) is None
    for start in keys:
        for end in [*keys, stem + b"\0\0", None]:
            expected = [key for key in keys if start <= key and (end is None or key < end)]
            assert [key for key, _ in engine.scan(start, end)] == expected
            assert [key for key, _ in engine.scan(start, end, reverse=True)] == expected[::-1]
    engine.write({key: None for key in keys if key != b"k"})
    assert items_of(engine) == [(b"k", b"1")]


def test_many_long_keys_of_one_stem(engine: StateEngine) -> None:
    stem = b"s" * 1024
    keys = [stem + b"%05d" % i + b"e" * (i % 7 * 100) for i in range(3 * SCAN_CHUNK)]
    engine.write(dict.fromkeys(keys, b"v"))
    assert [key for key, _ in engine.scan(stem, stem + b"\xff")] == keys
    assert [key for key, _ in engine.scan(stem, None, reverse=True)] == keys[::-1]


def test_batches_are_atomic_for_readers_in_other_threads(engine: StateEngine) -> None:
    names = [b"n%d" % i for i in range(4)]
    engine.write(dict.fromkeys(names, b"0"))
    stop = threading.Event()
    torn: list[list[bytes | None]] = []

    def read() -> None:
        while not stop.is_set():
            with engine.snapshot() as snapshot:
                views: list[list[bytes | None]] = [snapshot.multi_get(names), engine.multi_get(names)]
                views.append([value for _, value in snapshot.scan(b"n", b"o")])
            torn.extend(view for view in views if len(set(view)) > 1 or len(view) not in (0, 4))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(300):
        engine.write(dict.fromkeys(names, b"%d" % turn if turn % 3 else None))
    stop.set()
    reader.join()
    assert not torn


def test_checkpoint_is_the_state_of_its_moment(engine: StateEngine, kind: str, tmp_path: Path) -> None:
    expected = sorted(fill(engine, 1000).items())
    engine.checkpoint(tmp_path / "copy")
    engine.write({b"later": b"1"})
    with pytest.raises(StorageError):
        engine.checkpoint(tmp_path / "copy")
    copy = MemoryEngine.open_checkpoint(tmp_path / "copy") if kind == "memory" else ENGINES[kind](tmp_path / "copy")
    assert items_of(copy) == expected
    copy.close()


def test_size_follows_what_is_stored(engine: StateEngine) -> None:
    empty = engine.size_bytes()
    engine.write({b"k%d" % i: os.urandom(1000) for i in range(300)})
    engine.flush()
    assert empty + 200_000 < engine.size_bytes() < empty + 2_000_000


def test_closed_engine_says_so(engine: StateEngine) -> None:
    engine.write({b"k%d" % i: b"v" for i in range(2 * SCAN_CHUNK)})
    snapshot, scan = engine.snapshot(), engine.scan(b"", None)
    next(scan)
    engine.close()
    engine.close()
    calls: list[Callable[[], object]] = [
        lambda: engine.get(b"k1"),
        lambda: engine.multi_get([b"k1"]),
        lambda: engine.write({b"k1": b"v"}),
        lambda: list(engine.scan(b"", None)),
        lambda: engine.snapshot(),
        lambda: snapshot.get(b"k1"),
        lambda: list(snapshot.scan(b"", None)),
        lambda: list(scan),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError):
            call()


@pytest.mark.parametrize("kind", ["rocksdb", "lmdb"])
def test_flushed_state_is_there_after_reopening(kind: str, tmp_path: Path) -> None:
    engine = ENGINES[kind](tmp_path / "state")
    expected = sorted(fill(engine, 500).items())
    view = engine.snapshot()  # an open view must not keep the files locked
    engine.flush()
    engine.close()
    again = ENGINES[kind](tmp_path / "state")
    assert items_of(again) == expected
    again.close()
    with pytest.raises(StoreClosedError):
        view.get(b"k000001")


@pytest.mark.parametrize("kind", ["rocksdb", "lmdb"])
def test_killed_process_leaves_a_prefix_of_the_batches(kind: str, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.unit.test_engines import ENGINES
engine = ENGINES[sys.argv[1]](Path(sys.argv[2]))
for turn in range(1_000_000):
    engine.write({b"a": b"%d" % turn, b"%06d" % turn: b"x" * 50, b"z": b"%d" % turn})
    if turn == 200:
        engine.flush()
    if turn == 1000:
        print("ready", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program, kind, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    engine = ENGINES[kind](tmp_path / "state")
    last = int(engine.get(b"a") or b"-1")
    assert last >= 200
    assert engine.get(b"z") == b"%d" % last
    assert [key for key, _ in engine.scan(b"0", b"a")] == [b"%06d" % turn for turn in range(last + 1)]
    engine.close()


@pytest.mark.parametrize("kind", ["rocksdb", "lmdb"])
def test_garbage_in_the_directory_is_an_error_of_ours(kind: str, tmp_path: Path) -> None:
    engine = ENGINES[kind](tmp_path / "state")
    fill(engine, 5000)
    engine.flush()
    engine.close()
    for path in (tmp_path / "state").iterdir():
        if path.name in ("CURRENT", "data.mdb"):
            path.write_bytes(b"garbage" * 100)
    with pytest.raises(CrdtkvError):
        ENGINES[kind](tmp_path / "state")


def test_a_look_up_in_a_large_file_read_its_whole_filter_and_index_anew(tmp_path: Path) -> None:
    """Of a file with a million records each was larger than a shard of the cache holds: a get took 0.3 ms of CPU, and so did every 32nd
    key of a multi-get. In pieces indexes stay in the cache, and filters are beside it."""
    engine = RocksDbEngine(tmp_path / "state")
    count = 20_000
    fill(engine, count)
    engine.flush()
    engine.close()
    written = [line for line in (tmp_path / "state" / "LOG").read_text().splitlines() if '"event": "table_file_creation"' in line]
    table = msgspec.json.decode(written[-1].partition("EVENT_LOG_v1 ")[2])["table_properties"]
    assert table["num_entries"] == count
    assert table["index_partitions"] >= 1  # 0: it is in one piece, however large
    (options,) = (tmp_path / "state").glob("OPTIONS-*")
    assert "cache_index_and_filter_blocks=false" in options.read_text()


def test_rocksdb_scan_never_ends_silently_at_a_damaged_block(tmp_path: Path) -> None:
    engine = RocksDbEngine(tmp_path / "state")
    engine.write({b"k%06d" % i: os.urandom(100) for i in range(20_000)})
    engine.flush()
    engine.close()
    (path,) = (tmp_path / "state").glob("*.sst")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    engine = RocksDbEngine(tmp_path / "state")
    for reverse in (False, True):
        with pytest.raises(CorruptionError, match="move the data directory aside"):
            list(engine.scan(b"", None, reverse=reverse))
    with pytest.raises(CorruptionError), engine.snapshot() as snapshot:
        list(snapshot.scan(b"", None))
    with pytest.raises(CorruptionError):
        engine.multi_get([b"k%06d" % i for i in range(20_000)])
    engine.close()


def test_rocksdb_answers_for_recent_records_as_for_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocksdb, "RECENT_BYTES_MAX", 40 * (rocksdb.RECENT_OVERHEAD + 10))
    engine = RocksDbEngine(tmp_path / "state")
    draw = random.Random(7)
    names = [b"k%03d" % i for i in range(120)]
    expected: dict[bytes, bytes | None] = dict.fromkeys(names)
    for turn in range(300):
        batch = {name: None if draw.random() < 0.2 else b"%d" % turn for name in draw.sample(names, draw.randrange(1, 30))}
        engine.write(batch)
        expected |= batch
        asked = draw.sample(names, 25)
        assert engine.multi_get(asked) == [expected[name] for name in asked]
        assert engine.get(asked[0]) == expected[asked[0]]
        held = engine._recent
        assert len(held._younger) + len(held._older) <= 2 * (40 + 30), "memory is bounded"
    assert engine.multi_get(names) == [expected[name] for name in names]
    assert dict(items_of(engine)) == {name: value for name, value in expected.items() if value is not None}
    engine.close()


def test_rocksdb_forgets_recent_records_when_a_write_fails(tmp_path: Path) -> None:
    """Nobody knows then whether they are what is stored."""
    engine = RocksDbEngine(tmp_path / "state")
    engine.write({b"a": b"1", b"b": b"1"})
    with pytest.raises(StorageError):
        engine.write({b"a": b"2", b"b": "no bytes"})  # type: ignore[dict-item]
    assert not engine._recent._younger
    assert engine.multi_get([b"a", b"b"]) == [b"1", b"1"]
    engine.write({b"a": b"3"})
    assert (engine.get(b"a"), engine.multi_get([b"b", b"a"])) == (b"3", [b"1", b"3"])
    engine.close()


def test_rocksdb_read_beside_a_write_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of what is asked for is at hand, from before a batch; the rest comes from RocksDB, after it."""
    engine = RocksDbEngine(tmp_path / "state")
    engine.write({b"old": b"1"})
    engine._recent.clear()
    engine.write({b"recent": b"1"})
    read = engine._read

    def read_after_a_write(keys: list[bytes]) -> list[bytes | None]:
        monkeypatch.setattr(engine, "_read", read)
        engine.write({b"old": b"2", b"recent": b"2"})
        return read(keys)

    monkeypatch.setattr(engine, "_read", read_after_a_write)
    assert engine.multi_get([b"recent", b"old"]) == [b"2", b"2"]
    engine._recent.begin()
    assert engine._recent.get(b"old") is rocksdb._UNKNOWN, "only RocksDB knows while a batch is being written"
    engine.close()


def test_rocksdb_has_one_owner(tmp_path: Path) -> None:
    engine = RocksDbEngine(tmp_path / "state")
    with pytest.raises(StoreLockedError):
        RocksDbEngine(tmp_path / "state")
    engine.close()


def test_lmdb_map_grows_unless_someone_reads(tmp_path: Path) -> None:
    engine = LmdbEngine(tmp_path / "state", map_bytes=1 << 20)
    for turn in range(8):
        engine.write({b"%d/%d" % (turn, i): b"x" * 1000 for i in range(400)})
    assert sum(1 for _ in engine.scan(b"", None)) == 3200
    big = {b"big/%d" % i: b"x" * 1000 for i in range(20_000)}
    with engine.snapshot() as snapshot:
        with pytest.raises(StorageError) as refused:
            engine.write(big)
        assert refused.value.retryable
        assert engine.get(b"big/0") is None
        assert snapshot.get(b"0/0") == b"x" * 1000
    engine.write(big)
    assert engine.get(b"big/19999") == b"x" * 1000
    engine.close()


def test_lmdb_long_keys_leave_nothing_behind(tmp_path: Path) -> None:
    engine = LmdbEngine(tmp_path / "state")
    keys = [b"k" * 3000 + b"%d" % i for i in range(50)] + [b"k" * 1012, b"k" * 1013, b"k" * 511]
    engine.write(dict.fromkeys(keys, b"v"))
    engine.write(dict.fromkeys(keys))
    engine.write(dict.fromkeys(keys))
    with engine._env.begin() as txn:
        assert txn.stat(engine._slots)["entries"] == 0
        assert txn.stat(engine._long)["entries"] == 1  # the number of the next node
    engine.close()


def test_missing_lmdb_says_what_to_install() -> None:
    program = """
import sys
sys.modules["lmdb"] = None
from crdtkv.errors import ConfigError
try:
    import crdtkv.storage.lmdb
except ConfigError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "the LMDB engine needs the lmdb package: pip install crdtkv[lmdb]\n"


def test_memory_checkpoint_damaged(tmp_path: Path) -> None:
    engine = MemoryEngine()
    fill(engine, 10)
    engine.checkpoint(tmp_path / "copy")
    (path,) = (tmp_path / "copy").iterdir()
    for damaged in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            MemoryEngine.open_checkpoint(tmp_path / "copy")


# -- the lock ---------------------------------------------------------------------------------------------------


def test_lock_names_its_owner_and_refuses_this_process_too(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "data") as lock:
        assert lock.is_held
        with pytest.raises(StoreLockedError, match=f"this process.*{os.getpid()}") as refused:
            DirectoryLock(tmp_path / "data")
        assert refused.value.details["pid"] == os.getpid()
    lock.release()
    assert not lock.is_held
    DirectoryLock(tmp_path / "data").release()


def test_lock_of_another_process_ends_with_it(tmp_path: Path) -> None:
    program = """
import sys
from crdtkv.storage.lock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
print("held", flush=True)
input()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdout is not None and child.stdin is not None and child.stdout.readline() == "held\n"
    with pytest.raises(StoreLockedError, match=f"process {child.pid}"):
        DirectoryLock(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdin.close()
    child.stdout.close()
    DirectoryLock(tmp_path).release()


def test_forked_child_neither_holds_nor_breaks_the_lock(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.release()  # of no effect here: the lock is the parent's
        try:
            DirectoryLock(tmp_path)
        except StoreLockedError:
            os.write(writer, b"refused")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 16) == b"refused"
    os.close(reader)
    os.close(writer)
    lock.release()
    DirectoryLock(tmp_path).release()


def test_lock_in_an_impossible_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        DirectoryLock(tmp_path / "file" / "data")
