"""Requests as rows: what a node's clients ask, run as one group.

A request is `[id, op, args, options]`, its reply `[id, OK, payload]` or `[id, FAILED, [code, message, details, retryable,
maybe_applied]]`. All requests of a group run in order under one hold of the store's lock; each writing one is its own
commit, and all the commits of the group are one frame and one append. Nothing here waits for the disk: whoever runs the
group does, without the lock. A request that fails changes nothing and stops
nobody else. Values and elements are canonical bytes both ways; they are checked, not decoded, on the way in.

A writing request may carry an id (`options["rid"]`, or the id itself in place of options that hold nothing else): a second
request with it makes no second commit.

A *block* is a row that stands for many requests of one kind, with a column for each of their arguments: `puts` has `[keys, values, ids]`
(`ids` null if they have none), `gets` has `[keys]`. It means what as many rows would mean, and one reply answers it: `[id, OK, [origin,
seq, hlc]]`, the first put's commit, the others having the next seqs and stamps; `[id, OK, values]`, null where nothing is; `[id, FAILED,
error]` if each failed alike; else `[id, ONE_BY_ONE, replies]`, those of its requests, numbered from 0. What a request costs beside its own
bytes is paid once a block; one that needs a closer look (a collection is at a key, an id is known) is taken apart.

Puts that follow each other, the commonest case by far, gather in a *run*, each checked as it comes; whatever else follows, or
the end of the group, commits them in one step. So a put pays for its own bytes, and hardly for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crdtkv.core.codec import (
    SlotType,
    are_plain_values,
    check_size,
    check_value,
    decode_value,
    encode_key,
    encode_value,
    number_to_wire,
    register_slot_of,
    slot_of,
    sure_register_slots,
)
from crdtkv.core.frame import Delta, DeltaKind
from crdtkv.errors import CorruptionError, CrdtkvError, InvalidValueError, missing_element
from crdtkv.results import FAILED, OK, ONE_BY_ONE
from crdtkv.store.handles import encode_field
from crdtkv.store.machine import REFUSED
from crdtkv.store.settings import check_durability
from crdtkv.store.transaction import Transaction

if TYPE_CHECKING:
    from crdtkv.core.token import Token
    from crdtkv.store.store import Store

BLOCKS = frozenset(("puts", "gets"))
"""Operations whose row stands for as many requests as it has keys."""
BLOCK_ANSWER_BYTES = 1 << 20
"""The values of a block's reads are answered one by one if they hold more together: a reply can then be sent in parts."""
REQUEST_ID_BYTES_MAX = 64
_ID_SIZES = frozenset(range(1, REQUEST_ID_BYTES_MAX + 1))
_BYTES = {bytes}
SEAL_BYTES = 1 << 20
"""A group's frame is closed, and another begun, once its requests hold this many bytes."""

QUICK_OPS = frozenset(
    ("put", "get", "puts", "gets", "sadd", "sdiscard", "sremove", "scontains", "cincr", "cget", "hput", "hget", "hdel", "hcontains"),
)
"""Operations that read and write a few records, however much is stored: a group of a few of them is done in well under a
millisecond, and needs no fold."""


class Executed(NamedTuple):
    """What a group did. `position` is the log's end: wait for it to be durable before telling anyone.

    `token`: of what the group saw; encoded by whoever tells it, who need not hurry.
    `level`: the greatest durability that a request of the group asked for by itself, `async` or `sync`, whatever the store's.
    `commits`: how many were made. `errors`: how many requests failed, by code.
    """

    replies: list[list[Any]]
    token: Token
    position: int
    level: str | None = None
    commits: int = 0
    errors: Mapping[str, int] = {}


def requests_of(row: Sequence[Any]) -> int:
    """How many requests a row stands for."""
    args = row[2]
    return max(1, len(args[0])) if row[1] in BLOCKS and args and type(args[0]) is list else 1


def execute(store: Store, requests: Sequence[Sequence[Any]]) -> Executed:
    """Run a group. Called with the store's lock held."""
    group = _Group(store)
    before = store._machine.own_seq()
    replies: list[list[Any]] = []
    for request in requests:
        row: list[Any] = [0, OK, None]
        replies.append(row)
        group.answer(row, request)
    position = group.seal()
    made = store._machine.own_seq() - before
    return Executed(replies, store._watches.to_encode(position), position, group.level, made, group.errors)


