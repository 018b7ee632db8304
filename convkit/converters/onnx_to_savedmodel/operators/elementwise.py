"""Arithmetic on each element: functions of one tensor, and of tensors that broadcast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    FLOATS,
    UNSIGNED,
    Number,
    computed_in,
    known,
)

_TO_INT32 = {dtype: tf.int32 for dtype in (tf.int8, tf.int16, tf.uint8, tf.uint16)}
_TO_INT64 = {**_TO_INT32, tf.uint32: tf.int64, tf.uint64: tf.int64}
_HALVES = {tf.float16: tf.float32, tf.bfloat16: tf.float32}


def _same(x: tf.Tensor) -> tf.Tensor:
    return tf.identity(x)


def _unary(function: Callable[..., Any]) -> Callable[[tf.Tensor], tf.Tensor]:
    """An operator of one input that TensorFlow has by another name."""

    def operator(x: tf.Tensor) -> tf.Tensor:
        return function(x)

    operator.__doc__ = f"TensorFlow's `{function.__name__}`."
    return operator


def _binary(function: Callable[..., Any]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """An operator of two inputs that TensorFlow has by another name."""

    def operator(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return function(a, b)

    operator.__doc__ = f"TensorFlow's `{function.__name__}`."
    return operator


def absolute(x: tf.Tensor) -> tf.Tensor:
    """ONNX Abs; unsigned integers are their own."""
    return _same(x) if x.dtype in UNSIGNED else tf.abs(x)


def negative(x: tf.Tensor) -> tf.Tensor:
    """ONNX Neg."""
    return tf.negative(x)


def sign(x: tf.Tensor) -> tf.Tensor:
    """ONNX Sign."""
    return tf.cast(tf.not_equal(x, 0), x.dtype) if x.dtype in UNSIGNED else tf.sign(x)


def round_half_even(x: tf.Tensor) -> tf.Tensor:
    """ONNX Round: halves go to the even neighbour."""
    return tf.round(x)


def reciprocal(x: tf.Tensor) -> tf.Tensor:
    """ONNX Reciprocal."""
    return tf.math.reciprocal(x)


def divide(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """ONNX Div: integers are truncated towards zero."""
    return tf.realdiv(a, b) if a.dtype in FLOATS else tf.truncatediv(a, b)


def modulo(a: tf.Tensor, b: tf.Tensor, *, fmod: int = 0) -> tf.Tensor:
    """ONNX Mod: the sign of the divisor, with `fmod` that of the dividend."""
    if a.dtype in FLOATS:
        return _float_fmod(a, b) if fmod else _float_mod(a, b)
    if not fmod:
        return tf.math.floormod(a, b)
    if a.dtype in UNSIGNED:
        return tf.math.floormod(a, b)
    return computed_in(_TO_INT32, tf.truncatemod, a, b)


def _float_fmod(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return computed_in(_HALVES, tf.truncatemod, a, b)


def _float_mod(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    # TensorFlow's floormod is fmod plus the divisor where signs differ, which is exact; a zero
    # takes the divisor's sign and an infinite divisor stands for itself, as ONNX lists.
    rest = _float_fmod(a, b)
    differs = tf.logical_and(tf.not_equal(rest, 0), tf.not_equal(tf.less(rest, 0), tf.less(b, 0)))
    result = tf.where(differs, rest + b, rest)
    zero = tf.where(_is_negative(b), tf.constant(-0.0, a.dtype), tf.constant(0.0, a.dtype))
    return tf.where(tf.equal(result, 0), zero + tf.zeros_like(result), result)


def _is_negative(x: tf.Tensor) -> tf.Tensor:
    """True where the sign bit is set, minus zero included."""
    return tf.logical_or(tf.less(x, 0), tf.logical_and(tf.equal(x, 0), tf.less(1 / x, 0)))


def power(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """ONNX Pow: the result has the dtype of the base."""
    if x.dtype in FLOATS:
        if y.dtype in FLOATS or y.dtype == x.dtype:
            wide = y.dtype if y.dtype.size > x.dtype.size else x.dtype
            return tf.cast(tf.pow(tf.cast(x, wide), tf.cast(y, wide)), x.dtype)
        return tf.pow(x, tf.cast(y, x.dtype))
    if y.dtype in FLOATS:
        wide = tf.float64 if x.dtype.size > 2 else tf.float32
        return tf.cast(tf.pow(tf.cast(x, wide), tf.cast(y, wide)), x.dtype)
    return _integer_power(tf.cast(x, tf.int64), tf.cast(y, tf.int64), x.dtype)


def _integer_power(x: tf.Tensor, y: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    static = known(y)
    result = tf.pow(x, tf.maximum(y, 0))
    if static is None or (static < 0).any():
        # TensorFlow refuses negative exponents; the truncated inverse is 1, -1 or 0.
        odd = tf.equal(tf.bitwise.bitwise_and(y, 1), 1)
        unit = tf.where(odd, x, tf.ones_like(x))
        inverse = tf.where(tf.equal(tf.abs(x), 1), unit, tf.zeros_like(unit))
        result = tf.where(tf.less(y, 0), inverse, result)
    return tf.cast(result, dtype)


def maximum(*inputs: tf.Tensor) -> tf.Tensor:
    """ONNX Max; a NaN wins."""
    return _same(functools.reduce(tf.maximum, inputs))


def minimum(*inputs: tf.Tensor) -> tf.Tensor:
    """ONNX Min; a NaN wins."""
    return _same(functools.reduce(tf.minimum, inputs))


def total(*inputs: tf.Tensor) -> tf.Tensor:
    """ONNX Sum."""
    return _same(functools.reduce(tf.add, inputs))


def mean(*inputs: tf.Tensor) -> tf.Tensor:
    """ONNX Mean."""
    return total(*inputs) / tf.constant(len(inputs), inputs[0].dtype)


def clip(
    x: tf.Tensor,
    low: Number | None = None,
    high: Number | None = None,
) -> tf.Tensor:
    """ONNX Clip: the upper bound wins where the bounds cross."""
    if low is not None:
        x = tf.maximum(x, tf.reshape(tf.cast(low, x.dtype), []))
    if high is not None:
        x = tf.minimum(x, tf.reshape(tf.cast(high, x.dtype), []))
    return _same(x)


def bit_shift(x: tf.Tensor, y: tf.Tensor, *, direction: str) -> tf.Tensor:
    """ONNX BitShift: a shift by all bits or more leaves only copies of the sign."""
    bits = x.dtype.size * 8
    unsigned = x.dtype in UNSIGNED
    wide = tf.bitcast(y, _signed(y.dtype)) if unsigned else y
    outside = tf.greater_equal(y, bits) if unsigned else tf.logical_or(wide < 0, wide >= bits)
    inside = tf.where(outside, tf.zeros_like(y), y)
    if direction == "LEFT":
        return tf.where(outside, tf.zeros_like(x), tf.bitwise.left_shift(x, inside))
    shifted = tf.bitwise.right_shift(x, inside)
    rest = tf.zeros_like(x) if unsigned else tf.where(x < 0, -tf.ones_like(x), tf.zeros_like(x))
    return tf.where(outside, rest, shifted)


def _signed(dtype: tf.DType) -> tf.DType:
    return {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}[dtype.size]


def erf(x: tf.Tensor) -> tf.Tensor:
    """ONNX Erf; integers give integers."""
    if x.dtype in FLOATS:
        return tf.math.erf(x)
    return tf.cast(tf.math.erf(tf.cast(x, tf.float32)), x.dtype)


def where(condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """ONNX Where."""
    return tf.where(condition, x, y)


def is_inf(x: tf.Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> tf.Tensor:
    """ONNX IsInf."""
    x = x if x.dtype in FLOATS else tf.cast(x, tf.float32)
    if detect_negative and detect_positive:
        return tf.math.is_inf(x)
    if detect_positive:
        return tf.equal(x, tf.constant(math.inf, x.dtype))
    if detect_negative:
        return tf.equal(x, tf.constant(-math.inf, x.dtype))
    return tf.zeros_like(x, tf.bool)


def is_nan(x: tf.Tensor) -> tf.Tensor:
    """ONNX IsNaN."""
    return tf.math.is_nan(x if x.dtype in FLOATS else tf.cast(x, tf.float32))


OPERATORS = {
    "Abs": absolute,
    "Acos": _unary(tf.acos),
    "Acosh": _unary(tf.acosh),
    "Add": _binary(tf.add),
    "And": _binary(tf.logical_and),
    "Asin": _unary(tf.asin),
    "Asinh": _unary(tf.asinh),
    "Atan": _unary(tf.atan),
    "Atanh": _unary(tf.atanh),
    "BitShift": bit_shift,
    "BitwiseAnd": _binary(tf.bitwise.bitwise_and),
    "BitwiseNot": _unary(tf.bitwise.invert),
    "BitwiseOr": _binary(tf.bitwise.bitwise_or),
    "BitwiseXor": _binary(tf.bitwise.bitwise_xor),
    "Ceil": _unary(tf.math.ceil),
    "Clip": clip,
    "Cos": _unary(tf.cos),
    "Cosh": _unary(tf.cosh),
    "Div": divide,
    "Equal": _binary(tf.equal),
    "Erf": erf,
    "Exp": _unary(tf.exp),
    "Floor": _unary(tf.floor),
    "Greater": _binary(tf.greater),
    "GreaterOrEqual": _binary(tf.greater_equal),
    "IsInf": is_inf,
    "IsNaN": is_nan,
    "Less": _binary(tf.less),
    "LessOrEqual": _binary(tf.less_equal),
    "Log": _unary(tf.math.log),
    "Max": maximum,
    "Mean": mean,
    "Min": minimum,
    "Mod": modulo,
    "Mul": _binary(tf.multiply),
    "Neg": negative,
    "Not": _unary(tf.logical_not),
    "Or": _binary(tf.logical_or),
    "Pow": power,
    "Reciprocal": reciprocal,
    "Round": round_half_even,
    "Sign": sign,
    "Sin": _unary(tf.sin),
    "Sinh": _unary(tf.sinh),
    "Sqrt": _unary(tf.sqrt),
    "Sub": _binary(tf.subtract),
    "Sum": total,
    "Tan": _unary(tf.tan),
    "Tanh": _unary(tf.tanh),
    "Where": where,
    "Xor": _binary(tf.not_equal),
}
