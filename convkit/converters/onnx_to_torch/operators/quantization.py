"""Integers and narrow floats with a scale: quantized and back, per tensor, per axis, per block."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.cast import (
    FLOAT8_TYPES,
    cast,
    rounded_to_float4,
    rounded_to_float8,
)
from convkit.converters.onnx_to_torch.operators.values import widened

# Quantized type -> smallest value, largest value, type of the tensor that carries it.
QUANTIZED_RANGES = {
    torch.int2: (-2, 1, torch.int8),  # type: ignore[attr-defined]
    torch.uint2: (0, 3, torch.uint8),  # type: ignore[attr-defined]
    torch.int4: (-8, 7, torch.int8),  # type: ignore[attr-defined]
    torch.uint4: (0, 15, torch.uint8),  # type: ignore[attr-defined]
    torch.int8: (-128, 127, torch.int8),
    torch.uint8: (0, 255, torch.uint8),
    torch.int16: (-32768, 32767, torch.int16),
    torch.uint16: (0, 65535, torch.uint16),
    torch.int32: (-(2**31), 2**31 - 1, torch.int32),
}


def per_element(values: torch.Tensor, x: torch.Tensor, axis: int, block_size: int) -> torch.Tensor:
    """Scales or zero points of a tensor, an axis or blocks, so that they broadcast to `x`."""
    if values.dim() == 0 or (values.dim() == 1 and values.shape[0] == 1):
        return values.reshape(())
    if values.dim() == 1 and not block_size:
        shape = [1] * x.dim()
        shape[axis] = -1
        return values.reshape(shape)
    if not block_size:
        return values
    return values.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])


def quantize_linear(
    x: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
    precision: torch.dtype | None = None,
    saturate: int = 1,
) -> torch.Tensor:
    """ONNX QuantizeLinear: `saturate(round(x / scale) + zero point)`, halves to even."""
    exact = precision or wide_scale(y_scale).dtype
    target = output_dtype or (torch.uint8 if y_zero_point is None else y_zero_point.dtype)
    scale = per_element(wide_scale(y_scale).to(exact), x, axis, block_size)
    ratio = x.to(exact) / scale
    if target in FLOAT8_TYPES:
        return rounded_to_float8(ratio, target, saturate)
    if target == torch.float4_e2m1fn_x2:
        return rounded_to_float4(ratio)
    shift = None
    if y_zero_point is not None:
        shift = per_element(widened(y_zero_point).to(torch.float32), x, axis, block_size)
    return rounded_to_range(ratio, shift, target)


def wide_scale(scale: torch.Tensor) -> torch.Tensor:
    """The scale in a type that has arithmetic: powers of two (E8M0) become float32."""
    return scale.to(torch.float32) if scale.element_size() == 1 else scale


def rounded_to_range(
    ratio: torch.Tensor, shift: torch.Tensor | None, target: torch.dtype
) -> torch.Tensor:
    """`round(ratio) + shift`, clamped to what the integer type `target` holds."""
    low, high, carrier = QUANTIZED_RANGES[target]
    rounded = torch.round(ratio).to(torch.promote_types(ratio.dtype, torch.float32))
    if shift is not None:
        rounded = rounded + shift
    clamped = torch.clamp(rounded, low, high)
    if carrier == torch.uint16:
        return clamped.to(torch.int32).to(carrier)
    return clamped.to(carrier)


def dequantize_linear(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """ONNX DequantizeLinear: `(x - zero point) * scale`."""
    target = output_dtype or x_scale.dtype
    scale = per_element(wide_scale(x_scale).to(target), x, axis, block_size)
    if x_zero_point is None or x.dtype.is_floating_point:
        return widened(x).to(target) * scale
    # The difference of two bytes fits every float type; that of wider integers needs int32.
    zero = per_element(widened(x_zero_point).to(torch.int32), x, axis, block_size)
    return (widened(x).to(torch.int32) - zero).to(target) * scale


def dynamic_quantize_linear(
    x: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ONNX DynamicQuantizeLinear to uint8 over the range of `x`, which always includes 0."""
    high = torch.clamp(torch.amax(x), min=0)
    low = torch.clamp(torch.amin(x), max=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, 1, scale)
    zero_point = torch.clamp(torch.round(-low / safe), 0, 255)
    y = rounded_to_range(x / safe, zero_point, torch.uint8)
    return y, scale, zero_point.to(torch.uint8)


def exact_type(depth: int) -> torch.dtype:
    """The fastest float type in which `depth` products of two 9-bit integers add up exactly."""
    fits = isinstance(depth, int) and depth * 255 * 255 < 2**24
    return torch.float32 if fits else torch.float64


def integer_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    a_zero_point: torch.Tensor | None,
    b_zero_point: torch.Tensor | None,
) -> torch.Tensor:
    """The exact product of `a - a_zero_point` and `b - b_zero_point`, held in a float type."""
    exact = exact_type(a.shape[-1])
    left, right = a.to(exact), b.to(exact)
    if a_zero_point is not None:
        zero = a_zero_point.to(exact)
        # One zero point per row of A, or one for all.
        left = left - (zero.unsqueeze(-1) if zero.dim() == 1 and zero.shape[0] > 1 else zero)
    if b_zero_point is not None:
        right = right - b_zero_point.to(exact)
    return torch.matmul(left, right)


def matmul_integer(
    a: torch.Tensor,
    b: torch.Tensor,
    a_zero_point: torch.Tensor | None = None,
    b_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """ONNX MatMulInteger, int32."""
    return integer_matmul(a, b, a_zero_point, b_zero_point).to(torch.int32)


def requantized(
    total: torch.Tensor,
    factor: torch.Tensor,
    y_zero_point: torch.Tensor,
) -> torch.Tensor:
    """Sums of integer products times `factor`, as integers of the zero point's type."""
    ratio = total.to(torch.float32) * factor
    return rounded_to_range(ratio, y_zero_point.to(torch.float32), y_zero_point.dtype)


def qlinear_matmul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
) -> torch.Tensor:
    """ONNX QLinearMatMul; scales of A per row, of B per column, or one each."""
    if a.dtype in FLOAT8_TYPES:
        product = torch.matmul(
            a.to(torch.float32) * a_scale.to(torch.float32),
            b.to(torch.float32) * b_scale.to(torch.float32),
        )
        return cast(product / y_scale.to(torch.float32), to=y_zero_point.dtype)
    total = integer_matmul(a, b, a_zero_point, b_zero_point)
    row_scale = a_scale.to(torch.float32)
    if row_scale.dim() == 1 and row_scale.shape[0] > 1:
        row_scale = row_scale.unsqueeze(-1)
    factor = row_scale * b_scale.to(torch.float32) / y_scale.to(torch.float32)
    return requantized(total, factor, y_zero_point)


OPERATORS = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize_linear,
}
