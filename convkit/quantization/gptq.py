"""Blocks rounded for what a product gives on data, not for their weights: GPTQ.

Weights are rounded one input after the other, and what an error does to the outputs is taken back
by the weights of the inputs that come later, as far as data show these inputs to go together.

Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, 2023: section 3.3 and algorithm 1 (columns in panels, Cholesky factor of the inverse,
dampening), and its code for the order of columns by their squares ("act order") with scales that
are chosen beforehand ("static groups").
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from convkit.processors import thread_count
from convkit.quantization.blocks import Blocks

Array = np.ndarray[Any, Any]

DAMPENING = 0.01
"""Share of the mean square that is added to each, so that few data are not trusted too far.

Source: Frantar et al., 2023, section 3.3.
"""

_PANEL = 128
"""Inputs whose errors are handed on to all later ones in one product. Source: algorithm 1."""

_ROWS = 4096
"""Outputs that a thread works on at a time."""


def compensated_blocks(
    rows: Array,
    start: Blocks,
    moment: Array,
    *,
    dampening: float = DAMPENING,
    orders_by_activity: bool = True,
) -> Blocks:
    """The matrix at the scales and zero points of `start`, its products on data as before.

    Args:
        rows: float32 (outputs, inputs).
        start: the same, each weight rounded by itself.
        moment: mean product of each two inputs on data, (inputs, inputs).
        dampening: share of the mean square that is added to each.
        orders_by_activity: the inputs with the largest squares are rounded first.
    """
    squares = np.diagonal(moment)
    if not np.isfinite(moment).all() or not (squares > 0).any():
        return start
    order = np.arange(len(squares))
    if orders_by_activity:
        order = np.argsort(-squares, kind="stable")
    factor = inverse_factor(moment[np.ix_(order, order)], dampening)
    levels = start.levels.copy()
    flat = levels.reshape(len(rows), -1)  # (outputs, inputs filled up)
    spans = [slice(begin, begin + _ROWS) for begin in range(0, len(rows), _ROWS)]

    def work(span: slice) -> None:
        part = replace(
            start,
            levels=levels[span],
            scales=start.scales[span],
            zeros=None if start.zeros is None else start.zeros[span],
            offsets=None if start.offsets is None else start.offsets[span],
        )
        flat[span, order] = _rounded_in_order(rows[span], part, factor, order)

    with ThreadPoolExecutor(thread_count()) as pool:
        list(pool.map(work, spans))
    return replace(start, levels=levels)


def inverse_factor(moment: Array, dampening: float) -> Array:
    """The upper triangular U with U^T U the inverse of the dampened moment, float32.

    With rows and columns turned round its Cholesky factor is that of the moment itself, whose
    inverse is U; so the inverse of the moment, less exact, is not needed.

    Args:
        moment: (inputs, inputs).
        dampening: share of the mean square that is added to each.
    """
    turned = moment[::-1, ::-1].astype(np.float64)
    mean = np.trace(turned) / len(turned)
    share = dampening
    while True:
        damped = turned + np.eye(len(turned)) * (share * mean)
        try:
            lower = np.linalg.cholesky(damped)
            break
        except np.linalg.LinAlgError:  # too few data for so many inputs
            share = max(share, 1e-4) * 10
    upper = np.linalg.inv(lower)[::-1, ::-1]
    return np.triu(upper).astype(np.float32)


def _rounded_in_order(rows: Array, made: Blocks, factor: Array, order: Array) -> Array:
    """Levels uint8 (outputs, inputs), inputs in `order`."""
    last = (1 << made.bits) - 1
    left = np.ascontiguousarray(rows.T[order], np.float32)  # (inputs, outputs)
    scales = np.ascontiguousarray(made.scales.T)  # (blocks, outputs)
    lowest = np.ascontiguousarray(_lowest(made).T)
    inverse = np.divide(1, scales, where=scales != 0, out=np.zeros_like(scales))
    levels = np.empty(left.shape, np.uint8)
    for begin in range(0, len(left), _PANEL):
        end = min(begin + _PANEL, len(left))
        errors = np.empty((end - begin, left.shape[1]), np.float32)
        for column in range(begin, end):
            at = order[column] // made.block
            steps = (left[column] - lowest[at]) * inverse[at]
            np.clip(np.rint(steps, out=steps), 0, last, out=steps)
            levels[column] = steps
            error = (left[column] - lowest[at] - steps * scales[at]) / factor[column, column]
            left[column + 1 : end] -= factor[column, column + 1 : end, None] * error
            errors[column - begin] = error
        left[end:] -= factor[begin:end, end:].T @ errors
    return np.asarray(levels.T)


def _lowest(made: Blocks) -> Array:
    """What level 0 stands for, float32 (outputs, blocks)."""
    zeros = np.float32(1 << (made.bits - 1)) if made.zeros is None else made.zeros
    lowest = -np.asarray(zeros, np.float32) * made.scales
    return lowest if made.offsets is None else lowest + made.offsets


def loss_on(rows: Array, made: Array, moment: Array) -> float:
    """Mean square of what a product with `made` gives in the place of one with `rows`.

    Args:
        rows: float32 (outputs, inputs).
        made: what it was rounded to.
        moment: mean product of each two inputs, (inputs, inputs).
    """
    error = (rows - made).astype(np.float64)
    return float(np.einsum("ij,ij->", error @ moment, error) / len(rows))
