"""Judges logits by what they mean: probabilities of the next token.

Runtimes of quantized models round activations, so logits differ where the prediction does not. What
counts is how far the predicted distribution moved (Kullback-Leibler divergence), whether the most
likely token is the same, and how well the text is predicted (perplexity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convkit import metrics
from convkit.language_limits import LanguageLimits
from convkit.metrics import Array
from convkit.step import Feeds

_TELLING_TOKENS = 100
"""Perplexities of fewer tokens say nothing."""


@dataclass
class Predictions:
    """How texts were predicted by two models, token by token, added up.

    Attributes:
        limits: how far they may be apart.
    """

    limits: LanguageLimits
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
        r, c = _kept(reference, mask), _kept(candidate, mask)  # (tokens, vocabulary)
        self._tokens += len(r)
        self._divergence += metrics.kl(r, c) * len(r)
        (winners, leads), (others, _) = metrics.top1(r), metrics.top1(c)
        same, decided = winners == others, leads > self.limits.margin
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


def _kept(array: Array, mask: Array) -> Array:
    """Vectors (tokens, width) of the tokens that the mask leaves; no copy where that is all."""
    return array.reshape(-1, array.shape[-1]) if mask.all() else array[mask]


def without_padding(feeds: Feeds, *outputs: Array) -> tuple[Array, ...]:
    """Outputs (batch, sequence, ...) at the tokens that the mask leaves, (tokens, ...).

    What a model makes of padding is nobody's, and quantization leaves more noise in it. Outputs of
    other shapes, and of inputs without padding, are given back as they are.
    """
    mask = feeds.get("attention_mask")
    if mask is None or np.all(mask):
        return outputs
    if any(array.ndim < 3 or array.shape[:2] != mask.shape for array in outputs):
        return outputs
    return tuple(array[np.asarray(mask, bool)] for array in outputs)


def least_cosine(feeds: Feeds, reference: Array, candidate: Array) -> float:
    """Least cosine between the vectors (batch, sequence, width) of any token the mask leaves."""
    mask = np.asarray(feeds.get("attention_mask", np.ones(reference.shape[:2])), bool)
    r, c = (array[mask].astype(np.float64) for array in (reference, candidate))
    norms = np.linalg.norm(r, axis=-1) * np.linalg.norm(c, axis=-1)
    cosines = np.sum(r * c, axis=-1) / np.where(norms > 0, norms, 1)
    return float(np.min(np.where(norms > 0, cosines, 0), initial=1.0))
