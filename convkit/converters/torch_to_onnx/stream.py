"""Writes an ONNX model without holding its weights: they go from where they lie to the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.protobuf import BYTES, encode_varint

if TYPE_CHECKING:
    import onnx_ir

EXTERNAL_OVER_BYTES = 1_500_000_000
"""Above this, weights go to a file beside the model: a protobuf message ends at 2 GiB, and room is
left for what later passes add."""

# Source: onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_SMALL_BYTES = 4096


def write(model: onnx_ir.Model, out: Path, *, ir_version: int) -> None:
    """Writes `model` to `out`; to `out` and `out.name + ".data"` when its weights are very large.

    Each weight is read, written and let go before the next, so memory holds one at a time. The
    result is byte for byte a plain ONNX file: lengths are known before any weight is read. The
    model is used up: its weights are gone afterwards, and with them what they were mapped from.
    """
    import gc

    import onnx_ir

    model.ir_version = ir_version
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    large = {n: t for n, t in held.items() if t is not None and t.nbytes > _SMALL_BYTES}
    values = list(model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in large.values()) > EXTERNAL_OVER_BYTES:
        onnx_ir.save(model, out, external_data=f"{out.name}.data")
    else:
        for name in large:
            del model.graph.initializers[name]
        _write_single(model, large, out)
    held.clear()
    large.clear()
    for value in values:
        value.const_value = None  # a small one may be a view into the same mapping
    gc.collect()  # graphs are full of cycles, and what is verified next needs the room


def _write_single(
    model: onnx_ir.Model, large: Mapping[str, onnx_ir.TensorProtocol], out: Path
) -> None:
    import onnx_ir

    proto = onnx_ir.to_proto(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = {name: _head(name, tensor) for name, tensor in large.items()}
    sizes = {name: len(heads[name]) + tensor.nbytes for name, tensor in large.items()}
    total = len(graph) + sum(
        len(_key(_INITIALIZER) + encode_varint(size)) + size for size in sizes.values()
    )
    with out.open("wb") as stream:
        stream.write(proto.SerializeToString())
        stream.write(_key(_GRAPH) + encode_varint(total) + graph)
        for name, tensor in large.items():
            stream.write(_key(_INITIALIZER) + encode_varint(sizes[name]) + heads[name])
            data = tensor.tobytes()
            if len(data) != tensor.nbytes:
                raise ValueError(f"{name} has {len(data)} bytes, not {tensor.nbytes}")
            stream.write(data)


def _head(name: str, tensor: Any) -> bytes:
    """A TensorProto up to where its raw data begin."""
    import onnx

    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape))
    head: bytes = proto.SerializeToString()
    return head + _key(_RAW_DATA) + encode_varint(tensor.nbytes)


def _key(number: int) -> bytes:
    return encode_varint(number << 3 | BYTES)
