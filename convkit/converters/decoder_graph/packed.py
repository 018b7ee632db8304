"""Block-quantized tensors as ONNX Runtime multiplies with them, their numbers unchanged.

A type of ggml gives integers with scales, and some give offsets:

    value = scale x (level - zero) + offset

MatMulNBits takes packed levels and one scale per block, and subtracts a middle level. Its own
zero points of blocks are integers or, where they are floats, a hundred times slower on a CPU
(ONNX Runtime 1.31). So levels are moved until their middle stands where the operator has it, and
what remains per block is added as a small product of its own, of offsets with sums of blocks:

    sum_k x_k value_k = sum_k x_k scale (level_k - middle) + sum_blocks offset' x (sum_k x_k)

Source: onnxruntime, docs/ContribOperators.md, MatMulNBits: elements 2i and 2i + 1 of a block share
a byte, the first in its lower half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array, Rows
from convkit.converters.decoder_graph.graph import FLOAT, UINT8
from convkit.converters.onnx_stream import Streamed
from convkit.ggml.dequantize import Unpacked, unpacked
from convkit.ggml.types import TYPES
from convkit.ggml.unpacking import BLOCKS

_PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Form:
    """How tensors of a type are packed.

    Attributes:
        kind: name of the type.
        bits: of a level, 4 or 8.
        block: elements that share a scale.
        zero: the level that stands for 0 in the type.
        centre: the level that is moved to the middle.
        has_offsets: whether blocks have offsets.
    """

    kind: str
    bits: int
    block: int
    zero: int
    centre: int
    has_offsets: bool

    @property
    def middle(self) -> int:
        """What the operator subtracts. Source: MatMulNBits, zero_points left out."""
        return 1 << (self.bits - 1)


_LEVELS = {"Q2_K": 4, "Q3_K": 8, "Q4_0": 16, "Q4_1": 16, "Q4_K": 16, "Q5_1": 32, "Q5_K": 32}
"""Type -> how many levels it has, where that is not all that its bits could hold."""

_WITH_OFFSETS = frozenset({"Q2_K", "Q4_1", "Q4_K", "Q5_1", "Q5_K"})


def form_of(kind: str) -> Form | None:
    """How a type is packed; None for a type without integers and scales."""
    if kind not in BLOCKS:
        return None
    layout = BLOCKS[kind]
    level_count = _LEVELS.get(kind, 256)
    has_offsets = kind in _WITH_OFFSETS
    return Form(
        kind,
        bits=4 if level_count <= 16 else 8,
        block=layout.group_length,
        zero=layout.zero,
        centre=level_count // 2 if has_offsets else layout.zero,
        has_offsets=has_offsets,
    )


def streams(name: str, rows: Rows, form: Form) -> tuple[Streamed, Streamed, Streamed | None]:
    """Levels, scales and offsets of a matrix as initializers.

    Shapes are (rows, blocks, bytes of a block), (rows, blocks) and (rows, blocks).
    """
    count, blocks = rows.row_count, rows.row_length // form.block
    block_bytes = form.block * form.bits // 8

    def stream(
        suffix: str, data_type: int, shape: tuple[int, ...], item_bytes: int, part: _Part
    ) -> Streamed:
        size = int(np.prod(shape)) * item_bytes
        return Streamed(
            f"{name}{suffix}", data_type, shape, size, lambda: _pieces(rows, form, part)
        )

    levels = stream("", UINT8, (count, blocks, block_bytes), 1, packed_levels)
    scales = stream(".scales", FLOAT, (count, blocks), 4, _scales)
    if not form.has_offsets:
        return levels, scales, None
    return levels, scales, stream(".offsets", FLOAT, (count, blocks), 4, moved_offsets)


def packed_levels(part: Unpacked, form: Form) -> Array:
    """Levels moved to the operator's middle: uint8 (rows, blocks, bytes of a block)."""
    # Unsigned arithmetic wraps, so a shift downwards is one upwards.
    levels = part.levels + np.uint8((form.middle - form.centre) % 256)
    blocks: Array = levels.reshape(len(levels), -1, form.block)
    if form.bits == 8:
        return blocks
    packed: Array = blocks[..., ::2] | (blocks[..., 1::2] << 4)
    return packed


def moved_offsets(part: Unpacked, form: Form) -> Array:
    """What remains per block after levels were moved: float32 (rows, blocks)."""
    moved = part.scales.astype(np.float64) * (form.centre - form.zero)
    if part.offsets is not None:
        moved += part.offsets
    return moved.astype(np.float32)


def restored(levels: Array, scales: Array, offsets: Array | None, form: Form) -> Unpacked:
    """A type's own levels, scales and offsets from what was packed; the way back.

    Levels and scales are exact; offsets are off by at most 2^-24 of the larger of themselves and
    the scale times the levels that they were moved by.

    Args:
        levels: as `packed_levels` gives them.
        scales: float32 (rows, blocks).
        offsets: as `moved_offsets` gives them, None where the form has none.
        form: how they were packed.
    """
    if form.bits == 4:
        levels = np.stack((levels & 15, levels >> 4), axis=-1)
    own = levels.reshape(len(levels), -1) - np.uint8((form.middle - form.centre) % 256)
    if offsets is not None:
        moved = scales.astype(np.float64) * (form.centre - form.zero)
        offsets = (offsets - moved).astype(np.float32)
    return Unpacked(own, form.zero, scales, offsets, form.block)


def _scales(part: Unpacked, form: Form) -> Array:
    scales: Array = part.scales
    return scales


_Part = Callable[[Unpacked, Form], Array]


def _pieces(rows: Rows, form: Form, part: _Part) -> Iterator[Any]:
    for span in rows.spans(_PIECE_ELEMENTS):
        taken = unpacked(rows.stored(*span), TYPES[form.kind])
        yield np.ascontiguousarray(part(taken, form)).data
