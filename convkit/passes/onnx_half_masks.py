"""Attention masks: very negative constants that only ever switch softmax entries off.

A mask such as -1e9 or float32's minimum is beyond fp16. It may become -30000 where that is
provably the same: the constant reaches nothing but Softmax, through operators that move elements,
select them (Where), multiply by whole numbers that were 0 or 1, or add scores that stayed within
+-8000 on the samples. There, exp(masked - largest) has an exponent of at most
8000 - (-8000) - 30000 = -14000, and of at most 16000 - 1e9 for the original. Both are 0 in fp16
and fp32 alike (exp(-104) already is), so every row with one entry left on is the same. Two masks
added still are a finite fp16 number: -60000. Anything else stays in fp32.

Operators that are a whole attention add a mask to scores that nobody sees. Those are products of
heads, so size x |query| x |key| x scale bounds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convkit.passes.onnx_half_constants import Constant
from convkit.quantization.value_range import Ranges

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


_ATTENTION: Mapping[tuple[str, str], int] = {
    ("", "Attention"): 3, ("com.microsoft", "MultiHeadAttention"): 5,
    ("com.microsoft", "GroupQueryAttention"): 10,
}  # fmt: skip
"""Attention in one operator -> which input is added to its scores; the first two make them.

Source: onnx, docs/Operators.md; onnxruntime, docs/ContribOperators.md.
"""
_CHANGING = {"MultiHeadAttention": (3,), "GroupQueryAttention": (14, 15)}
"""Inputs that change queries and keys beforehand: biases and norms."""


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
        proof = _Proof(_reached(group), ranges, whole, constants)
        if proof.holds():
            masks.constants |= set(group)
            masks.touched |= proof.touched
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
        for node, index in value.uses():
            if node.op_type != "Softmax" and not _is_added_to_scores(node, index):
                waiting.extend(node.outputs)
    return seen


def _is_added_to_scores(node: ir.Node, index: int) -> bool:
    return _ATTENTION.get((node.domain, node.op_type)) == index


@dataclass(frozen=True)
class _Proof:
    """Whether masks stay masks on all their ways; `touched` is every value they reach."""

    touched: set[ir.Value]
    ranges: Ranges
    whole: set[ir.Value]
    constants: Mapping[ir.Value, Constant]

    def holds(self) -> bool:
        if len(self.touched) > _MAX_VALUES:
            return False
        return all(
            not value.is_graph_output() and all(self._passes(*use) for use in value.uses())
            for value in self.touched
        )

    def _passes(self, node: ir.Node, index: int) -> bool:
        if _is_added_to_scores(node, index):
            return self._largest_score(node) <= _SCORE_LIMIT
        if node.op_type == "Where":
            return index > 0 and self._is_score_or_mask(node.inputs[3 - index])
        if node.op_type == "Add":
            return self._is_score_or_mask(node.inputs[1 - index])
        if node.op_type == "Mul":
            return self._switches(node.inputs[1 - index])
        moves = node.op_type in _MOVING and (index == 0 or node.op_type == "Concat")
        return moves or node.op_type == "Softmax"

    def _is_score_or_mask(self, value: ir.Value | None) -> bool:
        if value is None or value in self.touched:
            return value is not None
        facts = self.constants.get(value)
        if facts is not None:
            return facts.low >= -_SCORE_LIMIT and facts.high <= _SCORE_LIMIT
        found = self.ranges.get(value.name or "")
        return found is not None and found.absmax <= _SCORE_LIMIT

    def _largest_score(self, node: ir.Node) -> float:
        """A bound on the scores inside an attention; infinite where nothing tells one."""
        query, key = (self.ranges.get(v.name or "") if v else None for v in node.inputs[:2])
        size = _head_size(node)
        given = [v for i, v in enumerate(node.inputs) if i in _CHANGING.get(node.op_type, ())]
        if query is None or key is None or size is None or any(given):
            return math.inf
        scale = _number(node, "scale") or 1 / math.sqrt(size)
        turned = 2 if _number(node, "do_rotary") else 1  # each by a root of 2
        return size * query.absmax * key.absmax * scale * turned

    def _switches(self, value: ir.Value | None) -> bool:
        """A whole number that was 0 or 1 on the samples."""
        found = self.ranges.get(value.name or "") if value is not None else None
        return value in self.whole and found is not None and found.low >= 0 and found.high <= 1


def _head_size(node: ir.Node) -> int | None:
    """Numbers in a head, from the shapes of queries, keys or the cache; None where none tells."""
    for value in (*node.inputs[:2], *node.inputs[3:7]):
        shape = value.shape if value is not None else None
        last = shape[-1] if shape else None
        if shape and isinstance(last, int) and len(shape) == 4:
            return last
        heads = _number(node, "num_heads") or _number(node, "q_num_heads")
        if shape and isinstance(last, int) and heads and value is node.inputs[0]:
            return last // int(heads)
    return None


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return float(attribute.value) if attribute is not None else 0.0
