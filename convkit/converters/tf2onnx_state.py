"""Variables that a SavedModel's signature writes to, found before TensorFlow loads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convkit.errors import UnsupportedError
from convkit.tensorflow_proto import Graph, Node, called_function, node_of
from convkit.tensorflow_reach import Reach
from convkit.tensorflow_signature import choose, saved_model

_WRITES = re.compile(
    r"^(Assign(Add|Sub)?(VariableOp)?|(Resource)?Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update))$"
)
_MAX_DEPTH = 16


def refuse_state(folder: Path, signature: str | None) -> None:
    """Looks at what the signature's outputs need.

    Raises:
        UnsupportedError: it changes variables; with their names.
    """
    with saved_model(folder) as meta:
        chosen = choose(meta.signatures, signature, folder)
        reach = Reach(meta.graph, [port.tensor for port in chosen.outputs])
        if not any(_WRITES.match(operator) for operator in reach.operators()):
            return
        needed = {node.name for node in reach.all_nodes()}
        nodes = [node for node in meta.graph.nodes if node.name in needed]
        found = list(dict.fromkeys(_written(meta.graph, nodes, {}, _MAX_DEPTH)))
    if found:
        raise UnsupportedError(
            "This TensorFlow graph changes variables while it runs; an ONNX graph keeps no state.",
            why=found[:5],
            hint="Give the state as an input and return its new value as an output.",
            nodes=found,
        )


def _written(
    graph: Graph, nodes: Sequence[Node], variables: Mapping[str, str], depth: int
) -> Iterator[str]:
    """Writes in these nodes and the functions they call; `variables` are those handed in."""
    makers = {node.name: node for node in nodes}

    def variable(tensor: str) -> str:
        name = node_of(tensor)
        node = makers.get(name)
        if node is not None and node.op == "Identity" and node.inputs:
            return variable(node.inputs[0])
        return variables.get(name, name)

    for node in nodes:
        if _WRITES.match(node.op):
            yield f"{node.op} in {node.name} changes variable '{variable(node.inputs[0])}'"
        function = called_function(graph, node) if depth else None
        if function is not None:
            given = [variable(tensor) for tensor in node.inputs]
            inner = dict(zip(function.arguments, given, strict=False))
            yield from _written(graph, function.nodes, inner, depth - 1)
