"""Weights in blocks of a few bits: levels, a scale and perhaps a zero point or an offset for each.

    value = scale x (level - zero) + offset

Rows are outputs of a product; blocks run along what is summed over.

Source: onnxruntime, docs/ContribOperators.md, MatMulNBits: elements 2i and 2i + 1 of a block share
a byte, the first in its lower half; zero points of a row likewise; left out they are the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit.processors import thread_count

Array = np.ndarray[Any, Any]

_PIECE_ELEMENTS = 1 << 20
"""Weights that a thread works on at a time."""

_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.74, 0.68)
"""Parts of the largest magnitude that are tried as the end of the range."""


_TURNS = 2
"""Times that levels, and what they are steps of, follow from each other."""


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks.

    Attributes:
        levels: uint8 (rows, blocks, elements of a block); the last block of a row is filled up.
        scales: float32 (rows, blocks).
        zeros: uint8 (rows, blocks); None: the middle of the levels.
        offsets: float32 (rows, blocks); None: no offsets.
        length: elements of a row.
        bits: of a level, 4 or 8.
    """

    levels: Array
    scales: Array
    zeros: Array | None
    length: int
    bits: int = 4
    offsets: Array | None = None

    @property
    def block(self) -> int:
        """Elements of a block."""
        return int(self.levels.shape[2])

    def floats(self) -> Array:
        """What it stands for, float32 (rows, length)."""
        zeros = np.float32(1 << (self.bits - 1)) if self.zeros is None else self.zeros[..., None]
        values = (self.levels.astype(np.float32) - zeros) * self.scales[..., None]
        if self.offsets is not None:
            values += self.offsets[..., None]
        return np.asarray(values.reshape(len(values), -1)[:, : self.length], np.float32)


def in_blocks(rows: Array, block: int) -> Array:
    """float32 (rows, blocks, block), rows filled up with zeros."""
    missing = -rows.shape[1] % block
    filled = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
    return np.ascontiguousarray(filled, np.float32).reshape(len(rows), -1, block)


def packed(levels: Array, bits: int) -> Array:
    """Levels as the operator reads them: uint8 (rows, blocks, bytes of a block)."""
    if bits == 8:
        return levels
    return np.asarray(levels[..., ::2] | (levels[..., 1::2] << 4))


def packed_zeros(zeros: Array, bits: int) -> Array:
    """Zero points as the operator reads them: uint8 (rows, bytes of a row)."""
    if bits == 8:
        return zeros
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return np.asarray(even[:, ::2] | (even[:, 1::2] << 4))


Round = Callable[[Array], tuple[Array, Array, Array | None]]
"""Levels, scales, and zero points (uint8) or offsets (float32) of blocks (count, block)."""


def quantized(rows: Array, block: int, rounded: Round, bits: int = 4) -> Blocks:
    """A matrix in blocks, piece by piece in threads.

    Args:
        rows: float32 (rows, length).
        block: elements that share a scale.
        rounded: how blocks are rounded.
        bits: of a level.
    """
    blocks = in_blocks(rows, block)
    flat = blocks.reshape(-1, block)
    step = max(1, _PIECE_ELEMENTS // block)
    pieces = [flat[begin : begin + step] for begin in range(0, len(flat), step)]
    with ThreadPoolExecutor(thread_count()) as pool:
        found = list(pool.map(rounded, pieces))
    shape = blocks.shape[:2]
    levels = np.concatenate([levels for levels, _, _ in found]).reshape(blocks.shape)
    scales = np.concatenate([scales for _, scales, _ in found]).reshape(shape)
    moved = [part for _, _, part in found if part is not None]
    joined = np.concatenate(moved).reshape(shape) if moved else None
    if joined is not None and joined.dtype == np.float32:
        return Blocks(levels, scales, None, rows.shape[1], bits, joined)
    return Blocks(levels, scales, joined, rows.shape[1], bits)


def symmetric(blocks: Array, bits: int = 4) -> tuple[Array, Array, None]:
    """Blocks rounded about their middle, each with the range that loses least.

    Of a range of 2^bits levels one end is a step longer, so both signs of the scale are tried, and
    several lengths; for each the best scale of its levels follows by least squares, and the one
    with the smallest squared error is taken.

    Args:
        blocks: float32 (count, block).
        bits: of a level.
    """
    half = 1 << (bits - 1)
    largest = np.abs(blocks).max(1, initial=0)[:, None]
    safe = np.where(largest > 0, largest, np.float32(1))
    best = np.full(len(blocks), -1.0, np.float32)
    levels = np.full(blocks.shape, half, np.uint8)
    scales = np.zeros(len(blocks), np.float32)
    for share in _SHARES if bits == 4 else _SHARES[:1]:
        for sign in (1, -1):
            steps = blocks * (np.float32(sign * half / share) / safe)
            np.clip(np.rint(steps, out=steps), -half, half - 1, out=steps)
            along = np.einsum("ij,ij->i", blocks, steps)
            square = np.einsum("ij,ij->i", steps, steps)
            # What least squares explains of a block: |w|^2 - error = (w q)^2 / (q q).
            explained = np.divide(along * along, square, where=square > 0, out=np.zeros_like(along))
            better = explained > best
            best[better] = explained[better]
            scale = np.divide(along, square, where=square > 0, out=np.zeros_like(along))
            scales[better] = scale[better]
            levels[better] = (steps[better] + half).astype(np.uint8)
    return levels, scales, None


def affine(blocks: Array) -> tuple[Array, Array, Array]:
    """Blocks rounded to sixteen levels between two numbers, each with an offset of its own.

    Several ranges are tried; for each the best scale and offset of its levels follow by least
    squares, then the best levels of these, and so on; those with the smallest squared error are
    taken.

    Args:
        blocks: float32 (count, block).
    """
    low, high = blocks.min(1), blocks.max(1)
    mean = blocks.mean(1)
    centred = blocks - mean[:, None]
    best = np.full(len(blocks), -1.0, np.float32)
    levels = np.full(blocks.shape, 8, np.uint8)
    scales = np.zeros(len(blocks), np.float32)
    offsets = mean.astype(np.float32)
    for share in _SHARES:
        scale = (high - low) * np.float32(share / 15)
        lowest = (low + high) * np.float32(0.5) - scale * np.float32(7.5)
        for _ in range(_TURNS):
            steps = blocks - lowest[:, None]
            steps /= np.where(scale > 0, scale, np.float32(1))[:, None]
            np.clip(np.rint(steps, out=steps), 0, 15, out=steps)
            average = steps.mean(1)
            turned = steps - average[:, None]
            along = np.einsum("ij,ij->i", centred, turned)
            square = np.einsum("ij,ij->i", turned, turned)
            explained = np.divide(along * along, square, where=square > 0, out=np.zeros_like(along))
            scale = np.divide(along, square, where=square > 0, out=np.zeros_like(along))
            lowest = mean - scale * average
            better = explained > best
            best[better], scales[better] = explained[better], scale[better]
            levels[better] = steps[better].astype(np.uint8)
            offsets[better] = lowest[better] + scale[better] * np.float32(8)
    return levels, scales, offsets
