"""Rotary positions of a configuration, recovered from a GGUF file's metadata and factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.errors import UnsupportedError
from convkit.families.config import Rope
from convkit.families.decoder import head_size_of
from convkit.families.family import Stored
from convkit.families.keys import shortest
from convkit.families.rotary import FREQUENCIES, LONG, SHORT, llama3_factors
from convkit.families.rotary_formulas import longrope_attention, wave_lengths, yarn_growth

_FIT = 1e-5
"""Relative error up to which factors are those of a formula: float32, computed in some order."""

_HIGH_FACTORS = (4.0, 2.0, 1.25, 1.05, 1.01, 1.001)
"""What `high_freq_factor` may be where the factors leave it open; 4 in every published model."""


def rope_of(stored: Stored, *, is_partial: bool = False) -> dict[str, Any]:
    """`rope_parameters` of a configuration.

    Args:
        stored: the file.
        is_partial: whether the configuration can say that a part of a head's numbers is turned.

    Raises:
        UnsupportedError: transformers has no such positions.
    """
    theta = shortest(stored.get("ARCH.rope.freq_base", 10_000.0))
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if FREQUENCIES in stored.small:
        found |= _llama3_of(stored.small[FREQUENCIES], theta)
    elif LONG in stored.small:
        found |= _longrope_of(stored)
    else:
        found |= _scaling_of(stored)
    share = _share_of(stored)
    if is_partial:
        found["partial_rotary_factor"] = share
    elif share != 1:
        raise UnsupportedError(
            f"This model turns only the part {share:g} of each head's numbers.",
            why="transformers has no partial_rotary_factor for this architecture.",
        )
    return found


def _share_of(stored: Stored) -> float:
    """The part of a head's numbers that is turned."""
    head_size = head_size_of(stored)
    count = int(stored.get("ARCH.rope.dimension_count", head_size))
    share = count / head_size
    # transformers takes the whole part of the product, which rounding may put one lower.
    return share if int(head_size * share) == count else (count + 0.5) / head_size


def _scaling_of(stored: Stored) -> dict[str, Any]:
    kind = stored.get("ARCH.rope.scaling.type", "linear")  # as llama.cpp takes it
    factor = stored.get("ARCH.rope.scaling.factor", stored.get("ARCH.rope.scale_linear"))
    if not factor or kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind == "linear":
        return {"rope_type": kind, "factor": shortest(factor)}
    if kind != "yarn" or stored.get("ARCH.rope.scaling.yarn_ext_factor", 1.0) != 1:
        raise UnsupportedError(
            f"transformers has no rotary positions like this file's ('{kind}').",
            why="Its rope.scaling.* cannot be told in a configuration.",
        )
    factor = shortest(factor)
    context = stored.get("ARCH.context_length")
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": stored.get(
            "ARCH.rope.scaling.original_context_length", context
        ),
    }
    for name in ("beta_fast", "beta_slow"):
        value = stored.get(f"ARCH.rope.scaling.yarn_{name}")
        if value is not None:
            found[name] = shortest(value)
    share = stored.get("ARCH.rope.scaling.attn_factor")
    if share is not None:
        found["attention_factor"] = shortest(share * yarn_growth(factor))
    return found


def _longrope_of(stored: Stored) -> dict[str, Any]:
    context = stored.get("ARCH.context_length")
    original = stored.get("ARCH.rope.scaling.original_context_length", context)
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": [shortest(x) for x in stored.small[LONG]],
        "short_factor": [shortest(x) for x in stored.small[SHORT]],
        "original_max_position_embeddings": original,
    }
    plain = longrope_attention(context / original, original)
    given = stored.get("ARCH.rope.scaling.attn_factor", 1.0)
    if not math.isclose(given, plain, rel_tol=1e-6):
        found["attention_factor"] = shortest(given)
    return found


def _llama3_of(factors: Array, theta: float) -> dict[str, Any]:
    """The four numbers behind llama3's factors.

    They are told by the factors but for a common measure of the last three, which changes nothing:
    `low_freq_factor` is taken as 1, as in every published model.

    Raises:
        UnsupportedError: they are factors of another formula.
    """
    greatest = float(factors.max())
    if np.allclose(factors, 1, rtol=_FIT):
        return {}
    waves = wave_lengths(theta, 2 * len(factors))
    blend = (1 / factors.astype(np.float64) - 1 / greatest) / (1 - 1 / greatest)
    for high, original in _bends(waves, blend):
        settings = {
            "factor": _near(greatest),
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(original) if original % 1 == 0 else original,
        }
        again = llama3_factors(Rope(theta, "llama3", settings=settings), 2 * len(factors))
        if np.allclose(again, factors, rtol=_FIT):
            return {"rope_type": "llama3", **settings}
    raise UnsupportedError(
        f"The frequency factors in {FREQUENCIES} follow no formula that transformers has.",
        why=f"They run from {factors.min():.4g} to {greatest:.4g}.",
    )


def _bends(waves: Array, blend: Array) -> Iterator[tuple[float, float]]:
    """Where the blend may begin and end: (`high_freq_factor`, original context), likely ones first.

    Between its bends the blend is a line in 1 / wave length, (original / wave - 1) / (high - 1).
    Two points on it tell both numbers. With one, or none, several pairs give the same factors.
    """
    inside = (blend > 1e-4) & (blend < 1 - 1e-4)
    if inside.sum() >= 2:
        slope, offset = np.polyfit(1 / waves[inside], blend[inside], 1)
        high = float(1 - 1 / offset)
        original = float(slope * (high - 1))
        yield _near(high), _near(original)
        yield high, original
        return
    if inside.any():
        wave, part = float(waves[inside][0]), float(blend[inside][0])
        for high in _HIGH_FACTORS:
            original = wave * (part * (high - 1) + 1)
            yield high, _near(original)
            yield high, original
        return
    stretched = blend < 0.5
    shortest_stretched = float(waves[stretched].min())
    longest_kept = float(waves[~stretched].max(initial=0))
    for high in _HIGH_FACTORS:  # any context that no wave is near to
        lowest = max(longest_kept * high, 1)
        if lowest <= shortest_stretched:
            yield high, math.sqrt(lowest * shortest_stretched)


def _near(value: float) -> float:
    """A whole number where it is one up to rounding."""
    return float(round(value)) if abs(value - round(value)) <= 1e-3 * abs(value) else value
