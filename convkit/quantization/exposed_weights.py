"""Weights brought to light: arranged from constants, or carried by loops that never change them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.onnx_typing import nodes_of, opset_of
from convkit.quantization.graph_edits import constant, graph_of, home_of
from convkit.quantization.layers import element_count, is_constant

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_ARRANGING = frozenset((
    "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
))  # fmt: skip
"""Operators that only arrange elements: folding them rounds nothing and adds no bytes."""

_WEIGHTS_OF = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "Gather": (0,),
    "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
"""Operator -> its inputs that are weights and biases."""

_FIRST_CARRIED = 2
"""Inputs of a Loop and its body before those that it carries: trip count and condition."""


def expose_weights(model: ir.Model, folder: Path) -> None:
    """Makes weights constants where they can be, in place.

    Exporters put the gates of LSTM layers into ONNX's order by Slice and Concat, and write loops
    that carry their weights from turn to turn.

    Args:
        model: typed; constants are initializers.
        folder: where its weights lie.
    """
    for node in list(nodes_of(model.graph)):
        if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
            _free_invariants(node)
    known: dict[tuple[ir.Graph, str, bytes], ir.Value] = {}
    for node in list(nodes_of(model.graph)):
        for index in _WEIGHTS_OF.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or is_constant(value):
                continue
            leaves: list[ir.Value] = []
            array = _arranged(value, folder, opset_of(model, ""), leaves)
            if array is None:
                continue
            home = home_of(max(leaves, key=element_count), node)
            key = (home, str(array.shape), hashlib.sha256(array.tobytes()).digest())
            if key not in known:
                known[key] = constant(home, f"{value.name}_known", array)
            node.replace_input_with(index, known[key])


def _arranged(value: ir.Value, folder: Path, opset: int, leaves: list[ir.Value]) -> Array | None:
    """What constants make a value; None where others take part in it.

    Args:
        value: a constant, or what operators that arrange make of some.
        folder: where weights lie.
        opset: the model's.
        leaves: gets the constants.
    """
    if is_constant(value):
        leaves.append(value)
        return array_of(value.const_value, folder)
    node = value.producer()
    if node is None or node.op_type not in _ARRANGING or node.domain not in ("", "ai.onnx"):
        return None
    feeds: dict[str, Any] = {}
    for each in filter(None, node.inputs):
        array = _arranged(each, folder, opset, leaves)
        if array is None:
            return None
        feeds[each.name or ""] = array
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset})
    results: Any = evaluator.run(None, feeds)
    return np.asarray(results[node.outputs.index(value)])


def _free_invariants(node: ir.Node) -> None:
    """Takes constants that a loop hands on as they are out of what it carries."""
    body = node.attributes["body"].as_graph()
    count = len(node.inputs) - _FIRST_CARRIED
    freed = set()
    for index in range(count):
        outer, inner = node.inputs[index + _FIRST_CARRIED], body.inputs[index + _FIRST_CARRIED]
        is_handed_on = _origin(body.outputs[index + 1]) is inner
        if outer is None or not is_constant(outer) or not is_handed_on:
            continue
        for node_inside, place in list(inner.uses()):
            node_inside.replace_input_with(place, outer)
        if not node.outputs[index].is_graph_output():
            node.outputs[index].replace_all_uses_with(outer)
            freed.add(index)
    if freed:
        _carry_less(node, body, [index for index in range(count) if index not in freed], count)


def _carry_less(node: ir.Node, body: ir.Graph, kept: list[int], count: int) -> None:
    """Rebuilds a loop so that of its `count` carried values it carries those at `kept` only."""
    import onnx_ir as ir

    places = [*range(_FIRST_CARRIED), *(index + _FIRST_CARRIED for index in kept)]
    gives = [*kept, *range(count, len(node.outputs))]
    body.inputs[:] = [body.inputs[place] for place in places]
    body.outputs[:] = [body.outputs[0], *(body.outputs[index + 1] for index in gives)]
    made = ir.Node(
        node.domain,
        "Loop",
        [node.inputs[place] for place in places],
        list(node.attributes.values()),
        num_outputs=len(gives),
        name=node.name,
    )
    olds = [node.outputs[index] for index in gives]
    names = [value.name for value in olds]
    graph_of(node).insert_before(node, made)
    for old, new in zip(olds, made.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    for old, new, name in zip(olds, made.outputs, names, strict=True):
        old.name, new.name = None, name


def _origin(value: ir.Value) -> ir.Value:
    """What a value is a copy of."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
