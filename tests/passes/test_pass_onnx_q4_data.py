"""onnx-q4 with calibration data: what it gains on data held out, and texts for language models."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

import convkit
from convkit.errors import SamplesError, UsageError
from tests.language_folders import llama_folder

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

Array = np.ndarray[Any, Any]


def inputs(count: int, seed: int) -> Array:
    """Points near a plane of few dimensions, as real inputs lie."""
    plane = np.random.default_rng(7).standard_normal((12, 64))
    generator = np.random.default_rng(seed)
    points = generator.standard_normal((count, 12)) @ plane
    return (points + generator.standard_normal((count, 64)) / 4).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of three products, samples of its inputs, and others."""
    folder = tmp_path_factory.mktemp("gptq")
    generator = np.random.default_rng(0)
    text = '<ir_version: 10, opset_import: ["":17]> net (float[batch,64] x) => (float[batch,96] y) '
    body = "{ a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3) }"
    model = onnx.parser.parse_model(text + body)
    for name, shape in (("w1", (64, 128)), ("w2", (128, 128)), ("w3", (128, 96))):
        weight = generator.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "data.npz", x=inputs(500, 1))
    return folder


def noise_db(reference: Path, made: Path, feeds: dict[str, Array]) -> float:
    one, other = (ort.InferenceSession(path).run(None, feeds)[0] for path in (reference, made))
    return float(10 * np.log10(np.square(one).sum() / np.square(one - other).sum()))


def made(network: Path, out: Path, **options: Any) -> Path:
    settings = {"onnx-q4.accuracy_level": 0, "onnx-q4.head_bits": 4}
    convkit.convert(
        network / "net.onnx", to="onnx", precision="q4", out=out, settings=settings, **options
    )
    return out


def test_outputs_on_other_data_lose_less_than_a_quarter(network: Path, tmp_path: Path) -> None:
    plain = made(network, tmp_path / "rtn.onnx")
    fitted = made(network, tmp_path / "gptq.onnx", calibration=network / "data.npz")
    feeds = {"x": inputs(300, 2)}
    gained = noise_db(network / "net.onnx", fitted, feeds) - noise_db(
        network / "net.onnx", plain, feeds
    )
    assert gained > 6
    assert fitted.stat().st_size == pytest.approx(plain.stat().st_size, rel=0.01)


def test_layers_return_to_float_until_a_limit_is_kept(network: Path, tmp_path: Path) -> None:
    report = convkit.convert(
        network / "net.onnx",
        to="onnx",
        precision="q4",
        out=tmp_path / "q4.onnx",
        calibration=network / "data.npz",
        max_drop=0.01,
        metric="agreement",
    )
    assert report.passed
    assert (tmp_path / "q4.onnx.sensitivity.json").is_file()


@pytest.mark.slow
def test_a_text_calibrates_a_language_model(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "model")
    convkit.convert(folder, to="onnx", out=tmp_path / "float", verify=False)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(topics.values())[:20000])
    options: dict[str, Any] = {"to": "onnx", "precision": "q4", "calibration": text}
    report = convkit.convert(tmp_path / "float", out=tmp_path / "q4", **options)
    assert report.passed
    text.write_text("Too short.")
    with pytest.raises(SamplesError, match="too short to calibrate on"):
        convkit.convert(tmp_path / "float", out=tmp_path / "short", **options)


def test_a_text_for_another_kind_of_model_is_refused(network: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text.")
    with pytest.raises(UsageError, match=r"net.onnx is no language model"):
        made(network, tmp_path / "q4.onnx", calibration=text)
