"""Weights in int8: a scale for each output, clipped where that loses less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_CLIPS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75, 0.7)
"""Shares of the largest magnitude that are tried as the end of the range."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as integers.

    Attributes:
        values: int8, the shape of the weight.
        scales: float32; (outputs,), or () where one serves all.
        axis: the axis that `scales` runs over; None where one serves all.
    """

    values: Array
    scales: Array
    axis: int | None

    def floats(self) -> Array:
        """What the integers stand for, float32."""
        values = self.values.astype(np.float32)
        return values * along(self.scales, self.axis, values.ndim)


def along(scales: Array, axis: int | None, rank: int) -> Array:
    """Scales shaped so that they multiply an array of `rank` along `axis`."""
    if axis is None:
        return scales
    return scales.reshape([-1 if each == axis else 1 for each in range(rank)])


def quantized_weight(
    weight: Array,
    axis: int | None,
    *,
    limit: int = 127,
    importance: Array | None = None,
) -> QuantizedWeight:
    """The weight in int8, symmetric, each scale the one that loses least.

    Candidates are shares of the largest magnitude; the one with the smallest sum of squared
    errors, weighted by `importance`, is taken.

    Args:
        weight: float32.
        axis: the axis of the outputs; None for one scale.
        limit: the largest integer; 64 where two products must stay within 16 bits.
        importance: how much an error at each place counts, broadcastable to `weight`: the mean
            square of what it is multiplied with. None: equally.

    Source: Banner et al., Post Training 4-Bit Quantization of Convolutional Networks, 2019
    (clipping by mean squared error); Nagel et al., A White Paper on Neural Network Quantization,
    2021, section 3.1.
    """
    rows = _rows(weight, axis)
    counts = None
    if importance is not None:
        counts = _rows(np.broadcast_to(importance, weight.shape), axis).astype(np.float64)
    largest = np.abs(rows).max(1, initial=0.0).astype(np.float64)
    largest[~(largest > 0)] = limit
    best = np.full(len(rows), np.inf)
    scales = largest / limit
    for share in _CLIPS:
        tried = share * largest / limit
        error = rows - np.clip(np.rint(rows / tried[:, None]), -limit, limit) * tried[:, None]
        squares = np.square(error) if counts is None else np.square(error) * counts
        loss = squares.sum(1)
        better = loss < best * (1 - 1e-6)
        best[better], scales[better] = loss[better], tried[better]
    return rounded_weight(weight, scales.astype(np.float32), axis, limit)


def rounded_weight(weight: Array, scales: Array, axis: int | None, limit: int) -> QuantizedWeight:
    """The weight rounded to multiples of given scales, (outputs,) or (1,)."""
    scales = np.maximum(scales, np.float32(np.finfo(np.float32).tiny))
    if axis is None:
        scales = scales.reshape(())
    steps = weight / along(scales, axis, weight.ndim)
    values = np.clip(np.rint(steps), -limit, limit).astype(np.int8)
    return QuantizedWeight(values, scales, axis)


def _rows(weight: Array, axis: int | None) -> Array:
    """(outputs, elements of each)."""
    if axis is None:
        return weight.reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
