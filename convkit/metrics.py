"""Pure functions on arrays that say how far a candidate is from its reference.

All sums are taken in float64. Arrays have equal shapes; non-finite elements are for the caller to
mask (see `nonfinite_count`), except where a function says what it does with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def max_abs(reference: Array, candidate: Array) -> float:
    """Largest absolute difference; 0.0 for identical or empty arrays, NaN where either has one."""
    if reference.size == 0:
        return 0.0
    return float(np.max(np.abs(_wide(reference) - _wide(candidate))))


def cosine(reference: Array, candidate: Array) -> float:
    """Cosine of the angle between the flattened arrays, -1 to 1; 1.0 where both are zero.

    One array of zeros against another that is not gives 0.0.
    """
    a, b = _wide(reference).ravel(), _wide(candidate).ravel()
    a, b = a / _peak(a), b / _peak(b)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(np.clip(a @ b / norms, -1.0, 1.0))


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum(r^2) / sum((r - c)^2)).

    Infinity for identical arrays, -infinity where only the reference is zero.
    Source: Widrow and Kollar, Quantization Noise, 2008, equation 1.1 with signal power over noise
    power.
    """
    signal = _wide(reference)
    scale = _peak(signal)
    noise = (signal - _wide(candidate)) / scale
    signal_power = float(np.sum((signal / scale) ** 2))
    noise_power = float(np.sum(noise**2))
    if noise_power == 0.0:
        return float("inf")
    if signal_power == 0.0:
        return float("-inf")
    return float(10.0 * np.log10(signal_power / noise_power))


def kl(reference_logits: Array, candidate_logits: Array) -> float:
    """Mean Kullback-Leibler divergence in nats of the softmax over the last axis, reference first.

    Source: Kullback and Leibler, On Information and Sufficiency, 1951: sum(p * (log p - log q)).
    """
    p = reference_logits.reshape(-1, reference_logits.shape[-1])
    q = candidate_logits.reshape(p.shape)
    if not len(p):
        return 0.0
    total = 0.0
    for begin in range(0, len(p), _ROWS_AT_A_TIME):  # vocabularies are large
        rows = slice(begin, begin + _ROWS_AT_A_TIME)
        log_p, log_q = _log_softmax(p[rows]), _log_softmax(q[rows])
        total += float(np.sum(np.exp(log_p) * (log_p - log_q)))
    return total / len(p)


_ROWS_AT_A_TIME = 64


def scored_tokens(mask: Array) -> int:
    """Tokens whose likelihood `nll` takes: those of the second half of each row but its last."""
    lengths = np.sum(mask, axis=-1)
    return int(np.sum(np.maximum(lengths - 1 - lengths // 2, 0)))


def nll(ids: Array, logits: Array, mask: Array) -> float:
    """Mean negative log likelihood in nats of each next token, in the second half of each row.

    Its exponential is the perplexity that llama-perplexity prints for rows of its context length.
    NaN where no row is long enough.

    Args:
        ids: (batch, sequence).
        logits: (batch, sequence, vocabulary).
        mask: (batch, sequence); rows end where it does.

    Source: llama.cpp, `tools/perplexity/perplexity.cpp`: of a context of n tokens, positions n/2 to
    n - 2 predict the token after them.
    """
    total, count = 0.0, 0
    for row, scores, length in zip(ids, logits, np.sum(mask, axis=-1), strict=True):
        places = np.arange(length // 2, length - 1)
        if len(places):
            log_p = _log_softmax(scores[places])
            total -= float(np.sum(log_p[np.arange(len(places)), row[places + 1]]))
            count += len(places)
    return total / count if count else float("nan")


def top1_agreement(reference: Array, candidate: Array, margin: float = 0.0) -> float:
    """Share of rows (last axis) whose largest element sits at the same index, 0 to 1.

    A row counts only if its reference decides: its best leads its second best by more than
    `margin`. 1.0 where no row decides.

    Args:
        reference: shape (..., classes).
        candidate: shape (..., classes).
        margin: lead below which the reference itself is a tie.
    """
    rows = _wide(reference).reshape(-1, reference.shape[-1])  # (rows, classes)
    others = _wide(candidate).reshape(rows.shape)
    if rows.shape[0] == 0 or rows.shape[1] < 2:
        return 1.0
    best_two = np.partition(rows, -2, axis=-1)[:, -2:]
    decided = best_two[:, 1] - best_two[:, 0] > margin
    if not decided.any():
        return 1.0
    same = rows.argmax(-1) == others.argmax(-1)
    return float(np.mean(same[decided]))


def agreement(reference: Array, candidate: Array) -> float:
    """Share of equal elements, 0 to 1; 1.0 for empty arrays. For integers, booleans and strings."""
    return float(np.mean(reference == candidate)) if reference.size else 1.0


def nonfinite_count(reference: Array, candidate: Array) -> int:
    """Elements that are NaN or infinite in the candidate in another way than in the reference."""
    if not _is_floating(reference) or not _is_floating(candidate):
        return 0
    r, c = _wide(reference), _wide(candidate)
    same = (np.isfinite(r) & np.isfinite(c)) | (np.isnan(r) & np.isnan(c)) | (r == c)
    return int(np.sum(~same))


def _is_floating(array: Array) -> bool:
    return array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float8"))


def _wide(array: Array) -> Array:
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def _peak(array: Array) -> float:
    peak = float(np.max(np.abs(array), initial=0.0))
    return peak if np.isfinite(peak) and peak > 0.0 else 1.0


def _log_softmax(logits: Array) -> Array:
    shifted = _wide(logits) - np.max(_wide(logits), axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result
