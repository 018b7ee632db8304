"""ONNX element types and value types, as they stand in the file.

Source: onnx/onnx.proto, TensorProto.DataType, TypeProto and TensorShapeProto (onnx 1.23).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convkit.artifact import Dimension, TensorSpec
from convkit.protobuf import BYTES, VARINT, Buffer, WireError, fields, signed

ELEMENT_NAMES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
    27: "float6_e2m3fn", 28: "float6_e3m2fn",
}  # fmt: skip
"""TensorProto.DataType -> dtype in the spelling of numpy and ml_dtypes."""

ELEMENT_BITS: Mapping[str, int] = {
    "float32": 32, "uint8": 8, "int8": 8, "uint16": 16, "int16": 16, "int32": 32, "int64": 64,
    "bool": 8, "float16": 16, "float64": 64, "uint32": 32, "uint64": 64, "complex64": 64,
    "complex128": 128, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e4m3fnuz": 8,
    "float8_e5m2": 8, "float8_e5m2fnuz": 8, "uint4": 4, "int4": 4, "float4_e2m1fn": 4,
    "float8_e8m0fnu": 8, "uint2": 2, "int2": 2, "float6_e2m3fn": 6, "float6_e3m2fn": 6,
}  # fmt: skip
"""Bits an element takes in raw_data; elements below a byte are packed. Strings have no size."""

ANY_RANK = "..."
"""The one dimension of a value whose file says nothing about its rank."""

MAX_RANK = 64
"""Dimensions a value may have, numpy's limit; a damaged file may declare millions."""

_TENSOR, _SEQUENCE, _MAP, _OPAQUE, _SPARSE, _OPTIONAL = 1, 4, 5, 7, 8, 9
_WRAPPERS = {_SEQUENCE: "sequence", _OPTIONAL: "optional"}
_MAX_DEPTH = 32

_NO_NAMES = ("", "?", "-1", "None")
"""What exporters write where a dimension has no name; the same text does not mean the same size."""

RawDimension = int | str | None
"""As in the file: a size, a name, or nothing."""


def element_name(code: int) -> str:
    """The dtype of a TensorProto.DataType; unknown codes keep their number."""
    return ELEMENT_NAMES.get(code, f"type{code}" if code else "unknown")


def text(data: Buffer, begin: int, end: int) -> str:
    """A string field; bytes that are no UTF-8 become escapes, so that it can always be printed."""
    return data[begin:end].decode("utf-8", "backslashreplace")


def read_value(data: Buffer, begin: int, end: int) -> TensorSpec:
    """The spec of the ValueInfoProto at [begin, end).

    A dimension without size or name gets the stable name `<value>_dim<i>`. A value of unknown rank
    has the shape `("...",)`. What is no tensor has a dtype such as `sequence(float32)`, no shape.
    """
    name, kind, shape = "", "unknown", None
    for number, wire, at, value in fields(data, begin, end):
        if wire == BYTES and number == 1:
            name = text(data, at, value)
        elif wire == BYTES and number == 2:
            kind, shape = _read_type(data, at, value)
    return TensorSpec(name, kind, _named(name, kind, shape))


def _named(name: str, kind: str, shape: Sequence[RawDimension] | None) -> tuple[Dimension, ...]:
    if shape is None:
        return () if "(" in kind else (ANY_RANK,)
    return tuple(
        size if isinstance(size, int) and size >= 0 else _dimension_name(name, index, size)
        for index, size in enumerate(shape)
    )


def _dimension_name(value: str, index: int, size: RawDimension) -> str:
    """The file's own name, else an invented one; a negative size means unknown to old exporters."""
    return size if isinstance(size, str) and size not in _NO_NAMES else f"{value}_dim{index}"


def _read_type(data: Buffer, begin: int, end: int) -> tuple[str, list[RawDimension] | None]:
    """The kind of a TypeProto and its shape; sequences and optionals are unwrapped in a loop."""
    opened = 0
    prefix = ""
    while opened <= _MAX_DEPTH:
        inner: tuple[int, int] | None = None
        for number, wire, at, value in fields(data, begin, end):
            if wire != BYTES:
                continue
            if number in (_TENSOR, _SPARSE):
                dtype, shape = _read_tensor_type(data, at, value)
                wrapped = f"sparse({dtype})" if number == _SPARSE else dtype
                kind = prefix + wrapped + ")" * opened
                return kind, None if "(" in kind else shape
            if number == _MAP:
                return f"{prefix}map(...)" + ")" * opened, None
            if number == _OPAQUE:
                return f"{prefix}opaque(...)" + ")" * opened, None
            if number in _WRAPPERS:
                prefix += _WRAPPERS[number] + "("
                inner = _only_message(data, at, value)
        if inner is None:
            return prefix + "unknown" + ")" * opened, None
        opened += 1
        begin, end = inner
    raise WireError(begin, f"types nest deeper than {_MAX_DEPTH}")


def _only_message(data: Buffer, begin: int, end: int) -> tuple[int, int]:
    """Where field 1 of a message lies; empty where it is absent."""
    for number, wire, at, value in fields(data, begin, end):
        if number == 1 and wire == BYTES:
            return at, value
    return end, end


def _read_tensor_type(data: Buffer, begin: int, end: int) -> tuple[str, list[RawDimension] | None]:
    dtype, shape = "unknown", None
    for number, wire, at, value in fields(data, begin, end):
        if number == 1 and wire == VARINT:
            dtype = element_name(value)
        elif number == 2 and wire == BYTES:
            shape = _read_shape(data, at, value)
    return dtype, shape


def _read_shape(data: Buffer, begin: int, end: int) -> list[RawDimension]:
    shape: list[RawDimension] = []
    for number, wire, at, value in fields(data, begin, end):
        if number == 1 and wire == BYTES:
            shape.append(_read_dimension(data, at, value))
            if len(shape) > MAX_RANK:
                raise WireError(begin, f"a shape has more than {MAX_RANK} dimensions")
    return shape


def _read_dimension(data: Buffer, begin: int, end: int) -> RawDimension:
    size: RawDimension = None
    for number, wire, at, value in fields(data, begin, end):
        if number == 1 and wire == VARINT:
            size = signed(value)
        elif number == 2 and wire == BYTES:
            size = text(data, at, value)
    return size
