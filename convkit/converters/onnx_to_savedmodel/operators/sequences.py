"""Sequences, which are Python lists of tensors, and optionals, which are None where absent."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    Ints,
    known_int,
    known_ints,
    length_of,
    normal_axis,
    rank_of,
    sizes_of,
    vector,
)


def _place(position: Int, length: int) -> int:
    static = known_int(position)
    if static is None:
        raise ValueError("a position in a sequence must be known while tracing")
    return normal_axis(static, length)


def sequence_construct(*inputs: tf.Tensor) -> list[tf.Tensor]:
    """ONNX SequenceConstruct."""
    return list(inputs)


def sequence_empty(*, dtype: tf.DType | None = None) -> list[tf.Tensor]:
    """ONNX SequenceEmpty."""
    del dtype  # a list has none
    return []


def sequence_at(sequence: list[tf.Tensor], position: Int) -> tf.Tensor:
    """ONNX SequenceAt."""
    if known_int(position) is not None:
        return tf.identity(sequence[_place(position, len(sequence))])
    index = tf.cast(position, tf.int32)
    index = tf.where(index < 0, index + len(sequence), index)
    return tf.switch_case(index, [lambda x=x: tf.identity(x) for x in sequence])


def sequence_insert(
    sequence: list[tf.Tensor], tensor: tf.Tensor, position: Int | None = None
) -> list[tf.Tensor]:
    """ONNX SequenceInsert; at the end without a position."""
    if position is not None and known_int(position) is None:
        return _inserted(sequence, tensor, tf.cast(tf.reshape(position, []), tf.int32))
    at = len(sequence) if position is None else _place(position, len(sequence))
    return [*sequence[:at], tensor, *sequence[at:]]


def _inserted(sequence: list[tf.Tensor], tensor: tf.Tensor, position: tf.Tensor) -> list[tf.Tensor]:
    """Which element stands at each place is decided at run time; how many there are is not."""
    count = len(sequence)
    at = tf.where(position < 0, position + count, position)
    result = []
    for place in range(count + 1):
        before = sequence[place] if place < count else tensor
        after = sequence[place - 1] if place else tensor
        which = tf.cast(place >= at, tf.int32) + tf.cast(place > at, tf.int32)
        branches = [lambda x=x: tf.identity(x) for x in (before, tensor, after)]
        result.append(tf.switch_case(which, branches))
    return result


def sequence_erase(sequence: list[tf.Tensor], position: Int | None = None) -> list[tf.Tensor]:
    """ONNX SequenceErase; the last one without a position."""
    at = len(sequence) - 1 if position is None else _place(position, len(sequence))
    return [*sequence[:at], *sequence[at + 1 :]]


def sequence_length(sequence: list[tf.Tensor]) -> tf.Tensor:
    """ONNX SequenceLength."""
    return tf.constant(len(sequence), tf.int64)


def concat_from_sequence(sequence: list[tf.Tensor], *, axis: int, new_axis: int = 0) -> tf.Tensor:
    """ONNX ConcatFromSequence, along an axis or a new one."""
    return tf.stack(sequence, axis) if new_axis else tf.concat(sequence, axis)


def split_to_sequence(
    x: tf.Tensor, split: Ints | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[tf.Tensor]:
    """ONNX SplitToSequence: into single slices, equal pieces, or pieces of given lengths."""
    axis = normal_axis(axis, rank_of(x))
    length = sizes_of(x)[axis]
    if split is None:
        if tf.is_tensor(length):
            raise ValueError("the number of slices must be known while tracing")
        pieces = tf.split(x, [1] * length, axis)
        return list(pieces) if keepdims else [tf.squeeze(piece, axis) for piece in pieces]
    lengths = _lengths(split, length)
    if lengths is not None:
        return list(tf.split(x, lengths, axis))
    count = length_of(split)
    if count is not None:
        return list(tf.split(x, vector(split), axis, num=count))
    raise ValueError("the number of pieces must be known while tracing")


def _lengths(split: Ints, length: Any) -> list[int] | None:
    """Lengths of the pieces; None where their number is not known.

    A single number, which may arrive as a list, is the length of every piece but the last.
    """
    static = known_ints(split)
    if static is None or len(static) != 1:
        return static
    if tf.is_tensor(length):
        return None
    whole, rest = divmod(length, static[0])
    return [static[0]] * whole + ([rest] if rest else [])


def optional(value: Any = None, *, type: Any = None) -> Any:
    """ONNX Optional."""
    del type  # only says what an absent value would be
    return value


def optional_get_element(value: Any) -> Any:
    """ONNX OptionalGetElement."""
    if value is None:
        raise ValueError("an absent optional has no element")
    return tf.identity(value) if tf.is_tensor(value) else value


def optional_has_element(value: Any = None) -> tf.Tensor:
    """ONNX OptionalHasElement."""
    return tf.constant(value is not None)


OPERATORS = {
    "ConcatFromSequence": concat_from_sequence,
    "Optional": optional,
    "OptionalGetElement": optional_get_element,
    "OptionalHasElement": optional_has_element,
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_empty,
    "SequenceErase": sequence_erase,
    "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length,
    "SplitToSequence": split_to_sequence,
}
