"""Resizing: by TensorFlow's image kernels where they compute the same, else axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.channels import from_last, to_last
from convkit.converters.onnx_to_savedmodel.operators.resize_coordinates import (
    Filter,
    ResizedAxis,
    plan,
)
from convkit.converters.onnx_to_savedmodel.operators.values import (
    FLOATS,
    Floats,
    Ints,
    Size,
    known_floats,
    normal_axis,
    parts,
    rank_of,
    sizes_of,
)

_CROP = "tf_crop_and_resize"


def resize(
    x: tf.Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    layout: str = "NCHW",
) -> tf.Tensor:
    """ONNX Resize.

    Args:
        x: (batch, channels, spatial...), or channels last with layout "NHWC".
        roi: starts, then ends, of the axes, for tf_crop_and_resize.
        scales: one per axis, unless `sizes` is given.
        sizes: one per axis.
        antialias: stretch the filter when shrinking.
        axes: what the above refer to; all axes if None.
        coordinate_transformation_mode: how places out become places in.
        cubic_coeff_a: the coefficient of "cubic".
        exclude_outside: neighbours outside have no weight.
        extrapolation_value: for places outside, for tf_crop_and_resize.
        keep_aspect_ratio_policy: "stretch", "not_larger" or "not_smaller".
        mode: "nearest", "linear" or "cubic".
        nearest_mode: the rounding of "nearest".
        layout: "NCHW" or "NHWC".
    """
    rank = rank_of(x)
    wanted = [normal_axis(axis, rank) for axis in axes] if axes else list(range(rank))
    places = [_place(axis, rank, layout) for axis in wanted]
    is_crop = coordinate_transformation_mode == _CROP
    region = _region(roi, len(places)) if is_crop else [(0.0, 1.0)] * len(places)
    changed = [
        along
        for along in _axes(x, places, region, scales, sizes, keep_aspect_ratio_policy)
        if not _is_same(along, is_crop)
    ]
    how = Filter(mode, nearest_mode, cubic_coeff_a, bool(antialias), bool(exclude_outside))
    if not changed:
        return tf.identity(x)
    y = _by_kernel(x, changed, coordinate_transformation_mode, how, layout)
    if y is None:
        y = _by_axis(x, changed, coordinate_transformation_mode, how, extrapolation_value)
    return y


def _place(axis: int, rank: int, layout: str) -> int:
    """Where an ONNX axis stands in the tensor."""
    if layout == "NCHW" or axis == 0:
        return axis
    return rank - 1 if axis == 1 else axis - 1


def _region(roi: Floats | None, count: int) -> list[tuple[Any, Any]]:
    if roi is None:
        return [(0.0, 1.0)] * count
    static = known_floats(roi)
    numbers = static if static is not None else tf.unstack(tf.cast(roi, tf.float32), 2 * count)
    return [(numbers[n], numbers[n + count]) for n in range(count)]


def _axes(
    x: tf.Tensor,
    places: Sequence[int],
    region: Sequence[tuple[Any, Any]],
    scales: Floats | None,
    sizes: Ints | None,
    policy: str,
) -> list[ResizedAxis]:
    lengths = [sizes_of(x)[place] for place in places]
    if sizes is not None:
        counts, factors = _from_sizes(lengths, parts(sizes, len(places)), policy)
    else:
        factors = _factors(scales, len(places))
        counts = [
            _count(length, factor, end - start)
            for length, factor, (start, end) in zip(lengths, factors, region, strict=True)
        ]
    rows = zip(places, lengths, counts, factors, region, strict=True)
    by_size = sizes is not None and policy == "stretch"
    return [ResizedAxis(p, n, c, f, start, end, by_size) for p, n, c, f, (start, end) in rows]


def _factors(scales: Floats | None, count: int) -> list[Any]:
    if scales is None:
        raise ValueError("Resize has neither scales nor sizes")
    static = known_floats(scales)
    if static is not None:
        return [np.float32(factor) for factor in static]
    return list(tf.unstack(tf.reshape(tf.cast(scales, tf.float32), [count])))


def _count(length: Size, factor: Any, share: Any) -> Size:
    if any(tf.is_tensor(value) for value in (length, factor, share)):
        if not tf.is_tensor(factor) and factor == int(factor) and share == 1:
            return length * int(factor)
        product = tf.cast(length, tf.float32) * tf.cast(share, tf.float32)
        return tf.cast(tf.floor(product * tf.cast(factor, tf.float32)), tf.int64)
    return int(np.floor(np.float32(length) * np.float32(share) * np.float32(factor)))


def _from_sizes(
    lengths: Sequence[Size], sizes: Sequence[Size], policy: str
) -> tuple[list[Size], list[Any]]:
    """Counts and scales; a policy other than "stretch" takes one scale for all axes."""
    factors = [_quotient(size, length) for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return list(sizes), factors
    if any(tf.is_tensor(factor) for factor in factors):
        chosen = (tf.reduce_min if policy == "not_larger" else tf.reduce_max)(tf.stack(factors))
        counts = [
            tf.cast(tf.floor(chosen * tf.cast(length, tf.float32) + 0.5), tf.int64)
            for length in lengths
        ]
        return counts, [chosen] * len(counts)
    best = (min if policy == "not_larger" else max)(factors)
    return [int(np.floor(best * np.float32(n) + 0.5)) for n in lengths], [best] * len(lengths)


def _quotient(size: Size, length: Size) -> Any:
    if tf.is_tensor(size) or tf.is_tensor(length):
        return tf.cast(size, tf.float32) / tf.cast(length, tf.float32)
    return np.float32(size) / np.float32(length)


def _is_same(along: ResizedAxis, is_crop: bool) -> bool:
    """Whether nothing happens along this axis, whatever its length."""
    if tf.is_tensor(along.scale) or along.scale != 1:
        return along.is_static and along.length == along.count == 1 and not is_crop
    return not is_crop or (not tf.is_tensor(along.start) and (along.start, along.end) == (0, 1))


def _by_kernel(
    x: tf.Tensor, changed: Sequence[ResizedAxis], coordinate_mode: str, how: Filter, layout: str
) -> tf.Tensor | None:
    """The result of an image kernel; None where none computes exactly this."""
    if rank_of(x) != 4:
        return None
    spatial = [1, 2] if layout == "NHWC" else [2, 3]
    by_place = {along.axis: along for along in changed}
    if not by_place.keys() <= set(spatial):
        return None
    flags = _kernel_flags(changed, coordinate_mode, how)
    if flags is None:
        return None
    image = to_last(x, layout)
    lengths = sizes_of(image)[1:3]
    counts = [
        by_place[place].count if place in by_place else length
        for place, length in zip(spatial, lengths, strict=True)
    ]
    size = tf.stack([tf.cast(count, tf.int32) for count in counts])
    if all(not tf.is_tensor(count) for count in counts):
        size = tf.constant([int(count) for count in counts], tf.int32)
    align, half = flags
    if how.mode == "nearest":
        y = tf.raw_ops.ResizeNearestNeighbor(
            images=image, size=size, align_corners=align, half_pixel_centers=half
        )
    else:
        if image.dtype not in (tf.float32, tf.float16, tf.bfloat16):
            return None
        y = tf.raw_ops.ResizeBilinear(
            images=image, size=size, align_corners=align, half_pixel_centers=half
        )
    return from_last(tf.cast(y, x.dtype), layout)


def _kernel_flags(
    changed: Sequence[ResizedAxis], coordinate_mode: str, how: Filter
) -> tuple[bool, bool] | None:
    """align_corners and half_pixel_centers of the kernel that computes this; None for none.

    The kernels take the scale from the sizes, so it must be their quotient.
    """
    if how.antialias or how.exclude_outside or not all(map(_is_quotient, changed)):
        return None
    if how.mode == "nearest":
        return _nearest_flags(changed, coordinate_mode, how.nearest_mode)
    if how.mode != "linear":
        return None
    if coordinate_mode == "pytorch_half_pixel":
        many = all(not tf.is_tensor(along.count) and along.count > 1 for along in changed)
        coordinate_mode = "half_pixel" if many else coordinate_mode
    return {
        "half_pixel": (False, True),
        "half_pixel_symmetric": (False, True),
        "align_corners": (True, False),
        "asymmetric": (False, False),
    }.get(coordinate_mode)


def _is_quotient(along: ResizedAxis) -> bool:
    if along.is_quotient:
        return True
    if tf.is_tensor(along.scale):
        return False
    if along.scale == int(along.scale):
        return True
    if tf.is_tensor(along.length) or tf.is_tensor(along.count):
        return False
    return bool(np.float32(along.count) / np.float32(along.length) == along.scale)


def _nearest_flags(
    changed: Sequence[ResizedAxis], coordinate_mode: str, nearest_mode: str
) -> tuple[bool, bool] | None:
    """Enlarging by powers of two, where every rounding is exact and all ways agree."""
    if any(tf.is_tensor(along.scale) or along.scale not in (2, 4, 8, 16) for along in changed):
        return None
    if coordinate_mode == "asymmetric" and nearest_mode == "floor":
        return (False, False)
    if coordinate_mode in ("half_pixel", "half_pixel_symmetric") and "round" in nearest_mode:
        return (False, True)
    return None


def _by_axis(
    x: tf.Tensor,
    changed: Sequence[ResizedAxis],
    coordinate_mode: str,
    how: Filter,
    extrapolation_value: float,
) -> tf.Tensor:
    is_plain = how.mode == "nearest" or x.dtype in (tf.float32, tf.float64)
    y = x if is_plain else tf.cast(x, tf.float32)
    for along in changed:
        index, weights, outside = plan(along, coordinate_mode, how)
        y = _resized(y, along, index, weights, how.mode == "nearest")
        if coordinate_mode == _CROP:
            shape = [-1 if n == along.axis else 1 for n in range(rank_of(x))]
            value = tf.cast(extrapolation_value, y.dtype)
            y = tf.where(tf.reshape(outside, shape), value, y)
    return _rounded_to(y, x.dtype)


def _rounded_to(y: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if dtype.is_integer and y.dtype in FLOATS:
        return tf.saturate_cast(y, dtype)
    return tf.cast(y, dtype)


def _resized(
    x: tf.Tensor, along: ResizedAxis, index: tf.Tensor, weights: tf.Tensor, is_nearest: bool
) -> tf.Tensor:
    """One axis of `x` as weighted sums of its elements."""
    if is_nearest:
        return tf.gather(x, index[:, 0], axis=along.axis)
    taps = index.shape[1]
    weights = tf.cast(weights, x.dtype)
    if taps is None or taps > 4:
        return _as_product(x, along, index, weights)
    shape = [-1 if n == along.axis else 1 for n in range(rank_of(x))]
    total = None
    for tap in range(taps):
        part = tf.gather(x, index[:, tap], axis=along.axis)
        part *= tf.reshape(weights[:, tap], shape)
        total = part if total is None else total + part
    return total


def _as_product(
    x: tf.Tensor, along: ResizedAxis, index: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Many neighbours: a product with the matrix (elements in, elements out) of all weights."""
    length = tf.cast(along.length, tf.int64)
    sizes = tf.shape(index, out_type=tf.int64)
    rows = tf.broadcast_to(tf.range(sizes[0])[:, None], sizes)
    matrix = tf.scatter_nd(tf.stack([index, rows], -1), weights, tf.stack([length, sizes[0]]))
    rank = rank_of(x)
    order = [n for n in range(rank) if n != along.axis]
    moved = tf.tensordot(tf.transpose(x, [*order, along.axis]), matrix, 1)
    back = [*order, along.axis]
    return tf.transpose(moved, [back.index(n) for n in range(rank)])


OPERATORS = {"Resize": resize}
