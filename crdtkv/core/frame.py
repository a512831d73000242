"""Frames: what is logged, sent, relayed and applied whole, byte for byte as its origin encoded it.

A frame holds consecutive commits of one origin, made as one group with nothing received in between. Its header
needs nothing else to be understood: format, features, cluster, shard, origin, first seq, full context, hash of the
origin's previous frame. Layout, version 1:

    0xC1  0x01  [header, rows]                              (0xC1 never starts a MessagePack value)
    header = [requires, cluster, shard, origin, first_seq, count, hlc, context, previous, extensions, …]
    row    = [hlc_offset, meta, delta, delta, …]            one commit; its seq is first_seq + index
    delta  = [kind, key, …]                                 see `DeltaKind`

`requires` names the features a reader must know; an unknown one is refused by name. Fields after those listed, and
keys of `extensions` and `meta`, may be added later: a reader ignores what it does not know. The context leaves out
the frame's own origin: commit n of an origin has seen that origin's commits up to n - 1.

A commit holds its *net effect*: at most one delta per slot, and the clear or reset of a collection before what is
added to it. Stamps strictly increase from commit to commit. A decoder refuses others, and every element and value that
is not canonical bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter, lt
from typing import Any, Final, Literal, NamedTuple

import msgspec

from crdtkv.core.causality import SEQ_MAX, Origin, VersionVector, check_origin, check_region
from crdtkv.core.clock import STAMP_MAX
from crdtkv.core.codec import KEY_BYTES_MAX, TYPE_NAMES, SlotType, are_plain_values, check_value, register_slots_of
from crdtkv.errors import ConfigError, CorruptionError, CrdtkvError, IncompatibleFormatError, ValueTooLargeError

MAGIC: Final = b"\xc1"
FORMAT_VERSION: Final = 1
CONTROL_FEATURE: Final = "control"
"""Required by frames that close an origin or record a member: a reader that ignored them would misread later contexts."""
KNOWN_FEATURES: Final = frozenset({CONTROL_FEATURE})
FRAME_BYTES_MAX: Final = 8 << 20
"""The largest frame, 8 MiB: what one message must be able to carry."""
HASH_BYTES: Final = 16
NO_HASH: Final = b""
"""The `previous` of an origin's first frame."""
HASH_INTERVAL: Final = 1024
"""Hashes are kept for each frame that holds a seq divisible by this, and for each origin's last frame."""


class DeltaKind:
    """What a delta does to its slot. Never renumbered. `expiry` is Unix ms, present only where there is one."""

    REGISTER_PUT = 0  # [kind, key, value, expiry?]
    REGISTER_DELETE = 1  # [kind, key]
    SET_ADD = 2  # [kind, key, element, expiry?]
    SET_REMOVE = 3  # [kind, key, element]
    SET_CLEAR = 4  # [kind, key]
    COUNTER_ADD = 5  # [kind, key, run, total]
    COUNTER_RESET = 6  # [kind, key, [[origin, run, total, seq], …]]
    MAP_PUT = 7  # [kind, key, field, value, expiry?]
    MAP_DELETE = 8  # [kind, key, field]
    MAP_CLEAR = 9  # [kind, key]
    EXPIRE = 10  # [kind, key, type, subkey, [[origin, seq], …]]
    CLOSE = 11  # [kind, origin, seq]                       control: touches no key; see `control`
    MEMBER = 12  # [kind, region, state, address, epoch]    the same


Delta = list[Any]
Row = Sequence[Any]


class PutDelta(msgspec.Struct, array_like=True, gc=False):
    """The delta of a register's put for good, for rows of many: encoded like the list, and nothing for the collector to walk."""

    kind: int
    key: str
    value: bytes


