"""What a loaded ScriptModule tells of itself: nodes, attributes that it assigns, its reset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AttributePath = tuple[str, ...]
"""Where an attribute hangs: names from the outermost module down."""


def has_reset(module: Any) -> bool:
    """Whether the module has a `reset_states()` that needs no arguments."""
    schema = getattr(getattr(module, "reset_states", None), "schema", None)
    return schema is not None and all(a.has_default_value() for a in schema.arguments[1:])


def nodes_of(block: Any) -> Iterator[Any]:
    """All nodes of a graph or block, those of branches and loops included."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes_of(inner)


def attribute_path(node: Any, root: str) -> AttributePath | None:
    """Where the attribute of a GetAttr or SetAttr hangs; None if not below the module.

    Args:
        node: the node.
        root: name of the graph's first input, the module itself.
    """
    path = [node.s("name")]
    value = next(node.inputs())
    while value.debugName() != root:
        if value.node().kind() != "prim::GetAttr":
            return None
        path.append(value.node().s("name"))
        value = value.node().input()
    return tuple(reversed(path))


def assigned_attributes(module: Any) -> set[AttributePath]:
    """Paths of the attributes that `forward` assigns, submodules and branches included."""
    graph = module.inlined_graph
    root = next(graph.inputs()).debugName()
    assignments = (node for node in nodes_of(graph) if node.kind() == "prim::SetAttr")
    paths = {attribute_path(node, root) for node in assignments}
    return {path for path in paths if path is not None}
