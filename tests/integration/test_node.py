"""Nodes as they run: embedded ones that replicate, and real processes that start, stop and refuse."""

from __future__ import annotations

import asyncio
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import crdtkv
import crdtkv.aio
from crdtkv.core.causality import generation_of
from crdtkv.core.codec import decode_value, encode_value
from crdtkv.node import Limits, peers
from crdtkv.pb.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
from crdtkv.transport import channel_options
from crdtkv.transport.errors import from_rpc_error
from tests.waiting import DEADLINE_S, until

REGIONS = ("us", "eu", "ap")


def equal(stores: Sequence[crdtkv.Store]) -> bool:
    """Whether all have applied the same, and then also hold the same."""
    vvs = [store.vv() for store in stores]
    if len(set(vvs)) > 1:
        return False
    digests = {store.digest() for store in stores}
    if [store.vv() for store in stores] != vvs:
        return False  # a node itself committed meanwhile (a former incarnation is closed, say): look again
    assert len(digests) == 1
    return True


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=channel_options()) as opened:
        grpc.channel_ready_future(opened).result(timeout=DEADLINE_S)
        yield opened


def packed(*items: Any) -> bytes:
    """A MessagePack list."""
    return msgspec.msgpack.encode(items)


class Regions:
    """Three embedded nodes, each dialling both others."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.stores = {region: stack.enter_context(crdtkv.open(region=region)) for region in REGIONS}
        self.nodes: dict[str, crdtkv.Node] = {}
        for region in REGIONS:
            self.start(region)

    def start(self, region: str, listen: str = "127.0.0.1:0", limits: Limits | None = None) -> crdtkv.Node:
        others = {other: node.address for other, node in self.nodes.items() if other != region}
        node = crdtkv.Node(self.stores[region], listen=listen, peers=others, limits=limits, replication="loopback")
        self.stack.callback(node.close)
        self.nodes[region] = node
        for other in others:
            self.nodes[other].set_peer(region, node.address)
        return node

    def ready(self) -> None:
        for node in self.nodes.values():
            node.wait_ready(DEADLINE_S)


@pytest.fixture
def regions() -> Iterator[Regions]:
    with ExitStack() as stack:
        made = Regions(stack)
        made.ready()
        yield made


@contextmanager
def one_node(limits: Limits | None = None, settings: crdtkv.Settings | None = None) -> Iterator[tuple[crdtkv.Store, crdtkv.Node]]:
    with crdtkv.open(region="us", settings=settings) as store, crdtkv.Node(store, limits=limits) as node:
        yield store, node


# -- replication ------------------------------------------------------------------------------------------------------


def test_what_is_put_in_one_region_is_read_in_the_others(regions: Regions) -> None:
    with crdtkv.connect(regions.nodes["us"].address) as us, crdtkv.connect(regions.nodes["ap"].address) as ap:
        us.put("greeting", "hello")
        us.set("tags").add("a", "b")
        us.counter("visits").increment(3)
        until(lambda: ap.get("greeting") == "hello")
        until(lambda: ap.counter("visits").value == 3)
        assert ap.set("tags").members() == ["a", "b"]
    until(lambda: equal(list(regions.stores.values())))


def test_a_replica_that_lost_commits_takes_a_new_incarnation_while_it_serves(tmp_path: Path) -> None:
    """A copy of the directory that could not be told by itself: its peer knows more of it than it does."""
    settings = crdtkv.Settings(instance_dir="trust")
    path = tmp_path / "us"
    with crdtkv.open(region="eu") as eu, crdtkv.Node(eu, replication="loopback") as there, ExitStack() as stack:

        def start() -> tuple[crdtkv.Store, crdtkv.Node]:
            store = stack.enter_context(crdtkv.open(path, region="us", durability="async", settings=settings))
            node = crdtkv.Node(store, peers={"eu": there.address}, replication="loopback")
            stack.callback(node.close)
            return store, node

        us, node = start()
        us.put("kept", 1)
        us.counter("c").increment(1)
        until(lambda: equal([us, eu]))
        stack.close()
        shutil.copytree(path, tmp_path / "backup")
        us, node = start()
        former = us.origin
        for n in range(10):
            us.put("lost", n)
        us.counter("c").increment(2)
        until(lambda: equal([us, eu]))
        stack.close()

        shutil.rmtree(path)
        (tmp_path / "backup").rename(path)
        us, node = start()
        assert us.origin == former, "nothing tells that it is an old copy"
        until(lambda: us.origin != former, "a new incarnation")
        us.counter("c").increment(4)
        until(lambda: equal([us, eu]))
        assert generation_of(us.origin) == 2, "one is enough"
        assert us["lost"] == eu["lost"] == 9 and us["kept"] == 1
        assert us.counter("c").value == eu.counter("c").value == 7
        assert us.vv().seq(former) == 13 and us.put("after", 1).origin == us.origin
        assert any("commits were lost here" in warning for warning in us.warnings)
        with crdtkv.connect(node.address) as client:
            assert client.status().origin == us.origin and client.put("by a client", 1).origin == us.origin
        until(lambda: equal([us, eu]))
        kept = us.origin
        stack.close()
        us, node = start()
        assert us.origin == kept


def test_writes_of_the_embedding_program_replicate_as_those_of_clients_do(regions: Regions) -> None:
    for region, store in regions.stores.items():
        for n in range(200):
            store.put(f"{region}/{n}", n)
            store.counter("all").increment()
    until(lambda: all(store.counter("all").value == 600 for store in regions.stores.values()))
    until(lambda: equal(list(regions.stores.values())))


def test_what_is_written_crosses_a_link_in_fewer_bytes_where_both_sides_compress() -> None:
    with ExitStack() as stack:
        stores = [stack.enter_context(crdtkv.open(region=region)) for region in REGIONS]
        us = stack.enter_context(crdtkv.Node(stores[0], compression="on"))
        for store, compression in zip(stores[1:], ("on", "off"), strict=True):
            stack.enter_context(crdtkv.Node(store, peers={"us": us.address}, compression=compression)).wait_ready(DEADLINE_S)
        for n in range(50):
            with stores[0].batch() as batch:
                for m in range(40):
                    batch.put(f"user/{n}/{m}", {"id": n, "name": f"user {m}", "city": "London"})
        until(lambda: equal(stores))
        rows = {peer.region: peer for peer in us.peers()}
        eu, ap = rows["eu"], rows["ap"]
        assert (eu.compression, ap.compression) == ("zlib", "")
        assert eu.sent_bytes and eu.sent_wire_bytes and eu.sent_wire_bytes < 0.6 * eu.sent_bytes
        assert ap.sent_wire_bytes == ap.sent_bytes
        with crdtkv.connect(us.address) as client:
            told = {peer.region: peer for peer in client.status().peers}
            assert told["eu"].compression == "zlib"
            assert told["eu"].sent_wire_bytes and told["eu"].sent_wire_bytes >= eu.sent_wire_bytes


def test_a_pair_that_dials_from_both_sides_keeps_one_link(regions: Regions) -> None:
    for node in regions.nodes.values():
        until(lambda node=node: len(node._server.peers._links) == 2, "one link to each of the two others")
        assert all(peer.connected for peer in node.peers())


def test_a_region_that_was_away_catches_up_and_all_become_equal(regions: Regions) -> None:
    stores, gone = regions.stores, regions.nodes.pop("eu")
    gone.close()
    until(lambda: not any(peer.connected for peer in regions.nodes["us"].peers() if peer.region == "eu"))
    for region in REGIONS:
        for n in range(100):
            stores[region].put("contended", f"{region} {n}")
            stores[region].set("seen").add(f"{region} {n}")
    until(lambda: len(stores["us"].set("seen")) == 200)
    down = next(peer for peer in regions.nodes["us"].peers() if peer.region == "eu")
    assert (down.connected, down.lag_ms, down.commits_behind) == (False, None, None)
    regions.start("eu", listen=gone.address)
    regions.ready()
    until(lambda: equal(list(stores.values())))
    assert len(stores["ap"].set("seen")) == 300
    assert stores["ap"].conflicts("contended")


@pytest.mark.parametrize("region", ["us", "ap"])  # the one that accepted its links, and the one that dialled them
def test_a_node_that_closes_sends_what_it_has_before(regions: Regions, region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FLUSH_S", 60.0)  # two seconds are short where others compute
    for n in range(2_000):
        regions.stores[region].put(f"last/{n}", n)
    regions.nodes[region].close()
    until(lambda: regions.stores["eu"].count("last/") == 2_000)


def test_a_peer_of_another_cluster_is_refused_and_said_to_be() -> None:
    with ExitStack() as stack:
        ours = stack.enter_context(crdtkv.open(region="us"))
        theirs = stack.enter_context(crdtkv.open(region="eu", settings=crdtkv.Settings(cluster="another")))
        there = stack.enter_context(crdtkv.Node(theirs))
        here = stack.enter_context(crdtkv.Node(ours, peers={"eu": there.address}))
        down = until(lambda: next((peer for peer in here.peers() if "another cluster" in peer.state), None))
        assert not down.connected
        with pytest.raises(crdtkv.DeadlineExceededError, match="eu"):
            here.wait_ready(0.05)


# -- clients ----------------------------------------------------------------------------------------------------------


def test_a_large_set_pages_through_members_scan_and_watch_under_the_message_limit() -> None:
    count, limit = 50_000, 512 << 10
    with one_node(Limits(message_bytes_max=limit)) as (store, node), channel(node.address) as opened:
        stub = kv_pb2_grpc.KeyValueStub(opened)
        before = store.put("before", 0)
        for start in range(0, count, 1_000):
            store.execute([(n, "sadd", ["many", [encode_value(f"element {n:08d}")], None], None) for n in range(start, start + 1_000)])

        def pages(op: str, *args: Any) -> list[bytes]:
            return [page.rows for page in stub.Scan(kv_pb2.StreamRequest(op=op, args=packed(*args)))]

        members = pages("smembers", "many")
        assert len(members) > 1 and max(map(len, members)) <= 256 << 10
        elements = [decode_value(row) for page in members for row in msgspec.msgpack.decode(page)]
        assert elements == [f"element {n:08d}" for n in range(count)]

        scanned = [row for page in pages("scan", "many", None, None, None, False, None) for row in msgspec.msgpack.decode(page)]
        assert len(scanned) > 1 and [row[3] for row in scanned] == [True] * (len(scanned) - 1) + [False]
        assert sum(len(row[2]) for row in scanned) == count

        typed = [e.text for reply in stub.Members(kv_pb2.KeyRequest(key="many")) for e in reply.elements]
        assert typed == elements

        watch = stub.Watch(kv_pb2.StreamRequest(op="watch", args=packed("many", before.token)))
        seen: list[Any] = []
        for page in watch:
            assert len(page.rows) <= 256 << 10
            seen += msgspec.msgpack.decode(page.rows) if page.rows else []
            if len(seen) == count:
                break
        watch.cancel()
        assert {decode_value(row[2]) for row in seen} == set(elements)


def test_a_watcher_that_does_not_read_is_cut_and_resumes_without_a_gap() -> None:
    with one_node(settings=crdtkv.Settings(watch_changes_max=200)) as (store, node), channel(node.address) as opened:
        stub = kv_pb2_grpc.KeyValueStub(opened)

        def watch(since: str | None) -> Any:
            return stub.Watch(kv_pb2.StreamRequest(op="watch", args=packed("k/", since)))

        def rows(call: Any) -> Iterator[Any]:
            for page in call:
                yield from msgspec.msgpack.decode(page.rows) if page.rows else ()

        call = watch(None)
        assert next(iter(call)).rows == b""  # in place
        written = 3_000  # of 10 kB: more than the network's buffers and the watcher's queue hold, less than the log keeps
        for n in range(written):
            store.put(f"k/{n}", "x" * 10_000)
        seen: list[int] = []
        token = None
        with pytest.raises(grpc.RpcError) as caught:
            for row in rows(call):
                seen.append(int(row[0][2:]))
                token = row[-1]
        error = from_rpc_error(caught.value)
        assert isinstance(error, crdtkv.OverloadedError)
        assert error.retryable and error.details["token"] == token
        assert seen == list(range(len(seen))) and len(seen) < written
        store.put("k/9999999", "last")
        for row in rows(resumed := watch(token)):
            if row[0] == "k/9999999":
                break
            seen.append(int(row[0][2:]))
        resumed.cancel()
        assert sorted(set(seen)) == list(range(written))


def test_unary_calls_for_other_languages() -> None:
    with one_node() as (_, node), channel(node.address) as opened:
        kv = kv_pb2_grpc.KeyValueStub(opened)
        text = kv_pb2.Value(text="hello")
        commit = kv.Put(kv_pb2.PutRequest(key="a", value=text)).commit
        assert commit.seq == 1 and commit.origin.startswith("us@")
        found = kv.Get(kv_pb2.KeyRequest(key="a"))
        assert found.found and found.value.text == "hello" and found.value.msgpack == encode_value("hello")
        assert not kv.Get(kv_pb2.KeyRequest(key="missing")).found
        kv.Add(kv_pb2.ElementsRequest(key="s", elements=[text, kv_pb2.Value(integer=7), kv_pb2.Value(truth=True)]))
        kv.Remove(kv_pb2.ElementsRequest(key="s", elements=[text]))
        members = [e for reply in kv.Members(kv_pb2.KeyRequest(key="s")) for e in reply.elements]
        assert sorted(e.WhichOneof("scalar") for e in members) == ["integer", "truth"]
        kv.Increment(kv_pb2.IncrementRequest(key="c", by=5))
        kv.Increment(kv_pb2.IncrementRequest(key="c", by=-2))
        assert kv.GetCounter(kv_pb2.KeyRequest(key="c")).value == 3
        kv.PutField(kv_pb2.PutFieldRequest(key="m", field="f", value=kv_pb2.Value(real=1.5)))
        assert kv.GetField(kv_pb2.FieldRequest(key="m", field="f")).value.real == 1.5
        assert kv.DeleteField(kv_pb2.FieldRequest(key="m", field="f")).HasField("commit")
        row = kv.Execute(kv_pb2.Row(row=msgspec.msgpack.encode(["get", ["a"], None])))
        assert decode_value(msgspec.msgpack.decode(row.row)) == "hello"
        assert kv.Delete(kv_pb2.DeleteRequest(key="a")).HasField("commit")
        assert not kv.Delete(kv_pb2.DeleteRequest(key="a")).HasField("commit")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda kv: kv.Get(kv_pb2.KeyRequest(key="")), crdtkv.InvalidKeyError),
        (lambda kv: kv.Get(kv_pb2.KeyRequest(key="k" * 2000)), crdtkv.KeyTooLargeError),
        (lambda kv: kv.Put(kv_pb2.PutRequest(key="set", value=kv_pb2.Value(text="x"))), crdtkv.WrongTypeError),
        (lambda kv: kv.Put(kv_pb2.PutRequest(key="k")), crdtkv.InvalidValueError),
        (lambda kv: kv.Put(kv_pb2.PutRequest(key="k", value=kv_pb2.Value(msgpack=b"\xc1"))), crdtkv.InvalidValueError),
        (lambda kv: kv.Execute(kv_pb2.Row(row=b"\xc1")), crdtkv.InvalidValueError),
        (lambda kv: kv.Execute(kv_pb2.Row(row=packed("fly", [], None))), crdtkv.InvalidValueError),
        (lambda kv: list(kv.Scan(kv_pb2.StreamRequest(op="fly"))), crdtkv.InvalidValueError),
        (lambda kv: list(kv.Scan(kv_pb2.StreamRequest(op="scan", args=b"\xc1"))), crdtkv.InvalidValueError),
        (lambda kv: list(kv.Session(iter([kv_pb2.RequestBatch(rows=b"\xc1")]))), crdtkv.InvalidValueError),
        (
            lambda kv: list(kv.Watch(kv_pb2.StreamRequest(op="watch", args=packed("", "no token")))),
            crdtkv.InvalidValueError,
        ),
    ],
)
def test_errors_arrive_as_what_they_are(call: Callable[[Any], Any], error: type[crdtkv.CrdtkvError]) -> None:
    with one_node() as (store, node), channel(node.address) as opened:
        store.set("set").add(1)
        before = store.vv()
        with pytest.raises(grpc.RpcError) as caught:
            call(kv_pb2_grpc.KeyValueStub(opened))
        assert type(from_rpc_error(caught.value)) is error
        assert store.vv() == before


def test_what_is_refused_is_worded_alike_embedded_and_through_a_client() -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda s: s["absent"],
        lambda s: s.set("tags").remove("x"),
        lambda s: s.map("m")["f"],
        lambda s: s.map("m").__delitem__("f"),
        lambda s: s.counter("c").increment(1.5),
        lambda s: s.put("k", {"a": [object()]}),
        lambda s: s.put("", 1),
        lambda s: s.get("tags"),
        lambda s: s.put("k", 1, ttl=-1),
        lambda s: s.put("k", 1, ttl="soon"),
        lambda s: list(s.scan(limit=-1)),
        lambda s: list(s.scan(types=["blob"])),
        lambda s: s.delta_since("all"),
        lambda s: s.merge("text"),
        lambda s: s.merge(b"bytes"),
        lambda s: next(s.watch(since="token", timeout=1)),
    ]
    with one_node() as (store, node), crdtkv.connect(node.address) as client:
        store.set("tags").add("y")
        for call in calls:
            with pytest.raises(crdtkv.CrdtkvError) as embedded:
                call(store)
            with pytest.raises(crdtkv.CrdtkvError) as remote:
                call(client)
            assert (type(remote.value), str(remote.value)) == (type(embedded.value), str(embedded.value))


def test_the_result_of_a_pipelined_call_shows_what_it_is() -> None:
    with one_node() as (_, node), crdtkv.connect(node.address) as client:
        with client.pipeline() as p:
            value, wrong = p.get("absent", 7), p.map("m").get("f", 1)
            assert repr(value) == "Result(pending)"
            p.set("m").add("x")
        assert (repr(value), repr(wrong)) == ("Result(7)", "Result(1)")
        with client.pipeline() as p:
            refused = p.get("m")
        assert repr(refused).startswith("Result(error=WrongTypeError(")


def test_a_session_answers_everything_that_was_sent_before_it_was_closed() -> None:
    with one_node(Limits(session_window_max=64)) as (_, node), channel(node.address) as opened:
        batches = [[[n * 100 + i, "cincr", ["c", 1], None] for i in range(100)] for n in range(50)]
        requests = (kv_pb2.RequestBatch(rows=msgspec.msgpack.encode(rows)) for rows in batches)
        replies = [row for batch in kv_pb2_grpc.KeyValueStub(opened).Session(requests) for row in msgspec.msgpack.decode(batch.rows)]
        assert [row[0] for row in replies] == list(range(5_000))
        assert kv_pb2_grpc.KeyValueStub(opened).GetCounter(kv_pb2.KeyRequest(key="c")).value == 5_000


def test_streams_have_a_bound() -> None:
    with one_node(Limits(streams_max=1)) as (_, node), channel(node.address) as opened:
        stub = kv_pb2_grpc.KeyValueStub(opened)
        request = kv_pb2.StreamRequest(op="watch", args=packed(""))
        first = stub.Watch(request)
        assert next(iter(first)).rows == b""
        with pytest.raises(grpc.RpcError) as caught:
            next(iter(stub.Watch(request)))
        assert isinstance(from_rpc_error(caught.value), crdtkv.OverloadedError)
        first.cancel()

        def opens() -> bool:
            try:
                again = stub.Watch(request)
                next(iter(again))
                again.cancel()
            except grpc.RpcError:
                return False
            return True

        until(opens, "the place of the first is given back")


# -- operators --------------------------------------------------------------------------------------------------------


def test_status_lag_digest_and_vector(regions: Regions) -> None:
    store = regions.stores["us"]
    store.put("k", 1)
    until(lambda: equal(list(regions.stores.values())))
    with channel(regions.nodes["us"].address) as opened:
        admin = admin_pb2_grpc.AdminStub(opened)

        def known() -> Any:
            reply = admin.Status(admin_pb2.StatusRequest())
            return reply if all(peer.HasField("lag_ms") and peer.commits_ahead == 0 for peer in reply.peers) else None

        status = until(known, "round trips are measured")
        assert (status.region, status.origin, status.ready, status.listen) == ("us", store.origin, True, regions.nodes["us"].address)
        assert status.digest == store.digest()
        assert [peer.region for peer in status.peers] == ["ap", "eu"]
        for peer in status.peers:
            assert peer.connected and peer.state == "streaming" and peer.commits_behind == 0
            assert 0 <= peer.lag_ms < 5_000 and peer.rtt_ms > 0
            assert {entry.origin for entry in peer.acknowledged.entries} >= {store.origin}
        assert [peer.region for peer in admin.Lag(admin_pb2.LagRequest()).peers] == ["ap", "eu"]
        digest = admin.Digest(admin_pb2.DigestRequest())
        assert digest.digest == store.digest()
        assert {e.origin: e.seq for e in digest.vv.entries} == dict(store.vv())
        vector = admin.GetVersionVector(admin_pb2.VersionVectorRequest())
        assert {e.origin: e.seq for e in vector.applied.entries} == dict(store.vv())
    with crdtkv.connect(regions.nodes["us"].address) as client:
        status = client.status()
        assert [peer.region for peer in status.peers] == ["ap", "eu"] and status.sessions == 1


def test_health_and_reflection() -> None:
    with one_node() as (_, node), channel(node.address) as opened:
        health = health_pb2_grpc.HealthStub(opened)
        for service in ("", "crdtkv.v1.KeyValue"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (reply,) = reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo(ask)
        names = {service.name for service in reply.list_services_response.service}
        assert names >= {"crdtkv.v1.KeyValue", "crdtkv.v1.Replication", "crdtkv.v1.Admin", "grpc.health.v1.Health"}


def test_close_is_idempotent_leaves_the_store_open_and_cuts_watchers() -> None:
    with one_node() as (store, node), channel(node.address) as opened:
        watch = kv_pb2_grpc.KeyValueStub(opened).Watch(kv_pb2.StreamRequest(op="watch", args=packed("")))
        assert next(iter(watch)).rows == b""
        node.close()
        node.close()
        with pytest.raises(grpc.RpcError) as caught:
            for _ in watch:
                pass
        assert isinstance(from_rpc_error(caught.value), crdtkv.RegionUnavailableError)
        store.put("k", 1)
        assert store.get("k") == 1
        with pytest.raises(crdtkv.StoreClosedError):
            node.wait_ready()


def test_nodes_that_come_and_go_on_one_store_leave_no_callback() -> None:
    with crdtkv.open(region="us") as store:
        for _ in range(3):
            with crdtkv.Node(store):
                assert len(store._callbacks) == 1
            assert not store._callbacks


def test_a_watch_that_is_cancelled_while_it_begins_leaves_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    with one_node() as (store, node), channel(node.address) as opened:
        asked, go_on, made = threading.Event(), threading.Event(), []
        subscribe = store.subscribe

        def slow(*args: Any) -> Any:
            asked.set()
            assert go_on.wait(DEADLINE_S)
            made.append(subscribe(*args))
            return made[0]

        monkeypatch.setattr(store, "subscribe", slow)
        watch = kv_pb2_grpc.KeyValueStub(opened).Watch(kv_pb2.StreamRequest(op="watch", args=packed("")))
        assert asked.wait(DEADLINE_S)
        watch.cancel()
        until(lambda: not node._server._kv.streams, "the call ends")
        go_on.set()
        until(lambda: made and not store._watches.count, "the watcher is gone")


def test_a_watch_that_was_left_with_break_leaves_no_watcher() -> None:
    with one_node() as (store, node):

        async def check() -> None:
            async with crdtkv.aio.connect(node.address, timeout=DEADLINE_S) as client:
                watch = await client.watch()
                await client.put("k", 1)
                async for change in watch:
                    assert change.key == "k"
                    break
                assert store._watches.count == 1
                del watch
                await asyncio.to_thread(until, lambda: not store._watches.count, "the watcher is gone")

        asyncio.run(check())


def test_a_watch_that_ends_while_the_store_is_busy_does_not_stop_the_loop() -> None:
    with one_node() as (store, node), channel(node.address) as opened:
        watch = kv_pb2_grpc.KeyValueStub(opened).Watch(kv_pb2.StreamRequest(op="watch", args=packed("")))
        assert next(iter(watch)).rows == b""
        with store._lock:
            watch.cancel()
            until(lambda: not node._server._kv.streams, "the call ends")
            answer = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert store._watches.count == 1  # it waits for the lock elsewhere
        until(lambda: not store._watches.count)


def test_a_counter_whose_sum_leaves_64_bits_is_read_by_clients(regions: Regions) -> None:
    total = 2**63 - 1
    with crdtkv.connect(regions.nodes["us"].address) as us:
        changes = us.watch("n", timeout=DEADLINE_S)
        for store in regions.stores.values():
            store.counter("n").increment(total)
        until(lambda: us.counter("n").value == 3 * total)
        assert next(change for change in changes if change.value > 2 * total).value == 3 * total
        assert dict(us.scan()) == {"n": 3 * total} and us.explain("n").value == 3 * total
        with us.batch() as batch:
            batch.counter("n").increment(-1)
            assert batch.counter("n").value == 3 * total - 1
    with channel(regions.nodes["us"].address) as opened, pytest.raises(grpc.RpcError) as caught:
        kv_pb2_grpc.KeyValueStub(opened).GetCounter(kv_pb2.KeyRequest(key="n"))
    error = from_rpc_error(caught.value)
    assert isinstance(error, crdtkv.InvalidValueError) and error.details == {"key": "n", "value": str(3 * total - 1)}


# -- processes --------------------------------------------------------------------------------------------------------


class Process:
    """`crdtkv node` as a user starts it; ended by its pid."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.log = directory / "stderr.txt"
        command = [sys.executable, "-m", "crdtkv", "node", "--region", "us", "--ready-format", "json", *arguments]
        with self.log.open("ab") as stderr:
            self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def ready(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        assert select.select([self.popen.stdout], [], [], DEADLINE_S)[0], self.log.read_text()
        line = self.popen.stdout.readline()
        assert line, self.log.read_text()
        return dict(json.loads(line))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(DEADLINE_S)
        finally:
            if self.popen.poll() is None:
                self.popen.kill()
                self.popen.wait()
            assert self.popen.stdout is not None
            self.popen.stdout.close()


@contextmanager
def process(directory: Path, *arguments: str) -> Iterator[tuple[Process, dict[str, Any]]]:
    started = Process(directory, *arguments)
    try:
        yield started, started.ready()
    finally:
        started.end(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_the_origin_and_what_was_acknowledged(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"))
    with process(tmp_path, *arguments) as (node, first), crdtkv.connect(first["listen"]) as client:
        assert first["pid"] == node.popen.pid
        for n in range(50):
            client.put(f"k/{n}", n)
        assert node.end(number) == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    with process(tmp_path, *arguments) as (node, second), crdtkv.connect(second["listen"]) as client:
        assert second["origin"] == first["origin"]
        assert dict(client.scan("k/")) == {f"k/{n}": n for n in range(50)}
        assert client.put("next", 1).seq == 51
        assert node.end() == 0
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()


def test_a_port_in_use_is_one_line_and_touches_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = Process(tmp_path, "--listen", address, "--data", str(tmp_path / "data"), "--log-level", "error")
        try:
            assert node.popen.wait(DEADLINE_S) == 2, node.log.read_text()
        finally:
            node.end(signal.SIGKILL)
    (line,) = node.log.read_text().splitlines()
    assert address in line and "in use" in line
    assert not (tmp_path / "data").exists()


def test_sigint_under_load_ends_in_order_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    arguments = ("--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--log-format", "json")
    acknowledged: list[int] = []
    with process(tmp_path, *arguments) as (node, ready):
        enough = threading.Event()

        def write() -> None:
            with crdtkv.connect(ready["listen"], timeout=10.0) as client:
                for n in range(1_000_000):
                    try:
                        client.put(f"k/{n}", n)
                    except crdtkv.CrdtkvError:
                        return
                    acknowledged.append(n)
                    if n == 100:
                        enough.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert enough.wait(DEADLINE_S)
        assert node.end(signal.SIGINT) == 0
        writer.join(DEADLINE_S)
        assert not writer.is_alive()
    events = [json.loads(line)["event"] for line in node.log.read_text().splitlines()]
    assert events[0] == "ready" and events[-2:] == ["stopping", "stopped"]
    with crdtkv.open(tmp_path / "data", region="us") as store:
        assert all(store.get(f"k/{n}") == n for n in acknowledged)


def test_a_frozen_peer_stops_neither_writes_nor_the_shutdown_and_catches_up_when_it_thaws(tmp_path: Path) -> None:
    with process(tmp_path, "--listen", "127.0.0.1:0") as (frozen, ready), crdtkv.open(region="eu") as store:
        with crdtkv.Node(store, peers={"us": ready["listen"]}, replication="loopback") as node:
            node.wait_ready(DEADLINE_S)
            frozen.popen.send_signal(signal.SIGSTOP)
            until(lambda: not node.peers()[0].connected)
            for n in range(1_000):
                store.put(f"k/{n}", "x" * 1_000)
            frozen.popen.send_signal(signal.SIGCONT)
            with crdtkv.connect(ready["listen"]) as client:
                until(lambda: client.count("k/") == 1_000)
            node.wait_ready(DEADLINE_S)
            frozen.popen.send_signal(signal.SIGSTOP)
            for n in range(3_000):
                store.put(f"l/{n}", "x" * 10_000)
        assert Path(f"/proc/{frozen.popen.pid}/stat").read_text().split()[2] == "T"  # the node has ended, and not because it thawed
        frozen.popen.send_signal(signal.SIGCONT)
        assert frozen.end() == 0


def test_nodes_tell_their_stores_what_members_have_fsynced(tmp_path: Path) -> None:
    """The log is kept for them: for one that never came as well, and of third origins too, which only a quiet member's heartbeat tells."""
    with ExitStack() as stack:
        us = stack.enter_context(crdtkv.open(tmp_path / "us", region="us"))
        eu = stack.enter_context(crdtkv.open(tmp_path / "eu", region="eu"))
        there = stack.enter_context(crdtkv.Node(eu, peers={"us": "127.0.0.1:9"}, replication="loopback"))
        stack.enter_context(crdtkv.Node(us, peers={"eu": there.address, "ap": "127.0.0.1:9"}, replication="loopback"))
        assert set(us._retention.members) == {"eu", "ap"} and us._retention.members["ap"] is None
        for n in range(10):
            us.put(f"k{n}", n)
        vv = us.vv()

        def known(store: crdtkv.Store, region: str) -> bool:
            ack = store._retention.members.get(region)
            return ack is not None and vv <= ack.durable

        until(lambda: known(us, "eu"), "us hears that eu has it")
        until(lambda: known(eu, "us"), "eu hears that us has it, though us has received nothing")
        assert us._retention.members["ap"] is None
