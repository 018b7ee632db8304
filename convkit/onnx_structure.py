"""Reads an ONNX model without its weights.

The file is mapped, the payload of every larger initializer is cut out of the protobuf, and a
reference to where it lies is left. So parsing, inlining and shape inference work on the structure
only, whatever the size of the model.

Source: onnx/onnx.proto (field numbers below) and docs/ExternalData.md of ONNX.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from convkit.errors import ModelError
from convkit.onnx_external import check_external
from convkit.processors import thread_count
from convkit.protobuf import (
    BYTES,
    VARINT,
    Buffer,
    WireError,
    encode_bytes,
    encode_varint,
    fields,
    mapped,
    spans,
)

if TYPE_CHECKING:
    import numpy as np
    import onnx

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW = 9
_TENSOR_EXTERNAL = 13
_TENSOR_LOCATION = 14
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
"""Where data files lie for a model given as bytes.

Source: onnxruntime_session_options_config_keys.h.
"""

_MAPPED_BYTES = 1 << 20
_ALIGNMENT = 64

SMALL_BYTES = 1024
"""Initializers up to here stay in the protobuf, so that shape inference can read them."""


def read_structure(path: Path) -> onnx.ModelProto:
    """The model at `path`; the weights stay where they are, as references relative to its folder.

    Raises:
        ModelError: the file is missing, empty, truncated or no ONNX model, or lacks weights.
        UnsafeError: a weight lies outside the model's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with mapped(path) as data:
            proto: onnx.ModelProto = onnx.ModelProto.FromString(_without_payloads(data, path.name))
    except OSError as cause:
        raise ModelError(f"{path} cannot be read: {cause.strerror}.") from cause
    except (WireError, DecodeError) as cause:
        _refuse(path, str(cause), cause)
    if not proto.ir_version or not proto.HasField("graph"):
        _refuse(path, "it holds no graph", None)
    check_external(path, _references(proto))
    return proto


def _refuse(path: Path, why: str, cause: Exception | None) -> NoReturn:
    raise ModelError(
        f"{path} is not a complete ONNX model.",
        why=f"{why}; the file has {path.stat().st_size} bytes.",
        hint="Copy or download the model again, and compare its size with the original's.",
    ) from cause


def _without_payloads(data: Buffer, location: str) -> bytes:
    """The bytes of a ModelProto whose larger initializers refer to `location` instead."""
    parts = []
    for number, wire, begin, stop in _keyed(data, 0, len(data)):
        if number == _MODEL_GRAPH and wire == BYTES:
            payload = begin[1]
            parts.append(encode_bytes(number, _graph(data, payload, stop, location)))
        else:
            parts.append(bytes(data[begin[0] : stop]))
    return b"".join(parts)


def _keyed(data: Buffer, start: int, end: int) -> list[tuple[int, int, tuple[int, int], int]]:
    """Fields with (where the key begins, where the value begins) and where the field ends."""
    found = []
    at = start
    for number, wire, begin, value in fields(data, start, end):
        stop = begin + len(encode_varint(value)) if wire == VARINT else value
        if wire == VARINT:
            while data[stop - 1] & 0x80:  # a varint may be padded
                stop += 1
        found.append((number, wire, (at, begin), stop))
        at = stop
    return found


def _graph(data: Buffer, start: int, end: int, location: str) -> bytes:
    parts = []
    for number, wire, begin, stop in _keyed(data, start, end):
        if number == _GRAPH_INITIALIZER and wire == BYTES and stop - begin[1] > SMALL_BYTES:
            parts.append(encode_bytes(number, _tensor(data, begin[1], stop, location)))
        else:
            parts.append(bytes(data[begin[0] : stop]))
    return b"".join(parts)


def _tensor(data: Buffer, start: int, end: int, location: str) -> bytes:
    raw = spans(data, start, end).get(_TENSOR_RAW)
    if not raw or raw[-1][0] == raw[-1][1]:
        return bytes(data[start:end])
    begin, stop = raw[-1]
    parts = [
        bytes(data[keys[0] : upto])
        for number, _, keys, upto in _keyed(data, start, end)
        if number not in (_TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION)
    ]
    entries = {"location": location, "offset": str(begin), "length": str(stop - begin)}
    return b"".join(parts) + external_entries(entries)


def external_entries(entries: dict[str, str]) -> bytes:
    """The fields of a TensorProto that say where its bytes lie."""
    written = [
        encode_bytes(
            _TENSOR_EXTERNAL, encode_bytes(1, key.encode()) + encode_bytes(2, value.encode())
        )
        for key, value in entries.items()
    ]
    return b"".join(written) + encode_varint(_TENSOR_LOCATION << 3 | VARINT) + encode_varint(1)


@dataclass(frozen=True)
class _Reference:
    """A weight of the model that lies outside the protobuf."""

    name: str
    external: Mapping[str, str]
    dense_bytes: int


def _references(proto: onnx.ModelProto) -> Iterator[_Reference]:
    import onnx_ir as ir

    for tensor in proto.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            bits = ir.DataType(tensor.data_type).bitwidth
            size = -(-math.prod(tensor.dims) * bits // 8)
            yield _Reference(tensor.name, entries, size)


def array_of(tensor: Any, folder: Path) -> np.ndarray[Any, Any]:
    """The elements of a tensor, read anew from disk where they lie there."""
    import numpy as np
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return np.asarray(tensor.numpy())
    dtype = tensor.dtype.numpy()
    if tensor.dtype.bitwidth < 8:
        tensor.base_dir = folder
        return np.asarray(tensor.numpy())
    shape = tuple(int(size) for size in tensor.shape.numpy())
    count = math.prod(shape)
    file = folder / os.fspath(tensor.location)
    return np.fromfile(file, dtype, count, offset=tensor.offset or 0).reshape(shape)


def plain_session(proto: onnx.ModelProto, folder: Path) -> Any:
    """An ONNX Runtime session on the CPU that computes node by node: nothing is fused or folded.

    Larger weights are mapped where they lie in `folder`, so they are not held twice.

    Raises:
        Exception: whatever ONNX Runtime raises.
    """
    import onnxruntime

    _hold_odd(proto, folder)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # In the order of the graph, where what measures a value stands right behind it; by default the
    # runtime comes to that last, and every value waits for it in memory.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = thread_count()
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(_FOLDER_KEY, str(folder.resolve()))
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _hold_odd(proto: onnx.ModelProto, folder: Path) -> None:
    """Takes smaller weights that lie at odd addresses into the model.

    Inside a protobuf nothing is aligned. Matrix and convolution kernels, which read the large
    weights, pack or load unaligned; elementwise ones need not.
    """
    import onnx_ir as ir

    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        is_odd = int(entries.get("offset", 0)) % _ALIGNMENT != 0
        is_small = int(entries.get("length", _MAPPED_BYTES)) < _MAPPED_BYTES
        if entries and is_odd and is_small:
            payload = _payload(ir.from_proto(tensor), folder)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = payload


def _payload(tensor: Any, folder: Path) -> bytes:
    with (folder / os.fspath(tensor.location)).open("rb") as stream:
        stream.seek(tensor.offset or 0)
        payload: bytes = stream.read(int(tensor.length))
        return payload
