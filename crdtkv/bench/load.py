"""Puts a load on a store, in this process or behind nodes, and notes when each operation began and how long it took.

Closed loop: so many callers, each waiting for its answer before its next call; the rate is what comes out. Open loop: operations are due
on a schedule that waits for nobody, and time counts from when one was due, so a stall shows in full (`schedule.py`). A closed loop slows
down with the store and so hides what its users would have waited; an open one at more than the store can do shows a queue that grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from crdtkv import interrupts
from crdtkv.bench.schedule import Schedule
from crdtkv.bench.target import ClientTarget, EmbeddedTarget
from crdtkv.bench.ycsb import Kind, Operation, Operations, Workload, record_key
from crdtkv.errors import CrdtkvError, DeadlineExceededError, StoreClosedError

if TYPE_CHECKING:
    from crdtkv.client.aio import AsyncClient

IN_FLIGHT_MAX: Final = 4096
"""Operations that wait for their answer; those due meanwhile wait to be sent, and their time counts on."""
PRELOAD_BATCH: Final = 1000
CONVERGE_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How much of what.

    Attributes:
        records: written first where the workload has any; the keys of the others.
        size: bytes of a value.
        callers: of the closed loop, or, embedded, threads of either; spread over the regions.
        rate: operations a second of the open loop, over all regions; None: closed loop.
        seed: of every draw.
    """

    workload: Workload
    records: int = 10_000
    size: int = 100
    callers: int = 1
    rate: float | None = None
    duration_s: float = 10.0
    warmup_s: float = 1.0
    seed: int = 1


@dataclass(slots=True)
class Recorder:
    """What one caller (or region) did: per kind, when each operation was due or began, and what it took, in ns; warm-up is before 0."""

    at_ns: dict[Kind, array[int]] = field(default_factory=dict)
    took_ns: dict[Kind, array[int]] = field(default_factory=dict)
    failed: dict[Kind, int] = field(default_factory=dict)
    first_error: str = ""

    def note(self, kind: Kind, at_ns: int, took_ns: int) -> None:
        """One was done. What belongs to the warm-up is left out."""
        if at_ns < 0:
            return
        if kind not in self.at_ns:
            self.at_ns[kind], self.took_ns[kind] = array("q"), array("q")
        self.at_ns[kind].append(at_ns)
        self.took_ns[kind].append(took_ns)

    def fail(self, kind: Kind, error: CrdtkvError) -> None:
        """One failed."""
        self.failed[kind] = self.failed.get(kind, 0) + 1
        self.first_error = self.first_error or f"{type(error).__name__}: {error}"


@dataclass(slots=True)
class Loaded:
    """What one run found.

    Attributes:
        recorders: per region; an embedded store is the one region "".
        preload_s: what writing the records took; None: there were none.
        measured_s: from the beginning of the measurement until the last answer.
        converged_s: from then until all regions were equal; None: one region, or never.
        conflicts: recorded by each region during the run.
    """

    recorders: Mapping[str, Sequence[Recorder]]
    preload_s: float | None
    measured_s: float
    converged_s: float | None = None
    conflicts: Mapping[str, int] = field(default_factory=dict)


def _operations(settings: LoadSettings) -> Callable[[int], Operations]:
    """Caller → its operations; inserts do not repeat among them."""
    inserts = itertools.count(settings.records)
    return lambda caller: Operations(settings.workload, settings.records, random.Random(f"{settings.seed}/{caller}"), inserts)


# -- embedded ----------------------------------------------------------------------------------------------------------


def preload_embedded(target: EmbeddedTarget, records: int) -> float:
    """Write the records; returns the seconds."""
    began = time.perf_counter()
    for start in range(0, records, PRELOAD_BATCH):
        interrupts.check()
        with target.store.batch() as batch:
            for number in range(start, min(start + PRELOAD_BATCH, records)):
                batch.put(target.names.records + record_key(number), target.names.value())
    return time.perf_counter() - began


