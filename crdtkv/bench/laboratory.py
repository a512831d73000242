"""Writes on schedule in every region, watches in every region, and keeps when each write was due and when it could be read.

Identity is the commit. A watcher that sees commit n of an origin has seen all before it, since one origin's commits are applied in
order; so a sighting is a pair (seq, time), whatever the type of the data, and what a watcher skipped, because several writes to a key
arrived at once, was readable by then. Answers and sightings are joined after the run, because a sighting may precede the answer.

One clock measures both ends. `Clock.MONOTONIC`: writers and watchers are in this process, so its monotonic clock stamps both; right if
this process is near all nodes, as on one machine. `Clock.ECHO`: whoever sees a commit in B writes an echo in B, which comes back to A;
the stamps are both taken at A, and half the round trip is the lag. The echo is written by this process through the client of B, or, with
`echo_elsewhere`, by one beside B (`respond`). Halving supposes that the two ways are alike.

Warm-up, schedule and cut are in seconds since the measurement began; so the warm-up is before 0, and is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from crdtkv.bench.histogram import Histogram
from crdtkv.bench.schedule import CutPlan, Schedule
from crdtkv.bench.workload import Workload
from crdtkv.core.causality import Origin
from crdtkv.errors import CrdtkvError, DeadlineExceededError, OverloadedError
from crdtkv.instruments.lag import LagMeter, Pair
from crdtkv.instruments.tasks import background

if TYPE_CHECKING:
    from crdtkv.client.aio import AsyncClient
    from crdtkv.results import Change

ROOT: Final = "crdtkv-bench/lag/"
LOAD_ROOT: Final = "crdtkv-bench/load/"
IN_FLIGHT_MAX: Final = 4096
"""Commits of a region that wait for their answer; those due meanwhile wait to be sent, and their lag counts on."""
LOAD_TICK_S: Final = 0.01
LOAD_KEYS: Final = 100_000
_POLL_S: Final = 0.005
_READY_TIMEOUT_S: Final = 30.0


class Clock(enum.Enum):
    """What the two ends of a lag are measured by."""

    MONOTONIC = "monotonic"
    ECHO = "echo"


@dataclass(frozen=True, slots=True)
class LagSettings:
    """How much is measured.

    Attributes:
        rate: writes a second in each region; `batch` of them are one commit and due together.
        type, size: as in `Workload`.
        load: further writes a second in each region, to other keys, by other connections; they are not measured.
        cut: a partition during the measurement.
        drain_timeout_s: how long everything may take to arrive after the last write; what has not is unseen.
    """

    rate: float = 200.0
    batch: int = 1
    type: str = "register"
    size: int = 100
    duration_s: float = 20.0
    warmup_s: float = 1.0
    load: float = 0.0
    cut: CutPlan | None = None
    drain_timeout_s: float = 30.0
    clock: Clock = Clock.MONOTONIC
    echo_elsewhere: bool = False


class Network(Protocol):
    """The links between the regions, if they can be cut."""

    async def cut(self, plan: CutPlan) -> None:
        """Cut as planned; returns when it is in effect."""
        ...

    async def heal(self) -> None:
        """Restore the links; may return before the peers have found each other."""
        ...


@dataclass(slots=True)
class CutMade:
    """When the cut was: ordered, in effect, and the heal ordered."""

    plan: CutPlan
    ordered_s: float
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass(slots=True)
class Generator:
    """How one region's writer fared.

    Attributes:
        sent, acknowledged, failed: commits that were measured, not those of the warm-up.
        late, answered: ns from when a commit was due until this process sent it, and until its answer was here.
        load_sent, load_failed: background writes.
        first_error: of the failures.
    """

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    late: Histogram = field(default_factory=Histogram)
    answered: Histogram = field(default_factory=Histogram)
    load_sent: int = 0
    load_failed: int = 0
    first_error: str = ""


@dataclass(slots=True)
class Measured:
    """What one run found. Times in seconds since the measurement began; `meter` has a due time and a sighting per acknowledged commit."""

    meter: LagMeter
    generators: Mapping[str, Generator]
    acked: Mapping[str, Sequence[tuple[float, int]]]
    """Region → (acknowledged at, seq) of its commits, in seq order."""
    cut: CutMade | None
    end_s: float
    """When all had arrived, or was given up."""
    watch_restarts: int


class Laboratory:
    """One run.

    Args:
        writers, watchers, loaders: region → client; distinct connections, so that one does not wait for another's bytes. Loaders are
            used only under load.
        network: needed for a cut.
        run_id: makes the keys of this run its own.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        writers: Mapping[str, AsyncClient],
        watchers: Mapping[str, AsyncClient],
        loaders: Mapping[str, AsyncClient],
        network: Network | None,
        settings: LagSettings,
        run_id: str,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        assert settings.cut is None or network is not None, "a cut needs a network to cut"
        self.regions = tuple(writers)
        self._writers, self._watchers, self._loaders = writers, watchers, loaders
        self._network = network
        self._settings = settings
        self._prefix = f"{ROOT}{run_id}/"
        self._clock = now_s
        self._began = 0.0
        self.generators = {r: Generator() for r in self.regions}
        self._acked: dict[str, list[tuple[int, float, float]]] = {r: [] for r in self.regions}
        """Region → (seq, due, answered) of each commit, in the order of the answers."""
        self._origins: dict[str, set[Origin]] = {r: set() for r in self.regions}
        self._sightings: dict[Pair, list[tuple[int, float]]] = {Pair(a, b): [] for a in self.regions for b in self.regions if a != b}
        """(seq, time), both ascending: all commits up to seq were readable by then."""
        self._watching = {r: {prefix: asyncio.Event() for prefix in self._watched_in(r)} for r in self.regions}
        """Region → what is watched there, and whether the watch is open."""
        self._flying: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None
        self._echoer = {r: Echoer(r, watchers[r]) for r in self.regions} if self._echoes_here() else {}
        self._cut: CutMade | None = None
        self._watch_restarts = 0

    def _watched_in(self, region: str) -> list[str]:
        """Prefixes of what is watched in a region: what others write. Its own would be as many pages again for node and instrument."""
        kinds = "we" if self._settings.clock is Clock.ECHO else "w"
        return [f"{self._prefix}{kind}/{other}/" for other in self.regions if other != region for kind in kinds]

    def _echoes_here(self) -> bool:
        return self._settings.clock is Clock.ECHO and not self._settings.echo_elsewhere

    def now_s(self) -> float:
        """Seconds since the measurement began; negative during the warm-up."""
        return self._clock() - self._began

    async def run(self, on_progress: Callable[[float], None] = lambda _: None) -> Measured:
        """Do all of it.

        Args:
            on_progress: told the time of the measurement now and then.
        Raises:
            CrdtkvError: a node was not there, or could not be watched. Writes that failed are counted instead.
        """
        settings = self._settings
        async with background() as start:
            for region in self.regions:
                for prefix, open_ in self._watching[region].items():
                    start(self._watch(region, prefix, open_))
            for echoer in self._echoer.values():
                start(echoer.run())
            await self._ready()
            self._began = self._clock() + settings.warmup_s
            start(self._report(on_progress))
            if settings.load:
                for region in self.regions:
                    start(self._load(region))
            async with asyncio.TaskGroup() as group:
                for place, region in enumerate(self.regions):
                    group.create_task(self._write(region, place))
                if settings.cut is not None:
                    group.create_task(self._cut_and_heal(settings.cut))
            await asyncio.gather(*self._flying)
            await self._drain()
        if self._fault is not None:
            raise self._fault
        return self._join()

    async def _ready(self) -> None:
        """Wait until all watches are open, and every writer has its connection."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                for watching in self._watching.values():
                    for open_ in watching.values():
                        await open_.wait()
                for writer in self._writers.values():
                    await writer
        except TimeoutError:
            missing = ", ".join(r for r, watching in self._watching.items() if not all(e.is_set() for e in watching.values())) or "a writer"
            raise DeadlineExceededError(f"no connection within {_READY_TIMEOUT_S:g} s: {missing}") from None

    # -- writing --------------------------------------------------------------------------------------------------------

    async def _write(self, region: str, place: int) -> None:
        """Send each commit when it is due, whether or not those before it were answered."""
        settings = self._settings
        rate = settings.rate / settings.batch
        # The regions take turns within a period: a common beat would make each wait for the others.
        schedule = Schedule(-settings.warmup_s + place / (rate * len(self.regions)), rate)
        workload = Workload(f"{self._prefix}w/{region}/", settings.type, settings.size, settings.batch)
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        async for number, due in schedule.until(settings.duration_s, self.now_s):
            await room.acquire()
            task = asyncio.create_task(self._commit(region, workload, number, due))
            self._flying.add(task)
            task.add_done_callback(self._landed)
            task.add_done_callback(lambda _: room.release())

    def _landed(self, task: asyncio.Task[None]) -> None:
        """A write has ended. What is not an answer of the store is a fault of the instrument, and spoils the run."""
        self._flying.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = self._fault or fault

    async def _commit(self, region: str, workload: Workload, number: int, due_s: float) -> None:
        counted = self.generators[region] if due_s >= 0 else Generator()
        counted.sent += 1
        counted.late.record(_ns(self.now_s() - due_s))
        try:
            commit = await workload.commit(self._writers[region], number)
        except CrdtkvError as e:
            counted.failed += 1
            counted.first_error = counted.first_error or f"{type(e).__name__}: {e}"
            return
        assert commit is not None, "each write changes something"
        now = self.now_s()
        counted.acknowledged += 1
        counted.answered.record(_ns(now - due_s))
        self._origins[region].add(commit.origin)
        if due_s >= 0:
            self._acked[region].append((commit.seq, due_s, now))

    async def _load(self, region: str) -> None:
        """Write in the background: every 10 ms what is due."""
        client, counted, rate = self._loaders[region], self.generators[region], self._settings.load
        payload = Workload("", "register", self._settings.size, 1).payload
        sent = 0

        async def one(number: int) -> None:
            try:
                await client.put(f"{LOAD_ROOT}{region}/{number % LOAD_KEYS}", payload(number))
            except CrdtkvError as e:
                counted.load_failed += 1
                counted.first_error = counted.first_error or f"{type(e).__name__}: {e}"

        async for tick, _ in Schedule(-self._settings.warmup_s, 1 / LOAD_TICK_S).until(self._settings.duration_s, self.now_s):
            due = round((tick + 1) * LOAD_TICK_S * rate)
            await asyncio.gather(*(one(number) for number in range(sent, due)))
            counted.load_sent += due - sent
            sent = due

    async def _cut_and_heal(self, plan: CutPlan) -> None:
        assert self._network is not None
        await asyncio.sleep(max(0.0, plan.start_s - self.now_s()))
        self._cut = CutMade(plan, ordered_s=self.now_s())
        await self._network.cut(plan)
        self._cut.start_s = self.now_s()
        await asyncio.sleep(max(0.0, plan.end_s - self.now_s()))
        self._cut.end_s = self.now_s()
        await self._network.heal()

    async def _report(self, on_progress: Callable[[float], None]) -> None:
        for tick in itertools.count():
            on_progress(self.now_s())
            await asyncio.sleep(max(0.0, tick + 1 - self._settings.warmup_s - self.now_s()))

    # -- watching -------------------------------------------------------------------------------------------------------

    async def _watch(self, region: str, prefix: str, open_: asyncio.Event) -> None:
        """Note what becomes readable in a region. A watch that the node cut off, because we read too slowly, goes on where it was."""
        token: str | None = None
        while True:
            changes = self._watchers[region].watch(prefix, since=token)
            await changes
            open_.set()
            try:
                async for change in changes:
                    self._note(region, change, self.now_s())
                    token = change.token
            except OverloadedError:
                self._watch_restarts += 1

    def _note(self, region: str, change: Change, now_s: float) -> None:
        kind, who, rest = change.key.removeprefix(self._prefix).split("/", 2)
        if kind == "w":
            if self._settings.clock is Clock.MONOTONIC:
                self._seen(Pair(who, region), change.commit.seq, now_s)
            elif region in self._echoer:
                self._echoer[region].echo(change)
        elif rest == region:  # an echo to what was written here
            self._seen(Pair(region, who), int(change.value), now_s)

    def _seen(self, pair: Pair, seq: int, now_s: float) -> None:
        sightings = self._sightings[pair]
        if not sightings or seq > sightings[-1][0]:
            sightings.append((seq, now_s))

    async def _drain(self) -> None:
        """Wait until all that was acknowledged was seen everywhere, or for as long as is allowed."""
        last = {r: max((seq for seq, _, _ in acked), default=0) for r, acked in self._acked.items()}
        deadline = self.now_s() + self._settings.drain_timeout_s
        while self.now_s() < deadline:
            if all((sightings[-1][0] if sightings else 0) >= last[pair[0]] for pair, sightings in self._sightings.items()):
                return
            await asyncio.sleep(_POLL_S)

    # -- after the run --------------------------------------------------------------------------------------------------

    def _join(self) -> Measured:
        """Bring answers and sightings together."""
        end_s = self.now_s()
        for region, origins in self._origins.items():
            if len(origins) > 1:  # a seq means something within one origin only
                raise CrdtkvError(f"the node of {region} was replaced during the measurement ({', '.join(sorted(origins))}): run it again")
        meter = LagMeter(self.regions)
        acked = {r: sorted(commits) for r, commits in self._acked.items()}
        for region, commits in acked.items():
            # One connection keeps the order. Should a commit have been overtaken all the same, the earlier due time counts: a lag may come
            # out too long, never too short.
            dues = list(itertools.accumulate((due for _, due, _ in reversed(commits)), min))
            for (seq, _, _), due in zip(commits, reversed(dues), strict=True):
                meter.acknowledged(region, meter.due(region, due), seq)
            for observer in (other for other in self.regions if other != region):
                halved = self._settings.clock is Clock.ECHO
                for number, seen in _first_sightings([seq for seq, _, _ in commits], self._sightings[Pair(region, observer)]):
                    due = meter.due_s(region, number)
                    assert seen >= due, "a write was seen before it was due"
                    meter.seen(region, observer, number, due + (seen - due) / 2 if halved else seen)
        answers = {r: [(answered, seq) for seq, _, answered in commits] for r, commits in acked.items()}
        return Measured(meter, self.generators, answers, self._cut, end_s, self._watch_restarts)


class Echoer:
    """Writes back in one region what was seen there of others: of several at once the latest, which stands for all before it."""

    def __init__(self, region: str, client: AsyncClient) -> None:
        self.region = region
        self._client = client
        self._waiting: dict[tuple[str, str], int] = {}
        """(prefix of the run, source) → the greatest seq to echo."""
        self._some = asyncio.Event()

    def echo(self, change: Change) -> None:
        """Note a change that another region wrote; its echo follows."""
        run_id, kind, source, _ = change.key.removeprefix(ROOT).split("/", 3)
        assert kind == "w" and source != self.region
        slot = (f"{ROOT}{run_id}/", source)
        self._waiting[slot] = max(self._waiting.get(slot, 0), change.commit.seq)
        self._some.set()

    async def run(self) -> None:
        """Write the echoes, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            waiting, self._waiting = self._waiting, {}
            with contextlib.suppress(OverloadedError, DeadlineExceededError):  # the next one stands for it
                await asyncio.gather(*(self._client.put(f"{prefix}e/{self.region}/{src}", seq) for (prefix, src), seq in waiting.items()))


async def respond(region: str, client: AsyncClient, on_ready: Callable[[], None]) -> None:
    """Echo for laboratories that run elsewhere, until cancelled.

    Raises:
        CrdtkvError: the node is not there.
    """
    echoer = Echoer(region, client)
    async with background() as start:
        start(echoer.run())
        changes = client.watch(ROOT)
        await changes
        on_ready()
        async for change in changes:
            _, kind, *rest = change.key.removeprefix(ROOT).split("/")
            if kind == "w" and rest[0] != region:
                echoer.echo(change)


def _first_sightings(seqs: Sequence[int], sightings: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """For each of ascending `seqs` its place there and the time of the first sighting that covers it, as far as there is one."""
    out: list[tuple[int, float]] = []
    following = iter(sightings)
    seen = next(following, None)
    for number, seq in enumerate(seqs):
        while seen is not None and seen[0] < seq:
            seen = next(following, None)
        if seen is None:
            break
        out.append((number, seen[1]))
    return out


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
