"""The shape of a tensor, and the same elements in another shape."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    Ints,
    Size,
    as_shape,
    has_unknown_length,
    known_int,
    known_ints,
    normal_axis,
    parts,
    product,
    rank_of,
    scalar,
    sizes_of,
    vector,
)


def shape(x: tf.Tensor, *, start: int = 0, end: int | None = None) -> tf.Tensor:
    """ONNX Shape, of the axes from `start` to `end`."""
    return tf.shape(x, out_type=tf.int64)[slice(start, end)]


def size(x: tf.Tensor) -> tf.Tensor:
    """ONNX Size."""
    return tf.size(x, tf.int64)


def reshape(x: tf.Tensor, target: Ints, *, allowzero: int = 0) -> tf.Tensor:
    """ONNX Reshape: a 0 keeps the input's dimension unless `allowzero` is set, -1 is the rest."""
    static = known_ints(target)
    if allowzero or (static is not None and 0 not in static):
        return tf.reshape(x, static if static is not None else vector(target))
    if static is None and has_unknown_length(target):
        return tf.reshape(x, _zeros_replaced(x, vector(target)))
    return tf.reshape(x, as_shape(_target_sizes(x, target)))


def _target_sizes(x: tf.Tensor, target: Ints) -> list[Size]:
    sizes = sizes_of(x)
    result: list[Size] = []
    for axis, wanted in enumerate(parts(target)):
        if axis >= len(sizes) or (not tf.is_tensor(wanted) and wanted != 0):
            result.append(wanted)
        elif not tf.is_tensor(wanted):
            result.append(sizes[axis])
        else:
            result.append(tf.where(tf.equal(wanted, 0), tf.cast(sizes[axis], tf.int64), wanted))
    return result


