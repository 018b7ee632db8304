"""Which layers became slower or faster: two profiles of one network, matched layer by layer.

The runtime renames what it fuses: after the node with a suffix, or after the value that it gives.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.explaining_profile import Node, Profile
from convkit.onnx_folder import graph_file

if TYPE_CHECKING:
    import onnx

REST = "everything else"

_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant|_Q\d+(G\d+)?|/\w+Fusion|_matmul_nbits)$")
"""What ONNX Runtime and its quantizers put behind a name."""
_PREFIX = "fused "
_KINDS = {
    "Conv": "conv", "FusedConv": "conv", "QLinearConv": "conv", "ConvInteger": "conv",
    "ConvTranspose": "conv", "QLinearConvTranspose": "conv", "NhwcFusedConv": "conv",
    "MatMul": "matmul", "FusedMatMul": "matmul", "Gemm": "matmul", "FusedGemm": "matmul",
    "QLinearMatMul": "matmul", "QGemm": "matmul", "MatMulInteger": "matmul",
    "MatMulIntegerToFloat": "matmul", "DynamicQuantizeMatMul": "matmul",
    "MatMulNBits": "matmul", "MatMulBnb4": "matmul",
    "LSTM": "recurrent", "GRU": "recurrent", "RNN": "recurrent",
    "DynamicQuantizeLSTM": "recurrent",
}  # fmt: skip
_STEPS = 8
"""Operators between a layer and the value that a fused node is called after."""


@dataclass(frozen=True)
class LayerChange:
    """A layer in both models; `operator` is what it runs as now."""

    name: str
    operator: str
    ms: float
    reference_ms: float

    def to_json(self) -> dict[str, Any]:
        """One entry of `layers`."""
        return {
            "name": self.name,
            "operator": self.operator,
            "ms": round(self.ms, 6),
            "reference_ms": round(self.reference_ms, 6),
        }


def changes(
    reference_path: Path, reference: Profile, path: Path, profile: Profile
) -> list[LayerChange]:
    """Layers of both models, the largest change first, and at the end what is no layer of both."""
    left = _layer_times(_Source(reference_path), reference)
    right = _layer_times(_Source(path), profile)
    shared = [name for name in left if name in right]
    found = [LayerChange(name, right[name][1], right[name][0], left[name][0]) for name in shared]
    found.sort(key=lambda change: -abs(change.ms - change.reference_ms))
    rest = profile.total_ms - sum(change.ms for change in found)
    before = reference.total_ms - sum(change.reference_ms for change in found)
    return [*found, LayerChange(REST, "", max(0.0, rest), max(0.0, before))]


class _Source:
    """A graph as its file has it: the names that both models share."""

    def __init__(self, path: Path) -> None:
        import onnx

        nodes = onnx.load(graph_file(path), load_external_data=False).graph.node
        self._givers: dict[str, onnx.NodeProto] = {
            value: node for node in nodes for value in node.output if value
        }
        self._layers = {_bare(node.name) for node in nodes if node.op_type in _KINDS and node.name}

    def layer(self, node: Node) -> str | None:
        """The layer that a node of the running graph stands for."""
        if node.name in self._layers or _bare(node.name) in self._layers:
            return _bare(node.name)
        names = (node.name, _bare(node.name), *node.outputs)
        value = next((name for name in names if name in self._givers), None)
        return None if value is None else self._walk(value)

    def _walk(self, value: str) -> str | None:
        """The layer before a value, through operators of one input that were fused into it."""
        for _ in range(_STEPS):
            giver = self._givers.get(value)
            if giver is None:
                return None
            if giver.op_type in _KINDS:
                return _bare(giver.name) or giver.output[0]
            value = giver.input[0] if giver.input else ""
        return None


def _bare(name: str) -> str:
    """A name without what fusing and quantizing put around it."""
    name = name.removeprefix(_PREFIX)
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def _layer_times(source: _Source, profile: Profile) -> Mapping[str, tuple[float, str]]:
    """Layer -> milliseconds and operator; what cannot be told from its name goes by its place."""
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in _layer_nodes(profile):
        groups[source.layer(node) or node.name].append(node)
    return {
        name: (sum(node.ms for node in nodes), nodes[0].op_type) for name, nodes in groups.items()
    }


def _layer_nodes(profile: Profile) -> Iterable[Node]:
    return (node for node in profile.nodes if node.op_type in _KINDS)
