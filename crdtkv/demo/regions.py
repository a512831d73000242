"""The demo's only door to a cluster: what it asks of a region and of the network, and the client that answers.

`Region` and `Network` are small on purpose, so that the same demo runs against real nodes, or against regions in memory
in a test. `ClientRegion` does everything through the public client, as any user would: nothing reaches around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from crdtkv.core.causality import VersionVector
from crdtkv.core.token import token_vv
from crdtkv.demo.records import Ack, Entry, JournalEntry, Kind, Observation, Op, Slot
from crdtkv.demo.workload import PULSE_PREFIX

if TYPE_CHECKING:
    from crdtkv.client.aio import AsyncClient
    from crdtkv.client.batch import AsyncBatch
    from crdtkv.results import Commit, Conflict, Explanation, Status

READS_IN_FLIGHT_MAX = 512
"""How many single reads are asked for at once."""

T = TypeVar("T")
R = TypeVar("R")


class Region(Protocol):
    """One region, as a client of it sees it."""

    @property
    def name(self) -> str:
        """The region's name."""
        ...

    async def commit(self, ops: Sequence[Op]) -> Ack | None:
        """Do the changes as one atomic commit; None if nothing changed. Of several, none may be a removal,
        since the answer does not say which of them found nothing to remove."""
        ...

    async def vv(self) -> VersionVector:
        """What is applied there."""
        ...

    async def digest(self) -> str:
        """The digest of its state."""
        ...

    async def observe(self, keys: Sequence[str] | None = None) -> Observation:
        """Read everything, or only these keys (then without the journal)."""
        ...

    def pulses(self) -> AsyncIterator[tuple[str, int]]:
        """Watch the pulses of all regions from now on: (region, number) as each becomes visible here."""
        ...

    async def explain(self, key: str) -> Explanation:
        """Why a key reads as it does there."""
        ...

    async def status(self) -> Status:
        """The node's own account of itself."""
        ...


class Network(Protocol):
    """The links between the regions."""

    async def cut(self, region: str) -> None:
        """Cut a region off from all others; returns when it is."""
        ...

    async def heal(self) -> None:
        """Restore all links; returns when they are."""
        ...


class ClientRegion:
    """A region behind the public asyncio client."""

    def __init__(self, name: str, client: AsyncClient) -> None:
        self._name = name
        self._client = client
        self._token_vv: tuple[str, VersionVector] = ("", VersionVector())

    @property
    def name(self) -> str:
        """The region's name."""
        return self._name

    async def commit(self, ops: Sequence[Op]) -> Ack | None:
        """Do the changes as one atomic commit."""
        if len(ops) == 1:
            commit = await _apply(self._client, ops[0])
        else:
            assert all(op.kind is not Kind.REMOVE for op in ops)
            async with self._client.batch() as batch:
                for op in ops:
                    await _collect(batch, op)
            commit = batch.commit
        return None if commit is None else Ack(commit.dot, commit.hlc, self._vv_of(commit.token))

    def _vv_of(self, token: str) -> VersionVector:
        """Decode a token; all commits of one group carry the same one."""
        if self._token_vv[0] != token:
            self._token_vv = (token, token_vv(token))
        return self._token_vv[1]

    async def vv(self) -> VersionVector:
        """What is applied there."""
        return await self._client.vv()

    async def digest(self) -> str:
        """The digest of its state."""
        return await self._client.digest()

    async def observe(self, keys: Sequence[str] | None = None) -> Observation:
        """Read everything, or only these keys (then without the journal)."""
        client = self._client
        vv, digest = await client.vv(), await client.digest()
        rows: dict[str, dict[str, Any]] = {}
        for kind in ("register", "set", "map", "counter"):
            if keys is None:
                rows[kind] = {key: value async for key, value in client.scan(types=[kind])}
            else:
                rows[kind] = {}
                for key in keys:
                    rows[kind].update({k: v async for k, v in client.scan(key, types=[kind]) if k == key})
        registers = list(rows["register"])
        siblings = await _gather(client.siblings, registers)
        journal = [journal_entry(c) for c in await client.conflicts()] if keys is None else []
        return Observation(
            region=self._name,
            vv=vv,
            digest=digest,
            registers={k: [Entry(s.dot, s.hlc, s.value) for s in found] for k, found in zip(registers, siblings, strict=True)},
            values=rows["register"],
            sets={key: frozenset(members) for key, members in rows["set"].items()},
            maps=rows["map"],
            counters=rows["counter"],
            journal=journal,
        )

    async def pulses(self) -> AsyncIterator[tuple[str, int]]:
        """Watch the pulses of all regions from now on."""
        changes = self._client.watch(PULSE_PREFIX)
        await changes
        async for change in changes:
            yield change.key.removeprefix(PULSE_PREFIX), change.value

    async def explain(self, key: str) -> Explanation:
        """Why a key reads as it does there."""
        return await self._client.explain(key)

    async def status(self) -> Status:
        """The node's own account of itself."""
        return await self._client.status()


def journal_entry(conflict: Conflict) -> JournalEntry:
    """A conflict as the verifier takes it."""
    winner = conflict.winner
    return JournalEntry(
        slot=Slot(conflict.key, conflict.type, conflict.subkey),
        rule=conflict.rule,
        winner=None if winner is None else winner.dot,
        losers=tuple(loser.dot for loser in conflict.losers),
    )


def _apply(client: AsyncClient, op: Op) -> Awaitable[Commit | None]:
    kind, (key, type_, subkey), value = op
    match type_, kind:
        case "register", Kind.SET:
            return client.put(key, value)
        case "register", _:
            return client.delete(key)
        case "set", Kind.SET:
            return client.set(key).add(subkey)
        case "set", _:
            return client.set(key).discard(subkey)
        case "map", Kind.SET:
            return client.map(key).put(subkey or "", value)
        case "map", _:
            return client.map(key).delete(subkey or "")
        case _:
            return client.counter(key).increment(value)


def _collect(batch: AsyncBatch, op: Op) -> Awaitable[None]:
    """Put one change into a batch."""
    _, (key, type_, subkey), value = op
    match type_:
        case "register":
            return batch.put(key, value)
        case "set":
            return batch.set(key).add(subkey)
        case "map":
            return batch.map(key).put(subkey or "", value)
        case _:
            return batch.counter(key).increment(value)


async def _gather(call: Callable[[T], Awaitable[R]], arguments: Iterable[T]) -> list[R]:
    """`call` for each argument, at most `READS_IN_FLIGHT_MAX` at once, answers in order."""
    waiting = list(arguments)
    answers: list[R] = []
    for i in range(0, len(waiting), READS_IN_FLIGHT_MAX):
        answers += await asyncio.gather(*(call(a) for a in waiting[i : i + READS_IN_FLIGHT_MAX]))
    return answers
