"""Session tokens: what goes in comes out, and nothing else is a token."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.core.token import Token, decode_token, token_vv
from crdtkv.errors import InvalidValueError
from tests.frames import EU, US

TOKEN = Token(3, US, 2**40, VersionVector({US: 7, EU: 2**60}))


def text_of(*fields: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(fields)).rstrip(b"=").decode()


def test_round_trip() -> None:
    assert decode_token(TOKEN.encode()) == TOKEN and token_vv(TOKEN.encode()) == TOKEN.vv
    empty = Token(0, US, 0, EMPTY_VV)
    assert decode_token(empty.encode()) == empty
    assert TOKEN.encode().replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        "é",
        None,
        b"bytes",
        7,
        "A" * 10_000,
        text_of(2, 0, US, 0, []),
        text_of(1, 0, US, 0),
        text_of(1, 0, US, 0, [], 1, 2),
        text_of(1, 0, US, 0, [], 0),
        text_of(1, 0, US, 0, [], -1),
        text_of(1, 0, US, 0, [], True),
        text_of(1, "0", US, 0, []),
        text_of(1, 0, US, -1, []),
        text_of(1, 0, US, True, []),
        text_of(1, 0, "us", 0, []),
        text_of(1, 0, US, 0, [US, 0]),
        text_of(1, 0, US, 0, None),
    ],
    ids=repr,
)
def test_nothing_else_is_a_token(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match="not a token of crdtkv") as refused:
        decode_token(bad)
    assert len(str(refused.value)) < 120


def test_a_token_with_a_byte_more_less_or_between_is_none() -> None:
    """base64 skips what is not of its alphabet: a token with four blanks or dots in it read as the token without them."""
    text = TOKEN.encode()
    for bad in (text + "====", text + "!!!!", "...." + text, text[:10] + "\n\n\n\n" + text[10:], text[:-1], text + "A", text.lower()):
        with pytest.raises(InvalidValueError):
            decode_token(bad)
