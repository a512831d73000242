"""What is written out for speed comes to what the obvious way comes to: a store beside its slow twin, frames, records and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crdtkv.core.codec import encode_value
from crdtkv.errors import CrdtkvError
from crdtkv.results import FAILED, OK, ONE_BY_ONE
from crdtkv.store import Settings, Store
from crdtkv.store.batch import Batch
from tests.plainly import PlainReplica, Twins
from tests.stores import Clock

Call = tuple[Any, ...]

keys = st.sampled_from(["a", "b", "é", "n\0l", "x" * 300])
values = st.sampled_from(["one", "two" * 40, 7, None, b"x", 2.5])
ttls = st.sampled_from([None, None, None, 5.0])
elements = st.sampled_from([1, "e", b"e"])
names = st.sampled_from(["f", "g"])

puts = st.tuples(st.just("put"), keys, values)
calls = st.one_of(
    puts,
    puts,
    st.tuples(st.just("put_ttl"), keys, values, ttls),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("expire"), keys, ttls),
    st.tuples(st.just("types"), keys),
    st.tuples(st.just("add"), keys, elements, ttls),
    st.tuples(st.just("discard"), keys, elements),
    st.tuples(st.just("clear"), keys),
    st.tuples(st.just("increment"), keys, st.integers(-2, 2)),
    st.tuples(st.just("reset"), keys),
    st.tuples(st.just("put_field"), keys, names, values, ttls),
    st.tuples(st.just("delete_field"), keys, names),
    st.tuples(st.just("clear_map"), keys),
)
sides = st.sampled_from([0, 1])
steps = st.one_of(
    st.tuples(st.just("batch"), sides, st.lists(calls, max_size=8)),
    st.tuples(st.just("batch"), sides, st.lists(puts, max_size=8)),
    st.tuples(st.just("group"), sides, st.lists(puts, max_size=5), st.just("")),
    st.tuples(st.just("call"), sides, calls),
    st.tuples(st.just("raced"), sides, st.lists(calls, max_size=4), calls),
    st.tuples(st.just("merge"), sides, sides),
    st.tuples(st.just("digest"), sides),
    st.tuples(st.just("scan"), sides),
    st.tuples(st.just("tick"), sides, st.integers(1, 10_000)),
)


def call(target: Store | Batch, name: str, key: str, *args: Any) -> object:
    """One call on a store or a batch; what it answers, commits aside."""
    match name:
        case "put":
            target.put(key, args[0])
        case "put_ttl":
            target.put(key, args[0], ttl=args[1])
        case "get":
            return target.get(key)
        case "delete":
            return bool(target.delete(key))
        case "expire":
            return bool(target.expire(key, args[0]))
        case "types":
            return target.types(key)
        case "add":
            target.set(key).add(args[0], ttl=args[1])
        case "discard":
            return bool(target.set(key).discard(*args))
        case "clear":
            return bool(target.set(key).clear())
        case "increment":
            target.counter(key).increment(args[0])
        case "reset":
            return bool(target.counter(key).reset())
        case "put_field":
            target.map(key).put(args[0], args[1], ttl=args[2])
        case "delete_field":
            return bool(target.map(key).delete(args[0]))
        case "clear_map":
            return bool(target.map(key).clear())
    return None


def call_on(store: Store, one: Call) -> object:
    return call(store, *one)


def scan(store: Store) -> object:
    return list(store.scan())


def batch(store: Store, made: list[Call], between: Call | None = None) -> object:
    """The calls in one batch, those that are refused left out; `between` the last call and the commit somebody else writes."""
    answers = []
    with store.batch() as together:
        for one in made:
            try:
                answers.append(call(together, *one))
            except CrdtkvError as e:
                answers.append(str(e))
        if between is not None:
            call(store, *between)
    return answers, None if together.commit is None else (together.commit.dot, together.commit.hlc)


def group(store: Store, made: list[Call], name: str = "") -> object:
    """Puts as a node's clients ask for them: commits of one frame, each with a request's id if there is a name for them."""
    rows = [[n, "put", [key, encode_value(value)], f"{name}{n}".encode() if name else {}] for n, (_, key, value) in enumerate(made)]
    return store.execute(rows)[0]


def blocks(store: Store, made: list[Call]) -> list[Any]:
    """Rows as a node's clients send them, blocks among them; what each request is answered. The plain twin is asked for each by itself."""
    if isinstance(store._replica, PlainReplica):
        alone = [one for op, columns in made for one in _alone(op, columns)]
        return [(status, payload) for _, status, payload in store.execute([(0, *one) for one in alone]).replies]
    executed = store.execute([(n, op, columns[:3] if op == "puts" else columns[:1], None) for n, (op, columns) in enumerate(made)])
    answers: list[Any] = []
    for (op, columns), (_, status, payload) in zip(made, executed.replies, strict=True):
        count = len(columns[0])
        if status == ONE_BY_ONE:
            assert [at for at, *_ in payload] == list(range(count))
            answers += [(status, payload) for _, status, payload in payload]
        elif status == OK and op == "puts":
            answers += [(OK, [payload[0], payload[1] + n, payload[2] + n]) for n in range(count)]
        else:
            answers += [(OK, value) for value in payload] if status == OK else [(FAILED, payload)] * count
    assert executed.errors == Counter(payload[0] for status, payload in answers if status == FAILED)
    return answers


