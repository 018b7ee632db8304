"""Int8 for models that predict text step by step: weights in blocks of eight bits."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convkit.onnx_structure import array_of
from convkit.quantization.block_nodes import Constants, operator_product, rows_of_table
from convkit.quantization.blocks import Blocks, quantized, symmetric
from convkit.quantization.graph_edits import replace_node
from convkit.quantization.layers import output_axis
from convkit.quantization.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_CACHE = "past_key_values"
"""What names of inputs begin with that hold keys and values of the text so far."""

_BLOCK = 32
"""Elements that share a scale. Of SmolLM2 on text 16 left a divergence of 0.003, 32 of 0.006, 64
and 128 of 0.011."""


def is_stepwise(model: ir.Model) -> bool:
    """Whether a model continues text token by token."""
    return any((value.name or "").startswith(_CACHE) for value in model.graph.inputs)


class BlockChanges:
    """Replaces products and look-ups by those of blocks, each weight once.

    MatMulNBits of eight bits rounds what it multiplies in blocks as well, so that the large numbers
    of few channels, which language models have, spoil 31 neighbours at most. On SmolLM2 the
    Kullback-Leibler divergence fell to 0.006, from 0.6 with one scale for all rows and 0.056 with
    one for each. A single row takes about as long as in DynamicQuantizeMatMul, 64 rows 2.4 times as
    long. Source: `scripts/bench-quantized-operators`.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self._folder = folder
        self._level = target.accuracy_level
        self._made: dict[tuple[ir.Value, bool, float], Blocks] = {}
        self._constants: dict[float, Constants] = defaultdict(dict)

    def multiply(self, node: ir.Node) -> None:
        """Puts MatMulNBits in the place of a product with a constant matrix."""
        weight = node.inputs[1]
        assert weight is not None
        alpha = node.attributes.get("alpha")
        factor = 1.0 if alpha is None else alpha.as_float()
        blocks = self._blocks(weight, output_axis(node) == 1, factor)
        made = operator_product(node, blocks, self._level, self._constants[factor])
        replace_node(node, made)

    def look_up(self, node: ir.Node) -> None:
        """Looks rows of a table up in blocks; the table may be a matrix as well."""
        table = node.inputs[0]
        assert table is not None
        blocks = self._blocks(table, False, 1.0)
        replace_node(node, rows_of_table(node, blocks, self._constants[1.0]))

    def _blocks(self, weight: ir.Value, is_turned: bool, factor: float) -> Blocks:
        key = (weight, is_turned, factor)
        if key not in self._made:
            array = array_of(weight.const_value, self._folder).astype(np.float32, copy=False)
            rows = np.ascontiguousarray(array.T if is_turned else array)
            if factor != 1.0:
                rows = rows * np.float32(factor)
            self._made[key] = quantized(rows, _BLOCK, partial(symmetric, bits=8), 8)
        return self._made[key]
