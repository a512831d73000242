"""Request rows: a group is one frame, each request stands alone, a repeated id makes no second commit, hostile rows get an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv import Settings, Store
from crdtkv.core.codec import encode_value as v
from crdtkv.results import OK, ONE_BY_ONE, Change, Explanation
from tests.stores import Clock, store_at, sync


@pytest.fixture
def store() -> Iterator[Store]:
    with store_at(Clock()) as made:
        yield made


def ask(store: Store, op: str, *args: Any, **options: Any) -> Any:
    """One request; its payload, or the error's code."""
    ((number, status, payload),) = store.execute([[7, op, list(args), options or None]]).replies
    assert number == 7 and status in (0, 1)
    return payload if status == 0 else payload[0]


def test_a_group_is_one_frame_and_each_write_a_commit(store: Store) -> None:
    done = store.execute([[i, "put", [f"k{i}", v(i)], None] for i in range(100)])
    assert [r[0] for r in done.replies] == list(range(100)) and done.position == store._machine.log.end() == 1
    assert [r[2][1] for r in done.replies] == list(range(1, 101))
    stamps = [r[2][2] for r in done.replies]
    assert stamps == sorted(set(stamps)) and done.token.vv == store.vv()
    store.execute([[1, "get", ["k1"], None]])
    assert store._machine.log.end() == 1


def test_requests_see_those_before_them_and_one_that_fails_stops_nobody(store: Store) -> None:
    replies = store.execute(
        [
            [1, "put", ["k", v(1)], None],
            [2, "get", ["k"], None],
            [3, "sadd", ["k", [v(1)]], None],
            [4, "sremove", ["s", v(1)], None],
            [5, "cincr", ["c", 4], None],
            [6, "cget", ["c"], None],
            [7, "put", ["k", v(2), 0], None],
            [8, "put", ["k", v("x" * 2**21)], None],
            [9, "delete", ["nothing"], None],
            [10, "get", ["k"], None],
        ]
    ).replies
    assert [r[0] for r in replies] == list(range(1, 11))
    assert [r[2][0] for r in replies if r[1] == 1] == ["WrongTypeError", "KeyNotFoundError", "InvalidValueError", "ValueTooLargeError"]
    assert replies[1][2] == v(1) and replies[5][2] == 4 and replies[8][2] is None and replies[9][2] == v(1)
    assert store.vv().seq(store.origin) == 2


def test_every_read_and_write(store: Store) -> None:
    assert ask(store, "hput", "m", "f", v(1)) and ask(store, "hget", "m", "f") == v(1) and ask(store, "hget", "m", "g") is None
    assert ask(store, "hcontains", "m", "f") is True and ask(store, "hlen", "m") == 1 and ask(store, "type", "m") == ["map"]
    assert ask(store, "hdel", "m", "f") and ask(store, "hdel", "m", "f") is None and ask(store, "exists", "m") is False
    assert ask(store, "sadd", "s", [v(1), v("a")]) and ask(store, "scontains", "s", v(1)) is True and ask(store, "slen", "s") == 2
    assert ask(store, "sadd", "s", []) is None and ask(store, "sdiscard", "s", [v(9)]) is None and ask(store, "sclear", "s")
    assert ask(store, "cincr", "c", 3) and ask(store, "creset", "c") and ask(store, "creset", "c") is None and ask(store, "cget", "c") == 0
    assert ask(store, "put", "k", v(1), 10) and ask(store, "ttl", "k") == 10.0 and ask(store, "expire", "k", None) is not None
    assert ask(store, "siblings", "k")[0][0] == v(1) and "text" in ask(store, "explain", "k") and ask(store, "conflicts", "") == []
    assert ask(store, "count", "") == 1 and ask(store, "digest") == store.digest() and ask(store, "vv") == store.vv().to_bytes()
    assert ask(store, "batch", [["put", "a", v(1)], ["cincr", "b", 2]]) and store["a"] == 1 and store.counter("b").value == 2
    assert ask(store, "delete_prefix", "") and ask(store, "count", "") == 0


def test_expire_without_effect_makes_no_commit(store: Store) -> None:
    """Over the wire `expire(key, None)` of a register that never expires rewrote it, which the embedded call does not."""
    store.put("k", 1)
    assert ask(store, "expire", "k", None) is None and ask(store, "expire", "nothing", 5) is None
    assert store.vv().seq(store.origin) == 1
    with store.batch() as batch:
        batch.expire("k", None)
    assert batch.commit is None


