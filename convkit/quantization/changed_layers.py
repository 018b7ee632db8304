"""Which layers a scheme quantizes: those whose weights the quantized graph reads no more."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from convkit.onnx_typing import nodes_of
from convkit.quantization.layers import Layer, element_count, is_constant, is_float32

if TYPE_CHECKING:
    import onnx_ir as ir


def changed_layers(
    model: ir.Model, made: ir.Model, op_types: Collection[str] | None = None
) -> list[Layer]:
    """Nodes of `model` whose constant weights were replaced in `made`, in the graph's order.

    Args:
        model: in float.
        made: the same, quantized.
        op_types: of nodes that count; None: any.
    """
    reading = {
        (node.name, value.name)
        for node in nodes_of(made.graph)
        for value in node.inputs
        if value is not None and is_float32(value) and is_constant(value)
    }
    found = []
    for node in nodes_of(model.graph):
        weights = [v for v in node.inputs if v is not None and is_constant(v) and is_float32(v)]
        gone = [value for value in weights if (node.name, value.name) not in reading]
        if not node.name or not gone or (op_types is not None and node.op_type not in op_types):
            continue
        found.append(
            Layer(
                node.name,
                node.op_type,
                sum(element_count(value) for value in weights),
                max(gone, key=element_count).name or "",
                tuple(v.name or "" for v in node.inputs if v is not None and not is_constant(v)),
                tuple(value.name or "" for value in node.outputs),
            )
        )
    return found
