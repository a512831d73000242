"""Canonical bytes of values, and the order-preserving encoding of slots.

A value's identity is its canonical encoding, version 1 for ever: MessagePack with the shortest integers, floats
always 64 bits (-0.0 kept, one NaN), str and bytes distinct, the shortest timestamp, and map keys sorted by their
encoded bytes. So `1`, `1.0`, `True`, `"1"` and `b"1"` are five different set elements, and two replicas that hold
the same value hold the same bytes. Whoever receives bytes checks them: a value in any other form is refused.

A slot `(key, type, subkey)` is one record of the state engine. Its bytes sort first by key (UTF-8 bytes), then by
type, then by subkey; NUL inside a key is escaped so that no key is a byte prefix of another key's slots.

Theory of operation: scalars take one call into `msgspec` (identical bytes to `msgpack`, several times faster; the
tests compare the two); containers are walked here, because neither library sorts map keys.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from crdtkv.errors import CorruptionError, InvalidKeyError, InvalidValueError, KeyTooLargeError, ValueTooLargeError

KEY_BYTES_MAX = 1024
VALUE_DEPTH_MAX = 64
"""How deep lists and dicts may nest. Far below the recursion limits of every decoder in use."""
VALUE_BYTES_MAX = 1 << 20
"""Default limit of one encoded value or element, 1 MiB (`Settings.value_bytes_max`)."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
encode_text = _encode
"""`encode_value` for text that is known to be ASCII, on the path of every put."""
decode_checked = _decode
"""`decode_value` for bytes that were checked when they came in, on the path of every read; raises whatever the decoder does."""
_pack_header = msgpack.Packer(autoreset=True)
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError, TypeError, OverflowError)
_ONE_FORM = frozenset({type(None), bool, int, str, bytes})
"""Types of values that have one form, the encoder's."""
_NAN = b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"


# -- values ---------------------------------------------------------------------------------------------------


