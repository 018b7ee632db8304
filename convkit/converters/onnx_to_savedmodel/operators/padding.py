"""Padding and cropping."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Ints,
    Size,
    known_ints,
    normal_axis,
    parts,
    rank_of,
    sizes_of,
    vector,
)


def pad(
    data: tf.Tensor,
    pads: Ints,
    constant_value: tf.Tensor | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> tf.Tensor:
    """ONNX Pad; negative amounts crop."""
    rank = rank_of(data)
    along = known_ints(axes)
    if axes is not None and along is None:
        rows = _run_time_rows(rank, vector(pads), vector(axes))
    else:
        along = list(range(rank)) if along is None else [normal_axis(n, rank) for n in along]
        rows = _rows(rank, along, pads)
    cropped, amounts = _cropped(data, rows)
    if mode == "constant":
        return _constant(cropped, amounts, constant_value)
    for axis, (before, after) in enumerate(amounts):
        if tf.is_tensor(before) or tf.is_tensor(after) or before or after:
            cropped = _extended(cropped, axis, before, after, mode)
    return cropped


def _rows(rank: int, along: list[int], pads: Ints) -> list[list[Size]]:
    """Amounts before and after each axis."""
    rows: list[list[Size]] = [[0, 0] for _ in range(rank)]
    if tf.is_tensor(pads) and known_ints(pads) is None:
        amounts: Any = tf.reshape(tf.cast(pads, tf.int64), [2 * len(along)])
        amounts = tf.unstack(amounts)
    else:
        amounts = parts(pads)
    for n, axis in enumerate(along):
        rows[axis] = [amounts[n], amounts[n + len(along)]]
    return rows


def _run_time_rows(rank: int, pads: tf.Tensor, axes: tf.Tensor) -> list[list[Size]]:
    pairs = tf.transpose(tf.reshape(pads, [2, -1]))
    table = tf.tensor_scatter_nd_update(
        tf.zeros([rank, 2], tf.int64), (axes % rank)[:, None], pairs
    )
    return [list(tf.unstack(row)) for row in tf.unstack(table)]


def _cropped(x: tf.Tensor, rows: list[list[Size]]) -> tuple[tf.Tensor, list[list[Size]]]:
    """`x` without what negative amounts cut off, and the amounts that remain."""
    index: list[Any] = []
    left: list[list[Size]] = []
    for (before, after), size in zip(rows, sizes_of(x), strict=True):
        start, before = _split(before)
        cut, after = _split(after)
        if not tf.is_tensor(cut) and cut == 0:
            stop: Any = None
        else:
            stop = size - cut
            stop = tf.cast(stop, tf.int32) if tf.is_tensor(stop) else stop
        index.append(slice(tf.cast(start, tf.int32) if tf.is_tensor(start) else start, stop))
        left.append([before, after])
    if all(part == slice(0, None) for part in index if not tf.is_tensor(part.start)) and not any(
        tf.is_tensor(part.start) for part in index
    ):
        return x, left
    return x[tuple(index)], left


def _split(amount: Size) -> tuple[Size, Size]:
    """How much is cut off and how much is added."""
    if tf.is_tensor(amount):
        return tf.maximum(-amount, 0), tf.maximum(amount, 0)
    return max(-amount, 0), max(amount, 0)


def _constant(
    x: tf.Tensor, amounts: list[list[Size]], constant_value: tf.Tensor | None
) -> tf.Tensor:
    if any(tf.is_tensor(size) for row in amounts for size in row):
        table: Any = tf.stack([tf.stack([tf.cast(n, tf.int64) for n in row]) for row in amounts])
    elif not any(map(any, amounts)):
        return tf.identity(x)
    else:
        table = amounts
    if constant_value is None:
        return tf.pad(x, table)
    return tf.pad(x, table, constant_values=tf.reshape(tf.cast(constant_value, x.dtype), []))


def _extended(x: tf.Tensor, axis: int, before: Size, after: Size, mode: str) -> tf.Tensor:
    """One axis continued beyond its ends by its own elements."""
    length = sizes_of(x)[axis]
    is_static = not any(tf.is_tensor(n) for n in (before, after, length))
    if mode == "reflect" and is_static and max(before, after) < length:
        rows = [[0, 0] for _ in range(rank_of(x))]
        rows[axis] = [before, after]
        return tf.pad(x, rows, "REFLECT")
    size = tf.cast(length, tf.int64)
    index = tf.range(-tf.cast(before, tf.int64), size + tf.cast(after, tf.int64))
    if mode == "edge":
        index = tf.clip_by_value(index, 0, size - 1)
    elif mode == "wrap":
        index = tf.math.floormod(index, size)
    elif mode == "reflect":
        # A reflection has the period 2 * (length - 1), the ends are not repeated.
        period = tf.maximum(2 * (size - 1), 1)
        index = tf.math.floormod(index, period)
        index = tf.minimum(index, period - index) * tf.cast(size > 1, tf.int64)
    else:
        raise ValueError(f"unknown mode of Pad: {mode}")
    result = tf.gather(x, index, axis=axis)
    if is_static:
        shape = x.shape.as_list()
        shape[axis] = length + before + after
        result = tf.ensure_shape(result, shape)
    return result


def center_crop_pad(x: tf.Tensor, shape: Ints, *, axes: list[int] | None = None) -> tf.Tensor:
    """ONNX CenterCropPad; where the difference is odd, the end has one more."""
    rank = rank_of(x)
    along = list(range(rank)) if axes is None else [normal_axis(axis, rank) for axis in axes]
    wanted = _wanted(shape, len(along))
    sizes = sizes_of(x)
    rows: list[list[Size]] = [[0, 0] for _ in range(rank)]
    for axis, size in zip(along, wanted, strict=True):
        rows[axis] = _centred(sizes[axis], size)
    cropped, amounts = _cropped(x, rows)
    return _constant(cropped, amounts, None)


def _wanted(shape: Ints, count: int) -> list[Size]:
    if tf.is_tensor(shape) and known_ints(shape) is None:
        return list(tf.unstack(tf.reshape(tf.cast(shape, tf.int64), [count])))
    return parts(shape)


def _centred(size: Size, wanted: Size) -> list[Size]:
    """Amounts before and after; both signs halve towards zero, as the crop starts early."""
    difference = wanted - size
    if tf.is_tensor(difference):
        before = tf.sign(difference) * (tf.abs(difference) // 2)
    else:
        before = difference // 2 if difference >= 0 else -(-difference // 2)
    return [before, difference - before]


OPERATORS = {"CenterCropPad": center_crop_pad, "Pad": pad}
