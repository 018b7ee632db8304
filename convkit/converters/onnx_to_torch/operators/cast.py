"""Conversion between element types, with the rounding and saturation that ONNX prescribes."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import WIDER_TYPE

# Integers narrower than a byte: how many bits, and the type of the tensor that carries them.
NARROW_INTEGERS = {
    torch.int2: (2, torch.int8),  # type: ignore[attr-defined]
    torch.int4: (4, torch.int8),  # type: ignore[attr-defined]
    torch.uint2: (2, torch.uint8),  # type: ignore[attr-defined]
    torch.uint4: (4, torch.uint8),  # type: ignore[attr-defined]
}
FLOAT8_TYPES = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
# The type of the tensor that carries float4 (E2M1) values.
FLOAT4_CARRIER = torch.float8_e4m3fn


def cast(
    input: torch.Tensor, *, to: torch.dtype, round_mode: str = "up", saturate: int = 1
) -> torch.Tensor:
    """ONNX Cast."""
    if input.dtype == to:
        return input
    x = (
        input.to(torch.float32)
        if input.is_floating_point() and input.element_size() == 1
        else input
    )
    if to in NARROW_INTEGERS:
        return wrapped_to_bits(x, to)
    if to == torch.float4_e2m1fn_x2:
        return rounded_to_float4(x)
    if to == torch.float8_e8m0fnu:
        return rounded_to_power(x, round_mode, saturate)
    if to in FLOAT8_TYPES:
        return rounded_to_float8(x, to, saturate)
    if to in WIDER_TYPE and x.is_floating_point():
        return x.to(torch.int64).to(to)
    return x.to(to)


def wrapped_to_bits(x: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    """The lowest bits of each element, sign-extended for signed types; fractions are cut off."""
    bits, carrier = NARROW_INTEGERS[to]
    low = x.to(torch.int64) & ((1 << bits) - 1)
    if carrier == torch.int8:
        low = low - ((low >> (bits - 1)) << bits)
    return low.to(carrier)


def rounded_to_float4(x: torch.Tensor) -> torch.Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; ties to the even code.

    Source: OCP Microscaling Formats 1.0, section 5.3.3 (E2M1).
    """
    value = x.to(torch.float32)
    size = torch.clamp(torch.abs(value), max=6.0)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, value).to(FLOAT4_CARRIER)


def rounded_to_power(x: torch.Tensor, round_mode: str, saturate: int) -> torch.Tensor:
    """The power of two as float8_e8m0fnu: the exponent bits of float32, rounded as asked.

    Source: the table of FLOAT8E8M0 in the ONNX specification of Cast.
    """
    value = x.to(torch.float32)
    bits = value.contiguous().view(torch.int32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    half = 0x400000
    # Below the smallest normal float32 the power 2**-127 is a mantissa of one half.
    threshold = torch.where(exponent == 0, half, 0)
    if round_mode == "up":
        code = exponent + (mantissa > threshold).to(torch.int32)
    elif round_mode == "nearest":
        code = exponent + (mantissa >= half).to(torch.int32)
    else:
        code = exponent
    if saturate:
        code = torch.clamp(code, max=0xFE)
    else:
        code = torch.where((value == 0) | (code > 0xFE), 0xFF, code)
    code = torch.where(torch.isnan(value), 0xFF, code)
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)


def rounded_to_float8(x: torch.Tensor, to: torch.dtype, saturate: int) -> torch.Tensor:
    """The nearest value of an 8-bit float type; too large ones become the largest if `saturate`."""
    value = x.to(torch.float32)
    if saturate:
        value = torch.clamp(value, torch.finfo(to).min, torch.finfo(to).max)
    elif to == torch.float8_e4m3fn:
        # PyTorch saturates this type. 464 lies midway between 448 and the 480 it cannot hold.
        value = torch.where(torch.abs(value) > 464, torch.nan, value)
    return value.to(to)


def bit_cast(input: torch.Tensor, *, to: torch.dtype) -> torch.Tensor:
    """ONNX BitCast: the same bits, read as another type of the same width."""
    if to in NARROW_INTEGERS:
        return wrapped_to_bits(input, to)
    if input.dtype == torch.bool or to == torch.bool:
        return input.view(torch.uint8).view(to)
    return input.view(to)


OPERATORS = {"BitCast": bit_cast, "Cast": cast}
