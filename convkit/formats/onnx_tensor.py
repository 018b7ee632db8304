"""A tensor as it stands in an ONNX file: name, type, dims, and where its bytes lie.

Source: onnx/onnx.proto, TensorProto and StringStringEntryProto (onnx 1.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from convkit.formats.onnx_types import ELEMENT_BITS, MAX_RANK, element_name, text
from convkit.protobuf import BYTES, VARINT, Buffer, WireError, fields, signed, spans, varint

# TensorProto: dims 1, data_type 2, float_data 4, int32_data 5, string_data 6, int64_data 7,
# name 8, raw_data 9, double_data 10, uint64_data 11, external_data 13, data_location 14
_TYPED_DATA = (4, 5, 6, 7, 10, 11)
_RAW_DATA = 9
_EXTERNAL = 1
"""DataLocation.EXTERNAL."""


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in the file: an initializer, or the value of a Constant node.

    Attributes:
        name: the value it is known by.
        dtype: in numpy's spelling.
        payload: where its bytes lie in this file, [begin, end); empty for external data.
        is_raw: whether the payload is raw_data, little-endian; else a packed protobuf field.
        external: entries of external_data (location, offset, length); empty for inline data.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    payload: tuple[int, int]
    is_raw: bool = False
    external: Mapping[str, str] = field(default_factory=dict)

    @property
    def element_count(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.dims:
            count *= size
        return count

    @property
    def dense_bytes(self) -> int:
        """Bytes its elements take without padding; 0 for strings and unknown types."""
        return -(-self.element_count * ELEMENT_BITS.get(self.dtype, 0) // 8)


def read_tensor(data: Buffer, begin: int, end: int, name: str = "") -> TensorHeader:
    """The TensorProto at [begin, end); `name` stands in for its own.

    Raises:
        WireError: dims that cannot be, or raw data of another length than they need.
    """
    dims: list[int] = []
    dtype, location = "unknown", 0
    payload = (end, end)
    for number, wire, at, value in fields(data, begin, end):
        if number == 1:
            _read_dims(data, at, value, wire, dims)
        elif number == 2 and wire == VARINT:
            dtype = element_name(value)
        elif number in _TYPED_DATA:
            first = payload[0] if payload[1] > payload[0] else at
            payload = (first, varint(data, at, end)[1] if wire == VARINT else value)
        elif number == 14 and wire == VARINT:
            location = value
    parts = spans(data, begin, end)
    if 8 in parts and not name:
        name = text(data, *parts[8][-1])
    external: dict[str, str] = {}
    if location == _EXTERNAL:
        external = dict(read_entry(data, *span) for span in parts.get(13, ()))
        if not external:
            raise WireError(begin, f"tensor '{name}' lies in another file that is not named")
    is_raw = _RAW_DATA in parts
    payload = parts[_RAW_DATA][-1] if is_raw else payload
    tensor = TensorHeader(name, dtype, tuple(dims), payload, is_raw, external)
    if is_raw and not external:
        _check_length(tensor)
    return tensor


def _check_length(tensor: TensorHeader) -> None:
    begin, end = tensor.payload
    if tensor.dense_bytes not in (0, end - begin):
        shape = ", ".join(map(str, tensor.dims))
        raise WireError(
            begin,
            f"tensor '{tensor.name}' {tensor.dtype}[{shape}] needs {tensor.dense_bytes} bytes "
            f"and holds {end - begin}",
        )


def _read_dims(data: Buffer, at: int, value: int, wire: int, dims: list[int]) -> None:
    """Dims stand one a field, or packed into one field."""
    if wire == VARINT:
        dims.append(signed(value))
    while wire == BYTES and at < value and len(dims) <= MAX_RANK:
        size, at = varint(data, at, value)
        dims.append(signed(size))
    if len(dims) > MAX_RANK:
        raise WireError(at, f"a tensor has more than {MAX_RANK} dimensions")
    if dims and dims[-1] < 0:
        raise WireError(at, f"a tensor has the negative dimension {dims[-1]}")


def read_entry(data: Buffer, begin: int, end: int) -> tuple[str, str]:
    """The key (1) and value (2) of a StringStringEntryProto."""
    key = content = ""
    for number, wire, at, value in fields(data, begin, end):
        if number == 1 and wire == BYTES:
            key = text(data, at, value)
        elif number == 2 and wire == BYTES:
            content = text(data, at, value)
    return key, content
