"""Operators on indices, segments and diagonals, and simulated quantization: where tf2onnx errs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


def scatter_nd(indices: tf.Tensor, updates: tf.Tensor, shape: tf.Tensor) -> Any:
    """Updates added up where their indices coincide."""
    if updates.dtype == tf.bool:
        return NotImplemented
    start = tf.zeros(shape, updates.dtype)
    return tf.tensor_scatter_nd_add(start, indices, updates)


def segment_mean(data: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The mean of the rows of each segment; zero where it has none."""
    count = _counts(data, ids, _last_id(ids))
    total = unsorted_segment_sum(data, ids, _last_id(ids))
    return total / tf.maximum(count, 1)


def segment_max(data: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The greatest of each segment; zero where it has no rows."""
    count = _counts(data, ids, _last_id(ids))
    return tf.where(
        count > 0, unsorted_segment_max(data, ids, _last_id(ids)), tf.zeros([], data.dtype)
    )


def segment_min(data: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The least of each segment; zero where it has no rows."""
    count = _counts(data, ids, _last_id(ids))
    return tf.where(
        count > 0, unsorted_segment_min(data, ids, _last_id(ids)), tf.zeros([], data.dtype)
    )


def unsorted_segment_sum(data: tf.Tensor, ids: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The sum of each segment; rows with a negative id fall away."""
    rows, places, start = _segments(data, ids, count, 0)
    return tf.tensor_scatter_nd_add(start, places, rows)[:-1]


def unsorted_segment_max(data: tf.Tensor, ids: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The greatest of each segment; the least number there is where it has no rows."""
    rows, places, start = _segments(data, ids, count, data.dtype.min)
    return tf.tensor_scatter_nd_max(start, places, rows)[:-1]


def unsorted_segment_min(data: tf.Tensor, ids: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The least of each segment; the greatest number there is where it has no rows."""
    rows, places, start = _segments(data, ids, count, data.dtype.max)
    return tf.tensor_scatter_nd_min(start, places, rows)[:-1]


def matrix_set_diag(matrix: tf.Tensor, diagonal: tf.Tensor, k: tf.Tensor | None = None) -> Any:
    """The matrix with one diagonal replaced."""
    offset = _single_offset(k)
    if offset is None:
        return NotImplemented
    rows, columns = (_size(matrix, axis) for axis in (-2, -1))
    is_there = tf.equal(tf.range(columns)[tf.newaxis, :] - tf.range(rows)[:, tf.newaxis], offset)
    # Element (i, i + offset) takes number i, or i + offset where that is negative.
    along = tf.range(rows) + min(offset, 0)
    index = tf.clip_by_value(along, 0, _size(diagonal, -1) - 1)
    spread = tf.gather(diagonal, index, axis=-1)[..., tf.newaxis]  # (..., rows, 1)
    return tf.where(is_there, spread, matrix)


def strided_slice(
    x: tf.Tensor,
    begin: tf.Tensor,
    end: tf.Tensor,
    strides: tf.Tensor,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Any:
    """A slice that makes new axes: the slice without them, then the axes."""
    entries = begin.shape[0]
    if not new_axis_mask or entries is None or x.shape.rank is None:
        return NotImplemented
    masks = [begin_mask, end_mask, ellipsis_mask, shrink_axis_mask]
    named = [i for i in range(entries) if not (new_axis_mask | ellipsis_mask) >> i & 1]
    covered = x.shape.rank - len(named)
    # tf2onnx counts an ellipsis that stands for no axis as one.
    kept = [i for i in range(entries) if i in named or (ellipsis_mask >> i & 1 and covered)]
    begins, ends, steps = (tf.gather(v, kept) for v in (begin, end, strides))
    short = [sum((mask >> i & 1) << at for at, i in enumerate(kept)) for mask in masks]
    sliced = tf.raw_ops.StridedSlice(
        input=x, begin=begins, end=ends, strides=steps,
        begin_mask=short[0], end_mask=short[1], ellipsis_mask=short[2],
        new_axis_mask=0, shrink_axis_mask=short[3],
    )  # fmt: skip
    axes, position = [], 0
    for i in range(entries):
        if ellipsis_mask >> i & 1:
            position += covered
        elif new_axis_mask >> i & 1:
            axes.append(position)
            position += 1
        elif not shrink_axis_mask >> i & 1:
            position += 1
    for axis in axes:
        sliced = tf.expand_dims(sliced, axis)
    return sliced


def fake_quant_with_min_max_vars(
    x: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
) -> tf.Tensor:
    """Rounds to the steps of an integer range that is moved so that zero is one of them.

    Source: TensorFlow, core/kernels/fake_quant_ops_functor.h.
    """
    least = 1.0 if narrow_range else 0.0
    greatest = float(2**num_bits - 1)
    step = (high - low) / (greatest - least)
    zero = least - low / step
    nudged = tf.where(
        zero < least, least, tf.where(zero > greatest, greatest, tf.floor(zero + 0.5))
    )
    bottom, top = (least - nudged) * step, (greatest - nudged) * step
    clamped = tf.minimum(tf.maximum(x, bottom), top)
    return tf.floor((clamped - bottom) / step + 0.5) * step + bottom


def fake_quant_with_min_max_args(
    x: tf.Tensor,
    *,
    min: float = -6.0,
    max: float = 6.0,
    num_bits: int = 8,
    narrow_range: bool = False,
) -> tf.Tensor:
    """The same with a range known beforehand."""
    low, high = tf.constant(min, tf.float32), tf.constant(max, tf.float32)
    return fake_quant_with_min_max_vars(x, low, high, num_bits=num_bits, narrow_range=narrow_range)


def _segments(
    data: tf.Tensor, ids: tf.Tensor, count: tf.Tensor, fill: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Rows, where they go, and the start: a row per segment and one for what falls away."""
    inner = tf.shape(data)[ids.shape.rank :]
    rows = tf.reshape(data, tf.concat([[-1], inner], 0))
    places = tf.cast(tf.reshape(ids, [-1]), tf.int32)
    count = tf.cast(count, tf.int32)
    places = tf.where((places < 0) | (places >= count), count, places)[:, tf.newaxis]
    start = tf.fill(tf.concat([[count + 1], inner], 0), tf.constant(fill, data.dtype))
    return rows, places, start


def _counts(data: tf.Tensor, ids: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Rows per segment, shaped to go with the rows."""
    ones = tf.ones(tf.shape(ids), data.dtype)
    counted = unsorted_segment_sum(ones, ids, count)
    return tf.reshape(counted, [-1, *[1] * (data.shape.rank - 1)])


def _last_id(ids: tf.Tensor) -> tf.Tensor:
    return tf.cast(ids[-1], tf.int32) + 1


def _single_offset(k: tf.Tensor | None) -> int | None:
    """Which diagonal is meant, where it is known and one."""
    if k is None:
        return 0
    value = tf.get_static_value(k)
    offsets = set() if value is None else set(np.ravel(value).tolist())
    return int(offsets.pop()) if len(offsets) == 1 else None


def _size(x: tf.Tensor, axis: int) -> Any:
    size = x.shape[axis]
    return tf.shape(x)[axis] if size is None else size


EXPANSIONS: Mapping[str, Callable[..., Any]] = {
    "FakeQuantWithMinMaxArgs": fake_quant_with_min_max_args,
    "FakeQuantWithMinMaxVars": fake_quant_with_min_max_vars,
    "FakeQuantWithMinMaxVarsPerChannel": fake_quant_with_min_max_vars,
    "MatrixSetDiag": matrix_set_diag,
    "MatrixSetDiagV2": matrix_set_diag,
    "MatrixSetDiagV3": matrix_set_diag,
    "ScatterNd": scatter_nd,
    "SegmentMax": segment_max,
    "SegmentMaxV2": segment_max,
    "SegmentMean": segment_mean,
    "SegmentMin": segment_min,
    "SegmentMinV2": segment_min,
    "StridedSlice": strided_slice,
    "UnsortedSegmentMax": unsorted_segment_max,
    "UnsortedSegmentMin": unsorted_segment_min,
    "UnsortedSegmentSum": unsorted_segment_sum,
}
