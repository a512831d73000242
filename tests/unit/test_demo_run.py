"""The demo's conduct, against regions in memory: supersede by context, delays and cuts in the event loop, no node."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from rich.console import Console

from crdtkv.core.causality import EMPTY_VV, Dot, Origin, VersionVector
from crdtkv.core.codec import encode_value
from crdtkv.demo.dataset import Airport, Dataset, load_airports, owner_of
from crdtkv.demo.findings import Findings, Geography, Place
from crdtkv.demo.narrator import Narrator
from crdtkv.demo.records import Ack, Entry, JournalEntry, Kind, Observation, Op, Slot, Write
from crdtkv.demo.run import Demo, DemoSettings
from crdtkv.demo.workload import PULSE_PREFIX
from crdtkv.results import Explanation, PeerLag, Status

NAMES = ("us", "eu", "ap")
QUICK = DemoSettings(
    airports_max=60, load_in_flight=4, pulse_hz=100, edit_hz=100, edit_s=0.4, cut_s=0.4, after_heal_s=0.2, settle_timeout_s=5
)
GEOGRAPHY = Geography(
    places=[Place("us", "washington", ""), Place("eu", "frankfurt", ""), Place("ap", "tokyo", "")],
    delays_ms={("us", "eu"): 4.0, ("us", "ap"): 8.0, ("eu", "ap"): 12.0},
    source="made up",
)


class MemoryRegion:
    """A region of the model: every slot a dict of live writes, each commit dropping those that its author had seen."""

    def __init__(self, name: str, net: MemoryNetwork) -> None:
        self.name = name
        self.origin = Origin(f"{name}@1-00000000")
        self.net = net
        self.applied = EMPTY_VV
        self.live: dict[Slot, dict[Dot, Write]] = {}
        self.removals: dict[Slot, list[Write]] = {}
        self.journal: set[JournalEntry] = set()
        self.watchers: list[asyncio.Queue[tuple[str, int]]] = []
        self.stamp = 0

    # -- the replica

    async def commit(self, ops: Sequence[Op]) -> Ack | None:
        await asyncio.sleep(0)
        if len(ops) == 1 and ops[0].kind is Kind.REMOVE and not self.live.get(ops[0].slot):
            return None
        self.stamp = max(self.stamp + 1, self.net.now_ms() << 16)
        dot = Dot(self.origin, self.applied.seq(self.origin) + 1)
        after = self.applied.advance(*dot)
        commit = [Write(self.name, "", op, dot, self.stamp, after, 0.0) for op in ops]
        self.apply(commit)
        self.net.send(self, commit)
        return Ack(dot, self.stamp, after)

    def apply(self, commit: Sequence[Write]) -> None:
        dot = commit[0].dot
        assert self.applied.seq(dot.origin) + 1 == dot.seq
        self.applied = self.applied.advance(*dot)
        self.stamp = max(self.stamp, commit[0].hlc)
        for w in commit:
            live = self.live.setdefault(w.slot, {})
            if w.op.kind is not Kind.INCREMENT:
                for seen in [d for d, old in live.items() if w.saw(d)]:
                    del live[seen]
                self._journal(w, live)
            if w.op.kind is Kind.REMOVE:
                self.removals.setdefault(w.slot, []).append(w)
            else:
                live[w.dot] = w
            if w.slot.key.startswith(PULSE_PREFIX):
                for queue in self.watchers:
                    queue.put_nowait((w.slot.key.removeprefix(PULSE_PREFIX), w.op.value))

    def _journal(self, w: Write, live: dict[Dot, Write]) -> None:
        met = list(live.values()) + [r for r in self.removals.get(w.slot, ()) if not w.saw(r.dot)]
        for other in met:
            a, b = sorted((w, other), key=lambda x: (x.op.kind is Kind.SET, x.hlc, x.dot.origin))
            if b.op.kind is Kind.SET and not (w.slot.type == "set" and a.op.kind is Kind.SET):
                self.journal.add(JournalEntry(w.slot, "greatest (hlc, origin)" if a.op.kind is Kind.SET else "add wins", b.dot, (a.dot,)))

    # -- what clients read

    async def vv(self) -> VersionVector:
        return self.applied

    async def digest(self) -> str:
        state = sorted((str(slot), sorted(str(d) for d in live)) for slot, live in self.live.items() if live)
        return hashlib.blake2b(encode_value(state), digest_size=16).hexdigest()

    async def observe(self, keys: Sequence[str] | None = None) -> Observation:
        registers: dict[str, list[Entry]] = {}
        sets: dict[str, frozenset[str]] = {}
        maps: dict[str, dict[str, object]] = {}
        counters: dict[str, int] = {}
        for slot, live in self.live.items():
            if not live or (keys is not None and slot.key not in keys):
                continue
            ordered = sorted(live.values(), key=lambda w: (w.hlc, w.dot.origin), reverse=True)
            match slot.type:
                case "register":
                    registers[slot.key] = [Entry(w.dot, w.hlc, w.op.value) for w in ordered]
                case "set":
                    sets[slot.key] = sets.get(slot.key, frozenset()) | {slot.subkey or ""}
                case "map":
                    maps.setdefault(slot.key, {})[slot.subkey or ""] = ordered[0].op.value
                case _:
                    counters[slot.key] = sum(w.op.value for w in ordered)
        values = {key: entries[0].value for key, entries in registers.items()}
        journal = sorted(self.journal, key=str)
        return Observation(self.name, self.applied, await self.digest(), registers, values, sets, maps, counters, journal)

    async def pulses(self) -> AsyncIterator[tuple[str, int]]:
        queue: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.watchers.append(queue)
        while True:
            yield await queue.get()

    async def explain(self, key: str) -> Explanation:
        return Explanation(key, True, ("register",), None, (), "the rule", self.origin)

    async def status(self) -> Status:
        peers = tuple(PeerLag(n, lag_ms=None if self.net.is_cut(self.name, n) else 1.0) for n in NAMES if n != self.name)
        return Status(self.name, self.origin, peers=peers)


class MemoryNetwork:
    """Delivers commits in order after a delay; what is sent across a cut waits for the heal."""

    def __init__(self, delay_scale: float = 0.001) -> None:
        self.regions = {name: MemoryRegion(name, self) for name in NAMES}
        self.apart: str | None = None
        self.delay_scale = delay_scale
        self.waiting: dict[tuple[str, str], list[tuple[float, Sequence[Write]]]] = {}
        self.leaks = False
        """If set, a cut cuts nothing."""

    def now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    def is_cut(self, a: str, b: str) -> bool:
        return self.apart is not None and self.apart in (a, b)

    def send(self, source: MemoryRegion, commit: Sequence[Write]) -> None:
        loop = asyncio.get_running_loop()
        for name in NAMES:
            if name != source.name:
                due = loop.time() + GEOGRAPHY.delay_ms(source.name, name) * self.delay_scale
                self.waiting.setdefault((source.name, name), []).append((due, commit))
                loop.call_at(due, self.deliver)

    def deliver(self) -> None:
        """Apply whatever is due, not cut, and causally ready."""
        now = asyncio.get_running_loop().time()
        moved = True
        while moved:
            moved = False
            for (a, b), queue in self.waiting.items():
                target = self.regions[b]
                while queue and queue[0][0] <= now + 0.001:
                    commit = queue[0][1]
                    if self.is_cut(a, b) and not self.relayed(commit[0].dot, b):
                        break
                    if not commit[0].vv.without(commit[0].dot.origin) <= target.applied:
                        break
                    queue.pop(0)
                    target.apply(commit)
                    moved = True

    def relayed(self, dot: Dot, to: str) -> bool:
        """Whether a third region that is not cut from `to` has the commit and so relays it."""
        return any(not self.is_cut(c, to) and self.regions[c].applied.covers(dot) for c in NAMES if c != to)

    async def cut(self, region: str) -> None:
        self.apart = None if self.leaks else region

    async def heal(self) -> None:
        self.apart = None
        self.deliver()


def small_dataset(n: int = 60) -> Dataset:
    zones = ("America/New_York", "Europe/Paris", "Asia/Tokyo")
    airports = []
    for i in range(n):
        zone, country = zones[i % 3], ("US", "FR", "JP")[i % 3]
        record = {"name": f"Field {i}", "country": country, "tz": zone, "elevation": float(i)}
        airports.append(Airport(f"X{i:03d}", owner_of(zone), country, zone, record))
    return Dataset("made up", "1", airports)


def conduct(network: MemoryNetwork, settings: DemoSettings = QUICK, regions: Sequence[object] | None = None) -> tuple[Findings, str]:
    out = io.StringIO()

    async def run() -> Findings:
        demo = Demo(
            regions or list(network.regions.values()),  # type: ignore[arg-type]
            network,
            GEOGRAPHY,
            small_dataset(),
            settings,
            Narrator(Console(file=out, width=160)),
        )
        return await demo.run()

    return asyncio.run(run()), out.getvalue()


class Tampered:
    """A region whose observation at rest is changed on its way to the verifier."""

    def __init__(self, region: MemoryRegion, change: Callable[[Observation], Observation]) -> None:
        self._region = region
        self._change = change
        self.name = region.name

    def __getattr__(self, name: str) -> object:
        return getattr(self._region, name)

    async def observe(self, keys: Sequence[str] | None = None) -> Observation:
        seen = await self._region.observe(keys)
        return seen if keys is not None else self._change(seen)


def test_a_sound_cluster_passes_and_every_write_is_classified() -> None:
    findings, said = conduct(MemoryNetwork())
    assert findings.ok, [v for c in findings.all_checks() for v in c.violations]
    verdict = findings.verdict
    assert verdict is not None
    assert verdict.acknowledged == len(findings.writes) > 500
    for fates in verdict.fates.values():
        assert sum(fates.values()) == len(findings.writes)
        assert fates["lost"] == 0 and fates["journal"] > 0 and fates["superseded"] > 0
    assert [p.name for p in findings.phases] == ["load", "edits", "cut", "heal", "verify"]
    assert len(findings.stories) == 6
    assert "the digests are equal" in said and "unknown" in said


def test_a_cut_that_cuts_nothing_fails_the_demo() -> None:
    network = MemoryNetwork()
    network.leaks = True
    findings, _ = conduct(network)
    assert not findings.ok
    assert next(c.name for c in findings.all_checks() if not c.ok) == "the regions differed before the heal"


def test_lag_is_at_least_the_emulated_delay_and_waits_out_the_cut() -> None:
    findings, _ = conduct(MemoryNetwork())
    edits, cut = findings.phase("edits"), findings.cut
    assert cut is not None
    for pair in findings.meter.pairs():
        lag = findings.meter.summary(pair, edits.start_s, edits.end_s)
        assert lag.samples > 10 and lag.p50_ms is not None
        assert lag.p50_ms >= GEOGRAPHY.delay_ms(*pair) - 2
    waited = findings.meter.summary(next(p for p in findings.meter.pairs() if "ap" in p), cut.start_s, cut.end_s)
    assert waited.max_ms is not None and waited.max_ms > 300
    assert all(s is not None and s >= 0 for s in cut.caught_up_s.values())


def test_one_commit_dropped_from_one_copy_fails_the_demo_and_is_named() -> None:
    network = MemoryNetwork()

    def drop(seen: Observation) -> Observation:
        key = next(k for k in sorted(seen.values) if k.startswith("airport/"))
        without = {k: v for k, v in seen.registers.items() if k != key}
        return dataclasses.replace(seen, registers=without, values={k: v for k, v in seen.values.items() if k != key})

    regions = [Tampered(r, drop) if r.name == "eu" else r for r in network.regions.values()]
    findings, said = conduct(network, regions=regions)
    assert not findings.ok
    accounted = next(c for c in findings.all_checks() if c.name == "every acknowledged write is accounted for")
    assert accounted.count == 1 and "is lost in eu" in accounted.violations[0]
    assert "is lost in eu" in said


def test_a_tampered_digest_fails_the_demo() -> None:
    network = MemoryNetwork()
    regions = [
        Tampered(r, lambda seen: dataclasses.replace(seen, digest="0" * 32)) if r.name == "us" else r for r in network.regions.values()
    ]
    findings, _ = conduct(network, regions=regions)
    assert [c.name for c in findings.all_checks() if not c.ok] == ["the digests are equal"]


def test_regions_that_never_become_equal_fail_the_demo_in_bounded_time() -> None:
    network = MemoryNetwork()

    class NeverEqual(Tampered):
        async def digest(self) -> str:
            return "f" * 32

    regions = [NeverEqual(r, lambda seen: seen) if r.name == "ap" else r for r in network.regions.values()]
    findings, _ = conduct(network, dataclasses.replace(QUICK, settle_timeout_s=0.5), regions)
    assert "the regions became equal in time" in [c.name for c in findings.all_checks() if not c.ok]


def test_a_region_that_fails_ends_the_demo_with_its_error() -> None:
    from crdtkv.errors import RegionUnavailableError

    network = MemoryNetwork()

    class Dead(Tampered):
        async def pulses(self) -> AsyncIterator[tuple[str, int]]:
            raise RegionUnavailableError("no endpoint answers")
            yield "", 0

    regions = [Dead(r, lambda seen: seen) if r.name == "us" else r for r in network.regions.values()]
    with pytest.raises(RegionUnavailableError):
        conduct(network, regions=regions)


def test_the_data_set_is_dealt_by_continent() -> None:
    pytest.importorskip("airportsdata")
    dataset = load_airports(300)
    assert len(dataset.airports) == 300 and len(dataset.hubs()) == 24
    owners = {a.code: a.owner for a in dataset.airports}
    assert (owners["KJFK"], owners["EGLL"], owners["RJTT"]) == ("us", "eu", "ap")
    assert sum(len(dataset.owned_by(r)) for r in NAMES) == 300
