"""The wire-format reader against google's protobuf."""

from __future__ import annotations

import pytest

from convkit.protobuf import BYTES, VARINT, WireError, encode_bytes, encode_varint, fields, signed

NUMBERS = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_written_and_read_as_protobuf_does(number: int) -> None:
    onnx = pytest.importorskip("onnx", reason="its messages are protobuf's")
    message = onnx.OperatorSetIdProto(version=number)
    written = message.SerializeToString()
    assert written == b"\x10" + encode_varint(number)
    [(field, kind, _, value)] = fields(written, 0, len(written))
    assert (field, kind, signed(value)) == (2, VARINT, number)


def test_strings_are_told_by_their_place() -> None:
    data = encode_bytes(3, b"abc") + encode_bytes(500, b"")
    found = [(number, kind, data[a:b]) for number, kind, a, b in fields(data, 0, len(data))]
    assert found == [(3, BYTES, b"abc"), (500, BYTES, b"")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a\x05abc", "needs 5 bytes, 3 are left"),
        (b"\x08\x80", "ends inside a number"),
        (b"\x08" + b"\x80" * 11, "longer than ten bytes"),
        (b"\x00\x01", "field number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0d\x00", "needs 4 bytes, 1 are left"),
        (b"\x80", "ends inside a number"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "needs 18446744073709551615 bytes"),
    ],
)
def test_damage_is_told_with_its_offset(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason) as refused:
        list(fields(data, 0, len(data)))
    assert 0 <= refused.value.offset <= len(data)
