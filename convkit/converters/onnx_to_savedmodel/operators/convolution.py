"""Convolutions of one to three dimensions, mapped to one TensorFlow kernel wherever there is one.

Inside, images are (batch, spatial..., channels) and weights (spatial..., input channels of a
group, output channels), which TensorFlow computes on every platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import from_last, to_last
from convkit.converters.onnx_to_savedmodel.operators.values import rank_of, sizes_of
from convkit.converters.onnx_to_savedmodel.operators.windows import (
    WHOLE,
    Window,
    padded,
    unpadded,
    windows,
)


def conv_kernel(w: tf.Tensor) -> tf.Tensor:
    """Weights of Conv or ConvTranspose as TensorFlow's kernels take them, for any group.

    (output, input, spatial...) becomes (spatial..., input, output); for ConvTranspose, whose
    ONNX weights are (input, output, spatial...), this gives (spatial..., output, input).
    """
    return tf.transpose(w, [*range(2, rank_of(w)), 1, 0])


def conv(
    x: tf.Tensor,
    w: tf.Tensor,
    b: tf.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    layout: str = "NCHW",
    weight_layout: str = "ONNX",
) -> tf.Tensor:
    """ONNX Conv.

    Args:
        x: (batch, channels, spatial...), or channels last with layout "NHWC".
        w: (output channels, channels / group, spatial...), or what `conv_kernel` makes of it.
        b: (output channels,).
        auto_pad: where the padding comes from.
        dilations: one per spatial axis.
        group: how many parts the channels are split into.
        kernel_shape: as in `w`, which wins unless its dimensions are unknown.
        pads: begins, then ends.
        strides: one per spatial axis.
        layout: "NCHW" or "NHWC".
        weight_layout: "ONNX", or "TF" where `w` comes from `conv_kernel`.
    """
    w = w if weight_layout == "TF" else conv_kernel(w)
    x = to_last(x, layout)
    extents = kernel_extents(w, kernel_shape)
    along = windows(x, extents, strides, dilations, pads, auto_pad)
    y = convolved(x, w, along, group)
    return from_last(y if b is None else tf.nn.bias_add(y, b), layout)


def kernel_extents(w: tf.Tensor, kernel_shape: Sequence[int] | None) -> list[int]:
    """The spatial dimensions of weights (spatial..., input, output)."""
    static = w.shape.as_list()[:-2]
    if None not in static:
        return [int(size) for size in static]
    if kernel_shape is None:
        raise ValueError("the kernel's shape must be known while tracing")
    return list(kernel_shape)


def convolved(x: tf.Tensor, w: tf.Tensor, along: Sequence[Window], group: int) -> tf.Tensor:
    """The convolution of channels-last `x`."""
    if len(along) == 1:
        y = _convolved_2d(tf.expand_dims(x, 1), tf.expand_dims(w, 0), [WHOLE, *along], group)
        return tf.squeeze(y, 1)
    if len(along) == 2:
        return _convolved_2d(x, w, along, group)
    if len(along) == 3:
        return _convolved_3d(x, w, along, group)
    raise ValueError(f"a convolution over {len(along)} spatial axes has no kernel")


def _convolved_2d(x: tf.Tensor, w: tf.Tensor, along: Sequence[Window], group: int) -> tf.Tensor:
    strides = [v.stride for v in along]
    dilations = [v.dilation for v in along]
    is_even = strides[0] == strides[1] and (strides[0] == 1 or max(dilations) == 1)
    if _is_depthwise(w, group) and is_even:
        return _depthwise(x, w, along, group)
    x, padding = kernel_padding(x, along)
    return tf.nn.conv2d(x, w, strides, padding, dilations=dilations)


def _is_depthwise(w: tf.Tensor, group: int) -> bool:
    return bool(group > 1 and w.shape[-2] == 1)


def _depthwise(x: tf.Tensor, w: tf.Tensor, along: Sequence[Window], group: int) -> tf.Tensor:
    """One filter or more for each channel; output channels are ordered by input channel."""
    strides = [1, along[0].stride, along[1].stride, 1]
    dilations = [v.dilation for v in along]
    w = tf.reshape(w, [along[0].kernel, along[1].kernel, group, -1])
    # Never explicit padding: TensorFlow's graph rewriting loses it when it adds a bias to the
    # kernel, and then ends the process. Without oneDNN the kernel also knows no dilation, which
    # the wrapper brings about by its own means.
    x, padding = (x, "SAME") if _is_same(along) else (padded(x, along), "VALID")
    if max(dilations) == 1:
        return tf.nn.depthwise_conv2d(x, w, strides, padding)
    return tf.nn.depthwise_conv2d(x, w, strides, padding, dilations=dilations)


def _is_same(along: Sequence[Window]) -> bool:
    return all(v.is_same for v in along)


def kernel_padding(x: tf.Tensor, along: Sequence[Window]) -> tuple[tf.Tensor, Any]:
    """The padding argument of a 2-D kernel, and `x` padded already where it has none for it."""
    if all(v.is_unpadded for v in along):
        return x, "VALID"
    if _is_same(along):
        return x, "SAME"
    if all(v.is_static and v.begin >= 0 and v.end + v.extra >= 0 for v in along):
        return x, [[0, 0], *([v.begin, v.end + v.extra] for v in along), [0, 0]]
    return padded(x, along), "VALID"


def _convolved_3d(x: tf.Tensor, w: tf.Tensor, along: Sequence[Window], group: int) -> tf.Tensor:
    if group == 1 and all(v.dilation == 1 for v in along):
        strides = [1, *(v.stride for v in along), 1]
        if _is_same(along):
            return tf.nn.conv3d(x, w, strides, "SAME")
        return tf.nn.conv3d(padded(x, along), w, strides, "VALID")
    image = padded(x, along)
    return _summed_slices(image, w, unpadded(image, along), group)


def _summed_slices(x: tf.Tensor, w: tf.Tensor, along: Sequence[Window], group: int) -> tf.Tensor:
    """A 3-D convolution with groups or dilation, as the sum over depth of 2-D ones.

    TensorFlow's 3-D kernels have neither on CPUs.
    """
    depth, *plane = along
    total = None
    for at in range(depth.kernel):
        start = at * depth.dilation
        stop = start + (depth.count - 1) * depth.stride + 1
        stop = tf.cast(stop, tf.int32) if tf.is_tensor(stop) else stop
        layers = x[:, start : stop : depth.stride]
        batch, layer_count, *rest = sizes_of(layers)
        images = _reshaped(layers, [batch * layer_count, *rest])
        part = _convolved_2d(images, w[at], plane, group)
        total = part if total is None else total + part
    return _reshaped(total, [batch, layer_count, *sizes_of(total)[1:]])


def _reshaped(x: tf.Tensor, sizes: Sequence[Any]) -> tf.Tensor:
    if any(tf.is_tensor(size) for size in sizes):
        return tf.reshape(x, tf.stack([tf.cast(size, tf.int64) for size in sizes]))
    return tf.reshape(x, list(sizes))


OPERATORS = {"Conv": conv}
