"""Session tokens: what a caller has seen, as opaque text that crosses regions and processes.

A token names a shard, a version vector (what has been seen) and a place in one replica's log (where a watch can go
on). Reads elsewhere can wait for the vector; only the replica that issued it can use the place.
"""

from __future__ import annotations

import base64
from binascii import b2a_base64
from typing import NamedTuple

import msgspec

from crdtkv.core.causality import Origin, VersionVector, check_origin
from crdtkv.errors import CorruptionError, InvalidValueError

_VERSION = 1
_encode = msgspec.msgpack.Encoder().encode
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Token(NamedTuple):
    """A decoded token. `position` is the index in the log of `owner` of the first frame that has not been seen whole.

    Of that frame the owner's commits up to `seq` have been seen (0: none).
    """

    shard: int
    owner: Origin
    position: int
    vv: VersionVector
    seq: int = 0

    def encode(self) -> str:
        """The token's text: URL-safe base64 without padding."""
        fields: list[object] = [_VERSION, self.shard, self.owner, self.position, msgspec.Raw(self.vv.to_bytes())]
        if self.seq:
            fields.append(self.seq)
        return b2a_base64(_encode(fields), newline=False).translate(_URL_SAFE).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """The inverse of `Token.encode`; raises `InvalidValueError` for anything else."""
    try:
        fields = msgspec.msgpack.decode(base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)))
        version, shard, owner, position, flat, *rest = fields
        if version != _VERSION or type(shard) is not int or type(position) is not int or position < 0 or len(rest) > 1:
            raise ValueError("unknown version or field")
        seq = rest[0] if rest else 0
        if type(seq) is not int or seq < 0:
            raise ValueError("unknown field")
        token = Token(shard, check_origin(owner), position, VersionVector.from_flat(flat), seq)
        if token.encode() != text:  # base64 skips what is not of its alphabet
            raise ValueError("not in canonical form")
        return token
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError, msgspec.DecodeError, CorruptionError) as e:
        raise InvalidValueError(
            f"token: not a token of crdtkv: {str(text)[:40]!r}; give one that a commit or a change came with", token=str(text)[:80]
        ) from e


def token_vv(text: str) -> VersionVector:
    """The version vector inside a token: what its holder has seen."""
    return decode_token(text).vv
