"""Losses against class labels."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import rank_of, single


def negative_log_likelihood_loss(
    x: tf.Tensor,
    target: tf.Tensor,
    weight: tf.Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tf.Tensor:
    """ONNX NegativeLogLikelihoodLoss.

    Args:
        x: (batch, classes, ...), log probabilities.
        target: (batch, ...), labels.
        weight: (classes,).
        ignore_index: a label that counts for nothing.
        reduction: "none", "sum" or "mean"; the mean is over the weights.
    """
    rank = rank_of(x)
    last = tf.transpose(x, [0, *range(2, rank), 1])
    labels = target if target.dtype in (tf.int32, tf.int64) else tf.cast(target, tf.int64)
    ignored = None if ignore_index is None else tf.equal(labels, ignore_index)
    safe = labels if ignored is None else tf.where(ignored, tf.zeros_like(labels), labels)
    chosen = tf.gather(last, safe, axis=rank - 1, batch_dims=rank - 1)
    factors = tf.ones_like(chosen) if weight is None else tf.gather(weight, safe)
    if ignored is not None:
        factors = tf.where(ignored, tf.zeros_like(factors), factors)
    loss = -chosen * factors
    if reduction == "none":
        return loss
    total = tf.reduce_sum(loss)
    return total if reduction == "sum" else total / tf.reduce_sum(factors)


def softmax_cross_entropy_loss(
    scores: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    output_count: int = 1,
) -> Any:
    """ONNX SoftmaxCrossEntropyLoss, with the log probabilities as second output."""
    log_probabilities = tf.nn.log_softmax(scores, axis=1)
    loss = negative_log_likelihood_loss(
        log_probabilities, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return single([loss, log_probabilities], output_count)


OPERATORS = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood_loss,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
}
