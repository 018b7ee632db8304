"""How often known sequences occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import rank_of


def tf_idf_vectorizer(
    x: tf.Tensor,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: list[int],
    ngram_indexes: list[int],
    pool_int64s: list[int] | None = None,
    pool_strings: list[str] | None = None,
    weights: list[float] | None = None,
) -> tf.Tensor:
    """ONNX TfIdfVectorizer: (batch, places) or (places) from token numbers or strings.

    Args:
        x: (batch, tokens) or (tokens).
        max_gram_length: tokens of the longest n-gram that counts.
        max_skip_count: how many tokens may stand between an n-gram's neighbours, always as many.
        min_gram_length: tokens of the shortest one.
        mode: "TF" for the count, "IDF" for the weight of what occurs, "TFIDF" for their product.
        ngram_counts: where the n-grams of each length start in the pool.
        ngram_indexes: each n-gram's place in the result.
        pool_int64s: the tokens of all n-grams, one after another.
        pool_strings: likewise, for strings.
        weights: one per n-gram; 1 if None.
    """
    pool = np.asarray(pool_int64s if pool_int64s is not None else pool_strings)
    tokens = x[None] if rank_of(x) == 1 else x
    counts = []
    for length, start in enumerate(ngram_counts, 1):
        end = ngram_counts[length] if length < len(ngram_counts) else len(pool)
        grams = pool[start:end].reshape(-1, length)
        if len(grams) == 0:
            continue
        if min_gram_length <= length <= max_gram_length:
            counts.append(_occurrences(tokens, grams, max_skip_count))
        else:
            counts.append(tf.zeros([tf.shape(tokens)[0], len(grams)], tf.float32))
    found = tf.concat(counts, 1)
    share = tf.constant(weights or [1.0] * len(ngram_indexes), tf.float32)
    if mode == "IDF":
        found = tf.cast(found > 0, tf.float32) * share
    elif mode == "TFIDF":
        found *= share
    y = _placed(found, ngram_indexes)
    return y[0] if rank_of(x) == 1 else y


def _occurrences(tokens: tf.Tensor, grams: np.ndarray[Any, Any], skips: int) -> tf.Tensor:
    """How often each n-gram occurs: (batch, n-grams)."""
    length = grams.shape[1]
    wanted = tf.cast(tf.constant(grams), tokens.dtype)
    total = None
    for step in range(1, (skips if length > 1 else 0) + 2):
        count = tf.maximum(tf.shape(tokens)[1] - (length - 1) * step, 0)
        windows = tf.stack([tokens[:, n * step : n * step + count] for n in range(length)], -1)
        equal = tf.reduce_all(tf.equal(windows[:, :, None, :], wanted), -1)
        found = tf.reduce_sum(tf.cast(equal, tf.float32), 1)
        total = found if total is None else total + found
    return total


def _placed(found: tf.Tensor, places: Sequence[int]) -> tf.Tensor:
    """Columns brought to their places; the other columns are zero."""
    y = tf.math.unsorted_segment_sum(tf.transpose(found), list(places), max(places) + 1)
    return tf.transpose(y)


OPERATORS = {"TfIdfVectorizer": tf_idf_vectorizer}
