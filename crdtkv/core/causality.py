"""Dots and version vectors: who wrote what, and who had seen what.

A *dot* `(origin, seq)` names one commit for ever; `origin` is one incarnation of one region's copy and `seq`
counts its commits 1, 2, 3 … without a gap. A *version vector* maps each origin to its last applied seq. Because
there are no gaps it names exactly a set of commits, and coverage is one comparison per origin.

Origins are plain strings `region@generation-nonce` (`us@1-9f3c2a1b`): compact, hashed once, and ordered by their
code points, so that every replica breaks ties alike.

After: Parker et al., "Detection of Mutual Inconsistency in Distributed Systems" (1983); Almeida, Shoker, Baquero,
"Delta State Replicated Data Types", arXiv:1603.01529.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, NewType, final

import msgspec

from crdtkv.errors import ConfigError, CorruptionError

Origin = NewType("Origin", str)
"""`region@generation-nonce`; see `make_origin`."""

SEQ_MAX = 2**63 - 1
_SHORT = 2 * 16
"""A flat vector of so many items at most is remembered: 16 origins."""
_new = object.__new__
_encode = msgspec.msgpack.Encoder().encode
_ORIGIN = re.compile(r"([a-z0-9][a-z0-9_-]{0,31})@([0-9a-f]{1,8})-([0-9a-f]{8})")
_REGION = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def check_region(region: object) -> str:
    """Return `region` if it is a valid name: 1..32 of a-z, 0-9, `_`, `-`, not starting with `_` or `-`."""
    if not isinstance(region, str) or not _REGION.fullmatch(region):
        raise ConfigError(
            f"region {region!r} is not a valid name: use 1 to 32 of a-z, 0-9, '_' and '-', starting with a letter or digit",
            region=str(region),
        )
    return region


def make_origin(region: str, generation: int, nonce: int) -> Origin:
    """The id of one incarnation: `generation` is greater than any seen for the region, `nonce` is 32 random bits."""
    return Origin(f"{check_region(region)}@{generation:x}-{nonce & 0xFFFFFFFF:08x}")


def check_origin(origin: object) -> Origin:
    """Return `origin` if it has the form of an origin, else raise `CorruptionError` (it came from bytes)."""
    if not isinstance(origin, str):
        raise CorruptionError(f"not an origin: {str(origin)[:60]!r}")
    return _checked(origin)


@lru_cache(maxsize=1 << 12)
def _checked(origin: str) -> Origin:
    """Every vector of every message names the same few origins. What is no origin is not kept, however long it is."""
    if not _ORIGIN.fullmatch(origin):
        raise CorruptionError(f"not an origin: {origin[:60]!r}")
    return Origin(origin)


@lru_cache(maxsize=1 << 12)
def region_of(origin: Origin) -> str:
    """The region an origin is an incarnation of."""
    return origin.partition("@")[0]


@lru_cache(maxsize=1 << 12)
def generation_of(origin: Origin) -> int:
    """The generation number inside an origin."""
    return int(origin.partition("@")[2].partition("-")[0], 16)


def next_generation(region: str, seen: Iterable[Origin]) -> int:
    """A generation above every one seen of a region."""
    return 1 + max((generation_of(o) for o in seen if region_of(o) == region), default=0)


class Dot(NamedTuple):
    """One commit's name for ever."""

    origin: Origin
    seq: int

    def __str__(self) -> str:
        return f"{self.origin}:{self.seq}"


