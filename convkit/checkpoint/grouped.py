"""Weights as small integers that share a scale and a zero point per group of a row: (q - z) * s."""

from __future__ import annotations

from functools import cache

import numpy as np

from convkit.checkpoint.rows import Array


def unpacked(words: Array, bits: int) -> Array:
    """The integers in 32-bit words, along the last axis: uint8.

    Integer i takes the bits from `bits * i` on, the least significant first, so that integers of
    three bits cross the ends of words.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)  # little-endian, as files have them
    if bits == 8:
        return octets
    integers: Array
    if 8 % bits:
        stream = np.unpackbits(octets, axis=-1, bitorder="little")
        pieces = stream.reshape(*octets.shape[:-1], -1, bits)
        integers = np.packbits(pieces, axis=-1, bitorder="little")
    else:
        integers = _in_octets(bits)[octets].view(np.uint8)
    return integers.reshape(*octets.shape[:-1], -1)


@cache
def _in_octets(bits: int) -> Array:
    """The integers in each byte, uint8, together as one element, which is quicker to look up."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    integers = np.arange(256, dtype=np.uint8)[:, None] >> shifts & np.uint8((1 << bits) - 1)
    together: Array = integers.view(np.dtype(f"u{8 // bits}"))[:, 0]
    return together


def scaled(integers: Array, zeros: Array, scales: Array, groups: Array | None) -> Array:
    """Rows of weights, float32; exact where scales are of 16 bits.

    Args:
        integers: (rows, columns) uint8.
        zeros: (rows, groups) uint8 or uint16.
        scales: (rows, groups) float32.
        groups: the group of each column; None where each is as many neighbours.
    """
    weights = integers.astype(np.float32)
    if groups is None:
        in_groups = weights.reshape(*scales.shape, -1)
        in_groups -= zeros[..., None]
        in_groups *= scales[..., None]
    else:
        weights -= zeros[:, groups]
        weights *= scales[:, groups]
    return weights
