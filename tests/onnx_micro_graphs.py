"""All small ONNX graphs, each with one thing that half precision converters trip over."""

from __future__ import annotations

from tests import onnx_micro_numbers, onnx_micro_structure  # noqa: F401 - they register graphs
from tests.onnx_micro_graph import BUILDERS, Feeds, MicroGraph

__all__ = ["Feeds", "MicroGraph", "micro_graphs"]


def micro_graphs() -> list[MicroGraph]:
    """All of them, freshly built; nodes get the names that exporters would give them."""
    graphs = [build() for build in BUILDERS]
    for graph in graphs:
        for index, node in enumerate(graph.model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
    return graphs
