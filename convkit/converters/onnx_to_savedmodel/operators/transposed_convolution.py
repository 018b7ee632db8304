"""Transposed convolutions: the gradient of a convolution with respect to its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import from_last, to_last
from convkit.converters.onnx_to_savedmodel.operators.convolution import (
    conv_kernel,
    convolved,
    kernel_extents,
)
from convkit.converters.onnx_to_savedmodel.operators.values import Size, as_shape, sizes_of
from convkit.converters.onnx_to_savedmodel.operators.windows import pad_or_crop, windows


@dataclass(frozen=True)
class Spread:
    """A kernel along one spatial axis, spread by each element of the input.

    `begin` and `end` are cut off the full result, `extra` is added at its end; `count` is what
    remains.
    """

    length: Size
    kernel: int
    stride: int
    dilation: int
    begin: Size
    end: Size
    extra: int
    count: Size

    @property
    def extent(self) -> int:
        """How many elements the kernel spans."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def is_static(self) -> bool:
        """Whether what is cut off is known while tracing."""
        return not tf.is_tensor(self.begin) and not tf.is_tensor(self.end)


_WHOLE = Spread(1, 1, 1, 1, 0, 0, 0, 1)
"""Along an axis that was added for a kernel of one more dimension."""


def conv_transpose(
    x: tf.Tensor,
    w: tf.Tensor,
    b: tf.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    layout: str = "NCHW",
    weight_layout: str = "ONNX",
) -> tf.Tensor:
    """ONNX ConvTranspose.

    Args:
        x: (batch, channels, spatial...), or channels last with layout "NHWC".
        w: (channels, output channels / group, spatial...), or what `conv_kernel` makes of it.
        b: (output channels,).
        auto_pad: where the padding comes from.
        dilations: one per spatial axis.
        group: how many parts the channels are split into.
        kernel_shape: as in `w`, which wins unless its dimensions are unknown.
        output_padding: elements added at the end of each spatial axis of the result.
        output_shape: the spatial axes of the result, from which the padding then follows.
        pads: begins, then ends: elements cut off the result.
        strides: one per spatial axis.
        layout: "NCHW" or "NHWC".
        weight_layout: "ONNX", or "TF" where `w` comes from `conv_kernel`.
    """
    w = w if weight_layout == "TF" else conv_kernel(w)
    x = to_last(x, layout)
    extents = kernel_extents(w, kernel_shape)
    along = _spreads(
        sizes_of(x)[1:-1],
        extents,
        strides or [1] * len(extents),
        dilations or [1] * len(extents),
        pads,
        output_padding or [0] * len(extents),
        output_shape,
        auto_pad,
    )
    y = _transposed(x, w, along, group)
    return from_last(y if b is None else tf.nn.bias_add(y, b), layout)


