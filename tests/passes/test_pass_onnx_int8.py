"""onnx-int8 as users run it: schemes, what stays float, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")
onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")

import convkit  # noqa: E402
from convkit.errors import (  # noqa: E402
    SamplesError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from tests import int8_graphs as graphs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

_HIDDEN, _CLASSES = 256, 64


def perceptron(folder: Path) -> Path:
    """Three products of matrices with activations between them."""
    generator = np.random.default_rng(0)
    sizes = [_HIDDEN, _HIDDEN, _HIDDEN, _CLASSES]
    weights = {
        f"w{i}": generator.standard_normal((sizes[i], sizes[i + 1])) / 16 for i in range(3)
    } | {f"b{i}": generator.standard_normal(sizes[i + 1]) / 8 for i in range(3)}
    body = f"""g (float[batch,{_HIDDEN}] x) => (float[batch,{_CLASSES}] y) {{
        a = Gemm (x, w0, b0)
        b = Relu (a)
        c = Gemm (b, w1, b1)
        d = Tanh (c)
        y = Gemm (d, w2, b2)
    }}"""
    return graphs.saved(body, folder / "perceptron.onnx", weights)


def data(folder: Path, x: Any = None, name: str = "x") -> Path:
    path = folder / "data.npz"
    array = graphs.samples(40, (_HIDDEN,)) if x is None else x
    np.savez(path, **{name: array})
    return path


def converted(model: Path, **choices: Any) -> tuple[Path, convkit.Report]:
    settings = {f"onnx-int8.{k}": v for k, v in choices.pop("options", {}).items()}
    out = model.with_name("out.onnx")
    report = convkit.convert(
        model, to="onnx", precision="int8", out=out, settings=settings, force=True, **choices
    )
    return out, report


def test_data_make_it_static(tmp_path: Path) -> None:
    model = perceptron(tmp_path)
    out, report = converted(model, calibration=data(tmp_path))
    assert report.passed
    found = graphs.kernels(out)
    assert found["QGemm"] == 3
    assert not found.keys() & {"Gemm", "FusedGemm", "DynamicQuantizeLinear"}
    assert out.stat().st_size < 0.4 * model.stat().st_size


def test_without_data_it_is_dynamic(tmp_path: Path) -> None:
    out, report = converted(perceptron(tmp_path))
    assert report.passed
    found = graphs.operators(out)
    assert found["MatMulInteger"] == 3
    assert found["QuantizeLinear"] == 0


def test_the_scheme_that_was_said_counts(tmp_path: Path) -> None:
    out, _ = converted(perceptron(tmp_path), calibration=data(tmp_path), scheme="dynamic")
    assert graphs.operators(out)["MatMulInteger"] == 3


def test_kept_nodes_and_operators_stay_float(tmp_path: Path) -> None:
    options = {"keep_fp32": "gemm_2"}
    out, _ = converted(perceptron(tmp_path), calibration=data(tmp_path), options=options)
    assert graphs.kernels(out)["QGemm"] == 2


def test_random_samples_serve_only_where_they_are_asked_for_and_are_told(tmp_path: Path) -> None:
    out, report = converted(perceptron(tmp_path), calibration=Path("random"))
    assert graphs.kernels(out)["QGemm"] == 3
    assert "random samples" in str(report.to_json())


@pytest.mark.parametrize("target", ["cpu-avx2", "arm", "cuda", "tensorrt"])
def test_every_target_gets_a_graph_that_verifies(target: str, tmp_path: Path) -> None:
    _, report = converted(perceptron(tmp_path), calibration=data(tmp_path), target=target)
    assert report.passed


def test_an_old_opset_is_raised_for_scales_of_channels(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((8, 3, 3, 3))}
    body = "g (float[batch,3,9,9] x) => (float[batch,8,7,7] y) { y = Conv (x, w) }"
    model = graphs.saved(body, tmp_path / "old.onnx", weights, opset=11)
    out, report = converted(model, calibration=data(tmp_path, graphs.samples(20, (3, 9, 9))))
    assert report.passed
    assert onnx.load(out).opset_import[0].version == 13
    assert graphs.constants(out)["w_scale"].shape == (8,)


def test_static_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes the ranges of activations from data"):
        converted(perceptron(tmp_path), scheme="static")


def test_a_node_that_there_is_none_of_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="gemm_22"):
        converted(perceptron(tmp_path), options={"keep_fp32": "gemm_22"})


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"smooth is 1\.5"):
        converted(perceptron(tmp_path), options={"smooth": 1.5})


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    out, _ = converted(perceptron(tmp_path), calibration=data(tmp_path))
    again = out.rename(out.with_name("again.onnx"))
    with pytest.raises((UnsupportedError, convkit.errors.ConvkitError), match=r"quantized|int8"):
        converted(again, calibration=data(tmp_path))


def test_data_that_do_not_fit_the_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplesError):
        converted(perceptron(tmp_path), calibration=data(tmp_path, name="z"))


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    body = f"g (float[batch,{_HIDDEN}] x) => (float[batch,{_HIDDEN}] y) {{ y = Relu (x) }}"
    model = graphs.saved(body, tmp_path / "relu.onnx", {})
    with pytest.raises(UnsupportedError, match="no layer that can be quantized"):
        converted(model, calibration=data(tmp_path))
