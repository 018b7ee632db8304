"""Where the length of an axis comes from, so that two lengths can be told to be the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Origin = int | tuple[str, int] | None
"""A known size; a value and its axis; or nothing."""

_PLAIN = (
    "Identity", "Cast", "ReverseSequence", "Relu", "Tanh", "Sigmoid", "Dropout", "LeakyRelu",
    "Softmax", "LayerNormalization",
)  # fmt: skip
"""Operators that keep the shape of their first input."""


class Lengths:
    """Origins of axes and of numbers computed from shapes in a model's main graph.

    Args:
        model: a ModelProto.
        makers: value name -> the node that makes it.
        constant: elements of a value that is constant.
    """

    def __init__(
        self,
        model: Any,
        makers: Mapping[str, Any],
        constant: Callable[[str], np.ndarray[Any, Any] | None],
    ) -> None:
        self._makers, self._constant = makers, constant
        self._shapes = _shapes(model)

    def static(self, name: str, axis: int) -> int | None:
        """The size of an axis where it is known."""
        origin = self.of_axis(name, axis)
        return origin if isinstance(origin, int) else None

    def of_axis(self, name: str, axis: int) -> Origin:
        """Where an axis has its length from."""
        shape = self._shapes.get(name)
        if shape is not None and axis < len(shape) and isinstance(shape[axis], int):
            return shape[axis]
        node = self._makers.get(name)
        if node is None:
            return name, axis
        source = self._through(node, name, axis)
        return (name, axis) if source is None else self.of_axis(*source)

    def of_number(self, name: str) -> Origin:
        """Where a single number has its value from: a constant, or the length of an axis."""
        value = self._constant(name)
        if value is not None:
            return int(value.reshape(-1)[0]) if value.size == 1 else None
        node = self._makers.get(name)
        if node is None:
            return None
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
            return self.of_number(node.input[0])
        if node.op_type in ("Gather", "Slice"):
            shaped = self._shaped(node.input[0])
            place = self._constant(node.input[1])
            if shaped and place is not None and place.size == 1 and self._is_single(node, place):
                return self.of_axis(shaped, int(place.reshape(-1)[0]))
        return None

    def _is_single(self, node: Any, place: np.ndarray[Any, Any]) -> bool:
        """Whether a slice takes one element."""
        if node.op_type == "Gather":
            return int(place.reshape(-1)[0]) >= 0
        end = self._constant(node.input[2])
        begin = int(place.reshape(-1)[0])
        return end is not None and begin >= 0 and int(end.reshape(-1)[0]) == begin + 1

    def _shaped(self, name: str) -> str | None:
        """The value whose shape this is."""
        node = self._makers.get(name)
        while node is not None and node.op_type in ("Cast", "Identity"):
            node = self._makers.get(node.input[0])
        return node.input[0] if node is not None and node.op_type == "Shape" else None

    def _through(self, node: Any, name: str, axis: int) -> tuple[str, int] | None:
        """The input and axis that an output's axis is taken from."""
        if node.op_type in _PLAIN:
            return node.input[0], axis
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            return None if perm is None else (node.input[0], perm[axis])
        if node.op_type == "Squeeze" and len(node.input) == 2:
            axes = self._constant(node.input[1])
            if axes is None or axes.size != 1:
                return None
            return node.input[0], axis if axis < int(axes.reshape(-1)[0]) else axis + 1
        if node.op_type in ("GRU", "LSTM", "RNN") and axis == 0 and name == node.output[0]:
            return node.input[0], 0
        return None


def _shapes(model: Any) -> dict[str, list[int | None]]:
    """Value name -> sizes, None where unknown."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found: dict[str, list[int | None]] = {}
    graph = inferred.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            found[value.name] = [
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ]
    return found
