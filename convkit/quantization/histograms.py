"""How often the elements of a value lie where, counted batch by batch."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import numpy as np

from convkit.quantization.value_range import Range

Array = np.ndarray[Any, Any]

BINS = 4096
"""Sixteen for each of 256 levels, so that rounding to levels can be told from the counts."""

ENOUGH = 1 << 24
"""Elements of one value that are counted; of more, every so-manieth. The 99.99th percentile has
1,700 of these above it, which places it to 2.4 percent of its distance from the end."""

_PIECE = 1 << 18
"""Elements counted at a time: what is made of them stays in the processor's cache."""


class Histogram:
    """Counts of elements in equal bins over a range that is known beforehand.

    Args:
        seen: what the elements lie between.
        expected: how many elements there will be.

    Attributes:
        counts: (BINS,) int64.
    """

    def __init__(self, seen: Range, expected: int) -> None:
        self.low, self.high = seen.low, seen.high
        self.counts: Array = np.zeros(BINS, np.int64)
        self._expected = expected
        self._elements = 0
        self._half: Array | None = None
        self._stride = max(1, expected // ENOUGH)
        self._begin = 0

    @property
    def edges(self) -> Array:
        """(BINS + 1,): where bins begin and end."""
        return np.linspace(self.low, self.high, BINS + 1)

    @property
    def centres(self) -> Array:
        """(BINS,): the middle of each bin."""
        edges = self.edges
        return (edges[1:] + edges[:-1]) / 2

    def halved(self) -> Histogram:
        """What it was when half of the elements had been counted; itself if that is not known."""
        half = copy(self)
        half.counts = self.counts if self._half is None else self._half
        return half

    def add(self, array: Array) -> None:
        """Counts the elements of one batch; infinities are left out."""
        stride = _apart(self._stride, array.shape)
        flat = array.reshape(-1)[self._begin % stride :: stride]
        self._begin += 1  # other places of the next batch
        width = (self.high - self.low) / BINS
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE].astype(np.float32)
            if not np.isfinite(piece).all():
                piece = piece[np.isfinite(piece)]
            if width > 0:
                piece = (piece - np.float32(self.low)) * np.float32(1 / width)
                places = np.clip(piece, 0, BINS - 1).astype(np.intp)
            else:
                places = np.zeros(piece.size, np.intp)
            self.counts += np.bincount(places, minlength=BINS)
        self._elements += array.size
        if self._half is None and 2 * self._elements >= self._expected:
            self._half = self.counts.copy()


def _apart(stride: int, shape: tuple[int, ...]) -> int:
    """The next stride that visits all places of every axis alike."""
    while stride > 1 and any(math.gcd(stride, size) > 1 for size in shape if size > 1):
        stride += 1
    return stride
