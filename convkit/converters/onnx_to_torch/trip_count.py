"""Finds loops that only count: their condition says nothing that their trip count does not say.

A loop that came from TensorFlow asks before each iteration whether its counters are below their
bounds, and those bounds are its trip count too. Known to run exactly so often, it can be unrolled
or become a scan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convkit.converters.onnx_to_torch.host import Number
from convkit.converters.onnx_to_torch.scope import Scope

if TYPE_CHECKING:
    import onnx_ir as ir


def only_counts(scope: Scope, node: ir.Node, body: ir.Graph) -> bool:
    """Whether the condition of a Loop never ends it before its trip count does."""
    limit = _number(scope, node.inputs[0])
    if limit is None:
        return False
    return _begins(scope, node.inputs[1], limit) and _goes_on(
        scope, node, body, body.outputs[0], limit
    )


def constant_states(node: ir.Node, body: ir.Graph) -> dict[int, ir.Value]:
    """States that no iteration changes: place among the states -> what they are outside."""
    found = {}
    for place, (begin, state, end) in enumerate(
        zip(node.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False)
    ):
        if _source(end) is state and begin is not None:
            found[place] = begin
    return found


def _begins(scope: Scope, condition: ir.Value | None, limit: Number) -> bool:
    """Whether the first iteration runs if the trip count is at least 1."""
    if condition is None:
        return True
    known = scope.host(condition)
    if known is not None and known.is_constant:
        return bool(known.values[0])
    source = _source(condition)
    node = source.producer()
    if node is None:
        return False
    if node.op_type == "And":
        return all(_begins(scope, value, limit) for value in node.inputs)
    pair = _compared(node)
    if pair is None:
        return False
    first, bound = scope.host(pair[0]), _number(scope, pair[1])
    is_low = first is not None and first.is_constant and first.values[0] <= 0
    return is_low and bound is not None and _reaches(bound, limit)


def _goes_on(
    scope: Scope, node: ir.Node, body: ir.Graph, condition: ir.Value, limit: Number
) -> bool:
    """Whether a condition holds after every iteration but the last."""
    source = _source(condition)
    if source is body.inputs[1]:
        return True
    made_by = source.producer()
    if made_by is None:
        return False
    if made_by.op_type == "And":
        return all(
            value is not None and _goes_on(scope, node, body, value, limit)
            for value in made_by.inputs
        )
    pair = _compared(made_by)
    if pair is None or not _is_counter(scope, node, body, pair[0]):
        return False
    outside = _outside(node, body, pair[1])
    bound = _number(scope, outside) if outside is not None else None
    return bound is not None and _reaches(bound, limit)


def _compared(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The sides of `a < b`."""
    if node.op_type not in ("Less", "Greater") or None in node.inputs:
        return None
    left, right = node.inputs
    assert left is not None
    assert right is not None
    return (left, right) if node.op_type == "Less" else (right, left)


def _is_counter(scope: Scope, node: ir.Node, body: ir.Graph, value: ir.Value) -> bool:
    """Whether a value is the number of the iteration, from 0, or that plus 1."""
    source = _source(value)
    if source is body.inputs[0]:
        return True
    for begin, state, end in zip(node.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False):
        following = _source(end)
        if source not in (state, following) or not _is_successor(scope, following, state):
            continue
        first = scope.host(begin)
        return first is not None and first.is_constant and first.values[0] == 0
    return False


def _is_successor(scope: Scope, value: ir.Value, state: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Add":
        return False
    left, right = node.inputs
    for one, other in ((left, right), (right, left)):
        if one is not None and other is not None and _source(one) is state:
            return _constant(scope, other) == 1
    return False


def _outside(node: ir.Node, body: ir.Graph, value: ir.Value) -> ir.Value | None:
    """A value of a body as one from outside: a captured one, or a state that never changes."""
    source = _source(value)
    unchanged = constant_states(node, body)
    for place, state in enumerate(body.inputs[2:]):
        if source is state:
            return unchanged.get(place)
    is_inside = source.producer() is not None and source.producer() in list(body)
    return None if is_inside or source in body.inputs else source


def _constant(scope: Scope, value: ir.Value) -> float | None:
    import numpy as np

    if value.const_value is not None and value.const_value.size == 1:
        return float(np.asarray(value.const_value.numpy()).reshape(-1)[0])
    number = _number(scope, value) if value.producer() is None else None
    return None if number is None or number.value is None else float(number.value)


def _number(scope: Scope, value: ir.Value | None) -> Number | None:
    """The one number that a value holds, if Python knows it."""
    if value is None:
        return None
    try:
        known = scope.host(_source(value))
    except KeyError:  # it belongs to the body
        constant = value.const_value
        if constant is None or constant.size != 1:
            return None
        number = constant.numpy().reshape(-1)[0].item()
        return Number(str(number), number)
    return known.numbers[0] if known is not None and len(known.numbers) == 1 else None


def _reaches(bound: Number, limit: Number) -> bool:
    """Whether a bound is the trip count, or above it."""
    if bound.value is not None and limit.value is not None:
        return bool(bound.value >= limit.value)
    return _plain(bound) == _plain(limit)


def _plain(number: Number) -> str:
    """The expression without a conversion to float, which is exact for sizes below 2^24."""
    return number.code.removesuffix(" * 1.0")


def _source(value: ir.Value) -> ir.Value:
    """Where a value comes from, through nodes that change no number."""
    node = value.producer()
    while node is not None and node.op_type in ("Identity", "Cast", "Squeeze", "Unsqueeze"):
        if node.inputs[0] is None or (node.op_type == "Cast" and not _keeps_numbers(node)):
            break
        value = node.inputs[0]
        node = value.producer()
    return value


def _keeps_numbers(node: ir.Node) -> bool:
    import onnx_ir as ir

    kept = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64)
    source, target = node.inputs[0], node.outputs[0]
    return target.dtype in kept and source is not None and source.dtype in kept
