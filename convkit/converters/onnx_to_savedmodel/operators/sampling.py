"""Values between pixels: sampling by a grid, and where affine maps and regions look."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import from_last, to_last
from convkit.converters.onnx_to_savedmodel.operators.values import (
    Ints,
    Size,
    parts,
    sizes_of,
)

_CUBIC_A = -0.75
"""ONNX fixes the coefficient of GridSample's cubic interpolation."""


def affine_grid(theta: tf.Tensor, size: Ints, *, align_corners: int = 0) -> tf.Tensor:
    """ONNX AffineGrid: (batch, spatial..., axes), the last axis in the order x, y, z."""
    spatial = _sizes(theta, size)[2:]
    axes = []
    for length in spatial:
        count = tf.cast(length, theta.dtype)
        steps = tf.range(tf.cast(length, tf.int64))
        if align_corners:
            step = 2 / tf.maximum(count - 1, 1)
            axes.append(tf.cast(steps, theta.dtype) * step - 1)
        else:
            axes.append((2 * tf.cast(steps, theta.dtype) + 1) / count - 1)
    planes = tf.meshgrid(*axes, indexing="ij")
    points = tf.stack([*planes[::-1], tf.ones_like(planes[0])], -1)
    return tf.einsum(_EQUATIONS[len(spatial)], theta, points)


_EQUATIONS = {1: "nij,xj->nxi", 2: "nij,yxj->nyxi", 3: "nij,zyxj->nzyxi"}


def _sizes(theta: tf.Tensor, size: Ints) -> list[Size]:
    """The dimensions of the image: two more than there are spatial axes."""
    return parts(size, None if theta.shape[1] is None else int(theta.shape[1]) + 2)


def grid_sample(
    x: tf.Tensor,
    grid: tf.Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> tf.Tensor:
    """ONNX GridSample over any number of spatial axes.

    Args:
        x: (batch, channels, spatial...).
        grid: (batch, places..., axes) from -1 to 1, in the order x, y, z.
        align_corners: whether -1 and 1 are the centres of the outer pixels or their edges.
        mode: "nearest", "linear" or "cubic".
        padding_mode: "zeros", "border" or "reflection".
    """
    wide = tf.float64 if tf.float64 in (x.dtype, grid.dtype) else tf.float32
    image = to_last(x)
    spatial = sizes_of(image)[1:-1]
    places = []
    for axis, length in enumerate(spatial):
        at = tf.cast(grid[..., len(spatial) - 1 - axis], wide)
        size = tf.cast(length, wide)
        at = (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2
        at = tf.round(at) if mode == "nearest" else at
        places.append(_padded(at, size, padding_mode, bool(align_corners)))
    sample = Sampler(image, padding_mode, bool(align_corners), wide)
    return from_last(tf.cast(sample(places, mode), x.dtype))


def _padded(at: tf.Tensor, size: tf.Tensor, mode: str, align_corners: bool) -> tf.Tensor:
    """Places outside brought inside, unless zeros stand there."""
    if mode == "border":
        return tf.clip_by_value(at, 0, size - 1)
    if mode == "reflection":
        return _reflected(at, size, align_corners)
    return at


def _reflected(at: tf.Tensor, size: tf.Tensor, align_corners: bool) -> tf.Tensor:
    low = tf.zeros_like(size) if align_corners else tf.constant(-0.5, size.dtype)
    span = size - 1 if align_corners else size
    span = tf.maximum(span, 1e-6)
    period = tf.math.floormod(at - low, 2 * span)
    return low + tf.minimum(period, 2 * span - period)


class Sampler:
    """Takes values out of an image (batch, spatial..., channels) at fractional places.

    Args:
        image: the image.
        padding_mode: what stands outside: "zeros", "border" or "reflection".
        align_corners: where a reflection turns, at the outer pixels' centres or edges.
        wide: the dtype of places and weights.
    """

    def __init__(
        self, image: tf.Tensor, padding_mode: str, align_corners: bool, wide: tf.DType
    ) -> None:
        self.image = image
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.wide = wide
        self.sizes = [tf.cast(size, tf.int64) for size in sizes_of(image)[1:-1]]

    def __call__(self, places: Sequence[tf.Tensor], mode: str) -> tf.Tensor:
        """Values at the places, one tensor (batch, ...) per spatial axis."""
        taps = [_taps(at, mode) for at in places]
        total = None
        for chosen in itertools.product(*taps):
            value = tf.cast(self._pixels([index for index, _ in chosen]), self.wide)
            weight: Any = None
            for _, part in chosen:
                weight = part if weight is None else weight * part
            value = value * weight[..., None]
            total = value if total is None else total + value
        return total

    def _pixels(self, index: Sequence[tf.Tensor]) -> tf.Tensor:
        inside = None
        inner = []
        for at, size in zip(index, self.sizes, strict=True):
            if self.padding_mode == "reflection":
                mirrored = _reflected(
                    tf.cast(at, self.wide), tf.cast(size, self.wide), self.align_corners
                )
                at = tf.cast(mirrored, tf.int64)
            within = tf.logical_and(at >= 0, at < size)
            inside = within if inside is None else tf.logical_and(inside, within)
            inner.append(tf.clip_by_value(at, 0, size - 1))
        pixels = tf.gather_nd(self.image, tf.stack(inner, -1), batch_dims=1)
        if self.padding_mode != "zeros" or inside is None:
            return pixels
        return tf.where(inside[..., None], pixels, tf.zeros_like(pixels))


def _taps(at: tf.Tensor, mode: str) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Neighbours of places along one axis, with their weights."""
    if mode == "nearest":
        return [(tf.cast(at, tf.int64), tf.ones_like(at))]
    below = tf.floor(at)
    share = at - below
    first = tf.cast(below, tf.int64)
    if mode in ("linear", "bilinear"):
        return [(first, 1 - share), (first + 1, share)]
    weights = cubic_weights(share)
    return [(first + offset, weight) for offset, weight in zip(range(-1, 3), weights, strict=True)]


def cubic_weights(t: tf.Tensor, a: float = _CUBIC_A) -> list[tf.Tensor]:
    """Weights of the four neighbours of a place a share `t` after the second.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    far, near = 1 + t, 1 - t
    return [
        ((a * far - 5 * a) * far + 8 * a) * far - 4 * a,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * near - (a + 3)) * near * near + 1,
        ((a * (1 + near) - 5 * a) * (1 + near) + 8 * a) * (1 + near) - 4 * a,
    ]


OPERATORS = {"AffineGrid": affine_grid, "GridSample": grid_sample}
