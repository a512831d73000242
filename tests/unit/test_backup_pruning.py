"""Pruning backups: what stays can be restored, whatever goes and wherever it is interrupted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from crdtkv.backup import FolderTarget, Manifest, create, manifests, open_target, prune, verify
from crdtkv.backup import manifest as manifest_module
from crdtkv.backup import writing as writing_module
from crdtkv.cli.main import cli
from crdtkv.errors import ConfigError, CorruptionError, StorageError
from crdtkv.store import Store
from tests.object_storage import object_storage
from tests.stores import stores

DAY_MS = 86_400_000
START_MS = 1_790_000_000_000


@pytest.fixture
def us() -> Iterator[Store]:
    with stores("us") as (store,):
        yield store


@pytest.fixture
def target(tmp_path: Path) -> FolderTarget:
    return FolderTarget(tmp_path / "backups")


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Which day it is for whoever makes backups, in a list of one."""
    today = [0]

    class Time:
        @staticmethod
        def time_ns() -> int:
            return (START_MS + today[0] * DAY_MS) * 1_000_000

    monkeypatch.setattr(writing_module, "time", Time)
    yield today


def line(us: Store, target: FolderTarget, day: list[int], kinds: str) -> list[Manifest]:
    """A backup a day: F full, i incremental."""
    for kind in kinds:
        us.put(f"day{day[0]}", day[0])
        made = create(us, target, full=kind == "F")
        assert made.kind[0] == kind.lower()
        day[0] += 1
    return manifests(target)


def left(target: FolderTarget) -> str:
    """The kinds of what is there, each checked to be whole."""
    found = manifests(target)
    for one in found:
        verify(target, one.id)
    return "".join("F" if one.kind == "full" else "i" for one in found)


@pytest.mark.parametrize(
    ("kinds", "keep", "stays"),
    [
        ("F", 1, "F"),
        ("Fii", 1, "Fii"),  # the last one continues them all
        ("FiiFi", 1, "Fi"),
        ("FiiFi", 2, "Fi"),
        ("FiiFi", 3, "FiiFi"),
        ("FFF", 2, "FF"),
        ("FiF", 9, "FiF"),
    ],
)
def test_the_newest_stay_with_what_they_continue(
    us: Store, target: FolderTarget, day: list[int], kinds: str, keep: int, stays: str
) -> None:
    before = line(us, target, day, kinds)
    done = prune(target, keep=keep, now_ms=START_MS)
    assert left(target) == stays
    assert [*done.removed, *done.kept] == before or set(m.id for m in (*done.removed, *done.kept)) == {m.id for m in before}
    assert list(done.kept) == manifests(target)
    assert done.files == sum(1 + len(m.files) for m in done.removed) and done.size == sum(m.size for m in done.removed)
    assert {name.partition("/")[0] for name in target.names()} == {m.id for m in done.kept}, "nothing of the others is left"
    assert {path.name for path in target.folder.iterdir()} == {m.id for m in done.kept}


def test_what_is_older_goes_unless_something_younger_continues_it(us: Store, target: FolderTarget, day: list[int]) -> None:
    line(us, target, day, "FiFiiF")  # of days 0 to 5
    now_ms = START_MS + 5 * DAY_MS
    assert left(target) == "FiFiiF"
    prune(target, older_than_ms=2 * DAY_MS, now_ms=now_ms)  # days 3, 4 and 5 stay, and what 3 continues
    assert left(target) == "FiiF"
    prune(target, older_than_ms=0, now_ms=now_ms + 99 * DAY_MS)
    assert left(target) == "F", "the newest always stays"


def test_what_stays_only_because_it_is_continued_is_told(us: Store, target: FolderTarget, day: list[int]) -> None:
    first, second, third = line(us, target, day, "Fii")
    assert prune(target, keep=1, now_ms=START_MS, dry_run=True).continued == (first, second)
    assert prune(target, keep=2, now_ms=START_MS, dry_run=True).continued == (first,)
    said = CliRunner().invoke(cli, ["backup", "prune", str(target.folder), "--keep", "1", "--dry-run"])
    assert said.output == "0 backups of 0 bytes would go, 3 left, 2 of them only because a newer one continues them\n"
    assert left(target) == "Fii" and manifests(target)[-1] == third


def test_with_two_rules_a_backup_stays_that_either_keeps(us: Store, target: FolderTarget, day: list[int]) -> None:
    line(us, target, day, "FFFFF")
    prune(target, keep=2, older_than_ms=3 * DAY_MS, now_ms=START_MS + 5 * DAY_MS)
    assert left(target) == "FFF"
    prune(target, keep=3, older_than_ms=0, now_ms=START_MS + 99 * DAY_MS)
    assert left(target) == "FFF"


def test_a_dry_run_says_the_same_and_does_nothing(us: Store, target: FolderTarget, day: list[int]) -> None:
    line(us, target, day, "FiFi")
    names = target.names()
    said = prune(target, keep=1, now_ms=START_MS, dry_run=True)
    assert target.names() == names and len(said.removed) == 2
    assert prune(target, keep=1, now_ms=START_MS) == said


