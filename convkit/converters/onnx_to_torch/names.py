"""Python names for ONNX names: valid, unique, and as alike as they can be."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable

_TAKEN = frozenset({*keyword.kwlist, *keyword.softkwlist, *dir(builtins)})
_TELLS_NOTHING = re.compile(r"onnx_\w+_\d+|(val_|v)?\d+", re.ASCII)
"""Names that PyTorch's exporters make up for weights: `onnx::MatMul_614`, `val_3`, `12`."""


class Names:
    """Hands out Python names, each once.

    Args:
        reserved: names that are in use already.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._used = {*_TAKEN, *reserved}

    def claim(self, text: str) -> str:
        """A free Python name for an ONNX name."""
        wanted = identifier(text)
        name, number = wanted, 2
        while name in self._used:
            name, number = f"{wanted}_{number}", number + 1
        self._used.add(name)
        return name


def identifier(text: str) -> str:
    """`text` as a Python name: `/layer.0/Add_output_0` is `layer_0_Add_output_0`."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "value"
    return f"v{name}" if name[0].isdigit() else name


def module_name(weight: str, node: str) -> str:
    """What to call the module that holds a weight: as the weight, else as its node.

    `encoder.layer.0.weight` gives `encoder.layer.0`; names that an exporter made up
    (`onnx::MatMul_614`) tell nothing, and the node's is taken without its operator.
    """
    stem = re.sub(r"[./_](weight|kernel|gamma|scale|W)$", "", weight)
    if _TELLS_NOTHING.fullmatch(identifier(stem)) and node:
        scope, _, operator = node.rpartition("/")
        return scope or operator
    return stem