def _spreads(
    lengths: Sequence[Size],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    output_padding: Sequence[int],
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> list[Spread]:
    """One kernel per axis.

    Source: the formulas in the documentation of ONNX ConvTranspose. An output shape goes before
    pads, of which it then makes both sides.
    """
    count = len(kernel)
    found = []
    for n, length in enumerate(lengths):
        extent = dilations[n] * (kernel[n] - 1) + 1
        full = (length - 1) * strides[n] + extent
        wanted = output_shape[n] if output_shape else None
        if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = length * strides[n]
        if wanted is None:
            begin, end = (pads[n], pads[n + count]) if pads and auto_pad != "VALID" else (0, 0)
        else:
            begin, end = _both_sides(extent, strides[n], output_padding[n], wanted, full, auto_pad)
        size = full + output_padding[n] - begin - end
        extra = output_padding[n]
        found.append(Spread(length, kernel[n], strides[n], dilations[n], begin, end, extra, size))
    return found


def _both_sides(
    extent: int, stride: int, added: int, wanted: Size, full: Size, auto_pad: str
) -> tuple[Size, Size]:
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and not isinstance(wanted, int):
        total: Size = extent - stride + added
    else:
        total = full + added - wanted
    half = total // 2
    return (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)


def _transposed(x: tf.Tensor, w: tf.Tensor, along: Sequence[Spread], group: int) -> tf.Tensor:
    if len(along) == 1:
        whole = [_WHOLE, *along]
        return tf.squeeze(_transposed(x[:, None], tf.expand_dims(w, 0), whole, group), 1)
    if len(along) > 3:
        raise ValueError(f"a convolution over {len(along)} spatial axes has no kernel")
    if any(v.dilation > 1 for v in along):
        return _stuffed(x, w, along, group)
    if len(along) == 2 and group > 1 and _is_depthwise(x, w, along, group):
        return _depthwise(x, w, along)
    if group > 1:
        parts = zip(tf.split(x, group, -1), tf.split(w, group, -1), strict=True)
        return tf.concat([_one_group(*part, along) for part in parts], -1)
    return _one_group(x, w, along)


def _is_explicit(along: Sequence[Spread]) -> bool:
    """Whether the kernel can cut the padding off itself."""
    return all(v.is_static and v.begin >= 0 and v.end >= 0 and v.extra < v.stride for v in along)


def _one_group(x: tf.Tensor, w: tf.Tensor, along: Sequence[Spread]) -> tf.Tensor:
    strides = [v.stride for v in along]
    batch, channels = sizes_of(x)[0], sizes_of(w)[-2]
    if len(along) == 2 and _is_explicit(along):
        rows = [[0, 0], *([v.begin, v.end] for v in along), [0, 0]]
        padding: Any = rows if any(map(any, rows)) else "VALID"
        shape = _int32([batch, *(v.count for v in along), channels])
        return tf.nn.conv2d_transpose(x, w, shape, strides, padding)
    full = [(v.length - 1) * v.stride + v.kernel for v in along]
    shape = _int32([batch, *full, channels])
    if len(along) == 2:
        y = tf.nn.conv2d_transpose(x, w, shape, strides, "VALID")
    else:
        y = tf.nn.conv3d_transpose(x, w, shape, strides, "VALID")
    return _cut(y, along)


def _cut(y: tf.Tensor, along: Sequence[Spread]) -> tf.Tensor:
    """The full result without its padding, and with what output_padding adds."""
    if all(v.is_static for v in along):
        rows = [[0, 0], *([-v.begin, v.extra - v.end] for v in along), [0, 0]]
        return pad_or_crop(y, rows)
    for axis, v in enumerate(along, 1):
        # Room at the end first: the wanted size may reach beyond what the full result has.
        rows = [[0, 0] for _ in range(len(along) + 2)]
        rows[axis] = [tf.maximum(-tf.cast(v.begin, tf.int64), 0), tf.cast(v.count, tf.int64)]
        y = tf.pad(y, tf.stack([tf.stack([tf.cast(n, tf.int64) for n in row]) for row in rows]))
        index: list[Any] = [slice(None)] * (len(along) + 2)
        start = tf.cast(tf.maximum(tf.cast(v.begin, tf.int64), 0), tf.int32)
        index[axis] = slice(start, start + tf.cast(v.count, tf.int32))
        y = y[tuple(index)]
    return y


def _int32(sizes: Sequence[Size]) -> Any:
    shape = as_shape(sizes)
    return tf.cast(shape, tf.int32) if tf.is_tensor(shape) else shape


def _is_depthwise(x: tf.Tensor, w: tf.Tensor, along: Sequence[Spread], group: int) -> bool:
    """One filter per channel, as upsampling layers have, with steps the kernel takes."""
    return bool(
        w.shape[-2] == 1
        and x.shape[-1] == group
        and along[0].stride == along[1].stride
        and _is_explicit(along)
    )


def _depthwise(x: tf.Tensor, w: tf.Tensor, along: Sequence[Spread]) -> tf.Tensor:
    batch, channels = sizes_of(x)[0], sizes_of(x)[-1]
    full = [v.count + v.begin + v.end for v in along]
    y = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=_int32([batch, *full, channels]),
        filter=tf.reshape(w, [along[0].kernel, along[1].kernel, -1, 1]),
        out_backprop=x,
        strides=[1, along[0].stride, along[1].stride, 1],
        padding="VALID",
    )
    return pad_or_crop(y, [[0, 0], *([-v.begin, -v.end] for v in along), [0, 0]])


def _stuffed(x: tf.Tensor, w: tf.Tensor, along: Sequence[Spread], group: int) -> tf.Tensor:
    """By definition: zeros between the elements, then a convolution with the mirrored kernel.

    The kernels of the gradient know no dilation on CPUs.
    """
    rank = len(along) + 2
    for axis, v in enumerate(along, 1):
        x = _spread(x, axis, v.stride)
    spatial = list(range(rank - 2))
    # (spatial..., output / group, input) -> (spatial..., input / group, output), by group
    mirrored = tf.reverse(w, spatial)
    pieces = [
        tf.transpose(part, [*spatial, rank - 1, rank - 2]) for part in tf.split(mirrored, group, -1)
    ]
    rows: list[list[Size]] = [[0, 0]]
    for v in along:
        rows.append([v.extent - 1 - v.begin, v.extent - 1 - v.end + v.extra])
    x = pad_or_crop(x, [*rows, [0, 0]])
    plain = windows(x, [v.kernel for v in along], None, [v.dilation for v in along])
    return convolved(x, tf.concat(pieces, -1), plain, group)


def _spread(x: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """`x` with `stride - 1` zeros between neighbours along an axis."""
    if stride == 1:
        return x
    sizes = sizes_of(x)
    rows = [[0, 0] for _ in range(len(sizes) + 1)]
    rows[axis + 1][1] = stride - 1
    wide = tf.pad(tf.expand_dims(x, axis + 1), rows)
    wide = tf.reshape(wide, as_shape([*sizes[:axis], sizes[axis] * stride, *sizes[axis + 1 :]]))
    index: list[Any] = [slice(None)] * len(sizes)
    index[axis] = slice(None, 1 - stride)
    return wide[tuple(index)]


OPERATORS = {"ConvTranspose": conv_transpose}
