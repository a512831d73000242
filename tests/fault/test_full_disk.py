"""A disk that fills up: a refused write leaves nothing, reads go on, and writes are taken again once there is room."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import crdtkv
from crdtkv.core.causality import generation_of
from crdtkv.core.codec import encode_value
from crdtkv.errors import DiskFullError
from crdtkv.storage.files import Space
from crdtkv.storage.log import FileLog
from crdtkv.store import Settings, Store, opening
from tests.fault.test_log_recovery import FaultyDisk
from tests.waiting import until

SETTINGS = Settings(async_sync_ms=3_600_000, log_segment_bytes=4096, fold_records_max=16)
"""The housekeeping thread does not run: tests call `maintain`."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    """The disk under the logs of all stores that are opened."""
    disk = FaultyDisk()
    monkeypatch.setattr(opening, "FileLog", partial(FileLog, files=disk))
    return disk


@pytest.fixture
def store(tmp_path: Path, disk: FaultyDisk) -> Iterator[Store]:
    with crdtkv.open(tmp_path / "us", region="us", durability="async", settings=SETTINGS) as store:
        store.put("k", "before")
        store.counter("c").increment(5)
        store.set("s").add(1, 2)
        yield store


def free(store: Store) -> None:
    """There is room again, and housekeeping has noticed."""
    store._upkeep._retry_at_s = 0.0
    store.maintain()
    assert not store.read_only


def everything(store: Store) -> tuple[Any, ...]:
    return store.digest(), store.vv(), dict(store.scan()), [key for key, _ in store.scan(reverse=True)], store.conflicts()


WRITES: dict[str, Callable[[Store], Any]] = {
    "put": lambda s: s.put("k", "after"),
    "put new": lambda s: s.put("new", "x" * 2000),
    "increment": lambda s: s.counter("c").increment(7),
    "reset": lambda s: s.counter("c").reset(),
    "add": lambda s: s.set("s").add(3),
    "clear": lambda s: s.set("s").clear(),
    "field": lambda s: s.map("m").put("f", 1),
    "delete": lambda s: s.delete("k"),
    "expiring": lambda s: s.put("k", "after", ttl=100),
}


@pytest.mark.parametrize("room", [0, 1, 30])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_for_which_there_is_no_room_leaves_nothing(tmp_path: Path, disk: FaultyDisk, store: Store, write: str, room: int) -> None:
    before = everything(store)
    disk.write_at_most = room
    for again in range(2):
        with pytest.raises(DiskFullError, match="No space left") as refused:
            WRITES[write](store)
        assert refused.value.retryable and not refused.value.maybe_applied and "\n" not in str(refused.value)
        assert ("until there is some" in str(refused.value)) == bool(again)  # after the first it is refused beforehand
    assert everything(store) == before and store.get("k") == "before" and store.counter("c").value == 5 and 1 in store.set("s")
    assert "No space left" in store.status().read_only and "read only" in store.status().warnings[0]
    with pytest.raises(DiskFullError):
        store.merge(crdtkv.open(region="eu").delta_since()) or store.delete_prefix("")
    disk.write_at_most = None
    free(store)
    WRITES[write](store)
    after = everything(store)
    assert after[:2] != before[:2]
    store.close()
    with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as again_open:
        assert everything(again_open) == after


@pytest.mark.parametrize("op", ["create", "rename"])
def test_no_room_for_the_next_segment(tmp_path: Path, disk: FaultyDisk, store: Store, op: str) -> None:
    disk.fail = {op: errno.ENOSPC}
    last = -1
    with pytest.raises(DiskFullError):
        for n in range(100):
            store.put(f"k{n}", "x" * 100)
            last = n
    assert f"k{last}" in store and f"k{last + 1}" not in store
    disk.fail = {}
    free(store)
    for n in range(100):
        store.put(f"k{n}", n)
    digest = store.digest()
    store.close()
    with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as again:
        assert again.digest() == digest and not list((tmp_path / "us" / "log").glob("*.tmp"))


def test_a_write_that_could_not_be_synced_stops_the_store_whatever_the_reason(tmp_path: Path, disk: FaultyDisk, store: Store) -> None:
    """What the kernel had not written it may have dropped: of a failed fsync nothing is known, and it is never tried again."""
    disk.fail = {"sync": errno.ENOSPC}
    with pytest.raises(crdtkv.StorageError) as failed:
        store.put("k", 1, durability="sync")
    assert not isinstance(failed.value, DiskFullError) and failed.value.maybe_applied
    disk.fail = {}
    with pytest.raises(crdtkv.StorageError, match="opened again"):
        store.get("k")


def test_an_engine_without_room_is_only_late(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = store._machine.engine

    def full(batch: Mapping[bytes, bytes | None]) -> None:
        raise DiskFullError("the engine has no room")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "write", full)
        with pytest.raises(DiskFullError):
            for written in range(500):  # it may go on for as long as a backlog may wait for the engine, not for ever
                store.put(f"k{written:03}", written)
        assert written > 5  # all that were acknowledged are there, though the engine has not got them
        store.maintain()
        assert [key for key, _ in store.scan("k0")] == [f"k{n:03}" for n in range(written)]
        assert [key for key, _ in store.scan("k0", reverse=True)] == [f"k{n:03}" for n in reversed(range(written))]
        assert store.set("s").members() == [1, 2]
        while_full = everything(store)
        store._upkeep._retry_at_s = 0.0
        store.maintain()
        assert store.read_only  # still
    free(store)
    assert everything(store) == while_full
    store.close()
    with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as again:
        assert everything(again)[:3] == while_full[:3]


def test_a_store_that_is_closed_while_full_has_everything_when_it_is_opened(tmp_path: Path, disk: FaultyDisk, store: Store) -> None:
    disk.write_at_most = 0
    with pytest.raises(DiskFullError):
        store.put("k", 1)
    before = everything(store)
    store.close()
    disk.write_at_most = None
    with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as again:
        assert everything(again) == before
        again.put("k", 1)


def test_a_group_of_requests_reads_and_has_each_write_refused(disk: FaultyDisk, store: Store) -> None:
    disk.write_at_most = 0
    with pytest.raises(DiskFullError):  # the group that finds out fails as a whole, and leaves nothing
        store.execute([[1, "put", ["k", encode_value(1)], {"rid": b"one"}], [2, "get", ["k"], None]])
    replies = store.execute(
        [
            [1, "put", ["k", encode_value(1)], {"rid": b"one"}],
            [2, "get", ["k"], None],
            [3, "sadd", ["s", [encode_value(9)]], None],
            [4, "slen", ["s"], None],
            [5, "status", [], None],
        ]
    ).replies
    assert [(r[0], r[1]) for r in replies] == [(1, 1), (2, 0), (3, 1), (4, 0), (5, 0)]
    assert replies[0][2][0] == "DiskFullError" and replies[0][2][3] is True and replies[0][2][4] is False
    assert replies[1][2] == encode_value("before") and replies[3][2] == 2
    disk.write_at_most = None
    free(store)
    (reply,) = store.execute([[1, "put", ["k", encode_value(1)], {"rid": b"one"}]]).replies  # no ghost of it answers in its place
    assert reply[1] == 0 and store.get("k") == 1


def test_watchers_hear_nothing_of_what_was_undone(disk: FaultyDisk, store: Store) -> None:
    watch = store.watch(timeout=0.05)
    assert next(watch, None) is None
    heard = store.subscribe()
    disk.write_at_most = 0
    with pytest.raises(DiskFullError):
        store.put("k", "undone")
    disk.write_at_most = None
    free(store)
    store.put("k", "done")
    assert [change.value for change in heard.changes(0.1)] == ["done"]


def test_the_reserve_refuses_before_the_disk_is_full_and_lets_go_a_little_later(store: Store) -> None:
    room = Space(1 << 30, 1 << 40)
    store._upkeep._space = lambda path: room
    store.maintain()
    store.put("k", 1)
    room = Space((64 << 20) - 1, 1 << 40)
    store.maintain()
    with pytest.raises(DiskFullError, match="67,108,863 bytes free, less than the 67,108,864 kept in reserve"):
        store.put("k", 2)
    room = Space(70 << 20, 1 << 40)
    store._upkeep._retry_at_s = 0.0
    store.maintain()
    assert store.read_only and store.get("k") == 1
    room = Space(80 << 20, 1 << 40)
    free(store)
    store.put("k", 3)
    room = Space(50 << 10, 1 << 20)  # a small disk keeps a twentieth
    store.maintain()
    assert store.read_only
    room = Space(70 << 10, 1 << 20)
    free(store)


def test_housekeeping_goes_on_while_full_and_can_make_room(tmp_path: Path, disk: FaultyDisk) -> None:
    settings = Settings(async_sync_ms=3_600_000, log_segment_bytes=4096, log_keep_bytes=10_000, log_bytes_max=10_000)
    with crdtkv.open(tmp_path / "us", region="us", durability="async", settings=settings) as store:
        for n in range(300):
            store.put(f"k{n % 10}", "x" * 100)
        store.put("gone", 1, ttl=0.001)
        disk.write_at_most = 0
        with pytest.raises(DiskFullError):
            store.put("k", 1)
        assert store.status().log_bytes > 20_000
        store._upkeep._retained_ms = 0
        store._upkeep._retry_at_s = float("inf")
        time.sleep(0.002)
        store.maintain()  # truncates; the removal of what expired waits
        assert store.status().log_bytes < 10_000 and store.read_only and store.get("gone") is None
        disk.write_at_most = None
        free(store)
        store.maintain()
        assert store.put("k", 1)


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_new_incarnation_is_taken_once_there_is_room_for_it(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk failed the store for good: the record of the new id could not be written, and then nothing was answered any more."""
    former, before = store.origin, everything(store)
    with monkeypatch.context() as patched:
        patched.setattr(opening, "sync_directory", no_room)
        with pytest.raises(DiskFullError):
            store.begin_incarnation("a test")
        assert store.origin == former and everything(store) == before
        with pytest.raises(DiskFullError):  # not under the former id, which others may know more of
            store.put("k", 1)
        store._upkeep._retry_at_s = 0.0
        store.maintain()  # tries again, in vain
        assert store.read_only and store.origin == former
    free(store)
    assert store.origin != former and store.incarnation_reason == "a test" and store.get("k") == "before"
    assert store.put("k", "after").origin == store.origin
    store.close()
    with crdtkv.open(tmp_path / "us", region="us", durability="async", settings=SETTINGS) as again:
        assert again.origin == store.origin and again.get("k") == "after" and again.vv().seq(former) == before[1].seq(former)


