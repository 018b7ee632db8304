"""What an ONNX value is while a graph is traced: an array, integers of a shape, or a tensor.

A tensor of an image may be held channels-last, in the ONNX order, or both; an operator asks for the
order that it works in, and the other one is made when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MAXIMUM_ELEMENTS = 64
"""Integers are followed one by one up to here; shapes are shorter."""


class Held:
    """A tensor value of the ONNX graph, in every form that is known.

    Exactly one form is given; others are made from it and kept.

    Args:
        array: elements known before the run.
        elements: an object array of int64 values, each an int or a scalar tensor.
        first: the tensor with its axes as in ONNX.
        last: the tensor with its second axis moved to the end.
        read: makes `first` when it is needed (a weight, which becomes a variable then).
        load: makes `array` when it is needed, for a value that is a weight.
        sizes: the shape of a weight.
    """

    def __init__(
        self,
        *,
        array: np.ndarray[Any, Any] | None = None,
        elements: np.ndarray[Any, Any] | None = None,
        first: Any = None,
        last: Any = None,
        read: Callable[[], Any] | None = None,
        load: Callable[[], np.ndarray[Any, Any]] | None = None,
        sizes: tuple[int, ...] | None = None,
    ) -> None:
        self.array = array
        self.elements = elements
        self._first = first
        self._last = last
        self._read = read
        self._load = load
        self._sizes = sizes

    def forked(self) -> Held:
        """A copy to be used inside a branch or loop body, whose tensors must stay inside it."""
        copy = Held()
        copy.__dict__.update(self.__dict__)
        return copy

    @property
    def is_channels_last(self) -> bool:
        """Whether it is at hand channels-last."""
        return self._last is not None

    @property
    def is_known(self) -> bool:
        """Whether its elements are part of the graph; a weight's are not."""
        return self.array is not None

    def known(self) -> np.ndarray[Any, Any] | None:
        """The elements where they are known before the run, a weight's included."""
        if self.array is None and self._load is not None:
            return self._load()
        return self.array

    @property
    def dtype(self) -> Any:
        """The TensorFlow data type."""
        import tensorflow as tf

        if self.array is not None:
            return tf.as_dtype(self.array.dtype)
        if self.elements is not None:
            return tf.int64
        return (self.first if self._last is None else self._last).dtype

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """Sizes in the ONNX order, None where dynamic; None for an unknown number of axes."""
        for host in (self.array, self.elements):
            if host is not None:
                return tuple(host.shape)
        if self._sizes is not None:
            return self._sizes
        if self._first is None and self._last is not None:
            sizes = self._last.shape
            return permuted(tuple(sizes), to_first(sizes.rank))
        sizes = self.first.shape
        return None if sizes.rank is None else tuple(sizes)

    @property
    def rank(self) -> int | None:
        """Number of axes; None where it is unknown."""
        shape = self.shape
        return None if shape is None else len(shape)

    @property
    def first(self) -> Any:
        """The tensor with its axes as in ONNX."""
        if self._first is None:
            self._first = self._made()
        return self._first

    @property
    def last(self) -> Any:
        """The tensor with its channels at the end; it has at least three axes."""
        if self._last is None:
            import tensorflow as tf

            if self.array is not None:
                order = to_last(self.array.ndim)
                self._last = tf.constant(self.array.transpose(order))
            else:
                first = self.first
                self._last = moved(first, to_last(first.shape.rank))
        return self._last

    def _made(self) -> Any:
        import tensorflow as tf

        if self.array is not None:
            return tf.constant(self.array)
        if self.elements is not None:
            return _packed(self.elements)
        if self._read is not None:
            return self._read()
        assert self._last is not None
        return moved(self._last, to_first(self._last.shape.rank))

    def tensors(self) -> tuple[Any, Any]:
        """What there is of `first` and `last`; nothing is made."""
        return self._first, self._last


def _packed(elements: np.ndarray[Any, Any]) -> Any:
    """The int64 tensor of an object array of ints and scalar tensors."""
    import tensorflow as tf

    if elements.ndim == 0:
        return tf.cast(elements[()], tf.int64)
    flat = [tf.cast(element, tf.int64) for element in elements.reshape(-1)]
    packed = tf.stack(flat) if flat else tf.zeros([0], tf.int64)
    return packed if elements.ndim == 1 else tf.reshape(packed, elements.shape)


def to_last(rank: int) -> list[int]:
    """The order that moves the second axis to the end."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """The order that moves the last axis to the second place."""
    return [0, rank - 1, *range(1, rank - 1)]


def permuted(sizes: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """`sizes` in another order."""
    return tuple(sizes[axis] for axis in order)


def moved(tensor: Any, order: Sequence[int]) -> Any:
    """The tensor with its axes in another order; no data moves where sizes of 1 allow it."""
    import tensorflow as tf

    sizes = tuple(tensor.shape)
    wide = [axis for axis in order if sizes[axis] != 1]
    if wide == sorted(wide) and sum(size is None for size in sizes) <= 1:
        return tf.reshape(tensor, [-1 if n is None else n for n in permuted(sizes, order)])
    return tf.transpose(tensor, order)
