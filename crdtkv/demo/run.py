"""Conducts the demo: load, edit, cut, write on all sides, prove the cut, heal, settle, verify.

It talks to regions only through `regions.Region` and `regions.Network`, keeps every acknowledged write as it comes, and
leaves judging to `verifier` and telling to `report`.

Order that matters: the cut is proved with all writers paused and the connected regions equal, so that what differs
cannot be merely on its way; and regions are observed for the verdict only after they have settled, or failed to.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from crdtkv.core.causality import EMPTY_VV, Dot, VersionVector
from crdtkv.demo.dataset import Airport, Dataset
from crdtkv.demo.findings import Clash, Cut, Findings, Geography, Phase, Story
from crdtkv.demo.narrator import Narrator
from crdtkv.demo.records import JournalEntry, Kind, Observation, Op, Slot, Write
from crdtkv.demo.regions import Network, Region
from crdtkv.demo.verifier import Check, Verdict, describe, prove_cut, short, verify
from crdtkv.demo.workload import Editor, StagedConflict, load_commit, pulse, staged_conflicts
from crdtkv.errors import DeadlineExceededError
from crdtkv.instruments.lag import LagMeter
from crdtkv.instruments.tasks import background

_POLL_S = 0.05
_PULSES_IN_FLIGHT_MAX = 64
_IN_FLIGHT_S = 0.2
_STAGED = 6


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How much the demo does. The defaults take well under 90 s on two cores; tests use less.

    Attributes:
        airports_max: load only so many airports; None: all.
        load_in_flight: commits of the load that wait for their answer at once, per region.
        pulse_hz, edit_hz: per region: writes that measure lag, and edits that collide.
        edit_s, cut_s, after_heal_s: how long everybody writes connected, cut, and healed.
        settle_timeout_s: how long the regions may take to become equal before the demo fails.
    """

    seed: int = 1
    airports_max: int | None = None
    load_in_flight: int = 512
    pulse_hz: float = 25.0
    edit_hz: float = 30.0
    contested: int = 60
    edit_s: float = 10.0
    cut_region: str = "ap"
    cut_s: float = 8.0
    after_heal_s: float = 4.0
    settle_timeout_s: float = 30.0


