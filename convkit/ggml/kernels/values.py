"""Numbers of a kernel under construction: `a * b + c` writes the instructions that compute it.

`Floats`, `Ints` and `Mask` are vectors of 16 float32, int32 or truths; a machine without registers
of 512 bits computes them in two or four. A lane is one of the 16. Operators work lane by lane, and
a plain number beside a vector counts for every lane, rounded to float32 first. `Number` is a scalar
integer for counting and addressing.

Nothing lets the compiler reorder operations or fuse a product with a sum: every lane computes what
scalar C code computes that is compiled without such liberties.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, TypeVar

from llvmlite import ir

LANES = 16

FLOAT, INT, BYTE, INDEX = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.IntType(64)

_ROUNDING = 12582912.0  # 1.5 * 2^23: a float32 this large has no fraction, so adding it rounds
_BELOW_HALF = 0x3EFFFFFF  # bits of the float32 before 0.5, which 0.5 - ulp / 2 rounds to


def vector_of(element: Any) -> Any:
    """The LLVM type of 16 elements."""
    return ir.VectorType(element, LANES)


@dataclass(frozen=True, eq=False)
class Value:
    """What an instruction computes.

    Attributes:
        builder: writes instructions.
        raw: the value in LLVM's terms.
    """

    builder: Any
    raw: Any


V = TypeVar("V", bound=Value)


@dataclass(frozen=True, eq=False)
class Number(Value):
    """An integer of 64 bits."""

    def __add__(self, other: Number | int) -> Number:
        return Number(self.builder, self.builder.add(self.raw, index_of(other)))

    def __sub__(self, other: Number | int) -> Number:
        return Number(self.builder, self.builder.sub(self.raw, index_of(other)))

    def __radd__(self, other: int) -> Number:
        return self + other

    def __mul__(self, other: Number | int) -> Number:
        return Number(self.builder, self.builder.mul(self.raw, index_of(other)))

    def __mod__(self, other: Number | int) -> Number:
        return Number(self.builder, self.builder.urem(self.raw, index_of(other)))

    def __floordiv__(self, other: Number | int) -> Number:
        return Number(self.builder, self.builder.udiv(self.raw, index_of(other)))

    def at_most(self, other: Number | int) -> Number:
        """The smaller one."""
        limit = index_of(other)
        is_smaller = self.builder.icmp_signed("<", self.raw, limit)
        return Number(self.builder, self.builder.select(is_smaller, self.raw, limit))


Whole = Number | int
"""A count or an index, known now or only when the kernel runs."""


def index_of(number: Whole) -> Any:
    """LLVM's value of a count or an index."""
    return number.raw if isinstance(number, Number) else ir.Constant(INDEX, number)


@dataclass(frozen=True, eq=False)
class Mask(Value):
    """16 truths."""

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.and_(self.raw, other.raw))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.or_(self.raw, other.raw))


@dataclass(frozen=True, eq=False)
class Floats(Value):
    """16 float32."""

    def _raw(self, other: Floats | float) -> Any:
        return other.raw if isinstance(other, Floats) else constant(FLOAT, other)

    def _compared(self, symbol: str, other: Floats | float) -> Mask:
        return Mask(self.builder, self.builder.fcmp_ordered(symbol, self.raw, self._raw(other)))

    def __add__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fadd(self.raw, self._raw(other)))

    def __sub__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fsub(self.raw, self._raw(other)))

    def __mul__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fmul(self.raw, self._raw(other)))

    def __truediv__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fdiv(self.raw, self._raw(other)))

    def __rtruediv__(self, other: float) -> Floats:
        return Floats(self.builder, self.builder.fdiv(self._raw(other), self.raw))

    def __neg__(self) -> Floats:
        return Floats(self.builder, self.builder.fneg(self.raw))

    def __lt__(self, other: Floats | float) -> Mask:
        return self._compared("<", other)

    def __gt__(self, other: Floats | float) -> Mask:
        return self._compared(">", other)

    def equals(self, other: Floats | float) -> Mask:
        """Where the two are equal."""
        return self._compared("==", other)

    def magnitude(self) -> Floats:
        """Absolute values."""
        return self._computed("llvm.fabs")

    def root(self) -> Floats:
        """Square roots, correctly rounded."""
        return self._computed("llvm.sqrt")

    def _computed(self, intrinsic: str) -> Floats:
        name = f"{intrinsic}.v{LANES}f32"
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            kind = vector_of(FLOAT)
            function = ir.Function(module, ir.FunctionType(kind, [kind]), name)
        return Floats(self.builder, self.builder.call(function, [self.raw]))

    def nearest(self) -> Ints:
        """The nearest integers, ties to even; beyond 2^22, and for NaN, the same bits as in ggml.

        Source: ggml, `src/ggml-quants.c`, `nearest_int`.
        """
        return ((self + _ROUNDING).bits() & 0x7FFFFF) - 0x400000

    def rounded(self) -> Floats:
        """The nearest integers, ties to even, for magnitudes below 2^22."""
        return self + _ROUNDING - _ROUNDING

    def truncated(self) -> Ints:
        """The integers towards zero."""
        return Ints(self.builder, self.builder.fptosi(self.raw, vector_of(INT)))

    def nearest_away(self) -> Ints:
        """The nearest integers, ties away from zero, for magnitudes below 2^22."""
        below_half = (self.bits() & -0x80000000) | _BELOW_HALF
        return (self + below_half.from_bits()).truncated()

    def clipped(self, low: float, high: float) -> Floats:
        """Between two bounds."""
        limited = where(self < high, self, high)
        return where(limited > low, limited, low)

    def bits(self) -> Ints:
        """The same bits as integers."""
        return Ints(self.builder, self.builder.bitcast(self.raw, vector_of(INT)))


