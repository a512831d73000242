"""The messages between two replicas, and their bytes.

A message is one MessagePack array `[kind, field, field, …]`. The kind is a name: whoever does not know it can still
say which it was. A kind that starts with `?` is optional: a receiver that does not know it ignores it; any other
unknown kind is refused by name (`Unknown`). Fields are only ever added at the end: a reader skips those that it does
not know, and a writer's older peer is served by their defaults. The range of protocol versions in `Hello` is for
changes that this cannot express.

    Hello            once, first, from both sides at once    who I am, what I have, what I grant you
    Frames           frames of the sender's own origin, or relayed ones, in the order of the sender's log
    Subscribe        send me your own frames anew from this vector on: I had to drop some
    AskRelay         send me also the frames of third origins that I lack; asked again, it starts anew
    EndRelay         what I need comes by itself again
    CannotRelay      my log starts at this floor; what you ask for is below it. My own stream goes on if it can
    Ack              what is applied here, what is fsynced, how many messages of frames were dealt with; rides in Frames if it can
    Credit           how many bytes of frames, in total since the hello, you may send me
    Heartbeat        I live: vector, clock, digest; answered by HeartbeatReply: round trip and clock offset
    ?reports         what members have of origins that end, and whether they take no more: see `membership`
    AskSnapshot      no log reaches back to what I lack: send me a snapshot, or go on with the one that I have a part of
    Chunk, ChunkAck  a chunk of it; so many are staged. EndSnapshot: no more is needed. CannotSnapshot: not now, and why
    Packed           frames or a chunk, compressed
    Bye              why this link ends; nothing follows it

The messages about snapshots are only for peers whose hello names the feature `snapshot`, `Packed` for those that name `zlib`.

Decoding hostile bytes gives a message or `CorruptionError`, in time and memory proportional to their length: kinds
other than `Frames`, `Chunk` and `Packed` are refused above `CONTROL_BYTES_MAX` before they are looked at, and the number of frames is read
from the array's header before any of them is.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from crdtkv.core.causality import SEQ_MAX, Origin, VersionVector, check_origin, region_of
from crdtkv.core.clock import STAMP_MAX
from crdtkv.core.frame import FRAME_BYTES_MAX, HASH_BYTES
from crdtkv.errors import CorruptionError

PROTOCOL_VERSION_MIN: Final = 1
PROTOCOL_VERSION_MAX: Final = 1

FRAMES_MAX: Final = 8_192
"""Frames in one message."""
FRAMES_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX
"""Bytes of one `Frames` message: a full message and one frame of the largest size, with room."""
CONTROL_BYTES_MAX: Final = 512 << 10
"""Bytes of any other message: a hello with the most origins, and room."""
ORIGINS_MAX: Final = 4_096
"""Origins in one version vector on the wire: every incarnation that was ever met and not closed."""

_Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
_Stamp = Annotated[int, Meta(ge=0, le=STAMP_MAX)]
_Whole = Annotated[int, Meta(ge=0, le=2**53)]
_Version = Annotated[int, Meta(ge=1, le=65_535)]
_Name = Annotated[str, Meta(max_length=128)]
_Text = Annotated[str, Meta(max_length=1_024)]
_Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Digest = Annotated[str, Meta(max_length=64)]
_Id = Annotated[bytes, Meta(max_length=32)]


class Hello(Struct, frozen=True, array_like=True, tag="hello", kw_only=True):
    """The first message of each side.

    `kept` has per origin the seq and hash of the last frame applied: two contents for one dot show at once.
    `own_credit` and `relay_credit` are the first grants, as in `Credit`.
    """

    version_min: _Version
    version_max: _Version
    features: Annotated[tuple[_Name, ...], Meta(max_length=64)]
    cluster: _Name
    shard: _Whole
    region: _Name
    origin: Origin
    members: Annotated[tuple[_Name, ...], Meta(max_length=1_024)]
    vv: VersionVector
    kept: Annotated[dict[Origin, tuple[_Seq, _Hash]], Meta(max_length=ORIGINS_MAX)]
    wall_ms: _Whole
    hlc: _Stamp
    own_credit: _Whole
    relay_credit: _Whole


class Subscribe(Struct, frozen=True, array_like=True, tag="subscribe"):
    """Send your own frames from `vv` on."""

    vv: VersionVector


class AskRelay(Struct, frozen=True, array_like=True, tag="ask_relay"):
    """Send the frames of third origins that `vv` lacks, and go on doing so."""

    vv: VersionVector


class EndRelay(Struct, frozen=True, array_like=True, tag="end_relay"):
    """No more relayed frames."""


class CannotRelay(Struct, frozen=True, array_like=True, tag="cannot_relay"):
    """The sender's log lacks something below `floor`; with `own`, of its own origin."""

    floor: VersionVector
    own: bool = False


