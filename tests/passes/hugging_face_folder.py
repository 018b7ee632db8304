"""Small Hugging Face folders, and a pass run on them without a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convkit.artifact import Artifact, Precision
from convkit.step import Pass, Work

safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors reads the results")
INDEX = "model.safetensors.index.json"


def make_folder(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    return folder


def lower(step: Pass, folder: Path, out: Path) -> list[str]:
    notes: list[str] = []
    work = Work((), cannot_load, notes.append, lambda what, done, total, unit="": None)
    step.rungs[0].run(Artifact(folder, "torch", Precision.FP32), out, work)
    return notes


def cannot_load(artifact: Artifact) -> Any:
    raise AssertionError("the pass must not load the network")
