"""ONNX models in folders, as language models are kept: graph, configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path

from convkit.formats.onnx_header import is_onnx

_GRAPHS = ("model.onnx", "onnx/model.onnx")
"""Where folders keep their graph. Source: optimum's `ORTModel`, and the models on the hub that
Transformers.js runs (`onnx/`)."""

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


def graph_file(path: Path) -> Path:
    """The graph of a model: the file itself, or the one that its folder keeps."""
    if not path.is_dir():
        return path
    files = [path / name for name in _GRAPHS]
    return next((file for file in files if file.is_file()), files[0])


def text_folder(path: Path) -> Path:
    """Where configuration and tokenizer of a model are looked for: in its folder.

    A file in a folder `onnx` may have them one folder higher.
    """
    folder = path if path.is_dir() else path.parent
    is_lower = folder.name == "onnx" and not (folder / "config.json").is_file()
    return folder.parent if is_lower and (folder.parent / "config.json").is_file() else folder
