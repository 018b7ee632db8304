"""Reductions over axes, positions of extrema, running sums and products.

Axes known only when the model runs are reduced one by one behind a mask, so that the result keeps
a known rank and can be exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from convkit.converters.onnx_to_torch.operators.values import (
    Int,
    Ints,
    as_int,
    as_ints,
    from_ordered,
    ordered,
    positive_axis,
    widened,
)


def reduction_axes(x: torch.Tensor, axes: Ints | None, noop_with_empty_axes: int) -> list[int]:
    """The axes to reduce, counted from the front; all of them when none are named."""
    listed = [] if axes is None else as_ints(axes)
    if not listed and not noop_with_empty_axes:
        return list(range(x.dim()))
    return sorted({positive_axis(axis, x.dim()) for axis in listed})


def reduced(
    x: torch.Tensor,
    axes: Ints | None,
    keepdims: int,
    noop_with_empty_axes: int,
    operation: Callable[[torch.Tensor, list[int], bool], torch.Tensor],
) -> torch.Tensor:
    """`operation` over the axes; going over them in turn must give the same."""
    if isinstance(axes, torch.Tensor) and axes.numel() and torch.compiler.is_exporting():
        return reduced_at_run_time(x, axes, keepdims, operation)
    listed = reduction_axes(x, axes, noop_with_empty_axes)
    return operation(x, listed, bool(keepdims)) if listed else x


def reduced_at_run_time(
    x: torch.Tensor,
    axes: torch.Tensor,
    keepdims: int,
    operation: Callable[[torch.Tensor, list[int], bool], torch.Tensor],
) -> torch.Tensor:
    """`operation` over axes that only the running model knows; their number is known."""
    rank = x.dim()
    chosen = torch.stack([(axes.reshape(-1) % rank == axis).any() for axis in range(rank)])
    sizes = torch.stack([torch.scalar_tensor(size, dtype=torch.int64) for size in x.shape])
    sizes = torch.where(chosen, 1, sizes)
    y = x
    for axis, size in enumerate(sizes.tolist()):
        torch._check(size >= 0)
        torch._check(size <= y.shape[axis])
        y = torch.where(chosen[axis], operation(y, [axis], True), y).narrow(axis, 0, size)
    if keepdims:
        return y
    kept = torch.argsort(chosen.to(torch.int64), stable=True)[: rank - axes.numel()]
    return y.reshape(sizes[kept].tolist())


def is_empty_along(x: torch.Tensor, axes: list[int]) -> bool:
    """Whether one of the axes is known to have no elements."""
    return any(isinstance(x.shape[axis], int) and x.shape[axis] == 0 for axis in axes)


def sum_over(x: torch.Tensor, axes: list[int], keepdim: bool) -> torch.Tensor:
    """The sum, in the type of `x`."""
    return torch.sum(widened(x), axes, keepdim=keepdim, dtype=widened(x).dtype).to(x.dtype)


def product_over(x: torch.Tensor, axes: list[int], keepdim: bool) -> torch.Tensor:
    """The product, in the type of `x`."""
    y = widened(x)
    for axis in reversed(axes):
        y = torch.prod(y, axis, keepdim=keepdim, dtype=y.dtype)
    return y.to(x.dtype)


def maximum_over(x: torch.Tensor, axes: list[int], keepdim: bool) -> torch.Tensor:
    """The maximum; of nothing, the smallest value of the type."""
    if is_empty_along(x, axes):
        return extreme_of_nothing(x, axes, keepdim, smallest=True)
    return from_ordered(torch.amax(ordered(x), axes, keepdim=keepdim), x.dtype)


def minimum_over(x: torch.Tensor, axes: list[int], keepdim: bool) -> torch.Tensor:
    """The minimum; of nothing, the largest value of the type."""
    if is_empty_along(x, axes):
        return extreme_of_nothing(x, axes, keepdim, smallest=False)
    return from_ordered(torch.amin(ordered(x), axes, keepdim=keepdim), x.dtype)


def extreme_of_nothing(
    x: torch.Tensor, axes: list[int], keepdim: bool, *, smallest: bool
) -> torch.Tensor:
    """A tensor of the reduced shape, filled with the type's smallest or largest value."""
    if x.dtype == torch.bool:
        fill: float = int(not smallest)
    elif x.dtype.is_floating_point:
        fill = -math.inf if smallest else math.inf
    else:
        fill = torch.iinfo(x.dtype).min if smallest else torch.iinfo(x.dtype).max
    shape = torch.sum(torch.zeros(x.shape, dtype=torch.bool), axes, keepdim=keepdim).shape
    return torch.full(shape, fill, dtype=x.dtype, device=x.device)


