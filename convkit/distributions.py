"""Judges logits by what they mean: probabilities of the next token.

Runtimes of quantized models round activations, so logits differ where the prediction does not. What
counts is how far the predicted distribution moved (Kullback-Leibler divergence), whether the most
likely token is the same, and how well the text is predicted (perplexity).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from convkit import metrics
from convkit.artifact import Precision
from convkit.metrics import Array
from convkit.step import Feeds


@dataclass(frozen=True)
class DistributionLimits:
    """How far predictions may move.

    Attributes:
        kl: mean divergence, in nats a token.
        top1: at least this share of the same most likely tokens, where the reference decides: its
            lead is more than twice what `kl` makes probable.
        ln_perplexity: difference of the logarithms of the perplexities, either way.
        reason: why these numbers.
    """

    kl: float
    top1: float
    ln_perplexity: float
    reason: str

    @property
    def margin(self) -> float:
        """Lead in nats below which the most likely token may change.

        A divergence d goes with log probabilities that are off by about sqrt(2 d).
        """
        return float(2 * np.sqrt(2 * self.kl))


_EXACT = DistributionLimits(
    1e-5, 1.0, 0.005,
    "Float weights and a float cache were measured at 1e-9 (F32) and 5e-6 (F16) on SmolLM2-135M.",
)  # fmt: skip
ROUNDED = DistributionLimits(
    0.02, 0.97, 0.03,
    "The same weights in a runtime that rounds activations to eight bits: 3e-3 on SmolLM2-135M.",
)  # fmt: skip
_SMALL = "Three times what was measured on SmolLM2-135M; small models suffer most."

LIMITS: Mapping[str, DistributionLimits] = {
    "f32": _EXACT,
    "f16": _EXACT,
    "bf16": DistributionLimits(
        2e-3, 0.99, 0.01, "An 8-bit mantissa of weights and activations; measured at 5e-4."
    ),
    **{
        name: DistributionLimits(kl, top1, ln_perplexity, _SMALL)
        for name, kl, top1, ln_perplexity in (
            ("q8_0", 0.02, 0.97, 0.03),
            ("q6_k", 0.04, 0.96, 0.05),
            ("q5_k_m", 0.10, 0.95, 0.10),
            ("q5_k_s", 0.12, 0.95, 0.12),
            ("q5_1", 0.12, 0.95, 0.12),
            ("q5_0", 0.15, 0.95, 0.15),
            ("q4_k_m", 0.25, 0.93, 0.25),
            ("q4_k_s", 0.35, 0.93, 0.30),
            ("iq4_xs", 0.35, 0.93, 0.30),
            ("iq4_nl", 0.35, 0.93, 0.30),
            ("q4_1", 0.50, 0.92, 0.40),
            ("q4_0", 0.90, 0.90, 0.60),
            ("q3_k_m", 1.20, 0.85, 0.90),
            ("q3_k_s", 2.00, 0.80, 1.30),
            ("q2_k", 3.50, 0.70, 2.50),
        )
    },
}
"""Scheme -> limits."""

_TELLING_TOKENS = 100
"""Perplexities of fewer tokens say nothing."""

_SCHEME_OF = {
    Precision.FP32: "f32",
    Precision.FP16: "f16",
    Precision.BF16: "bf16",
    Precision.INT8: "q8_0",
    Precision.Q4: "q4_k_m",
}


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


def limits_between(reference: Party, candidate: Party) -> DistributionLimits:
    """How far the candidate may be from the reference.

    Where its weights are worth less, its scheme decides; else only what the runtimes round.
    """
    same_scheme = not candidate.scheme or candidate.scheme == reference.scheme
    is_lowered = candidate.precision.bits < reference.precision.bits or (
        candidate.precision.bits == reference.precision.bits and not same_scheme
    )
    if is_lowered or candidate.precision is Precision.BF16 is not reference.precision:
        return LIMITS[candidate.scheme or _SCHEME_OF[candidate.precision]]
    if not (reference.rounds or candidate.rounds):
        return _EXACT
    is_bf16 = {reference.precision, candidate.precision} <= {Precision.BF16, Precision.FP32}
    return LIMITS["bf16"] if is_bf16 else ROUNDED


@dataclass
class Predictions:
    """How texts were predicted by two models, token by token, added up.

    Attributes:
        limits: how far they may be apart.
    """

    limits: DistributionLimits
    _tokens: int = 0
    _divergence: float = 0.0
    _same: int = 0
    _decided: int = 0
    _same_decided: int = 0
    _scored: int = 0
    _reference_nll: float = 0.0
    _candidate_nll: float = 0.0

    def add(self, feeds: Feeds, reference: Array, candidate: Array) -> None:
        """Adds logits (batch, sequence, vocabulary) of the tokens that the mask leaves."""
        ids = feeds["input_ids"]
        mask = np.asarray(feeds.get("attention_mask", np.ones(ids.shape)), bool)
        r, c = reference[mask], candidate[mask]  # (tokens, vocabulary)
        self._tokens += len(r)
        self._divergence += metrics.kl(r, c) * len(r)
        leads = np.diff(np.partition(r, -2, axis=-1)[:, -2:].astype(np.float64))[:, 0]
        same, decided = r.argmax(-1) == c.argmax(-1), leads > self.limits.margin
        self._same += int(same.sum())
        self._decided += int(decided.sum())
        self._same_decided += int((same & decided).sum())
        scored = metrics.scored_tokens(mask)
        if scored:
            self._scored += scored
            self._reference_nll += metrics.nll(ids, reference, mask) * scored
            self._candidate_nll += metrics.nll(ids, candidate, mask) * scored

    @property
    def kl(self) -> float:
        """Mean divergence, nats a token."""
        return self._divergence / max(self._tokens, 1)

    @property
    def top1(self) -> float:
        """Share of the same most likely tokens, of those where the reference decides."""
        return self._same_decided / self._decided if self._decided else 1.0

    @property
    def ln_perplexity(self) -> float | None:
        """Difference of the logarithms of the perplexities; None where tokens are too few."""
        if self._scored < _TELLING_TOKENS:
            return None
        return abs(self._candidate_nll - self._reference_nll) / self._scored

    def __str__(self) -> str:
        told = f"the same most likely token for {self._same / max(self._tokens, 1):.1%}"
        if self.ln_perplexity is None:
            return f"{told} of {self._tokens} tokens"
        before, after = (
            np.exp(nll / self._scored) for nll in (self._reference_nll, self._candidate_nll)
        )
        return (
            f"perplexity {before:.4g} before, {after:.4g} after, on {self._scored} tokens; {told} "
            f"of {self._tokens}"
        )
