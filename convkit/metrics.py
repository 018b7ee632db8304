"""Pure functions on arrays that say how far a candidate is from its reference.

All sums are taken in float64, some elements at a time: logits of a large vocabulary fill memory
already. Arrays have equal shapes; non-finite elements are for the caller to mask (see
`nonfinite_count`), except where a function says what it does with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def max_abs(reference: Array, candidate: Array) -> float:
    """Largest absolute difference; 0.0 for identical or empty arrays, NaN where either has one."""
    worst = 0.0
    for r, c in _blocks(reference, candidate):
        worst = float(np.maximum(worst, np.max(np.abs(r - c))))  # max() may lose a NaN
    return worst


def peak(array: Array) -> float:
    """Largest magnitude; 0.0 for an empty array, NaN where it has one."""
    largest = 0.0
    for (block,) in _blocks(array):
        largest = float(np.maximum(largest, np.max(np.abs(block))))  # max() may lose a NaN
    return largest


def cosine(reference: Array, candidate: Array) -> float:
    """Cosine of the angle between the flattened arrays, -1 to 1; 1.0 where both are zero.

    One array of zeros against another that is not gives 0.0.
    """
    scale_r, scale_c = _scale(reference), _scale(candidate)
    rr = cc = rc = 0.0
    for block_r, block_c in _blocks(reference, candidate):
        r, c = block_r / scale_r, block_c / scale_c
        rr, cc, rc = rr + _dot(r, r), cc + _dot(c, c), rc + _dot(r, c)
    norms = float(np.sqrt(rr) * np.sqrt(cc))
    if norms == 0.0:
        return 1.0 if rr == cc == 0.0 else 0.0
    return float(np.clip(rc / norms, -1.0, 1.0))


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum(r^2) / sum((r - c)^2)).

    Infinity for identical arrays, -infinity where only the reference is zero.
    Source: Widrow and Kollar, Quantization Noise, 2008, equation 1.1 with signal power over noise
    power.
    """
    scale = _scale(reference)
    signal_power = noise_power = 0.0
    for r, c in _blocks(reference, candidate):
        signal, noise = r / scale, (r - c) / scale
        signal_power += _dot(signal, signal)
        noise_power += _dot(noise, noise)
    if noise_power == 0.0:
        return float("inf")
    if signal_power == 0.0:
        return float("-inf")
    return float(10.0 * np.log10(signal_power / noise_power))


def kl(reference_logits: Array, candidate_logits: Array) -> float:
    """Mean Kullback-Leibler divergence in nats of the softmax over the last axis, reference first.

    Source: Kullback and Leibler, On Information and Sufficiency, 1951: sum(p * (log p - log q)).
    """
    total, count = 0.0, 0
    for p, q in zip(_rows(reference_logits), _rows(candidate_logits), strict=True):
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        total += float(np.sum(np.exp(log_p) * (log_p - log_q)))
        count += len(p)
    return total / count if count else 0.0


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
        begin, end = length // 2, max(length - 1, length // 2)
        following = iter(row[begin + 1 : end + 1])
        for block in _rows(scores[begin:end]):
            next_ids = [int(next(following)) for _ in block]
            total -= float(np.sum(_log_softmax(block)[np.arange(len(block)), next_ids]))
        count += int(end - begin)
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
    if reference.size == 0 or reference.shape[-1] < 2:
        return 1.0
    winners, leads = top1(reference)
    decided = leads > margin
    if not decided.any():
        return 1.0
    same = winners == top1(candidate)[0]
    return float(np.mean(same[decided]))


def top1(rows: Array) -> tuple[Array, Array]:
    """Index of the largest element of each row (last axis), and its lead over the second, flat.

    Args:
        rows: shape (..., classes), of at least two classes.
    """
    winners, leads = [], []
    for block in _rows(rows):
        each = np.arange(len(block))
        winner = block.argmax(-1)
        best = block[each, winner]
        block[each, winner] = -np.inf
        winners.append(winner)
        leads.append(best - block.max(-1))
    if not winners:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(winners), np.concatenate(leads)


def agreement(reference: Array, candidate: Array) -> float:
    """Share of equal elements, 0 to 1; 1.0 for empty arrays. For integers, booleans and strings."""
    return float(np.mean(reference == candidate)) if reference.size else 1.0


def nonfinite_count(reference: Array, candidate: Array) -> int:
    """Elements that are NaN or infinite in the candidate in another way than in the reference."""
    if not _is_floating(reference) or not _is_floating(candidate):
        return 0
    count = 0
    for r, c in _blocks(reference, candidate):
        finite = np.isfinite(r) & np.isfinite(c)
        if not finite.all():
            count += int(np.sum(~(finite | (np.isnan(r) & np.isnan(c)) | (r == c))))
    return count


_ELEMENTS_AT_A_TIME = 1 << 16
"""Half a megabyte of float64, which a processor's cache holds."""


def _blocks(*arrays: Array) -> Iterator[list[Array]]:
    """Arrays of one size, flat and in float64, some elements at a time."""
    flat = [array.reshape(-1) for array in arrays]
    for begin in range(0, len(flat[0]), _ELEMENTS_AT_A_TIME):
        yield [_wide(array[begin : begin + _ELEMENTS_AT_A_TIME]) for array in flat]


def _rows(array: Array) -> Iterator[Array]:
    """Copies in float64, (rows, classes), some rows at a time."""
    rows = array.reshape(-1, array.shape[-1])
    step = max(1, _ELEMENTS_AT_A_TIME // rows.shape[-1])
    for begin in range(0, len(rows), step):
        yield _wide(rows[begin : begin + step])


def _is_floating(array: Array) -> bool:
    return array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float8"))


def _wide(array: Array) -> Array:
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b))  # `a @ b` wakes threads, which costs more than so few elements


def _scale(array: Array) -> float:
    """What to divide by so that squares neither overflow nor vanish."""
    largest = peak(array)
    return largest if np.isfinite(largest) and largest > 0.0 else 1.0


def _log_softmax(logits: Array) -> Array:
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result
