"""Stored rows to float32, and the integers and scales inside them.

libggml dequantizes where it is installed; numpy does the same, bit for bit, for the types of
`unpacking.BLOCKS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convkit.checkpoint.rows import Array, widened
from convkit.ggml import library
from convkit.ggml.types import GgmlType
from convkit.ggml.unpacking import BLOCKS

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Unpacked:
    """Rows as integers with scales: value = scale * (level - zero) + offset.

    Computed in float32 in this order, each operation rounded, the values are the bits that ggml
    gives: level - zero is an exact small integer, and one product and one sum remain.

    Attributes:
        levels: uint8 (rows, length).
        zero: the level that stands for 0.
        scales: float32 (rows, length / group_length); may be negative or 0.
        offsets: float32 (rows, length / group_length), or None where they are all 0.
        group_length: consecutive elements that share scale and offset: 16 or 32.
    """

    levels: Array
    zero: int
    scales: Array
    offsets: Array | None
    group_length: int

    def values(self) -> Array:
        """What ggml's dequantization gives: float32 (rows, length)."""
        count, length = self.levels.shape
        groups = self.levels.reshape(count, -1, self.group_length).astype(np.float32)
        groups -= np.float32(self.zero)
        groups *= self.scales[:, :, np.newaxis]
        if self.offsets is not None:
            groups += self.offsets[:, :, np.newaxis]
        return groups.reshape(count, length)


def dequantize(stored: Array, kind: GgmlType) -> Array:
    """Rows as float32 (rows, length), the same bits as ggml's.

    Args:
        stored: uint8 (rows, bytes of a row).
        kind: the type.

    Raises:
        ValueError: the bytes are no whole number of blocks, or the type holds no numbers to compute
            with.
        MissingRequirementError: the type needs libggml, and that is not there.
    """
    stored = _checked(stored, kind)
    if kind.name in _FLOATS:
        return widened(stored, kind.name)
    if library.find() is None and kind.name in BLOCKS:
        return unpacked(stored, kind).values()
    return library.library().to_float(stored, kind)


def unpacked(stored: Array, kind: GgmlType) -> Unpacked:
    """Rows as integers with scales; see `Unpacked` for what is exact.

    Args:
        stored: uint8 (rows, bytes of a row).
        kind: one of `unpacking.BLOCKS`: all that SCHEMES use, and MXFP4.

    Raises:
        ValueError: the type is another, or the bytes are no whole number of blocks.
    """
    if kind.name not in BLOCKS:
        raise ValueError(f"{kind} has no scales to unpack; {', '.join(BLOCKS)} have.")
    stored = _checked(stored, kind)
    count = stored.shape[0]
    layout = BLOCKS[kind.name]
    levels, scales, offsets = layout.unpack(stored.reshape(-1, kind.block_bytes))
    return Unpacked(
        levels.reshape(count, -1),
        layout.zero,
        scales.reshape(count, -1),
        None if offsets is None else offsets.reshape(count, -1),
        layout.group_length,
    )


def _checked(stored: Array, kind: GgmlType) -> Array:
    if stored.shape[1] % kind.block_bytes:
        raise ValueError(
            f"Rows of {stored.shape[1]} bytes are no whole number of blocks of "
            f"{kind.block_bytes} ({kind})."
        )
    return np.ascontiguousarray(stored)
