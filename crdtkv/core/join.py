"""Whole states as values, and their join: what every other way of exchanging commits must agree with.

A `Snapshot` is a causally closed state: the version vector of the commits applied, the hash of each origin's last
frame, and every slot's record. Two of them join slot by slot under one rule, the *absence rule*: what one side holds
stays if the other side holds it too, or has never seen its dot; covered by the other's vector and absent there means
superseded there. A counter's runs join pairwise by greater seq, and the same rule holds for a run that only one side
has. So the join is commutative, associative and idempotent, and applying the commits that one side lacks gives the
same state (`tests/property` holds both against each other).

A snapshot carries counter runs that are no longer live: an increment that has not seen the reset may still come,
and its total must meet the base. They count for nothing in value and digest, so states are compared `canonical()`ly.

Bytes, version 1:   0xC1 0x53 version  checksum  [requires, cluster, shard, vv, hashes, slots, extensions, …]
(0xC1 never starts a MessagePack value, and a frame goes on otherwise.) Slots ascend; every record must be what this
replica would itself have written; anything else is refused before anything is joined.

After: Almeida, Shoker, Baquero, "Delta State Replicated Data Types" (arXiv:1603.01529), join of causal CRDTs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from crdtkv.core.causality import SEQ_MAX, Origin, VersionVector, check_origin
from crdtkv.core.clock import STAMP_MAX
from crdtkv.core.codec import KEY_BYTES_MAX, SLOT_SPACE, SlotType, check_value, decode_value, slot_of, split_slot, successor
from crdtkv.core.control import NOTHING_AGREED, Agreed
from crdtkv.core.frame import CONTROL_FEATURE, HASH_BYTES
from crdtkv.core.replica import Replica, enters_digest
from crdtkv.core.state import hash_record
from crdtkv.core.types.base import Entry, decode_entries, encode_entries, join_entries
from crdtkv.core.types.counter import Run, decode_run, encode_run, join_runs, run_name, run_slot
from crdtkv.errors import CorruptionError, IncompatibleFormatError, WrongClusterError

MAGIC: Final = b"\xc1\x53"
FORMAT_VERSION: Final = 1
KNOWN_FEATURES: Final = frozenset({CONTROL_FEATURE})
CHECKSUM_BYTES: Final = 16
_HEADER_BYTES: Final = len(MAGIC) + 1 + CHECKSUM_BYTES
_DIGEST_MASK: Final = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One causally closed state. Both mappings are in the order of their keys.

    Attributes:
        vv: what is applied, closed origins included.
        hashes: for each origin in `vv` the hash of the frame that ends at its seq.
        slots: slot → its canonical record; every dot in it is covered by `vv`.
        agreed: closed origins and members.
    """

    cluster: str
    shard: int
    vv: VersionVector
    hashes: Mapping[Origin, bytes]
    slots: Mapping[bytes, bytes]
    agreed: Agreed = NOTHING_AGREED

    def canonical(self) -> dict[bytes, bytes]:
        """The records that count as state: all but the runs that are not live. Equal vectors mean equal canonical states."""
        return {slot: record for slot, record in self.slots.items() if enters_digest(slot, record)}

    def digest(self) -> int:
        """What a replica in this state has for its digest. O(state)."""
        return sum(hash_record(slot, record) for slot, record in self.canonical().items()) & _DIGEST_MASK

    def to_bytes(self) -> bytes:
        """Canonical bytes: equal snapshots give equal bytes."""
        flat = [part for pair in self.slots.items() for part in pair]
        hashes = [self.hashes[o] for o in self.vv]
        requires, extensions = ([], None) if self.agreed == NOTHING_AGREED else ([CONTROL_FEATURE], {"control": self.agreed.to_wire()})
        body = msgspec.msgpack.encode((requires, self.cluster, self.shard, self.vv.flat(), hashes, flat, extensions))
        return MAGIC + bytes([FORMAT_VERSION]) + _checksum(body) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """The inverse of `to_bytes`. Time and memory are proportional to the length of `data`.

        Raises:
            CorruptionError: not a snapshot, or one that no replica would have written.
            IncompatibleFormatError: a format version or required feature that this version does not know.
        """
        if not is_snapshot(data) or len(data) < _HEADER_BYTES:
            raise CorruptionError("snapshot: does not start like one")
        if data[2] != FORMAT_VERSION:
            raise IncompatibleFormatError(
                f"snapshot: format version {data[2]}, this version of crdtkv knows {FORMAT_VERSION}: upgrade it", version=data[2]
            )
        body = data[_HEADER_BYTES:]
        if data[3:_HEADER_BYTES] != _checksum(body):
            raise CorruptionError("snapshot: the checksum does not fit: it was cut or changed on its way")
        try:
            wire = _decode_wire(body)
        except _DECODE_ERRORS as e:
            raise CorruptionError(f"snapshot: {e}") from e
        unknown = [name for name in wire.requires if name not in KNOWN_FEATURES]
        if unknown:
            raise IncompatibleFormatError(
                f"snapshot: needs the feature {', '.join(map(repr, unknown))[:200]}, unknown to this version of crdtkv: upgrade it",
                features=unknown[:16],
            )
        vv = VersionVector.from_flat(wire.vv)
        if wire.shard < 0 or len(wire.hashes) != len(vv) or any(len(h) != HASH_BYTES for h in wire.hashes):
            raise CorruptionError("snapshot: shard or hashes out of range")
        if len(wire.slots) % 2:
            raise CorruptionError("snapshot: a slot without its record")
        slots: dict[bytes, bytes] = {}
        last = b""
        for slot, record in zip(wire.slots[::2], wire.slots[1::2], strict=True):
            if slot <= last:
                raise CorruptionError("snapshot: slots are repeated or out of order")
            check_slot(slot, record, vv)
            slots[slot] = record
            last = slot
        return cls(
            wire.cluster,
            wire.shard,
            vv,
            dict(zip(vv, wire.hashes, strict=True)),
            slots,
            check_agreed((wire.extensions or {}).get("control"), vv),
        )


