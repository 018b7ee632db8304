"""Inputs that an ONNX model makes sense of: indices inside the tables they look up, masks of ones.

An integer input is followed through operators that keep or reorder its values until it meets the
one that uses it: a lookup bounds it by the table's length, a comparison names a value it may have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from convkit.artifact import TensorSpec
from convkit.errors import ModelError
from convkit.formats.onnx_header import Header, NodeHeader, read_header
from convkit.protobuf import mapped, signed, varint
from convkit.samples import draw
from convkit.step import Feeds, Sizes

_KEEPS_VALUES = frozenset(
    ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Slice",
     "Expand", "Tile", "Concat", "Split", "Gather", "Pad", "DepthToSpace")
)  # fmt: skip
_KEEPS_TABLE = ("Cast", "DequantizeLinear", "Identity")
_LOOKUPS: Mapping[str, tuple[int, int, str]] = {
    "Gather": (0, 1, "axis"),
    "GatherElements": (0, 1, "axis"),
    "GatherBlockQuantized": (0, 1, "gather_axis"),
}
"""Operator -> index of the table, index of the indices, attribute that names the axis."""

_EMBED_PAIRS = ((0, 2), (1, 4))
"""EmbedLayerNormalization: input_ids look up input 2, segment_ids input 4 (ContribOperators.md)."""

_MAX_STEPS = 64


def draw_example(path: Path, specs: tuple[TensorSpec, ...], sizes: Sizes, seed: int) -> Feeds:
    """Seeded inputs for the model at `path` with these sizes for its dynamic dimensions.

    Raises:
        ModelError: an input holds strings or is no tensor, so nothing sensible can be drawn.
    """
    import numpy as np

    for spec in specs:
        if spec.dtype == "string" or "(" in spec.dtype:
            raise ModelError(
                f"Input '{spec.name}' of {path.name} is {spec.dtype}; none can be made up.",
                hint="Give real inputs:  --samples inputs.npz",
                input=spec.name,
            )
    feeds = dict(draw(specs, sizes, seed, input_ranges(path, specs)))
    for spec in specs:
        if spec.name.lower().endswith("mask"):
            feeds[spec.name] = np.ones_like(feeds[spec.name])
    return feeds


def input_ranges(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value that makes sense, for the integer inputs the graph tells of."""
    wanted = [spec.name for spec in specs if spec.dtype.startswith(("int", "uint"))]
    if not wanted:
        return {}
    uses = _Uses(read_header(path, with_nodes=True))
    ranges = {name: found for name in wanted if (found := uses.range_of(name)) is not None}
    for name in wanted:
        if name not in ranges and re.search(r"(token_)?type_?ids$|segment_ids$", name):
            ranges[name] = (0, 1)
    return ranges


class _Uses:
    """Who reads which value, and what tables there are."""

    def __init__(self, header: Header) -> None:
        self._path = header.path
        self._tensors = {tensor.name: tensor for tensor in header.initializers}
        self._makers = {name: node for node in header.nodes for name in node.outputs}
        self._readers: dict[str, list[NodeHeader]] = {}
        for node in header.nodes:
            for name in set(node.inputs):
                self._readers.setdefault(name, []).append(node)

    def range_of(self, name: str) -> tuple[float, float] | None:
        """The narrowest range that the readers of a value ask for."""
        bounds: list[int] = []
        chosen: list[int] = []
        waiting, seen = [name], {name}
        while waiting and len(seen) <= _MAX_STEPS:
            value = waiting.pop(0)
            for node in self._readers.get(value, ()):
                bounds += self._bounds(node, value)
                chosen += self._compared(node, value)
                if node.op_type in _KEEPS_VALUES and node.inputs[0] == value:
                    waiting += [made for made in node.outputs if made not in seen]
                    seen.update(node.outputs)
        if bounds:
            return 0, max(0, min(bounds))
        return (chosen[0], chosen[0]) if chosen else None

    def _bounds(self, node: NodeHeader, value: str) -> list[int]:
        """The highest index a lookup accepts, where its table's length is known."""
        if node.op_type == "EmbedLayerNormalization":
            lookups = [(t, i, 0) for i, t in _EMBED_PAIRS if max(t, i) < len(node.inputs)]
        elif node.op_type in _LOOKUPS and len(node.inputs) > 1:
            table, indices, axis = _LOOKUPS[node.op_type]
            lookups = [(table, indices, node.ints.get(axis, 0))]
        else:
            return []
        found = [
            self._length(node.inputs[table], axis) - 1
            for table, indices, axis in lookups
            if node.inputs[indices] == value
        ]
        return [highest for highest in found if highest >= 0]

    def _length(self, table: str, axis: int) -> int:
        """The size of a constant along an axis; 0 where the value is none."""
        for _ in range(_MAX_STEPS):
            tensor = self._tensors.get(table)
            if tensor is not None:
                rank = len(tensor.dims)
                return tensor.dims[axis] if -rank <= axis < rank else 0
            maker = self._makers.get(table)
            if maker is None or maker.op_type not in _KEEPS_TABLE or not maker.inputs:
                return 0
            table = maker.inputs[0]
        return 0

    def _compared(self, node: NodeHeader, value: str) -> list[int]:
        """The integer a value is compared with, which is one it may have (a sample rate)."""
        if node.op_type != "Equal" or len(node.inputs) != 2:
            return []
        other = node.inputs[1] if node.inputs[0] == value else node.inputs[0]
        tensor = self._tensors.get(other)
        if tensor is None or tensor.element_count != 1 or tensor.external:
            return []
        if tensor.dtype not in ("int64", "int32"):
            return []
        begin, end = tensor.payload
        with mapped(self._path) as data:
            if tensor.is_raw:
                return [int.from_bytes(data[begin:end], "little", signed=True)]
            return [signed(varint(data, begin, end)[0])] if end > begin else [0]
