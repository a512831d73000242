"""What calls answer with: the same frozen values from an embedded store and from a client.

`to_wire`/`from_wire` turn those that are maps on the wire into plain MessagePack types and back; stored values
inside them travel as the `bin` of their canonical encoding, so that what a person reads as 1.0 is not 1. Unknown
fields are ignored and absent ones take their default, so an older client reads a newer node.

`Explanation` is written for people: `str()` of it tells who wrote what and when, who had seen what, who won, and
by which rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

import msgspec

from crdtkv.core.causality import EMPTY_VV, Dot, Origin, VersionVector, region_of
from crdtkv.core.clock import time_text
from crdtkv.core.codec import decode_value, encode_value, number_from_wire, number_to_wire
from crdtkv.core.token import Token
from crdtkv.errors import CorruptionError

T = TypeVar("T")

OK, FAILED, ONE_BY_ONE = 0, 1, 2
"""What a reply on the wire says of its request; the last: of a block, whose requests each have a reply. See `crdtkv.store.requests`."""

TEXT_MAX = 60
"""A value longer than this is cut in the texts for people."""


class Commit(msgspec.Struct, frozen=True, gc=False, eq=False):
    """One local transaction, as its origin numbered it. Two are equal if they name the same commit.

    Attributes:
        origin: the replica that took the write.
        seq: its number there, from 1, without a gap.
        hlc: its stamp (48 bits of Unix ms, 16 of counter).
        mark: its token, or what the token is made of when it is asked for.
    """

    origin: Origin
    seq: int
    hlc: int
    mark: str | tuple[int, int, VersionVector] | tuple[int, int, VersionVector, bool]

    @property
    def dot(self) -> Dot:
        """Its name for ever."""
        return Dot(self.origin, self.seq)

    @property
    def token(self) -> str:
        """Covers this commit and all it had seen; give it to `watch(since=…)` at the region that made it."""
        if isinstance(self.mark, str):
            return self.mark
        shard, position, context, *gathered = self.mark
        seen = self.seq if gathered else 0  # the frame at `position` may hold later commits too
        return Token(shard, self.origin, position, context.advance(self.origin, self.seq), seen).encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Commit) and (self.origin, self.seq) == (other.origin, other.seq)

    def __hash__(self) -> int:
        return hash((self.origin, self.seq))

    def __repr__(self) -> str:
        return f"Commit({self.origin}:{self.seq}, {time_text(self.hlc)})"


class Change(msgspec.Struct, frozen=True):
    """One visible change, as `watch` reports it.

    Attributes:
        type: register, set, counter or map.
        subkey: the element of a set, the field of a map; else None.
        kind: what happened to the slot ("put", "delete", "add", …).
        value: what is read there now; None if nothing is.
        commit: whose commit changed it; its `token` is this change's.
        token: resume after this change with `watch(since=token)`.
        unlogged: it came with a snapshot of another region's state, or a repair: no single commit of the log made it.
    """

    key: str
    type: str
    subkey: Any
    kind: str
    value: Any
    commit: Commit
    token: str
    unlogged: bool = False

    def to_row(self) -> list[Any]:
        """The row of a watch page."""
        subkey = None if self.subkey is None and self.type in ("register", "counter") else encode_value(self.subkey)
        value = None if self.value is None and self.kind in ABSENT_KINDS else _encode(self.value, self.type)
        commit = self.commit
        unlogged = [True] if self.unlogged else []
        return [self.key, self.type, subkey, self.kind, value, commit.origin, commit.seq, commit.hlc, *unlogged, self.token]

    @classmethod
    def from_row(cls, row: list[Any]) -> Self:
        """The inverse of `to_row`."""
        key, type_, subkey, kind, value, origin, seq, hlc, *unlogged, token = row
        return cls(
            key,
            type_,
            None if subkey is None else decode_value(subkey),
            kind,
            None if value is None else _decode(value, type_),
            Commit(origin, seq, hlc, token),
            token,
            unlogged == [True],
        )


ABSENT_KINDS = frozenset({"delete", "remove", "clear", "expire"})
"""Kinds of change after which nothing is read at the slot."""


@dataclass(frozen=True, slots=True)
class Sibling:
    """One of the concurrent values of a register; `siblings` lists the winner first."""

    value: Any
    dot: Dot
    hlc: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What `merge` did.

    Attributes:
        applied: commits that were new here.
        duplicates: commits that were known already.
        conflicts: entries that the merge added to the conflict journal.
        changed_keys: keys whose visible value may have changed, in key order.
    """

    applied: int
    duplicates: int
    conflicts: int
    changed_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """One write or removal, as told by a conflict or an explanation.

    Attributes:
        kind: "put", "delete", "add", "remove", "increment", "reset", …
        type: register, set, counter or map.
        subkey: the element or field; None for registers and counters.
        value: what was written; of a counter the run's contribution; None for a removal.
        seen: the origin's version vector before the commit: what the writer had seen; None if no longer known.
        outcome: "winner", "sibling", "superseded", "removed", "expired", "counts", … in the slot today.
        expires_ms: Unix ms at which it expires; None: never.
    """

    origin: Origin
    seq: int
    hlc: int
    kind: str
    type: str = "register"
    subkey: Any = None
    value: Any = None
    seen: VersionVector | None = None
    outcome: str = ""
    expires_ms: int | None = None

    @property
    def dot(self) -> Dot:
        """The commit's name."""
        return Dot(self.origin, self.seq)

    def had_seen(self, other: Write) -> bool | None:
        """Whether this writer had seen `other`; None if what it had seen is no longer known."""
        if self.origin == other.origin:
            return self.seq > other.seq
        return None if self.seen is None else self.seen.covers(other.dot)

    def to_wire(self) -> dict[str, Any]:
        """Plain MessagePack types; values as canonical bytes."""
        wire = _shallow(self)
        wire["subkey"] = encode_value(self.subkey)
        wire["value"] = _encode(self.value, self.type)
        wire["seen"] = None if self.seen is None else self.seen.to_bytes()
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`."""
        known = _known(cls, wire)
        if known.get("subkey") is not None:
            known["subkey"] = decode_value(known["subkey"])
        if known.get("value") is not None:
            known["value"] = _decode(known["value"], known.get("type"))
        if known.get("seen") is not None:
            known["seen"] = VersionVector.from_bytes(known["seen"])
        return _build(cls, known)

    def __str__(self) -> str:
        what = self.kind
        if self.subkey is not None:
            what += f" {_short(self.subkey)}"
        if self.kind not in ABSENT_KINDS and self.kind != "reset" and not (self.type == "set" and self.value is None):
            what += (" = " if self.subkey is not None else " ") + _short(self.value)
        return f"{time_text(self.hlc)}  {self.dot}  {what}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Concurrent updates of one slot, as the journal of this replica recorded them.

    Attributes:
        rule: why the winner won, e.g. "greatest (hlc, origin)", "add wins".
        winner: what is read; None if nothing is (removals only).
        losers: the updates it met, removals among them.
        hlc: the stamp at which it was recorded here.
        installed: found while installing a snapshot or merging one, so the order of arrival is not known.
    """

    key: str
    type: str
    subkey: Any
    rule: str
    winner: Write | None
    losers: tuple[Write, ...]
    hlc: int
    installed: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Plain MessagePack types; values as canonical bytes."""
        wire = _shallow(self)
        wire["subkey"] = encode_value(self.subkey)
        wire["winner"] = None if self.winner is None else self.winner.to_wire()
        wire["losers"] = [loser.to_wire() for loser in self.losers]
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`."""
        known = _known(cls, wire)
        known["subkey"] = None if known.get("subkey") is None else decode_value(known["subkey"])
        known["winner"] = None if known.get("winner") is None else Write.from_wire(known["winner"])
        known["losers"] = tuple(Write.from_wire(loser) for loser in known.get("losers") or ())
        return _build(cls, known)

    def __str__(self) -> str:
        where = self.key if self.subkey is None else f"{self.key}[{_short(self.subkey)}]"
        lines = [f"{where} ({self.type}): {self.rule}"]
        lines.append(f"  won   {self.winner}" if self.winner is not None else "  won   nothing: only removals met")
        lines += [f"  met   {loser}" for loser in self.losers]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a key reads as it does, at one replica.

    Attributes:
        found: something visible is stored at the key.
        types: the visible types; two if a key was written concurrently as two types.
        value: what a read gives (of a large collection its size, as text); of several types the last's.
        writes: live entries and the updates known to have met them, the winner of each slot first.
        rule: by which rule the winner won.
        conflicts: what the journal holds about the key, oldest first.
        replica: who answers; `vv`: what it had applied.
        notes: further facts, one sentence each (expiry, history that is no longer kept, writes left out).
    """

    key: str
    found: bool
    types: tuple[str, ...]
    value: Any
    writes: tuple[Write, ...]
    rule: str
    replica: Origin
    vv: VersionVector = EMPTY_VV
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """Plain MessagePack types; values as canonical bytes; with "text", the story."""
        wire = _shallow(self)
        wire["types"] = list(self.types)
        wire["notes"] = list(self.notes)
        wire["value"] = _encode(self.value, self.types[-1] if self.types else "")
        wire["writes"] = [write.to_wire() for write in self.writes]
        wire["conflicts"] = [conflict.to_wire() for conflict in self.conflicts]
        wire["vv"] = self.vv.to_bytes()
        wire["text"] = str(self)
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`."""
        known = _known(cls, wire)
        known["types"] = tuple(known.get("types") or ())
        known["notes"] = tuple(known.get("notes") or ())
        known["value"] = None if known.get("value") is None else _decode(known["value"], known["types"][-1] if known["types"] else "")
        known["writes"] = tuple(Write.from_wire(write) for write in known.get("writes") or ())
        known["conflicts"] = tuple(Conflict.from_wire(conflict) for conflict in known.get("conflicts") or ())
        known["vv"] = VersionVector.from_bytes(known["vv"]) if known.get("vv") else EMPTY_VV
        return _build(cls, known)

    def __str__(self) -> str:
        where = f"in {region_of(self.replica)} ({self.replica})"
        if self.found:
            value = f"has {self.value}" if self.types[-1] in ("set", "map") else f"is {_short(self.value)}"
            lines = [f"{self.key} is a {' and a '.join(self.types)}; read {where} it {value}"]
        else:
            lines = [f"{self.key} does not exist {where}"]
        if self.writes:
            lines.append("Written:")
            for write in self.writes:
                outcome = f"  <- {write.outcome}" if write.outcome else ""
                expiry = f", expires {time_text(write.expires_ms << 16)}" if write.expires_ms is not None else ""
                lines.append(f"  {write}{expiry}{outcome}")
        seen = list(_seen_lines(self.writes))
        if seen:
            lines += ["Who had seen what:", *(f"  {line}" for line in seen)]
        if self.rule:
            lines.append(f"Rule: {self.rule}")
        if self.conflicts:
            lines.append(f"Conflicts on record: {len(self.conflicts)}")
            for conflict in self.conflicts:
                lines += [f"  {line}" for line in str(conflict).splitlines()]
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, slots=True)
class PeerLag:
    """Replication with one peer, as one node sees it; what is not known is None, never 0.

    Attributes:
        lag_ms: how old the peer's newest commit that is not here may be; None while unknown or cut off.
        commits_behind, bytes_behind: what the peer announced and is not applied here.
        commits_ahead, bytes_ahead: what is here and the peer has not acknowledged as applied.
        sent_bytes, sent_wire_bytes: of all messages since the link was opened, and how many went over it, less by compression.
        compression: of what is sent now (`zlib`); empty if there is none.
        clock_offset_ms: the peer's wall clock minus ours.
        last_heard_ms: how long ago.
    """

    region: str
    address: str = ""
    origin: str = ""
    connected: bool = False
    state: str = ""
    lag_ms: float | None = None
    commits_behind: int | None = None
    bytes_behind: int | None = None
    commits_ahead: int | None = None
    bytes_ahead: int | None = None
    sent_bytes: int | None = None
    sent_wire_bytes: int | None = None
    compression: str = ""
    rtt_ms: float | None = None
    clock_offset_ms: float | None = None
    last_heard_ms: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """A replica and, at a node, what surrounds it.

    Attributes:
        vv, durable_vv: applied; fsynced.
        digest: of the visible state, 32 hex digits; None while it is not settled.
        log_start, log_end: positions: frames since the beginning of this log.
        log_floor: from after these seqs on the log is complete; who lacks older commits needs a snapshot.
        log_kept_for: the regions that have not yet acknowledged what would otherwise be dropped of the log.
        held_frames: received, waiting for what they rest on.
        conflicts: ever recorded in the journal.
        last_install: what the last snapshot from another region changed here, since the start; empty if there was none.
        read_only: why no writes are taken, on a full disk or in a region that is drained or removed; empty when they are.
        listen, uptime_ms, sessions, requests, peers: of a node; empty for an embedded store.
        warnings: one line each, saying what to do; empty when all is well.
    """

    region: str
    origin: Origin
    cluster: str = ""
    shard: int = 0
    version: str = ""
    engine: str = ""
    durability: str = ""
    path: str | None = None
    vv: VersionVector = EMPTY_VV
    durable_vv: VersionVector = EMPTY_VV
    digest: str | None = None
    hlc: int = 0
    wall_ms: int = 0
    log_start: int = 0
    log_end: int = 0
    log_bytes: int = 0
    log_floor: VersionVector = EMPTY_VV
    log_kept_for: tuple[str, ...] = ()
    last_install: str = ""
    read_only: str = ""
    state_bytes: int = 0
    held_frames: int = 0
    conflicts: int = 0
    watchers: int = 0
    ready: bool = True
    pid: int = 0
    uptime_ms: int = 0
    listen: str = ""
    sessions: int = 0
    requests: int = 0
    peers: tuple[PeerLag, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def to_wire(self) -> dict[str, Any]:
        """Plain MessagePack types."""
        wire = _shallow(self)
        wire["vv"] = self.vv.to_bytes()
        wire["durable_vv"] = self.durable_vv.to_bytes()
        wire["log_floor"] = self.log_floor.to_bytes()
        wire["log_kept_for"] = list(self.log_kept_for)
        wire["peers"] = [_shallow(peer) for peer in self.peers]
        wire["warnings"] = list(self.warnings)
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`."""
        known = _known(cls, wire)
        for name in ("vv", "durable_vv", "log_floor"):
            if known.get(name) is not None:
                known[name] = VersionVector.from_bytes(known[name])
        known["peers"] = tuple(_build(PeerLag, _known(PeerLag, peer)) for peer in known.get("peers") or ())
        known["log_kept_for"] = tuple(known.get("log_kept_for") or ())
        known["warnings"] = tuple(known.get("warnings") or ())
        return _build(cls, known)


def _encode(value: Any, type_: str) -> bytes:
    """A value as canonical bytes; a counter's may be beyond what a value may hold."""
    return encode_value(number_to_wire(value) if type_ == "counter" and type(value) is int else value)


