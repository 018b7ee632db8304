"""Which tensor of an ONNX graph is the output of which PyTorch module, by the weights behind it.

Graphs that are built instead of traced have no scopes; their weights are called as the network
calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convkit.exposing import ExposedGraph

_PARAMETERS = {"weight", "bias"}


def parameter_values(graph: ExposedGraph, modules: Mapping[str, Any]) -> dict[str, str]:
    """Value name -> path of the PyTorch module whose output it should be.

    It is the output of the last node that reads the module's weight and bias. A module whose
    weights are read more than once, or that computes more than they tell, is left out.
    """
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(index)
    found = {}
    for path, module in modules.items():
        own = [name for name, _ in module.named_parameters()]
        reading = [readers.get(f"{path}.{name}", []) for name in own]
        if own and all(len(nodes) == 1 for nodes in reading) and _is_plain(module, own):
            last = max(index for nodes in reading for index in nodes)
            found[graph.nodes[last].outputs[0]] = path
    return found


def _is_plain(module: Any, names: list[str]) -> bool:
    """Whether a module is a product, a norm or a table, and nothing around it."""
    import torch

    is_scaled = isinstance(module, torch.nn.Embedding) and type(module) is not torch.nn.Embedding
    return _PARAMETERS.issuperset(names) and not is_scaled
