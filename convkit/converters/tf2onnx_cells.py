"""Recognises the cell of a recurrent layer in what one step of a loop computes.

A step is brought into one form: every value is a sum of bases times matrices, plus a bias. Bases
are the step's input x, the state h, activations of such sums, and products of two of them. Splits
and slices of columns become columns of the matrices, so one comparison fits every way of writing
the cell; what has no such form is no match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Factor = float | Array
"""What a base is multiplied by: a matrix from the right, or a number."""


class NoMatchError(Exception):
    """The value has no such form."""


@dataclass(eq=False)
class Sum:
    """Bases times factors, plus a bias. Bases are compared by identity."""

    parts: tuple[tuple[Base, Factor], ...] = ()
    bias: Array = field(default_factory=lambda: np.zeros(()))


@dataclass(eq=False)
class Leaf:
    """The input `x` of a step, or the state `h` before it."""

    name: Literal["x", "h"]
    size: int


@dataclass(eq=False)
class Activation:
    """A function applied to each element of a sum; `kind` is ONNX's operator."""

    kind: str
    argument: Sum
    size: int


@dataclass(eq=False)
class Product:
    """Two sums multiplied element by element."""

    left: Sum
    right: Sum
    size: int


Base = Leaf | Activation | Product


@dataclass(frozen=True)
class Cell:
    """A recurrent cell with the weights as ONNX's operator takes them, without directions.

    Attributes:
        operator: `GRU` or `RNN`.
        activations: as the operator's attribute lists them.
        w: (gates x hidden, input).
        r: (gates x hidden, hidden).
        b: (2 x gates x hidden): biases of the input, then of the state.
        linear_before_reset: of GRU.
    """

    operator: str
    activations: tuple[str, ...]
    w: Array
    r: Array
    b: Array
    linear_before_reset: int = 0


ACTIVATIONS = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")
"""Without parameters in ONNX's recurrent operators, and the same functions as the operators."""


def size_of(value: Sum) -> int:
    """How many columns a sum has."""
    for base, factor in value.parts:
        return base.size if isinstance(factor, float) else int(factor.shape[1])
    return int(value.bias.shape[-1]) if value.bias.ndim else 0


def add(left: Sum, right: Sum, sign: float = 1.0) -> Sum:
    """The sum left + sign * right."""
    parts: list[tuple[Base, Factor]] = list(left.parts)
    for base, factor in right.parts:
        signed = sign * factor
        for index, (known, before) in enumerate(parts):
            if known is base:
                parts[index] = base, _total(before, signed, base.size)
                break
        else:
            parts.append((base, signed))
    return Sum(tuple(parts), left.bias + sign * right.bias)


def multiply(left: Sum, right: Sum) -> Sum:
    """Element by element; a constant scales, two values make a product."""
    if left.parts and right.parts:
        size = max(size_of(left), size_of(right))
        return Sum(((Product(left, right, size), 1.0),))
    value, constant = (left, right.bias) if left.parts else (right, left.bias)
    if constant.size != 1:
        raise NoMatchError("a vector scales a value")
    scale = float(constant.reshape(()))
    return Sum(tuple((base, factor * scale) for base, factor in value.parts), value.bias * scale)


def apply_matrix(value: Sum, matrix: Array) -> Sum:
    """The product value @ matrix."""
    parts = tuple(
        (base, factor * matrix if isinstance(factor, float) else factor @ matrix)
        for base, factor in value.parts
    )
    bias = np.broadcast_to(value.bias, (matrix.shape[0],)) @ matrix
    return Sum(parts, bias)


def columns(value: Sum, begin: int, end: int) -> Sum:
    """The columns value[:, begin:end]."""
    size = size_of(value)
    parts = tuple((base, _matrix(factor, base.size)[:, begin:end]) for base, factor in value.parts)
    bias = value.bias if value.bias.ndim == 0 else np.broadcast_to(value.bias, (size,))[begin:end]
    return Sum(parts, bias)


def activate(kind: str, value: Sum) -> Sum:
    """The activation kind(value)."""
    return Sum(((Activation(kind, value, size_of(value)), 1.0),))


def match(state: Sum, x: Leaf, h: Leaf) -> Cell:
    """The cell whose next state this is.

    Raises:
        NoMatchError: it is none that ONNX has an operator for.
    """
    bases = [base for base, _ in state.parts]
    if len(bases) == 1 and isinstance(bases[0], Activation):
        return _elman(_only(state, Activation), x, h)
    if len(bases) == 2 and all(isinstance(base, Product) for base in bases):
        return _gru(state, x, h)
    raise NoMatchError("neither an Elman cell nor a GRU")


def _elman(new: Activation, x: Leaf, h: Leaf) -> Cell:
    w, r, bias = _gate(new.argument, x, h)
    return Cell("RNN", (new.kind,), w.T, r.T, np.concatenate([bias, np.zeros_like(bias)]))


