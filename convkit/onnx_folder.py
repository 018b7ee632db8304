"""ONNX models in folders, as language models are kept: graph, configuration and tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from convkit.artifact import Artifact

_GRAPHS = ("model.onnx", "onnx/model.onnx")
"""Where folders keep their graph. Source: optimum's `ORTModel`, and the models on the hub that
Transformers.js runs (`onnx/`)."""

_DATA = ("_data", ".data")
"""What the name of a graph's weights adds to its own. Source: optimum's and PyTorch's exporters."""


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


def result_file(source: Path, out: Path) -> Path:
    """Where the graph of a result goes: to `out`, or into it as it lies in the folder `source`.

    A result that is called `.onnx` is a single file whatever it was made from. The folders that
    the graph lies in are made.
    """
    if not source.is_dir() or out.suffix.lower() == ".onnx":
        return out
    file = out / graph_file(source).relative_to(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def data_name(graph: Path) -> str:
    """What a file with weights beside a graph is called: as the one that lies there."""
    names = [f"{graph.name}{ending}" for ending in _DATA]
    return next((name for name in names if graph.with_name(name).is_file()), names[-1])


def copy_companions(source: Artifact, out: Path) -> None:
    """Copies what lies beside the graph of a folder into the folder `out`.

    Other graphs of the folder (other precisions of the same model) and all weights stay behind, and
    so does what is hidden. Nothing is copied for single files.
    """
    if not (source.path.is_dir() and out.is_dir()):
        return
    for file in sorted(source.path.rglob("*")):
        place = file.relative_to(source.path)
        is_hidden = any(part.startswith(".") for part in place.parts)
        is_graph = ".onnx" in file.name or file in source.data_files
        if file.is_file() and not is_hidden and not is_graph:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / place)
