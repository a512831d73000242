"""The bytes of one link's messages: compressed where it pays, and how many there were.

Frames are logged, hashed and applied as their origin encoded them; only a message on its way is compressed, whole, as
`messages.Packed`. Both sides offer it by the feature `zlib`; without it, and to an older peer, messages go as they are. Each
message stands for itself: nothing of it depends on what was sent before, so a link can begin and end anywhere.

**Where it pays** (`compression = "auto"`): between regions, where bytes cost money and time, so on links with a round trip of
`compression_round_trip_ms` or more; messages of frames and chunks of snapshots of `compression_bytes_min` or more, since what repeats is
the envelopes of commits and the shape of values; and not for long what does not shrink: after a message that saved less than a
tenth, `PAUSE_BYTES` go as they are, doubled each time up to `PAUSE_BYTES_MAX`, until one does.

zlib at its fastest level, measured on one core: 100 commits of one 100-byte value that looks like JSON, 19 kB → 4 kB in 52 µs and
20 µs back; of base64 noise, → 11 kB in 138 and 49 µs. Further levels save some per cent. `zstandard` takes a third of the time and
saves a fifth more, `lz4` a sixth and saves less; at what one replica can write, neither is worth a dependency of the core.

**Hostile bytes.** What a message claims to hold is checked against the limit of any message before it is unpacked, and no more than
that is ever made of it; a wrong claim, another kind inside, or anything behind the end is a `CorruptionError`.

Who lets strangers write beside secrets and watch the length of encrypted links should turn it off: lengths tell what repeats.
"""

from __future__ import annotations

import zlib
from typing import Final

from crdtkv.errors import CorruptionError
from crdtkv.replication.messages import FRAMES_BYTES_MAX, Chunk, Frames, Message, Packed, decode, encode
from crdtkv.replication.settings import ReplicationSettings

ZLIB: Final = "zlib"
"""Name of the feature."""
LEVEL: Final = 1
GAIN_MIN: Final = 0.1
PAUSE_BYTES: Final = 256 << 10
PAUSE_BYTES_MAX: Final = 16 << 20
_COMPRESSED: Final = frozenset[type[Message]]((Frames, Chunk))
_LOOKAHEAD: Final = 262
"""So much of its window zlib keeps free of what it looks back at."""
_WINDOW_BITS_MIN: Final = 9
_RAW: Final = -zlib.MAX_WBITS
"""No header and checksum: the transport has one, each frame another."""


class Packing:
    """One link's. `decode` and `encode` are each called once for every message, in order.

    Attributes:
        agreed: both hellos name `zlib`.
        round_trip_ms: the least measured lately, which is the link's own; None: not yet. (What a loaded peer adds by answering late is no
            distance: between nodes side by side compressing would only add to the load.)
        sent_bytes, received_bytes: of all messages, as they are without compression.
        sent_wire_bytes, received_wire_bytes: as they went over the link.
    """

    __slots__ = (
        "_pause_bytes", "_plain_until", "_settings", "agreed", "received_bytes", "received_wire_bytes", "round_trip_ms", "sent_bytes",
        "sent_wire_bytes",
    )  # fmt: skip

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings
        self.agreed = False
        self.round_trip_ms: float | None = None
        self.sent_bytes = self.sent_wire_bytes = 0
        self.received_bytes = self.received_wire_bytes = 0
        self._pause_bytes = PAUSE_BYTES
        self._plain_until = 0
        """Up to this count of `sent_bytes` nothing is tried: it did not pay."""

    @property
    def is_on(self) -> bool:
        """Whether what is large enough is compressed."""
        settings = self._settings
        if not self.agreed or settings.compression == "off":
            return False
        return settings.compression == "on" or (self.round_trip_ms or 0.0) >= settings.compression_round_trip_ms

    def encode(self, message: Message) -> bytes:
        """The bytes to send."""
        plain = data = encode(message)
        size = len(plain)
        if (
            size >= self._settings.compression_bytes_min
            and type(message) in _COMPRESSED
            and self.is_on
            and self.sent_bytes >= self._plain_until
        ):
            packed = encode(pack(plain))
            if len(packed) <= (1 - GAIN_MIN) * size:
                data, self._pause_bytes = packed, PAUSE_BYTES
            else:
                self._plain_until = self.sent_bytes + size + self._pause_bytes
                self._pause_bytes = min(2 * self._pause_bytes, PAUSE_BYTES_MAX)
        self.sent_bytes += size
        self.sent_wire_bytes += len(data)
        return data

    def decode(self, data: bytes) -> Message:
        """The message in what was received.

        Raises:
            CorruptionError: as by `messages.decode`; also if it is compressed and that was not agreed on.
        """
        size = len(data)
        self.received_wire_bytes += size
        message = decode(data)
        if type(message) is Packed:
            if not self.agreed:
                raise CorruptionError("message: it is compressed, which was not agreed on")
            size, message = message.size, unpack(message)
        self.received_bytes += size
        return message


def pack(plain: bytes) -> Packed:
    """Compress the bytes of a message.

    In a window that is no larger than it takes: those of 32 KiB are a quarter of a megabyte to be set up, eight times what it costs to
    compress a few hundred bytes, and what comes out is the same.
    """
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -min(max((len(plain) + _LOOKAHEAD).bit_length(), _WINDOW_BITS_MIN), zlib.MAX_WBITS))
    return Packed(len(plain), compressor.compress(plain) + compressor.flush())


def unpack(packed: Packed) -> Message:
    """The message inside. Never holds more than it claims, and that is at most the limit of any message.

    Raises:
        CorruptionError: it is not what it claims to be.
    """
    if packed.size > FRAMES_BYTES_MAX:
        raise CorruptionError(f"message: {packed.size:,} bytes when unpacked, the limit is {FRAMES_BYTES_MAX:,}")
    unpacker = zlib.decompressobj(_RAW)
    try:
        plain = unpacker.decompress(packed.data, packed.size + 1)  # one more than claimed shows that the claim is wrong
    except zlib.error as e:
        raise CorruptionError(f"message: {e}") from e
    if len(plain) != packed.size or not unpacker.eof or unpacker.unused_data:
        raise CorruptionError(f"message: it is not the {packed.size:,} bytes that it claims to be when unpacked")
    message = decode(plain)
    if type(message) not in _COMPRESSED:
        raise CorruptionError(f"message: a compressed {type(message).__name__}")
    return message
