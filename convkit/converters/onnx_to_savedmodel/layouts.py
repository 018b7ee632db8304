"""Which operators run channels-last, and what that does to their axes.

TensorFlow's portable kernels of convolution and pooling want the channels at the end. A value that
such an operator made is kept so, and every operator here follows: elementwise ones as they are,
others with their axes renumbered. A transpose is left only where some operator needs the ONNX
order, as a reshape to a matrix does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from convkit.converters.onnx_to_savedmodel.held import Held, to_first, to_last

STRONG = frozenset(
    (
        "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv",
        "Resize",
    )
)  # fmt: skip
"""Operators for which the channels are moved to the end if they are not there yet."""

_SAME = frozenset(
    (
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil",
        "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
        "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
        "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    )
)  # fmt: skip
"""Each element by itself; further inputs are single numbers."""

_BROADCAST = frozenset(
    (
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal",
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul",
        "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
    )
)  # fmt: skip

_REDUCTIONS = frozenset(
    (
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    )
)  # fmt: skip


@dataclass
class LastCall:
    """An operator called on channels-last tensors.

    Attributes:
        inputs: tensors, channels-last where they have the axes for it; Held where nothing changes.
        keywords: attributes that change.
        is_last: whether the results are channels-last; else they are in the ONNX order.
    """

    inputs: list[Any]
    keywords: dict[str, Any] = field(default_factory=dict)
    is_last: bool = True


def last_call(
    op_type: str, inputs: Sequence[Held | None], keywords: dict[str, Any], has_layout: bool
) -> LastCall | None:
    """How the operator runs channels-last; None where it runs in the ONNX order."""
    data = inputs[0] if inputs else None
    if has_layout:
        return _with_layout(op_type, inputs) if isinstance(data, Held) else None
    rule = _RULES.get(op_type)
    if rule is None or not any(isinstance(x, Held) and x.is_channels_last for x in inputs):
        return None
    return rule(inputs, keywords)


def _with_layout(op_type: str, inputs: Sequence[Held | None]) -> LastCall | None:
    data = inputs[0]
    assert data is not None
    if (data.rank or 0) < 3 or not (data.is_channels_last or op_type in STRONG):
        return None
    return LastCall([data.last, *inputs[1:]], {"layout": "NHWC"})


def _same(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    data = inputs[0]
    if data is None or not data.is_channels_last:
        return None
    return LastCall([data.last, *inputs[1:]])


def _broadcast(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    ranks = [-1 if x is None or x.rank is None else x.rank for x in inputs]
    rank = max(ranks)
    if min(ranks) < 0 or any(
        x is not None and x.is_channels_last and x.rank != rank for x in inputs
    ):
        return None
    return LastCall([_widened(x, rank) for x in inputs if x is not None])


def _widened(value: Held, rank: int) -> Any:
    """The value channels-last, with axes of 1 before its own up to `rank`; a number as it is."""
    import tensorflow as tf

    if value.rank == rank:
        return value.last
    if value.rank == 0:
        return value.first
    shape = value.shape
    assert shape is not None
    ones = [1] * (rank - len(shape))
    if value.array is not None:
        return tf.constant(value.array.reshape([*ones, *shape]).transpose(to_last(rank)))
    for _ in ones:
        value = Held(first=tf.expand_dims(value.first, 0))
    return value.last


def _along_axis(default: int) -> Callable[..., LastCall | None]:
    def rule(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
        data = inputs[0]
        if data is None or not data.is_channels_last or data.rank is None:
            return None
        axis = last_axis(keywords.get("axis", default), data.rank)
        return LastCall([data.last, *inputs[1:]], {"axis": axis})

    return rule


def _concat(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    rank = next((x.rank for x in inputs if x is not None and x.is_channels_last), None)
    if rank is None:
        return None
    axis = last_axis(keywords["axis"], rank)
    return LastCall([None if x is None else x.last for x in inputs], {"axis": axis})


def _keeping(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    """ArgMax and ArgMin that keep the axis."""
    return _along_axis(0)(inputs, keywords) if keywords.get("keepdims", 1) else None


def _quantize(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    """One scale for all, or one per channel; blocks stay in the ONNX order."""
    scale = inputs[1]
    if scale is None or scale.rank is None or scale.rank > 1 or keywords.get("block_size"):
        return None
    if scale.rank == 0:
        return _same(inputs, keywords)
    return _along_axis(1)(inputs, keywords)


def _reduce(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    data = inputs[0]
    axes = _ints(inputs, 1)
    if data is None or not data.is_channels_last or data.rank is None or not axes:
        return None
    rank = data.rank
    places = {axis % rank for axis in axes}
    along = sorted(last_axis(axis, rank) for axis in places)
    if keywords.get("keepdims", 1):
        return LastCall([data.last, along])
    left = [axis for axis in range(rank) if axis not in places]
    left_last = [axis for axis in [0, *range(2, rank), 1] if axis not in places]
    if left == left_last:
        return LastCall([data.last, along], is_last=False)
    if left_last == [left[index] for index in to_last(len(left))] and len(left) > 2:
        return LastCall([data.last, along])
    return None


def _pad(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    data, pads = inputs[0], _ints(inputs, 1)
    if data is None or not data.is_channels_last or data.rank is None or pads is None:
        return None
    axes = _ints(inputs, 3)
    if len(inputs) > 3 and inputs[3] is not None and axes is None:
        return None
    axes = list(range(data.rank)) if axes is None else axes
    along = [last_axis(axis, data.rank) for axis in axes]
    return LastCall([data.last, inputs[1], inputs[2] if len(inputs) > 2 else None, along])


def _slice(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    data, starts = inputs[0], inputs[1]
    if data is None or not data.is_channels_last or data.rank is None or starts is None:
        return None
    axes = _ints(inputs, 3)
    if axes is None:
        if starts.shape is None or starts.shape[0] is None or _given(inputs, 3):
            return None
        axes = list(range(starts.shape[0]))
    along = [last_axis(axis, data.rank) for axis in axes]
    return LastCall([data.last, starts, inputs[2], along, *inputs[4:]])


def _transpose(inputs: Sequence[Held | None], keywords: dict[str, Any]) -> LastCall | None:
    """A transpose between the two orders is none at all; others see the axes where they are."""
    data = inputs[0]
    if data is None or data.rank is None:
        return None
    order = keywords.get("perm") or list(range(data.rank))[::-1]
    along = [last_axis(axis, data.rank) for axis in order]
    return LastCall([data.last], {"perm": along}, is_last=False)


def _ints(inputs: Sequence[Held | None], index: int) -> list[int] | None:
    """The integers of an input where they are known."""
    value = inputs[index] if _given(inputs, index) else None
    known = None if value is None else value.known()
    return None if known is None else [int(number) for number in known.reshape(-1)]


def _given(inputs: Sequence[Held | None], index: int) -> bool:
    return index < len(inputs) and inputs[index] is not None


def last_axis(axis: int, rank: int) -> int:
    """Where an axis of the ONNX order stands channels-last."""
    return to_first(rank)[axis % rank]


_RULES: dict[str, Callable[..., LastCall | None]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _along_axis(-1)),
    **dict.fromkeys(("ArgMax", "ArgMin"), _keeping),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "Concat": _concat,
    "LpNormalization": _along_axis(-1),
    "Pad": _pad,
    "Slice": _slice,
    "Split": _along_axis(0),
    "Transpose": _transpose,
}
