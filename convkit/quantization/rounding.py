"""Weights rounded so that the errors of one make up for those of others, on the data's covariance.

Rounding each weight to the nearest integer is best only where the inputs it multiplies are
unrelated. Where they are not, the error of one weight can be taken back by those that are rounded
after it.

Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, 2023, section 3 and algorithm 1 (order of columns by the diagonal: section 3.3, "act
order" of its code); Hassibi et al., Optimal Brain Surgeon and general network pruning, 1993.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convkit.quantization.weights import QuantizedWeight

Array = np.ndarray[Any, Any]

_DAMPING = 0.01
"""Share of the mean variance that is added to each, so that few data are not trusted too far.

Source: Frantar et al., 2023, section 3.3 (step 2).
"""


def compensated_weight(
    weight: Array, rounded: QuantizedWeight, covariance: Array, *, limit: int
) -> QuantizedWeight:
    """The weight in int8 at the scales of `rounded`, its errors spread to lose least on the data.

    Args:
        weight: float32, outputs first.
        rounded: the weight at its scales; `axis` 0 or None.
        covariance: of what it multiplies: (groups, elements, elements); the outputs are dealt to
            the groups in order.
        limit: the largest integer.
    """
    groups, size = covariance.shape[:2]
    rows = weight.reshape(groups, -1, size).astype(np.float64)
    scales = np.broadcast_to(rounded.scales.reshape(-1), (len(weight),))
    scales = scales.reshape(groups, -1).astype(np.float64)
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    order = np.argsort(-variances, axis=1, kind="stable")
    rows = np.take_along_axis(rows, order[:, None, :], 2)
    sorted_ = np.take_along_axis(covariance, order[:, :, None], 1)
    sorted_ = np.take_along_axis(sorted_, order[:, None, :], 2)
    factors = _inverse_factor(sorted_)
    integers = np.empty_like(rows)
    for column in range(size):
        found = np.clip(np.rint(rows[:, :, column] / scales), -limit, limit)
        integers[:, :, column] = found
        error = (rows[:, :, column] - found * scales) / factors[:, column, column, None]
        rows[:, :, column:] -= error[:, :, None] * factors[:, None, column, column:]
    back = np.argsort(order, axis=1)
    values = np.take_along_axis(integers, back[:, None, :], 2).reshape(weight.shape)
    return QuantizedWeight(values.astype(np.int8), rounded.scales, rounded.axis)


def _inverse_factor(covariance: Array) -> Array:
    """Upper triangular U with U^T U the inverse of the damped covariance, (groups, n, n)."""
    size = covariance.shape[1]
    mean = np.trace(covariance, axis1=1, axis2=2) / size
    damping = np.where(mean > 0, mean * _DAMPING, 1.0)
    damped = covariance + damping[:, None, None] * np.eye(size)
    inverse = np.linalg.inv(damped)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    lower = np.linalg.cholesky(inverse)
    return np.asarray(lower.transpose(0, 2, 1))