def _alone(op: str, columns: Any) -> list[tuple[str, list[Any], Any]]:
    """The requests of a block, each by itself."""
    if op == "gets":
        return [("get", [key], None) for key in columns[0]]
    keys, values, ids = columns
    return [("put", [key, value], rid) for key, value, rid in zip(keys, values, ids or [None] * len(keys), strict=True)]


def run(made: list[Any], regions: tuple[str, ...], gather: int, watched: bool) -> None:
    """Do all that was made on one region's twins each, and compare."""
    clock = Clock()
    limits = Settings(gather_commits_max=gather, clear_at_once_max=1, journal_records_max=5, removals_max=3)
    twins = [Twins(clock, region, limits) for region in regions]
    watches = [[store.subscribe() for store in pair.stores] for pair in twins] if watched else []
    try:
        for kind, side, *what in made:
            ask: Callable[[Store], object]
            match kind:
                case "batch":
                    ask = partial(batch, made=what[0])
                case "raced":
                    ask = partial(batch, made=what[0], between=what[1])
                case "group":
                    ask = partial(group, made=what[0], name=what[1])
                case "blocks":
                    ask = partial(blocks, made=what[0])
                case "call":
                    ask = partial(call_on, one=what[0])
                case "digest":
                    ask = Store.digest  # folds, and the digest is kept from now on
                case "scan":
                    ask = scan  # folds, and nothing else
                case "tick":
                    clock.ms += what[0]
                    ask = Store.maintain
                case "wait":
                    clock.ms += what[0]  # what has expired is still there
                    ask = Store.vv
                case "merge":
                    of = twins[what[0]]
                    ask = partial(Store.merge, data=of.both(partial(Store.delta_since, vv=twins[side].both(Store.vv))))
            twins[side].both(ask)
        for pair in twins:
            pair.check()
        for mine, plain in watches:
            assert list(mine.changes(0.0)) == list(plain.changes(0.0))
    finally:
        for pair in twins:
            pair.close()


@settings(max_examples=250, deadline=None)
@given(st.lists(steps, max_size=12), st.sampled_from([1, 64]), st.booleans())
def test_a_store_does_what_its_plain_twin_does(made: list[Any], gather: int, watched: bool) -> None:
    run(made, ("eu", "us"), gather, watched)


