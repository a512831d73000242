"""Under which id a directory goes on: kept over every SIGKILL, new wherever own commits may be missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv import Settings, StorageError, Store
from crdtkv.core.causality import Origin, generation_of
from crdtkv.store import identity, opening
from crdtkv.store.identity import Evidence, Instance, Mark, Record, why_new

US = Origin("us@1-0000000a")
SETTINGS = Settings(async_sync_ms=3_600_000)


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tokens of a test are; another machine has another."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "crdtkv" / "instances"


def opened(path: Path, *, durability: str = "async", engine: str = "memory", **settings: Any) -> Store:
    return crdtkv.open(path, region="us", engine=engine, durability=durability, settings=replace(SETTINGS, **settings))


def kill(store: Store) -> None:
    """What a SIGKILL leaves: files as they are, nothing said at the end."""
    store._upkeep.stop()
    store._closed = "killed"
    store._opened.close()
    crdtkv.store.store._stores.discard(store)


def write(store: Store, key: str = "k", count: int = 1) -> None:
    store._machine.when_beyond = lambda: None
    for i in range(count):
        store.put(key, i)
    store.keep_bound()  # as its thread does soon


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    with opened(path) as store:
        write(store, count=5)
    return path


def origin_of(path: Path, **arguments: Any) -> str:
    with opened(path, **arguments) as store:
        return store.origin


# -- the decision -----------------------------------------------------------------------------------------------------


def record(**changes: Any) -> Record:
    values = dict(number=3, id="x", nonce="n", previous="", origin=US, boot="b", clean=False, bound=0, path="/data")
    return Record(**{**values, **changes})


def evidence(inside: Record | None, outside: Record | None, recovered: int = 10, **more: Any) -> Evidence:
    return Evidence(**{"origin": US, "recovered": recovered, "commits": 20, "inside": inside, "outside": outside, "boot": "b", **more})


AHEAD = record(bound=100)
KEPT = {
    "sigkill, with commits above what is fsynced": evidence(AHEAD, AHEAD),
    "a clean stop": evidence(record(clean=True, bound=10), record(clean=True, bound=10), boot="c"),
    "power lost, all that may have left is there": evidence(record(bound=10), record(bound=10), boot="c"),
    "killed after the token was renewed": evidence(record(), record(nonce="m", previous="n")),
    "a first opening that was cut short": evidence(record(origin="us@1-0000000b"), record(origin="us@1-0000000b"), recovered=0),
    "trusted": evidence(record(path=""), None, trusted=True),
    "all that was fsynced is there": evidence(record(synced=20), record(synced=19), mark=Mark(10, 20), boot="c"),
    "a token from now on": evidence(record(path=""), None),
    "no token, but none is possible": evidence(record(), None, trusted=True),
}
NEW = {
    "the engine ahead": (evidence(AHEAD, AHEAD, is_engine_ahead=True), "held commits that the log had lost"),
    "no record": (evidence(None, None), "does not say how it was closed"),
    "another machine": (evidence(record(), None), "not used on this machine"),
    "a copy": (evidence(record(), record(), original="/else"), "copy of /else"),
    "an old copy": (evidence(record(nonce="o"), record(previous="m")), "older copy"),
    "an old copy, by the mark": (evidence(record(), record(), mark=Mark(11)), "commits up to 11 were written"),
    "rolled back after a clean stop": (
        evidence(record(clean=True, bound=11), record(clean=True, bound=11)),
        "closed with own commits up to 11",
    ),
    "rolled back before anything was noted": (evidence(record(seq=11), record(seq=11)), "had own commits up to 11"),
    "others' commits rolled back": (evidence(record(synced=21), record()), "fsynced 21 commits of all regions and holds 20"),
    "others' commits rolled back, by the mark": (evidence(record(), record(synced=3), mark=Mark(10, 22)), "fsynced 22 commits"),
    "power lost, and commits": (evidence(AHEAD, AHEAD, boot="c"), "up to 100 may have left"),
    "power lost, the bound outside is higher": (evidence(record(bound=10), AHEAD, boot="c"), "up to 100 may have left"),
    "no boot id": (evidence(record(bound=100, boot=""), record(bound=100, boot=""), boot=""), "may have left"),
    "another origin": (evidence(record(origin="us@2-0000000b"), record(origin="us@2-0000000b")), "different times"),
    "trusted, power lost": (evidence(AHEAD, None, boot="c", trusted=True), "up to 100 may have left"),
}


@pytest.mark.parametrize("found", KEPT.values(), ids=KEPT)
def test_the_id_is_kept(found: Evidence) -> None:
    assert why_new(found) is None


@pytest.mark.parametrize(("found", "why"), NEW.values(), ids=NEW)
def test_a_new_id_is_taken(found: Evidence, why: str) -> None:
    assert why in str(why_new(found))


# -- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [pytest.param(201), pytest.param(1002, marks=pytest.mark.soak)])
def test_a_thousand_kills_take_no_new_incarnation(data: Path, kills: int) -> None:
    before = origin_of(data)
    for number in range(kills):
        store = opened(data)
        assert store.origin == before and not store.warnings
        if number % 3:
            store.put("k", number)  # the bound is not raised yet: as if killed before its thread came to it
        if number % 3 == 2:
            store.keep_bound()
        kill(store)
    with opened(data) as store:
        assert store.origin == before and store["k"] == kills - 1


class Killed(BaseException):
    """Where the process ends."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Ends the process at the n-th write to a record: before it is written, or torn in its middle."""
    plan = {"at": 0, "torn": 0, "count": 0}
    pwrite = os.pwrite

    def write(fd: int, bytes_: bytes, offset: int) -> int:
        if len(bytes_) > 16 and bytes_.startswith(identity._MAGIC):
            plan["count"] += 1
            if plan["count"] == plan["at"]:
                if plan["torn"]:
                    pwrite(fd, bytes_[: len(bytes_) // 2], offset)
                raise Killed
        return pwrite(fd, bytes_, offset)

    monkeypatch.setattr(os, "pwrite", write)
    yield plan


@pytest.mark.parametrize("torn", [0, 1])
def test_killed_while_opening_bounding_and_closing(data: Path, dying: dict[str, int], torn: int) -> None:
    """A new opening goes on with the id, whichever of the records' writes was the last."""
    before = origin_of(data)
    dying.update(count=0, torn=torn)
    store = opened(data)
    write(store)
    store.close()
    writes = dying["count"]
    assert writes == 3 + 2 + 2  # opening, raising the bound, closing
    hit = 0
    for at in range(1, writes + 1):
        dying.update(at=at, count=0)
        store = None
        try:
            store = opened(data)
            write(store)
            store.close()
        except Killed:
            hit += 1
            if store is not None and not store.closed:
                kill(store)
        dying.update(at=0)
        assert origin_of(data) == before, f"write {at}"
    assert hit == writes


def test_killed_while_a_new_incarnation_is_taken(data: Path, dying: dict[str, int], tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken by whoever opens next, and what was written is there."""
    before = origin_of(data)
    shutil.rmtree(tokens)
    for at in (1, 2):
        dying.update(at=at, count=0)
        with pytest.raises(Killed):
            opened(data)
        dying.update(at=0)

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(opening.Machine, "begin_incarnation", die)
    with pytest.raises(Killed):
        opened(data)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tokens.parents[1]))
    with opened(data) as store:
        assert store.origin != before and generation_of(store.origin) > 1
        assert store["k"] == 4 and store.vv().seq(Origin(before)) == 5
        kept = store.origin
    assert origin_of(data) == kept


# -- the sent bound ---------------------------------------------------------------------------------------------------


def test_nothing_above_the_bound_leaves(data: Path) -> None:
    with opened(data) as store:
        end = store._machine.log.end()
        store.put("k", "above")
        assert store.port.released() == end, "it left before the bound was raised"
        store.keep_bound()
        assert store.port.released() == end + 1
        inside = Instance.__new__(Instance)
        assert inside is not None and store._machine.sent_bound == 6 + identity.LEAP


def test_the_bound_is_raised_without_being_asked(data: Path) -> None:
    with opened(data) as store:
        store.put("k", 1)
        end, deadline = store._machine.log.end(), identity.time.monotonic() + 20
        while store.port.released() < end:
            assert identity.time.monotonic() < deadline, "the bound was never raised"


def test_bytes_given_by_hand_wait_for_the_bound(data: Path) -> None:
    with opened(data) as store:
        store._machine.when_beyond = lambda: None
        store.put("k", "above")
        store.delta_since()
        assert store._machine.sent_bound is not None and store._machine.sent_bound >= 6


def test_at_sync_the_log_is_the_evidence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = origin_of(data)
    store = opened(data, durability="sync")
    assert store._machine.sent_bound is None
    write(store, count=3)
    kill(store)
    monkeypatch.setattr(identity, "boot_id", lambda: "after the power failure")
    with opened(data, durability="sync") as store:
        assert store.origin == before and store["k"] == 2


def test_power_lost_under_load_takes_a_new_incarnation(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = origin_of(data)
    store = opened(data)
    write(store)
    kill(store)
    monkeypatch.setattr(identity, "boot_id", lambda: "after the power failure")
    with opened(data) as store:
        assert store.origin != before and "the machine stopped" in store.warnings[0]
        assert store["k"] == 0


def test_power_lost_at_rest_costs_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = origin_of(data)
    store = opened(data)
    write(store)
    now_s = identity.time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now_s + 60)
    store.keep_bound()  # notes that nothing was written, and fsyncs
    store.keep_bound()
    assert store._machine.sent_bound == store._machine.own_seq() == 6
    kill(store)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(data.parent / "state"))
    monkeypatch.setattr(identity, "boot_id", lambda: "after the power failure")
    with opened(data) as store:
        assert store.origin == before
        write(store)
        assert store.port.released() == store._machine.log.end()


# -- copies and backups -----------------------------------------------------------------------------------------------


def test_the_same_id_is_not_taken_after_a_restore(data: Path, tmp_path: Path) -> None:
    """A backup of the stopped directory, put back after it was used again."""
    shutil.copytree(data, tmp_path / "backup")
    with opened(data) as store:
        before = store.origin
        write(store, "later")
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    with opened(data) as store:
        assert store.origin != before and "older copy" in store.warnings[0] and store["k"] == 4
        assert store.status().warnings == store.warnings
        assert store.put("k", 9).origin == store.origin
    assert origin_of(data) == store.origin, "once is enough"


@pytest.mark.parametrize("rebooted", [False, True])
@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_copy_taken_while_it_ran_and_put_back_after_a_kill(
    data: Path, tmp_path: Path, durability: str, rebooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nonce fits: what was noted outside since, or the bound outside, tells."""
    store = opened(data, durability=durability)
    before = store.origin
    write(store)
    shutil.copytree(data, tmp_path / "backup")
    write(store, count=3)
    kill(store)
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    if rebooted:
        monkeypatch.setattr(identity, "boot_id", lambda: "another")
    assert origin_of(data, durability=durability) != before


def test_a_clone_on_the_same_machine(data: Path, tmp_path: Path) -> None:
    before = origin_of(data)
    shutil.copytree(data, tmp_path / "clone")
    assert origin_of(tmp_path / "clone") != before
    assert origin_of(data) == before


def test_a_directory_that_was_moved_is_the_same(data: Path, tmp_path: Path) -> None:
    before = origin_of(data)
    data.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert origin_of(tmp_path / "moved") == origin_of(tmp_path / "link") == before
    shutil.copytree(tmp_path / "moved", data)
    assert origin_of(data) != before, "the copy at the old path"


def test_another_machine(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = origin_of(data)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    with opened(data) as store:
        assert store.origin != before and "not used on this machine" in store.warnings[0]


def test_trust_keeps_no_token(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    before = origin_of(data, instance_dir="trust")
    assert not tokens.exists()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert origin_of(data, instance_dir="trust") == before
    assert origin_of(data) == before and len(os.listdir(tmp_path / "another" / "crdtkv" / "instances")) == 1


def test_a_place_for_tokens_that_cannot_be_used_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        with opened(tmp_path / "data", instance_dir=str(tmp_path / "file" / "x")) as store:
            assert "set instance_dir" in store.warnings[0] and "\n" not in store.warnings[0]
            assert generation_of(store.origin) == 1
            write(store)


def test_lost_logs(data: Path) -> None:
    """Rolled back in place: the last segment is gone, the rest of the directory as it was."""
    before = origin_of(data)
    for file in (data / "log").iterdir():
        file.unlink()
    with opened(data) as store:
        assert store.origin != before and "own commits up to 5 were written and the log ends at 0" in store.warnings[0]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_log_put_back_with_all_own_commits_had_told_others_what_it_lost(tmp_path: Path, stopped: bool) -> None:
    """The log alone goes back to before it had *others'* commits; its own are all there, so it went on under its id. What it had told under
    that id no longer held: peers had dropped bookkeeping because it had fsynced a reset, and waited for it to hand on what it reported.
    """
    data = tmp_path / "data"
    with opened(data) as store:
        write(store, count=2)
    shutil.copytree(data / "log", tmp_path / "log")
    store = opened(data)
    before = store.origin
    with crdtkv.open(region="eu") as other:
        other.put("theirs", 1)
        store.merge(other.delta_since(store.vv()))
    store._machine.log.sync()
    if stopped:
        store.close()
    else:
        store.keep_bound()
        kill(store)
    shutil.rmtree(data / "log")
    shutil.copytree(tmp_path / "log", data / "log")
    with opened(data) as store:
        assert store.origin != before and "fsynced 3 commits of all regions and holds 2" in store.warnings[0]
        assert store["k"] == 1 and "theirs" not in store


@pytest.mark.parametrize("rebooted", [False, True])
def test_an_install_is_noted_outside_before_anything_rests_on_it(tmp_path: Path, rebooted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves no position of the log, and adds nothing to it: a directory that was put back to before one looked like what it had been."""
    data = tmp_path / "data"
    store = opened(data, engine="lmdb")
    before = store.origin
    write(store, count=2)
    store._machine.log.sync()
    shutil.copytree(data, tmp_path / "copy")
    with crdtkv.open(region="eu", settings=Settings(memory_log_bytes=1_000, gather_commits_max=1)) as other:
        for _ in range(100):
            other.put("theirs", "x" * 100)
        store.merge(other.delta_since())  # its log no longer has all of it: a snapshot
    assert "theirs" in store and store._machine.log.end() == 2
    kill(store)
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "copy", data)
    if rebooted:
        monkeypatch.setattr(identity, "boot_id", lambda: "another")
    with opened(data, engine="lmdb") as store:
        assert store.origin != before and "fsynced 102 commits of all regions and holds 2" in store.warnings[0]


def test_a_mark_of_before_counts_were_noted(data: Path, tokens: Path) -> None:
    before = origin_of(data)
    (token,) = tokens.iterdir()
    os.truncate(token, 2 * 8192 + 16)
    store = opened(data)
    assert store.origin == before
    write(store)
    kill(store)
    assert origin_of(data) == before and token.stat().st_size > 2 * 8192 + 16


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_an_engine_ahead_of_its_log(tmp_path: Path, engine: str) -> None:
    """The state stays and is given to whoever asks for it, as a snapshot; what is written next is under a new id."""
    path = tmp_path / "data"
    with opened(path, engine=engine) as store:
        write(store, count=3)
        shutil.copytree(path / "log", tmp_path / "log")
        write(store, "lost", 4)
        before, digest = store.origin, store.digest()
    shutil.rmtree(path / "log")
    shutil.copytree(tmp_path / "log", path / "log")
    with opened(path, engine=engine) as store:
        assert store.origin != before and "engine held commits that the log had lost" in store.warnings[0]
        assert store.digest() == digest and store["lost"] == 3
        assert store._machine.log.floor() == crdtkv.VersionVector({Origin(before): 7})
        write(store, "new")
        kept = store.origin
        with crdtkv.open(region="eu") as other:
            other.merge(store.delta_since(other.vv()))
            assert other.digest() == store.digest()
    with opened(path, engine=engine) as store:
        assert store.origin == kept and store["new"] == 0


# -- what goes on afterwards ------------------------------------------------------------------------------------------


def test_a_counter_restored_twice_counts_once(data: Path, tmp_path: Path) -> None:
    """Two restores of one backup add under ids of their own: as one id, one increment would overwrite the other."""
    with opened(data) as store:
        store.counter("c").increment(10)
    with crdtkv.open(region="eu") as other:
        shutil.copytree(data, tmp_path / "backup")
        for _ in range(2):
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "backup", data)
            with opened(data) as store:
                store.counter("c").increment(1)
                other.merge(store.delta_since(other.vv()))
            shutil.rmtree(tmp_path / "state")
        assert other.counter("c").value == 12


def test_a_clock_that_ran_ahead_is_left_behind(tmp_path: Path) -> None:
    clock = [2_000_000_000_000]
    arguments: dict[str, Any] = dict(region="us", engine="memory", durability="async", settings=SETTINGS, wall_ms=lambda: clock[0])
    path = tmp_path / "data"
    for correct, refused in ((False, False), (True, True)):
        machine = identity_store(path, arguments, SETTINGS)
        with machine as store:
            if correct:
                clock[0] -= 86_400_000
            if refused:
                with pytest.raises(crdtkv.ClockSkewError, match="new incarnation"):
                    store.put("k", 1)
                store.begin_incarnation("the clock was wrong")
            store.put("k", 2)


def identity_store(path: Path, arguments: dict[str, Any], settings: Settings) -> Store:
    from crdtkv.store.opening import open_machine

    return Store(open_machine(path, **arguments), "async", settings, arguments["wall_ms"])


def test_tokens_of_directories_that_are_gone_go(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "TOKENS_MAX", 4)
    for number in range(10):
        with opened(tmp_path / f"data{number}") as store:
            write(store)
        if number:
            shutil.rmtree(tmp_path / f"data{number}")
    assert len(os.listdir(tokens)) <= 6
    with opened(tmp_path / "data0") as store:
        assert generation_of(store.origin) == 1, "a token in use was dropped"


def test_a_record_that_cannot_be_written_stops_the_opening(tmp_path: Path) -> None:
    (tmp_path / "data" / "INSTANCE").mkdir(parents=True)
    with pytest.raises(StorageError, match="INSTANCE"):
        opened(tmp_path / "data")
