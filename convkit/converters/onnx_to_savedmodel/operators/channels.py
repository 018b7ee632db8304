"""The channel axis: ONNX puts it second, TensorFlow's portable kernels want it last."""

from __future__ import annotations

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import rank_of


def to_last(x: tf.Tensor, layout: str = "NCHW") -> tf.Tensor:
    """`x` with its channels last; as it is where `layout` says they are there already."""
    rank = rank_of(x)
    if layout == "NHWC" or rank <= 2:
        return x
    return tf.transpose(x, [0, *range(2, rank), 1])


def from_last(x: tf.Tensor, layout: str = "NCHW") -> tf.Tensor:
    """A channels-last result in `layout`."""
    rank = rank_of(x)
    if layout == "NHWC" or rank <= 2:
        return x
    return tf.transpose(x, [0, rank - 1, *range(1, rank - 1)])


def spatial_axes(x: tf.Tensor, layout: str = "NCHW") -> list[int]:
    """The axes of `x` that are neither batch nor channels."""
    rank = rank_of(x)
    return list(range(1, rank - 1)) if layout == "NHWC" else list(range(2, rank))


def channel_axis(x: tf.Tensor, layout: str = "NCHW") -> int:
    """The axis of `x` that holds its channels."""
    return rank_of(x) - 1 if layout == "NHWC" else 1


def per_channel(values: tf.Tensor, x: tf.Tensor, layout: str = "NCHW") -> tf.Tensor:
    """One value per channel, shaped to broadcast over `x`."""
    shape = [1] * rank_of(x)
    shape[channel_axis(x, layout)] = -1
    return tf.reshape(values, shape)