def is_snapshot(data: bytes) -> bool:
    """Whether bytes start like a snapshot (of whatever format version), not like a frame."""
    return data[: len(MAGIC)] == MAGIC


def snapshot_of(replica: Replica) -> Snapshot:
    """A replica's whole state; entries that a clear in progress has covered are already gone from it. O(state)."""
    slots: dict[bytes, bytes] = {}
    for slot, record in replica.state.scan(SLOT_SPACE, successor(SLOT_SPACE)):
        if replica.purges and split_slot(slot)[1] != SlotType.COUNTER:
            entries = replica.entries(slot, record)
            if entries:
                slots[slot] = encode_entries(entries)
        else:
            slots[slot] = record
    vv = replica.vv()
    return Snapshot(replica.cluster, replica.shard, vv, {o: replica.last_hash(o)[1] for o in vv}, slots, replica.control.agreed())


def join(a: Snapshot, b: Snapshot) -> Snapshot:
    """The least state that has applied what either has. O(slots of both).

    Raises:
        CorruptionError: they hold two contents for one dot (a fork).
        WrongClusterError: they are of different clusters or shards.
    """
    if (a.cluster, a.shard) != (b.cluster, b.shard):
        raise WrongClusterError(
            f"a snapshot of cluster {b.cluster!r} shard {b.shard} came to cluster {a.cluster!r} shard {a.shard}",
            cluster=b.cluster,
            shard=b.shard,
        )
    vv = a.vv.join(b.vv)
    slots = {}
    for slot in sorted(a.slots.keys() | b.slots.keys()):
        mine, theirs = a.slots.get(slot), b.slots.get(slot)
        record = mine if mine == theirs else join_records(slot, mine, a.vv, theirs, b.vv)
        if record is not None:
            slots[slot] = record
    return Snapshot(a.cluster, a.shard, vv, {o: _join_hash(o, a, b) for o in vv}, slots, a.agreed.join(b.agreed))


def difference(before: Snapshot, after: Snapshot) -> dict[bytes, bytes | None]:
    """The slots to write (None: to drop) that turn one state into another."""
    changes: dict[bytes, bytes | None] = {slot: record for slot, record in after.slots.items() if before.slots.get(slot) != record}
    changes.update((slot, None) for slot in before.slots if slot not in after.slots)
    return changes


def join_records(slot: bytes, mine: bytes | None, my_vv: VersionVector, theirs: bytes | None, their_vv: VersionVector) -> bytes | None:
    _, type_code, subkey = split_slot(slot)
    if type_code == SlotType.COUNTER:
        if mine is not None and theirs is not None:
            return encode_run(join_runs(decode_run(mine), decode_run(theirs)))
        # The absence rule: a run that the other side has seen and no longer holds was dropped there as stable.
        record, other_vv = (mine, their_vv) if mine is not None else (theirs, my_vv)
        assert record is not None
        return None if other_vv.covers((run_name(subkey)[0], decode_run(record).seq)) else record
    entries = join_entries(_entries(mine), my_vv, _entries(theirs), their_vv)
    return encode_entries(entries) if entries else None


