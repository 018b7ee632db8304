"""How far language models of each scheme of quantization may be from their source.

Runtimes of quantized models round activations too, so two parties are looked at: what their weights
are worth, and what their runtimes round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from convkit.artifact import Precision
from convkit.ggml.types import DEFAULT_SCHEMES


@dataclass(frozen=True)
class LanguageLimits:
    """How far a language model may move.

    Attributes:
        kl: mean divergence, in nats a token.
        top1: at least this share of the same most likely tokens, where the reference decides: its
            lead is more than twice what `kl` makes probable.
        ln_perplexity: difference of the logarithms of the perplexities, either way.
        cosine: of models that give embeddings, the least of any token's two vectors.
        reason: why these numbers.
    """

    kl: float
    top1: float
    ln_perplexity: float
    cosine: float
    reason: str

    @property
    def margin(self) -> float:
        """Lead in nats below which the most likely token may change.

        A divergence d goes with log probabilities that are off by about sqrt(2 d).
        """
        return 2 * math.sqrt(2 * self.kl)


_EXACT = LanguageLimits(
    1e-5, 1.0, 0.005, 0.9999,
    "Float weights and a float cache were measured at 1e-11 (F32) and 4e-6 (F16) on SmolLM2-135M.",
)  # fmt: skip
ROUNDED = LanguageLimits(
    0.02, 0.97, 0.03, 0.998,
    "The same weights in a runtime that rounds activations to eight bits: 4e-3 on SmolLM2-135M.",
)  # fmt: skip
HALF_ROUNDED = LanguageLimits(
    3.5e-3, 0.97, 0.03, 0.998,
    "PyTorch rounds every value to bfloat16: 1.2e-3 against float32 on SmolLM2-135M, 2,048 tokens.",
)  # fmt: skip
_SMALL = (
    "About three times what was measured on SmolLM2-135M, and on MiniLM for vectors; small models "
    "suffer most."
)

LIMITS: Mapping[str, LanguageLimits] = {
    "f32": _EXACT,
    "f16": _EXACT,
    "bf16": LanguageLimits(
        1e-3, 0.99, 0.01, 0.999, "Weights and activations of eight bits, measured at 1.4e-4."
    ),
    **{
        name: LanguageLimits(kl, top1, ln_perplexity, cosine, _SMALL)
        for name, kl, top1, ln_perplexity, cosine in (
            ("q8_0", 0.02, 0.97, 0.03, 0.997),
            ("q6_k", 0.04, 0.96, 0.07, 0.994),
            ("q5_k_m", 0.20, 0.95, 0.22, 0.97),
            ("q5_k_s", 0.22, 0.95, 0.24, 0.96),
            ("q5_0", 0.22, 0.95, 0.25, 0.95),
            ("q5_1", 0.30, 0.93, 0.32, 0.95),
            ("q4_k_m", 0.25, 0.93, 0.25, 0.95),
            ("q4_k_s", 0.35, 0.93, 0.30, 0.94),
            ("iq4_xs", 0.50, 0.93, 0.45, 0.90),
            ("iq4_nl", 0.50, 0.93, 0.45, 0.89),
            ("q4_1", 0.70, 0.92, 0.60, 0.80),
            ("q4_0", 0.90, 0.90, 0.70, 0.85),
            ("q3_k_m", 1.20, 0.85, 0.90, 0.80),
            ("q3_k_s", 2.00, 0.80, 1.30, 0.75),
            ("q2_k", 3.50, 0.70, 2.50, 0.60),
            ("llm_int8", 0.01, 0.97, 0.03, 0.997),
            ("nf4", 0.80, 0.90, 0.55, 0.80),
            ("fp4", 1.50, 0.85, 1.25, 0.75),
        )
    },
}
"""Scheme -> limits."""

_FLOATS = {Precision.FP32, Precision.FP16, Precision.BF16}
"""Weights of which runtimes round activations to bfloat16 at most."""


@dataclass(frozen=True)
class Party:
    """One side of a comparison.

    Attributes:
        precision: of its weights.
        scheme: how they are quantized; "" where the precision tells.
        rounds: whether its runtime rounds activations.
    """

    precision: Precision
    scheme: str = ""
    rounds: bool = False


def limits_between(reference: Party, candidate: Party) -> LanguageLimits:
    """How far the candidate may be from the reference.

    Where its weights are worth less, its scheme decides, unless what runtimes round asks for more.
    """
    same_scheme = not candidate.scheme or candidate.scheme == reference.scheme
    is_lowered = candidate.precision.bits < reference.precision.bits or (
        candidate.precision.bits == reference.precision.bits and not same_scheme
    )
    lowered = _EXACT
    if is_lowered or candidate.precision is Precision.BF16 is not reference.precision:
        lowered = LIMITS[candidate.scheme or DEFAULT_SCHEMES[candidate.precision]]
    return max(lowered, _rounding(reference, candidate), key=lambda limits: limits.kl)


def _rounding(reference: Party, candidate: Party) -> LanguageLimits:
    """What runtimes alone make of equal weights."""
    if not (reference.rounds or candidate.rounds):
        return _EXACT
    if not {reference.precision, candidate.precision} <= _FLOATS:
        return ROUNDED
    # llama.cpp, which knows schemes, rounds what matrices are multiplied with; PyTorch every value.
    rounds_all = any(party.rounds and not party.scheme for party in (reference, candidate))
    return HALF_ROUNDED if rounds_all else LIMITS["bf16"]
