"""Runs a network in a folder of generated source so that it shows tensors by their ONNX names.

`forward` is watched line by line, so what a person changed in `model.py` is seen as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from convkit.artifact import TensorSpec
from convkit.exposing import Exposed
from convkit.formats.torch_source import SIGNATURE
from convkit.step import Feeds, Outputs


class ExposedSource(Exposed):
    """A network made from ONNX as source; keys are the ONNX names that its signature lists.

    Args:
        network: what `load()` of the folder gave.
        folder: where its signature lies.
    """

    def __init__(self, network: Any, folder: Path) -> None:
        document = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
        written: Mapping[str, str] = document.get("values", {})
        self._network = network
        self._variables = {name: variable for variable, name in written.items()}
        self._codes = {
            vars(kind)["forward"].__code__
            for kind in type(network).__mro__
            if "forward" in vars(kind)
        }
        self.names = tuple(self._variables)
        self.inputs = tuple(TensorSpec(port["name"], "", ()) for port in document["inputs"])
        self.outputs = tuple(port["name"] for port in document["outputs"])

    def run(self, keys: Sequence[str], feeds: Feeds) -> Outputs:
        """The network's outputs and the values of these names."""
        import torch

        from convkit.torch_values import named_tensors, to_array, to_tensor

        wanted = {self._variables[key]: key for key in keys if key in self._variables}
        caught: dict[str, Any] = {}

        def look(variables: Mapping[str, Any]) -> None:
            for variable, key in wanted.items():
                value = variables.get(variable)
                if key not in caught and isinstance(value, torch.Tensor):
                    caught[key] = to_array(value.clone())

        values = [to_tensor(feeds[spec.name]) for spec in self.inputs]
        with torch.inference_mode(), _watched(self._codes, look):
            result = self._network(*values)
        outputs = {name: to_array(tensor) for name, tensor in named_tensors(result)}
        return {**outputs, **caught}


@contextmanager
def _watched(codes: set[CodeType], look: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Shows the variables of these functions before each line and before they return."""

    def within(frame: FrameType, event: str, argument: Any) -> Any:
        look(frame.f_locals)
        return within

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        return within if frame.f_code in codes else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        yield
    finally:
        sys.settrace(before)
