"""Blocks of every type taken apart: integers, scales, offsets.

A function here takes blocks, uint8 (blocks, bytes of a block), and gives levels, uint8 (blocks,
elements), scales and offsets, float32 (blocks, groups), or None for no offsets:
value = scale * (level - zero) + offset.

Source: ggml, `src/ggml-common.h` (`block_*`, `kvalues_iq4nl`, `kvalues_mxfp4`), `src/ggml-quants.c`
(`dequantize_row_*`) and `src/ggml-impl.h` (`ggml_e8m0_to_fp32_half`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from convkit.checkpoint.rows import Array

Parts = tuple[Array, Array, Array | None]

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 levels of IQ4_NL and IQ4_XS stand for."""

_TINY_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled
_MIDDLE = 128  # what stands for 0 where levels are numbers of either sign


def _halves(blocks: Array, at: int) -> Array:
    """The half-precision number at a place of each block, as float32 (blocks, 1)."""
    stored = np.ascontiguousarray(blocks[:, at : at + 2])
    return stored.view(np.float16).astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """Lower halves of bytes, then upper halves: (..., bytes) -> (..., 2, bytes)."""
    return np.stack((packed & 15, packed >> 4), axis=-2)


def _pieces(packed: Array, bit_count: int) -> Array:
    """Bytes cut into pieces, the lowest first: (..., bytes) -> (..., 8 / bit_count, bytes)."""
    shifts = np.arange(0, 8, bit_count, dtype=np.uint8)[:, np.newaxis]
    pieces: Array = (packed[..., np.newaxis, :] >> shifts) & np.uint8(2**bit_count - 1)
    return pieces


def _flat(levels: Array) -> Array:
    return levels.reshape(levels.shape[0], -1)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """32 bits as the fifth bits of levels: uint8 (blocks, 32)."""
    bits: Array = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)
    return bits


def _q4_0(blocks: Array) -> Parts:
    return _flat(_nibbles(blocks[:, 2:])), _halves(blocks, 0), None


def _q4_1(blocks: Array) -> Parts:
    return _flat(_nibbles(blocks[:, 4:])), _halves(blocks, 0), _halves(blocks, 2)


def _q5_0(blocks: Array) -> Parts:
    return _flat(_nibbles(blocks[:, 6:])) | _fifth_bits(blocks, 2), _halves(blocks, 0), None


def _q5_1(blocks: Array) -> Parts:
    levels = _flat(_nibbles(blocks[:, 8:])) | _fifth_bits(blocks, 4)
    return levels, _halves(blocks, 0), _halves(blocks, 2)


def _q8_0(blocks: Array) -> Parts:
    return blocks[:, 2:] ^ np.uint8(128), _halves(blocks, 0), None


def _q2_k(blocks: Array) -> Parts:
    levels = _pieces(blocks[:, 16:80].reshape(-1, 2, 32), 2)
    scales = (blocks[:, :16] & 15) * _halves(blocks, 80)
    return _flat(levels), scales, -((blocks[:, :16] >> 4) * _halves(blocks, 82))


def _q3_k(blocks: Array) -> Parts:
    levels = _pieces(blocks[:, 32:96].reshape(-1, 2, 32), 2)
    third = _pieces(blocks[:, :32], 1).reshape(-1, 2, 4, 32)
    low = _flat(_nibbles(blocks[:, 96:104]))
    high = _flat(_pieces(blocks[:, 104:108], 2))
    scales = (low | (high << 4)).astype(np.int8) - np.int8(32)
    return _flat(levels | (third << 2)), scales * _halves(blocks, 108), None


def _sixes(packed: Array) -> tuple[Array, Array]:
    """8 scales and 8 minima of 6 bits from 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=1)
    return scales, minima


def _q4_k(blocks: Array) -> Parts:
    scales, minima = _sixes(blocks[:, 4:16])
    levels = _flat(_nibbles(blocks[:, 16:].reshape(-1, 4, 32)))
    return levels, scales * _halves(blocks, 0), -(minima * _halves(blocks, 2))


def _q5_k(blocks: Array) -> Parts:
    scales, minima = _sixes(blocks[:, 4:16])
    fifth = _pieces(blocks[:, 16:48], 1)
    levels = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | (fifth << 4)
    return _flat(levels), scales * _halves(blocks, 0), -(minima * _halves(blocks, 2))


def _q6_k(blocks: Array) -> Parts:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = _pieces(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    scales = blocks[:, 192:208].view(np.int8) * _halves(blocks, 208)
    return _flat(low | (high << 4)), scales, None


def _valued(packed: Array, values: tuple[int, ...]) -> Array:
    """Values that 4 bits stand for, as levels around 128."""
    table = (np.array(values) + _MIDDLE).astype(np.uint8)
    return _flat(table[_nibbles(packed)])


def _iq4_nl(blocks: Array) -> Parts:
    return _valued(blocks[:, 2:], NONLINEAR), _halves(blocks, 0), None


def _iq4_xs(blocks: Array) -> Parts:
    high = np.ascontiguousarray(blocks[:, 2:4])
    upper = _pieces(high[:, :, np.newaxis], 2).reshape(-1, 8)
    lower = _nibbles(blocks[:, 4:8]).transpose(0, 2, 1).reshape(-1, 8)
    scales = (lower | (upper << 4)).astype(np.int8) - np.int8(32)
    levels = _valued(blocks[:, 8:].reshape(-1, 8, 16), NONLINEAR)
    return levels, scales * _halves(blocks, 0), None


def _mxfp4(blocks: Array) -> Parts:
    # Powers of two from 2^-128; halved, because the values are doubled.
    scales = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return _valued(blocks[:, 1:], _TINY_FLOATS), scales, None


@dataclass(frozen=True)
class Layout:
    """How blocks of a type come apart.

    Attributes:
        unpack: blocks -> levels, scales, offsets.
        zero: the level that stands for 0.
        group_length: consecutive elements that share a scale.
    """

    unpack: Callable[[Array], Parts]
    zero: int
    group_length: int


BLOCKS: Mapping[str, Layout] = {
    "Q4_0": Layout(_q4_0, 8, 32),
    "Q4_1": Layout(_q4_1, 0, 32),
    "Q5_0": Layout(_q5_0, 16, 32),
    "Q5_1": Layout(_q5_1, 0, 32),
    "Q8_0": Layout(_q8_0, 128, 32),
    "Q2_K": Layout(_q2_k, 0, 16),
    "Q3_K": Layout(_q3_k, 4, 16),
    "Q4_K": Layout(_q4_k, 0, 32),
    "Q5_K": Layout(_q5_k, 0, 32),
    "Q6_K": Layout(_q6_k, 32, 16),
    "IQ4_NL": Layout(_iq4_nl, _MIDDLE, 32),
    "IQ4_XS": Layout(_iq4_xs, _MIDDLE, 32),
    "MXFP4": Layout(_mxfp4, _MIDDLE, 32),
}
"""Type -> how its blocks come apart."""
