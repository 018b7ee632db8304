"""Sequences that a loop makes longer: their length is known in the run only.

All other sequences are Python lists of tensors, whose length is part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_savedmodel.held import Held
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir


class Growing:
    """Tensors of one type, appended one by one.

    Args:
        array: a `tf.TensorArray`.
        count: how many it holds, an int32 scalar.
    """

    def __init__(self, array: Any, count: Any) -> None:
        self.array = array
        self.count = count

    @classmethod
    def of(cls, tensors: Sequence[Any], dtype: Any) -> Growing:
        """A list of known length as a sequence that may grow."""
        import tensorflow as tf

        array = tf.TensorArray(
            dtype, len(tensors), dynamic_size=True, infer_shape=False, clear_after_read=False
        )
        for place, tensor in enumerate(tensors):
            array = array.write(place, tensor)
        return cls(array, tf.constant(len(tensors), tf.int32))

    @property
    def parts(self) -> tuple[Any, Any]:
        """What a TensorFlow loop carries."""
        return self.array, self.count

    def spec(self) -> tuple[Any, Any]:
        """What a TensorFlow function takes."""
        import tensorflow as tf

        array = tf.TensorArraySpec(None, self.array.dtype, dynamic_size=True, infer_shape=False)
        return array, tf.TensorSpec([], tf.int32)


def slices(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Growing | None:
    """SplitToSequence into single slices, of an axis with a size of the run; else None."""
    import tensorflow as tf

    data, *lengths = inputs
    if not isinstance(data, Held) or data.shape is None:
        return None
    axis = keywords.get("axis", 0) % len(data.shape)
    length = lengths[0].known() if lengths and lengths[0] is not None else None
    is_single = not lengths or (length is not None and length.ndim == 0 and length == 1)
    if data.shape[axis] is not None or not is_single:
        return None
    tensor = tf.transpose(data.first, [axis, *(n for n in range(len(data.shape)) if n != axis)])
    if lengths or keywords.get("keepdims", 1):
        tensor = tf.expand_dims(tensor, axis + 1)
    array = tf.TensorArray(
        tensor.dtype, 0, dynamic_size=True, infer_shape=False, clear_after_read=False
    )
    return Growing(array.unstack(tensor), tf.shape(tensor)[0])


def compute(node: ir.Node, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """An operator whose first input is a growing sequence.

    Raises:
        UnsupportedError: an operator other than appending, reading, counting and joining.
    """
    sequence, *rest = inputs
    rule = _RULES.get(node.op_type)
    if rule is None or not isinstance(sequence, Growing):
        raise _refused(node)
    return rule(node, sequence, [x for x in rest if x is not None], keywords)


def _refused(node: ir.Node) -> UnsupportedError:
    return UnsupportedError(
        f"{node.op_type} '{node.name}' works on a sequence whose length is known in the run only.",
        hint="There, tensors can be appended, read, counted and joined.",
    )


def _append(
    node: ir.Node, sequence: Growing, rest: Sequence[Any], keywords: Mapping[str, Any]
) -> Growing:
    if len(rest) > 1:
        raise _refused(node)
    array = sequence.array.write(sequence.count, rest[0].first)
    return Growing(array, sequence.count + 1)


def _read(
    node: ir.Node, sequence: Growing, rest: Sequence[Any], keywords: Mapping[str, Any]
) -> Held:
    import tensorflow as tf

    place = tf.reshape(tf.cast(rest[0].first, tf.int32), [])
    return Held(first=sequence.array.read(tf.where(place < 0, place + sequence.count, place)))


def _count(
    node: ir.Node, sequence: Growing, rest: Sequence[Any], keywords: Mapping[str, Any]
) -> Held:
    import tensorflow as tf

    return Held(first=tf.cast(sequence.count, tf.int64))


def _join(
    node: ir.Node, sequence: Growing, rest: Sequence[Any], keywords: Mapping[str, Any]
) -> Held:
    """ConcatFromSequence. An axis other than the first is moved there and back."""
    axis, shape = keywords["axis"], node.outputs[0].shape
    rank = None if shape is None else len(shape)
    if axis < 0 and rank is None:
        raise _refused(node)
    axis = axis % rank if rank is not None else axis
    if keywords.get("new_axis"):
        joined = sequence.array.stack()
    elif axis == 0:
        joined = sequence.array.concat()
    else:
        joined = _moved_first(sequence, axis).concat()
    if rank is not None:
        joined.set_shape([None] * rank)
    return Held(first=joined if axis == 0 else _from_first(joined, axis))


def _moved_first(sequence: Growing, axis: int) -> Any:
    """The array of the same tensors with `axis` in front."""
    import tensorflow as tf

    array = tf.TensorArray(sequence.array.dtype, sequence.count, infer_shape=False)

    def body(place: Any, array: Any) -> tuple[Any, Any]:
        tensor = sequence.array.read(place)
        rest = tf.range(tf.rank(tensor) - 1)
        order = tf.concat([[axis], tf.where(rest >= axis, rest + 1, rest)], 0)
        return place + 1, array.write(place, tf.transpose(tensor, order))

    return tf.while_loop(lambda place, _: place < sequence.count, body, [0, array])[1]


def _from_first(tensor: Any, axis: int) -> Any:
    """The tensor with its first axis at the place `axis`."""
    import tensorflow as tf

    if tensor.shape.rank is not None:
        order = list(range(1, tensor.shape.rank))
        order.insert(axis, 0)
        return tf.transpose(tensor, order)
    rest = tf.range(1, tf.rank(tensor))
    return tf.transpose(tensor, tf.concat([rest[:axis], [0], rest[axis:]], 0))


_RULES: Mapping[str, Callable[..., Any]] = {
    "ConcatFromSequence": _join,
    "SequenceAt": _read,
    "SequenceInsert": _append,
    "SequenceLength": _count,
}
