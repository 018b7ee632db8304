"""Comparisons, logic and bits of each element."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import movable, moved, ordered, widened


def equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Equal."""
    return torch.eq(widened(a), widened(b))


def greater(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Greater."""
    return torch.gt(ordered(a), ordered(b))


def greater_or_equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX GreaterOrEqual."""
    return torch.ge(ordered(a), ordered(b))


def less(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Less."""
    return torch.lt(ordered(a), ordered(b))


def less_or_equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX LessOrEqual."""
    return torch.le(ordered(a), ordered(b))


def logical_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX And."""
    return torch.logical_and(a, b)


def logical_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Or."""
    return torch.logical_or(a, b)


def logical_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Xor."""
    return torch.logical_xor(a, b)


def logical_not(x: torch.Tensor) -> torch.Tensor:
    """ONNX Not."""
    return torch.logical_not(x)


def is_nan(x: torch.Tensor) -> torch.Tensor:
    """ONNX IsNaN."""
    return torch.isnan(x)


def is_inf(x: torch.Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> torch.Tensor:
    """ONNX IsInf, of either sign or both."""
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    if detect_negative:
        return torch.isneginf(x)
    return torch.zeros_like(x, dtype=torch.bool)


def where(condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """ONNX Where."""
    return moved(torch.where(condition, movable(x), movable(y)), x.dtype)


def bitwise_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX BitwiseAnd."""
    return torch.bitwise_and(a, b)


def bitwise_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX BitwiseOr."""
    return torch.bitwise_or(a, b)


def bitwise_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX BitwiseXor."""
    return torch.bitwise_xor(a, b)


def bitwise_not(x: torch.Tensor) -> torch.Tensor:
    """ONNX BitwiseNot."""
    return moved(torch.bitwise_not(movable(x)), x.dtype)


def bit_shift(x: torch.Tensor, y: torch.Tensor, *, direction: str) -> torch.Tensor:
    """ONNX BitShift; the sign bit fills from the left, and shifting by the width or more empties.

    A negative distance counts as one beyond the width.
    """
    bits = 8 * x.element_size()
    beyond = ordered(y) >= ordered(torch.full((), bits, dtype=y.dtype))
    if y.dtype.is_signed:
        beyond = beyond | (y < 0)
    distance = torch.where(beyond, 0, widened(y))
    if direction == "LEFT":
        shifted, emptied = widened(x) << distance, torch.zeros((), dtype=widened(x).dtype)
    elif x.dtype == torch.uint64:
        shifted, emptied = shifted_right_uint64(x, distance), torch.zeros((), dtype=torch.int64)
    else:
        shifted, emptied = widened(x) >> distance, -(widened(x) < 0).to(torch.int64)
    return torch.where(beyond, emptied.to(shifted.dtype), shifted).to(x.dtype)


def shifted_right_uint64(x: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Bits of a uint64 tensor moved right, as int64: the copies of the top bit are masked off."""
    signed = x.view(torch.int64) >> distance
    kept = ~((torch.full_like(distance, -1) << (63 - distance)) << 1)
    return signed & kept


OPERATORS = {
    "And": logical_and,
    "BitShift": bit_shift,
    "BitwiseAnd": bitwise_and,
    "BitwiseNot": bitwise_not,
    "BitwiseOr": bitwise_or,
    "BitwiseXor": bitwise_xor,
    "Equal": equal,
    "Greater": greater,
    "GreaterOrEqual": greater_or_equal,
    "IsInf": is_inf,
    "IsNaN": is_nan,
    "Less": less,
    "LessOrEqual": less_or_equal,
    "Not": logical_not,
    "Or": logical_or,
    "Where": where,
    "Xor": logical_xor,
}
