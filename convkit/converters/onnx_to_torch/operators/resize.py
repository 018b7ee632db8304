"""Resize, axis by axis, or by PyTorch's own interpolation where it means the same."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.interpolation import (
    interpolated,
    nearest_index,
    source_coordinates,
    tap_weights,
)
from convkit.converters.onnx_to_torch.operators.slicing import along_axis
from convkit.converters.onnx_to_torch.operators.values import (
    Floats,
    Ints,
    Number,
    as_int,
    as_number,
    movable,
    moved,
    positive_axis,
)

NATIVE_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def resize(
    x: torch.Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> torch.Tensor:
    """ONNX Resize, by scales or to sizes."""
    named = [positive_axis(axis, x.dim()) for axis in axes] if axes else list(range(x.dim()))
    lengths = [x.shape[axis] for axis in named]
    if sizes is not None and len(sizes):
        targets, factors = resized_to(lengths, sizes, keep_aspect_ratio_policy)
    else:
        targets, factors = resized_by(lengths, [1.0] * x.dim() if scales is None else scales)
    transformation = coordinate_transformation_mode
    plain = not antialias and not exclude_outside and cubic_coeff_a == -0.75
    if plain and is_spatial_only(x, named, factors):
        native = native_mode(x, mode, transformation, nearest_mode, factors)
        if native is not None:
            return native_resize(x, named, targets, factors, native, transformation)
    y = x if x.dtype == torch.float64 or mode == "nearest" else x.to(torch.float32)
    for position, axis in enumerate(named):
        length, target, factor = lengths[position], targets[position], factors[position]
        region = None
        if transformation == "tf_crop_and_resize" and roi is not None:
            region = (roi[position], roi[position + len(named)])
        elif isinstance(factor, float) and factor == 1.0:
            continue
        at = source_coordinates(length, target, factor, transformation, region)
        if mode == "nearest":
            index = nearest_index(at, nearest_mode, length).to(x.device)
            y = moved(movable(y).index_select(axis, index), y.dtype)
        else:
            first, weights = tap_weights(at, mode, factor, antialias, cubic_coeff_a)
            y = interpolated(y, axis, first, weights, exclude_outside)
        if region is not None:
            outside = along_axis((at < 0) | (at > length - 1), axis, y).to(y.device)
            y = torch.where(outside, extrapolation_value, y).to(y.dtype)
    if x.dtype.is_floating_point or mode == "nearest":
        return y.to(x.dtype)
    return torch.clamp(torch.round(y), *integer_range(x.dtype)).to(x.dtype)


def integer_range(dtype: torch.dtype) -> tuple[int, int]:
    """The smallest and largest integer of a type."""
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def resized_by(lengths: list[int], scales: Floats) -> tuple[list[int], list[Number]]:
    """New lengths, rounded down, and the scales as they are."""
    if isinstance(scales, torch.Tensor):
        exact = scales.to(torch.float64).unbind()
        targets = [
            as_int(torch.floor(factor * length).to(torch.int64))
            for factor, length in zip(exact, lengths, strict=True)
        ]
        return targets, list(exact)
    targets = [
        length if factor == 1.0 else scaled_length(length, float(factor))
        for factor, length in zip(scales, lengths, strict=True)
    ]
    return targets, [float(factor) for factor in scales]


def scaled_length(length: int, factor: float) -> int:
    """`length * factor` rounded down; whole factors keep symbolic lengths exact integers."""
    return length * int(factor) if factor.is_integer() else math.floor(length * factor)


def resized_to(lengths: list[int], sizes: Ints, policy: str) -> tuple[list[int], list[Number]]:
    """New lengths, and the scales they mean; a policy other than "stretch" has one for all."""
    if isinstance(sizes, torch.Tensor):
        wanted = sizes.reshape(-1).to(torch.float64)
        own = torch.stack([torch.scalar_tensor(n, dtype=torch.float64) for n in lengths])
        ratios = wanted / own
        if policy != "stretch":
            shared = ratios.amin() if policy == "not_larger" else ratios.amax()
            ratios = shared.expand(own.shape)
            wanted = torch.floor(ratios * own + 0.5)
        return wanted.to(torch.int64).tolist(), list(ratios.unbind())
    factors = [
        1.0 if size == length else size / length
        for size, length in zip(sizes, lengths, strict=True)
    ]
    if policy == "stretch":
        return list(sizes), list(factors)
    best = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(best * length + 0.5) for length in lengths], [best] * len(lengths)


def is_spatial_only(x: torch.Tensor, named: list[int], factors: list[Number]) -> bool:
    """Whether nothing but the axes after (batch, channels) of a float tensor changes."""
    if x.dtype not in (torch.float32, torch.float64) or not 3 <= x.dim() <= 5:
        return False
    return all(
        axis > 1 or (isinstance(factor, float) and factor == 1.0)
        for axis, factor in zip(named, factors, strict=True)
    )


def native_mode(
    x: torch.Tensor,
    mode: str,
    transformation: str,
    nearest_mode: str,
    factors: list[Number],
) -> str | None:
    """What `F.interpolate` calls this interpolation, None where it has no such."""
    if any(isinstance(factor, torch.Tensor) for factor in factors):
        return None
    if mode == "nearest":
        if transformation == "asymmetric" and nearest_mode == "floor":
            return "nearest"
        # (i + 0.5) / k - 0.5 rounds to i // k for every whole k.
        whole = all(isinstance(factor, float) and factor.is_integer() for factor in factors)
        rounding = nearest_mode.startswith("round")
        return "nearest" if whole and rounding and transformation == "half_pixel" else None
    if transformation not in ("half_pixel", "align_corners"):
        return None
    if mode == "cubic":
        return "bicubic" if x.dim() == 4 else None
    return NATIVE_LINEAR[x.dim()]


def native_resize(
    x: torch.Tensor,
    named: list[int],
    targets: list[int],
    factors: list[Number],
    mode: str,
    transformation: str,
) -> torch.Tensor:
    """`F.interpolate`, by the scales where they are plain numbers, else to the new lengths."""
    aligned = None if mode == "nearest" else transformation == "align_corners"
    if all(isinstance(factor, float) for factor in factors):
        by_axis = dict(zip(named, factors, strict=True))
        scale = [as_number(by_axis.get(axis, 1.0)) for axis in range(2, x.dim())]
        return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=aligned)
    wanted = dict(zip(named, targets, strict=True))
    size = [wanted.get(axis, x.shape[axis]) for axis in range(2, x.dim())]
    return F.interpolate(x, size=size, mode=mode, align_corners=aligned)


OPERATORS = {"Resize": resize}
