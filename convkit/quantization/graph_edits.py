"""Changes of a graph that passes of quantization share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_typing import graphs_of

if TYPE_CHECKING:
    import onnx_ir as ir


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph, or the body, that a node is in."""
    graph = node.graph
    assert graph is not None
    return graph


def home_of(value: ir.Value, node: ir.Node) -> ir.Graph:
    """The graph that a value is defined in, whose bodies can read what is made of it.

    Args:
        value: read by `node`.
        node: whose graph it is where nobody knows.
    """
    return value.graph if value.graph is not None else graph_of(node)


def drop_unread(model: ir.Model) -> None:
    """Removes nodes and initializers that nobody reads, of bodies as well, in place."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    for graph in graphs_of(model.graph):
        for value in list(graph.initializers.values()):
            if not value.uses() and not value.is_graph_output() and value.name:
                del graph.initializers[value.name]


def constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """A new initializer of a graph, called `name` or, where that is taken, by a number behind."""
    import onnx_ir as ir

    free, count = name, 1
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def replace_node(node: ir.Node, made: Sequence[ir.Node]) -> None:
    """Puts nodes in the place of one; outputs of the last become its outputs, names and all."""
    graph = graph_of(node)
    graph.insert_before(node, made)
    names = [value.name for value in node.outputs]
    for old, new in zip(node.outputs, made[-1].outputs, strict=False):
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for name, old, new in zip(names, node.outputs, made[-1].outputs, strict=False):
        old.name, new.name = None, name
