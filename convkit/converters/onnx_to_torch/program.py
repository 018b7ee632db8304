"""What is generated: the source of a module, the functions it calls, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convkit.converters.onnx_to_torch.weights import Weight


@dataclass(frozen=True)
class Port:
    """An input or output of the network.

    Attributes:
        name: as in ONNX.
        variable: the parameter of `forward` (inputs).
        dtype: the dtype of its tensors, in numpy's spelling; "" for a sequence or optional.
        shape: sizes, or names of dynamic dimensions; None where the rank is unknown.
    """

    name: str
    variable: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def to_json(self) -> dict[str, Any]:
        """For the signature beside the weights."""
        return {
            "name": self.name,
            "argument": self.variable,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
        }


@dataclass
class Program:
    """A network as source and weights.

    Attributes:
        title: the first line of the source's docstring.
        inputs, outputs: its ports, in ONNX's order.
        source: `model.py`.
        operators: `operators.py`; "" where no library function is called.
        stored: state-dict key -> weight.
        onnx_names: state-dict key -> name of the ONNX initializer.
        values: variable of `forward` -> name of the ONNX value.
        lines: line of `model.py`, from 1 -> names of the ONNX values made there.
        notes: sentences for the report.
    """

    title: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    source: str
    operators: str
    stored: Mapping[str, Weight]
    onnx_names: Mapping[str, str]
    values: Mapping[str, str]
    lines: Mapping[int, tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


Function = Callable[..., Any]