def encode_value(value: Any) -> bytes:
    """The canonical encoding of a value. O(size); dicts cost a sort of their keys.

    Raises:
        InvalidValueError: the value, or something inside it, cannot be stored; names the path, e.g. `a.b[3]`.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bytes or value is None or kind is bool:
        try:
            return _encode(value)
        except (UnicodeEncodeError, OverflowError):
            raise _unsuitable(value, ()) from None
    return _encode_any(value, ())


def _encode_any(value: Any, path: tuple[str | int, ...]) -> bytes:
    if value is None or isinstance(value, bool):
        return _encode(value)
    if isinstance(value, str):
        try:
            return _encode(str.__str__(value))
        except UnicodeEncodeError:
            raise _unsuitable(value, path) from None
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise _unsuitable(value, path)
        return _encode(int(value))
    if isinstance(value, float):
        return _NAN if math.isnan(value) else _encode(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _encode(bytes(value))
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise InvalidValueError(f"value{_where(path)}: a datetime needs a time zone, got the naive {value}", path=_path_text(path))
        return _encode(_in_utc(value, path))
    if isinstance(value, list | tuple):
        _check_depth(path)
        parts = [_pack_header.pack_array_header(len(value))]
        parts += [_encode_any(item, (*path, i)) for i, item in enumerate(value)]
        return b"".join(parts)
    if isinstance(value, dict):
        _check_depth(path)
        pairs = sorted((_encode_dict_key(k, path), _encode_any(v, (*path, str(k)))) for k, v in value.items())
        parts = [_pack_header.pack_map_header(len(pairs))]
        for pair in pairs:
            parts += pair
        return b"".join(parts)
    raise _unsuitable(value, path)


def _in_utc(value: datetime.datetime, path: tuple[str | int, ...]) -> datetime.datetime:
    try:
        return value.astimezone(datetime.UTC)
    except OverflowError:
        raise InvalidValueError(f"value{_where(path)}: {value} is outside the years 1 to 9999 in UTC", path=_path_text(path)) from None


def _encode_dict_key(key: Any, path: tuple[str | int, ...]) -> bytes:
    if key is None or (isinstance(key, bool | int | float | str | bytes) and key == key):
        return _encode_any(key, path)
    raise InvalidValueError(
        f"value{_where(path)}: a dict key must be None, bool, int, float (not NaN), str or bytes, got {_shown(key)}", path=_path_text(path)
    )


def _check_depth(path: tuple[str | int, ...]) -> None:
    if len(path) >= VALUE_DEPTH_MAX:
        raise InvalidValueError(f"value nests deeper than {VALUE_DEPTH_MAX} levels at {_path_text(path)[:80]}", path=_path_text(path))


def _unsuitable(value: Any, path: tuple[str | int, ...]) -> InvalidValueError:
    if isinstance(value, int):
        why = f"the integer {_shown(value)} is outside -2^63 .. 2^64-1"
    elif isinstance(value, str):
        why = "the text holds a lone surrogate and has no UTF-8 form"
    else:
        why = f"cannot store {_shown(value)}; use None, bool, int, float, str, bytes, list, dict or an aware datetime"
    return InvalidValueError(f"value{_where(path)}: {why}", path=_path_text(path))


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"of {value.bit_length()} bits" if value.bit_length() > 128 else str(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _path_text(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.removeprefix(".")


def _where(path: tuple[str | int, ...]) -> str:
    return f" at {_path_text(path)}" if path else ""


def decode_value(data: bytes) -> Any:
    """The value of canonical bytes; the inverse of `encode_value`, with tuples as lists and datetimes in UTC.

    Raises:
        CorruptionError: the bytes are no value. (Only `check_value` tells canonical from other forms.)
    """
    try:
        return _decode(data)
    except _DECODE_ERRORS as e:
        raise CorruptionError(f"value: {e}") from e


def number_to_wire(number: int) -> int | str:
    """A whole number of any size as MessagePack can carry it: beyond its 64 bits as decimal text."""
    return number if -(2**63) <= number < 2**64 else str(number)


def number_from_wire(wire: int | str) -> int:
    """The inverse of `number_to_wire`; CorruptionError for what is no whole number."""
    if type(wire) is int:
        return wire
    try:
        if type(wire) is str:
            return int(wire)
    except ValueError:
        pass
    raise CorruptionError(f"not a whole number: {_shown(wire)}")


def check_value(data: bytes) -> None:
    """Raise `CorruptionError` unless `data` is exactly the canonical encoding of one value. O(size)."""
    try:
        value = _decode(data)
        kind = type(value)
        # A text, bytes or an integer has one form, the encoder's: `encode_value` without its way to the others.
        canonical = _encode(value) if kind is str or kind is bytes or kind is int else encode_value(value)
    except (*_DECODE_ERRORS, InvalidValueError) as e:
        raise CorruptionError(f"value: {e}") from e
    if canonical != data:
        raise CorruptionError("value: not in canonical form")


def are_plain_values(values: Sequence[bytes]) -> bool:
    """Whether each is the canonical encoding of a text, bytes, a whole number, a boolean or None: a look at all of them at once.

    If not, `check_value` of each decides.
    """
    try:
        decoded = list(map(_decode, values))
        if not _ONE_FORM.issuperset(map(type, decoded)):
            return False
        # No value's bytes begin another's, so if all of them one after another are the encoder's, each is.
        canonical, given = _encode(decoded), b"".join(values)
        return canonical.endswith(given) and len(canonical) == len(_pack_header.pack_array_header(len(values))) + len(given)
    except _DECODE_ERRORS:
        return False


def check_size(data: bytes, limit: int, what: str = "value") -> None:
    """Raise `ValueTooLargeError` if an encoded value is longer than `limit` bytes."""
    if len(data) > limit:
        raise ValueTooLargeError(
            f"{what} is {len(data):,} bytes encoded; the limit is {limit:,} (setting value_bytes_max): store it in parts",
            limit=limit,
            size=len(data),
        )


# -- keys and slots -------------------------------------------------------------------------------------------


class SlotType:
    """The byte in a slot that says which type it belongs to. Never renumbered: it is in every data directory."""

    REGISTER = 1
    SET = 2
    COUNTER = 3
    MAP = 4


TYPE_NAMES = {SlotType.REGISTER: "register", SlotType.SET: "set", SlotType.COUNTER: "counter", SlotType.MAP: "map"}
TYPE_CODES = {name: code for code, name in TYPE_NAMES.items()}

SLOT_SPACE = b"d"
"""First byte of every slot in the engine; other first bytes hold local bookkeeping that is outside the digest."""
_KEY_END = b"\x00\x00"
_SUFFIX = {code: _KEY_END + bytes([code]) for code in TYPE_NAMES}
REGISTER_SUFFIX = _SUFFIX[SlotType.REGISTER]
SLOT_TEXT, REGISTER_TEXT = SLOT_SPACE.decode(), REGISTER_SUFFIX.decode()
_BETWEEN_SLOTS = b"\x00\x02"
"""Stands nowhere within the slots of registers whose keys hold no NUL, or across their ends."""
_BETWEEN_KEYS = REGISTER_TEXT + _BETWEEN_SLOTS.decode() + SLOT_TEXT
_KEY_CHARACTERS_SURE = KEY_BYTES_MAX // 4


def encode_key(key: str) -> bytes:
    """A key's UTF-8 bytes.

    Raises:
        InvalidKeyError: not a str, empty, or without a UTF-8 form.
        KeyTooLargeError: longer than 1024 bytes.
    """
    if not isinstance(key, str):
        raise InvalidKeyError(f"key: must be a str, got {type(key).__name__}")
    try:
        data = key.encode()
    except UnicodeEncodeError:
        raise InvalidKeyError("key: the text holds a lone surrogate and has no UTF-8 form") from None
    if 0 < len(data) <= KEY_BYTES_MAX:
        return data
    if not data:
        raise InvalidKeyError("key: must not be empty (1 to 1,024 bytes of UTF-8)")
    raise KeyTooLargeError(
        f"key: {len(data):,} bytes of UTF-8, the limit is 1,024: {key[:40]!r}…", key=key[:40], limit=KEY_BYTES_MAX, size=len(data)
    )


def encode_prefix(prefix: str) -> bytes:
    """A key prefix's UTF-8 bytes; "" is the prefix of every key."""
    return encode_key(prefix) if prefix != "" else b""


