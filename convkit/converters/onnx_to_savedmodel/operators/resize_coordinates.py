"""Where Resize looks along one axis: coordinates in the input, neighbours and their weights.

All numbers are float32, as in ONNX Runtime. What is known while tracing becomes constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import Size


@dataclass(frozen=True)
class ResizedAxis:
    """One axis that Resize changes.

    Attributes:
        axis: its place in the tensor.
        length: elements in.
        count: elements out.
        scale: float32, out per in, as given or as it follows from the sizes.
        start: where the region of interest begins, a share of the length.
        end: where it ends.
        is_quotient: whether the scale is the count divided by the length, by definition.
    """

    axis: int
    length: Size
    count: Size
    scale: Any
    start: Any = 0.0
    end: Any = 1.0
    is_quotient: bool = False

    @property
    def is_static(self) -> bool:
        """Whether everything is known while tracing."""
        fields = (self.length, self.count, self.scale, self.start, self.end)
        return not any(tf.is_tensor(field) for field in fields)


@dataclass(frozen=True)
class Filter:
    """How neighbours are weighted.

    Attributes:
        mode: "nearest", "linear" or "cubic".
        nearest_mode: the rounding of "nearest".
        cubic_coeff_a: the coefficient of "cubic".
        antialias: whether the filter is stretched when there are fewer elements out than in.
        exclude_outside: whether neighbours outside have no weight.
    """

    mode: str
    nearest_mode: str
    cubic_coeff_a: float
    antialias: bool
    exclude_outside: bool


def _float(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.float32)


def coordinates(along: ResizedAxis, mode: str) -> tf.Tensor:
    """For each element out, its place among the elements in.

    Source: the attribute coordinate_transformation_mode in the documentation of ONNX Resize.
    """
    x = tf.range(_float(along.count), dtype=tf.float32)
    length, scale = _float(along.length), _float(along.scale)
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "asymmetric":
        return x / scale
    if mode == "pytorch_half_pixel":
        return tf.where(_float(along.count) > 1, (x + 0.5) / scale - 0.5, tf.zeros_like(x))
    if mode == "align_corners":
        return tf.math.divide_no_nan(x * (length - 1), scale * length - 1)
    if mode == "half_pixel_symmetric":
        adjustment = _float(along.count) / (scale * length)
        return length / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        return _cropped(along, x, length)
    raise ValueError(f"unknown coordinate_transformation_mode of Resize: {mode}")


def _cropped(along: ResizedAxis, x: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    count, start, end = _float(along.count), _float(along.start), _float(along.end)
    steps = tf.maximum(count - 1, 1)
    inside = start * (length - 1) + x * (end - start) * (length - 1) / steps
    middle = 0.5 * (start + end) * (length - 1)
    return tf.where(count > 1, inside, middle + tf.zeros_like(x))


def neighbours(along: ResizedAxis, place: tf.Tensor, how: Filter) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices and weights of the elements in that make each element out, both (count, taps)."""
    if how.mode == "nearest":
        index = tf.cast(_rounded(place, how.nearest_mode), tf.int64)[:, None]
        weights = tf.ones_like(index, tf.float32)
    else:
        index, weights = _weighted(along, place, how)
    last = tf.cast(along.length, tf.int64) - 1
    if how.exclude_outside:
        outside = tf.logical_or(index < 0, index > last)
        weights = tf.where(outside, tf.zeros_like(weights), weights)
        weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, 1, keepdims=True))
    return tf.clip_by_value(index, 0, last), weights


def _rounded(place: tf.Tensor, mode: str) -> tf.Tensor:
    if mode == "floor":
        return tf.floor(place)
    if mode == "ceil":
        return tf.math.ceil(place)
    if mode == "round_prefer_ceil":
        return tf.floor(place + 0.5)
    return tf.math.ceil(place - 0.5)


def _weighted(along: ResizedAxis, place: tf.Tensor, how: Filter) -> tuple[tf.Tensor, tf.Tensor]:
    """Neighbours of "linear" and "cubic"; with antialias as many as the stretched filter covers."""
    radius = 1 if how.mode == "linear" else 2
    shrink: Any = 1.0
    if how.antialias:
        shrink = tf.minimum(_float(along.scale), 1.0)
    reach = tf.cast(tf.math.ceil(radius / shrink), tf.int64)
    below = tf.floor(place)
    taps = tf.range(1 - reach, reach + 1)
    index = tf.cast(below, tf.int64)[:, None] + taps
    distance = (_float(taps) - (place - below)[:, None]) * shrink
    weights = _KERNELS[how.mode](tf.abs(distance), how.cubic_coeff_a)
    if how.antialias:
        weights /= tf.reduce_sum(weights, 1, keepdims=True)
    return index, weights


def _triangle(x: tf.Tensor, a: float) -> tf.Tensor:
    del a
    return tf.maximum(1 - x, 0)


def _cubic(x: tf.Tensor, a: float) -> tf.Tensor:
    """Source: Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return tf.where(x <= 1, near, tf.where(x < 2, far, tf.zeros_like(x)))


_KERNELS: dict[str, Callable[[tf.Tensor, float], tf.Tensor]] = {
    "linear": _triangle,
    "cubic": _cubic,
}


def plan(
    along: ResizedAxis, coordinate_mode: str, how: Filter
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Indices, weights, and whether each place lies outside; constants where that is possible."""
    if along.is_static:
        with tf.init_scope():
            arrays = [np.asarray(part) for part in _plan(along, coordinate_mode, how)]
        index, weights, outside = (tf.constant(array) for array in arrays)
        return index, weights, outside
    return _plan(along, coordinate_mode, how)


def _plan(
    along: ResizedAxis, coordinate_mode: str, how: Filter
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    place = coordinates(along, coordinate_mode)
    index, weights = neighbours(along, place, how)
    outside = tf.logical_or(place < 0, place > _float(along.length) - 1)
    return index, weights, outside