_KINDS_WITH_ORDER = {
    DeltaKind.SET_CLEAR: SlotType.SET,
    DeltaKind.SET_ADD: SlotType.SET,
    DeltaKind.SET_REMOVE: SlotType.SET,
    DeltaKind.MAP_CLEAR: SlotType.MAP,
    DeltaKind.MAP_PUT: SlotType.MAP,
    DeltaKind.MAP_DELETE: SlotType.MAP,
    DeltaKind.COUNTER_RESET: SlotType.COUNTER,
    DeltaKind.COUNTER_ADD: SlotType.COUNTER,
    DeltaKind.REGISTER_PUT: SlotType.REGISTER,
    DeltaKind.REGISTER_DELETE: SlotType.REGISTER,
}
_CLEARS = (DeltaKind.SET_CLEAR, DeltaKind.MAP_CLEAR, DeltaKind.COUNTER_RESET)
CONTROL_KINDS: Final = (DeltaKind.CLOSE, DeltaKind.MEMBER)
MEMBER_STATES: Final = ("active", "draining", "removed")
ADDRESS_CHARS_MAX: Final = 255
_WHOLE: Final = 0
"""Stands for a whole collection among its slots; not text or bytes, which a field or an element may be."""
_KEYED = (DeltaKind.SET_ADD, DeltaKind.SET_REMOVE, DeltaKind.MAP_PUT, DeltaKind.MAP_DELETE)


class _Header(msgspec.Struct, array_like=True, frozen=True, gc=False):
    requires: list[str]
    cluster: str
    shard: int
    origin: str
    first_seq: int
    count: int
    hlc: int
    context: list[Any]
    previous: bytes
    extensions: dict[str, msgspec.Raw] | None


class _Meta(msgspec.Struct, frozen=True, gc=False):
    """A commit's meta, as far as applying puts looks at it."""

    r: bytes | None = None


class _Wire(msgspec.Struct, array_like=True, frozen=True, gc=False):
    header: _Header
    rows: msgspec.Raw


_decode_wire = msgspec.msgpack.Decoder(_Wire).decode
_decode_rows = msgspec.msgpack.Decoder(list[Row]).decode
_decode_puts = msgspec.msgpack.Decoder(list[tuple[int, _Meta | None, tuple[Literal[0], str, bytes]]]).decode
"""Rows that are one put of a register for good each: 0 is `DeltaKind.REGISTER_PUT`."""
_encode = msgspec.msgpack.Encoder().encode
_START = MAGIC + bytes([FORMAT_VERSION]) + b"\x92"
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError, TypeError, OverflowError)


_ARRAYS = frozenset({list, tuple})
_blake2b = hashlib.blake2b
_first, _second, _third = itemgetter(0), itemgetter(1), itemgetter(2)


def hash_of(data: bytes) -> bytes:
    """The 16-byte hash that the origin's next frame carries as `previous`."""
    return _blake2b(data, digest_size=HASH_BYTES).digest()


class Puts(NamedTuple):
    """The commits of a frame that puts registers for good and does nothing else, in columns: an item per put, in the frame's order."""

    slots: Sequence[bytes]
    keys: Sequence[str]
    values: Sequence[bytes]
    seqs: Sequence[int]
    hlcs: Sequence[int]
    requests: tuple[Sequence[bytes], Sequence[int], Sequence[int]]
    """Of those commits that carry a request's id, in columns: it, seq and stamp."""

    @property
    def columns(self) -> tuple[Sequence[bytes], Sequence[str], Sequence[bytes], Sequence[int], Sequence[int]]:
        """Slot, key, value, seq and stamp of each put."""
        return self[:5]


