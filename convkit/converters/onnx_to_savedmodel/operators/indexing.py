"""Elements taken from and put to places that a tensor of indices names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    as_shape,
    computed_in,
    known_int,
    normal_axis,
    rank_of,
    scalar,
    sizes_of,
)


def from_front(indices: tf.Tensor, length: Any) -> tf.Tensor:
    """Indices with negative ones counted from the back, as int64 or int32."""
    indices = indices if indices.dtype in (tf.int32, tf.int64) else tf.cast(indices, tf.int64)
    static = tf.get_static_value(indices)
    if static is not None and (static >= 0).all():
        return indices
    return tf.where(indices < 0, indices + tf.cast(length, indices.dtype), indices)


def gather(data: tf.Tensor, indices: tf.Tensor, *, axis: int = 0) -> tf.Tensor:
    """ONNX Gather."""
    axis = normal_axis(axis, rank_of(data))
    return tf.gather(data, from_front(indices, sizes_of(data)[axis]), axis=axis)


def gather_elements(data: tf.Tensor, indices: tf.Tensor, *, axis: int = 0) -> tf.Tensor:
    """ONNX GatherElements."""
    axis = normal_axis(axis, rank_of(data))
    return tf.gather_nd(data, _coordinates(data, indices, axis))


def _coordinates(data: tf.Tensor, indices: tf.Tensor, axis: int) -> tf.Tensor:
    """Each index with its own position as coordinates: (indices' shape..., rank)."""
    sizes = tf.shape(indices, out_type=tf.int64)
    rank = rank_of(indices)
    along = []
    for n in range(rank):
        if n == axis:
            along.append(tf.cast(from_front(indices, sizes_of(data)[axis]), tf.int64))
            continue
        own = tf.reshape(tf.range(sizes[n]), [-1 if m == n else 1 for m in range(rank)])
        along.append(tf.broadcast_to(own, sizes))
    return tf.stack(along, -1)


def gather_nd(data: tf.Tensor, indices: tf.Tensor, *, batch_dims: int = 0) -> tf.Tensor:
    """ONNX GatherND."""
    indices = from_front(indices, _indexed_lengths(data, indices, batch_dims))
    return tf.gather_nd(data, indices, batch_dims=batch_dims)


def _indexed_lengths(data: tf.Tensor, indices: tf.Tensor, start: int = 0) -> tf.Tensor:
    """The dimensions of `data` that the last axis of the indices goes through."""
    depth = sizes_of(indices)[-1]
    if not tf.is_tensor(depth):
        return tf.cast(as_shape(sizes_of(data)[start : start + depth]), tf.int64)
    return tf.shape(data, out_type=tf.int64)[start : tf.cast(depth, tf.int32) + start]


_SCATTERS: dict[str, Callable[..., tf.Tensor]] = {
    "none": tf.tensor_scatter_nd_update,
    "add": tf.tensor_scatter_nd_add,
    "max": tf.tensor_scatter_nd_max,
    "min": tf.tensor_scatter_nd_min,
}
_BOOLEANS = {tf.bool: tf.int8}


def _scattered(
    data: tf.Tensor, coordinates: tf.Tensor, updates: tf.Tensor, reduction: str
) -> tf.Tensor:
    if reduction == "mul":
        return _multiplied(data, coordinates, updates)
    function = _SCATTERS[reduction]
    if reduction == "none":
        return function(data, coordinates, updates)
    return computed_in(_BOOLEANS, lambda a, b: function(a, coordinates, b), data, updates)


def _multiplied(data: tf.Tensor, coordinates: tf.Tensor, updates: tf.Tensor) -> tf.Tensor:
    """The product with all updates of a place: TensorFlow has segments for it, no scatter."""
    shape = tf.shape(data, out_type=tf.int64)
    depth = tf.shape(coordinates)[-1]
    inner = tf.reduce_prod(shape[depth:])
    steps = tf.math.cumprod(shape[:depth], exclusive=True, reverse=True)
    places = tf.reshape(tf.reduce_sum(coordinates * steps, -1), [-1])
    rows = tf.reshape(updates, tf.stack([tf.size(places, tf.int64), inner]))
    factors = tf.math.unsorted_segment_prod(rows, places, tf.reduce_prod(shape[:depth]))
    return data * tf.reshape(factors, shape)


def scatter_elements(
    data: tf.Tensor,
    indices: tf.Tensor,
    updates: tf.Tensor,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> tf.Tensor:
    """ONNX ScatterElements; of several updates of one place without reduction any may stay."""
    coordinates = _coordinates(data, indices, normal_axis(axis, rank_of(data)))
    return _scattered(data, coordinates, updates, reduction)


def scatter_nd(
    data: tf.Tensor, indices: tf.Tensor, updates: tf.Tensor, *, reduction: str = "none"
) -> tf.Tensor:
    """ONNX ScatterND."""
    coordinates = from_front(indices, _indexed_lengths(data, indices))
    return _scattered(data, coordinates, updates, reduction)


def tensor_scatter(
    past_cache: tf.Tensor,
    update: tf.Tensor,
    write_indices: tf.Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> tf.Tensor:
    """ONNX TensorScatter: each batch's update is written from its own index on, or circularly."""
    rank = rank_of(past_cache)
    axis = normal_axis(axis, rank)
    order = [0, axis, *(n for n in range(1, rank) if n != axis)]
    inverse = [order.index(n) for n in range(rank)]
    cache, rows = tf.transpose(past_cache, order), tf.transpose(update, order)
    batch, count = tf.unstack(tf.shape(rows, out_type=tf.int64)[:2])
    start = tf.zeros([batch], tf.int64) if write_indices is None else write_indices
    places = tf.cast(start, tf.int64)[:, None] + tf.range(count)
    if mode == "circular":
        places %= tf.shape(cache, out_type=tf.int64)[1]
    owners = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(places))
    written = tf.tensor_scatter_nd_update(cache, tf.stack([owners, places], -1), rows)
    return tf.transpose(written, inverse)


def one_hot(indices: tf.Tensor, depth: Int, values: tf.Tensor, *, axis: int = -1) -> tf.Tensor:
    """ONNX OneHot; negative indices count from the back, those out of range give no hot element."""
    axis = normal_axis(axis, rank_of(indices) + 1)
    static = known_int(depth)
    size = tf.constant(static, tf.int32) if static is not None else scalar(depth, tf.int32)
    places = tf.cast(indices, tf.int64)
    places = tf.where(places < 0, places + tf.cast(size, tf.int64), places)
    if values.dtype in (tf.bool, tf.string):
        hot = tf.one_hot(places, size, True, False, axis, tf.bool)
        return tf.where(hot, values[1], values[0])
    return tf.one_hot(places, size, values[1], values[0], axis)


OPERATORS = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
}
