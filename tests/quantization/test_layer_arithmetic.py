"""Weights, rounding, biases and what layers see, against ONNX Runtime and plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

from convkit.onnx_typing import load_typed
from convkit.quantization.bias_correction import mean_error
from convkit.quantization.moments import moments_of
from convkit.quantization.rounding import compensated_weight
from convkit.quantization.weights import QuantizedWeight, quantized_weight
from tests import int8_graphs as graphs


def silent(*_: Any, **__: Any) -> None:
    """Hears progress."""


def test_a_weight_worked_by_hand() -> None:
    made = quantized_weight(np.array([[127.0, -1.0, 0.4], [0.0, 0.0, 0.0]], np.float32), 0)
    np.testing.assert_array_equal(made.values, [[127, -1, 0], [0, 0, 0]])
    assert made.scales[0] == 1.0


def test_a_range_is_clipped_where_less_is_lost_for_what_the_weights_multiply() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 400)).astype(np.float32)
    weight[:, 7] = 6.0
    square = np.ones(400)
    square[7] = 1e-3  # what the largest weight multiplies is nearly nothing
    made = quantized_weight(weight, 0, importance=square)
    largest = np.abs(weight).max(1, keepdims=True) / 127
    plain = np.square(np.rint(weight / largest) * largest - weight) @ square
    lost = np.square(made.floats() - weight) @ square
    assert np.all(made.scales < largest[:, 0])
    assert np.all(lost < plain)


@pytest.mark.parametrize("groups", [1, 8])
def test_compensated_rounding_halves_the_error_on_related_inputs(groups: int) -> None:
    generator = np.random.default_rng(0)
    size, outputs = 24, 16
    vectors = generator.standard_normal((groups, 4000, size)) @ generator.standard_normal(
        (groups, size, size)
    )
    vectors[:, :, 1:] += 3 * vectors[:, :, :1]
    covariance = np.matmul(vectors.transpose(0, 2, 1), vectors) / 4000
    weight = generator.standard_normal((outputs, size)).astype(np.float32)
    nearest = quantized_weight(weight, 0)
    made = compensated_weight(weight, nearest, covariance, limit=127)

    def loss(result: QuantizedWeight) -> float:
        error = (result.floats() - weight).reshape(groups, -1, size)
        return float(np.sum(np.matmul(error, vectors.transpose(0, 2, 1)) ** 2))

    assert loss(made) < 0.5 * loss(nearest)
    np.testing.assert_array_equal(made.scales, nearest.scales)


def test_unrelated_inputs_are_rounded_to_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    nearest = quantized_weight(weight, 0)
    made = compensated_weight(weight, nearest, np.eye(10)[None], limit=127)
    np.testing.assert_array_equal(made.values, nearest.values)


_CONVOLUTIONS = {
    "plain": ("", (5, 6, 3, 3)),
    "padded": ("pads = [1,0,2,1]", (5, 6, 3, 2)),
    "strided": ("strides = [2,3], pads = [1,1,1,1]", (5, 6, 3, 3)),
    "dilated": ("dilations = [2,1], pads = [1,1,1,1]", (5, 6, 3, 3)),
    "grouped": ("group = 3", (9, 2, 2, 2)),
    "depthwise": ('group = 6, auto_pad = "SAME_UPPER", strides = [2,2]', (6, 1, 3, 3)),
    "same_lower": ('auto_pad = "SAME_LOWER"', (5, 6, 2, 2)),
    "pointwise": ("", (5, 6, 1, 1)),
}


@pytest.mark.parametrize("name", _CONVOLUTIONS)
def test_means_of_what_a_convolution_multiplies_give_its_mean_output(
    name: str, tmp_path: Path
) -> None:
    attributes, shape = _CONVOLUTIONS[name]
    weight = np.random.default_rng(0).standard_normal(shape)
    given = f"<{attributes}>" if attributes else ""
    body = f"g (float[n,6,7,8] x) => (float[n,c,h,w] y) {{ y = Conv {given} (x, w) }}"
    source = graphs.saved(body, tmp_path / "convolution.onnx", {"w": weight})
    x = graphs.samples(5, (6, 7, 8))  # no more than 56 places: all are looked at
    seen = moments_of(load_typed(source), tmp_path, ["conv_0"], [{"x": x}], silent)["conv_0"]
    given_out = graphs.outputs(source, x).transpose(1, 0, 2, 3).reshape(shape[0], -1)
    np.testing.assert_allclose(mean_error(weight, seen.mean), given_out.mean(1), atol=1e-5)
    groups = len(seen.mean)
    rows = weight.reshape(groups, -1, seen.mean.shape[1])
    covariance = seen.covariance()
    assert covariance is not None
    variances = np.einsum("goi,gij,goj->go", rows, covariance, rows).reshape(-1)
    np.testing.assert_allclose(variances, given_out.var(1), rtol=1e-4)


def test_a_corrected_bias_takes_the_measured_mean_error_back(tmp_path: Path) -> None:
    from tests.quantization.test_static import SEEN, quantized

    source = graphs.saved(
        """g (float[n,3,24,24] x) => (float[n,16,22,22] y) {
            r = Relu (x)
            y = Conv (r, w)
        }""",
        tmp_path / "one.onnx",
        {"w": np.random.default_rng(0).standard_normal((16, 3, 3, 3))},
    )
    plain = {"compensates": False, "equalizes": False}

    def shift(corrects: bool) -> float:
        out = quantized(source, corrects_biases=corrects, **plain)
        error = graphs.outputs(out, SEEN) - graphs.outputs(source, SEEN)
        return float(np.abs(error.mean((0, 2, 3))).mean())

    assert shift(True) < 0.5 * shift(False)