class _Group:
    """The commits of one group in the making."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._machine = store._machine
        self._replica = store._replica
        self._reader = store._reader
        self._heads = store._replica.heads
        self._made = store._replica.requests.get
        self._value_max = store.settings.value_bytes_max
        self._began = store._machine.log.end()
        self.bytes = 0
        self.sync = False
        self.level: str | None = None
        self._origin = store._machine.origin
        # The run, in columns: the puts that are checked and not committed. `ids` holds None for those without one.
        self._slots: list[bytes] = []
        self._keys: list[str] = []
        self._values: list[bytes] = []
        self._ids: list[bytes | None] = []
        self._replies: list[tuple[list[Any], int, int | None]] = []
        """To be filled in when it is: a row, the place of its first put, and how many those of a block are."""
        self.errors: dict[str, int] = {}

    def answer(self, row: list[Any], request: Sequence[Any]) -> None:
        """Run one request; its reply is filled in now, or when the run is committed."""
        count = 1
        try:
            row[0], op, args, options = request
            rid = None
            if options:
                if type(options) is bytes:
                    rid = options
                else:
                    rid = options.get("rid")
                    if "durability" in options:
                        self.ask(check_durability(options["durability"]))
            if op == "put":
                self.put(row, rid, *args)
            elif op == "get":
                row[2] = self.get(*args)
            elif op in BLOCKS:
                if rid is not None:
                    raise InvalidValueError(f"{op}: the ids of its requests are a column of it, not an option", field="rid")
                count = requests_of(request)
                self.puts(row, *args) if op == "puts" else self.gets(row, *args)
            else:
                row[2] = self.run(op, args, rid)
        except CrdtkvError as e:
            self.refuse(row, e, count)
        except (TypeError, ValueError, AttributeError) as e:
            self.refuse(row, InvalidValueError(f"request: wrong arguments: {e}"), count)
        if self.bytes >= SEAL_BYTES:
            self.seal()

    def refuse(self, row: list[Any], error: CrdtkvError, count: int = 1) -> None:
        """Make a reply say that its request failed, or so many that it answers."""
        row[1:] = FAILED, [error.code, error.message, error.details, error.retryable, error.maybe_applied]
        self.errors[error.code] = self.errors.get(error.code, 0) + count

    def ask(self, level: str) -> None:
        """A request wants to be so durable."""
        if level == "sync":
            self.sync = True
        if level != "memory" and self.level != "sync":
            self.level = level

    def seal(self) -> int:
        """Close the frame in the making and append it; the log's end."""
        self.bytes = 0
        if self._slots:
            self._commit_puts()
        try:
            position = self._machine.seal(sync=self.sync)
        except CrdtkvError as e:
            # Nobody of the group gets another answer than this error; but what it sealed before is in the log.
            e.maybe_applied = e.maybe_applied or self._machine.log.end() > self._began
            raise
        if self._store._watches.active:
            self._store._watches.publish(position)
        if self._replica.purges:
            self._store._upkeep.start()
        return position

    def run(self, op: str, args: list[Any], rid: bytes | None) -> Any:
        if self._slots:
            self._commit_puts()
        write = _WRITES.get(op)
        if write is not None:
            return self._write(rid, lambda t: write(self, t, *args))
        read = _READS.get(op)
        if read is not None:
            return read(self, *args)
        raise InvalidValueError(f"op: {str(op)[:40]!r} is not known to this version of crdtkv", op=str(op)[:40])

    # -- writes ---------------------------------------------------------------------------------------------------

    def put(self, row: list[Any], rid: bytes | None, key: str, value: bytes, ttl: float | None = None) -> None:
        """Check a put and add it to the run, without a transaction around it; the reply `row` is filled in when that is committed."""
        if rid is not None:
            known = self._made(rid) if type(rid) is bytes and 0 < len(rid) <= REQUEST_ID_BYTES_MAX else self._known(rid)
            if known is not None:
                row[2] = self._known(rid)
                return
        if type(value) is not bytes or len(value) > self._value_max:
            self.check(value)  # says what is wrong with it
        try:
            check_value(value)
        except CorruptionError:
            self.check(value)
        slot = register_slot_of(key)
        if self._machine.blocked:
            self._machine.check_writable()
        if self._heads.exist:
            self._reader.require(encode_key(key), SlotType.REGISTER)
        self.bytes += len(value) + len(slot) + 32
        if ttl is None:
            self._replies.append((row, len(self._slots), None))
            self._slots.append(slot)
            self._keys.append(key)
            self._values.append(value)
            self._ids.append(rid)
        else:
            delta = [DeltaKind.REGISTER_PUT, key, value, self.expiry(ttl)]
            if self._slots:
                self._commit_puts()
            row[2] = self._write_one([delta], rid)

    def puts(self, row: list[Any], keys: list[str], values: list[bytes], ids: list[bytes] | None = None) -> None:
        """`put` of each, checked all at once if that will do."""
        count = _columns("puts", keys, values, ids)
        slots = sure_register_slots(keys)
        size = None if slots is None else self._size_if_right(keys, values, ids)
        if slots is None or size is None:
            rids = [None] * count if ids is None else ids
            self._one_by_one(row, [("put", [key, value], rid) for key, value, rid in zip(keys, values, rids, strict=True)])
            return
        if self._machine.blocked:
            self._machine.check_writable()
        self.bytes += size + sum(map(len, slots)) + 32 * count
        self._replies.append((row, len(self._slots), count))
        self._slots += slots
        self._keys += keys
        self._values += values
        self._ids += [None] * count if ids is None else ids

    def _size_if_right(self, keys: list[str], values: list[bytes], ids: list[bytes] | None) -> int | None:
        """The bytes of a block's values if a look at all its puts at once finds nothing that is to be looked at more closely; else None."""
        if set(map(type, values)) != _BYTES:
            return None
        sizes = list(map(len, values))
        size = sum(sizes)
        if max(sizes) > self._value_max or size > SEAL_BYTES:
            return None
        if ids is not None and (
            set(map(type, ids)) != _BYTES or not _ID_SIZES.issuperset(map(len, ids)) or self._replica.requests.has_any(ids)
        ):
            return None
        if self._heads.exist and any(self._heads.get(key.encode()) is not None for key in keys):
            return None
        return size if are_plain_values(values) or _are_values(values) else None

    def _one_by_one(self, row: list[Any], requests: list[tuple[str, list[Any], bytes | None]]) -> None:
        """Answer the requests of a block each by itself."""
        replies: list[list[Any]] = [[at, OK, None] for at in range(len(requests))]
        row[1:] = ONE_BY_ONE, replies
        for reply, request in zip(replies, requests, strict=True):
            self.answer(reply, (reply[0], *request))

    def _commit_puts(self) -> None:
        """Commit the run and fill in its replies."""
        slots, keys, values, ids, replies = self._slots, self._keys, self._values, self._ids, self._replies
        self._slots, self._keys, self._values, self._ids, self._replies = [], [], [], [], []
        if len(slots) > 1 and (self._replica.is_watched or _is_any_repeated(ids)):
            puts = list(zip(keys, values, ids, strict=True))
            for row, first, count in replies:
                if count is None:
                    self._put_alone(row, *puts[first])
                    continue
                alone: list[list[Any]] = [[at, OK, None] for at in range(count)]
                row[1:] = ONE_BY_ONE, alone
                for reply, put in zip(alone, puts[first : first + count], strict=True):
                    self._put_alone(reply, *put)
            return
        try:
            if len(slots) == 1:
                seq, hlc = self._machine.transact_put(slots[0], [DeltaKind.REGISTER_PUT, keys[0], values[0]], ids[0])
            else:
                seq, hlc = self._machine.transact_puts(slots, keys, values, ids)
        except REFUSED as e:
            for row, _, count in replies:
                self.refuse(row, e, count or 1)
            return
        origin = self._origin
        for row, first, _ in replies:
            row[2] = [origin, seq + first, hlc + first]

    def _put_alone(self, row: list[Any], key: str, value: bytes, rid: bytes | None) -> None:
        """Commit a put of the run by itself."""
        try:
            row[2] = self._known(rid) or self._write_one([[DeltaKind.REGISTER_PUT, key, value]], rid)
        except CrdtkvError as e:
            self.refuse(row, e)

    def _write_one(self, deltas: list[Delta], rid: bytes | None) -> list[Any]:
        seq, hlc = self._machine.transact(deltas, rid)
        return [self._origin, seq, hlc]

    def _write(self, rid: bytes | None, change: Callable[[Transaction], bool]) -> Any:
        known = self._known(rid)
        if known is not None:
            return known
        if self._machine.blocked:
            self._machine.check_writable()
        transaction = Transaction(self._replica, self._reader)
        if not change(transaction):
            return None
        deltas = transaction.deltas()
        if not deltas:
            return None
        self.bytes += transaction.size
        return self._write_one(deltas, rid)

    def _known(self, rid: bytes | None) -> list[Any] | None:
        """The commit that a request with this id has made before, if it is remembered."""
        if rid is None:
            return None
        if type(rid) is not bytes or not 0 < len(rid) <= REQUEST_ID_BYTES_MAX:
            raise InvalidValueError(f"rid: a request id is 1 to {REQUEST_ID_BYTES_MAX} bytes", field="rid")
        known = self._made(rid)
        return None if known is None else [known.origin, known.seq, known.hlc]

    def check(self, value: Any, what: str = "value") -> bytes:
        """A value or element from elsewhere: canonical, and not too large."""
        if type(value) is not bytes:
            raise InvalidValueError(f"{what}: must be canonical MessagePack bytes, got {type(value).__name__}", field=what)
        if len(value) > self._value_max:
            check_size(value, self._value_max, what)
        try:
            check_value(value)
        except CorruptionError as e:
            raise InvalidValueError(f"{what}: {e.message}", field=what) from e
        return value

    def expiry(self, ttl: float | None) -> int | None:
        return None if ttl is None else self._store._expiry(ttl)

    # -- reads ----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """The commonest read."""
        if self._slots:
            self._commit_puts()
        entry = self._reader.entry(register_slot_of(key))
        if entry is not None:
            return entry.value
        self._store._not_another_type(key, SlotType.REGISTER)
        return None

    def gets(self, row: list[Any], keys: list[str]) -> None:
        """`get` of each, all at once if that will do."""
        _columns("gets", keys)
        if self._slots:
            self._commit_puts()
        slots = sure_register_slots(keys)
        values = None if slots is None else self._reader.values(slots)
        if values is None or (self._heads.exist and None in values) or sum(len(v) for v in values if v is not None) > BLOCK_ANSWER_BYTES:
            self._one_by_one(row, [("get", [key], None) for key in keys])
        else:
            row[2] = values

    def contains(self, key: str, element: Any) -> bool:
        self.check(element, "element")
        if self._reader.entry(slot_of(encode_key(key), SlotType.SET, element)) is not None:
            return True
        self._store._not_another_type(key, SlotType.SET)
        return False

    def field(self, key: str, name: str) -> bytes | None:
        entry = self._reader.entry(slot_of(encode_key(key), SlotType.MAP, encode_field(name)))
        if entry is not None:
            return entry.value
        self._store._not_another_type(key, SlotType.MAP)
        return None

    def merge(self, data: bytes) -> list[Any]:
        # What a merge applies has to follow the commits of this group, and they it.
        self.seal()
        result, _ = self._store._merge(data)
        return [result.applied, result.duplicates, result.conflicts, list(result.changed_keys)]

    def delete_prefix(self, prefix: str) -> Any:
        self.seal()
        commit = None
        for delete in self._store._prefix_deletions(prefix):
            commit = self._store._change(delete, "sync" if self.sync else None) or commit
        return None if commit is None else [commit.origin, commit.seq, commit.hlc]

    def count(self, prefix: str) -> int:
        self.seal()
        return self._store.count(prefix)

    def digest(self) -> str:
        self.seal()
        return self._store.digest()

    def status(self) -> dict[str, Any]:
        self.seal()
        return self._store.status().to_wire()


