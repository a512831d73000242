"""For the tests of applications: a few regions in one process, cut apart and healed as the test says, and Hypothesis strategies.

`Regions` holds one embedded store in memory per region. Nothing moves by itself: commits travel when the test calls `exchange`,
`gossip` or `sync`, time passes when it calls `advance`, so every run can be repeated; what `gossip` does is drawn from the seed.
What travels is what travels in production, deltas that are merged (`Store.delta_since`, `Store.merge`), late, twice, and in any
order between pairs. Clients, gRPC and crashes are not in it: `crdtkv simulate` is about those.

    with three_regions() as regions:
        regions.partition(["us"], ["eu", "ap"])
        regions["us"].put("k", 1)
        regions["eu"].put("k", 2)
        regions.heal()
        regions.sync()
        regions.assert_converged()

The strategies need the package `hypothesis`; nothing else here does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from crdtkv.core.causality import make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.errors import ConfigError
from crdtkv.storage.engine import MemoryEngine
from crdtkv.storage.memory_log import MemoryLog
from crdtkv.store import Settings, Store
from crdtkv.store.machine import Machine
from crdtkv.store.opening import Opened

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

REGIONS: Final = ("us", "eu", "ap")
START_MS: Final = 1_750_000_000_000
_DUPLICATED: Final = 0.2
"""How often a packet that arrives stays on its way, to arrive again."""


# -- steps of a schedule ----------------------------------------------------------------------------------------


class Act(NamedTuple):
    """The application does something in a region."""

    region: str
    action: Any


class Partition(NamedTuple):
    groups: tuple[tuple[str, ...], ...]


class Heal(NamedTuple):
    """Every cut is undone."""


class Gossip(NamedTuple):
    steps: int


class Advance(NamedTuple):
    seconds: float


Step = Act | Partition | Heal | Gossip | Advance


class Clock:
    """A wall clock that stands still until it is told to move."""

    def __init__(self, ms: int = START_MS) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


class _Packet(NamedTuple):
    source: str
    target: str
    delta: bytes


class Regions(Mapping[str, Store]):
    """Embedded stores by region, on a network that the test commands. A context manager; `close` closes the stores.

    Args:
        names: the regions.
        seed: what `gossip` draws from.
        settings: of every store.

    Attributes:
        clocks: each region's wall clock; a test may set one wrong.
    """

    def __init__(self, names: Sequence[str] = REGIONS, *, seed: int = 0, settings: Settings | None = None) -> None:
        if len(set(names)) != len(names) or not names:
            raise ConfigError(f"names: each region once, and at least one, got {list(names)}", setting="names")
        chosen = replace(settings or Settings(), gather_commits_max=1, async_sync_ms=3_600_000)  # nothing in the background
        self.clocks = {name: Clock() for name in names}
        self._stores = {name: _store(name, index, self.clocks[name], chosen) for index, name in enumerate(names)}
        self._random = Random(seed).random
        self._cut: set[tuple[str, str]] = set()
        self._packets: list[_Packet] = []

    def __getitem__(self, name: str) -> Store:
        if name not in self._stores:
            raise KeyError(f"no region {name!r}; there are {', '.join(self)}")  # a mapping's own error: `in` and `get` rest on it
        return self._stores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    # -- the network ----------------------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[str]) -> None:
        """Let only members of one group reach each other; a region in no group is alone. Replaces earlier cuts."""
        group_of = {self._known(name): index for index, group in enumerate(groups) for name in group}
        self._cut = {(a, b) for a, b in permutations(self, 2) if a not in group_of or group_of[a] != group_of.get(b)}

    def cut(self, source: str, target: str) -> None:
        """Let nothing get from one region to another; the other way is as it was."""
        self._cut.add((self._known(source), self._known(target)))

    def heal(self) -> None:
        """Undo every cut."""
        self._cut.clear()

    def _known(self, name: str) -> str:
        if name not in self._stores:
            raise ConfigError(f"no region {name!r}; there are {', '.join(self)}", setting="regions")
        return name

    def reaches(self, source: str, target: str) -> bool:
        """Whether the link between two regions is open in this direction."""
        return (self._known(source), self._known(target)) not in self._cut

    def exchange(self, source: str, target: str) -> bool:
        """Bring a region all that another has, at once. False if the link is cut or there was nothing new."""
        if not self.reaches(source, target):
            return False
        into, before = self[target], self[target].vv()
        into.merge(self[source].delta_since(before))
        return into.vv() != before

    def gossip(self, steps: int = 10) -> None:
        """Let the network do something at random, so many times: packets leave, arrive late, twice and out of order, get lost."""
        pairs = list(permutations(self, 2))
        for _ in range(steps if pairs else 0):
            if self._packets and self._random() < 0.5:
                at = int(self._random() * len(self._packets))
                packet = self._packets[at]
                if self._random() >= _DUPLICATED:
                    del self._packets[at]
                if self.reaches(packet.source, packet.target):
                    self[packet.target].merge(packet.delta)
            else:
                source, target = pairs[int(self._random() * len(pairs))]
                self._packets.append(_Packet(source, target, self[source].delta_since(self[target].vv())))

    def sync(self) -> None:
        """Exchange along every open link until nothing is new any more. What is cut off stays behind."""
        while any([self.exchange(source, target) for source, target in permutations(self, 2)]):
            pass

    # -- time -----------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass everywhere; what expires meanwhile is removed."""
        for clock in self.clocks.values():
            clock.ms += round(seconds * 1000)
        for store in self.values():
            store.maintain()

    # -- judging --------------------------------------------------------------------------------------------------

    def assert_converged(self) -> None:
        """All regions hold the same; else an AssertionError names the keys that differ, and who lacks what."""
        first, *others = self
        for other in others:
            one, two = self[first], self[other]
            if one.vv() == two.vv() and one.digest() == two.digest():
                continue
            mine, theirs = dict(one.scan()), dict(two.scan())
            differ = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
            lines = [f"  {key}: {mine.get(key)!r} in {first}, {theirs.get(key)!r} in {other}" for key in differ[:10]]
            raise AssertionError("\n".join([f"{first} has applied {one.vv()}, {other} {two.vv()}", *lines]))

    def play(self, schedule: Iterable[Step], perform: Callable[[Store, Any], object]) -> None:
        """Do the steps of a schedule (see `schedules`) in turn; `perform` is what the application does in a region's store."""
        for step in schedule:
            match step:
                case Act(region=region, action=action):
                    perform(self[region], action)
                case Partition(groups=groups):
                    self.partition(*groups)
                case Heal():
                    self.heal()
                case Gossip(steps=steps):
                    self.gossip(steps)
                case Advance(seconds=seconds):
                    self.advance(seconds)


