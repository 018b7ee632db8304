"""Recurrent layers in int8, with ONNX Runtime as judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.metrics import sqnr_db
from tests.onnx_files import onnx
from tests.quantization.quantized_graphs import (
    float_graph,
    node,
    normal,
    operators_of,
    optimized_operators,
    outputs_of,
    quantized,
)

_SIZE, _BATCH, _STEPS = 64, 2, 12
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _layer(kind: str, inputs: str = "x w r b", *, directions: int = 1, **attributes: Any) -> Any:
    rows = _GATES[kind] * _SIZE
    weights = {
        "w": normal(directions, rows, _SIZE) / 8,
        "r": normal(directions, rows, _SIZE, seed=1) / 8,
        "b": normal(directions, 2 * rows, seed=2) / 8,
        "p": normal(directions, 3 * _SIZE, seed=5) / 8,
        "length": np.array([_STEPS, _STEPS // 2], np.int32),
        "h": normal(directions, _BATCH, _SIZE, seed=3),
        "c": normal(directions, _BATCH, _SIZE, seed=4),
    }
    used = {name: array for name, array in weights.items() if name in inputs.split()}
    layer = node(kind, inputs, "y last", hidden_size=_SIZE, name="layer", **attributes)
    return float_graph([layer], used, [_STEPS, _BATCH, _SIZE], ("y", "last"))


def _is_close(model: Any, folder: Path, least_db: float) -> Path:
    path = quantized(model, folder)
    shape = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim]
    x = {"x": normal(*shape, seed=9)}
    for expected, found in zip(
        outputs_of(folder / "float.onnx", x), outputs_of(path, x), strict=True
    ):
        assert expected.shape == found.shape
        assert sqnr_db(expected, found) > least_db
    return path


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_layer("LSTM"), id="plain"),
        pytest.param(_layer("LSTM", "x w r"), id="no bias"),
        pytest.param(_layer("LSTM", "x w r b length h c"), id="states and lengths"),
        pytest.param(_layer("LSTM", "x w r b _ _ _ p"), id="peepholes"),
        pytest.param(_layer("LSTM", direction="reverse"), id="reverse"),
        pytest.param(_layer("LSTM", directions=2, direction="bidirectional"), id="bidirectional"),
        pytest.param(
            _layer("LSTM", activations=["HardSigmoid", "Tanh", "Tanh"], clip=3.0), id="activations"
        ),
    ],
)
def test_lstm_computes_in_int8(model: Any, tmp_path: Path) -> None:
    path = _is_close(model, tmp_path, 28)  # twelve steps, each rounds what the last one gave
    assert operators_of(path) == {"DynamicQuantizeLSTM": 1}
    assert path.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2.5


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_layer("GRU"), id="gru"),
        pytest.param(_layer("GRU", "x w r b length h", linear_before_reset=1), id="gru of torch"),
        pytest.param(_layer("GRU", directions=2, direction="bidirectional"), id="bidirectional"),
        pytest.param(_layer("RNN"), id="rnn"),
    ],
)
def test_others_keep_weights_in_int8_and_are_as_fast(model: Any, tmp_path: Path) -> None:
    path = _is_close(model, tmp_path, 35)  # weights alone are rounded, 64 share a scale
    assert path.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2.5
    left = optimized_operators(path)
    assert set(left) <= {"GRU", "RNN"}, "weights are unpacked once, when the model is opened"


def test_layers_that_share_matrices_store_them_once(tmp_path: Path) -> None:
    first = node("LSTM", "x w r", "a", hidden_size=_SIZE, name="first")
    flat = node("Squeeze", "a axis", "f")
    second = node("LSTM", "f w r", "y", hidden_size=_SIZE, name="second")
    weights = {
        "w": normal(1, 4 * _SIZE, _SIZE) / 8,
        "r": normal(1, 4 * _SIZE, _SIZE, seed=1) / 8,
        "axis": np.array([1]),
    }
    path = _is_close(float_graph([first, flat, second], weights, [4, 1, _SIZE]), tmp_path, 25)
    assert operators_of(path)["DynamicQuantizeLSTM"] == 2
    large = [each for each in onnx.load(path).graph.initializer if len(each.raw_data) > 4096]
    assert len(large) == 2


def test_targets_without_the_kernel_or_folding_get_what_they_can_read(tmp_path: Path) -> None:
    assert "LSTM" in operators_of(quantized(_layer("LSTM"), tmp_path, target="cuda"))
    nodes = [node("MatMul", "x m", "a"), node("GRU", "a w r", hidden_size=_SIZE)]
    weights = {
        "m": normal(128, _SIZE),
        "w": normal(1, 3 * _SIZE, _SIZE),
        "r": normal(1, 3 * _SIZE, _SIZE),
    }
    model = float_graph(nodes, weights, [4, 1, 128])
    left = operators_of(quantized(model, tmp_path, target="tensorrt"))
    assert left["MatMulInteger"] == 1
    assert left["Reshape"] == 0, "TensorRT takes no weights that are computed"


def test_layers_that_are_kept_stay_float(tmp_path: Path) -> None:
    nodes = [
        node("LSTM", "x w r", "a", hidden_size=_SIZE, name="kept"),
        node("GRU", "x v s", "y", hidden_size=_SIZE, name="packed"),
    ]
    weights = {
        "w": normal(1, 4 * _SIZE, _SIZE), "r": normal(1, 4 * _SIZE, _SIZE),
        "v": normal(1, 3 * _SIZE, _SIZE), "s": normal(1, 3 * _SIZE, _SIZE),
    }  # fmt: skip
    model = float_graph(nodes, weights, [4, 1, _SIZE], ("a", "y"))
    path = quantized(model, tmp_path, keep=frozenset(["kept"]))
    assert operators_of(path)["LSTM"] == 1