@final
class VersionVector(Mapping[Origin, int]):
    """Origin → last applied seq; immutable. An origin that is absent counts as 0, and 0 is never stored.

    As a mapping it iterates in origin order. `a <= b` asks whether b covers all that a covers; two vectors may be
    neither `<=` nor `>=`: then they are concurrent.

    >>> a = VersionVector({Origin("us@1-00000000"): 3})
    >>> b = a.advance(Origin("eu@1-00000000"), 1)
    >>> a <= b, b <= a, b.covers(Dot(Origin("us@1-00000000"), 4))
    (True, False, False)
    """

    __slots__ = ("_bytes", "_hash", "_seqs")
    _seqs: dict[Origin, int]
    _bytes: bytes | None

    def __init__(self, seqs: Mapping[Origin, int] | Iterable[tuple[Origin, int]] = ()) -> None:
        items = seqs.items() if type(seqs) is dict or isinstance(seqs, Mapping) else seqs
        self._seqs = {o: n for o, n in sorted(items) if n > 0}
        self._hash: int | None = None
        self._bytes = None

    @classmethod
    def adopt(cls, seqs: dict[Origin, int]) -> VersionVector:
        """Wrap a dict that the caller gives up, holding only positive seqs; it need not be sorted. O(1)."""
        vv = _new(cls)
        vv._seqs = seqs
        vv._hash = vv._bytes = None
        return vv

    def __getitem__(self, origin: Origin) -> int:
        return self._seqs[origin]

    def __iter__(self) -> Iterator[Origin]:
        return iter(sorted(self._seqs))

    def __len__(self) -> int:
        return len(self._seqs)

    # `Mapping` would make these of `__iter__` and `__getitem__`, at several times the cost.

    def __contains__(self, origin: object) -> bool:
        return origin in self._seqs

    def items(self) -> ItemsView[Origin, int]:
        seqs = self._seqs
        return (seqs if len(seqs) < 2 else dict(sorted(seqs.items()))).items()

    def pairs(self) -> ItemsView[Origin, int]:
        """The items, in no order. O(1)."""
        return self._seqs.items()

    def count(self) -> int:
        """How many commits this vector covers."""
        return sum(self._seqs.values())

    def origins(self) -> KeysView[Origin]:
        """The origins, in no order: to be looked up, and compared. O(1)."""
        return self._seqs.keys()

    def seq(self, origin: Origin) -> int:
        """The last applied seq of `origin`, 0 if none. O(1)."""
        return self._seqs.get(origin, 0)

    def covers(self, dot: Dot | tuple[Origin, int] | VersionVector) -> bool:
        """Whether the commit named by `dot` (or every commit of another vector) is in this set. O(1) for a dot."""
        if type(dot) is VersionVector:  # `isinstance` asks an abstract class of every dot what it is: three times the cost of the rest
            return dot <= self
        return self._seqs.get(dot[0], 0) >= dot[1]

    def __le__(self, other: VersionVector) -> bool:
        if self is other:
            return True
        theirs = other._seqs
        for o, n in self._seqs.items():  # noqa: SIM110 (as a loop it costs half, and it is asked at every turn)
            if theirs.get(o, 0) < n:
                return False
        return True

    def __ge__(self, other: VersionVector) -> bool:
        return other <= self

    def __lt__(self, other: VersionVector) -> bool:
        return self <= other and self != other

    def __gt__(self, other: VersionVector) -> bool:
        return other < self

    def __eq__(self, other: object) -> bool:
        return type(other) is VersionVector and self._seqs == other._seqs

    def __ne__(self, other: object) -> bool:  # what Python makes of `__eq__` costs three times as much
        return type(other) is not VersionVector or self._seqs != other._seqs

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._seqs.items()))
        return self._hash

    def concurrent(self, other: VersionVector) -> bool:
        """Neither covers the other."""
        return not self <= other and not other <= self

    def join(self, other: VersionVector) -> VersionVector:
        """Least upper bound: the union of both sets of commits."""
        seqs = dict(self._seqs)
        for o, n in other._seqs.items():
            if n > seqs.get(o, 0):
                seqs[o] = n
        return VersionVector.adopt(seqs)

    def meet(self, other: VersionVector) -> VersionVector:
        """Greatest lower bound: what both cover."""
        return VersionVector.adopt({o: m for o, n in self._seqs.items() if (m := min(n, other._seqs.get(o, 0))) > 0})

    def advance(self, origin: Origin, seq: int) -> VersionVector:
        """This vector with `origin` raised to at least `seq`."""
        if seq <= self._seqs.get(origin, 0):
            return self
        return VersionVector.adopt({**self._seqs, origin: seq})

    def without(self, origin: Origin) -> VersionVector:
        """This vector with nothing of `origin`."""
        if origin not in self._seqs:
            return self
        return VersionVector.adopt({o: n for o, n in self._seqs.items() if o != origin})

    def beyond(self, other: VersionVector) -> dict[Origin, int]:
        """Of each origin of which this vector covers more than `other` its last seq here, in no order: empty iff `self <= other`."""
        theirs = other._seqs.get
        return {o: n for o, n in self._seqs.items() if n > theirs(o, 0)}

    def missing_from(self, other: VersionVector) -> int:
        """How many commits this vector covers that `other` does not."""
        get = other._seqs.get
        return sum(max(0, n - get(o, 0)) for o, n in self._seqs.items())

    def flat(self) -> list[str | int]:
        """`[origin, seq, origin, seq, …]` in origin order: the form on the wire and on disk."""
        return list(chain.from_iterable(sorted(self._seqs.items())))

    @classmethod
    def from_flat(cls, flat: object) -> VersionVector:
        """The inverse of `flat`; anything else (unsorted, repeated, out of range) is a `CorruptionError`.

        Vectors come again and again, as what is applied and what is durable, in acks, heartbeats and contexts, from one peer and the next.
        So a short one that came lately is the same object again: it is looked up in a quarter of the time, and then equal at a glance.
        """
        if not isinstance(flat, list) or len(flat) % 2:
            raise CorruptionError("version vector: expected a list of origin, seq pairs")
        if len(flat) <= _SHORT:
            try:
                return _of_short(*flat)
            except TypeError:
                pass  # something that has no hash: it is named below
        return _of_pairs(flat)

    def to_bytes(self) -> bytes:
        """Canonical bytes: equal vectors give equal bytes. Made once: what is acknowledged to one peer goes to the others as well."""
        if self._bytes is None:
            self._bytes = _encode(self.flat())
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> VersionVector:
        """The inverse of `to_bytes`; raises `CorruptionError` for anything else."""
        try:
            flat = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as e:
            raise CorruptionError(f"version vector: {e}") from e
        vv = cls.from_flat(flat)
        if vv.to_bytes() != data:
            raise CorruptionError("version vector: not in canonical form")
        return vv

    def __str__(self) -> str:
        return "{" + ", ".join(f"{o}:{self._seqs[o]}" for o in sorted(self._seqs)) + "}"

    def __repr__(self) -> str:
        return f"VersionVector({self})"


def _of_pairs(flat: Sequence[object]) -> VersionVector:
    """A vector from its flat form, which is an even number of items that may be anything."""
    seqs: dict[Origin, int] = {}
    last = ""
    for name, seq in zip(flat[::2], flat[1::2], strict=True):
        origin = _checked(name) if type(name) is str else check_origin(name)
        if type(seq) is not int or not 0 < seq <= SEQ_MAX:
            raise CorruptionError(f"version vector: seq {seq!r} of {origin} is not in 1..2^63-1")
        if origin <= last:
            raise CorruptionError(f"version vector: {origin} is repeated or out of order")
        seqs[origin] = seq
        last = origin
    return VersionVector.adopt(seqs)


@lru_cache(maxsize=256, typed=True)  # typed: to `==`, True is 1
def _of_short(*flat: object) -> VersionVector:
    return _of_pairs(flat)


EMPTY_VV = VersionVector()
