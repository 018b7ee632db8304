"""Products with weights in blocks: the nodes that stand for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.errors import UnsupportedError
from convkit.naming import listed
from convkit.onnx_structure import array_of
from convkit.onnx_typing import nodes_of
from convkit.quantization.block_nodes import (
    Constants,
    blocked_product,
    operator_product,
    product_of_codes,
    rows_of_table,
)
from convkit.quantization.blocks import Blocks, Round, affine, quantized, symmetric
from convkit.quantization.graph_edits import drop_unread, replace_node
from convkit.quantization.half_quadratic import half_quadratic
from convkit.quantization.layers import (
    element_count,
    int_attribute,
    is_constant,
    is_float32,
    output_axis,
    rank_of,
    refusal_of,
)
from convkit.step import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from convkit.quantization.calibration_data import CalibrationData

Array = np.ndarray[Any, Any]

FLOATING = ("nf4", "fp4")
"""Schemes whose levels are no even steps."""

_SMALLEST_WEIGHT = 4096
"""Elements below which a weight stays float: scales and names take what four bits save."""

_WIDE_BLOCKS = (128, 64)
"""Weights of eight bits that share a scale, where they fill a row; else 32."""

_NAMES_SHOWN = 6

Known = dict[tuple[str, bool, float], Blocks]
"""(weight, whether it lies turned, its factor) -> its blocks."""


@dataclass(frozen=True)
class BlockSettings:
    """How weights become blocks.

    Attributes:
        scheme: `rtn`, `hqq`, `gptq`, `nf4` or `fp4`.
        block: weights that share a scale.
        is_symmetric: no offsets, which blocks of `rtn` and `gptq` have else, nor zero points, which
            those of `hqq` have.
        accuracy_level: of MatMulNBits.
        has_kernels: MatMulNBits serves; else DequantizeLinear of blocks, of opset 21.
        head_bits: of tables and of the products that give the outputs of the model: 8 or 4; 32
            leaves them float.
        data: samples that `gptq` rounds for; without any it is `rtn`.
        known: blocks made so far, kept for models that are quantized several times.
    """

    scheme: str = "rtn"
    block: int = 32
    is_symmetric: bool = True
    accuracy_level: int = 4
    has_kernels: bool = True
    head_bits: int = 8
    data: CalibrationData | None = None
    known: Known | None = None


def quantize_blocks(
    model: ir.Model,
    folder: Path,
    settings: BlockSettings,
    *,
    keep: frozenset[str] = frozenset(),
    note: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Quantizes products with constant matrices and tables to blocks, in place.

    A weight is read, quantized and let go before the next.

    Args:
        model: typed.
        folder: where its weights lie.
        settings: how.
        keep: names of nodes that stay float.
        note: takes sentences for the report.
        progress: hears how many bytes of weights are done.

    Raises:
        UnsupportedError: nothing in it can be quantized.
    """
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    changes = _Changes(model, folder, settings)
    nodes = [n for n in nodes_of(model.graph) if n.name not in keep and n.domain in ("", "ai.onnx")]
    changes.look_at(nodes, progress or _unheard)
    total = sum(changes.bytes_of(node) for node in nodes)
    done = 0
    for node in nodes:
        size = changes.bytes_of(node)
        if size and progress is not None:
            progress("blocks", done, total, "B")
        changes.quantize(node)
        done += size
    if not changes.count:
        raise UnsupportedError(
            "There is nothing in the model to quantize to four bits.",
            why="It has no product with a constant matrix of at least "
            f"{_SMALLEST_WEIGHT} weights, and no such table.",
            hint="Convolutions become int8:  --int8",
        )
    drop_unread(model)
    common.NameFixPass()(model)
    if any(node.domain == "com.microsoft" for node in nodes_of(model.graph)):
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    if changes.small:
        note(f"fp32: too small to gain: {listed(changes.small, _NAMES_SHOWN)}.")
    if changes.convolutions:
        note(f"{changes.convolutions} convolutions stay in fp32: no kernel reads them in blocks.")