def run_embedded(target: EmbeddedTarget, settings: LoadSettings, on_progress: Callable[[float], None] = lambda _: None) -> Loaded:
    """Load a store in this process; a thread a caller. Callers end early when the store is closed.

    Raises:
        CrdtkvError: the records could not be written. Operations that failed are counted instead.
    """
    preload_s = preload_embedded(target, settings.records) if settings.workload.preload else None
    made = _operations(settings)
    recorders = [Recorder() for _ in range(settings.callers)]
    began_ns = time.perf_counter_ns() + int(settings.warmup_s * 1e9)
    ended: list[int] = []
    faults: list[BaseException] = []

    def caller(number: int) -> None:
        try:
            if settings.rate is None:
                _closed_loop(target, made(number), recorders[number], began_ns, settings)
            else:
                _open_loop(target, made(number), recorders[number], began_ns, settings, number)
            ended.append(time.perf_counter_ns())
        except BaseException as e:
            faults.append(e)

    threads = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(settings.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            on_progress((time.perf_counter_ns() - began_ns) / 1e9)
            interrupts.check()
            thread.join(1.0)
    if faults:
        raise faults[0]
    return Loaded({"": recorders}, preload_s, (max(ended) - began_ns) / 1e9, conflicts={"": target.store.status().conflicts})


def _closed_loop(target: EmbeddedTarget, operations: Operations, recorder: Recorder, began_ns: int, settings: LoadSettings) -> None:
    clock, end_ns = time.perf_counter_ns, began_ns + int(settings.duration_s * 1e9)
    perform, draw, note = target.perform, operations.next, recorder.note
    while True:
        operation = draw()
        before = clock()
        if before >= end_ns:
            return
        try:
            perform(operation)
        except StoreClosedError:  # Ctrl-C
            return
        except CrdtkvError as e:
            recorder.fail(operation.kind, e)
            continue
        note(operation.kind, before - began_ns, clock() - before)


def _open_loop(
    target: EmbeddedTarget, operations: Operations, recorder: Recorder, began_ns: int, settings: LoadSettings, caller: int
) -> None:
    assert settings.rate is not None
    clock = time.perf_counter_ns
    schedule = Schedule(-settings.warmup_s, settings.rate)
    for number in range(caller, schedule.count_before(settings.duration_s), settings.callers):
        due_ns = int(schedule.due_s(number) * 1e9)
        while (early := due_ns - (clock() - began_ns)) > 0:
            time.sleep(early / 1e9)
        operation = operations.next()
        try:
            target.perform(operation)
        except StoreClosedError:  # Ctrl-C
            return
        except CrdtkvError as e:
            recorder.fail(operation.kind, e)
            continue
        recorder.note(operation.kind, due_ns, clock() - began_ns - due_ns)


# -- nodes -------------------------------------------------------------------------------------------------------------


async def preload_nodes(targets: Mapping[str, ClientTarget], records: int) -> float:
    """Write the records in the first region, and wait until all have them; returns the seconds.

    Raises:
        CrdtkvError: a write failed, or a region does not get them.
    """
    began = time.perf_counter()
    first = next(iter(targets.values()))
    for start in range(0, records, PRELOAD_BATCH):
        async with first.client.pipeline() as pipeline:
            numbers = range(start, min(start + PRELOAD_BATCH, records))
            results = [pipeline.put(first.names.records + record_key(number), first.names.value()) for number in numbers]
        for result in results:
            if result.error is not None:
                raise result.error
    if await equal_after([target.client for target in targets.values()]) is None:
        raise DeadlineExceededError(f"the regions did not get the records within {CONVERGE_TIMEOUT_S:g} s")
    return time.perf_counter() - began


async def equal_after(clients: Sequence[AsyncClient], timeout_s: float = CONVERGE_TIMEOUT_S) -> float | None:
    """Seconds until all regions have applied the same commits and have equal digests; None: not in time."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        vectors = await asyncio.gather(*(client.vv() for client in clients))
        if all(vv == vectors[0] for vv in vectors[1:]) and len(set(await asyncio.gather(*(client.digest() for client in clients)))) == 1:
            return time.monotonic() - began
        await asyncio.sleep(_POLL_S)
    return None


async def run_nodes(
    targets: Mapping[str, ClientTarget], settings: LoadSettings, on_progress: Callable[[float], None] = lambda _: None
) -> Loaded:
    """Load nodes through their clients, in all regions alike.

    Raises:
        CrdtkvError: the records could not be written. Operations that failed are counted instead.
    """
    clients = [target.client for target in targets.values()]
    preload_s = await preload_nodes(targets, settings.records) if settings.workload.preload else None
    before = {region: (await target.client.status()).conflicts for region, target in targets.items()}
    run = _NodeRun(targets, settings)
    reporter = asyncio.create_task(run.report(on_progress))
    try:
        await (run.closed() if settings.rate is None else run.open())
    finally:
        reporter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporter
    measured_s = run.now_ns() / 1e9
    converged_s = await equal_after(clients) if len(clients) > 1 else None
    after = {region: (await target.client.status()).conflicts for region, target in targets.items()}
    recorders = {region: [recorder] for region, recorder in run.recorders.items()}
    return Loaded(recorders, preload_s, measured_s, converged_s, {region: after[region] - before[region] for region in targets})


class _NodeRun:
    """One measurement of nodes: a recorder a region, times since its beginning."""

    def __init__(self, targets: Mapping[str, ClientTarget], settings: LoadSettings) -> None:
        self.recorders = {region: Recorder() for region in targets}
        self._targets, self._settings = targets, settings
        self._made = _operations(settings)
        self._began_ns = time.perf_counter_ns() + int(settings.warmup_s * 1e9)

    def now_ns(self) -> int:
        """Since the measurement began; negative during the warm-up."""
        return time.perf_counter_ns() - self._began_ns

    async def report(self, on_progress: Callable[[float], None]) -> None:
        while True:
            on_progress(self.now_ns() / 1e9)
            await asyncio.sleep(1.0)

    async def closed(self) -> None:
        """Each caller waits for its answer before its next call."""
        end_ns = int(self._settings.duration_s * 1e9)

        async def caller(region: str, operations: Operations) -> None:
            while (at := self.now_ns()) < end_ns:
                await self._perform(region, operations.next(), at)

        async with asyncio.TaskGroup() as group:
            for number, region in zip(range(self._settings.callers), itertools.cycle(self._targets), strict=False):
                group.create_task(caller(region, self._made(number)))

    async def open(self) -> None:
        """Each operation when it is due, whether or not those before it were answered."""
        rate = self._settings.rate
        assert rate is not None
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        operations = self._made(0)

        async def one(region: str, operation: Operation, due_ns: int) -> None:
            try:
                await self._perform(region, operation, due_ns)
            finally:
                room.release()

        regions = itertools.cycle(self._targets)
        async with asyncio.TaskGroup() as group:
            schedule = Schedule(-self._settings.warmup_s, rate)
            async for _, due_s in schedule.until(self._settings.duration_s, lambda: self.now_ns() / 1e9):
                await room.acquire()
                group.create_task(one(next(regions), operations.next(), int(due_s * 1e9)))

    async def _perform(self, region: str, operation: Operation, at_ns: int) -> None:
        recorder = self.recorders[region]
        try:
            await self._targets[region].perform(operation)
        except CrdtkvError as e:
            recorder.fail(operation.kind, e)
        else:
            recorder.note(operation.kind, at_ns, self.now_ns() - at_ns)
