"""A process that dies after each step of an install: the next opening shows the state before it, or the whole of the state after it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crdtkv
from crdtkv.errors import CorruptionError
from crdtkv.store.settings import Settings
from crdtkv.store.snapshots import DIRECTORY, INSTALLING, STAGED, FileStaging, Source
from tests.stores import chunks

STEPS = ("flushed before", "marked", "batch", "joined", "floor", "installed", "done")
CHILD = """
import os, sys
import crdtkv
from crdtkv.store.settings import Settings
path, last, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = crdtkv.open(path, region="eu", settings=Settings(fold_records_max=50))
def step(name):
    global count
    if name == last:
        count -= 1
        if not count:
            os._exit(9)
store._machine.snapshots.install(step)
os._exit(0)
"""


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], dict[str, object]]:
    """A region's directory in which the other's snapshot is staged as a whole; what it reads before and after the install."""
    path = tmp_path_factory.mktemp("regions") / "eu"
    with crdtkv.open(path, region="eu", settings=Settings(fold_records_max=50)) as eu, crdtkv.open(region="us") as us:
        for at in range(150):
            us.put(f"k{at:03}", at)
        eu.merge(us.delta_since(eu.vv()))
        for at in range(0, 150, 3):
            us.delete(f"k{at:03}")
            us.put(f"new{at:03}", at)
            us.counter("hits").increment()
        eu.put("alone", 1)
        eu.counter("hits").increment(10)
        before = dict(eu.scan())
        staged = chunks(Source(us._machine))
        us.merge(eu.delta_since(us.vv()))
        after = dict(us.scan())
    staging = FileStaging(path / DIRECTORY)
    for data, link in staged:
        staging.append(data, link)
    staging.close()
    return path, before, after


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_a_step(step: str, cut_off: tuple[Path, dict[str, object], dict[str, object]], tmp_path: Path) -> None:
    path, before, after = cut_off
    for count in (1, 2) if step == "batch" else (1,):
        copy = tmp_path / f"eu{count}"
        shutil.copytree(path, copy)
        trust = {"CRDTKV_INSTANCE_DIR": "trust"}
        done = subprocess.run([sys.executable, "-c", CHILD, str(copy), step, str(count)], env=trust, timeout=60, check=False)
        assert done.returncode == 9, f"the child did not come to step {step!r} number {count}"
        with crdtkv.open(copy, region="eu", settings=Settings(instance_dir="trust")) as eu:
            shown = dict(eu.scan())
            assert shown == (before if step == "flushed before" else after)
            assert eu.get("alone") == 1
            assert not (copy / DIRECTORY / INSTALLING).exists()
            assert bool(eu.last_install) == (step not in ("flushed before", "done"))
            if step != "flushed before":
                assert not (copy / DIRECTORY / STAGED).exists()


def test_a_torn_end_of_what_is_staged_is_cut(tmp_path: Path) -> None:
    with crdtkv.open(region="us") as us:
        for at in range(200):
            us.put(f"k{at:03}", "x" * 50)
        sent = chunks(Source(us._machine))
    assert len(sent) > 4
    for cut in (1, 10, 30):
        directory = tmp_path / f"cut{cut}"
        staging = FileStaging(directory)
        for data, link in sent[:4]:
            staging.append(data, link)
        staging.close()
        file = directory / STAGED
        file.write_bytes(file.read_bytes()[:-cut])
        again = FileStaging(directory)
        assert again.arrival.chunks == 3 and again.arrival.link == sent[2][1]
        for data, link in sent[3:]:
            again.append(data, link)
        again.arrival.check_whole()
        assert dict(again.slots()).keys() == {k for d, _ in sent for k, _ in _slots(d)}
        again.close()


def _slots(data: bytes) -> list[tuple[bytes, bytes]]:
    from crdtkv.core.transfer import slots_of

    return list(slots_of(data))


def test_chunks_of_two_snapshots_are_never_put_together(tmp_path: Path) -> None:
    with crdtkv.open(region="us") as us:
        for at in range(100):
            us.put(f"k{at:03}", "x" * 50)
        one = chunks(Source(us._machine))
        us.put("k050", "y")
        two = chunks(Source(us._machine))
    staging = FileStaging(tmp_path / "staging")
    staging.append(*one[0])
    with pytest.raises(CorruptionError, match="does not follow"):
        staging.append(*two[1])
    with pytest.raises(CorruptionError, match="does not follow"):
        staging.append(one[2][0], one[2][1])
    changed = bytearray(one[1][0])
    changed[len(changed) // 2] ^= 1
    with pytest.raises(CorruptionError):
        staging.append(bytes(changed), one[1][1])
    staging.append(*one[1])  # what was refused has changed nothing
    staging.close()


def test_an_end_that_comes_too_early_is_not_installed(tmp_path: Path) -> None:
    with crdtkv.open(region="us") as us, crdtkv.open(tmp_path / "eu", region="eu") as eu:
        for at in range(100):
            us.put(f"k{at:03}", "x" * 50)
        assert eu._machine.snapshots is not None
        for number, (data, link) in enumerate(chunks(Source(us._machine))[:-1]):
            eu._machine.snapshots.stage(data, link, anew=not number)
        with pytest.raises(CorruptionError, match="digest"):
            eu._machine.snapshots.install()
        assert eu.count() == 0
        eu.put("still", "written")


def test_a_receiver_that_dies_after_any_chunk_goes_on_from_there(tmp_path: Path) -> None:
    settings = Settings(instance_dir="trust")
    with crdtkv.open(region="us") as us:
        for at in range(120):
            us.put(f"k{at:03}", "x" * 50)
        us.set("tags").add("a")
        us.counter("hits").increment(3)
        sent, digest = chunks(Source(us._machine)), us.digest()
    assert len(sent) > 5
    for done in range(1, len(sent) + 1):
        path, copy = tmp_path / f"eu{done}", tmp_path / f"copy{done}"
        with crdtkv.open(path, region="eu", settings=settings) as eu:
            eu.put("alone", 1)
            assert eu._machine.snapshots is not None
            for number, (data, link) in enumerate(sent[:done]):
                eu._machine.snapshots.stage(data, link, anew=not number)
            shutil.copytree(path, copy)  # as a process that is killed leaves it
        with crdtkv.open(copy, region="eu", settings=settings) as eu:
            snapshots = eu._machine.snapshots
            assert snapshots is not None
            assert (snapshots.staged.chunks, snapshots.staged.link) == (done, sent[done - 1][1])
            assert dict(eu.scan()) == {"alone": 1}, "nothing of it shows before all of it is there"
            for data, link in sent[done:]:
                snapshots.stage(data, link, anew=False)
            snapshots.install()
            assert eu.count() == 123
            eu.delete("alone")
            assert eu.digest() == digest


def test_a_donor_that_dies_after_any_chunk_leaves_nothing_of_its_snapshot_in_the_next(tmp_path: Path) -> None:
    with crdtkv.open(region="us") as us:
        for at in range(120):
            us.put(f"k{at:03}", "x" * 50)
        first = chunks(Source(us._machine))
        us.delete("k007")
        us.put("k008", "changed")
        second, digest = chunks(Source(us._machine)), us.digest()
    for done in range(1, len(first) + 1):
        with crdtkv.open(tmp_path / f"eu{done}", region="eu", settings=Settings(instance_dir="trust")) as eu:
            snapshots = eu._machine.snapshots
            assert snapshots is not None
            for number, (data, link) in enumerate(first[:done]):
                snapshots.stage(data, link, anew=not number)
            for number, (data, link) in enumerate(second):
                snapshots.stage(data, link, anew=not number)
            snapshots.install()
            assert "k007" not in eu and eu.get("k008") == "changed" and eu.digest() == digest
