"""The judge of the walk (`make acceptance`) finds what it is there to find: each row is a lie about a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from tests.acceptance.judge import judge, read


@pytest.fixture
def store() -> Iterator[crdtkv.Store]:
    with crdtkv.open(region="us") as store:
        yield store


def notes(directory: Path, events: list[list[Any]]) -> Path:
    file = directory / "own-us.notes"
    file.write_text("".join(json.dumps([1.0, *event]) + "\n" for event in events) + '[2.0, "put", "torn')
    return file


def shared(commit: crdtkv.Commit, key: str, value: str) -> list[Any]:
    return ["shared", key, value, True, commit.origin, commit.seq, commit.hlc, commit.token]


def test_the_truth_passes(store: crdtkv.Store, tmp_path: Path) -> None:
    store.put("own/us/1", "1:a")
    store.put("own/us/2", "2:b")
    store.delete("own/us/2")
    told_shared = [shared(store.put("shared/1/1", value), "shared/1/1", value) for value in ("us.1", "us.2")]
    events = [["put", "own/us/1", "1:a", True], ["put", "own/us/2", "2:b", True], ["del", "own/us/2", True], *told_shared]
    told = read([notes(tmp_path, [*events, ["step", 0.5], ["lost", "RegionUnavailableError: gone"]])])
    wrong, fates = judge(told, {"us": store})
    assert not wrong and fates == {"there": 1, "deleted": 1, "superseded": 1, "visible": 1}
    assert told.under_way(0.7) == 1 and told.under_way(1.5) == 0 and told.refusals == {"RegionUnavailableError": 1}


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        ([["put", "own/us/1", "1:a", True], ["put", "own/us/9", "9:z", True]], "own/us/9 was acknowledged, and is not there"),
        ([["put", "own/us/1", "1:a", True], ["del", "own/us/1", True]], "own/us/1 was deleted, and is there"),
        ([["put", "own/us/1", "other", True]], "own/us/1 is not what was put"),
        ([], "own/us/1 is there, and whoever wrote it was refused"),
    ],
)
def test_a_lie_about_an_own_key_is_found(store: crdtkv.Store, tmp_path: Path, lie: list[list[Any]], found: str) -> None:
    store.put("own/us/1", "1:a")
    wrong, _ = judge(read([notes(tmp_path, lie)]), {"us": store})
    assert wrong == [f"us: {found}"]


def test_a_shared_write_that_is_nowhere_is_found(store: crdtkv.Store, tmp_path: Path) -> None:
    with crdtkv.open(region="eu") as other:
        lost = shared(other.put("shared/1/1", "eu.1"), "shared/1/1", "eu.1")  # concurrent, and never merged
    kept = shared(store.put("shared/1/1", "us.1"), "shared/1/1", "us.1")
    wrong, _ = judge(read([notes(tmp_path, [lost, kept])]), {"us": store})
    assert len(wrong) == 1 and "the write of 'eu.1' to shared/1/1" in wrong[0] and "in no journal" in wrong[0]
    wrong, _ = judge(read([notes(tmp_path, [lost])]), {"us": store})
    assert any("reads 'us.1', which nobody wrote" in text for text in wrong)


def test_a_write_that_lost_must_be_in_a_journal(store: crdtkv.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with crdtkv.open(region="eu") as other:
        events = [shared(s.put("shared/1/1", f"{s.region}.1"), "shared/1/1", f"{s.region}.1") for s in (store, other)]
        store.merge(other.delta_since(store.vv()))
    told = read([notes(tmp_path, events)])
    assert judge(told, {"us": store}) == ([], {"visible": 1, "journalled": 1})
    monkeypatch.setattr(store, "conflicts", list)
    wrong, _ = judge(told, {"us": store})
    assert len(wrong) == 1 and "lost to a concurrent one, and is in no journal" in wrong[0]
