"""Where float values come from: sizes, whole numbers, positions.

Half precision holds whole numbers only up to 2048 (fp16) or 256 (bf16). Floats that count
something - sizes computed from shapes, positions that become angles - must not be rounded to it,
however small they were on the samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convkit.onnx_typing import bodies_of, nodes_of
from convkit.passes.onnx_half_constants import tensor_of
from convkit.passes.onnx_half_types import CARRIERS, is_float

if TYPE_CHECKING:
    import onnx_ir as ir

ANGLE_OPERATORS = frozenset({"Sin", "Cos", "Tan"})

_SIZE_READERS = frozenset({"Shape", "Size"})
_RANDOM = ("Random", "Bernoulli", "Multinomial")
_WHOLE_KEEPING = frozenset((
    "Add", "Sub", "Mul", "Neg", "Abs", "Floor", "Ceil", "Round", "Min", "Max", "ReduceMax",
    "ReduceMin", "ReduceSum", "CumSum",
))  # fmt: skip
_POSITION_KEEPING = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "MatMul", "Einsum", "Gemm"})


@dataclass
class Origins:
    """Sets of values.

    Attributes:
        sizes: integers and floats computed from shapes and constants only.
        whole: floats that are whole numbers: casts of integers, and sums and products of them.
        positions: floats computed from casts of integers and constants only.
    """

    sizes: set[ir.Value] = field(default_factory=set)
    whole: set[ir.Value] = field(default_factory=set)
    positions: set[ir.Value] = field(default_factory=set)


def trace(graph: ir.Graph) -> Origins:
    """Follows values from their sources through a graph and its bodies, in order."""
    origins = Origins()
    for node in nodes_of(graph):
        if bodies_of(node) or node.op_type.startswith(_RANDOM) or node.op_type == "Constant":
            continue
        inputs = [v for v in node.inputs if v is not None and tensor_of(v) is None]
        if node.op_type in _SIZE_READERS or (inputs and _all_sizes(node, inputs, origins)):
            origins.sizes.update(node.outputs)
        floats = [v for v in inputs if is_float(v)]
        starts = node.op_type == "Cast" and bool(inputs) and not floats and _from_integer(node)
        keeps_whole = _continues(node, floats, origins.whole, _WHOLE_KEEPING)
        if starts or (keeps_whole and _constants_are_whole(node)):
            origins.whole.update(filter(is_float, node.outputs))
        if starts or _continues(node, floats, origins.positions, _POSITION_KEEPING):
            origins.positions.update(filter(is_float, node.outputs))
    return origins


def _all_sizes(node: ir.Node, inputs: list[ir.Value], origins: Origins) -> bool:
    """Only sizes and constants go in. A float that merely selects constants is none."""
    if not all(value in origins.sizes for value in inputs):
        return False
    gives_float = any(is_float(value) for value in node.outputs)
    counts = node.op_type in ("Cast", "Range") or any(is_float(value) for value in inputs)
    return counts or not gives_float


def _continues(
    node: ir.Node, floats: list[ir.Value], known: set[ir.Value], keeping: frozenset[str]
) -> bool:
    keeps = node.op_type in CARRIERS or node.op_type in keeping
    return keeps and bool(floats) and all(value in known for value in floats)


def _from_integer(node: ir.Node) -> bool:
    import onnx_ir as ir

    source = node.inputs[0]
    return source is not None and source.dtype in (
        ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8,
        ir.DataType.UINT64, ir.DataType.UINT32, ir.DataType.UINT16, ir.DataType.UINT8,
        ir.DataType.BOOL,
    )  # fmt: skip


def _constants_are_whole(node: ir.Node) -> bool:
    import numpy as np
    import onnx_ir as ir

    for value in node.inputs:
        tensor = tensor_of(value) if is_float(value) else None
        if isinstance(tensor, ir.ExternalTensor):
            return False
        if tensor is not None and not np.array_equal(tensor.numpy(), np.rint(tensor.numpy())):
            return False
    return True
