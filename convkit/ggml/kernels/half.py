"""Half precision in lanes, with integers: no instruction of its own is needed.

Source: IEEE 754-2019, binary16 and binary32; ggml, `src/ggml-impl.h` (`ggml_compute_fp32_to_fp16`),
whose results these are: ties to even, overflow to infinity, one quiet NaN.
"""

from __future__ import annotations

from convkit.ggml.kernels.values import Floats, Ints, where

_REBIAS = (127 - 15) << 10  # between the exponents' biases, at half precision's place
_SMALLEST_NORMAL = 2.0**-14
_SMALLEST = 2.0**-24
_INFINITY = 0x7C00
_NAN = 0x7E00
_OVERFLOWING = 0x477FF000  # 65520, half way to the number that would follow 65504


def to_half(values: Floats) -> Ints:
    """The bits of the nearest half-precision numbers."""
    raw = values.bits()
    size = raw & 0x7FFFFFFF
    half = ((size + ((size >> 13) & 1) + 0xFFF) >> 13) - _REBIAS
    # Beside 0.5 a float32's last place is the smallest subnormal half: the sum rounds.
    subnormal = (size.from_bits() + 0.5).bits() - 0x3F000000
    half = where(size.from_bits() < _SMALLEST_NORMAL, subnormal, half)
    half = where(size > _OVERFLOWING - 1, _INFINITY, half)
    half = where(size > 0x7F800000, _NAN, half)
    return half | ((raw >> 16) & 0x8000)


def from_half(half: Ints) -> Floats:
    """Half-precision bits as float32."""
    size = half & 0x7FFF
    normal = (size + _REBIAS) << 13
    normal = where(size > _INFINITY - 1, (size << 13) | 0x7F800000, normal)
    subnormal = (size.as_floats() * _SMALLEST).bits()
    magnitude = where(size < 0x400, subnormal, normal)
    return (magnitude | ((half & 0x8000) << 16)).from_bits()
