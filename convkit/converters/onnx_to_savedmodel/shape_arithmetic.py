"""Arithmetic on the integers of shapes, one by one: those that are known stay known.

TensorFlow infers static sizes through few operators only. Here a shape is an array whose elements
are Python integers or scalar tensors, and the operators that graphs compute shapes with work on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convkit.converters.onnx_to_savedmodel.held import MAXIMUM_ELEMENTS, Held

Elements = np.ndarray[Any, Any]


def computed(op_type: str, inputs: Sequence[Held | None], keywords: dict[str, Any]) -> Held | None:
    """The result of an operator on the integers of shapes; None where it is no such operator."""
    if op_type in ("Shape", "Size"):
        return _sizes(op_type, inputs[0], keywords)
    rule = _RULES.get(op_type)
    if rule is None or not any(isinstance(x, Held) and x.elements is not None for x in inputs):
        return None
    arrays = [_elements(value) for value in inputs]
    if any(
        array is None and value is not None for array, value in zip(arrays, inputs, strict=True)
    ):
        return None
    result = rule(arrays, keywords)
    return None if result is None else held(result)


def held(elements: Elements) -> Held | None:
    """The value of these integers, as a known array where every one of them is known."""
    if elements.size > MAXIMUM_ELEMENTS:
        return None
    if all(isinstance(element, (int, np.integer)) for element in elements.reshape(-1)):
        return Held(array=elements.astype(np.int64))
    return Held(elements=elements)


def _elements(value: Held | None) -> Elements | None:
    if value is None:
        return None
    if value.elements is not None:
        return value.elements
    if value.array is None or value.array.dtype.kind not in "iu":
        return None
    return value.array.astype(object) if value.array.size <= MAXIMUM_ELEMENTS else None


def _sizes(op_type: str, value: Held | None, keywords: dict[str, Any]) -> Held | None:
    if value is None or value.shape is None:
        return None
    known = value.shape
    if op_type == "Size":
        return None if None in known else Held(array=np.array(math.prod(map(int, known)), np.int64))  # type: ignore[arg-type]
    part = slice(keywords.get("start", 0), keywords.get("end"))
    axes = range(len(known))[part]
    result = np.empty(len(axes), object)
    for place, axis in enumerate(axes):
        size = known[axis]
        result[place] = _run_time_size(value, axis) if size is None else size
    return held(result)


def _run_time_size(value: Held, axis: int) -> Any:
    import tensorflow as tf

    from convkit.converters.onnx_to_savedmodel.layouts import last_axis

    first, last = value.tensors()
    if first is None and last is not None:
        return tf.shape(last, out_type=tf.int64)[last_axis(axis, last.shape.rank)]
    return tf.shape(value.first, out_type=tf.int64)[axis]


def _gather(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    data, indices = arrays
    if not _all_known(indices) or data.ndim == 0:
        return None
    return _array(np.take(data, indices.astype(np.int64), axis=keywords.get("axis", 0)))


def _slice(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    data, *rest = arrays
    if any(part is not None and not _all_known(part) for part in rest):
        return None
    starts, ends, axes, steps = ([*rest, None, None])[:4]
    parts = [slice(None)] * data.ndim
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = place if axes is None else int(axes[place])
        step = 1 if steps is None else int(steps[place])
        size = data.shape[axis]
        stop = None if step < 0 and end < -size else int(end)
        parts[axis] = slice(int(start), stop, step)
    return data[tuple(parts)]  # type: ignore[no-any-return]


def _concat(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements:
    return np.concatenate(list(arrays), axis=keywords["axis"])


def _squeeze(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    axes = arrays[1] if len(arrays) > 1 else None
    if axes is not None and not _all_known(axes):
        return None
    return _array(np.squeeze(arrays[0], None if axes is None else tuple(int(a) for a in axes)))


def _unsqueeze(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    if not _all_known(arrays[1]):
        return None
    return np.expand_dims(arrays[0], tuple(int(axis) for axis in arrays[1].reshape(-1)))


def _reshape(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    data, shape = arrays
    if not _all_known(shape) or (0 in shape and not keywords.get("allowzero")):
        return None
    return data.reshape(tuple(int(size) for size in shape))  # type: ignore[no-any-return]


def _cast(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    """A cast between integers wide enough for sizes changes nothing."""
    import tensorflow as tf

    return arrays[0] if keywords["to"] == tf.int64 else None


def _product(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements | None:
    data = arrays[0]
    if data.ndim != 1 or (len(arrays) > 1 and arrays[1] is not None and len(arrays[1]) != 1):
        return None
    result = _array(math.prod(data))
    return result.reshape(1) if keywords.get("keepdims", 1) else result


def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[..., Elements]:
    """Elementwise with broadcasting; sizes are not negative, so quotients need no rounding rule."""
    apply = np.frompyfunc(function, 2, 1)

    def rule(arrays: Sequence[Any], keywords: dict[str, Any]) -> Elements:
        first, *others = arrays
        for other in others:
            first = _array(apply(first, other))
        return _array(first)

    return rule


def _quotient(one: Any, other: Any) -> Any:
    import tensorflow as tf

    if tf.is_tensor(one) or tf.is_tensor(other):
        return tf.truncatediv(tf.cast(one, tf.int64), tf.cast(other, tf.int64))
    quotient = abs(one) // abs(other)
    return quotient if (one < 0) == (other < 0) else -quotient


def _maximum(one: Any, other: Any) -> Any:
    import tensorflow as tf

    if tf.is_tensor(one) or tf.is_tensor(other):
        return tf.maximum(tf.cast(one, tf.int64), tf.cast(other, tf.int64))
    return max(one, other)


def _minimum(one: Any, other: Any) -> Any:
    import tensorflow as tf

    if tf.is_tensor(one) or tf.is_tensor(other):
        return tf.minimum(tf.cast(one, tf.int64), tf.cast(other, tf.int64))
    return min(one, other)


def _array(elements: Any) -> Elements:
    """An object array also where numpy gave the bare element."""
    if isinstance(elements, np.ndarray):
        return elements
    result = np.empty(1, object)
    result[0] = elements  # numpy would look into a tensor that it is to store without an index
    return result.reshape([])


def _all_known(elements: Elements) -> bool:
    return all(isinstance(element, (int, np.integer)) for element in elements.reshape(-1))


_RULES: dict[str, Callable[..., Elements | None]] = {
    "Add": _pairwise(lambda one, other: one + other),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _pairwise(_quotient),
    "Gather": _gather,
    "Identity": lambda arrays, keywords: arrays[0],
    "Max": _pairwise(_maximum),
    "Min": _pairwise(_minimum),
    "Mul": _pairwise(lambda one, other: one * other),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _pairwise(lambda one, other: one - other),
    "Unsqueeze": _unsqueeze,
}
