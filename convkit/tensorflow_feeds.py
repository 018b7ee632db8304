"""Arrays for a TensorFlow graph: in its order and types, and inputs it makes sense of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.errors import ModelError, SamplesError, UnsupportedError
from convkit.tensorflow_signature import Port

if TYPE_CHECKING:
    from convkit.tensorflow_graph import FrozenGraph

_KEEPS_VALUES = frozenset(
    ("Cast", "Reshape", "ExpandDims", "Squeeze", "Transpose", "Identity", "StridedSlice", "Tile",
     "ConcatV2", "Pack", "BroadcastTo", "Slice", "Pad", "PadV2", "ClipByValue", "StopGradient",
     "SelectV2", "Select")
)  # fmt: skip
_LOOKUPS: Mapping[str, tuple[int, int]] = {"GatherV2": (0, 1), "Gather": (0, 1)}
"""Operator -> index of the table, index of the indices."""

_MAX_STEPS = 64


def arranged(feeds: Mapping[str, Any], ports: Sequence[Port]) -> list[Any]:
    """The arrays of a graph's inputs in its order; text becomes bytes.

    Raises:
        SamplesError: an input is missing.
    """
    import numpy as np

    arrays = []
    for port in ports:
        if port.name not in feeds:
            raise SamplesError(
                f"The model takes '{port.name}', which the inputs lack.",
                why=f"They have: {', '.join(feeds)}",
            )
        array = np.asarray(feeds[port.name])
        if port.spec.dtype == "string" and array.dtype.kind in "US":
            text = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
            array = text.astype(object)
        arrays.append(array)
    return arrays


def draw_example(
    model: str,
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    frozen: Callable[[], FrozenGraph],
    *,
    looks_up: bool = True,
) -> dict[str, Any]:
    """Seeded inputs for these sizes of the dynamic dimensions.

    Args:
        model: its name, for messages.
        specs: what it takes.
        sizes: sizes of dynamic dimensions.
        seed: the same seed and sizes give the same arrays.
        frozen: gives its graph; called where an input may hold ids.
        looks_up: whether the graph looks anything up in a table, so that floats may be ids too.

    Raises:
        ModelError: an input holds text, so nothing sensible can be made up.
    """
    import numpy as np

    from convkit.samples import draw

    strings = [spec.name for spec in specs if spec.dtype == "string"]
    if strings:
        raise ModelError(
            f"Input '{strings[0]}' of {model} is string; none can be made up.",
            hint="Give real inputs:  --samples inputs.npz",
            input=strings[0],
        )
    kinds = ("int", "uint", "float") if looks_up else ("int", "uint")
    ids = [spec.name for spec in specs if spec.dtype.startswith(kinds)]
    ranges: dict[str, tuple[float, float]] = {}
    with contextlib.suppress(UnsupportedError):  # without a frozen graph nothing is known of ids
        ranges = input_ranges(frozen(), ids) if ids else {}
    feeds = dict(draw(specs, sizes, seed, ranges))
    for spec in specs:
        if spec.name.lower().endswith("mask"):
            feeds[spec.name] = np.ones_like(feeds[spec.name])
    return feeds


def input_ranges(frozen: FrozenGraph, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the inputs of these names that are looked up in tables."""
    nodes = {node.name: node for node in frozen.graph_def.node}
    readers: dict[str, list[Any]] = {}
    for node in frozen.graph_def.node:
        for tensor in node.input:
            readers.setdefault(_plain(tensor), []).append(node)
    found = {}
    for port in frozen.inputs:
        bounds = _bounds(_plain(port.tensor), nodes, readers) if port.name in names else []
        if bounds:
            found[port.name] = (0.0, float(max(0, min(bounds))))
    return found


def _bounds(start: str, nodes: Mapping[str, Any], readers: Mapping[str, list[Any]]) -> list[int]:
    """The highest index each lookup of a value accepts."""
    bounds: list[int] = []
    waiting, seen = [start], {start}
    while waiting and len(seen) <= _MAX_STEPS:
        value = waiting.pop(0)
        for node in readers.get(value, ()):
            bounds += _highest(node, value, nodes)
            if node.op in _KEEPS_VALUES and node.name not in seen:
                seen.add(node.name)
                waiting.append(node.name)
    return bounds


def _highest(node: Any, value: str, nodes: Mapping[str, Any]) -> list[int]:
    """The highest index a lookup accepts, where its table's length is known."""
    table, indices = _LOOKUPS.get(node.op, (-1, -1))
    if table < 0 or _plain(node.input[indices]) != value:
        return []
    length = _length(_plain(node.input[table]), nodes)
    return [length - 1] if length else []


def _length(name: str, nodes: Mapping[str, Any]) -> int:
    """The first size of a constant, seen through casts; 0 where the value is none."""
    for _ in range(_MAX_STEPS):
        node = nodes.get(name)
        if node is None or (node.op == "Const" and not node.attr["value"].tensor.tensor_shape.dim):
            return 0
        if node.op == "Const":
            return int(node.attr["value"].tensor.tensor_shape.dim[0].size)
        if node.op not in ("Cast", "Identity") or not node.input:
            return 0
        name = _plain(node.input[0])
    return 0


def _plain(tensor: str) -> str:
    """A tensor's name without the `:0` of a first output, as nodes write their inputs."""
    return tensor.removesuffix(":0")
