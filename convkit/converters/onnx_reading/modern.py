"""Brings a node of an older opset to the newest meaning of its operator.

Operators changed in three ways: attributes became inputs, defaults moved, and a few were replaced.
An operator without an entry here never changed its meaning, only the types that it allows.

Source: docs/Changelog.md of ONNX, which gives the schema of every operator at every version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

NEWEST = 28
"""The opset whose operators importers implement (onnx 1.23)."""

_REDUCTIONS = {
    "ReduceL1": 18, "ReduceL2": 18, "ReduceLogSum": 18, "ReduceLogSumExp": 18, "ReduceMax": 18,
    "ReduceMean": 18, "ReduceMin": 18, "ReduceProd": 18, "ReduceSum": 13, "ReduceSumSquare": 18,
}  # fmt: skip
"""Reduction -> the opset in which its axes became an input."""


def modernise(node: ir.Node, opset: int) -> None:
    """Rewrites `node`, written for `opset` of the default domain, in place or by its successors.

    Raises:
        UnsupportedError: the old meaning has no counterpart; names the node.
    """
    for below, change in _CHANGES.get(node.op_type, ()):
        if opset < below:
            change(node)


def _take(node: ir.Node, name: str) -> Any:
    """Removes an attribute; its value, or None."""
    attribute = node.attributes.pop(name, None)
    return None if attribute is None else attribute.value


def _constant(node: ir.Node, elements: Any, dtype: str) -> ir.Value:
    """A Constant node before `node`."""
    import numpy as np
    import onnx_ir as ir

    tensor = ir.tensor(np.asarray(elements, dtype))
    made = ir.node("Constant", [], {"value": tensor})
    node.graph.insert_before(node, made)  # type: ignore[union-attr]
    return made.outputs[0]


def _append(node: ir.Node, place: int, value: ir.Value | None) -> None:
    """Makes `value` the input at `place`, absent ones in between."""
    if len(node.inputs) <= place:
        node.resize_inputs(place + 1)
    node.replace_input_with(place, value)


def _to_input(
    attribute: str, place: int, dtype: str = "int64", in_list: bool = False
) -> Callable[[ir.Node], None]:
    """The change that makes an attribute an input."""

    def change(node: ir.Node) -> None:
        elements = _take(node, attribute)
        if elements is not None:
            elements = [elements] if in_list else elements
            _append(node, place, _constant(node, elements, dtype))

    return change


def _limits_to_inputs(node: ir.Node) -> None:
    """Clip: limits have the type of what they limit."""
    for place, name in ((1, "min"), (2, "max")):
        limit = _take(node, name)
        if limit is not None:
            _append(node, place, _like(node, limit))


def _like(node: ir.Node, number: float) -> ir.Value:
    """A scalar of the type of the first input."""
    import onnx_ir as ir

    data = node.inputs[0]
    dtype = data.dtype if data is not None else None
    if dtype in (None, ir.DataType.FLOAT):
        return _constant(node, number, "float32")
    plain = _constant(node, number, "float64")
    cast = ir.node("Cast", [plain], {"to": int(dtype)})
    node.graph.insert_before(node, cast)  # type: ignore[union-attr]
    return cast.outputs[0]


def _pad(node: ir.Node) -> None:
    import onnx_ir as ir

    number = _take(node, "value")
    _to_input("pads", 1)(node)
    mode = node.attributes.get("mode")
    if number and (mode is None or mode.value == "constant"):
        _append(node, 2, _like(node, number))
    if mode is None:
        node.attributes["mode"] = ir.AttrString("mode", "constant")


def _slice(node: ir.Node) -> None:
    _to_input("starts", 1)(node)
    _to_input("ends", 2)(node)
    _to_input("axes", 3)(node)


def _flatten_first(node: ir.Node) -> None:
    """Softmax and its like worked on all axes from `axis` on, taken as one.

    Only where `axis` is the last one is that the new meaning.
    """
    import onnx_ir as ir

    axis = _take(node, "axis")
    axis = 1 if axis is None else axis
    data = node.inputs[0]
    shape = data.shape if data is not None else None
    rank = len(shape) if shape is not None else None
    if axis == -1 or (rank is not None and axis % max(rank, 1) == rank - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    result = node.outputs[0]
    size = ir.node("Shape", [data])
    flat = ir.node("Flatten", [data], {"axis": axis})
    inner = ir.node(node.op_type, [flat.outputs[0]], {"axis": -1}, name=node.name)
    back = ir.node("Reshape", [inner.outputs[0], size.outputs[0]], {"allowzero": 1})
    _replace(node, [size, flat, inner, back], result, back.outputs[0])


def _replace(node: ir.Node, made: list[ir.Node], old: ir.Value, new: ir.Value) -> None:
    """Puts `made` in the place of `node`; `new` takes the name, type and uses of `old`."""
    import onnx_ir as ir

    graph: Any = node.graph
    ir.convenience.replace_nodes_and_values(
        graph,
        insertion_point=node,
        old_nodes=[node],
        new_nodes=made,
        old_values=[old],
        new_values=[new],
    )


def _upsample(node: ir.Node) -> None:
    """Upsample, and Resize of opset 10: pixel i of the result reads from floor(i / scale)."""
    import onnx_ir as ir

    _to_input("scales", 1, "float32")(node)
    scales = node.inputs[1]
    _append(node, 2, scales)
    node.replace_input_with(1, None)
    mode = _take(node, "mode") or "nearest"
    node.op_type = "Resize"
    for name, word in (
        ("mode", "linear" if mode in ("linear", "bilinear") else mode),
        ("coordinate_transformation_mode", "asymmetric"),
        ("nearest_mode", "floor"),
    ):
        node.attributes[name] = ir.AttrString(name, word)


def _resize(node: ir.Node) -> None:
    """`tf_half_pixel_for_nn` reads at half_pixel + 0.5, which another rounding expresses."""
    import onnx_ir as ir

    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is None or mode.value != "tf_half_pixel_for_nn":
        return
    given = node.attributes.get("nearest_mode")
    rounding = "round_prefer_floor" if given is None else str(given.value)
    same = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}
    if rounding not in same:
        raise _no_counterpart(node, f"tf_half_pixel_for_nn with nearest_mode {rounding}")
    for name, word in (
        ("coordinate_transformation_mode", "half_pixel"),
        ("nearest_mode", same[rounding]),
    ):
        node.attributes[name] = ir.AttrString(name, word)


def _renamed_modes(node: ir.Node) -> None:
    import onnx_ir as ir

    mode = node.attributes.get("mode")
    word = {"bilinear": "linear", "bicubic": "cubic"}.get(mode.value, mode.value) if mode else None
    node.attributes["mode"] = ir.AttrString("mode", word or "linear")


def _default(name: str, word: str) -> Callable[[ir.Node], None]:
    """The change that writes down a default that moved."""

    def change(node: ir.Node) -> None:
        import onnx_ir as ir

        if name not in node.attributes:
            node.attributes[name] = ir.AttrString(name, word)

    return change


def _drop(name: str, only: Any = None) -> Callable[[ir.Node], None]:
    """The change that forgets an attribute; a value other than `only` has no counterpart."""

    def change(node: ir.Node) -> None:
        value = _take(node, name)
        if only is not None and value not in (None, only):
            raise _no_counterpart(node, f"{name}={value}")

    return change


def _per_channel(node: ir.Node) -> None:
    """GroupNormalization of opset 18 had one scale and bias per group: each is repeated.

    A column per group is widened to the channels of the group, and read row by row.
    """
    import onnx_ir as ir

    groups = node.attributes["num_groups"].value
    data, made = node.inputs[0], []
    channels = ir.node("Shape", [data], {"start": 1, "end": 2})
    count = _constant(node, [groups], "int64")
    each = ir.node("Div", [channels.outputs[0], count])
    one, flat = _constant(node, [1], "int64"), _constant(node, [-1], "int64")
    width = ir.node("Concat", [one, each.outputs[0]], {"axis": 0})
    made += [channels, each, width]
    for place in (1, 2):
        column = ir.node("Unsqueeze", [node.inputs[place], one])
        wide = ir.node("Tile", [column.outputs[0], width.outputs[0]])
        row = ir.node("Reshape", [wide.outputs[0], flat])
        made += [column, wide, row]
        node.replace_input_with(place, row.outputs[0])
    node.graph.insert_before(node, made)  # type: ignore[union-attr]


def _dft_axis(node: ir.Node) -> None:
    """The axis became an input, and its default -2 instead of 1."""
    axis = _take(node, "axis")
    _append(node, 2, _constant(node, 1 if axis is None else axis, "int64"))


def _scatter(node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _training_outputs(node: ir.Node) -> None:
    """Before opset 14, further outputs of BatchNormalization meant training."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise _no_counterpart(node, "training mode of an opset before 14")
    node.resize_outputs(1)


