"""What operator functions take besides tensors, and how both kinds are read.

A parameter annotated with one of these aliases accepts Python values, which the caller passes
whenever they are known, or a tensor for a true run-time input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Ints: TypeAlias = "Sequence[int] | tf.Tensor"
"""Integers in one dimension: a shape, axes, pads, starts, repeats."""
Int: TypeAlias = "int | tf.Tensor"
"""One integer: k, the axis of CumSum, a depth."""
Floats: TypeAlias = "Sequence[float] | tf.Tensor"
"""Numbers in one dimension: scales, a region of interest."""
Number: TypeAlias = "float | tf.Tensor"
"""One number: a bound of Clip."""

Size: TypeAlias = "int | tf.Tensor"
"""A dimension: a Python integer where it is static, else an int64 scalar."""

FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
UNSIGNED = (tf.uint8, tf.uint16, tf.uint32, tf.uint64)
NARROW_INTS = (tf.int8, tf.int16, tf.uint8, tf.uint16)


def known(value: Any) -> np.ndarray[Any, Any] | None:
    """The value as an array where it is known while tracing, else None."""
    if value is None:
        return None
    if tf.is_tensor(value):
        static = tf.get_static_value(value)
        return None if static is None else np.asarray(static)
    if isinstance(value, (list, tuple)) and any(tf.is_tensor(part) for part in value):
        parts = [known(part) for part in value]
        return None if any(part is None for part in parts) else np.asarray(parts)
    return np.asarray(value)


def known_ints(value: Ints | None) -> list[int] | None:
    """The integers where they are known while tracing, else None."""
    array = known(value)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def known_int(value: Int | None) -> int | None:
    """The integer where it is known while tracing, else None."""
    array = known(value)
    return None if array is None else int(array.reshape(()))


def known_floats(value: Floats | None) -> list[float] | None:
    """The numbers where they are known while tracing, else None."""
    array = known(value)
    return None if array is None else [float(number) for number in array.reshape(-1)]


def vector(value: Any, dtype: tf.DType = tf.int64) -> tf.Tensor:
    """The values as a tensor of one dimension."""
    if tf.is_tensor(value):
        return tf.reshape(tf.cast(value, dtype), [-1])
    parts = list(value)
    if any(tf.is_tensor(part) for part in parts):
        return tf.stack([scalar(part, dtype) for part in parts])
    return tf.constant(np.asarray(parts).reshape(-1), dtype)


def scalar(value: Any, dtype: tf.DType) -> tf.Tensor:
    """The value as a tensor without dimensions."""
    if tf.is_tensor(value):
        return tf.reshape(tf.cast(value, dtype), [])
    return tf.constant(np.asarray(value).reshape(()).item(), dtype)


def parts(value: Ints, count: int | None = None) -> list[Size]:
    """The integers one by one: Python integers where known, else int64 scalars.

    Args:
        value: the integers.
        count: how many there are, where the operator's other inputs tell.

    Raises:
        ValueError: their number is not known while tracing.
    """
    static = known_ints(value)
    if static is not None:
        return list(static)
    if not tf.is_tensor(value):
        return [tf.cast(part, tf.int64) if tf.is_tensor(part) else int(part) for part in value]
    flat = tf.reshape(tf.cast(value, tf.int64), [-1 if count is None else count])
    if flat.shape[0] is None:
        raise ValueError("the number of values must be known while tracing")
    return list(tf.unstack(flat))


def has_unknown_length(value: Ints) -> bool:
    """Whether it is not even known while tracing how many integers there are."""
    return bool(tf.is_tensor(value)) and length_of(value) is None


def length_of(value: Ints) -> int | None:
    """How many integers there are, where that is known while tracing."""
    if isinstance(value, (list, tuple)):
        return len(value)
    tensor: Any = value
    return None if tensor.shape.rank != 1 or tensor.shape[0] is None else int(tensor.shape[0])


def as_shape(sizes: Sequence[Size]) -> list[int] | tf.Tensor:
    """Dimensions as TensorFlow's shape arguments take them, static ones kept static."""
    if all(isinstance(size, (int, np.integer)) for size in sizes):
        return [int(size) for size in sizes]
    return tf.stack([tf.cast(size, tf.int64) for size in sizes])


def sizes_of(x: tf.Tensor) -> list[Size]:
    """The dimensions of `x`, Python integers where they are static."""
    static = x.shape.as_list()
    if None not in static:
        return list(static)
    dynamic = tf.shape(x, out_type=tf.int64)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]


def rank_of(x: tf.Tensor) -> int:
    """The number of dimensions of `x`.

    Raises:
        ValueError: it is not known while tracing.
    """
    rank = x.shape.rank
    if rank is None:
        raise ValueError("the rank of a tensor must be known while tracing")
    return int(rank)


def product(sizes: Sequence[Size]) -> Size:
    """The product of dimensions; 1 for none."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def normal_axis(axis: int, rank: int) -> int:
    """The axis counted from the front."""
    return axis + rank if axis < 0 else axis


def computed_in(
    widths: dict[tf.DType, tf.DType], function: Callable[..., Any], *inputs: tf.Tensor
) -> Any:
    """`function` of the inputs in a dtype that has a kernel, the result in the dtype they came in.

    Args:
        widths: for a dtype without a kernel, one with a kernel that holds all its values.
        function: takes tensors of one dtype and gives one tensor of that dtype.
        *inputs: tensors of one dtype.
    """
    dtype = inputs[0].dtype
    wide = widths.get(dtype, dtype)
    if wide == dtype:
        return function(*inputs)
    return tf.cast(function(*(tf.cast(x, wide) for x in inputs)), dtype)


def dtype_bounds(dtype: tf.DType) -> tuple[Any, Any]:
    """The least and the greatest value of a numeric dtype, infinities for floats."""
    if dtype.is_floating:
        return -np.inf, np.inf
    if dtype == tf.bool:
        return False, True
    return dtype.min, dtype.max


def single(results: Sequence[Any], output_count: int) -> Any:
    """The first `output_count` results; a bare one when it is one."""
    return results[0] if output_count == 1 else tuple(results[:output_count])
