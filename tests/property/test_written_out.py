"""What is written out for speed comes to what the obvious way comes to: a store beside its slow twin, frames, records and answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crdtkv.core.codec import encode_value
from crdtkv.errors import CrdtkvError
from crdtkv.store import Settings, Store
from crdtkv.store.batch import Batch
from tests.plainly import Twins
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
    st.tuples(st.just("group"), sides, st.lists(puts, max_size=5)),
    st.tuples(st.just("call"), sides, calls),
    st.tuples(st.just("raced"), sides, st.lists(calls, max_size=4), calls),
    st.tuples(st.just("merge"), sides, st.just(())),
    st.tuples(st.just("digest"), sides),
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
            return bool(target.set(key).discard(args[0]))
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


def group(store: Store, made: list[Call]) -> object:
    return store.execute([[n, "put", [key, encode_value(value)], {}] for n, (_, key, value) in enumerate(made)])[0]


@settings(max_examples=250, deadline=None)
@given(st.lists(steps, max_size=12), st.sampled_from([1, 64]), st.booleans())
def test_a_store_does_what_its_plain_twin_does(made: list[Call], gather: int, watched: bool) -> None:
    clock = Clock()
    limits = Settings(gather_commits_max=gather, clear_at_once_max=1, journal_records_max=5, removals_max=3)
    twins = [Twins(clock, region, limits) for region in ("eu", "us")]
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
                    ask = partial(group, made=what[0])
                case "call":
                    ask = partial(call_on, one=what[0])
                case "digest":
                    ask = Store.digest  # folds
                case "tick":
                    clock.ms += what[0]
                    ask = Store.maintain
                case "merge":
                    vv = twins[side].both(Store.vv)
                    delta = twins[1 - side].both(partial(Store.delta_since, vv=vv))
                    ask = partial(Store.merge, data=delta)
            twins[side].both(ask)
        for pair in twins:
            pair.check()
        for mine, plain in watches:
            assert list(mine.changes(0.0)) == list(plain.changes(0.0))
    finally:
        for pair in twins:
            pair.close()
