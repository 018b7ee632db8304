"""The mean error that quantized weights make, which a bias takes back at no cost.

Rounded weights are off by small amounts that do not cancel where few inputs are summed, or where
inputs are far from zero on average (behind a ReLU all are): the outputs of a layer shift. The
shift is the weights' error times the mean of what they multiply.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
section 4.2 (E[y~] - E[y] = (W~ - W) E[x]); E[x] is measured here, as in its appendix D.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def mean_error(error: Array, mean: Array) -> Array:
    """What a layer with these weights gives too much on average, (outputs,), float64.

    Args:
        error: quantized weight less weight, outputs first.
        mean: of what the weights multiply, (groups, elements); the outputs are dealt to the groups
            in order.
    """
    groups, size = mean.shape
    rows = error.reshape(groups, -1, size)
    return np.asarray(np.einsum("gos,gs->go", rows, mean).reshape(-1))
