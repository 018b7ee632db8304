"""What one step of an ONNX Loop computes, in the form that cells are recognised in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convkit.converters.tf2onnx_cells import (
    ACTIVATIONS,
    Array,
    NoMatchError,
    Sum,
    activate,
    add,
    apply_matrix,
    columns,
    multiply,
    size_of,
    split_points,
)

Value = Sum | Array


class Step:
    """Evaluates nodes of a loop's body on demand.

    Args:
        nodes: the body's nodes.
        known: value name -> constant, or a sum of leaves.
    """

    def __init__(self, nodes: Any, known: Mapping[str, Value]) -> None:
        self._makers = {output: node for node in nodes for output in node.output}
        self._values: dict[str, Value] = dict(known)

    def value(self, name: str) -> Value:
        """The value of that name.

        Raises:
            NoMatchError: it has no such form.
        """
        if name not in self._values:
            node = self._makers.get(name)
            if node is None:
                raise NoMatchError(f"{name} comes from elsewhere")
            results = self._computed(node)
            self._values.update(zip(node.output, results, strict=False))
        return self._values[name]

    def sum(self, name: str) -> Sum:
        """The value of that name as a sum, constants too."""
        return _as_sum(self.value(name))

    def _computed(self, node: Any) -> list[Value]:
        from onnx import helper

        if node.op_type in ACTIVATIONS:
            return [activate(node.op_type, self.sum(node.input[0]))]
        rule = _RULES.get(node.op_type)
        if rule is None:
            raise NoMatchError(f"{node.op_type} is part of no cell")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [self.value(name) for name in node.input if name]
        return rule(inputs, attributes, len(node.output))


def _as_sum(value: Value) -> Sum:
    if isinstance(value, Sum):
        return value
    bias = value.reshape(value.shape[1:]) if value.ndim == 2 and value.shape[0] == 1 else value
    if bias.ndim > 1:
        raise NoMatchError("a matrix is added")
    return Sum((), bias)


def _constants(inputs: list[Value]) -> list[Array]:
    arrays = [value for value in inputs if not isinstance(value, Sum)]
    if len(arrays) != len(inputs):
        raise NoMatchError("a constant is due")
    return arrays


def _identity(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    return [inputs[0]]


def _add(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    return [add(_as_sum(inputs[0]), _as_sum(inputs[1]))]


def _sub(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    return [add(_as_sum(inputs[0]), _as_sum(inputs[1]), -1.0)]


def _mul(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    return [multiply(_as_sum(inputs[0]), _as_sum(inputs[1]))]


def _matmul(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    left, right = inputs
    if not isinstance(left, Sum) or isinstance(right, Sum) or right.ndim != 2:
        raise NoMatchError("a product of another kind")
    return [apply_matrix(left, right)]


def _gemm(inputs: list[Value], attributes: Mapping[str, Any], _: int) -> list[Value]:
    left, right = inputs[0], inputs[1]
    is_plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    if not isinstance(left, Sum) or isinstance(right, Sum) or attributes.get("transA"):
        raise NoMatchError("a product of another kind")
    if not is_plain:
        raise NoMatchError("a scaled product")
    product = apply_matrix(left, right.T if attributes.get("transB") else right)
    return [add(product, _as_sum(inputs[2])) if len(inputs) > 2 else product]


def _squeeze(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    array, *axes = _constants(inputs)
    return [np.squeeze(array, tuple(axes[0].tolist()) if axes else None)]


def _split(inputs: list[Value], attributes: Mapping[str, Any], count: int) -> list[Value]:
    axis = attributes.get("axis", 0)
    whole = inputs[0]
    given = _constants(inputs[1:])
    length = size_of(whole) if isinstance(whole, Sum) else whole.shape[axis]
    sizes = given[0].tolist() if given else [length // count] * count
    if isinstance(whole, Sum):
        if axis not in (1, -1):
            raise NoMatchError("a split of the batch")
        return [columns(whole, *points) for points in split_points(sizes)]
    return list(np.split(whole, [begin for begin, _ in split_points(sizes)][1:], axis))


def _slice(inputs: list[Value], _: Mapping[str, Any], __: int) -> list[Value]:
    whole, starts, ends, *more = inputs[0], *_constants(inputs[1:])
    count = len(starts)
    axes = more[0].tolist() if more else list(range(count))
    steps = more[1].tolist() if len(more) > 1 else [1] * count
    pieces = {
        axis: slice(int(begin), int(end), int(step))
        for axis, begin, end, step in zip(axes, starts, ends, steps, strict=True)
    }
    if not isinstance(whole, Sum):
        return [whole[tuple(pieces.get(axis, slice(None)) for axis in range(whole.ndim))]]
    rows, chosen = pieces.get(0, slice(None)), pieces.get(1, pieces.get(-1, slice(None)))
    if rows.indices(_MANY) != (0, _MANY, 1) or set(pieces) - {0, 1, -1}:
        raise NoMatchError("a slice of the batch")
    begin, end, step = chosen.indices(size_of(whole))
    if step != 1:
        raise NoMatchError("a slice with steps")
    return [columns(whole, begin, end)]


_MANY = 1 << 30
"""More rows than a batch has: a slice that keeps them all keeps all of any batch."""

_RULES: Mapping[str, Callable[[list[Value], Mapping[str, Any], int], list[Value]]] = {
    "Add": _add,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "Mul": _mul,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _sub,
}