class Demo:
    """One run.

    Args:
        regions: the regions, in the order of the report.
        now_s: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        network: Network,
        geography: Geography,
        dataset: Dataset,
        settings: DemoSettings,
        narrator: Narrator,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._regions = {r.name: r for r in regions}
        self._network = network
        self._geography = geography
        self._dataset = dataset
        self._settings = settings
        self._tell = narrator
        self._clock = now_s
        self._began = now_s()
        self._meter = LagMeter(list(self._regions))
        self._phase = "prepare"
        self._writing = asyncio.Event()
        """Set while pulses and edits are to be written."""
        self._idle: dict[str, asyncio.Event] = {}
        """Per writer: set while it has nothing in flight."""
        self._last: dict[str, VersionVector] = dict.fromkeys(self._regions, EMPTY_VV)
        """Region → a vector that covers its acknowledged commits."""
        self.findings = Findings(
            started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=settings.seed,
            geography=geography,
            dataset=_describe_dataset(dataset, list(self._regions)),
            meter=self._meter,
        )
        hubs = dataset.hubs()
        rest = [a for a in dataset.airports if a not in hubs]
        self._staged_airports = (hubs + rest)[:_STAGED]
        # A stride through the codes, so that the contested airports are of many countries.
        contested = [*hubs[_STAGED:], *rest[:: max(1, len(rest) // max(1, settings.contested - len(hubs)))]]
        self._contested = [a for a in contested if a not in self._staged_airports][: settings.contested]

    def now_s(self) -> float:
        """Seconds since the demo began."""
        return self._clock() - self._began

    async def run(self) -> Findings:
        """Do all of it. Raises only if it could not be done; what was found wanting is in the findings."""
        staged = self._stage()
        async with background() as start:
            for region in self._regions.values():
                start(self._watch(region))
            for name in self._regions:
                start(self._pulse(name))
            with self._begin("load", "Load: every airport through the region that owns its continent"):
                self._writing.set()
                await self._load()
                await self._prepare(staged)
            for name in self._regions:
                start(self._edit(name))
            with self._begin("edits", "Conflict: all regions edit the same airports at once"):
                await self._pass_time("editing", self._settings.edit_s)
            with self._begin("cut", f"Cut: {self._settings.cut_region} is cut off, and all sides go on writing"):
                await self._cut(staged)
            with self._begin("heal", "Heal: the links are back, writing goes on, then everything settles"):
                await self._heal()
        with self._begin("verify", "Verify: every acknowledged write, in every region, by client reads"):
            await self._verify(staged)
        self.findings.duration_s = self.now_s()
        return self.findings

    # -- writing ----------------------------------------------------------------------------------------------

    async def _commit(self, region: str, ops: Sequence[Op]) -> Dot | None:
        """Commit and remember what was acknowledged."""
        ack = await self._regions[region].commit(ops)
        if ack is None:
            return None
        now = self.now_s()
        self.findings.writes += [Write(region, self._phase, op, ack.dot, ack.hlc, ack.vv, now) for op in ops]
        self._last[region] = self._last[region].advance(ack.dot.origin, ack.dot.seq)
        return ack.dot

    async def _load(self) -> None:
        """Load the data set through all regions at once."""
        total, done = len(self._dataset.airports), 0
        began = self.now_s()

        async def worker(region: str, airports: Iterator[Airport]) -> None:
            nonlocal done
            for airport in airports:
                await self._commit(region, load_commit(airport))
                done += 1

        with self._tell.progress("airports", total) as update:
            async with asyncio.TaskGroup() as group:
                loaders = []
                for name in self._regions:
                    airports = iter(self._dataset.owned_by(name))
                    loaders += [group.create_task(worker(name, airports)) for _ in range(self._settings.load_in_flight)]
                while not all(t.done() for t in loaders):
                    update(done)
                    await asyncio.wait(loaders, timeout=0.2)
        took = self.now_s() - began
        writes = len(self.findings.writes)
        self._tell.good(f"{done:,} airports acknowledged in {took:.1f} s: {writes:,} writes, {done / took:,.0f} commits/s over all regions")
        await self._wait_covered(list(self._regions), "the load")
        self._tell.good(f"everywhere after {self.now_s() - began:.1f} s")

    def _stage(self) -> list[StagedConflict]:
        inside = self._settings.cut_region
        return staged_conflicts(self._staged_airports, inside, [r for r in self._regions if r != inside])

    async def _prepare(self, staged: Sequence[StagedConflict]) -> None:
        """See that what the staged conflicts remove is there, in all regions."""
        first = next(iter(self._regions))
        for conflict in staged:
            for _, ops in conflict.commits:
                for kind, slot, _ in ops:
                    if kind is Kind.REMOVE and slot.type == "set":
                        await self._commit(first, [Op(Kind.SET, slot)])
        await self._wait_covered(list(self._regions), "the preparation of the cut")

    async def _pulse(self, region: str) -> None:
        """Write pulses at their due times, whether or not the earlier ones are answered."""
        idle = self._idle[f"pulse {region}"] = asyncio.Event()
        idle.set()
        room = asyncio.Semaphore(_PULSES_IN_FLIGHT_MAX)
        flying = 0

        async def one(number: int) -> None:
            nonlocal flying
            try:
                dot = await self._commit(region, [pulse(region, number)])
                assert dot is not None, "a put is always a commit"
                self._meter.acknowledged(region, number, dot.seq)
            finally:
                flying -= 1
                room.release()
                if not flying:
                    idle.set()

        async with asyncio.TaskGroup() as flights:
            async for due in self._ticks(self._settings.pulse_hz):
                number = self._meter.due(region, due)
                idle.clear()
                flying += 1
                await room.acquire()
                flights.create_task(one(number))

    async def _edit(self, region: str) -> None:
        """Edit contested airports at a steady rate."""
        idle = self._idle[f"edit {region}"] = asyncio.Event()
        idle.set()
        editor = Editor(region, self._contested, self._settings.seed)
        async for _ in self._ticks(self._settings.edit_hz):
            idle.clear()
            try:
                await self._commit(region, next(editor))
            finally:
                idle.set()

    async def _ticks(self, hz: float) -> AsyncIterator[float]:
        """Due times at a steady rate while writing is on; after a pause the schedule starts anew."""
        while True:
            await self._writing.wait()
            start, n = self.now_s(), 0
            while self._writing.is_set():
                due = start + n / hz
                if (early := due - self.now_s()) > 0:
                    await asyncio.sleep(early)
                if self._writing.is_set():
                    yield due
                n += 1

    async def _pause(self) -> None:
        """Stop pulses and edits, and wait until everything sent is answered."""
        self._writing.clear()
        for idle in self._idle.values():
            await idle.wait()

    async def _watch(self, region: Region) -> None:
        """Note every pulse as a watcher in this region sees it."""
        async for source, number in region.pulses():
            self._meter.seen(source, region.name, number, self.now_s())

    # -- the phases -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _begin(self, name: str, title: str) -> Iterator[None]:
        self._phase = name
        self._tell.phase(title)
        phase = Phase(name, title, self.now_s())
        self.findings.phases.append(phase)
        yield
        phase.end_s = self.now_s()

    async def _pass_time(self, label: str, seconds: float) -> None:
        start, before = self.now_s(), len(self.findings.writes)
        with self._tell.progress(f"{label}, seconds", math.ceil(seconds)) as update:
            while (spent := self.now_s() - start) < seconds:
                update(int(spent))
                await asyncio.sleep(min(0.1, seconds - spent))
        self._tell.good(f"{len(self.findings.writes) - before:,} writes acknowledged in {seconds:.0f} s in {len(self._regions)} regions")
        if self._phase == "edits":
            self._tell_lag(start)

    def _tell_lag(self, since_s: float) -> None:
        rows = []
        for pair in self._meter.pairs():
            lag = self._meter.summary(pair, since_s, self.now_s())
            figures = [f"{x:.1f}" if x is not None else "unknown" for x in (lag.p50_ms, lag.p99_ms, lag.max_ms)]
            rows.append([f"   {pair}", f"{self._geography.delay_ms(*pair):.0f}", *figures, f"{lag.samples:,}"])
        self._tell.say("lag in ms, from when a write was due until a watcher saw it:")
        self._tell.table(["   pair", "emulated", "p50", "p99", "max", "writes"], rows)

    async def _cut(self, staged: Sequence[StagedConflict]) -> None:
        inside = self._settings.cut_region
        others = [r for r in self._regions if r != inside]
        # What was written last in the phase before is to arrive, or the cut would count among its lags.
        await self._let_arrive()
        await self._network.cut(inside)
        start = self.now_s()
        self._tell.say(f"{inside} is cut off from {' and '.join(others)}; nobody sees what the others do now:")
        for conflict in staged:
            self._tell.say(f"• {conflict.title}")
            for region, ops in conflict.commits:
                await self._commit(region, ops)
        await self._pass_time("writing on both sides", self._settings.cut_s)
        reported = await self._reported_lag(inside)
        await self._pause()
        # What is merely on its way must not pass for what was cut off.
        await self._let_arrive()
        await self._wait_covered(others, "the connected regions", of=others)
        keys = sorted({c.key for c in staged})
        seen = [await region.observe(keys) for region in self._regions.values()]
        proof = prove_cut(inside, "cut", self.findings.writes, seen)
        for here in seen:
            self._tell.say(f"digest in {here.region}: {here.digest}")
        self._tell.check(proof.check.ok, f"{proof.check.name}: {proof.check.detail}")
        for what in proof.check.violations:
            self._tell.bad(what)
        self._tell_lag_unknown(reported)
        self.findings.checks += [proof.check, _check_reported_lag(reported)]
        self.findings.cut = Cut(
            region=inside,
            start_s=start,
            end_s=self.now_s(),
            digests={o.region: o.digest for o in seen},
            vvs={o.region: str(o.vv) for o in seen},
            proof=proof,
            reported_lag_ms=reported,
        )

    async def _let_arrive(self) -> None:
        """Wait for as long as a commit may be on its way over links that work."""
        await asyncio.sleep(_IN_FLIGHT_S + 2 * max(self._geography.delays_ms.values(), default=0.0) / 1000)

    async def _reported_lag(self, inside: str) -> dict[tuple[str, str], float | None]:
        """What the nodes themselves say about lag across the cut."""
        reported: dict[tuple[str, str], float | None] = {}
        for name, region in self._regions.items():
            for peer in (await region.status()).peers:
                if peer.region in self._regions and inside in (name, peer.region):
                    reported[name, peer.region] = peer.lag_ms
        return reported

    def _tell_lag_unknown(self, reported: dict[tuple[str, str], float | None]) -> None:
        said = ", ".join(f"{of}→{at} {'unknown' if lag is None else f'{lag:.0f} ms'}" for (at, of), lag in sorted(reported.items()))
        if said:
            self._tell.say(f"lag across the cut as the nodes report it: {said}")

    async def _heal(self) -> None:
        cut = self.findings.cut
        assert cut is not None
        await self._network.heal()
        cut.end_s = self.now_s()
        self._writing.set()
        across = [p for p in self._meter.pairs() if cut.region in p]
        deadline = cut.end_s + self._settings.settle_timeout_s
        while self.now_s() < deadline:
            if self.now_s() - cut.end_s >= self._settings.after_heal_s and all(
                self._meter.caught_up_s(p, cut.end_s) is not None for p in across
            ):
                break
            await asyncio.sleep(_POLL_S)
        for pair in across:
            at = self._meter.caught_up_s(pair, cut.end_s)
            cut.caught_up_s[pair] = None if at is None else at - cut.end_s
        slowest = max((s for s in cut.caught_up_s.values() if s is not None), default=None)
        missed = [str(p) for p, s in cut.caught_up_s.items() if s is None]
        if missed:
            self._tell.bad(f"not caught up: {', '.join(missed)}")
        elif slowest is not None:
            self._tell.good(f"everything written before the heal was visible everywhere {slowest * 1000:,.0f} ms after it")
        await self._pause()
        await self._settle()

    async def _settle(self) -> None:
        """Wait until all version vectors cover everything and equal each other, and the digests too."""
        check = Check("the regions became equal in time")
        start = self.now_s()
        deadline = start + self._settings.settle_timeout_s
        while True:
            vvs = [await r.vv() for r in self._regions.values()]
            digests = [await r.digest() for r in self._regions.values()]
            if all(v == vvs[0] and v.covers(self._everything()) for v in vvs) and len(set(digests)) == 1:
                self.findings.settled_s = self.now_s() - start
                check.detail = f"{self.findings.settled_s * 1000:,.0f} ms after the last write"
                self._tell.good(f"version vectors and digests equal {check.detail}: {digests[0]}")
                break
            if self.now_s() > deadline:
                check.detail = f"within {self._settings.settle_timeout_s:.0f} s of the last write"
                check.fail("; ".join(f"{name}: digest {d}, {v}" for name, d, v in zip(self._regions, digests, vvs, strict=True)))
                self._tell.bad(f"not {check.detail}")
                break
            await asyncio.sleep(_POLL_S)
        self.findings.checks.append(check)

    def _everything(self, of: Sequence[str] | None = None) -> VersionVector:
        vv = EMPTY_VV
        for region in of or self._regions:
            vv = vv.join(self._last[region])
        return vv

    async def _wait_covered(self, regions: Sequence[str], what: str, of: Sequence[str] | None = None) -> None:
        """Wait until these regions have what was acknowledged up to now in `of` (default: everywhere).

        Raises:
            DeadlineExceededError: they did not in time.
        """
        must = self._everything(of)
        deadline = self.now_s() + self._settings.settle_timeout_s
        lacking = list(regions)
        while lacking:
            lacking = [r for r in lacking if not (await self._regions[r].vv()).covers(must)]
            if lacking and self.now_s() > deadline:
                raise DeadlineExceededError(
                    f"{what}: not everywhere within {self._settings.settle_timeout_s:.0f} s; {', '.join(lacking)} lacks commits",
                    regions=lacking,
                )
            if lacking:
                await asyncio.sleep(_POLL_S)

    async def _verify(self, staged: Sequence[StagedConflict]) -> None:
        observations = []
        with self._tell.progress("regions read", len(self._regions)) as update:
            for done, region in enumerate(self._regions.values()):
                update(done)
                observations.append(await region.observe())
        self.findings.observations = observations
        verdict = self.findings.verdict = verify(self.findings.writes, observations)
        self.findings.clashes = clashes(self.findings.writes, observations, {s.key for s in staged})
        self._tell_fates(verdict)
        for check in verdict.checks:
            self._tell.check(check.ok, f"{check.name}: {check.detail}")
            for what in check.violations[:5]:
                self._tell.bad(what)
        teller = self._regions[self._settings.cut_region]
        for conflict in staged:
            explanation = await teller.explain(conflict.key)
            slot = conflict.commits[-1][1][-1].slot
            self.findings.stories.append(Story(conflict.title, conflict.key, _outcome(slot, observations), str(explanation)))
        self._tell_stories()

    def _tell_fates(self, verdict: Verdict) -> None:
        rows = [[f"   {r}", *(f"{n:,}" for n in fates.values()), f"{sum(fates.values()):,}"] for r, fates in verdict.fates.items()]
        self._tell.say("what became of every acknowledged write:")
        self._tell.table(["   region", "visible", "superseded", "journal", "lost", "sum"], rows)

    def _tell_stories(self) -> None:
        self._tell.say("how the staged conflicts ended:")
        for story in self.findings.stories:
            self._tell.say(f"• {story.title}: {story.outcome}")
        for story in self.findings.stories:
            if story.key.startswith("status/"):  # short values make the most readable story
                self._tell.say(f"`crdtkv explain {story.key}` tells why:")
                self._tell.block(story.explanation)
        beaten = [c for c in self.findings.clashes if c.entry.slot.type == "set" and c.winner is not None and any(w for _, w in c.losers)]
        others = [c for c in self.findings.clashes if c.entry.slot.type != "set"]
        self._tell.say(
            f"{len(self.findings.clashes):,} conflicts in the journals; {len(beaten):,} of them adds that beat a concurrent remove:"
        )
        for clash in [*beaten[:3], *others[:3]]:
            self._tell.say(f"• {clash_text(clash)}")


def clashes(writes: Sequence[Write], observations: Sequence[Observation], staged: set[str]) -> list[Clash]:
    """The conflicts of all journals, each once, the staged ones first, then in order of their stamps."""
    by_place = {(w.slot, w.dot): w for w in writes}
    found: dict[JournalEntry, list[str]] = defaultdict(list)
    for seen in observations:
        for entry in seen.journal:
            normal = entry._replace(losers=tuple(sorted(entry.losers)))
            if seen.region not in found[normal]:
                found[normal].append(seen.region)
    out = []
    for entry, regions in found.items():
        winner = by_place.get((entry.slot, entry.winner)) if entry.winner else None
        losers = [(dot, by_place.get((entry.slot, dot))) for dot in entry.losers]
        out.append(Clash(entry, regions, winner, losers, entry.slot.key in staged))
    return sorted(
        out, key=lambda c: (not c.staged, max([w.hlc for w in (c.winner, *(x for _, x in c.losers)) if w], default=0), c.entry.slot[:2])
    )


def clash_text(clash: Clash) -> str:
    """A conflict in one line: who won against whom, and why."""
    won = describe(clash.winner) if clash.winner else (f"commit {clash.entry.winner}" if clash.entry.winner else "nothing")
    lost = " and ".join(describe(w) if w else f"commit {dot}" for dot, w in clash.losers)
    return f"{clash.entry.slot}: {won} won against {lost}; rule: {clash.entry.rule}"


def _outcome(slot: Slot, observations: Sequence[Observation]) -> str:
    """What all regions read at a slot in the end; each region's reading if they differ."""
    readings: dict[str, str] = {}
    for seen in observations:
        match slot.type:
            case "register":
                value = seen.values.get(slot.key)
                text = "absent" if value is None else f"reads {short(value)}"
            case "map":
                text = f"reads {short(seen.maps.get(slot.key, {}).get(slot.subkey or '', 'absent'))}"
            case "set":
                text = f"{slot.subkey} is {'in' if slot.subkey in seen.sets.get(slot.key, ()) else 'not in'} the set"
            case _:
                text = f"the counter reads {seen.counters.get(slot.key, 0)}"
        readings[seen.region] = text
    if len(set(readings.values())) == 1:
        return f"{next(iter(readings.values()))}, in all regions"
    return "; ".join(f"{region}: {text}" for region, text in readings.items())


def _check_reported_lag(reported: dict[tuple[str, str], float | None]) -> Check:
    check = Check("lag across the cut is reported as unknown", "never zero, never a figure that looks healthy")
    for (at, of), lag in reported.items():
        if lag is not None:
            check.fail(f"{at} reports {lag:.0f} ms behind {of}, from which it is cut off")
    return check


def _describe_dataset(dataset: Dataset, regions: Sequence[str]) -> dict[str, object]:
    return {
        "name": dataset.name,
        "version": dataset.version,
        "airports": len(dataset.airports),
        "countries": len({a.country for a in dataset.airports}),
        "time_zones": len({a.zone for a in dataset.airports}),
        "per_region": {r: len(dataset.owned_by(r)) for r in regions},
    }
