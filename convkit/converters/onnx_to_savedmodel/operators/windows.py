"""How a window slides over the spatial axes: padding, steps and the number of positions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import Size


@dataclass(frozen=True)
class Window:
    """A window along one spatial axis, in ONNX's terms.

    What depends on a length that is not static is computed when it is asked for, as most kernels
    need none of it.

    Attributes:
        measure: gives the length of the axis.
        is_measured: whether the length is static.
        kernel: how many elements are looked at.
        stride: the distance of positions.
        dilation: the distance of elements.
        before: the padding at the beginning, without `same`.
        after: the padding at the end, without `same`.
        same: "SAME_UPPER" or "SAME_LOWER" for as many positions as the length divided by the
            stride, rounded up; else "".
        is_ceiled: whether the number of positions is rounded up.
    """

    measure: Callable[[], Size]
    is_measured: bool
    kernel: int
    stride: int
    dilation: int
    before: int = 0
    after: int = 0
    same: str = ""
    is_ceiled: bool = False

    @functools.cached_property
    def length(self) -> Size:
        """The number of elements along the axis."""
        return self.measure()

    @property
    def extent(self) -> int:
        """How many elements the window spans."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def is_static(self) -> bool:
        """Whether the padding is known while tracing."""
        return self.is_measured or self.stride == 1 or not (self.same or self.is_ceiled)

    @functools.cached_property
    def _total(self) -> Size:
        """The padding of both sides for `same`."""
        if self.stride == 1:
            return self.extent - 1
        return at_least((self.count - 1) * self.stride + self.extent - self.length, 0)

    @property
    def begin(self) -> Size:
        """The padding at the beginning."""
        if not self.same:
            return self.before
        small = self._total // 2
        return small if self.same == "SAME_UPPER" else self._total - small

    @property
    def end(self) -> Size:
        """The padding at the end."""
        return self._total - self.begin if self.same else self.after

    @functools.cached_property
    def _room(self) -> Size:
        """How far the window can move."""
        return self.length + self.before + self.after - self.extent

    @functools.cached_property
    def count(self) -> Size:
        """The number of positions.

        Source: the shape formulas in the documentation of ONNX MaxPool; a last window of
        ceil_mode that would start in the padding at the end is left out.
        """
        if self.same:
            return -(-self.length // self.stride)
        if not self.is_ceiled or self.stride == 1:
            return self._room // self.stride + 1
        positions = -(-self._room // self.stride) + 1
        starts_outside = (positions - 1) * self.stride >= self.length + self.before
        if tf.is_tensor(starts_outside):
            return positions - tf.cast(starts_outside, tf.int64)
        return positions - int(starts_outside)

    @property
    def extra(self) -> Size:
        """What the last window of ceil_mode needs beyond the padding at the end."""
        if self.same or not self.is_ceiled or self.stride == 1:
            return 0
        return at_least((self.count - 1) * self.stride - self._room, 0)

    @property
    def is_unpadded(self) -> bool:
        """Whether there is no padding at all."""
        return self.is_static and self.begin == self.end == self.extra == 0

    @property
    def is_same(self) -> bool:
        """Whether TensorFlow's SAME padding is this padding."""
        if self.same == "SAME_UPPER":
            return True
        if not self.is_static or not (self.is_measured or self.stride == 1):
            return False
        if self.stride == 1:
            total = self.extent - 1
        elif self.count != -(-self.length // self.stride):
            return False
        else:
            total = max((self.count - 1) * self.stride + self.extent - self.length, 0)
        return bool(self.begin == total // 2 and self.end + self.extra == total - total // 2)


def windows(
    x: tf.Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> list[Window]:
    """One window per spatial axis of `x` (batch, spatial..., channels)."""
    count = len(kernel)
    strides = strides or [1] * count
    dilations = dilations or [1] * count
    pads = pads if pads and auto_pad == "NOTSET" else [0] * (2 * count)
    same = auto_pad if auto_pad in ("SAME_UPPER", "SAME_LOWER") else ""
    return [
        Window(
            functools.partial(length_of, x, n + 1),
            x.shape[n + 1] is not None,
            kernel[n],
            strides[n],
            dilations[n],
            pads[n],
            pads[n + count],
            same,
            bool(ceil_mode),
        )
        for n in range(count)
    ]


def length_of(x: tf.Tensor, axis: int) -> Size:
    """The length of an axis, a Python integer where it is static."""
    static = x.shape[axis]
    return tf.shape(x, out_type=tf.int64)[axis] if static is None else int(static)


def unpadded(x: tf.Tensor, along: Sequence[Window]) -> list[Window]:
    """The same windows over an image that is padded already."""
    return windows(
        x, [w.kernel for w in along], [w.stride for w in along], [w.dilation for w in along]
    )


def at_least(size: Size, low: int) -> Size:
    """The size, but `low` where it is less."""
    if tf.is_tensor(size):
        return tf.maximum(size, tf.cast(low, tf.int64))
    return max(size, low)


def padded(x: tf.Tensor, along: Sequence[Window], value: Any = 0) -> tf.Tensor:
    """`x` (batch, spatial..., channels) with the windows' padding filled with `value`."""
    if all(w.is_unpadded for w in along):
        return x
    rows: list[list[Size]] = [[0, 0], *([w.begin, w.end + w.extra] for w in along), [0, 0]]
    return pad_or_crop(x, rows, value)


def pad_or_crop(x: tf.Tensor, rows: Sequence[Sequence[Size]], value: Any = 0) -> tf.Tensor:
    """`x` with so many elements before and after each axis; negative numbers crop."""
    if any(not tf.is_tensor(size) and size < 0 for row in rows for size in row):
        index = tuple(
            slice(-first if _is_negative(first) else None, last if _is_negative(last) else None)
            for first, last in rows
        )
        x = x[index]
        rows = [[0 if _is_negative(size) else size for size in row] for row in rows]
    if all(not tf.is_tensor(size) and size == 0 for row in rows for size in row):
        return x
    if any(tf.is_tensor(size) for row in rows for size in row):
        amounts: Any = tf.stack([_as_tensor(row) for row in rows])
    else:
        amounts = rows
    return tf.pad(x, amounts, constant_values=tf.constant(value, x.dtype))


def _is_negative(size: Size) -> bool:
    return not tf.is_tensor(size) and size < 0


def _as_tensor(row: Sequence[Size]) -> tf.Tensor:
    return tf.stack([tf.cast(size, tf.int64) for size in row])


def shifted(x: tf.Tensor, along: Sequence[Window]) -> Iterator[tuple[tuple[int, ...], tf.Tensor]]:
    """For each place in the window, the elements of padded `x` that stand there, by position.

    Gives the place and a tensor (batch, positions..., channels).
    """
    for place in itertools.product(*(range(w.kernel) for w in along)):
        index = [slice(None)]
        for at, w in zip(place, along, strict=True):
            start = at * w.dilation
            index.append(slice(start, _int32(start + (w.count - 1) * w.stride + 1), w.stride))
        yield place, x[tuple([*index, slice(None)])]


def _int32(size: Size) -> Size:
    return tf.cast(size, tf.int32) if tf.is_tensor(size) else size


def positions_inside(w: Window, low: Size, high: Size) -> Any:
    """For each position of the window, how many of its elements have an index in [low, high)."""
    if any(tf.is_tensor(size) for size in (w.count, low, high, w.begin)):
        starts = tf.range(tf.cast(w.count, tf.int64)) * w.stride - tf.cast(w.begin, tf.int64)
        index = starts[:, None] + tf.constant(np.arange(w.kernel) * w.dilation, tf.int64)
        inside = tf.logical_and(index >= low, index < high)
        return tf.reduce_sum(tf.cast(inside, tf.int64), 1)
    starts = np.arange(w.count) * w.stride - w.begin
    index = starts[:, None] + np.arange(w.kernel) * w.dilation
    return ((index >= low) & (index < high)).sum(1)


def one() -> int:
    """The length of an axis that was added for a kernel of one more dimension."""
    return 1


WHOLE = Window(one, True, 1, 1, 1)
"""The window along such an axis."""
