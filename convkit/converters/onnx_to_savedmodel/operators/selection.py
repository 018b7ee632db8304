"""Elements chosen by their values."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    known_int,
    normal_axis,
    rank_of,
    scalar,
    single,
)


def top_k(
    x: tf.Tensor, k: Int, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """ONNX TopK; of equal elements the one with the lower index goes first."""
    del sorted  # sorted is one of the orders that unsorted allows
    rank = rank_of(x)
    axis = normal_axis(axis, rank)
    order = [*(n for n in range(rank) if n != axis), axis]
    back = [order.index(n) for n in range(rank)]
    moved = x if axis == rank - 1 else tf.transpose(x, order)
    static = known_int(k)
    count = tf.constant(static, tf.int32) if static is not None else scalar(k, tf.int32)
    _, index = tf.math.top_k(moved if largest else _descending(moved), count)
    values = tf.gather(moved, index, batch_dims=rank - 1)
    index = tf.cast(index, tf.int64)
    if axis == rank - 1:
        return values, index
    return tf.transpose(values, back), tf.transpose(index, back)


def _descending(x: tf.Tensor) -> tf.Tensor:
    """Numbers whose order is the reverse of `x`'s, without overflow."""
    return tf.bitwise.invert(x) if x.dtype.is_integer else -x


def non_zero(x: tf.Tensor) -> tf.Tensor:
    """ONNX NonZero: (rank, count), in the order of the elements."""
    return tf.transpose(tf.where(tf.not_equal(x, tf.zeros([], x.dtype))))


def compress(x: tf.Tensor, condition: tf.Tensor, *, axis: int | None = None) -> tf.Tensor:
    """ONNX Compress; flattened without an axis. The condition may be shorter than the axis."""
    if axis is None:
        x, axis = tf.reshape(x, [-1]), 0
    kept = tf.where(condition)[:, 0]
    return tf.gather(x, kept, axis=normal_axis(axis, rank_of(x)))


def unique(x: tf.Tensor, *, axis: int | None = None, sorted: int = 1, output_count: int = 1) -> Any:
    """ONNX Unique: the values, where each comes first, which is where, and how often."""
    if axis is None:
        x, axis = tf.reshape(x, [-1]), 0
    axis = normal_axis(axis, rank_of(x))
    _, inverse, counts = tf.raw_ops.UniqueWithCountsV2(
        x=_with_kernel(x), axis=tf.constant([axis], tf.int64), out_idx=tf.int64
    )
    total = tf.size(counts, tf.int64)
    length = tf.shape(x, out_type=tf.int64)[axis]
    first = tf.math.unsorted_segment_min(tf.range(length), inverse, total)
    values = tf.gather(x, first, axis=axis)
    if sorted:
        order = _sorted_slices(values, axis)
        rank_in_order = tf.math.invert_permutation(tf.cast(order, tf.int64))
        values = tf.gather(values, order, axis=axis)
        first, counts = tf.gather(first, order), tf.gather(counts, order)
        inverse = tf.gather(rank_in_order, inverse)
    return single([values, first, inverse, counts], output_count)


def _with_kernel(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.int8) if x.dtype == tf.bool else x


def _sorted_slices(values: tf.Tensor, axis: int) -> tf.Tensor:
    """The order that sorts slices along an axis by their elements, the first one first.

    A stable sort by each element, from the last to the first, sorts by all of them.
    """
    rank = rank_of(values)
    values = tf.cast(values, tf.int32) if values.dtype == tf.bool else values
    rows = tf.transpose(values, [axis, *(n for n in range(rank) if n != axis)])
    if rank == 1:
        return tf.argsort(rows, stable=True)
    rows = tf.reshape(rows, tf.stack([tf.shape(rows)[0], -1]))
    width = tf.shape(rows)[1]

    def step(column: tf.Tensor, order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        keys = tf.gather(rows[:, column], order)
        return column - 1, tf.gather(order, tf.argsort(keys, stable=True))

    _, order = tf.while_loop(
        lambda column, _: column >= 0, step, (width - 1, tf.range(tf.shape(rows)[0]))
    )
    return order


def reverse_sequence(
    x: tf.Tensor, sequence_lens: tf.Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> tf.Tensor:
    """ONNX ReverseSequence: the first so many steps of each sequence reversed."""
    return tf.reverse_sequence(x, sequence_lens, seq_axis=time_axis, batch_axis=batch_axis)


OPERATORS = {
    "Compress": compress,
    "NonZero": non_zero,
    "ReverseSequence": reverse_sequence,
    "TopK": top_k,
    "Unique": unique,
}