def _decode(data: bytes, type_: str | None) -> Any:
    """The inverse of `_encode`."""
    value = decode_value(data)
    return number_from_wire(value) if type_ == "counter" and value is not None else value


def _shallow(instance: Any) -> dict[str, Any]:
    """A dataclass's fields, not copied."""
    return {f.name: getattr(instance, f.name) for f in fields(instance)}


def _known(cls: type[Any], wire: Any) -> dict[str, Any]:
    """The entries of `wire` that are fields of `cls`."""
    if not isinstance(wire, Mapping):
        raise CorruptionError(f"{cls.__name__}: expected a map, got {type(wire).__name__}")
    return {f.name: wire[f.name] for f in fields(cls) if f.name in wire}


def _build(cls: type[T], known: dict[str, Any]) -> T:
    try:
        return cls(**known)
    except TypeError as e:  # a field without a default is absent
        raise CorruptionError(f"{cls.__name__}: {e}") from e


def _short(value: Any) -> str:
    """A value as text for people, cut to `TEXT_MAX`."""
    text = repr(value)
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX - 1]}…"


def _seen_lines(writes: Iterable[Write]) -> Iterable[str]:
    """For each pair of writes of one slot whether one had seen the other; at most 16 lines."""
    listed = list(writes)
    count = 0
    for i, a in enumerate(listed):
        for b in listed[i + 1 :]:
            if (a.type, a.subkey) != (b.type, b.subkey) or a.dot == b.dot:
                continue
            forward, backward = a.had_seen(b), b.had_seen(a)
            if forward:
                line = f"{a.dot} had seen {b.dot}"
            elif backward:
                line = f"{b.dot} had seen {a.dot}"
            elif forward is False and backward is False:
                line = f"neither of {a.dot} and {b.dot} had seen the other: concurrent"
            else:
                line = f"whether {a.dot} or {b.dot} had seen the other is no longer known"
            if count == 16:
                yield "…"
                return
            count += 1
            yield line
