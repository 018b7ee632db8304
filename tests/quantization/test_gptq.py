"""Weights rounded for data: against the algorithm written out, and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.quantization.blocks import Blocks, Round, affine, quantized, symmetric
from convkit.quantization.gptq import DAMPENING, compensated_blocks, inverse_factor
from convkit.quantization.half_quadratic import half_quadratic
from convkit.quantization.second_moments import staged

Array = np.ndarray[Any, Any]


def correlated(count: int, size: int, seed: int = 0) -> Array:
    """Rows whose elements go together and differ in size, as activations do."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((size, size)) / size**0.5 + np.eye(size)
    sizes = np.exp(generator.standard_normal(size) / 2)
    return np.asarray(generator.standard_normal((count, size)) @ mixing * sizes, np.float32)


DATA = correlated(2000, 80)
MOMENT = (DATA.T @ DATA / len(DATA)).astype(np.float64)
WEIGHT = np.random.default_rng(1).standard_t(5, (24, 80)).astype(np.float32)


def column_by_column(rows: Array, start: Blocks, order: Array) -> Array:
    """Optimal brain quantization in a given order, the inverse updated after each column.

    Source: Frantar and Alistarh, Optimal Brain Compression, 2022, equations 3 and 4, which GPTQ
    computes by a Cholesky factor.
    """
    mean = np.trace(MOMENT) / len(MOMENT)
    inverse = np.linalg.inv(MOMENT + DAMPENING * mean * np.eye(len(MOMENT)))
    left = rows.astype(np.float64).copy()
    zeros = np.full(start.scales.shape, 8.0) if start.zeros is None else start.zeros
    offsets = np.zeros(start.scales.shape) if start.offsets is None else start.offsets
    levels = np.zeros(rows.shape, np.uint8)
    for column in order:
        block = column // start.block
        scale, low = (
            start.scales[:, block],
            offsets[:, block] - zeros[:, block] * start.scales[:, block],
        )
        level = np.clip(np.rint((left[:, column] - low) / scale), 0, 15)
        levels[:, column] = level
        error = (left[:, column] - low - level * scale) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return levels


@pytest.mark.parametrize("by_activity", [True, False])
@pytest.mark.parametrize("rounded", [symmetric, affine, half_quadratic])
def test_levels_are_those_of_the_algorithm_written_out(rounded: Round, by_activity: bool) -> None:
    start = quantized(WEIGHT, 32, rounded)  # the last block is filled up
    made = compensated_blocks(WEIGHT, start, MOMENT, orders_by_activity=by_activity)
    order = np.argsort(-np.diagonal(MOMENT), kind="stable") if by_activity else np.arange(80)
    levels = made.levels.reshape(len(WEIGHT), -1)[:, :80]
    expected = column_by_column(WEIGHT, start, order)
    # float32 rounds a value on the edge between two levels the other way, and what follows it.
    assert np.mean(levels == expected) > 0.99
    np.testing.assert_array_equal(made.scales, start.scales)


def test_the_factor_is_that_of_the_dampened_inverse() -> None:
    factor = inverse_factor(MOMENT, 0.01).astype(np.float64)
    damped = MOMENT + 0.01 * np.trace(MOMENT) / 80 * np.eye(80)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(80), atol=1e-4)
    assert np.array_equal(factor, np.triu(factor))


@pytest.mark.parametrize("rounded", [symmetric, affine])
def test_products_with_other_data_lose_less(rounded: Round) -> None:
    other = correlated(500, 80)[::-1]
    start = quantized(WEIGHT, 32, rounded)
    made = compensated_blocks(WEIGHT, start, MOMENT)
    loss = [np.square(other @ (WEIGHT - b.floats()).T).mean() for b in (start, made)]
    assert loss[1] < 0.6 * loss[0]


def test_fewer_data_than_inputs_serve_as_well() -> None:
    few = DATA[:10].astype(np.float64)
    start = quantized(WEIGHT, 32, affine)
    made = compensated_blocks(WEIGHT, start, few.T @ few / 10)
    loss = [np.square(few @ (WEIGHT - b.floats()).T).mean() for b in (start, made)]
    assert loss[1] < loss[0]


def test_inputs_that_are_always_zero_leave_weights_as_they_were_rounded() -> None:
    start = quantized(WEIGHT, 32, affine)
    assert compensated_blocks(WEIGHT, start, np.zeros((80, 80))) is start


def test_stages_hold_no_more_than_a_limit() -> None:
    lengths = {"a": 10, "b": 10, "c": 20, "d": 5}
    assert staged(lengths, 1600) == [["a", "b"], ["c"], ["d"]]


def test_moments_are_those_of_what_the_runtime_computes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from convkit.artifact import TensorSpec
    from convkit.onnx_typing import load_typed
    from convkit.quantization.calibration_data import CalibrationData
    from convkit.quantization.second_moments import second_moments

    text = '<ir_version: 10, opset_import: ["":17]> net (float[batch,80] x) => (float[batch,8] y) '
    model = onnx.parser.parse_model(text + "{ a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }")
    for name, array in (("w1", WEIGHT.T.copy()), ("w2", WEIGHT[:, :8].copy())):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=DATA[:301])
    data = CalibrationData(tmp_path / "data.npz", [TensorSpec("x", "float32", ("batch", 80))])
    typed = load_typed(tmp_path / "net.onnx")
    found = second_moments(typed, tmp_path, ["x", "b"], data, lambda *_: None)
    model.graph.output.extend([onnx.ValueInfoProto(name="b")])
    b = ort.InferenceSession(model.SerializeToString()).run(["b"], {"x": DATA[:301]})[0]
    for name, array in (("x", DATA[:301]), ("b", b)):
        expected = array.T.astype(np.float64) @ array / 301
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)
