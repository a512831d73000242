"""The sync client against a node over a dict: semantics, merging of requests, deadlines, failover, closing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from crdtkv.client import Client, connect, wire
from crdtkv.client import session as session_module
from crdtkv.client.runtime import _Runtime
from crdtkv.core.causality import EMPTY_VV, Origin
from crdtkv.errors import (
    ConfigError,
    CrdtkvError,
    DeadlineExceededError,
    DiskFullError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyTooLargeError,
    OverloadedError,
    RegionRemovedError,
    RegionUnavailableError,
    StoreClosedError,
    TokenExpiredError,
    UnauthenticatedError,
    ValueTooLargeError,
    WrongTypeError,
)
from crdtkv.results import Change, Commit
from tests.fake_node import FakeNode


@pytest.fixture
def node() -> Iterator[FakeNode]:
    node = FakeNode()
    yield node
    node.stop()


@pytest.fixture
def other() -> Iterator[FakeNode]:
    node = FakeNode("eu")
    yield node
    node.stop()


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    with connect(node.address) as client:
        yield client


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


# -- semantics ----------------------------------------------------------------------------------------------------------


def test_register(client: Client) -> None:
    commit = client.put("a", {"x": [1, 2.5, None, b"b"]})
    assert isinstance(commit, Commit)
    assert (commit.origin, commit.seq, commit.token) == ("us@1-00000000", 1, "1")
    assert client.get("a") == client["a"] == {"x": [1, 2.5, None, b"b"]}
    assert "a" in client and client.exists("a") and "b" not in client
    assert client.get("b") is None and client.get("b", 7) == 7
    client["b"] = None
    assert client["b"] is None and client.get("b", 7) is None
    del client["b"]
    assert client.delete("b") is None
    with pytest.raises(KeyNotFoundError, match="'b'"):
        client["b"]
    with pytest.raises(KeyError):
        del client["b"]
    assert client.ttl("a") is None and client.expire("a", 5) is not None
    assert client.types("a") == ["register"]
    assert client.count() == 1 and client.count("b") == 0 and client.delete_prefix("a", durability="sync") is not None


def test_set(client: Client) -> None:
    handle = client.set("s")
    assert handle.members() == [] and len(handle) == 0 and "s" not in client
    assert handle.add(1, 1.0, True, "1", b"1") is not None
    assert handle.add(1) is None
    assert len(handle) == 5 and 1.0 in handle and 2 not in handle
    assert [type(element) for element in handle] == [type(element) for element in handle.members()]
    assert handle.discard(2) is None and handle.remove(True) is not None
    with pytest.raises(KeyNotFoundError):
        handle.remove(True)
    assert handle.contains("1") and handle.size() == 4
    handle.clear()
    assert list(handle) == []


def test_counter(client: Client) -> None:
    counter = client.counter("c")
    assert counter.value == 0
    counter.increment()
    counter.increment(10)
    counter.decrement(3)
    assert counter.value == counter.get() == 8
    counter.reset()
    assert counter.value == 0


def test_map(client: Client) -> None:
    handle = client.map("m")
    handle["f"] = [1]
    handle.put("g", "v")
    assert handle["f"] == [1] and handle.get("h") is None and handle.get("h", 0) == 0
    assert "g" in handle and handle.contains("f") and len(handle) == 2
    assert handle.items() == [("f", [1]), ("g", "v")] and list(handle) == ["f", "g"]
    del handle["f"]
    assert handle.delete("f") is None
    with pytest.raises(KeyNotFoundError):
        handle["f"]
    with pytest.raises(KeyError):
        del handle["f"]
    handle.clear()
    assert handle.size() == 0


def test_scan_assembles_collections_that_come_in_parts(client: Client) -> None:
    client.put("a", 1)
    client.counter("b").increment(2)
    client.map("c").put("x", 1)
    client.set("d").add(*range(5))
    assert list(client.scan()) == [("a", 1), ("b", 2), ("c", {"x": 1}), ("d", [0, 1, 2, 3, 4])]
    assert [key for key, _ in client.scan(start="b", end="d", reverse=True)] == ["c", "b"]
    assert list(client.scan(limit=1)) == [("a", 1)]
    assert list(client.scan(types="counter")) == [("b", 2)]
    assert list(client.scan("z")) == []


def test_what_happened(client: Client) -> None:
    client.put("k", "v")
    assert [sibling.value for sibling in client.siblings("k")] == ["v"] and client.siblings("none") == []
    assert "the only write" in str(client.explain("k"))
    (conflict,) = client.conflicts()
    assert conflict.winner is not None and (conflict.winner.value, conflict.losers[0].value) == (2, 1)
    assert client.vv() == EMPTY_VV.advance(Origin("us@1-00000000"), 1)
    assert len(client.digest()) == 32
    assert client.delta_since(None) == b"delta-all"
    assert client.merge(b"xyz").applied == 3
    assert client.status().region == "us"


def test_errors_are_those_of_the_embedded_store(client: Client) -> None:
    client.set("s").add(1)
    with pytest.raises(WrongTypeError) as caught:
        client.put("s", 1)
    assert caught.value.details == {"key": "s"} and not caught.value.maybe_applied
    with pytest.raises(WrongTypeError):  # of a stream: through the status
        client.map("s").items()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.put("", 1), InvalidKeyError),
        (lambda c: c.get(1), InvalidKeyError),
        (lambda c: c.put("k" * 1025, 1), KeyTooLargeError),
        (lambda c: c.put("k", {"a": [object()]}), InvalidValueError),
        (lambda c: c.put("k", 2**64), InvalidValueError),
        (lambda c: c.put("k", 1, ttl="soon"), InvalidValueError),
        (lambda c: c.put("k", 1, durability="always"), InvalidValueError),
        (lambda c: c.put("k", b"x" * (32 << 20)), ValueTooLargeError),
        (lambda c: c.counter("k").increment(1.5), InvalidValueError),
        (lambda c: c.counter("k").increment(2**63), InvalidValueError),
        (lambda c: c.map("k").put(1, 1), InvalidValueError),
        (lambda c: c.scan(types=["list"]), InvalidValueError),
        (lambda c: c.watch(since=3), InvalidValueError),
        (lambda c: c.delta_since("x"), InvalidValueError),
        (lambda c: c.set(""), InvalidKeyError),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    node: FakeNode, client: Client, call: Callable[[Client], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(client)
    assert not node.ops


@pytest.mark.parametrize("endpoints", ["nonsense", "host:", "host:99999", ":7001", "", [], ["127.0.0.1:7001", "http://x:1"], [7001]])
def test_a_bad_endpoint_is_named(endpoints: list[str]) -> None:
    with pytest.raises(ConfigError):
        connect(endpoints)


# -- watch and streams --------------------------------------------------------------------------------------------------


def test_watch_sees_what_comes_after_the_call(node: FakeNode, client: Client) -> None:
    client.put("w/0", 0)
    with client.watch("w/") as changes:
        client.put("x", 1)
        client.put("w/1", "one")
        change = next(changes)
        assert isinstance(change, Change)
        assert (change.key, change.value, change.kind, change.commit.seq) == ("w/1", "one", "put", 3)
        client.set("w/s").add("e")
        assert next(changes).subkey == "e"
    wait_until(lambda: node.watchers == 0)
    resumed = client.watch("w/", since=change.token, timeout=2)
    assert [change.key for change in resumed] == ["w/s"]  # and ends when nothing changes any more
    with pytest.raises(TokenExpiredError, match="scan"):
        list(client.watch(since="999", timeout=1))


def test_an_abandoned_watch_is_cancelled_at_the_node(node: FakeNode, client: Client) -> None:
    changes = client.watch()
    wait_until(lambda: node.watchers == 1)
    del changes
    wait_until(lambda: node.watchers == 0)


def test_a_lost_watch_says_where_to_go_on(node: FakeNode, client: Client) -> None:
    changes = client.watch()
    client.put("a", 1)
    assert next(changes).key == "a"
    node.stop()
    with pytest.raises(RegionUnavailableError) as caught:
        next(changes)
    assert caught.value.details["token"] == "1"


# -- pipelines and batches ----------------------------------------------------------------------------------------------


def test_pipeline_goes_in_one_message_and_in_order(node: FakeNode, client: Client) -> None:
    client.get("warm")
    before = node.messages
    with client.pipeline() as pipe:
        puts = [pipe.put(f"k{i}", i) for i in range(100)]
        first = pipe.get("k5")
        pipe["k5"] = "later"
        second = pipe.get("k5")
        wrong = pipe.set("k5").add(1)
        counted = pipe.counter("c").increment(2), pipe.counter("c").get()
        field = pipe.map("m").put("f", 1), pipe.map("m").get("f"), pipe.map("m").contains("g")
        with pytest.raises(InvalidValueError, match="execute"):
            _ = first.value
    assert node.messages == before + 1
    assert [put.value.seq for put in puts if put.value] == list(range(1, 101))
    assert (first.value, second.value, counted[1].value, field[1].value, field[2].value) == (5, "later", 2, 1, False)
    assert not wrong.ok and isinstance(wrong.error, WrongTypeError)
    with pytest.raises(WrongTypeError):
        _ = wrong.value


def test_a_pipeline_that_raises_sends_nothing(node: FakeNode, client: Client) -> None:
    with pytest.raises(ZeroDivisionError), client.pipeline() as pipe:
        pipe.put("k", 1)
        raise ZeroDivisionError
    assert "k" not in client
    pipe.put("k", 2)
    pipe.execute()
    pipe.execute()
    assert client["k"] == 2


def test_a_pipeline_of_any_length(client: Client) -> None:
    with client.with_timeout(120).pipeline() as pipe:  # 20,000 in 5 s is much to ask of a machine that is busy
        results = [pipe.put(f"k{i}", i) for i in range(20_000)]
    assert all(result.ok for result in results) and client.count() == 20_000


def test_batch_is_one_commit_and_reads_see_its_writes(node: FakeNode, client: Client) -> None:
    client.put("a", 1)
    client.set("s").add(1, 2)
    client.counter("c").increment(5)
    client.map("m").put("f", 1)
    with client.batch() as b:
        b["a"] = 2
        assert b["a"] == 2 and client["a"] == 1
        b.delete("a")
        assert b.get("a") is None and "a" not in b
        with pytest.raises(KeyNotFoundError):
            b["a"]
        s = b.set("s")
        s.add(3)
        s.discard(1)
        assert s.members() == [2, 3] and len(s) == 2 and 1 not in s and 3 in s
        with pytest.raises(KeyNotFoundError):
            s.remove(1)
        b.counter("c").increment(2)
        assert b.counter("c").value == 7
        m = b.map("m")
        m["g"] = 2
        m.delete("f")
        assert m.items() == [("g", 2)] and "f" not in m and m.get("f", 0) == 0 and len(m) == 1
        assert b.exists("s") and b.get("none", 4) == 4
        messages = node.ops["batch"]
    assert messages == 0 and node.ops["batch"] == 1
    assert b.commit is not None
    assert "a" not in client and client.set("s").members() == [2, 3]
    assert client.counter("c").value == 7 and client.map("m").items() == [("g", 2)]
    with pytest.raises(InvalidValueError, match="over"):
        b.put("z", 1)


def test_a_batch_that_raises_or_fails_writes_nothing(node: FakeNode, client: Client) -> None:
    client.set("s").add(1)
    with pytest.raises(ZeroDivisionError), client.batch() as b:
        b.put("k", 1)
        raise ZeroDivisionError
    with pytest.raises(WrongTypeError), client.batch() as b:
        b.put("k", 1)
        b.put("s", 1)
    assert "k" not in client
    with client.batch() as b:
        pass
    assert b.commit is None and node.ops["batch"] == 1


# -- one stream for all -------------------------------------------------------------------------------------------------


def test_requests_of_many_threads_share_messages(node: FakeNode, client: Client) -> None:
    client.get("warm")
    before = node.messages
    start = threading.Barrier(32)

    def work(n: int) -> None:
        start.wait()
        for i in range(20):
            client.put(f"{n}/{i}", i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.count() == 640
    assert node.messages - before < 320  # at least two a message; alone it would be 640


def test_every_write_carries_its_own_request_id(node: FakeNode, client: Client) -> None:
    for i in range(600):
        client.counter("c").increment(i)
    assert len(node.store.rids) == 600 and {len(rid) for rid in node.store.rids} == {16}
    now_ms = time.time() * 1000
    assert all(abs(int.from_bytes(rid[:8], "big") - now_ms) < 60_000 for rid in node.store.rids)


# -- deadlines and bounds -----------------------------------------------------------------------------------------------


def test_a_client_on_a_busy_machine_waits_until_its_loop_runs() -> None:
    """A thread had begun, its loop had not: who connected then was told, once in a while, that the client was closed."""

    class Late(_Runtime):
        @staticmethod
        def _main(loop: asyncio.AbstractEventLoop) -> None:
            time.sleep(0.2)
            _Runtime._main(loop)

    late = Late()
    loop = late.acquire()
    try:
        assert loop.is_running()
    finally:
        late.release()


def test_an_error_names_a_call_as_its_caller_does() -> None:
    """It said `cincr: no answer …`, as it stands on the wire."""
    calls = wire.increment("k", 1), wire.set_add("k", [1]), wire.map_delete("k", "f"), wire.put("k", 1), wire.count(""), wire.siblings("k")
    assert [call.name for call in calls] == ["counter.increment", "set.add", "map.delete", "put", "count", "siblings"]


def test_deadline(node: FakeNode) -> None:
    node.hold = {"get", "put"}
    with connect(node.address, timeout=30) as client:
        assert not client.exists("k")  # the session is open
        hasty = client.with_timeout(0.5)
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError) as read:
            hasty.get("k")
        with pytest.raises(TimeoutError) as write:
            hasty.put("k", 1)
        assert time.monotonic() - started >= 1.0
        assert not read.value.maybe_applied
        assert isinstance(write.value, CrdtkvError) and write.value.maybe_applied and "may have been applied" in str(write.value)
        assert client.exists("k")  # the stream goes on
        with client.with_timeout(2).pipeline() as pipe:
            held, answered = pipe.get("k"), pipe.exists("k")
        assert answered.value is True and isinstance(held.error, DeadlineExceededError)
        node.hold = set()
        assert client.with_timeout(5).get("k") == 1
    for bad in (0, -1, None, float("nan")):
        with pytest.raises(InvalidValueError, match="timeout"):
            connect(node.address, timeout=bad)  # type: ignore[arg-type]


def test_waiting_requests_are_bounded(node: FakeNode, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "IN_FLIGHT_MAX", 2)
    node.hold = {"get"}
    client._core.session.pending_max = 3
    patient = client.with_timeout(0.5)
    caught: list[CrdtkvError] = []

    def read() -> None:
        try:
            patient.get("k")
        except CrdtkvError as e:
            caught.append(e)

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads[:2]:
        thread.start()
    wait_until(lambda: node.ops["get"] == 2)
    for thread in threads[2:]:
        thread.start()
    wait_until(lambda: client._core.session.pending.requests == 3)
    with pytest.raises(OverloadedError) as refused:
        client.get("k")
    assert refused.value.retryable and refused.value.details["limit"] == 3
    for thread in threads:
        thread.join()
    assert [type(e) for e in caught] == [DeadlineExceededError] * 5


# -- failover -----------------------------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    with connect("127.0.0.1:1") as client:
        with pytest.raises(RegionUnavailableError, match=r"127\.0\.0\.1:1") as caught:  # and not that its time is up
            client.put("k", 1)
        assert caught.value.retryable and not caught.value.maybe_applied


def test_the_first_that_answers_is_used_and_the_next_after_it(node: FakeNode, other: FakeNode) -> None:
    with connect(["127.0.0.1:1", node.address, other.address]) as client:
        assert client.status().region == "us"
        node.stop()
        assert client.status().region == "eu"
        commit = client.put("k", 1)
        assert commit is not None and commit.origin.startswith("eu@")


def test_a_read_in_flight_is_sent_again_elsewhere(node: FakeNode, other: FakeNode) -> None:
    other.write(lambda store: store.op_put("k", b"\x05", None))
    node.hold = {"get"}
    with connect([node.address, other.address]) as client:
        threading.Thread(target=lambda: (wait_until(lambda: node.ops["get"] == 1), node.stop())).start()
        assert client.get("k") == 5


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_in_flight_is_sent_again_to_the_same_region_with_its_request_id(node: FakeNode, other: FakeNode, when: str) -> None:
    node.drop = {"cincr": when}
    with connect([node.address, other.address]) as client:
        client.counter("c").increment(5)
        assert client.counter("c").value == 5  # once, not twice
        assert node.ops["cincr"] == 2 and not other.ops


def test_a_write_in_flight_never_goes_to_another_region(node: FakeNode, other: FakeNode) -> None:
    node.hold = {"put"}
    with connect([node.address, other.address]) as client:
        threading.Thread(target=lambda: (wait_until(lambda: node.ops["put"] == 1), node.stop())).start()
        with pytest.raises(RegionUnavailableError) as caught:
            client.put("k", 1)
        assert caught.value.maybe_applied and "k" not in client and other.ops["put"] == 0


@pytest.mark.parametrize("error", [DiskFullError("no room"), RegionUnavailableError("drained"), RegionRemovedError("removed")])
def test_a_client_of_a_region_that_took_no_writes_stayed_there(node: FakeNode, other: FakeNode, error: CrdtkvError) -> None:
    """Its disk was full, or it was drained: though the client knew another region, each write failed."""
    node.fail = {"put": error}
    with connect([node.address, other.address]) as client:
        assert client.get("k") is None and node.ops["get"] == 1
        with client.pipeline() as pipeline:
            done = [pipeline.put(f"k/{n}", n) for n in range(50)]
        assert all(result.ok for result in done) and other.ops["put"] == 50
        assert client.count("k/") == 50, "reads follow the writes"
        other.fail = {"put": error}
        with pytest.raises(type(error)) as caught:  # all refuse, and it says so at once
            client.put("k", 1)
        assert not caught.value.maybe_applied and node.ops["put"] == 50
        other.fail = {}
        client.put("k", 1)
    with connect([node.address, "127.0.0.1:1"]) as client, pytest.raises(type(error)):
        client.put("k", 1)


def test_a_silent_endpoint_is_left(node: FakeNode, other: FakeNode) -> None:
    node.hold = {"get"}
    with connect([node.address, other.address], timeout=30) as client:
        assert not client.exists("k")  # the session is open
        with pytest.raises(DeadlineExceededError):
            client.with_timeout(0.3).get("k")
        assert client.status().region == "eu"


def test_a_refused_session_says_why(node: FakeNode, client: Client) -> None:
    node.refuse = UnauthenticatedError("who are you? send a token", hint="token")
    with pytest.raises(UnauthenticatedError, match="who are you") as caught:
        client.get("k")
    assert caught.value.details == {"hint": "token"}
    node.refuse = OverloadedError("too many sessions", retry_after_ms=1)
    with pytest.raises(OverloadedError):
        client.with_timeout(30).get("k")
    node.refuse = None
    assert client.get("k") is None


def test_a_node_that_comes_back(node: FakeNode) -> None:
    with connect(node.address) as client:
        client.put("k", 1)
        port, store = node.port, node.store
        node.stop()
        with pytest.raises(RegionUnavailableError):
            client.get("k")
        again = FakeNode(port=port, store=store)
        assert client.get("k") == 1
        again.stop()


# -- refused for the moment -----------------------------------------------------------------------------------------------


def refuse(node: FakeNode, times: int, error: CrdtkvError) -> list[bytes | None]:
    """Have the node refuse the next requests; the request ids that come to it, then and later."""
    seen: list[bytes | None] = []
    original = node.store.run

    def run(op: str, args: list[object], options: object) -> object:
        seen.append(options if isinstance(options, bytes) else None)
        if len(seen) <= times:
            raise error
        return original(op, args, options)  # type: ignore[arg-type]

    node.store.run = run  # type: ignore[method-assign]
    return seen


def test_a_call_that_is_refused_for_the_moment_comes_again_by_itself(node: FakeNode, client: Client) -> None:
    seen = refuse(node, 3, RegionUnavailableError("a snapshot is being installed", retry_after_ms=5))
    assert client.put("k", 1).seq == 1
    assert client.get("k") == 1
    assert len(seen) == 5 and seen[0] is not None and len(set(seen[:4])) == 1, "the same request, four times"


def test_a_call_that_is_refused_until_its_deadline_says_why(node: FakeNode) -> None:
    refuse(node, 10**6, RegionUnavailableError("a snapshot is being installed", retry_after_ms=60_000))
    seen = refuse(node, 2, RegionUnavailableError("a snapshot comes", retry_after_ms=5))
    with connect(node.address, timeout=30) as client:
        with pytest.raises(RegionUnavailableError, match="a snapshot is being installed") as caught:
            client.put("k", 1)
        assert not caught.value.maybe_applied
    assert len(seen) == 3, "there is no time for a fourth try"


def test_what_is_refused_for_good_or_may_be_applied_is_not_sent_again(node: FakeNode, client: Client) -> None:
    for error in (
        OverloadedError("no more"),
        StoreClosedError("shutting down", retry_after_ms=1),
        RegionUnavailableError("lost", retry_after_ms=1, maybe_applied=True),
    ):
        node.store = type(node.store)("us")
        seen = refuse(node, 1, error)
        with pytest.raises(type(error)):
            client.put("k", 1)
        assert len(seen) == 1


def test_a_client_that_is_closed_fails_what_waits_to_come_again(node: FakeNode) -> None:
    seen = refuse(node, 10**6, RegionUnavailableError("a snapshot is being installed", retry_after_ms=60_000))
    client = connect(node.address, timeout=600)
    failed: list[CrdtkvError] = []

    def put() -> None:
        try:
            client.put("k", 1)
        except CrdtkvError as e:
            failed.append(e)

    thread = threading.Thread(target=put)
    thread.start()
    wait_until(lambda: len(seen) == 1)
    wait_until(lambda: bool(client._core.session._refused))
    client.close()
    thread.join(60)
    assert isinstance(failed[0], StoreClosedError) and not failed[0].maybe_applied


# -- the end ------------------------------------------------------------------------------------------------------------


def test_close(node: FakeNode) -> None:
    client = connect(node.address)
    client.put("k", 1)
    changes = client.watch()
    node.hold = {"put"}
    caught: list[CrdtkvError] = []

    def write() -> None:
        try:
            client.put("k", 2)
        except CrdtkvError as e:
            caught.append(e)

    thread = threading.Thread(target=write)
    thread.start()
    wait_until(lambda: node.ops["put"] == 2)
    client.close()
    client.close()
    thread.join()
    assert isinstance(caught[0], StoreClosedError) and caught[0].maybe_applied
    for call in (lambda: client.get("k"), lambda: client.watch(), lambda: next(changes), lambda: list(client.scan())):
        with pytest.raises(StoreClosedError):
            call()
    with pytest.raises(StoreClosedError), client.pipeline() as pipe:
        pipe.get("k")
    assert not any(thread.name == "crdtkv-client" for thread in threading.enumerate())


def test_clients_share_a_thread_and_a_forgotten_one_ends(node: FakeNode) -> None:
    one, two = connect(node.address), connect(node.address)
    one.put("a", 1)
    assert two["a"] == 1
    assert sum(thread.name == "crdtkv-client" for thread in threading.enumerate()) == 1
    del one, two
    wait_until(lambda: not any(thread.name == "crdtkv-client" for thread in threading.enumerate()))


FORK = """
import os
from crdtkv.client import connect
from crdtkv.errors import StoreClosedError
from tests.fake_node import FakeNode

node = FakeNode()
client = connect(node.address)
client.put("k", 1)
child = os.fork()
if child == 0:
    status = 1
    try:
        client.get("k")
    except StoreClosedError as e:
        status = 0 if "fork" in str(e) else 2
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert client["k"] == 1
client.close()
node.stop()
"""


def test_a_forked_child_is_refused() -> None:
    # In a process of its own: gRPC's own fork handlers depend on what else the process has done with gRPC.
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
