"""Parts and borders of tensors: Slice, Split, Concat, Pad, CenterCropPad, ReverseSequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.shape import shape_tensor
from convkit.converters.onnx_to_torch.operators.values import (
    Ints,
    Number,
    as_int_tensor,
    as_ints,
    movable,
    moved,
    positive_axis,
)

# Ends below this mean "beyond the first element" for a negative step.
FAR_BEFORE = -(2**31) + 2


def slice_tensor(
    data: torch.Tensor,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> torch.Tensor:
    """ONNX Slice; bounds beyond the tensor are clamped, steps may be negative."""
    if any(isinstance(value, torch.Tensor) for value in (starts, ends, axes, steps)):
        return sliced_at_run_time(data, starts, ends, axes, steps)
    listed = list(range(len(starts))) if axes is None else list(axes)
    strides = [1] * len(starts) if steps is None else list(steps)
    index = [slice(None)] * data.dim()
    y = data
    for start, end, axis, step in zip(starts, ends, listed, strides, strict=True):
        if step < 0:
            y = moved(movable(y).flip(axis), data.dtype)
            start, end = mirrored_bounds(start, end, y.shape[axis])
        index[axis] = slice(start, end, abs(step))
    return y[tuple(index)]


def mirrored_bounds(start: int, end: int, size: int) -> tuple[int, int | None]:
    """Bounds of a slice with negative step, as seen in the flipped axis of `size` elements."""
    first = -1 - start if start < 0 else size - 1 - start
    if first < 0:
        first = 0
    if end < FAR_BEFORE:
        return first, None
    last = -1 - end if end < 0 else size - 1 - end
    return first, max(last, 0)


def sliced_at_run_time(
    data: torch.Tensor, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None
) -> torch.Tensor:
    """Slice by bounds that only the running model knows: an index for each axis."""
    first, last = as_int_tensor(starts, data), as_int_tensor(ends, data)
    step = torch.ones_like(first) if steps is None else as_int_tensor(steps, data)
    if isinstance(axes, torch.Tensor):
        # Which axis is meant is unknown too: bounds for all axes, those not named taken whole.
        place = axes.reshape(-1).to(torch.int64) % data.dim()
        whole = torch.zeros(data.dim(), dtype=torch.int64)
        first = whole.scatter(0, place, first)
        last = shape_tensor(list(data.shape), data).scatter(0, place, last)
        step = torch.ones_like(whole).scatter(0, place, step)
        listed = list(range(data.dim()))
    else:
        listed = list(range(first.shape[0])) if axes is None else list(axes)
    y = movable(data)
    for position, axis in enumerate(listed):
        index = slice_index(first[position], last[position], step[position], data.shape[axis])
        y = y.index_select(axis, index)
    return moved(y, data.dtype)


def slice_index(
    start: torch.Tensor, end: torch.Tensor, step: torch.Tensor, size: int
) -> torch.Tensor:
    """The indices that `start:end:step` takes from `size` elements."""
    forward = step > 0
    low = torch.where(forward, 0, -1)
    first = torch.where(start < 0, start + size, start)
    first = torch.minimum(torch.clamp(first, min=0), torch.where(forward, size, size - 1))
    last = torch.where(end < 0, end + size, end)
    last = torch.minimum(torch.maximum(last, low), torch.where(forward, size, size - 1))
    count = -torch.div(first - last, step, rounding_mode="floor")
    length = torch.clamp(count, min=0).item()
    torch._check(length >= 0)
    torch._check(length <= size)
    return first + step * torch.arange(length, device=start.device)


def concat(*inputs: torch.Tensor, axis: int) -> torch.Tensor:
    """ONNX Concat."""
    return torch.cat(inputs, axis)


def split_tensor(
    data: torch.Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    output_count: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX Split into given sizes, or into equal parts of which the last may be smaller."""
    if split is None:
        count = num_outputs or output_count
        size = (data.shape[axis] + count - 1) // count
        sizes = [size] * (count - 1) + [data.shape[axis] - size * (count - 1)]
    else:
        sizes = as_ints(split)
    parts = torch.split(data, sizes, axis)
    return parts[0] if output_count == 1 else parts[:output_count]