class Frame(msgspec.Struct, gc=False, eq=False):
    """One frame, decoded as far as its header; the rows are decoded and checked on first use.

    Immutable but for that, and its hash. (A struct outside the garbage collector: logs keep many, and none refers to another.)
    """

    data: bytes
    cluster: str
    shard: int
    origin: Origin
    first_seq: int
    last_seq: int
    hlc: int
    context: VersionVector
    previous: bytes
    size: int
    is_control: bool = False
    """Whether it may hold control deltas: it requires the feature."""
    _hash: bytes | None = None
    _rows: msgspec.Raw | None = None
    _commits: list[Row] | None = None
    _puts: Puts | None = None
    _is_mixed: bool = False
    """It is known to hold more than puts for good: there are no columns."""
    _is_checked: bool = False

    @classmethod
    def build(
        cls, cluster: str, shard: int, origin: Origin, first_seq: int, hlc: int, context: VersionVector, previous: bytes, rows: list[Row]
    ) -> Frame:
        """Encode a frame of local commits. `context` must not name `origin`; rows are trusted to be valid."""
        return FrameTemplate(cluster, shard, origin, context).build(first_seq, hlc, previous, rows)

    @classmethod
    def decode(cls, data: bytes) -> Frame:
        """Decode and check the header of a frame. The rows are checked by `commits`.

        Raises:
            CorruptionError: not a frame.
            IncompatibleFormatError: a format version or required feature that this version does not know.
        """
        if len(data) < 4 or data[:1] != MAGIC:
            raise CorruptionError("frame: does not start like one")
        if data[1] != FORMAT_VERSION:
            raise IncompatibleFormatError(
                f"frame: format version {data[1]}, this version of crdtkv knows {FORMAT_VERSION}: upgrade it", version=data[1]
            )
        if len(data) > FRAME_BYTES_MAX:
            raise CorruptionError(f"frame: {len(data):,} bytes, the limit is {FRAME_BYTES_MAX:,}")
        try:
            wire = _decode_wire(memoryview(data)[2:])  # its rows are then a view of `data`, not another copy
        except _DECODE_ERRORS as e:
            raise CorruptionError(f"frame: {e}") from e
        header = wire.header
        unknown = [name for name in header.requires if name not in KNOWN_FEATURES]
        if unknown:
            raise IncompatibleFormatError(
                f"frame: needs the feature {', '.join(map(repr, unknown))[:200]}, which this version of crdtkv does not know: upgrade it",
                features=unknown[:16],
            )
        origin = check_origin(header.origin)
        context = VersionVector.from_flat(header.context)
        if origin in context:
            raise CorruptionError("frame: its context names its own origin")
        if header.first_seq < 1 or header.count < 1 or header.first_seq + header.count - 1 > SEQ_MAX:
            raise CorruptionError("frame: seqs out of range")
        if not 0 <= header.hlc <= STAMP_MAX or header.shard < 0:
            raise CorruptionError("frame: stamp or shard out of range")
        if len(header.previous) != (HASH_BYTES if header.first_seq > 1 else 0):
            raise CorruptionError("frame: the hash of the previous frame is missing or too long")
        last_seq = header.first_seq + header.count - 1
        return cls(
            data,
            header.cluster,
            header.shard,
            origin,
            header.first_seq,
            last_seq,
            header.hlc,
            context,
            header.previous,
            len(data),
            CONTROL_FEATURE in header.requires,
            None,
            wire.rows,
        )

    @property
    def hash(self) -> bytes:
        """What the origin's next frame carries as `previous`. Computed once somebody asks: who sends what the log holds never does."""
        if self._hash is None:
            self._hash = hash_of(self.data)
        return self._hash

    @property
    def count(self) -> int:
        """How many commits it holds."""
        return self.last_seq - self.first_seq + 1

    def rows(self) -> list[Row]:
        """The commits `[hlc_offset, meta, delta, …]` in seq order, checked once; see the module's docstring.

        Raises:
            CorruptionError: a row or delta breaks the format or the net-effect rule; `details` name the frame by origin and seq.
        """
        if self._commits is None:
            self._take(self._decoded_rows())
        return self._commits  # type: ignore[return-value]  # just taken

    def puts(self) -> Puts | None:
        """The commits in columns, checked once, if they put registers for good and do nothing else; None: see `rows`.

        Raises:
            CorruptionError: as `rows`.
        """
        if self._puts is None and not self._is_mixed:
            if self._commits is None:
                self._look()
            else:
                self._puts = _in_columns(self._commits, self.first_seq, self.hlc)
            self._is_mixed = self._puts is None
        return self._puts

    def _look(self) -> None:
        """Decode and check what came: puts in columns all at once, if they are likely to be, else commit by commit."""
        likely: Sequence[Any]
        try:
            likely = _decode_puts(self._raw_rows())
        except _DECODE_ERRORS:
            likely = ()  # they are not puts alone, or wrong: that shows below
        rows, puts = None, None
        if len(likely) == self.count:
            puts = _in_columns(likely, self.first_seq, self.hlc, True)
        else:
            rows = self._decoded_rows()
            if len(rows) == 1 and len(rows[0]) > 3:  # one commit of several deltas, which may all be puts
                puts = _in_columns(rows, self.first_seq, self.hlc)
        if puts is None or not (self._is_checked or _is_surely_right(puts)):
            self._take(self._decoded_rows() if rows is None else rows)
        self._puts = puts
        self._rows = None
        self._is_checked = True

    def _take(self, rows: list[Row]) -> None:
        """Keep the commits, once they are checked."""
        self._commits = rows if self._is_checked else self._checked(rows)
        self._rows = None
        self._is_checked = True

    def release(self) -> None:
        """Keep the bytes alone: whoever asks for the commits again has them decoded again, and not checked again."""
        self._rows = self._commits = self._puts = None

    def trust(self) -> None:
        """Take the rows unchecked: for a frame of this replica's own log, which were checked, or made, before they were logged.

        A quarter of the cost of applying them. The log's checksum stands for their being what they were.
        """
        self._is_checked = True

    def _raw_rows(self) -> msgspec.Raw:
        return _decode_wire(memoryview(self.data)[2:]).rows if self._rows is None else self._rows

    def _decoded_rows(self) -> list[Row]:
        try:
            rows = _decode_rows(self._raw_rows())
        except _DECODE_ERRORS as e:
            raise self._faulty(f"frame: {e}") from e
        if len(rows) != self.count:
            raise self._faulty(f"frame: {len(rows)} commits where the header says {self.count}")
        return rows

    def _faulty(self, text: str) -> CorruptionError:
        return CorruptionError(text, origin=self.origin, seq=self.first_seq)

    def _checked(self, rows: list[Row]) -> list[Row]:
        """Rows as they are, after a look at each."""
        try:
            offset = -1
            for index, row in enumerate(rows):
                _check_row(row, self.first_seq + index, self.hlc, self.is_control)
                if row[0] <= offset:
                    raise CorruptionError("frame: stamps do not increase from commit to commit")
                offset = row[0]
        except CorruptionError as e:
            e.details.update(origin=self.origin, seq=self.first_seq)
            raise
        return rows

    def commits(self) -> Iterator[tuple[int, int, dict[str, Any] | None, Sequence[Delta]]]:
        """Each commit as `(seq, hlc, meta, deltas)`."""
        seq = self.first_seq
        for row in self.rows():
            yield seq, self.hlc + row[0], row[1], row[2:]
            seq += 1

    def crosses_interval(self) -> bool:
        """Whether it holds a seq divisible by `HASH_INTERVAL`: its hash is kept to find forks later."""
        return self.last_seq // HASH_INTERVAL > (self.first_seq - 1) // HASH_INTERVAL

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"Frame({self.origin}:{self.first_seq}..{self.last_seq}, {self.size} bytes)"