def test_wherever_it_is_interrupted_every_backup_that_is_there_is_whole(us: Store, tmp_path: Path, day: list[int]) -> None:
    class Failing(FolderTarget):
        fails_at = 0
        done = 0

        def delete(self, name: str) -> None:
            self.done += 1
            if self.done == self.fails_at:
                raise StorageError("the target is gone")
            super().delete(name)

    for fails_at in itertools.count(1):
        target = Failing(tmp_path / f"backups{fails_at}")
        day[0] = 0
        line(us, target, day, "FiiF")
        target.fails_at = fails_at
        try:
            prune(target, keep=1, now_ms=START_MS)
        except StorageError:
            assert left(target) in ("FiiF", "FiF", "FF", "F")
            target.fails_at = 0
            later_ms = START_MS + 9 * DAY_MS
            prune(target, keep=1, now_ms=later_ms)
            assert left(target) == "F" and len(list(target.folder.iterdir())) == 1, "what was left goes with the next"
        else:
            break
    assert fails_at == 7, "three manifests and three files go"


def test_files_of_a_backup_in_the_making_stay_and_those_of_one_that_died_go(us: Store, target: FolderTarget, day: list[int]) -> None:
    line(us, target, day, "F")
    dead = manifest_module.new_id("us", START_MS)
    target.put(f"{dead}/state-000000", b"half")
    target.put("notes/readme", b"not ours")
    assert prune(target, keep=1, now_ms=START_MS + DAY_MS).unfinished == ()
    done = prune(target, keep=1, now_ms=START_MS + DAY_MS + 1)
    assert done.unfinished == (dead,) and done.files == 1
    assert "notes/readme" in target.names() and f"{dead}/state-000000" not in target.names()


def test_each_cluster_in_a_target_keeps_its_own(us: Store, target: FolderTarget, day: list[int]) -> None:
    from crdtkv.store import Settings

    line(us, target, day, "F")
    with stores("us", settings=Settings(cluster="other")) as (other,):
        other.put("k", 1)
        create(other, target)
    prune(target, keep=1, now_ms=START_MS + 99 * DAY_MS)
    assert {m.cluster for m in manifests(target)} == {"crdtkv", "other"}


def test_a_backup_whose_parent_is_pruned_meanwhile_is_none(
    us: Store, target: FolderTarget, day: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = line(us, target, day, "F")[0]
    frames = writing_module._frames

    def slow(*args: object) -> int:
        made = frames(*args)  # type: ignore[arg-type]
        day[0] += 1
        create(us, target, full=True)
        prune(target, keep=1, now_ms=START_MS)
        return made

    us.put("more", 1)
    monkeypatch.setattr(writing_module, "_frames", slow)
    with pytest.raises(StorageError, match=f"{first.id}, which this one continues, was removed meanwhile: try again"):
        create(us, target)
    assert left(target) == "F"


def test_rules_are_checked_and_a_damaged_manifest_stops_it(us: Store, target: FolderTarget, day: list[int]) -> None:
    made = line(us, target, day, "FF")
    for wrong in ({}, {"keep": 0}, {"older_than_ms": -1}):
        with pytest.raises(ConfigError):
            prune(target, now_ms=START_MS, **wrong)  # type: ignore[arg-type]
    (target.folder / made[0].id / "manifest.json").write_bytes(b"{}")
    names = target.names()
    with pytest.raises(CorruptionError, match=made[0].id):
        prune(target, keep=1, now_ms=START_MS)
    assert target.names() == names


def test_object_storage_is_pruned_too(us: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_storage() as (storage, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        target = open_target("s3://bucket/prefix")
        us.put("k", 1)
        create(us, target)
        newest = create(us, target, full=True)
        prune(target, keep=1, now_ms=START_MS)
        assert [m.id for m in manifests(target)] == [newest.id]
        assert all(f"/{newest.id}/" in name for name in storage.objects)
        target.delete(f"{newest.id}/nothing")


def test_the_command(us: Store, target: FolderTarget, day: list[int]) -> None:
    first, second, third = line(us, target, day, "FiF")
    where = str(target.folder)
    said = CliRunner().invoke(cli, ["backup", "prune", where, "--keep", "1", "--dry-run"])
    assert said.exit_code == 0 and f"would remove {second.id}: incremental" in said.output and "2 backups of" in said.output
    assert left(target) == "FiF"
    said = CliRunner().invoke(cli, ["backup", "prune", where, "--older-than", "99999d", "-o", "json"])
    assert said.exit_code == 0 and json.loads(said.output)["removed"] == [] and json.loads(said.output)["continued"] == []
    said = CliRunner().invoke(cli, ["backup", "prune", where, "--keep", "1"])
    assert f"removed {first.id}: full" in said.output and said.output.endswith("gone, 1 left\n")
    assert [m.id for m in manifests(target)] == [third.id]
    for wrong in (["--older-than", "soon"], ["--older-than", "d"], ["--keep", "0"], []):
        assert CliRunner().invoke(cli, ["backup", "prune", where, *wrong]).exit_code == 2
