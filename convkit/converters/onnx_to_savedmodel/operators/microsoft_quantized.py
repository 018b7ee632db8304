"""ONNX Runtime's operators on quantized tensors (com.microsoft QLinear... and dynamic ones)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.pooling import average_pool
from convkit.converters.onnx_to_savedmodel.operators.quantization import (
    dequantize_linear,
    dynamic_quantize_linear,
    integer_product,
    q_linear_conv,
    quantize_linear,
)
from convkit.converters.onnx_to_savedmodel.operators.values import (
    as_shape,
    normal_axis,
    product,
    rank_of,
    sizes_of,
)


def _requantized(
    y: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor | None, like: tf.Tensor
) -> tf.Tensor:
    return quantize_linear(y, scale, zero_point, output_dtype=like.dtype)


def q_linear_add(
    a: tf.Tensor,
    a_scale: tf.Tensor,
    a_zero_point: tf.Tensor | None,
    b: tf.Tensor,
    b_scale: tf.Tensor,
    b_zero_point: tf.Tensor | None,
    c_scale: tf.Tensor,
    c_zero_point: tf.Tensor | None = None,
) -> tf.Tensor:
    """com.microsoft QLinearAdd."""
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point)
    return _requantized(left + right, c_scale, c_zero_point, a)


def q_linear_mul(
    a: tf.Tensor,
    a_scale: tf.Tensor,
    a_zero_point: tf.Tensor | None,
    b: tf.Tensor,
    b_scale: tf.Tensor,
    b_zero_point: tf.Tensor | None,
    c_scale: tf.Tensor,
    c_zero_point: tf.Tensor | None = None,
) -> tf.Tensor:
    """com.microsoft QLinearMul."""
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point)
    return _requantized(left * right, c_scale, c_zero_point, a)


def q_linear_sigmoid(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor | None,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor | None = None,
) -> tf.Tensor:
    """com.microsoft QLinearSigmoid."""
    y = tf.sigmoid(dequantize_linear(x, x_scale, x_zero_point))
    return _requantized(y, y_scale, y_zero_point, x)


def q_linear_leaky_relu(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor | None,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> tf.Tensor:
    """com.microsoft QLinearLeakyRelu."""
    y = tf.nn.leaky_relu(dequantize_linear(x, x_scale, x_zero_point), alpha)
    return _requantized(y, y_scale, y_zero_point, x)


def q_linear_softmax(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor | None,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> tf.Tensor:
    """com.microsoft QLinearSoftmax; below opset 13 over all axes from `axis` on."""
    plain = dequantize_linear(x, x_scale, x_zero_point)
    if opset < 13:
        sizes = sizes_of(x)
        at = normal_axis(axis, len(sizes))
        flat = tf.reshape(plain, as_shape([*sizes[:at], product(sizes[at:])]))
        y = tf.reshape(tf.nn.softmax(flat), as_shape(sizes))
    else:
        y = tf.nn.softmax(plain, axis)
    return _requantized(y, y_scale, y_zero_point, x)


def q_linear_concat(
    y_scale: tf.Tensor, y_zero_point: tf.Tensor, *inputs: tf.Tensor, axis: int
) -> tf.Tensor:
    """com.microsoft QLinearConcat; inputs come as tensor, scale, zero point."""
    parts = [dequantize_linear(*inputs[n : n + 3]) for n in range(0, len(inputs), 3)]
    return _requantized(tf.concat(parts, axis), y_scale, y_zero_point, y_zero_point)


def q_linear_where(
    condition: tf.Tensor,
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor,
    y: tf.Tensor,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor,
    z_scale: tf.Tensor,
    z_zero_point: tf.Tensor,
) -> tf.Tensor:
    """com.microsoft QLinearWhere."""
    one = dequantize_linear(x, x_scale, x_zero_point)
    other = dequantize_linear(y, y_scale, y_zero_point)
    return _requantized(tf.where(condition, one, other), z_scale, z_zero_point, x)


def q_linear_average_pool(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor | None,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """com.microsoft QLinearAveragePool."""
    y = average_pool(
        dequantize_linear(x, x_scale, x_zero_point),
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
        layout="NHWC" if channels_last else "NCHW",
    )
    return _requantized(y, y_scale, y_zero_point, x)


def q_linear_global_average_pool(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor,
    *,
    channels_last: int = 0,
) -> tf.Tensor:
    """com.microsoft QLinearGlobalAveragePool."""
    rank = rank_of(x)
    axes = list(range(1, rank - 1)) if channels_last else list(range(2, rank))
    y = tf.reduce_mean(dequantize_linear(x, x_scale, x_zero_point), axes, True)
    return _requantized(y, y_scale, y_zero_point, x)


def q_linear_reduce_mean(
    data: tf.Tensor,
    data_scale: tf.Tensor,
    data_zero_point: tf.Tensor | None,
    reduced_scale: tf.Tensor,
    reduced_zero_point: tf.Tensor | None = None,
    *,
    axes: list[int],
    keepdims: int,
) -> tf.Tensor:
    """com.microsoft QLinearReduceMean."""
    plain = dequantize_linear(data, data_scale, data_zero_point)
    y = tf.reduce_mean(plain, axes, bool(keepdims))
    return _requantized(y, reduced_scale, reduced_zero_point, data)


def q_linear_conv_any_layout(
    x: tf.Tensor,
    x_scale: tf.Tensor,
    x_zero_point: tf.Tensor,
    w: tf.Tensor,
    w_scale: tf.Tensor,
    w_zero_point: tf.Tensor,
    y_scale: tf.Tensor,
    y_zero_point: tf.Tensor,
    b: tf.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """com.microsoft QLinearConv: ONNX's, with channels last on request."""
    return q_linear_conv(
        x,
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
        layout="NHWC" if channels_last else "NCHW",
    )