def three_regions(*, seed: int = 0, settings: Settings | None = None) -> Regions:
    """Three regions: us, eu and ap."""
    return Regions(REGIONS, seed=seed, settings=settings)


def _store(region: str, index: int, clock: Clock, settings: Settings) -> Store:
    """A store in memory as `crdtkv.open` makes it, with an origin and a time that are the same in every run."""
    machine = Machine(
        MemoryLog(settings.memory_log_bytes),
        MemoryEngine(),
        origin=make_origin(region, 1, index),
        cluster=settings.cluster,
        shard=settings.shard,
        clock=HybridClock(clock, max_skew_ms=settings.max_skew_ms, refuse_ms=settings.clock_refuse_ms),
        settings=settings,
        sync_releases=False,
        fold_records_max=settings.fold_records_max,
        gather_commits_max=settings.gather_commits_max,
    )
    return Store(Opened(machine, region, "memory", None, None), "memory", settings, clock)


# -- actions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """A call on a store: what `operations` draws, for tests that have no actions of their own."""

    method: str
    key: str
    arguments: tuple[Any, ...] = ()

    def __call__(self, store: Store) -> None:
        """Do it."""
        kind, _, method = self.method.rpartition(".")
        target = getattr(store, kind)(self.key) if kind else store
        getattr(target, method)(*(() if kind else (self.key,)), *self.arguments)


# -- Hypothesis -------------------------------------------------------------------------------------------------


def keys(count: int = 3) -> SearchStrategy[str]:
    """A few keys, so that regions meet at them."""
    from hypothesis import strategies as st

    return st.sampled_from([f"key{i}" for i in range(count)])


def values(max_leaves: int = 5) -> SearchStrategy[Any]:
    """Everything that a store can hold, each as it reads back."""
    from hypothesis import strategies as st

    plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
    leaves = plain | st.binary(max_size=20)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=max_leaves
    )


def operations() -> SearchStrategy[Operation]:
    """Calls of every type on a few keys; each type has keys of its own."""
    from hypothesis import strategies as st

    numbers, fields = st.integers(0, 2), st.sampled_from(["f", "g"])

    def calls(method: str, kind: str, *arguments: SearchStrategy[Any]) -> SearchStrategy[Operation]:
        return st.builds(Operation, st.just(method), numbers.map(lambda n: f"{kind}{n}"), st.tuples(*arguments))

    small = st.integers(-3, 3)
    return st.one_of(
        calls("put", "register", values()),
        calls("delete", "register"),
        calls("set.add", "set", small),
        calls("set.discard", "set", small),
        calls("set.clear", "set"),
        calls("counter.increment", "counter", small.filter(bool)),
        calls("counter.reset", "counter"),
        calls("map.put", "map", fields, values()),
        calls("map.clear", "map"),
    )


def schedules(
    actions: SearchStrategy[Any], *, regions: Sequence[str] = REGIONS, max_size: int = 30, max_advance: float = 10.0
) -> SearchStrategy[list[Step]]:
    """Lists of steps for `Regions.play`: an application's actions in any region, among cuts, heals, gossip and time."""
    from hypothesis import strategies as st

    groupings = st.permutations(regions).flatmap(
        lambda order: st.integers(1, max(1, len(order) - 1)).map(lambda at: Partition((tuple(order[:at]), tuple(order[at:]))))
    )
    acts = st.builds(Act, st.sampled_from(list(regions)), actions)
    gossips = st.builds(Gossip, st.integers(1, 12))
    pauses = st.builds(Advance, st.floats(0.001, max_advance))
    return st.lists(acts | acts | gossips | groupings | st.just(Heal()) | pauses, max_size=max_size)
