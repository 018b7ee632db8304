"""Losses and the steps of optimizers."""

from __future__ import annotations

import torch


def negative_log_likelihood(
    log_probabilities: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int | None,
    reduction: str,
) -> torch.Tensor:
    """Minus the value at the target class of axis 1, weighted, ignoring one class."""
    labels = target.to(torch.int64)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        ignored = labels == ignore_index
        labels = torch.where(ignored, 0, labels)
    picked = -torch.gather(log_probabilities, 1, labels.unsqueeze(1)).squeeze(1)
    shares = torch.ones_like(picked) if weight is None else weight[labels].to(picked.dtype)
    shares = torch.where(ignored, 0, shares)
    losses = torch.where(ignored, 0, picked * shares)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / shares.sum()


def negative_log_likelihood_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """ONNX NegativeLogLikelihoodLoss."""
    return negative_log_likelihood(input, target, weight, ignore_index, reduction)


def softmax_cross_entropy_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX SoftmaxCrossEntropyLoss; the second output holds the log-probabilities."""
    log_prob = torch.log_softmax(scores, 1)
    loss = negative_log_likelihood(log_prob, labels, weights, ignore_index, reduction)
    return loss if output_count == 1 else (loss, log_prob)


def adagrad(
    r: torch.Tensor,
    t: torch.Tensor,
    *inputs: torch.Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[torch.Tensor, ...]:
    """ONNX Adagrad: inputs are tensors, gradients, sums of squares; outputs tensors and sums."""
    count = len(inputs) // 3
    rate = r / (1 + t * decay_factor)
    tensors, sums = [], []
    for x, g, h in zip(inputs[:count], inputs[count : 2 * count], inputs[2 * count :], strict=True):
        gradient = norm_coefficient * x + g
        total = h + gradient * gradient
        tensors.append(x - rate * gradient / (torch.sqrt(total) + epsilon))
        sums.append(total)
    return (*tensors, *sums)


def adam(
    r: torch.Tensor,
    t: torch.Tensor,
    *inputs: torch.Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[torch.Tensor, ...]:
    """ONNX Adam: inputs are tensors, gradients, first and second moments."""
    count = len(inputs) // 4
    groups = [inputs[i * count : (i + 1) * count] for i in range(4)]
    step = t.to(torch.float32)
    correction = torch.sqrt(1 - beta**step) / (1 - alpha**step)
    rate = torch.where(t > 0, r * correction, r)
    tensors, firsts, seconds = [], [], []
    for x, g, v, h in zip(*groups, strict=True):
        gradient = norm_coefficient * x + g
        first = alpha * v + (1 - alpha) * gradient
        second = beta * h + (1 - beta) * gradient * gradient
        moved_x = x - rate * first / (torch.sqrt(second) + epsilon)
        tensors.append((1 - norm_coefficient_post) * moved_x)
        firsts.append(first)
        seconds.append(second)
    return (*tensors, *firsts, *seconds)


def momentum(
    r: torch.Tensor,
    t: torch.Tensor,
    *inputs: torch.Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[torch.Tensor, ...]:
    """ONNX Momentum, standard or Nesterov: inputs are tensors, gradients, momenta."""
    count = len(inputs) // 3
    # The first step (t == 0) takes its gradient whole.
    share = torch.where(t > 0, beta, 1.0)
    tensors, momenta = [], []
    for x, g, v in zip(inputs[:count], inputs[count : 2 * count], inputs[2 * count :], strict=True):
        gradient = norm_coefficient * x + g
        velocity = alpha * v + share * gradient
        direction = gradient + alpha * velocity if mode == "nesterov" else velocity
        tensors.append(x - r * direction)
        momenta.append(velocity)
    return (*tensors, *momenta)


OPERATORS = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood_loss,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
    ("ai.onnx.preview.training", "Adagrad"): adagrad,
    ("ai.onnx.preview.training", "Adam"): adam,
    ("ai.onnx.preview.training", "Momentum"): momentum,
}
