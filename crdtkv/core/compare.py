"""Comparing two states that stand at different version vectors: what no commit explains is damage.

Regions never stand still together, so their states are compared as they are: a *lower* state and an *upper* one whose
vector covers the lower's. Then, slot by slot, some differences must be damage and others may be the work of the commits
that only the upper state has:

- One dot with two contents, or a dot that its own state's vector does not cover: damage.
- An entry that the upper state holds, whose dot the lower vector covers and the lower state lacks: it was superseded by
  a commit that the upper state has applied too. Damage.
- An entry that only the lower state holds: a commit between the two may have superseded it. Open.
- A counter's run grows with the vector: seqs that fall, one seq with two totals, a greater seq that the lower vector
  covers, a live run that the lower vector covers and the lower state lacks: damage. A base raised: open.

What is open in one pair is decided by the next: compare a state with a later one of the other replica, and that with a
still later one of the first. So a chain of three snapshots `b <= a <= b'` decides everything that was not overwritten
meanwhile, without stopping a writer and without reading a log. At equal vectors nothing is open and one pair suffices.

Ranges are compared before slots: the digest of a range is the sum of the same shares as the replica's own digest, so
the ranges of a state add up to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128_intdigest

from crdtkv.core.causality import Origin, VersionVector
from crdtkv.core.codec import TYPE_NAMES, SlotType, decode_value, split_slot
from crdtkv.core.join import check_slot
from crdtkv.core.replica import enters_digest
from crdtkv.core.state import hash_record
from crdtkv.core.types.base import decode_entries
from crdtkv.core.types.counter import decode_run, run_name
from crdtkv.errors import CorruptionError


class Disagreement(NamedTuple):
    """Why the two records of a slot cannot both be right; `lower` or `upper` if it is known which is damaged, else ""."""

    reason: str
    damaged: str


def digest_share(slot: bytes, record: bytes) -> int:
    """One record's share of a digest; 0 for a counter's run that is not live. A record that is no record counts as it is."""
    if record[:1] == b"\x94":  # only a counter's run is an array of four whose first item is no array
        try:
            if not enters_digest(slot, record):
                return 0
        except (ValueError, IndexError, msgspec.DecodeError):
            pass
    return hash_record(slot, record)


def digest_of(records: Iterable[tuple[bytes, bytes]]) -> int:
    """What records `(slot, record)` add to a digest, modulo 2^128. A loop over whole states: `digest_share` is asked where it matters."""
    hash_128 = xxh3_128_intdigest
    total = 0
    for slot, record in records:
        total += hash_128(record + slot) if record[:1] != b"\x94" else digest_share(slot, record)
    return total & ((1 << 128) - 1)


def damage(slot: bytes, record: bytes, vv: VersionVector) -> str | None:
    """What is wrong with a record by itself, in a state at `vv`; None if nothing is. O(record)."""
    try:
        check_slot(slot, record, vv)
    except CorruptionError as e:
        return e.message.removeprefix("snapshot: ")
    return None


def disagreement(
    slot: bytes, lower: bytes | None, lower_vv: VersionVector, upper: bytes | None, upper_vv: VersionVector
) -> Disagreement | None:
    """Why two records of one slot cannot both be right; None if commits beyond `lower_vv` may explain the difference.

    Args:
        lower, upper: the records, None where there is none.
        upper_vv: covers `lower_vv`.
    """
    for name, record, vv in (("lower", lower, lower_vv), ("upper", upper, upper_vv)):
        if record is not None and (found := damage(slot, record, vv)) is not None:
            return Disagreement(found, name)
    if lower == upper:
        return None
    _, type_code, subkey = split_slot(slot)
    if type_code == SlotType.COUNTER:
        reason = _compare_runs(run_name(subkey)[0], run_name(subkey)[1], lower, lower_vv, upper)
    else:
        reason = _compare_entries(lower, lower_vv, upper)
    return None if reason is None else Disagreement(reason, "")


def _compare_entries(lower: bytes | None, lower_vv: VersionVector, upper: bytes | None) -> str | None:
    before = {} if lower is None else {e.dot: e for e in decode_entries(lower)}
    for entry in [] if upper is None else decode_entries(upper):
        known = before.get(entry.dot)
        if known is None:
            if lower_vv.covers(entry.dot):
                return f"an entry of {entry.dot} is in one state, and the other has seen and dropped it"
        elif known != entry:
            return f"two contents of {entry.dot}"
    return None


def _compare_runs(origin: Origin, number: int, lower: bytes | None, lower_vv: VersionVector, upper: bytes | None) -> str | None:
    if upper is None:
        return None  # dropped as spent, or damaged: the next pair tells
    after = decode_run(upper)
    if lower is None:
        if after.live and lower_vv.covers((origin, number)):
            return f"a live run of {origin} from {number} is in one state only"
        return None
    before = decode_run(lower)
    if after.seq < before.seq or after.base_seq < before.base_seq:
        return f"a run of {origin} went back, from {before.seq} to {after.seq} (base {before.base_seq} to {after.base_seq})"
    if after.seq == before.seq and after.total != before.total:
        return f"two totals of {origin}:{after.seq}"
    if after.base_seq == before.base_seq and after.base != before.base:
        return f"two bases of {origin}:{after.base_seq}"
    if after.seq > before.seq and lower_vv.covers((origin, after.seq)):
        return f"an increment up to {origin}:{after.seq} is in one state only"
    return None


def slot_text(slot: bytes) -> str:
    """A slot for people: `key (type) subkey`; bytes that are no slot in hex."""
    try:
        key, type_code, subkey = split_slot(slot)
        text = f"{key.decode()} ({TYPE_NAMES[type_code]})"
        if type_code == SlotType.COUNTER:
            origin, number = run_name(subkey)
            return f"{text} run {origin}/{number}"
        return text if type_code == SlotType.REGISTER else f"{text} {decode_value(subkey)!r}"
    except (ValueError, IndexError, KeyError, CorruptionError, msgspec.DecodeError):
        return f"slot {slot.hex()}"