class _Changes:
    """Replaces nodes, each weight once.

    Attributes:
        count: nodes that were replaced.
        convolutions: those seen, which stay.
        small: names of products that stay because they are small.
    """

    def __init__(self, model: ir.Model, folder: Path, settings: BlockSettings) -> None:
        self.count = self.convolutions = 0
        self.small: list[str] = []
        self._folder = folder
        self._settings = settings
        self._model = model
        self._made: Known = {} if settings.known is None else settings.known
        self._moments: Mapping[str, Array] = {}
        self._constants: defaultdict[tuple[bool, float], Constants] = defaultdict(dict)
        outputs = {value for value in model.graph.outputs}
        self._heads = {node for node in model.graph if outputs & set(node.outputs)}

    def look_at(self, nodes: Sequence[ir.Node], progress: Progress) -> None:
        """Prepares to see what the weights of nodes multiply on data, where the scheme asks."""
        from convkit.quantization.second_moments import StagedMoments

        settings = self._settings
        if settings.scheme != "gptq" or settings.data is None:
            return
        own = [n for n in nodes if n.graph is self._model.graph and n.op_type in ("MatMul", "Gemm")]
        inputs, lengths = {}, {}
        for node in own:
            data, weight = node.inputs[:2]
            if self.bytes_of(node) < 4 * _SMALLEST_WEIGHT or data is None or weight is None:
                continue
            if node.name and data.name and self._bits(node, weight) == 4:
                inputs[node.name] = data.name
                lengths[data.name] = element_count(weight) // _output_count(node, weight)
        self._moments = StagedMoments(
            self._model, self._folder, inputs, lengths, settings.data, progress
        )

    def bytes_of(self, node: ir.Node) -> int:
        """Of the weight that would be quantized; 0 where there is none."""
        if node.op_type in ("MatMul", "Gemm") and refusal_of(node) is None:
            weight = node.inputs[1]
        elif self._is_table(node):
            weight = node.inputs[0]
        else:
            return 0
        assert weight is not None
        return 4 * element_count(weight)

    def quantize(self, node: ir.Node) -> None:
        """Quantizes a node whose weight is large enough."""
        self.convolutions += node.op_type == "Conv" and refusal_of(node) is None
        if not self.bytes_of(node):
            return
        if self.bytes_of(node) < 4 * _SMALLEST_WEIGHT:
            self.small.append(node.name or node.op_type)
        elif node.op_type == "Gather":
            self._look_up(node)
        else:
            self._multiply(node)

    def _is_table(self, node: ir.Node) -> bool:
        table = node.inputs[0] if node.op_type == "Gather" else None
        return (
            table is not None
            and is_constant(table)
            and is_float32(table)
            and rank_of(table) == 2
            and int_attribute(node, "axis", 0) == 0
            and node.inputs[1] is not None
            and node.inputs[1].shape is not None
        )

    def _bits(self, node: ir.Node, weight: ir.Value) -> int:
        """Of a weight: more for tables, and for what gives the outputs."""
        is_head = node in self._heads or any(self._is_table(use.node) for use in weight.uses())
        return self._settings.head_bits if is_head else 4

    def _multiply(self, node: ir.Node) -> None:
        settings, weight = self._settings, node.inputs[1]
        assert weight is not None
        bits = self._bits(node, weight)
        if bits == 32:
            return
        is_turned = output_axis(node) == 1  # (inputs, outputs)
        constants = self._constants[is_turned, _factor(node)]
        if settings.scheme in FLOATING and bits == 4:
            rows = self._rows(node, weight, is_turned)
            made = product_of_codes(node, rows, settings.scheme, settings.block, constants)
        else:
            blocks = self._blocks(node, weight, is_turned, bits)
            if settings.has_kernels:
                level = settings.accuracy_level
                made = operator_product(node, blocks, level, constants)
            else:
                made = blocked_product(node, blocks, constants)
        replace_node(node, made)
        self.count += 1

    def _look_up(self, node: ir.Node) -> None:
        table = node.inputs[0]
        assert table is not None
        bits = self._bits(node, table)
        if bits == 32:
            return
        blocks = self._blocks(node, table, False, bits)
        replace_node(node, rows_of_table(node, blocks, self._constants[False, 1.0]))
        self.count += 1

    def _rows(self, node: ir.Node, weight: ir.Value, is_turned: bool) -> Array:
        """What a node multiplies with, or looks up: (outputs, inputs)."""
        array = array_of(weight.const_value, self._folder).astype(np.float32, copy=False)
        factor = _factor(node)
        if factor != 1.0:
            array = array * np.float32(factor)
        return np.ascontiguousarray(array.T) if is_turned else array

    def _blocks(self, node: ir.Node, weight: ir.Value, is_turned: bool, bits: int) -> Blocks:
        key = (weight.name or "", is_turned, _factor(node))
        if key not in self._made:
            if len(weight.uses()) == 1 and self._settings.known is None:
                return self._quantized(node, weight, is_turned, bits)
            self._made[key] = self._quantized(node, weight, is_turned, bits)
        return self._made[key]

    def _quantized(self, node: ir.Node, weight: ir.Value, is_turned: bool, bits: int) -> Blocks:
        settings = self._settings
        rows = self._rows(node, weight, is_turned)
        if bits == 8:
            block = next((size for size in _WIDE_BLOCKS if rows.shape[1] % size == 0), 32)
            return quantized(rows, block, partial(symmetric, bits=8), 8)
        made = quantized(rows, settings.block, self._rounding(node, rows.shape[1]))
        moment = self._moments.get(node.name or "")
        if moment is None:
            return made
        from convkit.quantization.gptq import compensated_blocks

        return compensated_blocks(rows, made, moment)

    def _rounding(self, node: ir.Node, length: int) -> Round:
        settings, data = self._settings, node.inputs[0]
        if settings.is_symmetric:
            return symmetric
        if settings.scheme == "hqq":
            return half_quadratic
        # Sums of blocks need whole ones, and a value whose rank is known.
        has_sums = length % settings.block == 0 and data is not None and data.shape is not None
        return affine if has_sums and settings.has_kernels else symmetric


def _output_count(node: ir.Node, weight: ir.Value) -> int:
    assert weight.shape is not None
    return int(weight.shape.numpy()[output_axis(node)])


def _unheard(what: str, done: int, total: int | None, unit: str = "") -> None:
    """Progress that nobody follows."""


def _factor(node: ir.Node) -> float:
    """What Gemm multiplies its product with."""
    alpha = node.attributes.get("alpha")
    return 1.0 if alpha is None else alpha.as_float()
