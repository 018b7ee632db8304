"""Reading and writing by index."""

from __future__ import annotations

import math

import torch

from convkit.converters.onnx_to_torch.operators.slicing import along_axis
from convkit.converters.onnx_to_torch.operators.values import (
    Int,
    as_int,
    from_ordered,
    movable,
    moved,
    ordered,
    positive_axis,
    widened,
)

# ONNX names of reductions, as `torch.scatter_reduce` calls them.
SCATTER_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def nonnegative_index(indices: torch.Tensor, size: int) -> torch.Tensor:
    """int64 indices counted from the front."""
    index = indices.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def gather(data: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    """ONNX Gather: slices of `data` along `axis`, in the shape of `indices`."""
    at = positive_axis(axis, data.dim())
    index = nonnegative_index(indices, data.shape[at])
    taken = movable(data).index_select(at, index.reshape(-1))
    shape = [*data.shape[:at], *indices.shape, *data.shape[at + 1 :]]
    return moved(taken.reshape(shape), data.dtype)


def gather_elements(data: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    """ONNX GatherElements."""
    index = nonnegative_index(indices, data.shape[axis])
    return moved(torch.gather(movable(data), axis, index), data.dtype)


def gather_nd(data: torch.Tensor, indices: torch.Tensor, *, batch_dims: int = 0) -> torch.Tensor:
    """ONNX GatherND: the last axis of `indices` addresses the axes of `data` after the batch."""
    batch = [
        along_axis(torch.arange(data.shape[axis], device=data.device), axis, indices[..., 0])
        for axis in range(batch_dims)
    ]
    place = (*batch, *indices.to(torch.int64).unbind(-1))
    return moved(movable(data)[place], data.dtype)


def scatter_elements(
    data: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> torch.Tensor:
    """ONNX ScatterElements."""
    index = nonnegative_index(indices, data.shape[axis])
    if reduction == "none":
        return moved(torch.scatter(movable(data), axis, index, movable(updates)), data.dtype)
    return scatter_reduced(data, index, updates, axis, reduction)


def scatter_reduced(
    data: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, axis: int, reduction: str
) -> torch.Tensor:
    """`updates` merged into `data` by add, mul, max or min."""
    name = SCATTER_REDUCTIONS[reduction]
    if reduction in ("max", "min"):
        y = torch.scatter_reduce(ordered(data), axis, index, ordered(updates), name)
        return from_ordered(y, data.dtype)
    y = torch.scatter_reduce(widened(data), axis, index, widened(updates), name)
    return y.to(data.dtype)


def scatter_nd(
    data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, reduction: str = "none"
) -> torch.Tensor:
    """ONNX ScatterND: the last axis of `indices` addresses the first axes of `data`."""
    if reduction == "none":
        where = tuple(indices.to(torch.int64).unbind(-1))
        return moved(torch.index_put(movable(data), where, movable(updates)), data.dtype)
    depth = indices.shape[-1]
    sizes = list(data.shape[:depth])
    linear = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    for size, index in zip(sizes, indices.unbind(-1), strict=True):
        linear = linear * size + nonnegative_index(index, size)
    inner = math.prod(data.shape[depth:])
    flat = data.reshape(math.prod(sizes), inner)
    rows = linear.reshape(-1, 1)
    y = scatter_reduced(
        flat, rows.expand(-1, inner), updates.reshape(rows.shape[0], inner), 0, reduction
    )
    return y.reshape(data.shape)


def tensor_scatter(
    past_cache: torch.Tensor,
    update: torch.Tensor,
    write_indices: torch.Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> torch.Tensor:
    """ONNX TensorScatter: `update` written into each batch entry of the cache at its own place."""
    position = along_axis(torch.arange(update.shape[axis], device=update.device), axis, update)
    if write_indices is not None:
        position = position + along_axis(write_indices, 0, update)
    if mode == "circular":
        position = torch.remainder(position, past_cache.shape[axis])
    y = torch.scatter(movable(past_cache), axis, position.expand(update.shape), movable(update))
    return moved(y, past_cache.dtype)


def one_hot(
    indices: torch.Tensor, depth: Int, values: torch.Tensor, *, axis: int = -1
) -> torch.Tensor:
    """ONNX OneHot: `values` are (off, on); indices outside the depth are off everywhere."""
    size = as_int(depth.to(torch.int64) if isinstance(depth, torch.Tensor) else depth)
    index = nonnegative_index(indices, size).unsqueeze(axis)
    classes = along_axis(torch.arange(size, device=indices.device), axis, index)
    choices = movable(values)
    return moved(torch.where(index == classes, choices[1], choices[0]), values.dtype)


def compress(
    data: torch.Tensor, condition: torch.Tensor, *, axis: int | None = None
) -> torch.Tensor:
    """ONNX Compress: the slices where `condition` holds; their number is known at run time only."""
    index = torch.nonzero(condition).squeeze(1)
    if axis is None:
        return moved(movable(data).reshape(-1).index_select(0, index), data.dtype)
    return moved(movable(data).index_select(axis, index), data.dtype)


def non_zero(x: torch.Tensor) -> torch.Tensor:
    """ONNX NonZero: int64 indices of shape (rank, count)."""
    if x.dim() == 0:
        return torch.nonzero(movable(x).reshape(1)).t()[:0]
    return torch.nonzero(widened(x)).t()


OPERATORS = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
}
