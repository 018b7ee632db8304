"""Where to clip a value before it is rounded to 256 levels: what its histogram says."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkit.quantization.histograms import Histogram
from convkit.quantization.value_range import Range

Array = np.ndarray[Any, Any]

PERCENTILE = 99.99
LEVELS = 256

_ENTROPY_BINS = 2048
_ENTROPY_TRIALS = 128
_SHARES = np.linspace(1.0, 0.2, 65)[:, None]
"""Ends that are tried, as shares of the whole."""

_ROUNDS = 2


def percentile_range(histogram: Histogram, percentile: float = PERCENTILE) -> Range:
    """The range without the rarest elements, half of them at either end.

    Source: H. Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
    Empirical Evaluation", 2020, on calibration; onnxruntime, `CalibrationMethod.Percentile`, cuts
    each end by half of what is left out.
    """
    below = np.cumsum(histogram.counts)
    cut = below[-1] * (100 - percentile) / 200
    low, high = (_place(histogram, below, rank) for rank in (cut, below[-1] - cut))
    width = (histogram.high - histogram.low) / len(histogram.counts)
    # What piles up at an end (the zeros of a ReLU) is that end.
    low = histogram.low if low < histogram.low + width else low
    high = histogram.high if high > histogram.high - width else high
    return Range(low, high)


def _place(histogram: Histogram, below: Array, rank: float) -> float:
    """Where so many elements lie below; within a bin they count as spread evenly."""
    at = min(int(np.searchsorted(below, rank)), len(below) - 1)
    count = histogram.counts[at]
    share = (rank - (below[at] - count)) / count if count else 0.0
    return float(histogram.edges[at] + share * (histogram.edges[at + 1] - histogram.edges[at]))


def mse_range(histogram: Histogram) -> Range:
    """The range whose 256 levels are nearest to the elements, in the mean of squares.

    One end is moved while the other rests, then the other way round, twice.

    Source: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
    2018, section 2 (affine levels, zero among them); Y. Choukroun et al., "Low-bit Quantization
    of Neural Networks for Efficient Inference", 2019 (the clipping with the least squared error).
    """
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used]
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high:
        return Range(histogram.low, histogram.high)
    ends = np.array([low, high])
    for _ in range(_ROUNDS):
        for side, whole in ((1, high), (0, low)):
            if whole != 0.0:
                tried = np.repeat(ends[None], len(_SHARES), axis=0)  # (candidates, 2)
                tried[:, side : side + 1] = _SHARES * whole
                ends = tried[np.argmin(_squared_errors(centres, counts, tried))]
    return Range(max(float(ends[0]), histogram.low), min(float(ends[1]), histogram.high))


def _squared_errors(centres: Array, counts: Array, ends: Array) -> Array:
    """What rounding costs for each pair of ends: (candidates,)."""
    steps = (ends[:, 1:] - ends[:, :1]) / (LEVELS - 1)  # (candidates, 1)
    zeros = np.round(-ends[:, :1] / steps)
    levels = np.clip(np.round(centres / steps) + zeros, 0, LEVELS - 1) - zeros
    errors: Array = ((levels * steps - centres) ** 2) @ counts.astype(np.float64)
    return errors


def entropy_range(
    histogram: Histogram, bins: int = _ENTROPY_BINS, levels: int | None = None
) -> Range:
    """The range that loses least information about how often magnitudes occur.

    Magnitudes beyond a threshold count as the threshold; the rest is merged into as many bins as
    there are levels and spread out again over those that were not empty. The threshold with the
    least Kullback-Leibler divergence between before and after is taken.

    Args:
        histogram: of the value.
        bins: of magnitudes.
        levels: that these are merged into; all 256 where a value has one sign, half where two.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, the slides on entropy calibration;
    zeros as in NVIDIA's pytorch-quantization, `HistogramCalibrator`.
    """
    absmax = max(abs(histogram.low), abs(histogram.high))
    if absmax == 0.0:
        return Range(histogram.low, histogram.high)
    places = (np.abs(histogram.centres) * (bins / absmax)).astype(np.intp)
    counts = np.bincount(np.minimum(places, bins - 1), histogram.counts, bins)  # (bins,)
    counts[0] = counts[1]  # zeros are exact whatever the threshold; they would outweigh the rest
    is_one_sided = histogram.low >= 0 or histogram.high <= 0
    levels = levels or (LEVELS if is_one_sided else LEVELS // 2)
    tried = range(bins, levels - 1, -max(1, bins // _ENTROPY_TRIALS))
    best = min(tried, key=lambda length: _divergence(counts, length, levels))
    threshold = absmax * best / bins
    return Range(max(histogram.low, -threshold), min(histogram.high, threshold))


def _divergence(counts: Array, length: int, levels: int) -> float:
    """What clipping behind `length` bins and merging these into `levels` changes."""
    inside = counts[:length]
    clipped = inside.copy()
    clipped[-1] += counts[length:].sum()
    starts = np.arange(levels) * length // levels
    is_used = inside > 0
    merged = np.add.reduceat(inside, starts)
    used = np.add.reduceat(is_used.astype(np.float64), starts)
    spread = np.repeat(merged / np.maximum(used, 1), np.diff([*starts, length])) * is_used
    if not spread.any():
        return float("inf")
    p, q = clipped / clipped.sum(), spread / spread.sum()
    both = (p > 0) & (q > 0)
    if (p[~both] > 0).any():  # what was clipped fell where nothing else lies
        q = np.maximum(q, 1e-12)
        both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / q[both])))


CLIPPINGS = {
    "percentile": percentile_range,
    "mse": mse_range,
    "entropy": entropy_range,
}
"""Method -> range from a histogram."""
