"""Comparing replicas: every damage is found, and nothing else is called damage, whatever is written meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from crdtkv.audit import Certificate, LocalSide, comparing, sides, verify
from crdtkv.audit.comparing import LEAF_RECORDS, PART_RECORDS, differing
from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.codec import SLOT_SPACE, encode_value, successor
from crdtkv.errors import ConfigError, DeadlineExceededError, RegionRemovedError, WrongClusterError
from crdtkv.store import Settings, Store
from crdtkv.store.view import StateView, frames, records
from tests.stores import stores, sync


def fill(store: Store, keys: int = 50) -> None:
    for n in range(keys):
        store.put(f"k/{n:04}", f"value {n}")
    store.set("tags").add("a", "b", 3)
    store.map("user").put("name", "Ada")
    store.counter("hits").increment(5)


def damage(store: Store, slot: bytes, record: bytes | None) -> None:
    """What a bit flip or a lost block does: the engine's record changes behind the replica's back."""
    store.digest()  # folds
    store._machine.engine.write({slot: record})


def slots(store: Store) -> dict[bytes, bytes]:
    with StateView(store) as view:
        return dict(records(view))


def flipped(record: bytes) -> bytes:
    """One bit of the last byte but one: inside a value, a stamp or a number."""
    at = len(record) - 2
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]


def check(*replicas: Store) -> Certificate:
    return verify([LocalSide(store) for store in replicas], wait_s=0.2)


def test_equal_replicas_get_a_certificate_that_names_regions_vector_and_digest() -> None:
    with stores("us", "eu", "ap") as three:
        for store in three:
            fill(store)
        sync(*three)
        found = check(*three)
        assert found.holds and found.at_one_vector
        assert [s.region for s in found.standings] == ["us", "eu", "ap"]
        assert {s.digest() for s in three} == {found.digest} == {s.scanned for s in found.standings}
        assert found.vv == three[0].vv()


KINDS: list[tuple[str, bytes]] = [("register", b"k/0007"), ("set", b"tags"), ("map", b"user"), ("counter", b"hits")]


@pytest.mark.parametrize(("kind", "key"), KINDS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("harm", ["flip", "drop"])
def test_a_flipped_or_missing_record_is_found_whichever_replica_has_it(kind: str, key: bytes, which: int, harm: str) -> None:
    with stores("us", "eu") as pair:
        for store in pair:
            fill(store)
        sync(*pair)
        slot, record = next(item for item in slots(pair[which]).items() if item[0].startswith(SLOT_SPACE + key + b"\x00"))
        damage(pair[which], slot, flipped(record) if harm == "flip" else None)
        found = check(*pair)
        assert not found.holds
        assert [d.slot for d in found.differences] == [slot] and found.count == 1
        assert kind in found.differences[0].text and key.decode() in found.differences[0].text
        assert [s.region for s in found.unsound] == [pair[which].region]


def test_an_extra_record_that_was_superseded_is_found() -> None:
    with stores("us", "eu") as (us, eu):
        us.put("gone", 1)
        slot, record = next(iter(slots(us).items()))
        us.delete("gone")
        fill(us)
        sync(us, eu)
        damage(eu, slot, record)
        assert [d.slot for d in check(us, eu).differences] == [slot]
        assert [d.slot for d in check(eu, us).differences] == [slot]


def test_what_only_one_replica_has_seen_is_no_difference() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us)
        sync(us, eu)
        eu.put("k/0001", "newer")
        eu.delete("k/0002")
        eu.set("tags").clear()
        eu.counter("hits").reset()
        eu.counter("hits").increment()
        with StateView(us) as lower, StateView(eu) as upper:
            assert len(list(differing(lower, upper))) >= 6
        with pytest.raises(DeadlineExceededError, match="us lacks 5 commits"):
            check(us, eu)  # it waits for the second view of us


def test_a_region_that_was_removed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was waited for to the end, and then one was told to look at its links and to try again, which never helps."""
    monkeypatch.setattr(sides, "REMOVED_S", 0.0)
    with stores("us", "eu") as (us, eu):
        eu.put("k", 1)
        us.refuse_writes("us was removed from the cluster: export what it wrote")
        with pytest.raises(RegionRemovedError, match=r"^us lacks 1 commit that another region has, and gets none .* us was removed"):
            verify([LocalSide(eu), LocalSide(us)], wait_s=3600.0)
        assert eu.removed == "" and us.removed.startswith("us was removed")
        sync(us, eu)
        assert check(us, eu).holds, "one that lacks nothing can be compared"


def test_who_is_waited_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "TELL_S", 0.0)
    with stores("us", "eu") as (us, eu):
        eu.put("k", 1)
        told: list[str] = []

        def tell(line: str) -> None:
            told.append(line)
            sync(us, eu)

        assert verify([LocalSide(eu), LocalSide(us)], wait_s=60.0, tell=tell).holds
        assert told == ["waits up to 60 s for us to get what it lacks: 1 commit"]


def busy(store: Store, stop: threading.Event, others: list[Store]) -> None:
    """Writes without a pause, and replicates both ways: the vectors are never equal."""
    n = 0
    while not stop.is_set():
        n += 1
        for at, each in enumerate([store, *others]):
            each.put(f"k/{n * (at + 1) % 300:04}", n)
            each.set("tags").add(n % 7)
            each.set("tags").discard((n + 1) % 7)
            each.counter("hits").increment()
            if n % 10 == 0:
                each.counter("hits").reset()
                each.delete(f"k/{n % 300:04}")
        for other in others:
            other.merge(store.delta_since(other.vv()))
            store.merge(other.delta_since(store.vv()))


