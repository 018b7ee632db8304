"""Numbers that Python knows while the network runs: sizes, axes, counts, and arithmetic on them.

ONNX computes with shapes in tensors. Read back, they would fix the sizes of an exported program,
so they are kept as Python expressions (`x.shape[2] * 2`) from where a shape is taken to where a
size is used. What is constant is computed here and now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Scalar = int | float | bool

ATOM, PRODUCT, SUM, OTHER = 3, 2, 1, 0
"""How tightly an expression binds; a looser one is put in brackets."""


@dataclass(frozen=True)
class Number:
    """One number of the network.

    Attributes:
        code: a Python expression.
        value: the number, where it is known now.
        reads: variables in the expression.
        binding: how tightly it binds.
        is_natural: whether it cannot be negative.
    """

    code: str
    value: Scalar | None = None
    reads: frozenset[str] = frozenset()
    binding: int = ATOM
    is_natural: bool = False

    def within(self, binding: int) -> str:
        """The code as part of an expression that binds so tightly."""
        return self.code if self.binding >= binding else f"({self.code})"


@dataclass(frozen=True)
class Host:
    """A value of rank 0 or 1 whose numbers Python knows.

    Attributes:
        numbers: one for rank 0.
        is_list: whether it has rank 1.
        dtype: ONNX's data type (`onnx_ir.DataType`).
    """

    numbers: tuple[Number, ...]
    is_list: bool
    dtype: Any

    @property
    def is_constant(self) -> bool:
        """Whether all numbers are known now."""
        return all(number.value is not None for number in self.numbers)

    @property
    def values(self) -> list[Scalar]:
        """The numbers of a constant."""
        return [number.value for number in self.numbers if number.value is not None]

    @property
    def reads(self) -> frozenset[str]:
        """Variables that it depends on."""
        return frozenset().union(*(number.reads for number in self.numbers))

    @property
    def code(self) -> str:
        """A Python list, or one number."""
        if not self.is_list:
            return self.numbers[0].code
        return f"[{', '.join(number.code for number in self.numbers)}]"


def constant(value: Scalar, single: bool = False) -> Number:
    """A number that is known now.

    Args:
        value: the number.
        single: whether it was stored in single precision; the shortest decimal that stands for the
            same float is what its author meant, and is what rounds as single precision does.
    """
    if isinstance(value, bool):
        return Number(str(value), value, is_natural=True)
    if isinstance(value, float):
        value = _shortest(value) if single else value
        code = repr(value) if math.isfinite(value) else f'float("{value}")'
    else:
        code = str(value)
    return Number(code, value, binding=ATOM if value >= 0 else OTHER, is_natural=value >= 0)


def _shortest(value: float) -> float:
    import numpy as np

    return float(str(np.float32(value)))


def size(variable: str, axis: int) -> Number:
    """A dimension of a tensor variable."""
    return Number(f"{variable}.shape[{axis}]", reads=frozenset({variable}), is_natural=True)


def computed(
    code: str, sources: Iterable[Number], binding: int = ATOM, is_natural: bool = False
) -> Number:
    """An expression over other numbers."""
    reads = frozenset().union(*(source.reads for source in sources))
    return Number(code, None, reads, binding, is_natural)


def added(a: Number, b: Number) -> Number:
    """A + b."""
    if a.value is not None and b.value is not None:
        return constant(a.value + b.value)
    if a.value == 0:
        return b
    if b.value == 0:
        return a
    if b.value is not None and b.value < 0:
        return subtracted(a, constant(-b.value))
    natural = a.is_natural and b.is_natural
    return computed(f"{a.within(SUM)} + {b.within(SUM)}", (a, b), SUM, natural)


def subtracted(a: Number, b: Number) -> Number:
    """A - b."""
    if a.value is not None and b.value is not None:
        return constant(a.value - b.value)
    if b.value == 0:
        return a
    if a == b:
        return constant(0)
    return computed(f"{a.within(SUM)} - {b.within(PRODUCT)}", (a, b), SUM)


def multiplied(a: Number, b: Number) -> Number:
    """A * b."""
    if a.value is not None and b.value is not None:
        return constant(a.value * b.value)
    for one, other in ((a, b), (b, a)):
        if isinstance(one.value, int) and one.value == 1:
            return other
        if isinstance(one.value, int) and one.value == 0:
            return one
    natural = a.is_natural and b.is_natural
    return computed(f"{a.within(PRODUCT)} * {b.within(PRODUCT)}", (a, b), PRODUCT, natural)


def divided(a: Number, b: Number, is_integer: bool) -> Number | None:
    """A / b; integers are cut towards zero, which is known for natural numbers only."""
    if is_integer:
        return _divided_integers(a, b)
    if a.value is not None and b.value:
        return constant(a.value / b.value)
    if b.value == 1:
        return a
    natural = a.is_natural and b.is_natural
    return computed(f"{a.within(PRODUCT)} / {b.within(ATOM)}", (a, b), PRODUCT, natural)


def _divided_integers(a: Number, b: Number) -> Number | None:
    if a.value is not None and b.value:
        quotient = abs(int(a.value)) // abs(int(b.value))
        return constant(quotient if (a.value < 0) == (b.value < 0) else -quotient)
    if b.value == 1:
        return a
    if a == b:
        return constant(1)
    if b.value == 0 or not b.is_natural:
        return None
    if not a.is_natural:
        code = f"{a.within(PRODUCT)} // {b.within(ATOM)}"
        cut = f"-(-{a.within(ATOM)} // {b.within(ATOM)})"
        return computed(f"{code} if {a.within(SUM)} >= 0 else {cut}", (a, b), OTHER)
    factor = f" * {b.code}"
    if b.value is not None and a.code.endswith(factor) and a.code.count("*") == 1:
        head = a.code.removesuffix(factor)
        if head.isidentifier() or ("(" not in head and " " not in head):
            return computed(head, (a,), ATOM, True)
    return computed(f"{a.within(PRODUCT)} // {b.within(ATOM)}", (a, b), PRODUCT, True)


def modulo(a: Number, b: Number) -> Number:
    """A mod b with the sign of b, as ONNX's Mod for integers has it."""
    if a.value is not None and b.value:
        return constant(a.value % b.value)
    return computed(f"{a.within(PRODUCT)} % {b.within(ATOM)}", (a, b), PRODUCT, b.is_natural)