def logsumexp_over(x: torch.Tensor, axes: list[int], keepdim: bool) -> torch.Tensor:
    """The logarithm of the sum of exponentials, computed without overflow."""
    return torch.logsumexp(x, axes, keepdim=keepdim)


def reduce_sum(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceSum."""
    return reduced(data, axes, keepdims, noop_with_empty_axes, sum_over)


def reduce_mean(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceMean; of integers, rounded toward zero."""
    if data.dtype.is_floating_point and not isinstance(axes, torch.Tensor):
        listed = reduction_axes(data, axes, noop_with_empty_axes)
        return torch.mean(data, listed, keepdim=bool(keepdims)) if listed else data
    total = reduced(data, axes, keepdims, noop_with_empty_axes, sum_over)
    count = reduced(
        torch.ones_like(data, dtype=torch.int64), axes, keepdims, noop_with_empty_axes, sum_over
    )
    if data.dtype.is_floating_point:
        return (total / count).to(data.dtype)
    return torch.div(widened(total), count, rounding_mode="trunc").to(data.dtype)


def reduce_max(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceMax."""
    return reduced(data, axes, keepdims, noop_with_empty_axes, maximum_over)


def reduce_min(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceMin."""
    return reduced(data, axes, keepdims, noop_with_empty_axes, minimum_over)


def reduce_prod(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceProd."""
    return reduced(data, axes, keepdims, noop_with_empty_axes, product_over)


def reduce_l1(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceL1: the sum of absolute values."""
    magnitude = torch.abs(data) if data.dtype.is_signed else data
    return reduced(magnitude, axes, keepdims, noop_with_empty_axes, sum_over)


def reduce_l2(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceL2: the root of the sum of squares."""
    x = as_float(data)
    return torch.sqrt(reduced(x * x, axes, keepdims, noop_with_empty_axes, sum_over)).to(data.dtype)


def reduce_sum_square(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceSumSquare."""
    square = (widened(data) * widened(data)).to(data.dtype)
    return reduced(square, axes, keepdims, noop_with_empty_axes, sum_over)


def reduce_log_sum(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceLogSum."""
    total = reduced(as_float(data), axes, keepdims, noop_with_empty_axes, sum_over)
    return torch.log(total).to(data.dtype)


def reduce_log_sum_exp(
    data: torch.Tensor,
    axes: Ints | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> torch.Tensor:
    """ONNX ReduceLogSumExp."""
    x = as_float(data)
    return reduced(x, axes, keepdims, noop_with_empty_axes, logsumexp_over).to(data.dtype)


def as_float(x: torch.Tensor) -> torch.Tensor:
    """`x` itself, or integers as float64."""
    return x if x.dtype.is_floating_point else widened(x).to(torch.float64)


def arg_max(
    data: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> torch.Tensor:
    """ONNX ArgMax: the position of the first maximum, or of the last."""
    x = ordered(data)
    if not select_last_index:
        return torch.argmax(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))


def arg_min(
    data: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> torch.Tensor:
    """ONNX ArgMin: the position of the first minimum, or of the last."""
    x = ordered(data)
    if not select_last_index:
        return torch.argmin(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, keepdim=bool(keepdims))


def cumulated(
    x: torch.Tensor,
    axis: Int,
    exclusive: int,
    reverse: int,
    identity_value: int,
    operation: Callable[[torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """`operation` along `axis`, from the end if `reverse`, without the element if `exclusive`."""
    if isinstance(axis, torch.Tensor) and torch.compiler.is_exporting():
        wanted, y = axis.reshape(()) % x.dim(), x
        for candidate in range(x.dim()):
            there = cumulated(x, candidate, exclusive, reverse, identity_value, operation)
            y = torch.where(wanted == candidate, there, y)
        return y
    along = as_int(axis)
    y = x.flip(along) if reverse else x
    if exclusive:
        first = torch.full_like(y.narrow(along, 0, 1), identity_value)
        y = torch.cat([first, y.narrow(along, 0, y.shape[along] - 1)], along)
    y = operation(y, along)
    return y.flip(along) if reverse else y


def cum_sum(x: torch.Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> torch.Tensor:
    """ONNX CumSum."""

    def running(values: torch.Tensor, along: int) -> torch.Tensor:
        return torch.cumsum(values, along, dtype=values.dtype)

    return cumulated(widened(x), axis, exclusive, reverse, 0, running).to(x.dtype)


def cum_prod(x: torch.Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> torch.Tensor:
    """ONNX CumProd."""

    def running(values: torch.Tensor, along: int) -> torch.Tensor:
        return torch.cumprod(values, along, dtype=values.dtype)

    return cumulated(widened(x), axis, exclusive, reverse, 1, running).to(x.dtype)


OPERATORS = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumProd": cum_prod,
    "CumSum": cum_sum,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_min,
    "ReduceProd": reduce_prod,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
}
