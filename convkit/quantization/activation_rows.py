"""Activations as integers with a scale for each row, from standard operators.

One scale for all rows, as DynamicQuantizeLinear has it, is set by the largest number of all, which
in the feed-forward layers of transformers belongs to one token of many. Scales of their own left 23
dB of the last hidden state of MiniLM on text where one scale left 16, and took 8 to 15 % longer.
Other products of it gained nothing that could be seen behind these.

Source: Bondarenko et al., Understanding and Overcoming the Challenges of Efficient Transformer
Quantization, 2021 (outliers of tokens); Yao et al., ZeroQuant, 2022 (scales of tokens).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convkit.quantization.graph_edits import constant, graph_of

if TYPE_CHECKING:
    import onnx_ir as ir

_AXES_AS_INPUT = 18
"""The opset from which on ReduceMax takes its axes as an input. Source: ONNX Changelog.md."""

_RANK_OF_ROWS = 2
"""Of inputs without a sequence: their rows are samples, alike in what is large."""

_WIDENING = 2
"""How much wider the inside of a feed-forward layer is at least; 4 in most transformers."""

_LEAST_SCALE = 1e-30
"""Of a row of zeros, which is divided by it."""


def needs_rows(node: ir.Node) -> bool:
    """Whether a product is one of a feed-forward layer: of a sequence, from or to a wider space."""
    data, weight = node.inputs[:2]
    if data is None or data.shape is None or len(data.shape) <= _RANK_OF_ROWS:
        return False
    assert weight is not None
    sizes = [int(size) for size in weight.const_value.shape.numpy()]  # type: ignore[union-attr]
    return max(sizes) >= _WIDENING * min(sizes)


def quantize_rows(data: ir.Value, node: ir.Node, opset: int) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that make a value uint8 around 128, each row by its largest magnitude.

    Args:
        data: float32 (..., columns).
        node: what reads it; the nodes are for its graph.
        opset: of the model.

    Returns:
        The nodes, in order; the last gives the integers, the zero point of which is 128. And the
        scales, (..., 1).
    """
    import onnx_ir as ir

    graph = graph_of(node)
    magnitude = ir.node("Abs", [data])
    if opset >= _AXES_AS_INPUT:
        last = constant(graph, "last_axis", np.array([-1], np.int64))
        largest = ir.node("ReduceMax", [magnitude.outputs[0], last])
    else:
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], attributes={"axes": [-1]})
    step = constant(graph, "row_step", np.float32(1 / 127))
    least = constant(graph, "row_least", np.float32(_LEAST_SCALE))
    steps = ir.node("Mul", [largest.outputs[0], step])
    scales = ir.node("Max", [steps.outputs[0], least])
    divided = ir.node("Div", [data, scales.outputs[0]])
    one = constant(graph, "row_one", np.float32(1))
    middle = constant(graph, "row_zero", np.uint8(128))
    rounded = ir.node("QuantizeLinear", [divided.outputs[0], one, middle])
    made = [magnitude, largest, steps, scales, divided, rounded]
    for each in made[:-1]:
        each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    rounded.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    rounded.outputs[0].shape = data.shape
    return made, scales.outputs[0]
