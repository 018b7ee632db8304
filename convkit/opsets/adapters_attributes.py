"""Adapters for attributes that an older operator lacks: dropped where they say the default.

An adapter takes a node and its scope and gives nodes written for the version before its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from convkit.opsets.scope import CannotLower, Scope, attribute, changed, input_of

_FLOAT8 = frozenset((17, 18, 19, 20))
"""TensorProto's numbers of the four 8-bit floats; `saturate` speaks of these only."""
_FLOAT8E8M0 = 24

Adapter = Callable[[Any, Scope], list[Any]]


def only_default(**defaults: Any) -> Adapter:
    """Drops attributes that are at their default, or all ones where the default is 1."""

    def adapter(node: Any, scope: Scope) -> list[Any]:
        for name, default in defaults.items():
            value = attribute(node, name, default)
            is_default = set(value) <= {default} if isinstance(value, list) else value == default
            if not is_default:
                raise CannotLower(f"its {name} is {value}")
        return [changed(node, drop=defaults)]

    return adapter


def cast(node: Any, scope: Scope) -> list[Any]:
    """Cast 19 and 24: `saturate` and `round_mode` speak of 8-bit floats only."""
    to = attribute(node, "to")
    if to in _FLOAT8 and attribute(node, "saturate", 1) != 1:
        raise CannotLower("it casts to an 8-bit float without saturation")
    if to == _FLOAT8E8M0 and attribute(node, "round_mode", "up") != "up":
        raise CannotLower("its round_mode is not the default")
    return [changed(node, drop=("saturate", "round_mode"))]


def cast_24(node: Any, scope: Scope) -> list[Any]:
    """Cast 24 added `round_mode`, which speaks of the exponent-only float."""
    if attribute(node, "to") == _FLOAT8E8M0:
        raise CannotLower("it casts to a type of opset 23 and later, with a rounding mode")
    return [changed(node, drop=("round_mode",))]


def cast_like(node: Any, scope: Scope) -> list[Any]:
    """CastLike is Cast to the type of its second input, which the file fixes."""
    to = scope.dtype_of(node.input[1])
    if not to:
        raise CannotLower(f"the type of '{node.input[1]}' is not known")
    plain = changed(node, operator="Cast", inputs=node.input[:1], to=to)
    return [plain if to in _FLOAT8 else changed(plain, drop=("saturate", "round_mode"))]


def dequantize_23(node: Any, scope: Scope) -> list[Any]:
    """DequantizeLinear 23 added `output_dtype`; before, the scale's type decides."""
    wanted = attribute(node, "output_dtype", 0)
    if wanted and wanted != scope.dtype_of(node.input[1]):
        raise CannotLower("its output_dtype is not the type of its scale")
    return [changed(node, drop=("output_dtype",))]


def quantize_23(node: Any, scope: Scope) -> list[Any]:
    """QuantizeLinear 23 added `precision`; before, the division has the type of x."""
    precision = attribute(node, "precision", 0)
    if precision and precision != scope.dtype_of(node.input[0]):
        raise CannotLower("its precision is not the type of its input")
    return [changed(node, drop=("precision",))]


def quantize_21(node: Any, scope: Scope) -> list[Any]:
    """QuantizeLinear 21 added blocks and `output_dtype`; before, the zero point's type decides."""
    import numpy as np
    from onnx import TensorProto, helper

    if attribute(node, "block_size", 0):
        raise CannotLower("it quantizes in blocks")
    wanted = attribute(node, "output_dtype", 0)
    plain = changed(node, drop=("block_size", "output_dtype"))
    if input_of(node, 2) or wanted in (0, TensorProto.UINT8):
        return [plain]
    shape = scope.shape_of(node.input[1])
    if shape is None or None in shape:
        raise CannotLower("the shape of its scale is not known")
    sizes = [size or 0 for size in shape]
    zero = scope.fresh("zero_point")
    value = helper.make_tensor(zero, wanted, sizes, np.zeros(sizes).reshape(-1).tolist())
    scope.constants[zero] = value
    constant = helper.make_node("Constant", [], [zero], value=value)
    return [constant, changed(plain, inputs=[*node.input[:2], zero])]


def quantize_19(node: Any, scope: Scope) -> list[Any]:
    """QuantizeLinear 19 added 8-bit floats, of which `saturate` speaks."""
    if input_of(node, 2) and scope.dtype_of(node.input[2]) in _FLOAT8:
        raise CannotLower("it quantizes to an 8-bit float")
    return [changed(node, drop=("saturate",))]