def peek(data: bytes) -> tuple[Origin, int]:
    """The origin and the last seq of an encoded frame, with little else looked at: for a log that goes through what it wrote.

    Raises:
        CorruptionError, IncompatibleFormatError: as `Frame.decode`, as far as it is noticed.
    """
    if data[: len(_START)] != _START:
        frame = Frame.decode(data)
        return frame.origin, frame.last_seq
    try:
        header = _decode_wire(memoryview(data)[2:]).header
    except _DECODE_ERRORS as e:
        raise CorruptionError(f"frame: {e}") from e
    return Origin(header.origin), header.first_seq + header.count - 1


class FrameTemplate:
    """The part of a header that stays the same while nothing is received: encoded once, not once a commit."""

    __slots__ = ("_after", "_before", "cluster", "context", "is_control", "origin", "shard")

    def __init__(self, cluster: str, shard: int, origin: Origin, context: VersionVector, *, control: bool = False) -> None:
        assert origin not in context, "a context leaves out the frame's own origin"
        self.cluster = cluster
        self.shard = shard
        self.origin = origin
        self.context = context
        self.is_control = control
        requires = _encode([CONTROL_FEATURE] if control else [])
        self._before = _START + b"\x9a" + requires + _encode(cluster) + _encode(shard) + _encode(origin)
        self._after = context.to_bytes()

    def build(self, first_seq: int, hlc: int, previous: bytes, rows: list[Row]) -> Frame:
        """Encode commits of this origin made in this context."""
        count = len(rows)
        encode = _encode
        numbers = encode((first_seq, count, hlc))[1:]  # an array of three, without its first byte
        data = b"".join((self._before, numbers, self._after, encode(previous), b"\xc0", encode(rows)))
        if len(data) > FRAME_BYTES_MAX:
            # The limits of commits and groups keep far below; a larger one could be neither sent nor read again.
            raise ValueTooLargeError(f"frame: {len(data):,} bytes, the limit is {FRAME_BYTES_MAX:,}", limit=FRAME_BYTES_MAX)
        last_seq = first_seq + count - 1
        digest = _blake2b(data, digest_size=HASH_BYTES).digest()
        return Frame(
            data,
            self.cluster,
            self.shard,
            self.origin,
            first_seq,
            last_seq,
            hlc,
            self.context,
            previous,
            len(data),
            self.is_control,
            digest,
        )


