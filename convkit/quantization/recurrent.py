"""Recurrent layers in int8: LSTM in a kernel of ONNX Runtime's, GRU and RNN by their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.onnx_typing import nodes_of, opset_of
from convkit.quantization.graph_edits import constant, graph_of, replace_node
from convkit.quantization.layers import element_count, int_attribute, is_constant, is_float32
from convkit.quantization.targets import Target
from convkit.quantization.weights import quantized_weight

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_PER_CHANNEL_OPSET = 13
_SMALLEST_WEIGHT = 4096
"""Elements of a recurrence matrix below which a layer stays float."""

_LSTM_INPUTS = 8
"""X, W, R, B, sequence_lens, initial_h, initial_c, P. Source: ONNX Operators.md, LSTM."""


def quantize_recurrent(
    model: ir.Model,
    folder: Path,
    target: Target,
    *,
    keep: frozenset[str] = frozenset(),
    note: Callable[[str], None],
) -> int:
    """Quantizes the recurrent layers of a graph and its bodies, in place.

    An LSTM becomes DynamicQuantizeLSTM, which quantizes what it reads as it runs. ONNX Runtime has
    no such kernel for GRU and RNN: their weights are kept in int8 and become float when the model
    runs, which saves size and no time.

    Args:
        model: typed.
        folder: where its weights lie.
        target: what the result is for.
        keep: names of nodes that stay float.
        note: takes sentences for the report.

    Returns:
        How many layers were quantized.
    """
    unpacked, count = 0, 0
    opset = opset_of(model, "")
    for node in list(nodes_of(model.graph)):
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("LSTM", "GRU", "RNN"):
            continue
        if node.name in keep or not _has_constant_weights(node):
            continue
        if node.op_type == "LSTM" and target.has_recurrent_kernels and _is_usual(node):
            _quantize_lstm(node, folder, target)
        elif opset >= _PER_CHANNEL_OPSET:
            _keep_weights_packed(node, folder)
            unpacked += 1
        else:
            continue
        count += 1
    if any(node.domain == "com.microsoft" for node in nodes_of(model.graph)):
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    if unpacked:
        note(
            f"{unpacked} recurrent layers keep their weights in int8 and compute in fp32: the "
            "runtime has no int8 kernel for them."
        )
    return count


def _has_constant_weights(node: ir.Node) -> bool:
    weights = node.inputs[1:3]
    return all(
        value is not None
        and is_constant(value)
        and is_float32(value)
        and element_count(value) >= _SMALLEST_WEIGHT
        for value in weights
    )


def _is_usual(node: ir.Node) -> bool:
    """Whether the kernel has what an LSTM asks for: batches in the second axis."""
    return int_attribute(node, "layout", 0) == 0


def _quantize_lstm(node: ir.Node, folder: Path, target: Target) -> None:
    """LSTM as DynamicQuantizeLSTM.

    Its matrices are those of LSTM transposed, (directions, inputs, 4 * hidden), with a scale and a
    zero point for each column.

    Source: onnxruntime, docs/ContribOperators.md, com.microsoft.DynamicQuantizeLSTM.
    """
    import onnx_ir as ir

    graph = graph_of(node)
    matrices, scaling = [], []
    for value in node.inputs[1:3]:
        assert value is not None
        array = array_of(value.const_value, folder)  # (directions, 4 * hidden, inputs)
        limit = 64 if target.reduces_range else 127
        values, scales = _by_rows(array, limit)
        matrices.append(
            constant(graph, f"{value.name}_int8", np.ascontiguousarray(values.transpose(0, 2, 1)))
        )
        scaling.append(constant(graph, f"{value.name}_scale", scales))
        scaling.append(constant(graph, f"{value.name}_zero", np.zeros(scales.shape, np.int8)))
    rest = [*node.inputs[3:], *[None] * (_LSTM_INPUTS - len(node.inputs))]
    attributes = [each for name, each in node.attributes.items() if name != "layout"]
    made = ir.Node(
        "com.microsoft",
        "DynamicQuantizeLSTM",
        [node.inputs[0], *matrices, *rest, *scaling],
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
    )
    replace_node(node, [made])


def _keep_weights_packed(node: ir.Node, folder: Path) -> None:
    """Weights and recurrence matrices behind DequantizeLinear, a scale for each row."""
    import onnx_ir as ir

    graph = graph_of(node)
    for index in (1, 2):
        value = node.inputs[index]
        assert value is not None
        array = array_of(value.const_value, folder)
        directions, rows, columns = array.shape
        values, scales = _by_rows(array, 127)
        packed = constant(graph, f"{value.name}_int8", values.reshape(-1, columns))
        factors = constant(graph, f"{value.name}_scale", scales.reshape(-1))
        shape = constant(graph, f"{value.name}_shape", np.array(array.shape, np.int64))
        unpacking = ir.node("DequantizeLinear", [packed, factors], attributes={"axis": 0})
        shaping = ir.node("Reshape", [unpacking.outputs[0], shape])
        for made in (unpacking, shaping):
            made.name = f"{value.name}_{made.op_type}"
            made.outputs[0].name = made.name
            made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        unpacking.outputs[0].shape = ir.Shape((directions * rows, columns))
        shaping.outputs[0].shape = ir.Shape(array.shape)
        graph.insert_before(node, [unpacking, shaping])
        node.replace_input_with(index, shaping.outputs[0])


def _by_rows(array: Array, limit: int) -> tuple[Array, Array]:
    """int8 (directions, rows, columns) and float32 scales (directions, rows)."""
    rows = array.reshape(-1, array.shape[-1])
    made = quantized_weight(rows, 0, limit=limit)
    return made.values.reshape(array.shape), made.scales.reshape(array.shape[:2])
