"""Values whose channels can be scaled together, and the layers that make and read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.onnx_structure import array_of
from convkit.quantization.layers import (
    element_count,
    is_constant,
    is_float32,
    rank_of,
    refusal_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_HOMOGENEOUS = frozenset(
    (
        "AveragePool",
        "Clip",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LeakyRelu",
        "MaxPool",
        "PRelu",
        "Relu",
    )
)
"""f(s x) = s f(x) for s > 0 in each channel. Clip is where it starts at 0 and up to its end."""

_RESHAPING = frozenset(("Flatten", "Reshape", "Squeeze"))


@dataclass(frozen=True)
class ChannelClass:
    """Values whose channels are scaled alike.

    Attributes:
        values: all of them.
        makers: layers that make one.
        readers: layers that read one, with that.
        ceiling: where a Clip ends them; infinity without one.
        axis: of the channels.
    """

    values: tuple[ir.Value, ...]
    makers: tuple[ir.Node, ...]
    readers: tuple[tuple[ir.Node, ir.Value], ...]
    ceiling: float
    axis: int = 1


def channel_classes(model: ir.Model, folder: Path) -> list[ChannelClass]:
    """The classes that layers alone make and read, so that scales can go into their weights."""
    found = _Classes(model.graph, folder)
    return found.closed()


class _Classes:
    def __init__(self, graph: ir.Graph, folder: Path) -> None:
        self._graph = graph
        self._folder = folder
        self._first: dict[ir.Value, ir.Value] = {}
        self._fixed: set[ir.Value] = set()
        self._ceilings: dict[ir.Value, float] = {}
        self._makers: list[tuple[ir.Node, ir.Value]] = []
        self._readers: list[tuple[ir.Node, ir.Value]] = []
        for value in (*graph.inputs, *graph.outputs):
            self._fixed.add(value)
        for node in graph:
            self._visit(node)

    def closed(self) -> list[ChannelClass]:
        fixed = {self._leader(value) for value in self._fixed}
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in list(self._first):
            members.setdefault(self._leader(value), []).append(value)
        classes = []
        for leader, values in members.items():
            makers = tuple(node for node, v in self._makers if self._leader(v) is leader)
            readers = tuple((node, v) for node, v in self._readers if self._leader(v) is leader)
            shapes = {_channels(value) for value in values}
            if leader in fixed or not makers or not readers or len(shapes) != 1 or None in shapes:
                continue
            ceiling = min(self._ceilings.get(value, math.inf) for value in values)
            classes.append(ChannelClass(tuple(values), makers, readers, ceiling))
        return classes

    def _visit(self, node: ir.Node) -> None:
        """Joins what a node passes on, notes what a layer takes in, and fixes all else."""
        if node.domain in ("", "ai.onnx"):
            if refusal_of(node) is None and self._is_free(node):
                assert node.inputs[0] is not None
                self._readers.append((node, node.inputs[0]))
                self._makers.append((node, node.outputs[0]))
                self._leader(node.inputs[0])
                self._leader(node.outputs[0])
                return
            if self._passes(node):
                for value in self._data(node):
                    self._join(value, node.outputs[0])
                return
        for each in (*node.inputs, *node.outputs):
            if each is not None and is_float32(each) and not is_constant(each):
                self._fixed.add(each)
        for attribute in node.attributes.values():
            self._fix_inside(attribute)

    def _fix_inside(self, attribute: ir.Attr) -> None:
        import onnx_ir as ir

        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                self._fixed.update(v for v in inner.inputs if v is not None)

    def _is_free(self, node: ir.Node) -> bool:
        """Whether the channels that a layer reads and makes are those on axis 1."""
        data = node.inputs[0]
        if data is None or _channels(data) is None or _channels(node.outputs[0]) is None:
            return False
        return node.op_type == "Conv" or rank_of(data) == 2

    def _passes(self, node: ir.Node) -> bool:
        if len(node.outputs) != 1 or not is_float32(node.outputs[0]):
            return False
        if node.op_type in _HOMOGENEOUS:
            return node.op_type != "Clip" or self._ends(node)
        if node.op_type == "Add":
            return self._adds_channels(node)
        return node.op_type in _RESHAPING and self._keeps_channels(node)

    def _data(self, node: ir.Node) -> list[ir.Value]:
        values = node.inputs if node.op_type == "Add" else node.inputs[:1]
        return [value for value in values if value is not None]

    def _ends(self, node: ir.Node) -> bool:
        """Whether a Clip starts at 0; its end is a ceiling then."""
        bounds = []
        for index, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
            value = node.inputs[index] if index < len(node.inputs) else None
            if name in node.attributes:
                bounds.append(node.attributes[name].as_float())
            elif value is None:
                bounds.append(default)
            elif is_constant(value):
                bounds.append(float(array_of(value.const_value, self._folder).reshape(-1)[0]))
            else:
                return False
        if bounds[0] != 0 or bounds[1] <= 0:
            return False
        self._ceilings[node.outputs[0]] = bounds[1]
        return True

    def _adds_channels(self, node: ir.Node) -> bool:
        first, second = node.inputs[0], node.inputs[1]
        if first is None or second is None or is_constant(first) or is_constant(second):
            return False
        counts = {_channels(first), _channels(second), _channels(node.outputs[0])}
        ranks = {rank_of(first), rank_of(second)}
        return len(counts) == 1 and None not in counts and len(ranks) == 1

    def _keeps_channels(self, node: ir.Node) -> bool:
        """Whether (batch, channels, 1, 1) becomes (batch, channels)."""
        data, out = node.inputs[0], node.outputs[0]
        if data is None or data.shape is None or rank_of(out) != 2:
            return False
        sides = [data.shape[axis] for axis in range(2, len(data.shape))]
        return all(side == 1 for side in sides) and _channels(data) == _channels(out)

    def _join(self, one: ir.Value, other: ir.Value) -> None:
        first, second = self._leader(one), self._leader(other)
        if first is not second:
            self._first[second] = first

    def _leader(self, value: ir.Value) -> ir.Value:
        first = self._first.setdefault(value, value)
        while self._first[first] is not first:
            first = self._first[first]
        return first


def _channels(value: ir.Value) -> int | None:
    """Size of axis 1; None where it is unknown."""
    if value.shape is None or len(value.shape) < 2 or element_count(value):
        return None
    size = value.shape[1]
    return size if isinstance(size, int) else None
