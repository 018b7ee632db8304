"""DeformConv: a convolution whose kernel reads the image at learned offsets."""

from __future__ import annotations

import torch


def between_pixels(x: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Images (batch, channels, height, width) read bilinearly at (batch, places), zero outside."""
    height, width = x.shape[2:]
    flat = x.flatten(2)
    top, left = torch.floor(row), torch.floor(column)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for y, share_y in ((top, top + 1 - row), (top + 1, row - top)):
        for at, share_x in ((left, left + 1 - column), (left + 1, column - left)):
            inside = (y >= 0) & (y < height) & (at >= 0) & (at < width)
            index = torch.where(inside, y * width + at, 0).to(torch.int64)
            pixel = torch.gather(flat, 2, index.unsqueeze(1).expand(-1, x.shape[1], -1))
            share = torch.where(inside, share_y * share_x, 0).to(x.dtype)
            total = total + pixel * share.unsqueeze(1)
    return total


def deform_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    b: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX DeformConv of (batch, channels, height, width).

    Each kernel position reads the image where its offset says, between pixels, zero outside.
    Source: Dai et al. 2017 and Zhu et al. 2019 (`mask`), as in the ONNX specification.
    """
    dilations, strides, pads = dilations or [1, 1], strides or [1, 1], pads or [0] * 4
    batch, channels = x.shape[:2]
    filters, per_group, kernel_h, kernel_w = w.shape
    out_h, out_w = offset.shape[2:]
    window = kernel_h * kernel_w
    shift = offset.reshape(batch, offset_group, kernel_h, kernel_w, 2, out_h, out_w)
    row = torch.arange(out_h, device=x.device) * strides[0] - pads[0]
    column = torch.arange(out_w, device=x.device) * strides[1] - pads[1]
    tap_row = torch.arange(kernel_h, device=x.device).reshape(-1, 1, 1, 1) * dilations[0]
    tap_column = torch.arange(kernel_w, device=x.device).reshape(-1, 1, 1) * dilations[1]
    at_row = shift[:, :, :, :, 0] + (tap_row + row.unsqueeze(1))
    at_column = shift[:, :, :, :, 1] + (tap_column + column)
    taken = between_pixels(
        x.unflatten(1, (offset_group, -1)).flatten(0, 1),
        at_row.reshape(batch * offset_group, -1),
        at_column.reshape(batch * offset_group, -1),
    ).reshape(batch, offset_group, channels // offset_group, window, out_h, out_w)
    if mask is not None:
        taken = taken * mask.reshape(batch, offset_group, 1, window, out_h, out_w)
    columns = taken.reshape(batch, group, per_group * window, out_h * out_w)
    kernels = w.reshape(group, filters // group, per_group * window)
    y = torch.matmul(kernels, columns).reshape(batch, filters, out_h, out_w)
    return y if b is None else y + b.reshape(-1, 1, 1)


OPERATORS = {"DeformConv": deform_conv}
