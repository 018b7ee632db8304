"""Weights that lie in int8 and become float once, when the runtime opens the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convkit.onnx_structure import array_of
from convkit.quantization.graph_edits import constant, home_of
from convkit.quantization.layers import element_count, is_constant, is_float32
from convkit.quantization.weights import quantized_weight

if TYPE_CHECKING:
    import onnx_ir as ir

SMALLEST_WEIGHT = 2048
"""Elements below which a weight stays float: three nodes and their names take as many bytes."""

_BLOCKS = (16, 64)
"""Elements that share a scale, at least and at most. Blocks cost no time here, and 6 to 25 percent
of the size; on the GRUs of NSNet2 they left 45 dB where a scale for each row left 38."""


class Packing:
    """Puts int8 in the place of float weights, each once.

    Cast, Mul and Reshape of constants are computed when ONNX Runtime opens the model.
    DequantizeLinear would run in every call: a GRU of 400 took 3 times as long for one step.

    Attributes:
        count: nodes that read packed weights now.

    Source: `scripts/bench-quantized-operators --only gru,lstm`.
    """

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._folder = folder
        self._made: dict[ir.Value, ir.Value] = {}

    def pack(self, node: ir.Node, *indices: int) -> bool:
        """Packs the inputs of a node that are large float constants; whether there were any."""
        found = False
        for index in indices:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and is_packable(value):
                node.replace_input_with(index, self._unpacked(value, node))
                found = True
        self.count += found
        return found

    def _unpacked(self, value: ir.Value, node: ir.Node) -> ir.Value:
        import onnx_ir as ir

        if value in self._made:
            return self._made[value]
        graph = home_of(value, node)
        array = array_of(value.const_value, self._folder)
        length = block_length(math.prod(array.shape[1:]))
        packed = quantized_weight(array.reshape(-1, length), 0)
        factors = packed.scales[:, None]
        values = constant(graph, f"{value.name}_int8", packed.values)
        scales = constant(graph, f"{value.name}_scale", factors)
        shape = constant(graph, f"{value.name}_shape", np.array(array.shape, np.int64))
        cast = ir.node("Cast", [values], attributes={"to": ir.DataType.FLOAT})
        scaled = ir.node("Mul", [cast.outputs[0], scales])
        shaped = ir.node("Reshape", [scaled.outputs[0], shape])
        for made in (cast, scaled, shaped):
            made.name = f"{value.name}_{made.op_type}"
            made.outputs[0].name = made.name
            made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            made.outputs[0].shape = ir.Shape(packed.values.shape)
        shaped.outputs[0].shape = ir.Shape(array.shape)
        graph.insert_before(graph[0], [cast, scaled, shaped])
        self._made[value] = shaped.outputs[0]
        return shaped.outputs[0]


def is_packable(value: ir.Value) -> bool:
    """Whether a value is a float32 constant that is worth packing."""
    is_known = is_constant(value) and is_float32(value)
    return is_known and element_count(value) >= SMALLEST_WEIGHT


def block_length(row: int) -> int:
    """The longest block that divides a row, within the limits; else the row."""
    least, most = _BLOCKS
    return next((size for size in range(most, least - 1, -1) if row % size == 0), row)
