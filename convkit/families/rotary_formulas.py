"""Formulas of rotary positions that both directions, and graphs, compute with.

Source: transformers, `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array

BETA_FAST, BETA_SLOW = 32, 1
"""What `yarn_bounds` takes where a configuration does not say."""


def wave_lengths(theta: float, count: int) -> Array:
    """Tokens after which each pair of numbers has turned once."""
    lengths: Array = 2 * np.pi * theta ** (np.arange(0, count, 2) / count)
    return lengths


def yarn_bounds(
    theta: float, count: int, original: float, fast: float, slow: float
) -> tuple[float, float]:
    """Between which pairs yarn blends frequencies, neither rounded nor within the pairs there are.

    Source: YaRN, arXiv:2309.00071, section 3.2.

    Args:
        theta: the base of the frequencies.
        count: numbers of a head that are turned.
        original: tokens of the old context.
        fast: turns within the old context from which a frequency is kept.
        slow: turns below which it is stretched.
    """
    low, high = (
        count * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (fast, slow)
    )
    return low, high


def yarn_growth(factor: float, scale: float = 1.0) -> float:
    """What yarn multiplies cosines and sines by; llama.cpp does so unasked, with a scale of 1.

    Source: YaRN, arXiv:2309.00071, equation 22.
    """
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def yarn_attention(settings: Mapping[str, Any], factor: float) -> float:
    """What transformers multiplies cosines and sines by under these settings of yarn."""
    given = settings.get("attention_factor")
    if given is not None:
        return float(given)
    scale, scale_all = settings.get("mscale"), settings.get("mscale_all_dim")
    if scale and scale_all:
        return yarn_growth(factor, scale) / yarn_growth(factor, scale_all)
    return yarn_growth(factor)


def longrope_attention(factor: float, original: int) -> float:
    """What longrope multiplies cosines and sines by.

    Source: LongRoPE, arXiv:2402.13753, as `_compute_longrope_parameters` of transformers has it.
    """
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
