"""Header blocks of HTTP/2 (RFC 7541): literals written, everything read.

A call has two header blocks to send and two to read in its life, so nothing here is fast: what is written uses no table and no Huffman
code, which every peer must read. What is read may use both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

TABLE_BYTES_MAX: Final = 4096
"""What a peer may have us remember, unless our settings say otherwise."""
_ENTRY_BYTES: Final = 32
"""What an entry counts besides its name and value."""

Header = tuple[bytes, bytes]


class HpackError(ValueError):
    """A header block that cannot be read; nothing on its connection can be read any more."""


def encode(headers: Iterable[Header]) -> bytes:
    """A header block: each header literally, and not to be remembered."""
    out = bytearray()
    for name, value in headers:
        out += b"\x00"
        for text in (name, value):
            out += _number(len(text), 7)
            out += text
    return bytes(out)


class Decoder:
    """Reads the header blocks of one connection, in order: each may refer to what those before it left in the table."""

    def __init__(self) -> None:
        self._table: deque[Header] = deque()  # the newest first
        self._bytes = 0
        self._bytes_max = TABLE_BYTES_MAX

    def decode(self, block: bytes) -> list[Header]:
        """The headers of a block.

        Raises:
            HpackError: it is not one.
        """
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("a header block ends in the middle of a header, or refers to an entry that is not there") from None

    def _decode(self, block: bytes) -> list[Header]:
        headers: list[Header] = []
        at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # an entry of the tables
                index, at = _read_number(block, at, 7)
                headers.append(self._entry(index))
            elif first & 0xE0 == 0x20:  # a new size of the table
                size, at = _read_number(block, at, 5)
                if size > TABLE_BYTES_MAX:
                    raise HpackError(f"a header table of {size:,} bytes, over the {TABLE_BYTES_MAX:,} that were offered")
                self._bytes_max = size
                self._shrink(0)
            else:
                remember = first & 0x40
                index, at = _read_number(block, at, 6 if remember else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _read_text(block, at)
                value, at = _read_text(block, at)
                headers.append((name, value))
                if remember:
                    self._remember(name, value)
        return headers

    def _entry(self, index: int) -> Header:
        if not index:
            raise HpackError("entry 0 of a header table")
        return _STATIC[index - 1] if index <= len(_STATIC) else self._table[index - 1 - len(_STATIC)]

    def _remember(self, name: bytes, value: bytes) -> None:
        size = len(name) + len(value) + _ENTRY_BYTES
        self._shrink(size)
        if size <= self._bytes_max:
            self._table.appendleft((name, value))
            self._bytes += size

    def _shrink(self, room: int) -> None:
        """Forget the oldest entries until there is room for so many bytes, or nothing is left."""
        while self._table and self._bytes + room > self._bytes_max:
            name, value = self._table.pop()
            self._bytes -= len(name) + len(value) + _ENTRY_BYTES


def _number(value: int, bits: int) -> bytes:
    """An integer behind a prefix of so many bits, of which those before it are 0."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    out = bytearray((most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer at a place, and where what follows it begins."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        part = block[at]
        at += 1
        value += (part & 0x7F) << shift
        if part < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise HpackError("a header's length has more than 32 bits")


def _read_text(block: bytes, at: int) -> tuple[bytes, int]:
    is_huffman = block[at] & 0x80
    size, at = _read_number(block, at, 7)
    text = block[at : at + size]
    if len(text) < size:
        raise HpackError("a header block ends in the middle of a text")
    return (_huffman(text) if is_huffman else text), at + size


def _huffman(data: bytes) -> bytes:
    out = bytearray()
    code = length = 0
    for byte in data:
        for bit in range(7, -1, -1):
            code = code << 1 | byte >> bit & 1
            length += 1
            symbol = _SYMBOLS.get((length, code))
            if symbol is not None:
                if symbol == _END:
                    raise HpackError("a Huffman-coded text holds the sign for its end")
                out.append(symbol)
                code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a Huffman-coded text is padded with something else than ones")
    return bytes(out)


_END: Final = 256


def _symbols() -> dict[tuple[int, int], int]:
    """(bits, code) → symbol. The code of RFC 7541 is canonical: counting upwards by length, then by symbol, gives all its codes."""
    codes: dict[tuple[int, int], int] = {}
    code = length_before = 0
    for symbol in sorted(range(_END + 1), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        length = _LENGTHS[symbol]
        code <<= length - length_before
        codes[length, code] = symbol
        code += 1
        length_before = length
    return codes


# Bits of the code of each symbol, 0 to 256 (RFC 7541, appendix B), 32 in a line.
# fmt: off
_LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)
# fmt: on
_SYMBOLS: Final = _symbols()

# RFC 7541, appendix A.
_STATIC: Final[tuple[Header, ...]] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control "
            b"content-disposition content-encoding content-language content-length content-location content-range content-"
            b"type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range if-"
            b"unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range referer "
            b"refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary via www-"
            b"authenticate"
        ).split()
    ),
)