def negated(a: Number) -> Number:
    """-a."""
    return (
        constant(-a.value) if a.value is not None else computed(f"-{a.within(ATOM)}", (a,), OTHER)
    )


def called(
    function: str, compute: Callable[..., Scalar], numbers: Sequence[Number], natural: bool = False
) -> Number:
    """A function of numbers, by name and as such."""
    if all(number.value is not None for number in numbers):
        return constant(compute(*(number.value for number in numbers)))
    return computed(
        f"{function}({', '.join(number.code for number in numbers)})", numbers, ATOM, natural
    )


def compared(a: Number, sign: str, b: Number, compute: Callable[[Any, Any], bool]) -> Number:
    """A comparison; a size is known to differ from any negative number."""
    if a.value is not None and b.value is not None:
        return constant(compute(a.value, b.value))
    if sign == "==" and a == b:
        return constant(True)
    for one, other in ((a, b), (b, a)):
        if sign == "==" and one.is_natural and other.value is not None and other.value < 0:
            return constant(False)
    if sign == "<" and a.is_natural and b.value is not None and b.value <= 0:
        return constant(False)
    return computed(f"{a.within(SUM)} {sign} {b.within(SUM)}", (a, b), OTHER)


def chosen(condition: Number, a: Number, b: Number) -> Number:
    """A where the condition holds, else b."""
    if condition.value is not None:
        return a if condition.value else b
    if a == b:
        return a
    code = f"{a.within(SUM)} if {condition.within(OTHER)} else {b.within(SUM)}"
    return computed(code, (condition, a, b), OTHER, a.is_natural and b.is_natural)


def total(
    numbers: Sequence[Number], step: Callable[[Number, Number], Number], first: int
) -> Number:
    """All numbers combined by `step`."""
    result = constant(first)
    for number in numbers:
        result = step(result, number)
    return result
