"""Adapters for axes that an older operator takes as an attribute, or in another default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.opsets.adapters_attributes import Adapter
from convkit.opsets.scope import CannotLower, Scope, attribute, changed, input_of

_IDENTITIES = frozenset(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"))
"""Reductions of nothing that give their input back."""


def reduce(node: Any, scope: Scope) -> list[Any]:
    """Reduce... 18 (ReduceSum 13) made axes an input, and no axes may mean no reduction."""
    name = input_of(node, 1)
    axes = scope.ints(name, "axes") if name else []
    plain = changed(node, inputs=node.input[:1], drop=("noop_with_empty_axes",))
    if axes:
        return [changed(plain, axes=axes)]
    if attribute(node, "noop_with_empty_axes", 0):
        if node.op_type not in _IDENTITIES:
            raise CannotLower("it reduces over no axes, element by element")
        return [changed(plain, operator="Identity", drop=("keepdims",))]
    return [plain]


def axes_as_attribute(node: Any, scope: Scope) -> list[Any]:
    """Squeeze and Unsqueeze 13 made axes an input."""
    name = input_of(node, 1)
    plain = changed(node, inputs=node.input[:1])
    return [changed(plain, axes=scope.ints(name, "axes")) if name else plain]


def softmax(node: Any, scope: Scope) -> list[Any]:
    """Softmax, LogSoftmax and Hardmax 13 work along one axis; before, over all from it on."""
    from onnx import helper

    rank = scope.rank_of(node.input[0])
    axis = attribute(node, "axis", -1) % max(rank, 1)
    if axis == rank - 1:
        return [changed(node, axis=axis)]
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    last, done = scope.fresh("axis_last"), scope.fresh("done")
    return [
        helper.make_node("Transpose", [node.input[0]], [last], perm=order),
        changed(node, inputs=[last], outputs=[done], axis=rank - 1),
        helper.make_node("Transpose", [done], [node.output[0]], perm=order),
    ]


def dft(node: Any, scope: Scope) -> list[Any]:
    """DFT 20 made the axis an input, the last but one by default."""
    name = input_of(node, 2)
    axis = scope.ints(name, "axis")[0] if name else -2
    return [changed(node, inputs=node.input[:2], axis=axis)]


ADAPTERS: Mapping[tuple[str, int], Adapter] = {
    **{
        (f"Reduce{kind}", 18): reduce
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
    ("ReduceSum", 13): reduce,
    ("Squeeze", 13): axes_as_attribute,
    ("Unsqueeze", 13): axes_as_attribute,
    ("Softmax", 13): softmax,
    ("LogSoftmax", 13): softmax,
    ("Hardmax", 13): softmax,
    ("DFT", 20): dft,
}
