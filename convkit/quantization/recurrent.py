"""Recurrent layers in int8: LSTM in a kernel of ONNX Runtime's, GRU and RNN by their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.onnx_typing import nodes_of
from convkit.quantization.graph_edits import constant, home_of, replace_node
from convkit.quantization.layers import int_attribute
from convkit.quantization.packing import Packing, is_packable
from convkit.quantization.targets import Target
from convkit.quantization.weights import quantized_weight

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_LSTM_INPUTS = 8
"""X, W, R, B, sequence_lens, initial_h, initial_c, P. Source: ONNX Operators.md, LSTM."""

_KINDS = ("LSTM", "GRU", "RNN")


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
    no such kernel for GRU and RNN: their weights are kept in int8 and become float once, when the
    model is opened, which saves size and costs no time.

    Args:
        model: typed; weights are initializers.
        folder: where its weights lie.
        target: what the result is for.
        keep: names of nodes that stay float.
        note: takes sentences for the report.

    Returns:
        How many layers were quantized.
    """
    if not target.has_folding:
        return 0
    changes = _Changes(folder, target)
    for node in list(nodes_of(model.graph)):
        if node.domain in ("", "ai.onnx") and node.op_type in _KINDS and node.name not in keep:
            changes.quantize(node)
    if changes.kernel_count:
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    if changes.packed_count:
        note(
            "Recurrent layers without an int8 kernel in the runtime are kept in int8 and compute "
            f"in fp32, as fast as before: {changes.packed_count}."
        )
    return changes.kernel_count + changes.packed_count


class _Changes:
    """Quantizes recurrent layers; matrices that several of them read once.

    Attributes:
        kernel_count: layers that compute in int8.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self.kernel_count = 0
        self._folder = folder
        self._target = target
        self._matrices: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._packing = Packing(folder)

    @property
    def packed_count(self) -> int:
        """Layers of which only the weights are int8."""
        return self._packing.count

    def quantize(self, node: ir.Node) -> None:
        """Quantizes a layer whose weights are known."""
        if node.op_type == "LSTM" and self._has_kernel_for(node):
            self._compute_in_integers(node)
            self.kernel_count += 1
        else:
            self._packing.pack(node, 1, 2)

    def _has_kernel_for(self, node: ir.Node) -> bool:
        weights = node.inputs[1:3]
        are_known = all(value is not None and is_packable(value) for value in weights)
        is_usual = int_attribute(node, "layout", 0) == 0
        return are_known and is_usual and self._target.has_recurrent_kernels

    def _compute_in_integers(self, node: ir.Node) -> None:
        """LSTM as DynamicQuantizeLSTM.

        Its matrices are those of LSTM transposed, (directions, inputs, 4 * hidden), with a scale
        and a zero point for each column.

        Source: onnxruntime, docs/ContribOperators.md, com.microsoft.DynamicQuantizeLSTM.
        """
        import onnx_ir as ir

        pairs = [self._matrix(value, node) for value in node.inputs[1:3] if value is not None]
        scaling = [value for pair in pairs for value in pair[1:]]
        rest = [*node.inputs[3:], *[None] * (_LSTM_INPUTS - len(node.inputs))]
        made = ir.Node(
            "com.microsoft",
            "DynamicQuantizeLSTM",
            [node.inputs[0], *(pair[0] for pair in pairs), *rest, *scaling],
            [each for name, each in node.attributes.items() if name != "layout"],
            num_outputs=len(node.outputs),
            name=node.name,
        )
        replace_node(node, [made])

    def _matrix(self, value: ir.Value, node: ir.Node) -> tuple[ir.Value, ...]:
        """int8 (directions, inputs, rows), with scales and zero points (directions, rows)."""
        if value not in self._matrices:
            graph = home_of(value, node)
            limit = 64 if self._target.reduces_range else 127
            values, scales = self._by_rows(value, limit)
            turned = np.ascontiguousarray(values.transpose(0, 2, 1))
            self._matrices[value] = (
                constant(graph, f"{value.name}_int8", turned),
                constant(graph, f"{value.name}_scale", scales),
                constant(graph, f"{value.name}_zero", np.zeros(scales.shape, np.int8)),
            )
        return self._matrices[value]

    def _by_rows(self, value: ir.Value, limit: int) -> tuple[Array, Array]:
        """int8 (directions, rows, columns) and float32 scales (directions, rows)."""
        array = array_of(value.const_value, self._folder)
        made = quantized_weight(array.reshape(-1, array.shape[-1]), 0, limit=limit)
        return made.values.reshape(array.shape), made.scales.reshape(array.shape[:2])
