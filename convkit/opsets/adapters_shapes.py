"""Adapters for operators about shapes: Pad, Reshape, Resize, Shape, Split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convkit.opsets.adapters_attributes import Adapter
from convkit.opsets.scope import CannotLower, Scope, attribute, changed, input_of


def pad_18(node: Any, scope: Scope) -> list[Any]:
    """Pad 18 added axes; before, every axis has its pads."""
    name = input_of(node, 3)
    if not name:
        return [node]
    rank = scope.rank_of(node.input[0])
    axes = [axis % rank for axis in scope.ints(name, "axes")]
    places = [*axes, *(rank + axis for axis in axes)]
    nodes, pads = _spread(scope, node.input[1], places, 2 * rank, "int64", [0])
    return [*nodes, changed(node, inputs=[node.input[0], pads, *node.input[2:3]])]


def _spread(
    scope: Scope, values: str, places: Sequence[int], count: int, dtype: str, rest: Sequence[float]
) -> tuple[list[Any], str]:
    """A vector of `count`: value number i stands at places[i]; `rest` repeats at the others."""
    from onnx import helper

    filled, default = scope.hold("default", list(rest), dtype)
    both = scope.fresh("default_and_given")
    order = [place % len(rest) for place in range(count)]
    for index, place in enumerate(places):
        order[place] = len(rest) + index
    picked, index_name = scope.hold("order", order)
    out = scope.fresh("spread")
    return [
        filled,
        picked,
        helper.make_node("Concat", [default, values], [both], axis=0),
        helper.make_node("Gather", [both, index_name], [out]),
    ], out


def reshape_14(node: Any, scope: Scope) -> list[Any]:
    """Reshape 14 added `allowzero`; before, 0 always copies a size.

    A shape computed at run time has a 0 only where the tensor is empty.
    """
    if attribute(node, "allowzero", 0):
        shape = scope.constant(node.input[1])
        if shape is not None and 0 in shape:
            raise CannotLower("it reshapes to a shape with a zero")
    return [changed(node, drop=("allowzero",))]


def resize_18(node: Any, scope: Scope) -> list[Any]:
    """Resize 18 added axes, antialiasing and the policy for aspect ratios."""
    from onnx import helper

    if attribute(node, "antialias", 0):
        raise CannotLower("it filters against aliasing")
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise CannotLower("it keeps the aspect ratio")
    plain = changed(node, drop=("antialias", "axes", "keep_aspect_ratio_policy"))
    axes = attribute(node, "axes")
    if axes is None:
        return [plain]
    rank = scope.rank_of(node.input[0])
    axes = [axis % rank for axis in axes]
    inputs, nodes = [node.input[0], *(input_of(node, index) for index in (1, 2, 3))], []
    if inputs[1]:
        dtype = "float32" if scope.dtype_of(inputs[1]) in (0, 1) else "float64"
        places = [*axes, *(rank + axis for axis in axes)]
        begin_end = [0.0] * rank + [1.0] * rank
        made, inputs[1] = _spread(scope, inputs[1], places, 2 * rank, dtype, begin_end)
        nodes += made
    if inputs[2]:
        made, inputs[2] = _spread(scope, inputs[2], axes, rank, "float32", [1.0])
        nodes += made
    if inputs[3]:
        sizes, both, out = (scope.fresh(hint) for hint in ("sizes", "both_sizes", "all_sizes"))
        order = [rank + axes.index(axis) if axis in axes else axis for axis in range(rank)]
        picked, index_name = scope.hold("order", order)
        nodes += [
            helper.make_node("Shape", [node.input[0]], [sizes]),
            helper.make_node("Concat", [sizes, inputs[3]], [both], axis=0),
            picked,
            helper.make_node("Gather", [both, index_name], [out]),
        ]
        inputs[3] = out
    return [*nodes, changed(plain, inputs=inputs)]


def shape_15(node: Any, scope: Scope) -> list[Any]:
    """Shape 15 added start and end: a Slice of the whole shape."""
    from onnx import helper

    start, end = attribute(node, "start", 0), attribute(node, "end")
    plain = changed(node, drop=("start", "end"))
    if start == 0 and end is None:
        return [plain]
    whole = scope.fresh("whole_shape")
    begins, start_name = scope.hold("start", [start])
    ends, end_name = scope.hold("end", [2**31 - 1 if end is None else end])
    cut = helper.make_node("Slice", [whole, start_name, end_name], [node.output[0]])
    return [changed(plain, outputs=[whole]), begins, ends, cut]


def split_18(node: Any, scope: Scope) -> list[Any]:
    """Split 18 added `num_outputs`, whose last part may be smaller."""
    count = attribute(node, "num_outputs")
    plain = changed(node, drop=("num_outputs",))
    if count is None:
        return [plain]
    rank = scope.rank_of(node.input[0])
    axis = attribute(node, "axis", 0) % rank
    size = (scope.shape_of(node.input[0]) or [])[axis]
    if size is not None:
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        if sizes[-1] < 0:
            raise CannotLower("it splits into more parts than there are")
        held, name = scope.hold("parts", sizes)
        return [held, changed(plain, inputs=[node.input[0], name])]
    nodes, name = _parts_at_run_time(node, axis, count, scope)
    return [*nodes, changed(plain, inputs=[node.input[0], name])]


def _parts_at_run_time(node: Any, axis: int, count: int, scope: Scope) -> tuple[list[Any], str]:
    """ceil(size / count) for all parts but the last, which takes what is left."""
    from onnx import helper

    held = [scope.hold(hint, value) for hint, value in (
        ("axis", [axis]), ("count", [count]), ("count_less_one", [count - 1]),
    )]  # fmt: skip
    axis_name, count_name, fewer = (name for _, name in held)
    hints = ("sizes", "size", "padded", "part", "firsts", "used", "rest", "parts")
    sizes, size, padded, part, firsts, used, rest, parts = (scope.fresh(hint) for hint in hints)
    return [
        *(constant for constant, _ in held),
        helper.make_node("Shape", [node.input[0]], [sizes]),
        helper.make_node("Gather", [sizes, axis_name], [size]),
        helper.make_node("Add", [size, fewer], [padded]),
        helper.make_node("Div", [padded, count_name], [part]),
        helper.make_node("Expand", [part, fewer], [firsts]),
        helper.make_node("Mul", [part, fewer], [used]),
        helper.make_node("Sub", [size, used], [rest]),
        helper.make_node("Concat", [firsts, rest], [parts], axis=0),
    ], parts


def split_13(node: Any, scope: Scope) -> list[Any]:
    """Split 13 made the sizes an input."""
    name = input_of(node, 1)
    plain = changed(node, inputs=node.input[:1])
    return [changed(plain, split=scope.ints(name, "sizes")) if name else plain]


ADAPTERS: Mapping[tuple[str, int], Adapter] = {
    ("Pad", 18): pad_18,
    ("Reshape", 14): reshape_14,
    ("Resize", 18): resize_18,
    ("Shape", 15): shape_15,
    ("Split", 18): split_18,
    ("Split", 13): split_13,
}
