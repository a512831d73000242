"""Repair: bit flips and lost records in a state engine are mended from a sound replica, whatever is written meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import crdtkv
from crdtkv.audit import LocalSide, Repair, repair, verify
from crdtkv.core.codec import SLOT_SPACE, encode_value, register_slot_of
from crdtkv.core.heads import head_key
from crdtkv.core.journal import RULE_REPAIR
from crdtkv.errors import ConfigError, CorruptionError, MissingHistoryError
from crdtkv.store import Store
from crdtkv.store.mending import adopt_records, settle
from crdtkv.store.view import StateView
from tests.stores import stores, sync
from tests.unit.test_verify import KINDS, busy, damage, fill, flipped, slots


def mend(*replicas: Store, donor: str | None = None, dry_run: bool = False) -> Repair:
    return repair([LocalSide(store) for store in replicas], donor=donor, wait_s=0.5, dry_run=dry_run)


def slot_at(store: Store, key: bytes) -> tuple[bytes, bytes]:
    return next(item for item in slots(store).items() if item[0].startswith(SLOT_SPACE + key + b"\x00"))


@pytest.mark.parametrize(("kind", "key"), KINDS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("harm", ["flip", "drop", "nonsense"])
def test_the_side_whose_digest_is_off_takes_the_record_of_the_other(kind: str, key: bytes, which: int, harm: str) -> None:
    with stores("us", "eu") as pair:
        for store in pair:
            fill(store)
        sync(*pair)
        wanted, digest = slots(pair[0]), pair[0].digest()
        slot, record = slot_at(pair[which], key)
        damage(pair[which], slot, {"flip": flipped(record), "drop": None, "nonsense": b"\xff\x00"}[harm])
        done = mend(*pair)
        assert done.holds and [(m.slot, m.region, m.donor) for m in done.mended] == [(slot, pair[which].region, pair[1 - which].region)]
        assert slots(pair[0]) == slots(pair[1]) == wanted
        assert pair[which].digest() == digest and pair[1 - which].digest() == digest
        (noted,) = [c for c in pair[which].conflicts() if c.rule.startswith(RULE_REPAIR)]
        assert noted.key == key.decode() and noted.type == kind and noted.rule.endswith(pair[1 - which].region)
        for store in pair:  # heads are right: everything goes on working
            store.set("tags").clear()
            store.map("user").clear()
            store.counter("hits").reset()
        sync(*pair)


def test_bit_flips_injected_into_a_state_engine_are_found_and_mended(tmp_path: Path) -> None:
    dice = random.Random(7)
    with crdtkv.open(tmp_path / "us", region="us", durability="async") as us, stores("eu") as (eu,):
        fill(us, 400)
        sync(us, eu)
        wanted = slots(us)
        harmed = dice.sample(sorted(wanted), 25)
        for slot in harmed[:20]:
            record = wanted[slot]
            at = dice.randrange(len(record))
            damage(us, slot, record[:at] + bytes([record[at] ^ 1 << dice.randrange(8)]) + record[at + 1 :])
        for slot in harmed[20:]:
            damage(us, slot, None)
        damage(us, harmed[20][:-1] + bytes([harmed[20][-1] ^ 64]), wanted[harmed[20]])  # a bit of the slot itself
        done = mend(us, eu)
        assert done.holds and {m.slot for m in done.mended} >= set(harmed) and {m.region for m in done.mended} == {"us"}
        assert slots(us) == wanted and us.digest() == eu.digest()
    with crdtkv.open(tmp_path / "us", region="us") as us:  # it lasts
        assert slots(us) == wanted


def test_under_constant_writes_the_damaged_is_mended_and_nothing_else_changes() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us, 300)
        for n in range(100):
            us.put(f"still/{n:03}", n)
        sync(us, eu)
        slot, record = slot_at(eu, b"still/050")
        hot = register_slot_of("k/0007")
        damage(eu, slot, flipped(record))
        damage(eu, hot, None)
        stop = threading.Event()
        writer = threading.Thread(target=busy, args=(us, stop, [eu]))
        writer.start()
        try:
            done = repair([LocalSide(us), LocalSide(eu)])
        finally:
            stop.set()
            writer.join()
        assert done.holds and slot in {m.slot for m in done.mended} and {m.slot for m in done.mended} <= {slot, hot}
        sync(us, eu)
        assert slots(us) == slots(eu)


def test_of_three_the_majority_decides_where_digests_do_not() -> None:
    with stores("us", "eu", "ap") as three:
        for store in three:
            fill(store)
        sync(*three)
        wanted = slots(three[0])
        for which in range(3):
            for store in three:  # every one is damaged somewhere: no digest tells
                at = three.index(store)
                slot, record = slot_at(store, f"k/000{at}".encode())
                damage(store, slot, flipped(record))
            done = mend(*(three[which:] + three[:which]))
            assert done.holds and len(done.mended) == 3
            assert [slots(store) for store in three] == [wanted] * 3


def test_where_nothing_tells_nothing_is_touched_until_the_operator_names_the_donor() -> None:
    with stores("us", "eu") as (us, eu):
        for store in (us, eu):
            fill(store)
        sync(us, eu)
        wanted = slots(eu)
        slot, record = slot_at(us, b"k/0001")
        damage(us, slot, flipped(record))
        other, there = slot_at(eu, b"k/0002")
        damage(eu, other, flipped(there))
        before = slots(us), slots(eu)
        done = mend(us, eu)
        assert not done.holds and not done.mended and {d.slot for d in done.undecided} == {slot, other}
        assert (slots(us), slots(eu)) == before
        damage(eu, other, there)
        planned = mend(us, eu, donor="eu", dry_run=True)
        assert [(m.slot, m.region) for m in planned.mended] == [(slot, "us")] and slots(us) == before[0]
        assert mend(us, eu, donor="eu").holds
        assert slots(us) == slots(eu) == wanted


def test_a_digest_that_is_off_by_itself_is_counted_anew() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us)
        sync(us, eu)
        us._replica.state.correct_digest(12345)
        assert us.digest() != eu.digest()
        done = mend(us, eu)
        assert done.holds and done.settled["us"].kept != done.settled["us"].scanned and not done.mended
        assert us.digest() == eu.digest()


def test_heads_and_expiries_are_made_anew_from_the_slots() -> None:
    with stores("us") as (us,):
        fill(us, 5)
        us.set("soon").add("x", ttl=0.001)
        us.digest()
        wanted = {k: v for k, v in us._machine.engine.scan(b"", None)}
        harmed: dict[bytes, bytes | None] = {
            head_key(b"tags"): None,
            head_key(b"user"): b"\x95\x07\xc2\x00\xc2\x90",
            head_key(b"none"): b"junk",
        }
        harmed |= {k: None for k in wanted if k[:1] == b"t"}
        us._machine.engine.write(harmed)
        done = settle(us)
        assert done.beside == 4 and done.kept == done.scanned
        assert settle(us).beside == 0
        after = {k: v for k, v in us._machine.engine.scan(b"", None)}
        assert {k: after.get(k) for k in harmed} == {k: wanted.get(k) for k in harmed}
        assert len(us.set("tags")) == 3 and us.set("tags").discard("a")


def test_a_record_that_later_commits_touch_is_not_taken_over() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us)
        sync(us, eu)
        offered = slots(us)
        vv = us.vv()
        eu.put("k/0001", "later")
        eu.set("tags").clear()
        eu.map("user").put("name", "Bo")
        eu.counter("hits").increment()
        eu.delete("k/0002")
        eu.put("k/0003", 1)
        done = adopt_records(eu, dict(offered), vv, "us")
        assert not done.adopted and {s for s in done.touched} >= {register_slot_of("k/0001"), register_slot_of("k/0002")}
        assert all(s in done.touched for s in offered if s.startswith((b"dtags", b"duser")))
        assert eu.get("k/0001") == "later" and eu.set("tags").members() == []
        with pytest.raises(MissingHistoryError):
            adopt_records(us, {register_slot_of("k/0001"): None}, eu.vv(), "eu")
        with pytest.raises(CorruptionError):
            adopt_records(eu, {register_slot_of("k/0004"): encode_value(5)}, vv, "us")


def test_watchers_see_what_a_repair_changes() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us, 3)
        sync(us, eu)
        slot, _ = slot_at(eu, b"k/0001")
        damage(eu, slot, None)
        watch = eu.watch("k/", timeout=1)
        events: list[object] = []
        thread = threading.Thread(target=lambda: events.append(next(watch).value))
        subscription = eu.subscribe("k/")
        thread.start()
        assert mend(us, eu).holds
        thread.join()
        change = next(iter(subscription.changes(1)))
        assert (change.key, change.value) == ("k/0001", "value 1")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda us, eu: mend(us), "at least one other"),
        (lambda us, eu: mend(us, eu, donor="moon"), "'moon' is none of us, eu"),
    ],
)
def test_what_cannot_be_repaired_is_refused(call: Callable[[Store, Store], Repair], says: str) -> None:
    with stores("us", "eu") as (us, eu), pytest.raises(ConfigError, match=says):
        call(us, eu)


def test_two_sound_replicas_are_left_alone() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us)
        sync(us, eu)
        done = mend(us, eu)
        assert done.holds and not done.mended and not done.settled
        assert verify([LocalSide(us), LocalSide(eu)]).holds
        with StateView(us) as view:
            assert view.moment.vv == us.vv()
