"""Matrix products."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import widened


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX MatMul."""
    return torch.matmul(widened(a), widened(b)).to(a.dtype)


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """ONNX Gemm: `alpha * A @ B + beta * C` of matrices, each transposed on request."""
    left = a.t() if transA else a
    right = b.t() if transB else b
    if not a.dtype.is_floating_point:
        y = alpha * torch.matmul(widened(left), widened(right))
        return (y if c is None else y + beta * widened(c)).to(a.dtype)
    if c is None:
        y = torch.mm(left, right)
        return y if alpha == 1.0 else alpha * y
    return torch.addmm(c, left, right, beta=beta, alpha=alpha)


def einsum(*inputs: torch.Tensor, equation: str) -> torch.Tensor:
    """ONNX Einsum; operands are contracted two at a time, which keeps symbolic sizes symbolic."""
    equation = equation.replace(" ", "")
    if len(inputs) < 3 or "." in equation:
        return torch.einsum(equation, *inputs)
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        result = "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    term, y = terms[0], inputs[0]
    for position, (other, x) in enumerate(zip(terms[1:], inputs[1:], strict=True), start=2):
        needed = set(result).union(*terms[position:])
        kept = "".join(label for label in dict.fromkeys(term + other) if label in needed)
        kept = result if position == len(terms) else kept
        y = torch.einsum(f"{term},{other}->{kept}", y, x)
        term = kept
    return y


OPERATORS = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