def test_expire_in_a_batch_sees_the_batch(store: Store) -> None:
    """It looked at the type in the store, and refused a register that the batch itself had put in place of a set."""
    store.set("k").add(1)
    assert ask(store, "batch", [["delete", "k"], ["put", "k", v(2)], ["expire", "k", 5]])[1] == 2
    assert store["k"] == 2 and store.ttl("k") == 5


def test_a_batch_is_all_or_nothing(store: Store) -> None:
    for wrong in (["put", "b", b"\xc1"], ["batch", []], ["get", "a"], ["nonsense"], [], 5, ["sadd", "a", [v(1)]], [["x"]]):
        assert ask(store, "batch", [["put", "a", v(1)], wrong]) in ("InvalidValueError", "WrongTypeError")
    assert store.vv().seq(store.origin) == 0 and "a" not in store


def test_a_request_id_makes_one_commit_wherever_it_has_arrived(store: Store) -> None:
    made = ask(store, "cincr", "c", 1, rid=b"one")
    assert ask(store, "cincr", "c", 1, rid=b"one") == made and ask(store, "put", "k", v(1), rid=b"one") == made
    with store_at(Clock(), "eu") as eu:
        sync(store, eu)
        assert ask(eu, "cincr", "c", 1, rid=b"one") == made
        assert ask(eu, "cincr", "c", 1, rid=b"two") != made and eu.counter("c").value == 2
    twice = store.execute([[1, "cincr", ["c", 1], {"rid": b"x"}], [2, "cincr", ["c", 1], {"rid": b"x"}]]).replies
    assert twice[0][2] == twice[1][2] and store.counter("c").value == 2 and "k" not in store
    refused = ask(store, "sadd", "c", [v(1)], rid=b"failed")
    assert refused == "WrongTypeError" and ask(store, "cincr", "c", 1, rid=b"failed")[1] == 3


def test_an_id_may_stand_in_place_of_the_options(store: Store) -> None:
    (first,) = store.execute([[1, "put", ["k", v(1)], b"one"]]).replies
    again = store.execute(
        [[1, "put", ["k", v(2)], {"rid": b"one"}], [2, "cincr", ["c", 1], b"two"], [3, "cincr", ["c", 1], b"two"]]
    ).replies
    assert again[0][2] == first[2] and again[1][2] == again[2][2] and store["k"] == 1 and store.counter("c").value == 1
    ((_, status, payload),) = store.execute([[1, "put", ["k", v(1)], b"x" * 65]]).replies
    assert status == 1 and payload[0] == "InvalidValueError"


def test_a_request_of_a_block_that_is_known_makes_no_second_commit(store: Store) -> None:
    block = [1, "puts", [["a", "b"], [v(1), v(2)], [b"one", b"two"]], None]
    ((_, status, first),) = store.execute([block]).replies
    assert status == OK and store.vv().seq(store.origin) == 2
    ((_, status, again),) = store.execute([block]).replies
    assert status == ONE_BY_ONE and again == [[0, OK, first], [1, OK, [first[0], first[1] + 1, first[2] + 1]]]
    assert store.vv().seq(store.origin) == 2
    mixed = store.execute([[1, "put", ["c", v(3)], b"three"], [2, "puts", [["d", "e"], [v(4), v(5)], [b"three", b"four"]], None]]).replies
    assert mixed[1][2][0][2] == mixed[0][2] and "d" not in store and store["e"] == 5 and store.vv().seq(store.origin) == 4


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched"])
def test_puts_in_a_row_are_a_commit_each_in_order_and_a_repeated_one_is_none(store: Store, watched: bool) -> None:
    feed = store.subscribe("", None) if watched else None
    rows = [
        [0, "put", ["a", v(0)], b"r0"],
        [1, "put", ["b", v(1)], None],
        [2, "put", ["", v(2)], b"r2"],
        [3, "put", ["a", v(3)], b"r3"],
        [4, "put", ["c", v(4)], b"r0"],  # the same request as the first, in the same run
        [5, "get", ["a"], None],
        [6, "put", ["t", v(6), 10.0], b"r6"],
        [7, "put", ["a", v(7)], b"r7"],
        [8, "sadd", ["a", [v(8)]], b"r8"],
        [9, "put", ["d", v(9)], b"r9"],
    ]
    replies = store.execute(rows).replies
    assert [r[0] for r in replies] == list(range(10)) and [r[0] for r in replies if r[1]] == [2, 8]
    assert replies[4][2] == replies[0][2] and replies[5][2] == v(3) and "c" not in store
    commits = [replies[at][2] for at in (0, 1, 3, 6, 7, 9)]
    assert [seq for _, seq, _ in commits] == [1, 2, 3, 4, 5, 6] and sorted(stamp for *_, stamp in commits) == [c[2] for c in commits]
    assert [store.get(key) for key in "abtd"] == [7, 1, 6, 9] and store._machine.log.end() == 1
    assert store.execute(rows[:2]).replies[0][2] == replies[0][2] and store.get("a") == 7
    with store_at(Clock(), "eu") as eu:
        sync(store, eu)
        assert eu.digest() == store.digest() and ask(eu, "put", "a", v(1), rid=b"r9") == replies[9][2]
    if feed is not None:
        assert [Change.from_row(row).key for row in feed.drain()][:6] == ["a", "b", "a", "t", "a", "d"]