def grid_sample(node: Any, scope: Scope) -> list[Any]:
    """GridSample 20 renamed the modes and added volumes."""
    if scope.rank_of(node.input[0]) != 4:
        raise CannotLower("it samples from something else than images")
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = attribute(node, "mode", "linear")
    return [changed(node, mode=names.get(mode, mode))]


def pad_19(node: Any, scope: Scope) -> list[Any]:
    """Pad 19 added the mode `wrap`."""
    if attribute(node, "mode", "constant") == "wrap":
        raise CannotLower("its mode is wrap")
    return [node]


def resize_19(node: Any, scope: Scope) -> list[Any]:
    """Resize 19 added `half_pixel_symmetric`."""
    if attribute(node, "coordinate_transformation_mode") == "half_pixel_symmetric":
        raise CannotLower("its coordinates are half_pixel_symmetric")
    return [node]


def roi_align(node: Any, scope: Scope) -> list[Any]:
    """RoiAlign 16 made half pixels the default; before, there were none."""
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode != "output_half_pixel":
        raise CannotLower("its coordinates are half_pixel")
    return [changed(node, drop=("coordinate_transformation_mode",))]


def scatter_18(node: Any, scope: Scope) -> list[Any]:
    """ScatterElements and ScatterND 18 added the reductions max and min."""
    if attribute(node, "reduction", "none") in ("max", "min"):
        raise CannotLower(f"its reduction is {attribute(node, 'reduction')}")
    return [node]


def attention_24(node: Any, scope: Scope) -> list[Any]:
    """Attention 24 added the seventh input, lengths without padding."""
    if input_of(node, 6):
        raise CannotLower("it takes lengths without padding")
    return [node]


def pool_22(node: Any, scope: Scope) -> list[Any]:
    """MaxPool and AveragePool 22 leave out windows that begin in the padding after the end.

    Source: with n = ceil((size + pads - kernel) / stride) + 1 windows the last begins before
    size + pads - kernel + stride, so before the padding where stride + end pad <= kernel.
    """
    if not attribute(node, "ceil_mode", 0):
        return [node]
    kernel = list(attribute(node, "kernel_shape"))
    rank = len(kernel)
    dilations = attribute(node, "dilations") or [1] * rank
    strides = attribute(node, "strides") or [1] * rank
    pads = attribute(node, "pads") or [0] * 2 * rank
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if strides[axis] + pads[rank + axis] > reach:
            raise CannotLower("its last window may begin in the padding")
    return [node]


def optional_get(node: Any, scope: Scope) -> list[Any]:
    """OptionalGetElement 18 takes what is no optional value too, and gives it back."""
    kind = scope.type_of(node.input[0])
    if kind is None or kind.HasField("optional_type"):
        return [node]
    return [changed(node, operator="Identity")]


def optional_has(node: Any, scope: Scope) -> list[Any]:
    """OptionalHasElement 18 takes tensors, which are always there, and no input, which is not."""
    from onnx import TensorProto, helper

    name = input_of(node, 0)
    kind = scope.type_of(name) if name else None
    if name and (kind is None or kind.HasField("optional_type")):
        return [node]
    value = helper.make_tensor("has", TensorProto.BOOL, [], [bool(name)])
    return [helper.make_node("Constant", [], list(node.output), node.name, value=value)]


ADAPTERS: Mapping[tuple[str, int], Adapter] = {
    ("Attention", 25): only_default(left_window_size=-1, right_window_size=-1),
    ("Attention", 24): attention_24,
    ("AveragePool", 22): pool_22,
    ("MaxPool", 22): pool_22,
    ("OptionalGetElement", 18): optional_get,
    ("OptionalHasElement", 18): optional_has,
    ("AveragePool", 19): only_default(dilations=1),
    ("BatchNormalization", 14): only_default(training_mode=0),
    ("Cast", 24): cast_24,
    ("Cast", 19): cast,
    **{("CastLike", version): cast_like for version in (15, 19, 21, 23, 24, 25)},
    ("DequantizeLinear", 23): dequantize_23,
    ("DequantizeLinear", 21): only_default(block_size=0),
    ("GridSample", 20): grid_sample,
    ("LpPool", 18): only_default(ceil_mode=0, dilations=1),
    ("Pad", 19): pad_19,
    ("QuantizeLinear", 23): quantize_23,
    ("QuantizeLinear", 21): quantize_21,
    ("QuantizeLinear", 19): quantize_19,
    ("Resize", 19): resize_19,
    ("RoiAlign", 16): roi_align,
    ("ScatterElements", 18): scatter_18,
    ("ScatterElements", 16): only_default(reduction="none"),
    ("ScatterND", 18): scatter_18,
    ("ScatterND", 16): only_default(reduction="none"),
}
