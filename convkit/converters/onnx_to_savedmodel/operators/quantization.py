"""Quantized numbers: to and from them, and products that add up integers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import (
    channel_axis,
    from_last,
    to_last,
)
from convkit.converters.onnx_to_savedmodel.operators.conversion import converted
from convkit.converters.onnx_to_savedmodel.operators.convolution import (
    conv_kernel,
    convolved,
    kernel_extents,
)
from convkit.converters.onnx_to_savedmodel.operators.values import (
    FLOATS,
    normal_axis,
    product,
    rank_of,
    sizes_of,
)
from convkit.converters.onnx_to_savedmodel.operators.windows import windows

_INT4, _UINT4 = tf.dtypes.experimental.int4, tf.dtypes.experimental.uint4
_BOUNDS = {_INT4: (-8, 7), _UINT4: (0, 15)}
_FLOAT32_EXACT = 1 << 24
"""Integers up to here are exact in float32."""


def is_integer(dtype: tf.DType) -> bool:
    """Whether quantized numbers of this dtype are integers, not 8-bit floats."""
    return bool(dtype.is_integer) or dtype in _BOUNDS


def bounds_of(dtype: tf.DType) -> tuple[int, int]:
    """The least and greatest quantized number."""
    return _BOUNDS.get(dtype) or (dtype.min, dtype.max)


def spread(values: tf.Tensor, x: tf.Tensor, axis: int, block_size: int) -> tf.Tensor:
    """Scales or zero points shaped to broadcast over `x`: one, one per slice, or one per block."""
    if rank_of(values) == 0 or (values.shape.num_elements() == 1 and not block_size):
        return tf.reshape(values, [])
    axis = normal_axis(axis, rank_of(x))
    if rank_of(values) == 1 and not block_size:
        return tf.reshape(values, [-1 if n == axis else 1 for n in range(rank_of(x))])
    length = sizes_of(x)[axis]
    repeated = tf.repeat(values, block_size or length // sizes_of(values)[axis], axis=axis)
    index: list[Any] = [slice(None)] * rank_of(x)
    index[axis] = slice(None, tf.cast(length, tf.int32) if tf.is_tensor(length) else length)
    return repeated[tuple(index)]


def quantize_linear(
    x: tf.Tensor,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: tf.DType | None = None,
    precision: tf.DType | None = None,
    saturate: int = 1,
) -> tf.Tensor:
    """ONNX QuantizeLinear: rounded to the nearest, halves to even, then bounded."""
    dtype = output_dtype or (tf.uint8 if y_zero_point is None else y_zero_point.dtype)
    wide = precision or y_scale.dtype
    if wide not in FLOATS:
        wide = tf.float32
    scale = spread(tf.cast(y_scale, wide), x, axis, block_size)
    scaled = tf.cast(x, wide) / scale
    if not is_integer(dtype):
        return converted(scaled, dtype, bool(saturate))
    low, high = bounds_of(dtype)
    rounded = tf.cast(tf.round(scaled), tf.float32)
    if y_zero_point is not None:
        zero = converted(y_zero_point, tf.int32)
        rounded += tf.cast(spread(zero, x, axis, block_size), tf.float32)
    return converted(tf.cast(tf.clip_by_value(rounded, low, high), tf.int32), dtype)


def dequantize_linear(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: tf.DType | None = None,
) -> tf.Tensor:
    """ONNX DequantizeLinear: (x - zero point) * scale."""
    dtype = output_dtype or x_scale.dtype
    wide = tf.float32 if x_scale.dtype not in FLOATS else x_scale.dtype
    if is_integer(x.dtype) and x_zero_point is not None:
        numbers = converted(x, tf.int32)
        zero = converted(x_zero_point, tf.int32)
        plain = tf.cast(numbers - spread(zero, x, axis, block_size), wide)
    else:
        plain = tf.cast(converted(x, tf.float32) if x.dtype.size == 1 else x, wide)
    return tf.cast(plain * spread(tf.cast(x_scale, wide), x, axis, block_size), dtype)


def dynamic_quantize_linear(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """ONNX DynamicQuantizeLinear to uint8 over the range of `x`, which always holds zero."""
    low = tf.minimum(tf.reduce_min(x), 0)
    high = tf.maximum(tf.reduce_max(x), 0)
    scale = (high - low) / tf.constant(255, x.dtype)
    scale = tf.where(tf.equal(scale, 0), tf.ones_like(scale), scale)
    zero = tf.clip_by_value(tf.round(-low / scale), 0, 255)
    y = tf.clip_by_value(tf.round(x / scale) + zero, 0, 255)
    return tf.cast(y, tf.uint8), scale, tf.cast(zero, tf.uint8)


def centred(x: tf.Tensor, zero_point: tf.Tensor | None, axis: int) -> tf.Tensor:
    """Integers as int32 without their zero point, which may have one value per slice of `axis`."""
    numbers = converted(x, tf.int32)
    if zero_point is None:
        return numbers
    zero = converted(zero_point, tf.int32)
    if rank_of(zero) == 0 or zero.shape.num_elements() == 1:
        return numbers - tf.reshape(zero, [])
    if rank_of(zero) == 1:
        return numbers - spread(zero, numbers, axis, 0)
    return numbers - zero


def exact_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The matrix product of int32 numbers of at most 9 bits, in floats that hold every sum."""
    depth = sizes_of(a)[-1]
    is_small = not tf.is_tensor(depth) and depth * 255 * 255 < _FLOAT32_EXACT
    wide = tf.float32 if is_small else tf.float64
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide))