def mat_mul_integer_to_float(
    a: tf.Tensor,
    b: tf.Tensor,
    a_scale: tf.Tensor,
    b_scale: tf.Tensor,
    a_zero_point: tf.Tensor | None = None,
    b_zero_point: tf.Tensor | None = None,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
    """com.microsoft MatMulIntegerToFloat: the integer product times both scales, plus a bias."""
    total = integer_product(a, b, a_zero_point, b_zero_point)
    y = tf.cast(total, a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


def dynamic_quantize_mat_mul(
    a: tf.Tensor,
    b: tf.Tensor,
    b_scale: tf.Tensor,
    b_zero_point: tf.Tensor | None = None,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
    """com.microsoft DynamicQuantizeMatMul: `a` is quantized to uint8 on the way."""
    quantized, scale, zero_point = dynamic_quantize_linear(a)
    return mat_mul_integer_to_float(quantized, b, scale, b_scale, zero_point, b_zero_point, bias)


def q_gemm(
    a: tf.Tensor,
    a_scale: tf.Tensor,
    a_zero_point: tf.Tensor,
    b: tf.Tensor,
    b_scale: tf.Tensor,
    b_zero_point: tf.Tensor,
    c: tf.Tensor | None = None,
    y_scale: tf.Tensor | None = None,
    y_zero_point: tf.Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    """com.microsoft QGemm; `c` is int32 in units of all factors; float32 without `y_scale`."""
    left = tf.transpose(a) if transA else a
    right = tf.transpose(b) if transB else b
    total = integer_product(left, right, a_zero_point, b_zero_point)
    total = total if c is None else total + tf.cast(c, total.dtype)
    scale = tf.cast(tf.constant(alpha, a_scale.dtype) * a_scale * b_scale, total.dtype)
    y = tf.cast(total * scale, tf.float32)
    if y_scale is None or y_zero_point is None:
        return y
    return _requantized(y, y_scale, y_zero_point, y_zero_point)


OPERATORS = {
    ("com.microsoft", "DequantizeLinear"): dequantize_linear,
    ("com.microsoft", "DynamicQuantizeMatMul"): dynamic_quantize_mat_mul,
    ("com.microsoft", "MatMulIntegerToFloat"): mat_mul_integer_to_float,
    ("com.microsoft", "QGemm"): q_gemm,
    ("com.microsoft", "QLinearAdd"): q_linear_add,
    ("com.microsoft", "QLinearAveragePool"): q_linear_average_pool,
    ("com.microsoft", "QLinearConcat"): q_linear_concat,
    ("com.microsoft", "QLinearConv"): q_linear_conv_any_layout,
    ("com.microsoft", "QLinearGlobalAveragePool"): q_linear_global_average_pool,
    ("com.microsoft", "QLinearLeakyRelu"): q_linear_leaky_relu,
    ("com.microsoft", "QLinearMul"): q_linear_mul,
    ("com.microsoft", "QLinearReduceMean"): q_linear_reduce_mean,
    ("com.microsoft", "QLinearSigmoid"): q_linear_sigmoid,
    ("com.microsoft", "QLinearSoftmax"): q_linear_softmax,
    ("com.microsoft", "QLinearWhere"): q_linear_where,
    ("com.microsoft", "QuantizeLinear"): quantize_linear,
}
