"""Language models in ONNX without their cache, as PyTorch and TensorFlow get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import library
from convkit.converters.onnx_reading.whole_text import to_whole_text
from tests.onnx_language_folders import huggingface_folder, onnx_folder

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

LOST = "the cache of keys and values is left out: each call computes its whole text"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return huggingface_folder("llama", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    return onnx_folder(source, source.with_name("llama-onnx"))


def logits(model: Any, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: np.ndarray[Any, Any] = session.run(["logits"], feeds)[0]
    return found


@pytest.mark.parametrize("opset", [20, 13])
def test_whole_texts_give_the_same_logits(folder: Path, opset: int, tmp_path: Path) -> None:
    path = folder
    if opset < 20:
        path = tmp_path / "old"
        library.convert(folder, to="onnx", opset=opset, out=path)
    model = onnx.load(path / "model.onnx")
    assert to_whole_text(model, path) == LOST
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["logits"]
    with library.load(folder) as runner:
        feeds = dict(runner.example({"batch_size": 3, "sequence_length": 9}, 0))
        wanted = runner(feeds)["logits"]
    np.testing.assert_allclose(logits(model, feeds), wanted, rtol=0, atol=1e-5)


def test_other_models_stay_as_they_are(folder: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (float[batch,4] x) => (float[batch,4] y) '
    model = onnx.parser.parse_model(text + "{ y = Relu(x) }")
    before = model.SerializeToString()
    assert to_whole_text(model, folder) == ""
    assert model.SerializeToString() == before


def test_a_folder_becomes_a_pytorch_program(folder: Path, tmp_path: Path) -> None:
    report = library.convert(folder, to="torch", out=tmp_path / "llama.pt2")
    assert report.passed
    assert LOST in report.steps[0].notes


@pytest.mark.slow  # imports TensorFlow
def test_a_hugging_face_folder_becomes_a_savedmodel(source: Path) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    report = library.convert(source, to="savedmodel")
    assert report.passed
    assert report.artifact.path.name == "llama-savedmodel"
    assert [step.name for step in report.steps] == ["torch-to-onnx", "onnx-to-savedmodel"]
