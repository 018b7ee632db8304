"""Nodes whose inputs are all constants, computed when the module is written.

The reference evaluator of ONNX computes them, when their elements are first needed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.dtypes import dtype_name
from convkit.converters.onnx_to_torch.scope import Scope, Variable, is_used
from convkit.converters.onnx_to_torch.weights import Weight

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

_KEPT = frozenset(
    (
        "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "RandomNormal",
        "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial",
        "Dropout", "If", "Loop", "Scan", "SequenceMap", "Optional", "SequenceEmpty",
        "SequenceConstruct",
    )
)  # fmt: skip
"""Not folded: quantized weights stay small, random numbers random."""

_LARGE_COUNT = 1 << 16
_GROWTH = 2


def emit_folded(scope: Scope, node: ir.Node) -> bool:
    """Binds the outputs of a node to constants where all its inputs are, and they stay small."""
    if node.domain != "" or node.op_type in _KEPT or node.op_type.startswith("Sequence"):
        return False
    used = [value for value in node.outputs if is_used(value)]
    if len(used) != 1 or used[0] is not node.outputs[0]:
        return False
    weights = [scope.weight(value) for value in node.inputs]
    pairs = zip(node.inputs, weights, strict=True)
    if any(value is not None and weight is None for value, weight in pairs):
        return False
    if any(scope_bound_is_variable(scope, value) for value in node.inputs):
        return False
    if _widens(node, weights):
        return False
    made = _identity(node, weights) or _transposed(node, weights) or _evaluated(node, weights)
    if made is None:
        return False
    scope.bind(node.outputs[0], made)
    return True


def scope_bound_is_variable(scope: Scope, value: ir.Value | None) -> bool:
    """Whether a value is a run-time tensor."""
    return value is not None and isinstance(scope.bound(value), Variable)


def _widens(node: ir.Node, weights: list[Weight | None]) -> bool:
    """Whether a large weight of small integers would become floats: quantized by hand."""
    weight, made = weights[0] if weights else None, node.outputs[0].dtype
    if node.op_type != "Cast" or weight is None or made is None:
        return False
    return weight.element_count > _LARGE_COUNT and 2 * weight.dtype.bitwidth <= made.bitwidth // 2


def _identity(node: ir.Node, weights: list[Weight | None]) -> Weight | None:
    return weights[0] if node.op_type == "Identity" else None


def _transposed(node: ir.Node, weights: list[Weight | None]) -> Weight | None:
    """A transposed matrix stays tied to the matrix."""
    weight = weights[0] if weights else None
    if node.op_type != "Transpose" or weight is None or len(weight.shape) != 2:
        return None
    order = node.attributes.get("perm")
    return weight.transposed if order is None or list(order.value) == [1, 0] else weight


def _evaluated(node: ir.Node, weights: list[Weight | None]) -> Weight | None:
    output = node.outputs[0]
    count_in = sum(weight.element_count for weight in weights if weight is not None)
    shape = _static_shape(output)
    if shape is not None and output.dtype is not None and dtype_name(output.dtype):
        count = math.prod(shape)
        if count > _LARGE_COUNT and count > _GROWTH * count_in:
            return None
        if count > _LARGE_COUNT or count_in > _LARGE_COUNT:
            return Weight(output.name or "", shape, output.dtype, lambda: _compute(node, weights))
    if count_in > _LARGE_COUNT or (shape is None and node.op_type in ("Expand", "Tile", "Resize")):
        return None
    return _now(node, weights)


def _now(node: ir.Node, weights: list[Weight | None]) -> Weight | None:
    import numpy as np
    import onnx_ir as ir

    try:
        made: Any = _compute(node, weights)
        if not isinstance(made, np.ndarray | np.generic):
            return None
        array = np.asarray(made)
        dtype = ir.DataType.from_numpy(array.dtype)
    except Exception:  # the evaluator lacks something; the node is then computed at run time
        return None
    if array.size > _LARGE_COUNT or not dtype_name(dtype):
        return None
    return Weight(node.outputs[0].name or "", array.shape, dtype, lambda: array)


def _static_shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(n, int) and n >= 0 for n in value.shape):
        return None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def _compute(node: ir.Node, weights: list[Weight | None]) -> np.ndarray[Any, Any]:
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    pairs = zip(proto.input, weights, strict=True)
    feeds = {name: weight.make() for name, weight in pairs if weight is not None}
    results: Any = ReferenceEvaluator(proto).run(None, feeds)
    return results[0]  # type: ignore[no-any-return]
