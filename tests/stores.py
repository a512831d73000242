"""Embedded stores for tests: in memory, each commit a frame of its own, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import crdtkv
from crdtkv.core.transfer import NO_LINK, next_link
from crdtkv.store import Settings, Store
from crdtkv.store.opening import open_machine
from crdtkv.store.snapshots import Source


@dataclass
class Clock:
    """A wall clock that stands still until it is told to move."""

    ms: int = 1_750_000_000_000

    def __call__(self) -> int:
        return self.ms


def store_at(clock: Clock, region: str = "us", settings: Settings | None = None) -> Store:
    """A store in memory whose time is `clock`'s. Its housekeeping thread never runs: tests call `maintain`."""
    chosen = replace(settings or Settings(async_sync_ms=3_600_000), gather_commits_max=1)
    opened = open_machine(None, region=region, engine=None, durability="memory", settings=chosen, wall_ms=clock)
    return Store(opened, "memory", chosen, clock)


@contextmanager
def stores(*regions: str, settings: Settings | None = None) -> Iterator[tuple[Store, ...]]:
    """One store in memory per region."""
    chosen = replace(settings or Settings(), gather_commits_max=1)
    made = tuple(crdtkv.open(region=region, settings=chosen) for region in regions)
    try:
        yield made
    finally:
        for store in made:
            store.close()


def sync(*replicas: Store) -> None:
    """Exchange what each lacks of the others, until all have everything; they must be equal then."""
    for _ in replicas:
        for into in replicas:
            for of in replicas:
                if into is not of:
                    into.merge(of.delta_since(into.vv()))
    first = replicas[0]
    for other in replicas[1:]:
        assert other.vv() == first.vv()
        assert other.digest() == first.digest()


def chunks(source: Source, size: int = 2_000) -> list[tuple[bytes, bytes]]:
    """What a donor sends: the chunks of a snapshot, of some `size` bytes each, and their links. Closes the source."""
    found, link = [], NO_LINK
    cursor: bytes | None = b""
    while cursor is not None:
        data, cursor = source.read(cursor, size)
        link = next_link(link, data)
        found.append((data, link))
    source.close()
    return found


def install(donor: Store, receiver: Store) -> None:
    """Bring the receiver up by a snapshot, as nodes do."""
    snapshots = receiver._machine.snapshots
    assert snapshots is not None
    for number, (data, link) in enumerate(chunks(Source(donor._machine))):
        snapshots.stage(data, link, anew=number == 0)
    snapshots.install()
