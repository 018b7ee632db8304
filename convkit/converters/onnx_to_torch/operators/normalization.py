"""Normalization by statistics."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.values import Number, as_number, positive_axis


def batch_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    b: torch.Tensor,
    input_mean: torch.Tensor,
    input_var: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX BatchNormalization over axis 1, by given statistics or, in training, by its own."""
    if not training_mode:
        if scale.dtype == x.dtype == input_mean.dtype and x.dim() > 1:
            return F.batch_norm(x, input_mean, input_var, scale, b, False, 0.0, epsilon)
        return normalized_by(x, scale, b, input_mean, input_var, epsilon)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = x.to(torch.promote_types(x.dtype, input_mean.dtype))
    mean = wide.mean(axes)
    variance = wide.var(axes, correction=0)
    y = normalized_by(x, scale, b, mean, variance, epsilon)
    if output_count == 1:
        return y
    running_mean = input_mean * momentum + mean * (1 - momentum)
    running_var = input_var * momentum + variance * (1 - momentum)
    kind = input_mean.dtype
    return (y, running_mean.to(kind), running_var.to(kind))[:output_count]


def normalized_by(
    x: torch.Tensor,
    scale: torch.Tensor,
    b: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """`(x - mean) / sqrt(variance + epsilon) * scale + b`, each along axis 1."""
    shape = [1, -1] + [1] * (x.dim() - 2) if x.dim() > 1 else [-1]
    factor = scale * torch.rsqrt(variance + epsilon)
    y = (x - mean.reshape(shape)) * factor.reshape(shape) + b.reshape(shape)
    return y.to(x.dtype)


def instance_normalization(
    input: torch.Tensor, scale: torch.Tensor, b: torch.Tensor, *, epsilon: float = 1e-5
) -> torch.Tensor:
    """ONNX InstanceNormalization: each channel of each batch entry by its own statistics."""
    return torch.group_norm(input, input.shape[1], scale, b, epsilon)


def group_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
) -> torch.Tensor:
    """ONNX GroupNormalization; statistics are computed in float32 at least."""
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


def layer_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX LayerNormalization over the axes from `axis` on."""
    at = positive_axis(axis, x.dim())
    shape = list(x.shape[at:])
    native = scale.dim() == len(shape) and (b is None or b.dim() == len(shape))
    native = native and scale.dtype == x.dtype
    if output_count == 1 and native:
        return F.layer_norm(x, shape, scale, b, epsilon)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = list(range(at, x.dim()))
    mean = wide.mean(axes, keepdim=True)
    centered = wide - mean
    inverse = torch.rsqrt((centered * centered).mean(axes, keepdim=True) + epsilon)
    y = (centered * inverse).to(x.dtype) * scale
    y = y if b is None else y + b
    return y if output_count == 1 else (y, mean, inverse)[:output_count]


def rms_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """ONNX RMSNormalization: division by the root of the mean square over the axes from `axis`."""
    shape = list(x.shape[positive_axis(axis, x.dim()) :])
    if scale.dtype == x.dtype and scale.dim() == len(shape) and x.dtype == torch.float32:
        return F.rms_norm(x, shape, scale, epsilon)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = list(range(positive_axis(axis, x.dim()), x.dim()))
    inverse = torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)
    return ((wide * inverse).to(x.dtype) * scale).to(scale.dtype)


def mean_variance_normalization(x: torch.Tensor, *, axes: list[int] | None = None) -> torch.Tensor:
    """ONNX MeanVarianceNormalization over (batch, height, width) unless told otherwise.

    Source: the operator's function body, which adds 1e-9 to the standard deviation.
    """
    over = [0, 2, 3] if axes is None else axes
    mean = x.mean(over, keepdim=True)
    deviation = torch.sqrt((x * x).mean(over, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)


def lrn(
    x: torch.Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> torch.Tensor:
    """ONNX LRN: division by the energy of the `size` channels around each."""
    front, back = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = (x * x).reshape(x.shape[0], x.shape[1], -1)
    energy = F.pad(squares, (0, 0, front, back)).unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (bias + alpha / size * energy) ** beta


def lp_normalization(x: torch.Tensor, *, axis: int = -1, p: int = 2) -> torch.Tensor:
    """ONNX LpNormalization; a zero vector stays zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, 0, x / norm)


def dropout(
    data: torch.Tensor,
    ratio: Number | None = None,
    training_mode: torch.Tensor | None = None,
    *,
    seed: int | None = None,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX Dropout; in inference, and without `training_mode`, the identity."""
    kept = torch.ones(data.shape, dtype=torch.bool, device=data.device)
    y = data
    if training_mode is not None:
        share = 0.5 if ratio is None else as_number(ratio)
        training = training_mode.reshape(())
        kept = kept & ~(training & (torch.rand(data.shape, device=data.device) < share))
        factor = math.inf if isinstance(share, float) and share == 1.0 else 1 / (1 - share)
        scaled = torch.where(kept, data * factor, 0).to(data.dtype)
        y = torch.where(training, scaled, data)
    return y if output_count == 1 else (y, kept)


OPERATORS = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
