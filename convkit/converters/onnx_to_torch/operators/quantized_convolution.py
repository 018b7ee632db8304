"""Convolutions of integers."""

from __future__ import annotations

import math

import torch

from convkit.converters.onnx_to_torch.operators.convolution import conv
from convkit.converters.onnx_to_torch.operators.quantization import exact_type, requantized


def per_filter(values: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """One value per filter, along `axis` of a tensor with `rank` axes; or one for all."""
    if values.dim() == 0 or values.shape[0] == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def conv_integer(
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero_point: torch.Tensor | None = None,
    w_zero_point: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX ConvInteger, int32; padding stands for the zero point."""
    exact = exact_type(math.prod(w.shape[1:]))
    image, kernels = x.to(exact), w.to(exact)
    if x_zero_point is not None:
        image = image - x_zero_point.to(exact)
    if w_zero_point is not None:
        kernels = kernels - per_filter(w_zero_point.to(exact), w.dim(), 0)
    total = conv(
        image,
        kernels,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return total.to(torch.int32)


def qlinear_conv(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX QLinearConv; the bias is int32 in units of `x_scale * w_scale`."""
    total = conv_integer(
        x,
        w,
        x_zero_point,
        w_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    if b is not None:
        total = total + per_filter(b, x.dim(), 1)
    factor = per_filter(x_scale * w_scale / y_scale, x.dim(), 1)
    return requantized(total, factor, y_zero_point)


OPERATORS = {"ConvInteger": conv_integer, "QLinearConv": qlinear_conv}
