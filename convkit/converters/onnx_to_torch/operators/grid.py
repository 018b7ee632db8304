"""Sampling images at given places."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.interpolation import cubic_weights
from convkit.converters.onnx_to_torch.operators.values import Ints, as_ints

NATIVE_GRID_MODES = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}


def affine_grid(theta: torch.Tensor, size: Ints, *, align_corners: int = 0) -> torch.Tensor:
    """ONNX AffineGrid in two or three dimensions."""
    return F.affine_grid(theta, as_ints(size), align_corners=bool(align_corners))


def grid_sample(
    x: torch.Tensor,
    grid: torch.Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """ONNX GridSample of (batch, channels, spatial...), with any number of spatial axes."""
    rank = x.dim() - 2
    if rank == 2 or (rank == 3 and mode != "cubic"):
        return F.grid_sample(
            x,
            grid.to(x.dtype),
            mode=NATIVE_GRID_MODES[mode],
            padding_mode=padding_mode,
            align_corners=bool(align_corners),
        )
    batch, channels = x.shape[:2]
    places = grid.reshape(batch, -1, rank).flip(-1)  # the grid names the last axis first
    # One axis at a time: (batch, channels, places or remaining axes...).
    y = x
    for axis in range(rank):
        at = grid_coordinate(places[..., axis], x.shape[2 + axis], align_corners)
        y = sampled_axis(y, at, mode, padding_mode, align_corners, is_first=axis == 0)
    return y.reshape(batch, channels, *grid.shape[1:-1])


def grid_coordinate(place: torch.Tensor, length: int, align_corners: int) -> torch.Tensor:
    """A place between -1 and 1 as a position among `length` elements."""
    if align_corners:
        return (place + 1) / 2 * (length - 1)
    return ((place + 1) * length - 1) / 2


def sampled_axis(
    y: torch.Tensor,
    at: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: int,
    *,
    is_first: bool,
) -> torch.Tensor:
    """The first remaining spatial axis of `y` sampled at `at`, of shape (batch, places).

    `y` is (batch, channels, axis, rest...) at first, (batch, channels, places, axis, rest...) then.
    """
    if is_first:
        y = y.unsqueeze(2)
    length = y.shape[3]
    if mode == "nearest":
        taps, weights = torch.round(at).unsqueeze(-1), torch.ones_like(at).unsqueeze(-1)
    else:
        reach = torch.arange(0, 2) if mode == "linear" else torch.arange(-1, 3)
        taps = torch.floor(at).unsqueeze(-1) + reach.to(at)
        distance = torch.abs(taps - at.unsqueeze(-1))
        weights = 1 - distance if mode == "linear" else cubic_weights(distance, -0.75)
    if padding_mode == "zeros":
        weights = torch.where((taps >= 0) & (taps <= length - 1), weights, 0)
    elif padding_mode == "reflection":
        taps = reflected(taps, length, align_corners)
    index = torch.clamp(taps, 0, length - 1).to(torch.int64)
    rest = [1] * (y.dim() - 4)
    parts = []
    for tap in range(index.shape[-1]):
        where = index[..., tap].reshape(index.shape[0], 1, -1, 1, *rest)
        shape = [y.shape[0], y.shape[1], index.shape[1], 1, *y.shape[4:]]
        source = y.expand(*y.shape[:2], index.shape[1], *y.shape[3:])
        part = torch.gather(source, 3, where.expand(shape)).squeeze(3)
        share = weights[..., tap].reshape(index.shape[0], 1, -1, *rest)
        parts.append(part * share)
    return functools.reduce(torch.add, parts)


def reflected(taps: torch.Tensor, length: int, align_corners: int) -> torch.Tensor:
    """Positions beyond the borders mirrored back, again and again."""
    low, high = (0.0, length - 1.0) if align_corners else (-0.5, length - 0.5)
    span = high - low
    if isinstance(span, float) and span == 0.0:
        return torch.zeros_like(taps)
    folded = torch.remainder(taps - low, 2 * span)
    return torch.where(folded > span, 2 * span - folded, folded) + low


OPERATORS = {"AffineGrid": affine_grid, "GridSample": grid_sample}
