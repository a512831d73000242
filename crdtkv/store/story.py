"""Why a key reads as it does: siblings, journal and log put together for a person."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from crdtkv.core.causality import Dot, Origin, VersionVector
from crdtkv.core.codec import TYPE_NAMES, SlotType, decode_value, key_range, slot_of, split_slot
from crdtkv.core.journal import RULE_LWW, Record, Update
from crdtkv.core.replica import Replica
from crdtkv.core.types.base import Entry, rank, visible, winner
from crdtkv.core.types.counter import decode_run, run_name
from crdtkv.errors import InvalidValueError
from crdtkv.results import Conflict, Explanation, Sibling, Write
from crdtkv.store.machine import Machine
from crdtkv.store.reading import Reader

WRITES_MAX = 100
"""How many live writes of one key an explanation lists; that more are left out is said."""
CONFLICTS_MAX = 20


def siblings(replica: Replica, reader: Reader, raw: bytes) -> list[Sibling]:
    """The concurrent values of a register, the winner first; [] if it is absent or has expired."""
    entries = reader.entries(slot_of(raw, SlotType.REGISTER))
    if not entries or visible(entries, replica.now_ms()) is None:
        return []
    return [Sibling(decode_value(e.value), Dot(e.origin, e.seq), e.hlc, e.origin) for e in sorted(entries, key=rank, reverse=True)]


def conflicts(replica: Replica, prefix: bytes, since: int | None, limit: int | None) -> list[Conflict]:
    """The journal's records of keys with a prefix, newest last."""
    for name, value in (("since", since), ("limit", limit)):
        if value is not None and (type(value) is not int or value < 0):
            raise InvalidValueError(f"{name}: must be a whole number of at least 0 or None, got {value!r}", field=name)
    found = [r for r in replica.journal.records() if r.key.startswith(prefix) and (since is None or r.hlc >= since)]
    if limit is not None:
        found = found[len(found) - min(limit, len(found)) :]
    return [_conflict(r) for r in found]


def _conflict(record: Record) -> Conflict:
    type_name = TYPE_NAMES[record.type_code]
    subkey = decode_value(record.subkey) if record.subkey else None

    def write(update: Update, outcome: str) -> Write:
        value = None if update.value is None else decode_value(update.value)
        return Write(
            update.origin, update.seq, update.hlc, update.kind, type_name, subkey, value, outcome=outcome, expires_ms=update.expiry
        )

    losers = tuple(write(u, "lost") for u in record.losers)
    return Conflict(record.key.decode(), type_name, subkey, record.rule, write(record.winner, "won"), losers, record.hlc, record.installed)


def explain(machine: Machine, reader: Reader, raw: bytes) -> Explanation:
    """The story of a key. O(the journal), and at most `WRITES_MAX` live entries."""
    replica = machine.replica
    types = reader.visible_types(raw)
    notes: list[str] = []
    writes = list(islice(_live_writes(machine, raw), WRITES_MAX + 1))
    if len(writes) > WRITES_MAX:
        del writes[WRITES_MAX:]
        notes.append(f"Only the first {WRITES_MAX} live writes are listed.")
    met = [r for r in replica.journal.records() if r.key == raw]
    if len(met) > CONFLICTS_MAX:
        notes.append(f"{len(met) - CONFLICTS_MAX:,} older conflicts are not listed: see conflicts().")
    if any(w.seen is None for w in writes if w.type == "register" or w.outcome in ("winner", "sibling")):
        notes.append("What some writers had seen is no longer known: the log has dropped their commits.")
    if not replica.journal.total:
        notes.append("No conflict has been recorded by this replica.")
    value, rule = _value_and_rule(reader, raw, types, writes)
    return Explanation(
        key=raw.decode(),
        found=bool(types),
        types=tuple(TYPE_NAMES[t] for t in types),
        value=value,
        writes=tuple(writes),
        rule=rule,
        replica=replica.origin,
        vv=machine.control.show(machine.vv()),
        conflicts=tuple(_conflict(r) for r in met[-CONFLICTS_MAX:]),
        notes=tuple(notes),
    )


def _value_and_rule(reader: Reader, raw: bytes, types: list[int], writes: list[Write]) -> tuple[object, str]:
    rules = []
    value: object = None
    for type_code in types:
        if type_code == SlotType.REGISTER:
            entry = reader.register(raw)
            value = None if entry is None else decode_value(entry.value)
            several = sum(w.type == "register" for w in writes) > 1
            rules.append(RULE_LWW if several else "the only write that no later one has superseded")
        elif type_code == SlotType.COUNTER:
            value = reader.counter(raw)
            rules.append("the sum of each origin's increments since the last reset that had seen them")
        else:
            size = reader.size(raw, type_code)
            noun = "element" if type_code == SlotType.SET else "field"
            value = f"{size:,} {noun}{'' if size == 1 else 's'}"
            rules.append(
                "add wins: an element is there if an add of it was not seen by any remove"
                if type_code == SlotType.SET
                else "each field is a register: " + RULE_LWW
            )
    if len(types) > 1:
        rules.append("written concurrently as several types: each can be read by its type; delete removes all")
    return value, "; ".join(rules)


def _live_writes(machine: Machine, raw: bytes) -> Iterator[Write]:
    """What is live at a key, the winner of each slot first."""
    replica = machine.replica
    now = replica.now_ms()
    for slot, record in replica.state.scan(*key_range(raw)):
        _, type_code, subkey = split_slot(slot)
        if type_code == SlotType.COUNTER:
            origin, _run = run_name(subkey)
            run = decode_run(record)
            if run.live:
                hlc, seen = _commit(machine, origin, run.seq)
                yield Write(origin, run.seq, hlc, "increment", "counter", None, run.amount, seen, "counts")
            continue
        entries = sorted(replica.entries(slot, record), key=rank, reverse=True)
        name = decode_value(subkey) if subkey else None
        # What a writer had seen is in its frame, and finding one may read a file of the log: only where it decides.
        decides = len(entries) > 1 or type_code == SlotType.REGISTER
        for entry in entries:
            seen = _commit(machine, entry.origin, entry.seq)[1] if decides else None
            value = None if type_code == SlotType.SET else decode_value(entry.value)
            kind = "add" if type_code == SlotType.SET else "put"
            outcome = _outcome(entry, entries, now)
            yield Write(entry.origin, entry.seq, entry.hlc, kind, TYPE_NAMES[type_code], name, value, seen, outcome, entry.expiry)


def _outcome(entry: Entry, entries: list[Entry], now: int) -> str:
    chosen = winner(entries)
    if entry is not chosen:
        return "sibling"
    if entry.expiry is not None and entry.expiry <= now:
        return "expired"
    return "winner" if len(entries) > 1 else "read"


def _commit(machine: Machine, origin: Origin, seq: int) -> tuple[int, VersionVector | None]:
    """The stamp of a commit and what its writer had seen, if the log still has it."""
    frame = machine.log.find(origin, seq)
    if frame is None:
        return 0, None
    for number, hlc, _, _ in frame.commits():
        if number == seq:
            return hlc, machine.control.complete(frame.context.advance(origin, seq - 1))
    return frame.hlc, machine.control.complete(frame.context)
