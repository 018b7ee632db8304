"""Rotary positions in GGUF: metadata and tensors from a configuration.

Source: llama.cpp, `conversion/base.py`, `conversion/llama.py`, `conversion/phi.py`, and how
`src/llama-context.cpp` and `ggml_rope_ext` read them; transformers, `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.errors import ModelError, UnsupportedError
from convkit.families.config import Config, Rope
from convkit.families.rotary_formulas import (
    BETA_FAST,
    BETA_SLOW,
    longrope_attention,
    wave_lengths,
    yarn_attention,
    yarn_bounds,
    yarn_growth,
)

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FREQUENCIES, LONG, SHORT)
"""Factors by which frequencies are divided: llama3's, and longrope's two."""

PLAIN = ("default", "linear", "yarn")
"""Kinds that metadata express alone, so that every architecture of llama.cpp has them."""


def check(config: Config, kinds: Iterable[str] = PLAIN, *, is_partial: bool = False) -> None:
    """Sees to it that llama.cpp can turn heads as transformers does.

    Args:
        config: of the model.
        kinds: that the architecture has.
        is_partial: whether it can turn a part of a head's numbers.

    Raises:
        UnsupportedError: it cannot.
    """
    rope = config.rope()
    if rope.kind not in kinds:
        raise UnsupportedError(
            f"Rotary positions of kind '{rope.kind}' cannot be told to llama.cpp.",
            why=f"For {config.model_type} it knows {', '.join(kinds)}.",
            option="rope_type",
        )
    if rope.share != 1 and not is_partial:
        raise UnsupportedError(
            f"llama.cpp turns all numbers of a head, not the part {rope.share:g} of them.",
            why=f"config.json says so as partial_rotary_factor; {config.model_type} is another "
            "architecture without it.",
            option="partial_rotary_factor",
        )
    if rotated(config) % 2:
        raise UnsupportedError(f"{rotated(config)} numbers of a head cannot be turned in pairs.")
    if rope.kind == "yarn":
        _check_yarn(config)


def _check_yarn(config: Config) -> None:
    """Sees to it that frequencies are blended between the bounds that llama.cpp takes.

    Its common loader reads neither `yarn_beta_fast` nor `yarn_beta_slow`, and bounds are rounded.
    """
    settings = config.rope().settings
    usual = _yarn_bounds(config, BETA_FAST, BETA_SLOW)
    for name, betas in (
        ("beta_fast", (settings.get("beta_fast") or BETA_FAST, BETA_SLOW)),
        ("beta_slow", (BETA_FAST, settings.get("beta_slow") or BETA_SLOW)),
    ):
        if _rounded(_yarn_bounds(config, *betas)) != _rounded(usual):
            raise UnsupportedError(
                f"llama.cpp has no yarn with {name} = {settings[name]!r}.",
                why=f"For {config.model_type} it takes {BETA_FAST} and {BETA_SLOW}.",
                option=name,
            )
    if settings.get("truncate") is False and _rounded(usual) != usual:
        raise UnsupportedError(
            "llama.cpp has no yarn with truncate = False.",
            why="It rounds the bounds between which frequencies are blended.",
            option="truncate",
        )


def _yarn_bounds(config: Config, fast: float, slow: float) -> tuple[float, float]:
    """Between which pairs frequencies are blended. Source: `ggml_rope_yarn_corr_dims` in ggml.c."""
    rope, count = config.rope(), rotated(config)
    low, high = yarn_bounds(rope.theta, count, rope.original_context, fast, slow)
    return max(low, 0.0), min(high, count - 1.0)


def _rounded(bounds: tuple[float, float]) -> tuple[float, float]:
    return float(math.floor(bounds[0])), float(math.ceil(bounds[1]))


def notes_of(config: Config) -> tuple[str, ...]:
    """What is to be said of longrope, whose two sets of factors are chosen by other rules.

    Source: llama.cpp, `llama_model::get_rope_factors`; transformers, `longrope_frequency_update`.
    """
    rope = config.rope()
    if rope.kind != "longrope":
        return ()
    return (
        f"in contexts of more than {rope.original_context} tokens llama.cpp turns by long_factor "
        "from the first token on; transformers does once the text is that long",
    )


def rotated(config: Config) -> int:
    """Numbers of a head that are turned."""
    return int(config.head_size * config.rope().share)


def metadata_of(config: Config) -> dict[str, Any]:
    """`ARCH.rope.*` but for the number of dimensions, which not every family writes."""
    rope = config.rope()
    keys: dict[str, Any] = {"ARCH.rope.freq_base": rope.theta}
    if rope.kind in ("default", "llama3"):  # llama3 is told by a tensor alone
        return keys
    keys["ARCH.rope.scaling.type"] = rope.kind
    if rope.kind == "linear":
        return {**keys, "ARCH.rope.scaling.factor": _factor(rope)}
    keys["ARCH.rope.scaling.original_context_length"] = rope.original_context
    scaled = _yarn if rope.kind == "yarn" else _longrope
    return {**keys, **scaled(rope, config.context)}


def _factor(rope: Rope) -> float:
    factor = rope.settings.get("factor")
    if not isinstance(factor, int | float) or factor <= 0:
        raise ModelError(
            f"config.json scales rotary positions ('{rope.kind}'), but its factor is {factor!r}.",
            hint="Copy config.json from where the weights come from.",
        )
    return float(factor)


def _stretch(rope: Rope, context: int) -> float:
    """How much longer the context became; contexts tell it where the factor is left out."""
    return _factor(rope) if rope.settings.get("factor") else context / rope.original_context


def _yarn(rope: Rope, context: int) -> dict[str, Any]:
    factor = _stretch(rope, context)
    keys: dict[str, Any] = {"ARCH.rope.scaling.factor": factor}
    for name in ("beta_fast", "beta_slow"):
        if rope.settings.get(name):
            keys[f"ARCH.rope.scaling.yarn_{name}"] = float(rope.settings[name])
    share = yarn_attention(rope.settings, factor) / yarn_growth(factor)
    if not math.isclose(share, 1, rel_tol=1e-7):
        keys["ARCH.rope.scaling.attn_factor"] = share
    return keys


def _longrope(rope: Rope, context: int) -> dict[str, Any]:
    given = rope.settings.get("attention_factor")
    plain = longrope_attention(_stretch(rope, context), rope.original_context)
    return {"ARCH.rope.scaling.attn_factor": plain if given is None else float(given)}


def tensors_of(config: Config) -> dict[str, Array]:
    """Tensors that say what metadata cannot: factors by which frequencies are divided.

    Raises:
        ModelError: there are not as many factors as frequencies.
    """
    rope, count = config.rope(), rotated(config)
    if rope.kind == "llama3":
        return {FREQUENCIES: llama3_factors(rope, count)}
    if rope.kind != "longrope":
        return {}
    factors = {LONG: rope.settings.get("long_factor"), SHORT: rope.settings.get("short_factor")}
    if any(found is None or len(found) != count // 2 for found in factors.values()):
        raise ModelError(
            "config.json asks for longrope, but its factors do not fit.",
            why=f"{count // 2} numbers are needed in each of long_factor and short_factor.",
            hint="Copy config.json from where the weights come from.",
        )
    return {name: np.float32(found) for name, found in factors.items()}


def llama3_factors(rope: Rope, count: int) -> Array:
    """What Llama 3.1 divides each frequency by: float32 (count / 2).

    Waves longer than the old context are stretched, short ones stay, between them it is blended.
    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.

    Raises:
        ModelError: the configuration lacks a number.
    """
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if not isinstance(rope.settings.get(name), int | float)]
    if missing:
        raise ModelError(
            f"config.json asks for llama3's rotary positions, but lacks {', '.join(missing)}.",
            hint="Copy config.json from where the weights come from.",
        )
    factor, low, high, original = (float(rope.settings[name]) for name in names)
    blend = np.clip((original / wave_lengths(rope.theta, count) - low) / (high - low), 0.0, 1.0)
    factors: Array = (1 / ((1 - blend) / factor + blend)).astype(np.float32)
    return factors