def _in_columns(rows: Sequence[Any], first_seq: int, base: int, are_likely: bool = False) -> Puts | None:
    """Rows as columns, if each is one put of a register for good, or if there is one row of nothing but such puts.

    None too where something is wrong with their form; but whether keys and values are right is left to `_is_surely_right`.

    Args:
        are_likely: they come from `_decode_puts`, which has looked at types and lengths.
    """
    count = len(rows)
    try:
        if are_likely:
            offsets, metas, deltas = list(map(_first, rows)), list(map(_second, rows)), list(map(_third, rows))
            ids = metas if metas.count(None) == count else [None if meta is None else meta.r for meta in metas]
        else:
            if set(map(len, rows)) == {3}:
                offsets, metas, deltas = (list(column) for column in zip(*rows, strict=True))
            elif count == 1:
                offsets, metas, deltas = rows[0][:1], rows[0][1:2], rows[0][2:]
            else:
                return None
            if not (_ARRAYS.issuperset(map(type, deltas)) and set(map(len, deltas)) == {3} and set(map(type, offsets)) == {int}):
                return None
            if list(map(_first, deltas)).count(DeltaKind.REGISTER_PUT) != len(deltas):
                return None
            ids = list(map(_id_in, metas))
        keys, values = list(map(_second, deltas)), list(map(_third, deltas))
        if offsets[0] < 0:
            return None
        seqs: Sequence[int] = range(first_seq, first_seq + count)
        hlcs: Sequence[int] = range(base + offsets[0], base + offsets[0] + count)  # most stamps follow each other without a gap
        if offsets != list(range(offsets[0], offsets[0] + count)):
            if not all(map(lt, offsets, offsets[1:])):
                return None
            hlcs = [base + offset for offset in offsets]
        requests = _requests_of(ids, seqs, hlcs)
        if len(keys) > count:
            seqs, hlcs = [first_seq] * len(keys), [hlcs[0]] * len(keys)
        return Puts(register_slots_of(keys), keys, values, seqs, hlcs, requests)
    except (TypeError, AttributeError, CrdtkvError, UnicodeEncodeError):
        return None


