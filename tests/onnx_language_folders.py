"""Small language models in ONNX folders, with their cache, made from Hugging Face folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.language_models import language_folder


def huggingface_folder(name: str, path: Path) -> Path:
    """A model of `language_models.NETWORKS`; skipped where PyTorch is not installed."""
    for package in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return language_folder(name, path)


def onnx_folder(source: Path, path: Path, attention: str = "plain") -> Path:
    """A Hugging Face folder as an ONNX folder; no framework is needed."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from convkit.checkpoint.folder import open_folder
    from convkit.converters.decoder_graph.build import build
    from convkit.converters.decoder_graph.families import blueprint

    path.mkdir()
    with open_folder(source) as checkpoint:
        tensors: dict[str, Any] = dict(checkpoint.tensors)
        tensors |= {alias: tensors[kept] for alias, kept in checkpoint.aliases.items()}
        found = blueprint(checkpoint.config)
        built = build(
            found, tensors, checkpoint.config, others=checkpoint.other, attention=attention
        )
        built.write(path / "model.onnx")
    for file in source.glob("*.json"):
        shutil.copyfile(file, path / file.name)
    return path


def changed_weight(folder: Path, out: Path, name: str, factor: float) -> Path:
    """A copy of an ONNX folder, one of its weights times a factor."""
    import onnx

    shutil.copytree(folder, out)
    model = onnx.load(out / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, out / "model.onnx")
    return out
