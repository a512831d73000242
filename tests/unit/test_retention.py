"""What of a log goes, when, and for whom it is kept; and what goes with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import crdtkv
from crdtkv.core.causality import EMPTY_VV, VersionVector, make_origin
from crdtkv.core.types.counter import DEAD_SPACE, SPENT_RUNS_MAX
from crdtkv.errors import ConfigError, StorageError, TokenExpiredError
from crdtkv.storage.retention import Acknowledgement, Due, LogPart, RetentionPolicy, is_roll_due, what_is_due
from crdtkv.store import Settings, Store
from crdtkv.store.opening import open_machine
from tests.frames import EU, US
from tests.stores import Clock, stores, sync

HOUR = 3_600_000
POLICY = RetentionPolicy(age_ms=24 * HOUR, bytes_kept=1000, bytes_max=8000)


def parts(count: int, size: int = 100) -> list[LogPart]:
    """Parts of ten commits each, ended one hour after another."""
    return [LogPart(10 * n, VersionVector({US: 10 * n}), size, n * HOUR) for n in range(1, count + 1)]


def ack(seq: int, own: int = 0) -> Acknowledgement:
    return Acknowledgement(EU, VersionVector({US: seq, EU: own}))


APPLIED = VersionVector({US: 1000, EU: 5})


@pytest.mark.parametrize(
    ("members", "log_bytes", "now_h", "expected"),
    [
        ({}, 300, 20, Due()),  # young and small
        ({}, 300, 26, Due(20, VersionVector({US: 20}))),  # two are a day old, and nobody is waited for
        ({"eu": ack(15)}, 300, 26, Due(10, VersionVector({US: 10}), ("eu",))),
        ({"eu": None}, 300, 26, Due(0, EMPTY_VV, ("eu",))),
        ({"eu": ack(99), "ap": None}, 300, 26, Due(0, EMPTY_VV, ("ap",))),
        ({"eu": ack(99)}, 1250, 3, Due(30, VersionVector({US: 30}))),  # too large: goes, however young, until it is not
        ({"eu": ack(10)}, 1250, 3, Due(10, VersionVector({US: 10}), ("eu",))),
        ({"eu": None}, 8250, 3, Due(30, EMPTY_VV, ("eu",), ("eu",))),  # much too large: goes, whoever lacks it, until it is not
        ({"eu": ack(10)}, 8050, 3, Due(10, VersionVector({US: 10}), ("eu",))),
        ({"eu": ack(99, own=6)}, 300, 26, Due(20, EMPTY_VV)),  # it had written something by then that is not here yet
    ],
)
def test_what_is_due(members: dict[str, Acknowledgement | None], log_bytes: int, now_h: int, expected: Due) -> None:
    assert what_is_due(parts(4), log_bytes, members, APPLIED, POLICY, now_h * HOUR) == expected


def test_the_last_write_of_an_earlier_incarnation_was_on_its_way_still() -> None:
    """eu wrote, went on as another incarnation, and acknowledged a removal as that, which has written nothing: what it had written before,
    concurrently, comes by a slower way. The removal was forgotten by then, and in no journal to have lost."""
    later = make_origin("eu", 2, 0x33333333)
    acknowledged = Acknowledgement(later, VersionVector({US: 99, EU: 6}))
    assert what_is_due(parts(4), 300, {"eu": acknowledged}, APPLIED, POLICY, 26 * HOUR) == Due(20, EMPTY_VV)
    assert what_is_due(parts(4), 300, {"eu": acknowledged}, APPLIED.advance(EU, 6), POLICY, 26 * HOUR) == Due(20, VersionVector({US: 20}))


def test_what_is_written_to_is_ended_eight_times_within_the_age() -> None:
    assert not is_roll_due(0, POLICY, 3 * HOUR - 1) and is_roll_due(0, POLICY, 3 * HOUR)


SETTINGS = Settings(async_sync_ms=3_600_000, log_segment_bytes=4096, fold_records_max=64, log_keep_s=3600)


def open_at(path: Path, clock: Clock, settings: Settings = SETTINGS, engine: str = "rocksdb", region: str = "us") -> Store:
    opened = open_machine(path, region=region, engine=engine, durability="async", settings=settings, wall_ms=clock)
    return Store(opened, "async", settings, clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = open_at(tmp_path / "us", clock)
    yield store
    store.close()


def later(store: Store, clock: Clock, hours: float) -> None:
    """Housekeeping as it goes on for so long."""
    for _ in range(16):
        clock.ms += int(hours * HOUR / 16)
        store.maintain()


def fill(store: Store, count: int = 200) -> None:
    for n in range(count):
        store.put(f"k{n % 20}", "x" * 50)


def test_an_embedded_store_drops_by_age_and_the_floor_stands_when_it_is_opened_again(tmp_path: Path, clock: Clock, store: Store) -> None:
    fill(store)
    token = store.put("last", 1).token
    older = store.vv()
    later(store, clock, 0.5)
    assert store.status().log_start == 0
    later(store, clock, 3)
    status = store.status()
    assert status.log_start == status.log_end == 201  # the last segment too was ended, and went
    assert status.log_bytes < 300 and status.log_floor == older
    with pytest.raises(TokenExpiredError):
        next(store.watch(since=store_token(store, 5), timeout=0.1))
    assert list(store.watch(since=token, timeout=0.01)) == []
    digest = store.digest()
    store.close()
    with open_at(tmp_path / "us", clock) as again:
        assert again.status().log_floor == older and again.digest() == digest and again["last"] == 1
        with pytest.raises(TokenExpiredError):
            next(again.watch(since=store_token(again, 5), timeout=0.1))
        with crdtkv.open(region="eu") as other:  # served by a snapshot now, and from the log for what comes after
            other.merge(again.delta_since(other.vv()))
            again.put("new", 2)
            other.merge(again.delta_since(other.vv()))
            assert other.digest() == again.digest()


def store_token(store: Store, position: int) -> str:
    return store._watches.token(position)


def test_the_log_is_kept_for_a_member_until_it_has_it(clock: Clock, store: Store) -> None:
    store.acknowledged({"eu": None, "ap": Acknowledgement(US, VersionVector({store.origin: 10**6}))})
    fill(store)
    half = store.vv()
    fill(store)
    later(store, clock, 4)
    status = store.status()
    assert status.log_start == 0 and status.log_kept_for == ("eu",) and status.warnings == ()
    store.acknowledged({"eu": Acknowledgement(EU, half), "ap": None})  # what ap said before still holds
    later(store, clock, 0.1)
    assert 150 < store.status().log_start <= 200 and store.status().log_floor <= half
    store.acknowledged({"ap": None})  # eu was removed from the cluster
    later(store, clock, 0.1)
    assert store.status().log_start == 400 and store.status().log_kept_for == ()


def test_above_the_limit_the_log_goes_on_without_a_member(tmp_path: Path, clock: Clock) -> None:
    settings = replace(SETTINGS, log_keep_bytes=20_000, log_bytes_max=40_000)
    with open_at(tmp_path / "us", clock, settings) as store:
        store.acknowledged({"eu": None})
        fill(store, 180)
        later(store, clock, 0.1)
        assert store.status().log_start == 0 and "log_keep_bytes, for eu" in store.status().warnings[0]
        fill(store, 300)
        later(store, clock, 0.1)
        status = store.status()
        assert status.log_start > 0 and 30_000 < status.log_bytes < 40_000
        assert any("dropped what eu lacks" in warning for warning in status.warnings)
        store.acknowledged({"eu": Acknowledgement(EU, store.vv())})
        later(store, clock, 0.1)
        assert store.status().log_bytes < 20_000 and store.status().warnings == ()


def test_nothing_goes_that_the_engine_has_not_flushed(clock: Clock, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    clock.ms += 2 * HOUR
    order: list[str] = []
    log, engine = store._machine.log, store._machine.engine
    flush, truncate = engine.flush, log.truncate

    def flushing() -> None:
        assert log.synced() == log.end()  # an engine ahead of its log would look like a log that was rolled back
        order.append("flush")
        flush()

    def truncating(position: int) -> None:
        order.append("truncate")
        truncate(position)

    monkeypatch.setattr(engine, "flush", flushing)
    monkeypatch.setattr(log, "truncate", truncating)
    store.maintain()
    later(store, clock, 2)
    assert order[:2] == ["flush", "truncate"]

    def failing() -> None:
        raise StorageError("the disk failed")

    fill(store)
    start = log.start()
    monkeypatch.setattr(engine, "flush", failing)
    with pytest.raises(StorageError, match="the disk failed"):
        later(store, clock, 2)
    assert log.start() == start


def test_a_log_that_is_all_there_is_stays(tmp_path: Path, clock: Clock) -> None:
    """With engine `memory` in a directory the state is rebuilt from the whole log at each opening."""
    with open_at(tmp_path / "us", clock, engine="memory") as store:
        fill(store)
        later(store, clock, 100)
        digest = store.digest()
        assert store.status().log_start == 0
    with open_at(tmp_path / "us", clock, engine="memory") as store:
        assert store.digest() == digest


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_after_a_workload_deletes_what_it_made_disk_and_memory_return(tmp_path: Path, clock: Clock, engine: str) -> None:
    def grown(path: Path) -> int:
        files = [p for p in path.rglob("*") if p.is_file() and p.parent.name in ("log", "state") and p.name not in ("LOG", "LOG.old")]
        return sum(p.stat().st_size for p in files if p.suffix in (".log", ".sst"))

    settings = replace(SETTINGS, log_segment_bytes=1 << 16)
    with open_at(tmp_path / "us", clock, settings, engine) as store:
        store.put("kept", 1)
        for n in range(600):
            with store.batch() as batch:
                for m in range(5):
                    batch.put(f"r/{n}/{m}", "x" * 200)
                batch.set(f"s/{n}").add(*range(3))
                batch.map(f"m/{n}").put("field", "x")
                batch.counter(f"c/{n}").increment(n + 1)
        full = grown(tmp_path / "us")
        store.delete_prefix("r/"), store.delete_prefix("s/"), store.delete_prefix("m/"), store.delete_prefix("c/")
        assert len(store._replica._removals) > 1000
        later(store, clock, 4)
        records = list(store._machine.engine.scan(b"", None))
        assert len(records) < 10, records[:20]
        assert not len(store._replica._removals) and not store._replica.state.pending
        assert store.status().log_bytes < 1000
        if engine == "rocksdb":
            until = time.monotonic() + 20
            while grown(tmp_path / "us") > full / 10 and time.monotonic() < until:  # compacted in the background
                time.sleep(0.02)
            assert grown(tmp_path / "us") < full / 10
        assert dict(store.scan()) == {"kept": 1}


def dead_runs(store: Store) -> int:
    return sum(1 for _ in store._replica.state.scan(DEAD_SPACE, b"{"))


def test_a_counter_that_is_reset_often_keeps_a_few_spent_runs() -> None:
    with stores("us", "eu") as (us, eu):
        for n in range(1, 30):
            us.counter("c").increment(n)
            us.counter("c").reset()
        sync(us, eu)
        assert dead_runs(us) == dead_runs(eu) <= SPENT_RUNS_MAX
        assert len(us._replica.heads.runs(b"c")) == dead_runs(us)
        us.counter("c").increment(7)
        sync(us, eu)
        assert us.counter("c").value == eu.counter("c").value == 7


def test_a_spent_run_stays_while_its_origin_may_not_have_seen_the_reset(tmp_path: Path, clock: Clock) -> None:
    """Dropped too early, an increment that had not seen the reset would bring the whole total back."""
    with open_at(tmp_path / "us", clock) as us, crdtkv.open(region="eu") as eu:
        eu.counter("c").increment(5)
        us.merge(eu.delta_since(us.vv()))
        us.counter("c").reset()
        reset = us.vv()
        us.acknowledged({"eu": Acknowledgement(eu.origin, EMPTY_VV)})
        later(us, clock, 3)
        assert dead_runs(us) == 1
        seen = eu.vv()
        eu.counter("c").increment(2)  # has not seen the reset
        eu.merge(us.delta_since(seen))
        # eu says that it has the reset, but its increment from before is still on its way.
        us.acknowledged({"eu": Acknowledgement(eu.origin, eu.vv())})
        later(us, clock, 3)
        assert dead_runs(us) == 1
        us.merge(eu.delta_since(us.vv()))
        assert us.counter("c").value == eu.counter("c").value == 2
        us.counter("c").reset()
        eu.merge(us.delta_since(eu.vv()))
        us.acknowledged({"eu": Acknowledgement(eu.origin, eu.vv())})
        later(us, clock, 3)
        assert dead_runs(us) == 0 and reset <= us.vv()
        eu.counter("c").increment(9)
        us.merge(eu.delta_since(us.vv()))
        assert us.counter("c").value == eu.counter("c").value == 9
        assert us.digest() == eu.digest()


def test_request_ids_are_forgotten_by_age_although_nothing_new_comes(clock: Clock, store: Store) -> None:
    store.execute([[1, "put", ["k", b"\x01"], {"rid": b"one"}]])
    assert store._replica.request(b"one") is not None
    store._machine.fold()
    clock.ms += 599_000
    store.maintain()
    assert store._replica.request(b"one") is not None
    clock.ms += 2_000
    store.maintain()
    assert store._replica.request(b"one") is None


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="log_keep_bytes"):
        Settings(log_keep_bytes=100, log_bytes_max=99).validate()
