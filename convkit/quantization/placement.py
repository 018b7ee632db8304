"""Which nodes compute in int8, and which values are therefore quantized.

Layers (products with constant weights) are the reason to quantize. Between them lie nodes that the
runtime also has in int8; such a node is taken where its values come from int8 and go to int8, so
that no pair of Q and DQ is left to cost time. Activations become the end of a range.

Source: onnxruntime, core/optimizer/qdq_transformer/selectors_actions (which operators between DQ
and Q are replaced, and what they ask of their scales).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convkit.onnx_structure import array_of
from convkit.quantization.layers import int_attribute, is_constant, is_float32, refusal_of
from convkit.quantization.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

MOVERS = frozenset(
    (
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "MaxPool",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
"""They move elements and change none: input and output have one scale."""

_UNARY = frozenset(("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"))
_JOINING = frozenset(("Add", "Mul", "Concat"))
_FOLDING = frozenset(("Conv", "Gemm", "MatMul", "Add", "Concat"))
"""Operators whose output an activation may end the range of."""

_MAX_POOL_OPSET = 12
"""The first with MaxPool of 8 bits. Source: ONNX Changelog.md, MaxPool-12."""


class Bounds(Protocol):
    """Smallest and largest number that a value is to hold."""

    @property
    def low(self) -> float:
        """The smallest."""

    @property
    def high(self) -> float:
        """The largest."""


@dataclass(frozen=True)
class Placement:
    """What is to compute in int8.

    Attributes:
        nodes: they do, in the graph's order.
        folded: node -> the activation behind it, which the range of its output replaces.
        spans: quantized value -> smallest and largest number that it holds; 0 is between them.
        reasons: layer that stays float -> why.
    """

    nodes: tuple[ir.Node, ...]
    folded: Mapping[ir.Node, ir.Node]
    spans: Mapping[ir.Value, tuple[float, float]]
    reasons: Mapping[ir.Node, str]

    def output_of(self, node: ir.Node) -> ir.Value:
        """What a node gives, its activation included."""
        return self.folded.get(node, node).outputs[0]


def place(
    model: ir.Model,
    folder: Path,
    ranges: Mapping[str, Bounds],
    target: Target,
    opset: int,
    keep: frozenset[str],
) -> Placement:
    """Decides on the untouched graph what computes in int8.

    Args:
        model: typed; constants are initializers.
        folder: where its weights lie.
        ranges: what its values hold.
        target: what it is for.
        opset: of ONNX's own operators.
        keep: names of nodes that stay float.
    """
    return _Placing(model, folder, ranges, target, opset, keep).placement()


class _Placing:
    def __init__(
        self,
        model: ir.Model,
        folder: Path,
        ranges: Mapping[str, Bounds],
        target: Target,
        opset: int,
        keep: frozenset[str],
    ) -> None:
        self._graph = model.graph
        self._folder = folder
        self._ranges = ranges
        self._target = target
        self._opset = opset
        self._keep = keep
        self._nodes: set[ir.Node] = set()
        self._folded: dict[ir.Node, ir.Node] = {}
        self._limits: dict[ir.Value, tuple[float, float]] = {}
        self._reasons: dict[ir.Node, str] = {}

    def placement(self) -> Placement:
        layers = {node for node in self._graph if self._is_layer(node)}
        carriers = {node for node in self._graph if self._may_carry(node)}
        self._nodes = layers | carriers
        for node in self._graph:
            if node in self._nodes:
                self._fold(node)
        pending = True
        while pending:
            idle = [node for node in carriers if not self._carries(node)]
            self._nodes.difference_update(idle)
            carriers.difference_update(idle)
            pending = bool(idle)
        folded = {node: act for node, act in self._folded.items() if node in self._nodes}
        self._folded = {
            node: act for node, act in folded.items() if self._is_quantized(act.outputs[0])
        }
        nodes = tuple(node for node in self._graph if node in self._nodes)
        return Placement(nodes, self._folded, self._spans(nodes), self._reasons)

    def _is_layer(self, node: ir.Node) -> bool:
        why = refusal_of(node)
        if why is None and node.name in self._keep:
            why = "kept"
        if why is None:
            data, out = node.inputs[0], node.outputs[0]
            assert data is not None
            needs = (data, out) if node.op_type == "Conv" else (data,)
            unseen = [v.name or "" for v in needs if not self._is_measured(v)]
            if unseen:
                why = f"{unseen[0]!r} held no finite numbers on the calibration data"
        if why:
            self._reasons[node] = why
        return why is None

    def _is_measured(self, value: ir.Value) -> bool:
        found = self._ranges.get(value.name or "")
        return found is not None and math.isfinite(found.low) and math.isfinite(found.high)

    def _may_carry(self, node: ir.Node) -> bool:
        if node.domain not in ("", "ai.onnx") or node.name in self._keep:
            return False
        if not all(map(is_float32, node.outputs)) or not all(map(is_float32, _data(node))):
            return False
        if not all(map(self._is_measured, (*_data(node), *node.outputs))):
            return False
        if node.op_type in MOVERS:
            return self._moves(node)
        if node.op_type in _JOINING:
            return not any(map(is_constant, _data(node)))
        return node.op_type in _UNARY

    def _moves(self, node: ir.Node) -> bool:
        if is_constant(_data(node)[0]):
            return False
        if node.op_type == "MaxPool":
            return len(node.outputs) == 1 and self._opset >= _MAX_POOL_OPSET
        if node.op_type == "Resize":
            mode = node.attributes.get("mode")
            return mode is None or mode.as_string() == "nearest"
        return True

    def _fold(self, node: ir.Node) -> None:
        """Takes the activation behind a node into the end of its range, where that is exact.

        Zero is the smallest number of an unsigned range and not of a symmetric one.
        """
        if node.op_type not in _FOLDING or self._target.has_symmetric_activations:
            return
        out = node.outputs[0]
        uses = list(out.uses())
        if len(uses) != 1 or out.is_graph_output():
            return
        activation = uses[0].node
        limits = self._limits_of(activation, out)
        if limits is None or activation.name in self._keep:
            return
        if self._is_measured(activation.outputs[0]):
            self._folded[node] = activation
            self._limits[activation.outputs[0]] = limits

    def _limits_of(self, node: ir.Node, value: ir.Value) -> tuple[float, float] | None:
        """Between what an activation keeps its values; None for any other node."""
        if node.domain not in ("", "ai.onnx") or node.graph is not self._graph:
            return None
        if node.op_type == "Relu":
            return 0.0, math.inf
        if node.op_type != "Clip" or node.inputs[0] is not value:
            return None
        low, high = self._bound(node, 1, "min", -math.inf), self._bound(node, 2, "max", math.inf)
        return None if low is None or high is None or not low <= 0 < high else (low, high)

    def _bound(self, node: ir.Node, index: int, name: str, default: float) -> float | None:
        if name in node.attributes:
            return node.attributes[name].as_float()
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return default
        if not is_constant(value):
            return None
        return float(array_of(value.const_value, self._folder).reshape(-1)[0])

    def _carries(self, node: ir.Node) -> bool:
        """Whether a node between layers has int8 before and behind it."""
        out = self._folded.get(node, node).outputs
        made = [self._comes_in_int8(value) for value in _data(node)]
        before = any(made) if node.op_type in _JOINING else all(made)
        return before and any(self._goes_to_int8(value) for value in out)

    def _comes_in_int8(self, value: ir.Value) -> bool:
        maker = value.producer()
        if maker is None:
            return False
        if maker in self._nodes:
            return self._folded.get(maker) is None
        before = maker.inputs[0].producer() if maker.inputs and maker.inputs[0] else None
        return before in self._nodes and self._folded.get(before) is maker

    def _goes_to_int8(self, value: ir.Value) -> bool:
        return any(
            use.node in self._nodes and value in _data(use.node)
            for use in value.uses()
            if use.node.graph is self._graph
        )

    def _is_quantized(self, value: ir.Value) -> bool:
        """Whether a value that an int8 node makes leaves it in int8."""
        maker = value.producer()
        is_ended = maker is not None and maker not in self._nodes
        if maker is not None and is_ended and maker.inputs[0] is not None:
            maker = maker.inputs[0].producer()
        if maker is not None and maker.op_type == "Gemm" and is_ended:
            return True  # the runtime would join a float activation to a float Gemm
        return (maker is not None and _must_give_int8(maker)) or self._goes_to_int8(value)

    def _spans(self, nodes: Iterable[ir.Node]) -> dict[ir.Value, tuple[float, float]]:
        spans: dict[ir.Value, tuple[float, float]] = {}
        for node in nodes:
            outputs = [self._folded.get(node, node).outputs[0], *node.outputs[1:]]
            made = [value for value in outputs if self._is_quantized(value)]
            for value in (*_data(node), *made):
                spans[value] = self._span(value)
        joined = _Joined(spans)
        for node in nodes:
            if node.op_type in MOVERS:
                for value in node.outputs:
                    joined.join(_data(node)[0], value, self._limits)
            elif node.op_type == "Concat":
                out = self._folded.get(node, node).outputs[0]
                for value in _data(node):
                    if len(value.uses()) == 1 and not value.is_graph_input():
                        joined.join(out, value, self._limits)
        return joined.spans()

    def _span(self, value: ir.Value) -> tuple[float, float]:
        """What a value holds, 0 included, within what its activation lets through."""
        found = self._ranges[value.name or ""]
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        limits = self._limits.get(value, (-math.inf, math.inf))
        return max(low, limits[0]), min(high, limits[1])


class _Joined:
    """Values that have one scale, as groups."""

    def __init__(self, spans: Mapping[ir.Value, tuple[float, float]]) -> None:
        self._own = dict(spans)
        self._first: dict[ir.Value, ir.Value] = {value: value for value in spans}

    def join(
        self, one: ir.Value, other: ir.Value, limits: Mapping[ir.Value, tuple[float, float]]
    ) -> None:
        """Gives two values one scale, unless one would then pass what its activation holds back."""
        first, second = self._leader(one), self._leader(other)
        if first is second:
            return
        low, high = (
            min(self._own[first][0], self._own[second][0]),
            max(self._own[first][1], self._own[second][1]),
        )
        members = [v for v in self._own if self._leader(v) in (first, second)]
        for value in members:
            floor, ceiling = limits.get(value, (-math.inf, math.inf))
            if low < floor or high > ceiling:
                return
        self._first[second] = first
        self._own[first] = (low, high)

    def spans(self) -> dict[ir.Value, tuple[float, float]]:
        return {value: self._own[self._leader(value)] for value in self._own}

    def _leader(self, value: ir.Value) -> ir.Value:
        while self._first[value] is not value:
            value = self._first[value]
        return value


def _data(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that are activations or joined with such."""
    inputs = node.inputs if node.op_type in _JOINING else node.inputs[:1]
    return [value for value in inputs if value is not None]


def data_inputs(node: ir.Node) -> list[int]:
    """Where a node that computes in int8 reads activations."""
    count = len(node.inputs) if node.op_type in _JOINING else 1
    return list(range(min(count, len(node.inputs))))


def _must_give_int8(node: ir.Node) -> bool:
    """Whether the runtime has the node in int8 only with an int8 output."""
    return node.op_type not in ("Gemm", "MatMul")


def is_channelwise(node: ir.Node) -> bool:
    """Whether a convolution has a kernel for each input channel alone."""
    return node.op_type == "Conv" and int_attribute(node, "group", 1) > 1
