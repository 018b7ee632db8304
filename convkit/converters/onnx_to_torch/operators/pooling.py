"""Pooling of (batch, channels, spatial...) over sliding windows, over everything, and back."""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.convolution import interleaved, window_pads
from convkit.converters.onnx_to_torch.operators.values import Ints, as_ints

MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def window_counts(
    sizes: list[int],
    before: list[int],
    after: list[int],
    reach: list[int],
    strides: list[int],
    ceil_mode: int,
) -> list[int]:
    """How many windows fit each axis; in `ceil_mode` also those that hang over the end.

    A window that would start in the padding at the end is left out, as the ONNX specification says.
    """
    counts = []
    for size, front, back, width, stride in zip(sizes, before, after, reach, strides, strict=True):
        room = size + front + back - width
        if ceil_mode:
            fitting = -(-room // stride) + 1
            counts.append(torch.sym_min(fitting, -(-(size + front) // stride)))
        else:
            counts.append(room // stride + 1)
    return counts


def padded_for_windows(
    x: torch.Tensor,
    counts: list[int],
    before: list[int],
    reach: list[int],
    strides: list[int],
    value: float,
) -> torch.Tensor:
    """`x` with exactly the border that `counts` windows cover."""
    rank = len(counts)
    after = [
        (counts[i] - 1) * strides[i] + reach[i] - x.shape[2 + i] - before[i] for i in range(rank)
    ]
    return F.pad(x, interleaved(before, after), value=value)


def fits_native_pooling(before: list[int], after: list[int], kernel: list[int]) -> bool:
    """Whether PyTorch's pooling takes this padding itself."""
    return all(
        isinstance(front, int) and isinstance(back, int) and front == back and 2 * front <= width
        for front, back, width in zip(before, after, kernel, strict=True)
    )


def max_pool(
    x: torch.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX MaxPool; the second output holds positions in the flattened input."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = list(x.shape[2:])
    before, after = window_pads(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    padded, padding, ceil = x, before, bool(ceil_mode)
    if not fits_native_pooling(before, after, kernel_shape):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
        counts = window_counts(sizes, before, after, reach, strides, ceil_mode)
        lowest = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
        padded = padded_for_windows(x, counts, before, reach, strides, lowest)
        padding, ceil = [0] * rank, False
    pool = MAX_POOLS[rank - 1]
    if output_count == 1:
        return pool(padded, kernel_shape, strides, padding, dilations, ceil)
    y, index = pool(padded, kernel_shape, strides, padding, dilations, ceil, True)
    shift = [0] * rank if padded is x else before
    return y, flat_positions(index, x, list(padded.shape[2:]), shift, storage_order)


def flat_positions(
    index: torch.Tensor, x: torch.Tensor, padded: list[int], shift: list[int], storage_order: int
) -> torch.Tensor:
    """Positions within a padded plane as positions in the flattened `x`."""
    sizes = list(x.shape[2:])
    coordinates = []
    for size, front in zip(reversed(padded), reversed(shift), strict=True):
        coordinates.append(torch.remainder(index, size) - front)
        index = torch.div(index, size, rounding_mode="floor")
    # `coordinates` run from the last axis to the first; row-major order wants the first outermost.
    axes = list(zip(reversed(coordinates), sizes, strict=True))
    position = torch.zeros_like(coordinates[0])
    for coordinate, size in axes if storage_order == 0 else reversed(axes):
        position = position * size + coordinate
    planes = x.shape[0] * x.shape[1]
    plane = torch.arange(planes, device=x.device).reshape(
        [x.shape[0], x.shape[1]] + [1] * len(sizes)
    )
    return position + plane * math.prod(sizes)


def window_sums(
    x: torch.Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    counts: list[int],
) -> torch.Tensor:
    """The sum in each window of an already padded tensor."""
    parts = []
    for tap in itertools.product(*(range(size) for size in kernel)):
        part = x
        for axis, offset in enumerate(tap):
            start = offset * dilations[axis]
            end = start + (counts[axis] - 1) * strides[axis] + 1
            part = part[(slice(None),) * (axis + 2) + (slice(start, end, strides[axis]),)]
        parts.append(part)
    return functools.reduce(torch.add, parts)


def average_pool(
    x: torch.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX AveragePool; a window that hangs over the padded end counts what is within only."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = list(x.shape[2:])
    before, after = window_pads(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    if fits_native_pooling(before, after, kernel_shape) and max(dilations) == 1:
        return AVERAGE_POOLS[rank - 1](
            x, kernel_shape, strides, before, bool(ceil_mode), bool(count_include_pad)
        )
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    counts = window_counts(sizes, before, after, reach, strides, ceil_mode)
    ones = torch.ones([1, 1, *sizes], dtype=x.dtype, device=x.device)
    if count_include_pad:
        ones = F.pad(ones, interleaved(before, after), value=1)
    inner = before if not count_include_pad else [0] * rank
    total = window_sums(
        padded_for_windows(x, counts, before, reach, strides, 0),
        kernel_shape,
        strides,
        dilations,
        counts,
    )
    divisor = window_sums(
        padded_for_windows(ones, counts, inner, reach, strides, 0),
        kernel_shape,
        strides,
        dilations,
        counts,
    )
    return total / divisor


def lp_pool(
    x: torch.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX LpPool: the p-norm in each window."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = list(x.shape[2:])
    before, after = window_pads(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    counts = window_counts(sizes, before, after, reach, strides, ceil_mode)
    powers = padded_for_windows(torch.abs(x) ** p, counts, before, reach, strides, 0)
    return window_sums(powers, kernel_shape, strides, dilations, counts) ** (1 / p)


def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    """ONNX GlobalAveragePool over all spatial axes."""
    return torch.mean(x, list(range(2, x.dim())), keepdim=True)


def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """ONNX GlobalMaxPool over all spatial axes."""
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


def global_lp_pool(x: torch.Tensor, *, p: int = 2) -> torch.Tensor:
    """ONNX GlobalLpPool: the p-norm over all spatial axes."""
    powers = torch.abs(x) ** p
    return torch.sum(powers, list(range(2, x.dim())), keepdim=True) ** (1 / p)


def max_unpool(
    x: torch.Tensor,
    i: torch.Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX MaxUnpool: values back at the positions MaxPool gave, zeros elsewhere.

    Positions count in the shape that the window implies; a larger `output_shape` adds zeros behind.
    """
    rank = x.dim() - 2
    strides, pads = strides or [1] * rank, pads or [0] * (2 * rank)
    sizes = [
        (x.shape[2 + k] - 1) * strides[k] - pads[k] - pads[rank + k] + kernel_shape[k]
        for k in range(rank)
    ]
    shape = [x.shape[0], x.shape[1], *sizes]
    flat = torch.zeros(math.prod(shape), dtype=x.dtype, device=x.device)
    y = flat.scatter(0, i.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return y
    wanted = as_ints(output_shape)
    return F.pad(y, interleaved([0] * x.dim(), [w - s for w, s in zip(wanted, shape, strict=True)]))


OPERATORS = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
