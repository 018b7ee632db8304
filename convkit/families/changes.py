"""How a tensor of a Hugging Face checkpoint and its counterpart in GGUF differ, and the way back.

Everything here rearranges rows, so that it works on quantized rows as well, except where it says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from convkit.checkpoint.rows import Array, Changed, Rows, Selected, Stacked
from convkit.checkpoint.stored import FLOAT_DTYPES, RecentArrays, TurnedAround


class Change(Protocol):
    """A difference between the two layouts."""

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """The GGUF tensor from those of a checkpoint."""

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """The checkpoint's tensors from the one in GGUF."""


@dataclass(frozen=True)
class Same:
    """No difference."""

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """The tensor as it is."""
        return parts[0]

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """The tensor as it is."""
        return (rows,)


SAME = Same()


@dataclass(frozen=True)
class Permuted:
    """Rows in another order.

    Args:
        order: gives the checkpoint's row behind each row in GGUF, once it is needed.
    """

    order: Callable[[], Array]

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """Rows (or, of a vector, elements) in GGUF's order."""
        return _reordered(parts[0], self.order())

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """Rows in the checkpoint's order."""
        return (_reordered(rows, np.argsort(self.order())),)


def _reordered(rows: Rows, order: Array) -> Rows:
    length = rows.shape[0]
    if len(order) != length:
        raise ValueError(f"it has {length} rows instead of {len(order)}")
    if len(rows.shape) > 1:
        return Selected(rows, order, rows.shape)
    return Changed(rows, lambda vector, begin: vector[:, order])


def interleaved(heads: int, head_size: int) -> Permuted:
    """The rows of a query or key projection, whose halves ggml takes in turn.

    transformers turns number i together with i + size/2 of a head; ggml's NORM rotation turns
    neighbours 2i and 2i + 1.
    Source: `apply_rotary_pos_emb` in transformers' modeling_llama.py; `ggml_rope` in ggml.h.
    """

    def order() -> Array:
        halves = np.arange(heads * head_size).reshape(heads, 2, head_size // 2)
        return np.asarray(halves.swapaxes(1, 2).reshape(-1))

    return Permuted(order)


@dataclass(frozen=True)
class PlusOne:
    """A norm that multiplies by one more than its weight; GGUF holds the sum.

    The sum is rounded to float32, so of weights below 2^-16 the last bits are lost.
    """

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """The weight plus one."""
        return Changed(parts[0], lambda rows, begin: rows + np.float32(1))

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """The weight minus one."""
        return (Changed(rows, lambda values, begin: values - np.float32(1)),)


PLUS_ONE = PlusOne()


@dataclass(frozen=True)
class Turned:
    """A matrix stored (inputs, outputs), as GPT-2's Conv1D does; quantized rows become float32.

    While it is read, it is held whole.
    """

    _recent: RecentArrays = field(default_factory=lambda: RecentArrays(0))

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """(outputs, inputs)."""
        return self._turned(parts[0])

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """(inputs, outputs)."""
        return (self._turned(rows),)

    def _turned(self, rows: Rows) -> Rows:
        is_plain = rows.dtype in FLOAT_DTYPES
        floats = rows if is_plain else Changed(rows, lambda values, begin: values)
        return TurnedAround(floats, self._recent)


TURNED = Turned()


@dataclass(frozen=True)
class Piled:
    """One tensor per expert (or per head) in the checkpoint, all of them in one in GGUF."""

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """(count, outputs, inputs); of vectors (count, inputs)."""
        return Stacked(parts, is_new_axis=True)

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """(outputs, inputs) each, or (inputs,)."""
        count, shape = rows.shape[0], rows.shape[1:]
        height = rows.row_count // count
        return [
            Selected(rows, np.arange(i * height, (i + 1) * height), shape) for i in range(count)
        ]


PILED = Piled()


@dataclass(frozen=True)
class PartOfEach:
    """A part of the rows of each expert of a fused tensor (gate before up), on the way to GGUF.

    Args:
        number: which part.
        count: parts in a fused tensor.
    """

    number: int
    count: int

    def to_gguf(self, parts: Sequence[Rows]) -> Rows:
        """(experts, outputs, inputs) from (experts, count x outputs, inputs)."""
        experts, height, width = parts[0].shape
        part = height // self.count
        rows = np.arange(experts * height).reshape(experts, self.count, part)[:, self.number]
        return Selected(parts[0], rows.reshape(-1), (experts, part, width))

    def to_torch(self, rows: Rows) -> Sequence[Rows]:
        """Nothing is fused on the way back."""
        raise NotImplementedError("fused experts come back as one matrix per expert")
