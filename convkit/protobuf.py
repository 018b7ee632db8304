"""Reads the protobuf wire format where it lies, every length checked against the bytes there are.

Nothing is copied and nothing is allocated by a declared length: a field is told by where its value
begins and ends. So a model of many gigabytes is read in the time its structure takes, and a
damaged one ends in `WireError` with the offset, never in a crash.

Source: Protocol Buffers documentation, "Encoding" (varints, tags, wire types 0, 1, 2 and 5).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5

_VARINT_MAX_BYTES = 10
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_UNSIGNED = 1 << 64
_SIGN = 1 << 63

Buffer = mmap.mmap | bytes
Span = tuple[int, int]
"""Where a value begins and ends."""

Field = tuple[int, int, int, int]
"""Field number, wire type, where the value begins, and where it ends (BYTES and fixed types) or
the number itself (VARINT)."""


class WireError(ValueError):
    """The bytes break the wire format; `offset` says where."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"at byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


@contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """The bytes of a file, mapped; `b""` for an empty file, which cannot be mapped."""
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hasattr(mmap, "MADV_RANDOM"):  # else the system pulls in payloads that are skipped
                data.madvise(mmap.MADV_RANDOM)
            yield data


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message at [start, end), in file order.

    Raises:
        WireError: a length reaches past `end`, or a key is none that exists.
    """
    at = start
    while at < end:
        begin = at
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = varint(data, begin, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError(begin, "field number 0 does not exist")
        if kind == BYTES:
            size, at = varint(data, at, end)
            if size > end - at:
                raise WireError(begin, f"field {number} needs {size} bytes, {end - at} are left")
            yield number, kind, at, at + size
            at += size
        elif kind == VARINT:
            begin = at
            value, at = varint(data, at, end)
            yield number, kind, begin, value
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
            if size > end - at:
                raise WireError(begin, f"field {number} needs {size} bytes, {end - at} are left")
            yield number, kind, at, at + size
            at += size
        else:
            raise WireError(begin, f"wire type {kind} does not exist")


def spans(data: Buffer, start: int, end: int) -> dict[int, list[tuple[int, int]]]:
    """Where the strings and submessages of the message at [start, end) lie, by field number.

    Raises:
        WireError: as `fields`.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for number, kind, begin, stop in fields(data, start, end):
        if kind == BYTES:
            found.setdefault(number, []).append((begin, stop))
    return found


def lone_spans(data: Buffer, start: int, end: int, *numbers: int) -> dict[int, Span]:
    """Where these fields of a message lie, each of which comes once at most.

    SECURITY: Protocol Buffers merges submessages that come twice. No writer does so, and a reader
    that took one of them would judge another model than the one that is run.

    Raises:
        WireError: as `fields`; or one of them comes twice.
    """
    found = spans(data, start, end)
    for number in numbers:
        if len(found.get(number, ())) > 1:
            raise WireError(found[number][1][0], f"field {number} comes twice")
    return {number: places[-1] for number, places in found.items()}


def varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """The unsigned number that begins at `at`, and where the next field begins."""
    begin, value, shift = at, 0, 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value % _UNSIGNED, at
        shift += 7
        if at - begin == _VARINT_MAX_BYTES:
            raise WireError(begin, "a number is longer than ten bytes")
    raise WireError(begin, "the message ends inside a number")


def signed(value: int) -> int:
    """An int32 or int64 field's value from its unsigned 64-bit varint (two's complement)."""
    return value - _UNSIGNED if value >= _SIGN else value


def encode_varint(value: int) -> bytes:
    """A number of an int64 field as its varint."""
    value %= _UNSIGNED
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_bytes(number: int, payload: bytes) -> bytes:
    """A length-delimited field: key, length, payload."""
    return encode_varint(number << 3 | BYTES) + encode_varint(len(payload)) + payload