def pad(
    data: torch.Tensor,
    pads: Ints,
    constant_value: Number | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> torch.Tensor:
    """ONNX Pad: amounts before all axes, then after all axes; negative amounts crop."""
    before, after = amounts_per_axis(data, pads, axes)
    if mode == "constant":
        return padded_with_constant(data, before, after, constant_value)
    spatial = data.dim() - 2
    if is_native_padding(data, before, after) and mode in ("reflect", "edge"):
        amounts = reversed_pairs(before[-spatial:], after[-spatial:])
        return F.pad(data, amounts, mode="reflect" if mode == "reflect" else "replicate")
    # What is cut off is gone before the border repeats what is left.
    y = movable(padded_with_constant(data, cropped(before), cropped(after), 0))
    for axis, (front, back) in enumerate(zip(before, after, strict=True)):
        front, back = torch.sym_max(front, 0), torch.sym_max(back, 0)
        if not (isinstance(front, int) and isinstance(back, int) and front == 0 == back):
            y = y.index_select(axis, border_index(y.shape[axis], front, back, mode, y.device))
    return moved(y, data.dtype)


def cropped(amounts: list[int]) -> list[int]:
    """The negative amounts, 0 in place of the others."""
    return [torch.sym_min(amount, 0) for amount in amounts]


def amounts_per_axis(
    data: torch.Tensor, pads: Ints, axes: Ints | None
) -> tuple[list[int], list[int]]:
    """Padding before and after every axis of `data`."""
    rank = data.dim()
    if isinstance(pads, torch.Tensor) or isinstance(axes, torch.Tensor):
        amounts = as_int_tensor(pads, data).reshape(2, -1)
        if axes is not None:
            place = as_int_tensor(axes, data) % rank
            none = torch.zeros(2, rank, dtype=torch.int64)
            amounts = none.scatter(1, place.expand(2, -1), amounts)
        listed = amounts.reshape(-1).tolist()
        return listed[:rank], listed[rank:]
    named = list(range(rank)) if axes is None else [positive_axis(a, rank) for a in as_ints(axes)]
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(named):
        before[axis] = pads[position]
        after[axis] = pads[position + len(named)]
    return before, after


def reversed_pairs(before: list[int], after: list[int]) -> list[int]:
    """Amounts in the order of `F.pad`: last axis first, before and after side by side."""
    return [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]


def padded_with_constant(
    data: torch.Tensor, before: list[int], after: list[int], value: Number | None
) -> torch.Tensor:
    """`data` with a border of `value`, which is 0 when absent."""
    amounts = reversed_pairs(before, after)
    while len(amounts) > 2 and all(isinstance(a, int) and a == 0 for a in amounts[-2:]):
        amounts = amounts[:-2]
    x = movable(data)
    if not isinstance(value, torch.Tensor):
        if x.dtype == data.dtype:
            return F.pad(x, amounts, value=value or 0)
        value = torch.tensor(value or 0).to(data.dtype)
    inside = F.pad(torch.ones(data.shape, dtype=torch.bool, device=data.device), amounts)
    y = torch.where(inside, F.pad(x, amounts), movable(value.reshape(()).to(data.dtype)))
    return moved(y, data.dtype)


def is_native_padding(data: torch.Tensor, before: list[int], after: list[int]) -> bool:
    """Whether PyTorch's own reflection and replication padding can do it."""
    amounts = [*before, *after]
    if not data.dtype.is_floating_point or not 3 <= data.dim() <= 5 or data.element_size() == 1:
        return False
    if not all(isinstance(a, int) and a >= 0 for a in amounts) or any([*before[:2], *after[:2]]):
        return False
    return all(
        isinstance(size, int) and max(front, back) < size
        for size, front, back in zip(data.shape[2:], before[2:], after[2:], strict=True)
    )


def border_index(size: int, front: int, back: int, mode: str, device: torch.device) -> torch.Tensor:
    """Which of `size` elements each element of the padded axis repeats."""
    index = torch.arange(size + front + back, device=device) - front
    if mode == "edge":
        return torch.clamp(index, torch.scalar_tensor(0), torch.scalar_tensor(size - 1)).long()
    if mode == "wrap":
        return torch.remainder(index, size)
    period = torch.clamp(torch.scalar_tensor(2 * (size - 1), dtype=torch.int64), min=1)
    index = torch.remainder(index, period)
    return torch.where(index >= size, period - index, index)


def center_crop_pad(
    data: torch.Tensor, shape: Ints, *, axes: list[int] | None = None
) -> torch.Tensor:
    """ONNX CenterCropPad: crops or pads with zeros to `shape`, around the middle."""
    named = list(range(data.dim())) if axes is None else axes
    own = [data.shape[axis] for axis in named]
    if isinstance(shape, torch.Tensor):
        missing = shape.reshape(-1) - shape_tensor(own, data)
        front = torch.div(missing, 2, rounding_mode="trunc")
        return pad(data, torch.cat([front, missing - front]), axes=named)
    differences = [wanted - size for wanted, size in zip(shape, own, strict=True)]
    before = [d // 2 if d >= 0 else -(-d // 2) for d in differences]
    after = [d - front for d, front in zip(differences, before, strict=True)]
    return pad(data, before + after, axes=named)


def reverse_sequence(
    data: torch.Tensor, sequence_lens: torch.Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> torch.Tensor:
    """ONNX ReverseSequence: the first `sequence_lens[b]` steps of each batch entry, backwards."""
    step = along_axis(torch.arange(data.shape[time_axis], device=data.device), time_axis, data)
    length = along_axis(sequence_lens, batch_axis, data)
    index = torch.where(step < length, length - 1 - step, step).expand(data.shape)
    return moved(torch.gather(movable(data), time_axis, index), data.dtype)


def along_axis(values: torch.Tensor, axis: int, like: torch.Tensor) -> torch.Tensor:
    """A 1-D tensor as one that broadcasts along `axis` of `like`."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


OPERATORS = {
    "CenterCropPad": center_crop_pad,
    "Concat": concat,
    "Pad": pad,
    "ReverseSequence": reverse_sequence,
    "Slice": slice_tensor,
    "Split": split_tensor,
}
