"""A directory that is not as it should be: one clear line, a typed error, and nothing in it changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crdtkv
from crdtkv import ConfigError, CorruptionError, CrdtkvError, Settings, StorageError, StoreLockedError

SETTINGS = Settings(log_segment_bytes=4096, fold_records_max=8)


@pytest.fixture(params=["rocksdb", "lmdb"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def directory(tmp_path: Path, engine: str) -> Path:
    path = tmp_path / "data"
    with crdtkv.open(path, region="us", engine=engine, durability="async", settings=SETTINGS) as store:
        for i in range(200):
            store.put(f"k{i % 20}", "x" * 100)
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the lock and what the state engine keeps for itself."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files if p.name != "LOCK" and "state" not in p.parts}


def refused(path: Path, expected: type[CrdtkvError], saying: str, **arguments: object) -> None:
    """Opening it raises this error, in one line, changes nothing, and leaves no lock behind."""
    before = contents(path)
    given = {"region": "us", "settings": SETTINGS, **arguments}
    for _ in range(2):  # the second time too: nothing is left behind, not even the lock
        with pytest.raises(expected, match=saying) as error:
            crdtkv.open(path, **given)  # type: ignore[arg-type]
        assert type(error.value) is expected
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert contents(path) == before


def test_two_owners(directory: Path, engine: str) -> None:
    with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as first:
        for _ in range(2):
            with pytest.raises(StoreLockedError, match="data") as error:
                crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS)
            assert "\n" not in str(error.value)
        first.put("k", "the first goes on")
    with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as again:
        assert again["k"] == "the first goes on"


def test_opened_as_something_else(directory: Path, engine: str) -> None:
    other = "lmdb" if engine == "rocksdb" else "rocksdb"
    refused(directory, ConfigError, "belongs to region 'us', not 'eu'", region="eu", engine=engine)
    refused(directory, ConfigError, f"belongs to engine '{engine}', not '{other}'", engine=other)
    refused(directory, ConfigError, "belongs to cluster", engine=engine, settings=Settings(cluster="other"))
    refused(directory, ConfigError, "belongs to shard 0, not 3", engine=engine, settings=Settings(shard=3))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b"[]", b"null", b"{}", b'{"format": 1}', b"\x00" * 100],
    ids=lambda t: repr(t[:20]),
)
def test_a_damaged_identity(directory: Path, engine: str, text: bytes) -> None:
    """Bytes that are no UTF-8, or nest deeply, came out as UnicodeDecodeError and RecursionError."""
    (directory / "replica.json").write_bytes(text)
    refused(directory, CorruptionError, r"replica\.json is damaged", engine=engine)


@pytest.mark.parametrize("changed", [{"origin": "us"}, {"origin": 3}, {"origin": "eu@1-00000000"}, {"origin": "us@1-00000000"}], ids=repr)
def test_an_identity_that_is_not_the_state_s(directory: Path, engine: str, changed: dict[str, object]) -> None:
    path = directory / "replica.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    refused(directory, CorruptionError, "origin|damaged|two directories", engine=engine)


def test_a_later_format(directory: Path, engine: str) -> None:
    path = directory / "replica.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    refused(directory, StorageError, "has format 2, this version of crdtkv knows 1: upgrade", engine=engine)


def test_a_lost_identity(directory: Path, engine: str) -> None:
    (directory / "replica.json").unlink()
    refused(directory, CorruptionError, r"no replica\.json", engine=engine)


def lose_log(path: Path) -> None:
    shutil.rmtree(path / "log")


def lose_log_and_state(path: Path) -> None:
    shutil.rmtree(path / "log")
    shutil.rmtree(path / "state")


@pytest.mark.parametrize("lose", [lose_log, lose_log_and_state], ids=["log", "log and state"])
def test_a_lost_log(directory: Path, engine: str, lose: Callable[[Path], None]) -> None:
    """With log and state gone and the identity there, the store opened empty under its old id, and would have given the same
    dots to other writes: a fork.
    """
    lose(directory)
    refused(directory, CorruptionError, "has lost its log: restore it, or move it away", engine=engine)


def test_an_emptied_log(directory: Path, engine: str) -> None:
    """What the state engine has is kept, as if it had been installed; to write on under the old id would give its dots to other writes."""
    with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as store:
        digest, before = store.digest(), store.origin
    for file in (directory / "log").iterdir():
        file.unlink()
    for _ in range(2):
        with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as store:
            assert store.digest() == digest and store.origin != before


def test_a_lost_state_is_rebuilt_from_the_log(directory: Path, engine: str) -> None:
    with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as store:
        digest = store.digest()
    shutil.rmtree(directory / "state")
    with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as store:
        assert store.digest() == digest


def snapshot() -> bytes:
    with crdtkv.open(region="eu", settings=Settings(memory_log_bytes=1000, gather_commits_max=1)) as donor:
        for i in range(100):
            donor.put("from eu", i)
        return donor.delta_since()


def test_a_lost_state_that_a_snapshot_had_brought(directory: Path, engine: str) -> None:
    """The log has not what the snapshot brought, and replaying what rests on it failed an assertion."""
    with crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS) as store:
        store.merge(snapshot())
        store.put("after", 1)
    shutil.rmtree(directory / "state")
    refused(directory, CorruptionError, "part of the directory was lost", engine=engine)


def test_a_snapshot_is_not_taken_where_it_would_be_lost(tmp_path: Path) -> None:
    """A directory with engine `memory` keeps its log only: what a snapshot brought was gone, and the store shut for ever."""
    path = tmp_path / "data"
    with crdtkv.open(path, region="us", engine="memory") as store:
        store.put("a", 1)
        before = store.digest(), store.vv()
        with pytest.raises(StorageError, match="engine 'memory' keeps commits only"):
            store.merge(snapshot())
        assert (store.digest(), store.vv()) == before
        store.put("b", 2)
    with crdtkv.open(path, region="us", engine="memory") as store:
        assert dict(store.scan()) == {"a": 1, "b": 2}


def test_a_log_damaged_in_the_middle(directory: Path, engine: str) -> None:
    """The state engine was folded past it; nothing that was read before may come back changed, and the log says where."""
    segments = sorted((directory / "log").glob("*"))
    assert len(segments) > 2
    shutil.rmtree(directory / "state")  # so that everything is read again
    data = bytearray(segments[1].read_bytes())
    data[len(data) // 2] ^= 0x40
    segments[1].write_bytes(data)
    refused(directory, CorruptionError, f"{segments[1].name} is damaged at offset", engine=engine)


def test_a_segment_lost_from_the_middle(directory: Path, engine: str) -> None:
    segments = sorted((directory / "log").glob("*"))
    segments[1].unlink()
    shutil.rmtree(directory / "state")
    before = contents(directory)
    with pytest.raises(CrdtkvError) as error:
        crdtkv.open(directory, region="us", engine=engine, settings=SETTINGS)
    assert isinstance(error.value, CorruptionError) and "\n" not in str(error.value)
    assert contents(directory) == before


def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # Root may write anywhere, so the attempt is made by a child that is nobody (who must be able to come this far).
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    script = "import os, sys\nimport crdtkv.store\nif os.geteuid() == 0: os.setuid(65534)\ntry: crdtkv.open(sys.argv[1])\n"
    script += "except crdtkv.StorageError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", script, closed / "data"], capture_output=True, text=True, timeout=60, check=True)
    assert "ermission denied" in done.stdout and done.stdout.count("\n") == 1 and list(closed.iterdir()) == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_where_the_directory_should_be(tmp_path: Path, inside: bool) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StorageError, match="file") as error:
        crdtkv.open(file / "data" if inside else file)
    assert "\n" not in str(error.value) and file.read_text() == "mine"


def test_a_crash_while_the_directory_is_made_leaves_one_that_opens(tmp_path: Path) -> None:
    path = tmp_path / "data"
    (path / "log").mkdir(parents=True)
    (path / "replica.new").write_text("{")
    with crdtkv.open(path) as store:
        store.put("a", 1)
    with crdtkv.open(path) as store:
        assert store["a"] == 1
