"""Attention masks: very negative constants that only ever switch softmax entries off.

A mask such as -1e9 or float32's minimum is beyond fp16. It may become -30000 where that is
provably the same: the constant reaches nothing but Softmax, through operators that move elements,
select them (Where), multiply by whole numbers that were 0 or 1, or add scores that stayed within
+-8000 on the samples. There, exp(masked - largest) has an exponent of at most
8000 - (-8000) - 30000 = -14000, and of at most 16000 - 1e9 for the original. Both are 0 in fp16
and fp32 alike (exp(-104) already is), so every row with one entry left on is the same. Two masks
added still are a finite fp16 number: -60000. Anything else stays in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convkit.passes.onnx_half_constants import Constant
from convkit.passes.onnx_half_ranges import Ranges

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

MASK = -30000.0
"""What a mask becomes in fp16."""

_IS_MASK = -5000.0
"""Elements from here down switch off; elements between this and 0 are scores, not masks."""

_SCORE_LIMIT = 8000.0
_MAX_VALUES = 2000

_MOVING = frozenset((
    "Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat",
    "Split", "Slice", "Gather", "Expand", "Tile", "Trilu",
))  # fmt: skip


@dataclass
class Masks:
    """What the proof covers.

    Attributes:
        constants: constants that may take `MASK` for their masking elements.
        touched: values that hold masked elements; their low end needs no range.
    """

    constants: set[ir.Value] = field(default_factory=set)
    touched: set[ir.Value] = field(default_factory=set)


def find_masks(
    constants: Mapping[ir.Value, Constant], ranges: Ranges, whole: set[ir.Value]
) -> Masks:
    """The masks among the constants, with the proof above.

    Args:
        constants: every float constant.
        ranges: measured on samples; without them sums with scores cannot be proved.
        whole: values that are whole numbers by construction (casts of integers and booleans).
    """
    masks = Masks()
    candidates = [
        value
        for value, facts in constants.items()
        if facts.low <= _IS_MASK and facts.high <= _SCORE_LIMIT
    ]
    for group in (candidates, *([value] for value in candidates)):
        if not group or group[0] in masks.constants:
            continue
        touched = _reached(group)
        if all(_may_pass(v, touched, ranges, whole, constants) for v in touched):
            masks.constants |= set(group)
            masks.touched |= touched
    return masks


def mask_replaced(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`array` with masking elements below `MASK` raised to it; -inf stays."""
    import numpy as np

    return np.where(np.isfinite(array), np.maximum(array, MASK), array).astype(array.dtype)


def _reached(start: list[ir.Value]) -> set[ir.Value]:
    """Every value that elements of `start` get into, up to a Softmax."""
    seen: set[ir.Value] = set()
    waiting = list(start)
    while waiting and len(seen) <= _MAX_VALUES:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, _ in value.uses():
            if node.op_type != "Softmax":
                waiting.extend(node.outputs)
    return seen


def _may_pass(
    value: ir.Value,
    touched: set[ir.Value],
    ranges: Ranges,
    whole: set[ir.Value],
    constants: Mapping[ir.Value, Constant],
) -> bool:
    """Whether each use of a value that holds masks keeps them masks."""

    def is_score_or_mask(other: ir.Value | None) -> bool:
        if other is None or other in touched:
            return other is not None
        facts = constants.get(other)
        if facts is not None:
            return -_SCORE_LIMIT <= facts.low and facts.high <= _SCORE_LIMIT
        found = ranges.get(other.name or "")
        return found is not None and found.absmax <= _SCORE_LIMIT

    def switches(other: ir.Value | None) -> bool:
        found = ranges.get(other.name or "") if other is not None else None
        return other in whole and found is not None and 0 <= found.low and found.high <= 1

    if value.is_graph_output() or len(touched) > _MAX_VALUES:
        return False
    for node, index in value.uses():
        if node.op_type == "Where":
            passes = index > 0 and is_score_or_mask(node.inputs[3 - index])
        elif node.op_type == "Add":
            passes = is_score_or_mask(node.inputs[1 - index])
        elif node.op_type == "Mul":
            passes = switches(node.inputs[1 - index])
        else:
            moves = node.op_type in _MOVING and (index == 0 or node.op_type == "Concat")
            passes = moves or node.op_type == "Softmax"
        if not passes:
            return False
    return True
