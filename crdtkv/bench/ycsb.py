"""What a load consists of: which operation comes next, on which key. Pure: the randomness is handed in; equal seeds, equal operations.

YCSB's core workloads A to F, and four that exercise what a replicated store has besides: sets, counters, maps, and writes to the same few
keys from everywhere. A record is one register of `size` bytes (YCSB's own default, ten fields of 100 bytes, is 1000 bytes), its key `user`
and a hash of its number, so that neighbours in number are not neighbours in order.

After: B. F. Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010, tables 2 and 3, and its `CoreWorkload`; the zipfian
generator: J. Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994, figure 4.
"""

from __future__ import annotations

import enum
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

THETA: Final = 0.99
"""The skew of YCSB's zipfian: item of rank r is drawn with probability r^-θ / ζ."""
SCAN_MAX: Final = 100
HOT_KEYS: Final = 10
ELEMENTS: Final = 1000
FIELDS: Final = 100
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3


class Kind(enum.Enum):
    """What is done; `rmw` is a read and then a write of the same key, timed as one."""

    READ = "read"
    UPDATE = "update"
    INSERT = "insert"
    SCAN = "scan"
    RMW = "read-modify-write"
    ADD = "set add"
    REMOVE = "set remove"
    CONTAINS = "set contains"
    INCREMENT = "counter increment"
    VALUE = "counter value"
    FIELD_PUT = "map put"
    FIELD_GET = "map get"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `argument`: keys of a scan; number of an element or field; else 0."""

    kind: Kind
    key: str
    argument: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A mix of operations.

    Attributes:
        shares: kind → its share; they add up to 1.
        distribution: of keys: `zipfian` (scrambled over all), `latest` (the newest most), `uniform`.
        preload: whether the records are written first.
        keys: how many keys there are at most; None: as many as records.
    """

    name: str
    about: str
    shares: Mapping[Kind, float]
    distribution: str = "zipfian"
    preload: bool = True
    keys: int | None = None


WORKLOADS: Final[dict[str, Workload]] = {
    w.name: w
    for w in (
        Workload("a", "YCSB A, update heavy: half reads, half updates", {Kind.READ: 0.5, Kind.UPDATE: 0.5}),
        Workload("b", "YCSB B, read mostly: 95 % reads, 5 % updates", {Kind.READ: 0.95, Kind.UPDATE: 0.05}),
        Workload("c", "YCSB C, read only", {Kind.READ: 1.0}),
        Workload("d", "YCSB D, read latest: 95 % reads of what is new, 5 % inserts", {Kind.READ: 0.95, Kind.INSERT: 0.05}, "latest"),
        Workload("e", "YCSB E, short ranges: 95 % scans of 1 to 100 records, 5 % inserts", {Kind.SCAN: 0.95, Kind.INSERT: 0.05}),
        Workload("f", "YCSB F: half reads, half read-modify-writes", {Kind.READ: 0.5, Kind.RMW: 0.5}),
        Workload(
            "set",
            "OR-sets: 60 % adds, 20 % removals, 20 % tests, of a thousand elements",
            {Kind.ADD: 0.6, Kind.REMOVE: 0.2, Kind.CONTAINS: 0.2},
            preload=False,
        ),
        Workload("counter", "Counters: 80 % increments, 20 % reads", {Kind.INCREMENT: 0.8, Kind.VALUE: 0.2}, preload=False),
        Workload("map", "Maps of a hundred fields: half puts, half gets", {Kind.FIELD_PUT: 0.5, Kind.FIELD_GET: 0.5}, preload=False),
        Workload("conflict", "Ten keys, written from everywhere at once", {Kind.UPDATE: 1.0}, "uniform", preload=False, keys=HOT_KEYS),
    )
}


