"""onnx-q4 from the outside: whole conversions of small networks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit.artifact import Precision
from convkit.errors import UnknownNameError, UnsupportedError, UsageError
from tests.language_folders import llama_folder

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers with Relu between, whose middle is large."""
    generator = np.random.default_rng(0)
    text = '<ir_version: 10, opset_import: ["":17]> net (float[batch,64] x) => (float[batch,8] y) '
    body = "{ a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3) }"
    model = onnx.parser.parse_model(text + body)
    for name, shape in (("w1", (64, 128)), ("w2", (128, 128)), ("w3", (128, 8))):
        weight = generator.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for node, name in zip(model.graph.node, ("first", "r1", "second", "r2", "third"), strict=True):
        node.name = name
    path = tmp_path_factory.mktemp("q4") / "net.onnx"
    onnx.save(model, path)
    return path


def operators(path: Path) -> dict[str, int]:
    return dict(convkit.inspect(path)[1].operators)


@pytest.mark.parametrize("scheme", [None, "hqq", "nf4"])
def test_products_are_quantized_and_verified(
    network: Path, tmp_path: Path, scheme: str | None
) -> None:
    out = tmp_path / "q4.onnx"
    report = convkit.convert(network, to="onnx", precision="q4", scheme=scheme, out=out)
    assert report.passed
    assert report.artifact.precision is Precision.Q4
    kind = "com.microsoft::MatMulBnb4" if scheme == "nf4" else "com.microsoft::MatMulNBits"
    assert operators(out)[kind] == 2
    assert operators(out)["MatMul"] >= 1  # the third is small


def test_named_layers_stay_float(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "q4.onnx"
    settings = {"onnx-q4.keep_fp32": "second", "onnx-q4.symmetric": True}
    convkit.convert(network, to="onnx", precision="q4", out=out, settings=settings)
    assert operators(out) == {"com.microsoft::MatMulNBits": 1, "MatMul": 2, "Relu": 2}


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"block_size": 48}, UsageError, "block_size is 48; blocks have 16, 32"),
        ({"head_bits": 5}, UsageError, "head_bits is 5"),
        ({"scheme": "gptq"}, UsageError, "gptq rounds weights for the data"),
        ({"scheme": "nf4", "target": "tensorrt"}, UnsupportedError, "tensorrt cannot read nf4"),
        ({"keep_fp32": "secnod"}, UnknownNameError, "Did you mean 'second'"),
        ({"target": "tpu"}, UnknownNameError, "Unknown target 'tpu'"),
    ],
)
def test_what_cannot_be_meant_is_told(
    network: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    named = {f"onnx-q4.{name}": value for name, value in settings.items()}
    with pytest.raises(error) as refusal:
        convkit.convert(network, to="onnx", precision="q4", out=tmp_path / "m.onnx", settings=named)
    assert says in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_not_quantized_again(network: Path, tmp_path: Path) -> None:
    convkit.convert(network, to="onnx", precision="q4", out=tmp_path / "q4.onnx")
    document = onnx.load(tmp_path / "q4.onnx")
    wide = np.ones((512, 512), np.float32)  # float weights decide what precision it has
    document.graph.initializer.append(onnx.numpy_helper.from_array(wide, "unread"))
    onnx.save(document, tmp_path / "part.onnx")
    with pytest.raises(UnsupportedError, match="quantized already") as refusal:
        convkit.convert(tmp_path / "part.onnx", to="onnx", precision="q4")
    assert "MatMulNBits 2" in str(refusal.value)


def test_a_language_model_keeps_its_folder_and_its_cache(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "model")
    convkit.convert(folder, to="onnx", out=tmp_path / "float", verify=False)
    report = convkit.convert(tmp_path / "float", to="onnx", precision="q4", out=tmp_path / "q4")
    assert report.passed
    assert {check.metric for check in report.steps[-1].checks} >= {"kl", "top1_agreement"}
    names = {path.name for path in (tmp_path / "q4").iterdir()}
    assert names >= {"model.onnx", "config.json", "tokenizer.json"}
    with convkit.load(tmp_path / "q4") as runner:
        assert runner.has_cache  # type: ignore[attr-defined]
