"""Weights that a graph only rearranges are rearranged once, not in every run.

Exporters slice, join and transpose the weights of recurrent layers, and reshape biases. TensorFlow
does not fold what is computed from variables. Quantized weights stay as small as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.onnx_structure import array_of
from convkit.onnx_typing import graphs_of

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

_REARRANGING = frozenset(
    ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
     "Transpose", "Unsqueeze")
)  # fmt: skip
_COMPUTING = frozenset(("Add", "Cast", "Div", "Mul", "Neg", "Reciprocal", "Sqrt", "Sub"))
"""Arithmetic on weights: biases that are added, scales that are multiplied in."""

_LARGE_BYTES = 1 << 20
_LEAST_BITS = 8


def fold_weights(graph: ir.Graph, folder: Path) -> int:
    """Replaces nodes whose inputs are all weights by their results, where these are no larger.

    A large weight that other nodes need as it is stays the only copy.

    Args:
        graph: the model's graph, bodies included; changed in place.
        folder: where the model's files lie.

    Returns:
        How many nodes are gone.
    """
    count = 0
    for part in graphs_of(graph):
        for node in list(part):
            if _is_foldable(node):
                arrays = _computed(node, folder)
                if arrays is not None:
                    _replace(part, node, arrays)
                    count += 1
    for part in graphs_of(graph):
        for name, value in list(part.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del part.initializers[name]
    return count


def _is_foldable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in _REARRANGING | _COMPUTING:
        return False
    given = [value for value in node.inputs if value is not None]
    if not given or not all(_is_constant(value) for value in given):
        return False
    # A shape, an axis, a single number: the tracer follows these itself, as Python values.
    if not any(value.const_value.size > 1 for value in _floats(given)):  # type: ignore[union-attr]
        return False
    if any(value.is_graph_output() for value in node.outputs):
        return False
    return all(_is_free(value) for value in given)


def _is_constant(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input():
        return False
    return tensor.dtype.name != "STRING" and tensor.dtype.bitwidth >= _LEAST_BITS


def _floats(values: list[ir.Value]) -> Iterator[ir.Value]:
    return (v for v in values if v.dtype is not None and v.dtype.is_floating_point())


def _is_free(value: ir.Value) -> bool:
    """Whether nothing but nodes of this kind reads it, or it is small."""
    if value.const_value is None or value.const_value.nbytes <= _LARGE_BYTES:
        return True
    known = _REARRANGING | _COMPUTING
    readers = [use.node for use in value.uses()]
    return not value.is_graph_output() and all(
        node.op_type in known and all(v is None or _is_constant(v) for v in node.inputs)
        for node in readers
    )


def _computed(node: ir.Node, folder: Path) -> list[np.ndarray[Any, Any]] | None:
    """The results by ONNX's reference evaluator; None where they are larger than the inputs."""
    import numpy as np
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    feeds = {
        value.name or "": array_of(value.const_value, folder)
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    try:
        results: Any = ReferenceEvaluator(proto).run(None, feeds)
    except Exception:  # the evaluator lacks something: the node is then computed in every run
        return None
    arrays = [np.asarray(result) for result in results]
    given = sum(array.nbytes for array in feeds.values())
    return arrays if sum(array.nbytes for array in arrays) <= given else None


def _replace(graph: ir.Graph, node: ir.Node, arrays: list[np.ndarray[Any, Any]]) -> None:
    import numpy as np
    import onnx_ir as ir

    for old, array in zip(node.outputs, arrays, strict=True):
        if not old.name:
            continue
        name = old.name
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        new = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        old.name = None
        graph.register_initializer(new)
        ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)