def _requests_of(
    ids: Sequence[bytes | None], seqs: Sequence[int], hlcs: Sequence[int]
) -> tuple[Sequence[bytes], Sequence[int], Sequence[int]]:
    """`Puts.requests` of commits of which these are the requests' ids, None where there is none."""
    without = ids.count(None)
    if without == 0:
        return ids, seqs, hlcs  # type: ignore[return-value]  # none is None
    if without == len(ids):
        return (), (), ()
    found = [(request_id, seq, hlc) for request_id, seq, hlc in zip(ids, seqs, hlcs, strict=True) if request_id is not None]
    return tuple(zip(*found, strict=True))  # type: ignore[return-value]  # three columns


def _id_in(meta: Mapping[str, Any] | None) -> bytes | None:
    """The request's id in a commit's meta."""
    request_id = None if meta is None else meta.get("r")
    return request_id if type(request_id) is bytes else None


def _is_surely_right(puts: Puts) -> bool:
    """Whether puts pass a look at all of them at once; if not, a look at each decides."""
    keys, values = puts.keys, puts.values
    sizes = set(map(len, keys))
    if 0 in sizes or max(sizes) > KEY_BYTES_MAX or not "".join(keys).isascii():
        return False
    if puts.hlcs[-1] > STAMP_MAX:
        return False
    if puts.hlcs[0] == puts.hlcs[-1] and len(set(keys)) != len(keys):
        return False  # of one commit
    return are_plain_values(values)


def _check_row(row: Row, seq: int, base: int, control: bool) -> None:
    if len(row) < 3:
        raise CorruptionError("frame: a commit without deltas")
    if type(row[0]) is not int or not 0 <= row[0] <= STAMP_MAX - base:
        raise CorruptionError("frame: stamp out of range")
    if row[1] is not None and not isinstance(row[1], dict):
        raise CorruptionError("frame: a commit's meta is not a map")
    if len(row) == 3:
        _check_delta(row[2], seq, control)
        return
    seen: set[tuple[Any, ...]] = set()
    for delta in row[2:]:
        slot = _check_delta(delta, seq, control)
        if slot in seen:
            raise CorruptionError("frame: two deltas for one slot in a commit")
        if delta[0] in _CLEARS and (delta[1], _KINDS_WITH_ORDER[delta[0]], None) in seen:
            raise CorruptionError("frame: a clear after what it would clear")
        seen.add(slot)
        seen.add((delta[1], slot[1], None))


def _check_delta(delta: Any, seq: int, control: bool) -> tuple[Any, ...]:
    """Check one delta's form; the slot that it touches, for the net-effect rule."""
    if not isinstance(delta, list) or len(delta) < 2:
        raise CorruptionError("frame: not a delta")
    kind, key, size = delta[0], delta[1], len(delta)
    if not isinstance(key, str) or not 0 < len(key) <= KEY_BYTES_MAX or (not key.isascii() and len(key.encode()) > KEY_BYTES_MAX):
        raise CorruptionError("frame: a delta's key is not 1 to 1,024 bytes of text")
    if kind == DeltaKind.REGISTER_PUT:
        _check_expiry(delta, 3)
        _check_bytes(delta[2])
        return key, SlotType.REGISTER, b""
    if kind in _KEYED:
        subkey = delta[2] if size > 2 else None
        if kind == DeltaKind.MAP_PUT:
            _check_expiry(delta, 4)
            _check_bytes(delta[3])
        elif kind == DeltaKind.SET_ADD:
            _check_expiry(delta, 3)
        elif size != 3:
            raise CorruptionError("frame: a removal of the wrong length")
        if kind in (DeltaKind.MAP_PUT, DeltaKind.MAP_DELETE):
            if not isinstance(subkey, str):
                raise CorruptionError("frame: a field is not text")
        else:
            _check_bytes(subkey)
        return key, _KINDS_WITH_ORDER[kind], subkey
    if kind in (DeltaKind.REGISTER_DELETE, DeltaKind.SET_CLEAR, DeltaKind.MAP_CLEAR):
        if size != 2:
            raise CorruptionError("frame: a removal of the wrong length")
        return key, _KINDS_WITH_ORDER[kind], b"" if kind == DeltaKind.REGISTER_DELETE else _WHOLE
    if kind == DeltaKind.COUNTER_ADD:
        if size != 4 or type(delta[2]) is not int or not 0 < delta[2] <= seq or type(delta[3]) is not int:
            raise CorruptionError("frame: not an increment")
        return key, SlotType.COUNTER, "add"
    if kind == DeltaKind.COUNTER_RESET:
        _check_reset(delta)
        return key, SlotType.COUNTER, _WHOLE
    if kind == DeltaKind.EXPIRE:
        return _check_expire(delta)
    if kind in CONTROL_KINDS and control:
        return _check_control(delta)
    raise CorruptionError(f"frame: unknown kind of delta {str(kind)[:20]!r}")