@dataclass(frozen=True, eq=False)
class Ints(Value):
    """16 int32. Shifts to the right bring in zeros."""

    def _raw(self, other: Ints | int) -> Any:
        return other.raw if isinstance(other, Ints) else constant(INT, other)

    def _compared(self, symbol: str, other: Ints | int) -> Mask:
        return Mask(self.builder, self.builder.icmp_signed(symbol, self.raw, self._raw(other)))

    def __add__(self, other: Ints | int) -> Ints:
        return Ints(self.builder, self.builder.add(self.raw, self._raw(other)))

    def __sub__(self, other: Ints | int) -> Ints:
        return Ints(self.builder, self.builder.sub(self.raw, self._raw(other)))

    def __and__(self, other: Ints | int) -> Ints:
        return Ints(self.builder, self.builder.and_(self.raw, self._raw(other)))

    def __or__(self, other: Ints | int) -> Ints:
        return Ints(self.builder, self.builder.or_(self.raw, self._raw(other)))

    def __lshift__(self, count: int) -> Ints:
        return Ints(self.builder, self.builder.shl(self.raw, self._raw(count)))

    def __rshift__(self, count: int) -> Ints:
        return Ints(self.builder, self.builder.lshr(self.raw, self._raw(count)))

    def __lt__(self, other: Ints | int) -> Mask:
        return self._compared("<", other)

    def __gt__(self, other: Ints | int) -> Mask:
        return self._compared(">", other)

    def differs(self, other: Ints | int) -> Mask:
        """Where the two are not equal."""
        return self._compared("!=", other)

    def clipped(self, low: int, high: int) -> Ints:
        """Between two bounds."""
        limited = self.at_most(high)
        return where(limited > low, limited, low)

    def at_most(self, high: int) -> Ints:
        """Not above a bound."""
        return where(self < high, self, high)

    def as_floats(self) -> Floats:
        """The same numbers."""
        return Floats(self.builder, self.builder.sitofp(self.raw, vector_of(FLOAT)))

    def from_bits(self) -> Floats:
        """Floats of the same bits."""
        return Floats(self.builder, self.builder.bitcast(self.raw, vector_of(FLOAT)))


L = TypeVar("L", Floats, Ints)


def where(mask: Mask, chosen: L | float, other: L | float) -> L:
    """`chosen` where the mask is true, else `other`; one of them is a vector."""
    vector: L = chosen if isinstance(chosen, Value) else other  # type: ignore[assignment]
    raws = [vector._raw(each) for each in (chosen, other)]  # type: ignore[arg-type]
    return type(vector)(mask.builder, mask.builder.select(mask.raw, *raws))


def constant(element: Any, number: float) -> Any:
    """LLVM's vector with a number in every lane."""
    if element is FLOAT:  # LLVM's text has doubles; they must be exact float32
        number = struct.unpack("f", struct.pack("f", number))[0]
    return ir.Constant(vector_of(element), [number] * LANES)


def spread(builder: Any, scalar: Any) -> Any:
    """LLVM's vector with a scalar value in every lane."""
    undefined = ir.Constant(vector_of(scalar.type), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, undefined, constant(INT, 0))


def transposed(rows: list[L]) -> list[L]:
    """The columns of 16 vectors: four perfect shuffles, each of row k with row k + 8."""
    builder, kind = rows[0].builder, type(rows[0])
    half = LANES // 2
    sides = [
        ir.Constant(vector_of(INT), [lane for i in part for lane in (i, i + LANES)])
        for part in (range(half), range(half, LANES))
    ]
    raws = [row.raw for row in rows]
    for _ in range(LANES.bit_length() - 1):
        raws = [
            builder.shuffle_vector(raws[k], raws[k + half], side)
            for k in range(half)
            for side in sides
        ]
    return [kind(builder, raw) for raw in raws]
