"""Blocks of pixels: between channels and space, overlapping columns, and deformed windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import from_last, to_last
from convkit.converters.onnx_to_savedmodel.operators.sampling import Sampler
from convkit.converters.onnx_to_savedmodel.operators.values import (
    Ints,
    Size,
    as_shape,
    length_of,
    parts,
    product,
    sizes_of,
)


def depth_to_space(
    x: tf.Tensor, *, blocksize: int, mode: str = "DCR", layout: str = "NCHW"
) -> tf.Tensor:
    """ONNX DepthToSpace; "DCR" is TensorFlow's order of channels, "CRD" PyTorch's."""
    if layout == "NHWC" and mode == "DCR" and x.dtype != tf.uint16:
        return tf.nn.depth_to_space(x, blocksize)
    batch, channels, height, width = _sizes(x, layout)
    inner = channels // blocksize**2
    block = [blocksize, blocksize]
    split = [*block, inner] if mode == "DCR" else [inner, *block]
    if layout == "NHWC":
        y = tf.reshape(x, as_shape([batch, height, width, *split]))
        order = [0, 1, 3, 2, 4, 5] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
        wanted = [batch, height * blocksize, width * blocksize, inner]
    else:
        y = tf.reshape(x, as_shape([batch, *split, height, width]))
        order = [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
        wanted = [batch, inner, height * blocksize, width * blocksize]
    return tf.reshape(tf.transpose(y, order), as_shape(wanted))


def _sizes(x: tf.Tensor, layout: str) -> list[Size]:
    """Batch, channels, height and width of an image."""
    sizes = sizes_of(x)
    return [sizes[0], sizes[3], sizes[1], sizes[2]] if layout == "NHWC" else sizes


def space_to_depth(
    x: tf.Tensor, *, blocksize: int, mode: str = "DCR", layout: str = "NCHW"
) -> tf.Tensor:
    """ONNX SpaceToDepth, the inverse of DepthToSpace in the same mode."""
    if layout == "NHWC" and mode == "DCR" and x.dtype != tf.uint16:
        return tf.nn.space_to_depth(x, blocksize)
    batch, channels, height, width = _sizes(x, layout)
    down, across = height // blocksize, width // blocksize
    outer = channels * blocksize**2
    if layout == "NHWC":
        y = tf.reshape(x, as_shape([batch, down, blocksize, across, blocksize, channels]))
        order = [0, 1, 3, 2, 4, 5] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
        wanted = [batch, down, across, outer]
    else:
        y = tf.reshape(x, as_shape([batch, channels, down, blocksize, across, blocksize]))
        order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
        wanted = [batch, outer, down, across]
    return tf.reshape(tf.transpose(y, order), as_shape(wanted))


def col2im(
    x: tf.Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """ONNX Col2Im: blocks (batch, channels * block, positions) added up where they overlap."""
    count = len(parts(image_shape, _count_of(image_shape, block_shape)))
    block = parts(block_shape, count)
    dilations, strides = dilations or [1] * count, strides or [1] * count
    pads = pads or [0] * (2 * count)
    sizes = [tf.cast(size, tf.int64) for size in parts(image_shape, count)]
    padded = [size + pads[n] + pads[n + count] for n, size in enumerate(sizes)]
    places = [
        (padded[n] - (dilations[n] * (block[n] - 1) + 1)) // strides[n] + 1 for n in range(count)
    ]
    batch, rows, _ = sizes_of(x)
    channels = rows // product(block)
    split = [batch, channels, *block, *places]
    columns = tf.reshape(x, as_shape(split))
    # The element of each block's place goes to one place of the padded image.
    index = None
    step: Any = tf.constant(1, tf.int64)
    for n in reversed(range(count)):
        inner = tf.range(tf.cast(block[n], tf.int64)) * dilations[n]
        outer = tf.range(places[n]) * strides[n]
        shape_in = [-1 if m == n else 1 for m in range(2 * count)]
        shape_out = [-1 if m == n + count else 1 for m in range(2 * count)]
        at = (tf.reshape(inner, shape_in) + tf.reshape(outer, shape_out)) * step
        index = at if index is None else index + at
        step = step * padded[n]
    flat = tf.transpose(tf.reshape(columns, as_shape([batch * channels, -1])))
    summed = tf.math.unsorted_segment_sum(flat, tf.reshape(index, [-1]), step)
    image = tf.reshape(tf.transpose(summed), as_shape([batch, channels, *padded]))
    cut = [slice(pads[n], tf.cast(sizes[n] + pads[n], tf.int32)) for n in range(count)]
    index = (slice(None), slice(None), *cut)
    return image[index]


def _count_of(*vectors: Ints) -> int | None:
    """How many spatial axes there are, from whichever vector tells."""
    return next((count for count in map(length_of, vectors) if count is not None), None)


def deform_conv(
    x: tf.Tensor,
    w: tf.Tensor,
    offset: tf.Tensor,
    b: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """ONNX DeformConv over images: a convolution whose window's places are moved by offsets.

    Each place of the window is sampled once for all channels of an offset group; one product
    with the weights then sums up places and channels.
    """
    kernel = kernel_shape or [int(size) for size in w.shape[2:]]
    out_channels = int(w.shape[0])
    samples = _deformed(
        to_last(x),
        tf.transpose(offset, [0, 2, 3, 1]),
        None if mask is None else tf.transpose(mask, [0, 2, 3, 1]),
        kernel,
        strides or [1, 1],
        dilations or [1, 1],
        pads or [0, 0, 0, 0],
        offset_group,
    )
    # (batch, height, width, places, channels) by (group, output, channels of a group, places)
    batch, height, width, places, channels = sizes_of(samples)
    samples = tf.reshape(
        samples, as_shape([batch, height, width, places, group, channels // group])
    )
    weights = tf.reshape(w, [group, out_channels // group, -1, places])
    y = tf.einsum("nhwpgc,gocp->nhwgo", samples, tf.cast(weights, samples.dtype))
    y = tf.cast(tf.reshape(y, as_shape([batch, height, width, out_channels])), x.dtype)
    return from_last(y if b is None else tf.nn.bias_add(y, b))


def _deformed(
    image: tf.Tensor,
    offset: tf.Tensor,
    mask: tf.Tensor | None,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    offset_group: int,
) -> tf.Tensor:
    """The image at each moved place: (batch, height, width, places, channels)."""
    wide = tf.float64 if image.dtype == tf.float64 else tf.float32
    height, width = sizes_of(offset)[1:3]
    base = []
    for n, length in enumerate((height, width)):
        start = tf.range(tf.cast(length, tf.int64)) * strides[n] - pads[n]
        base.append(tf.cast(start, wide))
    rows, columns = base[0][None, :, None], base[1][None, None, :]
    groups = []
    pieces = tf.split(image, offset_group, -1)
    place_count = kernel[0] * kernel[1]
    for group, piece in enumerate(pieces):
        sample = Sampler(piece, "zeros", True, wide)
        found = []
        for place, (i, j) in enumerate(itertools.product(range(kernel[0]), range(kernel[1]))):
            at = 2 * (group * place_count + place)
            down = rows + i * dilations[0] + tf.cast(offset[..., at], wide)
            across = columns + j * dilations[1] + tf.cast(offset[..., at + 1], wide)
            value = sample([down, across], "linear")
            if mask is not None:
                value *= tf.cast(mask[..., group * place_count + place], wide)[..., None]
            found.append(value)
        groups.append(tf.stack(found, -2))
    return tf.concat(groups, -1)


OPERATORS = {
    "Col2Im": col2im,
    "DeformConv": deform_conv,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
