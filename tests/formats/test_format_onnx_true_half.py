"""The true half runner against numpy's and ml_dtypes' own half arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from ml_dtypes import bfloat16  # noqa: E402
from onnx import numpy_helper, parser  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from convkit.artifact import Artifact, Precision  # noqa: E402
from convkit.errors import ModelError, SamplesError  # noqa: E402
from convkit.formats.onnx_true_half import open_true_half  # noqa: E402
from convkit.step import Runner  # noqa: E402


def _opened(folder: Path, body: str, opset: int = 20, **weights: np.ndarray) -> Runner:
    model = _parsed(body, opset, **weights)
    path = folder / "half.onnx"
    onnx.save(model, path)
    precision = Precision.BF16 if "bfloat16" in body else Precision.FP16
    return open_true_half(Artifact(path, "onnx", precision))


def _parsed(body: str, opset: int = 20, **weights: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{body}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


_SQUARES = """g (float16[8] x) => (float16 y) {
    s = Mul(x, x)
    m = ReduceMean<keepdims = 0>(s)
    y = Sqrt(m)
}"""


def test_square_mean_root_of_400_is_inf_although_the_runtime_says_otherwise(tmp_path: Path) -> None:
    feeds = {"x": np.full(8, 400, np.float16)}
    model = _parsed(_SQUARES)
    blind = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    assert np.isfinite(blind)  # what makes the runner necessary
    with np.errstate(over="ignore"):
        assert np.isposinf(ReferenceEvaluator(model).run(None, feeds)[0])
    with _opened(tmp_path, _SQUARES) as runner:
        assert np.isposinf(runner(feeds)["y"])


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_is_bit_exact_with_numpy_half(operator: str, tmp_path: Path) -> None:
    body = f"g (float16[n] a, float16[n] b) => (float16[n] y) {{ y = {operator}(a, b) }}"
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 16, (2, 20000), np.uint16)
    a, b = bits.view(np.float16)
    ours = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[operator]
    with np.errstate(all="ignore"):
        wanted = ours(a, b)
    with _opened(tmp_path, body) as runner:
        got = runner({"a": a, "b": b})["y"]
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, wanted)


def test_rounding_to_bf16_is_bit_exact_with_ml_dtypes(tmp_path: Path) -> None:
    body = "g (bfloat16[n] a, bfloat16[n] b) => (bfloat16[n] y) { y = Mul(a, b) }"
    bits = np.random.default_rng(0).integers(0, 1 << 16, (2, 20000), np.uint16)
    a, b = bits.view(bfloat16)
    with np.errstate(all="ignore"):
        wanted = (a.astype(np.float32) * b.astype(np.float32)).astype(bfloat16)
    with _opened(tmp_path, body) as runner:
        got = runner({"a": a, "b": b})["y"]
    assert got.dtype == bfloat16
    is_number = ~np.isnan(wanted.astype(np.float32))
    np.testing.assert_array_equal(got[is_number].view(np.uint16), wanted[is_number].view(np.uint16))
    assert np.isnan(got[~is_number].astype(np.float32)).all()


def test_chain_rounds_after_every_operator(tmp_path: Path) -> None:
    """(x + 1) - 1 loses what x has below 2^-10; a fused chain would not."""
    body = "g (float16[n] x) => (float16[n] y) { a = Add(x, one)  y = Sub(a, one) }"
    x = np.linspace(0, 1e-3, 50).astype(np.float16)
    one = np.array(1, np.float16)
    with _opened(tmp_path, body, one=one) as runner:
        np.testing.assert_array_equal(runner({"x": x})["y"], (x + one) - one)


def test_sums_inside_one_operator_do_not_overflow(tmp_path: Path) -> None:
    """As on tensor cores, which accumulate in fp32."""
    body = "g (float16[1, n] x, float16[n, 1] w) => (float16[1, 1] y) { y = MatMul(x, w) }"
    x, w = np.full((1, 64), 200, np.float16), np.full((64, 1), 200, np.float16)
    w[1::2] *= -1
    with _opened(tmp_path, body) as runner:
        assert runner({"x": x, "w": w})["y"] == 0


def test_bodies_round_too(tmp_path: Path) -> None:
    body = """g (float16[n] x, int64 trips) => (float16[n] y) {
        go = Constant<value = bool {1}>()
        y = Loop (trips, go, x) <
            body = b (int64 i, bool c, float16[n] s) => (bool d, float16[n] t) {
                d = Identity(c)
                t = Mul(s, s)
            }
        >
    }"""
    x = np.array([1.001, 1.5, 3], np.float16)
    with _opened(tmp_path, body) as runner:
        got = runner({"x": x, "trips": np.array(4)})["y"]
    wanted = x
    with np.errstate(over="ignore"):
        for _ in range(4):
            wanted = wanted * wanted
    np.testing.assert_array_equal(got, wanted)
    assert np.isinf(got[2])


def test_fp32_parts_stay_unrounded(tmp_path: Path) -> None:
    body = """g (float[n] x) => (float[n] y, float16[n] h) {
        y = Mul(x, x)
        h = Cast<to = 10>(y)
    }"""
    x = np.array([300, 1.0001], np.float32)
    with _opened(tmp_path, body) as runner:
        outputs = runner({"x": x})
    np.testing.assert_array_equal(outputs["y"], x * x)
    assert np.isinf(outputs["h"][0])


def test_feeds_of_the_wrong_type_are_refused_by_name(tmp_path: Path) -> None:
    with _opened(tmp_path, _SQUARES) as runner, pytest.raises(SamplesError, match="float16"):
        runner({"x": np.ones(8, np.float32)})


def test_example_has_the_models_own_dtypes(tmp_path: Path) -> None:
    with _opened(tmp_path, _SQUARES) as runner:
        feeds = runner.example({}, seed=0)
        assert feeds["x"].dtype == np.float16
        assert runner(feeds)["y"].dtype == np.float16


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"\x13\x37" * 100)
    with pytest.raises(ModelError):
        open_true_half(Artifact(path, "onnx", Precision.FP16))
