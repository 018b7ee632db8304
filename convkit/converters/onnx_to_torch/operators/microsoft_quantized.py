"""ONNX Runtime's operators on quantized tensors (com.microsoft QLinear... and dynamic ones)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.pooling import average_pool
from convkit.converters.onnx_to_torch.operators.quantization import (
    dequantize_linear,
    dynamic_quantize_linear,
    integer_matmul,
    quantize_linear,
)
from convkit.converters.onnx_to_torch.operators.quantized_convolution import qlinear_conv


def requantize(
    y: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor:
    """`y` quantized to the type of `like`."""
    return quantize_linear(y, scale, zero_point, output_dtype=like.dtype)


def qlinear_add(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None,
    c_scale: torch.Tensor,
    c_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """com.microsoft QLinearAdd."""
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point)
    return requantize(left + right, c_scale, c_zero_point, a)


def qlinear_mul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None,
    c_scale: torch.Tensor,
    c_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """com.microsoft QLinearMul."""
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point)
    return requantize(left * right, c_scale, c_zero_point, a)


def qlinear_sigmoid(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """com.microsoft QLinearSigmoid."""
    y = torch.sigmoid(dequantize_linear(x, x_scale, x_zero_point))
    return requantize(y, y_scale, y_zero_point, x)


def qlinear_leaky_relu(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> torch.Tensor:
    """com.microsoft QLinearLeakyRelu."""
    y = F.leaky_relu(dequantize_linear(x, x_scale, x_zero_point), alpha)
    return requantize(y, y_scale, y_zero_point, x)


def qlinear_softmax(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> torch.Tensor:
    """com.microsoft QLinearSoftmax; below opset 13 over all axes from `axis` on."""
    y = dequantize_linear(x, x_scale, x_zero_point)
    if opset < 13:
        y = F.softmax(y.flatten(axis % x.dim()), -1).reshape(x.shape)
    else:
        y = F.softmax(y, axis)
    return requantize(y, y_scale, y_zero_point, x)


def qlinear_concat(
    y_scale: torch.Tensor, y_zero_point: torch.Tensor, *inputs: torch.Tensor, axis: int
) -> torch.Tensor:
    """com.microsoft QLinearConcat; inputs come as tensor, scale, zero point."""
    parts = [dequantize_linear(*inputs[i : i + 3]) for i in range(0, len(inputs), 3)]
    return requantize(torch.cat(parts, axis), y_scale, y_zero_point, y_zero_point)


def qlinear_where(
    condition: torch.Tensor,
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    y: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    z_scale: torch.Tensor,
    z_zero_point: torch.Tensor,
) -> torch.Tensor:
    """com.microsoft QLinearWhere."""
    one = dequantize_linear(x, x_scale, x_zero_point)
    other = dequantize_linear(y, y_scale, y_zero_point)
    return requantize(torch.where(condition, one, other), z_scale, z_zero_point, x)


def qlinear_average_pool(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """com.microsoft QLinearAveragePool."""
    y = dequantize_linear(x, x_scale, x_zero_point)
    y = average_pool(
        y.movedim(-1, 1) if channels_last else y,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return requantize(y.movedim(1, -1) if channels_last else y, y_scale, y_zero_point, x)


def qlinear_global_average_pool(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    *,
    channels_last: int = 0,
) -> torch.Tensor:
    """com.microsoft QLinearGlobalAveragePool."""
    axes = list(range(1, x.dim() - 1)) if channels_last else list(range(2, x.dim()))
    y = dequantize_linear(x, x_scale, x_zero_point).mean(axes, keepdim=True)
    return requantize(y, y_scale, y_zero_point, x)


def qlinear_reduce_mean(
    data: torch.Tensor,
    data_scale: torch.Tensor,
    data_zero_point: torch.Tensor | None,
    reduced_scale: torch.Tensor,
    reduced_zero_point: torch.Tensor | None = None,
    *,
    axes: list[int],
    keepdims: int,
) -> torch.Tensor:
    """com.microsoft QLinearReduceMean."""
    y = dequantize_linear(data, data_scale, data_zero_point).mean(axes, keepdim=bool(keepdims))
    return requantize(y, reduced_scale, reduced_zero_point, data)


def qlinear_conv_any_layout(
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
    channels_last: int = 0,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """com.microsoft QLinearConv: ONNX's, with channels last on request."""
    y = qlinear_conv(
        x.movedim(-1, 1) if channels_last else x,
        x_scale,
        x_zero_point,
        w,
        w_scale,
        w_zero_point,
        y_scale,
        y_zero_point,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return y.movedim(1, -1) if channels_last else y


def matmul_integer_to_float(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None = None,
    b_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """com.microsoft MatMulIntegerToFloat: the integer product times both scales, plus a bias."""
    total = integer_matmul(a, b, a_zero_point, b_zero_point).to(a_scale.dtype)
    y = total * (a_scale * b_scale)
    return y if bias is None else y + bias


def dynamic_quantize_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """com.microsoft DynamicQuantizeMatMul: `a` is quantized to uint8 on the way."""
    quantized, scale, zero_point = dynamic_quantize_linear(a)
    return matmul_integer_to_float(quantized, b, scale, b_scale, zero_point, b_zero_point, bias)


def qgemm(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor,
    c: torch.Tensor | None = None,
    y_scale: torch.Tensor | None = None,
    y_zero_point: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """com.microsoft QGemm; `c` is int32 in units of all factors; float32 without `y_scale`."""
    total = integer_matmul(
        a.t() if transA else a,
        b.t() if transB else b,
        a_zero_point,
        b_zero_point,
    )
    total = total if c is None else total + c
    y = (total * (alpha * a_scale * b_scale)).to(torch.float32)
    if y_scale is None or y_zero_point is None:
        return y
    return requantize(y, y_scale, y_zero_point, y_zero_point)


OPERATORS = {
    ("com.microsoft", "DequantizeLinear"): dequantize_linear,
    ("com.microsoft", "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    ("com.microsoft", "MatMulIntegerToFloat"): matmul_integer_to_float,
    ("com.microsoft", "QGemm"): qgemm,
    ("com.microsoft", "QLinearAdd"): qlinear_add,
    ("com.microsoft", "QLinearAveragePool"): qlinear_average_pool,
    ("com.microsoft", "QLinearConcat"): qlinear_concat,
    ("com.microsoft", "QLinearConv"): qlinear_conv_any_layout,
    ("com.microsoft", "QLinearGlobalAveragePool"): qlinear_global_average_pool,
    ("com.microsoft", "QLinearLeakyRelu"): qlinear_leaky_relu,
    ("com.microsoft", "QLinearMul"): qlinear_mul,
    ("com.microsoft", "QLinearReduceMean"): qlinear_reduce_mean,
    ("com.microsoft", "QLinearSigmoid"): qlinear_sigmoid,
    ("com.microsoft", "QLinearSoftmax"): qlinear_softmax,
    ("com.microsoft", "QLinearWhere"): qlinear_where,
    ("com.microsoft", "QuantizeLinear"): quantize_linear,
}