def _gru(state: Sum, x: Leaf, h: Leaf) -> Cell:
    """The state z h + (1 - z) g, with g of the reset state r h, or of r times what became of it."""
    if np.any(state.bias):
        raise NoMatchError("a bias after the gates")
    first, second = (base for base, factor in state.parts if _is_one(factor, base.size))
    kept, fresh = (first, second) if _is_leaf_product(first, h) else (second, first)
    assert isinstance(kept, Product)
    assert isinstance(fresh, Product)
    update = _other(kept, h)
    for side, rest in ((fresh.left, fresh.right), (fresh.right, fresh.left)):
        if _is_complement(side, update):
            candidate = _only(rest, Activation)
            break
    else:
        raise NoMatchError("the state is no mixture")
    w_z, r_z, b_z = _gate(update.argument, x, h)
    w_g, reset, r_g, wb_g, rb_g, after = _candidate(candidate.argument, x, h)
    w_r, r_r, b_r = _gate(reset.argument, x, h)
    if reset.kind != update.kind:
        raise NoMatchError("the gates have different activations")
    zeros = np.zeros_like(b_z)
    return Cell(
        "GRU",
        (update.kind, candidate.kind),
        np.concatenate([w_z, w_r, w_g], axis=1).T,
        np.concatenate([r_z, r_r, r_g], axis=1).T,
        np.concatenate([b_z, b_r, wb_g, zeros, zeros, rb_g]),
        linear_before_reset=after,
    )


def _candidate(
    argument: Sum, x: Leaf, h: Leaf
) -> tuple[Array, Activation, Array, Array, Array, int]:
    """Weights, the reset gate, biases, and whether the reset comes after the matrix."""
    parts = dict(argument.parts)
    if x not in parts or len(parts) != 2:
        raise NoMatchError("the candidate is of another kind")
    w = _matrix(parts.pop(x), x.size)
    ((product, factor),) = parts.items()
    if not isinstance(product, Product):
        raise NoMatchError("the candidate has no reset")
    bias = np.broadcast_to(argument.bias, (w.shape[1],)).astype(w.dtype)
    for gate, rest in ((product.left, product.right), (product.right, product.left)):
        if _is_leaf(rest, h):
            r = _matrix(factor, h.size)
            return w, _only(gate, Activation), r, bias, np.zeros_like(bias), 0
        if _is_one(factor, product.size) and [base for base, _ in rest.parts] == [h]:
            r = _matrix(rest.parts[0][1], h.size)
            inner = np.broadcast_to(rest.bias, (r.shape[1],)).astype(r.dtype)
            return w, _only(gate, Activation), r, bias, inner, 1
    raise NoMatchError("the candidate's reset is of another kind")


def _gate(argument: Sum, x: Leaf, h: Leaf) -> tuple[Array, Array, Array]:
    """Matrices for x and h, and the bias."""
    parts: Mapping[Base, Factor] = dict(argument.parts)
    if set(parts) != {x, h}:
        raise NoMatchError("a gate sees something else than x and h")
    w, r = _matrix(parts[x], x.size), _matrix(parts[h], h.size)
    return w, r, np.broadcast_to(argument.bias, (w.shape[1],)).astype(w.dtype)


def _only(value: Sum, kind: type[Activation]) -> Activation:
    """The activation that a value is, and nothing else."""
    if len(value.parts) == 1 and not np.any(value.bias):
        base, factor = value.parts[0]
        if isinstance(base, kind) and _is_one(factor, base.size):
            return base
    raise NoMatchError("not an activation alone")


def _is_leaf(value: Sum, leaf: Leaf) -> bool:
    return (
        len(value.parts) == 1
        and value.parts[0][0] is leaf
        and _is_one(value.parts[0][1], leaf.size)
        and not np.any(value.bias)
    )


def _is_leaf_product(base: Base, leaf: Leaf) -> bool:
    return isinstance(base, Product) and (_is_leaf(base.left, leaf) or _is_leaf(base.right, leaf))


def _other(product: Product, leaf: Leaf) -> Activation:
    """The gate that multiplies the state."""
    if not _is_leaf_product(product, leaf):
        raise NoMatchError("no gate keeps the state")
    return _only(product.right if _is_leaf(product.left, leaf) else product.left, Activation)


def _is_complement(value: Sum, gate: Activation) -> bool:
    """Whether a value is 1 - gate."""
    if len(value.parts) != 1 or value.parts[0][0] is not gate:
        return False
    factor = value.parts[0][1]
    is_minus = _is_one(-factor, gate.size)
    return is_minus and bool(np.all(value.bias == 1))


def _is_one(factor: Factor, size: int) -> bool:
    if isinstance(factor, float):
        return factor == 1.0
    return factor.shape == (size, size) and bool(np.array_equal(factor, np.eye(size)))


def _matrix(factor: Factor, size: int) -> Array:
    return factor * np.eye(size, dtype=np.float32) if isinstance(factor, float) else factor


def _total(first: Factor, second: Factor, size: int) -> Factor:
    if isinstance(first, float) and isinstance(second, float):
        return first + second
    total: Array = _matrix(first, size) + _matrix(second, size)
    return total


def split_points(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of consecutive pieces of these sizes."""
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