def test_puts_in_a_row_that_the_region_refuses_are_refused_one_by_one(store: Store) -> None:
    store.put("k", 0)
    store._replica.refuse_writes("region us was removed")
    replies = store.execute([[1, "put", ["k", v(1)], b"a"], [2, "get", ["k"], None], [3, "put", ["l", v(1)], b"b"]]).replies
    assert [(r[1], r[2][0] if r[1] else r[2]) for r in replies] == [(1, "RegionRemovedError"), (0, v(0)), (1, "RegionRemovedError")]
    assert store.vv().seq(store.origin) == 1 and store._replica.request(b"a") is None
    assert store.status().read_only == "region us was removed" and "read only: region us was removed" in store.warnings


@pytest.mark.parametrize("rid", [b"", b"x" * 65, "text", 5, [b"x"]], ids=repr)
def test_what_is_no_request_id(store: Store, rid: Any) -> None:
    for op, args in (("put", ["k", v(1)]), ("cincr", ["c", 1])):
        ((_, status, payload),) = store.execute([[1, op, args, {"rid": rid}]]).replies
        assert status == 1 and payload[0] == "InvalidValueError"
    assert store.vv().seq(store.origin) == 0


@pytest.mark.parametrize("keys", [60, 1])
@pytest.mark.parametrize("path", [None, "data"], ids=["memory", "rocksdb"])
def test_old_request_ids_are_forgotten_in_the_order_they_came(tmp_path: Path, path: str | None, keys: int) -> None:
    """Also those of a few keys put over and over, of whose records hardly any wait for the engine, and where none do."""
    settings = Settings(async_sync_ms=3_600_000, requests_max=10, fold_records_max=4)  # another thread may let twice as many wait
    with crdtkv.open(path and tmp_path / path, region="us", settings=settings) as store:
        for i in range(60):
            ask(store, "put", f"k{i % keys}", v(i), rid=b"%d" % i)
        window = store._replica._requests
        assert len(window) <= 10 + 2 * 4 + 2 and window.get(b"0") is None and window.get(b"59") is not None


