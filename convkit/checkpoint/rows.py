"""A tensor that is read by rows, and views that rearrange rows without holding them.

A row runs along the last axis; the leading axes are flattened into the row number. So a range of
rows is a range of bytes in every format, quantized ones included, and a conversion needs memory for
a few rows at a time.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FLOATS: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}
"""Storage dtypes that numpy knows; BF16 is the upper half of F32."""


class Rows(abc.ABC):
    """A tensor read by rows. Threads may read at the same time.

    Attributes:
        shape: row-major, as in PyTorch; at least one axis.
        dtype: how it is stored: `F32`, `F16`, `BF16`, `F64`, or a type of ggml (`Q4_K`).
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_length(self) -> int:
        """Elements of a row."""
        return self.shape[-1]

    @property
    def row_count(self) -> int:
        """Rows of all leading axes together."""
        return math.prod(self.shape[:-1])

    @property
    def element_count(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def stored(self, begin: int, end: int) -> Array:
        """Rows `begin` to `end` as stored: uint8 (rows, bytes of a row)."""

    def read(self, begin: int, end: int) -> Array:
        """Rows `begin` to `end`: float32 (rows, row_length)."""
        return widened(self.stored(begin, end), self.dtype)

    def array(self) -> Array:
        """The whole tensor, float32, in its shape; for small ones."""
        return self.read(0, self.row_count).reshape(self.shape)

    def spans(self, element_count: int) -> Iterator[tuple[int, int]]:
        """Begin and end of pieces of about so many elements: a row at least."""
        step = max(1, element_count // max(1, self.row_length))
        for begin in range(0, self.row_count, step):
            yield begin, min(begin + step, self.row_count)


def widened(stored: Array, dtype: str) -> Array:
    """Stored rows of a plain float dtype as float32 (rows, row_length)."""
    if dtype == "BF16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored.view(FLOATS[dtype]).astype(np.float32, copy=False)


class Held(Rows):
    """A small tensor in memory: what a converter computes itself."""

    def __init__(self, array: Array) -> None:
        self._rows = np.ascontiguousarray(array, np.float32)
        self.shape = self._rows.shape
        self.dtype = "F32"
        self._rows = self._rows.reshape(-1, self.shape[-1])

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        return self._rows[begin:end].view(np.uint8)


class Reshaped(Rows):
    """The same rows under other leading axes."""

    def __init__(self, rows: Rows, shape: Sequence[int]) -> None:
        if math.prod(shape) != rows.element_count or shape[-1] != rows.row_length:
            raise ValueError(f"{rows.shape} does not reshape to {tuple(shape)} by rows")
        self._rows, self.shape, self.dtype = rows, tuple(shape), rows.dtype

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        return self._rows.stored(begin, end)

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        return self._rows.read(begin, end)


class Selected(Rows):
    """Chosen rows of a tensor in a chosen order: a permutation, a slice, a crop.

    Args:
        rows: the tensor.
        index: the row of `rows` behind each row of this one.
        shape: of this tensor; (rows, row_length) where it is not given.
    """

    def __init__(self, rows: Rows, index: Array, shape: Sequence[int] | None = None) -> None:
        self._rows, self._index, self.dtype = rows, index, rows.dtype
        self.shape = tuple(shape or (len(index), rows.row_length))

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        return self._gathered(self._rows.stored, begin, end)

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        return self._gathered(self._rows.read, begin, end)

    def _gathered(self, read: Callable[[int, int], Array], begin: int, end: int) -> Array:
        index = self._index[begin:end]
        low, high = int(index.min()), int(index.max()) + 1
        if high - low <= 4 * len(index):
            near: Array = read(low, high)[index - low]
            return near
        return np.concatenate([read(int(i), int(i) + 1) for i in index])


class Stacked(Rows):
    """Tensors of one shape below each other, along a new first axis (experts) or the first one."""

    def __init__(self, parts: Sequence[Rows], *, is_new_axis: bool) -> None:
        first = parts[0]
        if any(part.shape[1:] != first.shape[1:] or part.dtype != first.dtype for part in parts):
            raise ValueError(f"unlike tensors: {sorted({(p.shape, p.dtype) for p in parts})}")
        self._parts, self.dtype = tuple(parts), first.dtype
        height = sum(part.shape[0] for part in parts)
        self.shape = (len(parts), *first.shape) if is_new_axis else (height, *first.shape[1:])
        self._ends = np.cumsum([part.row_count for part in parts])

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        return self._joined("stored", begin, end)

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        return self._joined("read", begin, end)

    def _joined(self, way: str, begin: int, end: int) -> Array:
        pieces = []
        number = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            start = int(self._ends[number]) - self._parts[number].row_count
            stop = min(end, int(self._ends[number]))
            pieces.append(getattr(self._parts[number], way)(begin - start, stop - start))
            begin, number = stop, number + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Computed(Rows):
    """A tensor whose float32 rows are computed from others: what is stored follows from them."""

    dtype = "F32"

    @abc.abstractmethod
    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        return np.ascontiguousarray(self.read(begin, end), np.float32).view(np.uint8)


class Changed(Computed):
    """A function of each element or row, in float32 (an offset on a norm, an adapter's share).

    Args:
        rows: the tensor.
        change: (rows float32, begin) -> rows float32 of the same shape.
    """

    def __init__(self, rows: Rows, change: Callable[[Array, int], Array]) -> None:
        self._rows, self._change = rows, change
        self.shape = rows.shape

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        return self._change(self._rows.read(begin, end), begin)
