"""What a model does to its inputs first, and so which numbers it expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_PASSING = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
_SCALING = ("Sub", "Add", "Mul", "Div")
_FAR, _NARROW = 30.0, 0.02
"""Numbers that networks compute with lie within a few units, once they are normalized. What is
beyond 30, or varies by less than 0.02, was not scaled, or twice."""

_FAR_DEVIATIONS = 8.0


@dataclass(frozen=True)
class InputScale:
    """How an input is normalized inside the model: `factor * x + offset`, at its plainest.

    Attributes:
        factor, offset: of the channel that is changed least.
        operator: that says so.
        is_standard: the result has mean 0 and deviation 1 on what the model was trained on.
    """

    factor: float
    offset: float
    operator: str
    is_standard: bool = False

    def problem(self, low: float, high: float, mean: float, deviation: float) -> str:
        """Why data of this kind are not what is expected; "" where they may be."""
        ends = sorted((low * self.factor + self.offset, high * self.factor + self.offset))
        says = f"which the model's own {self.operator} makes {ends[0]:.3g} to {ends[1]:.3g}"
        if self.is_standard:
            distance = abs(mean * self.factor + self.offset)
            spread = deviation * abs(self.factor)
            if distance > _FAR_DEVIATIONS or not 1 / _FAR_DEVIATIONS < spread < _FAR_DEVIATIONS:
                return f"{says}, far from what it was trained on"
            return ""
        if max(map(abs, ends)) > _FAR:
            return f"{says}: too large, do the data miss a step?"
        if ends[1] - ends[0] < _NARROW:
            return f"{says}: are the data scaled already?"
        return ""


def input_scales(model: ir.Model, folder: Path) -> Mapping[str, InputScale]:
    """The scale of each input that the model itself normalizes before anything else."""
    found = {}
    for value in model.graph.inputs:
        scale = _scale_of(value, folder)
        if scale is not None and value.name:
            found[value.name] = scale
    return found


def _scale_of(value: ir.Value, folder: Path) -> InputScale | None:
    factor, offset, operators = 1.0, 0.0, list[str]()
    while True:
        readers = [node for node, _ in value.uses()]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op_type == "BatchNormalization" and node.inputs[0] is value and not operators:
            return _of_batch_norm(node, folder)
        if node.op_type in _PASSING and node.inputs[0] is value:
            value = node.outputs[0]
            continue
        constant = _constant_beside(node, value, folder)
        if node.op_type not in _SCALING or constant is None:
            break
        is_first = node.inputs[0] is value
        if node.op_type == "Mul":
            factor, offset = factor * constant, offset * constant
        elif node.op_type == "Div" and is_first and constant != 0:
            factor, offset = factor / constant, offset / constant
        elif node.op_type == "Add":
            offset += constant
        elif node.op_type == "Sub":
            factor, offset = (factor, offset) if is_first else (-factor, -offset)
            offset += -constant if is_first else constant
        else:
            break
        operators.append(node.op_type)
        value = node.outputs[0]
    return InputScale(factor, offset, " and ".join(operators)) if operators else None


def _constant_beside(node: ir.Node, value: ir.Value, folder: Path) -> float | None:
    """The other operand, where it is constant: its element in the middle, for one per channel."""
    others = [each for each in node.inputs if each is not None and each is not value]
    if len(others) != 1 or others[0].const_value is None:
        return None
    array = array_of(others[0].const_value, folder)
    return float(np.median(array.astype(np.float64))) if array.size else None


def _of_batch_norm(node: ir.Node, folder: Path) -> InputScale | None:
    """Mean and variance that it keeps are those of what the model was trained on."""
    tensors = [each.const_value if each is not None else None for each in node.inputs[3:5]]
    if len(tensors) != 2 or tensors[0] is None or tensors[1] is None:
        return None
    mean, variance = (array_of(tensor, folder).astype(np.float64) for tensor in tensors)
    if not mean.size:
        return None
    deviation = float(np.sqrt(max(float(np.median(variance)), 1e-12)))
    centre = float(np.median(mean))
    return InputScale(1 / deviation, -centre / deviation, "BatchNormalization", is_standard=True)
