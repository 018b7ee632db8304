"""Normalization by mean and variance, by the root mean square, and across channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import (
    channel_axis,
    from_last,
    per_channel,
    spatial_axes,
    to_last,
)
from convkit.converters.onnx_to_savedmodel.operators.values import (
    as_shape,
    normal_axis,
    rank_of,
    single,
    sizes_of,
)


def batch_normalization(
    x: tf.Tensor,
    scale: tf.Tensor,
    bias: tf.Tensor,
    mean: tf.Tensor,
    var: tf.Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    layout: str = "NCHW",
    output_count: int = 1,
) -> Any:
    """ONNX BatchNormalization; in training mode by the batch's own statistics, which come along."""
    if not training_mode:
        return single([_normalized(x, scale, bias, mean, var, epsilon, layout)], 1)
    axis = channel_axis(x, layout) if rank_of(x) > 1 else 0
    others = [n for n in range(rank_of(x)) if n != axis]
    wide = tf.cast(x, mean.dtype)
    own_mean = tf.reduce_mean(wide, others)
    own_var = tf.reduce_mean(
        tf.math.squared_difference(wide, per_channel(own_mean, x, layout)), others
    )
    y = _normalized(x, scale, bias, own_mean, own_var, epsilon, layout)
    keep = tf.constant(momentum, mean.dtype)
    rest = tf.constant(1 - momentum, mean.dtype)
    running = [mean * keep + own_mean * rest, var * keep + own_var * rest]
    return single([y, *running], output_count)


def _normalized(
    x: tf.Tensor,
    scale: tf.Tensor,
    bias: tf.Tensor,
    mean: tf.Tensor,
    var: tf.Tensor,
    epsilon: float,
    layout: str,
) -> tf.Tensor:
    if layout == "NHWC" and _has_kernel(x, scale, mean):
        fused = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=bias,
            mean=mean,
            variance=var,
            epsilon=epsilon,
            is_training=False,
        )
        return fused.y
    # The factor is small, one number per channel; the image is multiplied and added to once.
    wide = scale.dtype if scale.dtype.size >= mean.dtype.size else mean.dtype
    scale, bias, mean, var = (tf.cast(v, wide) for v in (scale, bias, mean, var))
    factor = scale * tf.math.rsqrt(var + tf.constant(epsilon, wide))
    shift = bias - mean * factor
    if rank_of(x) == 1:
        return x * tf.cast(factor, x.dtype) + tf.cast(shift, x.dtype)
    shaped = (per_channel(v, x, layout) for v in (factor, shift))
    factor, shift = shaped
    return tf.cast(tf.cast(x, wide) * factor + shift, x.dtype)


def _has_kernel(x: tf.Tensor, scale: tf.Tensor, mean: tf.Tensor) -> bool:
    """Whether TensorFlow's fused kernel takes this: images whose statistics are float32."""
    return bool(
        rank_of(x) == 4
        and x.dtype in (tf.float32, tf.float16, tf.bfloat16)
        and scale.dtype == mean.dtype == tf.float32
    )


def instance_normalization(
    x: tf.Tensor,
    scale: tf.Tensor,
    bias: tf.Tensor,
    *,
    epsilon: float = 1e-5,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX InstanceNormalization: statistics over the spatial axes of each channel."""
    wide = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    y = standardized(wide, spatial_axes(x, layout), epsilon)[0]
    y = y * per_channel(tf.cast(scale, y.dtype), x, layout)
    return tf.cast(y + per_channel(tf.cast(bias, y.dtype), x, layout), x.dtype)


def standardized(
    x: tf.Tensor, axes: Sequence[int], epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`x` with mean 0 and variance 1 over the axes, the mean, and the inverse deviation."""
    mean = tf.reduce_mean(x, list(axes), True)
    centred = x - mean
    var = tf.reduce_mean(tf.square(centred), list(axes), True)
    inverse = tf.math.rsqrt(var + tf.constant(epsilon, x.dtype))
    return centred * inverse, mean, inverse


def group_normalization(
    x: tf.Tensor,
    scale: tf.Tensor,
    bias: tf.Tensor,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: tf.DType | None = tf.float32,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX GroupNormalization: statistics over groups of channels, scale and bias per channel."""
    axis = channel_axis(x, layout)
    sizes = sizes_of(x)
    wide = tf.cast(x, stash_type or tf.float32)
    split = [*sizes[:axis], num_groups, sizes[axis] // num_groups, *sizes[axis + 1 :]]
    grouped = tf.reshape(wide, as_shape(split))
    y = standardized(grouped, [n for n in range(1, len(split)) if n != axis], epsilon)[0]
    y = tf.cast(tf.reshape(y, as_shape(sizes)), x.dtype)
    return y * per_channel(scale, x, layout) + per_channel(bias, x, layout)


def layer_normalization(
    x: tf.Tensor,
    scale: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: tf.DType | None = tf.float32,
    output_count: int = 1,
) -> Any:
    """ONNX LayerNormalization, with mean and inverse deviation as further outputs."""
    axes = list(range(normal_axis(axis, rank_of(x)), rank_of(x)))
    wide = tf.cast(x, stash_type or tf.float32)
    y, mean, inverse = standardized(wide, axes, epsilon)
    y = tf.cast(y, x.dtype) * scale
    y = y if bias is None else y + bias
    return single([y, mean, inverse], output_count)


def rms_normalization(
    x: tf.Tensor,
    scale: tf.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: tf.DType | None = tf.float32,
) -> tf.Tensor:
    """ONNX RMSNormalization; the result has the dtype of the scale."""
    axes = list(range(normal_axis(axis, rank_of(x)), rank_of(x)))
    wide = tf.cast(x, stash_type or tf.float32)
    mean = tf.reduce_mean(tf.square(wide), axes, True)
    y = wide * tf.math.rsqrt(mean + tf.constant(epsilon, wide.dtype))
    return tf.cast(y, scale.dtype) * scale


def lrn(
    x: tf.Tensor,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
    size: int,
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX LRN across channels; an even window reaches one channel further up."""
    wide = tf.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype
    image = to_last(tf.cast(x, wide), layout)
    if size % 2 and wide == tf.float32 and rank_of(x) == 4:
        y = tf.nn.local_response_normalization(image, (size - 1) // 2, bias, alpha / size, beta)
    else:
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        rows = [[0, 0]] * (rank_of(x) - 1) + [[before, after]]
        squares = tf.pad(tf.square(image), rows)
        count = tf.shape(image)[-1]
        total = tf.add_n([squares[..., n : n + count] for n in range(size)])
        total = tf.constant(alpha / size, wide) * total + tf.constant(bias, wide)
        y = image / tf.pow(total, tf.constant(beta, wide))
    return tf.cast(from_last(y, layout), x.dtype)


OPERATORS = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
}
