"""Three embedded stores driven by Hypothesis through their public interface, exchanging `delta_since` and `merge`.

The model is the specification: after every step each store shows what its version vector says, and what it does not.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

import crdtkv
from crdtkv import MissingHistoryError, Store, VersionVector, WrongTypeError
from crdtkv.core.codec import decode_value, encode_value
from crdtkv.simulation.specification import Clear, Commit, History, Increment, Live, Operation, Remove, Reset, Write, read

REGIONS = ("ap", "eu", "us")
KEYS = ("a", "b")
ELEMENTS: tuple[Any, ...] = (1, 1.0, "1", True)
FIELDS = ("f", "g")

stores = st.integers(0, 2)
keys = st.sampled_from(KEYS)
values = st.integers(0, 3) | st.sampled_from(["x", b"x", None, [1, 2]])
elements = st.sampled_from(ELEMENTS)
fields = st.sampled_from(FIELDS)
amounts = st.sampled_from([-3, -1, 1, 2])


class Stores(RuleBasedStateMachine):
    """What each rule's commit meant goes into the history; what `merge` brings is there already."""

    deltas = Bundle("deltas")

    @initialize(tiny_log=st.booleans())
    def open_stores(self, tiny_log: bool) -> None:
        """With a tiny log, `delta_since` soon gives snapshots instead of frames."""
        limits = crdtkv.Settings(memory_log_bytes=400 if tiny_log else 64 << 20, clear_at_once_max=1)
        self.stores = [crdtkv.open(region=region, settings=limits) for region in REGIONS]
        self.history = History()

    def teardown(self) -> None:
        for store in getattr(self, "stores", ()):
            store.close()

    def _did(self, store: Store, past: VersionVector, commit: crdtkv.Commit | None, *operations: Operation) -> None:
        """Note what a mutator did: without a commit nothing may have changed."""
        if commit is None:
            assert store.vv() == past
        else:
            assert store.vv() == past.advance(*commit.dot) and commit.seq == past.seq(commit.origin) + 1
            self.history.record(Commit(commit.dot, commit.hlc, past, operations))

    # -- writes -------------------------------------------------------------------------------------------------------

    @rule(who=stores, key=keys, value=values)
    def put(self, who: int, key: str, value: Any) -> None:
        store = self.stores[who]
        past, allowed = store.vv(), self._allows(store, key, "register")
        try:
            self._did(store, past, store.put(key, value), Write((key, "register", b""), encode_value(value)))
            assert allowed
        except WrongTypeError:
            assert not allowed and store.vv() == past

    @rule(who=stores, key=keys, element=elements)
    def add(self, who: int, key: str, element: Any) -> None:
        store = self.stores[who]
        past, allowed = store.vv(), self._allows(store, key, "set")
        try:
            self._did(store, past, store.set(key).add(element), Write((key, "set", encode_value(element))))
            assert allowed
        except WrongTypeError:
            assert not allowed and store.vv() == past

    @rule(who=stores, key=keys, field=fields, value=values)
    def put_field(self, who: int, key: str, field: str, value: Any) -> None:
        store = self.stores[who]
        past, allowed = store.vv(), self._allows(store, key, "map")
        try:
            self._did(store, past, store.map(key).put(field, value), Write((key, "map", encode_value(field)), encode_value(value)))
            assert allowed
        except WrongTypeError:
            assert not allowed and store.vv() == past

    @rule(who=stores, key=keys, amount=amounts)
    def increment(self, who: int, key: str, amount: int) -> None:
        store = self.stores[who]
        past, allowed = store.vv(), self._allows(store, key, "counter")
        try:
            self._did(store, past, store.counter(key).increment(amount), Increment(key, amount))
            assert allowed
        except WrongTypeError:
            assert not allowed and store.vv() == past

    @rule(who=stores, key=keys, element=elements, field=fields, what=st.sampled_from(["element", "field", "set", "map", "counter"]))
    def remove(self, who: int, key: str, element: Any, field: str, what: str) -> None:
        """Take one thing away, if its type is there; what is not there makes no commit."""
        store = self.stores[who]
        past = store.vv()
        kind = {"element": "set", "field": "map"}.get(what, what)
        if kind not in self._visible(past)[key]:
            return
        match what:
            case "element":
                self._did(store, past, store.set(key).discard(element), Remove((key, "set", encode_value(element))))
            case "field":
                self._did(store, past, store.map(key).delete(field), Remove((key, "map", encode_value(field))))
            case "set":
                self._did(store, past, store.set(key).clear(), Clear(key, "set"))
            case "map":
                self._did(store, past, store.map(key).clear(), Clear(key, "map"))
            case _:
                self._did(store, past, store.counter(key).reset(), Reset(key))

    @rule(who=stores, key=keys)
    def delete(self, who: int, key: str) -> None:
        store = self.stores[who]
        past = store.vv()
        visible = self._visible(past)[key]
        commit = store.delete(key)
        assert (commit is None) == (not visible)
        self._did(store, past, commit, *(_removal(key, kind) for kind in visible))

    @rule(who=stores, key=keys, first=elements, second=elements, fails=st.booleans())
    def batch(self, who: int, key: str, first: Any, second: Any, fails: bool) -> None:
        """Clear a set and add to it, in one commit; or raise in the middle, and nothing happened."""
        store = self.stores[who]
        past = store.vv()
        visible = self._visible(past)[key]
        if visible not in ([], ["set"]):
            return  # beside another type, a set that was just cleared may not be written
        cleared = bool(visible)
        try:
            with store.batch() as b:
                b.set(key).add(first)
                b.set(key).clear()
                b.set(key).add(second)
                if fails:
                    raise LookupError
        except LookupError:
            assert store.vv() == past
        else:
            clear = (Clear(key, "set"),) if cleared else ()
            self._did(store, past, b.commit, *clear, Write((key, "set", encode_value(second))))

    # -- exchange -----------------------------------------------------------------------------------------------------

    @rule(target=deltas, giver=stores, taker=stores, everything=st.booleans())
    def take_delta(self, giver: int, taker: int, everything: bool) -> tuple[bytes, VersionVector, bool]:
        """What one lacks of another, perhaps merged much later, or by a third."""
        store = self.stores[giver]
        return store.delta_since(None if everything else self.stores[taker].vv()), store.vv(), everything

    @rule(delta=deltas, taker=stores)
    def merge(self, delta: tuple[bytes, VersionVector, bool], taker: int) -> None:
        """All or nothing, and twice is once."""
        data, covered, everything = delta
        store = self.stores[taker]
        before = store.vv(), store.digest()
        try:
            result = store.merge(data)
        except MissingHistoryError:
            assert (store.vv(), store.digest()) == before
            return
        assert before[0] <= store.vv() <= before[0].join(covered)
        assert not everything or store.vv().covers(covered)
        assert result.applied == store.vv().missing_from(before[0])
        again = store.merge(data)
        assert (again.applied, again.conflicts, again.changed_keys) == (0, 0, ())

    @rule(giver=stores, taker=stores)
    def sync(self, giver: int, taker: int) -> None:
        """A delta against the taker's own vector always applies, and brings exactly what it lacks."""
        give, take = self.stores[giver], self.stores[taker]
        lacks = give.vv().missing_from(take.vv())
        both = give.vv().join(take.vv())
        assert take.merge(give.delta_since(take.vv())).applied == lacks
        assert take.vv() == both

    # -- what must hold after every step ----------------------------------------------------------------------------

    @invariant()
    def every_store_shows_what_its_vector_says(self) -> None:
        for store in getattr(self, "stores", ()):
            slots, counters, _ = self.history.state(store.vv())
            visible = self._visible(store.vv())
            for key in KEYS:
                assert sorted(store.types(key)) == sorted(visible[key])
                assert (key in store) == bool(visible[key])
                if "register" in visible[key]:
                    live = sorted(slots[key, "register", b""], key=lambda w: (w.hlc, w.dot.origin), reverse=True)
                    assert [(s.value, s.dot, s.hlc) for s in store.siblings(key)] == [(decode_value(w.value), w.dot, w.hlc) for w in live]
                    assert store.get(key, "nothing") == decode_value(live[0].value)
                if "set" in visible[key]:
                    assert [encode_value(e) for e in store.set(key).members()] == _subkeys(slots, key, "set")
                    assert len(store.set(key)) == len(_subkeys(slots, key, "set"))
                if "map" in visible[key]:
                    shown = [(encode_value(field), encode_value(value)) for field, value in store.map(key).items()]
                    chosen = {subkey: read(slots[key, "map", subkey], 0) for subkey in _subkeys(slots, key, "map")}
                    assert shown == [(subkey, write.value) for subkey, write in chosen.items() if write is not None]
                if "counter" in visible[key]:
                    assert store.counter(key).value == counters[key]

    @invariant()
    def equal_vectors_have_equal_digests(self) -> None:
        digests: dict[VersionVector, str] = {}
        for store in getattr(self, "stores", ()):
            assert digests.setdefault(store.vv(), store.digest()) == store.digest()

    # -- the model -----------------------------------------------------------------------------------------------------

    def _visible(self, vv: VersionVector) -> dict[str, list[str]]:
        """The types that are at each key."""
        slots, counters, _ = self.history.state(vv)
        found = {key: {slot[1] for slot in slots if slot[0] == key} for key in KEYS}
        for key in counters:
            found[key].add("counter")
        return {key: sorted(kinds) for key, kinds in found.items()}

    def _allows(self, store: Store, key: str, kind: str) -> bool:
        visible = self._visible(store.vv())[key]
        return not visible or kind in visible


def _removal(key: str, kind: str) -> Operation:
    if kind == "register":
        return Remove((key, kind, b""))
    return Reset(key) if kind == "counter" else Clear(key, kind)


def _subkeys(slots: dict[tuple[str, str, bytes], tuple[Live, ...]], key: str, kind: str) -> list[bytes]:
    return sorted(slot[2] for slot in slots if slot[:2] == (key, kind))


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=120, stateful_step_count=40)
