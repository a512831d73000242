"""When a node dials its peers again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from crdtkv.errors import RegionUnavailableError
from crdtkv.node.peers import Peers
from crdtkv.replication import ReplicationSettings
from crdtkv.transport.base import Transport

HOUR_MS = 3_600_000
DEADLINE_S = 30.0


class NobodyThere:
    """A transport on which every attempt fails; it says when one was made.

    Args:
        error: what the attempts fail with.
    """

    def __init__(self, error: type[Exception] = RegionUnavailableError) -> None:
        self.dialled: asyncio.Queue[str] = asyncio.Queue()
        self.error = error

    async def dial(self, address: str, *, timeout_s: float) -> Any:
        self.dialled.put_nowait(address)
        raise self.error(f"{address} cannot be reached")


async def dials(expected: int) -> list[str]:
    """The attempts of a node whose eu is away for long, once its other region has come back."""
    transport = NobodyThere()
    settings = ReplicationSettings(backoff_min_ms=HOUR_MS, backoff_max_ms=HOUR_MS)
    peers = Peers({"eu": "eu:1", "ap": "ap:1"}, cast(Transport, transport), settings)
    peers._dial_soon("eu")
    try:
        made = [await asyncio.wait_for(transport.dialled.get(), DEADLINE_S)]
        while peers._errors.get("eu") is None:  # it waits for its next attempt from here on
            await asyncio.sleep(0)
        peers._live_changed(frozenset({"ap"}))
        while len(made) < expected:
            made.append(await asyncio.wait_for(transport.dialled.get(), DEADLINE_S))
        return made
    finally:
        peers.abandon()


def test_a_link_that_comes_up_ends_the_wait_for_the_others() -> None:
    """After a partition each link came back by its own dice; what one region then wrote upon was held by another until it had that, too."""
    assert asyncio.run(dials(2)) == ["eu:1", "eu:1"]


def test_a_bug_in_an_attempt_does_not_end_the_dialling() -> None:
    async def check() -> None:
        transport = NobodyThere(ZeroDivisionError)
        peers = Peers({"eu": "eu:1"}, cast(Transport, transport), ReplicationSettings(backoff_min_ms=1, backoff_max_ms=1))
        peers._dial_soon("eu")
        try:
            for _ in range(3):
                assert await asyncio.wait_for(transport.dialled.get(), DEADLINE_S) == "eu:1"
            assert peers._errors["eu"] == "ZeroDivisionError: eu:1 cannot be reached"
        finally:
            peers.abandon()

    asyncio.run(check())
