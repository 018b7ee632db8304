"""Whether a folder is an ONNX model; where its files lie is told by `convkit.onnx_folder`."""

from __future__ import annotations

from pathlib import Path

from convkit.formats.onnx_header import is_onnx
from convkit.onnx_folder import graph_file

_OTHERS = ("saved_model.pb", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
"""Files that make a folder a model of another format, whatever lies beside them."""


def is_folder(path: Path) -> bool:
    """Whether a folder is an ONNX model and no other; never raises."""
    try:
        if not path.is_dir() or any(next(path.glob(name), None) for name in _OTHERS):
            return False
        return is_onnx(graph_file(path))
    except OSError:
        return False