def _columns(op: str, keys: object, *columns: object) -> int:
    """How many requests a block stands for; each of its columns, if it is not None, must have an item for each."""
    if type(keys) is not list or not keys or any(c is not None and (type(c) is not list or len(c) != len(keys)) for c in columns):
        raise InvalidValueError(f"{op}: its columns must be lists of one length, at least 1", op=op)
    return len(keys)


def _are_values(values: list[bytes]) -> bool:
    """Whether each passes `check_value`."""
    try:
        for value in values:
            check_value(value)
    except CorruptionError:
        return False
    return True


def _is_any_repeated(ids: list[bytes | None]) -> bool:
    """Whether two of the requests are the same one."""
    without = ids.count(None)
    return len(set(ids)) - bool(without) < len(ids) - without


def _add(group: _Group, t: Transaction, key: str, elements: list[Any], ttl: float | None = None) -> bool:
    expiry = group.expiry(ttl)
    return any([t.add(key, group.check(e, "element"), expiry) for e in elements])


def _discard(group: _Group, t: Transaction, key: str, elements: list[Any]) -> bool:
    return any([t.discard(key, group.check(e, "element")) for e in elements])


def _remove(group: _Group, t: Transaction, key: str, element: Any) -> bool:
    if not t.discard(key, group.check(element, "element")):
        raise missing_element(key, decode_value(element))
    return True


