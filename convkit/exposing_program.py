"""Runs a PyTorch program that was made from ONNX so that it shows tensors by their ONNX names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convkit.artifact import TensorSpec
from convkit.exposing import Exposed
from convkit.step import Feeds, Outputs

_NOTE = "custom"
_NAME = "onnx"
"""Where the importer leaves a value's ONNX name: `node.meta["custom"]["onnx"]`, kept in a .pt2."""


class ExposedProgram(Exposed):
    """An exported program; keys are the ONNX names its nodes carry."""

    def __init__(self, network: Any) -> None:
        self.outputs = ()
        self._network = network
        self._nodes = named_nodes(network)
        self.names = tuple(self._nodes)
        tree = getattr(network, "_in_spec", None)
        places = [node.name for node in network.graph.nodes if node.op == "placeholder"]
        self.inputs = tuple(TensorSpec(name, "", ()) for name in places)
        self._tree = tree

    def run(self, keys: Sequence[str], feeds: Feeds) -> Outputs:
        """The program's outputs and the values of these names."""
        import torch
        from torch.utils import _pytree

        from convkit.torch_values import named_tensors, to_array, to_tensor

        wanted = {self._nodes[key].name: key for key in keys if key in self._nodes}
        caught: dict[str, Any] = {}

        class Watching(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                result = super().run_node(n)
                if n.name in wanted and isinstance(result, torch.Tensor):
                    caught[wanted[n.name]] = to_array(result.clone())
                return result

        values = [to_tensor(array) for array in feeds.values()]
        named: Mapping[str, Any] = {}
        if self._tree is not None:
            positional, named = _pytree.tree_unflatten(values, self._tree)
            values = [*positional, *named.values()]
        with torch.inference_mode():
            result = Watching(self._network).run(*values)
        outputs = {name: to_array(tensor) for name, tensor in named_tensors(result)}
        self.outputs = tuple(outputs)
        return {**outputs, **caught}


def named_nodes(network: Any) -> dict[str, Any]:
    """ONNX name -> the node of an exported program that makes the value; empty for others."""
    graph = getattr(network, "graph", None)
    found = {}
    for node in getattr(graph, "nodes", ()):
        name = (node.meta.get(_NOTE) or {}).get(_NAME)
        if name:
            found[name] = node
    return found
