"""Frequencies of rotary positions, from a configuration.

Powers are taken in double precision and rounded, all else in float32, step by step as transformers
does: at position 10000 a last bit of a frequency is a visible turn.

Source: transformers 5.23, `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.converters.decoder_graph.blueprint import Growth, Rotary
from convkit.converters.decoder_graph.settings import Settings
from convkit.families.rotary_formulas import (
    BETA_FAST,
    BETA_SLOW,
    longrope_attention,
    yarn_attention,
    yarn_bounds,
)

_KEYS = frozenset((
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor",
    "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "finetuned",
))  # fmt: skip
_WITH_ORIGINAL = ("llama3", "yarn", "longrope")


@dataclass(frozen=True)
class _Rope:
    """What the formulas take: the scaling's own numbers, the base, the rotated width."""

    own: Mapping[str, Any]
    theta: float
    width: int
    context: int


def rotary(
    settings: Settings,
    size: int,
    *,
    context: int,
    theta: float = 10_000.0,
    share: float | None = None,
    original: int | None = None,
    own: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Rotary:
    """The rotation of heads of `size` numbers.

    Args:
        settings: the configuration.
        size: numbers of a head.
        context: tokens the model was made for, where the configuration does not say.
        theta: the base, where the configuration does not say.
        share: of a head's numbers that are turned, where the configuration does not say; None
            where the family always turns all.
        original: tokens it was first trained on, where the configuration does not say; None where
            that is `context`.
        own: the scaling's numbers where they are not in their usual places.
        renamed: other names of kinds.

    Raises:
        UnsupportedError: a kind or an option that transformers would read and this does not.
    """
    context = settings.number("max_position_embeddings", default=context)
    found = dict(_settings_of(settings) if own is None else own)
    found.setdefault("rope_theta", settings.get("rope_theta", theta))
    kind = str(found.get("rope_type") or found.get("type") or "default")
    kind = (renamed or {}).get(kind, kind)
    if kind not in _KINDS:
        raise settings.refusal(f"rotary positions of kind '{kind}'", "the formula is not known")
    odd = [key for key, value in found.items() if key not in _KEYS and value]
    if odd:
        raise settings.refusal(f"rope option '{odd[0]}'", "what it changes is not known")
    part = found.get("partial_rotary_factor", settings.get("partial_rotary_factor", share))
    part = 1.0 if part is None else float(part)
    if share is None and part != 1.0:
        raise settings.refusal(f"partial_rotary_factor = {part}", "the family turns whole heads")
    width = int(size * part)
    if width % 2 or not 0 < width <= size:
        raise settings.refusal(f"{width} of {size} numbers turned", "they are turned in pairs")
    original = settings.get("original_max_position_embeddings", original)
    if kind in _WITH_ORIGINAL:
        if original is not None:
            found["original_max_position_embeddings"] = original
        found.setdefault("original_max_position_embeddings", context)
    try:
        return _KINDS[kind](_Rope(found, float(found["rope_theta"]), width, context))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as cause:
        raise settings.refusal(
            f"rotary positions of kind '{kind}'", f"its numbers are incomplete ({cause!r})"
        ) from cause


def _settings_of(settings: Settings) -> Mapping[str, Any]:
    """The numbers of rotary positions, whether written by transformers 5 or before."""
    found: Mapping[str, Any] = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    settings.get("rope_parameters")
    return found


def _default(rope: _Rope) -> Rotary:
    return _made(_plain(rope))


def _linear(rope: _Rope) -> Rotary:
    return _made(_plain(rope) / np.float32(rope.own["factor"]))


def _dynamic(rope: _Rope) -> Rotary:
    if rope.width <= 2:
        raise ValueError("more than one pair is needed")
    growth = Growth(rope.theta, float(rope.own["factor"]), rope.context)
    return _made(_plain(rope), growth=growth)


def _yarn(rope: _Rope) -> Rotary:
    """Source: YaRN, arXiv:2309.00071, sections 3.1 to 3.4."""
    own, powers = rope.own, _powers(rope)
    original = own["original_max_position_embeddings"]
    factor = own["factor"]
    factor = rope.context / original if factor is None else factor
    betas = own.get("beta_fast") or BETA_FAST, own.get("beta_slow") or BETA_SLOW
    low, high = yarn_bounds(rope.theta, rope.width, original, *betas)
    if own.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(rope.width // 2, dtype=np.float32) - low) / np.float32(span), 0, 1)
    kept = 1 - ramp
    blended = 1 / (np.float32(factor) * powers) * (1 - kept) + 1 / powers * kept
    return _made(blended, magnitude=yarn_attention(own, factor))


def _llama3(rope: _Rope) -> Rotary:
    own, plain = rope.own, _plain(rope)
    factor = np.float32(own["factor"])
    low, high = own["low_freq_factor"], own["high_freq_factor"]
    original = own["original_max_position_embeddings"]
    wave = np.float32(2 * math.pi) / plain
    smooth = (np.float32(original) / wave - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    is_long, is_short = wave > original / low, wave < original / high
    return _made(np.where(is_long, plain / factor, np.where(is_short, plain, blended)))


def _longrope(rope: _Rope) -> Rotary:
    own, powers = rope.own, _powers(rope)
    original = int(own["original_max_position_embeddings"])
    factor = own.get("factor")
    factor = rope.context / original if factor is None else factor
    magnitude = own.get("attention_factor")
    if magnitude is None:
        magnitude = longrope_attention(factor, original)
    short, long = (np.float32(own[key]) for key in ("short_factor", "long_factor"))
    if short.shape != powers.shape or long.shape != powers.shape:
        raise ValueError(f"{len(powers)} factors are needed each for short and long texts")
    return Rotary(
        _floats(1 / (short * powers)), float(magnitude), _floats(1 / (long * powers)), original
    )


_KINDS: Mapping[str, Callable[[_Rope], Rotary]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def _powers(rope: _Rope) -> Array:
    """Tokens per radian of each pair."""
    exponents = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    powers: Array = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    return powers


def _plain(rope: _Rope) -> Array:
    frequencies: Array = 1 / _powers(rope)
    return frequencies


def _made(frequencies: Array, magnitude: float = 1.0, growth: Growth | None = None) -> Rotary:
    return Rotary(_floats(frequencies), magnitude, growth=growth)


def _floats(array: Array) -> tuple[float, ...]:
    return tuple(map(float, array.astype(np.float32)))
