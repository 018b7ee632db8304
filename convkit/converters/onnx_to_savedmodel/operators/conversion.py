"""Conversions between dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import FLOATS

_FLOAT8 = {
    name: getattr(tf.dtypes.experimental, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(tf.dtypes.experimental, name)
}
"""The 8-bit floats that this TensorFlow has, by name."""
_NIBBLES = {tf.dtypes.experimental.int4: (-8, 7), tf.dtypes.experimental.uint4: (0, 15)}


def cast(
    x: tf.Tensor, *, to: tf.DType | None, saturate: int = 1, round_mode: str = "up"
) -> tf.Tensor:
    """ONNX Cast."""
    del round_mode  # speaks of float8e8m0 only, which TensorFlow has not
    if to is None:
        raise ValueError("Cast without a dtype that TensorFlow has")
    return converted(x, to, bool(saturate))


def cast_like(
    x: tf.Tensor, target: tf.Tensor, *, saturate: int = 1, round_mode: str = "up"
) -> tf.Tensor:
    """ONNX CastLike."""
    return cast(x, to=target.dtype, saturate=saturate, round_mode=round_mode)


def converted(x: tf.Tensor, dtype: tf.DType, saturate: bool = True) -> tf.Tensor:
    """`x` in another dtype by ONNX's rules."""
    if x.dtype == dtype:
        return tf.identity(x)
    if x.dtype == tf.string:
        return _from_string(x, dtype)
    if dtype == tf.string:
        return _to_string(x)
    if dtype == tf.bool:
        return tf.not_equal(x if x.dtype.size > 1 or x.dtype.is_integer else _wide(x), 0)
    if dtype in _FLOAT8.values():
        return _to_float8(x, dtype, saturate)
    if dtype in _NIBBLES:
        return _to_nibbles(x, dtype)
    if x.dtype in _NIBBLES:
        return tf.cast(tf.cast(x, tf.int8 if x.dtype.min < 0 else tf.uint8), dtype)
    return tf.cast(x, dtype)


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def _to_nibbles(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Floats are rounded towards zero; of integers the lowest four bits stay."""
    if x.dtype in FLOATS or x.dtype in _FLOAT8.values():
        x = tf.cast(tf.cast(x, tf.float32), tf.int32)
    signed = tf.bitwise.bitwise_and(tf.cast(x, tf.int32), 15)
    if _NIBBLES[dtype][0] < 0:
        signed = tf.where(signed > 7, signed - 16, signed)
    return tf.cast(tf.cast(signed, tf.int8), dtype)


def _to_float8(x: tf.Tensor, dtype: tf.DType, saturate: bool) -> tf.Tensor:
    x = x if x.dtype in FLOATS else tf.cast(x, tf.float32)
    wide = tf.cast(x, tf.float32)
    if not saturate:
        return tf.cast(wide, dtype)
    greatest = float(np.finfo(np.float32).max) if dtype.max is None else float(dtype.max)
    bounded = tf.clip_by_value(wide, -greatest, greatest)
    # Clipping keeps NaN a NaN.
    return tf.cast(tf.where(tf.math.is_nan(wide), wide, bounded), dtype)


def _from_string(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if dtype == tf.bool:
        return tf.not_equal(tf.strings.to_number(x, tf.float64), 0)
    if dtype.is_integer:
        return tf.cast(tf.strings.to_number(x, tf.int64), dtype)
    lower = tf.strings.lower(x)
    plain = tf.strings.regex_replace(lower, r"^\+?(inf)$", r"\1")
    kind = tf.float64 if dtype == tf.float64 else tf.float32
    return tf.cast(tf.strings.to_number(plain, kind), dtype)


def _to_string(x: tf.Tensor) -> tf.Tensor:
    """The shortest decimal text, as NumPy prints it."""
    if x.dtype.is_integer or x.dtype == tf.bool:
        return tf.strings.as_string(x)
    text = tf.strings.as_string(x, shortest=True)
    whole = tf.strings.regex_full_match(text, r"-?\d+")
    text = tf.where(whole, tf.strings.join([text, ".0"]), text)
    return tf.where(
        tf.math.is_nan(x),
        "NaN",
        tf.where(tf.math.is_inf(x), tf.where(x > 0, "INF", "-INF"), text),
    )


def bit_cast(x: tf.Tensor, *, to: tf.DType | None) -> tf.Tensor:
    """ONNX BitCast: the same bits in a dtype of the same width."""
    if to is None:
        raise ValueError("BitCast without a dtype that TensorFlow has")
    if x.dtype == tf.bool or to == tf.bool:
        return tf.not_equal(bit_cast(x, to=tf.uint8), 0) if to == tf.bool else _of_bool(x, to)
    return tf.bitcast(x, to)


def _of_bool(x: tf.Tensor, to: tf.DType) -> tf.Tensor:
    return tf.bitcast(tf.cast(x, tf.uint8), to)


def identity(x: Any) -> Any:
    """ONNX Identity on a tensor, a sequence or an optional."""
    return tf.identity(x) if tf.is_tensor(x) else x


OPERATORS = {
    "BitCast": bit_cast,
    "Cast": cast,
    "CastLike": cast_like,
    "Identity": identity,
}
