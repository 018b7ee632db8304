"""Interpolation along one axis: where each new element lies, and which old ones it mixes.

Source: the formulas of the ONNX specification of Resize, version 19; for cubic weights R. Keys,
Cubic convolution interpolation for digital image processing, 1981.
"""

from __future__ import annotations

import functools
import math

import torch

from convkit.converters.onnx_to_torch.operators.slicing import along_axis
from convkit.converters.onnx_to_torch.operators.values import Number


def source_coordinates(
    length: int,
    target: int,
    factor: Number,
    transformation: str,
    region: tuple[Number, Number] | None,
) -> torch.Tensor:
    """Where each of `target` elements lies among the `length` old ones, float64."""
    at = torch.arange(target, dtype=torch.float64)
    if transformation == "asymmetric":
        return at / factor
    if transformation == "align_corners":
        return divided_unless_one(at * (length - 1), target)
    if transformation == "tf_crop_and_resize" and region is not None:
        start, end = region
        steps = divided_unless_one(at * ((end - start) * (length - 1)), target)
        middle = torch.where(is_one(target), (end - start) * (length - 1) / 2, 0.0)
        return steps + middle + start * (length - 1)
    centers = (at + 0.5) / factor - 0.5
    if transformation == "pytorch_half_pixel":
        return torch.where(is_one(target), 0.0, centers)
    if transformation == "half_pixel_symmetric":
        return centers + length / 2 * (1 - target / (factor * length))
    return centers


def is_one(target: int) -> torch.Tensor:
    """Whether an axis gets a single element."""
    return torch.scalar_tensor(target, dtype=torch.float64) == 1


def divided_unless_one(amounts: torch.Tensor, target: int) -> torch.Tensor:
    """`amounts / (target - 1)`, 0 for an axis of one element."""
    gaps = torch.scalar_tensor(target - 1, dtype=torch.float64)
    return torch.where(gaps == 0, 0.0, amounts / torch.where(gaps == 0, 1.0, gaps))


def nearest_index(at: torch.Tensor, nearest_mode: str, length: int) -> torch.Tensor:
    """The old element that each new one copies."""
    rounded = {
        "round_prefer_floor": lambda: torch.ceil(at - 0.5),
        "round_prefer_ceil": lambda: torch.floor(at + 0.5),
        "floor": lambda: torch.floor(at),
        "ceil": lambda: torch.ceil(at),
    }[nearest_mode]()
    return clamped_index(rounded.to(torch.int64), length)


def clamped_index(index: torch.Tensor, length: int) -> torch.Tensor:
    """Indices beyond the ends moved to the ends."""
    last = torch.scalar_tensor(length - 1, dtype=torch.int64, device=index.device)
    return torch.minimum(torch.clamp(index, min=0), last)


def tap_weights(
    at: torch.Tensor, mode: str, factor: Number, antialias: int, coefficient: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first old element that each new one mixes, and the weights of it and its followers.

    With `antialias`, shrinking widens the filter by the scale.
    """
    radius = 1 if mode == "linear" else 2
    shrinking = min(float(factor), 1.0) if antialias else 1.0
    before = -math.floor(-radius / shrinking) - 1
    floor = torch.floor(at)
    taps = torch.arange(-before, before + 2, dtype=torch.float64)
    distance = torch.abs(taps - (at - floor).unsqueeze(1)) * shrinking
    if mode == "linear":
        weights = torch.clamp(1 - distance, min=0)
    else:
        weights = cubic_weights(distance, coefficient)
    if antialias:
        weights = weights / weights.sum(1, keepdim=True)
    return floor.to(torch.int64) - before, weights


def cubic_weights(distance: torch.Tensor, coefficient: float) -> torch.Tensor:
    """The cubic convolution kernel at nonnegative distances."""
    a, d = coefficient, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


def interpolated(
    x: torch.Tensor,
    axis: int,
    first: torch.Tensor,
    weights: torch.Tensor,
    exclude_outside: int,
) -> torch.Tensor:
    """`x` with an axis replaced by weighted sums; the ends repeat, or count for nothing."""
    length = x.shape[axis]
    index = first.unsqueeze(1) + torch.arange(weights.shape[1])
    if exclude_outside:
        inside = (index >= 0) & (index < length)
        weights = torch.where(inside, weights, 0.0)
        weights = weights / weights.sum(1, keepdim=True)
    index = clamped_index(index, length).to(x.device)
    shares = weights.to(x.device, x.dtype)
    parts = []
    for tap in range(weights.shape[1]):
        part = x.index_select(axis, index[:, tap]) * along_axis(shares[:, tap], axis, x)
        parts.append(part)
    return functools.reduce(torch.add, parts)
