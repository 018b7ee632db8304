"""Writes an ONNX model whose weights are still on disk or not yet computed, one at a time.

Source: onnx/onnx.proto (field numbers below) and docs/ExternalData.md of ONNX; Protocol Buffers
documentation, "Encoding" (the fields of a message may come in any order).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convkit.errors import ResourceError
from convkit.onnx_structure import SMALL_BYTES, array_of, external_entries
from convkit.protobuf import BYTES, VARINT, encode_bytes, encode_varint

if TYPE_CHECKING:
    import onnx_ir as ir

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_NAME = 8
_TENSOR_RAW = 9

_INLINE_LIMIT_BYTES = 1 << 30
"""Weights beyond this go into a file of their own; protobuf itself ends at 2 GiB."""

_PAGE_BYTES = 4096
"""ONNX advises page-aligned offsets, so that runtimes can map tensors (docs/ExternalData.md)."""


def write_model(
    model: ir.Model, out: Path, folder: Path, data_name: str, *, is_beside: bool = False
) -> None:
    """Writes `model` to `out`, weights beyond 1 GiB to a file beside it.

    Args:
        model: its larger initializers are lazy or still refer to the source.
        out: the file to write.
        folder: the folder that references of the source are relative to.
        data_name: of the file beside it.
        is_beside: weights go there however few they are.

    Raises:
        ResourceError: the destination cannot be written.
    """
    weights = _take_weights(model)
    total = sum(tensor.nbytes for tensor in weights.values())
    data = out.with_name(data_name) if is_beside or total > _INLINE_LIMIT_BYTES else None
    try:
        _write(model, out, folder, weights, data)
    except OSError as cause:
        raise ResourceError(
            f"{out} cannot be written: {cause.strerror}.",
            why=f"The model needs {total / 2**20:.0f} MiB.",
            hint="Give a destination with more room:  -o PATH",
        ) from cause
    finally:
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = tensor


def _take_weights(model: ir.Model) -> dict[str, Any]:
    """Takes initializers that are large or on disk out of the graph, leaving their places."""
    import onnx_ir as ir

    taken = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        # A small tensor with a long name counts as large where the model is read.
        if tensor.nbytes > SMALL_BYTES or isinstance(tensor, ir.ExternalTensor):
            taken[name] = tensor
            value.const_value = ir.ExternalTensor(
                "-", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    return taken


def _write(
    model: ir.Model, out: Path, folder: Path, weights: dict[str, Any], data: Path | None
) -> None:
    import onnx_ir as ir

    proto = ir.to_proto(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    small = [encode_bytes(_GRAPH_INITIALIZER, tensor.SerializeToString()) for tensor in kept]
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString() + b"".join(small)
    proto.ClearField("graph")
    heads = _heads(weights, data.name if data else "")
    size = len(graph) + sum(map(len, heads.values()))
    size += 0 if data else sum(tensor.nbytes for tensor in weights.values())
    with out.open("wb") as stream:
        stream.write(proto.SerializeToString())
        stream.write(encode_varint(_MODEL_GRAPH << 3 | BYTES) + encode_varint(size) + graph)
        for name, head in heads.items():
            stream.write(head)
            if data is None:
                _write_payload(stream, weights[name], folder)
    if data is not None:
        with data.open("wb") as stream:
            for tensor in weights.values():
                stream.write(bytes(-stream.tell() % _PAGE_BYTES))
                _write_payload(stream, tensor, folder)


def _heads(weights: dict[str, Any], location: str) -> dict[str, bytes]:
    """What stands in the graph for each weight, up to where its payload begins."""
    heads, offset = {}, 0
    for name, tensor in weights.items():
        dims = [encode_varint(1 << 3 | VARINT) + encode_varint(int(size)) for size in tensor.shape]
        kind = encode_varint(2 << 3 | VARINT) + encode_varint(tensor.dtype.value)
        body = b"".join(dims) + kind + encode_bytes(_TENSOR_NAME, name.encode())
        inline = 0
        if location:
            offset += -offset % _PAGE_BYTES
            entries = {"location": location, "offset": str(offset), "length": str(tensor.nbytes)}
            body += external_entries(entries)
            offset += tensor.nbytes
        else:
            body += encode_varint(_TENSOR_RAW << 3 | BYTES) + encode_varint(tensor.nbytes)
            inline = tensor.nbytes
        size = encode_varint(len(body) + inline)
        heads[name] = encode_varint(_GRAPH_INITIALIZER << 3 | BYTES) + size + body
    return heads


def _write_payload(stream: BinaryIO, tensor: Any, folder: Path) -> None:
    import numpy as np
    import onnx_ir as ir

    if tensor.dtype.bitwidth < 8:
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
        stream.write(tensor.tobytes())
        return
    array = np.ascontiguousarray(array_of(tensor, folder))
    stream.write(array.reshape(-1).view(np.uint8).data)
