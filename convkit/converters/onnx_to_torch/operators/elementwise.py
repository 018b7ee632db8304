"""Arithmetic on each element: unary functions and broadcasting binary ones."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import (
    Number,
    as_scalar,
    from_ordered,
    ordered,
    widened,
)


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Add."""
    if a.dtype == torch.bool:
        return a | b
    return (widened(a) + widened(b)).to(a.dtype)


def sub(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Sub."""
    return (widened(a) - widened(b)).to(a.dtype)


def mul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Mul."""
    return (widened(a) * widened(b)).to(a.dtype)


def div(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Div; integers round toward zero."""
    if a.dtype.is_floating_point:
        return a / b
    if a.dtype == torch.uint64:
        return divided_uint64(a, b)
    return torch.div(widened(a), widened(b), rounding_mode="trunc").to(a.dtype)


def divided_uint64(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The quotient of uint64 tensors, from signed division of one half the dividend.

    Source: the "unsigned division from signed" identity of H. S. Warren, Hacker's Delight, 9-3.
    """
    n, d = torch.broadcast_tensors(a.view(torch.int64), b.view(torch.int64))
    half = (n >> 1) & torch.iinfo(torch.int64).max
    large = d < 0  # divisors of 2**63 and more divide once or not at all
    safe = torch.where(large, torch.ones_like(d), d)
    quotient = torch.div(half, safe, rounding_mode="trunc") << 1
    remainder = n - quotient * safe
    top = torch.iinfo(torch.int64).min
    quotient = quotient + ((remainder ^ top) >= (safe ^ top)).to(torch.int64)
    once = ((n ^ top) >= (d ^ top)).to(torch.int64)
    return torch.where(large, once, quotient).view(torch.uint64)


def mod(a: torch.Tensor, b: torch.Tensor, *, fmod: int = 0) -> torch.Tensor:
    """ONNX Mod; the sign is the divisor's, or the dividend's when `fmod` is 1."""
    if a.dtype == torch.uint64:
        wide_a, wide_b = a.view(torch.int64), b.view(torch.int64)
        return (wide_a - divided_uint64(a, b).view(torch.int64) * wide_b).view(torch.uint64)
    operation = torch.fmod if fmod else torch.remainder
    y = operation(widened(a), widened(b)).to(a.dtype)
    if a.dtype.is_floating_point and not fmod:
        # An infinite divisor gives the dividend or itself; a zero takes the divisor's sign.
        y = torch.where(y == 0, torch.copysign(y, b), y)
        same = torch.signbit(a) == torch.signbit(b)
        limit = torch.where(same | (a == 0), torch.copysign(a, b), b)
        y = torch.where(torch.isinf(b) & torch.isfinite(a), limit, y)
    return y


def power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """ONNX Pow; the result has the type of the base."""
    if x.dtype.is_floating_point:
        return torch.pow(x, widened(y)).to(x.dtype)
    if y.dtype.is_floating_point:
        return torch.pow(x.to(torch.float64), y).to(x.dtype)
    return torch.pow(widened(x), widened(y)).to(x.dtype)


def neg(x: torch.Tensor) -> torch.Tensor:
    """ONNX Neg."""
    return -x


def absolute(x: torch.Tensor) -> torch.Tensor:
    """ONNX Abs."""
    return torch.abs(x) if x.dtype.is_signed else x


def sign(x: torch.Tensor) -> torch.Tensor:
    """ONNX Sign."""
    if not x.dtype.is_signed:
        return (x != 0).to(x.dtype)
    # torch.sign gives 0 for NaN, ONNX Runtime and NumPy give NaN.
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


def ceil(x: torch.Tensor) -> torch.Tensor:
    """ONNX Ceil."""
    return torch.ceil(x)


def floor(x: torch.Tensor) -> torch.Tensor:
    """ONNX Floor."""
    return torch.floor(x)


def round_half_even(x: torch.Tensor) -> torch.Tensor:
    """ONNX Round: halves go to the even neighbour."""
    return torch.round(x)


def reciprocal(x: torch.Tensor) -> torch.Tensor:
    """ONNX Reciprocal."""
    return torch.reciprocal(x)


def sqrt(x: torch.Tensor) -> torch.Tensor:
    """ONNX Sqrt."""
    return torch.sqrt(x)


def exp(x: torch.Tensor) -> torch.Tensor:
    """ONNX Exp."""
    return torch.exp(x)


def log(x: torch.Tensor) -> torch.Tensor:
    """ONNX Log."""
    return torch.log(x)


def erf(x: torch.Tensor) -> torch.Tensor:
    """ONNX Erf."""
    return torch.erf(x).to(x.dtype)


def sin(x: torch.Tensor) -> torch.Tensor:
    """ONNX Sin."""
    return torch.sin(x)


def cos(x: torch.Tensor) -> torch.Tensor:
    """ONNX Cos."""
    return torch.cos(x)


def tan(x: torch.Tensor) -> torch.Tensor:
    """ONNX Tan."""
    return torch.tan(x)


def asin(x: torch.Tensor) -> torch.Tensor:
    """ONNX Asin."""
    return torch.asin(x)


def acos(x: torch.Tensor) -> torch.Tensor:
    """ONNX Acos."""
    return torch.acos(x)


def atan(x: torch.Tensor) -> torch.Tensor:
    """ONNX Atan."""
    return torch.atan(x)


def sinh(x: torch.Tensor) -> torch.Tensor:
    """ONNX Sinh."""
    return torch.sinh(x)


def cosh(x: torch.Tensor) -> torch.Tensor:
    """ONNX Cosh."""
    return torch.cosh(x)


def asinh(x: torch.Tensor) -> torch.Tensor:
    """ONNX Asinh."""
    return torch.asinh(x)


def acosh(x: torch.Tensor) -> torch.Tensor:
    """ONNX Acosh."""
    return torch.acosh(x)


def atanh(x: torch.Tensor) -> torch.Tensor:
    """ONNX Atanh."""
    return torch.atanh(x)


def clip(
    x: torch.Tensor, minimum: Number | None = None, maximum: Number | None = None
) -> torch.Tensor:
    """ONNX Clip; a lower bound above the upper one gives the upper one everywhere."""
    if minimum is None and maximum is None:
        return x
    if (
        x.dtype.is_floating_point
        and not isinstance(minimum, torch.Tensor)
        and not isinstance(maximum, torch.Tensor)
    ):
        return torch.clamp(x, minimum, maximum)
    y = ordered(x)
    if minimum is not None:
        y = torch.maximum(y, ordered(as_scalar(minimum, x)))
    if maximum is not None:
        y = torch.minimum(y, ordered(as_scalar(maximum, x)))
    return from_ordered(y, x.dtype)


def variadic_sum(*inputs: torch.Tensor) -> torch.Tensor:
    """ONNX Sum: of its inputs, not of their elements."""
    total = inputs[0]
    for x in inputs[1:]:
        total = total + x
    return total


def variadic_mean(*inputs: torch.Tensor) -> torch.Tensor:
    """ONNX Mean of its inputs."""
    return variadic_sum(*inputs) / len(inputs)


def variadic_max(*inputs: torch.Tensor) -> torch.Tensor:
    """ONNX Max of its inputs."""
    largest = ordered(inputs[0])
    for x in inputs[1:]:
        largest = torch.maximum(largest, ordered(x))
    return from_ordered(largest, inputs[0].dtype)


def variadic_min(*inputs: torch.Tensor) -> torch.Tensor:
    """ONNX Min of its inputs."""
    smallest = ordered(inputs[0])
    for x in inputs[1:]:
        smallest = torch.minimum(smallest, ordered(x))
    return from_ordered(smallest, inputs[0].dtype)


def determinant(x: torch.Tensor) -> torch.Tensor:
    """ONNX Det of the last two axes."""
    y: torch.Tensor = torch.linalg.det(x)
    return y


def identity(x: torch.Tensor) -> torch.Tensor:
    """ONNX Identity; a sequence passes too."""
    return x


OPERATORS = {
    "Abs": absolute,
    "Acos": acos,
    "Acosh": acosh,
    "Add": add,
    "Asin": asin,
    "Asinh": asinh,
    "Atan": atan,
    "Atanh": atanh,
    "Ceil": ceil,
    "Clip": clip,
    "Cos": cos,
    "Cosh": cosh,
    "Det": determinant,
    "Div": div,
    "Erf": erf,
    "Exp": exp,
    "Floor": floor,
    "Identity": identity,
    "Log": log,
    "Max": variadic_max,
    "Mean": variadic_mean,
    "Min": variadic_min,
    "Mod": mod,
    "Mul": mul,
    "Neg": neg,
    "Pow": power,
    "Reciprocal": reciprocal,
    "Round": round_half_even,
    "Sign": sign,
    "Sin": sin,
    "Sinh": sinh,
    "Sqrt": sqrt,
    "Sub": sub,
    "Sum": variadic_sum,
    "Tan": tan,
}