def _check_expiry(delta: Delta, at: int) -> None:
    if len(delta) == at + 1:
        if type(delta[at]) is not int or not 0 < delta[at] <= STAMP_MAX:
            raise CorruptionError("frame: an expiry out of range")
    elif len(delta) != at:
        raise CorruptionError("frame: a delta of the wrong length")


def _check_bytes(value: Any) -> None:
    if type(value) is not bytes:
        raise CorruptionError("frame: a value is not bytes")
    check_value(value)


def _check_reset(delta: Delta) -> None:
    if len(delta) != 3 or not isinstance(delta[2], list) or not delta[2]:
        raise CorruptionError("frame: not a reset")
    last: tuple[str, int] = ("", 0)
    for run in delta[2]:
        if not isinstance(run, list) or len(run) != 4 or any(type(n) is not int for n in run[1:]):
            raise CorruptionError("frame: a reset names something that is not a run")
        where = (check_origin(run[0]), run[1])
        if where <= last or not 0 < run[1] <= run[3] <= SEQ_MAX:
            raise CorruptionError("frame: a reset's runs are repeated, out of order or out of range")
        last = where


def _check_expire(delta: Delta) -> tuple[Any, ...]:
    if len(delta) != 5 or delta[2] not in TYPE_NAMES or delta[2] == SlotType.COUNTER or not isinstance(delta[4], list) or not delta[4]:
        raise CorruptionError("frame: not an expiry")
    if delta[2] == SlotType.REGISTER:
        if delta[3] != b"":
            raise CorruptionError("frame: an expiry's subkey is not what its type has")
    else:
        _check_bytes(delta[3])
    for dot in delta[4]:
        if not isinstance(dot, list) or len(dot) != 2 or type(dot[1]) is not int or not 0 < dot[1] <= SEQ_MAX:
            raise CorruptionError("frame: an expiry names something that is not a dot")
        check_origin(dot[0])
    # A map's fields are text in put and delete, canonical bytes here: name them alike for the net-effect rule.
    if delta[2] == SlotType.MAP:
        field = msgspec.msgpack.decode(delta[3])
        if not isinstance(field, str):
            raise CorruptionError("frame: a field is not text")
        return delta[1], SlotType.MAP, field
    return delta[1], delta[2], delta[3]


def _check_control(delta: Delta) -> tuple[Any, ...]:
    if delta[0] == DeltaKind.CLOSE:
        if len(delta) != 3 or type(delta[2]) is not int or not 0 < delta[2] <= SEQ_MAX:
            raise CorruptionError("frame: not a closing")
        return check_origin(delta[1]), "close", b""
    if len(delta) != 5:
        raise CorruptionError("frame: not a member")
    check_member(*delta[1:])
    return delta[1], "member", b""


def check_member(region: object, state: object, address: object, epoch: object) -> None:
    """Raise `CorruptionError` unless these may stand in a member's record."""
    try:
        check_region(region)
    except ConfigError as e:
        raise CorruptionError(f"member: {e}") from e
    if state not in MEMBER_STATES or not isinstance(address, str) or len(address) > ADDRESS_CHARS_MAX:
        raise CorruptionError("member: a state or address that is none")
    if type(epoch) is not int or not 0 < epoch <= SEQ_MAX:
        raise CorruptionError("member: an epoch out of range")
