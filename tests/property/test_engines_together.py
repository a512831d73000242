"""The three state engines driven side by side, against a plain dict copied for each snapshot: the naive twin of them all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from crdtkv.storage.engine import EngineSnapshot, MemoryEngine, StateEngine
from crdtkv.storage.lmdb import LmdbEngine
from crdtkv.storage.rocksdb import RocksDbEngine

# Keys that are prefixes of one another, and long ones around the limits of LMDB's keys and of its nodes' steps.
_stems = st.sampled_from([b"", b"a", b"a" * 509, b"a" * 510, b"a" * 511, b"a" * 1012, b"a" * 1013, b"b" * 1600])
_ends = st.sampled_from([b"", b"\0", b"\1", b"\2", b"a", b"b", b"\xff", b"\xff\xff"])
keys = st.builds(lambda stem, end: stem + end, _stems, _ends).filter(bool)
bounds = keys | st.just(b"")
values = st.binary(max_size=4)
batches = st.dictionaries(keys, values | st.none(), max_size=6)

View = tuple[dict[bytes, bytes], list[EngineSnapshot]]
Scan = tuple[list[tuple[bytes, bytes]], list[Iterator[tuple[bytes, bytes]]]]


def expected_scan(state: dict[bytes, bytes], start: bytes, end: bytes | None, reverse: bool) -> list[tuple[bytes, bytes]]:
    return sorted(((k, v) for k, v in state.items() if start <= k and (end is None or k < end)), reverse=reverse)


class EnginesTogether(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")
    scans = Bundle("scans")

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="crdtkv-engines-"))
        self.state: dict[bytes, bytes] = {}
        self.memory = MemoryEngine()
        self.durable: list[RocksDbEngine | LmdbEngine] = [RocksDbEngine(self.directory / "rocksdb"), LmdbEngine(self.directory / "lmdb")]

    @property
    def engines(self) -> list[StateEngine]:
        return [self.memory, *self.durable]

    @rule(batch=batches)
    def write(self, batch: dict[bytes, bytes | None]) -> None:
        for key, value in batch.items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value
        for engine in self.engines:
            engine.write(batch)

    @rule(some=st.lists(keys, max_size=5))
    def get(self, some: list[bytes]) -> None:
        expected = [self.state.get(key) for key in some]
        for engine in self.engines:
            assert engine.multi_get(some) == expected
            assert [engine.get(key) for key in some] == expected

    @rule(start=bounds, end=bounds | st.none(), reverse=st.booleans())
    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> None:
        expected = expected_scan(self.state, start, end, reverse)
        for engine in self.engines:
            assert list(engine.scan(start, end, reverse=reverse)) == expected

    @rule(target=scans, start=bounds, end=bounds | st.none(), reverse=st.booleans())
    def begin_scan(self, start: bytes, end: bytes | None, reverse: bool) -> Scan:
        return expected_scan(self.state, start, end, reverse), [engine.scan(start, end, reverse=reverse) for engine in self.engines]

    @rule(scan=consumes(scans))
    def finish_scan(self, scan: Scan) -> None:
        expected, iterators = scan
        for iterator in iterators:
            assert list(iterator) == expected

    @rule(target=snapshots)
    def take_snapshot(self) -> View:
        return dict(self.state), [engine.snapshot() for engine in self.engines]

    @rule(view=snapshots, some=st.lists(keys, max_size=5), start=bounds, end=bounds | st.none(), reverse=st.booleans())
    def read_snapshot(self, view: View, some: list[bytes], start: bytes, end: bytes | None, reverse: bool) -> None:
        state, snapshots = view
        for snapshot in snapshots:
            assert snapshot.multi_get(some) == [state.get(key) for key in some]
            assert list(snapshot.scan(start, end, reverse=reverse)) == expected_scan(state, start, end, reverse)

    @rule(view=consumes(snapshots))
    def close_snapshot(self, view: View) -> None:
        for snapshot in view[1]:
            snapshot.close()

    @rule()
    def flush(self) -> None:
        for engine in self.engines:
            engine.flush()

    @invariant()
    def index_is_sound(self) -> None:
        self.memory._check()

    def teardown(self) -> None:
        try:
            for engine in self.engines:
                assert dict(engine.scan(b"", None)) == self.state
                engine.close()
            for kind, closed in zip((RocksDbEngine, LmdbEngine), self.durable, strict=True):
                again = kind(closed.path)
                # RocksDB writes nothing out on closing; what it has is a prefix of the batches, which flush makes all of them.
                assert kind is RocksDbEngine or dict(again.scan(b"", None)) == self.state
                again.close()
        finally:
            shutil.rmtree(self.directory)


TestEnginesTogether = EnginesTogether.TestCase
TestEnginesTogether.settings = settings(max_examples=40, stateful_step_count=40)
