"""A snapshot in chunks, for sending: what each holds, and the check of all that comes.

A snapshot of a state at `vv` is a sequence of numbered chunks of bytes. The first is the header (vector, hashes, stamps, closings and
members, digest, clock mark); then come the window of request ids, then the slots in order, each with its record:

    header    [0, format, requires, cluster, shard, origin, vv, hashes, stamps, mark, digest, control, extensions]
    requests  [1, [[id, origin, seq, hlc], …]]
    slots     [2, [slot, record, slot, record, …]]

Each chunk has a *link*: the hash of the link before it and of its bytes. So a link stands for everything up to its chunk; who has a
chunk and its link may go on after it, and nobody can put chunks of two snapshots together. The last chunk's arrival is followed by
one more check: the digest over the records as received must be the one that the donor's replica held at `vv`.

`Arrival` checks chunks one by one, in memory that does not grow with the state but for the requests: every record must be what a
replica at the header's vector would have written, exactly as for a snapshot in one piece (`join.check_slot`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from crdtkv.core.causality import Origin, VersionVector, check_origin
from crdtkv.core.clock import STAMP_MAX
from crdtkv.core.compare import digest_share
from crdtkv.core.control import NOTHING_AGREED
from crdtkv.core.frame import CONTROL_FEATURE, HASH_BYTES
from crdtkv.core.install import Incoming
from crdtkv.core.join import KNOWN_FEATURES, check_agreed, check_slot
from crdtkv.core.replica import Replica
from crdtkv.core.requests import Made
from crdtkv.errors import CorruptionError, IncompatibleFormatError

FORMAT: Final = 1
LINK_BYTES: Final = 16
NO_LINK: Final = b""
"""What comes before the first chunk."""
REQUESTS_IN_CHUNK: Final = 2_000
REQUESTS_MAX: Final = 1_000_000
"""Request ids that a snapshot may carry: more than any window holds."""
_MASK: Final = (1 << 128) - 1
_HEADER, _REQUESTS, _SLOTS = range(3)
_DECODE_ERRORS = (msgspec.DecodeError, msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError)


_NIL: Final = msgspec.Raw(b"\xc0")


class _Header(msgspec.Struct, array_like=True, frozen=True):
    kind: int
    format: int
    requires: list[str]
    cluster: str
    shard: int
    origin: str
    vv: list[Any]
    hashes: list[bytes]
    stamps: dict[str, int]
    mark: int
    digest: bytes
    control: msgspec.Raw = _NIL  # no `| None`: of a union with Raw, msgspec takes nothing but the None
    extensions: dict[str, msgspec.Raw] | None = None


class _RequestsChunk(msgspec.Struct, array_like=True, frozen=True):
    kind: int
    made: list[Made]


class _Slots(msgspec.Struct, array_like=True, frozen=True):
    kind: int
    flat: list[bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(_Header).decode
_decode_requests = msgspec.msgpack.Decoder(_RequestsChunk).decode
_decode_slots = msgspec.msgpack.Decoder(_Slots).decode


def next_link(link: bytes, data: bytes) -> bytes:
    """The link of a chunk that follows the one with `link`."""
    return hashlib.blake2b(data, digest_size=LINK_BYTES, key=link).digest()


def encode_header(replica: Replica, vv: VersionVector) -> bytes:
    """The first chunk: of a replica that stands at `vv`, everything folded and every clear done."""
    hashes = {o: replica.last_hash(o)[1] for o in vv}
    stamps = {o: s for o, s in replica.last_stamps().items() if o in vv}
    incoming = Incoming(replica.cluster, replica.shard, vv, hashes, replica.control.agreed(), stamps, mark=replica.clock.mark)
    return header_of(incoming, replica.origin, replica.digest())


def header_of(incoming: Incoming, origin: Origin, digest: int) -> bytes:
    """The first chunk of a state, from wherever it is kept; without its request ids. `digest`: the sum over its records."""
    agreed = incoming.agreed
    requires: list[str] = []
    control: object = None
    if agreed != NOTHING_AGREED:
        requires, control = [CONTROL_FEATURE], agreed.to_wire()
    return _encode(
        [
            _HEADER,
            FORMAT,
            requires,
            incoming.cluster,
            incoming.shard,
            origin,
            incoming.vv.flat(),
            [incoming.hashes[o] for o in incoming.vv],
            incoming.stamps,
            incoming.mark,
            digest.to_bytes(16, "big"),
            control,
            None,
        ]
    )


def encode_requests(made: Sequence[Made]) -> list[bytes]:
    """The chunks of the window of request ids."""
    return [_encode([_REQUESTS, made[at : at + REQUESTS_IN_CHUNK]]) for at in range(0, len(made), REQUESTS_IN_CHUNK)]


def encode_slots(flat: Sequence[bytes]) -> bytes:
    """A chunk of slots and their records."""
    return _encode([_SLOTS, flat])


def slots_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What is in a chunk that an `Arrival` has taken, if it is one of slots."""
    if data[1:2] == bytes([_SLOTS]):
        flat = _decode_slots(data).flat
        yield from zip(islice(flat, 0, None, 2), islice(flat, 1, None, 2), strict=True)


