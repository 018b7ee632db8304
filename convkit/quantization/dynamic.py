"""Dynamic int8: weights as integers, activations quantized as they come.

Each product becomes DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which ONNX Runtime fuses
into one kernel; values that several layers read are quantized once. Feed-forward layers of
transformers take a scale for each row, products of language models one for each block. Rows of
embedding tables are looked up as integers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.errors import UnsupportedError
from convkit.naming import listed
from convkit.onnx_metadata import WEIGHTS_KEY
from convkit.onnx_structure import array_of
from convkit.onnx_typing import nodes_of, opset_of
from convkit.quantization.activation_rows import needs_rows, quantize_rows
from convkit.quantization.exposed_weights import expose_weights
from convkit.quantization.graph_edits import (
    constant,
    drop_unread,
    graph_of,
    home_of,
    replace_node,
)
from convkit.quantization.layers import (
    element_count,
    int_attribute,
    is_constant,
    is_float32,
    output_axis,
    rank_of,
    refusal_of,
)
from convkit.quantization.packing import Packing
from convkit.quantization.recurrent import quantize_recurrent
from convkit.quantization.stepwise import BlockChanges, is_stepwise
from convkit.quantization.targets import Target
from convkit.quantization.weights import quantized_weight

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

OLDEST_OPSET = 11
"""The first with DynamicQuantizeLinear. Source: ONNX Changelog.md."""

_SMALLEST_WEIGHT = 8192
"""Elements below which a product stays float. Of 64 x 64 one row took 1.3 times as long in int8, 32
rows as long; of 96 x 96 1.07 times and 0.8 times. Source: `scripts/bench-quantized-operators`."""

_SMALLEST_TABLE = 4096
"""Elements below which a table stays float: three more nodes for a few kilobytes."""

_REDUCED_LIMIT = 64
_NAMES_SHOWN = 6


def quantize_dynamic(
    model: ir.Model,
    folder: Path,
    target: Target,
    *,
    keep: frozenset[str] = frozenset(),
    note: Callable[[str], None],
) -> None:
    """Quantizes products with constant matrices, tables and recurrent layers, in place.

    Convolutions keep their weights in int8 and compute in float: ConvInteger of ONNX Runtime was
    measured at 0.16 times the speed of the float convolution, 0.04 where they are depthwise.

    Args:
        model: typed.
        folder: where its weights lie.
        target: what the result is for.
        keep: names of nodes that stay float.
        note: takes sentences for the report.

    Raises:
        UnsupportedError: nothing in it can be quantized.
    """
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    expose_weights(model, folder)
    changes = _Changes(model, folder, target)
    recurrent = quantize_recurrent(model, folder, target, keep=keep, note=note)
    for node in list(nodes_of(model.graph)):
        if node.name not in keep and node.domain in ("", "ai.onnx"):
            changes.quantize(node)
    if not changes.count and not recurrent:
        why = "It has no product with a constant matrix, no table and no recurrent layer."
        if changes.convolutions:
            why = f"Its {changes.convolutions} convolutions get slower in dynamic int8."
        raise UnsupportedError(
            "There is nothing in the model to quantize dynamically.",
            why=why,
            hint="Quantize with data instead:  --int8 --calibration inputs.npz",
        )
    drop_unread(model)
    model.metadata_props.pop(WEIGHTS_KEY, None)  # it says where float weights are
    common.NameFixPass()(model)
    if changes.is_in_blocks:
        model.graph.opset_imports.setdefault("com.microsoft", 1)
        note("Products are of blocks of eight bits (MatMulNBits), as steps of one token need.")
    if changes.packed_count:
        note(
            f"Convolutions are kept in int8 and compute in fp32, as fast as before: "
            f"{changes.packed_count}."
        )
    if changes.small:
        names = listed(changes.small, _NAMES_SHOWN)
        note(f"fp32: too small to gain: {names}.")


class _Changes:
    """Replaces nodes, each in the graph that it is in.

    Attributes:
        convolutions: those that could be int8 with data, and compute in fp32 here.
        small: names of products that stay because they are small.
    """

    def __init__(self, model: ir.Model, folder: Path, target: Target) -> None:
        self._replaced_count = self.convolutions = 0
        self.small: list[str] = []
        self._folder = folder
        self._target = target
        self._opset = opset_of(model, "")
        self._activations: dict[tuple[ir.Value, ir.Graph, bool], tuple[ir.Value, ...]] = {}
        self._weights: dict[tuple[ir.Value, bool, float], tuple[ir.Value, ...]] = {}
        self._tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._packing = Packing(folder)
        is_in_blocks = is_stepwise(model) and target.has_block_kernels
        self._in_blocks = BlockChanges(folder, target) if is_in_blocks else None

    @property
    def count(self) -> int:
        """Nodes that were quantized."""
        return self._replaced_count + self._packing.count

    @property
    def is_in_blocks(self) -> bool:
        """Whether products became MatMulNBits."""
        return self._in_blocks is not None and self._replaced_count > 0

    @property
    def packed_count(self) -> int:
        """Convolutions of which only the weights are int8."""
        return self._packing.count

    def quantize(self, node: ir.Node) -> None:
        """Quantizes a node that gains by it."""
        if node.op_type == "Gather":
            self._look_up(node)
        elif node.op_type in ("Conv", "ConvTranspose"):
            if self._target.has_folding:
                self._packing.pack(node, 1)
            self.convolutions += refusal_of(node) is None
        elif node.op_type in ("MatMul", "Gemm") and refusal_of(node) is None:
            weight = node.inputs[1]
            assert weight is not None
            if element_count(weight) < _SMALLEST_WEIGHT:
                self.small.append(node.name or node.op_type)
            elif self._in_blocks is not None:
                self._in_blocks.multiply(node)
                self._replaced_count += 1
            else:
                self._multiply(node)

    def _multiply(self, node: ir.Node) -> None:
        """`x @ W + b` as an integer product, its scale and its bias."""
        import onnx_ir as ir

        data, weight, out = node.inputs[0], node.inputs[1], node.outputs[0]
        assert data is not None
        assert weight is not None
        integers, zero, scale = self._activation(data, node)
        values, points, scales = self._weight(weight, node)
        name = node.name or out.name
        product = ir.node("MatMulInteger", [integers, values, zero, points], name=name)
        cast = ir.node("Cast", product.outputs, attributes={"to": ir.DataType.FLOAT})
        if needs_rows(node):
            # Not the product of both scales first: ONNX Runtime 1.31 fuses that as if it were one
            # number, and computes something else.
            factor = ir.node("Mul", [cast.outputs[0], scales])
            scaled = ir.node("Mul", [factor.outputs[0], scale])
        else:
            factor = ir.node("Mul", [scale, scales])
            scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
        made = [product, cast, factor, scaled]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            made.append(ir.node("Add", [scaled.outputs[0], bias]))
        product.outputs[0].type, product.outputs[0].shape = (
            ir.TensorType(ir.DataType.INT32),
            out.shape,
        )
        for each in made[1:]:
            each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self._replace(node, made)

    def _activation(self, data: ir.Value, node: ir.Node) -> tuple[ir.Value, ...]:
        """A value as uint8, with zero point and scale; once for all that read it so."""
        import onnx_ir as ir

        graph = graph_of(node)
        key = (data, graph, needs_rows(node))
        if key not in self._activations and needs_rows(node):
            made, scales = quantize_rows(data, node, self._opset)
            self._name(made, f"{data.name}_rows")
            graph.insert_before(node, made)
            zero_of_rows = made[-1].inputs[2]
            assert zero_of_rows is not None
            self._activations[key] = (made[-1].outputs[0], zero_of_rows, scales)
        elif key not in self._activations:
            quantizing = ir.node("DynamicQuantizeLinear", [data], num_outputs=3)
            integers, scale, zero = quantizing.outputs
            integers.type, integers.shape = ir.TensorType(ir.DataType.UINT8), data.shape
            scale.type, zero.type = ir.TensorType(ir.DataType.FLOAT), integers.type
            scale.shape = zero.shape = ir.Shape([])
            self._name([quantizing], f"{data.name}_quantized")
            graph.insert_before(node, quantizing)
            self._activations[key] = (integers, zero, scale)
        return self._activations[key]

    def _weight(self, weight: ir.Value, node: ir.Node) -> tuple[ir.Value, ...]:
        """A matrix (inputs, outputs) as int8, with zero points and scales of its columns."""
        axis = output_axis(node)
        alpha = node.attributes.get("alpha")
        factor = 1.0 if alpha is None else alpha.as_float()
        graph = home_of(weight, node)
        key = (weight, axis == 0, factor)
        if key not in self._weights:
            array = array_of(weight.const_value, self._folder).astype(np.float32) * factor
            matrix = array.T if axis == 0 else array
            limit = _REDUCED_LIMIT if self._target.reduces_range else 127
            made = quantized_weight(
                np.ascontiguousarray(matrix),
                1 if self._target.is_per_channel else None,
                limit=limit,
            )
            self._weights[key] = (
                constant(graph, f"{weight.name}_int8", made.values),
                constant(graph, f"{weight.name}_zero", np.zeros(made.scales.shape, np.int8)),
                constant(graph, f"{weight.name}_scale", made.scales),
            )
        return self._weights[key]

    def _look_up(self, node: ir.Node) -> None:
        """Rows of a table as int8, each with a scale of its own."""
        import onnx_ir as ir

        table, ids = node.inputs
        if table is None or not is_float32(table) or not is_constant(table) or rank_of(table) != 2:
            return
        if int_attribute(node, "axis", 0) != 0 or element_count(table) < _SMALLEST_TABLE:
            return
        if self._in_blocks is not None and ids is not None and ids.shape is not None:
            self._in_blocks.look_up(node)
            self._replaced_count += 1
            return
        if any(use.node.op_type not in ("Gather", "MatMul", "Gemm") for use in table.uses()):
            return  # it would be kept as floats as well
        if table not in self._tables:
            graph = home_of(table, node)
            made = quantized_weight(array_of(table.const_value, self._folder), 0)
            self._tables[table] = (
                constant(graph, f"{table.name}_int8", made.values),
                constant(graph, f"{table.name}_scale", made.scales.reshape(-1, 1)),
            )
        values, scales = self._tables[table]
        rows = ir.node("Gather", [values, ids], name=node.name)
        factors = ir.node("Gather", [scales, ids])
        cast = ir.node("Cast", rows.outputs, attributes={"to": ir.DataType.FLOAT})
        scaled = ir.node("Mul", [cast.outputs[0], factors.outputs[0]])
        rows.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        for each in (factors, cast, scaled):
            each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self._replace(node, [rows, factors, cast, scaled])

    def _replace(self, node: ir.Node, made: list[ir.Node]) -> None:
        """Puts nodes in the place of one; the last gives what it gave."""
        self._name(made, node.outputs[0].name or "")
        replace_node(node, made)
        self._replaced_count += 1

    def _name(self, made: list[ir.Node], stem: str) -> None:
        for number, node in enumerate(made):
            node.name = node.name or f"{stem}_{node.op_type}_{number}"
            for index, value in enumerate(node.outputs):
                value.name = f"{stem}_{node.op_type}_{number}_{index}"
