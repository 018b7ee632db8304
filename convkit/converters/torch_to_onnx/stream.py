"""Writes a model of onnx_ir without holding its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_stream import EXTERNAL_OVER_BYTES, Streamed, write_streamed

if TYPE_CHECKING:
    import onnx_ir

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
    for name in large:
        del model.graph.initializers[name]
    write_streamed(
        onnx_ir.to_proto(model),
        [_streamed(name, tensor) for name, tensor in large.items()],
        out,
        external_over_bytes=EXTERNAL_OVER_BYTES,
    )
    held.clear()
    large.clear()
    for value in values:
        value.const_value = None  # a small one may be a view into the same mapping
    gc.collect()  # graphs are full of cycles, and what is verified next needs the room


def _streamed(name: str, tensor: Any) -> Streamed:
    return Streamed(
        name,
        int(tensor.dtype),
        tuple(int(size) for size in tensor.shape),
        int(tensor.nbytes),
        lambda: [tensor.tobytes()],
    )
