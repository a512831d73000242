"""A history: sessions of transactions that read and write, and the relations that follow from who read whose value.

Transactions are numbered in the order in which they are given, which must be that of each session. Number `INITIAL` stands for
the writer of what was there before everything, the value None of every key.

    so    session order
    wr    a transaction read what another had written (differentiated: there is no doubt who)
    co    causal order, the transitive closure of both

Relations are lists of bit sets: bit j of `co[i]` says that j comes before i. A closure costs O(n²) operations on n-bit numbers:
histories of a thousand transactions take a second.

Sources: Bouajjani, Enea, Guerraoui, Hamza, "On verifying causal consistency" (POPL 2017), section 2 and 5; Biswas and Enea,
"On the complexity of checking transactional consistency" (OOPSLA 2019), for transactions in place of single operations.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

INITIAL: Final = -1
"""The number of the writer of initial values; before everything."""
THIN_AIR: Final = -2
"""The number of the writer of values that nobody wrote."""


class Read(NamedTuple):
    """A key read as a value; None: as nothing was ever written there."""

    key: str
    value: Hashable


class Write(NamedTuple):
    """A value written to a key; not None, and never the same value twice to one key."""

    key: str
    value: Hashable


@dataclass(frozen=True, slots=True)
class Transaction:
    """What one session did in one atomic step: a single read or write, or a batch."""

    session: str
    operations: tuple[Read | Write, ...]

    def __str__(self) -> str:
        what = ", ".join(f"{op.key}={op.value!r}{'?' if isinstance(op, Read) else ''}" for op in self.operations)
        return f"{self.session}: {what}"


class Anomaly(NamedTuple):
    """Something that a promise forbids: its name, the numbers of the transactions that show it, and the story."""

    name: str
    transactions: tuple[int, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


class History:
    """See the module's docstring. Immutable.

    Attributes:
        reads: per transaction, key → number of the transaction whose value it read (its first read of the key from outside).
        writes: per transaction, key → the last value it wrote there: what others may see.
        inside: reads that the transaction itself should have answered, as (number, key, seen, wanted).
        repeated: keys that a transaction read from outside in two ways, as (number, key).
        intermediate: reads of what its writer had overwritten itself, as (number, writer, key).

    Raises:
        ValueError: two transactions write the same value to a key, or one writes None.
    """

    def __init__(self, transactions: Iterable[Transaction]) -> None:
        self.transactions: Sequence[Transaction] = tuple(transactions)
        self.writes: list[dict[str, Hashable]] = []
        self.reads: list[dict[str, int]] = []
        self.inside: list[tuple[int, str, Hashable, Hashable]] = []
        self.repeated: list[tuple[int, str]] = []
        self.intermediate: list[tuple[int, int, str]] = []
        self._writer: dict[tuple[str, Hashable], int] = {}
        self._note_writes()
        self._note_reads()

    def _note_writes(self) -> None:
        for number, transaction in enumerate(self.transactions):
            last: dict[str, Hashable] = {}
            for op in transaction.operations:
                if isinstance(op, Write):
                    last[op.key] = op.value
                    if op.value is None:
                        raise ValueError(f"transaction {number} writes None to {op.key}: that is the initial value")
                    if self._writer.setdefault((op.key, op.value), number) != number:
                        raise ValueError(f"transactions {self._writer[op.key, op.value]} and {number} both write {op.value!r} to {op.key}")
            self.writes.append(last)

    def _note_reads(self) -> None:
        for number, transaction in enumerate(self.transactions):
            outside: dict[str, int] = {}
            own: dict[str, Hashable] = {}
            for op in transaction.operations:
                if isinstance(op, Write):
                    own[op.key] = op.value
                elif op.key in own:
                    if own[op.key] != op.value:
                        self.inside.append((number, op.key, op.value, own[op.key]))
                else:
                    writer = INITIAL if op.value is None else self._writer.get((op.key, op.value), THIN_AIR)
                    if outside.setdefault(op.key, writer) != writer:
                        self.repeated.append((number, op.key))
                    if writer >= 0 and writer != number and self.writes[writer][op.key] != op.value:
                        self.intermediate.append((number, writer, op.key))
            self.reads.append(outside)

    def __len__(self) -> int:
        return len(self.transactions)

    def say(self, *numbers: int) -> str:
        """Transactions in words."""
        return "; ".join("initially nothing" if n == INITIAL else f"[{n}] {self.transactions[n]}" for n in numbers)

    @cached_property
    def sessions(self) -> dict[str, list[int]]:
        """The transactions of each session, in its order."""
        found: dict[str, list[int]] = {}
        for number, transaction in enumerate(self.transactions):
            found.setdefault(transaction.session, []).append(number)
        return found

    def writers(self, key: str) -> Iterator[int]:
        """Who wrote a key, in the order of numbers."""
        return iter(self._writers.get(key, ()))

    @cached_property
    def _writers(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, writes in enumerate(self.writes):
            for key in writes:
                found.setdefault(key, []).append(number)
        return found

    @cached_property
    def direct(self) -> list[int]:
        """so ∪ wr without the closure: for each transaction its predecessor in its session, and whom it read from."""
        before = [0] * len(self)
        for numbers in self.sessions.values():
            for one, next_ in pairwise(numbers):
                before[next_] |= 1 << one
        for number, reads in enumerate(self.reads):
            for writer in reads.values():
                if writer >= 0:
                    before[number] |= 1 << writer
        return before

    @cached_property
    def co(self) -> list[int]:
        """The causal order. Where it is cyclic, transactions come before themselves."""
        return closure(self.direct)

    def precedes(self, one: int, other: int) -> bool:
        """Whether one comes strictly before another in causal order, and not after it as well."""
        if one == INITIAL:
            return other != INITIAL
        return other >= 0 and one >= 0 and holds(self.co, one, other) and not holds(self.co, other, one)


def closure(before: Sequence[int]) -> list[int]:
    """The transitive closure of a relation (Warshall, row by row)."""
    reached = list(before)
    for middle in range(len(reached)):
        bit, row = 1 << middle, reached[middle]
        if row:
            for number, known in enumerate(reached):
                if known & bit:
                    reached[number] = known | row
    return reached


def holds(before: Sequence[int], one: int, other: int) -> bool:
    """Whether `one` comes before `other`."""
    return bool(before[other] >> one & 1)


def cycle(before: Sequence[int]) -> tuple[int, ...]:
    """A shortest cycle of a relation, each member before the next; empty if there is none."""
    reached = closure(before)
    best: tuple[int, ...] = ()
    for start in (n for n in range(len(before)) if holds(reached, n, n)):
        found = _way_back(before, start)
        if not best or len(found) < len(best):
            best = found
    return best


def _way_back(before: Sequence[int], start: int) -> tuple[int, ...]:
    """Breadth first from a transaction through its predecessors to itself."""
    came_from: dict[int, int] = {}
    edge = [start]
    while edge:
        further = []
        for number in edge:
            for earlier in members(before[number]):
                if earlier == start:
                    way = [number]
                    while way[-1] != start:
                        way.append(came_from[way[-1]])
                    return (start, *way[:-1])
                if earlier not in came_from:
                    came_from[earlier] = number
                    further.append(earlier)
        edge = further
    raise AssertionError(f"{start} is on no cycle")


def members(bits: int) -> Iterator[int]:
    """The numbers in a bit set."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
