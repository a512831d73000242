"""Header blocks: the examples of RFC 7541, appendix C; what is written is read; what is no header block is an error."""

from __future__ import annotations

import pytest

from crdtkv.transport.hpack import Decoder, HpackError, encode

REQUEST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]


@pytest.mark.parametrize(
    "blocks",
    [
        (  # C.3: without Huffman
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (  # C.4: with
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
)
def test_the_requests_of_the_standard(blocks: tuple[str, str, str]) -> None:
    decoder = Decoder()
    first, second, third = (decoder.decode(bytes.fromhex(block)) for block in blocks)
    assert first == REQUEST
    assert second == [*REQUEST, (b"cache-control", b"no-cache")]
    assert third == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]


def test_the_answers_of_the_standard_with_a_table_that_forgets() -> None:
    """C.6: the table is 256 bytes, so the second block drops an entry of the first, and the third all but its own."""
    decoder = Decoder()
    decoder.decode(bytes.fromhex("3fe101"))  # 256
    first = decoder.decode(
        bytes.fromhex("488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3")
    )
    assert first == [
        (b":status", b"302"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        (b"location", b"https://www.example.com"),
    ]
    assert decoder.decode(bytes.fromhex("4883640effc1c0bf")) == [(b":status", b"307"), *first[1:]]
    third = decoder.decode(
        bytes.fromhex(
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        )
    )
    assert third == [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
        (b"location", b"https://www.example.com"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ]


def test_what_is_written_is_read() -> None:
    headers = [(b"", b""), (b"x", b"y" * 126), (b"x" * 127, b"y" * 128), (b"x" * 300, bytes(range(256)) * 80)]
    assert Decoder().decode(encode(headers)) == headers


@pytest.mark.parametrize(
    "block",
    [
        "80",  # entry 0
        "be",  # the first of an empty table
        "40",  # a header without a name
        "400a6375",  # a name that ends too early
        "00018cf1",  # a value that does
        "3fe2ff03",  # a table larger than was offered
        "7fffffffffffff0f",  # a number without an end
        "0001788100",  # padded with zeros
        "00017884ffffffff",  # the end sign within a text
    ],
)
def test_what_is_no_header_block_is_an_error(block: str) -> None:
    with pytest.raises(HpackError):
        Decoder().decode(bytes.fromhex(block))
