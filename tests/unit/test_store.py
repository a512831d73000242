"""The embedded store's interface, call by call: what it does, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import datetime
import os
import random
import threading
from typing import Any

import pytest

import crdtkv
from crdtkv import (
    ConfigError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyTooLargeError,
    Settings,
    Store,
    StoreClosedError,
    ValueTooLargeError,
    WrongTypeError,
)
from crdtkv.core.codec import encode_value
from tests.stores import Clock, store_at, stores


@pytest.fixture
def store() -> Any:
    with crdtkv.open(region="us") as opened:
        yield opened


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    -(2**63),
    2**64 - 1,
    1.5,
    -0.0,
    float("inf"),
    "",
    "text é 🙂",
    b"",
    b"\x00\xff",
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": [1, None]}, 3: "x", b"k": 1.0},
    datetime.datetime(2026, 11, 23, 21, 0, 0, 123456, tzinfo=datetime.UTC),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_as_they_went_in(store: Store, value: Any) -> None:
    store.put("k", value)
    assert store.get("k") == value
    assert type(store.get("k")) is type(value)
    assert "k" in store


def test_tuples_read_back_as_lists_and_times_in_utc(store: Store) -> None:
    store["t"] = (1, (2, 3))
    assert store["t"] == [1, [2, 3]]
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    store["when"] = datetime.datetime(2026, 1, 1, 9, tzinfo=tokyo)
    assert store["when"] == datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert store["when"].tzinfo is datetime.UTC


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), ""),
        (2**64, ""),
        (-(2**63) - 1, ""),
        ({"a": {"b": [0, 1, 2, object()]}}, "a.b[3]"),
        ({"a": [1, {"c": {1, 2}}]}, "a[1].c"),
        (datetime.datetime(2026, 1, 1), ""),
        ("\ud800", ""),
        ({(1, 2): 3}, ""),
        ({float("nan"): 1}, ""),
    ],
    ids=["object", "large", "small", "in a list", "a set", "naive", "surrogate", "tuple key", "nan key"],
)
def test_a_value_that_cannot_be_stored_is_refused_with_its_path(store: Store, value: Any, path: str) -> None:
    before = store.vv(), store.digest()
    with pytest.raises(InvalidValueError) as refused:
        store.put("k", value)
    assert path in str(refused.value)
    assert refused.value.details["path"] == path
    assert (store.vv(), store.digest()) == before


def test_nesting_has_a_limit(store: Store) -> None:
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    store.put("deep", deep)
    assert store.get("deep") == deep
    with pytest.raises(InvalidValueError, match="64 levels"):
        store.put("deeper", [deep])


@pytest.mark.parametrize(
    ("key", "error"),
    [("", InvalidKeyError), (b"k", InvalidKeyError), (None, InvalidKeyError), ("\ud800", InvalidKeyError), ("é" * 513, KeyTooLargeError)],
)
def test_bad_keys(store: Store, key: Any, error: type[Exception]) -> None:
    for call in (store.get, store.delete, store.set, store.counter, store.map, store.ttl, store.siblings, store.explain):
        with pytest.raises(error):
            call(key)
    with pytest.raises(error):
        store.put(key, 1)
    assert not store.vv()


def test_limits_are_named(store: Store) -> None:
    store.put("é" * 512, "x" * (2**20 - 5))
    with pytest.raises(ValueTooLargeError, match="value_bytes_max"):
        store.put("k", "x" * 2**20)
    with pytest.raises(ValueTooLargeError, match="commit_bytes_max"), store.batch() as batch:
        for i in range(5):
            batch.put(f"k{i}", "x" * (2**20 - 5))
    assert store.count("k") == 0


def test_keys_with_nul_and_prefixes_of_each_other_stay_apart(store: Store) -> None:
    keys = ["a", "a\0", "a\0\0", "a\0b", "a\x01", "ab", "a\0\xff"]
    for key in keys:
        store.put(key, key)
    assert [k for k, _ in store.scan()] == sorted(keys, key=str.encode)
    assert all(store.get(k) == k for k in keys)
    assert [k for k, _ in store.scan("a\0")] == [k for k in sorted(keys, key=str.encode) if k.startswith("a\0")]


def test_mapping_style(store: Store) -> None:
    store["a"] = 1
    assert store["a"] == 1
    assert "a" in store
    del store["a"]
    assert "a" not in store
    with pytest.raises(KeyNotFoundError):
        store["a"]
    with pytest.raises(KeyError):
        del store["a"]
    assert store.get("a", "default") == "default"


def test_each_mutator_returns_its_commit_or_none(store: Store) -> None:
    commit = store.put("a", 1)
    assert (commit.origin, commit.seq) == (store.origin, 1)
    assert store.vv().covers(commit.dot)
    assert store.delete("nothing") is None
    assert store.set("s").discard(1) is None
    assert store.set("s").add() is None
    assert store.set("s").clear() is None
    assert store.map("m").delete("f") is None
    assert store.counter("c").increment(0) is None
    assert store.counter("c").reset() is None
    assert store.expire("nothing", 5) is None
    assert store.expire("a", None) is None
    assert store.delete_prefix("nothing") is None
    assert store.vv().seq(store.origin) == 1
    deleted = store.delete("a")
    assert deleted is not None and deleted.seq == 2 and deleted.hlc > commit.hlc


def test_wrong_types_are_refused_and_change_nothing(store: Store) -> None:
    store.put("r", 1)
    store.set("s").add(1)
    store.counter("c").increment()
    store.map("m")["f"] = 1
    before = store.digest()
    refused = [
        lambda: store.put("s", 1),
        lambda: store.get("s"),
        lambda: store.get("c"),
        lambda: store.ttl("m"),
        lambda: store.set("r").add(1),
        lambda: store.set("r").members(),
        lambda: store.set("m").contains(1),
        lambda: len(store.set("c")),
        lambda: store.counter("r").increment(),
        lambda: store.counter("s").value,
        lambda: store.map("r").put("f", 1),
        lambda: store.map("s").get("f"),
        lambda: store.map("c").items(),
    ]
    for call in refused:
        with pytest.raises(WrongTypeError):
            call()
    assert store.digest() == before
    for key in ("s", "c", "m"):
        assert store.delete(key)
        store.put(key, "register now")
        assert store.get(key) == "register now"


def test_set(store: Store) -> None:
    handle = store.set("s")
    assert handle.members() == [] and len(handle) == 0 and "s" not in store
    elements = [1, 1.0, True, "1", b"1", None, [1, "x"]]
    handle.add(*elements)
    assert len(handle) == 7
    assert handle.members() == sorted(elements, key=encode_value) == list(handle)
    assert [type(e) for e in handle] == [type(e) for e in sorted(elements, key=encode_value)]
    assert 1 in handle and 2 not in handle and handle.contains([1, "x"])
    handle.discard(1, 99)
    assert 1 not in handle and 1.0 in handle and len(handle) == 6
    handle.remove(1.0)
    with pytest.raises(KeyNotFoundError):
        handle.remove(1.0)
    handle.clear()
    assert handle.members() == [] and "s" not in store


def test_counter(store: Store) -> None:
    counter = store.counter("c")
    assert counter.value == 0 and counter.get() == 0
    counter.increment()
    counter.increment(10)
    counter.decrement(4)
    assert counter.value == 7
    counter.reset()
    assert counter.value == 0 and "c" not in store
    counter.decrement(3)
    assert counter.value == -3
    for bad in (1.5, "1", None, True):
        with pytest.raises(InvalidValueError):
            counter.increment(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError):
            counter.decrement(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"2\^63"):
        counter.decrement(2**63)
    assert counter.value == -3


def test_map(store: Store) -> None:
    handle = store.map("m")
    handle["a"] = 1
    handle.put("b", {"x": [1]})
    assert handle["a"] == 1 and handle.get("b") == {"x": [1]} and handle.get("z", 0) == 0
    assert handle.items() == [("a", 1), ("b", {"x": [1]})]
    assert list(handle) == ["a", "b"] and len(handle) == 2 and "a" in handle
    del handle["a"]
    with pytest.raises(KeyNotFoundError):
        handle["a"]
    with pytest.raises(KeyNotFoundError):
        del handle["a"]
    with pytest.raises(InvalidValueError, match="field"):
        handle.put(1, 2)  # type: ignore[arg-type]
    handle.clear()
    assert handle.items() == [] and "m" not in store


def test_batch_is_one_commit_with_its_net_effect(store: Store) -> None:
    store.set("s").add("old")
    store.counter("c").increment(5)
    store["gone"] = 1
    with store.batch() as batch:
        batch.put("a", 1)
        batch["a"] = 2
        assert batch["a"] == 2 and "a" in batch and batch.get("b", 0) == 0
        batch.set("s").add("x", "y")
        batch.set("s").discard("x")
        batch.set("s").clear()
        batch.set("s").add("z")
        assert batch.set("s").members() == ["z"] and "z" in batch.set("s") and len(batch.set("s")) == 1
        batch.counter("c").increment(2)
        batch.counter("c").reset()
        batch.counter("c").increment(3)
        assert batch.counter("c").value == 3
        batch.map("m")["f"] = 1
        del batch.map("m")["f"]
        assert batch.map("m").items() == []
        del batch["gone"]
        assert "a" not in store
    assert batch.commit is not None and batch.commit.seq == 4
    assert store["a"] == 2 and store.set("s").members() == ["z"] and store.counter("c").value == 3
    assert "m" not in store and "gone" not in store
    frame = store._machine.log.find(store.origin, 4)
    assert frame is not None
    assert sorted(delta[0] for delta in frame.rows()[4 - frame.first_seq][2:]) == [0, 1, 2, 4, 5, 6]


def test_batch_that_raises_or_changes_nothing_writes_nothing(store: Store) -> None:
    store["a"] = 1
    with pytest.raises(ZeroDivisionError), store.batch() as batch:
        batch["a"] = 2
        batch.set("s").add(1)
        1 / 0  # noqa: B018
    assert store["a"] == 1 and "s" not in store and batch.commit is None
    with store.batch() as empty:
        empty.delete("nothing")
        empty["new"] = 1
        del empty["new"]
    assert empty.commit is None and store.vv().seq(store.origin) == 1
    with pytest.raises(StoreClosedError):
        batch.put("a", 3)
    with pytest.raises(WrongTypeError), store.batch() as wrong:
        wrong.set("q").add(1)
        wrong.put("q", 1)
    assert "q" not in store


def test_ttl_hides_and_then_removes() -> None:
    clock = Clock()
    with store_at(clock) as store:
        store.put("a", 1, ttl=10)
        store.set("s").add("x", ttl=5)
        store.set("s").add("y")
        store.map("m").put("f", 1, ttl=5)
        assert store.ttl("a") == 10 and len(store.set("s")) == 2
        clock.ms += 5_000
        assert store.ttl("a") == 5
        assert store.set("s").members() == ["y"] and len(store.set("s")) == 1 and "m" not in store
        store.put("m", "a register may come where everything has expired")
        store.expire("a", 100)
        clock.ms += 6_000
        assert store["a"] == 1 and store.ttl("a") == 94
        store.expire("a", None)
        assert store.ttl("a") is None
        before = store.vv()
        store.maintain()
        assert store.vv() != before
        state = store._replica.state
        assert not [slot for slot, _ in state.scan(b"d", b"e") if b"\x00\x00\x02\xa1x" in slot or b"\x00\x00\x04" in slot]
        clock.ms += 200_000  # past the expiry that was taken back: its index record goes when it is due
        store.maintain()
        assert list(state.scan(b"t", b"u")) == [] and store["a"] == 1
        for bad in (0, -1, float("nan"), "1", True, 10**11):
            with pytest.raises(InvalidValueError, match="ttl"):
                store.put("b", 1, ttl=bad)  # type: ignore[arg-type]
        assert "b" not in store


def test_scan(store: Store) -> None:
    for i in range(10):
        store.put(f"k/{i}", i)
    store.set("k/set").add(3, 1, 2)
    store.counter("k/c").increment(4)
    store.map("k/map")["f"] = "v"
    assert list(store.scan("k/", limit=2)) == [("k/0", 0), ("k/1", 1)]
    assert list(store.scan("k/", start="k/8", end="k/c")) == [("k/8", 8), ("k/9", 9)]
    everything = [*((f"k/{i}", i) for i in range(10)), ("k/c", 4), ("k/map", {"f": "v"}), ("k/set", [1, 2, 3])]
    assert list(store.scan()) == everything
    assert list(store.scan(reverse=True)) == everything[::-1]
    assert list(store.scan(types=["counter", "map"])) == everything[10:12]
    assert list(store.scan("nothing")) == [] and list(store.scan(limit=0)) == []
    assert store.count("k/") == 13
    for bad in ({"limit": -1}, {"types": ["list"]}, {"types": "list"}):
        with pytest.raises(InvalidValueError):
            store.scan(**bad)  # type: ignore[arg-type]


def test_scan_sees_one_moment(store: Store) -> None:
    for i in range(1000):
        store.put(f"{i:04}", i)
    scan = store.scan()
    first = [next(scan) for _ in range(10)]
    for i in range(1000):
        store.put(f"{i:04}", -1)
    store.delete_prefix("05")
    store.put("zz", 1)
    assert first + list(scan) == [(f"{i:04}", i) for i in range(1000)]
    assert store.count() == 901


def test_delete_prefix(store: Store) -> None:
    for i in range(2500):
        store.put(f"a{i}", i)
    store.set("aset").add(1)
    store.put("b", 1)
    commit = store.delete_prefix("a")
    assert commit is not None and commit.seq == 2502 + 3
    assert list(store.scan()) == [("b", 1)]


def test_a_watcher_gets_each_value_that_became_visible_though_several_came_at_once() -> None:
    with crdtkv.open(region="us") as us, crdtkv.open(region="eu") as eu:
        eu.put("other", 0)
        feeds = [us.subscribe("k"), eu.subscribe("k")]
        us.execute([[n, "put", ["k", encode_value(n)], None] for n in range(3)])  # one frame
        eu.merge(us.delta_since(eu.vv()))
        for feed in feeds:
            assert [(row[3], row[4]) for row in feed.drain()] == [("put", encode_value(n)) for n in range(3)]
        # Also what was there for no longer than that.
        eu.execute([[0, "put", ["k", encode_value(7)], None], [1, "delete", ["k"], None]])
        assert [(row[3], row[4]) for row in feeds[1].drain()] == [("put", encode_value(7)), ("delete", None)]


def test_watch_reports_changes_in_order_and_resumes(store: Store) -> None:
    store.put("before", 1)
    watch = store.watch("k", timeout=60)
    seen: list[Any] = []

    def collect() -> None:
        seen.extend(next(watch) for _ in range(6))

    thread = threading.Thread(target=collect)
    thread.start()
    deadline = threading.Event()
    while not store._watches.active:
        deadline.wait(0.001)
    store.put("k1", "a")
    store.put("other", 1)
    store.set("ks").add("e")
    store.set("ks").discard("e")
    store.counter("kc").increment(3)
    store.map("km")["f"] = 1
    store.delete("k1")
    thread.join(60)
    assert [(c.key, c.type, c.subkey, c.kind, c.value) for c in seen] == [
        ("k1", "register", None, "put", "a"),
        ("ks", "set", "e", "add", True),
        ("ks", "set", "e", "remove", None),
        ("kc", "counter", None, "increment", 3),
        ("km", "map", "f", "put", 1),
        ("k1", "register", None, "delete", None),
    ]
    again = [(c.key, c.kind) for c in store.watch("k", since=seen[2].token, timeout=0.001)]
    assert again == [("kc", "increment"), ("km", "put"), ("k1", "delete")]
    assert list(store.watch(timeout=0.001)) == []


def test_a_watch_that_catches_up_joins_the_live_stream_without_a_seam(store: Store) -> None:
    token = store.put("k0", 0).token
    for i in range(1, 500):
        store.put(f"k{i}", i)
    watch = store.watch("k", since=token, timeout=60)
    seen = [next(watch).value for _ in range(100)]
    for i in range(500, 600):
        store.put(f"k{i}", i)
    seen += [next(watch).value for _ in range(499)]
    assert seen == list(range(1, 600))


def test_who_catches_up_is_told_what_is_visible_by_now_and_may_go_on_after_any_change(store: Store) -> None:
    token = store.put("k/first", 0).token
    store.execute([(n, "put", [f"k/{n % 4}", encode_value(n)], None) for n in range(12)])  # a frame of puts alone
    store.execute([(n, "put", [f"other/{n}", encode_value(n)], None) for n in range(3)])
    store.put("k/2", "new")
    store.delete("k/3")
    store.set("k/set").add("x")

    expected = [(f"k/{n % 4}", *{2: ("put", "new"), 3: ("delete", None)}.get(n % 4, ("put", 8 + n % 4))) for n in range(12)]
    expected += [("k/2", "put", "new"), ("k/3", "delete", None), ("k/set", "add", True)]
    seen = list(store.watch("k/", since=token, timeout=0.001))
    assert [(c.key, c.kind, c.value) for c in seen] == expected
    seqs = [c.commit.seq for c in seen]
    assert seqs == sorted(seqs) and len(set(seqs)) == len(seqs)
    for change in seen[:-1]:
        again = [c.commit.seq for c in store.watch("k/", since=change.token, timeout=0.001)]
        # What came with its frame perhaps again, and nothing left out.
        assert [seq for seq in again if seq > change.commit.seq] == [seq for seq in seqs if seq > change.commit.seq]
        assert again[0] > change.commit.seq - 13


def test_watch_tokens_expire_with_a_reason() -> None:
    with stores("us", "eu", settings=Settings(memory_log_bytes=4096)) as (us, eu):
        token = us.put("a", 1).token
        with pytest.raises(crdtkv.TokenExpiredError, match="of the log of us@"):
            eu.watch(since=token)
        for i in range(5000):
            us.put("a", i)
        with pytest.raises(crdtkv.TokenExpiredError, match="begins at"):
            us.watch(since=token)
        with pytest.raises(InvalidValueError, match="token"):
            us.watch(since="nonsense")


def test_a_watcher_that_is_too_slow_is_cut_and_can_resume() -> None:
    with crdtkv.open(settings=Settings(watch_changes_max=10)) as store:
        watch = store.subscribe("k")
        for i in range(25):
            store.put(f"k{i}", i)
        rows = watch.drain()
        assert watch.overflowed and len(rows) == 10
        resumed = [c.value for c in store.watch("k", since=watch.last_token, timeout=0.001)]
        assert resumed == list(range(10, 25))
        slow = store.watch("k")
        iterator = iter(slow)
        store_put = store.put
        # The generator subscribed when it was made; it is cut when it is read.
        for i in range(11):
            store_put(f"k{i}", i)
        with pytest.raises(crdtkv.OverloadedError) as cut:
            for _ in iterator:
                pass
        assert "token" in cut.value.details


def test_closed_and_forked_stores_say_so() -> None:
    store = crdtkv.open()
    store.put("a", 1)
    store.close()
    store.close()
    for call in (
        lambda: store.put("a", 1),
        lambda: store.get("a"),
        lambda: store.get("b"),
        store.vv,
        store.digest,
        lambda: list(store.scan()),
    ):
        with pytest.raises(StoreClosedError, match="the store is closed"):
            call()
    with pytest.raises(InvalidKeyError):
        store.get("")
    with crdtkv.open() as parent:
        parent.put("a", 1)
        pid = os.fork()
        if pid == 0:
            try:
                parent.get("a")
            except StoreClosedError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        parent.put("a", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"region": "Bad Region"},
        {"region": ""},
        {"engine": "oracle"},
        {"engine": "rocksdb"},
        {"durability": "maybe"},
        {"durability": "sync"},
        {"settings": {"cluster": "x"}},
        {"settings": Settings(value_bytes_max=0)},
        {"settings": Settings(cluster="")},
        {"settings": Settings(fold_records_max=0)},
    ],
    ids=repr,
)
def test_wrong_arguments_of_open(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        crdtkv.open(**arguments)
    assert "\n" not in str(refused.value)


def test_many_threads_write_and_read(store: Store) -> None:
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(300):
                store.counter("c").increment()
                store.put(f"{n}/{i}", i)
                store.set("s").add((n, i))
                assert store.get(f"{n}/{i}") == i
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert store.counter("c").value == 1800 and len(store.set("s")) == 1800 and store.count() == 1802
    assert store.vv().seq(store.origin) == 5400


def test_commits_that_follow_each_other_share_a_frame_until_somebody_looks(store: Store) -> None:
    for i in range(10):
        store.put(f"k{i}", i)
    assert store._machine.log.end() == 0 and store.get("k9") == 9
    assert store.vv().seq(store.origin) == 10 and store._machine.log.end() == 1
    store.set("s").add(*range(5))
    store.counter("c").increment()
    digest = store.digest()
    assert store._machine.log.end() == 2
    for i in range(257):
        store.put("again", i)
    assert store._machine.log.end() == 3  # a frame is full
    store.put("large", "x" * (64 << 10))
    assert store._machine.log.end() == 4
    assert [f.count for f in store._machine.log.read(0, bytes_max=1 << 30)[0]] == [10, 2, 256, 2]
    with stores("eu") as (eu,):
        eu.merge(store.delta_since())
        assert eu.digest() == store.digest() != digest
    watch = store.subscribe("")
    store.put("watched", 1)
    assert store._machine.log.end() == 5 and [row[0] for row in watch.drain()] == ["watched"]


def test_a_watch_from_inside_a_gathered_frame_begins_after_its_commit(store: Store) -> None:
    tokens = [store.put(f"k{i}", i).token for i in range(300)]
    for i in (0, 1, 254, 255, 256, 298, 299):
        assert [c.value for c in store.watch("k", since=tokens[i], timeout=0.001)] == list(range(i + 1, 300))


def test_a_store_without_a_disk_takes_a_durability_like_any_other() -> None:
    with crdtkv.open() as store:
        for call in (lambda d: store.put("k", 1, durability=d), lambda d: store.set("s").add(1, durability=d)):
            with pytest.raises(InvalidValueError, match="durability: must be one of memory, async, sync, got 'soon'"):
                call("soon")
        assert list(store.scan()) == []
        assert store.put("k", 1, durability="async").seq == 1


def test_adds_one_by_one_are_the_adds_of_a_transaction() -> None:
    """The written-out add against its naive twin, over everything that may be at the key: state, length and digest."""
    steps = [
        lambda s: s.set("s").discard("a"),
        lambda s: s.set("s").clear(),
        lambda s: s.delete("s"),
        lambda s: s.set("s").add("expiring", ttl=1000),
        lambda s: s.digest(),
        lambda s: s.counter("s2").increment(),
        lambda s: None,
    ]
    fast, plain = crdtkv.open(region="us"), crdtkv.open(region="us")
    with fast, plain:
        dice = random.Random(5)
        for _ in range(600):
            element, step = dice.choice("abcdefgh"), dice.choice(steps)
            fast.set("s").add(element)
            with plain.batch() as batch:
                batch.set("s").add(element)
            for store in (fast, plain):
                step(store)
            assert fast.set("s").members() == plain.set("s").members()
            assert len(fast.set("s")) == len(plain.set("s")) == len(fast.set("s").members())
        fast.counter("other").increment()
        with pytest.raises(WrongTypeError):
            fast.set("other").add(1)
        other = crdtkv.open(region="eu")
        with other:
            other.merge(fast.delta_since(None))
            assert other.digest() == fast.digest() and other.set("s").members() == fast.set("s").members()


def test_a_batch_comes_to_what_the_store_is_at_its_exit() -> None:
    """Committed as it was tried if nothing has happened meanwhile, else tried anew."""
    for meanwhile in (False, True):
        with crdtkv.open(region="us") as store:
            store.counter("c").increment(3)
            store.set("s").add("old")
            with store.batch() as batch:
                batch.counter("c").increment(5)
                batch.set("s").discard("old")
                batch.put("k", 1)
                batch.delete("gone")
                if meanwhile:
                    store.counter("c").increment(1)
                    store.set("s").add("new")
                    store.put("gone", 1)
            assert dict(store.scan()) == ({"c": 9, "k": 1, "s": ["new"]} if meanwhile else {"c": 8, "k": 1})
            with crdtkv.open(region="eu") as other:
                other.merge(store.delta_since(None))
                assert other.digest() == store.digest() and dict(other.scan()) == dict(store.scan())


def test_a_call_that_a_batch_refused_half_way_leaves_nothing_of_itself() -> None:
    settings = Settings(value_bytes_max=1000, commit_bytes_max=2000)
    with crdtkv.open(settings=settings) as store:
        with store.batch() as batch:
            batch.put("kept", 1)
            with pytest.raises(ValueTooLargeError):
                batch.set("s").add("a" * 900, "b" * 900, "c" * 900)
            assert batch.set("s").members() == []
            batch.put("also", 2)
        assert dict(store.scan()) == {"kept": 1, "also": 2}


def test_a_batch_of_puts_is_refused_where_a_put_is_wrong_and_keeps_what_was_right() -> None:
    """Puts are only gathered, so that many cost little; what is wrong with one must still be said when it is made."""
    with stores("us", settings=Settings(value_bytes_max=1024, commit_bytes_max=1024)) as (store,):
        with store.batch() as batch:
            for key in ("", "\ud800", "x" * 1025, "é" * 600):
                with pytest.raises((InvalidKeyError, KeyTooLargeError)):
                    batch.put(key, 1)
            for value in (object(), "\ud800"):
                with pytest.raises(InvalidValueError):
                    batch.put("k", value)
            with pytest.raises(ValueTooLargeError, match="value is 1,0"):
                batch.put("k", "x" * 1024)
            made = 0
            with pytest.raises(ValueTooLargeError, match="commit: holds more than 1,024 bytes"):
                while made < 100:
                    batch.put(f"k{made:02d}", "x" * 50)
                    made += 1
        assert batch.commit is not None and batch.commit.seq == 1 and store.count() == made == 14
        with pytest.raises(StoreClosedError, match="the batch has ended"):
            batch.put("later", 1)
        with pytest.raises(ZeroDivisionError), store.batch() as given_up:
            given_up.put("never", 1 // 0)
        unfinished = store.batch()
        unfinished.put("never", 1)
        store.close()
        with pytest.raises(StoreClosedError, match="the store is closed"):
            unfinished.put("never", 2)
        with pytest.raises(StoreClosedError, match="the store is closed"):
            unfinished.__exit__(None, None, None)


def test_puts_of_a_batch_and_its_other_calls_see_each_other(store: Store) -> None:
    with store.batch() as batch:
        batch.put("z", 1)
        batch.put("z", 2)
        assert batch.get("z") == 2
        batch.put("z", 3)
        assert batch.delete("z")
        batch.put("z", 4)
        batch.set("s").add(1)
        with pytest.raises(WrongTypeError):
            batch.put("s", 1)
        batch.put("t", 1)
        with pytest.raises(WrongTypeError):
            batch.set("t").add(1)
    assert dict(store.scan()) == {"s": [1], "t": 1, "z": 4}


def test_a_set_that_was_made_while_a_batch_gathered_puts_is_not_put_over(store: Store) -> None:
    batch = store.batch()
    batch.put("q", 1)
    store.set("q").add(5)
    with pytest.raises(WrongTypeError):
        batch.__exit__(None, None, None)
    assert store.types("q") == ["set"]
