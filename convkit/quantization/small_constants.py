"""Small values that a graph computes from constants alone, computed beforehand.

Exporters write paddings and shapes as long chains of such.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.onnx_typing import bodies_of, opset_of
from convkit.quantization.layers import element_count, is_constant

if TYPE_CHECKING:
    import onnx_ir as ir

_MOST_ELEMENTS = 1024
_RANDOM = frozenset(("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"))


def fold_small_constants(model: ir.Model, folder: Path) -> int:
    """Replaces nodes of the main graph whose results are known by constants; how many.

    Args:
        model: typed; its constants are initializers.
        folder: where its weights lie.
    """
    graph, count = model.graph, 0
    opset = opset_of(model, "")
    for node in list(graph):
        if not _is_known(node):
            continue
        arrays = _results(node, folder, opset)
        if arrays is None:
            continue
        for value, array in zip(node.outputs, arrays, strict=False):
            _set(graph, value, array)
        graph.remove(node, safe=True)
        count += 1
    return count


def _is_known(node: ir.Node) -> bool:
    inputs = [value for value in node.inputs if value is not None]
    return (
        node.domain in ("", "ai.onnx")
        and bool(inputs)
        and node.op_type not in _RANDOM
        and not bodies_of(node)
        and all(is_constant(value) and element_count(value) <= _MOST_ELEMENTS for value in inputs)
        and not any(value.is_graph_output() for value in node.outputs)
    )


def _results(node: ir.Node, folder: Path, opset: int) -> list[np.ndarray[Any, Any]] | None:
    """What the node gives; None where ONNX's reference cannot say, or it is large."""
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    feeds = {
        value.name or "": array_of(value.const_value, folder)
        for value in node.inputs
        if value is not None
    }
    try:
        evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset})
        results: Any = evaluator.run(None, feeds)
    except Exception:  # an operator that the reference lacks stays as it is
        return None
    arrays = [np.asarray(result) for result in results]
    is_plain = all(a.dtype.kind in "fiub" and a.size <= _MOST_ELEMENTS for a in arrays)
    return arrays if is_plain else None


def _set(graph: ir.Graph, value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    import onnx_ir as ir

    name = value.name
    tensor = ir.tensor(array, name=name)
    made = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    value.replace_all_uses_with(made)
    value.name = None
    graph.register_initializer(made)