def _aligned(node: ir.Node) -> None:
    """Before opset 7 the second operand lay along the axes from `axis` on, not along the last."""
    axis = _take(node, "axis")
    _take(node, "broadcast")
    if axis is not None:
        _widen(node, 1, axis)


def _slope_per_channel(node: ir.Node) -> None:
    """Before opset 7 a vector of slopes lay along the channels."""
    slope = node.inputs[1]
    if slope is not None and slope.shape is not None and slope.shape != (1,):
        _widen(node, 1, 1)


def _widen(node: ir.Node, place: int, axis: int) -> None:
    """Adds axes of size 1 behind an operand, so that it begins at `axis` of the first one."""
    import onnx_ir as ir

    data, operand = node.inputs[0], node.inputs[place]
    if data is None or operand is None or data.shape is None or operand.shape is None:
        raise _no_counterpart(node, f"broadcasting along axis {axis} of an unknown shape")
    behind = len(data.shape) - axis % max(len(data.shape), 1) - len(operand.shape)
    if behind > 0:
        rank = len(operand.shape)
        axes = _constant(node, list(range(rank, rank + behind)), "int64")
        wide = ir.node("Unsqueeze", [operand, axes])
        node.graph.insert_before(node, wide)  # type: ignore[union-attr]
        node.replace_input_with(place, wide.outputs[0])


