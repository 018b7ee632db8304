"""Small values whose logarithm is taken: they keep fp32, because a logarithm shows their digits.

Below its smallest normal number (6e-5 in fp16) a half number loses digits, near its spacing (6e-8)
all of them. As a sum that is nothing; as the argument of a logarithm, a power spectrum's say, an
error of half its size is 3 dB. A bin of a spectrum is small where large products cancel, so a
log spectrum of the model's own input is computed in fp32 from that input on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convkit.passes.onnx_half_constants import Half, tensor_of
from convkit.passes.onnx_half_types import CARRIERS, is_float
from convkit.quantization.value_range import Range, Ranges

if TYPE_CHECKING:
    import onnx_ir as ir

_KEEPS_SMALL = frozenset((
    "Abs", "Add", "Clip", "Div", "Exp", "Max", "Mean", "Min", "Mul", "Pow", "ReduceMax",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax", "Sqrt", "Sum",
))  # fmt: skip
"""Operators through which a small result is followed to small operands, and no further."""

_LINEAR = frozenset(
    ("Add", "Conv", "DFT", "Div", "Gemm", "MatMul", "Mul", "Neg", "Pad", "STFT", "Sub")
)
"""Operators of a transform; products and quotients are linear where one side is a constant."""


def small_before_logarithms(
    nodes: Iterable[ir.Node], ranges: Ranges, half: Half
) -> dict[ir.Value, str]:
    """Value -> why it must not be rounded: it is small and positive, and a logarithm follows.

    Args:
        nodes: of the model, in any order.
        ranges: measured on samples; a value without one is left alone.
        half: the target.
    """
    found: dict[ir.Value, str] = {}
    for node in nodes:
        source = node.inputs[0] if node.op_type == "Log" and node.domain == "" else None
        if source is None or not _is_small(ranges.get(source.name or ""), half):
            continue
        why = f"small values whose logarithm is '{node.outputs[0].name}'"
        waiting, seen = [source], {source}
        while waiting:
            value = waiting.pop()
            seen_range = ranges.get(value.name or "")
            if seen_range is not None and _is_small(seen_range, half):
                found |= dict.fromkeys((value, *_spectrum(value)), why)
            above = [v for v in _sources(value, ranges) if v not in seen]
            seen.update(above)
            waiting += above
    return found


def _is_small(seen: Range | None, half: Half) -> bool:
    return seen is not None and 0 <= seen.low < half.smallest_normal


def _sources(value: ir.Value, ranges: Ranges) -> list[ir.Value]:
    """Measured operands that are nowhere negative; small ones among them made this one small."""
    node = value.producer()
    if node is None or not (node.op_type in CARRIERS or node.op_type in _KEEPS_SMALL):
        return []
    operands = [v for v in node.inputs if is_float(v) and v is not None and tensor_of(v) is None]
    seen = [(v, ranges.get(v.name or "")) for v in operands]
    return [v for v, found in seen if found is not None and found.low >= 0]


def _spectrum(square: ir.Value) -> set[ir.Value]:
    """What a square is computed from, back to the model's inputs; empty where it is not linear."""
    node = square.producer()
    operands = [v for v in node.inputs if v is not None] if node is not None else []
    is_power = node is not None and node.op_type in ("Pow", "ReduceSumSquare", "Abs")
    is_product = node is not None and node.op_type == "Mul" and operands[0] is operands[1]
    if not (is_power or is_product):
        return set()
    waiting, found = [operands[0]], {operands[0]}
    while waiting:
        made = waiting.pop().producer()
        if made is None:
            continue
        inputs = [v for v in made.inputs if v is not None and is_float(v)]
        moving = [v for v in inputs if tensor_of(v) is None]
        is_product = made.op_type in ("Conv", "Div", "Gemm", "MatMul", "Mul")
        is_linear = made.op_type in CARRIERS or made.op_type in _LINEAR
        if not is_linear or (is_product and len(moving) != 1):
            return set()
        waiting += [v for v in moving if v not in found]
        found.update(moving)
    return found
