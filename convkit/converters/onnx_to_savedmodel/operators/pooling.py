"""Pooling: one TensorFlow kernel where it computes the same, else a window place by place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import (
    from_last,
    spatial_axes,
    to_last,
)
from convkit.converters.onnx_to_savedmodel.operators.convolution import kernel_padding
from convkit.converters.onnx_to_savedmodel.operators.values import (
    Ints,
    as_shape,
    dtype_bounds,
    parts,
    product,
    sizes_of,
)
from convkit.converters.onnx_to_savedmodel.operators.windows import (
    WHOLE,
    Window,
    pad_or_crop,
    padded,
    positions_inside,
    shifted,
    windows,
)

_POOLED = {tf.float16: tf.float32, tf.float64: tf.float32}


def max_pool(
    x: tf.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    layout: str = "NCHW",
    output_count: int = 1,
) -> Any:
    """ONNX MaxPool, with the index of each maximum in the flattened input as second output."""
    image = to_last(x, layout)
    along = windows(image, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if output_count == 1:
        return from_last(_greatest(image, along), layout)
    values, index = _greatest_with_index(image, along, storage_order)
    return from_last(values, layout), from_last(index, layout)


def _greatest(x: tf.Tensor, along: Sequence[Window]) -> tf.Tensor:
    lowest = dtype_bounds(x.dtype)[0]
    if any(v.dilation > 1 for v in along) or len(along) > 3:
        return functools.reduce(
            tf.maximum, (part for _, part in shifted(padded(x, along, lowest), along))
        )
    if len(along) == 1:
        return tf.squeeze(_greatest(x[:, None], [WHOLE, *along]), 1)
    kernel, strides = [v.kernel for v in along], [v.stride for v in along]
    if len(along) == 3:
        return _greatest_3d(padded(x, along, lowest), kernel, strides)
    if all(v.is_static and max(v.begin, v.end + v.extra) < v.kernel for v in along):
        image, padding = kernel_padding(x, along)
    else:
        image, padding = padded(x, along, lowest), "VALID"
    return tf.nn.max_pool2d(image, kernel, strides, padding)


def _greatest_3d(x: tf.Tensor, kernel: list[int], strides: list[int]) -> tf.Tensor:
    if x.dtype in (tf.float32, tf.bfloat16):
        return tf.nn.max_pool3d(x, kernel, strides, "VALID")
    if x.dtype == tf.float64:
        along = windows(x, kernel, strides)
        return functools.reduce(tf.maximum, (part for _, part in shifted(x, along)))
    pooled = tf.nn.max_pool3d(tf.cast(x, tf.float32), kernel, strides, "VALID")
    return tf.cast(pooled, x.dtype)


def _greatest_with_index(
    x: tf.Tensor, along: Sequence[Window], storage_order: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The maxima, and where they stand in the flattened (batch, channels, spatial...) input."""
    lowest = dtype_bounds(x.dtype)[0]
    places, slices = zip(*shifted(padded(x, along, lowest), along), strict=True)
    stacked = tf.stack(slices)
    first = tf.argmax(stacked, 0, output_type=tf.int64)
    values = tf.reduce_max(stacked, 0)
    batch, *spatial, channels = [tf.cast(size, tf.int64) for size in sizes_of(x)]
    steps = _steps(spatial, storage_order)
    offsets = [
        sum(at * v.dilation * step for at, v, step in zip(place, along, steps, strict=True))
        for place in places
    ]
    index = tf.gather(tf.stack(offsets), first)
    for axis, (v, step) in enumerate(zip(along, steps, strict=True), 1):
        start = tf.range(tf.cast(v.count, tf.int64)) * v.stride - tf.cast(v.begin, tf.int64)
        index += _along(start * step, axis, len(along) + 2)
    image = product(spatial)
    index += _along(tf.range(batch) * channels * image, 0, len(along) + 2)
    return values, index + _along(tf.range(channels) * image, len(along) + 1, len(along) + 2)


def _steps(spatial: Sequence[Any], storage_order: int) -> list[Any]:
    """How far one step along each spatial axis is in the flattened image."""
    return [
        tf.cast(product(spatial[:n] if storage_order else spatial[n + 1 :]), tf.int64)
        for n in range(len(spatial))
    ]


def _along(values: tf.Tensor, axis: int, rank: int) -> tf.Tensor:
    return tf.reshape(values, [-1 if n == axis else 1 for n in range(rank)])


