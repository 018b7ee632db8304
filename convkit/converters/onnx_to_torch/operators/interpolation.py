"""Interpolation along one axis: where each new element lies, and which old ones it mixes.

Source: the formulas of the ONNX specification of Resize, version 19; for cubic weights R. Keys,
Cubic convolution interpolation for digital image processing, 1981.
"""

from __future__ import annotations

import math

import torch

from convkit.converters.onnx_to_torch.operators.slicing import along_axis


def source_coordinates(
    length: int,
    target: int,
    factor: float | torch.Tensor,
    transformation: str,
    region: tuple[float | torch.Tensor, float | torch.Tensor] | None,
) -> torch.Tensor:
    """Where each of `target` elements lies among the `length` old ones, float64."""
    at = torch.arange(target, dtype=torch.float64)
    width = factor * length  # not yet rounded to a whole number
    if transformation == "asymmetric":
        return at / factor
    if transformation == "align_corners":
        return at * divided_unless_one(length - 1, width)
    if transformation == "tf_crop_and_resize" and region is not None:
        start, end = region
        step = divided_unless_one((end - start) * (length - 1), width)
        middle = torch.where(is_one(width), (end - start) * (length - 1) / 2, 0.0)
        return at * step + middle + start * (length - 1)
    centers = (at + 0.5) / factor - 0.5
    if transformation == "pytorch_half_pixel":
        return torch.where(is_one(width), -0.5, centers)
    if transformation == "half_pixel_symmetric":
        return centers + length / 2 * (1 - target / width)
    return centers


def is_one(width: float | torch.Tensor) -> torch.Tensor:
    """Whether an axis gets a single element."""
    return torch.as_tensor(width, dtype=torch.float64) == 1


def divided_unless_one(amount: float | torch.Tensor, width: float | torch.Tensor) -> torch.Tensor:
    """`amount / (width - 1)`, 0 for an axis of one element."""
    gaps = torch.as_tensor(width, dtype=torch.float64) - 1
    return torch.where(gaps == 0, 0.0, amount / torch.where(gaps == 0, 1.0, gaps))


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
    at: torch.Tensor, mode: str, factor: float | torch.Tensor, antialias: int, coefficient: float
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
    total = None
    for tap in range(weights.shape[1]):
        part = x.index_select(axis, index[:, tap]) * along_axis(shares[:, tap], axis, x)
        total = part if total is None else total + part
    return total