def mat_mul_integer(
    a: tf.Tensor,
    b: tf.Tensor,
    a_zero_point: tf.Tensor | None = None,
    b_zero_point: tf.Tensor | None = None,
) -> tf.Tensor:
    """ONNX MatMulInteger, exact in int32."""
    return tf.cast(integer_product(a, b, a_zero_point, b_zero_point), tf.int32)


def integer_product(
    a: tf.Tensor,
    b: tf.Tensor,
    a_zero_point: tf.Tensor | None,
    b_zero_point: tf.Tensor | None,
) -> tf.Tensor:
    """The exact product of quantized matrices or vectors, as whole numbers in floats."""
    left, right = rank_of(a), rank_of(b)
    if left == 1:
        return tf.squeeze(integer_product(a[None, :], b, a_zero_point, b_zero_point), -2)
    if right == 1:
        return tf.squeeze(integer_product(a, b[:, None], a_zero_point, b_zero_point), -1)
    rows = centred(a, a_zero_point, left - 2)
    return exact_product(rows, centred(b, b_zero_point, right - 1))


def q_linear_mat_mul(
    a: tf.Tensor,
    a_scale: tf.Tensor,
    a_zero_point: tf.Tensor,
    b: tf.Tensor,
    b_scale: tf.Tensor,
    b_zero_point: tf.Tensor,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor,
) -> tf.Tensor:
    """ONNX QLinearMatMul."""
    total = integer_product(a, b, a_zero_point, b_zero_point)
    scale = _row_scale(a_scale, a) * _plain(b_scale) / tf.cast(y_scale, a_scale.dtype)
    return requantized(total, scale, y_zero_point)


def _row_scale(scale: tf.Tensor, a: tf.Tensor) -> tf.Tensor:
    many = rank_of(scale) == 1 and scale.shape.num_elements() != 1
    return scale[:, None] if many and rank_of(a) > 1 else _plain(scale)


def _plain(scale: tf.Tensor) -> tf.Tensor:
    return tf.reshape(scale, []) if scale.shape.num_elements() == 1 else scale


def requantized(total: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor) -> tf.Tensor:
    """Whole numbers times the quotient of scales, as numbers of the zero point's dtype."""
    dtype = zero_point.dtype
    if not is_integer(dtype):
        return converted(tf.cast(total, tf.float32) * tf.cast(scale, tf.float32), dtype)
    low, high = bounds_of(dtype)
    wide = tf.float64 if total.dtype == tf.float64 else tf.float32
    y = tf.round(tf.cast(total, wide) * tf.cast(scale, wide))
    y += tf.cast(_plain(converted(zero_point, tf.int32)), wide)
    return converted(tf.cast(tf.clip_by_value(y, low, high), tf.int32), dtype)


def conv_integer(
    x: tf.Tensor,
    w: tf.Tensor,
    x_zero_point: tf.Tensor | None = None,
    w_zero_point: tf.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX ConvInteger, exact in int32; padding stands for the zero point."""
    image = centred(x, x_zero_point, channel_axis(x, layout))
    kernel = conv_kernel(centred(w, w_zero_point, 0))
    image = to_last(image, layout)
    extents = kernel_extents(kernel, kernel_shape)
    along = windows(image, extents, strides, dilations, pads, auto_pad)
    depth = product(sizes_of(kernel)[:-1])
    is_small = not tf.is_tensor(depth) and depth * 255 * 255 < _FLOAT32_EXACT
    wide = tf.float32 if is_small else tf.float64
    y = convolved(tf.cast(image, wide), tf.cast(kernel, wide), along, group)
    return from_last(tf.cast(y, tf.int32), layout)


def q_linear_conv(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor,
    w: tf.Tensor,
    w_scale: tf.Tensor,
    w_zero_point: tf.Tensor,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor,
    b: tf.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX QLinearConv; the bias is in units of x_scale * w_scale."""
    total = conv_integer(
        x,
        w,
        x_zero_point,
        w_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
        layout=layout,
    )
    shape = [1] * rank_of(x)
    shape[channel_axis(x, layout)] = -1
    if b is not None:
        total += tf.reshape(b, shape)
    scale = _plain(x_scale) * tf.reshape(w_scale, shape) / _plain(y_scale)
    return requantized(tf.cast(total, tf.float64), scale, y_zero_point)


OPERATORS = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": mat_mul_integer,
    "QLinearConv": q_linear_conv,
    "QLinearMatMul": q_linear_mat_mul,
    "QuantizeLinear": quantize_linear,
}