def _zeros_replaced(x: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """The target with zeros replaced, where not even its length is known."""
    own = tf.shape(x, out_type=tf.int64)
    count = tf.minimum(tf.size(own), tf.size(target))
    own = tf.concat([own[:count], target[count:]], 0)
    return tf.where(tf.equal(target, 0), own, target)


def flatten(x: tf.Tensor, *, axis: int = 1) -> tf.Tensor:
    """ONNX Flatten into two dimensions."""
    sizes = sizes_of(x)
    axis = normal_axis(axis, len(sizes))
    return tf.reshape(x, as_shape([product(sizes[:axis]), product(sizes[axis:])]))


def squeeze(x: tf.Tensor, axes: Ints | None = None) -> tf.Tensor:
    """ONNX Squeeze; all dimensions of 1 without axes."""
    if axes is None:
        return tf.squeeze(x)
    static = known_ints(axes)
    if static is not None:
        return tf.squeeze(x, static) if static else tf.identity(x)
    along = vector(axes)
    rank = rank_of(x)
    dropped = tf.scatter_nd(along[:, None] % rank, tf.ones_like(along), [rank])
    kept = tf.boolean_mask(tf.shape(x, out_type=tf.int64), tf.equal(dropped, 0))
    if along.shape[0] is not None:
        kept = tf.ensure_shape(kept, [rank - along.shape[0]])
    return tf.reshape(x, kept)


def unsqueeze(x: tf.Tensor, axes: Ints) -> tf.Tensor:
    """ONNX Unsqueeze; the axes are positions in the result."""
    static = known_ints(axes)
    if static is not None:
        rank = rank_of(x) + len(static)
        places = {normal_axis(axis, rank) for axis in static}
        if len(places) == 1:
            return tf.expand_dims(x, places.pop())
        own = iter(sizes_of(x))
        return tf.reshape(x, as_shape([1 if n in places else next(own) for n in range(rank)]))
    along = vector(axes)
    if along.shape[0] == 1:
        return tf.expand_dims(x, along[0])
    rank = rank_of(x) + tf.size(along, tf.int64)
    new = tf.scatter_nd(along[:, None] % rank, tf.ones_like(along), rank[None])
    old = tf.where(tf.equal(new, 0))
    sizes = tf.tensor_scatter_nd_update(tf.ones_like(new), old, tf.shape(x, out_type=tf.int64))
    if along.shape[0] is not None:
        sizes = tf.ensure_shape(sizes, [rank_of(x) + along.shape[0]])
    return tf.reshape(x, sizes)


def transpose(x: tf.Tensor, *, perm: list[int] | None = None) -> tf.Tensor:
    """ONNX Transpose; reverses the axes without `perm`."""
    return tf.transpose(x, perm)


def expand(x: tf.Tensor, target: Ints) -> tf.Tensor:
    """ONNX Expand: the two shapes broadcast both ways."""
    if known_ints(target) is None and has_unknown_length(target):
        both = tf.broadcast_dynamic_shape(tf.shape(x, out_type=tf.int64), vector(target))
        return tf.broadcast_to(x, both)
    return tf.broadcast_to(x, as_shape(broadcast_sizes(sizes_of(x), parts(target))))


def broadcast_sizes(one: list[Size], other: list[Size]) -> list[Size]:
    """The dimensions to which two shapes broadcast."""
    rank = max(len(one), len(other))
    one = [1] * (rank - len(one)) + one
    other = [1] * (rank - len(other)) + other
    return [_broadcast(a, b) for a, b in zip(one, other, strict=True)]


def _broadcast(a: Size, b: Size) -> Size:
    if not tf.is_tensor(a) and a != 1:
        return a
    if not tf.is_tensor(b) and b != 1:
        return b
    if not tf.is_tensor(a):
        return b
    if not tf.is_tensor(b):
        return a
    a, b = tf.cast(a, tf.int64), tf.cast(b, tf.int64)
    return tf.where(tf.equal(a, 1), b, a)


def concat(*inputs: tf.Tensor, axis: int) -> tf.Tensor:
    """ONNX Concat."""
    return tf.concat(inputs, axis)


def split(
    x: tf.Tensor,
    lengths: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    output_count: int = 1,
) -> Any:
    """ONNX Split by lengths, or into equal pieces of which the last may be smaller."""
    axis = normal_axis(axis, rank_of(x))
    if lengths is None:
        pieces = _equal_pieces(x, axis, num_outputs or output_count)
    else:
        static = known_ints(lengths)
        count = len(static) if static is not None else vector(lengths).shape[0] or output_count
        pieces = tf.split(x, static if static is not None else vector(lengths), axis, num=count)
    return pieces[0] if output_count == 1 else tuple(pieces[:output_count])


def _equal_pieces(x: tf.Tensor, axis: int, count: int) -> list[tf.Tensor]:
    length = sizes_of(x)[axis]
    if not tf.is_tensor(length) and length % count == 0:
        return list(tf.split(x, count, axis))
    # Every piece but the last ones has the quotient rounded up.
    piece = -(-length // count)
    if not tf.is_tensor(length):
        ends = [min(piece * (n + 1), length) for n in range(count)]
        return list(tf.split(x, [b - a for a, b in zip([0, *ends], ends, strict=False)], axis))
    ends = [tf.minimum(piece * (n + 1), length) for n in range(count)]
    starts = [tf.zeros([], tf.int64), *ends[:-1]]
    return list(tf.split(x, tf.stack(ends) - tf.stack(starts), axis, num=count))


def tile(x: tf.Tensor, repeats: Ints) -> tf.Tensor:
    """ONNX Tile."""
    if x.dtype == tf.uint16:
        return tf.bitcast(tile(tf.bitcast(x, tf.int16), repeats), tf.uint16)
    static = known_ints(repeats)
    return tf.tile(x, static if static is not None else as_shape(parts(repeats, rank_of(x))))


def slice_tensor(
    x: tf.Tensor,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> tf.Tensor:
    """ONNX Slice: bounds beyond the ends are clamped, negative ones count from the back."""
    along = known_ints(axes)
    if axes is None and has_unknown_length(starts):
        axes = tf.range(tf.size(starts, tf.int64))
    if axes is not None and along is None:
        return _slice_run_time_axes(x, starts, ends, vector(axes), steps)
    rank = rank_of(x)
    first, last = parts(starts), parts(ends)
    stride = [1] * len(first) if steps is None else parts(steps)
    along = list(range(len(first))) if along is None else along
    index: list[Any] = [slice(None)] * rank
    for axis, begin, end, step in zip(along, first, last, stride, strict=True):
        index[axis] = _bounds(begin, end, step)
    return x[tuple(index)]


def _bounds(begin: Size, end: Size, step: Size) -> slice:
    """ONNX's bounds, which TensorFlow's strided slices clamp alike.

    Numbers beyond 32 bits, by which exporters mean "to the end", are brought into 32 bits.
    """
    return slice(_narrow(begin), _narrow(end), _narrow(step))


def _narrow(bound: Size) -> Size:
    low, high = -(2**31), 2**31 - 1
    if tf.is_tensor(bound):
        return tf.cast(tf.clip_by_value(tf.cast(bound, tf.int64), low, high), tf.int32)
    return min(max(int(bound), low), high)


def _slice_run_time_axes(
    x: tf.Tensor, starts: Ints, ends: Ints, axes: tf.Tensor, steps: Ints | None
) -> tf.Tensor:
    """Slice whose axes are a run-time input: bounds for all axes are scattered into full ones."""
    rank = rank_of(x)
    where = (axes % rank)[:, None]
    begin = _scattered(tf.zeros([rank], tf.int64), where, vector(starts))
    end = _scattered(tf.fill([rank], tf.constant(2**31 - 1, tf.int64)), where, vector(ends))
    step = tf.ones([rank], tf.int64)
    if steps is not None:
        step = _scattered(step, where, vector(steps))
    low, high = -(2**31), 2**31 - 1
    begin, end = (tf.clip_by_value(bound, low, high) for bound in (begin, end))
    result = tf.strided_slice(x, begin, end, step)
    result.set_shape([None] * rank)
    return result


def _scattered(into: tf.Tensor, where: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.tensor_scatter_nd_update(into, where, values)


def constant_of_shape(target: Ints, *, value: tf.Tensor | None = None) -> tf.Tensor:
    """ONNX ConstantOfShape; float zeros without a value."""
    fill = tf.constant(0.0, tf.float32) if value is None else tf.reshape(value, [])
    static = known_ints(target)
    if static is not None:
        return tf.fill(static, fill)
    if has_unknown_length(target):
        return tf.fill(vector(target), fill)
    return tf.fill(as_shape(parts(target)), fill)


def range_of(start: tf.Tensor, limit: tf.Tensor, delta: tf.Tensor, *, stash_type: int = 1) -> Any:
    """ONNX Range; element i is start + i * delta, in float32 for halves."""
    dtype = _range_dtype(start, limit, delta)
    wide = _RANGE_DTYPES.get(dtype, dtype)
    first, stop, step = (scalar(bound, wide) for bound in (start, limit, delta))
    return tf.cast(tf.range(first, stop, step), dtype)


_RANGE_DTYPES = {
    tf.float16: tf.float32,
    tf.bfloat16: tf.float32,
    tf.int8: tf.int32,
    tf.int16: tf.int32,
}


def _range_dtype(*bounds: Any) -> tf.DType:
    """The dtype of a bound that is a tensor; Python numbers are int64 or float32."""
    for bound in bounds:
        if tf.is_tensor(bound) or hasattr(bound, "dtype"):
            return tf.as_dtype(bound.dtype)
    return tf.float32 if any(isinstance(bound, float) for bound in bounds) else tf.int64


def eye_like(x: tf.Tensor, *, dtype: tf.DType | None = None, k: int = 0) -> tf.Tensor:
    """ONNX EyeLike: ones on the diagonal `k` of a matrix of the input's size."""
    rows, columns = sizes_of(x)
    down = tf.range(tf.cast(rows, tf.int64))[:, None]
    across = tf.range(tf.cast(columns, tf.int64))[None, :]
    return tf.cast(tf.equal(down + k, across), dtype or x.dtype)


def trilu(x: tf.Tensor, k: Int | None = None, *, upper: int = 1) -> tf.Tensor:
    """ONNX Trilu: the triangle above or below diagonal `k`."""
    rank = rank_of(x)
    sizes = tf.shape(x, out_type=tf.int64)
    down = tf.range(sizes[rank - 2])[:, None]
    across = tf.range(sizes[rank - 1])[None, :]
    diagonal = 0 if k is None else known_int(k)
    shift = scalar(k, tf.int64) if diagonal is None else tf.constant(diagonal, tf.int64)
    kept = across >= down + shift if upper else across <= down + shift
    return tf.where(kept, x, tf.zeros_like(x))


OPERATORS = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Range": range_of,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slice_tensor,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