class Ack(Struct, frozen=True, array_like=True, tag="ack"):
    """`durable` is what is fsynced, or what it would survive by the sender's level; messages count since the hello."""

    applied: VersionVector
    durable: VersionVector
    own_messages: _Whole
    relay_messages: _Whole


class Frames(Struct, frozen=True, array_like=True, tag="frames"):
    """Whole frames, byte for byte; all of the sender's own origin, or (`relayed`) none of them.

    `ack` precedes the frames. Only for peers whose hello names the feature `ack_with_frames`; to others acks go by themselves.
    """

    relayed: bool
    frames: tuple[bytes, ...]
    ack: Ack | None = None


class Credit(Struct, frozen=True, array_like=True, tag="credit"):
    """Bytes of frames, own and relayed, that may be sent in total since the hello; never decreases."""

    own_bytes: _Whole
    relay_bytes: _Whole


class Heartbeat(Struct, frozen=True, array_like=True, tag="heartbeat"):
    """`digest` is the vector and digest of one settled state of the sender; `wall_us` its wall clock, Unix µs."""

    number: _Whole
    wall_us: _Whole
    vv: VersionVector
    hlc: _Stamp
    digest: tuple[VersionVector, _Digest] | None = None


class HeartbeatReply(Struct, frozen=True, array_like=True, tag="heartbeat_reply"):
    """The answerer's wall clock when heartbeat `number` came, and how long the answer waited there."""

    number: _Whole
    received_wall_us: _Whole
    waited_us: _Whole


class Reports(Struct, frozen=True, array_like=True, tag="?reports"):
    """By member, by origin that ends: what it has fsynced of that origin, and whether it is frozen there."""

    reports: Annotated[dict[Origin, Annotated[dict[Origin, tuple[_Seq, bool]], Meta(max_length=ORIGINS_MAX)]], Meta(max_length=ORIGINS_MAX)]
    removals: Annotated[dict[Origin, Annotated[dict[Origin, _Seq], Meta(max_length=ORIGINS_MAX)]], Meta(max_length=ORIGINS_MAX)] = {}
    """By member, by whoever recorded that a region is removed: the last such commit that it has fsynced, and goes by in its reports."""
    ended_by: Annotated[dict[Origin, Origin], Meta(max_length=ORIGINS_MAX)] = {}
    """Of what is frozen because its region went on as another incarnation: that one. Whoever freezes it as well has to know why."""


class AskSnapshot(Struct, frozen=True, array_like=True, tag="ask_snapshot"):
    """Send a snapshot. `chunks` and `link` (of the last) say what is staged already of one that was being sent."""

    chunks: _Whole
    link: _Id


class Chunk(Struct, frozen=True, array_like=True, tag="chunk"):
    """Chunk `number`, from 0, of a snapshot; see `core.transfer` for `data` and `link`."""

    id: _Id
    number: _Whole
    data: bytes
    link: _Id
    last: bool


class ChunkAck(Struct, frozen=True, array_like=True, tag="chunk_ack"):
    """So many chunks are staged: more may follow."""

    id: _Id
    chunks: _Whole


class EndSnapshot(Struct, frozen=True, array_like=True, tag="end_snapshot"):
    """The snapshot need not be held any longer."""

    id: _Id


class CannotSnapshot(Struct, frozen=True, array_like=True, tag="cannot_snapshot"):
    """No snapshot, or no more of it; ask again after `retry_ms`."""

    reason: _Text
    retry_ms: _Whole


class Packed(Struct, frozen=True, array_like=True, tag="packed"):
    """`Frames` or a `Chunk`, compressed; `size` is that of its bytes. See `packing`."""

    size: _Whole
    data: bytes


class Bye(Struct, frozen=True, array_like=True, tag="bye"):
    """The last message: a code for programs (`session.Code`) and a sentence for people."""

    code: _Name
    reason: _Text


class Unknown(Struct, frozen=True):
    """A message of a kind that this version does not know. Never sent."""

    kind: str
    optional: bool


AboutSnapshots = AskSnapshot | Chunk | ChunkAck | EndSnapshot | CannotSnapshot
Live = Frames | Subscribe | AskRelay | EndRelay | CannotRelay | Ack | Credit | Heartbeat | HeartbeatReply | Reports | AboutSnapshots
Wire = Hello | Live | Packed | Bye
Message = Wire | Unknown

