"""Adapters for arithmetic: Mod on floats, Range in half precision, bitwise Not, Trilu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.opsets.adapters_attributes import Adapter
from convkit.opsets.scope import CannotLower, Scope, attribute, changed

_FLOATS = frozenset((1, 10, 11, 16))
"""TensorProto's numbers of float, float16, double and bfloat16."""
_SIGNED = {3: "int8", 5: "int16", 6: "int32", 7: "int64"}


def mod_28(node: Any, scope: Scope) -> list[Any]:
    """Mod 28 gives floats the sign of the divisor; before, floats had C's fmod only.

    The two differ by the divisor where the remainder is not zero and has the other sign.
    """
    from onnx import helper

    kind = scope.dtype_of(node.input[0])
    if attribute(node, "fmod", 0) or (kind and kind not in _FLOATS):
        return [node]
    if not kind:
        raise CannotLower(f"the type of '{node.input[0]}' is not known")
    divisor = node.input[1]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    held, zero = scope.hold("zero", 0, dtype)
    hints = ("remainder", "is_negative", "wants_negative", "differs", "is_zero", "moves", "moved")
    rest, below, wanted, differs, is_zero, moves, moved = (scope.fresh(hint) for hint in hints)
    some = scope.fresh("is_not_zero")
    return [
        held,
        changed(node, outputs=[rest], fmod=1),
        helper.make_node("Less", [rest, zero], [below]),
        helper.make_node("Less", [divisor, zero], [wanted]),
        helper.make_node("Xor", [below, wanted], [differs]),
        helper.make_node("Equal", [rest, zero], [is_zero]),
        helper.make_node("Not", [is_zero], [some]),
        helper.make_node("And", [differs, some], [moves]),
        helper.make_node("Add", [rest, divisor], [moved]),
        helper.make_node("Where", [moves, moved, rest], [node.output[0]]),
    ]


def range_27(node: Any, scope: Scope) -> list[Any]:
    """Range 27 added small floats, counted in a wider type, which is what casts around it do."""
    if attribute(node, "stash_type", 1) != 1:
        raise CannotLower("its stash_type is not float")
    return [changed(node, drop=("stash_type",))]


def bitwise_not(node: Any, scope: Scope) -> list[Any]:
    """BitwiseNot 18: in two's complement it is -1 - x."""
    from onnx import helper

    dtype = _SIGNED.get(scope.dtype_of(node.input[0]))
    if dtype is None:
        raise CannotLower("opset 18 brought it, and its type is not signed")
    held, name = scope.hold("minus_one", -1, dtype)
    return [held, helper.make_node("Sub", [name, node.input[0]], [node.output[0]], node.name)]


def trilu(node: Any, scope: Scope) -> list[Any]:
    """Trilu 14: a comparison of row and column numbers decides what stays."""
    from onnx import helper

    shape = scope.shape_of(node.input[0])
    dtype = scope.dtype_of(node.input[0])
    if shape is None or len(shape) < 2 or None in shape[-2:] or not dtype:
        raise CannotLower("opset 14 brought it, and the size of its matrix is not known")
    shift = scope.ints(node.input[1], "diagonal")[0] if len(node.input) > 1 else 0
    import numpy as np

    rows, columns = (size or 0 for size in shape[-2:])
    reach = np.arange(columns)[None, :] - np.arange(rows)[:, None] - shift
    stays = reach >= 0 if attribute(node, "upper", 1) else reach <= 0
    mask, mask_name = scope.hold("stays", stays, "bool")
    zero, zero_name = scope.hold("zero", 0, helper.tensor_dtype_to_np_dtype(dtype))
    inputs = [mask_name, node.input[0], zero_name]
    return [mask, zero, helper.make_node("Where", inputs, [node.output[0]], node.name)]


ADAPTERS: Mapping[tuple[str, int], Adapter] = {
    ("Mod", 28): mod_28,
    ("Range", 27): range_27,
    ("BitwiseNot", 18): bitwise_not,
    ("Trilu", 14): trilu,
}
