"""What registers, set elements and map fields share: a slot with live entries, one per dot.

A slot's record is the canonical list of its entries in dot order. A write drops the entries that its context
covers and adds its own; a removal drops them and adds nothing. Several entries are *siblings*: concurrent writes.
The one with the greatest `(hlc, origin)` is read; causality has already decided everything else. Dropping the
losers at once would be wrong: a concurrent removal may have seen the winner and not the loser, and replicas that
meet the three updates in different orders would differ.

After: Almeida et al., "Delta State Replicated Data Types" (arXiv:1603.01529), the dot store with causal context;
Preguiça et al., "Dotted Version Vectors" (arXiv:1011.5808), for siblings.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from crdtkv.core.causality import Dot, Origin


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One write that is live in a slot.

    `hlc` is its stamp, `value` its canonical bytes (empty for a set's element, which is in the slot itself),
    `expiry` the Unix ms at which it stops being visible, or None.
    """

    origin: Origin
    seq: int
    hlc: int
    value: bytes
    expiry: int | None

    @property
    def dot(self) -> Dot:
        return Dot(self.origin, self.seq)


encode_entries = msgspec.msgpack.Encoder().encode
_NO_EXPIRY = encode_entries(None)
_NO_VALUE_NO_EXPIRY = encode_entries(b"") + _NO_EXPIRY
decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
PlainEntry = tuple[Origin, int, int, bytes, int | None]
"""An `Entry` as a plain tuple: encoded alike."""
decode_only_entry = msgspec.msgpack.Decoder(tuple[PlainEntry]).decode
"""`decode_entries` of a record with one entry, as plain tuples, a quarter faster: for the paths of many. Refuses siblings."""
ONE_ENTRY, TWO_ENTRIES = b"\x91", b"\x92"
"""What the record of one entry begins with, its encoding following; what that of two begins with."""


def around_value(origin: Origin, seq: int, hlc: int) -> tuple[bytes, bytes]:
    """What stands before and after the value, as MessagePack bytes, in the record of a slot whose one entry is of this dot and stays."""
    record = encode_entries((Entry(origin, seq, hlc, b"", None),))
    return record[: -len(_NO_VALUE_NO_EXPIRY)], _NO_EXPIRY


def rank(entry: Entry) -> tuple[int, Origin]:
    """What ties are decided by: the stored stamp, then the stored origin; never the local id or arrival."""
    return entry.hlc, entry.origin


def winner(entries: list[Entry]) -> Entry:
    """The entry that is read. `entries` is not empty."""
    return entries[0] if len(entries) == 1 else max(entries, key=rank)


def visible(entries: list[Entry], now_ms: int) -> Entry | None:
    """The winner, unless it has expired by `now_ms`: then the slot is absent, and no beaten sibling shows instead."""
    chosen = entries[0] if len(entries) == 1 else max(entries, key=rank)
    if chosen.expiry is not None and chosen.expiry <= now_ms:
        return None
    return chosen


def uncovered(entries: list[Entry], seen: Mapping[Origin, int]) -> list[Entry]:
    """The entries that a context has not seen: what survives a write or removal made in that context."""
    return [e for e in entries if seen.get(e.origin, 0) < e.seq]


def join_entries(mine: list[Entry], my_vv: Mapping[Origin, int], theirs: list[Entry], their_vv: Mapping[Origin, int]) -> list[Entry]:
    """The reference join of one slot: kept if both have it, or if the other side has never seen its dot.

    Covered by a side's vector and absent there means superseded there.
    """
    in_mine = {(e.origin, e.seq): e for e in mine}
    in_theirs = {(e.origin, e.seq): e for e in theirs}
    kept = [e for dot, e in in_mine.items() if dot in in_theirs or their_vv.get(e.origin, 0) < e.seq]
    kept += [e for dot, e in in_theirs.items() if dot not in in_mine and my_vv.get(e.origin, 0) < e.seq]
    kept.sort(key=lambda e: (e.origin, e.seq))
    return kept
