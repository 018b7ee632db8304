"""F16 and BF16: each element for itself, 16 at a time.

Source: IEEE 754-2019, binary16 and binary32; ggml, `src/ggml-impl.h` (`ggml_compute_fp32_to_fp16`,
`ggml_compute_fp32_to_bf16`).
"""

from __future__ import annotations

from collections.abc import Callable

from convkit.ggml.kernels.body import Body
from convkit.ggml.kernels.half import to_half
from convkit.ggml.kernels.machine import Arguments
from convkit.ggml.kernels.values import LANES, Floats, Ints, where


def f16(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel, whose blocks are 16 elements."""
    _convert(body, arguments, to_half)


def bf16(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel, whose blocks are 16 elements."""
    _convert(body, arguments, _to_brain)


def _convert(body: Body, arguments: Arguments, convert: Callable[[Floats], Ints]) -> None:
    with body.loop(0, arguments.count) as i:
        converted = convert(arguments.values.vector(i * LANES))
        arguments.out.write_pairs(i * (2 * LANES), converted)


def _to_brain(values: Floats) -> Ints:
    """The upper halves of the numbers, ties to even; a NaN becomes quiet."""
    raw = values.bits()
    rounded = (raw + (((raw >> 16) & 1) + 0x7FFF)) >> 16
    return where((raw & 0x7FFFFFFF) > 0x7F800000, (raw >> 16) | 64, rounded)