few = st.sampled_from(["a", "b"])
two = st.sampled_from([1, "e"])
changes = st.one_of(
    *[st.tuples(st.just("add"), few, two, ttls), st.tuples(st.just("discard"), few, two)] * 2,
    *[st.tuples(st.just("put_field"), few, names, values, ttls), st.tuples(st.just("delete_field"), few, names)] * 2,
    *[st.tuples(st.just("increment"), few, st.sampled_from([-1, 0, 1, 2**62]))] * 2,
    st.tuples(st.sampled_from(["clear", "reset", "clear_map", "delete", "types"]), few),
    st.tuples(st.just("put"), few, values),
)
lives = st.one_of(
    *[st.tuples(st.just("call"), sides, changes)] * 6,
    st.tuples(st.just("merge"), sides, sides),
    st.tuples(st.just("digest"), sides),
    st.tuples(st.sampled_from(["tick", "wait"]), sides, st.integers(1, 10_000)),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(lives, min_size=8, max_size=24), st.sampled_from([1, 64]), st.booleans())
def test_changes_of_collections_need_no_transaction(made: list[Any], gather: int, watched: bool) -> None:
    run(made, ("eu", "us"), gather, watched)


few_puts = st.lists(st.tuples(st.just("put"), few, st.integers(0, 3) | st.just({"m": [1.0]})), min_size=1, max_size=5)
three = st.integers(0, 2)
frames = st.one_of(
    st.tuples(st.just("group"), three, few_puts, st.sampled_from(["", "", "r", "s"])),
    st.tuples(st.just("batch"), three, few_puts),
    st.tuples(st.just("call"), three, st.tuples(st.just("put_ttl"), few, values, ttls)),
    st.tuples(st.just("call"), three, st.tuples(st.just("delete"), few)),
    *[st.tuples(st.just("merge"), three, three)] * 3,
    st.tuples(st.just("digest"), three),
    st.tuples(st.just("tick"), three, st.integers(1, 3000)),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(frames, min_size=6, max_size=20), st.booleans())
def test_frames_of_puts_are_applied_as_one_by_one(made: list[Any], watched: bool) -> None:
    run(made, ("ap", "eu", "us"), 1, watched)


asked_keys: Any = st.sampled_from(["a", "b", "c", "é", "n\0l", "x" * 300, "", "\ud800", 5])
plain_values = [encode_value(value) for value in ("one", 7, None, 2.5, {"m": [1.0]})]
asked_values: Any = st.sampled_from([*plain_values, b"\xc1", b"\xcd\x00\x01", "text"])
ids: Any = st.sampled_from([b"1", b"2", b"3", b"4", b"x" * 65])
known = st.sampled_from([b"1", b"2", b"3"])
a_put = st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([encode_value("one"), encode_value(7)]), known)
any_put = st.tuples(asked_keys, asked_values, ids)
columns_of_puts = st.one_of(
    st.lists(a_put, min_size=1, max_size=3, unique_by=lambda put: put[2]), st.lists(any_put, min_size=1, max_size=5)
).map(lambda puts: [list(column) for column in zip(*puts, strict=True)])
rows = st.one_of(
    st.tuples(st.just("puts"), columns_of_puts),
    st.tuples(st.just("puts"), columns_of_puts.map(lambda columns: [*columns[:2], None])),
    st.tuples(st.just("gets"), st.lists(asked_keys, min_size=1, max_size=4).map(lambda keys: [keys])),
    st.tuples(st.just("gets"), st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(lambda keys: [keys])),
)
asked = st.one_of(
    *[st.tuples(st.just("blocks"), sides, st.lists(rows, min_size=1, max_size=4))] * 4,
    st.tuples(st.just("call"), sides, changes),
    st.tuples(st.just("call"), sides, st.tuples(st.just("put_ttl"), few, values, ttls)),
    st.tuples(st.just("merge"), sides, sides),
    st.tuples(st.sampled_from(["tick", "wait"]), sides, st.integers(1, 10_000)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(asked, max_size=12), st.booleans())
def test_a_block_is_answered_as_its_requests_are_one_by_one(made: list[Any], watched: bool) -> None:
    run(made, ("eu", "us"), 1, watched)
