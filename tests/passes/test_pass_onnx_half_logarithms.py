"""Logarithms of small values: in half precision they would show digits that half does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from onnx import numpy_helper, parser  # noqa: E402

from convkit.artifact import Artifact, Precision  # noqa: E402
from convkit.formats.onnx_session import SessionRunner  # noqa: E402
from convkit.formats.onnx_true_half import open_true_half  # noqa: E402
from convkit.metrics import sqnr_db  # noqa: E402
from tests.onnx_micro_checks import convert  # noqa: E402

_SPECTRUM = """
agraph (float[batch, 64] x) => (float[batch, 32] y)
{
    re = MatMul(x, cosines)
    im = MatMul(x, sines)
    re2 = Mul(re, re)
    im2 = Mul(im, im)
    power = Add(re2, im2)
    safe = Add(power, epsilon)
    bels = Log(safe)
    y = MatMul(bels, last)
}
"""

_ORDINARY = """
agraph (float[batch, 64] x) => (float[batch, 32] y)
{
    a = MatMul(x, cosines)
    b = Mul(a, a)
    c = Add(b, one)
    bels = Log(c)
    y = MatMul(bels, last)
}
"""


def _model(body: str, path: Path) -> Path:
    angles = 2 * np.pi * np.outer(np.arange(64), np.arange(32)) / 64
    rng = np.random.default_rng(0)
    weights = {
        "cosines": np.cos(angles), "sines": np.sin(angles), "last": rng.normal(size=(32, 32)) / 6,
        "epsilon": np.asarray(1e-10), "one": np.asarray(1.0),
    }  # fmt: skip
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>\n{body}')
    read = {name for node in model.graph.node for name in node.input}
    for name in read & weights.keys():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(weights[name]), name))
    onnx.save(model, path)
    return path


def _tones() -> dict[str, np.ndarray]:
    """Two tones each: most bins of the spectrum are where they cancel."""
    time = np.arange(64)
    return {"x": np.stack([np.sin(time * f) + np.sin(time * g) for f, g in ((0.3, 0.9), (1, 2))])
            .astype(np.float32) / 16}  # fmt: skip


def _agreement(source: Path, out: Path) -> float:
    feeds = _tones()
    exact = SessionRunner(Artifact(source, "onnx", Precision.FP32))(feeds)["y"]
    half = open_true_half(Artifact(out, "onnx", Precision.FP16))(feeds)["y"]
    return sqnr_db(exact.astype(np.float64), half.astype(np.float64))


def _weights(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def test_a_log_spectrum_is_computed_in_fp32_from_the_input_on(tmp_path: Path) -> None:
    source = _model(_SPECTRUM, tmp_path / "source.onnx")
    notes = convert(source, tmp_path / "out.onnx", [_tones()])
    kept = _weights(tmp_path / "out.onnx")
    assert kept["cosines"] == kept["sines"] == onnx.TensorProto.FLOAT
    assert kept["last"] == onnx.TensorProto.FLOAT16
    assert _agreement(source, tmp_path / "out.onnx") > 55  # one product with half weights
    assert any("logarithm is 'bels'" in note for note in notes)


def test_a_logarithm_of_ordinary_values_is_half(tmp_path: Path) -> None:
    source = _model(_ORDINARY, tmp_path / "source.onnx")
    convert(source, tmp_path / "out.onnx", [_tones()])
    kept = _weights(tmp_path / "out.onnx")
    assert set(kept.values()) == {onnx.TensorProto.FLOAT16}


def test_small_weights_with_long_names_are_written_into_the_file(tmp_path: Path) -> None:
    name = "a/scope/that/goes/on/and/on/" * 12 + "kernel"
    body = "agraph (float[batch, 15] x) => (float[batch, 15] y) { y = MatMul(x, w) }"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>\n{body}')
    model.graph.node[0].input[1] = name
    weight = np.eye(15, dtype=np.float32) * 1e5  # beyond fp16, so it stays as it is
    model.graph.initializer.append(numpy_helper.from_array(weight, name))
    source, out = tmp_path / "a" / "source.onnx", tmp_path / "out.onnx"
    source.parent.mkdir()
    onnx.save(model, source)
    convert(source, out, [{"x": np.ones((2, 15), np.float32)}])
    (tensor,) = onnx.load(out, load_external_data=False).graph.initializer
    assert tensor.data_location == onnx.TensorProto.DEFAULT
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), weight)
