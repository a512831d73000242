"""The same calls embedded and through a node: the same names, results and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv import Client, CrdtkvError, Store

NOTHING = crdtkv.VersionVector()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Store, Client]]:
    with (
        crdtkv.open(region="us") as store,
        crdtkv.Node(store) as node,
        crdtkv.connect(node.address, timeout=30) as client,
    ):
        yield store, client


@pytest.fixture(params=["embedded", "through a node"])
def api(request: pytest.FixtureRequest, served: tuple[Store, Client]) -> Iterator[Store | Client]:
    store, client = served
    yield store if request.param == "embedded" else client
    store.delete_prefix("")


def refused(call: Callable[[], object]) -> CrdtkvError:
    with pytest.raises(CrdtkvError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_delete_prefix_in_a_batch_sees_its_writes_and_is_one_commit(api: Store | Client) -> None:
    api.put("a/1", 1)
    api.set("a/2").add(1)
    api.put("b", 1)
    before = api.vv()
    with api.batch() as batch:
        batch.put("a/3", 3)
        batch.counter("a/4").increment()
        batch.delete_prefix("a/")
        assert "a/1" not in batch and "a/3" not in batch and len(batch.set("a/2")) == 0 and "b" in batch
        batch.put("a/5", 5)
        batch.delete_prefix("nothing/")
    assert dict(api.scan()) == {"a/5": 5, "b": 1}
    assert batch.commit is not None and api.vv().missing_from(before) == 1


def test_delete_prefix_in_an_awaited_batch(served: tuple[Store, Client]) -> None:
    store, client = served

    async def body() -> None:
        async with crdtkv.aio.connect(client.endpoints, timeout=30) as awaited:
            await awaited.put("a/1", 1)
            async with awaited.batch() as batch:
                await batch.put("a/2", 1)
                await batch.delete_prefix("a/")
                assert not await batch.exists("a/1")

    asyncio.run(body())
    assert store.count("a/") == 0


def test_one_commit_holds_so_many_keys_of_a_prefix() -> None:
    settings = crdtkv.Settings(value_bytes_max=100, commit_bytes_max=1000)
    with crdtkv.open(settings=settings) as store:
        for number in range(100):
            store.put(f"key/{number}", number)
        with store.batch() as batch:
            assert isinstance(refused(lambda: batch.delete_prefix("key/")), crdtkv.ValueTooLargeError)
            assert batch.delete_prefix("key/9") and not batch.delete_prefix("nothing")
        assert store.count() == 89


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (crdtkv.InvalidValueError, lambda api: api.put("k", 1, durability="often")),
        (crdtkv.InvalidValueError, lambda api: api.set("k").add(1, durability="often")),
        (crdtkv.InvalidValueError, lambda api: api.put("k", 1, ttl=-1)),
        (crdtkv.InvalidValueError, lambda api: api.put("k", {"a": [object()]})),
        (crdtkv.InvalidValueError, lambda api: list(api.scan(types=["table"]))),
        (crdtkv.InvalidValueError, lambda api: list(api.scan(limit=-1))),
        (crdtkv.InvalidValueError, lambda api: api.merge("text")),
        (crdtkv.InvalidValueError, lambda api: api.counter("k").increment(True)),
        (crdtkv.InvalidKeyError, lambda api: api.map("").put("f", 1)),
        (crdtkv.KeyTooLargeError, lambda api: api.get("k" * 1025)),
        (crdtkv.CorruptionError, lambda api: api.merge(b"noise")),
        (crdtkv.KeyNotFoundError, lambda api: api["nothing"]),
    ],
)
def test_what_is_refused_is_refused_alike_and_changes_nothing(
    api: Store | Client, error: type[CrdtkvError], call: Callable[[Any], object]
) -> None:
    before = api.vv()
    assert type(refused(lambda: call(api))) is error
    assert api.vv() == before


def test_types_of_a_scan_are_one_or_several(api: Store | Client) -> None:
    api.put("r", 1)
    api.set("s").add(1)
    api.counter("c").increment()
    assert list(api.scan(types="set")) == list(api.scan(types=["set"])) == [("s", [1])]
    assert [key for key, _ in api.scan(types=["set", "counter"])] == ["c", "s"]


def test_missing_history_names_what_it_needs(api: Store | Client) -> None:
    with crdtkv.open(region="eu") as other:
        other.put("a", 1)
        seen = other.vv()
        other.put("a", 2)
        error = refused(lambda: api.merge(other.delta_since(seen)))
    assert isinstance(error, crdtkv.MissingHistoryError) and error.needs == str(seen) and error.retryable


def test_another_cluster_is_told_apart(api: Store | Client) -> None:
    with crdtkv.open(region="eu", settings=crdtkv.Settings(cluster="shop")) as other:
        other.put("a", 1)
        error = refused(lambda: api.merge(other.delta_since(None)))
    assert isinstance(error, crdtkv.WrongClusterError) and "'shop'" in str(error)


def test_what_is_closed_says_how_to_go_on(tmp_path: Path) -> None:
    store = crdtkv.open()
    store.close()
    assert str(refused(lambda: store.get("a"))) == "the store is closed"  # what it held is gone: there is nothing to open again
    kept = crdtkv.open(tmp_path)
    kept.close()
    assert f"crdtkv.open({str(tmp_path)!r})" in str(refused(lambda: kept.get("a")))
    client = crdtkv.connect("127.0.0.1:1")
    client.close()
    assert "crdtkv.connect" in str(refused(lambda: client.get("a")))


@pytest.mark.parametrize("call", [lambda: crdtkv.open(5), lambda: crdtkv.connect(None), lambda: crdtkv.connect([5])])
def test_arguments_of_no_sense_are_config_errors(call: Callable[[], object]) -> None:
    assert type(refused(call)) is crdtkv.ConfigError


def test_explain_tells_a_collection_by_its_size(api: Store | Client) -> None:
    api.set("s").add(1, 2)
    api.map("m").put("f", 1)
    assert "it has 2 elements" in str(api.explain("s")) and "it has 1 field\n" in str(api.explain("m"))


def test_a_pipeline_has_the_same_names(served: tuple[Store, Client]) -> None:
    _, client = served
    with client.pipeline() as p:
        p.counter("pipelined").increment(2)
        count, digest, vv = p.counter("pipelined").value, p.digest(), p.vv()
    assert (count.value, digest.value, vv.value) == (2, client.digest(), client.vv())


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    error = refused(lambda: crdtkv.open(tmp_path / "file"))
    assert type(error) is crdtkv.StorageError and "it is a file; name a directory" in str(error)
    assert (tmp_path / "file").read_text() == "mine"
