"""Writes an ONNX model without ever holding its weights: they go from where they lie to the file."""

from __future__ import annotations

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
    large = {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES
    }
    if sum(value.const_value.nbytes for value in large.values()) > EXTERNAL_OVER_BYTES:
        onnx_ir.save(model, out, external_data=f"{out.name}.data")
    else:
        for name in large:
            del model.graph.initializers[name]
        _write_single(model, large, out)
    for value in (*large.values(), *model.graph.initializers.values()):
        value.const_value = None  # a small one may be a view into the same mapping
    gc.collect()  # graphs are full of cycles, and what is verified next needs the room


def _write_single(model: onnx_ir.Model, large: dict[str, onnx_ir.Value], out: Path) -> None:
    import onnx_ir

    proto = onnx_ir.to_proto(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = {name: _head(name, value.const_value) for name, value in large.items()}
    sizes = {name: len(heads[name]) + value.const_value.nbytes for name, value in large.items()}
    total = len(graph) + sum(
        len(_key(_INITIALIZER) + encode_varint(size)) + size for size in sizes.values()
    )
    with out.open("wb") as stream:
        stream.write(proto.SerializeToString())
        stream.write(_key(_GRAPH) + encode_varint(total) + graph)
        for name, value in large.items():
            stream.write(_key(_INITIALIZER) + encode_varint(sizes[name]) + heads[name])
            data = value.const_value.tobytes()
            if len(data) != value.const_value.nbytes:
                raise ValueError(f"{name} has {len(data)} bytes, not {value.const_value.nbytes}")
            stream.write(data)


def _head(name: str, tensor: Any) -> bytes:
    """A TensorProto up to where its raw data begin."""
    import onnx

    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape))
    head: bytes = proto.SerializeToString()
    return head + _key(_RAW_DATA) + encode_varint(tensor.nbytes)


def _key(number: int) -> bytes:
    return encode_varint(number << 3 | BYTES)