def _batched_scan(node: ir.Node) -> None:
    raise _no_counterpart(node, "a batch dimension and sequence lengths (opset 8)")


def _no_counterpart(node: ir.Node, what: str) -> UnsupportedError:
    where = node.name or ", ".join(value.name or "" for value in node.outputs)
    return UnsupportedError(
        f"{node.op_type} '{where}' uses {what}, which newer opsets no longer have.",
        hint="Export the model again at opset 14 or later.",
    )


_Change = tuple[int, Callable[["ir.Node"], None]]
_SOFTMAX: tuple[_Change, ...] = ((13, _flatten_first),)
_AXES: tuple[_Change, ...] = ((13, _to_input("axes", 1)),)
_OF_TWO = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")

_CHANGES: dict[str, tuple[_Change, ...]] = {
    **{name: ((below, _to_input("axes", 1)),) for name, below in _REDUCTIONS.items()},
    **{name: ((7, _aligned),) for name in _OF_TWO},
    "BatchNormalization": (
        (7, _drop("is_test")),
        (9, _drop("spatial", 1)),
        (14, _training_outputs),
    ),
    "Clip": ((11, _limits_to_inputs),),
    "DFT": ((20, _dft_axis),),
    "Dropout": ((7, _drop("is_test")), (12, _drop("ratio"))),
    "Gemm": ((7, _drop("broadcast")),),
    "GridSample": ((20, _renamed_modes),),
    "GroupNormalization": ((21, _per_channel),),
    "Hardmax": _SOFTMAX,
    "LogSoftmax": _SOFTMAX,
    "PRelu": ((7, _slope_per_channel),),
    "Pad": ((11, _pad),),
    "Resize": ((11, _upsample), (13, _resize)),
    "RoiAlign": ((16, _default("coordinate_transformation_mode", "output_half_pixel")),),
    "Scan": ((9, _batched_scan),),
    "Scatter": ((NEWEST + 1, _scatter),),
    "Slice": ((10, _slice),),
    "Softmax": _SOFTMAX,
    "Split": ((13, _to_input("split", 1)),),
    "Squeeze": _AXES,
    "TopK": ((10, _to_input("k", 1, in_list=True)),),
    "Unsqueeze": _AXES,
    "Upsample": ((NEWEST + 1, _upsample),),
}
"""Operator -> (the opset from which nothing is to do, the change), in order."""
