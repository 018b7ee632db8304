"""How large numbers become inside operators: sums and squares whose result is small again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convkit.quantization.value_range import Range, Ranges

if TYPE_CHECKING:
    import onnx_ir as ir

SUMMING = frozenset({"ReduceMean", "GlobalAveragePool"})
"""Operators whose result is small although the sum behind it may not be."""

_SQUARING = frozenset((
    "ReduceL2", "ReduceSumSquare", "LpNormalization", "LpPool", "GlobalLpPool",
    "InstanceNormalization", "MeanVarianceNormalization", "GroupNormalization",
))  # fmt: skip
"""Operators that square inside, in the type of their input: no `stash_type` says otherwise."""

_SQUARING_SUMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
"""Operators that square the sum of their first two inputs, in half on a GPU.

Source: onnxruntime, contrib_ops/cuda/bert/skip_layer_norm_impl.cu.
"""


def largest_inside(node: ir.Node, ranges: Ranges) -> float:
    """The largest magnitude inside a node as far as ranges tell; 0 for all other operators."""
    read = [ranges.get(v.name or "") if v is not None else None for v in node.inputs]
    if node.op_type in _SQUARING_SUMS:
        return float(sum(found.absmax for found in read[:2] if found is not None) ** 2)
    made = ranges.get(node.outputs[0].name or "")
    if not read or read[0] is None or made is None:
        return 0.0
    if node.op_type in _SQUARING:
        return read[0].absmax ** 2
    return _sum_behind(read[0], made) if node.op_type in SUMMING else 0.0


def _sum_behind(read: Range, made: Range) -> float:
    return made.absmax * (read.count / made.count) if made.count else made.absmax