def _entries(record: bytes | None) -> list[Entry]:
    return [] if record is None else decode_entries(record)


def _join_hash(origin: Origin, a: Snapshot, b: Snapshot) -> bytes:
    """The hash that belongs to the greater seq; at equal seqs they must be equal."""
    mine, theirs = a.vv.seq(origin), b.vv.seq(origin)
    if mine == theirs and a.hashes[origin] != b.hashes[origin]:
        raise CorruptionError(f"fork: two histories of {origin} end at {mine}", origin=origin, seq=mine)
    return a.hashes[origin] if mine >= theirs else b.hashes[origin]


# -- bytes from elsewhere -------------------------------------------------------------------------------------


class _Wire(msgspec.Struct, array_like=True, frozen=True, gc=False):
    requires: list[str]
    cluster: str
    shard: int
    vv: list[Any]
    hashes: list[bytes]
    slots: list[bytes]
    extensions: dict[str, msgspec.Raw] | None


_decode_wire = msgspec.msgpack.Decoder(_Wire).decode
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError, TypeError, OverflowError)


def check_agreed(raw: msgspec.Raw | None, vv: VersionVector) -> Agreed:
    """The closings and members that bytes hold, or `CorruptionError` unless a replica at `vv` may know them."""
    if raw is None or bytes(raw) == b"\xc0":
        return NOTHING_AGREED
    try:
        agreed = Agreed.from_wire(msgspec.msgpack.decode(raw))
    except _DECODE_ERRORS as e:
        raise CorruptionError(f"snapshot: {e}") from e
    for origin, closes in agreed.closed.items():
        if any(vv.seq(origin) < c.seq or vv.seq(c.by) < c.at for c in closes):
            raise CorruptionError("snapshot: a closing is not covered by its version vector")
    return agreed


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


def check_slot(slot: bytes, record: bytes, vv: VersionVector) -> None:
    """Raise `CorruptionError` unless a slot and its record are exactly what a replica at `vv` may hold."""
    try:
        key, type_code, subkey = split_slot(slot)
        if slot != slot_of(key, type_code, subkey) or not 0 < len(key) <= KEY_BYTES_MAX:
            raise CorruptionError("snapshot: a slot is not in canonical form")
        key.decode()
        if type_code == SlotType.COUNTER:
            _check_run(slot, key, subkey, record, vv)
            return
        if type_code == SlotType.REGISTER:
            if subkey:
                raise CorruptionError("snapshot: a register has a subkey")
        else:
            check_value(subkey)
            if type_code == SlotType.MAP and not isinstance(decode_value(subkey), str):
                raise CorruptionError("snapshot: a field is not text")
        _check_entries(type_code, record, vv)
    except (*_DECODE_ERRORS, IndexError, KeyError) as e:
        raise CorruptionError(f"snapshot: {e}") from e


def _check_entries(type_code: int, record: bytes, vv: VersionVector) -> None:
    entries = decode_entries(record)
    if not entries or encode_entries(entries) != record:
        raise CorruptionError("snapshot: a record is empty or not in canonical form")
    last: tuple[str, int] = ("", 0)
    for e in entries:
        check_origin(e.origin)
        if (e.origin, e.seq) <= last or not 0 < e.seq <= vv.seq(e.origin):
            raise CorruptionError("snapshot: a record's dots are out of order, or not covered by its version vector")
        if not 0 <= e.hlc <= STAMP_MAX or (e.expiry is not None and not 0 < e.expiry <= STAMP_MAX):
            raise CorruptionError("snapshot: a stamp or expiry out of range")
        if type_code != SlotType.SET:
            check_value(e.value)
        elif e.value:
            raise CorruptionError("snapshot: an element holds a value")
        last = (e.origin, e.seq)


def _check_run(slot: bytes, key: bytes, subkey: bytes, record: bytes, vv: VersionVector) -> None:
    origin, number = run_name(subkey)
    check_origin(origin)
    run: Run = decode_run(record)
    if slot != run_slot(key, origin, number) or encode_run(run) != record:
        raise CorruptionError("snapshot: a counter's run is not in canonical form")
    if not 0 < number <= run.seq <= min(vv.seq(origin), SEQ_MAX) or not 0 <= run.base_seq <= run.seq:
        raise CorruptionError("snapshot: a counter's run is out of range, or not covered by its version vector")
