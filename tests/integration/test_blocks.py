"""Blocks between a client and a node: many requests in one row are answered as they would be one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import msgspec
import pytest

import crdtkv
import crdtkv.aio
from crdtkv.core.codec import encode_value
from crdtkv.pb.v1 import kv_pb2, kv_pb2_grpc
from crdtkv.results import OK, ONE_BY_ONE
from crdtkv.transport import channel_options

KEYS = [f"k{n}" for n in range(600)]


@pytest.fixture
def node() -> Iterator[tuple[crdtkv.Store, crdtkv.Node]]:
    with crdtkv.open(region="us") as store, crdtkv.Node(store) as serving:
        yield store, serving


def rows_of(node: crdtkv.Node, *rows: Any) -> list[list[Any]]:
    """What a session answers to one message, until it has answered as many rows as were asked."""
    with grpc.insecure_channel(node.address, options=channel_options()) as channel:
        call = kv_pb2_grpc.KeyValueStub(channel).Session(iter([kv_pb2.RequestBatch(rows=msgspec.msgpack.encode(rows))]))
        return [row for message in call for row in msgspec.msgpack.decode(message.rows)]


def test_a_pipeline_answers_what_single_calls_answer(node: tuple[crdtkv.Store, crdtkv.Node]) -> None:
    store, serving = node
    store.set("k3").add(1)
    values = [None, 7, "text", b"bytes", {"map": [1.5]}]
    with crdtkv.connect(serving.address) as client:
        with client.pipeline() as pipe:
            written = [pipe.put(key, values[n % 5]) for n, key in enumerate(KEYS)]
            read = [pipe.get(key) for key in [*KEYS, "absent", "x" * 1024]]
            other = pipe.get("absent", 5)
        assert [type(result.error) for result in written if result.error is not None] == [crdtkv.WrongTypeError]
        assert written[3].error is not None and read[3].error is not None and other.value == 5
        for n, key in enumerate(KEYS):
            if n != 3:
                assert read[n].value == client.get(key) == values[n % 5]
                (sibling,) = client.siblings(key)
                assert written[n].value.dot == sibling.dot and written[n].value.hlc == sibling.hlc
        assert read[-2].value is None and read[-1].value is None
        commits = [result.value for result in written if result.ok]
        assert [commit.seq for commit in commits] == list(range(2, len(KEYS) + 1))
        assert all(store.vv().covers(commit.dot) and commit.token for commit in commits)


def test_callers_that_put_and_get_at_once_each_get_their_own_answer(node: tuple[crdtkv.Store, crdtkv.Node]) -> None:
    store, serving = node
    store.counter("c").increment()

    async def caller(client: crdtkv.aio.AsyncClient, n: int) -> None:
        for turn in range(10):
            commit = await client.put(f"{n}", [n, turn])
            assert commit is not None and commit.origin == store.origin
            assert await client.get(f"{n}") == [n, turn]
            if n % 8 == 0:
                with pytest.raises(crdtkv.WrongTypeError):
                    await client.put("c", n)

    async def main() -> None:
        async with crdtkv.aio.connect(serving.address) as client:
            await asyncio.gather(*(caller(client, n) for n in range(64)))

    asyncio.run(main())
    assert store.counter("c").value == 1 and store.vv().seq(store.origin) == 1 + 640


def test_a_watched_store_answers_a_block_one_by_one(node: tuple[crdtkv.Store, crdtkv.Node]) -> None:
    _, serving = node
    with crdtkv.connect(serving.address) as client:
        watching = client.watch()
        with client.pipeline() as pipe:
            written = [pipe.put(key, n) for n, key in enumerate(KEYS)]
        seen = [next(watching) for _ in KEYS]
        watching.close()
    assert [change.key for change in seen] == KEYS
    assert [change.commit.dot for change in seen] == [result.value.dot for result in written]


def test_what_is_read_in_a_block_may_be_larger_than_a_message() -> None:
    settings = crdtkv.Settings(value_bytes_max=4 << 20)
    with crdtkv.open(region="us", settings=settings) as store, crdtkv.Node(store) as serving, crdtkv.connect(serving.address) as client:
        large = [bytes([n]) * (3 << 20) for n in range(14)]  # 42 MiB; a message holds 32
        for n, value in enumerate(large):
            store.put(f"l{n}", value)
        with client.pipeline() as pipe:
            read = [pipe.get(f"l{n}") for n in range(14)]
        assert [result.value for result in read] == large


def test_a_block_that_is_none_is_refused_and_the_stream_goes_on(node: tuple[crdtkv.Store, crdtkv.Node]) -> None:
    store, serving = node
    one = encode_value(1)
    rows = rows_of(
        serving,
        [1, "puts", [["a", "b"], [one]], None],
        [2, "puts", [[], []], None],
        [3, "puts", [], None],
        [4, "puts", ["ab", [one, one]], None],
        [5, "gets", [5], None],
        [6, "puts", [["a", "b"], [one, b"\xc1"]], None],
        [7, "puts", [["a", "a"], [one, encode_value(2)], [b"1", b"1"]], None],
        [8, "puts", [["a"], [one]], b"an id that is no option"],
        [9, "gets", [["a", "b", "absent"]], {"deadline_ms": 60_000}],
    )
    assert [row[0] for row in rows] == list(range(1, 10))
    assert [row[2][0] for row in rows[:5] + rows[7:8]] == ["InvalidValueError"] * 6 and {row[1] for row in rows[:5]} == {1}
    assert rows[5][1] == ONE_BY_ONE and [answer[:2] for answer in rows[5][2]] == [[0, OK], [1, 1]]
    assert rows[6][1] == ONE_BY_ONE and rows[6][2][0][2] == rows[6][2][1][2]
    assert rows[8] == [9, OK, [one, None, None]]
    with grpc.insecure_channel(serving.address) as channel, pytest.raises(grpc.RpcError, match="Session"):
        kv_pb2_grpc.KeyValueStub(channel).Execute(kv_pb2.Row(row=msgspec.msgpack.encode(["gets", [["a"]], None])))
    assert store.vv().seq(store.origin) == 2
