"""Rotary positions in GGUF: metadata and tensors from a configuration, and the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.errors import UnsupportedError
from convkit.families.config import Config, Rope
from convkit.families.decoder import shortest

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"

_FIT = 1e-4
"""Relative error up to which factors count as those of a formula: they were rounded to float32,
and some converters computed them in half precision."""


def metadata_of(rope: Rope, context: int) -> dict[str, Any]:
    """`ARCH.rope.*` for these positions.

    Raises:
        UnsupportedError: llama.cpp has no such scaling.
    """
    keys: dict[str, Any] = {"ARCH.rope.freq_base": rope.theta}
    if rope.kind in ("default", "llama3"):  # llama3 is told by a tensor alone
        return keys
    if rope.kind == "linear":
        return {**keys, "ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": rope.factor}
    if rope.kind == "yarn":
        return {**keys, **_yarn(rope, context)}
    if rope.kind == "longrope":
        return {**keys, **_longrope(rope, context)}
    raise UnsupportedError(
        f"Rotary positions of kind '{rope.kind}' cannot be told to llama.cpp.",
        why="It knows default, linear, yarn, llama3 and longrope.",
    )


def _yarn(rope: Rope, context: int) -> dict[str, Any]:
    original = int(rope.settings.get("original_max_position_embeddings") or context)
    keys: dict[str, Any] = {
        "ARCH.rope.scaling.type": "yarn",
        "ARCH.rope.scaling.factor": rope.factor,
        "ARCH.rope.scaling.original_context_length": original,
    }
    optional = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
    for name, key in optional.items():
        if rope.settings.get(name) is not None:
            keys[f"ARCH.rope.scaling.{key}"] = float(rope.settings[name])
    return keys


def _longrope(rope: Rope, context: int) -> dict[str, Any]:
    original = int(rope.settings.get("original_max_position_embeddings") or context)
    return {
        "ARCH.rope.scaling.original_context_length": original,
        "ARCH.rope.scaling.attn_factor": attention_factor(rope, context, original),
    }


def attention_factor(rope: Rope, context: int, original: int) -> float:
    """What longrope multiplies cosines and sines by.

    Source: LongRoPE, arXiv:2402.13753, as `_compute_longrope_parameters` of transformers has it.
    """
    given = rope.settings.get("attention_factor")
    if given is not None:
        return float(given)
    scale = context / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def tensors_of(config: Config, rotated: int) -> dict[str, Array]:
    """Tensors that say what metadata cannot: factors by which frequencies are divided.

    Args:
        config: of the model.
        rotated: numbers of a head that are turned.
    """
    rope = config.rope()
    if rope.kind == "llama3":
        return {FREQUENCIES: llama3_factors(rope, rotated)}
    if rope.kind == "longrope":
        long, short = (rope.settings.get(name) for name in ("long_factor", "short_factor"))
        if long is None or short is None or len(long) != rotated // 2 or len(short) != len(long):
            raise UnsupportedError(
                "config.json asks for longrope, but its factors do not fit.",
                why=f"{rotated // 2} numbers are needed in each of long_factor and short_factor.",
            )
        return {LONG: np.float32(long), SHORT: np.float32(short)}
    return {}


def llama3_factors(rope: Rope, rotated: int) -> Array:
    """What Llama 3.1 divides each frequency by: float32 (rotated / 2).

    Waves longer than the old context are stretched, short ones stay, between them it is blended.
    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    settings = rope.settings
    low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
    original = float(settings["original_max_position_embeddings"])
    waves = _wave_lengths(rope.theta, rotated)
    blend = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    factors: Array = (1 / ((1 - blend) / rope.factor + blend)).astype(np.float32)
    return factors


def _wave_lengths(theta: float, rotated: int) -> Array:
    """Tokens after which each pair of numbers has turned once."""
    lengths: Array = 2 * np.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    return lengths


def rope_of(
    get: Any, tensors: Mapping[str, Array], rotated: int, share: float | None = None
) -> dict[str, Any]:
    """`rope_parameters` of a configuration, from GGUF.

    Args:
        get: (key, default) -> metadata, as `Header.get`.
        tensors: the factor tensors of the file, by name.
        rotated: numbers of a head that are turned.
        share: of a head's numbers that are turned, where the configuration is to say it.
    """
    theta = shortest(get("ARCH.rope.freq_base", 10_000.0))
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    original = get("ARCH.rope.scaling.original_context_length")
    if FREQUENCIES in tensors:
        found |= _llama3_of(tensors[FREQUENCIES], theta, original)
    elif LONG in tensors:
        found |= _longrope_of(get, tensors, original)
    else:
        found |= _scaling_of(get, original)
    if share is not None:
        found["partial_rotary_factor"] = share
    return found


def _scaling_of(get: Any, original: int | None) -> dict[str, Any]:
    kind = get("ARCH.rope.scaling.type", "none")
    factor = get("ARCH.rope.scaling.factor", get("ARCH.rope.scale_linear"))
    if factor is None or kind == "none" or factor == 1.0:
        return {}
    found: dict[str, Any] = {"rope_type": kind, "factor": shortest(factor)}
    if kind == "yarn":
        if original is not None:
            found["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            value = get(f"ARCH.rope.scaling.yarn_{name}")
            if value is not None:
                found[name] = shortest(value)
    return found


def _longrope_of(get: Any, tensors: Mapping[str, Array], original: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": [shortest(x) for x in tensors[LONG]],
        "short_factor": [shortest(x) for x in tensors[SHORT]],
    }
    if original is not None:
        found["original_max_position_embeddings"] = original
        context = get("ARCH.context_length", original)
        plain = attention_factor(Rope(1.0, settings={}), context, original)
        given = get("ARCH.rope.scaling.attn_factor", plain)
        if not math.isclose(given, plain, rel_tol=1e-6):
            found["attention_factor"] = shortest(given)
    return found


def _llama3_of(factors: Array, theta: float, original: int | None) -> dict[str, Any]:
    """The four numbers behind llama3's factors, as far as the factors determine them.

    Between its bends the blend is a line in 1 / wave length: its slope and offset give the ratios
    original / low and original / high. `low` is 1 in every published model, which fixes the rest.

    Raises:
        UnsupportedError: they are factors of another formula.
    """
    greatest = float(factors.max())
    waves = _wave_lengths(theta, 2 * len(factors))
    blend = (1 / factors.astype(np.float64) - 1 / greatest) / (1 - 1 / greatest)
    inside = (blend > 1e-3) & (blend < 1 - 1e-3)
    candidates = [(1.0, 4.0, float(original or 8192))]
    if inside.sum() >= 2:
        slope, offset = np.polyfit(1 / waves[inside], blend[inside], 1)
        high = 1 - 1 / offset  # offset = -low / (high - low), with low = 1
        candidates.insert(0, (1.0, _near(high), _near(slope * (high - 1))))
    for low, high, context in candidates:
        settings = {
            "factor": _near(greatest),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": round(context),
        }
        again = llama3_factors(Rope(theta, "llama3", settings=settings), 2 * len(factors))
        if np.allclose(again, factors, rtol=_FIT):
            return {"rope_type": "llama3", **settings}
    raise UnsupportedError(
        f"The frequency factors in {FREQUENCIES} follow no formula that transformers has.",
        why=f"They run from {factors.min():.4g} to {greatest:.4g}.",
    )


def _near(value: float) -> float:
    """A whole number where it is one up to rounding."""
    return float(round(value)) if abs(value - round(value)) <= 1e-3 * abs(value) else value
