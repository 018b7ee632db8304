"""Blocks whose few large errors count for little: half-quadratic quantization.

Large weights dominate squared errors, so a range chosen by them serves these few. A norm with
p < 1 lets them be wrong; the minimum is found by turns, of the errors and of the zero points.

Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023: the
error is shrunk by `sign(e) relu(|e| - |e|^(p - 1) / beta)`, then each zero point is the mean of
`level - (weight - error) / scale`; p 0.7, beta 10 and growing by 1.01, 20 turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_NORM, _BETA, _GROWTH, _TURNS = 0.7, 10.0, 1.01, 20


def half_quadratic(blocks: Array) -> tuple[Array, Array, Array]:
    """Levels of 4 bits, scales and zero points of blocks.

    Zero points are whole numbers, because ONNX Runtime's kernels are a hundred times slower where
    they are not; so the scale is fitted to the levels anew in the end.

    Args:
        blocks: float32 (count, block).
    """
    low, high = blocks.min(1)[:, None], blocks.max(1)[:, None]
    inverse = np.float32(15) / np.maximum(high - low, np.float32(1e-30))
    inverse = np.minimum(inverse, np.float32(2e4))
    zero = -low * inverse
    scaled = blocks * inverse
    beta, least, kept = _BETA, np.inf, zero
    for _ in range(_TURNS):
        steps = np.clip(np.rint(scaled + zero), 0, 15)
        error = blocks - (steps - zero) / inverse
        size = float(np.abs(error).mean())
        if size >= least:
            break
        least, kept = size, zero
        magnitude = np.abs(error)
        with np.errstate(divide="ignore"):
            shrunk = np.maximum(magnitude - magnitude ** np.float32(_NORM - 1) / beta, 0)
        moved = np.where(magnitude > 0, np.sign(error) * shrunk, np.float32(0))
        zero = (steps - (blocks - moved) * inverse).mean(1, keepdims=True)
        beta *= _GROWTH
    whole = np.clip(np.rint(kept), 0, 15)
    steps = np.clip(np.rint(scaled + whole), 0, 15)
    centred = steps - whole
    along = np.einsum("ij,ij->i", blocks, centred)
    square = np.einsum("ij,ij->i", centred, centred)
    scales = np.divide(along, square, where=square > 0, out=np.zeros_like(along))
    return steps.astype(np.uint8), scales.astype(np.float32), whole[:, 0].astype(np.uint8)
