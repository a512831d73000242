"""Backups: what is restored is what was backed up, merged is joined, and half a backup or a damaged one is never taken for one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import crdtkv
from crdtkv.audit import LocalSide
from crdtkv.audit import verify as verify_regions
from crdtkv.backup import FolderTarget, Manifest, Point, create, manifests, merge, open_target, restore, verify
from crdtkv.backup import create as create_backup
from crdtkv.backup.beside import Reader
from crdtkv.backup.chunks import FRAMES, STATE, decode_chunk, encode_chunk
from crdtkv.backup.restoring import _apply
from crdtkv.cli.main import main
from crdtkv.core.causality import VersionVector
from crdtkv.core.clock import stamp
from crdtkv.core.control import close_delta
from crdtkv.core.frame import DeltaKind
from crdtkv.errors import ConfigError, CorruptionError, IncompatibleFormatError, StorageError
from crdtkv.store import Settings, Store
from crdtkv.store.view import CHECKPOINTS, checkpointed
from tests.object_storage import object_storage
from tests.stores import Clock, store_at, stores, sync
from tests.unit.test_found import machine, made
from tests.unit.test_verify import damage, fill, flipped, slots


@pytest.fixture
def target(tmp_path: Path) -> FolderTarget:
    return FolderTarget(tmp_path / "backups")


@pytest.fixture
def us() -> Iterator[Store]:
    with stores("us") as (store,):
        yield store


def contents(store: Store) -> dict[str, object]:
    return dict(store.scan())


def restored(target: FolderTarget, path: Path, region: str = "us", **options: object) -> Store:
    made = restore(target, path, region=region, **options)  # type: ignore[arg-type]
    return crdtkv.open(path, region=region, settings=Settings(cluster=made.cluster))


# -- a backup and its restore -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_a_restore_holds_what_was_backed_up_under_an_origin_that_never_wrote(
    us: Store, target: FolderTarget, tmp_path: Path, engine: str
) -> None:
    fill(us, 300)
    us.put("soon", 1, ttl=3600)
    us.set("tags").add("fleeting", ttl=3600)
    us.counter("hits").reset()
    us.counter("hits").increment(2)
    made = create(us, target)
    assert (made.kind, made.vv, made.digest) == ("full", us.vv(), us.digest())
    result = restore(target, tmp_path / "data", region="us", engine=engine)
    assert (result.vv, result.digest) == (us.vv(), us.digest())
    with crdtkv.open(tmp_path / "data", region="us", engine=engine) as back:
        assert contents(back) == contents(us)
        assert back.origin == result.origin != us.origin and back.origin.startswith("us@2-")
        assert (back.vv(), back.digest()) == (us.vv(), us.digest())
        assert back.set("tags").discard("fleeting") and len(back.set("tags")) == 3  # heads are there
        back.map("user").clear()
        assert 0 < (back.ttl("soon") or 0) <= 3600
        back.counter("hits").increment(5)
        us.merge(back.delta_since(us.vv()))
        assert us.counter("hits").value == back.counter("hits").value == 7
        assert us.digest() == back.digest()


def test_what_expires_after_the_backup_expires_in_what_was_restored(target: FolderTarget, tmp_path: Path) -> None:
    clock = Clock()
    with store_at(clock) as us:
        us.set("s").add("kept")
        us.set("s").add("fleeting", ttl=1)
        create(us, target)
    made = restored(target, tmp_path / "data")  # by the wall clock it is long past
    with made:
        made.maintain()
        assert made.set("s").members() == ["kept"] and len(slots(made)) == 1


def test_increments_carry_frames_from_any_region_and_a_restore_applies_them(target: FolderTarget, tmp_path: Path) -> None:
    with stores("us", "eu") as (us, eu):
        fill(us)
        sync(us, eu)
        assert create(us, target).kind == "full"
        eu.put("k/0001", "eu")
        us.put("k/0001", "us")
        us.set("tags").clear()
        sync(us, eu)
        second = create(eu, target)
        assert (second.kind, second.region, second.records) == ("incremental", "eu", 0) and second.commits == 3
        us.counter("hits").increment(10)
        third = create(us, target)
        assert (third.commits, third.parent) == (1, second.id)
        checked = verify(target, replay=True)
        assert [m.id for m in checked.manifests] == [m.id for m in manifests(target)] and checked.frames == 4
        with restored(target, tmp_path / "all") as back:
            assert contents(back) == contents(us) and back.digest() == us.digest()
            assert back.delta_since(second.vv)[:2] == b"\xc1\x44"  # the log has the increments' frames, for peers that lack them
        with restored(target, tmp_path / "second", id=second.id) as back:
            assert contents(back) == contents(eu) and back.digest() == eu.digest()


def test_the_command_says_when_there_was_nothing_new(
    us: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crdtkv.cli.backup._side", lambda place: nullcontext(us))
    command = ["backup", "create", str(target.folder), "--at", "127.0.0.1:1"]
    assert main(command) == 0 and main(command) == 0
    first, second = manifests(target)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{first.id}: full, ")
    assert told[3:] == [f"{second.id}: incremental, nothing new since {first.id}", f"vector  {us.vv()}", f"digest  {us.digest()}"]


def test_a_backup_is_full_where_the_log_no_longer_has_what_came_since_or_where_it_is_asked_for(target: FolderTarget) -> None:
    with stores("us", settings=Settings(memory_log_bytes=1)) as (us,):
        us.put("a", "x" * 2000)
        create(us, target)
        for n in range(2000):
            us.put(f"k/{n}", "x" * 1000)
        assert create(us, target).kind == "full"
        us.put("a", 1)
        assert create(us, target).kind == "incremental"
        assert create(us, target, full=True).kind == "full"
        assert create(us, target).commits == 0  # nothing came since


def test_what_is_written_while_a_backup_runs_is_not_in_it(us: Store, target: FolderTarget, tmp_path: Path) -> None:
    fill(us, 3000)
    before, digest = contents(us), us.digest()

    class Writing(FolderTarget):
        def put(self, name: str, data: bytes) -> None:
            super().put(name, data)
            us.put("meanwhile", name)
            us.delete("k/0002")

    made = create(us, Writing(target.folder))
    assert made.digest == digest != us.digest()
    with restored(target, tmp_path / "data") as back:
        assert contents(back) == before


def test_a_clear_that_is_not_done_yet_is_done_in_the_backup(target: FolderTarget, tmp_path: Path) -> None:
    with stores("us", settings=Settings(clear_at_once_max=3, purge_slots=2)) as (us,):
        us.set("s").add(*range(50))
        create(us, target)
        us.set("s").clear()
        us.set("s").add("new")
        create(us, target)
        with restored(target, tmp_path / "data") as back:
            assert back.set("s").members() == ["new"] and back.digest() == us.digest()


# -- merges -------------------------------------------------------------------------------------------------------------


def test_a_counter_restored_twice_counts_once(us: Store, target: FolderTarget, tmp_path: Path) -> None:
    us.counter("hits").increment(5)
    create(us, target)
    us.counter("hits").increment(2)
    create(us, target)
    for _ in range(2):
        assert merge(target, us).applied == 0
        assert us.counter("hits").value == 7
    with stores("eu") as (eu,):
        eu.counter("hits").increment(100)
        assert merge(target, eu).applied == 2
        assert merge(target, eu).applied == 0
        assert eu.counter("hits").value == 107
        with restored(target, tmp_path / "data") as back:  # the same increments by a third way
            sync(us, eu, back)
            assert {s.counter("hits").value for s in (us, eu, back)} == {107}
            back.counter("hits").increment()
            sync(us, eu, back)
            assert us.counter("hits").value == 108


def test_a_merge_brings_back_what_was_lost_and_not_what_was_deleted(target: FolderTarget) -> None:
    with stores("us", "eu") as (us, eu):
        us.put("deleted", 1)
        us.put("kept", 2)
        sync(us, eu)
        us.put("only in us", 3)
        create(us, target)
        eu.delete("deleted")
        assert merge(target, eu).applied == 1
        assert contents(eu) == {"kept": 2, "only in us": 3}
        sync(us, eu)


class Staging:
    """A store that takes a state in chunks, as a node does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.chunks = 0

    def merge_state(self, chunks: Iterator[tuple[bytes, bytes]]) -> tuple[int, int]:
        snapshots = self.store._machine.snapshots
        assert snapshots is not None
        for data, link in chunks:
            snapshots.stage(data, link, anew=not self.chunks)
            self.chunks += 1
        done = snapshots.install()
        return done.applied, done.added + done.changed + done.removed


