"""Convolutions of (batch, channels, spatial...), with one to three spatial axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def window_pads(
    sizes: list[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis of `sizes` for a sliding window.

    Source: the formulas of `auto_pad` in the ONNX specification of Conv.
    """
    rank = len(sizes)
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    if auto_pad == "NOTSET":
        given = pads or [0] * (2 * rank)
        return list(given[:rank]), list(given[rank:])
    before, after = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (width - 1) * dilation + 1
        total = (
            reach - 1
            if stride == 1
            else ((size + stride - 1) // stride - 1) * stride + reach - size
        )
        total = total if isinstance(total, int) and total > 0 else torch.sym_max(total, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


def interleaved(before: list[int], after: list[int]) -> list[int]:
    """Amounts as `F.pad` wants them: last axis first."""
    return [amount for i in reversed(range(len(before))) for amount in (before[i], after[i])]


def is_symmetric(before: list[int], after: list[int]) -> bool:
    """Whether both sides are known to be padded alike; symbolic amounts are not compared."""
    amounts = [*before, *after]
    return all(isinstance(amount, int) for amount in amounts) and before == after


def conv(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX Conv; the kernel's size is that of `w`."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    kernel = kernel_shape or list(w.shape[2:])
    before, after = window_pads(list(x.shape[2:]), kernel, strides, dilations, pads, auto_pad)
    if not is_symmetric(before, after):
        x, before = F.pad(x, interleaved(before, after)), [0] * rank
    return CONVOLUTIONS[rank - 1](x, w, b, strides, before, dilations, group)


def conv_transpose(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX ConvTranspose; `output_shape` overrides `pads`."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    reach = [
        (size - 1) * dilation + 1
        for size, dilation in zip(kernel_shape or w.shape[2:], dilations, strict=True)
    ]
    before, after = transposed_pads(
        list(x.shape[2:]), reach, strides, extra, pads, auto_pad, output_shape
    )
    transposed = TRANSPOSED_CONVOLUTIONS[rank - 1]
    native = is_symmetric(before, after) and min(before) >= 0
    if native and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return transposed(x, w, b, strides, before, extra, group, dilations)
    # Everything the kernel reaches, then cropped or widened at each side, then the bias.
    y = transposed(x, w, None, strides, 0, 0, group, dilations)
    y = F.pad(
        y, interleaved([-a for a in before], [e - a for e, a in zip(extra, after, strict=True)])
    )
    return y if b is None else y + b.reshape([-1] + [1] * rank)


def transposed_pads(
    sizes: list[int],
    reach: list[int],
    strides: list[int],
    extra: list[int],
    pads: list[int] | None,
    auto_pad: str,
    output_shape: list[int] | None,
) -> tuple[list[int], list[int]]:
    """What ConvTranspose crops before and after each spatial axis.

    Source: the formulas of `output_shape` and `auto_pad` in the ONNX specification.
    """
    rank = len(sizes)
    if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        given = pads if pads and auto_pad == "NOTSET" else [0] * (2 * rank)
        return list(given[:rank]), list(given[rank:])
    before, after = [], []
    for axis in range(rank):
        # Without output_shape the result is `size * stride`, whatever the size is.
        total = reach[axis] - strides[axis] + extra[axis]
        if output_shape is not None:
            total += strides[axis] * sizes[axis] - output_shape[axis - rank]
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


def causal_conv_with_state(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    past_state: torch.Tensor | None = None,
    *,
    activation: str = "none",
    output_count: int = 2,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX CausalConvWithState: depthwise, over (batch, channels, length) and the past."""
    kept = weight.shape[2] - 1
    if past_state is None:
        extended = F.pad(input, (kept, 0))
    else:
        extended = torch.cat([past_state.to(input.dtype), input], 2)
    y = F.conv1d(extended, weight, bias, groups=input.shape[1])
    if activation in ("silu", "swish"):
        y = F.silu(y)
    return y if output_count == 1 else (y, extended.narrow(2, extended.shape[2] - kept, kept))


OPERATORS = {
    "CausalConvWithState": causal_conv_with_state,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
}