def average_pool(
    x: tf.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX AveragePool; what ceil_mode adds at the end is never counted."""
    image = to_last(x, layout)
    along = windows(image, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if len(along) == 2 and not count_include_pad and _is_kernel_same(along):
        y = tf.nn.avg_pool2d(image, kernel_shape, [v.stride for v in along], "SAME")
        return from_last(y, layout)
    y = _averaged(padded(image, along), along)
    if count_include_pad and all(v.is_static and v.extra == 0 for v in along):
        return from_last(y, layout)
    if all(v.is_unpadded for v in along):
        return from_last(y, layout)
    return from_last(y * _weights(along, bool(count_include_pad), y.dtype), layout)


def _is_kernel_same(along: Sequence[Window]) -> bool:
    return all(v.is_same and v.dilation == 1 for v in along)


def _weights(along: Sequence[Window], include_pad: bool, dtype: tf.DType) -> Any:
    """By how much the mean over the whole window falls short at each position."""
    weights: Any = 1.0
    for axis, v in enumerate(along):
        low, high = (-v.begin, v.length + v.end) if include_pad else (0, v.length)
        counts = positions_inside(v, low, high)
        shape = [1] * (len(along) + 1)
        shape[axis] = -1
        if tf.is_tensor(counts):
            weights = weights * tf.reshape(v.kernel / counts, shape)
        else:
            with np.errstate(divide="ignore"):
                weights = weights * (v.kernel / counts).reshape(shape)
    return tf.cast(weights, dtype)


def _averaged(x: tf.Tensor, along: Sequence[Window]) -> tf.Tensor:
    """The mean over whole windows of an image that is padded already."""
    kernel, strides = [v.kernel for v in along], [v.stride for v in along]
    if any(v.dilation > 1 for v in along) or len(along) > 3:
        total = functools.reduce(tf.add, (part for _, part in shifted(x, along)))
        return total / tf.constant(np.prod(kernel), x.dtype)
    if len(along) == 1:
        return tf.squeeze(tf.nn.avg_pool2d(x[:, None], [1, *kernel], [1, *strides], "VALID"), 1)
    if len(along) == 2:
        return tf.nn.avg_pool2d(x, kernel, strides, "VALID")
    if x.dtype == tf.float64:
        total = functools.reduce(tf.add, (part for _, part in shifted(x, along)))
        return total / tf.constant(np.prod(kernel), x.dtype)
    wide = tf.cast(x, _POOLED.get(x.dtype, x.dtype))
    return tf.cast(tf.nn.avg_pool3d(wide, kernel, strides, "VALID"), x.dtype)


def lp_pool(
    x: tf.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX LpPool: the p-norm of each window."""
    image = to_last(x, layout)
    along = windows(image, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    count = tf.constant(int(np.prod(kernel_shape)), x.dtype)
    total = _averaged(padded(_to_power(image, p), along), along) * count
    return from_last(_root(total, p), layout)


def _to_power(x: tf.Tensor, p: int) -> tf.Tensor:
    if p == 1:
        return tf.abs(x)
    return x * x if p == 2 else tf.pow(tf.abs(x), tf.constant(p, x.dtype))


def _root(x: tf.Tensor, p: int) -> tf.Tensor:
    if p == 1:
        return x
    return tf.sqrt(x) if p == 2 else tf.pow(x, tf.constant(1 / p, x.dtype))


def global_average_pool(x: tf.Tensor, *, layout: str = "NCHW") -> tf.Tensor:
    """ONNX GlobalAveragePool."""
    return tf.reduce_mean(x, spatial_axes(x, layout), keepdims=True)


def global_max_pool(x: tf.Tensor, *, layout: str = "NCHW") -> tf.Tensor:
    """ONNX GlobalMaxPool."""
    return tf.reduce_max(x, spatial_axes(x, layout), keepdims=True)


def global_lp_pool(x: tf.Tensor, *, p: int = 2, layout: str = "NCHW") -> tf.Tensor:
    """ONNX GlobalLpPool."""
    return _root(tf.reduce_sum(_to_power(x, p), spatial_axes(x, layout), keepdims=True), p)


def max_unpool(
    x: tf.Tensor,
    indices: tf.Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """ONNX MaxUnpool: the maxima at their places, zeros elsewhere.

    The indices refer to the shape that kernel, strides and padding give; `output_shape` then
    adds zeros at the ends.
    """
    count = len(kernel_shape)
    strides = strides or [1] * count
    pads = pads or [0] * (2 * count)
    batch, channels, *lengths = sizes_of(x)
    sizes = [batch, channels]
    for n, length in enumerate(lengths):
        sizes.append((length - 1) * strides[n] - pads[n] - pads[n + count] + kernel_shape[n])
    total = tf.cast(product(sizes), tf.int64)
    flat = tf.scatter_nd(tf.reshape(indices, [-1, 1]), tf.reshape(x, [-1]), total[None])
    y = tf.reshape(flat, as_shape(sizes))
    if output_shape is None:
        return y
    rows = [[0, a - b] for a, b in zip(parts(output_shape, len(sizes)), sizes, strict=True)]
    return pad_or_crop(y, rows)


OPERATORS = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