def test_an_engine_without_room_for_the_new_id_gets_it_before_anything_is_written_under_it(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    former, engine, calls = store.origin, store._machine.engine, []

    def flush() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise DiskFullError("no room")

    identity = tmp_path / "us" / opening.IDENTITY_NAME
    with monkeypatch.context() as patched:
        patched.setattr(engine, "flush", flush)
        store.begin_incarnation("a test")
        assert store.origin != former and store.read_only and store.get("k") == "before"
        taken, text = store.origin, identity.read_text()
        assert taken in text and former in text
        with pytest.raises(DiskFullError):
            store.put("k", 1)
        with pytest.raises(DiskFullError):  # the record still names the one that the engine may have on the disk
            store.begin_incarnation("another")
        assert identity.read_text() == text and store.origin == taken
    free(store)  # which takes the other that was asked for
    assert store.origin not in (former, taken) and store.put("k", "after").origin == store.origin
    store.close()
    with crdtkv.open(tmp_path / "us", region="us", durability="async", settings=SETTINGS) as again:
        assert again.origin == store.origin and again.get("k") == "after"


def test_a_node_without_room_is_not_ready_and_takes_what_peers_wrote_once_it_has_some(tmp_path: Path, disk: FaultyDisk) -> None:
    with ExitStack() as stack:
        us = stack.enter_context(crdtkv.open(region="us"))
        eu = stack.enter_context(crdtkv.open(tmp_path / "eu", region="eu", durability="sync"))
        there = stack.enter_context(crdtkv.Node(eu, replication="loopback"))
        here = stack.enter_context(crdtkv.Node(us, peers={"eu": there.address}, replication="loopback"))
        here.wait_ready()
        client = stack.enter_context(crdtkv.connect(there.address))
        health = health_pb2_grpc.HealthStub(stack.enter_context(grpc.insecure_channel(there.address)))

        def ready() -> bool:
            request = health_pb2.HealthCheckRequest(service="crdtkv.v1.KeyValue")
            return bool(health.Check(request).status == health_pb2.HealthCheckResponse.SERVING)

        us.put("early", 1)
        until(lambda: eu.get("early") == 1 and ready())
        disk.write_at_most = 0
        for n in range(50):
            us.put(f"k{n}", n)
        until(lambda: eu.read_only and not ready())
        with pytest.raises(DiskFullError):
            client.put("mine", 1)
        assert client.get("early") == 1 and client.get("k1") is None
        status = client.status()
        assert status.read_only and any("read only" in warning for warning in status.warnings)
        (peer,) = here.peers()
        assert peer.connected  # and the peer waits
        disk.write_at_most = None
        until(lambda: eu.vv() == us.vv() and ready())
        assert eu.digest() == us.digest()
        client.put("mine", 1)
        until(lambda: us.get("mine") == 1)


def test_a_snapshot_for_which_there_is_no_room_leaves_nothing(disk: FaultyDisk, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with crdtkv.open(region="eu", settings=Settings(memory_log_bytes=1000, gather_commits_max=1)) as donor:
        for n in range(100):
            donor.put(f"from eu {n}", n)
        donor.counter("c").increment(1)
        given = donor.delta_since()
        before = everything(store)

        def full(batch: Mapping[bytes, bytes | None]) -> None:
            raise DiskFullError("the engine has no room")

        with monkeypatch.context() as patched:
            patched.setattr(store._machine.engine, "write", full)
            store._machine.replica.state.side_put(b"z", None)  # something to fold
            with pytest.raises(DiskFullError):
                store.merge(given)
            with pytest.raises(DiskFullError, match="until there is some"):
                store.merge(given)
            assert store.vv() == before[1] and store.counter("c").value == 5
        free(store)
        assert everything(store) == before
        store.merge(given)
        assert store.counter("c").value == 6 and store.get("from eu 7") == 7


def test_a_node_that_lost_commits_takes_its_new_incarnation_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, path = Settings(instance_dir="trust"), tmp_path / "us"
    with crdtkv.open(region="eu") as eu, crdtkv.Node(eu, replication="loopback") as there:

        def run() -> ExitStack:
            stack = ExitStack()
            store = stack.enter_context(crdtkv.open(path, region="us", durability="async", settings=settings))
            stack.enter_context(crdtkv.Node(store, peers={"eu": there.address}, replication="loopback"))
            stores.append(store)
            return stack

        stores: list[Store] = []
        with run():
            stores[-1].put("kept", 1)
            until(lambda: stores[-1].vv() == eu.vv())
        shutil.copytree(path, tmp_path / "old")
        with run():
            stores[-1].put("lost", 1)
            until(lambda: stores[-1].vv() == eu.vv())
        shutil.rmtree(path)
        (tmp_path / "old").rename(path)
        with monkeypatch.context() as patched:
            patched.setattr(opening, "sync_directory", no_room)
            stack = run()
            us = stores[-1]
            former = us.origin
            until(lambda: us.owed_incarnation is not None)
            with pytest.raises(DiskFullError):
                us.put("k", 1)
            assert us.origin == former and us.get("kept") == 1
        with stack:
            until(lambda: us.origin != former and not us.read_only)
            assert us.put("k", 2).origin == us.origin
            until(lambda: us.vv() == eu.vv() and us.digest() == eu.digest())
            assert eu.get("k") == 2 and us.get("lost") == 1 and generation_of(us.origin) == 2
