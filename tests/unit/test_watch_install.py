"""Watchers while records change that no log tells of: snapshots that are installed or merged, repairs. Nothing is missed silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import crdtkv
from crdtkv.core.codec import register_slot_of
from crdtkv.core.join import snapshot_of
from crdtkv.errors import DiskFullError, OverloadedError, TokenExpiredError
from crdtkv.results import Change
from crdtkv.store import Settings, Store
from crdtkv.store.mending import adopt_records
from tests.stores import install

SETTINGS = Settings(instance_dir="trust", watch_changes_max=30, fold_records_max=10)


@pytest.fixture
def eu(tmp_path: Path) -> Iterator[Store]:
    with crdtkv.open(tmp_path / "eu", region="eu", settings=SETTINGS) as store:
        yield store


@pytest.fixture
def us() -> Iterator[Store]:
    with crdtkv.open(region="us") as store:
        yield store


def told(store: Store, since: str | None) -> list[tuple[str, object, bool]]:
    return [(c.key, c.value, c.unlogged) for c in store.watch(since=since, timeout=0.001)]


def drained(feed: object) -> list[Change]:
    return [Change.from_row(row) for row in feed.drain()]  # type: ignore[attr-defined]


def test_who_follows_gets_what_an_install_changed_and_that_it_did(us: Store, eu: Store) -> None:
    us.put("theirs", 1)
    us.set("tags").add("x")
    eu.put("mine", 1)
    feed, other = eu.subscribe(), eu.subscribe("the")
    eu.put("before", 1)
    install(us, eu)
    eu.put("after", 1)
    changes = drained(feed)
    assert [(c.key, c.unlogged) for c in changes] == [("before", False), ("tags", True), ("theirs", True), ("after", False)]
    assert [(c.key, c.value) for c in drained(other)] == [("theirs", 1)]
    assert Change.from_row(changes[1].to_row()) == changes[1]


def test_a_token_of_before_an_install_is_not_resumed_from(us: Store, eu: Store) -> None:
    us.put("theirs", 1)
    eu.put("k", 1)
    feed = eu.subscribe()
    first = eu.put("k", 2).token
    second = eu.put("k", 3).token
    install(us, eu)
    seen = drained(feed)
    assert [c.key for c in seen] == ["k", "k", "theirs"]
    for token in (first, second, seen[0].token, seen[1].token):
        with pytest.raises(TokenExpiredError, match="a snapshot was installed"):
            told(eu, token)
    # Whoever has seen all of the install goes on, though the log has not grown since.
    assert told(eu, seen[2].token) == []
    eu.put("k", 4)
    assert told(eu, seen[2].token) == [("k", 4, False)]


def test_a_watch_may_begin_where_a_read_after_the_install_was(us: Store, eu: Store) -> None:
    us.put("theirs", 1)
    eu.put("k", 1)
    install(us, eu)
    token = eu.execute([(1, "get", ["k"], None)]).token.encode()
    assert told(eu, token) == []
    eu.put("k", 2)
    assert told(eu, token) == [("k", 2, False)]


def test_a_token_drained_late_does_not_count_as_one_of_after(us: Store, eu: Store) -> None:
    """The trap: a token that names what was applied when it was *taken* would cover an install that its change preceded."""
    us.put("theirs", 1)
    feed = eu.subscribe()
    eu.put("k", 1)
    install(us, eu)
    late = drained(feed)[0]
    assert late.key == "k"
    with pytest.raises(TokenExpiredError, match="read the keys anew"):
        told(eu, late.token)


def test_who_is_too_slow_for_an_install_is_told_to_begin_anew(us: Store, eu: Store) -> None:
    for i in range(100):
        us.put(f"k{i:03}", i)
    eu.put("k", 1)
    feed, fresh = eu.subscribe(), eu.watch(timeout=5)
    eu.put("k", 2)
    next(fresh)
    install(us, eu)
    seen = drained(feed)
    assert feed.overflowed and [c.key for c in seen] == ["k"]
    with pytest.raises(TokenExpiredError, match="read the keys anew"):
        told(eu, feed.last_token)
    with pytest.raises(OverloadedError) as cut:
        list(fresh)
    with pytest.raises(TokenExpiredError, match="read the keys anew"):
        told(eu, cut.value.details["token"])


def test_who_is_cut_before_the_first_change_has_a_token_too(us: Store, eu: Store) -> None:
    feed = eu.subscribe()
    for i in range(31):
        eu.put(f"k{i}", i)
    assert len(feed.drain(0)) == 0 and feed.overflowed
    feed = eu.subscribe("k")
    with eu.batch() as batch:
        for i in range(31):
            batch.put(f"k{i}", -i)
    assert feed.overflowed and not drained(feed)
    assert [value for _, value, _ in told(eu, feed.last_token)] == [-i for i in range(31)]


def test_who_still_catches_up_when_an_install_comes_is_told(us: Store, eu: Store) -> None:
    us.put("theirs", 1)
    token = eu.put("k", 0).token
    for i in range(5):
        eu.put("k", i)
    feed = eu.subscribe(since=token)
    install(us, eu)
    eu.put("k", 9)
    with pytest.raises(TokenExpiredError, match="a snapshot was installed"):
        feed.drain()


def test_an_install_is_remembered_over_a_restart(us: Store, tmp_path: Path) -> None:
    us.put("theirs", 1)
    with crdtkv.open(tmp_path / "ap", region="ap", settings=SETTINGS) as ap:
        token = ap.put("k", 1).token
        install(us, ap)
        after = ap.put("k", 2).token
    with crdtkv.open(tmp_path / "ap", region="ap", settings=SETTINGS) as ap:
        with pytest.raises(TokenExpiredError, match="a snapshot was installed"):
            told(ap, token)
        assert told(ap, after) == []


def test_a_snapshot_that_is_merged_is_told_of_likewise(eu: Store) -> None:
    with crdtkv.open(region="us") as us:
        us.put("theirs", 1)
        us.vv()  # seals
        data = snapshot_of(us._replica).to_bytes()
        token = eu.put("k", 1).token
        feed = eu.subscribe()
        eu.merge(data)
    assert [(c.key, c.value, c.unlogged) for c in drained(feed)] == [("theirs", 1, True)]
    with pytest.raises(TokenExpiredError, match="read the keys anew"):
        told(eu, token)


def test_a_repair_is_told_of_likewise(us: Store, eu: Store) -> None:
    us.put("k", 1)
    eu.merge(us.delta_since(eu.vv()))
    slot = register_slot_of("k")
    record = eu._replica.state.get(slot)
    with eu._lock:
        eu._machine.fold()
        eu._machine.engine.write({slot: None})
    assert eu.get("k") is None, "damaged"
    token = eu.put("other", 1).token
    feed = eu.subscribe()
    assert adopt_records(eu, {slot: record}, us.vv(), "us").adopted == (slot,)
    assert [(c.key, c.value, c.unlogged) for c in drained(feed)] == [("k", 1, True)]
    with pytest.raises(TokenExpiredError, match="read the keys anew"):
        told(eu, token)


def test_what_a_retry_applies_once_there_is_room_is_watched_at_once(us: Store, eu: Store) -> None:
    """It had been held, and its application undone for want of room: no frame and no write of here brings it."""
    us.put("k", 1)
    with us._lock:
        us._machine.seal()
    held = us._machine.log.find(us.origin, 1)
    assert held is not None
    feed = eu.subscribe()
    with eu._lock:
        eu._machine.replica.hold([held])
        eu._machine.refuse(DiskFullError("no room"))
    eu._upkeep._look_for_room()
    assert [(change.key, change.value) for change in drained(feed)] == [("k", 1)]