class Arrival:
    """The chunks of one snapshot as they come in; see the module's docstring.

    Attributes:
        chunks: how many were taken. link: of the last one. slots: how many there were in them.
        origin: the donor.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.link = NO_LINK
        self.slots = 0
        self.origin: Origin | None = None
        self.incoming: Incoming | None = None
        """The header and the requests so far; None before the first chunk."""
        self._requests: list[Made] = []
        self._digest = 0
        self._told_digest = 0
        self._last = b""

    def take(self, data: bytes, link: bytes) -> None:
        """Check the next chunk. O(chunk).

        Raises:
            CorruptionError: it does not follow the last one, or holds what no replica would have sent; nothing was taken.
            IncompatibleFormatError: it needs what this version does not know.
        """
        if link != next_link(self.link, data):
            raise CorruptionError(f"snapshot: chunk {self.chunks} does not follow the one before it, or was changed on its way")
        kind = data[1] if len(data) > 1 and data[0] & 0xF0 == 0x90 else -1
        try:
            if (self.incoming is None) != (kind == _HEADER):
                raise CorruptionError("snapshot: the header is not the first chunk, or not the only one")
            if kind == _HEADER:
                self._take_header(_decode_header(data))
            elif kind == _REQUESTS:
                self._take_requests(_decode_requests(data).made)
            elif kind == _SLOTS:
                self._take_slots(_decode_slots(data).flat)
            else:
                raise CorruptionError(f"snapshot: chunk {self.chunks} is of no known kind")
        except _DECODE_ERRORS as e:
            raise CorruptionError(f"snapshot: {e}") from e
        self.chunks += 1
        self.link = link

    def check_whole(self) -> None:
        """All chunks were taken: together they must be the state that the donor had. Raises `CorruptionError`."""
        if self.incoming is None:
            raise CorruptionError("snapshot: it ended before its header")
        if self._digest & _MASK != self._told_digest:
            raise CorruptionError("snapshot: the records do not amount to the digest that its donor had")

    def _take_header(self, wire: _Header) -> None:
        if wire.format != FORMAT:
            raise IncompatibleFormatError(
                f"snapshot: format {wire.format}, this version of crdtkv knows {FORMAT}: upgrade it", version=wire.format
            )
        unknown = [name for name in wire.requires if name not in KNOWN_FEATURES]
        if unknown:
            raise IncompatibleFormatError(
                f"snapshot: needs the feature {', '.join(map(repr, unknown))[:200]}, unknown to this version of crdtkv: upgrade it",
                features=unknown[:16],
            )
        vv = VersionVector.from_flat(wire.vv)
        if wire.shard < 0 or len(wire.hashes) != len(vv) or any(len(h) != HASH_BYTES for h in wire.hashes) or len(wire.digest) != 16:
            raise CorruptionError("snapshot: shard, hashes or digest out of range")
        if not 0 <= wire.mark <= STAMP_MAX or any(not 0 <= s <= STAMP_MAX for s in wire.stamps.values()):
            raise CorruptionError("snapshot: a stamp out of range")
        stamps = {check_origin(o): s for o, s in wire.stamps.items()}
        agreed = check_agreed(wire.control, vv)
        self.origin = check_origin(wire.origin)
        self._told_digest = int.from_bytes(wire.digest, "big")
        hashes = dict(zip(vv, wire.hashes, strict=True))
        self.incoming = Incoming(wire.cluster, wire.shard, vv, hashes, agreed, stamps, self._requests, wire.mark)

    def _take_requests(self, found: list[Made]) -> None:
        assert self.incoming is not None
        vv = self.incoming.vv
        if self.slots or len(self._requests) + len(found) > REQUESTS_MAX:
            raise CorruptionError("snapshot: request ids after slots, or too many")
        for made in found:
            check_origin(made.origin)
            if not 0 < made.seq <= vv.seq(made.origin) or not 0 <= made.hlc <= STAMP_MAX or len(made.request_id) > 256:
                raise CorruptionError("snapshot: a request id out of range")
        self._requests += found

    def _take_slots(self, flat: list[bytes]) -> None:
        assert self.incoming is not None
        if len(flat) % 2:
            raise CorruptionError("snapshot: a slot without its record")
        vv, last, total = self.incoming.vv, self._last, 0
        for slot, record in zip(islice(flat, 0, None, 2), islice(flat, 1, None, 2), strict=True):
            if slot <= last:
                raise CorruptionError("snapshot: slots are repeated or out of order")
            check_slot(slot, record, vv)
            total += digest_share(slot, record)
            last = slot
        self._last = last
        self.slots += len(flat) // 2
        self._digest += total