def _put_field(group: _Group, t: Transaction, key: str, name: str, value: Any, ttl: float | None = None) -> bool:
    check_size(encode_field(name), group._store.settings.value_bytes_max, "field")
    return t.put_field(key, name, group.check(value), group.expiry(ttl))


def _delete_field(_: _Group, t: Transaction, key: str, name: str) -> bool:
    encode_field(name)
    return t.delete_field(key, name)


def _expire(group: _Group, t: Transaction, key: str, seconds: float | None) -> bool:
    return t.expire(key, group.expiry(seconds))


def _batch(group: _Group, t: Transaction, calls: list[Any]) -> bool:
    changed = False
    for op, *args in calls:
        write = _WRITES.get(op)
        if write is None or op == "batch":
            raise InvalidValueError(f"batch: {str(op)[:40]!r} is no write", op=str(op)[:40])
        changed = write(group, t, *args) or changed
    return changed


_WRITES: dict[str, Callable[..., bool]] = {
    "put": lambda g, t, key, value, ttl=None: t.put(key, g.check(value), g.expiry(ttl)),
    "delete": lambda g, t, key: t.delete(key),
    "expire": _expire,
    "sadd": _add,
    "sdiscard": _discard,
    "sremove": _remove,
    "sclear": lambda g, t, key: t.clear_set(key),
    "cincr": lambda g, t, key, n: t.increment(key, n),
    "creset": lambda g, t, key: t.reset(key),
    "hput": _put_field,
    "hdel": _delete_field,
    "hclear": lambda g, t, key: t.clear_map(key),
    "batch": _batch,
}

_READS: dict[str, Callable[..., Any]] = {
    "exists": lambda g, key: g._store.exists(key),
    "type": lambda g, key: g._store.types(key),
    "ttl": lambda g, key: g._store.ttl(key),
    "count": _Group.count,
    "delete_prefix": _Group.delete_prefix,
    "scontains": _Group.contains,
    "slen": lambda g, key: g._store.set(key).size(),
    "cget": lambda g, key: number_to_wire(g._store.counter(key).get()),
    "hget": _Group.field,
    "hcontains": lambda g, key, name: g.field(key, name) is not None,
    "hlen": lambda g, key: g._store.map(key).size(),
    "siblings": lambda g, key: [[encode_value(s.value), s.origin, s.dot.seq, s.hlc] for s in g._store.siblings(key)],
    "explain": lambda g, key: g._store.explain(key).to_wire(),
    "conflicts": lambda g, prefix="", since=None, limit=None: [c.to_wire() for c in g._store.conflicts(prefix, since=since, limit=limit)],
    "vv": lambda g: g._store.vv().to_bytes(),
    "digest": _Group.digest,
    "status": _Group.status,
    "merge": _Group.merge,
}
