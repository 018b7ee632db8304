"""The noise that int8 is expected to add to a layer whose channels are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkit.quantization.channel_ranges import ChannelRange

Array = np.ndarray[Any, Any]

_COMPENSATED = 0.3
"""What is left of the noise of weights once rounding makes up for it, about."""


def expected_noise(rows: Array, seen: ChannelRange, scales: Array) -> float:
    """Noise over signal of a layer's outputs, about, if channels are divided by `scales`.

    An activation has steps of its range over 255, a weight of its row's range over 127; the error
    of either is a twelfth of its step squared.

    Args:
        rows: weight of the layer, (groups, outputs, channels, elements).
        seen: what the channels hold.
        scales: (channels of all groups,).

    Source: Widrow and Kollar, Quantization Noise, 2008, section 4.1 (uniform noise of a step).
    """
    scale = scales.reshape(len(rows), 1, -1, 1)
    square = seen.square.reshape(scale.shape)
    signal = float(np.sum(np.square(rows) * square))
    if not signal > 0:
        return 0.0
    step = float(np.max(seen.absmax / scales)) / 255
    scaled = rows * scale
    from_activations = float(np.sum(np.square(scaled))) * step**2 / 12
    steps = np.max(np.abs(scaled), axis=(2, 3)) / 127  # (groups, outputs)
    heard = np.sum(square / np.square(scale), axis=(2, 3)) * rows.shape[3]
    from_weights = _COMPENSATED * float(np.sum(np.square(steps) * heard)) / 12
    return (from_activations + from_weights) / signal
