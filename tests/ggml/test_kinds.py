"""GGUF files that hold no model say what they hold, whatever is done with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import convkit
from convkit.checkpoint.rows import Held
from convkit.errors import ModelError
from convkit.ggml.model import GgufModel, Output, write
from convkit.ggml.types import TYPES
from convkit.ggml.values import typed

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")


def written(path: Path, *names: str, **metadata: str) -> Path:
    """A file with small tensors of these names; `general_type` in metadata is `general.type`."""
    rows = Held(np.ones((2, 32), np.float32))
    tensors = tuple(Output(name, rows, TYPES["F32"]) for name in names)
    values = {key.replace("_", ".", 1): typed(value) for key, value in metadata.items()}
    write(GgufModel(values, tensors), path)
    return path


KINDS = [
    ("imatrix", "llama", ("blk.0.attn_q.weight.in_sum2",), "holds importance data"),
    ("adapter", "llama", ("blk.0.attn_q.weight.lora_a",), "is an adapter"),
    ("mmproj", "clip", ("v.patch_embd.weight",), "turns pictures or sounds into tokens"),
    ("model", "clip", ("v.patch_embd.weight",), "turns pictures or sounds into tokens"),
    ("model", "llama", (), "holds no tensors"),
    ("model", "", ("token_embd.weight",), "does not say which network"),
    ("vocab", "llama", ("token_embd.weight",), "of type 'vocab'"),
]


@pytest.mark.parametrize(("kind", "architecture", "names", "says"), KINDS)
def test_what_is_no_model_is_told_as_what_it_is(
    tmp_path: Path, kind: str, architecture: str, names: tuple[str, ...], says: str
) -> None:
    path = written(
        tmp_path / "x.gguf", *names, general_type=kind, general_architecture=architecture
    )
    assert convkit.inspect(path)[0].format == "gguf"
    with pytest.raises(ModelError, match=says):
        convkit.load(path)
    for target in ("torch", "onnx"):
        with pytest.raises(ModelError, match=says):
            convkit.convert(path, to=target, verify=False)
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]


def test_importance_data_are_not_quantized(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", "blk.0.attn_q.weight", general_type="imatrix")
    with pytest.raises(ModelError, match="holds importance data") as refusal:
        convkit.convert(path, to="gguf", precision="q4", verify=False)
    assert f"--calibration {path}" in refusal.value.hint