def while_written(us: Store, eu: Store, what: Callable[[], Certificate]) -> Certificate:
    stop = threading.Event()
    writer = threading.Thread(target=busy, args=(us, stop, [eu]))
    writer.start()
    try:
        return what()
    finally:
        stop.set()
        writer.join()


def test_under_constant_writes_healthy_replicas_agree_and_a_damaged_slot_is_found() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us, 300)
        for n in range(300):
            us.put(f"still/{n:04}", n)
        sync(us, eu)
        sides = [LocalSide(us), LocalSide(eu)]
        for _ in range(5):
            found = while_written(us, eu, lambda: verify(sides))
            assert found.holds, found.differences
        slot, record = next(item for item in slots(eu).items() if item[0].startswith(SLOT_SPACE + b"still/0123"))
        for harm in (flipped(record), None):
            damage(eu, slot, harm)
            for order in (sides, sides[::-1]):
                found = while_written(us, eu, lambda order=order: verify(order))
                assert [d.slot for d in found.differences] == [slot]
                assert [s.region for s in found.unsound] == ["eu"]


def test_the_descent_reads_what_differs_and_not_what_is_held() -> None:
    with stores("us", "eu") as (us, eu):
        with us.batch() as b:
            for n in range(3 * PART_RECORDS):
                b.put(f"k/{n:06}", n)
        sync(us, eu)
        damage(eu, next(s for s in slots(eu) if b"k/007000" in s), None)
        with StateView(us) as lower, StateView(eu) as upper:
            read = 0
            page = lower.page

            def counted(*args: object) -> object:
                nonlocal read
                found = page(*args)  # type: ignore[arg-type]
                read += len(found[0]) // 2
                return found

            lower.page = counted  # type: ignore[method-assign, assignment]
            assert len(list(differing(lower, upper))) == 1
        assert 0 < read <= 2 * LEAF_RECORDS


@pytest.mark.parametrize("empty", [0, 1])
def test_a_replica_that_lost_everything_differs_in_every_slot_and_the_list_is_bounded(empty: int) -> None:
    with stores("us", "eu") as pair:
        fill(pair[0], 1000)
        sync(*pair)
        lost = pair[empty]
        everything = slots(lost)
        lost.digest()
        lost._machine.engine.write(dict.fromkeys(everything))
        found = verify([LocalSide(store) for store in pair], differences_max=10)
        assert found.count == len(everything) and len(found.differences) == 10


def test_the_parts_of_a_view_cover_it_and_add_up_to_the_replicas_digest() -> None:
    with stores("us") as (us,):
        fill(us, 1000)
        us.counter("hits").reset()  # a run that is not live counts for nothing
        with StateView(us) as view:
            start, parts = SLOT_SPACE, []
            while start < successor(SLOT_SPACE):
                step = view.parts(start, successor(SLOT_SPACE), 7)
                assert step == view.digests(start, [part.end for part in step])
                parts += step
                start = parts[-1].end
        assert sum(part.digest for part in parts) % (1 << 128) == int(us.digest(), 16)
        assert sum(part.slots for part in parts) == len(slots(us))


def test_a_view_does_not_move_and_shows_no_entry_that_a_clear_in_progress_covers() -> None:
    with stores("us", settings=Settings(clear_at_once_max=3, purge_slots=2)) as (us,):
        us.set("s").add(*range(50))
        us.set("s").clear()
        with StateView(us) as view:
            us.put("later", 1)
            assert dict(records(view)) == {}
            assert view.moment.vv == VersionVector({us.origin: us.vv().seq(us.origin) - 1})
            found = frames(view, EMPTY_VV)
            assert found is not None and len(list(found)) == view.moment.position


def test_replicas_of_two_clusters_and_a_replica_named_twice_are_refused() -> None:
    with stores("us") as (us,), stores("eu", settings=Settings(cluster="other")) as (eu,):
        with pytest.raises(WrongClusterError, match="'other'"):
            check(us, eu)
        with pytest.raises(ConfigError, match="named twice"):
            check(us, us)


def test_a_slot_that_is_no_slot_is_told_in_hex() -> None:
    with stores("us", "eu") as (us, eu):
        fill(us, 3)
        sync(us, eu)
        damage(eu, b"d\xff\xfe", encode_value(1))
        (found,) = check(us, eu).differences
        assert found.text == "slot 64fffe" and found.damaged == "eu"


def test_one_replica_alone_is_compared_with_the_digest_that_it_keeps() -> None:
    with stores("us") as (us,):
        fill(us, 3)
        assert check(us).holds
        slot, record = next(iter(slots(us).items()))
        damage(us, slot, flipped(record))
        assert not check(us).holds


def test_a_spent_run_that_one_replica_has_dropped_is_no_difference() -> None:
    with stores("us", "eu") as (us, eu):
        us.counter("hits").increment(5)
        us.counter("hits").reset()
        sync(us, eu)
        (slot,) = slots(eu)
        eu.digest()
        eu._machine.engine.write({slot: None})  # as housekeeping does once every member has seen the reset
        for order in ((us, eu), (eu, us)):
            assert check(*order).holds