def test_a_state_of_any_size_is_merged_through_staging_and_gives_the_same(
    us: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crdtkv.backup.restoring.STATE_CHUNK_BYTES", 4000)
    monkeypatch.setattr("crdtkv.backup.writing.CHUNK_BYTES", 15_000)
    fill(us, 300)
    us.counter("hits").increment(5)
    create(us, target)
    us.put("later", 1)
    create(us, target)
    with stores("eu", "ap") as (eu, ap):
        for store in (eu, ap):
            store.counter("hits").increment()
            store.put("alone", store.region)
        staging = Staging(eu)
        done = merge(target, eu, node=staging)
        assert staging.chunks > 4
        assert done.applied == merge(target, ap).applied and done.changed_keys > 300
        assert eu.counter("hits").value == ap.counter("hits").value
        assert eu.vv().without(eu.origin) == ap.vv().without(ap.origin) == us.vv()
        sync(us, eu, ap)
        assert merge(target, eu, node=staging).applied == 0


def test_a_damaged_backup_changes_nothing_where_it_is_merged(us: Store, target: FolderTarget) -> None:
    fill(us, 300)
    made = create(us, target)
    path = target.folder / made.id / made.files[0].name
    path.write_bytes(path.read_bytes()[:-1])
    with stores("eu") as (eu,):
        with pytest.raises(CorruptionError, match=path.name):
            merge(target, eu, node=Staging(eu))
        assert not contents(eu)


# -- points in time -----------------------------------------------------------------------------------------------------


def test_a_point_in_time_is_what_was_committed_up_to_it(target: FolderTarget, tmp_path: Path) -> None:
    clock = Clock()
    states: list[tuple[int, crdtkv.VersionVector, dict[str, object]]] = []
    with store_at(clock) as us:
        us.put("k", 0)
        create(us, target)
        for n in range(1, 6):
            clock.ms += 1000
            us.put("k", n)
            us.counter("c").increment(n)
            states.append((clock.ms, us.vv(), contents(us)))
            if n % 2:
                create(us, target)
        for number, (ms, vv, wanted) in enumerate(states):
            for name, point in (("t", Point(hlc=stamp(ms + 500))), ("v", Point(vv=vv))):
                with restored(target, tmp_path / f"{name}{number}", cluster="yesterday", point=point) as back:
                    assert (contents(back), back.vv()) == (wanted, vv)
        for number, point in enumerate((Point(hlc=stamp(states[0][0] - 5000)), Point(hlc=stamp(Clock().ms * 2)))):
            with pytest.raises(ConfigError, match=r"cannot restore .*: it reaches 2025-06-15 15:06:40\.000Z to 20"):
                restore(target, tmp_path / f"no{number}", region="us", point=point)
            assert not (tmp_path / f"no{number}").exists()


def test_a_frame_that_rests_on_one_after_the_point_is_left_out_whatever_its_own_stamp(target: FolderTarget, tmp_path: Path) -> None:
    fast, slow = Clock(), Clock()
    with store_at(fast, "us", Settings(max_skew_ms=0)) as us, store_at(slow, "eu", Settings(max_skew_ms=0)) as eu:
        us.put("a", 1)
        sync(us, eu)
        create(eu, target)
        fast.ms += 60_000
        us.put("b", 2)
        sync(us, eu)
        slow.ms += 1000
        eu.put("c", "has seen b")
        create(eu, target)
        made = restore(target, tmp_path / "data", region="us", cluster="past", point=Point(hlc=stamp(slow.ms + 100)))
        assert made.left_out == 1 and made.frames == 0
    with crdtkv.open(tmp_path / "data", region="us", settings=Settings(cluster="past")) as back:
        assert contents(back) == {"a": 1}


def test_what_goes_beyond_an_end_that_is_closed_further_on_after_the_point_is_left_out_and_counted() -> None:
    """The full backup knows an origin as closed; a member that nobody had counted had more of it. Its frames were counted as applied, and
    were only held.
    """
    gone, eu, us = machine("br"), machine("eu"), machine("us")
    frames = [made(gone, "k", 1), made(gone, "l", 2)]
    eu.apply(frames[:1])
    eu.commit_control([close_delta(gone.origin, 1)])
    closing = eu.log.find(eu.origin, 1)
    assert closing is not None
    assert _apply(us, iter([frames[0], closing, frames[1]]), None, keep_log=True) == (2, 1)
    assert us.vv() == VersionVector({gone.origin: 1, eu.origin: 1}) and us.replica.held[0] == 0


def test_the_past_joined_to_its_cluster_catches_up_and_under_another_name_is_kept_out(target: FolderTarget, tmp_path: Path) -> None:
    clock = Clock()
    with store_at(clock) as us:
        us.put("k", 1)
        create(us, target)
        at = us.vv()
        us.delete("k")
        create(us, target)
        with restored(target, tmp_path / "same", point=Point(vv=at)) as same:
            assert contents(same) == {"k": 1}
            same.merge(us.delta_since(same.vv()))
            assert contents(same) == {} and same.digest() == us.digest()
        with restored(target, tmp_path / "other", point=Point(vv=at), cluster="other") as other:
            with pytest.raises(crdtkv.WrongClusterError):
                us.merge(other.delta_since(None))
            assert contents(other) == {"k": 1} and contents(us) == {}
            other.put("k", 2)
        with crdtkv.open(tmp_path / "other", region="us", settings=Settings(cluster="other")) as other:
            assert contents(other) == {"k": 2}


def test_a_vector_within_a_frame_is_no_point(us: Store, target: FolderTarget, tmp_path: Path) -> None:
    us.put("a", 1)
    create(us, target)
    us.execute([[n, "put", [f"k{n}", b"\x01"], None] for n in range(3)])
    create(us, target)
    with pytest.raises(ConfigError, match="no frames end exactly at"):
        restore(target, tmp_path / "data", region="us", point=Point(vv=crdtkv.VersionVector({us.origin: 2})))
    with pytest.raises(CorruptionError, match=r"no replica\.json"):
        crdtkv.open(tmp_path / "data", region="us")


# -- what goes wrong ----------------------------------------------------------------------------------------------------


class Dying(FolderTarget):
    """Fails at the n-th put."""

    def __init__(self, folder: Path, dies_at: int) -> None:
        super().__init__(folder)
        self.left = dies_at

    def put(self, name: str, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageError("no room")
        super().put(name, data)


def test_a_backup_that_dies_at_any_file_leaves_the_last_good_one(us: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdtkv.backup.writing.CHUNK_BYTES", 4000)
    fill(us, 400)
    good = create(us, target)
    assert len(good.files) >= 4
    us.put("later", 1)
    for full in (False, True):
        for dies_at in range(len(good.files) + 1 if full else 2):
            with pytest.raises(StorageError, match="no room"):
                create_backup(us, Dying(target.folder, dies_at), full=full)
            assert [m.id for m in manifests(target)] == [good.id]
            assert verify(target).records == good.records
    assert create(us, target).kind == "incremental"


def test_a_damaged_missing_or_exchanged_file_is_named(us: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdtkv.backup.writing.CHUNK_BYTES", 4000)
    fill(us, 200)
    made = create(us, target)
    us.put("later", 1)
    create(us, target)
    for path in sorted(target.folder.glob("*/*-0*")):
        whole = path.read_bytes()
        for bad in (whole[:-1], whole[:40] + bytes([whole[40] ^ 4]) + whole[41:], b""):
            path.write_bytes(bad)
            with pytest.raises(CorruptionError, match=path.name):
                verify(target)
        path.unlink()
        with pytest.raises(CorruptionError, match=f"{path.name}: the file is missing"):
            verify(target)
        path.write_bytes(whole)
    folder = target.folder / made.id
    (folder / "state-000000").write_bytes((folder / "state-000001").read_bytes())
    with pytest.raises(CorruptionError, match="not the file that was written"):
        verify(target)


def test_a_restore_of_a_damaged_backup_leaves_nothing_that_opens(us: Store, target: FolderTarget, tmp_path: Path) -> None:
    fill(us, 200)
    create(us, target)
    path = next(target.folder.rglob("state-*"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptionError):
        restore(target, tmp_path / "data", region="us")
    with pytest.raises(CorruptionError, match=r"no replica\.json"):
        crdtkv.open(tmp_path / "data", region="us")


def test_a_changed_manifest_or_one_of_a_later_format_is_refused(us: Store, target: FolderTarget) -> None:
    us.put("k", 1)
    made = create(us, target)
    path = target.folder / made.id / "manifest.json"
    plain = json.loads(path.read_bytes())
    path.write_text(json.dumps({**plain, "digest": "0" * 32}))
    with pytest.raises(CorruptionError, match="checksum"):
        manifests(target)
    path.write_text(json.dumps({**plain, "format": 2}))
    with pytest.raises(IncompatibleFormatError, match="upgrade"):
        manifests(target)
    path.write_text("{}")
    with pytest.raises(CorruptionError, match="not a manifest"):
        manifests(target)


def test_an_increment_whose_parent_is_gone_is_refused(us: Store, target: FolderTarget) -> None:
    us.put("k", 1)
    first = create(us, target)
    us.put("k", 2)
    create(us, target)
    (target.folder / first.id / "manifest.json").unlink()
    with pytest.raises(CorruptionError, match=f"continues {first.id}, which is not there"):
        verify(target)


def test_a_damaged_state_is_not_backed_up(us: Store, target: FolderTarget) -> None:
    fill(us)
    slot, record = next(iter(slots(us).items()))
    damage(us, slot, flipped(record))
    with pytest.raises(CorruptionError, match="changed behind its back"):
        create(us, target)
    assert not manifests(target)


def test_another_history_of_the_same_origin_is_no_increment(us: Store, target: FolderTarget, tmp_path: Path) -> None:
    us.put("k", 1)
    made = create(us, target)
    us.put("k", 2)
    forked = Manifest(**{f: getattr(made, f) for f in Manifest.__slots__} | {"hashes": {us.origin: bytes(16)}})
    target.put(f"{made.id}/manifest.json", forked.to_bytes())
    with pytest.raises(CorruptionError, match="fork"):
        create(us, target)


def test_what_cannot_be_restored_is_refused_before_anything_is_made(us: Store, target: FolderTarget, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no backup"):
        restore(target, tmp_path / "data", region="us")
    us.put("k", 1)
    create(us, target)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for options in ({"id": "nope"}, {"engine": "memory"}, {"region": "US!"}):
        with pytest.raises(ConfigError):
            restore(target, tmp_path / "data", **{"region": "us", **options})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not empty"):
        restore(target, tmp_path / "used", region="us")
    assert not (tmp_path / "data").exists()


def test_chunks_are_read_back_and_nothing_else_is() -> None:
    items = [b"a", b"", b"\x00" * 1000]
    data = encode_chunk(STATE, items)
    assert decode_chunk(STATE, data, "x") == items
    for bad in (b"", data[:10], data + b"x", data[:-1], b"\xc1\x42\x01F" + data[4:]):
        with pytest.raises(CorruptionError):
            decode_chunk(STATE, bad, "x")
    with pytest.raises(CorruptionError):
        decode_chunk(FRAMES, data, "x")
    with pytest.raises(IncompatibleFormatError):
        decode_chunk(STATE, data[:2] + b"\x02" + data[3:], "x")


# -- object storage -----------------------------------------------------------------------------------------------------


def test_a_backup_in_object_storage_is_made_listed_checked_and_restored(us: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdtkv.backup.writing.CHUNK_BYTES", 4000)
    fill(us, 300)
    with object_storage() as (storage, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        target = open_target("s3://bucket/some/prefix/")
        assert manifests(target) == []
        first = create(us, target)
        us.put("large", "".join(chr(33 + n * n % 90) for n in range(900_000)))
        create(us, target)
        assert [m.kind for m in manifests(target)] == ["full", "incremental"]
        assert all(name.startswith("bucket/some/prefix/2") for name in storage.objects)
        assert verify(target, replay=True).records == first.records
        made = restore(target, tmp_path / "data", region="us")
        assert made.digest == us.digest()
        storage.fail_after = storage.puts + 3
        with pytest.raises(StorageError, match=r"cannot write s3://bucket/some/prefix/"):
            create(us, target, full=True)
        assert len(manifests(target)) == 2
        storage.objects.pop(next(name for name in storage.objects if "state-000001" in name))
        with pytest.raises(CorruptionError, match="state-000001: the file is missing"):
            verify(target)
    with pytest.raises(StorageError, match="cannot list"):
        monkeypatch.setattr("crdtkv.backup.s3.RETRIES_MAX", 0)
        manifests(open_target("s3://bucket/x"))
    with pytest.raises(ConfigError, match="s3://BUCKET"):
        open_target("s3://")


# -- closed origins -----------------------------------------------------------------------------------------------------


def test_closed_origins_are_closed_in_what_was_restored_and_vectors_are_told_without_them(target: FolderTarget, tmp_path: Path) -> None:
    with stores("us", "eu", "ap") as (us, eu, ap):
        ap.put("from ap", 1)
        fill(us)
        sync(us, eu, ap)
        create(us, target)
        ended = ap.vv().seq(ap.origin)
        us._machine.commit_control([[DeltaKind.CLOSE, ap.origin, ended]])
        us.put("after", 2)
        at = us.vv()
        assert ap.origin not in at
        us.put("later", 3)
        eu.merge(us.delta_since(eu.vv()))
        assert verify_regions([LocalSide(us), LocalSide(eu)]).holds
        create(us, target)
        create(eu, target, full=True)
        assert [m.kind for m in manifests(target)] == ["full", "incremental", "full"]
        assert verify(target, replay=True).records
        wanted = contents(us), us.digest(), us.vv()
        for number, options in enumerate(({"id": manifests(target)[1].id}, {})):
            with restored(target, tmp_path / f"d{number}", **options) as back:
                assert (contents(back), back.digest(), back.vv()) == wanted
                assert back._machine.control.last(ap.origin) == ended
                back.put("own", number)
                us.merge(back.delta_since(us.vv()))
                assert us.siblings("own")
        with restored(target, tmp_path / "past", point=Point(vv=at), id=manifests(target)[1].id) as back:
            assert "after" in back and "later" not in back
        assert merge(target, eu).applied == 0


# -- read beside, by a process of its own ---------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store whose state counts as large, whatever it holds."""
    monkeypatch.setattr("crdtkv.backup.writing.BESIDE_BYTES_MIN", 0)
    with crdtkv.open(tmp_path / "us", region="us", durability="async") as store:
        yield store


def open_readers(monkeypatch: pytest.MonkeyPatch) -> list[Reader]:
    """The readers that are started from now on."""
    started = []

    class Noted(Reader):
        def __init__(self, checkpoint: Path, others: Callable[[], int]) -> None:
            super().__init__(checkpoint, others)
            started.append(self)

    monkeypatch.setattr("crdtkv.backup.writing.Reader", Noted)
    return started


def is_over(reader: Reader, store: Store) -> bool:
    """Its process is gone and reaped, and so is what it read."""
    assert store.path is not None
    return reader._process.returncode is not None and not (store.path / CHECKPOINTS).exists()


def test_a_large_state_is_read_by_another_process_and_gives_the_same_backup(
    large: Store, target: FolderTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(large, 3000)
    before, digest, vv = contents(large), large.digest(), large.vv()
    readers = open_readers(monkeypatch)

    class Writing(FolderTarget):
        def put(self, name: str, data: bytes) -> None:
            super().put(name, data)
            large.put("meanwhile", name)
            large.delete("k/0002")

    made = create(large, Writing(target.folder))
    assert len(readers) == 1 and is_over(readers[0], large)
    assert (made.digest, made.vv) == (digest, vv) and large.digest() != digest
    with restored(target, tmp_path / "data") as back:
        assert contents(back) == before
    monkeypatch.setattr("crdtkv.backup.writing.BESIDE_BYTES_MIN", 1 << 60)
    itself = create(large, target, full=True)  # by this process
    large.put("k/0002", "value 2")
    assert len(readers) == 1 and itself.records == made.records  # one came, one went
    assert create(large, target).kind == "incremental"


def test_a_backup_whose_reader_dies_is_none_and_says_so(large: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(large)
    readers = open_readers(monkeypatch)
    monkeypatch.setattr("crdtkv.backup.beside._RUN", "import os; os.write(1, b'RC'); raise SystemExit('out of memory')")
    with pytest.raises(StorageError, match="ended before it was done: out of memory"):
        create(large, target)
    assert is_over(readers[0], large) and not manifests(target)


def test_where_no_reader_can_be_had_the_process_reads_itself(large: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(large)
    readers = open_readers(monkeypatch)
    for name, value in (("crdtkv.backup.beside._RUN", "raise SystemExit('no such module')"), ("sys.executable", "/usr/sbin/uwsgi")):
        with monkeypatch.context() as patched:
            patched.setattr(name, value)
            assert create(large, target, full=True).digest == large.digest()
    assert not readers and verify(target).records


def test_a_reader_that_finds_damage_ends_the_backup(large: Store, target: FolderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(large, 300)
    readers = open_readers(monkeypatch)
    start = Reader.__init__

    def damaged(self: Reader, checkpoint: Path, others: Callable[[], int]) -> None:
        for file in checkpoint.glob("*.sst"):
            with file.open("r+b") as records:  # also the store's: they are one file
                records.seek(20)
                records.write(b"damage")
        start(self, checkpoint, others)

    monkeypatch.setattr(Reader, "__init__", damaged)
    with pytest.raises(CorruptionError, match="is damaged: Corruption"):
        create(large, target)
    assert is_over(readers[0], large) and not manifests(target)


def test_a_checkpoint_that_a_killed_process_left_goes_at_the_next_opening(tmp_path: Path) -> None:
    with crdtkv.open(tmp_path / "us", region="us") as us:
        us.put("k", 1)
        with checkpointed(us) as (view, checkpoint):
            assert checkpoint is not None and any(checkpoint.iterdir()) and view.moment.vv == us.vv()
            shutil.copytree(checkpoint, tmp_path / "us" / CHECKPOINTS / "left")
        assert not checkpoint.exists()
    with crdtkv.open(tmp_path / "us", region="us") as us:
        assert us.get("k") == 1 and not (tmp_path / "us" / CHECKPOINTS).exists()