@functools.lru_cache(maxsize=1 << 20)
def fnv64(number: int) -> int:
    """The FNV-1a hash of a number's eight bytes, which YCSB scrambles by.

    >>> fnv64(0) != fnv64(1), fnv64(7) == fnv64(7)
    (True, True)
    """
    value = _FNV_OFFSET
    for _ in range(8):
        value = ((value ^ (number & 0xFF)) * _FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
        number >>= 8
    return value


@functools.lru_cache(maxsize=1 << 20)
def record_key(number: int) -> str:
    """The key of record 0, 1, 2 …"""
    return f"user{fnv64(number):020d}"


def zeta(first: int, last: int, theta: float) -> float:
    """Sum of i^-θ for `first` < i ≤ `last`."""
    return math.fsum(i**-theta for i in range(first + 1, last + 1))


class Zipfian:
    """Ranks 0, 1, 2 … of `count` items, the r-th with probability proportional to (r + 1)^-θ. O(1) a draw; growing costs what is added."""

    def __init__(self, count: int, rng: random.Random, theta: float = THETA) -> None:
        assert count >= 1 and 0 < theta < 1, "Gray's method needs a θ between 0 and 1"
        self.theta = theta
        self._random = rng.random
        self._alpha = 1 / (1 - theta)
        self._second = 1 + 0.5**theta
        self.count = 0
        self._zeta = 0.0
        self._eta = 0.0
        self.grow(count)

    def grow(self, count: int) -> None:
        """There are now so many items."""
        self._zeta += zeta(self.count, count, self.theta)
        self.count = count
        two = zeta(0, min(2, count), self.theta)
        self._eta = (1 - (2 / count) ** (1 - self.theta)) / (1 - two / self._zeta) if count > 2 else 0.0

    def draw(self) -> int:
        """A rank."""
        u = self._random()
        uz = u * self._zeta
        if uz < 1 or self.count == 1:
            return 0
        if uz < self._second or self.count == 2:
            return 1
        return min(self.count - 1, int(self.count * (self._eta * u - self._eta + 1) ** self._alpha))

    def probability(self, rank: int) -> float:
        """Of a rank, by the definition."""
        return float((rank + 1) ** -self.theta / self._zeta)


class Operations:
    """The operations of one caller, without end.

    Args:
        workload: the mix.
        records: how many there are at the beginning.
        rng: draws everything.
        inserts: numbers of the records that will be inserted, shared by all callers, so that no two insert the same.
    """

    def __init__(self, workload: Workload, records: int, rng: random.Random, inserts: Iterator[int] | None = None) -> None:
        self.workload = workload
        self._rng = rng
        self._inserts = itertools.count(records) if inserts is None else inserts
        self._count = records if workload.keys is None else min(records, workload.keys)
        self._kinds = list(workload.shares)
        self._bounds = list(itertools.accumulate(workload.shares.values()))
        assert abs(self._bounds[-1] - 1) < 1e-9, "shares add up to 1"
        self._zipfian = Zipfian(self._count, rng) if workload.distribution != "uniform" else None
        self._draw = self._drawing()

    def _drawing(self) -> Callable[[], int]:
        zipfian = self._zipfian
        if zipfian is None:
            return lambda: self._rng.randrange(self._count)
        if self.workload.distribution == "latest":
            return lambda: zipfian.count - 1 - zipfian.draw()
        return lambda: fnv64(zipfian.draw()) % self._count

    def __iter__(self) -> Iterator[Operation]:
        while True:
            yield self.next()

    def next(self) -> Operation:
        """The next one."""
        share = self._rng.random()
        kind = next((k for k, bound in zip(self._kinds, self._bounds, strict=True) if share < bound), self._kinds[-1])
        if kind is Kind.INSERT:
            number = next(self._inserts)
            if self.workload.distribution == "latest" and self._zipfian is not None and number >= self._zipfian.count:
                self._zipfian.grow(number + 1)
            return Operation(kind, record_key(number))
        key = record_key(self._draw())
        match kind:
            case Kind.SCAN:
                return Operation(kind, key, self._rng.randint(1, SCAN_MAX))
            case Kind.ADD | Kind.REMOVE | Kind.CONTAINS:
                return Operation(kind, key, self._rng.randrange(ELEMENTS))
            case Kind.FIELD_PUT | Kind.FIELD_GET:
                return Operation(kind, key, self._rng.randrange(FIELDS))
            case _:
                return Operation(kind, key)
