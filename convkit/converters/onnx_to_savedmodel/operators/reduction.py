"""Reductions over axes, cumulative sums and products, and the position of an extreme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    FLOATS,
    Int,
    Ints,
    known_int,
    known_ints,
    normal_axis,
    rank_of,
    scalar,
    vector,
)


def _all_axes(x: tf.Tensor) -> Any:
    return list(range(x.shape.rank)) if x.shape.rank is not None else tf.range(tf.rank(x))


def reduced(
    x: tf.Tensor,
    axes: Ints | None,
    keepdims: int,
    noop: int,
    function: Callable[[tf.Tensor, Any, bool], tf.Tensor],
) -> tf.Tensor:
    """`function(x, axes, keepdims)` over the axes that ONNX's rules for absent axes give.

    No axes means all of them, or none at all with `noop`; the function is then still applied to
    each element by itself, as the sum of squares of one number is its square.
    """
    static = known_ints(axes)
    if static is None and axes is not None:
        run_time = tf.cast(vector(axes), tf.int32)
        if not noop and run_time.shape[0] in (None, 0):
            everything = tf.cast(_all_axes(x), tf.int32)
            run_time = tf.cond(tf.size(run_time) > 0, lambda: run_time, lambda: everything)
        result = function(x, run_time, bool(keepdims))
    elif static:
        result = function(x, static, bool(keepdims))
    else:
        result = function(x, [] if noop else _all_axes(x), bool(keepdims))
    if keepdims and x.shape.rank is not None:
        result = tf.ensure_shape(result, [None] * x.shape.rank)
    return result


def _sum(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.reduce_sum(x, axes, keepdims)


def _prod(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.reduce_prod(x, axes, keepdims)


def _mean(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    if x.dtype in FLOATS:
        return tf.reduce_mean(x, axes, keepdims)
    count = tf.cast(tf.size(x, tf.int64), tf.float64)
    total = tf.reduce_sum(tf.cast(x, tf.float64), axes, keepdims)
    share = count / tf.cast(tf.size(total, tf.int64), tf.float64)
    return tf.cast(total / share, x.dtype)


def _max(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    if x.dtype == tf.bool:
        return tf.reduce_any(x, axes, keepdims)
    return tf.reduce_max(x, axes, keepdims)


def _min(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    if x.dtype == tf.bool:
        return tf.reduce_all(x, axes, keepdims)
    return tf.reduce_min(x, axes, keepdims)


def _l1(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.reduce_sum(x if x.dtype.is_unsigned else tf.abs(x), axes, keepdims)


def _sum_square(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.reduce_sum(x * x, axes, keepdims)


def _as_floats(
    function: Callable[[tf.Tensor, Any, bool], tf.Tensor],
) -> Callable[[tf.Tensor, Any, bool], tf.Tensor]:
    """A reduction that takes a root or a logarithm, in floats whatever the input is."""

    def reduction(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
        wide = x.dtype if x.dtype in (tf.float32, tf.float64) else tf.float32
        wide = tf.float64 if x.dtype.is_integer and x.dtype.size > 2 else wide
        return tf.cast(function(tf.cast(x, wide), axes, keepdims), x.dtype)

    return reduction


def _l2(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.sqrt(_sum_square(x, axes, keepdims))


def _log_sum(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.math.log(tf.reduce_sum(x, axes, keepdims))


def _log_sum_exp(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    return tf.reduce_logsumexp(x, axes, keepdims)


def _reduction(function: Callable[[tf.Tensor, Any, bool], tf.Tensor]) -> Callable[..., tf.Tensor]:
    def operator(
        x: tf.Tensor,
        axes: Ints | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> tf.Tensor:
        return reduced(x, axes, keepdims, noop_with_empty_axes, function)

    operator.__doc__ = f"ONNX Reduce with{function.__name__}."
    return operator


def _arg(
    function: Callable[..., tf.Tensor],
    x: tf.Tensor,
    axis: int,
    keepdims: int,
    last: int,
) -> tf.Tensor:
    axis = normal_axis(axis, rank_of(x))
    if last:
        length = tf.shape(x, out_type=tf.int64)[axis]
        index = length - 1 - function(tf.reverse(x, [axis]), axis, output_type=tf.int64)
    else:
        index = function(x, axis, output_type=tf.int64)
    return tf.expand_dims(index, axis) if keepdims else index


def arg_max(
    x: tf.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> tf.Tensor:
    """ONNX ArgMax."""
    return _arg(tf.argmax, x, axis, keepdims, select_last_index)


def arg_min(
    x: tf.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> tf.Tensor:
    """ONNX ArgMin."""
    return _arg(tf.argmin, x, axis, keepdims, select_last_index)


def _cumulative(
    function: Callable[..., tf.Tensor],
    x: tf.Tensor,
    axis: Int,
    exclusive: int,
    reverse: int,
) -> tf.Tensor:
    static = known_int(axis)
    along = scalar(axis, tf.int32) if static is None else static
    return function(x, along, exclusive=bool(exclusive), reverse=bool(reverse))


def cum_sum(x: tf.Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> tf.Tensor:
    """ONNX CumSum."""
    return _cumulative(tf.cumsum, x, axis, exclusive, reverse)


def cum_prod(x: tf.Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> tf.Tensor:
    """ONNX CumProd."""
    return _cumulative(tf.math.cumprod, x, axis, exclusive, reverse)


def mean_variance_normalization(x: tf.Tensor, *, axes: list[int] | None = None) -> tf.Tensor:
    """ONNX MeanVarianceNormalization.

    Source: the operator's function body, whose epsilon is 1e-9.
    """
    along = [normal_axis(axis, rank_of(x)) for axis in ([0, 2, 3] if axes is None else axes)]
    middle = tf.reduce_mean(x, along, True)
    spread = tf.sqrt(tf.reduce_mean(x * x, along, True) - middle * middle)
    return (x - middle) / (spread + tf.constant(1e-9, x.dtype))


def lp_normalization(x: tf.Tensor, *, axis: int = -1, p: int = 2) -> tf.Tensor:
    """ONNX LpNormalization; a slice of zeros stays zeros."""
    if p == 1:
        norm = tf.reduce_sum(tf.abs(x), axis, True)
    else:
        norm = tf.sqrt(tf.reduce_sum(x * x, axis, True))
    return tf.math.divide_no_nan(x, norm)


OPERATORS = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumProd": cum_prod,
    "CumSum": cum_sum,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_as_floats(_l2)),
    "ReduceLogSum": _reduction(_as_floats(_log_sum)),
    "ReduceLogSumExp": _reduction(_as_floats(_log_sum_exp)),
    "ReduceMax": _reduction(_max),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_min),
    "ReduceProd": _reduction(_prod),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_sum_square),
}