@pytest.mark.parametrize(
    "row",
    [
        None,
        5,
        [],
        [1],
        [1, "get"],
        [1, "get", ["k"]],
        [1, "get", ["k"], None, 5],
        [1, None, [], None],
        [1, [], [], None],
        [1, {}, [], None],
        [1, "nonsense" * 100, [], None],
        [1, "__class__", [], None],
        [1, "get", None, None],
        [1, "get", 5, None],
        [1, "get", [], None],
        [1, "get", ["k", "more"], None],
        [1, "get", [None], None],
        [1, "get", [b"k"], None],
        [1, "get", [""], None],
        [1, "get", ["k"], 5],
        [1, "put", ["k"], None],
        [1, "put", ["k", 1], None],
        [1, "put", ["k", b""], None],
        [1, "put", ["k", b"\xcc\x01"], None],
        [1, "put", ["k", b"\x91" * 100_000], None],
        [1, "put", ["k", b"\x01", "x"], None],
        [1, "put", ["k", b"\x01", float("nan")], None],
        [1, "put", ["k", b"\x01", [1]], None],
        [1, "put", ["\ud800", b"\x01"], None],
        [1, "put", ["k", b"\x01"], {"durability": []}],
        [1, "put", ["k", b"\x01"], [1]],
        [1, "sadd", ["k", 5], None],
        [1, "sadd", ["k", "text"], None],
        [1, "sadd", ["k", [1]], None],
        [1, "sremove", ["k", None], None],
        [1, "cincr", ["k", 1.5], None],
        [1, "cincr", ["k", True], None],
        [1, "cincr", ["k", 2**64], None],
        [1, "hput", ["k", 5, b"\x01"], None],
        [1, "hput", ["k", "\ud800", b"\x01"], None],
        [1, "hput", ["k", "f" * 2**21, b"\x01"], None],
        [1, "hdel", ["k", None], None],
        [1, "conflicts", ["", -1], None],
        [1, "conflicts", [5], None],
        [1, "merge", [5], None],
        [1, "merge", [b"x"], None],
        [1, "count", [5], None],
        [1, "delete_prefix", [None], None],
        [1, "batch", [5], None],
    ],
    ids=lambda r: repr(r)[:60],
)
def test_a_hostile_row_gets_one_typed_answer_and_its_neighbours_theirs(store: Store, row: Any) -> None:
    replies = store.execute([[1, "put", ["before", v(1)], None], row, [3, "put", ["after", v(1)], None]]).replies
    assert [r[1] for r in replies] == [0, 1, 0] and replies[1][2][0] not in ("CrdtkvError", "StorageError")
    assert "\n" not in replies[1][2][1] and len(replies[1][2][1]) < 400
    assert [k for k, _ in store.scan()] == ["after", "before"] and store._machine.log.end() <= 2


def test_a_counter_whose_sum_leaves_64_bits_reads_right_over_the_wire() -> None:
    # Each region kept to its limit. The sum could not be encoded: a watch broke the write that it watched.
    total = 2**63 - 1
    with store_at(Clock(), "us") as us, store_at(Clock(), "eu") as eu, store_at(Clock(), "ap") as ap:
        feed = us.subscribe("n")
        for store in (us, eu, ap):
            store.counter("n").increment(-total)
        sync(us, eu, ap)
        assert us.counter("n").value == dict(us.scan())["n"] == -3 * total
        assert ask(us, "cget", "n") == str(-3 * total) and ask(us, "cget", "absent") == 0
        assert [row for page in us.open_scan("scan", ["n"]) for row in page] == [["n", "counter", str(-3 * total), False]]
        assert [Change.from_row(row).value for row in feed.drain()] == [-total, -2 * total, -3 * total]
        told = Explanation.from_wire(ask(us, "explain", "n"))
        assert told.value == -3 * total and [write.value for write in told.writes] == [-total] * 3
        change = Change("n", "counter", None, "increment", 3 * total, us.put("k", 1), "")
        assert Change.from_row(change.to_row()).value == 3 * total


def test_a_group_waits_for_no_fsync_and_calls_nobody_back_with_the_lock_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `delete_prefix` and `merge` did both inside the group: everybody else waited for the disk.
    quiet = Settings(async_sync_ms=3_600_000)
    with crdtkv.open(region="eu") as eu, crdtkv.open(tmp_path / "us", region="us", durability="sync", settings=quiet) as us:
        eu.put("from eu", 1)
        us.put("a/1", 1)
        free: list[str] = []
        sync_log, lock = us._machine.log.sync, us._lock

        def note(what: str) -> None:
            assert not lock._is_owned()  # type: ignore[attr-defined]
            free.append(what)

        def syncing() -> int:
            note("sync")
            return sync_log()

        us.on_commit(lambda: note("told"))
        with monkeypatch.context() as patched:
            patched.setattr(us._machine.log, "sync", syncing)
            executed = us.execute([[1, "delete_prefix", ["a/"], {"durability": "sync"}], [2, "merge", [eu.delta_since()], None]])
        assert [reply[1] for reply in executed.replies] == [0, 0] and executed.replies[0][2][1] == 2
        assert free == ["sync", "told"] and us._machine.log.synced() == executed.position
        assert us.get("from eu") == 1 and us.count("a/") == 0


def test_whoever_no_longer_follows_commits_is_not_called() -> None:
    with store_at(Clock()) as store:
        calls: list[str] = []

        def callback() -> None:
            calls.append("called")

        ends = [store.on_commit(callback) for _ in range(2)]
        store.put("k", 1)
        ends[0]()
        store.put("k", 2)
        ends[0]()
        store.put("k", 3)
        ends[1]()
        store.put("k", 4)
        assert len(calls) == 4 and not store._callbacks
