"""Quantized ONNX to SavedModel through the pipeline; ONNX Runtime quantized the sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="SavedModels are written with TensorFlow")
pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime.quantization", reason="ONNX Runtime quantizes the sources")

import onnx
from onnx import TensorProto, helper
from onnxruntime import quantization

import convkit
from tests.onnx_files import make_model, make_value

# The reference is run in a process of its own, and so is the result.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FLOAT = TensorProto.FLOAT


def _random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32) / 5


def _network(path: Path) -> Path:
    """Two convolutions and a matrix, large enough for their weights to be variables."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["y"]),
    ]
    weights = {
        "first": _random(32, 3, 3, 3),
        "second": _random(64, 32, 3, 3),
        "matrix": _random(64, 1024),
    }
    ends = [make_value("x", FLOAT, ["n", 3, 16, 16])], [make_value("y", FLOAT, ["n", 1024])]
    onnx.save(make_model(nodes, *ends, weights, opsets=(("", 21),)), path)
    return path


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.samples: Iterator[Any] = iter([{"x": _random(2, 3, 16, 16)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self.samples, None)


def _static(network: Path, out: Path, form: str) -> None:
    quantization.quantize_static(
        network, out, _Calibration(), quant_format=quantization.QuantFormat[form],
        per_channel=form == "QDQ", weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


def _four_bits(network: Path, out: Path) -> None:
    blocks = pytest.importorskip(
        "onnxruntime.quantization.matmul_nbits_quantizer", reason="quantizes to four bits"
    )
    quantizer = blocks.MatMulNBitsQuantizer(onnx.load(network), block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


@pytest.mark.parametrize(
    ("kind", "precision", "least_db"),
    [
        # Integers all the way; what is left is the rounding of a tie, one step of 255.
        ("QDQ", "int8", 40),
        ("QOperator", "int8", 40),
        ("dynamic", "int8", 40),
        # Four-bit weights become the same float32 numbers on both sides.
        ("four bits", "q4", 100),
    ],
)
def test_quantized_networks_keep_their_precision_and_their_results(
    kind: str, precision: str, least_db: float, tmp_path: Path
) -> None:
    network, source = _network(tmp_path / "plain.onnx"), tmp_path / "model.onnx"
    if kind == "dynamic":
        quantization.quantize_dynamic(network, source)
    elif kind == "four bits":
        _four_bits(network, source)
    else:
        _static(network, source, kind)
    report = convkit.convert(source, to="savedmodel", out=tmp_path / "saved")
    assert report.passed
    assert report.artifact.precision == precision
    found = [check.value for check in report.checks if check.metric == "sqnr_db"]
    assert found
    assert min(found) > least_db