NUL = 0
"""To look for as a number: with bytes of length one the search costs seven times as much."""


def escape(key: bytes) -> bytes:
    """A key's bytes with NUL escaped, so that `KEY_END` cannot occur inside; keeps the order."""
    return key.replace(b"\x00", b"\x00\xff") if NUL in key else key


def slot_of(key: bytes, type_code: int, subkey: bytes = b"") -> bytes:
    """The record key of a slot."""
    if NUL in key:
        key = escape(key)
    return SLOT_SPACE + key + _SUFFIX[type_code] + subkey


def register_slot(key: bytes) -> bytes:
    """The record key of a register: `slot_of(key, SlotType.REGISTER)`."""
    if NUL in key:
        key = escape(key)
    return SLOT_SPACE + key + REGISTER_SUFFIX


def register_slot_of(key: str) -> bytes:
    """`register_slot(encode_key(key))`, the same errors included, in one step for the path of every put and get.

    A key of so few characters is within its limit of bytes, whatever they are.
    """
    if type(key) is str and 0 < len(key) <= _KEY_CHARACTERS_SURE and "\x00" not in key:
        try:
            return f"{SLOT_TEXT}{key}{REGISTER_TEXT}".encode()
        except UnicodeEncodeError:
            pass  # a lone surrogate: `encode_key` says so
    return register_slot(encode_key(key))


def register_slots_of(keys: Sequence[str]) -> list[bytes]:
    """`register_slot_of` each key, all of which are known to be valid."""
    return _register_slots_of(keys, "".join(keys))


def _register_slots_of(keys: Sequence[str], text: str) -> list[bytes]:
    """`register_slots_of`; `text` is all the keys."""
    if not keys or "\x00" in text:
        return [register_slot_of(key) for key in keys]
    return f"{SLOT_TEXT}{_BETWEEN_KEYS.join(keys)}{REGISTER_TEXT}".encode().split(_BETWEEN_SLOTS)


def sure_register_slots(keys: Sequence[str]) -> list[bytes] | None:
    """`register_slot_of` each key, checked all at once; None if that does not tell that each is one: then a look at each decides."""
    try:
        text = "".join(keys)  # raises for what is no text
        sizes = set(map(len, keys))
        return None if not text or 0 in sizes or max(sizes) > _KEY_CHARACTERS_SURE else _register_slots_of(keys, text)
    except (TypeError, UnicodeEncodeError, InvalidKeyError):
        return None


def split_slot(slot: bytes) -> tuple[bytes, int, bytes]:
    """The `(key, type, subkey)` of a slot's record key."""
    end = slot.index(_KEY_END)
    key = slot[1:end]
    if NUL in key:
        key = key.replace(b"\x00\xff", b"\x00")
    return key, slot[end + 2], slot[end + 3 :]


def key_range(key: bytes) -> tuple[bytes, bytes]:
    """The range of record keys `[start, end)` that holds every slot of one key."""
    start = SLOT_SPACE + escape(key) + _KEY_END
    return start, start + b"\xff"


def type_range(key: bytes, type_code: int) -> tuple[bytes, bytes]:
    """The range of record keys `[start, end)` that holds the slots of one type at one key."""
    base = SLOT_SPACE + escape(key) + _KEY_END
    return base + bytes([type_code]), base + bytes([type_code + 1])


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """The range of record keys `[start, end)` that holds every slot of every key with a prefix."""
    return SLOT_SPACE + escape(prefix), successor(SLOT_SPACE + escape(prefix))


def successor(prefix: bytes) -> bytes:
    """The least bytes greater than everything that starts with `prefix` (which is not all 0xff)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1])