_KINDS: Final = frozenset(str(cls.__struct_config__.tag) for cls in Wire.__args__)
_FRAMES_START: Final = b"\xa6frames"
_CHUNK_START: Final = b"\xa5chunk"
_PACKED_START: Final = b"\xa6packed"
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError, OverflowError, RecursionError)


def _to_wire(value: Any) -> Any:
    if type(value) is VersionVector:
        return msgspec.Raw(value.to_bytes())
    raise TypeError(f"a message holds a {type(value).__name__}")


def _from_wire(_type: type, value: Any) -> Any:
    """The only custom type in a message is `VersionVector`."""
    if isinstance(value, list) and len(value) > 2 * ORIGINS_MAX:
        raise CorruptionError(f"message: a version vector of {len(value) // 2:,} origins, the limit is {ORIGINS_MAX:,}")
    return VersionVector.from_flat(value)


_encode = msgspec.msgpack.Encoder(enc_hook=_to_wire).encode
_decode = msgspec.msgpack.Decoder(Wire, dec_hook=_from_wire).decode
_decode_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_kind = msgspec.msgpack.Decoder(str).decode


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    assert type(message) is not Unknown
    return _encode(message)


def decode(data: bytes) -> Message:
    """The message in `data`.

    Raises:
        CorruptionError: these bytes are not one whole message within its limits.
    """
    if data[1:8] == _FRAMES_START:
        if len(data) > FRAMES_BYTES_MAX:
            raise CorruptionError(f"message: {len(data):,} bytes of frames, the limit is {FRAMES_BYTES_MAX:,}")
        count = _array_length(data, 9)
        if count > FRAMES_MAX:
            raise CorruptionError(f"message: {count:,} frames, the limit is {FRAMES_MAX:,}")
    elif len(data) > CONTROL_BYTES_MAX:
        _check_size(data)
    try:
        message: Message = _decode(data)
    except _DECODE_ERRORS as e:
        if data[1:8] != _FRAMES_START and (unknown := _unknown(data)) is not None:
            return unknown
        raise CorruptionError(f"message: {e}") from e
    if type(message) is Hello:
        check_origin(message.origin)
        for origin in message.kept:
            check_origin(origin)
    elif type(message) is Reports:
        for by_origin in (message.reports, message.removals):
            for reporter, told in by_origin.items():
                for origin in (reporter, *told):
                    check_origin(origin)
        for origin, later in message.ended_by.items():
            if region_of(check_origin(origin)) != region_of(check_origin(later)) or origin == later:
                raise CorruptionError(f"message: {later} is said to have ended {origin}")
    return message


def _check_size(data: bytes) -> None:
    """Refuse what is larger than any message, and all but a chunk and what is packed above `CONTROL_BYTES_MAX`."""
    is_chunk = data[1:7] == _CHUNK_START
    if not is_chunk and not is_packed(data):
        raise CorruptionError(f"message: {len(data):,} bytes, the limit is {CONTROL_BYTES_MAX:,}")
    if len(data) > FRAMES_BYTES_MAX:
        what = "a chunk of " if is_chunk else "compressed "
        raise CorruptionError(f"message: {what}{len(data):,} bytes, the limit is {FRAMES_BYTES_MAX:,}")


def is_packed(data: bytes) -> bool:
    """Whether these bytes of a message are those of a `Packed` one."""
    return data[1:8] == _PACKED_START


def weight(data: bytes) -> int:
    """About how many bytes a message is when it is unpacked, as far as it says: what dealing with it costs. O(1)."""
    if not is_packed(data) or len(data) < 13:
        return len(data)
    length = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(data[8])
    return len(data) if length is None else len(data) + int.from_bytes(data[9 : 9 + length], "big")


def _unknown(data: bytes) -> Unknown | None:
    """What failed to decode, if it is whole and of a kind that is not known here."""
    try:
        items = _decode_items(data)
        kind = _decode_kind(items[0]) if items else ""
    except _DECODE_ERRORS:
        return None
    if not 0 < len(kind) <= 64 or kind in _KINDS:
        return None
    return Unknown(kind, kind.startswith("?"))


def _array_length(data: bytes, at: int) -> int:
    """The length in the MessagePack array header at `at`; 0 if there is none (the decoder will say so)."""
    first = data[at] if at < len(data) else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first == 0xDC:
        return int.from_bytes(data[at + 1 : at + 3], "big")
    if first == 0xDD:
        return int.from_bytes(data[at + 1 : at + 5], "big")
    return 0
