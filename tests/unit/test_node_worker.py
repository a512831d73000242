"""The storage worker against a fake store: grouping, order, bounds, durability before answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from crdtkv.errors import StorageError
from crdtkv.node.worker import GROUP_ROWS_MAX, StorageWorker


@dataclass
class Executed:
    replies: list[list[Any]]
    token: str
    position: int


@dataclass
class FakeStore:
    """Echoes the arguments; `gate` holds back execution, `disk` holds back fsyncs."""

    groups: list[int] = field(default_factory=list)
    durable: int = 0
    executed: int = 0
    fail_sync: bool = False
    fail_execute: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    disk: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def execute(self, requests: Sequence[Any]) -> Executed:
        self.entered.set()
        assert self.gate.wait(10)
        if self.fail_execute is not None:
            raise self.fail_execute
        self.groups.append(len(requests))
        self.executed += 1
        return Executed([[row[0], 0, row[2]] for row in requests], f"t{self.executed}", self.executed)

    def wait_durable(self, position: int) -> None:
        assert self.disk.wait(10)
        if self.fail_sync:
            raise StorageError("the disk is full")
        self.durable = max(self.durable, position)


@asynccontextmanager
async def working(store: FakeStore, *, sync: bool = False, queued_max: int = 1000, **more: Any) -> AsyncIterator[StorageWorker]:
    worker = StorageWorker(store, asyncio.get_running_loop(), sync=sync, requests_queued_max=queued_max, **more)
    try:
        yield worker
    finally:
        store.gate.set()
        store.disk.set()
        await worker.stop()


class Client:
    """Collects what is delivered for its messages."""

    def __init__(self, worker: StorageWorker) -> None:
        self.worker = worker
        self.replies: list[Any] = []
        self.token = ""
        self.changed = asyncio.Event()

    def send(self, *ids: int, options: dict[str, Any] | None = None) -> None:
        self.worker.submit([(n, "echo", [n], options) for n in ids], 10, self.deliver)

    def deliver(self, replies: list[Any], token: str) -> None:
        self.replies += replies
        self.token = token or self.token
        self.changed.set()

    async def until(self, count: int) -> list[Any]:
        while len(self.replies) < count:
            self.changed.clear()
            await self.changed.wait()
        return self.replies


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await check()

    asyncio.run(main())


async def entered(store: FakeStore) -> None:
    assert await asyncio.to_thread(store.entered.wait, 10)


def test_what_gathers_while_a_group_executes_is_one_group_and_each_client_gets_its_own() -> None:
    async def check() -> None:
        store = FakeStore()
        async with working(store) as worker:
            first, second = Client(worker), Client(worker)
            first.send(1)
            await entered(store)
            for n in range(2, 6):
                first.send(n)
                second.send(n * 10, n * 10 + 1)
            store.gate.set()
            assert await first.until(5) == [[n, 0, [n]] for n in range(1, 6)]
            assert [r[0] for r in await second.until(8)] == [20, 21, 30, 31, 40, 41, 50, 51]
            assert store.groups == [1, 12]
            assert first.token == second.token == "t2"
            assert (worker.queued, worker.answered) == (0, 13)

    run(check)


def test_a_group_has_a_bound_and_what_is_over_it_makes_the_next() -> None:
    async def check() -> None:
        store = FakeStore()
        async with working(store, queued_max=1 << 20) as worker:
            client = Client(worker)
            client.send(0)
            await entered(store)
            half = GROUP_ROWS_MAX // 2 + 1
            for _ in range(3):
                client.send(*range(half))
            store.gate.set()
            await client.until(1 + 3 * half)
            assert store.groups == [1, half, half, half]

    run(check)


def test_more_than_may_wait_is_refused_as_overloaded_and_may_be_tried_again() -> None:
    async def check() -> None:
        store = FakeStore()
        async with working(store, queued_max=5) as worker:
            client = Client(worker)
            client.send(1, 2, 3, 4)
            await entered(store)
            client.send(5, 6)
            (refused, _) = await client.until(2)
            assert refused[:2] == [5, 1]
            code, text, details, retryable, maybe_applied = refused[2]
            assert (code, retryable, maybe_applied) == ("OverloadedError", True, False)
            assert "limit is 5" in text and details["retry_after_ms"] > 0
            store.gate.set()
            await client.until(6)
            client.send(7)
            assert (await client.until(7))[-1] == [7, 0, [7]]

    run(check)


def test_a_passed_deadline_is_answered_and_never_executed() -> None:
    async def check() -> None:
        store = FakeStore()
        async with working(store) as worker:
            client = Client(worker)
            client.send(1)
            await entered(store)
            client.send(2, options={"deadline_ms": 0})
            client.send(3, options={"deadline_ms": 60_000})
            store.gate.set()
            replies = await client.until(3)
            assert [r[0] for r in replies] == [1, 2, 3]
            assert replies[1][2][0] == "DeadlineExceededError"
            assert store.groups == [1, 1]

    run(check)


def test_answers_wait_for_the_disk_while_the_next_group_executes() -> None:
    async def check() -> None:
        store = FakeStore()
        store.gate.set()
        async with working(store, sync=True) as worker:
            client = Client(worker)
            client.send(1)
            await entered(store)
            store.entered.clear()
            client.send(2)
            await entered(store)  # executes while nothing is durable
            assert client.replies == [] and store.durable == 0
            store.disk.set()
            await client.until(2)
            assert store.durable == 2

    run(check)


def test_a_failed_fsync_answers_nothing_and_is_reported() -> None:
    async def check() -> None:
        store = FakeStore(fail_sync=True)
        store.gate.set()
        failed = asyncio.Event()
        async with working(store, sync=True, failed=failed.set) as worker:
            client = Client(worker)
            client.send(1)
            store.disk.set()
            await failed.wait()
            assert client.replies == []
            client.send(2)
            assert (await client.until(1))[0][2][0] == "StoreClosedError"

    run(check)


def test_a_bug_in_the_store_is_an_error_row_and_the_worker_goes_on() -> None:
    async def check() -> None:
        store = FakeStore(fail_execute=ValueError("a bug"))
        store.gate.set()
        async with working(store) as worker:
            client = Client(worker)
            client.send(1)
            (reply,) = await client.until(1)
            assert reply[2][0] == "StorageError" and reply[2][4] is True
            store.fail_execute = None
            client.send(2)
            assert (await client.until(2))[1] == [2, 0, [2]]

    run(check)


def test_a_store_that_failed_answers_with_its_error_and_is_reported() -> None:
    async def check() -> None:
        store = FakeStore(fail_execute=StorageError("the log could not be written"))
        store.gate.set()
        failed = asyncio.Event()
        async with working(store, failed=failed.set) as worker:
            client = Client(worker)
            client.send(1)
            (reply,) = await client.until(1)
            assert reply[2][:2] == ["StorageError", "the log could not be written"]
            await failed.wait()

    run(check)


def test_stop_answers_what_was_accepted_and_refuses_what_comes_later() -> None:
    async def check() -> None:
        store = FakeStore()
        async with working(store) as worker:
            client = Client(worker)
            client.send(1)
            await entered(store)
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0)
            client.send(2)
            assert client.replies[0][2][0] == "StoreClosedError"
            store.gate.set()
            await stopping
            assert [r[0] for r in client.replies] == [2, 1]

    run(check)


def test_tasks_run_in_order_and_a_turn_follows_when_it_is_due() -> None:
    async def check() -> None:
        store = FakeStore()
        store.gate.set()
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        turned = asyncio.Event()

        def turn() -> float | None:
            seen.append("turn")
            if seen.count("turn") == 3:
                loop.call_soon_threadsafe(turned.set)
                return None
            return 0.0  # long due: at once

        async with working(store) as worker:
            assert await worker.run(lambda: 42) == 42
            worker.turn = turn
            worker.task(lambda: seen.append("a"))
            worker.task(lambda: seen.append("b"))
            await turned.wait()
            assert [s for s in seen if s != "turn"] == ["a", "b"]
            with pytest.raises(ZeroDivisionError):
                await worker.run(lambda: 1 // 0)

    run(check)
